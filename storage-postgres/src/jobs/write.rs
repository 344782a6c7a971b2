//! Changes of jobs, each in one transaction on a connection of the pool, in the turn that `order`
//! gives.
//!
//! Who changes a job or one of its executions locks the row of the job first, so that two never wait
//! for each other in a circle, and reads what it changes after that.

use std::sync::Arc;

use deadpool_postgres::ClientWrapper;
use futures_util::future::BoxFuture;
use storage_core::jobs::refusal::{check_possible, not_found, taken};
use storage_core::{
    Claim, Error, ErrorKind, Execution, ExecutionPatch, Job, JobPatch, Outcome, Pipeline,
    PipelinePatch, Result,
};
use tokio::sync::oneshot;

use chrono::{DateTime, Utc};

use super::rows::{
    EXECUTIONS, Existing, JOBS, PIPELINES, execution_of, job_of, pipeline_of, put_execution,
    put_job, put_pipeline, time_of,
};
use crate::connect::{Lease, is_unusable};
use crate::convert::PgTime;
use crate::error::{from_pg, is_disconnect, is_victim, of_commit};
use crate::store::{Parameter, Store};

/// How often a change is tried again for reasons that trying again removes.
const ATTEMPTS_MAX: usize = 8;

/// Executions that one step removes.
const STEP_EXECUTIONS: i64 = 10_000;

/// How long a transaction may take.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pace {
    /// As long as any statement.
    Ordinary,
    /// As long as a step of upkeep.
    Upkeep,
}

/// Makes a change in one transaction, while who calls holds the turn. Done again from the start where
/// another transaction was in the way, or the connection had died while it lay in the pool.
pub(super) async fn run<T>(
    store: &Store,
    caller: &oneshot::Sender<()>,
    pace: Pace,
    change: impl for<'c> Fn(&'c ClientWrapper) -> BoxFuture<'c, Result<T>>,
) -> Result<T> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        store.check_open()?;
        if caller.is_closed() {
            return Err(Error::new(ErrorKind::Closed, "the caller gave up"));
        }
        let lease = Lease::take(&store.pool).await?;
        let was_used = lease.is_used();
        let error = match transact(store, &lease, pace, &change).await {
            Ok(done) => {
                lease.give_back();
                return Ok(done);
            }
            Err(error) => error,
        };
        if !is_unusable(&error) && error.outcome() == Outcome::NotApplied {
            lease.give_back();
        }
        // Each that died in the pool is gone from it.
        let had_died = is_disconnect(&error) && was_used;
        let again = (is_victim(&error) || is_again(&error)) && attempts < ATTEMPTS_MAX;
        if error.outcome() == Outcome::Unknown || !(had_died || again) {
            return Err(error);
        }
    }
}

async fn transact<T>(
    store: &Store,
    client: &ClientWrapper,
    pace: Pace,
    change: &impl for<'c> Fn(&'c ClientWrapper) -> BoxFuture<'c, Result<T>>,
) -> Result<T> {
    let begin = match pace {
        Pace::Ordinary => "BEGIN".to_owned(),
        Pace::Upkeep => {
            let timeout_ms = store.options.upkeep_timeout().as_millis();
            format!("BEGIN; SET LOCAL statement_timeout = {timeout_ms}")
        }
    };
    let work = async {
        client.batch_execute(&begin).await.map_err(from_pg)?;
        change(client).await
    };
    let changed = match pace {
        Pace::Ordinary => store.server.in_time(work).await,
        Pace::Upkeep => store.server.in_time_for_upkeep(work).await,
    };
    match changed {
        Ok(value) => {
            let commit = async { Ok(client.batch_execute("COMMIT").await) };
            let ended = store.server.in_time(commit).await;
            let ended = ended.map_err(|error| error.with_outcome(Outcome::Unknown))?;
            ended.map_err(|error| of_commit(from_pg(error)))?;
            Ok(value)
        }
        Err(error) if is_unusable(&error) => Err(error),
        Err(error) => {
            let back = async { client.batch_execute("ROLLBACK").await.map_err(from_pg) };
            // What cannot be rolled back must not be used again: the server rolls back by itself.
            match store.server.in_time(back).await {
                Ok(()) => Err(error),
                Err(_) => Err(error.with_context("stalled", true)),
            }
        }
    }
}

/// Another transaction has just added what was not there before.
fn again() -> Error {
    Error::new(ErrorKind::Busy, "another transaction was in the way").with_context("again", true)
}

fn is_again(error: &Error) -> bool {
    error.context("again").is_some()
}

