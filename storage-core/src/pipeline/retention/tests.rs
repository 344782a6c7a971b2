//! Retention by age and by size, once and by several tasks at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

use super::*;
use crate::layers::{Fault, FaultPlan, Faulty, Operation};
use crate::metrics::time::from_ms;
use crate::metrics::{MetricRecord, SeriesFilter, StorageBackend, TimeRange};
use crate::pipeline::{RollupOptions, RollupTier, WindowSource};
use crate::{ErrorKind, InMemory};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
const DAYS: i64 = 40;

/// Stores in memory and a clock that stands until it is set.
struct Stores {
    raw: Arc<Faulty<InMemory>>,
    hour: Arc<InMemory>,
    day: Arc<InMemory>,
    control: Arc<InMemory>,
    now_ms: Arc<AtomicI64>,
}

impl Stores {
    /// A sample an hour of two series for forty days, which end now.
    async fn filled() -> Self {
        let raw = Faulty::new(InMemory::new(), FaultPlan::new(1));
        let record = |hour: i64, series: i64| {
            let time = from_ms(hour * HOUR_MS + series);
            MetricRecord::new(format!("web-{series}"), time, "cpu", hour as f64)
        };
        let hours = 0..DAYS * 24;
        let records: Vec<_> = hours.flat_map(|h| [record(h, 0), record(h, 1)]).collect();
        raw.write_batch(&records).await.unwrap();
        let memory = || Arc::new(InMemory::new());
        Self {
            raw: Arc::new(raw),
            hour: memory(),
            day: memory(),
            control: memory(),
            now_ms: Arc::new(AtomicI64::new(DAYS * DAY_MS)),
        }
    }

    async fn open(&self) -> Rolled {
        let now_ms = Arc::clone(&self.now_ms);
        let options = RollupOptions::default()
            .with_settle(Duration::ZERO)
            .with_wait_max(Duration::from_secs(20))
            .with_clock(move || from_ms(now_ms.load(SeqCst)));
        let (raw, control) = (Arc::clone(&self.raw), Arc::clone(&self.control));
        let tiers = vec![
            RollupTier::new(HOUR, Arc::<InMemory>::clone(&self.hour)),
            RollupTier::new(DAY, Arc::<InMemory>::clone(&self.day)),
        ];
        Rolled::open_with(raw, tiers, control, options).await.unwrap()
    }
}

fn policy() -> RetentionPolicy {
    let keep_samples = RetentionPolicy::default().keep_samples(7 * DAY).unwrap();
    keep_samples.keep_rollups(HOUR, 30 * DAY).unwrap()
}

fn removed(report: &RetentionReport) -> Vec<(Option<Duration>, u64, u64)> {
    let one = |entry: &RetentionEntry| (entry.width, entry.rows, entry.rows_removed);
    report.entries.iter().map(one).collect()
}

async fn counts(stores: &Stores) -> [u64; 3] {
    let [raw, hour, day] = [stores.raw.inner(), &*stores.hour, &*stores.day].map(|one| one.stats());
    [raw.await, hour.await, day.await].map(|stats| stats.unwrap().total_metrics)
}

