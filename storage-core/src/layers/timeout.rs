//! Ends calls that take too long.

use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::{StreamExt, stream};

use super::operation::Operation;
use crate::capabilities::Capabilities;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::metrics::{
    CheckReport, Health, MetricAggregation, MetricRecord, ScanStream, SeriesFilter, SeriesInfo,
    SeriesSamples, SeriesWindows, StorageBackend, StorageStats, TimeRange,
};

/// How long one call may take before [`Timeout`] ends it.
///
/// | | default | because |
/// |---|---|---|
/// | read | 30 s | a query that takes longer is of no use to a dashboard; a [`scan`](StorageBackend::scan) has it for each batch |
/// | write | 30 s | a batch may have any size; several times the usual wait for a lock |
/// | maintenance | 10 min | prune, compact and check go through the whole store; a shutdown that hangs still ends |
///
/// ```
/// use std::time::Duration;
/// use storage_core::layers::Timeouts;
///
/// let timeouts = Timeouts::default().with_read(Duration::from_secs(5));
/// assert_eq!(timeouts.read(), Duration::from_secs(5));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    read: Duration,
    write: Duration,
    maintenance: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            read: Duration::from_secs(30),
            write: Duration::from_secs(30),
            maintenance: Duration::from_secs(600),
        }
    }
}

impl Timeouts {
    /// Sets the budget of reads, `stats` and `health`, and of each batch of a scan.
    #[must_use]
    pub const fn with_read(mut self, read: Duration) -> Self {
        self.read = read;
        self
    }

    /// Sets the budget of `write_batch`.
    #[must_use]
    pub const fn with_write(mut self, write: Duration) -> Self {
        self.write = write;
        self
    }

    /// Sets the budget of `prune_before`, `compact`, `check`, `flush` and `close`.
    #[must_use]
    pub const fn with_maintenance(mut self, maintenance: Duration) -> Self {
        self.maintenance = maintenance;
        self
    }

    /// The budget of reads.
    pub const fn read(&self) -> Duration {
        self.read
    }

    /// The budget of writes.
    pub const fn write(&self) -> Duration {
        self.write
    }

    /// The budget of maintenance.
    pub const fn maintenance(&self) -> Duration {
        self.maintenance
    }

    /// The budget of `operation`.
    pub const fn of(&self, operation: Operation) -> Duration {
        match operation {
            Operation::WriteBatch => self.write,
            Operation::PruneBefore
            | Operation::Flush
            | Operation::Compact
            | Operation::Check
            | Operation::Close => self.maintenance,
            _ => self.read,
        }
    }
}

/// Ends every call after a budget of time.
///
/// The call is dropped, which by the contract leaves all of its effect or none. Only awaiting the
/// backend counts: the time that the reader of a scan takes between two batches does not.
///
/// It needs the timer of a tokio runtime, and a backend that does not block the thread.
///
/// # Errors
/// [`ErrorKind::Timeout`] with the detail `timeout_ms`; the outcome is `NotApplied` for reads and
/// `Unknown` for all else. `health` answers "down".
///
/// # Example
/// ```
/// use std::time::Duration;
/// use storage_core::layers::{Fault, FaultPlan, Faulty, Operation, Timeout, Timeouts};
/// use storage_core::{ErrorKind, InMemory, Outcome, StorageBackend};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let hanging = Faulty::new(InMemory::new(), FaultPlan::new(1));
/// hanging.control().inject(Operation::WriteBatch, Fault::HangBefore);
/// let store = Timeout::new(hanging, Timeouts::default().with_write(Duration::from_millis(20)));
///
/// let error = store.write_batch(&[]).await.unwrap_err();
/// assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Timeout<B> {
    inner: B,
    timeouts: Timeouts,
}

impl<B: StorageBackend> Timeout<B> {
    /// Wraps `inner`.
    pub const fn new(inner: B, timeouts: Timeouts) -> Self {
        Self { inner, timeouts }
    }

    /// What it wraps.
    pub const fn inner(&self) -> &B {
        &self.inner
    }

