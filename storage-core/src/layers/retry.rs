//! Repeats calls that failed for a passing reason.
//!
//! The delays come from `backon`; what may be repeated, and what the last error says, is here.

use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBuilder};
use chrono::{DateTime, Utc};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, sleep};

use super::operation::Operation;
use crate::capabilities::Capabilities;
use crate::error::{Error, Outcome, Result};
use crate::metrics::{
    CheckReport, Health, MetricAggregation, MetricRecord, ScanStream, SeriesFilter, SeriesInfo,
    SeriesSamples, SeriesWindows, StorageBackend, StorageStats, TimeRange,
};

/// The delays of a policy, one after the other.
pub(crate) type Delays = <ExponentialBuilder as BackoffBuilder>::Backoff;

/// How often and how long [`Retry`] tries.
///
/// | | default | because |
/// |---|---|---|
/// | `attempts_max` | 5 | what has not passed after a second or so seldom passes soon |
/// | `delay_first` | 50 ms | a lock or a reset connection is often gone by then; doubled each time |
/// | `delay_max` | 5 s | a store that restarts is noticed soon after it is back |
/// | `elapsed_max` | 60 s | twice the 30 s of a [`Timeouts`](super::Timeouts) |
/// | `jitter` | on | clients that failed together do not come back together |
///
/// ```
/// use std::time::Duration;
/// use storage_core::layers::RetryPolicy;
///
/// let patient = RetryPolicy::default()
///     .with_attempts_max(u32::MAX)
///     .with_elapsed_max(Duration::from_secs(600));
/// assert_eq!(patient.elapsed_max(), Duration::from_secs(600));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    attempts_max: u32,
    delay_first: Duration,
    delay_max: Duration,
    elapsed_max: Duration,
    jitter: bool,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts_max: 5,
            delay_first: Duration::from_millis(50),
            delay_max: Duration::from_secs(5),
            elapsed_max: Duration::from_secs(60),
            jitter: true,
        }
    }
}

impl RetryPolicy {
    /// Sets the most attempts, the first included; 0 is the same as 1, no repetition.
    #[must_use]
    pub const fn with_attempts_max(mut self, attempts_max: u32) -> Self {
        self.attempts_max = attempts_max;
        self
    }

    /// Sets the delay between the first attempt and the second; each later one is twice as long.
    #[must_use]
    pub const fn with_delay_first(mut self, delay_first: Duration) -> Self {
        self.delay_first = delay_first;
        self
    }

    /// Sets the longest delay; it bounds the first one, too.
    #[must_use]
    pub const fn with_delay_max(mut self, delay_max: Duration) -> Self {
        self.delay_max = delay_max;
        self
    }

    /// Sets the time, from the start of the call, after which no further attempt starts. An
    /// attempt that is under way is not cut short: that is what [`Timeout`](super::Timeout) does.
    #[must_use]
    pub const fn with_elapsed_max(mut self, elapsed_max: Duration) -> Self {
        self.elapsed_max = elapsed_max;
        self
    }

    /// Sets whether each delay is a random 50 to 100 % of what it would be.
    #[must_use]
    pub const fn with_jitter(mut self, jitter: bool) -> Self {
        self.jitter = jitter;
        self
    }

    /// The time after which no further attempt starts.
    pub const fn elapsed_max(&self) -> Duration {
        self.elapsed_max
    }

    pub(crate) fn delays(&self) -> Delays {
        // backon adds up to 100 % of jitter on top: from the half, that ends at the bound.
        let divisor = if self.jitter { 2 } else { 1 };
        let repeats_max = self.attempts_max.saturating_sub(1);
        let builder = ExponentialBuilder::new()
            .with_min_delay(self.delay_first.min(self.delay_max) / divisor)
            .with_max_delay(self.delay_max / divisor)
            .with_max_times(usize::try_from(repeats_max).unwrap_or(usize::MAX));
        if !self.jitter {
            return builder.build();
        }
        // Without a seed, and without its feature `std`, every backon would draw the same delays.
        builder.with_jitter().with_jitter_seed(fastrand::u64(..)).build()
    }
}

