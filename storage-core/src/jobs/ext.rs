//! Comforts over [`JobStore`], for every backend: what a scheduler does at start and a worker does
//! all day, by the clock of the machine.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::backend::JobStore;
use super::claim::Claim;
use super::execution::{Execution, ExecutionPatch, RunResult};
use super::job::Job;
use super::listing::{JobQuery, PAGE_ITEMS_MAX, Page};
use crate::error::Result;

/// A job as a scheduler finds it at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The job.
    pub job: Job,
    /// Planned runs that passed while nobody claimed them: see [`Job::missed_runs`].
    pub missed_runs: u64,
    /// Whether an execution was under way whose lease is over: it is tried again.
    pub stalled: bool,
}

/// Shorthands for every [`JobStore`].
///
/// ```
/// use std::time::Duration;
/// use storage_core::{InMemory, JobPatch, JobStore, JobStoreExt, NewJob, RunResult};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let jobs = InMemory::new().jobs();
/// jobs.add_job(&NewJob::new("sync", "sync.yaml", "@daily".parse()?), chrono::Utc::now()).await?;
///
/// let run = jobs.claim_job("sync", "worker-a", Duration::from_secs(60)).await?;
/// jobs.end(&run.id, RunResult::Succeeded).await?;
/// assert_eq!(jobs.job("sync").await?.last_run.unwrap().result, RunResult::Succeeded);
/// assert_eq!(jobs.claim_next("worker-a", Duration::from_secs(60)).await?, None);
/// # Ok(()) }
/// ```
#[async_trait]
pub trait JobStoreExt: JobStore {
    /// Returns every job, by id, with what was missed up to `at`: what a scheduler looks at when it
    /// starts.
    ///
    /// # Errors
    /// Those of [`JobStore::jobs`].
    async fn restore(&self, at: DateTime<Utc>) -> Result<Vec<Restored>> {
        let mut query = JobQuery::default().page(Page::first(PAGE_ITEMS_MAX));
        let mut restored = Vec::new();
        loop {
            let page = self.jobs(&query).await?;
            restored.extend(page.items.into_iter().map(|job| Restored {
                missed_runs: job.missed_runs(at),
                stalled: job.lease.as_ref().is_some_and(|lease| lease.until <= at),
                job,
            }));
            query.page.after = page.next;
            if query.page.after.is_none() {
                return Ok(restored);
            }
        }
    }

    /// Claims the job that has been due longest, under an execution id of 32 random digits.
    ///
    /// # Errors
    /// Those of [`JobStore::claim`].
    async fn claim_next(&self, worker: &str, lease: Duration) -> Result<Option<Execution>> {
        self.claim(&Claim::next(random_id(), worker, lease, Utc::now())).await
    }

    /// Claims one job, due or not, under an execution id of 32 random digits.
    ///
    /// # Errors
    /// Those of [`JobStore::claim`].
    async fn claim_job(&self, job_id: &str, worker: &str, lease: Duration) -> Result<Execution> {
        let claim = Claim::next(random_id(), worker, lease, Utc::now()).of_job(job_id);
        let claimed = self.claim(&claim).await?;
        claimed.ok_or_else(|| super::refusal::not_found("job", job_id))
    }

    /// Keeps others off an execution's job for another `lease`.
    ///
    /// # Errors
    /// Those of [`JobStore::update_execution`].
    async fn extend(&self, execution_id: &str, lease: Duration) -> Result<Execution> {
        self.update_execution(execution_id, &ExecutionPatch::extend(lease), Utc::now()).await
    }

    /// Ends an execution.
    ///
    /// # Errors
    /// Those of [`JobStore::update_execution`].
    async fn end(&self, execution_id: &str, result: RunResult) -> Result<Execution> {
        self.update_execution(execution_id, &ExecutionPatch::end(result), Utc::now()).await
    }

    /// Ends an execution that failed, and says why.
    ///
    /// # Errors
    /// Those of [`JobStore::update_execution`].
    async fn fail(&self, execution_id: &str, error: &str) -> Result<Execution> {
        self.update_execution(execution_id, &ExecutionPatch::fail(error), Utc::now()).await
    }
}

impl<J: JobStore + ?Sized> JobStoreExt for J {}

/// An id that nothing has had before.
pub fn random_id() -> String {
    format!("{:032x}", fastrand::u128(..))
}
