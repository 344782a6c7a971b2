//! Jobs, pipelines and executions into rows and back: the only file that knows both.

use chrono::{DateTime, Utc};
use deadpool_postgres::ClientWrapper;
use storage_core::jobs::stored;
use storage_core::metrics::time::{floor_ms, from_ms};
use storage_core::{Error, Execution, Job, Pipeline, Result};
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use crate::convert::{JsonText, PgTime, to_json, to_optional_value, to_value};
use crate::error::from_pg;
use crate::store::Parameter;

pub(super) const JOBS: &str = "SELECT id, name, pipeline, cron_expr, enabled, next_run, last_run,
    last_result, lease_execution_id, lease_worker, lease_until, version, created_at, updated_at
    FROM scheduled_jobs";

pub(super) const PIPELINES: &str =
    "SELECT name, description, config, version, created_at, updated_at FROM pipelines";

pub(super) const EXECUTIONS: &str = "SELECT id, job_id, pipeline, start_time, end_time, status,
    error, context, steps, triggered_by, scheduled_for, missed_runs, attempt, worker
    FROM job_executions";

const ADD_JOB: &str =
    "INSERT INTO scheduled_jobs (id, name, pipeline, cron_expr, enabled, next_run,
        last_run, last_result, lease_execution_id, lease_worker, lease_until, version, created_at,
        updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)";

const REPLACE_JOB: &str = "ON CONFLICT (id) DO UPDATE SET name = excluded.name,
    pipeline = excluded.pipeline, cron_expr = excluded.cron_expr, enabled = excluded.enabled,
    next_run = excluded.next_run, last_run = excluded.last_run, last_result = excluded.last_result,
    lease_execution_id = excluded.lease_execution_id, lease_worker = excluded.lease_worker,
    lease_until = excluded.lease_until, version = excluded.version, updated_at = excluded.updated_at";

const ADD_PIPELINE: &str =
    "INSERT INTO pipelines (name, description, config, version, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6)";

const REPLACE_PIPELINE: &str =
    "ON CONFLICT (name) DO UPDATE SET description = excluded.description,
    config = excluded.config, version = excluded.version, updated_at = excluded.updated_at";

const ADD_EXECUTION: &str =
    "INSERT INTO job_executions (id, job_id, pipeline, start_time, end_time,
        status, error, context, steps, triggered_by, scheduled_for, missed_runs, attempt, worker)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)";

const REPLACE_EXECUTION: &str = "ON CONFLICT (id) DO UPDATE SET end_time = excluded.end_time,
    status = excluded.status, error = excluded.error, context = excluded.context,
    steps = excluded.steps";

/// What to do where a row with the id is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    /// Leave it alone: then [`put_job`] and its like say `false`.
    Stays,
    /// Put the new one in its place.
    IsReplaced,
}