    async fn within<T>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let ended = tokio::time::timeout(self.timeouts.of(operation), call).await;
        ended.unwrap_or_else(|_| Err(self.expired(operation)))
    }

    fn expired(&self, operation: Operation) -> Error {
        let outcome = if operation.is_read() { Outcome::NotApplied } else { Outcome::Unknown };
        Error::new(ErrorKind::Timeout, "the call took longer than its budget")
            .with_outcome(outcome)
            .with_backend(self.inner.name())
            .with_operation(operation.as_str())
            .with_context("timeout_ms", self.timeouts.of(operation).as_millis())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<B: StorageBackend> StorageBackend for Timeout<B> {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        self.within(Operation::WriteBatch, self.inner.write_batch(records)).await
    }

    async fn query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        let call = self.inner.query_range(server_id, metric_type, range);
        self.within(Operation::QueryRange, call).await
    }

    async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        let call = self.inner.aggregate(server_id, metric_type, range);
        self.within(Operation::Aggregate, call).await
    }

    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        self.within(Operation::PruneBefore, self.inner.prune_before(cutoff)).await
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.within(Operation::Stats, self.inner.stats()).await
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        self.within(Operation::Series, self.inner.series(filter)).await
    }

    async fn latest(
        &self,
        filter: &SeriesFilter,
        n_per_series: usize,
    ) -> Result<Vec<SeriesSamples>> {
        self.within(Operation::Latest, self.inner.latest(filter, n_per_series)).await
    }

    async fn windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        self.within(Operation::Windows, self.inner.windows(filter, range, width)).await
    }

    fn scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        let batches = self.inner.scan(filter, range);
        Box::pin(stream::unfold(Some(batches), move |batches| async move {
            let mut batches = batches?;
            let next = async { batches.next().await.transpose() };
            match self.within(Operation::Scan, next).await {
                Ok(batch) => batch.map(|batch| (Ok(batch), Some(batches))),
                Err(error) => Some((Err(error), None)),
            }
        }))
    }

    async fn flush(&self) -> Result<()> {
        self.within(Operation::Flush, self.inner.flush()).await
    }

    async fn compact(&self) -> Result<()> {
        self.within(Operation::Compact, self.inner.compact()).await
    }

    async fn check(&self) -> Result<CheckReport> {
        self.within(Operation::Check, self.inner.check()).await
    }

    async fn health(&self) -> Health {
        let answer = async { Ok(self.inner.health().await) };
        self.within(Operation::Health, answer).await.unwrap_or_else(|error| Health::down(&error))
    }

    async fn close(&self) -> Result<()> {
        self.within(Operation::Close, self.inner.close()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::testing::{fill, hour};
    use crate::layers::{Fault, FaultPlan, Faulty};
    use crate::{HealthStatus, InMemory};
    use futures_util::TryStreamExt;
    use tokio::time::Instant;

    fn store() -> Timeout<Faulty<InMemory>> {
        let timeouts = Timeouts::default()
            .with_read(Duration::from_secs(1))
            .with_write(Duration::from_secs(2))
            .with_maintenance(Duration::from_secs(3));
        Timeout::new(Faulty::new(InMemory::new(), FaultPlan::new(1)), timeouts)
    }

    fn hang(store: &Timeout<Faulty<InMemory>>, operation: Operation) {
        store.inner().control().inject(operation, Fault::HangAfter);
    }

    #[tokio::test(start_paused = true)]
    async fn each_kind_of_call_has_its_budget_and_outcome() {
        let store = store();
        hang(&store, Operation::Stats);
        hang(&store, Operation::WriteBatch);
        hang(&store, Operation::PruneBefore);
        let started = Instant::now();
        let read = store.stats().await.unwrap_err();
        assert_eq!(started.elapsed().as_secs(), 1);
        let write = store.write_batch(&[]).await.unwrap_err();
        assert_eq!(started.elapsed().as_secs(), 1 + 2);
        let prune = store.prune_before(Utc::now()).await.unwrap_err();
        assert_eq!(started.elapsed().as_secs(), 1 + 2 + 3);

        let (no, unknown) = (Outcome::NotApplied, Outcome::Unknown);
        for (error, outcome) in [(&read, no), (&write, unknown), (&prune, unknown)] {
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, outcome));
            assert!(error.is_retryable());
        }
        assert_eq!(write.operation(), Some("write_batch"));
        assert_eq!(write.context("timeout_ms"), Some("2000"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_within_its_budget_passes() {
        let store = store();
        let slow = Fault::SlowBefore(Duration::from_millis(900));
        store.inner().control().inject(Operation::Stats, slow);
        assert!(store.stats().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_scan_has_its_budget_for_each_batch_and_ends_after_a_timeout() {
        let store = store();
        fill(store.inner().inner(), 3).await;
        let filter = SeriesFilter::any();
        let slow = Fault::SlowBefore(Duration::from_millis(900));
        store.inner().control().inject(Operation::Scan, slow);
        let all: Vec<_> = store.scan(&filter, hour()).try_collect().await.unwrap();
        assert_eq!(all.len(), 3, "three times 0.9 s is longer than a second");

        hang(&store, Operation::Scan);
        let items: Vec<_> = store.scan(&filter, hour()).collect().await;
        assert_eq!(items.len(), 2);
        assert_eq!(items[1].as_ref().unwrap_err().kind(), ErrorKind::Timeout);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_the_reader_does_not_count() {
        let store = store();
        fill(store.inner().inner(), 2).await;
        let mut batches = store.scan(&SeriesFilter::any(), hour());
        assert!(batches.next().await.unwrap().is_ok());
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(batches.next().await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn health_answers_down() {
        let store = store();
        hang(&store, Operation::Health);
        assert_eq!(store.health().await.status, HealthStatus::Down);
        assert_eq!(store.health().await.status, HealthStatus::Healthy);
    }
}
