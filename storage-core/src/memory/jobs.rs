//! Jobs in memory: one lock, three ordered maps.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{check_open, named_error};
use crate::error::{Error, Result};
use crate::jobs::health::OVERDUE_AFTER;
use crate::jobs::refusal::{not_found, taken};
use crate::jobs::{
    Claim, Cursor, Execution, ExecutionPatch, ExecutionQuery, Job, JobCounts, JobHealth, JobPatch,
    JobQuery, JobStore, Listed, NewJob, NewPipeline, Page, Pipeline, PipelinePatch,
};
use crate::metrics::time::{floor_ms, from_ms};

/// What the handles of one store share.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    jobs: BTreeMap<String, Job>,
    pipelines: BTreeMap<String, Pipeline>,
    executions: BTreeMap<String, Execution>,
}

/// The jobs of [`InMemory`](crate::InMemory).
#[derive(Debug, Clone)]
pub struct InMemoryJobs {
    pub(super) all: Arc<RwLock<Jobs>>,
    /// That of the handle.
    pub(super) closed: Arc<AtomicBool>,
}

impl InMemoryJobs {
    fn read<T>(&self, operation: &'static str, read: impl FnOnce(&Jobs) -> Result<T>) -> Result<T> {
        let guard = || -> Result<RwLockReadGuard<'_, Jobs>> {
            check_open(&self.closed)?;
            Ok(self.all.read().unwrap_or_else(PoisonError::into_inner))
        };
        guard().and_then(|all| read(&all)).map_err(|error| named_error(error, operation))
    }

    /// Runs a change, which either changes nothing and fails or is made whole.
    fn write<T>(
        &self,
        operation: &'static str,
        change: impl FnOnce(&mut Jobs) -> Result<T>,
    ) -> Result<T> {
        let guard = || -> Result<RwLockWriteGuard<'_, Jobs>> {
            check_open(&self.closed)?;
            Ok(self.all.write().unwrap_or_else(PoisonError::into_inner))
        };
        guard().and_then(|mut all| change(&mut all)).map_err(|error| named_error(error, operation))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl JobStore for InMemoryJobs {
    async fn add_job(&self, job: &NewJob, at: DateTime<Utc>) -> Result<Job> {
        self.write("add_job", |all| {
            let job = job.clone().into_job(at)?;
            if all.jobs.contains_key(&job.id) {
                return Err(taken("job", &job.id));
            }
            all.jobs.insert(job.id.clone(), job.clone());
            Ok(job)
        })
    }

    async fn job(&self, id: &str) -> Result<Job> {
        self.read("job", |all| all.jobs.get(id).cloned().ok_or_else(|| not_found("job", id)))
    }

    async fn jobs(&self, query: &JobQuery) -> Result<Listed<Job>> {
        self.read("jobs", |all| {
            query.validate()?;
            let due_at = query.due_at.map(|at| from_ms(floor_ms(at)));
            let chosen = after(&all.jobs, query.page.after_name()?)
                .filter(|job| query.pipeline.as_ref().is_none_or(|name| *name == job.pipeline))
                .filter(|job| query.enabled.is_none_or(|enabled| enabled == job.enabled))
                .filter(|job| due_at.is_none_or(|at| job.due_at().is_some_and(|due| due <= at)));
            Ok(page(chosen, &query.page, |job| Cursor::new(&job.id)))
        })
    }

    async fn update_job(&self, id: &str, patch: &JobPatch, at: DateTime<Utc>) -> Result<Job> {
        self.write("update_job", |all| {
            patch.validate()?;
            let stored = all.jobs.get_mut(id).ok_or_else(|| not_found("job", id))?;
            let mut job = stored.clone();
            job.apply(patch, at)?;
            stored.clone_from(&job);
            Ok(job)
        })
    }

    async fn remove_job(&self, id: &str) -> Result<u64> {
        self.write("remove_job", |all| {
            all.jobs.remove(id).ok_or_else(|| not_found("job", id))?;
            let before = all.executions.len();
            all.executions.retain(|_, execution| execution.job_id != id);
            Ok((before - all.executions.len()) as u64)
        })
    }

    async fn add_pipeline(&self, pipeline: &NewPipeline, at: DateTime<Utc>) -> Result<Pipeline> {
        self.write("add_pipeline", |all| {
            let pipeline = pipeline.clone().into_pipeline(at)?;
            if all.pipelines.contains_key(&pipeline.name) {
                return Err(taken("pipeline", &pipeline.name));
            }
            all.pipelines.insert(pipeline.name.clone(), pipeline.clone());
            Ok(pipeline)
        })
    }

    async fn pipeline(&self, name: &str) -> Result<Pipeline> {
        let missing = || not_found("pipeline", name);
        self.read("pipeline", |all| all.pipelines.get(name).cloned().ok_or_else(missing))
    }

    async fn pipelines(&self, asked: &Page) -> Result<Listed<Pipeline>> {
        self.read("pipelines", |all| {
            asked.validate()?;
            let found = after(&all.pipelines, asked.after_name()?);
            Ok(page(found, asked, |pipeline| Cursor::new(&pipeline.name)))
        })
    }

    async fn update_pipeline(
        &self,
        name: &str,
        patch: &PipelinePatch,
        at: DateTime<Utc>,
    ) -> Result<Pipeline> {
        self.write("update_pipeline", |all| {
            patch.validate()?;
            let missing = || not_found("pipeline", name);
            let stored = all.pipelines.get_mut(name).ok_or_else(missing)?;
            let mut pipeline = stored.clone();
            pipeline.apply(patch, at)?;
            stored.clone_from(&pipeline);
            Ok(pipeline)
        })
    }

    async fn remove_pipeline(&self, name: &str) -> Result<()> {
        let missing = || not_found("pipeline", name);
        self.write("remove_pipeline", |all| {
            all.pipelines.remove(name).map(drop).ok_or_else(missing)
        })
    }

    async fn claim(&self, claim: &Claim) -> Result<Option<Execution>> {
        self.write("claim", |all| {
            claim.validate()?;
            all.claim(claim)
        })
    }

    async fn add_execution(&self, execution: &Execution) -> Result<()> {
        self.write("add_execution", |all| {
            execution.validate()?;
            let execution = execution.clone().into_stored();
            let missing = || not_found("job", &execution.job_id);
            let job = all.jobs.get_mut(&execution.job_id).ok_or_else(missing)?;
            if all.executions.contains_key(&execution.id) {
                return Err(taken("execution", &execution.id));
            }
            job.note_end(&execution);
            all.executions.insert(execution.id.clone(), execution);
            Ok(())
        })
    }

    async fn execution(&self, id: &str) -> Result<Execution> {
        let missing = || not_found("execution", id);
        self.read("execution", |all| all.executions.get(id).cloned().ok_or_else(missing))
    }

    async fn executions(&self, query: &ExecutionQuery) -> Result<Listed<Execution>> {
        self.read("executions", |all| {
            query.validate()?;
            let after = query.page.after_execution()?;
            let mut found: Vec<&Execution> = all
                .executions
                .values()
                .filter(|one| query.job_id.as_ref().is_none_or(|id| *id == one.job_id))
                .filter(|one| query.status.is_none_or(|status| status == one.status()))
                .filter(|one| after.is_none_or(|after| (one.started_at, one.id.as_str()) < after))
                .collect();
            found.sort_by_key(|one| std::cmp::Reverse((one.started_at, &one.id)));
            Ok(page(found.into_iter(), &query.page, Cursor::after_execution))
        })
    }

    async fn update_execution(
        &self,
        id: &str,
        patch: &ExecutionPatch,
        at: DateTime<Utc>,
    ) -> Result<Execution> {
        self.write("update_execution", |all| {
            patch.validate()?;
            let missing = || not_found("execution", id);
            let stored = all.executions.get_mut(id).ok_or_else(missing)?;
            let job = all.jobs.get_mut(&stored.job_id).ok_or_else(missing)?;
            let (mut execution, mut of_job) = (stored.clone(), job.clone());
            execution.apply(&mut of_job, patch, at)?;
            stored.clone_from(&execution);
            *job = of_job;
            Ok(execution)
        })
    }

    async fn remove_executions_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        self.write("remove_executions_before", |all| {
            let cutoff = floor_ms(cutoff);
            let before = all.executions.len();
            all.executions.retain(|_, execution| {
                execution.ended.is_none() || floor_ms(execution.started_at) >= cutoff
            });
            Ok((before - all.executions.len()) as u64)
        })
    }

    async fn health(&self, at: DateTime<Utc>) -> JobHealth {
        let counted = self.read("health", |all| Ok(all.counts(at)));
        counted.map_or_else(
            |error: Error| JobHealth::down(&error),
            |counts| JobHealth::of(counts, None),
        )
    }

    fn name(&self) -> &'static str {
        "memory"
    }
}

