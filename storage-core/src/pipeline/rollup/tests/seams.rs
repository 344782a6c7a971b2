//! Between the steps of a write, a refresh, a prune and a read, each held up where it hurts. The clock
//! stands still but where all wait.

use super::*;
use crate::error::Outcome;
use crate::layers::{Fault, FaultPlan, Faulty, Operation};
use tokio::time::sleep;

type Shared = Arc<Faulty<InMemory>>;

const LATE: Point = (0, 5500, 9.0);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Stores whose calls can be held up.
struct Shaky {
    raw: Shared,
    tiers: [Shared; 3],
    control: Shared,
}

impl Shaky {
    fn new() -> Self {
        let store = || Arc::new(Faulty::new(InMemory::new(), FaultPlan::new(1)));
        Self { raw: store(), tiers: [store(), store(), store()], control: store() }
    }

    async fn open(&self) -> Arc<Rolled> {
        let options = RollupOptions::default()
            .with_delay(seconds(3))
            .with_settle(seconds(1))
            .with_clock(|| from_ms(10 * MINUTE_MS));
        let tier = |(width, store): (&u64, &Shared)| {
            RollupTier::new(seconds(*width), Shared::clone(store) as Arc<dyn StorageBackend>)
        };
        let tiers = WIDTHS_S.iter().zip(&self.tiers).map(tier).collect();
        let (raw, control) = (Shared::clone(&self.raw), Shared::clone(&self.control));
        Arc::new(Rolled::open_with(raw, tiers, control, options).await.unwrap())
    }

    /// With ten minutes of samples.
    async fn filled() -> (Self, Arc<Rolled>, Oracle) {
        let (stores, mut oracle) = (Self::new(), Oracle::default());
        let store = stores.open().await;
        store.write_batch(&batch(&points(10 * MINUTE_MS))).await.unwrap();
        oracle.write(&points(10 * MINUTE_MS));
        (stores, store, oracle)
    }

    async fn phase(&self) -> String {
        let view = self.control.inner().query_range("rollups", "view", TimeRange::all()).await;
        let view = view.unwrap().remove(0).metadata.unwrap();
        view["phase"].as_str().unwrap().to_owned()
    }
}

fn hold_up(store: &Shared, operation: Operation, passing: usize, time: Duration) {
    for _ in 0..passing {
        store.control().inject(operation, Fault::SlowBefore(Duration::ZERO));
    }
    store.control().inject(operation, Fault::SlowBefore(time));
}

type Task<T> = tokio::task::JoinHandle<Result<T>>;

fn write(store: &Arc<Rolled>, point: Point) -> Task<()> {
    let store = Arc::clone(store);
    tokio::spawn(async move { store.write_batch(&batch(&[point])).await })
}

fn prune(store: &Arc<Rolled>, cutoff_ms: i64) -> Task<u64> {
    let store = Arc::clone(store);
    tokio::spawn(async move { store.prune_before(from_ms(cutoff_ms)).await })
}

async fn let_others_run() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// It has read the marks, and rolls up, when another late sample comes.
#[tokio::test(start_paused = true)]
async fn a_mark_made_beside_a_refresh_is_not_done_with() {
    let (stores, store, mut oracle) = Shaky::filled().await;
    store.refresh().await.unwrap();
    let other = stores.open().await;
    write(&other, LATE).await.unwrap().unwrap();
    hold_up(&stores.tiers[0], Operation::WriteBatch, 0, seconds(10));
    let refreshing = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.refresh().await }
    });
    sleep(seconds(5)).await;
    let later = (0, 61_500, 7.0);
    write(&other, later).await.unwrap().unwrap();
    assert!(!refreshing.is_finished());
    refreshing.await.unwrap().unwrap();
    oracle.write(&[LATE, later]);
    check_all(&store, &oracle).await;
    assert_eq!(store.refresh().await.unwrap().rollups_written, 3);
    check_all(&store, &oracle).await;
}

/// It was not late when it began, and is when it lands.
#[tokio::test(start_paused = true)]
async fn a_write_beside_a_refresh_is_marked_again() {
    let (stores, store, mut oracle) = Shaky::filled().await;
    hold_up(&stores.raw, Operation::WriteBatch, 0, seconds(10));
    let writing = write(&stores.open().await, LATE);
    let_others_run().await;
    store.refresh().await.unwrap();
    assert!(!writing.is_finished());
    writing.await.unwrap().unwrap();
    oracle.write(&[LATE]);
    check_all(&store, &oracle).await;
    store.refresh().await.unwrap();
    check_all(&store, &oracle).await;
}

#[tokio::test(start_paused = true)]
async fn a_mark_that_failed_is_made_by_the_next_write() {
    let (stores, store, mut oracle) = Shaky::filled().await;
    store.refresh().await.unwrap();
    stores.control.control().inject(Operation::WriteBatch, Fault::Refused);
    let error = write(&store, LATE).await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
    check_all(&store, &oracle).await;
    write(&store, LATE).await.unwrap().unwrap();
    oracle.write(&[LATE]);
    check_all(&store, &oracle).await;
}

