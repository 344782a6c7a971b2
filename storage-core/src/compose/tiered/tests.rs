//! Tiers in memory: what lies where, late samples over archived ones, archiving that breaks off at
//! every step, and beside readers and writers.

mod seams;

use futures_util::TryStreamExt;
use tokio::time::timeout;

use super::*;
use crate::InMemory;
use crate::layers::{Fault, FaultPlan, Faulty, Operation};
use crate::pipeline::{ArchiveOptions, ArchiveProgress, ArchiveStep, archive, compare};

const DAY_MS: i64 = 86_400_000;
const DAYS: i64 = 6;

type Shared = Arc<Faulty<InMemory>>;

/// Three stores in memory, and how to open handles on them.
struct Place {
    hot: Shared,
    cold: Shared,
    control: Shared,
}

impl Place {
    fn new() -> Self {
        let store = || Arc::new(Faulty::new(InMemory::new(), FaultPlan::new(1)));
        Self { hot: store(), cold: store(), control: store() }
    }

    async fn open(&self) -> Tiered {
        let options = TieredOptions::default().with_lease(Duration::from_millis(200));
        self.open_with(options.with_settle(Duration::ZERO)).await
    }

    async fn open_with(&self, options: TieredOptions) -> Tiered {
        let options = options.with_wait_max(Duration::from_secs(10));
        let [hot, cold, control] = [&self.hot, &self.cold, &self.control].map(Shared::clone);
        Tiered::open_with(hot, cold, control, options).await.unwrap()
    }
}

fn record(series: i64, ms: i64, value: f64) -> MetricRecord {
    MetricRecord::new(format!("web-{series}"), from_ms(ms), "cpu", value)
}

/// A sample every two hours for each of three series.
fn records() -> Vec<MetricRecord> {
    let steps = 0..DAYS * 12;
    steps.flat_map(|n| (0..3).map(move |s| record(s, n * DAY_MS / 12, n as f64))).collect()
}

fn before(day: i64) -> ArchiveOptions {
    ArchiveOptions::before(from_ms(day * DAY_MS))
}

async fn counts(place: &Place) -> (u64, u64) {
    let (hot, cold) = (place.hot.inner().stats().await, place.cold.inner().stats().await);
    (hot.unwrap().total_metrics, cold.unwrap().total_metrics)
}

/// Checks every read of `store` against the same on a plain store.
async fn assert_same(store: &Tiered, plain: &InMemory) {
    let (any, all) = (SeriesFilter::any(), TimeRange::all());
    assert!(compare(plain, store, &any, all).await.unwrap().is_same());
    assert_eq!(store.series(&any).await.unwrap(), plain.series(&any).await.unwrap());
    let (found, expected) = (store.stats().await.unwrap(), plain.stats().await.unwrap());
    assert_eq!((found.total_metrics, found.series), (expected.total_metrics, expected.series));
    assert_eq!(found.oldest_metric, expected.oldest_metric);
    assert_eq!(found.newest_metric, expected.newest_metric);
    for n in [0, 1, 40, 1000] {
        assert_eq!(store.latest(&any, n).await.unwrap(), plain.latest(&any, n).await.unwrap());
    }
    for (start, end) in [(0, DAYS * 12), (3, 5), (13, 37), (30, 31), (-9, 200)] {
        let at = |step: i64| from_ms(step * DAY_MS / 12 - 1);
        let range = TimeRange::new(at(start), at(end)).unwrap();
        let (found, expected) = (
            store.query_range("web-1", "cpu", range).await,
            plain.query_range("web-1", "cpu", range).await,
        );
        assert_eq!(found.unwrap(), expected.unwrap());
        let (found, expected) = (
            store.aggregate("web-1", "cpu", range).await,
            plain.aggregate("web-1", "cpu", range).await,
        );
        assert_eq!(found.unwrap(), expected.unwrap());
        for hours in [1, 7, 24, 100] {
            let width = Duration::from_secs(hours * 3600);
            let (found, expected) =
                (store.windows(&any, range, width).await, plain.windows(&any, range, width).await);
            assert_eq!(found.unwrap(), expected.unwrap(), "{hours} h");
        }
    }
}

async fn both_filled() -> (Place, Tiered, InMemory) {
    let (place, plain) = (Place::new(), InMemory::new());
    let store = place.open().await;
    store.write_batch(&records()).await.unwrap();
    plain.write_batch(&records()).await.unwrap();
    (place, store, plain)
}

async fn write_both(store: &Tiered, plain: &InMemory, batch: &[MetricRecord]) {
    store.write_batch(batch).await.unwrap();
    plain.write_batch(batch).await.unwrap();
}

