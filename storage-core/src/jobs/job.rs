//! Jobs: what a program adds, what a store keeps, and how one becomes the other.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::execution::{Execution, RunResult};
use super::refusal::{check_time, check_version};
use super::schedule::{MISSED_RUNS_MAX, Schedule};
use crate::error::{Error, Result};
use crate::limits::check_name;
use crate::metrics::time::{floor_ms, from_ms};

/// A job that is to be added.
///
/// ```
/// use storage_core::NewJob;
///
/// let job = NewJob::new("daily-sync", "sync.yaml", "0 2 * * *".parse()?).name("Daily Data Sync");
/// assert!(job.enabled && job.validate().is_ok());
/// # Ok::<(), storage_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewJob {
    /// Which job: 1 to 512 bytes, no NUL, compared byte by byte.
    pub id: String,
    /// What people call it: 1 to 512 bytes, no NUL.
    pub name: String,
    /// The pipeline that it runs, by name: 1 to 512 bytes, no NUL. The store need not hold it: it
    /// may be a file.
    pub pipeline: String,
    /// When it runs.
    pub schedule: Schedule,
    /// Whether it runs by its schedule.
    pub enabled: bool,
}

impl NewJob {
    /// A job that is enabled and called like its id.
    pub fn new(id: impl Into<String>, pipeline: impl Into<String>, schedule: Schedule) -> Self {
        let id = id.into();
        Self { name: id.clone(), id, pipeline: pipeline.into(), schedule, enabled: true }
    }

    /// Sets what people call it.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets whether it runs by its schedule.
    #[must_use]
    pub fn enabled(mut self, enabled: bool) -> Self {
        self.enabled = enabled;
        self
    }

    /// Checks the job against the contract.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field` naming the first field that breaks a rule.
    pub fn validate(&self) -> Result<()> {
        check_name("id", &self.id)?;
        check_name("name", &self.name)?;
        check_name("pipeline", &self.pipeline)
    }

    /// The job as a store keeps it that adds it at `at`.
    ///
    /// # Errors
    /// As [`validate`](Self::validate), and with the field `at`.
    pub fn into_job(self, at: DateTime<Utc>) -> Result<Job> {
        self.validate()?;
        check_time("at", at)?;
        let Self { id, name, pipeline, schedule, enabled } = self;
        let at = from_ms(floor_ms(at));
        let next_run = schedule.after(at).filter(|_| enabled);
        Ok(Job {
            id,
            name,
            pipeline,
            schedule,
            enabled,
            next_run,
            last_run: None,
            lease: None,
            version: 1,
            created_at: at,
            updated_at: at,
        })
    }
}

/// A job as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Job {
    /// Which job.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// The pipeline that it runs, by name.
    pub pipeline: String,
    /// When it runs.
    pub schedule: Schedule,
    /// Whether it runs by its schedule.
    pub enabled: bool,
    /// The first planned run that nobody has claimed; none while it is not enabled.
    pub next_run: Option<DateTime<Utc>>,
    /// Of its executions that have ended, the one that started last.
    pub last_run: Option<LastRun>,
    /// Who runs it, and until when others keep off.
    pub lease: Option<Lease>,
    /// How often it was added or updated: 1 at first. Runs do not count.
    pub version: u64,
    /// When it was added.
    pub created_at: DateTime<Utc>,
    /// When it was added or updated last.
    pub updated_at: DateTime<Utc>,
}

/// The last execution of a job that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LastRun {
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// How it ended.
    pub result: RunResult,
}

/// What keeps others from claiming a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lease {
    /// The execution that is under way.
    pub execution_id: String,
    /// Who runs it.
    pub worker: String,
    /// From this moment on another may claim the job.
    pub until: DateTime<Utc>,
}

impl Job {
    /// From when on it can be claimed: the end of its lease, or else its next run; never while it
    /// is not enabled.
    pub fn due_at(&self) -> Option<DateTime<Utc>> {
        let lease_end = self.lease.as_ref().map(|lease| lease.until);
        lease_end.or(self.next_run).filter(|_| self.enabled)
    }

    /// How many planned runs have passed up to `at`, `at` included, and nobody has claimed; at
    /// most 1000. More than one means that runs were missed: while no worker ran, or while one
    /// execution lasted longer than the time between two.
    pub fn missed_runs(&self, at: DateTime<Utc>) -> u64 {
        match self.next_run {
            Some(next) if next <= at => 1 + self.schedule.count(next, at, MISSED_RUNS_MAX - 1),
            _ => 0,
        }
    }

    /// Changes what `patch` says; the result is what a store keeps from then on.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field`; `Conflict` if the version is another.
    pub fn apply(&mut self, patch: &JobPatch, at: DateTime<Utc>) -> Result<()> {
        patch.validate()?;
        check_time("at", at)?;
        check_version(self.version, patch.expected_version)?;
        let enabled = patch.enabled.unwrap_or(self.enabled);
        if patch.next_run.is_some() && !enabled {
            return Err(Error::invalid("a job that is not enabled has no next run")
                .with_context("field", "next_run"));
        }
        let at = from_ms(floor_ms(at));
        let schedule = patch.schedule.clone().unwrap_or_else(|| self.schedule.clone());
        let is_planned_anew = schedule != self.schedule || enabled != self.enabled;
        if let Some(next_run) = patch.next_run {
            self.next_run = Some(from_ms(floor_ms(next_run)));
        } else if is_planned_anew {
            self.next_run = schedule.after(at).filter(|_| enabled);
        }
        self.schedule = schedule;
        self.enabled = enabled;
        if let Some(name) = &patch.name {
            self.name.clone_from(name);
        }
        if let Some(pipeline) = &patch.pipeline {
            self.pipeline.clone_from(pipeline);
        }
        self.version += 1;
        self.updated_at = at;
        Ok(())
    }

    /// Takes note that one of its executions has ended: gives up the lease if it was that one's,
    /// and keeps the result if none started later.
    pub fn note_end(&mut self, execution: &Execution) {
        let Some(ended) = &execution.ended else { return };
        if self.lease.as_ref().is_some_and(|lease| lease.execution_id == execution.id) {
            self.lease = None;
        }
        let started_at = execution.started_at;
        if self.last_run.is_none_or(|last| last.started_at <= started_at) {
            self.last_run = Some(LastRun { started_at, result: ended.result });
        }
    }
}

/// What is to change of a job; what is `None` stays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JobPatch {
    /// Change nothing unless the job has this version.
    pub expected_version: Option<u64>,
    /// What people call it.
    pub name: Option<String>,
    /// The pipeline that it runs.
    pub pipeline: Option<String>,
    /// When it runs. Another schedule plans the next run anew, from the time of the update.
    pub schedule: Option<Schedule>,
    /// Whether it runs by its schedule. Enabled again, its next run is planned from the time of the
    /// update: what was missed meanwhile does not count.
    pub enabled: Option<bool>,
    /// The next run, whatever the schedule says; those after it go by the schedule again. A time
    /// that is over makes the job due, a later one skips what was missed.
    pub next_run: Option<DateTime<Utc>>,
}

impl JobPatch {
    /// Checks the patch against the contract.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field`.
    pub fn validate(&self) -> Result<()> {
        self.name.as_ref().map_or(Ok(()), |name| check_name("name", name))?;
        self.pipeline.as_ref().map_or(Ok(()), |name| check_name("pipeline", name))?;
        self.next_run.map_or(Ok(()), |time| check_time("next_run", time))
    }
}
