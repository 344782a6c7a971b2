//! What all parts of one handle share: the log, the footers that were read, and its condition.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rustc_hash::FxHashMap;
use storage_core::{Error, ErrorKind, Result};
use tokio::runtime::Handle;
use tokio::sync::{Notify, RwLock};

use crate::config::ParquetOptions;
use crate::error::{FILE, is_failed_sync, is_gone, missing};
use crate::file::DataFile;
use crate::files::{Files, Source};
use crate::log::Log;
use crate::manifest::State;

/// How often a question is asked again whose files were replaced meanwhile.
const GONE_TRIES: u32 = 32;

/// The shared part of a handle.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) options: ParquetOptions,
    pub(crate) log: Log,
    cache: Mutex<Cache>,
    /// Held by whoever puts files in the place of others, so that one handle does so once at a time.
    pub(crate) rewriting: Mutex<()>,
    /// Held, by any number at once, while a batch that was found to be in time is handed over; by
    /// `close` alone, to know that no other comes.
    pub(crate) handing_over: RwLock<()>,
    /// Rung when there may be something to merge.
    pub(crate) merge_due: Arc<Notify>,
    /// Rung when something was merged or merging failed.
    pub(crate) merged: Notify,
    closed: AtomicBool,
    /// Set when a sync failed: nobody knows what is on disk, so nothing more is written.
    distrusted: AtomicBool,
    upkeep_error: Mutex<Option<String>>,
    /// Files that belong to nobody, and since when this handle has seen them.
    pub(crate) orphans: Mutex<FxHashMap<String, Instant>>,
    /// When upkeep looked for such files last.
    pub(crate) looked_for_orphans: Mutex<Instant>,
    /// Days whose hours cannot be merged into one file, because one of them cannot be read.
    pub(crate) damaged_days: Mutex<BTreeSet<i64>>,
    /// Files of merged rows that questions have opened.
    pub(crate) files_read: AtomicU64,
    /// Where the tasks of the handle run, whoever calls it.
    pub(crate) runtime: Handle,
}

impl Store {
    /// Opens the store; blocks.
    pub(crate) fn open(
        options: ParquetOptions,
        files: Arc<dyn Files>,
        runtime: Handle,
    ) -> Result<Self> {
        let create = options.create && !options.read_only;
        let log = Log::open(files, create, options.merge_samples)?;
        Ok(Self {
            options,
            log,
            cache: Mutex::default(),
            rewriting: Mutex::default(),
            handing_over: RwLock::default(),
            merge_due: Arc::default(),
            merged: Notify::new(),
            closed: AtomicBool::new(false),
            distrusted: AtomicBool::new(false),
            upkeep_error: Mutex::default(),
            orphans: Mutex::default(),
            looked_for_orphans: Mutex::new(Instant::now()),
            damaged_days: Mutex::default(),
            files_read: AtomicU64::new(0),
            runtime,
        })
    }

    pub(crate) fn files(&self) -> &dyn Files {
        &*self.log.files
    }

    /// Answers a question about the present state; if a file of it is replaced meanwhile, about the
    /// next one.
    pub(crate) fn ask<T>(&self, question: impl Fn(&State) -> Result<T>) -> Result<T> {
        let mut before: Option<u64> = None;
        for _ in 0..GONE_TRIES {
            let state = self.log.refresh()?;
            match question(&state) {
                Err(error) if is_gone(&error) => {
                    if before == Some(state.version) {
                        return Err(missing(&error));
                    }
                    before = Some(state.version);
                }
                answer => return answer,
            }
        }
        Err(Error::new(ErrorKind::Busy, "files are replaced faster than they can be read"))
    }

