//! Executions: one run of a job, under way or ended.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::claim::check_lease;
use super::job::Job;
use super::refusal::{check_optional, check_text, check_time, without_null};
use super::schedule::later;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::check_name;
use crate::metrics::time::{floor_ms, from_ms};

/// One run of a job.
///
/// ```
/// use chrono::Utc;
/// use storage_core::{Ended, Execution, ExecutionStatus, RunResult};
///
/// let now = Utc::now();
/// let mut run = Execution::new("run-1", "daily-sync", "sync.yaml", now);
/// assert_eq!(run.status(), ExecutionStatus::Running);
/// run.ended = Some(Ended { at: now, result: RunResult::Succeeded, error: None });
/// assert_eq!((run.status().as_str(), run.duration().unwrap().is_zero()), ("succeeded", true));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Execution {
    /// Which execution: 1 to 512 bytes, no NUL, compared byte by byte.
    pub id: String,
    /// Of which job.
    pub job_id: String,
    /// The pipeline that the job ran then: 1 to 512 bytes, no NUL.
    pub pipeline: String,
    /// When it started, years 0001 to 9999; stored in whole milliseconds, finer digits floored.
    pub started_at: DateTime<Utc>,
    /// How it ended; none while it is under way.
    #[serde(default)]
    pub ended: Option<Ended>,
    /// What it was given or worked with: JSON of at most 1 MiB; `null` is the same as none.
    #[serde(default)]
    pub context: Option<Value>,
    /// What it did step by step: JSON of at most 1 MiB; `null` is the same as none.
    #[serde(default)]
    pub steps: Option<Value>,
    /// What made it run, such as `schedule` or `manual`: 1 to 512 bytes, no NUL.
    pub triggered_by: String,
    /// The planned run that it stands for; none if somebody asked for it.
    #[serde(default)]
    pub scheduled_for: Option<DateTime<Utc>>,
    /// Planned runs that passed unclaimed before it started and are not made up for: at most 2^63 - 1;
    /// a claim counts no more than 999.
    #[serde(default)]
    pub missed_runs: u64,
    /// 1, and one more each time that a worker was lost and another tried again.
    #[serde(default = "first")]
    pub attempt: u64,
    /// Who runs it: 1 to 512 bytes, no NUL.
    #[serde(default)]
    pub worker: Option<String>,
}

fn first() -> u64 {
    1
}

/// How and when an execution ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// When; not before it started.
    pub at: DateTime<Utc>,
    /// How.
    pub result: RunResult,
    /// Why it failed, in words: at most 64 KiB, no NUL.
    #[serde(default)]
    pub error: Option<String>,
}

/// How an execution ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunResult {
    /// It did what it should.
    Succeeded,
    /// It did not.
    Failed,
    /// Somebody stopped it.
    Cancelled,
    /// Its worker let the lease expire and another took the job.
    Lost,
}

impl RunResult {
    /// Every result.
    pub const ALL: [Self; 4] = [Self::Succeeded, Self::Failed, Self::Cancelled, Self::Lost];

    /// The result in one lower-case word, as it is stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
        }
    }
}

impl FromStr for RunResult {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|result| result.as_str() == text);
        found.ok_or_else(|| {
            Error::invalid("a result is succeeded, failed, cancelled or lost")
                .with_context("field", "result")
        })
    }
}

impl fmt::Display for RunResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The state of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExecutionStatus {
    /// Under way.
    Running,
    /// Over, with this result.
    Ended(RunResult),
}

impl ExecutionStatus {
    /// The state in one lower-case word, as it is stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Ended(result) => result.as_str(),
        }
    }
}

impl FromStr for ExecutionStatus {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "running" {
            return Ok(Self::Running);
        }
        let result = text.parse().map_err(|_| {
            Error::invalid("a status is running, succeeded, failed, cancelled or lost")
                .with_context("field", "status")
        });
        result.map(Self::Ended)
    }
}

impl fmt::Display for ExecutionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Execution {
    /// An execution that is under way and that somebody asked for.
    pub fn new(
        id: impl Into<String>,
        job_id: impl Into<String>,
        pipeline: impl Into<String>,
        started_at: DateTime<Utc>,
    ) -> Self {
        Self {
            id: id.into(),
            job_id: job_id.into(),
            pipeline: pipeline.into(),
            started_at,
            ended: None,
            context: None,
            steps: None,
            triggered_by: "manual".to_owned(),
            scheduled_for: None,
            missed_runs: 0,
            attempt: 1,
            worker: None,
        }
    }

    /// The state.
    pub fn status(&self) -> ExecutionStatus {
        self.ended
            .as_ref()
            .map_or(ExecutionStatus::Running, |end| ExecutionStatus::Ended(end.result))
    }

    /// How long it took, once it has ended.
    pub fn duration(&self) -> Option<Duration> {
        let ended = self.ended.as_ref()?;
        Some((ended.at - self.started_at).to_std().unwrap_or_default())
    }

