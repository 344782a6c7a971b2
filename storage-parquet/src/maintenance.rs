//! Upkeep: when rows are merged, what a prune does, and the removal of files that nobody needs.
//!
//! The work itself, which reads and writes files, is in `rewrite`.

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use storage_core::metrics::time::floor_ms;
use storage_core::{Error, ErrorKind, Outcome, Result};
use tokio::time::{MissedTickBehavior, interval};

use crate::error::{is_gone, missing};
use crate::log::Rewriting;
use crate::rewrite::{Goal, Job};
use crate::schema::{is_data_path, is_temporary};
use crate::store::Store;

/// How often a merge is begun anew that another process has overtaken.
const OVERTAKEN_TRIES: u32 = 30;

/// Starts the task that merges in the background; it ends with the handle.
pub(crate) fn start(store: &Arc<Store>) {
    let due = Arc::clone(&store.merge_due);
    let weak = Arc::downgrade(store);
    let look_every = (store.options.merge_after / 4).clamp(Duration::from_millis(10), MINUTE);
    store.runtime.spawn(async move {
        let mut clock = interval(look_every);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The oldest row that waits, and since when this handle has seen it.
        let mut waiting: Option<(u64, Instant)> = None;
        loop {
            tokio::select! {
                _ = due.notified() => {}
                _ = clock.tick() => {}
            }
            let Some(store) = weak.upgrade().filter(|store| !store.is_closed()) else { return };
            let oldest = store.log.current().fresh_entries.first().map(|entry| entry.version);
            match (oldest, waiting) {
                (Some(oldest), Some((seen, _))) if oldest == seen => {}
                (oldest, _) => waiting = oldest.map(|oldest| (oldest, Instant::now())),
            }
            let is_old =
                waiting.is_some_and(|(_, since)| since.elapsed() >= store.options.merge_after);
            if !is_old && !is_merge_due(&store) {
                continue;
            }
            let merging = Arc::clone(&store);
            let merged = tokio::task::spawn_blocking(move || merging.merge_in_background()).await;
            let merged = merged.map_err(panicked).flatten();
            if let Err(error) = &merged
                && error.kind() != ErrorKind::Closed
            {
                tracing::warn!(target: "storage", %error, "merging failed");
            }
            store.note_upkeep(&merged);
            store.merged.notify_waiters();
        }
    });
}

const MINUTE: Duration = Duration::from_secs(60);

/// Whether enough waits to be merged.
pub(crate) fn is_merge_due(store: &Store) -> bool {
    let state = store.log.current();
    state.fresh_rows() >= store.options.merge_samples
        || state.fresh_entries.len() >= store.options.merge_files
}

/// The error of a task that panicked.
pub(crate) fn panicked(error: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Internal, "a task of the store panicked")
        .with_outcome(Outcome::Unknown)
        .with_source(error)
}

impl Store {
    /// Merges what waits.
    pub(crate) fn merge(&self) -> Result<u64> {
        let _alone = self.rewrite_lock();
        self.check_writable()?;
        let merged = self.rewrite(Goal { cutoff_ms: None, now_ms: now_ms() });
        merged.inspect_err(|error| self.note_write_error(error))
    }

    /// Merges what waits, and now and then removes files that belong to nobody.
    fn merge_in_background(&self) -> Result<()> {
        self.merge()?;
        let look_every = (self.options.orphans_after / 4).max(MINUTE);
        let mut looked = self.looked_for_orphans.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.elapsed() >= look_every {
            self.remove_orphans()?;
            *looked = Instant::now();
        }
        Ok(())
    }

    /// Merges what waits, and removes files that belong to nobody.
    pub(crate) fn compact(&self) -> Result<()> {
        self.merge()?;
        self.remove_orphans()
    }

    /// Removes the samples before a time, and returns how many.
    pub(crate) fn prune(&self, cutoff_ms: i64) -> Result<u64> {
        let _alone = self.rewrite_lock();
        self.check_writable()?;
        let pruned = self.rewrite(Goal { cutoff_ms: Some(cutoff_ms), now_ms: now_ms() });
        pruned.inspect_err(|error| self.note_write_error(error))
    }

