//! Stores whose jobs are broken on purpose, each in one way.

mod adding;
mod bugs;
mod listing;
mod metrics;
mod running;
mod seeing;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use conformance_tests::Fixture;
use conformance_tests::harness::Store as Handle;
use futures_util::FutureExt;
use storage_core::{
    Claim, Error, ErrorKind, Execution, ExecutionPatch, ExecutionQuery, HealthStatus, InMemory,
    InMemoryJobs, Job, JobCounts, JobHealth, JobPatch, JobQuery, JobStore, LastRun, Lease, Listed,
    NewJob, NewPipeline, Page, Pipeline, PipelinePatch, Result, Store,
};

pub(crate) use bugs::Bug;
use metrics::BrokenMetrics;

use crate::mutant_runner::locations::{Locations, forget, one, open_alone};
use crate::mutant_runner::moment::{Pair, Unless, pause};

/// What the handles of a location share.
#[derive(Default)]
struct Shared {
    handles: AtomicU64,
    opening: AtomicBool,
    closed: AtomicBool,
    broken: AtomicBool,
    pair: Pair,
    notes: Mutex<Notes>,
}

/// What was done so far, as far as a bug needs to remember.
#[derive(Default)]
struct Notes {
    removed: HashMap<String, u64>,
    runs: HashMap<String, u64>,
    last_ended: HashMap<String, LastRun>,
    leases: HashMap<String, Lease>,
    unleased: HashSet<String>,
    planned: HashMap<String, Option<DateTime<Utc>>>,
    hidden: HashSet<String>,
    held_back: Option<(NewJob, DateTime<Utc>)>,
    cleaned: bool,
}

impl Shared {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens stores that all have the same bug.
pub(crate) struct Mutants {
    bug: Bug,
    locations: Locations<Shared>,
}

impl Mutants {
    pub(crate) fn new(bug: Bug) -> Self {
        Self { bug, locations: Locations::default() }
    }
}

#[async_trait]
impl Fixture for Mutants {
    fn name(&self) -> &str {
        "mutant"
    }

    async fn open(&self, location: &str) -> Result<Handle> {
        Ok(Arc::clone(self.open_store(location).await?.metrics()))
    }

    async fn open_store(&self, location: &str) -> Result<Store> {
        let bug = self.bug;
        let shared = self.locations.shared(location);
        if bug == Bug::OpeningExcludes {
            open_alone(&shared.opening).await?;
        }
        let number = shared.handles.fetch_add(1, Ordering::SeqCst);
        let inner = InMemory::open(location);
        let jobs = match bug {
            Bug::HandlesAreApart => InMemory::open(&format!("{location}#{number}")).jobs(),
            Bug::LocationsAreOne => InMemory::open(&one(location)).jobs(),
            Bug::CloseIsIgnored => InMemory::open(location).jobs(),
            _ => inner.jobs(),
        };
        if bug == Bug::OpeningAdds {
            let job = NewJob::new(format!("meta {number}"), "meta", "@daily".parse()?);
            jobs.add_job(&job, DateTime::UNIX_EPOCH).await?;
        }
        if bug == Bug::OpeningLoses && number > 0 {
            remove_everything(&jobs).await?;
        }
        if bug == Bug::OpeningPlansAnew {
            for job in jobs.jobs(&JobQuery::default()).await?.items {
                let next_run = job.next_run.map(|next| next + TimeDelta::days(1));
                let patch = JobPatch { next_run, ..JobPatch::default() };
                jobs.update_job(&job.id, &patch, job.updated_at).await?;
            }
        }
        let metrics = BrokenMetrics { inner, bug, jobs: jobs.clone(), shared: Arc::clone(&shared) };
        let metrics = Arc::new(metrics);
        let store = Store::of_metrics(Arc::clone(&metrics) as Handle);
        Ok(store.with_jobs(Arc::new(Broken { inner: jobs, metrics, bug, shared })))
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        forget(location);
        Ok(())
    }
}

async fn remove_everything(jobs: &InMemoryJobs) -> Result<()> {
    for job in jobs.jobs(&JobQuery::default().page(Page::first(1000))).await?.items {
        jobs.remove_job(&job.id).await?;
    }
    Ok(())
}

/// Jobs with one bug.
struct Broken {
    inner: InMemoryJobs,
    metrics: Arc<BrokenMetrics>,
    bug: Bug,
    shared: Arc<Shared>,
}

impl Broken {
    fn is(&self, bug: Bug) -> bool {
        self.bug == bug
    }

    /// What goes before each call.
    fn enter(&self) -> Result<()> {
        if self.shared.broken.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Internal, "broken by what came before"));
        }
        if self.is(Bug::CloseClosesAll) && self.shared.closed.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Closed, "all handles were closed"));
        }
        Ok(())
    }

    /// Runs a call as it enters and leaves.
    async fn call<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let done = async {
            self.enter()?;
            work.await
        };
        done.await.map_err(|error| match self.bug {
            Bug::ErrorsNameNothing => unnamed(&error),
            _ => unnamed(&error).with_backend("memory").with_operation(operation),
        })
    }

    /// As [`call`](Self::call), for what only asks.
    async fn question<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let work = async {
            if self.is(Bug::DroppedQuestionsBreak) {
                let broken = || self.shared.broken.store(true, Ordering::SeqCst);
                let unfinished = Unless::done_or(broken);
                pause().await;
                unfinished.done();
            }
            work.await
        };
        self.call(operation, work).await
    }

    /// A closed handle says so first, whatever the bug.
    async fn check_open(&self) -> Result<()> {
        self.inner.pipelines(&Page::default()).await.map(drop)
    }

    /// A time as it comes in.
    fn time(&self, at: DateTime<Utc>) -> Result<DateTime<Utc>> {
        use storage_core::metrics::time::{END_MS, MIN_MS, floor_ms, from_ms};
        let ms = floor_ms(at);
        match self.bug {
            Bug::RoundsTimes => Ok(at + TimeDelta::microseconds(500)),
            Bug::AcceptsBadTimes => Ok(from_ms(ms.clamp(MIN_MS, END_MS - 1))),
            Bug::RefusesFarTimes if !(MIN_MS + 1000..END_MS - 1000).contains(&ms) => {
                Err(Error::invalid("too far").with_context("field", "at"))
            }
            _ => Ok(at),
        }
    }

    /// An id as it is looked up.
    fn key(&self, id: &str) -> String {
        if self.is(Bug::LooksUpWithoutCase) { id.to_lowercase() } else { id.to_owned() }
    }
}

