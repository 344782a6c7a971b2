//! The log: how a change is committed, and how the changes of others are found.
//!
//! A commit is the creation of the file with the next number, which fails where there is one.
//! So every reader and writer agrees on one order of all changes, whatever the number of
//! processes, and the last write wins by that number. To know of every change it is enough to look
//! for the next number; nothing is listed.
//!
//! Old entries are removed, the oldest first, once two checkpoints are newer. A handle that slept
//! that long would look for a number that is gone, and take that for the end: so it also makes sure
//! that the entry it stands at is still the file that it has seen, and otherwise starts again from a
//! checkpoint.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use storage_core::{Error, ErrorKind, Outcome, Result, SeriesKey};

use crate::encode::encode_empty;
use crate::error::{corrupt, is_failed_sync, is_gone};
use crate::file::{Columns, DataFile};
use crate::files::{Files, Put, Source, Stamp};
use crate::manifest::{Change, Checkpoint, Entry, Fresh, FreshRows, Rewritten, State};
use crate::rows::{Names, Rows};
use crate::schema::{checkpoint_path, is_data_path, log_path, version_of};

/// How often a file of the log is created again that may or may not be there: some five seconds long.
const UNSURE_TRIES: u32 = 7;

/// How often the start is made again that removals of others have overtaken.
const LOAD_TRIES: u32 = 16;

/// The log of a store, and the state it leads to.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) files: Arc<dyn Files>,
    pub(crate) names: Mutex<Names>,
    state: RwLock<Arc<State>>,
    /// Held by whoever moves the state on.
    advancing: Mutex<()>,
    /// Batches up to this many rows are held in memory until they are merged; larger ones are read
    /// from their file.
    memory_rows_max: u64,
}

/// How an attempt to commit files in the place of others ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Rewriting {
    /// They are in place.
    Done,
    /// Somebody else's change came first, with which it does not go together.
    Overtaken,
}

/// An entry of the log as it was read.
struct Loaded {
    entry: Entry,
    stamp: Stamp,
    fresh: Option<Fresh>,
}

impl Log {
    /// Opens the log; without one, creates it if `create` says so.
    ///
    /// # Errors
    /// `NotFound` if there is no store and none is to be created.
    pub(crate) fn open(files: Arc<dyn Files>, create: bool, memory_rows_max: u64) -> Result<Self> {
        let names = Mutex::default();
        let state = match load(&*files, &names, memory_rows_max)? {
            Some(state) => state,
            None => {
                if !has_remains(&*files)? {
                    make(&*files, create)?;
                }
                // Perhaps somebody else has just made it.
                load(&*files, &names, memory_rows_max)?.ok_or_else(|| {
                    let problem =
                        "there are files of a store, but neither its log nor a checkpoint";
                    Error::new(ErrorKind::Corrupt, problem)
                        .with_context("location", files.location())
                })?
            }
        };
        let log = Self {
            files,
            names,
            state: RwLock::new(Arc::new(state)),
            advancing: Mutex::default(),
            memory_rows_max,
        };
        log.refresh()?;
        Ok(log)
    }

    /// The state as this handle knows it.
    pub(crate) fn current(&self) -> Arc<State> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Applies whatever others committed, and returns the state after it.
    pub(crate) fn refresh(&self) -> Result<Arc<State>> {
        let state = self.current();
        // In this order: while the entry is there, none after it was removed.
        let is_last = self.files.stamp(&log_path(state.version + 1))?.is_none();
        if is_last && self.files.stamp(&log_path(state.version))?.as_ref() == Some(&state.stamp) {
            return Ok(state);
        }
        self.advance(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.advancing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) -> Arc<State> {
        let state = Arc::new(state);
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&state);
        state
    }

