//! What only SQLite has of record history: damage that is found, plans that use the index, space
//! that is given back, and commits of many callers together.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use sqlx::{ConnectOptions, Row};
use storage_core::metrics::time::from_ms;
use storage_core::{
    ErrorKind, HistoryQuery, RecordHistory, RecordHistoryExt, StorageBackend, StoredValue,
};
use storage_sqlite::{SqliteBackend, SqliteOptions};

async fn raw(path: &std::path::Path) -> sqlx::SqliteConnection {
    sqlx::sqlite::SqliteConnectOptions::new().filename(path).connect().await.unwrap()
}

#[tokio::test]
async fn a_value_that_is_no_json_is_an_error_and_found_by_check() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = SqliteBackend::open(SqliteOptions::new(&path)).await.unwrap();
    let history = store.history();
    for ms in 0..3 {
        history.store("a", from_ms(ms), &ms).await.unwrap();
    }
    let mut connection = raw(&path).await;
    let broken = "UPDATE record_history SET value_json = '{oops' WHERE stored_at = 1";
    sqlx::raw_sql(broken).execute(&mut connection).await.unwrap();
    let error = history.query(&HistoryQuery::parse("*").unwrap()).await.unwrap_err();
    assert_eq!((error.kind(), error.context("record_name")), (ErrorKind::Corrupt, Some("a")));
    let newest = history.query(&HistoryQuery::parse("*").unwrap().newest(1)).await.unwrap();
    assert_eq!(newest.len(), 1, "what is whole can be read");
    assert_eq!(store.check().await.unwrap().problems.len(), 1);
    let lost = "UPDATE record_history SET value_json = '1', record_id = 77 WHERE stored_at = 1";
    sqlx::raw_sql(lost).execute(&mut connection).await.unwrap();
    assert_eq!(store.check().await.unwrap().problems.len(), 1);
}

#[tokio::test]
async fn space_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = SqliteBackend::open(SqliteOptions::new(&path)).await.unwrap();
    let history = store.history();
    let value = |ms| StoredValue::new("a", from_ms(ms), "x".repeat(500).into());
    history.store_batch(&(0..20_000).map(value).collect::<Vec<_>>()).await.unwrap();
    store.compact().await.unwrap();
    let before = store.stats().await.unwrap().disk_usage_bytes;
    assert_eq!(history.cleanup(from_ms(19_000)).await.unwrap(), 19_000);
    let after = store.stats().await.unwrap().disk_usage_bytes;
    assert!(after * 5 < before, "{before} bytes before, {after} after");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_share_commits_whatever_they_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = SqliteBackend::open(SqliteOptions::new(&path)).await.unwrap();
    let history = Arc::new(store.history());
    let caller = |number: i64| {
        let history = Arc::clone(&history);
        tokio::spawn(async move { history.store("a", from_ms(0), &number).await })
    };
    for task in (0..500).map(caller).collect::<Vec<_>>() {
        task.await.unwrap().unwrap();
    }
    let found = history.query_latest::<i64>("a", 1000).await.unwrap().into_values().unwrap();
    assert_eq!(found.len(), 500);
}

/// Questions must find their rows by the index, never by reading the table.
#[tokio::test]
async fn questions_and_cleanups_go_by_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = SqliteBackend::open(SqliteOptions::new(&path)).await.unwrap();
    store.close().await.unwrap();
    let mut connection = raw(&path).await;
    let newest = "SELECT h.value_json FROM json_each('[1]') AS chosen
        CROSS JOIN record_history AS h ON h.id IN (
            SELECT id FROM record_history INDEXED BY record_history_by_time
            WHERE record_id = chosen.value AND stored_at >= 1 AND stored_at < 9
            ORDER BY stored_at DESC, id DESC LIMIT 1)";
    let plan = format!("EXPLAIN QUERY PLAN {newest}");
    let rows = sqlx::query(sqlx::AssertSqlSafe(plan)).fetch_all(&mut connection).await.unwrap();
    let lines: Vec<String> = rows.iter().map(|row| row.try_get(3).unwrap()).collect();
    let plan = lines.join("\n");
    assert!(plan.contains("SEARCH h USING INTEGER PRIMARY KEY"), "{plan}");
    assert!(plan.contains("(record_id=? AND stored_at>? AND stored_at<?)"), "{plan}");
    assert!(!plan.contains("TEMP B-TREE") && !plan.contains("SCAN record_history"), "{plan}");
}
