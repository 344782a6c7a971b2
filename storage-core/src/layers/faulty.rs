//! Makes a backend unreliable on purpose, in a way that can be repeated.
//!
//! For tests of whatever stands on a backend. Whether a call happened and whether its caller
//! learns of it are independent, because that is where retries go wrong.

use std::collections::VecDeque;
use std::future::{Future, pending, ready};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use tokio::time::sleep;

use super::operation::Operation;
use crate::capabilities::Capabilities;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::metrics::{
    CheckReport, Health, MetricAggregation, MetricRecord, ScanStream, SeriesFilter, SeriesInfo,
    SeriesSamples, SeriesWindows, StorageBackend, StorageStats, TimeRange,
};

/// One thing that goes wrong with one call.
///
/// | | applied | the caller sees |
/// |---|---|---|
/// | `Refused` | no | `Unavailable`, `NotApplied` |
/// | `LostRequest` | no | `Timeout`, `Unknown` |
/// | `LostReply` | yes | `Timeout`, `Unknown` |
/// | `HangBefore` | no | nothing, ever |
/// | `HangAfter` | yes | nothing, ever |
/// | `SlowBefore` | yes, after the delay | the answer, late |
/// | `SlowAfter` | yes, before the delay | the answer, late |
///
/// All errors are retryable; reads say `NotApplied` in any case. A scan is refused, or hangs
/// before, at its first batch; it loses its reply, or hangs after, behind its first batch; a slow
/// one is late with every batch. `health` answers "down" instead of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Not applied, and the error says so.
    Refused,
    /// Not applied, but the caller cannot know.
    LostRequest,
    /// Applied, but reported as failed.
    LostReply,
    /// Never returns, and is not applied.
    HangBefore,
    /// Never returns, but is applied.
    HangAfter,
    /// Waits, then applies and returns.
    SlowBefore(Duration),
    /// Applies, waits, then returns.
    SlowAfter(Duration),
}

/// How often what goes wrong, chosen by a seed.
///
/// Each probability is a share of all calls; at most one fault meets a call. Without any, only
/// faults from [`FaultControl::inject`] happen. Calls made in the same order meet the same faults.
///
/// # Panics
/// The builders panic if a probability is outside 0 to 1, or their sum above 1.
///
/// ```
/// use storage_core::layers::FaultPlan;
///
/// let half_of_all_replies_lost = FaultPlan::new(7).with_lost_reply(0.5);
/// let coins = FaultPlan::new(7).with_coins(0.9, 0.9); // 81 % fine, 1 % neither done nor told
/// # let _ = (half_of_all_replies_lost, coins);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct FaultPlan {
    seed: u64,
    refused: f64,
    lost_request: f64,
    lost_reply: f64,
    hang_before: f64,
    hang_after: f64,
    slow: f64,
    slow_max: Duration,
    only: Option<Vec<Operation>>,
}

impl FaultPlan {
    /// Creates a plan without faults.
    pub const fn new(seed: u64) -> Self {
        Self {
            seed,
            refused: 0.0,
            lost_request: 0.0,
            lost_reply: 0.0,
            hang_before: 0.0,
            hang_after: 0.0,
            slow: 0.0,
            slow_max: Duration::ZERO,
            only: None,
        }
    }

    /// Flips two independent coins for each call: with probability `applied` it happens, with
    /// probability `reported` its caller is told the truth about it.
    #[must_use]
    pub fn with_coins(self, applied: f64, reported: f64) -> Self {
        self.with_refused((1.0 - applied) * reported)
            .with_lost_request((1.0 - applied) * (1.0 - reported))
            .with_lost_reply(applied * (1.0 - reported))
    }

    /// Sets the probability of [`Fault::Refused`].
    #[must_use]
    pub fn with_refused(mut self, probability: f64) -> Self {
        self.refused = probability;
        self.checked()
    }

