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
                replaced.iter().try_for_each(|path| self.files().remove(path))?;
            }
            Ok(())
        };
        if let Err(error) = removed() {
            tracing::warn!(target: "storage", %error, "cannot clear away what was replaced");
        }
    }

    /// Removes files that no version of the manifest has named for a while.
    ///
    /// A merge that is under way elsewhere has such files, too: so they have to be old by the
    /// time they were written, or seen before by this handle, whose own clock cannot be set.
    fn remove_orphans(&self) -> Result<()> {
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
            if age >= grace || since.elapsed() >= grace {
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
