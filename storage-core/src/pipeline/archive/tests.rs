//! Tasks that archive: once in an interval whatever their number, after failures, stopped in the middle,
//! and beside retention.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::time::Duration;

use tokio::time::sleep;

use super::*;
use crate::InMemory;
use crate::compose::TieredOptions;
use crate::layers::{Fault, FaultPlan, Faulty, Operation};
use crate::metrics::MetricRecord;
use crate::pipeline::{RetentionPolicy, Rolled, RollupOptions, RollupTier};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const DAY_MS: i64 = 86_400_000;
const DAYS: i64 = 40;
/// How many samples a day has.
const SAMPLES: u64 = 24;

type Shared = Arc<Faulty<InMemory>>;

/// Three stores in memory and a clock that stands until it is set.
struct Stores {
    hot: Shared,
    cold: Shared,
    control: Shared,
    now_ms: Arc<AtomicI64>,
}

impl Stores {
    /// A sample an hour for forty days, which end now.
    async fn filled() -> Self {
        let store = || Arc::new(Faulty::new(InMemory::new(), FaultPlan::new(1)));
        let now_ms = Arc::new(AtomicI64::new(DAYS * DAY_MS));
        let stores = Self { hot: store(), cold: store(), control: store(), now_ms };
        let hours = 0..DAYS * 24;
        let records: Vec<_> = hours.map(|hour| record(hour * DAY_MS / 24)).collect();
        stores.hot.write_batch(&records).await.unwrap();
        stores
    }

    fn clock(&self) -> impl Fn() -> DateTime<Utc> + Send + Sync + 'static {
        let now_ms = Arc::clone(&self.now_ms);
        move || from_ms(now_ms.load(SeqCst))
    }

    async fn open(&self) -> Arc<Tiered> {
        let options = TieredOptions::default()
            .with_settle(Duration::ZERO)
            .with_wait_max(HOUR / 4)
            .with_clock(self.clock());
        let [hot, cold, control] = [&self.hot, &self.cold, &self.control].map(Shared::clone);
        Arc::new(Tiered::open_with(hot, cold, control, options).await.unwrap())
    }

    async fn counts(&self) -> (u64, u64) {
        let (hot, cold) = (self.hot.inner().stats().await, self.cold.inner().stats().await);
        (hot.unwrap().total_metrics, cold.unwrap().total_metrics)
    }
}

fn record(ms: i64) -> MetricRecord {
    MetricRecord::new("web-1", from_ms(ms), "cpu", ms as f64)
}

fn policy() -> ArchivePolicy {
    ArchivePolicy::after(7 * DAY)
}

