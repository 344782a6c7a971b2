//! Files in a directory of the local file system.
//!
//! Durable means: written under a temporary name, synced, linked to its name (which fails if that is
//! taken), and the directory synced. Reads are positional, so that any number may go on at once.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use storage_core::{Error, Outcome, Result};

use super::{Files, Listed, Put, ReadAt, Source, Stamp, directory_of};
use crate::error::{from_io, from_sync};
use crate::schema::TEMPORARY;

/// How often a directory is made again that others keep removing because it is empty.
const DIRECTORY_TRIES: u32 = 16;

/// Files below a directory.
#[derive(Debug)]
pub(crate) struct LocalFiles {
    root: PathBuf,
    location: String,
}

impl LocalFiles {
    pub(crate) fn new(root: PathBuf) -> Self {
        let location = root.display().to_string();
        Self { root, location }
    }

    fn full(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Writes and syncs a temporary file in the directory of `path`.
    fn write_temporary(&self, path: &str, bytes: &Bytes) -> Result<Temporary> {
        let directory = self.full(directory_of(path));
        let name = format!("{TEMPORARY}{:016x}", fastrand::u64(..));
        let temporary = Temporary(directory.join(name));
        let mut tries = 0;
        let mut file = loop {
            match create_new(&temporary.0) {
                // A day that was empty a moment ago may also be removed again by then.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && tries < DIRECTORY_TRIES =>
                {
                    tries += 1;
                    self.make_directory(directory_of(path))?;
                }
                file => break file.map_err(|error| from_io(error, path))?,
            }
        };
        file.write_all(bytes).map_err(|error| from_io(error, path))?;
        file.sync_all().map_err(|error| from_sync(error, path))?;
        Ok(temporary)
    }

    /// Makes a directory and what it lies in, each synced into the one above.
    fn make_directory(&self, directory: &str) -> Result<()> {
        let mut missing = Vec::new();
        let full = self.full(directory);
        let mut above = full.as_path();
        while !above.as_os_str().is_empty() && !above.exists() {
            missing.push(above);
            let Some(next) = above.parent() else { break };
            above = next;
        }
        for path in missing.into_iter().rev() {
            match fs::create_dir(path) {
                // Somebody else was faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(|error| from_io(error, directory))?,
            }
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            sync_directory(parent.unwrap_or(Path::new(".")), directory)?;
        }
        Ok(())
    }
}

impl Files for LocalFiles {
    fn location(&self) -> &str {
        &self.location
    }

    fn create(&self, path: &str, bytes: &Bytes) -> Result<Put> {
        let temporary = self.write_temporary(path, bytes)?;
        let full = self.full(path);
        match fs::hard_link(&temporary.0, &full) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(Put::Exists),
            linked => linked.map_err(|error| from_io(error, path))?,
        }
        drop(temporary);
        let finished = sync_directory(&self.full(directory_of(path)), path)
            .and_then(|()| fs::metadata(&full).map_err(|error| from_io(error, path)));
        // The name is there: whatever fails now, others may have seen it.
        let metadata = finished.map_err(|error| error.with_outcome(Outcome::Unknown))?;
        Ok(Put::Created(stamp_of(&metadata)))
    }

    fn write(&self, path: &str, bytes: &Bytes) -> Result<()> {
        let temporary = self.write_temporary(path, bytes)?;
        fs::rename(&temporary.0, self.full(path)).map_err(|error| from_io(error, path))
    }

    fn sync(&self, directories: &BTreeSet<String>) -> Result<()> {
        // Also what they lie in: another process may have made a directory and not synced it yet.
        let mut all = BTreeSet::from([""]);
        for directory in directories {
            let mut path = directory.as_str();
            while !path.is_empty() && all.insert(path) {
                path = directory_of(path);
            }
        }
        all.into_iter().try_for_each(|path| sync_directory(&self.full(path), path))
    }

    fn stamp(&self, path: &str) -> Result<Option<Stamp>> {
        match fs::metadata(self.full(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            found => {
                found.map(|found| Some(stamp_of(&found))).map_err(|error| from_io(error, path))
            }
        }
    }

    fn open(&self, path: &str) -> Result<Option<Source>> {
        let file = match File::open(self.full(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|error| from_io(error, path))?,
        };
        let metadata = file.metadata().map_err(|error| from_io(error, path))?;
        let path: Arc<str> = Arc::from(path);
        Ok(Some(Source {
            bytes: metadata.len(),
            stamp: stamp_of(&metadata),
            reader: Arc::new(LocalFile { file, path: Arc::clone(&path) }),
            path,
        }))
    }

    fn list(&self, directory: &str) -> Result<Vec<Listed>> {
        let mut found = Vec::new();
        list_into(&self.full(directory), directory, &mut found)
            .map_err(|error| from_io(error, directory))?;
        Ok(found)
    }

    fn remove(&self, path: &str) -> Result<()> {
        match fs::remove_file(self.full(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|error| from_io(error, path)),
        }?;
        let directory = directory_of(path);
        // An empty day; where it is not empty, or somebody else's, that is no matter.
        if directory.contains('/') {
            let _ = fs::remove_dir(self.full(directory));
        }
        Ok(())
    }

    fn is_remote(&self) -> bool {
        false
    }

    fn make_root(&self) -> Result<()> {
        self.make_directory("").map_err(|error: Error| error.with_context("path", &self.location))
    }
}

/// A temporary file, removed when it goes.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Renamed away, or left for the removal of orphans.
        let _ = fs::remove_file(&self.0);
    }
}

