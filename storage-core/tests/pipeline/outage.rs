//! The store is away for a while: everything is there once afterwards, in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use storage_core::layers::{Fault, FaultPlan, Faulty, Operation};
use storage_core::metrics::time::from_ms;
use storage_core::pipeline::{ActorOptions, Spool, SpoolLimits};
use storage_core::{
    HealthStatus, InMemory, MetricAggregation, MetricRecord, Result, StorageBackend, StorageStats,
    TimeRange,
};
use tokio::time::{Instant, sleep, timeout};

use crate::support::*;

/// Over a hundred series, the store away for 30 s in the middle of 40.
#[tokio::test(start_paused = true)]
async fn thirty_seconds_without_a_store_lose_and_double_nothing() {
    for (plan, per_tick) in [
        (FaultPlan::new(1).with_refused(1.0), 1000),
        (FaultPlan::new(2).with_hang_before(1.0), 200),
        (FaultPlan::new(3).with_refused(0.5).with_lost_reply(0.3).with_hang_after(0.2), 200),
    ] {
        let store = shaky(plan);
        let (sender, source) = channel(4);
        let actor = actor_on(&store).source(source).spool(spool().await).start().unwrap();
        for tick in 0..400_i64 {
            match tick {
                50 => store.control().on(),
                350 => store.control().off(),
                _ => {}
            }
            let of = |no: i64| {
                let value = tick * per_tick + no;
                let (ms, server) = (value / 100, format!("web-{}", value % 100));
                MetricRecord::new(server, from_ms(ms), "cpu", value as f64)
            };
            let sending = Instant::now();
            sender.send((0..per_tick).map(of).collect()).await.unwrap();
            assert_eq!(sending.elapsed(), Duration::ZERO, "the producer waited");
            sleep(Duration::from_millis(100)).await;
            if tick == 340 {
                let health = actor.health();
                assert_eq!(health.status, HealthStatus::Degraded);
                assert!(health.backlog_records as i64 > per_tick * 200, "{health:?}");
                assert!(health.oldest_age.unwrap() > seconds(25), "{health:?}");
                assert!(health.failing_for.unwrap() > seconds(5), "{health:?}");
            }
        }
        drop(sender);
        actor.drained().await;
        assert_eq!(actor.health().status, HealthStatus::Healthy);
        let counters = end(&actor).await;
        let (source, sent) = (&counters.sources[0], per_tick as u64 * 400);
        assert_eq!((source.received, source.shed, source.lagged), (sent, 0, 0));
        assert_eq!(source.stored + counters.drained, sent);
        assert_eq!(stored(&store).await, sent);
        for server in 0..100 {
            let name = format!("web-{server}");
            let found = store.inner().query_range(&name, "cpu", TimeRange::all()).await.unwrap();
            let right = |(index, record): (usize, &MetricRecord)| {
                record.value as i64 == index as i64 * 100 + server
            };
            assert!(
                found.len() as u64 == sent / 100 && found.iter().enumerate().all(right),
                "{name}"
            );
        }
    }
}

/// Without a spool memory carries an outage that is short enough.
#[tokio::test(start_paused = true)]
async fn a_short_outage_needs_no_spool() {
    let store = refusing();
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).start().unwrap();
    store.control().on();
    for tick in 0..50 {
        sender.send(records(tick * 1000..tick * 1000 + 1000)).await.unwrap();
        sleep(Duration::from_millis(100)).await;
    }
    store.control().off();
    drop(sender);
    actor.drained().await;
    assert_eq!(end(&actor).await.sources[0].stored, 50_000);
    assert_eq!(stored(&store).await, 50_000);
}

/// Refuses nothing itself, and notices a write that comes before one that is older.
struct InOrder {
    inner: Shaky,
    newest: AtomicI64,
}

