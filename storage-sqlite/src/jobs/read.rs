//! Answers questions about jobs, each from one statement, hence one snapshot.

use chrono::{DateTime, Utc};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{QueryBuilder, Row, Sqlite};
use storage_core::jobs::health::OVERDUE_AFTER;
use storage_core::jobs::refusal::not_found;
use storage_core::metrics::time::floor_ms;
use storage_core::{
    Cursor, Execution, ExecutionQuery, Job, JobCounts, JobQuery, Listed, Page, Pipeline, Result,
};

use super::rows::{EXECUTIONS, JOBS, PIPELINES, execution_of, job_of, pipeline_of};
use crate::error::from_sqlx;

type Query = QueryBuilder<Sqlite>;

/// The row of `select` whose key is `id`, if there is one.
async fn find<T>(
    connection: &mut SqliteConnection,
    (select, key): (&'static str, &'static str),
    id: &str,
    read: impl Fn(&SqliteRow) -> Result<T>,
) -> Result<Option<T>> {
    let mut query = Query::new(select);
    query.push(" WHERE ").push(key).push(" = ").push_bind(id.to_owned());
    let row = query.build().fetch_optional(connection).await.map_err(from_sqlx)?;
    row.as_ref().map(read).transpose()
}

pub(super) async fn job(connection: &mut SqliteConnection, id: &str) -> Result<Job> {
    let found = find(connection, (JOBS, "id"), id, job_of).await?;
    found.ok_or_else(|| not_found("job", id))
}

pub(super) async fn pipeline(connection: &mut SqliteConnection, name: &str) -> Result<Pipeline> {
    let found = find(connection, (PIPELINES, "name"), name, pipeline_of).await?;
    found.ok_or_else(|| not_found("pipeline", name))
}

pub(super) async fn execution(connection: &mut SqliteConnection, id: &str) -> Result<Execution> {
    let found = find_execution(connection, id).await?;
    found.ok_or_else(|| not_found("execution", id))
}

pub(super) async fn find_execution(
    connection: &mut SqliteConnection,
    id: &str,
) -> Result<Option<Execution>> {
    find(connection, (EXECUTIONS, "id"), id, execution_of).await
}

/// The job that has been due longest at `at`.
pub(super) async fn next_due(
    connection: &mut SqliteConnection,
    at: DateTime<Utc>,
) -> Result<Option<Job>> {
    let mut query = Query::new(JOBS);
    query.push(" WHERE enabled = 1 AND coalesce(lease_until, next_run) <= ");
    query.push_bind(floor_ms(at));
    query.push(" ORDER BY coalesce(lease_until, next_run), id LIMIT 1");
    let row = query.build().fetch_optional(connection).await.map_err(from_sqlx)?;
    row.as_ref().map(job_of).transpose()
}

pub(super) async fn jobs(
    connection: &mut SqliteConnection,
    asked: &JobQuery,
) -> Result<Listed<Job>> {
    let mut query = Query::new(JOBS);
    query.push(" WHERE true");
    if let Some(after) = asked.page.after_name()? {
        query.push(" AND id > ").push_bind(after.to_owned());
    }
    if let Some(pipeline) = &asked.pipeline {
        query.push(" AND pipeline = ").push_bind(pipeline.clone());
    }
    if let Some(enabled) = asked.enabled {
        query.push(" AND enabled = ").push_bind(enabled);
    }
    if let Some(at) = asked.due_at {
        // By id all the same: the page has to be read in that order.
        query.push(" AND enabled = 1 AND +coalesce(lease_until, next_run) <= ");
        query.push_bind(floor_ms(at));
    }
    query.push(" ORDER BY id");
    page(connection, query, &asked.page, job_of, |job| Cursor::new(&job.id)).await
}

pub(super) async fn pipelines(
    connection: &mut SqliteConnection,
    asked: &Page,
) -> Result<Listed<Pipeline>> {
    let mut query = Query::new(PIPELINES);
    if let Some(after) = asked.after_name()? {
        query.push(" WHERE name > ").push_bind(after.to_owned());
    }
    query.push(" ORDER BY name");
    page(connection, query, asked, pipeline_of, |pipeline| Cursor::new(&pipeline.name)).await
}

pub(super) async fn executions(
    connection: &mut SqliteConnection,
    asked: &ExecutionQuery,
) -> Result<Listed<Execution>> {
    let mut query = Query::new(EXECUTIONS);
    query.push(" WHERE true");
    if let Some((started_at, id)) = asked.page.after_execution()? {
        query.push(" AND (start_time, id) < (").push_bind(floor_ms(started_at));
        query.push(", ").push_bind(id.to_owned()).push(")");
    }
    if let Some(job_id) = &asked.job_id {
        query.push(" AND job_id = ").push_bind(job_id.clone());
    }
    if let Some(status) = asked.status {
        query.push(" AND status = ").push_bind(status.as_str());
    }
    query.push(" ORDER BY start_time DESC, id DESC");
    page(connection, query, &asked.page, execution_of, Cursor::after_execution).await
}

/// Reads one item more than the page holds, to know whether another follows.
async fn page<T>(
    connection: &mut SqliteConnection,
    mut query: Query,
    page: &Page,
    read: impl Fn(&SqliteRow) -> Result<T>,
    cursor: impl Fn(&T) -> Cursor,
) -> Result<Listed<T>> {
    query.push(" LIMIT ").push_bind(page.limit as i64 + 1);
    let rows = query.build().fetch_all(connection).await.map_err(from_sqlx)?;
    let items = rows.iter().map(read).collect::<Result<_>>()?;
    Ok(page.answer(items, cursor))
}

const COUNTS: &str = "SELECT count(*),
    count(*) FILTER (WHERE lease_until > ?1),
    count(*) FILTER (WHERE lease_until <= ?1),
    count(*) FILTER (WHERE lease_until IS NULL AND enabled = 1 AND next_run <= ?2)
    FROM scheduled_jobs";

pub(super) async fn counts(
    connection: &mut SqliteConnection,
    at: DateTime<Utc>,
) -> Result<JobCounts> {
    let at = floor_ms(at);
    let row = sqlx::query(COUNTS)
        .bind(at)
        .bind(at.saturating_sub(OVERDUE_AFTER.as_millis() as i64))
        .fetch_one(connection)
        .await
        .map_err(from_sqlx)?;
    let count = |index| row.try_get::<i64, _>(index).map(i64::cast_unsigned).map_err(from_sqlx);
    Ok(JobCounts { jobs: count(0)?, running: count(1)?, stalled: count(2)?, overdue: count(3)? })
}
