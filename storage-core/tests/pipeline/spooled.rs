//! A backend with a spool in front, while the store behind is away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt;
use storage_core::Outcome::{NotApplied, Unknown};
use storage_core::layers::{Fault, FaultPlan, Faulty, Operation, standard_stack};
use storage_core::metrics::time::from_ms;
use storage_core::pipeline::{Spool, SpoolLimits, Spooled, SpooledReads};
use storage_core::{
    Error, ErrorKind, HealthStatus, InMemory, MetricRecord, SeriesFilter, StorageBackend, TimeRange,
};
use tokio::time::{Instant, sleep, timeout};

use crate::support::*;

type Store = Spooled<Faulty<InMemory>>;

async fn store(limits: SpoolLimits) -> Store {
    let faulty = Faulty::new(InMemory::new(), FaultPlan::new(1).with_refused(1.0));
    faulty.control().off();
    Spooled::new(faulty, spool_of(limits).await)
}

async fn behind(store: &Store) -> u64 {
    store.inner().inner().stats().await.unwrap().total_metrics
}

#[tokio::test(start_paused = true)]
async fn batches_are_taken_while_the_store_is_away_and_stored_when_it_is_back() {
    let store = store(SpoolLimits::default()).await;
    store.write_batch(&records(0..10)).await.unwrap();
    assert_eq!((behind(&store).await, store.spool().is_empty()), (10, true));
    store.inner().control().on();
    store.write_batch(&records(10..20)).await.unwrap();
    store.write_batch(&records(20..30)).await.unwrap();
    sleep(seconds(20)).await;
    assert_eq!((behind(&store).await, store.spool().backlog().records), (10, 20));
    store.inner().control().off();
    let health = store.health().await;
    assert_eq!(health.status, HealthStatus::Degraded, "{}", health.message);
    eventually("it is drained", async || store.spool().is_empty()).await;
    assert_eq!(values(&store).await, (0..30).collect::<Vec<_>>());
    assert_eq!(store.health().await.status, HealthStatus::Healthy);
}

