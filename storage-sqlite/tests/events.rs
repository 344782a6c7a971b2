//! What only SQLite has of events: damage that is found, plans that use the index, space that is
//! given back, and what is read at once compared with what is read one by one.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use futures_util::TryStreamExt;
use serde_json::json;
use sqlx::{ConnectOptions, Row};
use storage_core::metrics::time::from_ms;
use storage_core::{
    ErrorKind, EventQuery, EventStore, EventStoreExt, NewEvent, ProjectionStep, StorageBackend,
    StoredEvent,
};
use storage_sqlite::{SqliteBackend, SqliteEvents, SqliteOptions};

async fn raw(path: &std::path::Path) -> sqlx::SqliteConnection {
    sqlx::sqlite::SqliteConnectOptions::new().filename(path).connect().await.unwrap()
}

fn event(n: i64) -> NewEvent {
    let event = NewEvent::new(format!("s{}", n % 7), "Counted", json!({ "n": n })).at(from_ms(n));
    if n % 3 == 0 { event } else { event.with_id(format!("id-{n:06}")) }
}

/// Reads in pages of so many at most.
async fn read_by(events: &SqliteEvents, limit: usize) -> Vec<StoredEvent> {
    let (mut found, mut query) = (Vec::new(), EventQuery::from(1).limit(limit));
    loop {
        let page = events.read(&query).await.unwrap();
        let Some(last) = page.last() else { return found };
        query.from = last.sequence + 1;
        found.extend(page);
    }
}

#[tokio::test]
async fn however_much_is_read_at_once_it_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = SqliteBackend::open(SqliteOptions::new(&path)).await.unwrap();
    let events = store.events();
    let mut batch: Vec<_> = (0..9000).map(event).collect();
    // Payloads that do not fit where many are read at once.
    for n in [10, 4000, 4001, 8999] {
        batch[n].payload = json!("x".repeat(900_000));
    }
    let stored = events.append_all(&batch).await.unwrap();
    for limit in [1000, 63, 1025, 8192, usize::MAX] {
        assert!(read_by(&events, limit).await == stored, "by {limit}");
    }
    events.prune_before(501).await.unwrap();
    assert!(read_by(&events, usize::MAX).await == stored[500..]);
}

/// The next page of a replay is on its way while its events are taken, and while they are not.
#[tokio::test]
async fn a_replay_that_rests_holds_nothing_that_others_need() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions::new(dir.path().join("store.db")).readers(1);
    let store = SqliteBackend::open(options.busy_timeout(Duration::from_secs(1))).await.unwrap();
    let events = store.events();
    let stored = events.append_all(&(0..20_000).map(event).collect::<Vec<_>>()).await.unwrap();
    let (mut log, mut replayed) = (events.replay_all(), Vec::new());
    while let Some(event) = log.try_next().await.unwrap() {
        if event.sequence % 1000 == 1 {
            let query = EventQuery::from(event.sequence).stream(&*event.stream).limit(1);
            assert_eq!(events.read(&query).await.unwrap(), std::slice::from_ref(&event));
        }
        replayed.push(event);
    }
    assert!(replayed == stored);
    drop(log);
    // One that is left in the middle does not hold up the end.
    let mut left = events.replay_all();
    left.try_next().await.unwrap().unwrap();
    drop(left);
    store.close().await.unwrap();
}

#[tokio::test]
async fn damage_is_an_error_and_found_by_check() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = SqliteBackend::open(SqliteOptions::new(&path)).await.unwrap();
    let events = store.events();
    events.append_all(&(0..200).map(event).collect::<Vec<_>>()).await.unwrap();
    let step = ProjectionStep::new("p", 0, 200).put("t", "a", json!(1)).put("t", "b", json!(2));
    events.project(&step).await.unwrap();
    let mut connection = raw(&path).await;
    let mut spoil = async |sql: &'static str| {
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        store.check().await.unwrap().problems.len()
    };
    assert_eq!(spoil("UPDATE events SET payload = '{oops' WHERE sequence = 70").await, 1);
    let error = events.read(&EventQuery::from(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.context("sequence")), (ErrorKind::Corrupt, Some("70")));
    assert_eq!(events.read(&EventQuery::from(71)).await.unwrap().len(), 130);
    assert_eq!(spoil("UPDATE projection_rows SET value_json = '?' WHERE key = 'a'").await, 2);
    let error = events.row::<u64>("p", "t", "a").await.unwrap_err();
    assert_eq!((error.kind(), error.context("key")), (ErrorKind::Corrupt, Some("a")));
    assert_eq!(spoil("DELETE FROM events WHERE sequence = 100").await, 3);
    assert_eq!(spoil("UPDATE events SET stream_id = 77 WHERE sequence = 150").await, 4);
}

#[tokio::test]
async fn space_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = SqliteBackend::open(SqliteOptions::new(&path)).await.unwrap();
    let events = store.events();
    let large = |n: i64| NewEvent { payload: "x".repeat(500).into(), ..event(n) };
    events.append_all(&(0..20_000).map(large).collect::<Vec<_>>()).await.unwrap();
    store.compact().await.unwrap();
    let before = store.stats().await.unwrap().disk_usage_bytes;
    assert_eq!(events.prune_before(19_001).await.unwrap(), 19_000);
    let after = store.stats().await.unwrap().disk_usage_bytes;
    assert!(after * 5 < before, "{before} bytes before, {after} after");
}

/// Questions must find their rows by an index, never by reading the table.
#[tokio::test]
async fn questions_go_by_an_index() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = SqliteBackend::open(SqliteOptions::new(&path)).await.unwrap();
    store.close().await.unwrap();
    let mut connection = raw(&path).await;
    for (question, by) in [
        (
            "SELECT e.payload FROM event_streams AS s CROSS JOIN events AS e
             INDEXED BY events_by_stream ON e.stream_id = s.id AND e.sequence >= 5
             WHERE s.name = 'a' ORDER BY e.sequence LIMIT 10",
            "events_by_stream (stream_id=? AND rowid>?)",
        ),
        (
            "SELECT e.payload FROM events AS e CROSS JOIN event_streams AS s ON s.id = e.stream_id
             WHERE e.sequence >= 5 ORDER BY e.sequence LIMIT 10",
            "SEARCH e USING INTEGER PRIMARY KEY (rowid>?)",
        ),
        (
            "SELECT group_concat(e.payload) FROM events AS e NOT INDEXED
             WHERE sequence BETWEEN 5 AND 10",
            "SEARCH e USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)",
        ),
        (
            "SELECT e.event_id FROM json_each('[1]') AS chosen CROSS JOIN events AS e
             INDEXED BY events_by_id ON e.event_id = chosen.value",
            "events_by_id (event_id=?)",
        ),
    ] {
        let plan = format!("EXPLAIN QUERY PLAN {question}");
        let rows = sqlx::query(sqlx::AssertSqlSafe(plan)).fetch_all(&mut connection).await.unwrap();
        let lines: Vec<String> = rows.iter().map(|row| row.try_get(3).unwrap()).collect();
        let plan = lines.join("\n");
        assert!(plan.contains(by), "{plan}");
        assert!(!plan.contains("TEMP B-TREE") && !plan.contains("SCAN e"), "{plan}");
    }
}
