//! A backend with a spool in front: it accepts batches while the store behind is away.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::{TryStreamExt, stream};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::spool::{Spool, SpoolBacklog};
use super::writer::write_caught;
use crate::capabilities::Capabilities;
use crate::deadline::after;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::layers::RetryPolicy;
use crate::metrics::record::validate_batch;
use crate::metrics::{
    CheckReport, Health, HealthStatus, MetricAggregation, MetricRecord, ScanStream, SeriesFilter,
    SeriesInfo, SeriesSamples, SeriesWindows, StorageBackend, StorageStats, TimeRange,
};

/// How many records are drained at once.
const DRAIN_RECORDS_MAX: usize = 10_000;

/// What a [`Spooled`] answers while batches wait in its spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SpooledReads {
    /// What was acknowledged: a read drains the spool first, and fails if that does not work in
    /// time.
    #[default]
    Exact,
    /// What is in the store, without what waits.
    Stored,
}

/// Accepts batches also while the store behind does not take them.
///
/// A batch that the store refuses for a passing reason (the error is retryable, or the kind is
/// `Unavailable`, `Busy`, `Timeout`, `StorageFull` or `Io`) goes into the [`Spool`], and
/// `write_batch` returns `Ok`: it survives what the spool survives. From then on all batches go
/// there, until the spool is drained, in order, in the background. A step of that which is under way
/// ends also when the handle is dropped.
///
/// # What holds of the contract
/// All of it for this handle, and for all handles in this process that share the spool: reads and
/// prunes drain it first, for up to [`wait_max`](Self::with_wait_max), and fail otherwise with the
/// error of the store, or with `Busy`; a prune also if what was drained cannot be removed from the
/// spool. Whoever reads the store past the spool sees a batch once it is drained.
///
/// All handles that share a spool must lead to the same store. A batch that the store refuses for
/// good when it is drained stays where it is, and what is behind it too: `health` says so.
///
/// A write with the outcome `Unknown` may have been applied, and is applied again from the spool: a
/// prune or a write of the same samples by somebody else in between is undone by that, as by a
/// [late repetition](crate::layers::Retry#a-late-repetition).
///
/// A spool that fails when nothing waits in it keeps nothing from a store that works: batches go
/// straight there again. What such a spool could not remove is drained once more after a crash, over
/// whatever was written since; `health` is `Degraded` until it is removed.
///
/// While batches go into the spool, a write whose future is kept but not polled holds up those behind
/// it; one that is dropped does not.
///
/// # Errors
/// `write_batch` fails if the spool is full or fails too: with the error of the store if it was
/// asked, else with that of the spool; with the outcome `Unknown` if either says so.
///
/// # Cost
/// Nothing while the spool is empty. A store that hangs is noticed by a
/// [`Timeout`](crate::layers::Timeout): wrap it in one.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use storage_core::layers::{Fault, FaultPlan, Faulty, Operation};
/// use storage_core::pipeline::{Spool, SpoolLimits, Spooled};
/// use storage_core::{InMemory, MetricRecord, StorageBackend};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let shaky = Faulty::new(InMemory::new(), FaultPlan::new(1));
/// shaky.control().inject(Operation::WriteBatch, Fault::Refused);
/// let spool = Spool::open(Arc::new(InMemory::new()), SpoolLimits::default()).await?;
/// let store = Spooled::new(shaky, spool);
///
/// store.write_batch(&[MetricRecord::new("web-1", chrono::Utc::now(), "cpu", 1.0)]).await?;
/// assert_eq!(store.stats().await?.total_metrics, 1);
/// # Ok(()) }
/// ```
pub struct Spooled<B> {
    shared: Arc<Shared<B>>,
    reads: SpooledReads,
    wait_max: Duration,
    drainer: AbortHandle,
}

struct Shared<B> {
    inner: B,
    spool: Spool,
    retry: RetryPolicy,
    closed: AtomicBool,
}

impl<B> Drop for Spooled<B> {
    fn drop(&mut self) {
        self.drainer.abort();
    }
}

impl<B> std::fmt::Debug for Spooled<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { reads, wait_max, .. } = self;
        f.debug_struct("Spooled")
            .field("spool", &self.shared.spool)
            .field("reads", reads)
            .field("wait_max", wait_max)
            .finish_non_exhaustive()
    }
}