#[tokio::test]
async fn each_is_kept_as_long_as_the_policy_says() {
    let stores = Stores::filled().await;
    let store = stores.open().await;
    let hours = (DAYS * 24 * 2) as u64;
    let plan = store.plan_retention(&policy()).await.unwrap();
    assert_eq!(removed(&plan), [(None, hours, 33 * 48), (Some(HOUR), 0, 0), (Some(DAY), 0, 0)]);
    assert_eq!(counts(&stores).await, [hours, 0, 0], "a plan removes nothing");
    assert!(plan.bytes_freed() > plan.entries[0].bytes * 8 / 10);

    let done = store.retain(&policy()).await.unwrap();
    // The rollups were made by the prune, and those of the first ten days removed at once.
    assert_eq!(done.entries[0].rows_removed, 33 * 48);
    assert_eq!(done.entries[0].before, Some(from_ms(33 * DAY_MS)));
    assert_eq!(done.entries[1].rows_removed, 10 * 48);
    assert_eq!(done.entries[1].before, Some(from_ms(10 * DAY_MS)));
    assert_eq!((done.entries[2].rows_removed, done.entries[2].before), (0, None));
    assert_eq!((done.rows_removed(), done.bytes_freed() > 0), (43 * 48, true));
    assert_eq!(counts(&stores).await, [7 * 48, 23 * 48 * 8, 33 * 2 * 8]);

    // Every day is answered, whatever is left of it.
    let found = store.rolled_windows(&SeriesFilter::any(), TimeRange::all(), DAY).await.unwrap();
    let one = found.series[0].windows.iter().map(|window| window.aggregation.count);
    assert_eq!(one.collect::<Vec<_>>(), vec![24; DAYS as usize]);
    // By the hour it is known as long as rollups of hours are kept, and no longer.
    let range = TimeRange::new(from_ms(0), from_ms(DAYS * DAY_MS)).unwrap();
    let found = store.rolled_windows(&SeriesFilter::any(), range, HOUR).await.unwrap();
    let sources: Vec<_> =
        found.stretches.iter().map(|one| (one.range.start_ms() / DAY_MS, one.source)).collect();
    let (gone, hours) = (WindowSource::Gone, WindowSource::Rollups(HOUR));
    assert_eq!(sources[..2], [(0, gone), (10, hours)], "{sources:?}");
    assert_eq!(found.series[0].windows.len(), 30 * 24);
    assert_eq!(store.retain(&policy()).await.unwrap().rows_removed(), 0);
    let plan = store.plan_retention(&policy()).await.unwrap();
    assert_eq!(plan.rows_removed(), 0);
}

