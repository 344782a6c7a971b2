//! Jobs on SQLite: each method checks, reads in one snapshot or changes in one transaction, and names
//! itself in the error.
//!
//! A change reads what it changes while nobody else can write; what becomes of it is decided by the
//! functions of `storage_core::jobs`, the same for every backend.

mod read;
pub(crate) mod rows;

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use sqlx::sqlite::SqliteConnection;
use storage_core::jobs::refusal::taken;
use storage_core::metrics::time::floor_ms;
use storage_core::{
    Claim, Error, ErrorKind, Execution, ExecutionPatch, ExecutionQuery, Job, JobHealth, JobPatch,
    JobQuery, JobStore, Listed, NewJob, NewPipeline, Page, Pipeline, PipelinePatch, Result,
};
use tokio::sync::oneshot;

use crate::backend::named;
use crate::error::{from_sqlx, of_commit};
use crate::maintenance::{partly, upkeep};
use crate::schema::{begin, finish};
use crate::store::Store;
use rows::{put_execution, put_job, put_pipeline};

/// Executions that one step removes: some ten milliseconds of work.
const STEP_EXECUTIONS: i64 = 4096;

/// What a change writes to the log, roughly, beside long texts: a part of a page of the table and of
/// each index.
const ROW_BYTES: u64 = 1024;

/// What a change gives, and how many bytes of long texts it wrote.
type Changed<T> = Result<(T, usize)>;

/// The jobs in a SQLite file; see [`SqliteBackend::jobs`](crate::SqliteBackend::jobs).
///
/// ```
/// use storage_core::{JobStore, NewJob};
/// use storage_sqlite::{SqliteBackend, SqliteOptions};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("store.db");
/// let store = SqliteBackend::open(SqliteOptions::new(&path)).await?;
/// let job = NewJob::new("daily-sync", "sync.yaml", "0 2 * * *".parse()?);
/// store.jobs().add_job(&job, chrono::Utc::now()).await?;
/// assert!(store.jobs().job("daily-sync").await?.next_run.is_some());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct SqliteJobs {
    store: Arc<Store>,
}

impl SqliteJobs {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// Answers a question; `missing` is the answer of a file of an older version, which has no jobs.
    async fn ask<T>(
        &self,
        operation: &'static str,
        missing: impl FnOnce() -> Result<T>,
        question: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T>,
    ) -> Result<T> {
        let answer = async {
            self.store.check_open()?;
            let mut snapshot = self.store.readers.begin().await.map_err(from_sqlx)?;
            let store = &self.store;
            let answer = match store.finds(&store.has_jobs, "scheduled_jobs", &mut snapshot).await?
            {
                true => question(&mut snapshot).await,
                false => missing(),
            };
            snapshot.rollback().await.map_err(from_sqlx)?;
            answer
        };
        answer.await.map_err(|error| named(error, operation))
    }

    /// Makes a change in a transaction and a task of its own, so that dropping the caller never stops
    /// it half way.
    async fn change<T: Send + 'static>(
        &self,
        operation: &'static str,
        change: impl for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Changed<T>>
        + Send
        + 'static,
    ) -> Result<T> {
        upkeep(&self.store, operation, move |store, caller| async move {
            let mut writer = store.writer().await?;
            let connection = writer.connection()?;
            check_wanted(&caller)?;
            let mut transaction = begin(connection).await?;
            let changed = change(&mut transaction).await;
            let is_refused = changed.is_err();
            let changed = finish(transaction, changed).await;
            // What failed before the commit was rolled back.
            let changed = match is_refused {
                true => changed,
                false => changed.map_err(of_commit),
            };
            let (changed, bytes) = changed.inspect_err(|error| store.note_write_error(error))?;
            store.checkpoint_if_due(connection, ROW_BYTES + bytes as u64).await;
            Ok(changed)
        })
        .await
    }

    fn checked<T>(&self, operation: &'static str, check: Result<T>) -> Result<T> {
        let open = self.store.check_open();
        open.and(check).map_err(|error| named(error, operation))
    }
}