#[derive(Debug)]
struct LocalFile {
    file: File,
    path: Arc<str>,
}

impl ReadAt for LocalFile {
    fn read_at(&self, start: u64, length: usize) -> Result<Bytes> {
        let size = self.file.metadata().map_err(|error| from_io(error, &self.path))?.len();
        // Before memory is taken for it: the length may come from a damaged file.
        if start.checked_add(length as u64).is_none_or(|end| end > size) {
            return Err(from_io(io::ErrorKind::UnexpectedEof.into(), &self.path));
        }
        let mut bytes = vec![0; length];
        read_exact_at(&self.file, &mut bytes, start).map_err(|error| from_io(error, &self.path))?;
        Ok(Bytes::from(bytes))
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], start: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, start)
}

#[cfg(not(unix))]
fn read_exact_at(file: &File, bytes: &mut [u8], start: u64) -> io::Result<()> {
    use std::io::{Read, Seek};
    // A handle of its own has a place of its own.
    let mut own = file.try_clone()?;
    own.seek(io::SeekFrom::Start(start))?;
    own.read_exact(bytes)
}

fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

fn sync_directory(directory: &Path, path: &str) -> Result<()> {
    let opened = File::open(directory).map_err(|error| from_io(error, path))?;
    opened.sync_all().map_err(|error| from_sync(error, path))
}

fn list_into(directory: &Path, relative: &str, found: &mut Vec<Listed>) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = if relative.is_empty() { name } else { format!("{relative}/{name}") };
        let metadata = match entry.metadata() {
            // Removed while the listing went on.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        if metadata.is_dir() {
            list_into(&entry.path(), &path, found)?;
        } else {
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            found.push(Listed { path, modified, bytes: metadata.len() });
        }
    }
    Ok(())
}

/// The time that a file was written tells it from another one that got the same number of it.
fn stamp_of(metadata: &fs::Metadata) -> Stamp {
    let written = metadata.modified().ok();
    let since = written.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    let nanos = since.map_or(0, |since| since.as_nanos());
    Stamp(format!("{}-{nanos}-{}", number_of(metadata), metadata.len()))
}

#[cfg(unix)]
fn number_of(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn number_of(_metadata: &fs::Metadata) -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> (tempfile::TempDir, LocalFiles) {
        let dir = tempfile::tempdir().unwrap();
        let files = LocalFiles::new(dir.path().join("a/b"));
        (dir, files)
    }

    #[test]
    fn a_file_is_created_once() {
        let (_dir, files) = files();
        let put = |text: &'static str| files.create("log/1", &Bytes::from(text)).unwrap();
        let Put::Created(stamp) = put("one") else { panic!("it was not there") };
        assert!(matches!(put("two"), Put::Exists));
        let source = files.open("log/1").unwrap().unwrap();
        assert_eq!((source.read_all().unwrap(), source.stamp), (Bytes::from("one"), stamp));
        assert_eq!(files.list("").unwrap().len(), 1, "no temporary file is left");
    }

    #[test]
    fn what_is_not_there_is_no_error() {
        let (_dir, files) = files();
        assert!(files.open("x").unwrap().is_none());
        assert!(files.stamp("x").unwrap().is_none());
        assert!(files.list("x").unwrap().is_empty());
        files.remove("x").unwrap();
    }

    #[test]
    fn reading_past_the_end_is_refused_before_memory_is_taken() {
        let (_dir, files) = files();
        files.write("x", &Bytes::from("abc")).unwrap();
        let source = files.open("x").unwrap().unwrap();
        assert_eq!(source.reader.read_at(1, 2).unwrap(), Bytes::from("bc"));
        for (start, length) in [(1, 3), (4, 0), (0, usize::MAX), (u64::MAX, 1)] {
            let error = source.reader.read_at(start, length).unwrap_err();
            assert_eq!(error.kind(), storage_core::ErrorKind::Corrupt);
        }
    }
}
