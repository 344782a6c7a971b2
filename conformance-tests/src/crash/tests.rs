//! The verification accepts what may be left by a crash, and nothing else.

use storage_core::{InMemory, StorageBackend, TimeRange};

use super::*;

const LANE: Lane = Lane(0);

async fn written(last: u64) -> InMemory {
    let store = InMemory::new();
    write_forever(&store, LANE, 1, |number| number < last).await.unwrap();
    store
}

async fn verified(store: &InMemory, acked: u64) -> Result<Vec<Verified>, Failure> {
    verify(store, 1, &[(LANE, acked..=acked + 1)]).await
}

#[tokio::test]
async fn whole_batches_are_accepted() {
    let store = written(700).await;
    assert_eq!(verified(&store, 700).await.unwrap(), [Verified { last: 700, samples: 14_000 }]);
    assert!(verified(&store, 699).await.is_ok(), "the batch under way may be there");
    assert!(verified(&InMemory::new(), 0).await.is_ok());
    assert!(verify_whole(&store, 1, &[LANE]).await.is_ok());
}

#[tokio::test]
async fn a_lost_batch_and_one_too_many_are_found() {
    let store = written(50).await;
    assert!(verified(&store, 51).await.unwrap_err().message().contains("acknowledged"));
    assert!(verified(&store, 48).await.is_err());
}

#[tokio::test]
async fn a_part_of_a_batch_is_found() {
    let whole = written(51).await;
    let part = whole.query_range("lane-0", "metric_07", TimeRange::all()).await.unwrap();
    let store = written(50).await;
    store.write_batch(&part[50..]).await.unwrap();
    assert!(verified(&store, 50).await.is_err());
}

#[tokio::test]
async fn a_replacement_that_is_missing_is_found() {
    let store = written(50).await;
    let records = store.query_range("lane-0", "metric_00", TimeRange::all()).await.unwrap();
    let mut replaced = records.into_iter().find(|record| record.metadata.is_some()).unwrap();
    replaced.metadata = None;
    store.write_batch(&[replaced]).await.unwrap();
    assert!(verified(&store, 50).await.is_err());
}

#[tokio::test]
async fn pruned_batches_stay_away() {
    let store = written(1200).await;
    // This also removes what the next prune of the writer would have.
    verified(&store, 1200).await.unwrap();
    assert_eq!(prune_to(&store, 601).await.unwrap(), 600 * SERIES);
    let found = verify(&store, 601, &[(LANE, 1200..=1201)]).await.unwrap();
    assert_eq!(found, [Verified { last: 1200, samples: 600 * SERIES }]);
    assert!(verify(&store, 1, &[(LANE, 1200..=1201)]).await.is_err());
}
