//! Claims and executions, each with its bugs.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::FutureExt;
use serde_json::Value;
use storage_core::jobs::refusal::taken;
use storage_core::metrics::time::{END_MS, MIN_MS, floor_ms};
use storage_core::{
    Claim, Error, ErrorKind, Execution, ExecutionPatch, ExecutionQuery, Job, JobQuery, JobStore,
    LastRun, Lease, NewJob, Outcome, Page, Result, RunResult,
};

use super::{Broken, Bug};
use crate::mutant_runner::moment::pause;

impl Broken {
    async fn due(&self, at: DateTime<Utc>) -> Result<Vec<Job>> {
        Ok(self.inner.jobs(&JobQuery::due(at).page(Page::first(1000))).await?.items)
    }

    /// Lets the lease of a job be over by `at`.
    async fn expire(&self, job: &Job, at: DateTime<Utc>) -> Result<()> {
        if let Some(lease) = &job.lease {
            let extend = ExecutionPatch::extend(Duration::from_millis(1));
            let before = at - TimeDelta::hours(1);
            self.inner.update_execution(&lease.execution_id, &extend, before).await?;
        }
        Ok(())
    }

    pub(super) async fn try_claim(&self, claim: &Claim) -> Result<Option<Execution>> {
        self.check_open().await?;
        if self.is(Bug::AcceptsBadClaims) && claim.validate().is_err() {
            return Ok(None);
        }
        let mut claim = Claim { at: self.time(claim.at)?, ..claim.clone() };
        let there = self.inner.execution(&claim.execution_id).await.ok();
        let is_there = there.is_some();
        let looks_own = |run: &Execution| {
            run.worker.as_ref() == Some(&claim.worker)
                && claim.job_id.as_ref().is_none_or(|id| *id == run.job_id)
                && run.ended.is_none()
        };
        if self.is(Bug::GivesWhatWasAdded) && there.as_ref().is_some_and(looks_own) {
            return Ok(there);
        }
        self.prepare(&mut claim, is_there).await?;
        let claimed = match self.inner.claim(&claim).await {
            Ok(None) if self.is(Bug::ClaimsDisabled) => {
                let query = JobQuery { enabled: Some(false), ..JobQuery::default() };
                match self.inner.jobs(&query).await?.items.first() {
                    Some(job) => {
                        self.expire(job, claim.at).await?;
                        self.inner.claim(&claim.clone().of_job(&job.id)).await
                    }
                    None => Ok(None),
                }
            }
            Err(error) if self.is(Bug::BusyIsNothing) && error.kind() == ErrorKind::Conflict => {
                Ok(None)
            }
            claimed => claimed,
        };
        let claimed = claimed?;
        if let Some(run) = &claimed {
            self.note_claim(run).await?;
        }
        Ok(claimed)
    }

    /// What happens before a claim with the bug, and to it.
    async fn prepare(&self, claim: &mut Claim, is_there: bool) -> Result<()> {
        let at = claim.at;
        let picks = claim.job_id.is_none() && !is_there && claim.validate().is_ok();
        match self.bug {
            Bug::ClaimsEarly => claim.at += TimeDelta::seconds(1),
            Bug::IgnoresLeases if picks => {
                for job in
                    self.inner.jobs(&JobQuery::default().page(Page::first(1000))).await?.items
                {
                    self.expire(&job, at).await?;
                }
            }
            Bug::TakesFirstId if picks => {
                claim.job_id = self.due(at).await?.first().map(|job| job.id.clone());
            }
            Bug::TakesLastId if picks => {
                let due = self.due(at).await?;
                let first = due.iter().filter_map(Job::due_at).min();
                let last = due.iter().rev().find(|job| job.due_at() == first);
                claim.job_id = last.map(|job| job.id.clone());
            }
            Bug::ClaimsRace if picks => {
                let due = self.due(at).await?;
                if let Some(job) = due.first() {
                    self.shared.pair.meet().await;
                    self.expire(&self.inner.job(&job.id).await?, at).await?;
                    claim.job_id = Some(job.id.clone());
                }
            }
            Bug::IgnoresWhichJob => claim.job_id = None,
            Bug::NeverTakesOver => {
                let extend = ExecutionPatch::extend(Duration::from_secs(86_400));
                for job in self.inner.jobs(&JobQuery::default()).await?.items {
                    if let Some(lease) = job.lease.filter(|lease| lease.until <= at) {
                        self.inner.update_execution(&lease.execution_id, &extend, at).await?;
                    }
                }
            }
            Bug::RepeatsAreConflicts if is_there => {
                return Err(taken("execution", &claim.execution_id));
            }
            Bug::TakenIdsAreChanged if is_there => claim.execution_id.push('+'),
            Bug::DroppedClaimsStick => {
                let mut other = claim.clone();
                other.execution_id.push('+');
                self.unless_dropped(|| drop(self.inner.claim(&other).now_or_never())).await;
            }
            _ => {}
        }
        Ok(())
    }