    /// Opens a file of merged rows; its footer is read once.
    pub(crate) fn open_file(&self, path: &str) -> Result<(Arc<DataFile>, Source)> {
        let known = self.cache().get(path);
        if let Some(Cached { file, source: Some(source), .. }) = known {
            return Ok((file, source));
        }
        let source = self.files().open(path)?.ok_or_else(|| gone(path))?;
        let file = match known {
            Some(known) => known.file,
            None => {
                let file = Arc::new(DataFile::open(&source, &self.log.names)?);
                let kept = self.files().is_remote().then(|| source.clone());
                self.cache().put(path, Arc::clone(&file), kept, self.options.cache_bytes);
                file
            }
        };
        Ok((file, source))
    }

    /// Whether a file of the day was found damaged.
    pub(crate) fn is_damaged(&self, day: i64) -> bool {
        self.damaged_days.lock().unwrap_or_else(PoisonError::into_inner).contains(&day)
    }

    /// Remembers that a file of the day is damaged.
    pub(crate) fn note_damaged(&self, day: i64) {
        self.damaged_days.lock().unwrap_or_else(PoisonError::into_inner).insert(day);
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_closed() {
            return Err(Error::new(ErrorKind::Closed, "the store was closed"));
        }
        Ok(())
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        self.check_open()?;
        if self.options.read_only {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                "the store is open for reading alone",
            )
            .with_context("location", self.files().location()));
        }
        self.check_trusted()
    }

    pub(crate) fn check_trusted(&self) -> Result<()> {
        if self.distrusted.load(Ordering::Acquire) {
            return Err(Error::new(
                ErrorKind::Io,
                "a sync to disk failed before; close the store and open it again",
            ));
        }
        Ok(())
    }

    /// Looks at an error of a write: after a failed sync nothing more is written.
    pub(crate) fn note_write_error(&self, error: &Error) {
        if is_failed_sync(error) {
            self.distrusted.store(true, Ordering::Release);
        }
    }

    /// Remembers how the last upkeep in the background ended.
    pub(crate) fn note_upkeep<T>(&self, result: &Result<T>) {
        let mut slot = self.upkeep_error.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = result.as_ref().err().map(ToString::to_string);
    }

    /// What the last upkeep in the background failed with.
    pub(crate) fn upkeep_error(&self) -> Option<String> {
        self.upkeep_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Refuses calls from now on.
    pub(crate) fn refuse_calls(&self) {
        self.closed.store(true, Ordering::Release);
        self.merge_due.notify_one();
        self.merged.notify_waiters();
    }
}

fn gone(path: &str) -> Error {
    Error::new(ErrorKind::NotFound, "the file is not there").with_context(FILE, path)
}

/// Footers that were read, the ones asked for last.
#[derive(Debug, Default)]
struct Cache {
    files: FxHashMap<String, Cached>,
    bytes: usize,
    clock: u64,
}

#[derive(Debug, Clone)]
struct Cached {
    file: Arc<DataFile>,
    source: Option<Source>,
    used: u64,
}

impl Cached {
    fn bytes(&self) -> usize {
        self.file.bytes() + self.source.as_ref().map_or(0, |source| source.reader.held_bytes())
    }
}

impl Cache {
    fn get(&mut self, path: &str) -> Option<Cached> {
        self.clock += 1;
        let cached = self.files.get_mut(path)?;
        cached.used = self.clock;
        Some(cached.clone())
    }

    fn put(&mut self, path: &str, file: Arc<DataFile>, source: Option<Source>, bytes_max: usize) {
        self.clock += 1;
        let cached = Cached { file, source, used: self.clock };
        self.bytes += cached.bytes();
        if let Some(before) = self.files.insert(path.to_owned(), cached) {
            self.bytes -= before.bytes();
        }
        if self.bytes > bytes_max {
            self.shrink(bytes_max / 4 * 3);
        }
    }

    /// Forgets what was not used for longest.
    fn shrink(&mut self, bytes_max: usize) {
        let mut by_age: Vec<_> =
            self.files.iter().map(|(path, cached)| (cached.used, path.clone())).collect();
        by_age.sort_unstable();
        for (_, path) in by_age {
            if self.bytes <= bytes_max {
                break;
            }
            if let Some(cached) = self.files.remove(&path) {
                self.bytes -= cached.bytes();
            }
        }
    }
}
