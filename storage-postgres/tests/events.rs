//! What only PostgreSQL has of events: transactions of others that are not committed yet, and space
//! that is given back.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use futures_util::TryStreamExt;
use libtest_mimic::{Arguments, Failed};
use serde_json::json;
use storage_core::{EventQuery, EventStore, EventStoreExt, NewEvent, StorageBackend};
use storage_postgres::PostgresBackend;

#[path = "support/mod.rs"]
mod support;

use support::server::shared_trial;

fn main() {
    let trials = vec![
        shared_trial("no_event_appears_below_one_that_was_seen", || {
            tokio::runtime::Runtime::new()?.block_on(no_event_appears_late());
            Ok::<_, Failed>(())
        }),
        shared_trial("space_is_given_back", || {
            tokio::runtime::Runtime::new()?.block_on(space_is_given_back());
            Ok::<_, Failed>(())
        }),
        shared_trial("what_is_missing_is_found_by_check", || {
            tokio::runtime::Runtime::new()?.block_on(damage_is_found());
            Ok::<_, Failed>(())
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

async fn open(schema: &str) -> PostgresBackend {
    let url = support::url().unwrap();
    PostgresBackend::open(support::options(&url, schema)).await.unwrap()
}

fn event(n: i64) -> NewEvent {
    NewEvent::new("s", "Counted", json!({ "n": n }))
}

/// One transaction takes its number and does not commit. Another one, begun later, must not become
/// visible before it: a reader that had gone on to the later number would miss the earlier one.
async fn no_event_appears_late() {
    let schema = format!("events_order_{}", std::process::id());
    let (slow, fast) = (open(&schema).await, open(&schema).await);
    let (reader, events) = (slow.events(), fast.events());
    events.append_all(&[event(1)]).await.unwrap();
    let url = support::url().unwrap();
    // What an append of a third process does, up to its commit.
    let third = support::raw(&url).await;
    let begin = format!(
        "SET search_path = {schema}, pg_temp; BEGIN; SELECT last FROM event_state FOR UPDATE;
         INSERT INTO events SELECT 2, id, 2, NULL, 'Counted', now(), '{{\"n\": 2}}'
         FROM event_streams WHERE name = 's';
         UPDATE event_streams SET version = 2; UPDATE event_state SET last = 2"
    );
    third.batch_execute(&begin).await.unwrap();
    let mut appending = tokio::spawn(async move { events.append_all(&[event(3)]).await });
    let early = tokio::time::timeout(Duration::from_millis(500), &mut appending).await;
    assert!(early.is_err(), "it did not wait for the numbers before its own");
    assert_eq!(reader.read(&EventQuery::from(1)).await.unwrap().len(), 1);
    assert_eq!(reader.extent().await.unwrap().last, 1);
    third.batch_execute("COMMIT").await.unwrap();
    let stored = appending.await.unwrap().unwrap();
    assert_eq!((stored[0].sequence, stored[0].version), (3, 3));
    let found = reader.read(&EventQuery::from(1)).await.unwrap();
    let numbers: Vec<_> = found.iter().map(|event| event.payload["n"].as_i64()).collect();
    assert_eq!(numbers, [Some(1), Some(2), Some(3)]);

    // Rolled back, it leaves no gap.
    third.batch_execute(&begin.replace("SELECT 2,", "SELECT 4,")).await.unwrap();
    third.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(reader.append_all(&[event(4)]).await.unwrap()[0].sequence, 4);
    assert_eq!(slow.check().await.unwrap().problems, Vec::<String>::new());
    slow.close().await.unwrap();
    fast.close().await.unwrap();
    support::drop_schema(&url, &schema).await;
}

/// A compaction gives it back unless the server is busy with the table just then.
async fn space_is_given_back() {
    let schema = format!("events_space_{}", std::process::id());
    let store = open(&schema).await;
    let events = store.events();
    let large = "x".repeat(500);
    for first in (0..50_000).step_by(5000) {
        let event = |n| NewEvent::new("s", "Counted", json!([n, large]));
        events.append_all(&(first..first + 5000).map(event).collect::<Vec<_>>()).await.unwrap();
    }
    let url = support::url().unwrap();
    let client = support::raw(&url).await;
    let size = async || {
        let sql = format!("SELECT pg_table_size('{schema}.events')");
        client.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    let full = size().await;
    store.compact().await.unwrap();
    assert!(size().await >= full, "nothing was empty");
    assert_eq!(events.prune_before(48_001).await.unwrap(), 48_000);
    support::eventually(Duration::from_secs(30), "give space back", async || {
        store.compact().await.unwrap();
        size().await < full / 10
    })
    .await;
    let left: Vec<_> = events.replay_all().try_collect().await.unwrap();
    assert!(left.iter().map(|event| event.sequence).eq(48_001..=50_000), "{}", left.len());
    assert_eq!(events.append_all(&[event(1)]).await.unwrap()[0].sequence, 50_001);
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
    store.close().await.unwrap();
    support::drop_schema(&url, &schema).await;
}

async fn damage_is_found() {
    let schema = format!("events_damage_{}", std::process::id());
    let store = open(&schema).await;
    store.events().append_all(&(0..20).map(event).collect::<Vec<_>>()).await.unwrap();
    let url = support::url().unwrap();
    let client = support::raw(&url).await;
    let spoil = format!(
        "SET search_path = {schema}, pg_temp; DELETE FROM events WHERE sequence = 7;
         UPDATE events SET stream_id = 77 WHERE sequence = 9"
    );
    client.batch_execute(&spoil).await.unwrap();
    assert_eq!(store.check().await.unwrap().problems.len(), 2);
    store.close().await.unwrap();
    support::drop_schema(&url, &schema).await;
}
