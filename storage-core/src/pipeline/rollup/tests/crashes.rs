//! Processes that die at every change they make: what they leave gives exact answers at once, and the
//! next one finishes it.

use super::*;

const CUTOFFS_MS: [i64; 3] = [130_000, 95_000, 250_500];

/// Rolled up, pruned, written to late before and after the cutoffs.
async fn filled() -> (Place, Oracle) {
    let place = Place::new(5 * MINUTE_MS);
    let (store, mut oracle) = (place.open().await, Oracle::default());
    let every = |step: i64, plus: i64| -> Vec<Point> {
        (0..5 * MINUTE_MS).step_by(step as usize).map(|ms| (0, ms + plus, 1.0)).collect()
    };
    let mut write = async |points: &[Point]| {
        store.write_batch(&batch(points)).await.unwrap();
        oracle.write(points);
    };
    write(&points(5 * MINUTE_MS)).await;
    store.refresh().await.unwrap();
    write(&every(40_000, 3)).await;
    store.prune_before(from_ms(100_500)).await.unwrap();
    oracle.prune(100_500);
    let late = every(30_000, 5);
    store.write_batch(&batch(&late)).await.unwrap();
    oracle.write(&late);
    (place, oracle)
}

/// Lets a process die after each number of changes, while it does `work`; then looks at what it left.
async fn at_every_change(work: impl AsyncFn(&Rolled, &mut Oracle) -> Result<()>) -> i64 {
    for changes in 0..1000 {
        for makes_last in [false, true] {
            let (place, mut oracle) = filled().await;
            let life = Life::of(changes, makes_last);
            let store = place.open_with(&life, place.options()).await;
            let died = work(&store, &mut oracle).await.is_err();
            assert_eq!(died, life.is_dead());
            place.let_leases_run_out().await;
            let next = place.open().await;
            // What was stored and not acknowledged counts where it is stored.
            let stored = next.query_range("web-9", "cpu", TimeRange::all()).await.unwrap();
            let stored = stored.iter().map(|one| (9, floor_ms(one.timestamp), one.value));
            oracle.write(&stored.collect::<Vec<_>>());
            check_all(&next, &oracle).await;
            next.refresh().await.unwrap();
            check_all(&next, &oracle).await;
            for cutoff_ms in CUTOFFS_MS {
                next.prune_before(from_ms(cutoff_ms)).await.unwrap();
                oracle.prune(cutoff_ms);
                check_all(&next, &oracle).await;
            }
            let there = next.stats().await.unwrap().total_metrics;
            assert_eq!(there, oracle.there.len() as u64);
            if !died {
                return changes;
            }
        }
    }
    panic!("it never comes to an end");
}

#[tokio::test]
async fn a_prune_that_dies_at_any_change_loses_and_doubles_nothing() {
    let changes = at_every_change(async |store, oracle| {
        let before = oracle.clone();
        oracle.prune(170_250);
        let pruned = store.prune_before(from_ms(170_250)).await;
        if pruned.is_err() {
            // Whichever are gone: all of them are answered.
            *oracle = before;
        }
        pruned.map(drop)
    })
    .await;
    assert!(changes > 20, "{changes}");
}

#[tokio::test]
async fn a_refresh_that_dies_at_any_change_loses_and_doubles_nothing() {
    let changes = at_every_change(async |store, _| store.refresh().await.map(drop)).await;
    assert!(changes > 5, "{changes}");
}

/// All of the batch or nothing, in the store and in what is answered.
#[tokio::test]
async fn a_writer_that_dies_at_any_change_leaves_no_batch_half_rolled_up() {
    let times = [5, 99_000, 101_000, 141_000, 150_000, 299_000];
    let late: Vec<_> = times.map(|ms| (9, ms, 1.0)).to_vec();
    let changes = at_every_change(async |store, oracle| {
        store.write_batch(&batch(&late)).await?;
        oracle.write(&late);
        Ok(())
    })
    .await;
    assert_eq!(changes, 2, "a mark and the batch");
}
