//! What the sketch that this grew from got wrong, one test each; and what an actor is for.

use std::sync::Arc;

use storage_core::layers::{Fault, FaultPlan, Faulty, Operation};
use storage_core::pipeline::{Source, StorageCommand};
use storage_core::{HealthStatus, InMemory, MetricRecord, StorageBackend, TimeRange};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use crate::support::*;

/// There, a full buffer spawned a task that did nothing.
#[tokio::test(start_paused = true)]
async fn a_full_buffer_is_written_without_anybody_asking() {
    let store = refusing();
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).start().unwrap();
    sender.send(records(0..999)).await.unwrap();
    sleep(seconds(1)).await;
    assert_eq!(stored(&store).await, 0);
    sender.send(records(999..1000)).await.unwrap();
    sleep(seconds(1)).await;
    assert_eq!(stored(&store).await, 1000);
    end(&actor).await;
}

/// There, a flush that failed had taken the buffer, and dropped it.
#[tokio::test(start_paused = true)]
async fn a_failed_flush_keeps_its_batch() {
    let store = refusing();
    store.control().on();
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).start().unwrap();
    sender.send(records(0..1000)).await.unwrap();
    sleep(seconds(3)).await;
    assert_eq!((stored(&store).await, actor.counters().sources[0].held), (0, 1000));
    assert_eq!(actor.health().status, HealthStatus::Degraded);
    store.control().off();
    eventually("the batch is stored", async || stored(&store).await == 1000).await;
    let counters = end(&actor).await;
    assert_eq!((counters.sources[0].stored, counters.sources[0].held), (1000, 0));
    assert!(counters.write_failures >= 2);
}

/// Whether a write was applied or not, its records are there once, however it failed.
#[tokio::test(start_paused = true)]
async fn a_write_that_failed_in_any_way_is_there_once() {
    for fault in [Fault::Refused, Fault::LostRequest, Fault::LostReply, Fault::HangAfter] {
        let store = Arc::new(Faulty::new(InMemory::new(), FaultPlan::new(1)));
        store.control().inject(Operation::WriteBatch, fault);
        let (sender, source) = channel(4);
        let actor = actor_on(&store).source(source).start().unwrap();
        sender.send(records(0..100)).await.unwrap();
        let _ = timeout(seconds(60), actor.flush()).await;
        eventually("the batch is stored", async || stored(&store).await == 100).await;
        let counters = end(&actor).await;
        assert_eq!(counters.sources[0].stored, 100, "{fault:?}");
        assert_eq!((counters.writes, counters.write_failures), (1, 1), "{fault:?}");
        assert_eq!(values(store.inner()).await, (0..100).collect::<Vec<_>>());
    }
}

/// There, the command to shut down only logged, and the flush behind the loop was never reached.
#[tokio::test(start_paused = true)]
async fn the_last_flush_is_reached_by_every_way_to_stop() {
    // By the handle.
    let store = refusing();
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).start().unwrap();
    sender.send(records(0..5)).await.unwrap();
    assert_eq!(end(&actor).await.sources[0].stored, 5);
    assert_eq!(stored(&store).await, 5);
    assert!(sender.send(records(0..5)).await.is_err(), "nobody takes it any more");
    // By a command.
    let store = refusing();
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).start().unwrap();
    sender.send(records(0..5)).await.unwrap();
    let (respond_to, answer) = oneshot::channel();
    let deadline = seconds(9);
    let command = StorageCommand::Shutdown { deadline, respond_to };
    actor.mailbox(1).send(command).await.unwrap();
    assert!(answer.await.unwrap().is_complete());
    assert_eq!(stored(&store).await, 5);
    // By the end of its sources, without a handle.
    let store = refusing();
    let (sender, source) = channel(4);
    drop(actor_on(&store).source(source).start().unwrap());
    sender.send(records(0..5)).await.unwrap();
    drop(sender);
    sleep(seconds(1)).await;
    assert_eq!(stored(&store).await, 5);
}

/// There, the loop that received was the one that wrote.
#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_holds_up_no_producer_and_no_question() {
    let store = hanging();
    store.control().on();
    let (sender, source) = channel(1);
    let actor = actor_on(&store).source(source).start().unwrap();
    let started = Instant::now();
    for batch in 0..500 {
        sender.send(records(batch * 10..batch * 10 + 10)).await.unwrap();
    }
    assert_eq!(started.elapsed(), seconds(0), "a producer waited");
    assert_eq!(actor.stats().await.unwrap().total_metrics, 0);
    assert!(actor.query("web-1", "cpu", TimeRange::all()).await.unwrap().is_empty());
    assert_eq!(actor.aggregate("web-1", "cpu", TimeRange::all()).await.unwrap().count, 0);
    assert_eq!(started.elapsed(), seconds(0), "a question waited");
    store.control().off();
    eventually("all is stored", async || stored(&store).await == 5000).await;
    end(&actor).await;
}