    fn advance(&self, _lock: &MutexGuard<'_, ()>) -> Result<Arc<State>> {
        let mut state = State::clone(&self.current());
        let mut tries = 0;
        loop {
            let next = self.read_entry(state.version + 1)?;
            let is_there =
                self.files.stamp(&log_path(state.version))?.as_ref() == Some(&state.stamp);
            match next {
                _ if !is_there => {
                    tries += 1;
                    if tries > LOAD_TRIES {
                        return Err(Error::new(ErrorKind::Busy, "the log moves on too fast"));
                    }
                    state = load(&*self.files, &self.names, self.memory_rows_max)?.ok_or_else(
                        || {
                            Error::new(ErrorKind::NotFound, "the store was removed")
                                .with_context("location", self.files.location())
                        },
                    )?;
                }
                None => return Ok(self.set(state)),
                Some(loaded) => self.apply(&mut state, loaded)?,
            }
        }
    }

    fn apply(&self, state: &mut State, loaded: Loaded) -> Result<()> {
        let version = state.version + 1;
        let Loaded { entry, stamp, fresh } = loaded;
        match entry.change {
            Change::Create => {
                return Err(corrupt(&log_path(version), "the entry belongs at the start of a log"));
            }
            Change::Write => state.apply_write(version, stamp, fresh),
            Change::Rewrite { consumed, added, removed, series } => {
                let removed = removed.into_iter().collect();
                let change = Rewritten { consumed, added, removed, series };
                self.apply_rewrite(state, version, stamp, change)?;
            }
        }
        Ok(())
    }

    fn apply_rewrite(
        &self,
        state: &mut State,
        version: u64,
        stamp: Stamp,
        change: Rewritten,
    ) -> Result<()> {
        let again = state.apply_rewrite(version, stamp, change, &mut |server, metric| {
            self.intern(server, metric)
        });
        let kept = std::mem::take(&mut state.fresh);
        for (first, last) in again {
            for version in first..=last {
                if let Some(Loaded { fresh: Some(fresh), .. }) = self.read_entry(version)? {
                    state.add(fresh);
                }
            }
        }
        // They are newer than what was read again.
        kept.into_iter().for_each(|fresh| state.add(fresh));
        Ok(())
    }

