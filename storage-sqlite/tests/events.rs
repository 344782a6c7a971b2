//! What only SQLite has of events: damage that is found, plans that use an index, space that is
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

/// A store with 200 events in chunks of 50, and rows of a projection.
async fn store_of_200(path: &std::path::Path) -> SqliteBackend {
    let store = SqliteBackend::open(SqliteOptions::new(path)).await.unwrap();
    let events = store.events();
    for first in (0..200).step_by(50) {
        events.append_all(&(first..first + 50).map(event).collect::<Vec<_>>()).await.unwrap();
    }
    let step = ProjectionStep::new("p", 0, 200).put("t", "a", json!(1)).put("t", "b", json!(2));
    events.project(&step).await.unwrap();
    store
}

#[tokio::test]
async fn damage_is_found_by_check() {
    for (sql, expected) in [
        (
            "UPDATE event_chunks SET events = replace(events, '{\"n\":70}', '{oops')",
            &["event 51: its chunk of 50 is damaged"] as &[_],
        ),
        (
            "UPDATE event_chunks SET count = 49 WHERE first = 151",
            &["event 151: its chunk of 49 is damaged"],
        ),
        (
            "DELETE FROM event_chunks WHERE first = 101",
            &[
                "events 101 to 150: missing",
                "the index of ids has 34 entries of no event",
                "the index of streams has 7 entries of no event",
            ],
        ),
        ("DELETE FROM event_ids WHERE sequence = 2", &["the index of ids lacks 1 entries"]),
        (
            "UPDATE event_streams SET version = 77 WHERE name = 's0'",
            &["stream s0: its last event has another version"],
        ),
        (
            "UPDATE event_streams SET name = 'x' WHERE name = 's1'",
            &["the index of streams lacks 4 entries", "stream s1: it is unknown"],
        ),
        (
            "UPDATE event_stream_chunks SET version = 3 WHERE first = 151 AND stream_id = 1",
            &["the index of streams lacks 1 entries"],
        ),
        (
            "UPDATE event_chunks SET events = replace(events, '[9,\"s3\"', '[8,\"s3\"')",
            &["event 60: its version is not the next", "event 67: its version is not the next"],
        ),
        (
            "UPDATE projection_rows SET value_json = '?' WHERE key = 'a'",
            &["row p / t / a: damaged"],
        ),
        ("UPDATE projections SET id = 5", &["row ? / t / a: damaged", "row ? / t / b: damaged"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let store = store_of_200(&path).await;
        assert_eq!(store.check().await.unwrap().problems, [""; 0]);
        sqlx::raw_sql(sql).execute(&mut raw(&path).await).await.unwrap();
        assert_eq!(store.check().await.unwrap().problems, expected, "{sql}");
    }
}

/// Ways to damage the chunk of events 51 to 100, and the first event that cannot be read then.
const DAMAGE: [(&str, &str); 3] = [
    ("events = replace(events, '{\"n\":70}', '{oops')", "71"),
    ("events = '[]'", "51"),
    // Bytes that are no text.
    ("events = replace(events, '[1', CAST(x'ff' AS TEXT))", "51"),
];

async fn spoil(path: &std::path::Path, chunk: u64, how: &str) {
    let sql = format!("UPDATE event_chunks SET {how} WHERE first = {chunk}");
    let done = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut raw(path).await).await;
    assert_eq!(done.unwrap().rows_affected(), 1);
}

#[tokio::test]
async fn what_is_damaged_is_an_error_and_the_rest_can_be_read() {
    for (how, first_damaged) in DAMAGE {
        is_an_error_and_the_rest_can_be_read(how, first_damaged).await;
    }
}

async fn is_an_error_and_the_rest_can_be_read(how: &str, first_damaged: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = store_of_200(&path).await;
    let events = store.events();
    spoil(&path, 51, how).await;
    let rows = "UPDATE projection_rows SET value_json = '?' WHERE key = 'a'";
    sqlx::raw_sql(rows).execute(&mut raw(&path).await).await.unwrap();
    assert_eq!(
        store.check().await.unwrap().problems,
        ["event 51: its chunk of 50 is damaged", "row p / t / a: damaged"],
        "{how}"
    );
    let error = events.row::<u64>("p", "t", "a").await.unwrap_err();
    assert_eq!((error.kind(), error.context("key")), (ErrorKind::Corrupt, Some("a")));
    for limit in [100, 1000] {
        assert_eq!(events.read(&EventQuery::from(1).limit(limit)).await.unwrap().len(), 50);
        let error = events.read(&EventQuery::from(51).limit(limit)).await.unwrap_err();
        let found = (error.kind(), error.context("sequence"));
        assert_eq!(found, (ErrorKind::Corrupt, Some(first_damaged)), "{how}");
        assert_eq!(
            events.read(&EventQuery::from(101).limit(limit)).await.unwrap().len(),
            100.min(limit)
        );
    }
    // What is damaged can be pruned, and nothing of it stays behind.
    assert_eq!(events.prune_before(60).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(events.prune_before(111).await.unwrap(), 110);
    assert_eq!(events.read(&EventQuery::from(1)).await.unwrap().len(), 90);
    assert_eq!(store.check().await.unwrap().problems, ["row p / t / a: damaged"]);
}

/// Only the number that a caller names can lie in a damaged chunk, not the end of a step.
#[tokio::test]
async fn a_damaged_chunk_anywhere_can_be_pruned() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = SqliteBackend::open(SqliteOptions::new(&path)).await.unwrap();
    let events = store.events();
    for first in (0..5000).step_by(100) {
        events.append_all(&(first..first + 100).map(event).collect::<Vec<_>>()).await.unwrap();
    }
    spoil(&path, 4001, "events = '[[1'").await;
    assert_eq!(events.prune_before(4501).await.unwrap(), 4500);
    assert_eq!(store.check().await.unwrap().problems, [""; 0]);
}

#[tokio::test]
async fn damage_does_not_keep_anybody_from_what_is_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = SqliteBackend::open(SqliteOptions::new(&path)).await.unwrap();
    let events = store.events();
    for stream in ["rare", "often", "rare"] {
        let new: Vec<_> = (0..50).map(|n| NewEvent::new(stream, "Counted", json!(n))).collect();
        events.append_all(&new).await.unwrap();
    }
    spoil(&path, 1, "events = '[[1'").await;
    let found = events.read(&EventQuery::from(60).limit(10).stream("rare")).await.unwrap();
    assert_eq!(found.first().map(|event| event.sequence), Some(101));
    spoil(&path, 101, "events = '[[1'").await;
    assert_eq!(events.read(&EventQuery::from(151).limit(10)).await.unwrap(), []);
    let error = events.read(&EventQuery::from(101).limit(10)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

/// A payload may be JSON that no value can hold.
#[tokio::test]
async fn what_is_before_a_payload_that_is_no_value_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = store_of_200(&path).await;
    let events = store.events();
    spoil(&path, 51, "events = replace(events, '{\"n\":70}', '1e999')").await;
    assert_eq!(read_by_until(&events, 71).await, 70);
}

/// Reads up to the event that cannot be read, and returns how many came before.
async fn read_by_until(events: &SqliteEvents, damaged: u64) -> usize {
    let mut found = Vec::new();
    loop {
        let from = found.last().map_or(1, |event: &StoredEvent| event.sequence + 1);
        match events.read(&EventQuery::from(from).limit(1000)).await {
            Ok(page) => found.extend(page),
            Err(error) => {
                assert_eq!(error.context("sequence"), Some(&*damaged.to_string()));
                return found.len();
            }
        }
    }
}

/// Many callers share commits: who repeats events that are damaged is told so, nobody else.
#[tokio::test]
async fn a_repeated_append_of_what_is_damaged_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = store_of_200(&path).await;
    let events = store.events();
    spoil(&path, 51, "events = '[[1'").await;
    let repeated = async || {
        let again: Vec<_> = (50..100).map(event).collect();
        events.append_all(&again).await.unwrap_err()
    };
    let appended = async |n: i64| events.append_all(&[event(1000 + n)]).await;
    for round in 0..20 {
        let (a, b, error, c, again) = tokio::join!(
            appended(4 * round),
            appended(4 * round + 1),
            repeated(),
            appended(4 * round + 2),
            repeated()
        );
        for stored in [a, b, c] {
            assert_eq!(stored.unwrap().len(), 1);
        }
        assert_eq!((error.kind(), again.kind()), (ErrorKind::Corrupt, ErrorKind::Corrupt));
    }
}

