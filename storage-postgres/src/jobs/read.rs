//! Answers questions about jobs: each is one statement, hence one snapshot.

use chrono::{DateTime, Utc};
use storage_core::jobs::health::OVERDUE_AFTER;
use storage_core::jobs::refusal::{check_possible, not_found};
use storage_core::metrics::time::{END_MS, MIN_MS, floor_ms};
use storage_core::{
    Cursor, Execution, ExecutionQuery, Job, JobCounts, JobQuery, Listed, Page, Pipeline, Result,
};
use tokio_postgres::Row;

use super::rows::{EXECUTIONS, JOBS, PIPELINES, execution_of, job_of, pipeline_of, time_of};
use crate::convert::PgTime;
use crate::error::from_pg;
use crate::store::{Parameter, Store};

/// A statement whose conditions are added one by one.
struct Question<'a> {
    sql: String,
    parameters: Vec<Box<dyn tokio_postgres::types::ToSql + Sync + Send + 'a>>,
}

impl<'a> Question<'a> {
    fn new(select: &str) -> Self {
        Self { sql: format!("{select} WHERE true"), parameters: Vec::new() }
    }

    /// Adds a condition; each `?` in it stands for the next of the values.
    fn and<const N: usize>(
        &mut self,
        condition: &str,
        values: [Box<dyn tokio_postgres::types::ToSql + Sync + Send + 'a>; N],
    ) {
        self.sql.push_str(" AND ");
        for (index, part) in condition.split('?').enumerate() {
            if index > 0 {
                self.sql.push_str(&format!("${}", self.parameters.len() + index));
            }
            self.sql.push_str(part);
        }
        self.parameters.extend(values);
    }

    /// Reads one item more than the page holds, to know whether another follows.
    async fn page<T>(
        mut self,
        store: &Store,
        order: &str,
        page: &Page,
        read: impl Fn(&Row) -> Result<T>,
        cursor: impl Fn(&T) -> Cursor,
    ) -> Result<Listed<T>> {
        let number = self.parameters.len() + 1;
        self.sql.push_str(&format!(" ORDER BY {order} LIMIT ${number}"));
        self.parameters.push(Box::new(page.limit as i64 + 1));
        let parameters: Vec<Parameter<'_>> =
            self.parameters.iter().map(|value| &**value as Parameter<'_>).collect();
        let rows = store.rows(&self.sql, &parameters).await?;
        let items = rows.iter().map(read).collect::<Result<_>>()?;
        Ok(page.answer(items, cursor))
    }
}

impl Store {
    pub(super) async fn job(&self, id: &str) -> Result<Job> {
        self.one(("job", JOBS, "id"), id, job_of).await
    }

    pub(super) async fn pipeline(&self, name: &str) -> Result<Pipeline> {
        self.one(("pipeline", PIPELINES, "name"), name, pipeline_of).await
    }

    pub(super) async fn execution(&self, id: &str) -> Result<Execution> {
        self.one(("execution", EXECUTIONS, "id"), id, execution_of).await
    }

    async fn one<T>(
        &self,
        (what, select, key): (&'static str, &str, &str),
        id: &str,
        read: impl Fn(&Row) -> Result<T>,
    ) -> Result<T> {
        check_possible(what, id)?;
        let rows = self.rows(&format!("{select} WHERE {key} = $1"), &[&id]).await?;
        rows.first().map_or_else(|| Err(not_found(what, id)), read)
    }

    pub(super) async fn jobs(&self, asked: &JobQuery) -> Result<Listed<Job>> {
        let mut question = Question::new(JOBS);
        if let Some(after) = asked.page.after_name()? {
            question.and("id > ?", [Box::new(after)]);
        }
        if let Some(pipeline) = &asked.pipeline {
            question.and("pipeline = ?", [Box::new(pipeline)]);
        }
        if let Some(enabled) = asked.enabled {
            question.and("enabled = ?", [Box::new(enabled)]);
        }
        if let Some(at) = asked.due_at {
            let due = "enabled AND coalesce(lease_until, next_run) <= ?";
            question.and(due, [Box::new(time_of(at))]);
        }
        question.page(self, "id", &asked.page, job_of, |job| Cursor::new(&job.id)).await
    }

    pub(super) async fn pipelines(&self, page: &Page) -> Result<Listed<Pipeline>> {
        let mut question = Question::new(PIPELINES);
        if let Some(after) = page.after_name()? {
            question.and("name > ?", [Box::new(after)]);
        }
        let cursor = |pipeline: &Pipeline| Cursor::new(&pipeline.name);
        question.page(self, "name", page, pipeline_of, cursor).await
    }

    pub(super) async fn executions(&self, asked: &ExecutionQuery) -> Result<Listed<Execution>> {
        let mut question = Question::new(EXECUTIONS);
        if let Some((started_at, id)) = asked.page.after_execution()? {
            let place: [Box<dyn tokio_postgres::types::ToSql + Sync + Send>; 2] =
                [Box::new(time_of(started_at)), Box::new(id)];
            question.and("(start_time, id) < (?, ?)", place);
        }
        if let Some(job_id) = &asked.job_id {
            question.and("job_id = ?", [Box::new(job_id)]);
        }
        if let Some(status) = asked.status {
            question.and("status = ?", [Box::new(status.as_str())]);
        }
        let order = "start_time DESC, id DESC";
        question.page(self, order, &asked.page, execution_of, Cursor::after_execution).await
    }

    pub(super) async fn job_counts(&self, at: DateTime<Utc>) -> Result<JobCounts> {
        let at = floor_ms(at).clamp(MIN_MS, END_MS);
        let overdue = PgTime(at - OVERDUE_AFTER.as_millis() as i64);
        let rows = self.rows(COUNTS, &[&PgTime(at), &overdue]).await?;
        let count = |index| match rows.first() {
            Some(row) => row.try_get::<_, i64>(index).map(i64::cast_unsigned).map_err(from_pg),
            None => Ok(0),
        };
        Ok(JobCounts {
            jobs: count(0)?,
            running: count(1)?,
            stalled: count(2)?,
            overdue: count(3)?,
        })
    }
}

const COUNTS: &str = "SELECT count(*),
    count(*) FILTER (WHERE lease_until > $1),
    count(*) FILTER (WHERE lease_until <= $1),
    count(*) FILTER (WHERE lease_until IS NULL AND enabled AND next_run <= $2)
    FROM scheduled_jobs";