    /// Sets the probability of [`Fault::LostRequest`].
    #[must_use]
    pub fn with_lost_request(mut self, probability: f64) -> Self {
        self.lost_request = probability;
        self.checked()
    }

    /// Sets the probability of [`Fault::LostReply`].
    #[must_use]
    pub fn with_lost_reply(mut self, probability: f64) -> Self {
        self.lost_reply = probability;
        self.checked()
    }

    /// Sets the probability of [`Fault::HangBefore`].
    #[must_use]
    pub fn with_hang_before(mut self, probability: f64) -> Self {
        self.hang_before = probability;
        self.checked()
    }

    /// Sets the probability of [`Fault::HangAfter`].
    #[must_use]
    pub fn with_hang_after(mut self, probability: f64) -> Self {
        self.hang_after = probability;
        self.checked()
    }

    /// Sets the probability of a delay of up to `delay_max`, as often before as after the call.
    #[must_use]
    pub fn with_slow(mut self, probability: f64, delay_max: Duration) -> Self {
        self.slow = probability;
        self.slow_max = delay_max;
        self.checked()
    }

    /// Leaves all other operations alone.
    #[must_use]
    pub fn only(mut self, operations: &[Operation]) -> Self {
        self.only = Some(operations.to_vec());
        self
    }

    fn checked(self) -> Self {
        let all = self.table(Duration::ZERO, false).map(|(probability, _)| probability);
        let in_bounds = all.iter().all(|probability| (0.0..=1.0).contains(probability));
        // A little slack: 0.7 + 0.2 + 0.1 is more than 1 in binary.
        assert!(in_bounds && all.iter().sum::<f64>() <= 1.0 + 1e-9, "{all:?} are no shares");
        self
    }

    fn table(&self, delay: Duration, before: bool) -> [(f64, Fault); 6] {
        let slow = if before { Fault::SlowBefore(delay) } else { Fault::SlowAfter(delay) };
        [
            (self.refused, Fault::Refused),
            (self.lost_request, Fault::LostRequest),
            (self.lost_reply, Fault::LostReply),
            (self.hang_before, Fault::HangBefore),
            (self.hang_after, Fault::HangAfter),
            (self.slow, slow),
        ]
    }

    /// Chooses the fault of one call; takes as many numbers from `random` whatever it chooses.
    fn choose(&self, operation: Operation, random: &mut fastrand::Rng) -> Option<Fault> {
        let mut coin = random.f64();
        let delay = self.slow_max.mul_f64(random.f64());
        let table = self.table(delay, random.bool());
        if self.only.as_ref().is_some_and(|only| !only.contains(&operation)) {
            return None;
        }
        for (probability, fault) in table {
            if coin < probability {
                return Some(fault);
            }
            coin -= probability;
        }
        None
    }
}

/// How many faults of each kind were injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct FaultCounts {
    /// Calls that passed, faulty or not, while faults were on.
    pub calls: u64,
    /// [`Fault::Refused`].
    pub refused: u64,
    /// [`Fault::LostRequest`].
    pub lost_requests: u64,
    /// [`Fault::LostReply`].
    pub lost_replies: u64,
    /// [`Fault::HangBefore`] and [`Fault::HangAfter`].
    pub hangs: u64,
    /// [`Fault::SlowBefore`] and [`Fault::SlowAfter`].
    pub slow: u64,
}

impl FaultCounts {
    /// All faults together.
    pub const fn injected(&self) -> u64 {
        self.refused + self.lost_requests + self.lost_replies + self.hangs + self.slow
    }

    fn count(&mut self, fault: Fault) {
        let counter = match fault {
            Fault::Refused => &mut self.refused,
            Fault::LostRequest => &mut self.lost_requests,
            Fault::LostReply => &mut self.lost_replies,
            Fault::HangBefore | Fault::HangAfter => &mut self.hangs,
            Fault::SlowBefore(_) | Fault::SlowAfter(_) => &mut self.slow,
        };
        *counter += 1;
    }
}