#[tokio::test]
async fn whole_windows_move_and_no_answer_changes() {
    let (place, store, plain) = both_filled().await;
    let other = place.open().await;
    assert_eq!(counts(&place).await, (216, 0));
    let dry = archive(&store, &before(2).with_dry_run(true), |_| {}).await.unwrap();
    assert_eq!((dry.windows, dry.samples), (2, 72));
    assert_eq!(counts(&place).await, (216, 0));

    let mut steps = Vec::new();
    // Half a day more: only whole days go.
    let options = ArchiveOptions::before(from_ms(2 * DAY_MS + DAY_MS / 2));
    let report = archive(&store, &options, |at| steps.push(at.step)).await.unwrap();
    assert_eq!((report.windows, report.samples, report.samples_pruned), (2, 72, 72));
    assert!(steps.starts_with(&[ArchiveStep::Copying, ArchiveStep::Copied, ArchiveStep::Verified]));
    assert_eq!(counts(&place).await, (144, 72));
    for handle in [&store, &other, &place.open().await] {
        assert_same(handle, &plain).await;
    }
    let again = archive(&other, &before(2), |_| {}).await.unwrap();
    assert_eq!(again.windows, 0);
}

#[tokio::test]
async fn late_samples_lie_over_archived_ones_and_end_in_the_cold_tier() {
    let (place, store, plain) = both_filled().await;
    archive(&store, &before(4), |_| {}).await.unwrap();
    let late = [
        record(1, 0, -1.0),
        record(1, DAY_MS / 12 * 4, -2.0),
        record(1, DAY_MS / 12 * 4 + 1, -3.0),
        record(2, 5, -4.0),
        record(7, 3 * DAY_MS, -5.0).with_metadata(serde_json::json!({"late": true})),
        record(0, 4 * DAY_MS, -6.0),
    ];
    write_both(&store, &plain, &late).await;
    assert_eq!(counts(&place).await, (72 + 5, 144));
    assert_same(&store, &plain).await;
    let report = archive(&store, &before(4), |_| {}).await.unwrap();
    assert_eq!((report.windows, report.samples), (2, 5));
    assert_eq!(counts(&place).await, (72, 144 + 3));
    assert_same(&store, &plain).await;
}

#[tokio::test]
async fn a_prune_counts_what_both_tiers_hold_once() {
    let (place, store, plain) = both_filled().await;
    archive(&store, &before(3), |_| {}).await.unwrap();
    let late = [record(1, 0, -1.0), record(1, 1, -1.0), record(2, DAY_MS, -1.0)];
    write_both(&store, &plain, &late).await;
    for cutoff_ms in [DAY_MS / 2 + 1, DAY_MS + 1, 4 * DAY_MS, 9 * DAY_MS] {
        let cutoff = from_ms(cutoff_ms);
        let expected = plain.prune_before(cutoff).await.unwrap();
        assert_eq!(store.prune_before(cutoff).await.unwrap(), expected);
        assert_same(&store, &plain).await;
    }
    assert_eq!(counts(&place).await, (0, 0));
}

#[tokio::test]
async fn sums_that_do_not_fit_are_formed_from_the_samples() {
    let (_place, store, plain) = both_filled().await;
    let huge =
        [record(1, 5, f64::MAX), record(1, 6, f64::MAX), record(1, 4 * DAY_MS + 5, -f64::MAX)];
    write_both(&store, &plain, &huge).await;
    archive(&store, &before(2), |_| {}).await.unwrap();
    assert_same(&store, &plain).await;
}

/// Lets the call of `operation` after `passing` others meet `fault`.
fn inject(store: &Shared, operation: Operation, passing: usize, fault: Fault) {
    for _ in 0..passing {
        store.control().inject(operation, Fault::SlowBefore(Duration::ZERO));
    }
    store.control().inject(operation, fault);
}

/// Runs `work` on a runtime of its own, and kills whatever is left of it when a call on `store`
/// hangs; whether one did.
fn killed(store: &Shared, work: impl Future<Output = ()> + Send + 'static) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let hangs = runtime.block_on(async {
        let mut work = std::pin::pin!(work);
        loop {
            if timeout(Duration::from_millis(5), &mut work).await.is_ok() {
                return false;
            }
            if store.control().counts().hangs > 0 {
                return true;
            }
        }
    });
    runtime.shutdown_background();
    hangs
}

fn wait_for<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(Duration::from_secs(30), work).await }).unwrap()
}

/// Archives until it is done; a turn may run out where the machine is busy.
async fn archive_at_last(store: &Tiered, options: &ArchiveOptions) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = archive(store, options, |_| {}).await {
        assert_eq!(error.kind(), ErrorKind::Busy, "{error:#}");
        assert!(Instant::now() < deadline);
    }
}