/// Two processes, each with a task of its own, and a sample that comes late in between.
#[tokio::test(start_paused = true)]
async fn one_of_several_tasks_archives_in_an_interval() {
    let stores = Stores::filled().await;
    let (one, other) = (stores.open().await, stores.open().await);
    let start = |store| ArchiveTask::start(store, policy(), DAY);
    let one_task = start(&one);
    sleep(HOUR).await;
    assert_eq!(stores.counts().await, (7 * SAMPLES, 33 * SAMPLES));
    let report = one_task.counts();
    assert_eq!((report.runs, report.windows, report.samples), (1, 33, 33 * SAMPLES));

    stores.now_ms.fetch_add(DAY_MS / 24, SeqCst);
    one.write_batch(&[record(5)]).await.unwrap();
    let other_task = start(&other);
    sleep(HOUR).await;
    assert_eq!(other_task.counts(), ArchiveCounts { skipped: 1, ..ArchiveCounts::default() });
    assert_eq!(stores.counts().await, (7 * SAMPLES + 1, 33 * SAMPLES));

    for _ in 0..3 {
        stores.now_ms.fetch_add(DAY_MS, SeqCst);
        sleep(DAY).await;
    }
    assert_eq!(stores.counts().await, (4 * SAMPLES, 36 * SAMPLES + 1));
    let [one_counts, other_counts] = [one_task.stop().await, other_task.counts()];
    assert_eq!(one_counts.samples + other_counts.samples, 36 * SAMPLES + 1);
    assert_eq!(one_counts.failures + other_counts.failures, 0, "{one_counts:?} {other_counts:?}");
    drop(other);
    sleep(DAY).await;
    assert!(other_task.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_task_goes_on_after_a_failure_and_ends_with_the_store() {
    let stores = Stores::filled().await;
    let store = stores.open().await;
    // Two windows pass.
    for fault in [Fault::SlowBefore(Duration::ZERO); 2] {
        stores.hot.control().inject(Operation::PruneBefore, fault);
    }
    stores.hot.control().inject(Operation::PruneBefore, Fault::Refused);
    let task = ArchiveTask::start(&store, policy().with_window(DAY), HOUR);
    sleep(HOUR / 2).await;
    let counts = task.counts();
    assert_eq!((counts.failures, counts.runs, counts.windows), (1, 0, 2), "{counts:?}");
    assert!(counts.last_error.is_some());
    sleep(HOUR).await;
    let counts = task.counts();
    assert_eq!((counts.failures, counts.runs, counts.last_error), (1, 1, None));
    assert_eq!(stores.counts().await, (7 * SAMPLES, 33 * SAMPLES));
    store.close().await.unwrap();
    stores.now_ms.fetch_add(DAY_MS, SeqCst);
    sleep(2 * HOUR).await;
    assert!(task.is_finished());
}

/// Each of the first windows takes a minute to copy.
#[tokio::test(start_paused = true)]
async fn a_task_that_is_stopped_moves_the_window_under_way_and_gives_its_turn_back() {
    let minute = Duration::from_secs(60);
    let stores = Stores::filled().await;
    let (store, other) = (stores.open().await, stores.open().await);
    for _ in 0..3 {
        stores.cold.control().inject(Operation::WriteBatch, Fault::SlowBefore(minute));
    }
    let task = ArchiveTask::start(&store, policy(), HOUR);
    sleep(minute * 5 / 2).await;
    let stopped_at = tokio::time::Instant::now();
    let counts = task.stop().await;
    assert_eq!((counts.windows, counts.samples), (3, 3 * SAMPLES), "{counts:?}");
    assert!(stopped_at.elapsed() < minute);
    let taken_at = tokio::time::Instant::now();
    other.begin_move().await.unwrap().end().await.unwrap();
    assert!(taken_at.elapsed() < Duration::from_secs(1), "the turn was not given back");

    // What is broken off waits for nobody, and is finished by the next one.
    let task = ArchiveTask::start(&store, policy(), HOUR);
    stores.cold.control().inject(Operation::WriteBatch, Fault::HangBefore);
    sleep(minute).await;
    let counts = task.stop_within(Duration::from_secs(1)).await;
    assert!(counts.last_error.is_some() && counts.windows == 0, "{counts:?}");
    assert_eq!(stores.counts().await, (37 * SAMPLES, 3 * SAMPLES));
}

/// The cold store refuses everything for a while: what is too old and too large stays until it is
/// archived.
#[tokio::test(start_paused = true)]
async fn retention_removes_nothing_that_is_not_archived() {
    let stores = Stores::filled().await;
    let tiers = stores.open().await;
    let memory = || Arc::new(InMemory::new());
    let options = RollupOptions::default()
        .with_settle(Duration::ZERO)
        .with_clock(stores.clock())
        .with_archived_first(Arc::clone(&tiers));
    let rollups = vec![RollupTier::new(DAY, memory())];
    let samples = Arc::<Tiered>::clone(&tiers);
    let store = Rolled::open_with(samples, rollups, memory(), options).await.unwrap();
    let by_age = RetentionPolicy::default().keep_samples(10 * DAY).unwrap();
    let by_size = RetentionPolicy::default().samples_bytes_max(1);
    for policy in [&by_age, &by_size] {
        assert_eq!(store.plan_retention(policy).await.unwrap().rows_removed(), 0);
        assert_eq!(store.retain(policy).await.unwrap().rows_removed(), 0);
    }
    assert_eq!(stores.counts().await, (DAYS as u64 * SAMPLES, 0));

    // A part of it is archived, within a window of rollups; a late sample is not.
    let cutoff = from_ms(5 * DAY_MS / 2);
    let options = ArchiveOptions::before(cutoff).with_window(DAY / 2);
    archive(&tiers, &options, |_| {}).await.unwrap();
    assert_eq!(store.retain(&by_age).await.unwrap().rows_removed(), 2 * SAMPLES);
    tiers.write_batch(&[record(2 * DAY_MS + 5)]).await.unwrap();
    archive(&tiers, &ArchiveOptions::before(from_ms(2 * DAY_MS)), |_| {}).await.unwrap();
    assert_eq!(store.retain(&by_age).await.unwrap().rows_removed(), 0);

    archive(&tiers, &ArchiveOptions::before(from_ms(33 * DAY_MS)), |_| {}).await.unwrap();
    assert_eq!(store.retain(&by_age).await.unwrap().rows_removed(), 28 * SAMPLES + 1);
    assert_eq!(stores.counts().await, (7 * SAMPLES, 3 * SAMPLES));
    // By size the archived ones go, and no more.
    assert_eq!(store.retain(&by_size).await.unwrap().rows_removed(), 3 * SAMPLES);
    assert_eq!(stores.counts().await, (7 * SAMPLES, 0));
}
