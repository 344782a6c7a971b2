//! Writers, readers, refreshes and prunes at the same time, from several handles.

use super::*;

const WRITERS: usize = 3;
const BATCHES: i64 = 60;

fn patient(place: &Place) -> RollupOptions {
    place.options().with_settle(Duration::from_millis(100))
}

/// Each writes one second after the other, and something late with each.
async fn write(store: Rolled, series: usize) -> Vec<Point> {
    let mut written = Vec::new();
    for no in 0..BATCHES {
        let new = (series, no * 5000, 1.0);
        // A time that nobody has used, up to all of the time before.
        let late = (series, (no * 7 % (no + 1)) * 5000 + 1 + no, 1.0);
        store.write_batch(&batch(&[new, late])).await.unwrap();
        written.extend([new, late]);
        // What was acknowledged is answered.
        let filter = SeriesFilter::exact(&format!("web-{series}"), "cpu").unwrap();
        let day = Duration::from_secs(86_400);
        let found = store.rolled_windows(&filter, TimeRange::all(), day).await.unwrap();
        let count: u64 = found.series[0].windows.iter().map(|one| one.aggregation.count).sum();
        assert_eq!(count, written.len() as u64, "{:?}", found.stretches);
        tokio::task::yield_now().await;
    }
    written
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missed_and_nothing_counts_twice() {
    let place = Place::new(BATCHES * 5000);
    let mut writers = Vec::new();
    for series in 0..WRITERS {
        let store = place.open_with(&Life::immortal(), patient(&place)).await;
        writers.push(tokio::spawn(write(store, series)));
    }
    let store = place.open_with(&Life::immortal(), patient(&place)).await;
    let mut cutoff_ms = 0;
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        store.refresh().await.unwrap();
        cutoff_ms += 10_500;
        store.prune_before(from_ms(cutoff_ms)).await.unwrap();
    }
    let mut oracle = Oracle::default();
    for writer in writers {
        oracle.write(&writer.await.unwrap());
    }
    check_all(&store, &oracle).await;
    store.refresh().await.unwrap();
    check_all(&store, &oracle).await;
    store.prune_before(from_ms(BATCHES * 5000)).await.unwrap();
    assert_eq!(store.stats().await.unwrap().total_metrics, 0);
    check_all(&store, &oracle).await;
}