/// However long ago they were made.
#[tokio::test(start_paused = true)]
async fn old_marks_stay_until_they_are_done_with() {
    let (stores, store, _) = Shaky::filled().await;
    let ranges = serde_json::json!({"epoch": 99, "ranges": [[60_000, 62_000]]});
    let mark = MetricRecord::new("rollups", from_ms(5), "mark-old", 99.0);
    stores.control.write_batch(&[mark.with_metadata(ranges)]).await.unwrap();
    store.refresh().await.unwrap();
    let left = marks::read(&*stores.control, 0).await.unwrap().ranges;
    assert_eq!(left.iter().collect::<Vec<_>>(), [(60_000, 62_000)]);
}

/// The rollups that will count are being made when it comes: they would miss it.
#[tokio::test(start_paused = true)]
async fn a_write_waits_for_a_prune_of_its_time() {
    let (stores, store, mut oracle) = Shaky::filled().await;
    hold_up(&stores.tiers[0], Operation::WriteBatch, 0, seconds(10));
    let pruning = prune(&store, MINUTE_MS);
    sleep(seconds(5)).await;
    assert_eq!(stores.phase().await, "closing");
    let other = stores.open().await;
    let writing = write(&other, LATE);
    let_others_run().await;
    assert!(!writing.is_finished());
    assert_eq!(other.stats().await.unwrap().total_metrics, 1200);
    // What is not pruned goes in meanwhile.
    let later = (0, 61_500, 7.0);
    write(&other, later).await.unwrap().unwrap();
    oracle.write(&[later]);
    check_all(&other, &oracle).await;
    assert_eq!(pruning.await.unwrap().unwrap(), oracle.prune(MINUTE_MS));
    writing.await.unwrap().unwrap();
    oracle.write(&[LATE]);
    check_all(&store, &oracle).await;
}

/// It lands when the rollups that count are made, and before the samples go.
#[tokio::test(start_paused = true)]
async fn a_slow_write_that_a_prune_overtook_is_written_again() {
    let (stores, store, mut oracle) = Shaky::filled().await;
    hold_up(&stores.raw, Operation::WriteBatch, 0, seconds(10));
    hold_up(&stores.raw, Operation::PruneBefore, 0, seconds(20));
    let writing = write(&stores.open().await, LATE);
    let_others_run().await;
    let pruning = prune(&store, MINUTE_MS);
    sleep(seconds(15)).await;
    assert!(!writing.is_finished() && !pruning.is_finished());
    assert_eq!(stores.raw.inner().stats().await.unwrap().total_metrics, 1201);
    pruning.await.unwrap().unwrap();
    writing.await.unwrap().unwrap();
    oracle.prune(MINUTE_MS);
    oracle.write(&[LATE]);
    check_all(&store, &oracle).await;
}

/// One tier is put together, the next is not: neither counts before all are.
#[tokio::test(start_paused = true)]
async fn reads_wait_while_rollups_are_folded() {
    let (stores, store, mut oracle) = Shaky::filled().await;
    store.refresh().await.unwrap();
    store.prune_before(from_ms(MINUTE_MS)).await.unwrap();
    oracle.prune(MINUTE_MS);
    // After what is rolled up once more, and what is announced.
    hold_up(&stores.tiers[1], Operation::WriteBatch, 2, seconds(10));
    let pruning = prune(&store, MINUTE_MS + 30_500);
    sleep(seconds(5)).await;
    assert_eq!(stores.phase().await, "folding");
    check_all(&*stores.open().await, &oracle).await;
    pruning.await.unwrap().unwrap();
    oracle.prune(MINUTE_MS + 30_500);
    check_all(&store, &oracle).await;
}

/// Whether it was rolled up before, or is looked at by a refresh afterwards.
#[tokio::test(start_paused = true)]
async fn a_window_that_a_prune_divides_counts_once() {
    for is_rolled_up in [true, false] {
        let (_stores, store, mut oracle) = Shaky::filled().await;
        if is_rolled_up {
            store.refresh().await.unwrap();
        }
        for cutoff_ms in [61_000, 75_500, 3 * MINUTE_MS + 1] {
            assert_eq!(
                store.prune_before(from_ms(cutoff_ms)).await.unwrap(),
                oracle.prune(cutoff_ms)
            );
            check_all(&store, &oracle).await;
            store.refresh().await.unwrap();
            check_all(&store, &oracle).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_a_prune_met_is_asked_again() {
    let (stores, store, mut oracle) = Shaky::filled().await;
    hold_up(&stores.raw, Operation::Windows, 0, seconds(10));
    let reader = stores.open().await;
    let before = oracle.clone();
    let reading = tokio::spawn(async move { check_all(&reader, &before).await });
    let_others_run().await;
    store.prune_before(from_ms(2 * MINUTE_MS)).await.unwrap();
    assert!(!reading.is_finished());
    oracle.prune(2 * MINUTE_MS);
    reading.await.unwrap();
    check_all(&store, &oracle).await;
}