/// Repeats calls whose error [is retryable](Error::is_retryable), with growing delays.
///
/// # What is repeated
/// | | repeated |
/// |---|---|
/// | reads, `check` | always |
/// | `write_batch`, `flush`, `compact` | always: done twice is the same as done once |
/// | `prune_before` | only after `NotApplied`: otherwise its count would be too small |
/// | `close` | only after `NotApplied`: a second one does nothing, and would say `Ok` |
/// | `scan` | until its first batch has come; a later error is passed on as it is |
/// | `health` | never: it tells how things are now |
///
/// # A late repetition
/// A `write_batch` with the outcome `Unknown` may have been applied. If another caller replaces
/// one of its samples before it is repeated, the repetition puts the older value back: the write
/// applied last wins. Where that matters, let one caller at a time write a series.
///
/// # Errors
/// The error of the last attempt, with these changes unless it was the first and not retryable: the
/// details `attempts` and `elapsed_ms`, `Unknown` as outcome if any attempt said so, and no longer
/// retryable, so that two of these around each other do not multiply.
///
/// # Cost
/// A call that succeeds at once costs nothing more. One that does not ends at most one attempt
/// after `elapsed_max`; an inner call that never ends never ends here either, so
/// wrap a [`Timeout`](super::Timeout).
///
/// # Example
/// ```
/// use storage_core::layers::{Fault, FaultPlan, Faulty, Operation, Retry, RetryPolicy};
/// use storage_core::{InMemory, MetricRecord, StorageBackend};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let shaky = Faulty::new(InMemory::new(), FaultPlan::new(1));
/// shaky.control().inject(Operation::WriteBatch, Fault::LostReply);
/// let store = Retry::new(shaky, RetryPolicy::default());
///
/// store.write_batch(&[MetricRecord::new("web-1", chrono::Utc::now(), "cpu_usage", 1.0)]).await?;
/// assert_eq!(store.stats().await?.total_metrics, 1);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Retry<B> {
    inner: B,
    policy: RetryPolicy,
}

impl<B: StorageBackend> Retry<B> {
    /// Wraps `inner`.
    pub const fn new(inner: B, policy: RetryPolicy) -> Self {
        Self { inner, policy }
    }

    /// What it wraps.
    pub const fn inner(&self) -> &B {
        &self.inner
    }

    async fn run<T, Call>(
        &self,
        operation: Operation,
        mut call: impl FnMut() -> Call + Send,
    ) -> Result<T>
    where
        Call: Future<Output = Result<T>> + Send,
    {
        let mut tries = Tries::start(&self.policy, operation);
        loop {
            match call().await {
                Ok(answer) => return Ok(answer),
                Err(error) => sleep(tries.delay_after(error)?).await,
            }
        }
    }

    /// Opens a scan and waits for its first batch.
    async fn open_scan(&self, filter: &SeriesFilter, range: TimeRange) -> Result<ScanStream<'_>> {
        let (first, rest) = self
            .run(Operation::Scan, || async {
                let mut batches = self.inner.scan(filter, range);
                let first = batches.try_next().await?;
                Ok((first, batches))
            })
            .await?;
        // After its end a stream must not be polled again.
        let rest = first.is_some().then_some(rest);
        Ok(Box::pin(stream::iter(first.map(Ok)).chain(stream::iter(rest).flatten())))
    }
}

/// The attempts of one call.
struct Tries {
    operation: Operation,
    delays: Delays,
    started: Instant,
    elapsed_max: Duration,
    attempts: u32,
    in_doubt: bool,
}

impl Tries {
    fn start(policy: &RetryPolicy, operation: Operation) -> Self {
        Self {
            operation,
            delays: policy.delays(),
            started: Instant::now(),
            elapsed_max: policy.elapsed_max,
            attempts: 0,
            in_doubt: false,
        }
    }