/// People read the log by SQL.
#[tokio::test]
async fn the_view_shows_every_event() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = store_of_200(&path).await;
    store.events().prune_before(21).await.unwrap();
    let rows = sqlx::query(
        "SELECT sequence, stream, version, event_id, event_type, stored_at, payload ->> 'n'
         FROM event_log",
    );
    let rows = rows.fetch_all(&mut raw(&path).await).await.unwrap();
    let found = |row: &sqlx::sqlite::SqliteRow| StoredEvent {
        sequence: row.get::<i64, _>(0).cast_unsigned(),
        stream: row.get(1),
        version: row.get::<i64, _>(2).cast_unsigned(),
        event_id: row.get(3),
        event_type: row.get(4),
        stored_at: from_ms(row.get(5)),
        payload: json!({ "n": row.get::<i64, _>(6) }),
    };
    let found: Vec<_> = rows.iter().map(found).collect();
    assert_eq!(found, read_by(&store.events(), usize::MAX).await);
    assert_eq!(found.len(), 180);
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
            "SELECT m.first FROM event_streams AS s CROSS JOIN event_stream_chunks AS m
             ON m.stream_id = s.id AND m.first >= 5
             WHERE s.name = 'a' ORDER BY m.first LIMIT 10",
            "SEARCH m USING PRIMARY KEY (stream_id=? AND first>?)",
        ),
        (
            "SELECT events FROM event_chunks AS e
             WHERE first >= coalesce((SELECT max(first) FROM event_chunks WHERE first <= 5), 0)
             AND first < max(5, (SELECT min(first) FROM event_chunks)) + 7 ORDER BY first",
            "SEARCH e USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)",
        ),
        (
            "SELECT group_concat(e.events) FROM event_chunks AS e WHERE first BETWEEN 5 AND 10",
            "SEARCH e USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)",
        ),
        (
            "SELECT i.event_id FROM json_each('[1]') AS chosen CROSS JOIN event_ids AS i
             ON i.event_id = chosen.value",
            "SEARCH i USING PRIMARY KEY (event_id=?)",
        ),
        (
            "DELETE FROM event_stream_chunks AS e WHERE first < 7 AND stream_id IN (
             SELECT s.id FROM json_each('[1]') AS chosen
             CROSS JOIN event_streams AS s ON s.name = chosen.value)",
            "SEARCH e USING PRIMARY KEY (stream_id=? AND first<?)",
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
