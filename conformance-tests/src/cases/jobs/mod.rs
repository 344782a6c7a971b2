//! The contract for jobs, theme by theme, and what its cases share.

pub(super) mod claim;
pub(super) mod execution;
pub(super) mod health;
pub(super) mod job;
pub(super) mod listing;
pub(super) mod model;
pub(super) mod pipeline;
pub(super) mod sharing;

use std::time::Duration;

use serde_json::{Value, json};
use storage_core::{
    Claim, Ended, Error, ErrorKind, Execution, ExecutionQuery, Job, JobQuery, JobStore, NewJob,
    Outcome, Page, Result, RunResult, Schedule,
};

use crate::data::{NOON, ODD_NAMES, at};
use crate::failure::{Failure, expect_kind};

/// Between two runs of the jobs that cases use, in milliseconds.
const HOUR: i64 = 3_600_000;

/// How long they are claimed for, in milliseconds.
const MINUTE: i64 = 60_000;

/// A job that runs at every full hour.
fn hourly(id: &str) -> Result<NewJob> {
    Ok(NewJob::new(id, "sync.yaml", Schedule::parse("0 * * * *")?))
}

/// Adds hourly jobs at noon, so that they are due at one.
async fn add_hourly(jobs: &dyn JobStore, ids: &[&str]) -> Result<()> {
    for id in ids {
        jobs.add_job(&hourly(id)?, at(NOON)).await?;
    }
    Ok(())
}

/// A claim by the worker `w`, for a minute.
fn claim(execution_id: &str, ms: i64) -> Claim {
    claim_by(execution_id, "w", ms)
}

fn claim_by(execution_id: &str, worker: &str, ms: i64) -> Claim {
    Claim::next(execution_id, worker, Duration::from_secs(60), at(ms))
}

/// An execution of a job that is under way since `ms`.
fn running(id: &str, job_id: &str, ms: i64) -> Execution {
    Execution::new(id, job_id, "sync.yaml", at(ms))
}

/// An execution of a job that took a second.
fn ended(id: &str, job_id: &str, ms: i64, result: RunResult) -> Execution {
    let end = Ended { at: at(ms + 1000), result, error: None };
    Execution { ended: Some(end), ..running(id, job_id, ms) }
}

/// Every job, by pages of 7.
async fn all_jobs(jobs: &dyn JobStore) -> Result<Vec<Job>> {
    let mut query = JobQuery::default().page(Page::first(7));
    let mut found = Vec::new();
    loop {
        let listed = jobs.jobs(&query).await?;
        found.extend(listed.items);
        query.page.after = listed.next;
        if query.page.after.is_none() {
            return Ok(found);
        }
    }
}

/// Every execution that a query chooses, by pages of 7.
async fn all_executions(jobs: &dyn JobStore, query: ExecutionQuery) -> Result<Vec<Execution>> {
    let mut query = query.page(Page::first(7));
    let mut found = Vec::new();
    loop {
        let listed = jobs.executions(&query).await?;
        found.extend(listed.items);
        query.page.after = listed.next;
        if query.page.after.is_none() {
            return Ok(found);
        }
    }
}

fn ids(executions: &[Execution]) -> Vec<&str> {
    executions.iter().map(|execution| execution.id.as_str()).collect()
}

fn job_ids(jobs: &[Job]) -> Vec<&str> {
    jobs.iter().map(|job| job.id.as_str()).collect()
}

/// Fails unless `result` is an error of `kind` that changed nothing and has the detail.
fn expect<T>(
    result: Result<T>,
    kind: ErrorKind,
    (key, value): (&str, &str),
) -> std::result::Result<Error, Failure> {
    let error = expect_kind(result, kind, format!("{key} {value}"))?;
    ensure_eq!(error.context(key), Some(value), "the detail `{key}` of {error:#}");
    ensure_eq!(error.outcome(), Outcome::NotApplied, "the outcome");
    ensure!(!error.is_retryable(), "said to be worth a retry");
    Ok(error)
}

fn expect_missing<T>(result: Result<T>, what: (&str, &str)) -> std::result::Result<Error, Failure> {
    expect(result, ErrorKind::NotFound, what)
}

fn expect_conflict<T>(
    result: Result<T>,
    what: (&str, &str),
) -> std::result::Result<Error, Failure> {
    expect(result, ErrorKind::Conflict, what)
}

/// JSON that trips up what rewrites it.
fn odd_json() -> Vec<Value> {
    vec![
        json!(true),
        json!(""),
        json!([]),
        json!({}),
        json!({"": null, "a": [1, [2, {"b": false}]], "é\"\\\n": "\u{1f600}"}),
        json!(ODD_NAMES.concat()),
        json!([null, null]),
        json!("{\"not\": \"parsed\"}"),
        json!({"z": 1, "a": 2, "m": {"y": 1, "b": 2}}),
        json!([i64::MIN, u64::MAX, 1, 1.0, 0.1, 1e16, -2.5e-300, f64::MAX]),
    ]
}

/// JSON that no pipeline or execution may hold.
fn bad_json() -> Vec<Value> {
    let mut deep = json!(1);
    for _ in 0..65 {
        deep = json!([deep]);
    }
    vec![json!("x".repeat(1024 * 1024 - 1)), deep, json!("\0"), json!({"a\0": 1})]
}

/// Names that nothing may have.
fn bad_names() -> [String; 4] {
    ["".to_owned(), "a\0b".to_owned(), "x".repeat(513), "\u{e9}".repeat(256) + "x"]
}
