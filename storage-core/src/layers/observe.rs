//! Logs and counts every call.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use tokio::time::Instant;
use tracing::{Instrument, Span, debug, debug_span, field, warn};

use super::operation::Operation;
use crate::capabilities::Capabilities;
use crate::error::{Error, Result};
use crate::metrics::{
    CheckReport, Health, HealthStatus, MetricAggregation, MetricRecord, ScanStream, SeriesFilter,
    SeriesInfo, SeriesSamples, SeriesWindows, StorageBackend, StorageStats, TimeRange,
};

/// Counters of one operation since the [`Observe`] was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OperationCounters {
    /// Which operation.
    pub operation: Operation,
    /// Calls that ended, whichever way.
    pub calls: u64,
    /// Calls among them that failed; for `health`, that did not say "healthy".
    pub errors: u64,
    /// Calls among them that their caller dropped, and scans that it did not read to their end.
    pub dropped: u64,
    /// What the calls that succeeded wrote, removed or returned: samples, for `series` the series,
    /// for `windows` the windows. Of a scan the samples that came, also when it failed later.
    pub records: u64,
    /// Time waited for the backend, in microseconds, all calls together.
    pub duration_total_us: u64,
    /// Time waited for the backend in the longest call, in microseconds.
    pub duration_max_us: u64,
}

/// Counters of every operation, each read at almost the same time.
///
/// Serialises as a list with one entry for each of [`Operation::ALL`], called or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct CountersSnapshot(Vec<OperationCounters>);

impl CountersSnapshot {
    /// The counters of `operation`.
    pub fn of(&self, operation: Operation) -> OperationCounters {
        self.0[operation.index()]
    }

    /// The counters of all operations, in the order of [`Operation::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = &OperationCounters> {
        self.0.iter()
    }
}

#[derive(Debug, Default)]
struct Counters {
    calls: AtomicU64,
    errors: AtomicU64,
    dropped: AtomicU64,
    records: AtomicU64,
    duration_total_us: AtomicU64,
    duration_max_us: AtomicU64,
}

impl Counters {
    fn read(&self, operation: Operation) -> OperationCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        OperationCounters {
            operation,
            calls: get(&self.calls),
            errors: get(&self.errors),
            dropped: get(&self.dropped),
            records: get(&self.records),
            duration_total_us: get(&self.duration_total_us),
            duration_max_us: get(&self.duration_max_us),
        }
    }
}

/// Logs and counts every call that passes.
///
/// Each call is a `tracing` span `operation` of target `storage` and level debug, around all that
/// the backend logs, and one event of the same target at its end:
///
/// | event | level | fields |
/// |---|---|---|
/// | `operation failed` | warn | `kind`, `outcome`, `retryable`, `error` (with its sources) |
/// | `store is not healthy` | warn | `status`, `error` |
/// | `operation slow` | warn | |
/// | `operation done`, `operation dropped` | debug | |
///
/// All carry `backend`, `operation`, `records` (the size of the batch, or what came back) and
/// `duration_ms`.
///
/// Only waiting for the backend counts as duration. A call is slow when it took longer than a
/// second, or what [`with_slow_after`](Self::with_slow_after) says; a scan, when it did for one
/// batch. `compact` and `check` go through the whole store and are never called slow.
///
/// # Example
/// ```
/// use storage_core::layers::{Observe, Operation};
/// use storage_core::{InMemory, MetricRecord, StorageBackend};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let store = Observe::new(InMemory::new());
/// let now = chrono::Utc::now();
/// store.write_batch(&[MetricRecord::new("web-1", now, "cpu_usage", 1.0)]).await?;
/// store.write_batch(&[MetricRecord::new("web-1", now, "", 1.0)]).await.unwrap_err();
///
/// let writes = store.counters().of(Operation::WriteBatch);
/// assert_eq!((writes.calls, writes.errors, writes.records), (2, 1, 1));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Observe<B> {
    inner: B,
    slow_after: Duration,
    counters: [Counters; Operation::ALL.len()],
}

impl<B: StorageBackend> Observe<B> {
    /// Wraps `inner`. A call is slow after a second: what a person at a dashboard notices.
    pub fn new(inner: B) -> Self {
        Self { inner, slow_after: Duration::from_secs(1), counters: Default::default() }
    }

