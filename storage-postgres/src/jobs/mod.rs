//! Jobs on PostgreSQL: each method checks, delegates to `read` or `write`, and names itself in the
//! error.
//!
//! What becomes of what is changed is decided by the functions of `storage_core::jobs`, the same for
//! every backend.

mod order;
mod read;
mod rows;
mod write;

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use deadpool_postgres::ClientWrapper;
use futures_util::future::BoxFuture;
use storage_core::metrics::time::{END_MS, MIN_MS, floor_ms};
use storage_core::{
    Claim, Execution, ExecutionPatch, ExecutionQuery, Job, JobHealth, JobPatch, JobQuery, JobStore,
    Listed, NewJob, NewPipeline, Page, Pipeline, PipelinePatch, Result,
};

use crate::backend::named;
use crate::convert::PgTime;
use crate::maintenance::upkeep;
use crate::schema::JOBS_VERSION;
use crate::store::Store;
use write::Pace;

pub(crate) use order::Order as JobOrder;

/// The jobs in a schema of a PostgreSQL database; see
/// [`PostgresBackend::jobs`](crate::PostgresBackend::jobs).
///
/// The changes of one handle are made one after the other. A removal of a job with many executions may
/// take ten times as long as other statements. So that no lease is lost meanwhile, the executions of
/// other jobs are extended, changed and ended beside it; what else the handle is to change waits.
#[derive(Debug, Clone)]
pub struct PostgresJobs {
    store: Arc<Store>,
}

impl PostgresJobs {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// # Errors
    /// `Closed` after `close`; `PermissionDenied` where an older store could not be migrated; what
    /// `check` says.
    fn checked<T>(&self, operation: &'static str, check: Result<T>) -> Result<T> {
        let there = self.store.check_part(JOBS_VERSION);
        there.and(check).map_err(|error| named(error, operation))
    }

