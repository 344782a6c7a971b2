//! A file that an older version of this library wrote is opened, migrated and read; its bytes are in
//! `tests/data`.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use storage_core::metrics::time::from_ms;
use storage_core::{
    Error, ErrorKind, EventQuery, EventStore, EventStoreExt, HealthStatus, HistoryQuery, JobQuery,
    JobStore, Matcher, MetricRecord, NewEvent, NewJob, RecordHistory, RecordHistoryExt,
    StorageBackend, StoredValue, TimeRange,
};
use storage_sqlite::{SqliteBackend, SqliteEvents, SqliteOptions};

const START_MS: i64 = 1_767_268_800_000;

/// A copy of the file of a version: 40 samples in blocks, a second apart, those of even seconds of
/// `web-0`; every fifth with metadata; and one in the journal.
fn copy_of_version_1(dir: &Path) -> PathBuf {
    copy_of(dir, 1)
}

/// The file of version 2 holds the same, and the value `{"n": 1}` of the record `old` at 1000 ms.
fn copy_of(dir: &Path, version: u32) -> PathBuf {
    let original = format!("tests/data/version-{version}.db");
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join(original);
    let path = dir.join("old.db");
    std::fs::copy(original, &path).unwrap();
    path
}

fn expected(server: i64) -> Vec<MetricRecord> {
    let server_id = format!("web-{server}");
    let numbers = (0..40).filter(|number| number % 2 == server);
    let mut all: Vec<_> = numbers
        .map(|number| {
            let time = from_ms(START_MS + number * 1000);
            let record = MetricRecord::new(&server_id, time, "cpu", number as f64);
            match number % 5 {
                0 => record.with_metadata(serde_json::json!({ "n": number })),
                _ => record,
            }
        })
        .collect();
    if server == 0 {
        all.push(MetricRecord::new(&server_id, from_ms(START_MS + 100_000), "cpu", 99.0));
    }
    all
}

async fn assert_metrics(store: &SqliteBackend) {
    for server in 0..2 {
        let name = format!("web-{server}");
        let found = store.query_range(&name, "cpu", TimeRange::all()).await.unwrap();
        assert_eq!(found, expected(server));
    }
    assert_eq!(store.stats().await.unwrap().total_metrics, 41);
}

#[tokio::test]
async fn version_1_is_migrated_and_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let path = copy_of_version_1(dir.path());
    for round in 0..3_usize {
        let store = SqliteBackend::open(SqliteOptions::new(&path)).await.unwrap();
        assert_metrics(&store).await;
        let history = store.history();
        history.store("a", from_ms(0), &round).await.unwrap();
        let found = history.query_latest::<usize>("*", 9).await.unwrap().into_values().unwrap();
        assert_eq!(found, (0..=round).collect::<Vec<_>>());
        assert_next_event(&store, round).await;
        assert_next_job(&store, round).await;
        assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
        store.close().await.unwrap();
    }
}

async fn assert_next_event(store: &SqliteBackend, round: usize) {
    let event = NewEvent::new("s", "Opened", round.into());
    let stored = store.events().append_all(&[event]).await.unwrap();
    assert_eq!(stored[0].sequence, round as u64 + 1);
}

async fn assert_next_job(store: &SqliteBackend, round: usize) {
    let job = NewJob::new(format!("j{round}"), "p", "@daily".parse().unwrap());
    store.jobs().add_job(&job, from_ms(0)).await.unwrap();
    let found = store.jobs().jobs(&JobQuery::default()).await.unwrap().items;
    assert_eq!(found.len(), round + 1);
}

#[tokio::test]
async fn version_2_is_migrated_and_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let path = copy_of(dir.path(), 2);
    for round in 0..3_usize {
        let store = SqliteBackend::open(SqliteOptions::new(&path)).await.unwrap();
        assert_metrics(&store).await;
        let found = store.history().query(&HistoryQuery::parse("*").unwrap()).await.unwrap();
        let old = StoredValue::new("old", from_ms(1000), serde_json::json!({"n": 1}));
        assert_eq!(found, [old]);
        assert_next_event(&store, round).await;
        assert_next_job(&store, round).await;
        assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
        store.close().await.unwrap();
    }
}

/// The log of the file of version 4: two events that are pruned, three that are there.
async fn assert_log_of_version_4(events: &SqliteEvents) {
    let time = from_ms(START_MS);
    let old = NewEvent::new(
        "old",
        "A",
        serde_json::json!({"n": [1.0, -2, 1e300, 12_345_678_901_234_567_890_u64]}),
    );
    let quoted = serde_json::json!({"x": 0.1, "t": "z\"é]"});
    let quoted = NewEvent::new("a \"quoted\" b", "B\\", quoted).with_id("i\"d").at(from_ms(-1));
    let expected = [
        quoted.into_stored(3, 1),
        old.at(time).into_stored(4, 3),
        NewEvent::new("new", "C", ().into()).with_id("last").at(time).into_stored(5, 1),
    ];
    assert_eq!(events.read(&EventQuery::from(1)).await.unwrap(), expected);
    let of_stream = EventQuery::from(1).stream("old");
    assert_eq!(events.read(&of_stream).await.unwrap(), expected[1..2]);
}

