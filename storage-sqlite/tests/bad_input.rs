//! What cannot be opened, read or written: each a typed error that names the culprit, the file
//! unchanged, the store usable afterwards.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeZone, Utc};
use futures_util::StreamExt;
use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use storage_core::{
    Error, ErrorKind, MetricRecord, Outcome, SeriesFilter, StorageBackend, StorageBackendExt,
    TimeRange,
};
use storage_sqlite::{SqliteBackend, SqliteOptions};

fn time(second: i64) -> DateTime<Utc> {
    Utc.timestamp_opt(1_700_000_000 + second, 0).unwrap()
}

fn batch(server: &str, seconds: std::ops::Range<i64>) -> Vec<MetricRecord> {
    seconds.map(|s| MetricRecord::new(server, time(s), "cpu", s as f64)).collect()
}

async fn open(path: &Path) -> SqliteBackend {
    SqliteBackend::open(SqliteOptions::new(path)).await.unwrap()
}

async fn refusal(path: &Path) -> Error {
    SqliteBackend::open(SqliteOptions::new(path)).await.expect_err("must be refused")
}

/// A connection past the backend, to spoil what it stored.
async fn raw(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).create_if_missing(true).connect().await.unwrap()
}

fn temp() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.db");
    (dir, path)
}

fn assert_names_path(error: &Error, path: &Path) {
    assert_eq!(error.context("path"), Some(path.to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn a_directory_is_refused() {
    let (dir, _) = temp();
    let error = refusal(dir.path()).await;
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_names_path(&error, dir.path());
}

#[tokio::test]
async fn a_missing_directory_is_named_and_not_made() {
    let (dir, _) = temp();
    let path = dir.path().join("missing/metrics.db");
    let error = refusal(&path).await;
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_names_path(&error, &path);
    assert!(!path.parent().unwrap().exists());
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_unchanged() {
    let (_dir, path) = temp();
    let text = "timestamp,value\n".repeat(1000);
    std::fs::write(&path, &text).unwrap();
    let error = refusal(&path).await;
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:#}");
    assert_names_path(&error, &path);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test]
async fn the_database_of_another_program_is_refused_and_unchanged() {
    let (_dir, path) = temp();
    let mut connection = raw(&path).await;
    sqlx::raw_sql("CREATE TABLE songs (name TEXT); INSERT INTO songs VALUES ('x')")
        .execute(&mut connection)
        .await
        .unwrap();
    sqlx::Connection::close(connection).await.unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = refusal(&path).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error:#}");
    assert_names_path(&error, &path);
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_newer_version_is_refused_with_both_versions_and_unchanged() {
    let (_dir, path) = temp();
    open(&path).await.close().await.unwrap();
    let mut connection = raw(&path).await;
    sqlx::raw_sql("PRAGMA user_version = 7").execute(&mut connection).await.unwrap();
    sqlx::Connection::close(connection).await.unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = refusal(&path).await;
    assert_eq!(error.kind(), ErrorKind::VersionMismatch, "{error:#}");
    assert_eq!(error.context("file_version"), Some("7"));
    assert_eq!(error.context("supported_version"), Some("5"));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_missing_file_is_not_made_where_that_is_not_wanted() {
    let (_dir, path) = temp();
    let options = || SqliteOptions::new(&path).create(false);
    let error = SqliteBackend::open(options()).await.expect_err("must be refused");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_names_path(&error, &path);
    assert!(!path.exists());
    open(&path).await.close().await.unwrap();
    SqliteBackend::open(options()).await.unwrap();
}

#[tokio::test]
async fn an_empty_file_becomes_a_store() {
    let (_dir, path) = temp();
    std::fs::write(&path, "").unwrap();
    let store = open(&path).await;
    store.write_batch(&batch("a", 0..3)).await.unwrap();
    assert_eq!(store.stats().await.unwrap().total_metrics, 3);
}

#[tokio::test]
async fn a_read_only_handle_reads_and_never_writes() {
    let (_dir, path) = temp();
    let read_only = || SqliteOptions::new(&path).read_only(true);
    let error = SqliteBackend::open(read_only()).await.expect_err("there is no file yet");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let store = open(&path).await;
    store.write_batch(&batch("a", 0..3)).await.unwrap();
    store.close().await.unwrap();

    let before = std::fs::read(&path).unwrap();
    let store = SqliteBackend::open(read_only()).await.unwrap();
    assert_eq!(store.query_range("a", "cpu", TimeRange::all()).await.unwrap().len(), 3);
    let refused = [
        store.write_batch(&batch("a", 3..4)).await.unwrap_err(),
        store.prune_before(time(9)).await.unwrap_err(),
        store.compact().await.unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:#}");
        assert_eq!(error.outcome(), Outcome::NotApplied);
    }
    store.close().await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_spoiled_block_is_found_and_the_rest_stays_readable() {
    let (_dir, path) = temp();
    let store = open(&path).await;
    store.write_batch(&[batch("a", 0..100), batch("b", 0..100)].concat()).await.unwrap();
    store.compact().await.unwrap();
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
    let mut connection = raw(&path).await;
    sqlx::raw_sql(
        "UPDATE payloads SET bytes = CAST(substr(bytes, 1, 20) || x'ff' || substr(bytes, 22) AS BLOB)
         WHERE id = (SELECT payload_id FROM blocks JOIN series ON series.id = series_id
                     WHERE server_id = 'a')",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    let error = store.query_range("a", "cpu", TimeRange::all()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:#}");
    assert_eq!(store.query_range("b", "cpu", TimeRange::all()).await.unwrap().len(), 100);
    let scanned: Vec<_> = store.scan(&SeriesFilter::any(), TimeRange::all()).collect().await;
    assert_eq!((scanned.len(), scanned[0].is_err()), (1, true), "an error ends a scan");
    let report = store.check().await.unwrap();
    assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
    assert_eq!(report.samples, 100);
    store.write("b", "cpu", time(200), 1.0).await.unwrap();
}

#[tokio::test]
async fn a_spoiled_journal_is_refused_when_it_is_opened() {
    let (_dir, path) = temp();
    let store = open(&path).await;
    store.write_batch(&batch("a", 0..100)).await.unwrap();
    store.close().await.unwrap();
    let mut connection = raw(&path).await;
    sqlx::raw_sql("UPDATE journal SET payload = x'0102030405060708'")
        .execute(&mut connection)
        .await
        .unwrap();
    sqlx::Connection::close(connection).await.unwrap();
    let error = refusal(&path).await;
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:#}");
    assert_eq!(error.context("journal_id"), Some("1"));
}

#[tokio::test]
async fn a_writer_that_holds_the_file_for_too_long_makes_it_busy() {
    let (_dir, path) = temp();
    let options = SqliteOptions::new(&path).busy_timeout(std::time::Duration::from_millis(50));
    let store = SqliteBackend::open(options).await.unwrap();
    store.write_batch(&batch("a", 0..3)).await.unwrap();
    let mut other = raw(&path).await;
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let error = store.write_batch(&batch("a", 3..6)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error:#}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert!(error.is_retryable());
    assert_eq!(store.query_range("a", "cpu", TimeRange::all()).await.unwrap().len(), 3);
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    store.write_batch(&batch("a", 3..6)).await.unwrap();
    assert_eq!(store.query_range("a", "cpu", TimeRange::all()).await.unwrap().len(), 6);
}

#[tokio::test]
async fn a_batch_whose_metadata_is_larger_than_a_blob_may_be_is_stored() {
    let (_dir, path) = temp();
    let store = open(&path).await;
    let text = "x".repeat(60_000);
    let with_metadata = |record: MetricRecord| record.with_metadata(text.as_str().into());
    let records: Vec<_> = batch("a", 0..1200).into_iter().map(with_metadata).collect();
    store.write_batch(&records).await.unwrap();
    assert_eq!(store.stats().await.unwrap().total_metrics, 1200);
    store.compact().await.unwrap();
    let found = store.latest(&SeriesFilter::any(), 1).await.unwrap();
    assert_eq!(found[0].samples[0].metadata.as_ref().unwrap().as_str().unwrap().len(), 60_000);
}

#[tokio::test]
async fn what_is_written_after_a_prune_was_dropped_stays() {
    let (_dir, path) = temp();
    let store = open(&path).await;
    for round in 0..50 {
        store.write_batch(&batch("a", 0..2000)).await.unwrap();
        let mut prune = Box::pin(store.prune_before(time(5000)));
        for _ in 0..round {
            if futures_util::poll!(&mut prune).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(prune);
        store.write("a", "late", time(1), 1.0).await.unwrap();
        // Whatever is left of the prune has stopped; the write after it is there to stay.
        store.compact().await.unwrap();
        assert_eq!(store.query_range("a", "late", TimeRange::all()).await.unwrap().len(), 1);
        store.prune_before(time(2)).await.unwrap();
    }
}