impl Jobs {
    fn claim(&mut self, claim: &Claim) -> Result<Option<Execution>> {
        if let Some(found) = self.executions.get(&claim.execution_id) {
            let lease = self.jobs.get(&found.job_id).and_then(|job| job.lease.as_ref());
            return claim.repeat(found.clone(), lease).map(Some);
        }
        let at = from_ms(floor_ms(claim.at));
        let job = match &claim.job_id {
            Some(id) => Some(self.jobs.get_mut(id).ok_or_else(|| not_found("job", id))?),
            None => {
                let due = |job: &Job| job.due_at().filter(|due| *due <= at);
                let jobs = self.jobs.values_mut().filter(|job| due(job).is_some());
                jobs.min_by_key(|job| (job.due_at(), job.id.clone()))
            }
        };
        let Some(job) = job else { return Ok(None) };
        let under_way = job.lease.as_ref().map(|lease| lease.execution_id.clone());
        let under_way = under_way.and_then(|id| self.executions.get_mut(&id));
        let execution = claim.take(job, under_way)?;
        self.executions.insert(execution.id.clone(), execution.clone());
        Ok(Some(execution))
    }

    fn counts(&self, at: DateTime<Utc>) -> JobCounts {
        let mut counts = JobCounts { jobs: self.jobs.len() as u64, ..JobCounts::default() };
        for job in self.jobs.values() {
            match (&job.lease, job.due_at()) {
                (Some(lease), _) if lease.until <= at => counts.stalled += 1,
                (Some(_), _) => counts.running += 1,
                (None, Some(due)) if due + OVERDUE_AFTER <= at => counts.overdue += 1,
                _ => {}
            }
        }
        counts
    }
}

/// The values of a map after a key, in order.
fn after<'a, T>(all: &'a BTreeMap<String, T>, key: Option<&str>) -> impl Iterator<Item = &'a T> {
    let start = key.map_or(Bound::Unbounded, Bound::Excluded);
    all.range::<str, _>((start, Bound::Unbounded)).map(|(_, value)| value)
}

/// A page of what was found.
fn page<'a, T: Clone + 'a>(
    found: impl Iterator<Item = &'a T>,
    page: &Page,
    cursor: impl Fn(&T) -> Cursor,
) -> Listed<T> {
    page.answer(found.take(page.limit + 1).cloned().collect(), cursor)
}

impl super::InMemory {
    /// The jobs of this store; they close with this handle.
    pub fn jobs(&self) -> InMemoryJobs {
        let closed = Arc::clone(&self.closed);
        InMemoryJobs { all: Arc::clone(&self.parts.jobs), closed }
    }
}
