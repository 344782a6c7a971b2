//! The end of an actor: in time, and it says what was left.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use storage_core::layers::{Fault, FaultPlan, Faulty, Operation};
use storage_core::pipeline::{ActorOptions, Backpressure, Source, Spool, SpoolLimits};
use storage_core::{ErrorKind, HealthStatus, InMemory, MetricRecord};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_left_at_the_deadline_with_a_count() {
    let store = hanging();
    store.control().on();
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).start().unwrap();
    sender.send(records(0..1234)).await.unwrap();
    let started = Instant::now();
    let report = actor.shutdown(seconds(10)).await;
    assert!((seconds(10)..seconds(11)).contains(&started.elapsed()), "{:?}", started.elapsed());
    assert_eq!((report.left, report.is_complete(), report.spooled), (1234, false, 0));
    assert_adds_up(&report.counters);
    // Nothing is written behind the report.
    store.control().off();
    sleep(seconds(100)).await;
    assert_eq!(stored(&store).await, 0);
    assert_eq!(actor.flush().await.unwrap_err().kind(), ErrorKind::Closed);
}

/// Also in the hands of a source that waits for room nothing is forgotten.
#[tokio::test(start_paused = true)]
async fn what_a_waiting_source_holds_is_counted_as_left() {
    let store = hanging();
    store.control().on();
    let (sender, source) = channel(1);
    let options = ActorOptions::default().with_memory_bytes_max(1).with_flush_records(1);
    let actor = actor_on(&store)
        .source(source.with_backpressure(Backpressure::Wait))
        .options(options)
        .start()
        .unwrap();
    sender.send(records(0..1)).await.unwrap();
    sleep(seconds(1)).await;
    sender.send(records(1..8)).await.unwrap();
    sleep(seconds(1)).await;
    let report = actor.shutdown(seconds(5)).await;
    assert_eq!((report.left, report.counters.sources[0].received), (8, 8));
    assert!(!report.is_complete() && !report.sources_ended);
}

#[tokio::test(start_paused = true)]
async fn with_a_spool_nothing_is_left_and_the_next_process_drains_it() {
    for (store, budget) in [(hanging(), seconds(10)), (refusing(), seconds(1))] {
        store.control().on();
        let spool = spool().await;
        let (sender, source) = channel(4);
        let actor = actor_on(&store).source(source).spool(spool.clone()).start().unwrap();
        sender.send(records(0..1234)).await.unwrap();
        sleep(seconds(1)).await;
        let report = actor.shutdown(budget).await;
        assert!(report.is_complete() && report.elapsed < budget, "{report:?}");
        assert_eq!((report.left, report.spooled), (0, 1234));
        assert_adds_up(&report.counters);
        store.control().off();
        let next = actor_on(&store).spool(spool).start().unwrap();
        next.drained().await;
        assert_eq!(values(store.inner()).await, (0..1234).collect::<Vec<_>>());
        assert_eq!(end(&next).await.drained, 1234);
    }
}

/// What was sent before the shutdown is taken, however much it is; what comes later is refused.
#[tokio::test(start_paused = true)]
async fn channels_are_emptied_and_closed() {
    let store = refusing();
    let (sender, receiver) = mpsc::channel::<MetricRecord>(10_000);
    let actor = actor_on(&store).source(Source::mpsc("s", receiver)).start().unwrap();
    for number in 0..9_999 {
        sender.send(record(number)).await.unwrap();
    }
    let permit = sender.reserve().await.unwrap();
    let late = tokio::spawn({
        let actor = actor.clone();
        async move { actor.shutdown(seconds(30)).await }
    });
    sleep(Duration::from_millis(10)).await;
    // Who has a place already may still use it.
    permit.send(record(9_999));
    assert!(late.await.unwrap().is_complete());
    assert!(sender.send(record(0)).await.is_err());
    assert_eq!(stored(&store).await, 10_000);
}

#[tokio::test(start_paused = true)]
async fn many_may_shut_down_at_once() {
    let store = refusing();
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).start().unwrap();
    sender.send(records(0..10)).await.unwrap();
    let all = (0..4).map(|_| actor.shutdown(seconds(10)));
    for report in futures_util::future::join_all(all).await {
        assert!(report.is_complete());
    }
    assert!(actor.shutdown(seconds(10)).await.is_complete());
    assert_eq!(stored(&store).await, 10);
}

/// A source that panics takes neither the actor nor the other sources with it, and is not taken for
/// one that has ended well.
#[tokio::test(start_paused = true)]
async fn a_source_that_panics_is_noticed() {
    let store = refusing();
    let bad = futures_util::stream::iter(0..5).map(|number| {
        assert!(number < 3, "a defect of the source");
        record(number)
    });
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(Source::stream("bad", bad)).source(source).start().unwrap();
    sender.send(records(100..110)).await.unwrap();
    actor.flush().await.unwrap();
    // What it gave before the defect is there, too.
    assert_eq!(stored(&store).await, 13);
    let health = actor.health();
    assert_eq!((health.status, &*health.message), (HealthStatus::Degraded, "source bad broke off"));
    let report = actor.shutdown(seconds(5)).await;
    assert!(!report.sources_ended && report.left == 0);
    assert!(report.elapsed < seconds(1));
}

/// A stream that always has something: the rest of the program runs on, and it ends in time. On a
/// thread of its own, which may be kept for ever.
#[test]
fn a_source_without_end_does_not_keep_a_shutdown() {
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let endless = futures_util::stream::repeat_with(|| record(1));
            let source = Source::stream("endless", endless);
            let actor = actor_on(&refusing()).source(source).start().unwrap();
            done.send(actor.shutdown(Duration::from_millis(200)).await).unwrap();
        });
    });
    let report = ended.recv_timeout(seconds(15)).expect("a shutdown ends");
    assert!(!report.sources_ended, "{report:?}");
}

/// The store hangs, and the spool was busy once: the last moment still goes to it.
#[tokio::test(start_paused = true)]
async fn a_spool_that_refused_once_is_asked_at_the_last_moment() {
    let (store, queue) = (hanging(), refusing());
    store.control().on();
    let spool = Spool::open(as_dyn(&queue), SpoolLimits::default()).await.unwrap();
    let options = ActorOptions::default().with_spool_after(seconds(5));
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).spool(spool).options(options).start().unwrap();
    queue.control().on();
    sender.send(records(0..1234)).await.unwrap();
    sleep(seconds(8)).await;
    queue.control().off();
    // The attempt that hangs would take longer than that.
    let report = actor.shutdown(seconds(10)).await;
    assert!(report.is_complete() && report.spooled == 1234, "{report:?}");
}

/// The store hangs to the end, and the spool takes its time, too.
#[tokio::test(start_paused = true)]
async fn a_slow_spool_has_its_share_of_the_time() {
    let (store, queue) = (hanging(), Arc::new(Faulty::new(InMemory::new(), FaultPlan::new(1))));
    store.control().on();
    let spool = Spool::open(as_dyn(&queue), SpoolLimits::default()).await.unwrap();
    queue.control().inject(Operation::WriteBatch, Fault::SlowBefore(seconds(5)));
    let options = ActorOptions::default().with_spool_after(seconds(3600));
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).spool(spool).options(options).start().unwrap();
    sender.send(records(0..1234)).await.unwrap();
    sleep(seconds(1)).await;
    let report = actor.shutdown(seconds(24)).await;
    assert!(report.is_complete() && report.spooled == 1234, "{report:?}");
}
