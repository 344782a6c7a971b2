//! Where the files of a store lie: a local directory or an object store, behind one small trait.
//!
//! The calls block and are made on blocking threads alone. Every file is written once, whole, and
//! never changed; names end with a random part or a version, so that two writers never mean
//! different bytes by one name.

#[cfg(test)]
pub(crate) mod faulty;
mod local;
#[cfg(feature = "cloud")]
mod object;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use storage_core::Result;

pub(crate) use local::LocalFiles;
#[cfg(feature = "cloud")]
pub(crate) use object::ObjectFiles;

/// What tells one file from another that was later put in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp(String);

/// How an attempt to create a file ended.
#[derive(Debug)]
pub(crate) enum Put {
    /// It is there, durably.
    Created(Stamp),
    /// There was one already; nothing was changed.
    Exists,
}

/// A file as a listing shows it.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    /// Its path below the root of the store.
    pub(crate) path: String,
    /// When it was written, by the clock of whoever keeps it.
    pub(crate) modified: SystemTime,
    /// Its size.
    pub(crate) bytes: u64,
}

/// An open file.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// Its path below the root of the store.
    pub(crate) path: Arc<str>,
    /// Its size.
    pub(crate) bytes: u64,
    /// Which one it is.
    pub(crate) stamp: Stamp,
    pub(crate) reader: Arc<dyn ReadAt>,
}

/// Reads parts of an open file.
pub(crate) trait ReadAt: Send + Sync + fmt::Debug {
    /// Reads `length` bytes from `start` on; fewer are an error.
    fn read_at(&self, start: u64, length: usize) -> Result<Bytes>;

    /// Bytes of the file that are held in memory.
    fn held_bytes(&self) -> usize {
        0
    }
}

/// The files of a store. Paths are relative, with `/`.
pub(crate) trait Files: Send + Sync + fmt::Debug {
    /// What the location is called in errors; without secrets.
    fn location(&self) -> &str;

    /// Creates a file unless there is one, atomically and durably. Tries once.
    ///
    /// # Errors
    /// With the outcome `Unknown` if the file may have been created, or may still be.
    fn create(&self, path: &str, bytes: &Bytes) -> Result<Put>;

    /// Writes a file whose name nobody else uses; durable after [`sync`](Self::sync).
    fn write(&self, path: &str, bytes: &Bytes) -> Result<()>;

    /// Makes files in these directories, written before, durable.
    fn sync(&self, directories: &BTreeSet<String>) -> Result<()>;

    /// Returns which file is at `path`, if there is one.
    fn stamp(&self, path: &str) -> Result<Option<Stamp>>;

    /// Opens a file, if there is one.
    fn open(&self, path: &str) -> Result<Option<Source>>;

    /// Lists every file below a directory; none if there is no such directory.
    fn list(&self, directory: &str) -> Result<Vec<Listed>>;

    /// Removes a file; one that is not there is no error.
    fn remove(&self, path: &str) -> Result<()>;

    /// Whether opening a file costs a message to a server, so that open files are kept.
    fn is_remote(&self) -> bool;

    /// Makes the location itself, if it can be made.
    fn make_root(&self) -> Result<()>;
}

impl Source {
    /// Reads the whole file.
    pub(crate) fn read_all(&self) -> Result<Bytes> {
        self.reader.read_at(0, usize::try_from(self.bytes).unwrap_or(usize::MAX))
    }
}

/// The directory part of a path.
pub(crate) fn directory_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}