impl<B: StorageBackend + 'static> Spooled<B> {
    /// Wraps `inner`, and drains what lies in `spool` already. Must be called on a Tokio runtime.
    pub fn new(inner: B, spool: Spool) -> Self {
        Self::with_retry(inner, spool, RetryPolicy::default())
    }

    /// Like [`new`](Self::new), with delays of one's own between attempts to drain; their number
    /// and the time they take have no bound here.
    pub fn with_retry(inner: B, spool: Spool, retry: RetryPolicy) -> Self {
        let retry = retry.with_attempts_max(u32::MAX);
        let shared = Arc::new(Shared { inner, spool, retry, closed: AtomicBool::new(false) });
        let drainer = tokio::spawn(Shared::drain_for_ever(Arc::clone(&shared))).abort_handle();
        let (reads, wait_max) = (SpooledReads::default(), Duration::from_secs(5));
        Self { shared, reads, wait_max, drainer }
    }

    /// Sets what reads answer while batches wait. Default: [`SpooledReads::Exact`].
    #[must_use]
    pub fn with_reads(mut self, reads: SpooledReads) -> Self {
        self.reads = reads;
        self
    }

    /// Sets how long a read, a prune or a flush goes on draining the spool; what is being drained
    /// then is waited for. Default: 5 s.
    #[must_use]
    pub fn with_wait_max(mut self, wait_max: Duration) -> Self {
        self.wait_max = wait_max;
        self
    }

    /// What it wraps.
    pub fn inner(&self) -> &B {
        &self.shared.inner
    }

    /// The spool.
    pub fn spool(&self) -> &Spool {
        &self.shared.spool
    }

    async fn before_read(&self, operation: &'static str) -> Result<()> {
        match self.reads {
            SpooledReads::Exact => self.settle(operation).await,
            SpooledReads::Stored => Ok(()),
        }
    }

    /// Drains what was in the spool when this was called.
    async fn settle(&self, operation: &'static str) -> Result<()> {
        let Shared { inner, spool, retry, .. } = &*self.shared;
        if spool.is_empty() {
            return Ok(());
        }
        let (tail, deadline) = (spool.tail(), after(Instant::now(), self.wait_max));
        let mut delays = retry.delays();
        while !spool.is_drained_to(tail) {
            let error = match self.shared.drain_step().await {
                Err(error) => error,
                Ok(_) if spool.is_drained_to(tail) || Instant::now() < deadline => continue,
                Ok(_) => Error::new(ErrorKind::Busy, "there is more than was drained in time"),
            };
            let delay = delays.next().filter(|delay| Instant::now() + *delay < deadline);
            match delay.filter(|_| error.kind() != ErrorKind::Closed) {
                Some(delay) => sleep(delay).await,
                // The reason is that of a write; what fails is this operation.
                None => {
                    let message = "batches wait in the spool, and the store does not take them";
                    return Err(Error::new(error.kind(), message)
                        .with_retryable(error.is_retryable())
                        .with_backend(inner.name())
                        .with_operation(operation)
                        .with_source(error));
                }
            }
        }
        Ok(())
    }

    /// Puts a batch into the spool; `refused` is what the store said about it.
    async fn hold(&self, records: &[MetricRecord], refused: Option<Error>) -> Result<()> {
        // The store may have refused before it had a look.
        validate_batch(records)
            .map_err(|error| error.with_backend(self.name()).with_operation("write_batch"))?;
        let Shared { inner, spool, .. } = &*self.shared;
        let Err(error) = spool.push(records).await else { return Ok(()) };
        tracing::warn!(target: "storage", %error, "the spool does not take a batch");
        let may_be_there = error.outcome() == Outcome::Unknown;
        let error = match refused {
            Some(refused) => refused,
            // A spool that cannot even remove what was drained must not keep the store from what comes.
            None if spool.is_drained() => match inner.write_batch(records).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            },
            None => error.with_backend(inner.name()),
        };
        // What is there is drained, whatever the store said.
        Err(if may_be_there { error.with_outcome(Outcome::Unknown) } else { error })
    }

    fn check_open(&self, operation: &'static str) -> Result<()> {
        if !self.shared.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Closed, "the store was closed")
            .with_backend(self.name())
            .with_operation(operation))
    }
}

impl<B: StorageBackend + 'static> Shared<B> {
    async fn drain_step(self: &Arc<Self>) -> Result<usize> {
        let shared = Arc::clone(self);
        apart(async move {
            let inner = &shared.inner;
            let write = |records: Vec<_>| async move { write_caught(inner, &records).await };
            shared.spool.drain_step(DRAIN_RECORDS_MAX, write).await
        })
        .await
    }

    /// Removes from the spool what was drained. What fails otherwise is the operation, which was not done.
    async fn remove_drained(&self, operation: &'static str) -> Result<()> {
        if self.spool.is_empty() {
            return Ok(());
        }
        let spool = self.spool.clone();
        apart(async move { spool.remove_drained().await }).await.map_err(|error| {
            Error::new(error.kind(), "what was drained cannot be removed from the spool")
                .with_retryable(error.is_retryable())
                .with_backend(self.inner.name())
                .with_operation(operation)
                .with_source(error)
        })
    }

    async fn drain_for_ever(self: Arc<Self>) {
        let mut delays = self.retry.delays();
        while !self.closed.load(Ordering::Acquire) {
            // Before the look, which another handle's push must not pass.
            let pushed = self.spool.pushed();
            if self.spool.is_empty() {
                pushed.await;
                continue;
            }
            match self.drain_step().await {
                Ok(_) => delays = self.retry.delays(),
                Err(error) => {
                    tracing::debug!(target: "storage", %error, "the spool cannot be drained");
                    sleep(delays.next().unwrap_or(Duration::from_secs(5))).await;
                }
            }
        }
    }
}

