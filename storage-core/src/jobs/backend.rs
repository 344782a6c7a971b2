//! The contract for jobs: what every backend promises, word for word.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::claim::Claim;
use super::execution::{Execution, ExecutionPatch};
use super::health::JobHealth;
use super::job::{Job, JobPatch, NewJob};
use super::listing::{ExecutionQuery, JobQuery, Listed, Page};
use super::pipeline::{NewPipeline, Pipeline, PipelinePatch};
use crate::error::Result;

/// Jobs with their schedules, the pipelines that they run, and their executions.
///
/// This documentation is the contract; the crate `conformance-tests` checks a backend against
/// every sentence of it. A job store is a part of a [`Store`](crate::Store) and shares its
/// location, its handles and its end with the other parts. It keeps jobs; it runs none.
///
/// # Model
/// A *job* is an id, compared byte by byte, with a schedule and the name of a pipeline; that
/// pipeline need not be stored. An *execution* is one run of a job and goes with it. What breaks a
/// rule of [`NewJob`], [`NewPipeline`] or [`Execution`] is refused. JSON comes back as equal JSON;
/// whole numbers and fractions stay apart. Ids of jobs, names of pipelines and ids of executions do
/// not get into each other's way, nor into that of other parts of the store.
///
/// # Time
/// A store reads no clock: who calls says what time it is, as `at`. Every time that crosses the
/// contract is floored to whole milliseconds toward the past and lies in the years 0001 to 9999.
/// Workers that share a store should have clocks that differ by less than their leases last.
///
/// # Versions
/// A job and a pipeline have the version 1 when they are added, and one more after each update,
/// also after one that changes nothing. Runs leave the version of a job as it is. An update that
/// expects another version is refused with `Conflict` and changes nothing: of two who read the same
/// version and update at once, one succeeds.
///
/// # Leases
/// A job that is claimed has a lease until its execution ends. While a lease is in force nobody
/// else can claim the job, however many ask at once. A lease at whose end (`until`) the clock of a
/// claim has arrived is over; the next claim that finds it then ends its execution as
/// [`Lost`](super::RunResult::Lost) and tries it again as a new execution with one more attempt. So
/// a job is run at least once for a planned run, and twice only if a worker goes on after its lease.
/// Until somebody claims the job, the execution can still be extended and ended.
///
/// # Sharing
/// Any number of tasks, handles and, where the location is a file or a server, processes may use
/// one location at once. Each call that changes something is done whole or not at all, one after
/// the other as far as anybody can see. What one changed, every other sees as soon as the call has
/// returned, and it survives a crash of the process and a power cut, unless the backend was told to
/// relax durability.
///
/// # Cancellation
/// Dropping the future of a call leaves all of its effect or none (of a removal of old executions: a
/// part), and the handle usable. A change that is still made after its future was dropped is made
/// before any later one of the same handle; only that of an execution need not wait for the removal of
/// another job.
///
/// # Errors
/// Every method may return, besides the kinds that it lists, `Unavailable`, `Busy`, `Timeout`,
/// `Corrupt`, `Io` and, after the store was closed, `Closed`; every method that changes something
/// `StorageFull` and `PermissionDenied`, as the location has it. An error with the outcome
/// `NotApplied` has changed nothing; with `Unknown` the change is made whole or not at all. Reads
/// say `NotApplied`.
///
/// # Cost
/// O(log n) for one job, pipeline or execution out of n, and O(log n + k) for a page of k items,
/// except where it says more.
#[async_trait]
pub trait JobStore: Send + Sync {
    /// Adds a job, and returns it as it is stored.
    ///
    /// Its next run is the first of its schedule after `at`; none if it is not enabled.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field`; `Conflict` with the detail `job` if there is one
    /// with this id, which stays as it is.
    ///
    /// # Example
    /// ```
    /// use chrono::{TimeZone, Utc};
    /// use storage_core::{InMemory, JobStore, NewJob};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
    /// let jobs = InMemory::new().jobs();
    /// let noon = Utc.with_ymd_and_hms(2026, 1, 1, 12, 0, 0).unwrap();
    /// let sync = NewJob::new("daily-sync", "sync.yaml", "0 2 * * *".parse()?);
    /// jobs.add_job(&sync, noon).await?;
    ///
    /// let found = jobs.job("daily-sync").await?;
    /// assert_eq!(found.next_run, Utc.with_ymd_and_hms(2026, 1, 2, 2, 0, 0).single());
    /// # Ok(()) }
    /// ```
    async fn add_job(&self, job: &NewJob, at: DateTime<Utc>) -> Result<Job>;

    /// Returns a job.
    ///
    /// # Errors
    /// `NotFound` with the detail `job` if there is none with this id.
    async fn job(&self, id: &str) -> Result<Job>;

    /// Lists the jobs that `query` chooses by id, byte by byte.
    ///
    /// Each page is a snapshot. Who follows the cursors to the end sees every job once that is there
    /// all the while and chosen all the while, whatever is added and removed meanwhile. An answer
    /// has a next page if there were more jobs.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field`: `limit` if it is 0 or more than 1000, `after` if
    /// the cursor is none of such a listing.
    ///
    /// # Cost
    /// O(n) for n jobs where the query chooses by more than the page.
    async fn jobs(&self, query: &JobQuery) -> Result<Listed<Job>>;