    /// Checks the execution against the contract.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field` naming the first field that breaks a rule.
    pub fn validate(&self) -> Result<()> {
        check_name("id", &self.id)?;
        check_name("job_id", &self.job_id)?;
        check_name("pipeline", &self.pipeline)?;
        check_name("triggered_by", &self.triggered_by)?;
        self.worker.as_ref().map_or(Ok(()), |worker| check_name("worker", worker))?;
        check_time("started_at", self.started_at)?;
        self.scheduled_for.map_or(Ok(()), |time| check_time("scheduled_for", time))?;
        check_optional("context", self.context.as_ref())?;
        check_optional("steps", self.steps.as_ref())?;
        let refuse = |problem, field| Err(Error::invalid(problem).with_context("field", field));
        if self.attempt == 0 || i64::try_from(self.attempt).is_err() {
            return refuse("attempts count from 1", "attempt");
        }
        if i64::try_from(self.missed_runs).is_err() {
            return refuse("nobody can miss so many runs", "missed_runs");
        }
        let Some(ended) = &self.ended else { return Ok(()) };
        check_time("ended_at", ended.at)?;
        if floor_ms(ended.at) < floor_ms(self.started_at) {
            return refuse("the end is before the start", "ended_at");
        }
        ended.error.as_ref().map_or(Ok(()), |error| check_text("error", error))
    }

    /// Returns the execution as every backend gives it back: times in whole milliseconds, no `null`.
    #[must_use]
    pub fn into_stored(self) -> Self {
        let floor = |time| from_ms(floor_ms(time));
        Self {
            started_at: floor(self.started_at),
            ended: self.ended.map(|ended| Ended { at: floor(ended.at), ..ended }),
            scheduled_for: self.scheduled_for.map(floor),
            context: without_null(self.context),
            steps: without_null(self.steps),
            ..self
        }
    }

    /// Changes what `patch` says at `at`, and takes note in its job; both are what a store keeps
    /// from then on.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field`; `Conflict` with the detail `status` if it has
    /// ended, or with `execution` if it holds no lease that could be extended.
    pub fn apply(
        &mut self,
        job: &mut Job,
        patch: &ExecutionPatch,
        at: DateTime<Utc>,
    ) -> Result<()> {
        patch.validate()?;
        check_time("at", at)?;
        if self.ended.is_some() {
            return Err(Error::new(ErrorKind::Conflict, "the execution has ended")
                .with_context("execution", &self.id)
                .with_context("status", self.status()));
        }
        if let Some(span) = patch.lease {
            let own = job.lease.as_mut().filter(|lease| lease.execution_id == self.id);
            let lease = own.ok_or_else(|| {
                Error::new(ErrorKind::Conflict, "the execution holds no lease")
                    .with_context("execution", &self.id)
            })?;
            lease.until = later(from_ms(floor_ms(at)), span);
        }
        if let Some(context) = &patch.context {
            self.context = without_null(Some(context.clone()));
        }
        if let Some(steps) = &patch.steps {
            self.steps = without_null(Some(steps.clone()));
        }
        if let Some(result) = patch.result {
            self.end(job, at, result, patch.error.clone());
        }
        Ok(())
    }

    /// Ends it, not before its start, and takes note in its job.
    pub(super) fn end(
        &mut self,
        job: &mut Job,
        at: DateTime<Utc>,
        result: RunResult,
        error: Option<String>,
    ) {
        let at = from_ms(floor_ms(at)).max(self.started_at);
        self.ended = Some(Ended { at, result, error });
        job.note_end(self);
    }
}

/// What is to change of an execution that is under way; what is `None` stays.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ExecutionPatch {
    /// Keep others off for so long from now on: a sign of life. 1 ms to 366 days.
    pub lease: Option<Duration>,
    /// What it works with, instead of what is stored; `null` removes that.
    pub context: Option<Value>,
    /// What it did so far, instead of what is stored; `null` removes that.
    pub steps: Option<Value>,
    /// End it, with this result.
    pub result: Option<RunResult>,
    /// Why it failed, in words: at most 64 KiB, no NUL. With a result alone.
    pub error: Option<String>,
}

impl ExecutionPatch {
    /// Ends an execution.
    pub fn end(result: RunResult) -> Self {
        Self { result: Some(result), ..Self::default() }
    }

    /// Ends an execution that failed, and says why.
    pub fn fail(error: impl Into<String>) -> Self {
        Self { error: Some(error.into()), ..Self::end(RunResult::Failed) }
    }

    /// Keeps others off for another `lease`.
    pub fn extend(lease: Duration) -> Self {
        Self { lease: Some(lease), ..Self::default() }
    }

    /// Whether the execution itself changes: a lease is kept by its job.
    pub fn changes_execution(&self) -> bool {
        self.context.is_some() || self.steps.is_some() || self.result.is_some()
    }

    /// Checks the patch against the contract.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field`.
    pub fn validate(&self) -> Result<()> {
        self.lease.map_or(Ok(()), check_lease)?;
        check_optional("context", self.context.as_ref())?;
        check_optional("steps", self.steps.as_ref())?;
        self.error.as_ref().map_or(Ok(()), |error| check_text("error", error))?;
        let refuse = |problem, field| Err(Error::invalid(problem).with_context("field", field));
        if self.error.is_some() && self.result.is_none() {
            return refuse("an error goes with a result", "error");
        }
        if self.lease.is_some() && self.result.is_some() {
            return refuse("an execution that ends needs no lease", "lease");
        }
        Ok(())
    }
}
