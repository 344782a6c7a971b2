//! Claiming: how a worker gets a job that is due, and nobody else meanwhile.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::execution::{Execution, RunResult};
use super::job::{Job, Lease};
use super::refusal::{check_time, taken};
use super::schedule::later;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::check_name;
use crate::metrics::time::{floor_ms, from_ms};

/// The longest lease.
const LEASE_MAX: Duration = Duration::from_secs(366 * 86_400);

/// Asks for one job to run.
///
/// ```
/// use std::time::Duration;
/// use storage_core::Claim;
///
/// let lease = Duration::from_secs(300);
/// let next = Claim::next("run-1", "worker-a", lease, chrono::Utc::now());
/// assert!(next.validate().is_ok() && next.job_id.is_none());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The id that the execution gets. Chosen by the caller, so that a claim of which nobody knows
    /// whether it was applied can be repeated.
    pub execution_id: String,
    /// Who will run it: 1 to 512 bytes, no NUL.
    pub worker: String,
    /// How long others keep off: 1 ms to 366 days. Extend it before it is over.
    pub lease: Duration,
    /// What time it is for the caller.
    pub at: DateTime<Utc>,
    /// This job, due or not and enabled or not; else the one that has been due longest.
    pub job_id: Option<String>,
}

impl Claim {
    /// Asks for the job that has been due longest.
    pub fn next(
        execution_id: impl Into<String>,
        worker: impl Into<String>,
        lease: Duration,
        at: DateTime<Utc>,
    ) -> Self {
        let (execution_id, worker) = (execution_id.into(), worker.into());
        Self { execution_id, worker, lease, at, job_id: None }
    }

    /// Asks for one job instead, whether it is due or not.
    #[must_use]
    pub fn of_job(mut self, job_id: impl Into<String>) -> Self {
        self.job_id = Some(job_id.into());
        self
    }

    /// Checks the claim against the contract.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field`.
    pub fn validate(&self) -> Result<()> {
        check_name("execution_id", &self.execution_id)?;
        check_name("worker", &self.worker)?;
        check_time("at", self.at)?;
        check_lease(self.lease)
    }

    /// What the claim gives if there is an execution with its id: that one, if this very claim can
    /// have made it and it is still under way. `lease` is that of its job: an execution that was
    /// added holds none, whoever runs it.
    ///
    /// # Errors
    /// `Conflict` with the detail `execution` otherwise.
    pub fn repeat(&self, found: Execution, lease: Option<&Lease>) -> Result<Execution> {
        let is_held = |lease: &Lease| lease.execution_id == found.id && lease.worker == self.worker;
        let is_asked_for = self.job_id.as_ref().is_none_or(|id| *id == found.job_id);
        match is_asked_for && lease.is_some_and(is_held) {
            true => Ok(found),
            false => Err(taken("execution", &self.execution_id)),
        }
    }

    /// Names the execution id in an error of this claim, as the detail `execution`, unless one is
    /// named: who has drawn the id at random needs it to repeat a claim whose outcome is unknown.
    #[must_use]
    pub fn name_execution(&self, error: Error) -> Error {
        match error.context("execution") {
            Some(_) => error,
            None => error.with_context("execution", &self.execution_id),
        }
    }

    /// Gives `job` to the worker: the new execution. `under_way` is the one that the lease of the
    /// job names; it is lost, and tried again. All three are what a store keeps from then on.
    ///
    /// # Errors
    /// `Conflict` with the details `job`, `worker` and `until` if a lease is in force.
    pub fn take(&self, job: &mut Job, under_way: Option<&mut Execution>) -> Result<Execution> {
        let at = from_ms(floor_ms(self.at));
        if let Some(lease) = job.lease.as_ref().filter(|lease| lease.until > at) {
            return Err(Error::new(ErrorKind::Conflict, "another worker runs the job")
                .with_context("job", &job.id)
                .with_context("worker", &lease.worker)
                .with_context("until", lease.until.to_rfc3339()));
        }
        let mut run = Execution::new(&self.execution_id, &job.id, &job.pipeline, at);
        run.worker = Some(self.worker.clone());
        if let Some(lost) = under_way {
            lost.end(job, at, RunResult::Lost, Some("the lease expired".to_owned()));
            run.triggered_by.clone_from(&lost.triggered_by);
            (run.scheduled_for, run.missed_runs) = (lost.scheduled_for, lost.missed_runs);
            run.attempt = lost.attempt.saturating_add(1);
        } else if self.job_id.is_none() {
            "schedule".clone_into(&mut run.triggered_by);
            run.scheduled_for = job.next_run;
            run.missed_runs = job.missed_runs(at).saturating_sub(1);
            job.next_run = job.schedule.after(at);
        }
        job.lease = Some(Lease {
            execution_id: run.id.clone(),
            worker: self.worker.clone(),
            until: later(at, self.lease),
        });
        Ok(run)
    }
}

pub(super) fn check_lease(lease: Duration) -> Result<()> {
    match lease >= Duration::from_millis(1) && lease <= LEASE_MAX {
        true => Ok(()),
        false => {
            Err(Error::invalid("a lease lasts 1 ms to 366 days").with_context("field", "lease"))
        }
    }
}
