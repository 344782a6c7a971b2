//! The actor starts before its store is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use storage_core::layers::Deferred;
use storage_core::{Error, ErrorKind, HealthStatus, InMemory, StorageBackend};

use crate::support::*;

/// A store that is there when `is_there` says so.
async fn deferred(name: &'static str, is_there: &Arc<AtomicBool>) -> Arc<Deferred<InMemory>> {
    let is_there = Arc::clone(is_there);
    let opener = move || {
        let is_there = is_there.load(Ordering::Relaxed);
        async move {
            if is_there {
                Ok(InMemory::open(name))
            } else {
                Err(Error::new(ErrorKind::Unavailable, "nobody listens"))
            }
        }
    };
    Arc::new(Deferred::open(opener).await.unwrap())
}

#[tokio::test(start_paused = true)]
async fn what_comes_before_the_store_waits_in_the_spool() {
    let is_there = Arc::default();
    let store = deferred("late-spool", &is_there).await;
    let spool = spool().await;
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).spool(spool.clone()).start().unwrap();
    for tick in 0..300 {
        sender.send(records(tick * 100..tick * 100 + 100)).await.unwrap();
        tokio::time::sleep(seconds(1)).await;
        match tick {
            100 => {
                let health = actor.health();
                assert_eq!(health.status, HealthStatus::Degraded);
                assert!(health.message.contains("nobody listens"), "{health:?}");
                assert!(spool.backlog().records > 1000, "{health:?}");
            }
            200 => is_there.store(true, Ordering::Relaxed),
            _ => {}
        }
    }
    drop(sender);
    actor.drained().await;
    assert_eq!(actor.health().status, HealthStatus::Healthy);
    let counters = end(&actor).await;
    assert_eq!((counters.sources[0].shed, counters.drained > 1000), (0, true), "{counters:?}");
    assert_eq!(values(&*store).await, (0..30_000).collect::<Vec<_>>());
}

/// Without a spool memory is what there is, and the end finds it still there.
#[tokio::test(start_paused = true)]
async fn without_a_spool_memory_carries_what_it_can() {
    let is_there = Arc::default();
    let store = deferred("late-memory", &is_there).await;
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).start().unwrap();
    sender.send(records(0..5000)).await.unwrap();
    eventually("it is noticed", async || actor.health().status == HealthStatus::Degraded).await;
    is_there.store(true, Ordering::Relaxed);
    actor.flush().await.ok();
    eventually("it is stored", async || actor.health().backlog_records == 0).await;
    assert_eq!(values(&*store).await.len(), 5000);

    let never = deferred("late-never", &Arc::default()).await;
    let (sender, source) = channel(4);
    let actor = actor_on(&never).source(source).start().unwrap();
    sender.send(records(0..5000)).await.unwrap();
    let report = actor.shutdown(seconds(10)).await;
    assert_eq!((report.left, report.is_complete()), (5000, false));
    never.close().await.unwrap();
}