    /// Returns how long to wait after `error`, or the error to give up with.
    fn delay_after(&mut self, error: Error) -> Result<Duration> {
        self.attempts = self.attempts.saturating_add(1);
        self.in_doubt |= error.outcome() == Outcome::Unknown;
        if self.attempts == 1 && !error.is_retryable() {
            return Err(error);
        }
        let (elapsed, elapsed_max) = (self.started.elapsed(), self.elapsed_max);
        let in_time = |delay: &Duration| elapsed.saturating_add(*delay) < elapsed_max;
        let delay = self.next_delay(&error).filter(in_time);
        let Some(delay) = delay else {
            let outcome = if self.in_doubt { Outcome::Unknown } else { error.outcome() };
            return Err(error
                .with_outcome(outcome)
                .with_retryable(false)
                .with_context("attempts", self.attempts)
                .with_context("elapsed_ms", elapsed.as_millis()));
        };
        tracing::debug!(
            target: "storage",
            operation = self.operation.as_str(),
            attempts = self.attempts,
            delay_ms = delay.as_secs_f64() * 1e3,
            %error,
            "trying again"
        );
        Ok(delay)
    }

    fn next_delay(&mut self, error: &Error) -> Option<Duration> {
        let once = matches!(self.operation, Operation::PruneBefore | Operation::Close);
        let allowed = error.is_retryable() && !(once && self.in_doubt);
        if allowed { self.delays.next() } else { None }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<B: StorageBackend> StorageBackend for Retry<B> {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        self.run(Operation::WriteBatch, || self.inner.write_batch(records)).await
    }

    async fn query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        let call = || self.inner.query_range(server_id, metric_type, range);
        self.run(Operation::QueryRange, call).await
    }

