//! The queue itself: order, bounds, what a crash and a failing store leave.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use storage_core::layers::{Fault, FaultPlan, Faulty, Operation};
use storage_core::metrics::time::from_ms;
use storage_core::pipeline::{Spool, SpoolLimits};
use storage_core::{ErrorKind, InMemory, MetricRecord, Outcome, StorageBackend};

use crate::support::*;

/// Takes everything out, step by step.
async fn drain(spool: &Spool, records_max: usize) -> Vec<Vec<MetricRecord>> {
    let mut steps = Vec::new();
    while !spool.is_empty() {
        let step = spool.drain_step(records_max, async |records| {
            steps.push(records);
            Ok(())
        });
        step.await.unwrap();
    }
    steps
}

#[tokio::test]
async fn batches_come_out_as_they_went_in() {
    let spool = spool().await;
    for number in 0..100 {
        spool.push(&records(number * 10..number * 10 + 10)).await.unwrap();
    }
    assert_eq!(spool.backlog().records, 1000);
    let steps = drain(&spool, 25).await;
    assert!(steps.iter().all(|step| step.len() == 20), "whole batches, as many as fit");
    assert_eq!(steps.concat(), records(0..1000));
    assert_eq!((spool.backlog().records, spool.backlog().bytes), (0, 0));
    assert_eq!(spool.backlog().oldest_age, None);
}

#[tokio::test]
async fn large_batches_stay_whole() {
    let spool = spool().await;
    let large = |number| record(number).with_metadata(serde_json::json!("\"x".repeat(20_000)));
    let batch: Vec<_> = (0..100).map(large).collect();
    spool.push(&batch).await.unwrap();
    spool.push(&records(0..3)).await.unwrap();
    assert_eq!(drain(&spool, 10).await, [batch, records(0..3)]);
}

#[tokio::test]
async fn what_is_pushed_and_popped_survives_opening_again() {
    let store: Arc<dyn StorageBackend> = Arc::new(InMemory::new());
    for round in 0..20 {
        let spool = Spool::open(Arc::clone(&store), SpoolLimits::default()).await.unwrap();
        assert_eq!(spool.backlog().records, 10 * round);
        assert_eq!(spool.backlog().oldest_age.is_some(), round > 0);
        let from = round as i64 * 20;
        spool.push(&records(from..from + 10)).await.unwrap();
        spool.push(&records(from + 10..from + 20)).await.unwrap();
        let step = spool.drain_step(1, async |records| {
            assert_eq!(records[0].value as u64, round * 10);
            Ok(())
        });
        assert_eq!(step.await.unwrap(), 10);
        // Removed are many at once; here it is made to be one.
        let cutoff = from_ms(round as i64 + 1);
        store.prune_before(cutoff).await.unwrap();
    }
}

/// A process that ends before the removal drains the same batches again, in the same order.
#[tokio::test]
async fn a_crash_before_the_removal_drains_again() {
    let store: Arc<dyn StorageBackend> = Arc::new(InMemory::new());
    let spool = Spool::open(Arc::clone(&store), SpoolLimits::default()).await.unwrap();
    for number in 0..10 {
        spool.push(&records(number..number + 1)).await.unwrap();
    }
    for _ in 0..4 {
        spool.drain_step(1, async |_| Ok(())).await.unwrap();
    }
    let again = Spool::open(store, SpoolLimits::default()).await.unwrap();
    let found = drain(&again, 1).await.concat();
    assert_eq!(found[found.len() - 6..], records(4..10));
    assert!(found.is_sorted_by_key(|record| record.value as i64));
}