    /// Sets after which time a call is logged as slow.
    #[must_use]
    pub fn with_slow_after(mut self, slow_after: Duration) -> Self {
        self.slow_after = slow_after;
        self
    }

    /// What it wraps.
    pub const fn inner(&self) -> &B {
        &self.inner
    }

    /// Returns what was counted until now. Calls that are under way are not in it.
    pub fn counters(&self) -> CountersSnapshot {
        let read = |operation: Operation| self.counters[operation.index()].read(operation);
        CountersSnapshot(Operation::ALL.into_iter().map(read).collect())
    }

    fn begin(&self, operation: Operation, batch: u64) -> Call<'_> {
        let backend = self.inner.name();
        let span = debug_span!(
            target: "storage",
            "operation",
            backend,
            operation = operation.as_str(),
            records = field::Empty,
            duration_ms = field::Empty,
            error = field::Empty,
        );
        Call {
            operation,
            backend,
            span,
            counters: &self.counters[operation.index()],
            slow_after: self.slow_after,
            waiting_since: None,
            waited: Duration::ZERO,
            waited_longest: Duration::ZERO,
            batch,
            records: 0,
            ended: false,
        }
    }

    /// Observes a call; `size` says how many records its answer holds.
    async fn call<T>(
        &self,
        operation: Operation,
        inner: impl Future<Output = Result<T>> + Send,
        size: impl FnOnce(&T) -> u64 + Send,
    ) -> Result<T> {
        self.begin(operation, 0).run(inner, size).await
    }
}

/// A call under way; it counts and logs itself when it ends or is dropped.
struct Call<'a> {
    operation: Operation,
    backend: &'static str,
    span: Span,
    counters: &'a Counters,
    slow_after: Duration,
    waiting_since: Option<Instant>,
    waited: Duration,
    waited_longest: Duration,
    batch: u64,
    records: u64,
    ended: bool,
}

/// Emits the event at the end of `$call`, with the fields that every such event has.
macro_rules! log_end {
    ($level:ident, $call:expr, { $($field:tt)* } $message:literal) => {
        $level!(
            target: "storage",
            parent: &$call.span,
            backend = $call.backend,
            operation = $call.operation.as_str(),
            records = $call.records.max($call.batch),
            duration_ms = $call.waited.as_secs_f64() * 1e3,
            $($field)*
            $message
        )
    };
}