    fn rewrite_lock(&self) -> MutexGuard<'_, ()> {
        self.rewriting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rewrite(&self, goal: Goal) -> Result<u64> {
        let (mut lost, mut overtaken) = (BTreeSet::new(), 0);
        while overtaken < OVERTAKEN_TRIES {
            let base = self.log.refresh()?;
            let mut job = Job::new(self, Arc::clone(&base), goal, lost.clone());
            let made = job.make().and_then(|is_needed| match is_needed {
                true => job.publish(),
                false => Ok(None),
            });
            match made {
                Ok(None) => return Ok(0),
                Ok(Some(Rewriting::Done)) => {
                    let removed = job.removed_rows;
                    self.clean_up(&job.replaced);
                    return Ok(removed);
                }
                Ok(Some(Rewriting::Overtaken)) => job.withdraw(),
                // The files may count by now, whatever the error is about: they stay.
                Err(error) if error.outcome() == Outcome::Unknown => return Err(error),
                Err(error) if is_gone(&error) && self.log.refresh()?.version != base.version => {
                    job.withdraw();
                }
                Err(error) => {
                    job.withdraw();
                    let is_damaged = is_gone(&error) || error.kind() == ErrorKind::Corrupt;
                    if let Some(path) = job.dispensable(&error).filter(|_| is_damaged) {
                        tracing::warn!(target: "storage", %error, "a damaged file is pruned unread");
                        lost.insert(path.to_owned());
                        continue;
                    }
                    let Some(day) = job.optional_day().filter(|_| is_damaged) else {
                        return Err(match is_gone(&error) {
                            true => missing(&error),
                            false => error,
                        });
                    };
                    // One hour that cannot be read must not keep all others from being merged.
                    tracing::warn!(target: "storage", %error, "a day stays in files of hours");
                    self.note_damaged(day);
                    continue;
                }
            }
            overtaken += 1;
            // Whoever was faster may go on at once; give way for a moment.
            std::thread::sleep(Duration::from_millis(fastrand::u64(1..20)));
        }
        Err(Error::new(ErrorKind::Busy, "other processes rewrite the same files all the time"))
    }

    /// Removes what the last commit has replaced. What cannot be removed now is an orphan.
    fn clean_up(&self, replaced: &BTreeSet<String>) {
        let removed = || -> Result<()> {
            self.log.checkpoint()?;
            if self.options.keep_replaced.is_zero() {
                return replaced.iter().try_for_each(|path| self.files().remove(path));
            }
            // From now on, however long ago they were written, or seen while they were made.
            let mut seen = self.orphans.lock().unwrap_or_else(PoisonError::into_inner);
            seen.extend(replaced.iter().map(|path| (path.clone(), Instant::now())));
            Ok(())
        };
        if let Err(error) = removed() {
            tracing::warn!(target: "storage", %error, "cannot clear away what was replaced");
        }
    }

    /// Removes files that no version of the manifest has named for a while.
    ///
    /// A merge that is under way elsewhere has such files, too, and publishes them only for half as long
    /// as they are safe here. So they have to be old by the time they were written *and* have been seen
    /// by this handle that long ago, by a clock that cannot be set.
    fn remove_orphans(&self) -> Result<()> {
        let _alone = self.rewrite_lock();
        self.check_writable()?;
        let grace = self.options.orphans_after.max(self.options.keep_replaced);
        let mut seen = self.orphans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut orphans = rustc_hash::FxHashMap::default();
        let mut listed = Vec::new();
        for directory in ["data", "log", "checkpoint"] {
            listed.extend(self.files().list(directory)?);
        }
        // What somebody else has put there by hand stays.
        listed.retain(|file| is_temporary(&file.path) || is_data_path(&file.path));
        // After the listing: what was published until now is known.
        let state = self.log.refresh()?;
        let known: BTreeSet<&str> = state.files.iter().map(|file| file.path.as_str()).collect();
        let now = SystemTime::now();
        for file in listed.into_iter().filter(|file| !known.contains(file.path.as_str())) {
            let since = seen.get(&file.path).copied().unwrap_or_else(Instant::now);
            // A time in the future says nothing.
            let age = now.duration_since(file.modified).unwrap_or_default();
            if age >= grace && since.elapsed() >= grace {
                self.check_open()?;
                self.files().remove(&file.path)?;
            } else {
                orphans.insert(file.path, since);
            }
        }
        *seen = orphans;
        Ok(())
    }
}