#[tokio::test]
async fn an_age_within_a_day_keeps_the_whole_day() {
    let stores = Stores::filled().await;
    let store = stores.open().await;
    let policy = RetentionPolicy::default().keep_samples(7 * DAY + HOUR).unwrap();
    let done = store.retain(&policy).await.unwrap();
    assert_eq!(done.entries[0].before, Some(from_ms(32 * DAY_MS)));
    let error = RetentionPolicy::default().keep_samples(Duration::ZERO).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

/// An age that is never applied would seem to be kept.
#[tokio::test]
async fn an_age_of_a_width_that_nobody_keeps_is_refused() {
    let stores = Stores::filled().await;
    let store = stores.open().await;
    let policy = policy().keep_rollups(Duration::from_secs(300), DAY).unwrap();
    for refused in [store.plan_retention(&policy).await, store.retain(&policy).await] {
        let error = refused.unwrap_err();
        assert_eq!(
            (error.kind(), error.context("width")),
            (ErrorKind::InvalidArgument, Some("300s"))
        );
    }
    assert_eq!(counts(&stores).await, [(DAYS * 48) as u64, 0, 0]);
}

#[tokio::test]
async fn what_is_too_large_loses_its_oldest() {
    let stores = Stores::filled().await;
    let store = stores.open().await;
    let before = store.stats().await.unwrap().disk_usage_bytes;
    let policy = RetentionPolicy::default().samples_bytes_max(before / 2);
    let plan = store.plan_retention(&policy).await.unwrap();
    let done = store.retain(&policy).await.unwrap();
    assert_eq!(plan.entries[0].rows_removed, done.entries[0].rows_removed);
    assert_eq!(done.entries[0].rows_removed, 20 * 48);
    assert!(store.stats().await.unwrap().disk_usage_bytes <= before / 2);
    assert!(done.bytes_freed() >= before / 2);

    // A bound that cannot be kept leaves what is not rolled up yet.
    store.retain(&RetentionPolicy::default().samples_bytes_max(0)).await.unwrap();
    assert_eq!(store.stats().await.unwrap().total_metrics, 48);
    let rows = stores.hour.stats().await.unwrap();
    let policy = RetentionPolicy::default().rollups_bytes_max(HOUR, rows.disk_usage_bytes / 3);
    let done = store.retain(&policy).await.unwrap();
    assert_eq!((done.entries[0].rows_removed, done.entries[1].rows), (0, 39 * 48));
    assert!(stores.hour.stats().await.unwrap().disk_usage_bytes <= rows.disk_usage_bytes / 3);
}

/// One sample of a clock that is ahead makes forty days look like a small part of all time.
#[tokio::test]
async fn a_sample_from_the_future_costs_no_others() {
    let stores = Stores::filled().await;
    let ahead = MetricRecord::new("ahead", from_ms((DAYS + 400) * DAY_MS), "cpu", 1.0);
    stores.raw.write_batch(&[ahead]).await.unwrap();
    let store = stores.open().await;
    let bytes = store.stats().await.unwrap().disk_usage_bytes;
    let policy = RetentionPolicy::default().samples_bytes_max(bytes * 9 / 10);
    let plan = store.plan_retention(&policy).await.unwrap();
    let done = store.retain(&policy).await.unwrap();
    assert_eq!(plan.entries[0].rows_removed, done.entries[0].rows_removed);
    assert!((4 * 48..=6 * 48).contains(&done.entries[0].rows_removed), "{done:?}");
}

/// As of a file that something else fills, or that cannot shrink.
#[tokio::test]
async fn a_store_that_does_not_become_smaller_keeps_what_is_not_too_much() {
    let stores = Stores::filled().await;
    let bytes = stores.raw.stats().await.unwrap().disk_usage_bytes;
    let rigid = Arc::new(Rigid { inner: Arc::clone(&stores.raw), bytes });
    let now_ms = Arc::clone(&stores.now_ms);
    let options = RollupOptions::default().with_clock(move || from_ms(now_ms.load(SeqCst)));
    let control = Arc::clone(&stores.control);
    let store = Rolled::open_with(rigid, Vec::new(), control, options).await.unwrap();
    let policy = RetentionPolicy::default().samples_bytes_max(bytes * 9 / 10);
    let plan = store.plan_retention(&policy).await.unwrap();
    let done = store.retain(&policy).await.unwrap();
    assert_eq!(plan.entries[0].rows_removed, done.entries[0].rows_removed);
    assert!((190..=6 * 48).contains(&done.entries[0].rows_removed), "{done:?}");
}

/// What an age removes may be enough.
#[tokio::test]
async fn a_plan_adds_no_size_to_an_age_that_is_enough() {
    let stores = Stores::filled().await;
    let store = stores.open().await;
    let bytes = store.stats().await.unwrap().disk_usage_bytes;
    let policy = RetentionPolicy::default().keep_samples(30 * DAY).unwrap();
    let policy = policy.samples_bytes_max(bytes * 8 / 10);
    let plan = store.plan_retention(&policy).await.unwrap();
    assert_eq!(plan.entries[0].before, Some(from_ms(10 * DAY_MS)));
    let done = store.retain(&policy).await.unwrap();
    assert_eq!(done.entries[0].before, plan.entries[0].before);
}

#[tokio::test]
async fn what_is_kept_is_known_after_the_first_retention() {
    let stores = Stores::filled().await;
    let store = stores.open().await;
    let policy = RetentionPolicy::default().keep_rollups(HOUR, 60 * DAY).unwrap();
    store.retain(&policy).await.unwrap();
    let kept = Rolled::kept_widths(Arc::<InMemory>::clone(&stores.control)).await.unwrap();
    assert_eq!(kept, Some(vec![HOUR, DAY]));
}

/// A store that says the same size whatever is in it.
#[derive(Debug)]
struct Rigid {
    inner: Arc<Faulty<InMemory>>,
    bytes: u64,
}

#[async_trait::async_trait]
impl StorageBackend for Rigid {
    async fn write_batch(&self, records: &[MetricRecord]) -> crate::Result<()> {
        self.inner.write_batch(records).await
    }

    async fn query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> crate::Result<Vec<MetricRecord>> {
        self.inner.query_range(server_id, metric_type, range).await
    }

    async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> crate::Result<crate::MetricAggregation> {
        self.inner.aggregate(server_id, metric_type, range).await
    }

    async fn prune_before(&self, cutoff: DateTime<Utc>) -> crate::Result<u64> {
        self.inner.prune_before(cutoff).await
    }

    async fn stats(&self) -> crate::Result<crate::StorageStats> {
        let stats = self.inner.stats().await?;
        Ok(crate::StorageStats { disk_usage_bytes: self.bytes, ..stats })
    }

    fn name(&self) -> &'static str {
        "rigid"
    }

    fn capabilities(&self) -> crate::Capabilities {
        self.inner.capabilities()
    }

    async fn series(&self, filter: &SeriesFilter) -> crate::Result<Vec<crate::SeriesInfo>> {
        self.inner.series(filter).await
    }
}