    /// Changes what `patch` says of a job, and returns it as it is stored.
    ///
    /// If the schedule changes, or whether it is enabled, its next run is planned anew, from `at`
    /// on, unless the patch says when it is. A lease that it has stays.
    ///
    /// # Errors
    /// `NotFound` with the detail `job`; `Conflict` with the details `version` and
    /// `expected_version` if the version is another than the patch expects; `InvalidArgument` with
    /// the detail `field`, `next_run` if that is said of a job that is not enabled.
    async fn update_job(&self, id: &str, patch: &JobPatch, at: DateTime<Utc>) -> Result<Job>;

    /// Removes a job with all its executions, also one under way, and returns how many those were.
    ///
    /// # Errors
    /// `NotFound` with the detail `job`.
    ///
    /// # Cost
    /// O(k) for k executions.
    async fn remove_job(&self, id: &str) -> Result<u64>;

    /// Adds a pipeline, and returns it as it is stored.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field`; `Conflict` with the detail `pipeline` if there is
    /// one of this name, which stays as it is.
    async fn add_pipeline(&self, pipeline: &NewPipeline, at: DateTime<Utc>) -> Result<Pipeline>;

    /// Returns a pipeline.
    ///
    /// # Errors
    /// `NotFound` with the detail `pipeline` if there is none of this name.
    async fn pipeline(&self, name: &str) -> Result<Pipeline>;

    /// Lists pipelines by name, byte by byte, as [`jobs`](Self::jobs) lists jobs.
    ///
    /// # Errors
    /// As [`jobs`](Self::jobs).
    async fn pipelines(&self, page: &Page) -> Result<Listed<Pipeline>>;

    /// Changes what `patch` says of a pipeline, and returns it as it is stored.
    ///
    /// # Errors
    /// As [`update_job`](Self::update_job), with the detail `pipeline`.
    async fn update_pipeline(
        &self,
        name: &str,
        patch: &PipelinePatch,
        at: DateTime<Utc>,
    ) -> Result<Pipeline>;

    /// Removes a pipeline. Jobs that run it stay as they are.
    ///
    /// # Errors
    /// `NotFound` with the detail `pipeline`.
    async fn remove_pipeline(&self, name: &str) -> Result<()>;

    /// Gives a job to a worker: returns the execution that it is to run, or none if no job is due.
    ///
    /// Due is a job that is enabled and whose next run has come, or whose lease is over. Of several
    /// the one that has been due longest is given, of those the one whose id comes first, byte by
    /// byte; one that somebody else is changing at that moment may be passed over for the next.
    ///
    /// The execution stands for the planned run that is due, and says how many more have passed
    /// since, which are not made up for; the next run is the first of the schedule after `at`. A
    /// claim of one job ([`Claim::of_job`]) gives that one, due or not and enabled or not, and
    /// leaves its next run as it is; its execution is `triggered_by` `manual`, others by
    /// `schedule`. One that tries a lost run again keeps what triggered that, and which planned run
    /// it stands for.
    ///
    /// A claim that is repeated, with the same execution id by the same worker, gives the execution
    /// that it gave before as long as that is under way, and changes nothing.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field`; `NotFound` with the detail `job` and `Conflict`
    /// with the details `job`, `worker` and `until` if the one job that is asked for is not there
    /// or has a lease in force; `Conflict` with the detail `execution` if its id is taken.
    ///
    /// # Example
    /// ```
    /// use std::time::Duration;
    /// use chrono::{TimeZone, Utc};
    /// use storage_core::{Claim, ExecutionPatch, InMemory, JobStore, NewJob, RunResult};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
    /// let jobs = InMemory::new().jobs();
    /// let noon = Utc.with_ymd_and_hms(2026, 1, 1, 12, 0, 0).unwrap();
    /// jobs.add_job(&NewJob::new("sync", "sync.yaml", "0 * * * *".parse()?), noon).await?;
    ///
    /// let (one, lease) = (noon + chrono::Duration::hours(1), Duration::from_secs(60));
    /// let run = jobs.claim(&Claim::next("run-1", "worker-a", lease, one)).await?.unwrap();
    /// assert_eq!(run.job_id, "sync");
    /// assert_eq!(jobs.claim(&Claim::next("run-2", "worker-b", lease, one)).await?, None);
    /// jobs.update_execution("run-1", &ExecutionPatch::end(RunResult::Succeeded), one).await?;
    /// # Ok(()) }
    /// ```
    async fn claim(&self, claim: &Claim) -> Result<Option<Execution>>;

    /// Adds an execution that was run, or is run, without a claim. It holds no lease: its job can be
    /// claimed meanwhile.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field`; `NotFound` with the detail `job` if its job is not
    /// there; `Conflict` with the detail `execution` if there is one with this id, which stays as
    /// it is.
    async fn add_execution(&self, execution: &Execution) -> Result<()>;