/// Runs an insert and says whether a row was written.
async fn put(
    client: &ClientWrapper,
    (add, replace): (&str, &str),
    existing: Existing,
    parameters: &[Parameter<'_>],
) -> Result<bool> {
    let replace = match existing {
        Existing::Stays => "ON CONFLICT DO NOTHING",
        Existing::IsReplaced => replace,
    };
    let statement = client.prepare_cached(&format!("{add} {replace}")).await.map_err(from_pg)?;
    Ok(client.execute(&statement, parameters).await.map_err(from_pg)? > 0)
}

pub(super) async fn put_job(client: &ClientWrapper, job: &Job, existing: Existing) -> Result<bool> {
    let lease = job.lease.as_ref();
    let next_run = job.next_run.map(time_of);
    let last_run = job.last_run.map(|last| time_of(last.started_at));
    let last_result = job.last_run.map(|last| last.result.as_str());
    let (by, worker) = (lease.map(|lease| &lease.execution_id), lease.map(|lease| &lease.worker));
    let until = lease.map(|lease| time_of(lease.until));
    let (created_at, updated_at) = (time_of(job.created_at), time_of(job.updated_at));
    let parameters: [Parameter<'_>; 14] = [
        &job.id,
        &job.name,
        &job.pipeline,
        &job.schedule.as_str(),
        &job.enabled,
        &next_run,
        &last_run,
        &last_result,
        &by,
        &worker,
        &until,
        &job.version.cast_signed(),
        &created_at,
        &updated_at,
    ];
    put(client, (ADD_JOB, REPLACE_JOB), existing, &parameters).await
}

pub(super) async fn put_pipeline(
    client: &ClientWrapper,
    pipeline: &Pipeline,
    existing: Existing,
) -> Result<bool> {
    let config = JsonText(to_json(&pipeline.config)?);
    let (created_at, updated_at) = (time_of(pipeline.created_at), time_of(pipeline.updated_at));
    let parameters: [Parameter<'_>; 6] = [
        &pipeline.name,
        &pipeline.description,
        &config,
        &pipeline.version.cast_signed(),
        &created_at,
        &updated_at,
    ];
    put(client, (ADD_PIPELINE, REPLACE_PIPELINE), existing, &parameters).await
}

pub(super) async fn put_execution(
    client: &ClientWrapper,
    execution: &Execution,
    existing: Existing,
) -> Result<bool> {
    let ended = execution.ended.as_ref();
    let (started_at, ended_at) = (time_of(execution.started_at), ended.map(|end| time_of(end.at)));
    let error = ended.and_then(|ended| ended.error.as_ref());
    let json = |json: &Option<_>| json.as_ref().map(to_json).transpose();
    let context = json(&execution.context)?.map(JsonText);
    let steps = json(&execution.steps)?.map(JsonText);
    let scheduled_for = execution.scheduled_for.map(time_of);
    let parameters: [Parameter<'_>; 14] = [
        &execution.id,
        &execution.job_id,
        &execution.pipeline,
        &started_at,
        &ended_at,
        &execution.status().as_str(),
        &error,
        &context,
        &steps,
        &execution.triggered_by,
        &scheduled_for,
        &execution.missed_runs.cast_signed(),
        &execution.attempt.cast_signed(),
        &execution.worker,
    ];
    put(client, (ADD_EXECUTION, REPLACE_EXECUTION), existing, &parameters).await
}

pub(super) fn time_of(time: DateTime<Utc>) -> PgTime {
    PgTime(floor_ms(time))
}

/// Reads a row of [`JOBS`].
pub(super) fn job_of(row: &Row) -> Result<Job> {
    let columns = Columns(row);
    let id: String = columns.get(0)?;
    let read = || {
        Ok(Job {
            id: id.clone(),
            name: columns.get(1)?,
            pipeline: columns.get(2)?,
            schedule: stored::schedule(columns.get(3)?)?,
            enabled: columns.get(4)?,
            next_run: columns.time(5)?,
            last_run: stored::last_run(columns.time(6)?, columns.get(7)?)?,
            lease: stored::lease(columns.get(8)?, columns.get(9)?, columns.time(10)?),
            version: columns.get::<i64>(11)?.cast_unsigned(),
            created_at: columns.some_time(12)?,
            updated_at: columns.some_time(13)?,
        })
    };
    read().map_err(|error: Error| error.with_context("job", &id))
}

/// Reads a row of [`PIPELINES`].
pub(super) fn pipeline_of(row: &Row) -> Result<Pipeline> {
    let columns = Columns(row);
    let name: String = columns.get(0)?;
    let config = to_value(row, 2).map_err(|error| error.with_context("pipeline", &name))?;
    Ok(Pipeline {
        description: columns.get(1)?,
        config,
        version: columns.get::<i64>(3)?.cast_unsigned(),
        created_at: columns.some_time(4)?,
        updated_at: columns.some_time(5)?,
        name,
    })
}

/// Reads a row of [`EXECUTIONS`].
pub(super) fn execution_of(row: &Row) -> Result<Execution> {
    let columns = Columns(row);
    let id: String = columns.get(0)?;
    let read = || {
        Ok(Execution {
            id: id.clone(),
            job_id: columns.get(1)?,
            pipeline: columns.get(2)?,
            started_at: columns.some_time(3)?,
            ended: stored::ended(columns.get(5)?, columns.time(4)?, columns.get(6)?)?,
            context: to_optional_value(row, 7)?,
            steps: to_optional_value(row, 8)?,
            triggered_by: columns.get(9)?,
            scheduled_for: columns.time(10)?,
            missed_runs: columns.get::<i64>(11)?.cast_unsigned(),
            attempt: columns.get::<i64>(12)?.cast_unsigned(),
            worker: columns.get(13)?,
        })
    };
    read().map_err(|error: Error| error.with_context("execution", &id))
}

/// The columns of a row, with the contract's errors.
struct Columns<'r>(&'r Row);

impl<'r> Columns<'r> {
    fn get<T: FromSql<'r>>(&self, index: usize) -> Result<T> {
        self.0.try_get(index).map_err(from_pg)
    }

    fn time(&self, index: usize) -> Result<Option<DateTime<Utc>>> {
        Ok(self.get::<Option<PgTime>>(index)?.map(|PgTime(ms)| from_ms(ms)))
    }

    fn some_time(&self, index: usize) -> Result<DateTime<Utc>> {
        Ok(from_ms(self.get::<PgTime>(index)?.0))
    }
}