#[async_trait]
impl JobStore for Broken {
    async fn add_job(&self, job: &NewJob, at: DateTime<Utc>) -> Result<Job> {
        self.call("add_job", self.try_add_job(job, at)).await
    }

    async fn job(&self, id: &str) -> Result<Job> {
        let job = async { Ok(self.seen_job(self.inner.job(&self.key(id)).await?)) };
        self.question("job", job).await
    }

    async fn jobs(&self, query: &JobQuery) -> Result<Listed<Job>> {
        self.question("jobs", self.try_jobs(query)).await
    }

    async fn update_job(&self, id: &str, patch: &JobPatch, at: DateTime<Utc>) -> Result<Job> {
        self.call("update_job", self.try_update_job(id, patch, at)).await
    }

    async fn remove_job(&self, id: &str) -> Result<u64> {
        self.call("remove_job", self.try_remove_job(id)).await
    }

    async fn add_pipeline(&self, pipeline: &NewPipeline, at: DateTime<Utc>) -> Result<Pipeline> {
        self.call("add_pipeline", self.try_add_pipeline(pipeline, at)).await
    }

    async fn pipeline(&self, name: &str) -> Result<Pipeline> {
        let found = async { Ok(self.seen_pipeline(self.inner.pipeline(&self.key(name)).await?)) };
        self.question("pipeline", found).await
    }

    async fn pipelines(&self, page: &Page) -> Result<Listed<Pipeline>> {
        self.question("pipelines", self.try_pipelines(page)).await
    }

    async fn update_pipeline(
        &self,
        name: &str,
        patch: &PipelinePatch,
        at: DateTime<Utc>,
    ) -> Result<Pipeline> {
        self.call("update_pipeline", self.try_update_pipeline(name, patch, at)).await
    }

    async fn remove_pipeline(&self, name: &str) -> Result<()> {
        self.call("remove_pipeline", self.try_remove_pipeline(name)).await
    }

    async fn claim(&self, claim: &Claim) -> Result<Option<Execution>> {
        let claimed = async { Ok(self.try_claim(claim).await?.map(|run| self.seen_run(run))) };
        self.call("claim", claimed).await
    }

    async fn add_execution(&self, execution: &Execution) -> Result<()> {
        self.call("add_execution", self.try_add_execution(execution)).await
    }

    async fn execution(&self, id: &str) -> Result<Execution> {
        let found = async {
            if self.shared.notes().hidden.contains(id) {
                return Err(storage_core::jobs::refusal::not_found("execution", id));
            }
            Ok(self.seen_run(self.inner.execution(&self.key(id)).await?))
        };
        self.question("execution", found).await
    }

    async fn executions(&self, query: &ExecutionQuery) -> Result<Listed<Execution>> {
        self.question("executions", self.try_executions(query)).await
    }

    async fn update_execution(
        &self,
        id: &str,
        patch: &ExecutionPatch,
        at: DateTime<Utc>,
    ) -> Result<Execution> {
        let updated = async { Ok(self.seen_run(self.try_update_execution(id, patch, at).await?)) };
        self.call("update_execution", updated).await
    }

    async fn remove_executions_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        self.call("remove_executions_before", self.try_remove_executions(cutoff)).await
    }

    async fn health(&self, at: DateTime<Utc>) -> JobHealth {
        let JobHealth { status, message, mut counts } = self.inner.health(at).await;
        match self.bug {
            Bug::NeverHealthy => JobHealth { status: HealthStatus::Degraded, message, counts },
            Bug::NeverOverdue => {
                counts.overdue = 0;
                JobHealth::of(counts, None)
            }
            Bug::NeverStalled => {
                counts =
                    JobCounts { running: counts.running + counts.stalled, stalled: 0, ..counts };
                JobHealth::of(counts, None)
            }
            Bug::NeverDown => JobHealth { status: HealthStatus::Healthy, message, counts },
            _ => JobHealth { status, message, counts },
        }
    }

    fn name(&self) -> &'static str {
        if self.is(Bug::HasAnotherName) { "another" } else { "memory" }
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        if self.is(Bug::DroppingLoses) {
            remove_everything(&self.inner).now_or_never();
        }
    }
}

/// The same error without the call that it names: that may be one which the wrapper made.
fn unnamed(error: &Error) -> Error {
    const DETAILS: [&str; 10] = [
        "field",
        "job",
        "pipeline",
        "execution",
        "version",
        "expected_version",
        "status",
        "worker",
        "until",
        "limit",
    ];
    let new = Error::new(error.kind(), error.message().to_owned()).with_outcome(error.outcome());
    DETAILS.into_iter().fold(new, |new, name| match error.context(name) {
        Some(value) => new.with_context(name, value),
        None => new,
    })
}