    fn intern(&self, server: &str, metric: &str) -> Arc<SeriesKey> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).intern(server, metric)
    }

    fn read_entry(&self, version: u64) -> Result<Option<Loaded>> {
        read_entry(&*self.files, &self.names, version, self.memory_rows_max)
    }

    /// Commits rows that are encoded as the file of `entry`.
    ///
    /// # Errors
    /// With the outcome `Unknown` if they may have been committed, or may still be.
    pub(crate) fn commit_write(&self, entry: &Entry, bytes: &Bytes, rows: Arc<Rows>) -> Result<()> {
        let lock = self.lock();
        loop {
            let state = self.current();
            let version = state.version + 1;
            // A handle that was idle may stand at an entry that is gone.
            let is_there = self.is_at(&state)?;
            let created = if is_there { self.try_create(version, entry, bytes)? } else { None };
            let Some(stamp) = created else {
                self.advance(&lock)?;
                continue;
            };
            if !self.is_at(&state).map_err(unsure)? {
                return self.settle_stale(version, &lock);
            }
            if rows.len() as u64 > self.memory_rows_max {
                // Committed: if it cannot be read back now, whoever asks next will say why.
                if let Err(error) = self.advance(&lock) {
                    tracing::warn!(target: "storage", %error, "cannot read what was written");
                }
                return Ok(());
            }
            let mut state = State::clone(&state);
            state.apply_write(version, stamp, fresh_of(version, FreshRows::Memory(rows)));
            self.set(state);
            return Ok(());
        }
    }

    /// Commits files in the place of others, made from `base`.
    ///
    /// # Errors
    /// With the outcome `Unknown` if that may have been committed, or may still be.
    pub(crate) fn commit_rewrite(
        &self,
        entry: &Entry,
        base: &State,
        cutoff_ms: Option<i64>,
    ) -> Result<Rewriting> {
        let bytes = encode_empty(&entry.to_text()?)?;
        let lock = self.lock();
        loop {
            let state = self.advance(&lock)?;
            // What was written meanwhile stays as it is, beside the new files; but a prune has to
            // remove what came before it returns.
            let is_early = |entry: &crate::manifest::FreshEntry| {
                entry.version > base.version
                    && cutoff_ms.is_some_and(|cutoff| entry.min_ms < cutoff)
            };
            if state.rewritten != base.rewritten || state.fresh_entries.iter().any(is_early) {
                return Ok(Rewriting::Overtaken);
            }
            let version = state.version + 1;
            if self.try_create(version, entry, &bytes)?.is_none() {
                continue;
            }
            if !self.is_at(&state).map_err(unsure)? {
                // Without an error it is part of the log: its files count.
                self.settle_stale(version, &lock)?;
                return Ok(Rewriting::Done);
            }
            self.advance(&lock).map_err(unsure)?;
            return Ok(Rewriting::Done);
        }
    }

    /// Whether the entry of a state is still the file that it was.
    fn is_at(&self, state: &State) -> Result<bool> {
        Ok(self.files.stamp(&log_path(state.version))?.as_ref() == Some(&state.stamp))
    }

    /// Creates an entry; `None` if there is one of somebody else with its number.
    ///
    /// # Errors
    /// With the outcome `Unknown` if any attempt may have created it, whatever the last one says.
    fn try_create(&self, version: u64, entry: &Entry, bytes: &Bytes) -> Result<Option<Stamp>> {
        let path = log_path(version);
        let (mut tries, mut is_unsure) = (0, false);
        loop {
            let error = match self.files.create(&path, bytes) {
                Ok(Put::Created(stamp)) => return Ok(Some(stamp)),
                Ok(Put::Exists) if tries == 0 && !self.files.is_remote() => return Ok(None),
                // An attempt before, of which nothing was heard, may have been the one: ours, or
                // one that somebody on the way to the object store has repeated.
                Ok(Put::Exists) => match self.read_entry(version).map_err(unsure)? {
                    Some(there) => return Ok((there.entry.id == entry.id).then_some(there.stamp)),
                    // Cleared away meanwhile. What is created now in its place will be found to be
                    // stale, unless there was nothing: a conflict that came to nothing.
                    None => fate_unknown(),
                },
                // Created and cleared away before it was looked at.
                Err(error) if is_gone(&error) && error.outcome() == Outcome::Unknown => {
                    return Err(fate_unknown().with_source(error));
                }
                Err(error) => error,
            };
            is_unsure |= error.outcome() == Outcome::Unknown;
            tries += 1;
            if !error.is_retryable() || is_failed_sync(&error) || tries > UNSURE_TRIES {
                return Err(if is_unsure { unsure(error) } else { error });
            }
            pause(tries);
        }
    }

    /// Finds out what an entry is worth that was created after one that is gone: this handle slept
    /// while others went on and cleared away. Entries that were not merged yet are never removed.
    ///
    /// # Errors
    /// Always with the outcome `Unknown`: the entry may have counted before it was cleared away.
    fn settle_stale(&self, version: u64, lock: &MutexGuard<'_, ()>) -> Result<()> {
        let state = self.advance(lock).map_err(unsure)?;
        if version > state.consumed {
            return Ok(());
        }
        // Merged long ago, or never part of the log.
        self.remove_unneeded(version).map_err(unsure)?;
        Err(fate_unknown())
    }

    fn remove_unneeded(&self, version: u64) -> Result<()> {
        match first_needed(&*self.files, &checkpoints(&*self.files)?)? {
            Some(first) if version < first => self.files.remove(&log_path(version)),
            _ => Ok(()),
        }
    }

    /// Writes the current state out, and removes checkpoints and entries that nobody needs.
    pub(crate) fn checkpoint(&self) -> Result<()> {
        let state = self.current();
        let bytes = Checkpoint::of(&state).to_bytes()?;
        create_by_anybody(&*self.files, &checkpoint_path(state.version), &bytes)?;
        let mut versions = checkpoints(&*self.files)?;
        for version in versions.iter().skip(2) {
            self.files.remove(&checkpoint_path(*version))?;
        }
        versions.truncate(2);
        let Some(first) = first_needed(&*self.files, &versions)? else { return Ok(()) };
        let mut entries: Vec<u64> =
            self.files.list("log")?.iter().filter_map(|file| version_of(&file.path)).collect();
        entries.sort_unstable();
        // The oldest first, so that what is left has no gap.
        for version in entries.iter().take_while(|version| **version < first) {
            self.files.remove(&log_path(*version))?;
        }
        Ok(())
    }
}