#[async_trait]
impl StorageBackend for InOrder {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        self.inner.write_batch(records).await?;
        for record in records {
            let before = self.newest.swap(record.value as i64, Ordering::SeqCst);
            assert!(before < record.value as i64, "{} after {before}", record.value);
        }
        Ok(())
    }
    async fn query_range(&self, s: &str, m: &str, range: TimeRange) -> Result<Vec<MetricRecord>> {
        self.inner.query_range(s, m, range).await
    }
    async fn aggregate(&self, s: &str, m: &str, range: TimeRange) -> Result<MetricAggregation> {
        self.inner.aggregate(s, m, range).await
    }
    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        self.inner.prune_before(cutoff).await
    }
    async fn stats(&self) -> Result<StorageStats> {
        self.inner.stats().await
    }
}

/// Whatever comes and goes, of a sample that is written again and again the last one stays, and no
/// older one is seen behind it.
#[tokio::test(start_paused = true)]
async fn the_order_is_kept_through_memory_and_spool() {
    let inner = refusing();
    let store = Arc::new(InOrder { inner: Arc::clone(&inner), newest: AtomicI64::new(-1) });
    let (sender, source) = channel(4);
    let options = ActorOptions::default()
        .with_flush_records(7)
        .with_memory_bytes_max(16 << 10)
        .with_spool_after(seconds(2));
    let actor =
        actor_on(&store).source(source).spool(spool().await).options(options).start().unwrap();
    let mut number = 0;
    for round in 0..200_u64 {
        match round % 20 {
            3 | 9 => inner.control().on(),
            7 | 16 => inner.control().off(),
            _ => {}
        }
        for _ in 0..(round % 7) * 5 {
            let same = MetricRecord::new("web-1", from_ms(0), "cpu", number as f64);
            sender.send(vec![same]).await.unwrap();
            number += 1;
        }
        sleep(Duration::from_millis(500)).await;
    }
    inner.control().off();
    drop(sender);
    // A store that was written out of order has panicked, and is written again and again.
    timeout(seconds(3600), actor.drained()).await.unwrap();
    assert_eq!(values(&*store).await, [number - 1]);
    let counters = end(&actor).await;
    assert!(counters.drained > 0 && counters.sources[0].stored > 0, "{counters:?}");
    assert_eq!(counters.sources[0].shed, 0);
    assert_eq!(counters.drained + counters.sources[0].stored, number as u64);
    assert!(counters.write_failures > 0);
}

/// Both the store and the spool fail for a while: memory carries it, and says so.
#[tokio::test(start_paused = true)]
async fn a_spool_that_fails_loses_nothing_that_fits_into_memory() {
    let (store, spool_store) = (refusing(), refusing());
    let spool = Spool::open(as_dyn(&spool_store), SpoolLimits::default());
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).spool(spool.await.unwrap()).start().unwrap();
    store.control().on();
    spool_store.control().on();
    for tick in 0..30 {
        sender.send(records(tick * 1000..tick * 1000 + 1000)).await.unwrap();
        sleep(seconds(1)).await;
    }
    assert_eq!(actor.counters().sources[0].held, 30_000);
    assert!(actor.health().message.contains("refused"), "{:?}", actor.health());
    assert!(actor.flush().await.is_err());
    // The store first, the spool never.
    store.control().off();
    eventually("all is stored", async || stored(&store).await == 30_000).await;
    assert_eq!(values(store.inner()).await, (0..30_000).collect::<Vec<_>>());
    end(&actor).await;
}

