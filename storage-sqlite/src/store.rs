//! What all parts of one handle share: connections, the dictionary, the head, and its condition.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqlitePoolOptions};
use storage_core::{Error, ErrorKind, Result};
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, Notify};

use crate::backlog::Backlog;
use crate::config::SqliteOptions;
use crate::dictionary::Dictionary;
use crate::error::{from_sqlx, is_failed_sync};
use crate::head::Head;
use crate::history::names::RecordNames;
use crate::schema;
use crate::tails::Tails;
use crate::writer::{Writer, WriterGuard};

/// The shared part of a handle.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) options: SqliteOptions,
    pub(crate) readers: SqlitePool,
    pub(crate) writer: Writer,
    dictionary: RwLock<Dictionary>,
    head: RwLock<Head>,
    pub(crate) backlog: Backlog,
    tails: RwLock<Tails>,
    record_names: RwLock<RecordNames>,
    /// Whether the file is known to have the tables of record history: an older one that is open
    /// for reading alone may get them later.
    pub(crate) has_history: AtomicBool,
    /// The same for the tables of events.
    pub(crate) has_events: AtomicBool,
    /// Rung when this handle has appended events, and when it is closed.
    pub(crate) appended: Notify,
    /// The same for the tables of jobs.
    pub(crate) has_jobs: AtomicBool,
    /// Held by whoever seals, so that one handle seals once at a time.
    pub(crate) sealing: AsyncMutex<()>,
    /// Rung when there may be something to seal.
    pub(crate) seal_due: Arc<Notify>,
    /// Rung when something was sealed or sealing failed.
    pub(crate) sealed: Notify,
    closed: AtomicBool,
    /// Set when a sync failed: nobody knows what is on disk, so nothing more is written.
    distrusted: AtomicBool,
    upkeep_error: Mutex<Option<String>>,
    /// Written to the log since it was last copied into the database, in bytes, roughly.
    log_bytes: AtomicU64,
    /// Where the tasks of the handle run, whoever calls it.
    pub(crate) runtime: Handle,
    /// What each step of a seal waits for, in tests that slow it down.
    #[cfg(test)]
    pub(crate) seal_gate: std::sync::OnceLock<tokio::sync::Semaphore>,
}

/// How much is written to the log before it is copied into the database: what SQLite does too.
const CHECKPOINT_BYTES: u64 = 4 << 20;

/// What a commit writes beside its payload: a few pages.
const COMMIT_BYTES: u64 = 4 * 4096;

impl Store {
    pub(crate) async fn open(mut options: SqliteOptions) -> Result<Self> {
        let (connection, version) = schema::open(&mut options).await?;
        let connect = schema::connect_options(&options).pragma("query_only", "ON");
        let readers = SqlitePoolOptions::new()
            .max_connections(options.readers)
            .acquire_timeout(options.busy_timeout.max(std::time::Duration::from_secs(1)))
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_lazy_with(connect);
        let writer = (!options.read_only).then_some(connection);
        Ok(Self {
            options,
            readers,
            writer: Writer::new(writer),
            dictionary: RwLock::default(),
            head: RwLock::default(),
            backlog: Backlog::default(),
            tails: RwLock::default(),
            record_names: RwLock::default(),
            has_history: AtomicBool::new(version >= schema::HISTORY_VERSION),
            has_events: AtomicBool::new(version >= schema::EVENTS_VERSION),
            appended: Notify::new(),
            has_jobs: AtomicBool::new(version >= schema::JOBS_VERSION),
            sealing: AsyncMutex::default(),
            seal_due: Arc::default(),
            sealed: Notify::new(),
            closed: AtomicBool::new(false),
            distrusted: AtomicBool::new(false),
            upkeep_error: Mutex::default(),
            log_bytes: AtomicU64::new(0),
            runtime: Handle::current(),
            #[cfg(test)]
            seal_gate: std::sync::OnceLock::new(),
        })
    }

    pub(crate) fn dictionary(&self) -> RwLockReadGuard<'_, Dictionary> {
        self.dictionary.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn dictionary_mut(&self) -> RwLockWriteGuard<'_, Dictionary> {
        self.dictionary.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn head(&self) -> RwLockReadGuard<'_, Head> {
        self.head.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn head_mut(&self) -> RwLockWriteGuard<'_, Head> {
        self.head.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tails(&self) -> RwLockReadGuard<'_, Tails> {
        self.tails.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tails_mut(&self) -> RwLockWriteGuard<'_, Tails> {
        self.tails.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn record_names(&self) -> RwLockReadGuard<'_, RecordNames> {
        self.record_names.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn record_names_mut(&self) -> RwLockWriteGuard<'_, RecordNames> {
        self.record_names.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the connection that writes.
    ///
    /// # Errors
    /// `PermissionDenied` if the store is read-only, `Closed` after `close`, `Io` after a failed
    /// sync.
    pub(crate) async fn writer(&self) -> Result<WriterGuard> {
        self.check_writable()?;
        let guard = self.writer.take().await;
        self.check_writable()?;
        Ok(guard)
    }

    /// Counts what was written, and says whether the log should be copied into the database.
    pub(crate) fn is_checkpoint_due(&self, bytes: u64) -> bool {
        let before = self.log_bytes.fetch_add(bytes + COMMIT_BYTES, Ordering::Relaxed);
        let due = before + bytes + COMMIT_BYTES >= CHECKPOINT_BYTES;
        if due {
            self.log_bytes.store(0, Ordering::Relaxed);
        }
        due
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "the store was closed"));
        }
        Ok(())
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        self.check_open()?;
        if self.options.read_only {
            let path = self.options.path.display();
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                "the store is open for reading alone",
            )
            .with_context("path", path));
        }
        self.check_trusted()
    }

    /// # Errors
    /// `Io` after a failed sync.
    pub(crate) fn check_trusted(&self) -> Result<()> {
        if self.distrusted.load(Ordering::Acquire) {
            return Err(Error::new(
                ErrorKind::Io,
                "a sync to disk failed before; close the store and open it again",
            ));
        }
        Ok(())
    }

    /// Whether the file has a table, which is `known` once it was found: a file of an older version
    /// that is open for reading alone may not have it yet.
    pub(crate) async fn finds(
        &self,
        known: &AtomicBool,
        table: &str,
        connection: &mut SqliteConnection,
    ) -> Result<bool> {
        if known.load(Ordering::Acquire) {
            return Ok(true);
        }
        let found = sqlx::query("SELECT EXISTS (SELECT * FROM sqlite_schema WHERE name = ?)")
            .bind(table)
            .fetch_one(connection)
            .await
            .and_then(|row| row.try_get(0))
            .map_err(from_sqlx)?;
        known.store(found, Ordering::Release);
        Ok(found)
    }

    /// Looks at an error of the writer: after a failed sync nothing more is written.
    pub(crate) fn note_write_error(&self, error: &Error) {
        if is_failed_sync(error) {
            self.distrust();
        }
    }

    /// Refuses to write from now on.
    pub(crate) fn distrust(&self) {
        self.distrusted.store(true, Ordering::Release);
    }

    /// Remembers how the last upkeep in the background ended.
    pub(crate) fn note_upkeep(&self, result: &Result<()>) {
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
        self.seal_due.notify_one();
        self.appended.notify_waiters();
    }

    /// Lets go of every connection, after what is under way. Does nothing where that is done.
    pub(crate) async fn close_connections(&self) -> Result<()> {
        self.readers.close().await;
        let writer = self.writer.take().await.remove();
        match writer {
            Some(connection) => sqlx::Connection::close(connection).await.map_err(from_sqlx),
            None => Ok(()),
        }
    }
}
