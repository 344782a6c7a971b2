//! Records that cannot be stored are set aside with a reason, and the rest goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use storage_core::layers::{FaultPlan, Faulty, Operation};
use storage_core::pipeline::{Source, StorageActor};
use storage_core::{
    Error, InMemory, MetricAggregation, MetricRecord, Result, StorageBackend, StorageStats,
    TimeRange,
};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::support::*;

/// A store with a rule of its own, or one that panics at first.
struct Odd {
    inner: InMemory,
    /// Refuses what is a multiple of it.
    refuses: i64,
    names_the_record: bool,
    panics_left: AtomicU32,
}

impl Odd {
    fn new(refuses: i64, names_the_record: bool, panics: u32) -> Arc<Self> {
        let (inner, panics_left) = (InMemory::new(), AtomicU32::new(panics));
        Arc::new(Self { inner, refuses, names_the_record, panics_left })
    }
}

#[async_trait]
impl StorageBackend for Odd {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        let (set, get) = (Ordering::SeqCst, Ordering::SeqCst);
        let panics = self.panics_left.fetch_update(set, get, |left| left.checked_sub(1));
        assert!(panics.is_err(), "a defect of the driver");
        let is_bad = |record: &MetricRecord| record.value as i64 % self.refuses == 0;
        match records.iter().position(is_bad) {
            Some(index) if self.names_the_record => {
                Err(Error::invalid("no such number").with_context("record", index))
            }
            Some(_) => Err(Error::invalid("something is wrong")),
            None => self.inner.write_batch(records).await,
        }
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

#[tokio::test(start_paused = true)]
async fn invalid_records_are_set_aside_and_the_rest_is_stored() {
    let store = refusing();
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).start().unwrap();
    let mut batch = records(0..500);
    for index in [0, 7, 499] {
        batch[index].value = f64::NAN;
    }
    batch[8].server_id = String::new();
    sender.send(batch).await.unwrap();
    actor.flush().await.unwrap();
    assert_eq!(stored(&store).await, 496);
    let set_aside = actor.take_set_aside();
    let fields: Vec<_> = set_aside.iter().map(|one| one.reason.context("field").unwrap()).collect();
    assert_eq!(fields, ["value", "value", "server_id", "value"]);
    assert_eq!(set_aside[1].source.as_deref(), Some("source"));
    assert_eq!(set_aside[2].record.value, 8.0);
    assert!(actor.take_set_aside().is_empty(), "they are handed out once");
    assert_eq!(end(&actor).await.sources[0].invalid, 4);
}

/// Many are counted, the newest kept: memory is bounded here, too.
#[tokio::test(start_paused = true)]
async fn no_more_than_a_hundred_are_kept() {
    let (sender, source) = channel(4);
    let actor = StorageActor::new(refusing()).source(source).start().unwrap();
    let mut batch = records(0..300);
    batch.iter_mut().for_each(|record| record.metric_type.clear());
    sender.send(batch).await.unwrap();
    actor.flush().await.unwrap();
    let kept = actor.take_set_aside();
    assert_eq!((kept.len(), kept[0].record.value), (100, 200.0));
    assert_eq!(end(&actor).await.sources[0].invalid, 300);
}

/// A store may have rules that nobody else has: it need not even say which record it means.
#[tokio::test(start_paused = true)]
async fn what_the_store_refuses_for_good_is_set_aside() {
    for names_the_record in [true, false] {
        let store = Odd::new(100, names_the_record, 0);
        let (one, source) = channel(4);
        let (two, receiver) = mpsc::channel(4);
        let actor =
            actor_on(&store).source(source).source(Source::mpsc("two", receiver)).start().unwrap();
        one.send(records(1..500)).await.unwrap();
        two.send(records(500..999)).await.unwrap();
        actor.flush().await.unwrap();
        assert_eq!(store.stats().await.unwrap().total_metrics, 989);
        let mut refused: Vec<_> =
            actor.take_set_aside().iter().map(|one| one.record.value).collect();
        refused.sort_by(f64::total_cmp);
        assert_eq!(refused, [100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0, 900.0]);
        let counters = end(&actor).await;
        let of: Vec<_> = counters.sources.iter().map(|one| (one.stored, one.invalid)).collect();
        assert_eq!(of, [(495, 4), (494, 5)], "{names_the_record}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_is_one_that_fails() {
    let store = Odd::new(i64::MAX, true, 3);
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).start().unwrap();
    sender.send(records(1..11)).await.unwrap();
    assert!(actor.flush().await.is_err());
    sleep(seconds(60)).await;
    actor.flush().await.unwrap();
    assert_eq!(store.stats().await.unwrap().total_metrics, 10);
    assert_eq!(end(&actor).await.write_failures, 3);
}

/// Also what waited in the spool until the store said so.
#[tokio::test(start_paused = true)]
async fn what_is_refused_out_of_the_spool_is_set_aside() {
    let rule = |record: &MetricRecord| match record.value as i64 % 100 {
        0 => Err(Error::invalid("no such number")),
        _ => Ok(()),
    };
    let plan = FaultPlan::new(1).with_refused(1.0).only(&[Operation::WriteBatch]);
    let store = Arc::new(Faulty::new(Ruled::new(rule), plan));
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).spool(spool().await).start().unwrap();
    sender.send(records(1..1001)).await.unwrap();
    eventually("it is spooled", async || actor.counters().sources[0].spooled == 1000).await;
    store.control().off();
    drop(sender);
    actor.drained().await;
    let set_aside = actor.take_set_aside();
    assert_eq!(set_aside.iter().map(|one| &one.source).collect::<Vec<_>>(), [&None; 10]);
    assert_eq!((set_aside[0].record.value, set_aside[9].record.value), (100.0, 1000.0));
    let counters = end(&actor).await;
    assert_eq!((counters.drained, counters.drained_invalid), (990, 10));
    assert_eq!(store.inner().stats().await.unwrap().total_metrics, 990);
}

/// A spool takes valid records alone, and would refuse the whole batch.
#[tokio::test(start_paused = true)]
async fn an_invalid_record_keeps_no_batch_out_of_the_spool() {
    let store = refusing();
    store.control().on();
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).spool(spool().await).start().unwrap();
    let mut batch = records(0..1000);
    batch[7].value = f64::NAN;
    sender.send(batch).await.unwrap();
    sender.send(records(1000..2000)).await.unwrap();
    eventually("it is spooled", async || actor.counters().sources[0].held < 1000).await;
    actor.flush().await.unwrap();
    let counters = actor.counters();
    assert_eq!((counters.sources[0].spooled, counters.sources[0].invalid), (1999, 1));
    store.control().off();
    drop(sender);
    actor.drained().await;
    assert_eq!(stored(&store).await, 1999);
    end(&actor).await;
}
