//! The actor: what it is made of, its options, how it starts.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use tokio::task::JoinSet;

use super::buffer::Bounds;
use super::handle::StorageHandle;
use super::receive;
use super::source::{Backpressure, Source};
use super::spool::Spool;
use super::state::Shared;
use super::writer::Writer;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::RetryPolicy;
use crate::metrics::StorageBackend;

/// When an actor writes, and how much it holds.
///
/// | | default | because |
/// |---|---|---|
/// | `flush_records` | 1000 | a batch of a thousand costs little more than one of ten |
/// | `flush_bytes` | 1 MiB | records with large metadata fill a batch earlier |
/// | `flush_interval` | 30 s | a record is in the store half a minute after it came, whatever comes |
/// | `write_records_max` | 10,000 | batches that wait together are written together |
/// | `memory_bytes_max` | 16 MiB | of each source, some 90,000 records; more than that goes by its [`Backpressure`] |
/// | `write_timeout` | 30 s | a store that hangs is a store that is down |
/// | `spool_after` | 5 s | a restart or a failover is often over by then |
/// | `retry` | 100 ms to 5 s, with jitter | a store that is back is noticed within 5 s |
#[derive(Debug, Clone, Copy)]
pub struct ActorOptions {
    pub(super) flush_records: usize,
    pub(super) flush_bytes: usize,
    pub(super) flush_interval: Duration,
    pub(super) write_records_max: usize,
    pub(super) memory_bytes_max: usize,
    pub(super) write_timeout: Duration,
    pub(super) spool_after: Duration,
    pub(super) retry: RetryPolicy,
}

impl Default for ActorOptions {
    fn default() -> Self {
        Self {
            flush_records: 1000,
            flush_bytes: 1 << 20,
            flush_interval: Duration::from_secs(30),
            write_records_max: 10_000,
            memory_bytes_max: 16 << 20,
            write_timeout: Duration::from_secs(30),
            spool_after: Duration::from_secs(5),
            retry: RetryPolicy::default().with_delay_first(Duration::from_millis(100)),
        }
    }
}

impl ActorOptions {
    /// Sets how many records of a source make a batch; 0 is the same as 1.
    #[must_use]
    pub fn with_flush_records(mut self, flush_records: usize) -> Self {
        self.flush_records = flush_records.max(1);
        self
    }

    /// Sets how many bytes in memory make a batch, whatever the number of records.
    #[must_use]
    pub fn with_flush_bytes(mut self, flush_bytes: usize) -> Self {
        self.flush_bytes = flush_bytes;
        self
    }

    /// Sets how old a record gets before its batch is written, full or not.
    #[must_use]
    pub fn with_flush_interval(mut self, flush_interval: Duration) -> Self {
        self.flush_interval = flush_interval;
        self
    }

    /// Sets how many records of batches that wait are written at once; one batch is in any case.
    #[must_use]
    pub fn with_write_records_max(mut self, write_records_max: usize) -> Self {
        self.write_records_max = write_records_max;
        self
    }

    /// Sets how many bytes the records of one source may take in memory. What is taken from the
    /// source at once, up to 256 items, comes on top.
    #[must_use]
    pub fn with_memory_bytes_max(mut self, memory_bytes_max: usize) -> Self {
        self.memory_bytes_max = memory_bytes_max;
        self
    }

    /// Sets after how long a write counts as failed; it is then repeated.
    #[must_use]
    pub fn with_write_timeout(mut self, write_timeout: Duration) -> Self {
        self.write_timeout = write_timeout;
        self
    }

    /// Sets how long a batch is tried before it, and all that follow, go to the spool.
    #[must_use]
    pub fn with_spool_after(mut self, spool_after: Duration) -> Self {
        self.spool_after = spool_after;
        self
    }

    /// Sets the delays between attempts. Their number and the time they take have no bound here:
    /// a batch is tried until the store takes it.
    #[must_use]
    pub fn with_retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            flush_records: self.flush_records,
            flush_bytes: self.flush_bytes,
            flush_interval: self.flush_interval,
            memory_bytes_max: self.memory_bytes_max,
        }
    }
}

