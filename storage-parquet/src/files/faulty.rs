//! Files that fail on purpose, for tests: before a change, after it, or on the way back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;
use storage_core::{Error, ErrorKind, Outcome, Result};

use super::{Files, Listed, Put, Source, Stamp};

/// What a fault does to a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// 503: nothing happens, and nobody knows.
    Refused,
    /// A timeout after the change: it has happened, and nobody knows.
    AnswerLost,
}

/// Wraps files; one call in `one_in` fails, at random by a seed.
#[derive(Debug)]
pub(crate) struct FaultyFiles {
    inner: Arc<dyn Files>,
    random: Mutex<fastrand::Rng>,
    one_in: u32,
}

impl FaultyFiles {
    pub(crate) fn new(inner: Arc<dyn Files>, seed: u64, one_in: u32) -> Self {
        Self { inner, random: Mutex::new(fastrand::Rng::with_seed(seed)), one_in }
    }

    fn draw(&self) -> Fault {
        let mut random = self.random.lock().unwrap();
        match random.u32(..self.one_in) {
            0 if random.bool() => Fault::Refused,
            0 => Fault::AnswerLost,
            _ => Fault::None,
        }
    }

    fn change<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        let unknown = Error::new(ErrorKind::Unavailable, "injected").with_outcome(Outcome::Unknown);
        match self.draw() {
            Fault::None => change(),
            Fault::Refused => Err(unknown),
            Fault::AnswerLost => change().and(Err(unknown)),
        }
    }

    fn read<T>(&self, read: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.draw() {
            Fault::None => read(),
            _ => Err(Error::new(ErrorKind::Unavailable, "injected")),
        }
    }
}

impl Files for FaultyFiles {
    fn location(&self) -> &str {
        self.inner.location()
    }

    fn create(&self, path: &str, bytes: &Bytes) -> Result<Put> {
        self.change(|| self.inner.create(path, bytes))
    }

    fn write(&self, path: &str, bytes: &Bytes) -> Result<()> {
        self.change(|| self.inner.write(path, bytes))
    }

    fn sync(&self, directories: &BTreeSet<String>) -> Result<()> {
        self.inner.sync(directories)
    }

    fn stamp(&self, path: &str) -> Result<Option<Stamp>> {
        self.read(|| self.inner.stamp(path))
    }

    fn open(&self, path: &str) -> Result<Option<Source>> {
        self.read(|| self.inner.open(path))
    }

    fn list(&self, directory: &str) -> Result<Vec<Listed>> {
        self.read(|| self.inner.list(directory))
    }

    fn remove(&self, path: &str) -> Result<()> {
        self.change(|| self.inner.remove(path))
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn make_root(&self) -> Result<()> {
        self.inner.make_root()
    }
}