impl Call<'_> {
    async fn run<T>(
        mut self,
        inner: impl Future<Output = Result<T>> + Send,
        size: impl FnOnce(&T) -> u64 + Send,
    ) -> Result<T> {
        let answer = self.wait_for(inner).await;
        match &answer {
            Ok(found) => {
                self.records = size(found);
                self.succeeded();
            }
            Err(error) => self.failed(error),
        }
        answer
    }

    /// Awaits the backend, in the span and on the clock.
    async fn wait_for<T>(&mut self, inner: impl Future<Output = T> + Send) -> T {
        self.waiting_since = Some(Instant::now());
        let answer = inner.instrument(self.span.clone()).await;
        self.stop_clock();
        answer
    }

    fn stop_clock(&mut self) {
        let Some(since) = self.waiting_since.take() else {
            return;
        };
        let waited = since.elapsed();
        self.waited += waited;
        self.waited_longest = self.waited_longest.max(waited);
    }

    fn succeeded(mut self) {
        self.count();
        let may_be_slow = !matches!(self.operation, Operation::Compact | Operation::Check);
        if may_be_slow && self.waited_longest > self.slow_after {
            log_end!(warn, self, {} "operation slow");
        } else {
            log_end!(debug, self, {} "operation done");
        }
    }

    fn failed(mut self, error: &Error) {
        self.count();
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        self.span.record("error", error.kind().as_str());
        log_end!(warn, self, {
            kind = error.kind().as_str(),
            outcome = ?error.outcome(),
            retryable = error.is_retryable(),
            error = format!("{error:#}"),
        } "operation failed");
    }

    fn unhealthy(mut self, health: &Health) {
        self.count();
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        self.span.record("error", health.message.as_str());
        log_end!(warn, self, {
            status = ?health.status,
            error = health.message,
        } "store is not healthy");
    }

    fn count(&mut self) {
        self.ended = true;
        let waited_us = u64::try_from(self.waited.as_micros()).unwrap_or(u64::MAX);
        self.counters.calls.fetch_add(1, Ordering::Relaxed);
        self.counters.records.fetch_add(self.records, Ordering::Relaxed);
        self.counters.duration_total_us.fetch_add(waited_us, Ordering::Relaxed);
        self.counters.duration_max_us.fetch_max(waited_us, Ordering::Relaxed);
        self.span.record("records", self.records.max(self.batch));
        self.span.record("duration_ms", self.waited.as_secs_f64() * 1e3);
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.stop_clock();
        self.count();
        self.counters.dropped.fetch_add(1, Ordering::Relaxed);
        log_end!(debug, self, {} "operation dropped");
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<B: StorageBackend> StorageBackend for Observe<B> {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        let size = records.len() as u64;
        let call = self.begin(Operation::WriteBatch, size);
        call.run(self.inner.write_batch(records), |()| size).await
    }

    async fn query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        let call = self.inner.query_range(server_id, metric_type, range);
        self.call(Operation::QueryRange, call, |records| records.len() as u64).await
    }

    async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        let call = self.inner.aggregate(server_id, metric_type, range);
        self.call(Operation::Aggregate, call, |_| 0).await
    }

    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        self.call(Operation::PruneBefore, self.inner.prune_before(cutoff), |removed| *removed).await
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.call(Operation::Stats, self.inner.stats(), |_| 0).await
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        self.call(Operation::Series, self.inner.series(filter), |found| found.len() as u64).await
    }

    async fn latest(
        &self,
        filter: &SeriesFilter,
        n_per_series: usize,
    ) -> Result<Vec<SeriesSamples>> {
        let call = self.inner.latest(filter, n_per_series);
        self.call(Operation::Latest, call, |found| found.iter().map(samples_of).sum()).await
    }

    async fn windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        let call = self.inner.windows(filter, range, width);
        let size = |found: &Vec<SeriesWindows>| found.iter().map(windows_of).sum();
        self.call(Operation::Windows, call, size).await
    }

    fn scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        let started = (self.inner.scan(filter, range), self.begin(Operation::Scan, 0));
        Box::pin(stream::unfold(Some(started), |state| async {
            let (mut batches, mut call) = state?;
            match call.wait_for(batches.next()).await {
                Some(Ok(batch)) => {
                    call.records += samples_of(&batch);
                    Some((Ok(batch), Some((batches, call))))
                }
                Some(Err(error)) => {
                    call.failed(&error);
                    Some((Err(error), None))
                }
                None => {
                    call.succeeded();
                    None
                }
            }
        }))
    }

    async fn flush(&self) -> Result<()> {
        self.call(Operation::Flush, self.inner.flush(), |()| 0).await
    }

    async fn compact(&self) -> Result<()> {
        self.call(Operation::Compact, self.inner.compact(), |()| 0).await
    }

    async fn check(&self) -> Result<CheckReport> {
        self.call(Operation::Check, self.inner.check(), |report| report.samples).await
    }

    async fn health(&self) -> Health {
        let mut call = self.begin(Operation::Health, 0);
        let health = call.wait_for(self.inner.health()).await;
        match health.status {
            HealthStatus::Healthy => call.succeeded(),
            HealthStatus::Degraded | HealthStatus::Down => call.unhealthy(&health),
        }
        health
    }

    async fn close(&self) -> Result<()> {
        self.call(Operation::Close, self.inner.close(), |()| 0).await
    }
}

fn samples_of(found: &SeriesSamples) -> u64 {
    found.samples.len() as u64
}