#[tokio::test]
async fn without_rollups_the_cutoff_is_exact() {
    let stores = Stores::filled().await;
    let now_ms = Arc::clone(&stores.now_ms);
    let options = RollupOptions::default().with_clock(move || from_ms(now_ms.load(SeqCst)));
    let (raw, control) = (Arc::clone(&stores.raw), Arc::clone(&stores.control));
    let store = Rolled::open_with(raw, Vec::new(), control, options).await.unwrap();
    let policy = RetentionPolicy::default().keep_samples(7 * DAY + HOUR).unwrap();
    let done = store.retain(&policy).await.unwrap();
    assert_eq!(done.entries[0].rows_removed, 33 * 48 - 2);
    assert_eq!(done.entries.len(), 1);
}

/// Two processes, each with a task of its own.
#[tokio::test(start_paused = true)]
async fn one_of_several_tasks_applies_the_policy_in_an_interval() {
    let stores = Stores::filled().await;
    let open = async || Arc::new(stores.open().await);
    let (one, other) = (open().await, open().await);
    let start = |store| RetentionTask::start(store, policy(), HOUR / 4, HOUR);
    let tasks = [start(&one), start(&other)];
    for hour in 1..=30 {
        tokio::time::sleep(HOUR).await;
        stores.now_ms.store(DAYS * DAY_MS + hour * HOUR_MS, SeqCst);
    }
    let [one_counts, other_counts] = tasks.each_ref().map(RetentionTask::counts);
    let runs = one_counts.runs + other_counts.runs;
    assert!((29..=32).contains(&runs), "{one_counts:?} {other_counts:?}");
    assert!(one_counts.skipped + other_counts.skipped >= 28, "{one_counts:?} {other_counts:?}");
    assert_eq!(one_counts.failures + other_counts.failures, 0, "{one_counts:?}");
    let samples = one_counts.samples_removed + other_counts.samples_removed;
    assert_eq!(samples, 34 * 48);
    let [one_task, other_task] = tasks;
    assert_eq!(one_task.stop().await.last_error, None);
    drop(other);
    tokio::time::sleep(HOUR).await;
    assert!(other_task.is_finished());
}

/// Rolling up works all the time.
#[tokio::test(start_paused = true)]
async fn a_failed_retention_is_told_until_one_works() {
    let stores = Stores::filled().await;
    let store = Arc::new(stores.open().await);
    stores.raw.control().inject(Operation::PruneBefore, Fault::Refused);
    let task = RetentionTask::start(&store, policy(), HOUR / 60, HOUR);
    tokio::time::sleep(HOUR / 2).await;
    let counts = task.counts();
    assert!(counts.refreshes > 20 && counts.last_error.is_some(), "{counts:?}");
    // Also after another failure, which is made good.
    stores.raw.control().inject(Operation::Stats, Fault::Refused);
    tokio::time::sleep(HOUR / 4).await;
    let counts = task.counts();
    assert!(counts.failures == 2 && counts.last_error.is_some(), "{counts:?}");
    tokio::time::sleep(HOUR).await;
    let counts = task.stop().await;
    assert_eq!((counts.failures, counts.runs, counts.last_error), (2, 1, None));
}

#[tokio::test(start_paused = true)]
async fn a_retention_that_is_never_due_again_stops_no_rollups() {
    let stores = Stores::filled().await;
    let store = Arc::new(stores.open().await);
    let task = RetentionTask::start(&store, policy(), HOUR, Duration::MAX);
    tokio::time::sleep(10 * HOUR).await;
    let counts = task.stop().await;
    assert!(counts.refreshes > 9 && counts.runs + counts.skipped == 1, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_task_goes_on_after_a_failure_and_ends_with_the_store() {
    let stores = Stores::filled().await;
    let store = Arc::new(stores.open().await);
    stores.raw.control().inject(Operation::PruneBefore, Fault::Refused);
    let task = RetentionTask::start(&store, policy(), HOUR, HOUR);
    tokio::time::sleep(HOUR / 2).await;
    let counts = task.counts();
    assert_eq!((counts.failures, counts.runs, counts.last_error.is_some()), (1, 0, true));
    tokio::time::sleep(HOUR).await;
    let counts = task.counts();
    assert_eq!((counts.failures, counts.runs, counts.last_error), (1, 1, None));
    assert_eq!(stores.raw.inner().stats().await.unwrap().total_metrics, 7 * 48);
    store.close().await.unwrap();
    tokio::time::sleep(2 * HOUR).await;
    assert!(task.is_finished());
}