/// Runs a step in a task of its own: a caller that is dropped breaks nothing off, and one that is not
/// polled keeps no turn from others. A spool that panics is one that fails.
async fn apart<T: Send + 'static>(
    step: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(step).await.unwrap_or_else(|error| {
        Err(Error::new(ErrorKind::Internal, "the spool broke off").with_source(error))
    })
}

/// Whether a store that says this may take the same batch later.
fn is_passing(error: &Error) -> bool {
    use ErrorKind::{Busy, Io, StorageFull, Timeout, Unavailable};
    // The kind as well: a `Retry` below that has given up says no longer that it is worth trying.
    error.is_retryable() || matches!(error.kind(), Unavailable | Busy | Timeout | StorageFull | Io)
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<B: StorageBackend + 'static> StorageBackend for Spooled<B> {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        let operation = "write_batch";
        self.check_open(operation)?;
        if self.shared.spool.is_idle() {
            return match self.shared.inner.write_batch(records).await {
                Err(error) if is_passing(&error) => self.hold(records, Some(error)).await,
                written => written,
            };
        }
        self.hold(records, None).await
    }

    async fn query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        self.before_read("query_range").await?;
        self.shared.inner.query_range(server_id, metric_type, range).await
    }

    async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        self.before_read("aggregate").await?;
        self.shared.inner.aggregate(server_id, metric_type, range).await
    }

    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        // Otherwise what is drained later, or again after a crash, would bring back what was pruned. What
        // is written and drained beside the prune, with more behind it, may still come again after a crash.
        self.settle("prune_before").await?;
        self.shared.remove_drained("prune_before").await?;
        self.shared.inner.prune_before(cutoff).await
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.before_read("stats").await?;
        self.shared.inner.stats().await
    }

    fn name(&self) -> &'static str {
        self.shared.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.shared.inner.capabilities()
    }

    async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        self.before_read("series").await?;
        self.shared.inner.series(filter).await
    }

    async fn latest(
        &self,
        filter: &SeriesFilter,
        n_per_series: usize,
    ) -> Result<Vec<SeriesSamples>> {
        self.before_read("latest").await?;
        self.shared.inner.latest(filter, n_per_series).await
    }

    async fn windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        self.before_read("windows").await?;
        self.shared.inner.windows(filter, range, width).await
    }

    fn scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        let filter = filter.clone();
        let opened = async move {
            self.before_read("scan").await?;
            Ok(self.shared.inner.scan(&filter, range))
        };
        Box::pin(stream::once(opened).try_flatten())
    }

    async fn flush(&self) -> Result<()> {
        self.settle("flush").await?;
        self.shared.inner.flush().await
    }

    async fn compact(&self) -> Result<()> {
        self.shared.inner.compact().await
    }

    async fn check(&self) -> Result<CheckReport> {
        self.before_read("check").await?;
        self.shared.inner.check().await
    }

    async fn health(&self) -> Health {
        let health = self.shared.inner.health().await;
        let spool = &self.shared.spool;
        if health.status != HealthStatus::Healthy || spool.is_empty() {
            return health;
        }
        let SpoolBacklog { records, oldest_age, .. } = spool.backlog();
        let message = match oldest_age {
            Some(age) => {
                format!("{records} records wait in the spool, the oldest for {} s", age.as_secs())
            }
            None => "what was drained is not removed from the spool yet".to_owned(),
        };
        Health { status: HealthStatus::Degraded, message }
    }

    async fn close(&self) -> Result<()> {
        // What cannot be drained stays in the spool for the next handle: it was acknowledged as
        // durable as the spool is.
        let drained = match self.settle("close").await {
            Ok(()) => self.shared.remove_drained("close").await,
            error => error,
        };
        if let Err(error) = drained {
            tracing::warn!(target: "storage", %error, "batches stay in the spool");
        }
        let closed = self.shared.inner.close().await;
        if self.capabilities().close {
            self.shared.closed.store(true, Ordering::Release);
            self.drainer.abort();
        }
        closed
    }
}