    async fn note_claim(&self, run: &Execution) -> Result<()> {
        let job = self.inner.job(&run.job_id).await?;
        {
            let mut notes = self.shared.notes();
            *notes.runs.entry(job.id.clone()).or_default() += 1;
            if let Some(planned) = run.scheduled_for {
                notes.planned.insert(job.id.clone(), job.schedule.after(planned));
            }
            if let (Bug::EndsKeepLeases, Some(lease)) = (self.bug, &job.lease) {
                notes.leases.insert(job.id.clone(), lease.clone());
            }
        }
        if self.is(Bug::ClaimsTear) {
            self.shared.notes().hidden.insert(run.id.clone());
            pause().await;
            self.shared.notes().hidden.remove(&run.id);
        }
        Ok(())
    }

    pub(super) async fn try_add_execution(&self, execution: &Execution) -> Result<()> {
        self.check_open().await?;
        self.refuse_good_ones(&execution.id, execution.context.as_ref())?;
        if self.is(Bug::AcceptsBadExecutions) && execution.validate().is_err() {
            return Ok(());
        }
        let mut execution = execution.clone();
        execution.id = self.stored_id(&execution.id);
        execution.started_at = self.time(execution.started_at)?;
        if self.is(Bug::RoundsTimes)
            && let Some(ended) = &mut execution.ended
        {
            ended.at = self.time(ended.at)?;
        }
        match self.bug {
            Bug::TrimsIds => execution.job_id = self.stored_id(&execution.job_id),
            Bug::NamesAreShared if self.inner.job(&execution.id).await.is_ok() => {
                return Err(taken("execution", &execution.id));
            }
            Bug::MakesMissingJobs => {
                let job = NewJob::new(&execution.job_id, "made", "@daily".parse()?);
                self.inner.add_job(&job, execution.started_at).await.ok();
            }
            Bug::IgnoresTaken if self.inner.execution(&execution.id).await.is_ok() => return Ok(()),
            _ => {}
        }
        self.inner.add_execution(&execution).await?;
        self.note_end(&execution);
        if self.is(Bug::AddedHoldLeases) && execution.ended.is_none() {
            let lease = Lease {
                execution_id: execution.id,
                worker: execution.worker.unwrap_or_else(|| "nobody".to_owned()),
                until: execution.started_at + TimeDelta::hours(1),
            };
            self.shared.notes().leases.insert(execution.job_id, lease);
        }
        Ok(())
    }

    fn note_end(&self, execution: &Execution) {
        if let Some(ended) = &execution.ended {
            let last = LastRun { started_at: execution.started_at, result: ended.result };
            self.shared.notes().last_ended.insert(execution.job_id.clone(), last);
        }
    }

    pub(super) async fn try_update_execution(
        &self,
        id: &str,
        patch: &ExecutionPatch,
        at: DateTime<Utc>,
    ) -> Result<Execution> {
        let (id, at, mut patch) = (&*self.key(id), self.time(at)?, patch.clone());
        let Ok(before) = self.inner.execution(id).await else {
            return self.inner.update_execution(id, &patch, at).await;
        };
        let job = self.inner.job(&before.job_id).await?;
        let is_late = job.lease.as_ref().is_some_and(|lease| lease.until <= at);
        match self.bug {
            Bug::LosesErrors => patch.error = None,
            Bug::RefusesEarlyEnds if at < before.started_at => {
                return Err(Error::invalid("it has not started").with_context("field", "at"));
            }
            Bug::PatchesClear => patch.context = patch.context.or(Some(Value::Null)),
            Bug::ExtendsNothing => patch.lease = None,
            Bug::LateEndsAreRefused if is_late => {
                return Err(
                    Error::new(ErrorKind::Conflict, "too late").with_outcome(Outcome::NotApplied)
                );
            }
            _ => {}
        }
        match self.inner.update_execution(id, &patch, at).await {
            Err(error) if self.is(Bug::EndsAgain) && error.kind() == ErrorKind::Conflict => {
                Ok(before)
            }
            Err(error)
                if self.is(Bug::AppliesGoodPart) && error.kind() == ErrorKind::InvalidArgument =>
            {
                let good = ExecutionPatch { result: patch.result, ..ExecutionPatch::default() };
                self.inner.update_execution(id, &good, at).await.ok();
                Err(error)
            }
            updated => {
                let updated = updated?;
                self.note_end(&updated);
                Ok(updated)
            }
        }
    }

    pub(super) async fn try_remove_executions(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        let cutoff = match self.bug {
            Bug::RemovesAtTheCutoff => {
                cutoff.checked_add_signed(TimeDelta::milliseconds(1)).unwrap_or(cutoff)
            }
            Bug::RoundsCutoffsUp => {
                cutoff.checked_add_signed(TimeDelta::microseconds(999)).unwrap_or(cutoff)
            }
            Bug::FarCutoffsFail if !(MIN_MS..END_MS).contains(&floor_ms(cutoff)) => {
                return Err(Error::invalid("the cutoff is outside the calendar"));
            }
            _ => cutoff,
        };
        if self.is(Bug::RemovesRunning) {
            let all = ExecutionQuery::default().page(Page::first(1000));
            for run in self.inner.executions(&all).await?.items {
                let end = ExecutionPatch::end(RunResult::Cancelled);
                self.inner.update_execution(&run.id, &end, run.started_at).await.ok();
            }
        }
        let removed = self.inner.remove_executions_before(cutoff).await?;
        self.shared.notes().cleaned |= removed > 0;
        Ok(if self.is(Bug::CountsFifty) { removed.min(50) } else { removed })
    }
}