    async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        let call = || self.inner.aggregate(server_id, metric_type, range);
        self.run(Operation::Aggregate, call).await
    }

    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        self.run(Operation::PruneBefore, || self.inner.prune_before(cutoff)).await
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.run(Operation::Stats, || self.inner.stats()).await
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        self.run(Operation::Series, || self.inner.series(filter)).await
    }

    async fn latest(
        &self,
        filter: &SeriesFilter,
        n_per_series: usize,
    ) -> Result<Vec<SeriesSamples>> {
        self.run(Operation::Latest, || self.inner.latest(filter, n_per_series)).await
    }

    async fn windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        self.run(Operation::Windows, || self.inner.windows(filter, range, width)).await
    }

    fn scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        let filter = filter.clone();
        let opened = async move { self.open_scan(&filter, range).await };
        Box::pin(stream::once(opened).try_flatten())
    }

    async fn flush(&self) -> Result<()> {
        self.run(Operation::Flush, || self.inner.flush()).await
    }

    async fn compact(&self) -> Result<()> {
        self.run(Operation::Compact, || self.inner.compact()).await
    }

    async fn check(&self) -> Result<CheckReport> {
        self.run(Operation::Check, || self.inner.check()).await
    }

    async fn health(&self) -> Health {
        self.inner.health().await
    }

    async fn close(&self) -> Result<()> {
        self.run(Operation::Close, || self.inner.close()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::testing::{fill, hour, record};
    use crate::layers::{Fault, FaultPlan, Faulty};
    use crate::{ErrorKind, InMemory};

    type Shaky = Retry<Faulty<InMemory>>;

    fn store(policy: RetryPolicy, operation: Operation, faults: &[Fault]) -> Shaky {
        let faulty = Faulty::new(InMemory::new(), FaultPlan::new(1));
        faults.iter().for_each(|fault| faulty.control().inject(operation, *fault));
        Retry::new(faulty, policy)
    }

    fn calls(store: &Shaky) -> u64 {
        store.inner().control().counts().calls
    }

    #[tokio::test(start_paused = true)]
    async fn delays_double_up_to_their_bound() {
        let policy = RetryPolicy::default()
            .with_jitter(false)
            .with_attempts_max(6)
            .with_delay_first(Duration::from_millis(100))
            .with_delay_max(Duration::from_millis(500));
        let store = store(policy, Operation::Stats, &[Fault::Refused; 5]);
        let started = Instant::now();
        assert!(store.stats().await.is_ok());
        let waited_ms = 100 + 200 + 400 + 500 + 500;
        assert!(started.elapsed().as_millis().abs_diff(waited_ms) <= 5);
    }

    #[test]
    fn jitter_stays_between_half_and_whole_and_differs() {
        let policy = RetryPolicy::default().with_attempts_max(20);
        let (one, two): (Vec<_>, Vec<_>) = (policy.delays().collect(), policy.delays().collect());
        let plain: Vec<_> = policy.with_jitter(false).delays().collect();
        assert_eq!((one.len(), plain.len()), (19, 19));
        assert_ne!(one, two);
        for (delay, whole) in one.iter().zip(plain) {
            assert!((whole / 2..=whole).contains(delay), "{delay:?} of {whole:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_error_says_how_hard_it_was_tried() {
        let store = store(RetryPolicy::default(), Operation::Stats, &[Fault::Refused; 9]);
        let error = store.stats().await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, false));
        assert_eq!((error.context("attempts"), calls(&store)), (Some("5"), 5));
        let elapsed_ms: u64 = error.context("elapsed_ms").unwrap().parse().unwrap();
        assert!((375..=760).contains(&elapsed_ms), "{elapsed_ms}");
    }

    #[tokio::test(start_paused = true)]
    async fn nested_retries_do_not_multiply() {
        let inner = store(RetryPolicy::default(), Operation::Stats, &[Fault::Refused; 99]);
        let outer = Retry::new(inner, RetryPolicy::default());
        assert!(outer.stats().await.is_err());
        assert_eq!(calls(outer.inner()), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn no_attempt_starts_after_the_budget() {
        let policy =
            RetryPolicy::default().with_attempts_max(99).with_elapsed_max(Duration::from_secs(2));
        let store = store(policy, Operation::Stats, &[Fault::Refused; 99]);
        let started = Instant::now();
        assert!(store.stats().await.is_err());
        assert!(started.elapsed() < Duration::from_secs(2));
        assert!(calls(&store) < 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_doubt_is_kept_until_the_end() {
        let faults = [Fault::LostReply, Fault::Refused];
        let policy = RetryPolicy::default().with_attempts_max(2);
        let store = store(policy, Operation::WriteBatch, &faults);
        let error = store.write_batch(&[record(0)]).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::Unknown));
        assert_eq!(store.stats().await.unwrap().total_metrics, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_calls_are_not_repeated_and_their_error_is_untouched() {
        let store = store(RetryPolicy::default(), Operation::Stats, &[]);
        let error = store.query_range("", "cpu", hour()).await.unwrap_err();
        assert_eq!((error.kind(), calls(&store)), (ErrorKind::InvalidArgument, 1));
        assert_eq!(error.context("attempts"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_prune_is_repeated_only_when_nothing_was_removed() {
        let refused = store(RetryPolicy::default(), Operation::PruneBefore, &[Fault::Refused]);
        fill(refused.inner().inner(), 3).await;
        assert_eq!(refused.prune_before(hour().end()).await.unwrap(), 3);

        let lost = store(RetryPolicy::default(), Operation::PruneBefore, &[Fault::LostReply]);
        fill(lost.inner().inner(), 3).await;
        let error = lost.prune_before(hour().end()).await.unwrap_err();
        assert_eq!((error.outcome(), calls(&lost)), (Outcome::Unknown, 1));
        assert!(!error.is_retryable());
    }

    #[tokio::test(start_paused = true)]
    async fn a_scan_is_repeated_until_its_first_batch() {
        let store = store(RetryPolicy::default(), Operation::Scan, &[Fault::Refused; 2]);
        fill(store.inner().inner(), 3).await;
        let filter = SeriesFilter::any();
        let all: Vec<_> = store.scan(&filter, hour()).try_collect().await.unwrap();
        assert_eq!((all.len(), calls(&store)), (3, 3));

        store.inner().control().inject(Operation::Scan, Fault::LostReply);
        let broken: Vec<_> = store.scan(&filter, hour()).collect().await;
        assert_eq!((broken.len(), calls(&store)), (2, 4));
        assert!(broken[1].as_ref().is_err_and(Error::is_retryable));

        let none: Vec<_> =
            store.scan(&SeriesFilter::exact("no", "such").unwrap(), hour()).collect().await;
        assert!(none.is_empty());
    }
}