    /// Returns an execution.
    ///
    /// # Errors
    /// `NotFound` with the detail `execution` if there is none with this id.
    async fn execution(&self, id: &str) -> Result<Execution>;

    /// Lists the executions that `query` chooses by their start, the newest first, those of one
    /// start by id backwards; otherwise as [`jobs`](Self::jobs) lists jobs.
    ///
    /// # Errors
    /// As [`jobs`](Self::jobs).
    ///
    /// # Cost
    /// O(n) for n executions where the query chooses by the state.
    async fn executions(&self, query: &ExecutionQuery) -> Result<Listed<Execution>>;

    /// Changes what `patch` says of an execution that is under way, and returns it as it is stored:
    /// extends its lease, keeps what it did, ends it.
    ///
    /// The end gives up the lease, so that the job is due again when its next run comes. The last
    /// run of a job is, of its executions that have ended, the one that started last. An end before
    /// the start is taken for the start.
    ///
    /// # Errors
    /// `NotFound` with the detail `execution`; `Conflict` with the details `execution` and `status`
    /// if it has ended, or with `execution` if its lease is to be extended and it has none;
    /// `InvalidArgument` with the detail `field`.
    async fn update_execution(
        &self,
        id: &str,
        patch: &ExecutionPatch,
        at: DateTime<Utc>,
    ) -> Result<Execution>;

    /// Removes every execution that has ended and started before `cutoff`, and returns how many.
    ///
    /// One that started at the cutoff stays, and so does one under way. The number is exact, the sum
    /// of two concurrent calls too. Jobs keep their last run. A call that fails or is dropped may have
    /// removed a part; repeating it removes the rest.
    ///
    /// # Errors
    /// The outcome is `Unknown` if a part may have been removed.
    ///
    /// # Cost
    /// O(k) for k executions removed.
    async fn remove_executions_before(&self, cutoff: DateTime<Utc>) -> Result<u64>;

    /// Says how the jobs are doing at `at`; never fails.
    ///
    /// Down if the store cannot be read; degraded if it cannot be written, if a lease is over, or if
    /// a job has been due for a minute and nobody has claimed it.
    ///
    /// # Cost
    /// O(n) for n jobs.
    async fn health(&self, at: DateTime<Utc>) -> JobHealth;

    /// The name of the backend, as errors and logs show it.
    fn name(&self) -> &'static str {
        std::any::type_name::<Self>()
    }
}

macro_rules! forward_to_inner {
    ($($wrapper:ty),+) => {$(
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<J: JobStore + ?Sized> JobStore for $wrapper {
            async fn add_job(&self, job: &NewJob, at: DateTime<Utc>) -> Result<Job> {
                (**self).add_job(job, at).await
            }
            async fn job(&self, id: &str) -> Result<Job> {
                (**self).job(id).await
            }
            async fn jobs(&self, query: &JobQuery) -> Result<Listed<Job>> {
                (**self).jobs(query).await
            }
            async fn update_job(
                &self,
                id: &str,
                patch: &JobPatch,
                at: DateTime<Utc>,
            ) -> Result<Job> {
                (**self).update_job(id, patch, at).await
            }
            async fn remove_job(&self, id: &str) -> Result<u64> {
                (**self).remove_job(id).await
            }
            async fn add_pipeline(
                &self,
                pipeline: &NewPipeline,
                at: DateTime<Utc>,
            ) -> Result<Pipeline> {
                (**self).add_pipeline(pipeline, at).await
            }
            async fn pipeline(&self, name: &str) -> Result<Pipeline> {
                (**self).pipeline(name).await
            }
            async fn pipelines(&self, page: &Page) -> Result<Listed<Pipeline>> {
                (**self).pipelines(page).await
            }
            async fn update_pipeline(
                &self,
                name: &str,
                patch: &PipelinePatch,
                at: DateTime<Utc>,
            ) -> Result<Pipeline> {
                (**self).update_pipeline(name, patch, at).await
            }
            async fn remove_pipeline(&self, name: &str) -> Result<()> {
                (**self).remove_pipeline(name).await
            }
            async fn claim(&self, claim: &Claim) -> Result<Option<Execution>> {
                (**self).claim(claim).await
            }
            async fn add_execution(&self, execution: &Execution) -> Result<()> {
                (**self).add_execution(execution).await
            }
            async fn execution(&self, id: &str) -> Result<Execution> {
                (**self).execution(id).await
            }
            async fn executions(&self, query: &ExecutionQuery) -> Result<Listed<Execution>> {
                (**self).executions(query).await
            }
            async fn update_execution(
                &self,
                id: &str,
                patch: &ExecutionPatch,
                at: DateTime<Utc>,
            ) -> Result<Execution> {
                (**self).update_execution(id, patch, at).await
            }
            async fn remove_executions_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
                (**self).remove_executions_before(cutoff).await
            }
            async fn health(&self, at: DateTime<Utc>) -> JobHealth {
                (**self).health(at).await
            }
            fn name(&self) -> &'static str {
                (**self).name()
            }
        }
    )+};
}

forward_to_inner!(Arc<J>, Box<J>, &J);
