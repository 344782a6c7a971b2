//! Comforts over [`JobStore`], for every backend: what a scheduler does at start and a worker does
//! all day, by the clock of the machine.

use std::hash::{BuildHasher, RandomState};
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
    /// Those of [`JobStore::claim`], all with the detail `execution`: if the outcome is unknown, a
    /// claim with that id says what came of it.
    async fn claim_next(&self, worker: &str, lease: Duration) -> Result<Option<Execution>> {
        let claim = Claim::next(random_id(), worker, lease, Utc::now());
        self.claim(&claim).await.map_err(|error| claim.name_execution(error))
    }

    /// Claims one job, due or not, under an execution id of 32 random digits.
    ///
    /// # Errors
    /// As [`claim_next`](Self::claim_next).
    async fn claim_job(&self, job_id: &str, worker: &str, lease: Duration) -> Result<Execution> {
        let claim = Claim::next(random_id(), worker, lease, Utc::now()).of_job(job_id);
        let claimed = self.claim(&claim).await;
        let missing = || super::refusal::not_found("job", job_id);
        claimed
            .and_then(|claimed| claimed.ok_or_else(missing))
            .map_err(|error| claim.name_execution(error))
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

/// An id of 32 hexadecimal digits that nothing has had before, on whatever machine.
pub fn random_id() -> String {
    // `fastrand` seeds itself by the time and the thread alone: two workers that start at once can draw
    // the same ids. The keys of these hashes are random numbers of the system; process and time tell
    // apart those that were copied with their memory.
    let half = || RandomState::new().hash_one((std::process::id(), Utc::now()));
    format!("{:016x}{:016x}", half(), half())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::{ErrorKind, InMemory, StorageBackend};

    #[test]
    fn no_id_is_drawn_twice() {
        let draw = || (0..2000).map(|_| random_id()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(draw)).collect();
        let ids: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert!(ids.iter().all(|id| id.len() == 32 && u128::from_str_radix(id, 16).is_ok()));
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 8000);
    }

    /// Who does not know whether it has a job can ask.
    #[tokio::test]
    async fn a_claim_that_fails_names_the_id_that_it_drew() {
        let (store, lease) = (InMemory::new(), Duration::from_secs(60));
        let jobs = store.jobs();
        let missing = jobs.claim_job("nobody", "w", lease).await.unwrap_err();
        store.close().await.unwrap();
        let closed = jobs.claim_next("w", lease).await.unwrap_err();
        assert_eq!((missing.kind(), closed.kind()), (ErrorKind::NotFound, ErrorKind::Closed));
        for error in [missing, closed] {
            assert_eq!(error.context("execution").map(str::len), Some(32), "{error}");
        }
    }

    #[test]
    fn an_execution_that_is_named_is_not_named_again() {
        let claim = Claim::next("r", "w", Duration::from_secs(60), Utc::now());
        let taken = claim.name_execution(super::super::refusal::taken("execution", "r"));
        assert_eq!(taken.to_string().matches("execution=r").count(), 1, "{taken}");
    }
}