/// Kills an archiving at every call of `operation` on the chosen store, before and after it was done, and
/// checks after each what is left.
fn kill_everywhere(of: fn(&Place) -> &Shared, operation: Operation) -> usize {
    let mut kills = 0;
    for fault in [Fault::HangBefore, Fault::HangAfter] {
        for passing in 0.. {
            let (place, store, plain) = wait_for(both_filled());
            inject(of(&place), operation, passing, fault);
            let archiving = async move {
                // A turn that runs out because the machine is busy ends like a kill.
                let _ = archive(&store, &before(3), |_| {}).await;
            };
            if !killed(of(&place), archiving) {
                break;
            }
            kills += 1;
            of(&place).control().off();
            wait_for(async {
                let next = place.open().await;
                assert_same(&next, &plain).await;
                // A late write waits for the dead, and sees to what they left.
                write_both(&next, &plain, &[record(1, DAY_MS, -1.0), record(1, 5, -2.0)]).await;
                assert_same(&next, &plain).await;
                archive_at_last(&next, &before(3)).await;
                assert_same(&next, &plain).await;
                assert_eq!(counts(&place).await.0, 108, "what is not archived stays hot");
            });
        }
    }
    kills
}

#[test]
fn an_archiver_killed_at_every_change_of_the_view_neither_loses_nor_doubles() {
    let kills = kill_everywhere(|place| &place.control, Operation::WriteBatch);
    assert!(kills >= 2 * 13, "{kills} kills");
}

#[test]
fn an_archiver_killed_at_every_write_and_removal_neither_loses_nor_doubles() {
    assert_eq!(kill_everywhere(|place| &place.cold, Operation::WriteBatch), 2 * 3);
    assert_eq!(kill_everywhere(|place| &place.hot, Operation::PruneBefore), 2 * 3);
}

#[test]
fn a_killed_prune_is_finished_by_whoever_comes_next() {
    for fault in [Fault::HangBefore, Fault::HangAfter] {
        let tiers: [fn(&Place) -> Shared; 2] =
            [|place| Shared::clone(&place.cold), |place| Shared::clone(&place.hot)];
        for of in tiers {
            let (place, store, plain) = wait_for(both_filled());
            wait_for(archive_at_last(&store, &before(3)));
            wait_for(write_both(&store, &plain, &[record(1, 5, -2.0)]));
            inject(&of(&place), Operation::PruneBefore, 0, fault);
            assert!(killed(&of(&place), async move {
                store.prune_before(from_ms(4 * DAY_MS)).await.unwrap();
            }));
            of(&place).control().off();
            wait_for(async {
                plain.prune_before(from_ms(4 * DAY_MS)).await.unwrap();
                let next = place.open().await;
                // Counting waits until it is finished; other reads need not.
                let all = next.query_range("web-1", "cpu", TimeRange::all()).await.unwrap();
                assert_eq!(all.len(), 24);
                assert_same(&next, &plain).await;
                assert_eq!(counts(&place).await, (72, 0));
            });
        }
    }
}

/// The write reaches the hot tier when the window is closed and compared already: it is removed there
/// with the rest, and must not be acknowledged before it is written again.
#[tokio::test]
async fn a_late_write_that_a_move_takes_away_is_written_again() {
    let (place, _, plain) = both_filled().await;
    // It takes the view that it knows for new enough, however old that is.
    let trusting = TieredOptions::default().with_settle(Duration::from_secs(1_000_000));
    let (store, archiver) = (Arc::new(place.open_with(trusting).await), place.open().await);
    let late = [record(1, 5, -1.0), record(1, 5 * DAY_MS, -1.0)];
    plain.write_batch(&late).await.unwrap();
    let mut moving = archiver.begin_move().await.unwrap();
    moving.copy(3 * DAY_MS, &crate::pipeline::CopyOptions::default(), |_| {}).await.unwrap();
    assert_eq!(moving.close().await.unwrap(), 108);
    let writing = {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.write_batch(&late).await })
    };
    while counts(&place).await.0 < 217 {
        assert!(!writing.is_finished());
        tokio::task::yield_now().await;
    }
    moving.publish().await.unwrap();
    assert!(!writing.is_finished());
    assert_eq!(moving.prune_hot().await.unwrap(), 109);
    writing.await.unwrap().unwrap();
    moving.end().await.unwrap();
    assert_same(&store, &plain).await;
}