#[tokio::test]
async fn bounds_are_kept_and_room_comes_back() {
    let spool = spool_of(SpoolLimits::default().with_records_max(25)).await;
    spool.push(&records(0..20)).await.unwrap();
    let error = spool.push(&records(20..26)).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::StorageFull, Outcome::NotApplied));
    spool.push(&records(20..25)).await.unwrap();
    assert!(spool.is_full());
    drain(&spool, 100).await;
    spool.push(&records(0..25)).await.unwrap();

    let spool = spool_of(SpoolLimits::default().with_bytes_max(1000)).await;
    assert!(spool.push(&records(0..1000)).await.is_err());
    spool.push(&records(0..10)).await.unwrap();
    assert!((100..1000).contains(&spool.backlog().bytes), "{:?}", spool.backlog());
}

#[tokio::test]
async fn what_is_invalid_is_not_taken_in() {
    let spool = spool().await;
    let mut batch = records(0..3);
    batch[1].value = f64::INFINITY;
    let error = spool.push(&batch).await.unwrap_err();
    assert_eq!((error.kind(), error.context("record")), (ErrorKind::InvalidArgument, Some("1")));
    spool.push(&[]).await.unwrap();
    assert!(spool.is_empty());
}

#[tokio::test]
async fn a_store_with_other_samples_is_no_spool() {
    let store = InMemory::new();
    store.write_batch(&records(0..1)).await.unwrap();
    let error = Spool::open(Arc::new(store), SpoolLimits::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}

#[tokio::test]
async fn a_write_that_fails_or_is_dropped_leaves_the_batch() {
    let spool = spool().await;
    spool.push(&records(0..10)).await.unwrap();
    let refuse = async |_| Err(storage_core::Error::new(ErrorKind::Busy, "not now"));
    assert_eq!(spool.drain_step(10, refuse).await.unwrap_err().kind(), ErrorKind::Busy);
    let dropped = spool.drain_step(10, async |_| std::future::pending().await);
    assert!(tokio::time::timeout(std::time::Duration::from_millis(1), dropped).await.is_err());
    assert_eq!(drain(&spool, 10).await, [records(0..10)]);
}

/// Its own store fails: what is in doubt may come, nothing that was acknowledged is lost, and
/// nothing comes twice in another order.
#[tokio::test]
async fn a_failing_store_of_the_spool_loses_nothing_acknowledged() {
    for seed in 0..30 {
        let plan = FaultPlan::new(seed).with_coins(0.8, 0.8);
        let faulty = Arc::new(Faulty::new(InMemory::new(), plan));
        faulty.control().off();
        let spool = Spool::open(as_dyn(&faulty), SpoolLimits::default()).await.unwrap();
        faulty.control().on();
        let (mut acknowledged, mut found) = (Vec::new(), Vec::new());
        for number in 0..200 {
            if spool.push(&[record(number)]).await.is_ok() {
                acknowledged.push(number);
            }
            if number % 3 == 0 {
                let step = spool.drain_step(2, async |records| {
                    found.extend(records.iter().map(|record| record.value as i64));
                    Ok(())
                });
                let _ = step.await;
            }
        }
        faulty.control().off();
        found.extend(drain(&spool, 5).await.concat().iter().map(|record| record.value as i64));
        assert!(found.is_sorted(), "seed {seed}: {found:?}");
        found.dedup();
        let missing: Vec<_> = acknowledged.iter().filter(|no| !found.contains(no)).collect();
        assert!(missing.is_empty(), "seed {seed}: {missing:?}");
        assert!(spool.is_empty());
    }
}

/// Removal fails: the spool is not taken for empty, as what is behind it would be overtaken.
#[tokio::test]
async fn a_spool_is_empty_only_when_it_is_removed() {
    let faulty = Arc::new(Faulty::new(InMemory::new(), FaultPlan::new(1)));
    let spool = Spool::open(as_dyn(&faulty), SpoolLimits::default()).await.unwrap();
    spool.push(&records(0..10)).await.unwrap();
    faulty.control().inject(Operation::PruneBefore, Fault::Refused);
    let mut written = 0;
    let step = spool.drain_step(10, async |records| {
        written += records.len();
        Ok(())
    });
    assert!(step.await.is_err());
    assert_eq!((written, spool.is_empty(), spool.backlog().records), (10, false, 0));
    let step = spool.drain_step(10, async |records| {
        written += records.len();
        Ok(())
    });
    assert_eq!(step.await.unwrap(), 0);
    assert!(spool.is_empty() && written == 10);
    assert_eq!(faulty.inner().stats().await.unwrap().total_metrics, 0);
}

/// Who stops drops a step wherever it is; what it has written must not come again.
#[tokio::test(start_paused = true)]
async fn closing_removes_what_a_dropped_step_has_drained() {
    let (name, other) = ("spool::closing", InMemory::open("spool::closing"));
    let faulty = Arc::new(Faulty::new(InMemory::open(name), FaultPlan::new(1)));
    let spool = Spool::open(as_dyn(&faulty), SpoolLimits::default()).await.unwrap();
    spool.push(&records(0..10)).await.unwrap();
    faulty.control().inject(Operation::PruneBefore, Fault::HangBefore);
    let step = spool.drain_step(10, async |_| Ok(()));
    let dropped = tokio::time::timeout(Duration::from_secs(1), step).await;
    assert!(dropped.is_err() && !spool.is_empty());
    spool.close().await.unwrap();
    assert_eq!(other.stats().await.unwrap().total_metrics, 0);
    InMemory::forget(name);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_push_and_drain_at_once() {
    let spool = spool().await;
    let pushers = (0..8).map(|task| {
        let spool = spool.clone();
        tokio::spawn(async move {
            for step in 0..50 {
                let number = task * 1000 + step;
                spool.push(&records(number..number + 1)).await.unwrap();
            }
        })
    });
    let pushers: Vec<_> = pushers.collect();
    let mut found = Vec::new();
    while found.len() < 400 {
        let step = spool.drain_step(10, async |records| {
            found.extend(records.iter().map(|record| record.value as i64));
            Ok(())
        });
        step.await.unwrap();
        tokio::task::yield_now().await;
    }
    for task in pushers {
        task.await.unwrap();
    }
    for task in 0..8 {
        let of: Vec<_> = found.iter().copied().filter(|number| number / 1000 == task).collect();
        assert_eq!(of, (task * 1000..task * 1000 + 50).collect::<Vec<_>>(), "task {task}");
    }
}

/// Each batch goes to one of them, and none before an older one is done.
#[tokio::test(flavor = "multi_thread")]
async fn many_drain_at_once_and_each_batch_comes_once() {
    let spool = spool().await;
    for number in 0..200 {
        spool.push(&records(number..number + 1)).await.unwrap();
    }
    let found = Arc::new(Mutex::new(Vec::new()));
    let drainers = (0..4).map(|_| {
        let (spool, found) = (spool.clone(), Arc::clone(&found));
        tokio::spawn(async move {
            while !spool.is_empty() {
                let step = spool.drain_step(3, async |records| {
                    tokio::task::yield_now().await;
                    found.lock().unwrap().extend(records);
                    Ok(())
                });
                step.await.unwrap();
            }
        })
    });
    for drainer in drainers.collect::<Vec<_>>() {
        drainer.await.unwrap();
    }
    assert_eq!(*found.lock().unwrap(), records(0..200));
}

/// Removed is what is done, many at once, and long before all of it is.
#[tokio::test]
async fn what_is_done_is_removed_and_nothing_else() {
    let store: Arc<dyn StorageBackend> = Arc::new(InMemory::new());
    let spool = Spool::open(Arc::clone(&store), SpoolLimits::default()).await.unwrap();
    for number in 0..1300 {
        spool.push(&records(number..number + 1)).await.unwrap();
    }
    let mut found = Vec::new();
    for _ in 0..600 {
        let step = spool.drain_step(1, async |records| {
            found.extend(records);
            Ok(())
        });
        assert_eq!(step.await.unwrap(), 1);
    }
    assert!(store.stats().await.unwrap().total_metrics < 2 * 800);
    // A process that ends here leaves at least what is not done.
    let left = Spool::open(store, SpoolLimits::default()).await.unwrap();
    let again = drain(&left, 100).await.concat();
    assert!((700..=800).contains(&again.len()), "{}", again.len());
    assert_eq!(again[again.len() - 700..], records(600..1300));
    assert_eq!(found, records(0..600));
}

/// Chunks of it may stand there: the next batch must not stand among them.
#[tokio::test]
async fn a_batch_in_doubt_and_the_next_one_come_out_whole() {
    for fault in [Fault::LostReply, Fault::LostRequest, Fault::Refused] {
        let faulty = Arc::new(Faulty::new(InMemory::new(), FaultPlan::new(1)));
        let spool = Spool::open(as_dyn(&faulty), SpoolLimits::default()).await.unwrap();
        let large = |number| record(number).with_metadata(serde_json::json!("x".repeat(40_000)));
        let in_doubt: Vec<_> = (0..5).map(large).collect();
        faulty.control().inject(Operation::WriteBatch, fault);
        assert!(spool.push(&in_doubt).await.is_err());
        spool.push(&records(5..8)).await.unwrap();
        let found = drain(&spool, 100).await.concat();
        let expected = if fault == Fault::LostReply { in_doubt } else { Vec::new() };
        assert_eq!(found, [expected, records(5..8)].concat(), "{fault:?}");
    }
}

#[tokio::test]
async fn a_batch_in_doubt_counts_until_it_is_known_not_to_be_there() {
    for (fault, left) in [(Fault::LostReply, 5), (Fault::LostRequest, 0)] {
        let faulty = Arc::new(Faulty::new(InMemory::new(), FaultPlan::new(1)));
        let spool = Spool::open(as_dyn(&faulty), SpoolLimits::default()).await.unwrap();
        faulty.control().inject(Operation::WriteBatch, fault);
        assert!(spool.push(&records(0..10)).await.is_err());
        spool.push(&records(10..15)).await.unwrap();
        assert_eq!(spool.backlog().records, 15);
        spool.drain_step(5, async |_| Ok(())).await.unwrap();
        assert_eq!(spool.backlog().records, left);
        drain(&spool, 5).await;
        assert_eq!((spool.backlog().records, spool.backlog().bytes), (0, 0));
    }
}

/// A prune need not be done in one: the end of a batch that was drained is still there.
#[tokio::test]
async fn a_removal_that_was_killed_leaves_a_spool_that_can_be_drained() {
    let large = |number| record(number).with_metadata(serde_json::json!("x".repeat(40_000)));
    for (removed, bytes_left) in [(0, false), (1, false), (2, false), (2, true), (3, true)] {
        let store: Arc<dyn StorageBackend> = Arc::new(InMemory::new());
        let spool = Spool::open(Arc::clone(&store), SpoolLimits::default()).await.unwrap();
        let batch: Vec<_> = (0..4).map(large).collect();
        spool.push(&batch).await.unwrap();
        assert!((150_000..180_000).contains(&spool.backlog().bytes), "three chunks");
        spool.push(&records(5..8)).await.unwrap();
        store.prune_before(from_ms(removed)).await.unwrap();
        if bytes_left {
            // One series is pruned before the other.
            store
                .write_batch(&[MetricRecord::new("spool", from_ms(0), "bytes", 60_000.0)])
                .await
                .unwrap();
        }
        let again = Spool::open(Arc::clone(&store), SpoolLimits::default()).await.unwrap();
        let expected = if removed == 0 { [batch, records(5..8)].concat() } else { records(5..8) };
        assert_eq!(again.backlog().records, expected.len() as u64);
        assert_eq!(drain(&again, 100).await.concat(), expected, "{removed} of three are gone");
        assert_eq!(store.stats().await.unwrap().total_metrics, 0);
    }
}