fn now_ms() -> i64 {
    floor_ms(chrono::Utc::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ParquetOptions;
    use crate::encode::encode_fast;
    use crate::files::faulty::{Call, Fault, FaultyFiles};
    use crate::files::{Files, LocalFiles};
    use crate::manifest::{Change, Entry};
    use crate::rows::{Rows, Samples};
    use crate::schema::{HOUR_MS, KEY_LAYOUT};
    use std::path::{Path, PathBuf};
    use storage_core::{SeriesKey, TimeRange};
    use tokio::runtime::Runtime;

    /// A location, and where the tasks of its handles run.
    struct Place {
        dir: tempfile::TempDir,
        runtime: Runtime,
    }

    impl Place {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), runtime: Runtime::new().unwrap() }
        }

        fn options(&self) -> ParquetOptions {
            ParquetOptions::new(self.dir.path())
        }

        fn files(&self) -> Arc<dyn Files> {
            Arc::new(LocalFiles::new(self.dir.path().to_owned()))
        }

        fn open(&self, options: ParquetOptions) -> Store {
            self.open_on(options, self.files())
        }

        fn open_on(&self, options: ParquetOptions, files: Arc<dyn Files>) -> Store {
            Store::open(options, files, self.runtime.handle().clone()).unwrap()
        }

        /// The files of merged rows, in order.
        fn data(&self) -> Vec<PathBuf> {
            let mut listed = self.files().list("data").unwrap();
            listed.sort_by(|one, other| one.path.cmp(&other.path));
            listed.iter().map(|file| self.dir.path().join(&file.path)).collect()
        }

        /// As if the files of merged rows were two hours old, or the clock wrong by as much.
        fn make_old(&self) {
            let time = SystemTime::now() - Duration::from_secs(7200);
            for path in self.data() {
                std::fs::File::options()
                    .write(true)
                    .open(path)
                    .unwrap()
                    .set_modified(time)
                    .unwrap();
            }
        }
    }

    fn key() -> SeriesKey {
        SeriesKey::new("a", "b")
    }

    fn write(store: &Store, times: impl IntoIterator<Item = i64>) {
        let mut samples = Samples::default();
        times.into_iter().for_each(|ms| samples.push(ms, ms as f64, None));
        let mut rows = Rows::default();
        rows.push(&Arc::new(key()), samples.as_slice());
        let entry = Entry::new(Change::Write);
        let encoded = encode_fast(&rows, &entry.to_text().unwrap()).unwrap();
        store.log.commit_write(&entry, &encoded.bytes, Arc::new(rows)).unwrap();
    }

    fn times(store: &Store) -> Vec<i64> {
        store.samples_of(&key(), TimeRange::all()).unwrap().ms
    }

    fn assert_sound(store: &Store) {
        assert_eq!(store.check().unwrap().problems, Vec::<String>::new());
    }

    /// A merge that has made its files.
    fn made(store: &Store) -> Job<'_> {
        let goal = Goal { cutoff_ms: None, now_ms: now_ms() };
        let mut job = Job::new(store, store.log.refresh().unwrap(), goal, BTreeSet::new());
        assert!(job.make().unwrap());
        job
    }

    #[test]
    fn files_of_a_merge_that_may_count_stay() {
        for faults in [&[Fault::AnswerLost, Fault::Denied][..], &[Fault::Vanished]] {
            let place = Place::new();
            let files = Arc::new(FaultyFiles::new(place.files(), 1, 0));
            let store = place.open_on(place.options(), Arc::clone(&files) as _);
            write(&store, 0..100);
            files.plan(Call::Create, faults);
            let error = store.merge().unwrap_err();
            assert_eq!(error.outcome(), Outcome::Unknown, "{faults:?}: {error:#}");
            let again = place.open(place.options());
            assert_eq!(times(&again), (0..100).collect::<Vec<_>>());
            assert_sound(&again);
            // It was not applied for certain: nothing is left of it.
            let before = place.data();
            write(&again, [1000]);
            let denied = place.open_on(place.options(), Arc::clone(&files) as _);
            files.plan(Call::Create, &[Fault::Denied]);
            assert_eq!(denied.merge().unwrap_err().outcome(), Outcome::NotApplied);
            assert_eq!(place.data(), before);
        }
    }

    #[test]
    fn files_of_a_merge_under_way_elsewhere_stay_whatever_the_clocks_say() {
        let place = Place::new();
        let (merging, clearing) = (place.open(place.options()), place.open(place.options()));
        write(&merging, 0..100);
        let mut job = made(&merging);
        place.make_old();
        for _ in 0..2 {
            clearing.remove_orphans().unwrap();
        }
        assert_eq!(job.publish().unwrap(), Some(Rewriting::Done));
        assert_eq!(times(&clearing).len(), 100);
        assert_sound(&clearing);
    }

    #[test]
    fn a_merge_gives_up_before_others_take_its_files_for_nobodys() {
        let place = Place::new();
        let store = place.open(place.options());
        write(&store, 0..100);
        let mut job = made(&store);
        job.began.1 -= Duration::from_secs(1801);
        let error = job.publish().unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied));
        job.withdraw();
        // Where nobody else merges it may take any time.
        let alone = place.open(place.options().orphans_after(Duration::ZERO));
        let mut job = made(&alone);
        job.began.1 -= Duration::from_secs(1801);
        assert_eq!(job.publish().unwrap(), Some(Rewriting::Done));
        assert_eq!(times(&store).len(), 100);
    }

    #[test]
    fn replaced_files_are_kept_from_when_they_were_replaced() {
        for (keep, left) in [(Duration::from_secs(3600), 2), (Duration::ZERO, 1)] {
            let place = Place::new();
            let options = place.options().orphans_after(Duration::ZERO).keep_replaced(keep);
            let store = place.open(options);
            write(&store, 0..100);
            store.compact().unwrap();
            place.make_old();
            write(&store, 100..200);
            for _ in 0..2 {
                store.compact().unwrap();
            }
            assert_eq!(place.data().len(), left);
            assert_eq!(times(&store).len(), 200);
        }
    }

    /// As a file of an earlier version, without a checksum of its page index, in which the bounds of
    /// a page are wrong.
    fn spoil_bounds(path: &Path, store: &Store) {
        let name = path.strip_prefix(store.files().location()).unwrap().to_str().unwrap();
        let file = store.open_file(name).unwrap().0;
        let (_, _, max_ms) = file.pages_inside(&(0..file.rows()))[1];
        let mut bytes = std::fs::read(path).unwrap();
        let mut replace = |old: &[u8], new: &[u8]| {
            let place = bytes.windows(old.len()).rposition(|part| part == old).unwrap();
            bytes[place..place + new.len()].copy_from_slice(new);
        };
        replace(KEY_LAYOUT.as_bytes(), b"x");
        replace(&max_ms.to_le_bytes(), &1i64.to_le_bytes());
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_merge_that_does_not_find_all_rows_of_a_file_leaves_it_alone() {
        let place = Place::new();
        let store = place.open(place.options());
        write(&store, (0..86_400).map(|no| no * 1000));
        store.compact().unwrap();
        let files = place.data();
        assert_eq!(files.len(), 1);
        spoil_bounds(&files[0], &store);
        // The day is split into hours, each of which reads a part of the file.
        let store = place.open(place.options().hour_samples(1));
        write(&store, [5]);
        let error = store.compact().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:#}");
        assert!(files[0].ends_with(error.context("file").unwrap()));
        assert_eq!(place.data(), files);
        let problems = store.check().unwrap().problems;
        assert!(problems.len() == 1 && problems[0].contains("bounds"), "{problems:?}");
    }

    #[test]
    fn a_prune_drops_damaged_files_that_lie_before_it() {
        let damages: [fn(&Path, Vec<u8>); 3] = [
            |path, bytes| std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap(),
            |path, _| std::fs::remove_file(path).unwrap(),
            |path, mut bytes| {
                bytes[4..300].iter_mut().for_each(|byte| *byte ^= 1);
                std::fs::write(path, bytes).unwrap();
            },
        ];
        for damage in damages {
            let place = Place::new();
            let options = || place.options().hour_samples(10);
            let store = place.open(options());
            write(&store, (0..240).map(|no| no * HOUR_MS / 10));
            store.compact().unwrap();
            let path = &place.data()[5];
            damage(path, std::fs::read(path).unwrap());
            let store = place.open(options());
            write(&store, [5 * HOUR_MS + 1, 9 * HOUR_MS + 1]);
            // A late row keeps the hour from being merged, as long as it is needed.
            for cutoff_ms in [0, 5 * HOUR_MS] {
                let cut = if cutoff_ms == 0 { store.merge() } else { store.prune(cutoff_ms) };
                assert_eq!(cut.unwrap_err().kind(), ErrorKind::Corrupt);
            }
            assert_eq!(store.prune(8 * HOUR_MS).unwrap(), 81);
            assert_eq!(times(&store).len(), 161);
            assert_eq!(store.stats().unwrap().total_metrics, 161);
            assert_sound(&store);
        }
    }
}
