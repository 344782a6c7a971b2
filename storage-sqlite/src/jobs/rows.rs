//! Jobs, pipelines and executions into rows and back: the only file that knows both.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use storage_core::jobs::stored;
use storage_core::metrics::time::{floor_ms, from_ms};
use storage_core::{Error, ErrorKind, Execution, Job, Pipeline, Result};

use crate::error::from_sqlx;

pub(crate) const JOBS: &str = "SELECT id, name, pipeline, cron_expr, enabled, next_run, last_run,
    last_result, lease_execution_id, lease_worker, lease_until, version, created_at, updated_at
    FROM scheduled_jobs";

pub(crate) const PIPELINES: &str =
    "SELECT name, description, config, version, created_at, updated_at FROM pipelines";

pub(crate) const EXECUTIONS: &str = "SELECT id, job_id, pipeline, start_time, end_time, status,
    error, context, steps, triggered_by, scheduled_for, missed_runs, attempt, worker
    FROM job_executions";

const PUT_JOB: &str =
    "INSERT INTO scheduled_jobs (id, name, pipeline, cron_expr, enabled, next_run,
        last_run, last_result, lease_execution_id, lease_worker, lease_until, version, created_at,
        updated_at)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET name = excluded.name, pipeline = excluded.pipeline,
        cron_expr = excluded.cron_expr, enabled = excluded.enabled, next_run = excluded.next_run,
        last_run = excluded.last_run, last_result = excluded.last_result,
        lease_execution_id = excluded.lease_execution_id, lease_worker = excluded.lease_worker,
        lease_until = excluded.lease_until, version = excluded.version,
        updated_at = excluded.updated_at";

const PUT_PIPELINE: &str =
    "INSERT INTO pipelines (name, description, config, version, created_at, updated_at)
    VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET description = excluded.description, config = excluded.config,
        version = excluded.version, updated_at = excluded.updated_at";

const PUT_EXECUTION: &str =
    "INSERT INTO job_executions (id, job_id, pipeline, start_time, end_time,
        status, error, context, steps, triggered_by, scheduled_for, missed_runs, attempt, worker)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET end_time = excluded.end_time, status = excluded.status,
        error = excluded.error, context = excluded.context, steps = excluded.steps";

/// Adds a job, or replaces what is stored of it.
pub(crate) async fn put_job(connection: &mut SqliteConnection, job: &Job) -> Result<()> {
    let lease = job.lease.as_ref();
    sqlx::query(PUT_JOB)
        .bind(&job.id)
        .bind(&job.name)
        .bind(&job.pipeline)
        .bind(job.schedule.as_str())
        .bind(job.enabled)
        .bind(job.next_run.map(floor_ms))
        .bind(job.last_run.map(|last| floor_ms(last.started_at)))
        .bind(job.last_run.map(|last| last.result.as_str()))
        .bind(lease.map(|lease| &lease.execution_id))
        .bind(lease.map(|lease| &lease.worker))
        .bind(lease.map(|lease| floor_ms(lease.until)))
        .bind(job.version.cast_signed())
        .bind(floor_ms(job.created_at))
        .bind(floor_ms(job.updated_at))
        .execute(connection)
        .await
        .map(drop)
        .map_err(from_sqlx)
}

/// Adds a pipeline, or replaces what is stored of it; returns how many bytes of long texts it wrote.
pub(crate) async fn put_pipeline(
    connection: &mut SqliteConnection,
    pipeline: &Pipeline,
) -> Result<usize> {
    let config = text_of(&pipeline.config)?;
    let bytes = pipeline.description.len() + config.len();
    sqlx::query(PUT_PIPELINE)
        .bind(&pipeline.name)
        .bind(&pipeline.description)
        .bind(config)
        .bind(pipeline.version.cast_signed())
        .bind(floor_ms(pipeline.created_at))
        .bind(floor_ms(pipeline.updated_at))
        .execute(connection)
        .await
        .map(|_| bytes)
        .map_err(from_sqlx)
}

