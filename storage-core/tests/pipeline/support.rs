//! What the tests share: records, stores that can be switched off, and the sum of all counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use storage_core::layers::{FaultPlan, Faulty, Operation};
use storage_core::metrics::time::from_ms;
use storage_core::pipeline::{
    ActorCounters, Source, Spool, SpoolLimits, StorageActor, StorageHandle,
};
use storage_core::{
    InMemory, MetricAggregation, MetricRecord, Result, StorageBackend, StorageStats, TimeRange,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

pub(crate) type Shaky = Arc<Faulty<InMemory>>;

/// A store whose writes meet the faults of `plan` while its control is on; it is off at first.
pub(crate) fn shaky(plan: FaultPlan) -> Shaky {
    let store = Faulty::new(InMemory::new(), plan.only(&[Operation::WriteBatch]));
    store.control().off();
    Arc::new(store)
}

/// A store that refuses every write while its control is on.
pub(crate) fn refusing() -> Shaky {
    shaky(FaultPlan::new(1).with_refused(1.0))
}

/// A store in which every write hangs while its control is on.
pub(crate) fn hanging() -> Shaky {
    shaky(FaultPlan::new(1).with_hang_before(1.0))
}

/// A store with a rule of its own about what it takes.
pub(crate) struct Ruled {
    pub(crate) inner: InMemory,
    pub(crate) rule: fn(&MetricRecord) -> Result<()>,
}

impl Ruled {
    pub(crate) fn new(rule: fn(&MetricRecord) -> Result<()>) -> Self {
        Self { inner: InMemory::new(), rule }
    }
}

#[async_trait]
impl StorageBackend for Ruled {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        records.iter().try_for_each(self.rule)?;
        self.inner.write_batch(records).await
    }
    async fn query_range(&self, s: &str, m: &str, range: TimeRange) -> Result<Vec<MetricRecord>> {
        self.inner.query_range(s, m, range).await
    }
    async fn aggregate(&self, s: &str, m: &str, range: TimeRange) -> Result<MetricAggregation> {
        self.inner.aggregate(s, m, range).await
    }
    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        self.inner.prune_before(cutoff).await
    }
    async fn stats(&self) -> Result<StorageStats> {
        self.inner.stats().await
    }
}

/// A store that panics so often when it is read, and when it is pruned.
pub(crate) struct Panicking {
    inner: InMemory,
    reads: AtomicU32,
    prunes: AtomicU32,
}

impl Panicking {
    pub(crate) fn new(times: u32) -> Self {
        Self { inner: InMemory::new(), reads: AtomicU32::new(times), prunes: AtomicU32::new(times) }
    }
}

fn panic_if_left(times: &AtomicU32) {
    let left = times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    assert!(left.is_err(), "on purpose");
}

#[async_trait]
impl StorageBackend for Panicking {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        self.inner.write_batch(records).await
    }
    async fn query_range(&self, s: &str, m: &str, range: TimeRange) -> Result<Vec<MetricRecord>> {
        panic_if_left(&self.reads);
        self.inner.query_range(s, m, range).await
    }
    async fn aggregate(&self, s: &str, m: &str, range: TimeRange) -> Result<MetricAggregation> {
        self.inner.aggregate(s, m, range).await
    }
    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        panic_if_left(&self.prunes);
        self.inner.prune_before(cutoff).await
    }
    async fn stats(&self) -> Result<StorageStats> {
        self.inner.stats().await
    }
}

/// The store without its type.
pub(crate) fn as_dyn<B: StorageBackend + 'static>(store: &Arc<B>) -> Arc<dyn StorageBackend> {
    Arc::<B>::clone(store)
}

pub(crate) fn actor_on<B: StorageBackend + 'static>(store: &Arc<B>) -> StorageActor {
    StorageActor::new(as_dyn(store))
}

/// How many samples really are in a store.
pub(crate) async fn stored(store: &Shaky) -> u64 {
    store.inner().stats().await.unwrap().total_metrics
}

/// The values of the series of [`record`], in order of time.
pub(crate) async fn values(store: &dyn StorageBackend) -> Vec<i64> {
    let found = store.query_range("web-1", "cpu", TimeRange::all()).await.unwrap();
    found.iter().map(|record| record.value as i64).collect()
}

pub(crate) fn record(number: i64) -> MetricRecord {
    MetricRecord::new("web-1", from_ms(number), "cpu", number as f64)
}

pub(crate) fn records(numbers: std::ops::Range<i64>) -> Vec<MetricRecord> {
    numbers.map(record).collect()
}

pub(crate) async fn spool() -> Spool {
    spool_of(SpoolLimits::default()).await
}

pub(crate) async fn spool_of(limits: SpoolLimits) -> Spool {
    Spool::open(Arc::new(InMemory::new()), limits).await.unwrap()
}

/// A source of batches, and where they go in.
pub(crate) fn channel(capacity: usize) -> (mpsc::Sender<Vec<MetricRecord>>, Source) {
    let (sender, receiver) = mpsc::channel(capacity);
    (sender, Source::mpsc("source", receiver))
}

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Lets time pass until `is_so`.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + seconds(600);
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}: not within ten minutes");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Checks that every record that came in is in exactly one of the numbers.
pub(crate) fn assert_adds_up(counters: &ActorCounters) {
    for source in &counters.sources {
        let sum = source.invalid + source.shed + source.stored + source.spooled + source.held;
        assert_eq!(source.received, sum, "{source:?}");
    }
}

/// Ends an actor that must have nothing left.
pub(crate) async fn end(actor: &StorageHandle) -> ActorCounters {
    let report = actor.shutdown(seconds(60)).await;
    assert!(report.is_complete(), "{report:?}");
    assert_adds_up(&report.counters);
    report.counters
}
