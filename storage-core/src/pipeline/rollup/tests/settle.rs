//! Handles that wait differently long for writes: a write that is overtaken by a prune counts once.

use tokio::time::sleep;

use super::*;
use crate::layers::{Fault, FaultPlan, Faulty, Operation};

const LATE: Point = (0, 5, 1000.0);
const FAR: Duration = Duration::from_secs(1_000_000);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A handle whose calls to the samples can be slowed down.
async fn open(place: &Place, settle: Duration) -> (Arc<Rolled>, Arc<Faulty<Arc<InMemory>>>) {
    let raw = Arc::new(Faulty::new(Arc::clone(&place.raw), FaultPlan::new(1)));
    let tiers = WIDTHS_S.iter().zip(&place.tiers).map(|(width, store)| {
        let store: Arc<dyn StorageBackend> = Arc::<InMemory>::clone(store);
        RollupTier::new(seconds(*width), store)
    });
    // The lease is longer than anything here takes.
    let options = place.options().with_settle(settle).with_lease(seconds(600));
    let (samples, control) = (Arc::<Faulty<_>>::clone(&raw), Arc::clone(&place.control));
    let store = Rolled::open_with(samples, tiers.collect(), control, options).await.unwrap();
    (Arc::new(store), raw)
}

/// Writes `LATE` by a handle that waits `writer` for others, and which takes a second; meanwhile prunes
/// by one that waits `pruner`, and takes `removing` to remove. Both end; what is answered is exact.
async fn overtaken(writer: Duration, pruner: Duration, removing: Duration) {
    let place = Place::new(10 * MINUTE_MS);
    let ((writer, slow), (pruner, remover)) =
        (open(&place, writer).await, open(&place, pruner).await);
    let mut oracle = Oracle::default();
    writer.write_batch(&batch(&points(10 * MINUTE_MS))).await.unwrap();
    oracle.write(&points(10 * MINUTE_MS));
    slow.control().inject(Operation::WriteBatch, Fault::SlowBefore(seconds(1)));
    remover.control().inject(Operation::PruneBefore, Fault::SlowBefore(removing));
    let writing = tokio::spawn(async move { writer.write_batch(&batch(&[LATE])).await });
    // It knows of no prune, and its write is on its way.
    tokio::task::yield_now().await;
    assert_eq!(slow.control().counts().slow, 1);
    let pruned = pruner.prune_before(from_ms(2 * MINUTE_MS)).await;
    writing.await.unwrap().unwrap();
    oracle.prune(2 * MINUTE_MS);
    oracle.write(&[LATE]);
    check_all(&pruner, &oracle).await;
    pruned.unwrap();
}

/// It takes its own time for that of all, and is pruned without being in any rollup.
#[tokio::test(start_paused = true)]
async fn a_writer_that_trusts_others_more_than_they_wait_loses_nothing() {
    overtaken(FAR, Duration::ZERO, seconds(2)).await;
}

/// It takes nobody to have waited for it, and writes again what is in the rollups.
#[tokio::test(start_paused = true)]
async fn a_writer_that_trusts_nobody_doubles_nothing() {
    overtaken(Duration::ZERO, seconds(10), Duration::ZERO).await;
}

/// It knows of nothing for an hour, which it takes for new. What it then writes while a prune waits is
/// in the rollups, or comes after them; not both.
#[tokio::test(start_paused = true)]
async fn a_writer_that_has_not_looked_for_long_doubles_nothing() {
    let place = Place::new(10 * MINUTE_MS);
    let ((writer, _), (pruner, _)) =
        (open(&place, FAR).await, open(&place, Duration::from_millis(200)).await);
    let mut oracle = Oracle::default();
    writer.write_batch(&batch(&points(10 * MINUTE_MS))).await.unwrap();
    oracle.write(&points(10 * MINUTE_MS));
    sleep(seconds(3600)).await;
    let pruning = {
        let pruner = Arc::clone(&pruner);
        tokio::spawn(async move { pruner.prune_before(from_ms(MINUTE_MS)).await })
    };
    while pruner.look().await.unwrap().phase == view::Phase::Idle {
        tokio::task::yield_now().await;
    }
    writer.write_batch(&batch(&[LATE])).await.unwrap();
    pruning.await.unwrap().unwrap();
    oracle.prune(MINUTE_MS);
    oracle.write(&[LATE]);
    check_all(&pruner, &oracle).await;
}