#[tokio::test]
async fn version_4_is_migrated_and_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let path = copy_of(dir.path(), 4);
    let store = SqliteBackend::open(SqliteOptions::new(&path)).await.unwrap();
    assert_metrics(&store).await;
    let events = store.events();
    assert_log_of_version_4(&events).await;
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
    // An event that is there already is not appended again, one that was pruned is.
    for (id, sequence) in [("last", 5), ("gone", 6)] {
        let event = NewEvent::new("new", "C", ().into()).with_id(id).at(from_ms(START_MS));
        assert_eq!(events.append_all(&[event]).await.unwrap()[0].sequence, sequence);
    }
    assert_eq!(events.prune_before(7).await.unwrap(), 4);
    let next = NewEvent::new("old", "A", 1.into());
    let stored = events.append_all(&[next]).await.unwrap();
    assert_eq!((stored[0].sequence, stored[0].version), (7, 4));
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
}

/// The log goes on where it ended, even if it is empty.
#[tokio::test]
async fn version_4_without_events_keeps_the_end_of_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = copy_of(dir.path(), 4);
    let mut connection = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    sqlx::raw_sql("DELETE FROM events").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let store = SqliteBackend::open(SqliteOptions::new(&path)).await.unwrap();
    let events = store.events();
    let extent = events.extent().await.unwrap();
    assert_eq!((extent.first, extent.last), (6, 5));
    assert_eq!(events.read(&EventQuery::from(1)).await.unwrap(), []);
    let stored = events.append_all(&[NewEvent::new("old", "A", 1.into())]).await.unwrap();
    assert_eq!((stored[0].sequence, stored[0].version), (6, 4));
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
}

#[tokio::test]
async fn events_of_version_4_are_not_read_without_being_migrated() {
    let dir = tempfile::tempdir().unwrap();
    let path = copy_of(dir.path(), 4);
    let reader = SqliteBackend::open(SqliteOptions::new(&path).read_only(true)).await.unwrap();
    assert_metrics(&reader).await;
    let events = reader.events();
    let refused: [Error; 4] = [
        events.read(&EventQuery::from(1)).await.unwrap_err(),
        events.extent().await.unwrap_err(),
        events.projections().await.unwrap_err(),
        events.streams(&Matcher::any()).await.unwrap_err(),
    ];
    assert!(refused.iter().all(|error| error.kind() == ErrorKind::VersionMismatch));
    let problems = reader.check().await.unwrap().problems;
    assert!(matches!(&*problems, [one] if one.starts_with("events: kept as")), "{problems:?}");
    let writer = SqliteBackend::open(SqliteOptions::new(&path)).await.unwrap();
    assert_eq!(reader.check().await.unwrap().problems, Vec::<String>::new());
    assert_log_of_version_4(&events).await;
    writer.close().await.unwrap();
}

#[tokio::test]
async fn many_open_version_1_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = copy_of_version_1(dir.path());
    let open = |number: i64| {
        let path = path.clone();
        tokio::spawn(async move {
            let store = SqliteBackend::open(SqliteOptions::new(path)).await?;
            store.history().store("a", from_ms(0), &number).await?;
            store.close().await
        })
    };
    for opened in (0..8).map(open).collect::<Vec<_>>() {
        opened.await.unwrap().unwrap();
    }
    let store = SqliteBackend::open(SqliteOptions::new(&path)).await.unwrap();
    assert_eq!(store.history().query(&HistoryQuery::parse("a").unwrap()).await.unwrap().len(), 8);
    assert_metrics(&store).await;
}

#[tokio::test]
async fn version_1_can_be_read_without_being_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = copy_of_version_1(dir.path());
    let before = std::fs::read(&path).unwrap();
    let reader = SqliteBackend::open(SqliteOptions::new(&path).read_only(true)).await.unwrap();
    assert_metrics(&reader).await;
    let all = HistoryQuery::parse("*").unwrap();
    let history = reader.history();
    assert_eq!(history.query(&all).await.unwrap(), []);
    assert_eq!(history.records(&all.records).await.unwrap(), []);
    let events = reader.events();
    assert_eq!(events.read(&EventQuery::from(1)).await.unwrap(), []);
    assert_eq!(events.extent().await.unwrap().last, 0);
    assert_eq!(events.projections().await.unwrap(), []);
    let jobs = reader.jobs();
    assert_eq!(jobs.jobs(&JobQuery::default()).await.unwrap().items, []);
    assert_eq!(jobs.job("a").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(jobs.health(from_ms(0)).await.status, HealthStatus::Degraded);
    let job = NewJob::new("a", "p", "@daily".parse().unwrap());
    let refused: [Error; 5] = [
        jobs.add_job(&job, from_ms(0)).await.unwrap_err(),
        events.append_all(&[NewEvent::new("s", "T", 1.into())]).await.unwrap_err(),
        events.prune_before(1).await.unwrap_err(),
        history.store("a", from_ms(0), &1).await.unwrap_err(),
        history.cleanup(from_ms(0)).await.unwrap_err(),
    ];
    assert!(refused.iter().all(|error| error.kind() == ErrorKind::PermissionDenied));
    assert_eq!(reader.check().await.unwrap().problems, Vec::<String>::new());
    assert_eq!(std::fs::read(&path).unwrap(), before);

    // Another handle migrates it: then the first sees what is stored.
    let writer = SqliteBackend::open(SqliteOptions::new(&path)).await.unwrap();
    writer.history().store("a", from_ms(0), &1).await.unwrap();
    assert_eq!(history.query(&all).await.unwrap().len(), 1);
    assert_next_event(&writer, 0).await;
    assert_eq!(events.read(&EventQuery::from(1)).await.unwrap().len(), 1);
    writer.jobs().add_job(&job, from_ms(0)).await.unwrap();
    assert_eq!(jobs.jobs(&JobQuery::default()).await.unwrap().items.len(), 1);
}