#[tokio::test(start_paused = true)]
async fn reads_never_miss_what_was_acknowledged() {
    let store = store(SpoolLimits::default()).await;
    store.inner().control().on();
    store.write_batch(&records(0..10)).await.unwrap();
    let started = Instant::now();
    let error = store.stats().await.unwrap_err();
    assert_eq!((error.kind(), error.operation()), (ErrorKind::Unavailable, Some("stats")));
    assert!(error.is_retryable() && started.elapsed() <= seconds(5));
    assert!(store.prune_before(from_ms(5)).await.is_err(), "the spool would bring it back");
    assert!(store.flush().await.is_err());
    store.inner().control().off();
    assert_eq!(store.prune_before(from_ms(5)).await.unwrap(), 5);
    assert_eq!(values(&store).await, (5..10).collect::<Vec<_>>());

    let store = store.with_reads(SpooledReads::Stored);
    store.inner().control().on();
    store.write_batch(&records(20..21)).await.unwrap();
    store.inner().control().off();
    assert_eq!(values(&store).await, (5..10).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_full_spool_gives_the_error_of_the_store() {
    let store = store(SpoolLimits::default().with_records_max(10)).await;
    store.inner().control().on();
    let error = store.write_batch(&records(0..11)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    store.write_batch(&records(0..10)).await.unwrap();
    let error = store.write_batch(&records(10..11)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    let bad = MetricRecord::new("", from_ms(0), "m", 1.0);
    let error = store.write_batch(&[bad]).await.unwrap_err();
    assert_eq!((error.kind(), error.backend()), (ErrorKind::InvalidArgument, Some("memory")));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_drained_at_the_end_waits_for_the_next_handle() {
    let (main, queue) = (InMemory::open("spooled-main"), Arc::new(InMemory::open("spooled-queue")));
    let faulty = Faulty::new(main, FaultPlan::new(1).with_refused(1.0));
    let spool = Spool::open(as_dyn(&queue), SpoolLimits::default()).await.unwrap();
    let first = Spooled::new(faulty, spool);
    first.write_batch(&records(0..10)).await.unwrap();
    let _ = first.close().await;
    drop(first);
    let spool = Spool::open(queue, SpoolLimits::default()).await.unwrap();
    let second = Spooled::new(InMemory::open("spooled-main"), spool);
    assert_eq!(values(&second).await, (0..10).collect::<Vec<_>>());
    second.close().await.unwrap();
    assert_eq!(second.write_batch(&records(0..1)).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(second.stats().await.unwrap_err().kind(), ErrorKind::Closed);
}

/// A write that was given up while it went into the spool does not come behind a later one.
#[tokio::test(start_paused = true)]
async fn a_dropped_write_does_not_overtake() {
    for polls in 0..20 {
        let store = store(SpoolLimits::default()).await;
        store.inner().control().on();
        let mut old = records(0..1);
        old[0].value = -1.0;
        {
            let mut dropped = store.write_batch(&old);
            for _ in 0..polls {
                if futures_util::poll!(&mut dropped).is_ready() {
                    break;
                }
            }
        }
        store.inner().control().off();
        store.write_batch(&records(0..1)).await.unwrap();
        assert_eq!(values(&store).await, [0], "after {polls} polls");
        // Whatever was left behind has had its chance.
        sleep(seconds(1)).await;
        eventually("it is drained", async || store.spool().is_empty()).await;
        assert_eq!(values(&store).await, [0], "after {polls} polls");
    }
}

/// An older value never covers a newer one, whichever way each went.
#[tokio::test(start_paused = true)]
async fn the_last_write_wins_through_the_spool() {
    let store = store(SpoolLimits::default()).await;
    let mut same = records(0..1);
    for round in 0..100 {
        same[0].value = f64::from(round);
        match round % 10 {
            2 => store.inner().control().on(),
            7 => store.inner().control().off(),
            _ => {}
        }
        store.write_batch(&same).await.unwrap();
        if round % 3 == 0 {
            sleep(seconds(1)).await;
        }
        if !(2..7).contains(&(round % 10)) {
            assert_eq!(values(&store).await, [i64::from(round)]);
        }
    }
}

/// What a store will never take is an error of the caller, and holds up nobody.
#[tokio::test(start_paused = true)]
async fn what_is_refused_for_good_is_not_spooled() {
    let rule = |record: &MetricRecord| match record.value {
        13.0 => Err(Error::invalid("no such number")),
        14.0 => Err(Error::new(ErrorKind::PermissionDenied, "not yours")),
        _ => Ok(()),
    };
    let store = Spooled::new(Ruled::new(rule), spool().await);
    for (number, kind) in [(13, ErrorKind::InvalidArgument), (14, ErrorKind::PermissionDenied)] {
        let error = store.write_batch(&records(number..number + 1)).await.unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(store.spool().is_empty());
    }
    store.write_batch(&records(0..13)).await.unwrap();
    assert_eq!(values(&store).await, (0..13).collect::<Vec<_>>());
}

/// No caller can do anything about a full disk but wait, as the spool does.
#[tokio::test(start_paused = true)]
async fn a_store_without_space_is_away_for_a_while() {
    static IS_FULL: AtomicBool = AtomicBool::new(true);
    let rule = |_: &MetricRecord| match IS_FULL.load(Ordering::SeqCst) {
        true => Err(Error::new(ErrorKind::StorageFull, "no space left")),
        false => Ok(()),
    };
    let store = Spooled::new(Ruled::new(rule), spool().await);
    store.write_batch(&records(0..10)).await.unwrap();
    sleep(seconds(60)).await;
    assert_eq!(store.spool().backlog().records, 10);
    IS_FULL.store(false, Ordering::SeqCst);
    eventually("it is drained", async || store.spool().is_empty()).await;
    assert_eq!(values(&store).await, (0..10).collect::<Vec<_>>());
}

/// What was repeated in vain is no longer worth repeating at once, and may still work later.
#[tokio::test(start_paused = true)]
async fn a_store_behind_retries_is_away_for_a_while() {
    let faulty = Faulty::new(InMemory::new(), FaultPlan::new(1).with_refused(1.0));
    let control = faulty.control();
    let store = Spooled::new(standard_stack(faulty), spool().await);
    store.write_batch(&records(0..10)).await.unwrap();
    assert_eq!(store.spool().backlog().records, 10);
    control.off();
    assert_eq!(values(&store).await, (0..10).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn closing_drains_what_it_can() {
    let (main, queue) = (InMemory::open("spooled-closing"), spool().await);
    let faulty = Faulty::new(main, FaultPlan::new(1).with_refused(1.0));
    let store = Spooled::new(faulty, queue.clone());
    store.write_batch(&records(0..10)).await.unwrap();
    store.inner().control().off();
    store.close().await.unwrap();
    assert!(queue.is_empty());
    assert_eq!(values(&InMemory::open("spooled-closing")).await, (0..10).collect::<Vec<_>>());
}

/// The store answers and takes nothing: every answer would miss what waits.
#[tokio::test(start_paused = true)]
async fn answers_wait_for_what_was_acknowledged() {
    let refusing = FaultPlan::new(1).with_refused(1.0).only(&[Operation::WriteBatch]);
    let faulty = Faulty::new(InMemory::new(), refusing);
    let store = Spooled::new(faulty, spool().await);
    store.write_batch(&records(0..10)).await.unwrap();
    let all = TimeRange::all();
    let started = Instant::now();
    let mut refused = vec![
        store.query_range("web-1", "cpu", all).await.err(),
        store.aggregate("web-1", "cpu", all).await.err(),
        store.stats().await.err(),
        store.series(&SeriesFilter::any()).await.err(),
        store.latest(&SeriesFilter::any(), 1).await.err(),
        store.windows(&SeriesFilter::any(), all, seconds(60)).await.err(),
        store.scan(&SeriesFilter::any(), all).try_collect::<Vec<_>>().await.err(),
        store.check().await.err(),
        store.flush().await.err(),
        store.prune_before(from_ms(5)).await.err(),
    ];
    assert!(started.elapsed() > seconds(2 * refused.len() as u64), "{:?}", started.elapsed());
    for (number, error) in refused.drain(..).enumerate() {
        assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::Unavailable), "{number}");
    }
    store.inner().control().off();
    assert_eq!(values(&store).await, (0..10).collect::<Vec<_>>());
    let store = store.with_reads(SpooledReads::Stored);
    store.inner().control().on();
    store.write_batch(&records(10..20)).await.unwrap();
    assert_eq!(values(&store).await, (0..10).collect::<Vec<_>>());
}

/// A disk that fails: the spool keeps what was drained, and takes nothing. The store works.
#[tokio::test(start_paused = true)]
async fn a_spool_that_broke_keeps_nothing_from_the_store() {
    for push in [Fault::Refused, Fault::LostRequest, Fault::LostReply] {
        let plan = FaultPlan::new(1).with_refused(1.0);
        let plan = plan.only(&[Operation::WriteBatch, Operation::PruneBefore]);
        let spool_store = Arc::new(Faulty::new(InMemory::new(), plan));
        spool_store.control().off();
        let spool = Spool::open(as_dyn(&spool_store), SpoolLimits::default()).await.unwrap();
        let faulty = Faulty::new(InMemory::new(), FaultPlan::new(1).with_refused(1.0));
        let store = Spooled::new(faulty, spool);
        store.write_batch(&records(0..10)).await.unwrap();
        spool_store.control().inject(Operation::WriteBatch, push);
        spool_store.control().on();
        store.write_batch(&records(10..20)).await.unwrap_err();
        store.inner().control().off();
        eventually("it is drained", async || store.spool().backlog().oldest_age.is_none()).await;
        for tick in 2..5 {
            store.write_batch(&records(tick * 10..tick * 10 + 10)).await.unwrap();
            assert_eq!(behind(&store).await, stored_of(push, tick as u64 * 10 + 10));
        }
        let started = Instant::now();
        assert_eq!(store.stats().await.unwrap().total_metrics, stored_of(push, 50));
        assert_eq!(started.elapsed(), seconds(0));
        assert_eq!(store.health().await.status, HealthStatus::Degraded);
        // After a crash it would come back.
        let error = store.prune_before(from_ms(5)).await.unwrap_err();
        assert_eq!((error.operation(), error.outcome()), (Some("prune_before"), NotApplied));
        assert_eq!(behind(&store).await, stored_of(push, 50));
        spool_store.control().off();
        eventually("it is removed", async || store.spool().is_empty()).await;
        assert_eq!(store.prune_before(from_ms(5)).await.unwrap(), 5);
        assert_eq!(store.health().await.status, HealthStatus::Healthy);
    }
}

/// Of so many records, ten came with a push that failed.
fn stored_of(push: Fault, all: u64) -> u64 {
    if push == Fault::LostReply { all } else { all - 10 }
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_may_be_in_the_spool_is_in_doubt() {
    for (push, outcome) in [(Fault::Refused, NotApplied), (Fault::LostReply, Unknown)] {
        let spool_store = Arc::new(Faulty::new(InMemory::new(), FaultPlan::new(1)));
        let spool = Spool::open(as_dyn(&spool_store), SpoolLimits::default()).await.unwrap();
        let store = Spooled::new(Faulty::new(InMemory::new(), FaultPlan::new(1)), spool);
        store.inner().control().inject(Operation::WriteBatch, Fault::Refused);
        spool_store.control().inject(Operation::WriteBatch, push);
        let error = store.write_batch(&records(0..10)).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, outcome));
        eventually("it is drained", async || store.spool().is_empty()).await;
        assert_eq!(behind(&store).await, if outcome == Unknown { 10 } else { 0 });
    }
}

/// A prune during which the spool is filled again: what it removed is not drained once more.
#[tokio::test(start_paused = true)]
async fn a_crash_brings_nothing_back_that_was_pruned() {
    let names = ["spooled-crash-main", "spooled-crash-queue"];
    let [main, queue] = names.map(InMemory::open);
    let queue = Arc::new(queue);
    let spool = Spool::open(as_dyn(&queue), SpoolLimits::default()).await.unwrap();
    let faulty = Faulty::new(main, FaultPlan::new(1));
    let control = faulty.control();
    let store = Arc::new(Spooled::new(faulty, spool));
    control.inject(Operation::WriteBatch, Fault::Refused);
    control.inject(Operation::WriteBatch, Fault::SlowBefore(seconds(1)));
    // As many as are drained at once.
    store.write_batch(&records(0..10_000)).await.unwrap();
    let pruning = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.prune_before(from_ms(10_000)).await }
    });
    eventually("it is being drained", async || control.counts().slow == 1).await;
    (0..1000).for_each(|_| control.inject(Operation::WriteBatch, Fault::Refused));
    store.write_batch(&records(20_000..20_001)).await.unwrap();
    assert_eq!(pruning.await.unwrap().unwrap(), 10_000);
    assert!(!store.spool().is_empty());
    // The process is gone, and another one takes over.
    let spool = Spool::open(queue, SpoolLimits::default()).await.unwrap();
    let next = Spooled::new(InMemory::open(names[0]), spool);
    assert_eq!(values(&next).await, [20_000]);
    for name in names {
        InMemory::forget(name);
    }
}

/// Turns taken at the same moment are no batches that wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_at_once_do_not_spool_what_a_sound_store_takes() {
    let spool_store = Arc::new(Faulty::new(InMemory::new(), FaultPlan::new(1)));
    let spool = Spool::open(as_dyn(&spool_store), SpoolLimits::default()).await.unwrap();
    let store = Arc::new(Spooled::new(InMemory::new(), spool));
    let before = spool_store.control().counts().calls;
    let writers = (0..8).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for number in 0..10_000 {
                store.write_batch(&[record(number)]).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    assert_eq!(spool_store.control().counts().calls, before);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_is_not_polled_holds_up_no_other() {
    let store = Spooled::new(Faulty::new(InMemory::new(), FaultPlan::new(1)), spool().await);
    store.inner().control().inject(Operation::WriteBatch, Fault::Refused);
    store.inner().control().inject(Operation::WriteBatch, Fault::SlowBefore(seconds(1)));
    store.write_batch(&records(0..10)).await.unwrap();
    let mut parked = store.stats();
    assert!(futures_util::poll!(&mut parked).is_pending());
    assert_eq!(timeout(seconds(60), values(&store)).await.unwrap().len(), 10);
    assert_eq!(parked.await.unwrap().total_metrics, 10);
}

#[tokio::test(start_paused = true)]
async fn a_slow_store_is_not_waited_for_any_longer_than_one_that_fails() {
    let store = Spooled::new(Faulty::new(InMemory::new(), FaultPlan::new(1)), spool().await);
    store.inner().control().inject(Operation::WriteBatch, Fault::Refused);
    for _ in 0..20 {
        store.inner().control().inject(Operation::WriteBatch, Fault::SlowBefore(seconds(1)));
    }
    for step in 0..20 {
        // As many as are drained at once.
        let batch = records(step * 10_000..step * 10_000 + 10_000);
        store.write_batch(&batch).await.unwrap();
    }
    let started = Instant::now();
    let error = store.stats().await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Busy, true));
    assert!((seconds(5)..=seconds(7)).contains(&started.elapsed()), "{:?}", started.elapsed());
    let store = store.with_wait_max(Duration::MAX);
    assert_eq!(store.stats().await.unwrap().total_metrics, 200_000);
}

/// Whoever pushed is gone, and nobody asks the other.
#[tokio::test(start_paused = true)]
async fn what_one_handle_leaves_another_drains() {
    let (name, spool) = ("spooled-two-handles", spool().await);
    let refusing = FaultPlan::new(1).with_refused(1.0);
    let filling = Spooled::new(Faulty::new(InMemory::open(name), refusing), spool.clone());
    let control = filling.inner().control();
    // It waits for a batch before the other one does.
    tokio::task::yield_now().await;
    let waiting = Spooled::new(InMemory::open(name), spool.clone());
    tokio::task::yield_now().await;
    filling.write_batch(&records(0..10)).await.unwrap();
    eventually("it has tried", async || control.counts().refused > 1 || spool.is_empty()).await;
    drop(filling);
    eventually("it is drained", async || spool.is_empty()).await;
    assert_eq!(values(&InMemory::open(name)).await, (0..10).collect::<Vec<_>>());
    drop(waiting);
    InMemory::forget(name);
}

#[tokio::test(start_paused = true)]
async fn a_spool_that_panics_is_one_that_fails() {
    let spool = Spool::open(Arc::new(Panicking::new(3)), SpoolLimits::default()).await.unwrap();
    let store = Spooled::new(Faulty::new(InMemory::new(), FaultPlan::new(1)), spool);
    store.inner().control().inject(Operation::WriteBatch, Fault::Refused);
    store.write_batch(&records(0..10)).await.unwrap();
    eventually("it is drained", async || store.spool().is_empty()).await;
    assert_eq!(values(&store).await, (0..10).collect::<Vec<_>>());
}