/// Takes records from channels and streams into a store, and never breaks its host.
///
/// # What it does
/// Each [`Source`] has a task that takes what comes and gathers it in batches, closed by number,
/// bytes or age. One writer stores them in order, next to the receiving: a slow store holds up
/// nobody. Records that break a rule of [`MetricRecord`](crate::MetricRecord) are set aside with a
/// reason, and the rest goes on.
///
/// # When the store fails
/// A write is repeated with growing delays until it works; nothing is given up because of an
/// error. With a [`Spool`], what has failed for `spool_after` and all that comes behind it goes
/// there, and is drained in order as soon as the store is back. Memory is bounded for each source;
/// [`Backpressure`] says what happens when it is full. [`StorageHandle::health`] tells how things
/// are, [`StorageHandle::counters`] what became of every record.
///
/// # Once and only once
/// A write whose outcome is unknown is repeated. That doubles nothing: a series holds one sample
/// per millisecond.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use storage_core::pipeline::{Source, StorageActor};
/// use storage_core::{InMemory, MetricRecord};
/// use tokio::sync::mpsc;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let (sender, receiver) = mpsc::channel(1024);
/// let actor = StorageActor::new(Arc::new(InMemory::new()))
///     .source(Source::mpsc("sensors", receiver))
///     .start()?;
///
/// sender.send(MetricRecord::new("web-1", chrono::Utc::now(), "cpu", 12.5)).await.unwrap();
/// sender.send(MetricRecord::new("web-1", chrono::Utc::now(), "cpu", f64::NAN)).await.unwrap();
/// actor.flush().await?;
/// assert_eq!(actor.stats().await?.total_metrics, 1);
/// assert_eq!(actor.counters().sources[0].invalid, 1);
///
/// let report = actor.shutdown(Duration::from_secs(10)).await;
/// assert!(report.is_complete());
/// # Ok(()) }
/// ```
#[must_use = "an actor does nothing before it is started"]
pub struct StorageActor {
    store: Arc<dyn StorageBackend>,
    spool: Option<Spool>,
    options: ActorOptions,
    sources: Vec<Source>,
}

impl std::fmt::Debug for StorageActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { spool, options, sources, .. } = self;
        f.debug_struct("StorageActor")
            .field("store", &self.store.name())
            .field("spool", spool)
            .field("options", options)
            .field("sources", sources)
            .finish()
    }
}

impl StorageActor {
    /// An actor without sources that writes to `store`. It does not close the store.
    pub fn new(store: Arc<dyn StorageBackend>) -> Self {
        Self { store, spool: None, options: ActorOptions::default(), sources: Vec::new() }
    }

    /// Adds a source.
    pub fn source(mut self, source: Source) -> Self {
        self.sources.push(source);
        self
    }

    /// Gives it a place for records that the store does not take. What a former process left there
    /// is drained first.
    pub fn spool(mut self, spool: Spool) -> Self {
        self.spool = Some(spool);
        self
    }

    /// Sets when it writes and how much it holds.
    pub fn options(mut self, options: ActorOptions) -> Self {
        self.options = options;
        self
    }

    /// Starts its tasks on the Tokio runtime that this is called on.
    ///
    /// The actor goes on when all handles are dropped, until its sources have ended; what it then
    /// still holds it stores as long as the runtime lives.
    ///
    /// # Errors
    /// `Config` if a source shall spool and there is no spool.
    pub fn start(self) -> Result<StorageHandle> {
        let Self { store, spool, options, sources } = self;
        let default = match spool {
            Some(_) => Backpressure::Spool,
            None => Backpressure::ShedOldest,
        };
        let policy = |source: &Source| source.backpressure.unwrap_or(default);
        let spools = |source: &&Source| policy(source) == Backpressure::Spool;
        if let Some(source) = sources.iter().find(spools).filter(|_| spool.is_none()) {
            return Err(Error::new(
                ErrorKind::Config,
                "a source shall spool, but there is no spool",
            )
            .with_operation("start")
            .with_context("source", &source.name));
        }
        let lanes = sources.iter().map(|source| (source.name.clone(), policy(source))).collect();
        let shared = Arc::new(Shared::new(store, spool, options, lanes));
        let mut tasks = JoinSet::new();
        for (lane, source) in sources.into_iter().enumerate() {
            tasks.spawn(receive::run(Arc::clone(&shared), lane, source.receive));
        }
        tasks.spawn(Writer::new(Arc::clone(&shared)).run());
        Ok(StorageHandle::new(shared, Tasks(AsyncMutex::new(tasks))))
    }
}

/// The tasks of an actor. They go on when this is dropped.
pub(super) struct Tasks(pub(super) AsyncMutex<JoinSet<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.get_mut().detach_all();
    }
}