/// Returns the first entry that has to stay, given the checkpoints, the newest first. The older of
/// two is for the case that the newer one gets damaged, so it counts: with the entries whose rows
/// were not merged when it was written. `None` without two that can be read.
fn first_needed(files: &dyn Files, versions: &[u64]) -> Result<Option<u64>> {
    let Some(older) = versions.get(1) else { return Ok(None) };
    let path = checkpoint_path(*older);
    let Some(source) = files.open(&path)? else { return Ok(None) };
    match Checkpoint::consumed(&source.read_all()?, &path) {
        Ok(consumed) => Ok(Some((consumed + 1).min(*older))),
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            tracing::warn!(target: "storage", %error, "a checkpoint is damaged");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether files of a store lie there: one without a log is not made anew on top of them.
fn has_remains(files: &dyn Files) -> Result<bool> {
    for directory in ["log", "checkpoint", "data"] {
        let listed = files.list(directory)?;
        if listed.iter().any(|file| version_of(&file.path).is_some() || is_data_path(&file.path)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes a store where nothing is.
fn make(files: &dyn Files, create: bool) -> Result<()> {
    if !create {
        return Err(Error::new(ErrorKind::NotFound, "there is no store at the location")
            .with_context("location", files.location()));
    }
    files.make_root()?;
    let entry = Entry::new(Change::Create);
    create_by_anybody(files, &log_path(0), &encode_empty(&entry.to_text()?)?)
}

/// Creates a file that means the same whoever creates it, so that trying again is safe.
fn create_by_anybody(files: &dyn Files, path: &str, bytes: &Bytes) -> Result<()> {
    let mut tries = 0;
    loop {
        match files.create(path, bytes) {
            Err(error) if error.is_retryable() && tries < UNSURE_TRIES => tries += 1,
            created => return created.map(drop),
        }
        pause(tries);
    }
}

/// Waits before a file is created again, longer each time.
fn pause(tries: u32) {
    std::thread::sleep(std::time::Duration::from_millis(20 << tries));
}

/// The same error for a commit that may have been applied.
fn unsure(error: Error) -> Error {
    error.with_outcome(Outcome::Unknown)
}

fn fate_unknown() -> Error {
    unsure(Error::new(ErrorKind::Unavailable, "the commit took so long that its fate is unknown"))
}

/// The versions of the checkpoints, the newest first.
fn checkpoints(files: &dyn Files) -> Result<Vec<u64>> {
    let mut versions: Vec<u64> =
        files.list("checkpoint")?.iter().filter_map(|file| version_of(&file.path)).collect();
    versions.sort_unstable_by(|one, other| other.cmp(one));
    Ok(versions)
}

/// Finds the newest state that is written out, or the first one; `None` if there is no store.
fn load(files: &dyn Files, names: &Mutex<Names>, memory_rows_max: u64) -> Result<Option<State>> {
    let mut last_error = None;
    for _ in 0..LOAD_TRIES {
        let versions = checkpoints(files)?;
        for version in &versions {
            match load_checkpoint(files, names, *version, memory_rows_max) {
                Ok(Some(state)) => return Ok(Some(state)),
                // Removed meanwhile: there are newer ones.
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    tracing::warn!(target: "storage", %error, "a checkpoint is damaged");
                    last_error = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        match read_entry(files, names, 0, memory_rows_max)? {
            Some(Loaded { entry: Entry { change: Change::Create, .. }, stamp, .. }) => {
                return Ok(Some(State::empty(stamp)));
            }
            Some(_) => return Err(corrupt(&log_path(0), "the log starts with another entry")),
            None if versions.is_empty() => return Ok(None),
            None => {}
        }
    }
    Err(last_error.unwrap_or_else(|| Error::new(ErrorKind::Busy, "the log moves on too fast")))
}

fn load_checkpoint(
    files: &dyn Files,
    names: &Mutex<Names>,
    version: u64,
    memory_rows_max: u64,
) -> Result<Option<State>> {
    let path = checkpoint_path(version);
    let Some(source) = files.open(&path)? else { return Ok(None) };
    let checkpoint = Checkpoint::parse(&source.read_all()?, &path)?;
    if checkpoint.version != version {
        return Err(corrupt(&path, "the checkpoint is of another version"));
    }
    let Some(stamp) = files.stamp(&log_path(version))? else { return Ok(None) };
    let mut state = {
        let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
        let mut intern = |server: &str, metric: &str| names.intern(server, metric);
        State::of_checkpoint(checkpoint, stamp, &mut intern)
    };
    // Rows that were not merged are in the log alone, where they stay until they are.
    for entry in state.consumed + 1..=version {
        match read_entry(files, names, entry, memory_rows_max)? {
            Some(Loaded { fresh: Some(fresh), .. }) => state.apply_fresh(entry, fresh),
            Some(_) => {}
            None => return Ok(None),
        }
    }
    Ok(Some(state))
}

fn read_entry(
    files: &dyn Files,
    names: &Mutex<Names>,
    version: u64,
    memory_rows_max: u64,
) -> Result<Option<Loaded>> {
    let path = log_path(version);
    let Some(source) = files.open(&path)? else { return Ok(None) };
    let file = DataFile::open(&source, names)?;
    let entry = Entry::parse(file.entry(), &path)?;
    let fresh = match entry.change {
        Change::Write if file.rows() <= memory_rows_max => {
            FreshRows::Memory(Arc::new(read_rows(&file, &source)?))
        }
        _ => FreshRows::File(Arc::new(file)),
    };
    let fresh = fresh_of(version, fresh);
    Ok(Some(Loaded { entry, stamp: source.stamp, fresh }))
}

fn fresh_of(version: u64, rows: FreshRows) -> Option<Fresh> {
    let (min_ms, max_ms) = match &rows {
        FreshRows::Memory(rows) => rows.extent()?,
        FreshRows::File(file) => file.extent()?,
    };
    Some(Fresh { first: version, last: version, min_ms, max_ms, rows })
}

/// Reads every row of a file.
pub(crate) fn read_rows(file: &DataFile, source: &Source) -> Result<Rows> {
    let samples = file.read(source, std::slice::from_ref(&(0..file.rows())), Columns::All)?;
    let mut rows = Rows::default();
    for entry in &file.index {
        rows.push(&entry.key, samples.part(entry.start as usize, entry.end as usize));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::encode_fast;
    use crate::files::LocalFiles;
    use crate::files::faulty::{Call, Fault, FaultyFiles};
    use crate::rows::Samples;

    fn rows(ms: i64) -> Arc<Rows> {
        let mut samples = Samples::default();
        samples.push(ms, ms as f64, None);
        let mut rows = Rows::default();
        rows.push(&Arc::new(SeriesKey::new("a", "b")), samples.as_slice());
        Arc::new(rows)
    }

    fn write(log: &Log, ms: i64) -> Result<()> {
        let entry = Entry::new(Change::Write);
        let rows = rows(ms);
        let encoded = encode_fast(&rows, &entry.to_text()?)?;
        log.commit_write(&entry, &encoded.bytes, rows)
    }

    /// The times that a state holds, all of them fresh.
    fn times(state: &State) -> Vec<i64> {
        let pieces = state.fresh.iter().flat_map(|fresh| match &fresh.rows {
            FreshRows::Memory(rows) => rows.times().to_vec(),
            FreshRows::File(_) => panic!("a small batch is held in memory"),
        });
        let mut times: Vec<_> = pieces.collect();
        times.sort_unstable();
        times
    }

    fn local(dir: &tempfile::TempDir) -> Arc<dyn Files> {
        Arc::new(LocalFiles::new(dir.path().join("store")))
    }

    #[test]
    fn an_entry_created_where_the_log_was_cleared_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(local(&dir), true, 100).unwrap();
        for ms in 0..4 {
            write(&log, ms).unwrap();
            consume(&log);
        }
        // As if the handle had been stopped right before it created the file.
        let entry = Entry::new(Change::Write);
        let encoded = encode_fast(&rows(9), &entry.to_text().unwrap()).unwrap();
        log.files.create(&log_path(1), &encoded.bytes).unwrap();
        let error = log.settle_stale(1, &log.lock()).unwrap_err();
        assert_eq!((error.outcome(), error.is_retryable()), (Outcome::Unknown, true));
        assert!(log.files.stamp(&log_path(1)).unwrap().is_none());
        write(&log, 9).unwrap();
        assert_eq!(times(&Log::open(local(&dir), false, 100).unwrap().current()), [9]);
    }

    #[test]
    fn what_may_be_stored_is_never_said_not_to_be() {
        for faults in [
            &[Fault::AnswerLost, Fault::Denied][..],
            &[Fault::Refused, Fault::Denied],
            &[Fault::Vanished],
        ] {
            let dir = tempfile::tempdir().unwrap();
            let files = Arc::new(FaultyFiles::new(local(&dir), 1, 0));
            let log = Log::open(Arc::clone(&files) as _, true, 100).unwrap();
            files.plan(Call::Create, faults);
            let error = write(&log, 1).unwrap_err();
            assert_eq!(error.outcome(), Outcome::Unknown, "{faults:?} {error:#}");
            let is_there = faults[0] != Fault::Refused;
            assert_eq!(times(&log.refresh().unwrap()).len(), usize::from(is_there));
            // Denied at once, it is certain.
            files.plan(Call::Create, &[Fault::Denied]);
            assert_eq!(write(&log, 2).unwrap_err().outcome(), Outcome::NotApplied);
        }
    }

    #[test]
    fn an_entry_that_is_cleared_away_before_it_is_looked_at_may_have_counted() {
        let dir = tempfile::tempdir().unwrap();
        let files = Arc::new(FaultyFiles::new(local(&dir), 1, 0));
        let log = Log::open(Arc::clone(&files) as _, true, 100).unwrap();
        let others = Log::open(local(&dir), false, 100).unwrap();
        for ms in 0..4 {
            write(&others, ms).unwrap();
            consume(&others);
        }
        let entry = Entry::new(Change::Write);
        let encoded = encode_fast(&rows(9), &entry.to_text().unwrap()).unwrap();
        // What it stands at is gone, and so is what was in the way.
        files.plan(Call::Create, &[Fault::Exists]);
        assert!(log.try_create(1, &entry, &encoded.bytes).unwrap().is_some());
        assert!(!log.is_at(&log.current()).unwrap());
        let error = log.settle_stale(1, &log.lock()).unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unknown);
        assert!(log.files.stamp(&log_path(1)).unwrap().is_none());
    }

    #[test]
    fn a_store_that_fails_while_a_stale_entry_is_settled_leaves_its_fate_open() {
        let dir = tempfile::tempdir().unwrap();
        let files = Arc::new(FaultyFiles::new(local(&dir), 1, 0));
        let log = Log::open(Arc::clone(&files) as _, true, 100).unwrap();
        write(&log, 1).unwrap();
        consume(&log);
        files.plan(Call::List, &[Fault::Denied]);
        let error = log.settle_stale(1, &log.lock()).unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unknown);
    }

    fn reset(log: &Log, state: &State) {
        log.set(state.clone());
    }

    /// A rewrite that changes nothing but that everything counts as merged.
    fn consume(log: &Log) {
        consume_up_to(log, &log.refresh().unwrap());
    }

    /// The same for what there was in an earlier state.
    fn consume_up_to(log: &Log, base: &State) {
        let change = Change::Rewrite {
            consumed: base.version,
            added: Vec::new(),
            removed: Vec::new(),
            series: Vec::new(),
        };
        let done = log.commit_rewrite(&Entry::new(change), base, None).unwrap();
        assert_eq!(done, Rewriting::Done);
        log.checkpoint().unwrap();
    }

    #[test]
    fn the_older_checkpoint_has_all_entries_that_it_needs() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(local(&dir), true, 100).unwrap();
        for round in 0..4 {
            write(&log, round * 10).unwrap();
            let base = log.refresh().unwrap();
            // While the merge goes on, others write.
            (1..4).for_each(|no| write(&log, round * 10 + no).unwrap());
            consume_up_to(&log, &base);
        }
        let versions = checkpoints(&*log.files).unwrap();
        assert_eq!(versions.len(), 2);
        for damage in [true, false] {
            let newest = checkpoint_path(versions[0]);
            if damage {
                std::fs::write(dir.path().join("store").join(newest), "damaged").unwrap();
            } else {
                log.files.remove(&newest).unwrap();
            }
            let again = Log::open(local(&dir), false, 100).unwrap().current();
            assert_eq!(again.version, log.current().version);
            assert_eq!(times(&again), times(&log.current()));
        }
    }

    #[test]
    fn a_store_whose_checkpoints_are_lost_is_not_made_anew_on_top_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(local(&dir), true, 100).unwrap();
        for ms in 0..4 {
            write(&log, ms).unwrap();
            consume(&log);
        }
        for version in checkpoints(&*log.files).unwrap() {
            log.files.remove(&checkpoint_path(version)).unwrap();
        }
        for create in [true, false] {
            let error = Log::open(local(&dir), create, 100).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:#}");
        }
        assert!(log.files.stamp(&log_path(0)).unwrap().is_none());
        // Files that others have put there are no store.
        let other = tempfile::tempdir().unwrap();
        let files = local(&other);
        files.write("data/date=2020-01-01/part-0.parquet", &Bytes::from("x")).unwrap();
        assert_eq!(Log::open(local(&other), false, 9).unwrap_err().kind(), ErrorKind::NotFound);
        Log::open(files, true, 9).unwrap();
    }

    #[test]
    fn a_rewrite_whose_place_was_cleared_away_right_after_it_counts() {
        let dir = tempfile::tempdir().unwrap();
        let slow = Log::open(local(&dir), true, 100).unwrap();
        write(&slow, 1).unwrap();
        let state = slow.refresh().unwrap();
        let change = Change::Rewrite {
            consumed: state.version,
            added: Vec::new(),
            removed: Vec::new(),
            series: Vec::new(),
        };
        // Created, and then the handle is stopped before it looks whether that was in time.
        let entry = Entry::new(change);
        let version = state.version + 1;
        let bytes = encode_empty(&entry.to_text().unwrap()).unwrap();
        slow.files.create(&log_path(version), &bytes).unwrap();
        // Two others that write out the state make its place go.
        let others = Log::open(local(&dir), false, 100).unwrap();
        others.checkpoint().unwrap();
        write(&others, 2).unwrap();
        others.checkpoint().unwrap();
        assert!(!slow.is_at(&state).unwrap());
        slow.settle_stale(version, &slow.lock()).unwrap();
        assert!(slow.files.stamp(&log_path(version)).unwrap().is_some());
        assert_eq!(times(&slow.current()), [2]);
    }

    #[test]
    fn faults_lose_nothing_and_what_is_said_is_so() {
        for seed in 0..60 {
            let dir = tempfile::tempdir().unwrap();
            Log::open(local(&dir), true, 100).unwrap();
            let open = |no: u64| {
                // Other faults each time: an open that fails once need not fail again.
                let files = FaultyFiles::new(local(&dir), seed * 1000 + no, 20);
                Log::open(Arc::new(files), true, 100)
            };
            let (mut certain, mut unsure, mut refused) = (Vec::new(), Vec::new(), Vec::new());
            let mut log = open(0);
            for ms in 0..60 {
                let Ok(opened) = &log else {
                    log = open(ms as u64 + 1);
                    continue;
                };
                match write(opened, ms) {
                    Ok(()) => certain.push(ms),
                    Err(error) if error.outcome() == Outcome::Unknown => unsure.push(ms),
                    Err(_) => refused.push(ms),
                }
                if ms % 20 == 0 {
                    log = open(ms as u64 + 1);
                }
            }
            let found = times(&Log::open(local(&dir), false, 100).unwrap().current());
            assert!(certain.iter().all(|ms| found.contains(ms)), "seed {seed}: {found:?}");
            assert!(!refused.iter().any(|ms| found.contains(ms)), "seed {seed}: {refused:?}");
            assert!(certain.len() > 10, "seed {seed}: {unsure:?}");
        }
    }

    #[test]
    fn a_handle_that_slept_while_the_log_was_cleared_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (awake, asleep) = (
            Log::open(local(&dir), true, 100).unwrap(),
            Log::open(local(&dir), true, 100).unwrap(),
        );
        for round in 0..4 {
            for ms in 0..5 {
                write(&awake, round * 10 + ms).unwrap();
            }
            consume(&awake);
        }
        write(&awake, 1000).unwrap();
        let slept = State::clone(&asleep.current());
        assert!(awake.files.stamp(&log_path(slept.version + 1)).unwrap().is_none());
        // It reads: what it finds is the present.
        assert_eq!(times(&asleep.refresh().unwrap()), [1000]);
        // It writes: the number it would try is free, but out of date.
        reset(&asleep, &slept);
        write(&asleep, 2000).unwrap();
        assert_eq!(times(&awake.refresh().unwrap()), [1000, 2000]);
        assert_eq!(times(&Log::open(local(&dir), false, 100).unwrap().current()), [1000, 2000]);
    }

    #[test]
    fn a_checkpoint_torn_at_each_byte_is_passed_over_for_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(local(&dir), true, 100).unwrap();
        for ms in 0..3 {
            write(&log, ms).unwrap();
            consume(&log);
        }
        write(&log, 7).unwrap();
        let newest = checkpoint_path(log.current().version - 1);
        let path = dir.path().join("store").join(newest);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let again = Log::open(local(&dir), false, 100).unwrap().current();
            assert_eq!(
                (again.version, times(&again)),
                (log.current().version, vec![7]),
                "{length}"
            );
        }
    }

    #[test]
    fn an_entry_torn_at_each_byte_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(local(&dir), true, 100).unwrap();
        write(&log, 1).unwrap();
        let path = dir.path().join("store").join(log_path(1));
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = Log::open(local(&dir), false, 100).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{length} bytes: {error:#}");
            assert_eq!(error.context("file"), Some(&*log_path(1)));
        }
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(times(&Log::open(local(&dir), false, 100).unwrap().current()), [1]);
    }

    #[test]
    fn a_bit_flipped_anywhere_is_noticed_or_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(local(&dir), true, 100).unwrap();
        write(&log, 1).unwrap();
        let path = dir.path().join("store").join(log_path(1));
        let whole = std::fs::read(&path).unwrap();
        for byte in 0..whole.len() {
            let mut broken = whole.clone();
            broken[byte] ^= 1 << (byte % 8);
            std::fs::write(&path, &broken).unwrap();
            match Log::open(local(&dir), false, 100) {
                Ok(again) => assert_eq!(times(&again.current()), [1], "byte {byte}"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {byte}: {error:#}")
                }
            }
        }
    }

    #[test]
    fn four_threads_commit_and_every_commit_gets_a_number() {
        let dir = tempfile::tempdir().unwrap();
        Log::open(local(&dir), true, 100).unwrap();
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let files = local(&dir);
                scope.spawn(move || {
                    let log = Log::open(files, false, 100).unwrap();
                    (0..50).for_each(|no| write(&log, writer * 1000 + no).unwrap());
                });
            }
        });
        let state = Log::open(local(&dir), false, 100).unwrap().current();
        assert_eq!((state.version, times(&state).len()), (200, 200));
    }
}