/// Steers a [`Faulty`] while it runs; clones steer the same one.
#[derive(Debug, Clone)]
pub struct FaultControl(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    on: bool,
    plan: FaultPlan,
    random: fastrand::Rng,
    queue: VecDeque<(Operation, Fault)>,
    counts: FaultCounts,
}

impl FaultControl {
    /// Stops all faults, queued ones included, until [`on`](Self::on).
    pub fn off(&self) {
        self.state().on = false;
    }

    /// Lets faults happen again, as they do from the start.
    pub fn on(&self) {
        self.state().on = true;
    }

    /// Makes `fault` happen to exactly the next call of `operation` that no earlier one of the
    /// queue is meant for. It goes before the plan.
    pub fn inject(&self, operation: Operation, fault: Fault) {
        self.state().queue.push_back((operation, fault));
    }

    /// What was injected until now.
    pub fn counts(&self) -> FaultCounts {
        self.state().counts
    }

    fn next(&self, operation: Operation) -> Option<Fault> {
        let state = &mut *self.state();
        if !state.on {
            return None;
        }
        state.counts.calls += 1;
        let queued = state.queue.iter().position(|(meant, _)| *meant == operation);
        let queued = queued.and_then(|index| state.queue.remove(index));
        // The plan is asked in any case: an injected fault does not shift those that follow.
        let planned = state.plan.choose(operation, &mut state.random);
        let fault = queued.map(|(_, fault)| fault).or(planned)?;
        state.counts.count(fault);
        Some(fault)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets calls fail, hang and take long by a plan.
///
/// Faults are on from the start. Every operation but `name` and `capabilities` can be hit. A call
/// that hangs may be dropped at any time, as by a [`Timeout`](super::Timeout); with
/// [`Fault::HangAfter`] and [`Fault::LostReply`] whatever the backend answered, an error too, is
/// lost.
///
/// # Example
/// ```
/// use storage_core::layers::{Fault, FaultPlan, Faulty, Operation};
/// use storage_core::{InMemory, MetricRecord, Outcome, StorageBackend};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let store = Faulty::new(InMemory::new(), FaultPlan::new(42));
/// store.control().inject(Operation::WriteBatch, Fault::LostReply);
///
/// let record = MetricRecord::new("web-1", chrono::Utc::now(), "cpu_usage", 1.0);
/// let error = store.write_batch(&[record]).await.unwrap_err();
/// assert_eq!(error.outcome(), Outcome::Unknown);
/// assert_eq!(store.stats().await?.total_metrics, 1);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Faulty<B> {
    inner: B,
    control: FaultControl,
}

impl<B: StorageBackend> Faulty<B> {
    /// Wraps `inner`.
    pub fn new(inner: B, plan: FaultPlan) -> Self {
        let state = State {
            on: true,
            random: fastrand::Rng::with_seed(plan.seed),
            plan,
            queue: VecDeque::new(),
            counts: FaultCounts::default(),
        };
        Self { inner, control: FaultControl(Arc::new(Mutex::new(state))) }
    }

    /// What it wraps.
    pub const fn inner(&self) -> &B {
        &self.inner
    }

    /// Returns a handle that steers the faults, also after this moved elsewhere.
    pub fn control(&self) -> FaultControl {
        self.control.clone()
    }

    async fn call<T>(
        &self,
        operation: Operation,
        inner: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        match self.control.next(operation) {
            None => inner.await,
            Some(Fault::Refused) => Err(self.refused(operation)),
            Some(Fault::LostRequest) => Err(self.lost(operation)),
            Some(Fault::LostReply) => {
                let _lost = inner.await.is_ok();
                Err(self.lost(operation))
            }
            Some(Fault::HangBefore) => pending().await,
            Some(Fault::HangAfter) => {
                let _lost = inner.await.is_ok();
                pending().await
            }
            Some(Fault::SlowBefore(delay)) => {
                sleep(delay).await;
                inner.await
            }
            Some(Fault::SlowAfter(delay)) => {
                let answer = inner.await;
                sleep(delay).await;
                answer
            }
        }
    }