    /// Makes a change in a transaction and a task of its own, so that dropping the caller never stops
    /// it half way.
    async fn change<T: Send + 'static>(
        &self,
        operation: &'static str,
        change: impl for<'c> Fn(&'c ClientWrapper) -> BoxFuture<'c, Result<T>> + Send + Sync + 'static,
    ) -> Result<T> {
        upkeep(&self.store, operation, move |store, caller| async move {
            // Held across the transaction on purpose: what this handle changes later comes later.
            let _turn = store.job_order.turn().await;
            write::run(&store, &caller, Pace::Ordinary, change).await
        })
        .await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl JobStore for PostgresJobs {
    async fn add_job(&self, job: &NewJob, at: DateTime<Utc>) -> Result<Job> {
        let job = self.checked("add_job", job.clone().into_job(at))?;
        self.change("add_job", move |client| Box::pin(write::add_job(client, job.clone()))).await
    }

    async fn job(&self, id: &str) -> Result<Job> {
        self.checked("job", Ok(()))?;
        self.store.job(id).await.map_err(|error| named(error, "job"))
    }

    async fn jobs(&self, query: &JobQuery) -> Result<Listed<Job>> {
        self.checked("jobs", query.validate())?;
        self.store.jobs(query).await.map_err(|error| named(error, "jobs"))
    }

    async fn update_job(&self, id: &str, patch: &JobPatch, at: DateTime<Utc>) -> Result<Job> {
        self.checked("update_job", patch.validate())?;
        let what = Arc::new((id.to_owned(), patch.clone()));
        self.change("update_job", move |client| {
            let what = Arc::clone(&what);
            Box::pin(async move { write::update_job(client, &what.0, &what.1, at).await })
        })
        .await
    }

    async fn remove_job(&self, id: &str) -> Result<u64> {
        self.checked("remove_job", Ok(()))?;
        let id: Arc<str> = id.into();
        upkeep(&self.store, "remove_job", move |store, caller| async move {
            write::remove_job(&store, &caller, id).await
        })
        .await
    }

    async fn add_pipeline(&self, pipeline: &NewPipeline, at: DateTime<Utc>) -> Result<Pipeline> {
        let pipeline = self.checked("add_pipeline", pipeline.clone().into_pipeline(at))?;
        self.change("add_pipeline", move |client| {
            Box::pin(write::add_pipeline(client, pipeline.clone()))
        })
        .await
    }

    async fn pipeline(&self, name: &str) -> Result<Pipeline> {
        self.checked("pipeline", Ok(()))?;
        self.store.pipeline(name).await.map_err(|error| named(error, "pipeline"))
    }

    async fn pipelines(&self, page: &Page) -> Result<Listed<Pipeline>> {
        self.checked("pipelines", page.validate().and(page.after_name()))?;
        self.store.pipelines(page).await.map_err(|error| named(error, "pipelines"))
    }

    async fn update_pipeline(
        &self,
        name: &str,
        patch: &PipelinePatch,
        at: DateTime<Utc>,
    ) -> Result<Pipeline> {
        self.checked("update_pipeline", patch.validate())?;
        let what = Arc::new((name.to_owned(), patch.clone()));
        self.change("update_pipeline", move |client| {
            let what = Arc::clone(&what);
            Box::pin(async move { write::update_pipeline(client, &what.0, &what.1, at).await })
        })
        .await
    }

    async fn remove_pipeline(&self, name: &str) -> Result<()> {
        self.checked("remove_pipeline", Ok(()))?;
        let name: Arc<str> = name.into();
        self.change("remove_pipeline", move |client| {
            let name = Arc::clone(&name);
            Box::pin(async move { write::remove_pipeline(client, &name).await })
        })
        .await
    }

    async fn claim(&self, claim: &Claim) -> Result<Option<Execution>> {
        self.checked("claim", claim.validate())?;
        let claim = Arc::new(claim.clone());
        self.change("claim", move |client| {
            let claim = Arc::clone(&claim);
            Box::pin(async move { write::claim(client, &claim).await })
        })
        .await
    }

    async fn add_execution(&self, execution: &Execution) -> Result<()> {
        self.checked("add_execution", execution.validate())?;
        let execution = Arc::new(execution.clone().into_stored());
        self.change("add_execution", move |client| {
            let execution = Arc::clone(&execution);
            Box::pin(async move { write::add_execution(client, &execution).await })
        })
        .await
    }

    async fn execution(&self, id: &str) -> Result<Execution> {
        self.checked("execution", Ok(()))?;
        self.store.execution(id).await.map_err(|error| named(error, "execution"))
    }

    async fn executions(&self, query: &ExecutionQuery) -> Result<Listed<Execution>> {
        self.checked("executions", query.validate())?;
        self.store.executions(query).await.map_err(|error| named(error, "executions"))
    }

    async fn update_execution(
        &self,
        id: &str,
        patch: &ExecutionPatch,
        at: DateTime<Utc>,
    ) -> Result<Execution> {
        self.checked("update_execution", patch.validate())?;
        let what = Arc::new((id.to_owned(), patch.clone()));
        upkeep(&self.store, "update_execution", move |store, caller| async move {
            let _turn = store.job_order.turn_of_execution().await;
            write::run(&store, &caller, Pace::Ordinary, |client| {
                let what = Arc::clone(&what);
                Box::pin(async move { write::update_execution(client, &what.0, &what.1, at).await })
            })
            .await
        })
        .await
    }

    async fn remove_executions_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        self.checked("remove_executions_before", Ok(()))?;
        let cutoff = PgTime(floor_ms(cutoff).clamp(MIN_MS, END_MS));
        upkeep(&self.store, "remove_executions_before", move |store, caller| async move {
            write::remove_executions(&store, &caller, cutoff).await
        })
        .await
    }

    async fn health(&self, at: DateTime<Utc>) -> JobHealth {
        let counted = async {
            self.checked("health", Ok(()))?;
            let counts = self.store.job_counts(at).await?;
            Ok((counts, self.store.check_takes_writes().await?))
        };
        match counted.await.map_err(|error| named(error, "health")) {
            Ok((counts, unwritable)) => JobHealth::of(counts, unwritable.as_ref()),
            Err(error) => JobHealth::down(&error),
        }
    }

    fn name(&self) -> &'static str {
        "postgres"
    }
}
