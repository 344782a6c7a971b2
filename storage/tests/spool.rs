//! A spool in a SQLite file: what is in it outlives the process that put it there.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use storage::layers::{FaultPlan, Faulty, Operation};
use storage::metrics::time::from_ms;
use storage::pipeline::{Source, Spool, SpoolLimits, StorageActor};
use storage::{InMemory, MetricRecord, StorageBackend, TimeRange};
use tokio::sync::mpsc;

fn records(numbers: std::ops::Range<i64>) -> Vec<MetricRecord> {
    let of = |number| MetricRecord::new("web-1", from_ms(number), "cpu", number as f64);
    numbers.map(of).collect()
}

async fn open(dir: &tempfile::TempDir) -> Spool {
    let url = format!("sqlite://{}/spool.db", dir.path().display());
    Spool::open(storage::connect(&url).await.unwrap(), SpoolLimits::default()).await.unwrap()
}

/// Batches are pushed, the half of them drained, and the file opened again without being closed.
#[tokio::test]
async fn a_spool_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut found = Vec::new();
    for round in 0..4_i64 {
        let spool = open(&dir).await;
        for batch in round * 20..round * 20 + 20 {
            spool.push(&records(batch * 50..batch * 50 + 50)).await.unwrap();
        }
        for _ in 0..10 {
            let step = spool.drain_step(50, async |records| {
                found.extend(records.iter().map(|record| record.value as i64));
                Ok(())
            });
            step.await.unwrap();
        }
    }
    let spool = open(&dir).await;
    while !spool.is_empty() {
        let step = spool.drain_step(1000, async |records| {
            found.extend(records.iter().map(|record| record.value as i64));
            Ok(())
        });
        step.await.unwrap();
    }
    // What was drained before the end of a process may come again, in order; the last ones count.
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, (0..4000).collect::<Vec<_>>());
    assert_eq!(spool.backlog().records, 0);
}

/// The store is away until the next process.
#[tokio::test]
async fn the_next_process_stores_what_the_last_one_could_not() {
    let dir = tempfile::tempdir().unwrap();
    let plan = FaultPlan::new(1).with_refused(1.0).only(&[Operation::WriteBatch]);
    let away: Arc<dyn StorageBackend> = Arc::new(Faulty::new(InMemory::open("back"), plan));
    let (sender, receiver) = mpsc::channel(4);
    let actor = StorageActor::new(away)
        .source(Source::mpsc("source", receiver))
        .spool(open(&dir).await)
        .start()
        .unwrap();
    for batch in 0..20 {
        sender.send(records(batch * 500..batch * 500 + 500)).await.unwrap();
    }
    let report = actor.shutdown(Duration::from_secs(30)).await;
    assert!(report.is_complete() && report.spooled == 10_000, "{report:?}");

    let back: Arc<dyn StorageBackend> = Arc::new(InMemory::open("back"));
    let actor = StorageActor::new(Arc::clone(&back)).spool(open(&dir).await).start().unwrap();
    actor.drained().await;
    let found = back.query_range("web-1", "cpu", TimeRange::all()).await.unwrap();
    assert_eq!(found, records(0..10_000));
    assert!(actor.shutdown(Duration::from_secs(30)).await.is_complete());
}