    fn refused(&self, operation: Operation) -> Error {
        Error::new(ErrorKind::Unavailable, "refused by an injected fault")
            .with_backend(self.inner.name())
            .with_operation(operation.as_str())
    }

    fn lost(&self, operation: Operation) -> Error {
        let outcome = if operation.is_read() { Outcome::NotApplied } else { Outcome::Unknown };
        Error::new(ErrorKind::Timeout, "lost by an injected fault")
            .with_outcome(outcome)
            .with_backend(self.inner.name())
            .with_operation(operation.as_str())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<B: StorageBackend> StorageBackend for Faulty<B> {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        self.call(Operation::WriteBatch, self.inner.write_batch(records)).await
    }

    async fn query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        let call = self.inner.query_range(server_id, metric_type, range);
        self.call(Operation::QueryRange, call).await
    }

    async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        let call = self.inner.aggregate(server_id, metric_type, range);
        self.call(Operation::Aggregate, call).await
    }

    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        self.call(Operation::PruneBefore, self.inner.prune_before(cutoff)).await
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.call(Operation::Stats, self.inner.stats()).await
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        self.call(Operation::Series, self.inner.series(filter)).await
    }

    async fn latest(
        &self,
        filter: &SeriesFilter,
        n_per_series: usize,
    ) -> Result<Vec<SeriesSamples>> {
        self.call(Operation::Latest, self.inner.latest(filter, n_per_series)).await
    }

    async fn windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        self.call(Operation::Windows, self.inner.windows(filter, range, width)).await
    }

    fn scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        let operation = Operation::Scan;
        let batches = self.inner.scan(filter, range);
        match self.control.next(operation) {
            None => batches,
            Some(Fault::Refused) => Box::pin(stream::iter([Err(self.refused(operation))])),
            Some(Fault::LostRequest) => Box::pin(stream::iter([Err(self.lost(operation))])),
            Some(Fault::LostReply) => {
                Box::pin(first_of(batches).chain(stream::iter([Err(self.lost(operation))])))
            }
            Some(Fault::HangBefore) => Box::pin(stream::pending()),
            Some(Fault::HangAfter) => Box::pin(first_of(batches).chain(stream::pending())),
            Some(Fault::SlowBefore(delay) | Fault::SlowAfter(delay)) => {
                Box::pin(batches.then(move |batch| async move {
                    sleep(delay).await;
                    batch
                }))
            }
        }
    }

    async fn flush(&self) -> Result<()> {
        self.call(Operation::Flush, self.inner.flush()).await
    }

    async fn compact(&self) -> Result<()> {
        self.call(Operation::Compact, self.inner.compact()).await
    }

    async fn check(&self) -> Result<CheckReport> {
        self.call(Operation::Check, self.inner.check()).await
    }

    async fn health(&self) -> Health {
        let answer = async { Ok(self.inner.health().await) };
        self.call(Operation::Health, answer).await.unwrap_or_else(|error| Health::down(&error))
    }

    async fn close(&self) -> Result<()> {
        self.call(Operation::Close, self.inner.close()).await
    }
}