/// Adds an execution, or replaces what can change of it; returns how many bytes of long texts it
/// wrote.
pub(crate) async fn put_execution(
    connection: &mut SqliteConnection,
    execution: &Execution,
) -> Result<usize> {
    let ended = execution.ended.as_ref();
    let error = ended.and_then(|ended| ended.error.as_deref());
    let context = execution.context.as_ref().map(text_of).transpose()?;
    let steps = execution.steps.as_ref().map(text_of).transpose()?;
    let texts = [error, context.as_deref(), steps.as_deref()];
    let bytes = texts.into_iter().flatten().map(str::len).sum();
    sqlx::query(PUT_EXECUTION)
        .bind(&execution.id)
        .bind(&execution.job_id)
        .bind(&execution.pipeline)
        .bind(floor_ms(execution.started_at))
        .bind(ended.map(|ended| floor_ms(ended.at)))
        .bind(execution.status().as_str())
        .bind(error)
        .bind(context)
        .bind(steps)
        .bind(&execution.triggered_by)
        .bind(execution.scheduled_for.map(floor_ms))
        .bind(execution.missed_runs.cast_signed())
        .bind(execution.attempt.cast_signed())
        .bind(execution.worker.as_ref())
        .execute(connection)
        .await
        .map(|_| bytes)
        .map_err(from_sqlx)
}

fn text_of(json: &Value) -> Result<String> {
    serde_json::to_string(json)
        .map_err(|error| Error::invalid("the value cannot be written as JSON").with_source(error))
}

/// Reads a row of [`JOBS`].
pub(crate) fn job_of(row: &SqliteRow) -> Result<Job> {
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
            created_at: from_ms(columns.get(12)?),
            updated_at: from_ms(columns.get(13)?),
        })
    };
    read().map_err(|error: Error| error.with_context("job", &id))
}

/// Reads a row of [`PIPELINES`].
pub(crate) fn pipeline_of(row: &SqliteRow) -> Result<Pipeline> {
    let columns = Columns(row);
    let name: String = columns.get(0)?;
    let config = json_of(columns.get(2)?).map_err(|error| error.with_context("pipeline", &name))?;
    Ok(Pipeline {
        description: columns.get(1)?,
        config,
        version: columns.get::<i64>(3)?.cast_unsigned(),
        created_at: from_ms(columns.get(4)?),
        updated_at: from_ms(columns.get(5)?),
        name,
    })
}

/// Reads a row of [`EXECUTIONS`].
pub(crate) fn execution_of(row: &SqliteRow) -> Result<Execution> {
    let columns = Columns(row);
    let id: String = columns.get(0)?;
    let read = || {
        Ok(Execution {
            id: id.clone(),
            job_id: columns.get(1)?,
            pipeline: columns.get(2)?,
            started_at: from_ms(columns.get(3)?),
            ended: stored::ended(columns.get(5)?, columns.time(4)?, columns.get(6)?)?,
            context: columns.get::<Option<&str>>(7)?.map(json_of).transpose()?,
            steps: columns.get::<Option<&str>>(8)?.map(json_of).transpose()?,
            triggered_by: columns.get(9)?,
            scheduled_for: columns.time(10)?,
            missed_runs: columns.get::<i64>(11)?.cast_unsigned(),
            attempt: columns.get::<i64>(12)?.cast_unsigned(),
            worker: columns.get(13)?,
        })
    };
    read().map_err(|error: Error| error.with_context("execution", &id))
}

fn json_of(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| {
        Error::new(ErrorKind::Corrupt, "a stored value is no JSON").with_source(error)
    })
}

/// The columns of a row, with the contract's errors.
struct Columns<'r>(&'r SqliteRow);

impl<'r> Columns<'r> {
    fn get<T>(&self, index: usize) -> Result<T>
    where
        T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
    {
        self.0.try_get(index).map_err(from_sqlx)
    }

    fn time(&self, index: usize) -> Result<Option<DateTime<Utc>>> {
        Ok(self.get::<Option<i64>>(index)?.map(from_ms))
    }
}