/// A disk that fails: the spool keeps what was drained, and takes nothing. The store works.
#[tokio::test(start_paused = true)]
async fn a_spool_that_broke_does_not_keep_anything_from_the_store() {
    for push in [Fault::LostRequest, Fault::LostReply] {
        let store = refusing();
        let plan = FaultPlan::new(1).with_refused(1.0);
        let plan = plan.only(&[Operation::WriteBatch, Operation::PruneBefore]);
        let spool_store = Arc::new(Faulty::new(InMemory::new(), plan));
        spool_store.control().off();
        let spool = Spool::open(as_dyn(&spool_store), SpoolLimits::default());
        let (sender, source) = channel(4);
        let actor = actor_on(&store).source(source).spool(spool.await.unwrap()).start().unwrap();
        store.control().on();
        sender.send(records(0..1000)).await.unwrap();
        eventually("it is spooled", async || actor.counters().sources[0].spooled == 1000).await;
        spool_store.control().inject(Operation::WriteBatch, push);
        spool_store.control().on();
        sender.send(records(1000..2000)).await.unwrap();
        let is_broken = async || spool_store.control().counts().refused > 0;
        eventually("the spool broke", is_broken).await;
        store.control().off();
        eventually("the first are stored", async || stored(&store).await == 2000).await;
        for tick in 2..5 {
            sender.send(records(tick * 1000..tick * 1000 + 1000)).await.unwrap();
        }
        eventually("all are stored", async || stored(&store).await == 5000).await;
        let health = actor.health();
        assert_eq!(health.status, HealthStatus::Degraded, "{health:?}");
        spool_store.control().off();
        drop(sender);
        timeout(seconds(600), actor.drained()).await.unwrap();
        end(&actor).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_spool_that_panics_is_one_that_fails() {
    let store = refusing();
    let spool = Spool::open(Arc::new(Panicking::new(3)), SpoolLimits::default());
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).spool(spool.await.unwrap()).start().unwrap();
    store.control().on();
    sender.send(records(0..1000)).await.unwrap();
    eventually("it is spooled", async || actor.counters().sources[0].spooled == 1000).await;
    sleep(seconds(30)).await;
    store.control().off();
    drop(sender);
    timeout(seconds(600), actor.drained()).await.unwrap();
    assert_eq!((stored(&store).await, end(&actor).await.drained), (1000, 1000));
}

#[tokio::test(start_paused = true)]
async fn a_spool_that_hangs_does_not_keep_the_batch_from_the_store() {
    let (store, spool_store) = (refusing(), hanging());
    let spool = Spool::open(as_dyn(&spool_store), SpoolLimits::default());
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).spool(spool.await.unwrap()).start().unwrap();
    store.control().on();
    spool_store.control().on();
    sender.send(records(0..1000)).await.unwrap();
    sleep(seconds(60)).await;
    assert!(actor.health().message.contains("the spool took too long"), "{:?}", actor.health());
    store.control().off();
    eventually("it is stored", async || stored(&store).await == 1000).await;
    drop((sender, actor));
}

#[tokio::test(start_paused = true)]
async fn the_age_of_a_record_goes_with_it_into_the_spool() {
    let store = refusing();
    store.control().on();
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).spool(spool().await).start().unwrap();
    let since = Instant::now();
    sender.send(records(0..1000)).await.unwrap();
    eventually("it is spooled", async || actor.counters().sources[0].spooled == 1000).await;
    sleep(seconds(20)).await;
    let age = actor.health().oldest_age.unwrap();
    assert!(since.elapsed() - age < seconds(1), "{age:?}");
    store.control().off();
    drop(sender);
    actor.drained().await;
    end(&actor).await;
}

/// The longest time there is stands for never.
#[tokio::test(start_paused = true)]
async fn what_is_never_due_holds_up_nothing() {
    let store = refusing();
    let (sender, source) = channel(4);
    let options = ActorOptions::default()
        .with_flush_interval(Duration::MAX)
        .with_spool_after(Duration::MAX)
        .with_write_timeout(Duration::MAX);
    let actor =
        actor_on(&store).source(source).spool(spool().await).options(options).start().unwrap();
    sender.send(records(0..10)).await.unwrap();
    actor.flush().await.unwrap();
    assert_eq!(stored(&store).await, 10);
    store.control().on();
    sender.send(records(10..20)).await.unwrap();
    drop(sender);
    sleep(seconds(60)).await;
    assert_eq!(actor.counters().sources[0].held, 10, "nothing is spooled");
    store.control().off();
    eventually("all is stored", async || stored(&store).await == 20).await;
    let report = actor.shutdown(Duration::MAX).await;
    assert!(report.is_complete(), "{report:?}");
}