async fn row<T>(
    client: &ClientWrapper,
    sql: &str,
    parameters: &[Parameter<'_>],
    read: impl Fn(&tokio_postgres::Row) -> Result<T>,
) -> Result<Option<T>> {
    let statement = client.prepare_cached(sql).await.map_err(from_pg)?;
    let row = client.query_opt(&statement, parameters).await.map_err(from_pg)?;
    row.as_ref().map(read).transpose()
}

/// Reads a job and keeps others from changing it, or its executions.
async fn lock_job(client: &ClientWrapper, id: &str) -> Result<Job> {
    check_possible("job", id)?;
    let found = row(client, &format!("{JOBS} WHERE id = $1 FOR UPDATE"), &[&id], job_of).await?;
    found.ok_or_else(|| not_found("job", id))
}

async fn find_execution(client: &ClientWrapper, id: &str) -> Result<Option<Execution>> {
    row(client, &format!("{EXECUTIONS} WHERE id = $1"), &[&id], execution_of).await
}

pub(super) async fn add_job(client: &ClientWrapper, job: Job) -> Result<Job> {
    match put_job(client, &job, Existing::Stays).await? {
        true => Ok(job),
        false => Err(taken("job", &job.id)),
    }
}

pub(super) async fn update_job(
    client: &ClientWrapper,
    id: &str,
    patch: &JobPatch,
    at: DateTime<Utc>,
) -> Result<Job> {
    let mut job = lock_job(client, id).await?;
    job.apply(patch, at)?;
    put_job(client, &job, Existing::IsReplaced).await?;
    Ok(job)
}

/// Removes a job with its executions, however many those are, and returns how many they were.
pub(super) async fn remove_job(
    store: &Store,
    caller: &oneshot::Sender<()>,
    id: Arc<str>,
) -> Result<u64> {
    let turn = Arc::new(store.job_order.turn().await);
    run(store, caller, Pace::Upkeep, |client| {
        let (id, turn) = (Arc::clone(&id), Arc::clone(&turn));
        Box::pin(async move {
            lock_job(client, &id).await?;
            turn.let_executions_go_on();
            // Before the job, so that they are counted.
            let gone = delete(client, "DELETE FROM job_executions WHERE job_id = $1", &id).await?;
            delete(client, "DELETE FROM scheduled_jobs WHERE id = $1", &id).await?;
            Ok(gone)
        })
    })
    .await
}

pub(super) async fn add_pipeline(client: &ClientWrapper, pipeline: Pipeline) -> Result<Pipeline> {
    match put_pipeline(client, &pipeline, Existing::Stays).await? {
        true => Ok(pipeline),
        false => Err(taken("pipeline", &pipeline.name)),
    }
}

pub(super) async fn update_pipeline(
    client: &ClientWrapper,
    name: &str,
    patch: &PipelinePatch,
    at: DateTime<Utc>,
) -> Result<Pipeline> {
    check_possible("pipeline", name)?;
    let sql = format!("{PIPELINES} WHERE name = $1 FOR UPDATE");
    let found = row(client, &sql, &[&name], pipeline_of).await?;
    let mut pipeline = found.ok_or_else(|| not_found("pipeline", name))?;
    pipeline.apply(patch, at)?;
    put_pipeline(client, &pipeline, Existing::IsReplaced).await?;
    Ok(pipeline)
}

pub(super) async fn remove_pipeline(client: &ClientWrapper, name: &str) -> Result<()> {
    check_possible("pipeline", name)?;
    match delete(client, "DELETE FROM pipelines WHERE name = $1", name).await? {
        0 => Err(not_found("pipeline", name)),
        _ => Ok(()),
    }
}

async fn delete(client: &ClientWrapper, sql: &str, id: &str) -> Result<u64> {
    let statement = client.prepare_cached(sql).await.map_err(from_pg)?;
    client.execute(&statement, &[&id]).await.map_err(from_pg)
}

pub(super) async fn add_execution(client: &ClientWrapper, execution: &Execution) -> Result<()> {
    let mut job = lock_job(client, &execution.job_id).await?;
    if !put_execution(client, execution, Existing::Stays).await? {
        return Err(taken("execution", &execution.id));
    }
    job.note_end(execution);
    put_job(client, &job, Existing::IsReplaced).await?;
    Ok(())
}

pub(super) async fn update_execution(
    client: &ClientWrapper,
    id: &str,
    patch: &ExecutionPatch,
    at: DateTime<Utc>,
) -> Result<Execution> {
    check_possible("execution", id)?;
    let missing = || not_found("execution", id);
    let job_id = find_execution(client, id).await?.ok_or_else(missing)?.job_id;
    let mut job = lock_job(client, &job_id).await.map_err(|error| match error.kind() {
        // It went with its job.
        ErrorKind::NotFound => missing(),
        _ => error,
    })?;
    let mut execution = find_execution(client, id).await?.ok_or_else(missing)?;
    execution.apply(&mut job, patch, at)?;
    put_job(client, &job, Existing::IsReplaced).await?;
    // A sign of life comes often, and context and steps may be large.
    if patch.changes_execution() {
        put_execution(client, &execution, Existing::IsReplaced).await?;
    }
    Ok(execution)
}

/// What the claim gave when it was made before; none if it was not.
async fn repeated(client: &ClientWrapper, claim: &Claim) -> Result<Option<Execution>> {
    let Some(found) = find_execution(client, &claim.execution_id).await? else { return Ok(None) };
    let job = row(client, &format!("{JOBS} WHERE id = $1"), &[&found.job_id], job_of).await?;
    // Without its job it has just been removed, too.
    let job = job.ok_or_else(again)?;
    claim.repeat(found, job.lease.as_ref()).map(Some)
}

pub(super) async fn claim(client: &ClientWrapper, claim: &Claim) -> Result<Option<Execution>> {
    if let Some(found) = repeated(client, claim).await? {
        return Ok(Some(found));
    }
    let job = match &claim.job_id {
        Some(id) => Some(lock_job(client, id).await?),
        None => next_due(client, time_of(claim.at)).await?,
    };
    // The commit of the same claim, whose answer was lost, may have been waited for just now.
    if let Some(found) = repeated(client, claim).await? {
        return Ok(Some(found));
    }
    let Some(mut job) = job else { return Ok(None) };
    let mut under_way = match &job.lease {
        Some(lease) => find_execution(client, &lease.execution_id).await?,
        None => None,
    };
    let execution = claim.take(&mut job, under_way.as_mut())?;
    put_job(client, &job, Existing::IsReplaced).await?;
    if let Some(lost) = &under_way {
        put_execution(client, lost, Existing::IsReplaced).await?;
    }
    match put_execution(client, &execution, Existing::Stays).await? {
        true => Ok(Some(execution)),
        // The same claim, made at the same time.
        false => Err(again()),
    }
}

/// Locks the job that has been due longest. One that somebody else has locked at the moment is passed
/// over, for a claim has most likely locked it; but also if it is being changed otherwise and still due
/// afterwards. Only if no others are due, the ends of those transactions are waited for.
async fn next_due(client: &ClientWrapper, at: PgTime) -> Result<Option<Job>> {
    let due = "WHERE enabled AND coalesce(lease_until, next_run) <= $1";
    let first = "ORDER BY coalesce(lease_until, next_run), id LIMIT 1 FOR UPDATE";
    let free = format!("{JOBS} {due} {first} SKIP LOCKED");
    if let Some(job) = row(client, &free, &[&at], job_of).await? {
        return Ok(Some(job));
    }
    let any = format!("SELECT EXISTS (SELECT FROM scheduled_jobs {due})");
    let any = row(client, &any, &[&at], |row| row.try_get(0).map_err(from_pg)).await?;
    if any != Some(true) {
        return Ok(None);
    }
    match row(client, &format!("{JOBS} {due} {first}"), &[&at], job_of).await? {
        Some(job) => Ok(Some(job)),
        // It is no longer due; another may be.
        None => Err(again()),
    }
}

/// Says how many executions it chose and how many of these it removed: another may have been
/// faster.
const STEP: &str = "
    WITH chosen AS MATERIALIZED (
        SELECT ctid AS place FROM job_executions
        WHERE start_time < $1 AND status <> 'running' ORDER BY start_time, id LIMIT $2),
    gone AS (DELETE FROM job_executions
        WHERE ctid = ANY(ARRAY(SELECT place FROM chosen)) RETURNING id)
    SELECT (SELECT count(*) FROM chosen), (SELECT count(*) FROM gone)";

/// Removes executions that have ended and started before the cutoff, in transactions that lock few
/// rows at a time, and returns how many.
pub(super) async fn remove_executions(
    store: &Store,
    caller: &oneshot::Sender<()>,
    cutoff: PgTime,
) -> Result<u64> {
    let mut removed = 0;
    loop {
        let turn = store.job_order.turn().await;
        let step = run(store, caller, Pace::Ordinary, |client| {
            Box::pin(async move {
                let counts = |row: &tokio_postgres::Row| -> Result<(i64, i64)> {
                    Ok((row.try_get(0).map_err(from_pg)?, row.try_get(1).map_err(from_pg)?))
                };
                row(client, STEP, &[&cutoff, &STEP_EXECUTIONS], counts).await
            })
        });
        let counts = step.await;
        drop(turn);
        match counts {
            Ok(counts) => {
                let (chosen, gone) = counts.unwrap_or_default();
                removed += gone.cast_unsigned();
                if chosen < STEP_EXECUTIONS {
                    return Ok(removed);
                }
            }
            Err(error) if removed > 0 => return Err(error.with_outcome(Outcome::Unknown)),
            Err(error) => return Err(error),
        }
    }
}