/// Batches of late and new samples beside an archiver that moves the late ones: no reader sees a
/// part of one, none is lost, and the last one wins.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn late_batches_beside_an_archiver_are_seen_whole() {
    let place = Place::new();
    // Longer than a thread is kept from running on a busy machine.
    let options = TieredOptions::default().with_settle(Duration::from_millis(400));
    let store = Arc::new(place.open_with(options.clone()).await);
    let batch = |round: i64| -> Vec<_> {
        (0..8).map(|n| record(1, n * DAY_MS / 2, round as f64)).collect()
    };
    store.write_batch(&batch(0)).await.unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let archiver = {
        let (store, over) = (place.open_with(options).await, Arc::clone(&over));
        tokio::spawn(async move {
            let mut moved = 0;
            while !over.load(Ordering::Relaxed) {
                let count =
                    |at: &ArchiveProgress| moved += u64::from(at.step == ArchiveStep::Pruned);
                archive(&store, &before(3), count).await.unwrap();
                tokio::task::yield_now().await;
            }
            moved
        })
    };
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (store, over) = (Arc::clone(&store), Arc::clone(&over));
            tokio::spawn(async move {
                let mut last = 0.0;
                while !over.load(Ordering::Relaxed) {
                    let found = store.query_range("web-1", "cpu", TimeRange::all()).await.unwrap();
                    let values: Vec<_> = found.iter().map(|one| one.value).collect();
                    assert_eq!(values, [values[0]; 8], "a part of a batch");
                    assert!(values[0] >= last, "{} after {last}", values[0]);
                    last = values[0];
                    let all = store.aggregate("web-1", "cpu", TimeRange::all()).await.unwrap();
                    assert_eq!((all.count, all.min), (8, all.max));
                    let width = Duration::from_secs(3 * 86_400);
                    let found = store.windows(&SeriesFilter::any(), TimeRange::all(), width).await;
                    let counts: Vec<_> =
                        found.unwrap()[0].windows.iter().map(|one| one.aggregation.count).collect();
                    assert_eq!(counts, [6, 2]);
                    assert_eq!(store.stats().await.unwrap().total_metrics, 8);
                    let scanned: Vec<_> = store
                        .scan(&SeriesFilter::any(), TimeRange::all())
                        .try_collect()
                        .await
                        .unwrap();
                    assert_eq!(scanned.iter().map(|one| one.samples.len()).sum::<usize>(), 8);
                    // Nothing in memory ever waits: without this the timers might never be served.
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let deadline = Instant::now() + Duration::from_secs(4);
    let mut round = 0;
    while Instant::now() < deadline {
        round += 1;
        store.write_batch(&batch(round)).await.unwrap();
        let found = store.latest(&SeriesFilter::any(), 8).await.unwrap();
        assert!(found[0].samples.iter().all(|one| one.value == round as f64), "{found:?}");
    }
    over.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    assert!(archiver.await.unwrap() > 3, "too little was archived beside the writes");
    let found = store.query_range("web-1", "cpu", TimeRange::all()).await.unwrap();
    assert_eq!(found, batch(round));
    assert_eq!(place.hot.inner().series(&SeriesFilter::any()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_store_without_a_list_of_series_is_refused() {
    struct Five(InMemory);
    #[async_trait]
    impl StorageBackend for Five {
        async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
            self.0.write_batch(records).await
        }
        async fn query_range(&self, s: &str, m: &str, r: TimeRange) -> Result<Vec<MetricRecord>> {
            self.0.query_range(s, m, r).await
        }
        async fn aggregate(&self, s: &str, m: &str, r: TimeRange) -> Result<MetricAggregation> {
            self.0.aggregate(s, m, r).await
        }
        async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
            self.0.prune_before(cutoff).await
        }
        async fn stats(&self) -> Result<StorageStats> {
            self.0.stats().await
        }
    }
    let store = || Arc::new(InMemory::new());
    let error = Tiered::open(store(), Arc::new(Five(InMemory::new())), store()).await.unwrap_err();
    assert_eq!((error.kind(), error.context("tier")), (ErrorKind::Config, Some("cold")));
}

#[tokio::test]
async fn health_says_which_tier_does_not_work() {
    let place = Place::new();
    let store = place.open().await;
    for (of, status, tier) in
        [(&place.hot, HealthStatus::Down, "hot"), (&place.cold, HealthStatus::Degraded, "cold")]
    {
        of.control().inject(Operation::Health, Fault::Refused);
        let health = store.health().await;
        assert!(health.status == status && health.message.contains(tier), "{health:?}");
        assert_eq!(store.health().await.status, HealthStatus::Healthy);
    }
    place.control.control().inject(Operation::QueryRange, Fault::Refused);
    assert_eq!(store.health().await.status, HealthStatus::Down);
}