fn windows_of(found: &SeriesWindows) -> u64 {
    found.windows.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::testing::{fill, hour, record};
    use crate::layers::{Fault, FaultPlan, Faulty};
    use crate::{ErrorKind, InMemory};
    use std::fmt::Write as _;
    use std::sync::{Arc, Mutex};
    use tracing::field::{Field, Visit};
    use tracing::{Event, Metadata, Subscriber, span};

    fn store() -> Observe<Faulty<InMemory>> {
        Observe::new(Faulty::new(InMemory::new(), FaultPlan::new(1)))
    }

    /// Keeps every event as a line of text.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl Subscriber for Lines {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, event: &Event<'_>) {
            let metadata = event.metadata();
            let mut line = Line(format!("{} {}", metadata.level(), metadata.target()));
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            write!(self.0, " {field}={value:?}").unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_errors_records_and_durations_are_counted() {
        let store = store();
        let slow = Fault::SlowBefore(Duration::from_millis(300));
        store.inner().control().inject(Operation::WriteBatch, slow);
        fill(&store, 3).await;
        store.inner().control().inject(Operation::WriteBatch, Fault::Refused);
        store.write_batch(&[record(0)]).await.unwrap_err();
        assert_eq!(store.series(&SeriesFilter::any()).await.unwrap().len(), 3);
        assert_eq!(store.prune_before(hour().end()).await.unwrap(), 3);

        let writes = store.counters().of(Operation::WriteBatch);
        assert_eq!((writes.calls, writes.errors, writes.records), (2, 1, 3));
        assert!((300_000..310_000).contains(&writes.duration_total_us));
        assert_eq!(writes.duration_max_us, writes.duration_total_us);
        assert_eq!(store.counters().of(Operation::Series).records, 3);
        assert_eq!(store.counters().of(Operation::PruneBefore).records, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_call_is_counted_with_the_time_it_waited() {
        let store = store();
        store.inner().control().inject(Operation::Stats, Fault::HangBefore);
        let patience = Duration::from_secs(2);
        assert!(tokio::time::timeout(patience, store.stats()).await.is_err());
        let stats = store.counters().of(Operation::Stats);
        assert_eq!((stats.calls, stats.errors, stats.dropped), (1, 0, 1));
        assert!(stats.duration_max_us >= 2_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_scan_is_one_call_and_the_time_of_its_reader_does_not_count() {
        let store = store();
        fill(&store, 3).await;
        let filter = SeriesFilter::any();
        let mut batches = store.scan(&filter, hour());
        while batches.next().await.is_some() {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        let scan = store.counters().of(Operation::Scan);
        assert_eq!((scan.calls, scan.records, scan.dropped), (1, 3, 0));
        assert!(scan.duration_total_us < 1_000_000);

        assert!(store.scan(&filter, hour()).next().await.unwrap().is_ok());
        let scan = store.counters().of(Operation::Scan);
        assert_eq!((scan.calls, scan.records, scan.dropped), (2, 4, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn errors_and_slow_calls_are_logged_as_warnings_all_else_for_debugging() {
        let lines = Lines::default();
        let _guard = tracing::subscriber::set_default(lines.clone());
        let store = store().with_slow_after(Duration::from_millis(100));
        let control = store.inner().control();
        fill(&store, 2).await;
        control.inject(Operation::Stats, Fault::SlowAfter(Duration::from_millis(200)));
        store.stats().await.unwrap();
        control.inject(Operation::WriteBatch, Fault::LostReply);
        let error = store.write_batch(&[record(0)]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        control.inject(Operation::Health, Fault::Refused);
        assert_eq!(store.health().await.status, HealthStatus::Down);

        let lines = lines.0.lock().unwrap();
        let expected = [
            ("DEBUG storage ", "operation done", "operation=\"write_batch\" records=2"),
            ("WARN storage ", "operation slow", "operation=\"stats\" records=0 duration_ms=20"),
            ("WARN storage ", "operation failed", "records=1"),
            ("WARN storage ", "store is not healthy", "status=Down"),
        ];
        assert_eq!(lines.len(), expected.len(), "{lines:#?}");
        for (line, (start, message, fields)) in lines.iter().zip(expected) {
            assert!(line.starts_with(start) && line.contains(message), "{line}");
            assert!(line.contains(fields) && line.contains("backend=\"memory\""), "{line}");
        }
        assert!(lines[2].contains("kind=\"timed out\" outcome=Unknown retryable=true"));
    }

    #[test]
    fn counters_serialise_with_every_operation() {
        let json = serde_json::to_value(store().counters()).unwrap();
        assert_eq!(json.as_array().unwrap().len(), Operation::ALL.len());
        assert_eq!(json[0]["operation"], "write_batch");
        assert_eq!(json[0]["duration_total_us"], 0);
    }
}