/// Asked while nobody else can write: what the caller changed after it gave up comes after this.
fn check_wanted(caller: &oneshot::Sender<()>) -> Result<()> {
    match caller.is_closed() {
        true => Err(Error::new(ErrorKind::Closed, "the caller gave up")),
        false => Ok(()),
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl JobStore for SqliteJobs {
    async fn add_job(&self, job: &NewJob, at: DateTime<Utc>) -> Result<Job> {
        let job = self.checked("add_job", job.clone().into_job(at))?;
        self.change("add_job", |connection| {
            Box::pin(async move {
                match read::job(connection, &job.id).await {
                    Ok(_) => return Err(taken("job", &job.id)),
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
                put_job(connection, &job).await?;
                Ok((job, 0))
            })
        })
        .await
    }

    async fn job(&self, id: &str) -> Result<Job> {
        let missing = || Err(storage_core::jobs::refusal::not_found("job", id));
        self.ask("job", missing, async |connection| read::job(connection, id).await).await
    }

    async fn jobs(&self, query: &JobQuery) -> Result<Listed<Job>> {
        self.checked("jobs", query.validate())?;
        let question = async |connection: &mut _| read::jobs(connection, query).await;
        self.ask("jobs", || Ok(nothing()), question).await
    }

    async fn update_job(&self, id: &str, patch: &JobPatch, at: DateTime<Utc>) -> Result<Job> {
        self.checked("update_job", patch.validate())?;
        let (id, patch) = (id.to_owned(), patch.clone());
        self.change("update_job", move |connection| {
            Box::pin(async move {
                let mut job = read::job(connection, &id).await?;
                job.apply(&patch, at)?;
                put_job(connection, &job).await?;
                Ok((job, 0))
            })
        })
        .await
    }

    async fn remove_job(&self, id: &str) -> Result<u64> {
        let id = id.to_owned();
        self.change("remove_job", move |connection| {
            Box::pin(async move {
                read::job(connection, &id).await?;
                // Before the job, so that they are counted, whatever the foreign key would do.
                let gone = delete(connection, "DELETE FROM job_executions WHERE job_id = ?", &id);
                let gone = gone.await?;
                delete(connection, "DELETE FROM scheduled_jobs WHERE id = ?", &id).await?;
                Ok((gone, (gone * ROW_BYTES) as usize))
            })
        })
        .await
    }

    async fn add_pipeline(&self, pipeline: &NewPipeline, at: DateTime<Utc>) -> Result<Pipeline> {
        let pipeline = self.checked("add_pipeline", pipeline.clone().into_pipeline(at))?;
        self.change("add_pipeline", |connection| {
            Box::pin(async move {
                match read::pipeline(connection, &pipeline.name).await {
                    Ok(_) => return Err(taken("pipeline", &pipeline.name)),
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
                let bytes = put_pipeline(connection, &pipeline).await?;
                Ok((pipeline, bytes))
            })
        })
        .await
    }

    async fn pipeline(&self, name: &str) -> Result<Pipeline> {
        let missing = || Err(storage_core::jobs::refusal::not_found("pipeline", name));
        let question = async |connection: &mut _| read::pipeline(connection, name).await;
        self.ask("pipeline", missing, question).await
    }

    async fn pipelines(&self, page: &Page) -> Result<Listed<Pipeline>> {
        self.checked("pipelines", page.validate())?;
        let question = async |connection: &mut _| read::pipelines(connection, page).await;
        self.ask("pipelines", || Ok(nothing()), question).await
    }

    async fn update_pipeline(
        &self,
        name: &str,
        patch: &PipelinePatch,
        at: DateTime<Utc>,
    ) -> Result<Pipeline> {
        self.checked("update_pipeline", patch.validate())?;
        let (name, patch) = (name.to_owned(), patch.clone());
        self.change("update_pipeline", move |connection| {
            Box::pin(async move {
                let mut pipeline = read::pipeline(connection, &name).await?;
                pipeline.apply(&patch, at)?;
                let bytes = put_pipeline(connection, &pipeline).await?;
                Ok((pipeline, bytes))
            })
        })
        .await
    }

    async fn remove_pipeline(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.change("remove_pipeline", move |connection| {
            Box::pin(async move {
                match delete(connection, "DELETE FROM pipelines WHERE name = ?", &name).await? {
                    0 => Err(storage_core::jobs::refusal::not_found("pipeline", &name)),
                    _ => Ok(((), 0)),
                }
            })
        })
        .await
    }

    async fn claim(&self, claim: &Claim) -> Result<Option<Execution>> {
        self.checked("claim", claim.validate())?;
        let claim = claim.clone();
        self.change("claim", |connection| Box::pin(async move { take(connection, &claim).await }))
            .await
    }

    async fn add_execution(&self, execution: &Execution) -> Result<()> {
        self.checked("add_execution", execution.validate())?;
        let execution = execution.clone().into_stored();
        self.change("add_execution", move |connection| {
            Box::pin(async move {
                let mut job = read::job(connection, &execution.job_id).await?;
                if read::find_execution(connection, &execution.id).await?.is_some() {
                    return Err(taken("execution", &execution.id));
                }
                job.note_end(&execution);
                put_job(connection, &job).await?;
                Ok(((), put_execution(connection, &execution).await?))
            })
        })
        .await
    }

    async fn execution(&self, id: &str) -> Result<Execution> {
        let missing = || Err(storage_core::jobs::refusal::not_found("execution", id));
        let question = async |connection: &mut _| read::execution(connection, id).await;
        self.ask("execution", missing, question).await
    }

    async fn executions(&self, query: &ExecutionQuery) -> Result<Listed<Execution>> {
        self.checked("executions", query.validate())?;
        let question = async |connection: &mut _| read::executions(connection, query).await;
        self.ask("executions", || Ok(nothing()), question).await
    }

    async fn update_execution(
        &self,
        id: &str,
        patch: &ExecutionPatch,
        at: DateTime<Utc>,
    ) -> Result<Execution> {
        self.checked("update_execution", patch.validate())?;
        let (id, patch) = (id.to_owned(), patch.clone());
        self.change("update_execution", move |connection| {
            Box::pin(async move {
                let mut execution = read::execution(connection, &id).await?;
                let mut job = read::job(connection, &execution.job_id).await?;
                execution.apply(&mut job, &patch, at)?;
                put_job(connection, &job).await?;
                let bytes = match patch.changes_execution() {
                    true => put_execution(connection, &execution).await?,
                    // A sign of life comes often, and context and steps may be large.
                    false => 0,
                };
                Ok((execution, bytes))
            })
        })
        .await
    }

    async fn remove_executions_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        upkeep(&self.store, "remove_executions_before", move |store, caller| async move {
            let removed = store.remove_executions(floor_ms(cutoff), caller).await?;
            if removed > 0
                && let Err(error) = store.give_space_back().await
            {
                // The executions are gone; space that cannot be given back now is used again.
                tracing::warn!(target: "storage", %error, "cannot give space back");
            }
            Ok(removed)
        })
        .await
    }

    async fn health(&self, at: DateTime<Utc>) -> JobHealth {
        let question = async |connection: &mut _| read::counts(connection, at).await;
        match self.ask("health", || Ok(Default::default()), question).await {
            Ok(counts) => JobHealth::of(counts, self.store.check_writable().err().as_ref()),
            Err(error) => JobHealth::down(&error),
        }
    }

    fn name(&self) -> &'static str {
        "sqlite"
    }
}

/// What a file of an older version lists.
fn nothing<T>() -> Listed<T> {
    Listed { items: Vec::new(), next: None }
}

async fn take(connection: &mut SqliteConnection, claim: &Claim) -> Changed<Option<Execution>> {
    if let Some(found) = read::find_execution(connection, &claim.execution_id).await? {
        let job = read::job(connection, &found.job_id).await?;
        return claim.repeat(found, job.lease.as_ref()).map(|found| (Some(found), 0));
    }
    let job = match &claim.job_id {
        Some(id) => Some(read::job(connection, id).await?),
        None => read::next_due(connection, claim.at).await?,
    };
    let Some(mut job) = job else { return Ok((None, 0)) };
    let mut under_way = match &job.lease {
        Some(lease) => read::find_execution(connection, &lease.execution_id).await?,
        None => None,
    };
    let execution = claim.take(&mut job, under_way.as_mut())?;
    put_job(connection, &job).await?;
    let mut bytes = put_execution(connection, &execution).await?;
    if let Some(lost) = &under_way {
        bytes += put_execution(connection, lost).await?;
    }
    Ok((Some(execution), bytes))
}

async fn delete(connection: &mut SqliteConnection, sql: &'static str, id: &str) -> Result<u64> {
    let deleted = sqlx::query(sql).bind(id).execute(connection).await.map_err(from_sqlx)?;
    Ok(deleted.rows_affected())
}

impl Store {
    /// Removes executions that have ended and started before `cutoff_ms`, in steps that writers need
    /// not wait long for, and returns how many.
    async fn remove_executions(&self, cutoff_ms: i64, caller: oneshot::Sender<()>) -> Result<u64> {
        let mut removed = 0;
        loop {
            let step = self.remove_some_executions(cutoff_ms, &caller).await;
            let count = step.map_err(|error| partly(error, removed))?;
            removed += count;
            if count < STEP_EXECUTIONS.cast_unsigned() {
                return Ok(removed);
            }
        }
    }

    async fn remove_some_executions(
        &self,
        cutoff_ms: i64,
        caller: &oneshot::Sender<()>,
    ) -> Result<u64> {
        let mut writer = self.writer().await?;
        let connection = writer.connection()?;
        check_wanted(caller)?;
        // One statement, hence one transaction.
        let deleted = sqlx::query(
            "DELETE FROM job_executions WHERE rowid IN (
                 SELECT rowid FROM job_executions INDEXED BY job_executions_by_time
                 WHERE start_time < ?1 AND status <> 'running' LIMIT ?2)",
        )
        .bind(cutoff_ms)
        .bind(STEP_EXECUTIONS)
        .execute(&mut *connection)
        .await
        .map_err(|error| of_commit(from_sqlx(error)));
        let removed = deleted.inspect_err(|error| self.note_write_error(error))?.rows_affected();
        self.checkpoint_if_due(connection, removed * ROW_BYTES).await;
        Ok(removed)
    }
}
