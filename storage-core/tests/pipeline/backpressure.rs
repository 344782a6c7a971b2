//! Memory is full because the store hangs: each policy does what it says, and counts it.

use std::time::Duration;

use storage_core::layers::{FaultPlan, Operation};
use storage_core::pipeline::{
    ActorOptions, Backpressure, Source, SpoolLimits, StorageActor, StorageHandle,
};
use storage_core::{ErrorKind, HealthStatus, MetricRecord};
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, sleep, timeout};

use crate::support::*;

/// Room for some 350 records, in batches of ten.
fn small() -> ActorOptions {
    ActorOptions::default().with_flush_records(10).with_memory_bytes_max(64 << 10)
}

async fn fill(sender: &mpsc::Sender<Vec<MetricRecord>>, numbers: std::ops::Range<i64>) {
    let started = Instant::now();
    for number in numbers {
        sender.send(records(number..number + 1)).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(started.elapsed(), seconds(0), "the producer waited");
}

#[tokio::test(start_paused = true)]
async fn wait_makes_the_producer_wait_and_drops_nothing() {
    let store = hanging();
    store.control().on();
    let (sender, source) = channel(1);
    let actor = actor_on(&store)
        .source(source.with_backpressure(Backpressure::Wait))
        .options(small())
        .start()
        .unwrap();
    let mut sent = 0;
    while timeout(seconds(1), sender.send(records(sent..sent + 1))).await.is_ok() {
        sent += 1;
        assert!(sent < 1000, "nobody waits");
    }
    let counters = actor.counters();
    assert_eq!((counters.sources[0].waits, counters.sources[0].shed), (1, 0));
    assert_adds_up(&counters);
    assert!(actor.health().memory_bytes <= 65 << 10);
    store.control().off();
    let sending = async {
        for number in sent..2000 {
            sender.send(records(number..number + 1)).await.unwrap();
        }
    };
    timeout(seconds(600), sending).await.expect("nobody is woken");
    let counters = end(&actor).await;
    assert_eq!(counters.sources[0].stored, 2000);
    assert_eq!(values(store.inner()).await, (0..2000).collect::<Vec<_>>());
}

/// A broadcast channel has nobody to wait: the actor lags, and says by how much.
#[tokio::test(start_paused = true)]
async fn wait_lets_a_broadcast_lag_and_counts_it() {
    let store = hanging();
    store.control().on();
    let (sender, receiver) = broadcast::channel(64);
    let source = Source::broadcast("events", receiver).with_backpressure(Backpressure::Wait);
    let actor = actor_on(&store).source(source).options(small()).start().unwrap();
    for number in 0..2000 {
        sender.send(record(number)).unwrap();
        tokio::task::yield_now().await;
    }
    store.control().off();
    eventually("it goes on", async || actor.flush().await.is_ok()).await;
    drop(sender);
    actor.drained().await;
    let counters = end(&actor).await;
    let source = &counters.sources[0];
    assert!(source.lagged > 1000 && source.waits > 0, "{source:?}");
    assert_eq!((source.received + source.lagged, source.stored), (2000, source.received));
}

#[tokio::test(start_paused = true)]
async fn shed_oldest_keeps_the_newest_and_counts_the_rest() {
    let store = hanging();
    store.control().on();
    let (sender, source) = channel(1);
    let actor = actor_on(&store).source(source).options(small()).start().unwrap();
    fill(&sender, 0..10_000).await;
    sleep(seconds(31)).await;
    let counters = actor.counters();
    assert_adds_up(&counters);
    assert_eq!(counters.sources[0].backpressure, Backpressure::ShedOldest);
    assert!(counters.sources[0].shed > 9000, "{counters:?}");
    assert!(actor.health().memory_bytes <= 64 << 10);
    assert_eq!(actor.health().status, HealthStatus::Down);
    store.control().off();
    let counters = end(&actor).await;
    let found = values(store.inner()).await;
    assert_eq!(found.len() as u64 + counters.sources[0].shed, 10_000);
    // The first batch was on its way already; of the others the newest are there, without a hole.
    assert_eq!(found[..10], (0..10).collect::<Vec<_>>());
    let newest = &found[10..];
    let first = 10_000 - newest.len() as i64;
    assert_eq!(newest, (first..10_000).collect::<Vec<_>>());
}

/// A store that takes everything, and more slowly than it comes.
#[tokio::test(start_paused = true)]
async fn who_drops_records_is_not_healthy_although_the_store_works() {
    let slow = FaultPlan::new(1).with_slow(1.0, Duration::from_millis(100));
    let store = shaky(slow);
    store.control().on();
    let (sender, source) = channel(1);
    let actor = actor_on(&store).source(source).options(small()).start().unwrap();
    fill(&sender, 0..10_000).await;
    for _ in 0..3 {
        let health = actor.health();
        assert_eq!(health.status, HealthStatus::Down, "{health:?}");
        assert!(health.message.contains("dropped") && health.failing_for.is_none(), "{health:?}");
        fill(&sender, 0..1000).await;
    }
    // Nothing comes any more, and what is in memory is stored.
    eventually("it is well", async || actor.health().status == HealthStatus::Healthy).await;
    assert_adds_up(&end(&actor).await);
}

async fn spooling(limits: SpoolLimits) -> (Shaky, Filled) {
    let store = hanging();
    store.control().on();
    let (sender, source) = channel(1);
    let actor = actor_on(&store)
        .source(source)
        .spool(spool_of(limits).await)
        .options(small())
        .start()
        .unwrap();
    fill(&sender, 0..10_000).await;
    (store, Filled { actor, _sender: sender })
}

struct Filled {
    actor: StorageHandle,
    _sender: mpsc::Sender<Vec<MetricRecord>>,
}

#[tokio::test(start_paused = true)]
async fn spool_moves_the_oldest_out_of_memory_and_loses_nothing() {
    let (store, filled) = spooling(SpoolLimits::default()).await;
    let actor = &filled.actor;
    let counters = actor.counters();
    assert_adds_up(&counters);
    assert_eq!((counters.sources[0].shed, counters.sources[0].waits), (0, 0));
    assert!(counters.sources[0].spooled > 9000, "{counters:?}");
    assert!(actor.health().memory_bytes <= 64 << 10);
    assert_eq!(actor.health().backlog_records, 10_000);
    store.control().off();
    eventually("all is stored", async || stored(&store).await == 10_000).await;
    assert_eq!(values(store.inner()).await, (0..10_000).collect::<Vec<_>>());
    let counters = end(actor).await;
    assert_eq!(counters.drained, counters.sources[0].spooled);
}

#[tokio::test(start_paused = true)]
async fn a_full_spool_sheds_and_counts_and_the_health_is_down() {
    let (store, filled) = spooling(SpoolLimits::default().with_records_max(1000)).await;
    let actor = &filled.actor;
    sleep(seconds(31)).await;
    let counters = actor.counters();
    assert_adds_up(&counters);
    let source = &counters.sources[0];
    assert!((980..=1000).contains(&source.spooled), "{source:?}");
    assert!(source.shed > 8000, "{source:?}");
    let health = actor.health();
    assert_eq!(health.status, HealthStatus::Down, "{health:?}");
    assert!(health.failing_for.is_some() && !health.message.is_empty());
    assert!(actor.flush().await.is_err(), "there is nowhere to flush to");
    store.control().off();
    eventually("it is well again", async || actor.health().status == HealthStatus::Healthy).await;
    let counters = end(actor).await;
    let found = values(store.inner()).await;
    assert_eq!(found.len() as u64 + counters.sources[0].shed, 10_000);
    assert!(found.is_sorted());
}

#[tokio::test(start_paused = true)]
async fn a_source_cannot_spool_without_a_spool() {
    let (_sender, source) = channel(1);
    let source = source.with_backpressure(Backpressure::Spool);
    let error = StorageActor::new(refusing()).source(source).start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_eq!(error.context("source"), Some("source"));
}

/// Sources do not fill each other's memory.
#[tokio::test(start_paused = true)]
async fn a_flood_in_one_source_costs_the_others_nothing() {
    let store = hanging();
    store.control().on();
    let (flood, flooding) = channel(1);
    let (quiet, receiver) = mpsc::channel(16);
    let actor = actor_on(&store)
        .source(flooding)
        .source(Source::mpsc("quiet", receiver))
        .options(small())
        .start()
        .unwrap();
    quiet.send(MetricRecord::new("quiet", chrono::DateTime::UNIX_EPOCH, "m", 1.0)).await.unwrap();
    fill(&flood, 0..5000).await;
    store.control().off();
    let counters = end(&actor).await;
    assert!(counters.sources[0].shed > 0);
    assert_eq!((counters.sources[1].stored, counters.sources[1].shed), (1, 0));
}

/// A store that is slow, not down: the spool fills and empties, and nothing is lost or out of order.
#[tokio::test(start_paused = true)]
async fn a_slow_store_gets_everything_in_the_end() {
    let slow = FaultPlan::new(3).with_slow(1.0, seconds(8)).only(&[Operation::WriteBatch]);
    let store = shaky(slow);
    store.control().on();
    let (sender, source) = channel(1);
    let actor =
        actor_on(&store).source(source).spool(spool().await).options(small()).start().unwrap();
    for second in 0..120 {
        fill(&sender, second * 50..second * 50 + 50).await;
        sleep(seconds(1)).await;
    }
    drop(sender);
    actor.drained().await;
    assert_eq!(values(store.inner()).await, (0..6000).collect::<Vec<_>>());
    let counters = end(&actor).await;
    assert_eq!(counters.sources[0].stored + counters.drained, 6000);
}
