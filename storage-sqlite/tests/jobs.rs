//! What only SQLite has of jobs: damage that is found, foreign keys that fire, plans that use the
//! indexes, a write-ahead log that stays small.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use sqlx::{ConnectOptions, Row, SqliteConnection};
use storage_core::metrics::time::from_ms;
use storage_core::{
    Claim, ErrorKind, Execution, ExecutionPatch, ExecutionQuery, JobQuery, JobStore, NewJob,
    NewPipeline, PipelinePatch, StorageBackend,
};
use storage_sqlite::{SqliteBackend, SqliteOptions};

async fn raw(path: &Path, foreign_keys: bool) -> SqliteConnection {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    options.foreign_keys(foreign_keys).connect().await.unwrap()
}

async fn execute(connection: &mut SqliteConnection, sql: &'static str) {
    sqlx::raw_sql(sql).execute(connection).await.unwrap();
}

/// Two jobs, `a` with an execution that is under way.
async fn filled(path: &Path) -> SqliteBackend {
    let store = SqliteBackend::open(SqliteOptions::new(path)).await.unwrap();
    let jobs = store.jobs();
    for id in ["a", "b"] {
        let job = NewJob::new(id, "p", "@daily".parse().unwrap());
        jobs.add_job(&job, from_ms(0)).await.unwrap();
    }
    let claim = Claim::next("r", "w", Duration::from_secs(60), from_ms(0)).of_job("a");
    jobs.claim(&claim).await.unwrap();
    store
}

#[tokio::test]
async fn damage_is_an_error_and_found_by_check() {
    for (sql, is_read) in [
        ("UPDATE scheduled_jobs SET cron_expr = '61 * * * *' WHERE id = 'a'", true),
        ("UPDATE scheduled_jobs SET last_run = 0, last_result = 'odd' WHERE id = 'a'", true),
        ("UPDATE job_executions SET steps = '{oops'", true),
        ("UPDATE job_executions SET status = 'odd'", true),
        ("UPDATE job_executions SET status = 'failed'", true),
        ("UPDATE job_executions SET job_id = 'b'", false),
        ("UPDATE scheduled_jobs SET lease_execution_id = 'x' WHERE id = 'a'", false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let store = filled(&path).await;
        assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
        execute(&mut raw(&path, true).await, sql).await;
        let problems = store.check().await.unwrap().problems;
        assert!(!problems.is_empty(), "{sql}: not found");
        let jobs = store.jobs().jobs(&JobQuery::default()).await.map(drop);
        let executions = store.jobs().executions(&ExecutionQuery::default()).await.map(drop);
        let read = jobs.and(executions);
        let kind = read.err().map(|error| error.kind());
        assert_eq!(kind, is_read.then_some(ErrorKind::Corrupt), "{sql}");
    }
}

#[tokio::test]
async fn foreign_keys_fire_and_their_absence_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = filled(&path).await;
    let run = Execution::new("s", "b", "p", from_ms(0));
    store.jobs().add_execution(&run).await.unwrap();
    // Whoever removes a job by SQL takes its executions along, too.
    execute(&mut raw(&path, true).await, "DELETE FROM scheduled_jobs WHERE id = 'a'").await;
    let error = store.jobs().execution("r").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
    // The shell of SQLite leaves foreign keys off.
    execute(&mut raw(&path, false).await, "DELETE FROM scheduled_jobs WHERE id = 'b'").await;
    assert_eq!(store.check().await.unwrap().problems.len(), 1);
}

#[tokio::test]
async fn questions_go_by_the_indexes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    filled(&path).await.close().await.unwrap();
    let mut connection = raw(&path, true).await;
    for (sql, index) in [
        (
            "SELECT id FROM scheduled_jobs
             WHERE enabled = 1 AND coalesce(lease_until, next_run) <= 9
             ORDER BY coalesce(lease_until, next_run), id LIMIT 1",
            "scheduled_jobs_due",
        ),
        (
            "SELECT * FROM job_executions WHERE true AND (start_time, id) < (9, 'x')
             ORDER BY start_time DESC, id DESC LIMIT 9",
            "job_executions_by_time",
        ),
        (
            "SELECT * FROM job_executions WHERE true AND (start_time, id) < (9, 'x')
             AND job_id = 'a' ORDER BY start_time DESC, id DESC LIMIT 9",
            "job_executions_by_job",
        ),
    ] {
        let plan = sqlx::query(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}")));
        let rows = plan.fetch_all(&mut connection).await.unwrap();
        let lines: Vec<String> = rows.iter().map(|row| row.try_get(3).unwrap()).collect();
        let plan = lines.join("\n");
        assert!(
            plan.contains(&format!("USING INDEX {index}"))
                || plan.contains(&format!("USING COVERING INDEX {index}")),
            "{plan}"
        );
        assert!(plan.contains("SEARCH") && !plan.contains("TEMP B-TREE"), "{plan}");
    }
}

/// Whatever has long texts in it is copied back before the log holds much of it.
#[tokio::test]
async fn large_changes_leave_the_log_small() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = filled(&path).await;
    let (jobs, now) = (store.jobs(), from_ms(0));
    let log_bytes = || std::fs::metadata(dir.path().join("store.db-wal")).unwrap().len();
    // Another text each time: of one that stays SQLite writes no page.
    let large = |n: u8| serde_json::json!(char::from(b'a' + n).to_string().repeat(1_000_000));
    jobs.add_pipeline(&NewPipeline::new("p", large(0)), now).await.unwrap();
    for n in 1..25 {
        let patch = PipelinePatch { config: Some(large(n)), ..PipelinePatch::default() };
        jobs.update_pipeline("p", &patch, now).await.unwrap();
        assert!(log_bytes() < 12 << 20, "{} bytes after {n} pipelines", log_bytes());
    }
    for n in 1..25 {
        let patch = ExecutionPatch { steps: Some(large(n)), ..ExecutionPatch::default() };
        jobs.update_execution("r", &patch, now).await.unwrap();
        assert!(log_bytes() < 12 << 20, "{} bytes after {n} updates", log_bytes());
    }
    store.close().await.unwrap();
}