/// There, a broadcast that lagged ended the branch of the loop without a word.
#[tokio::test(start_paused = true)]
async fn a_lagged_broadcast_is_counted_and_goes_on() {
    let store = refusing();
    let (sender, receiver) = broadcast::channel(16);
    for number in 0..100 {
        sender.send(record(number)).unwrap();
    }
    let source = Source::broadcast("events", receiver);
    let actor = actor_on(&store).source(source).start().unwrap();
    actor.flush().await.unwrap();
    sender.send(record(100)).unwrap();
    drop(sender);
    actor.drained().await;
    let counters = end(&actor).await;
    assert_eq!((counters.sources[0].lagged, counters.sources[0].received), (84, 17));
    assert_eq!(values(store.inner()).await, (84..101).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_record_is_stored_when_its_batch_is_old_enough() {
    let store = refusing();
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).start().unwrap();
    for round in 0..3_u64 {
        sleep(seconds(7)).await;
        let since = Instant::now();
        sender.send(records(round as i64..round as i64 + 1)).await.unwrap();
        sleep(seconds(29)).await;
        assert_eq!(stored(&store).await, round);
        assert_eq!(actor.health().oldest_age, Some(since.elapsed()));
        sleep(seconds(2)).await;
        assert_eq!(stored(&store).await, round + 1);
        assert_eq!(actor.health().oldest_age, None);
    }
    end(&actor).await;
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_stored_when_it_is_large_enough() {
    let store = refusing();
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).start().unwrap();
    let large = |number| record(number).with_metadata(serde_json::json!("x".repeat(60_000)));
    sender.send((0..17).map(large).collect()).await.unwrap();
    sleep(seconds(1)).await;
    assert_eq!(stored(&store).await, 0);
    sender.send(vec![large(17)]).await.unwrap();
    sleep(seconds(1)).await;
    assert_eq!(stored(&store).await, 18);
    end(&actor).await;
}

#[tokio::test(start_paused = true)]
async fn a_flush_takes_what_was_sent_before() {
    let store = refusing();
    let (sender, source) = channel(64);
    let (singles, receiver) = mpsc::channel::<MetricRecord>(10_000);
    let actor =
        actor_on(&store).source(source).source(Source::mpsc("singles", receiver)).start().unwrap();
    for round in 0..20 {
        sender.send(records(round * 100..round * 100 + 100)).await.unwrap();
    }
    for number in 10_000..17_000 {
        singles.send(record(number)).await.unwrap();
    }
    actor.flush().await.unwrap();
    assert_eq!(stored(&store).await, 9000);
    let counters = end(&actor).await;
    let stored_of: Vec<_> = counters.sources.iter().map(|source| source.stored).collect();
    assert_eq!(stored_of, [2000, 7000]);
}

/// It returns when the store has what was sent before, and not earlier.
#[tokio::test(start_paused = true)]
async fn a_flush_waits_for_a_slow_store() {
    let store = Arc::new(Faulty::new(InMemory::new(), FaultPlan::new(1)));
    for _ in 0..2 {
        store.control().inject(Operation::WriteBatch, Fault::SlowBefore(seconds(10)));
    }
    let (sender, source) = channel(64);
    let actor = actor_on(&store).source(source).start().unwrap();
    for round in 0..3 {
        sender.send(records(round * 1000..round * 1000 + 700)).await.unwrap();
        actor.flush().await.unwrap();
        assert_eq!(stored(&store).await, (round as u64 + 1) * 700);
    }
    end(&actor).await;
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_fails_says_so_and_drops_nothing() {
    let store = refusing();
    store.control().on();
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).start().unwrap();
    sender.send(records(0..10)).await.unwrap();
    let error = timeout(seconds(60), actor.flush()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), storage_core::ErrorKind::Unavailable);
    assert_eq!(actor.health().backlog_records, 10);
    store.control().off();
    eventually("it is stored", async || actor.flush().await.is_ok()).await;
    assert_eq!(stored(&store).await, 10);
    assert_eq!(actor.health().status, HealthStatus::Healthy);
    end(&actor).await;
}

#[tokio::test(start_paused = true)]
async fn a_flush_may_be_given_up_at_any_time() {
    let store = hanging();
    store.control().on();
    let (sender, source) = channel(4);
    let actor = actor_on(&store).source(source).start().unwrap();
    sender.send(records(0..10)).await.unwrap();
    for _ in 0..5 {
        assert!(timeout(seconds(1), actor.flush()).await.is_err());
    }
    store.control().off();
    eventually("it is stored", async || stored(&store).await == 10).await;
    assert_eq!(end(&actor).await.sources[0].stored, 10);
}

#[tokio::test(start_paused = true)]
async fn a_source_may_be_any_stream_of_anything() {
    #[derive(Clone)]
    struct Reading(i64);
    impl storage_core::pipeline::IntoRecords for Reading {
        fn append_to(self, records: &mut Vec<MetricRecord>) {
            records.extend([record(self.0 * 2), record(self.0 * 2 + 1)]);
        }
    }
    let store = refusing();
    let stream = futures_util::stream::iter((0..1000).map(Reading));
    let source = Source::stream("readings", stream);
    let actor = actor_on(&store).source(source).start().unwrap();
    actor.drained().await;
    assert_eq!(values(store.inner()).await, (0..2000).collect::<Vec<_>>());
    let counters = end(&actor).await;
    assert!(counters.sources[0].ended);
    assert_eq!(store.inner().stats().await.unwrap().series, 1);
}