/// Returns the first batch; an error in its place is lost as any other reply is.
fn first_of(batches: ScanStream<'_>) -> ScanStream<'_> {
    Box::pin(batches.take(1).filter(|batch| ready(batch.is_ok())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::testing::{fill, hour, record};
    use crate::{HealthStatus, InMemory};
    use futures_util::future::{Either, select};
    use std::pin::pin;

    fn store() -> Faulty<InMemory> {
        Faulty::new(InMemory::new(), FaultPlan::new(1))
    }

    async fn stored(store: &Faulty<InMemory>) -> u64 {
        store.inner().stats().await.unwrap().total_metrics
    }

    #[tokio::test(start_paused = true)]
    async fn whether_it_happened_and_what_is_said_are_independent() {
        let table = [
            (Fault::Refused, 0, Outcome::NotApplied),
            (Fault::LostRequest, 0, Outcome::Unknown),
            (Fault::LostReply, 1, Outcome::Unknown),
        ];
        for (fault, applied, said) in table {
            let store = store();
            store.control().inject(Operation::WriteBatch, fault);
            let error = store.write_batch(&[record(0)]).await.unwrap_err();
            assert_eq!((error.outcome(), error.is_retryable()), (said, true), "{fault:?}");
            assert_eq!(stored(&store).await, applied, "{fault:?}");
            assert!(store.write_batch(&[record(0)]).await.is_ok(), "only the next call");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn hanging_calls_can_be_dropped() {
        for (fault, applied) in [(Fault::HangBefore, 0), (Fault::HangAfter, 1)] {
            let store = store();
            store.control().inject(Operation::WriteBatch, fault);
            let batch = [record(0)];
            let call = tokio::time::timeout(Duration::from_secs(9), store.write_batch(&batch));
            assert!(call.await.is_err());
            assert_eq!(stored(&store).await, applied);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slow_calls_answer_late() {
        let delay = Duration::from_secs(1);
        for (fault, early) in [(Fault::SlowBefore(delay), 0), (Fault::SlowAfter(delay), 1)] {
            let store = store();
            store.control().inject(Operation::WriteBatch, fault);
            let batch = [record(0)];
            let half = pin!(sleep(delay / 2));
            let Either::Right((_, call)) = select(store.write_batch(&batch), half).await else {
                panic!("it returned early");
            };
            assert_eq!(stored(&store).await, early, "{fault:?}");
            assert!(call.await.is_ok());
            assert_eq!(stored(&store).await, 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn scans_break_at_the_start_or_on_their_way() {
        let store = store();
        fill(store.inner(), 3).await;
        for (fault, items) in [(Fault::Refused, 1), (Fault::LostReply, 2)] {
            store.control().inject(Operation::Scan, fault);
            let found: Vec<_> = store.scan(&SeriesFilter::any(), hour()).collect().await;
            assert_eq!(found.len(), items);
            assert!(found.last().unwrap().is_err());
        }
    }

    #[tokio::test]
    async fn a_seed_gives_the_same_faults_again() {
        async fn run(seed: u64) -> (Vec<bool>, FaultCounts) {
            let plan = FaultPlan::new(seed).with_coins(0.7, 0.6);
            let store = Faulty::new(InMemory::new(), plan);
            let mut worked = Vec::new();
            for _ in 0..1_000 {
                worked.push(store.stats().await.is_ok());
            }
            (worked, store.control().counts())
        }
        let (worked, counts) = run(5).await;
        assert_eq!(run(5).await, (worked.clone(), counts));
        assert_ne!(run(6).await.0, worked);
        assert_eq!(counts.calls, 1_000);
        for (count, expected) in
            [(counts.refused, 180), (counts.lost_requests, 120), (counts.lost_replies, 280)]
        {
            assert!(count.abs_diff(expected) < 60, "{count} instead of about {expected}");
        }
    }

    #[tokio::test]
    async fn faults_can_be_switched_off_and_confined() {
        let plan = FaultPlan::new(1).with_refused(1.0).only(&[Operation::Health]);
        let store = Faulty::new(InMemory::new(), plan);
        assert!(store.stats().await.is_ok());
        assert_eq!(store.health().await.status, HealthStatus::Down);
        let control = store.control();
        control.off();
        assert_eq!(store.health().await.status, HealthStatus::Healthy);
        control.on();
        assert_eq!(store.health().await.status, HealthStatus::Down);
        assert_eq!((control.counts().injected(), control.counts().calls), (2, 3));
    }

    #[test]
    #[should_panic(expected = "are no shares")]
    fn shares_above_one_are_refused() {
        let _ = FaultPlan::new(1).with_refused(0.6).with_lost_reply(0.5);
    }
}
