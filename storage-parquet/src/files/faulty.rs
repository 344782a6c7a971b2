//! Files that fail on purpose, for tests: before a change, after it, or on the way back.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;
use storage_core::{Error, ErrorKind, Outcome, Result};

use super::{Files, Listed, Put, Source, Stamp};
use crate::error::FILE;

/// What a fault does to a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// 503: nothing happens, and nobody knows.
    Refused,
    /// 403: nothing happens, for certain.
    Denied,
    /// A timeout after the change: it has happened, and nobody knows.
    AnswerLost,
    /// It has happened, and what it made is gone before it is looked at.
    Vanished,
    /// Nothing happens; the answer is that of somebody who was slower.
    Exists,
}

/// The calls that faults can be planned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Create,
    List,
}

/// Wraps files; one call in `one_in` fails, at random by a seed, or the next ones as it was planned.
#[derive(Debug)]
pub(crate) struct FaultyFiles {
    inner: Arc<dyn Files>,
    random: Mutex<fastrand::Rng>,
    /// Never at random if 0.
    one_in: u32,
    planned: Mutex<VecDeque<(Call, Fault)>>,
}

impl FaultyFiles {
    pub(crate) fn new(inner: Arc<dyn Files>, seed: u64, one_in: u32) -> Self {
        let random = Mutex::new(fastrand::Rng::with_seed(seed));
        Self { inner, random, one_in, planned: Mutex::default() }
    }

    /// The next calls of a kind meet these faults, in order.
    pub(crate) fn plan(&self, call: Call, faults: &[Fault]) {
        self.planned.lock().unwrap().extend(faults.iter().map(|fault| (call, *fault)));
    }

    fn draw(&self, call: Option<Call>) -> Fault {
        let mut planned = self.planned.lock().unwrap();
        if let Some((_, fault)) = planned.pop_front_if(|(next, _)| Some(*next) == call) {
            return fault;
        }
        let mut random = self.random.lock().unwrap();
        match self.one_in.checked_sub(1).map(|most| random.u32(..=most)) {
            Some(0) if random.bool() => Fault::Refused,
            Some(0) => Fault::AnswerLost,
            _ => Fault::None,
        }
    }

    fn change<T>(&self, fault: Fault, change: impl FnOnce() -> Result<T>) -> Result<T> {
        let unknown = |kind| Error::new(kind, "injected").with_outcome(Outcome::Unknown);
        match fault {
            Fault::None | Fault::Exists => change(),
            Fault::Refused => Err(unknown(ErrorKind::Unavailable)),
            Fault::Denied => Err(Error::new(ErrorKind::PermissionDenied, "injected")),
            Fault::AnswerLost => change().and(Err(unknown(ErrorKind::Unavailable))),
            Fault::Vanished => {
                change().and(Err(unknown(ErrorKind::NotFound).with_context(FILE, "")))
            }
        }
    }

    fn read<T>(&self, call: Option<Call>, read: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.draw(call) {
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
        match self.draw(Some(Call::Create)) {
            Fault::Exists => Ok(Put::Exists),
            fault => self.change(fault, || self.inner.create(path, bytes)),
        }
    }

    fn write(&self, path: &str, bytes: &Bytes) -> Result<()> {
        self.change(self.draw(None), || self.inner.write(path, bytes))
    }

    fn sync(&self, directories: &BTreeSet<String>) -> Result<()> {
        self.inner.sync(directories)
    }

    fn stamp(&self, path: &str) -> Result<Option<Stamp>> {
        self.read(None, || self.inner.stamp(path))
    }

    fn open(&self, path: &str) -> Result<Option<Source>> {
        self.read(None, || self.inner.open(path))
    }

    fn list(&self, directory: &str) -> Result<Vec<Listed>> {
        self.read(Some(Call::List), || self.inner.list(directory))
    }

    fn remove(&self, path: &str) -> Result<()> {
        self.change(self.draw(None), || self.inner.remove(path))
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn make_root(&self) -> Result<()> {
        self.inner.make_root()
    }
}
