//! Adding, changing and removing jobs and pipelines, each with its bugs.

use chrono::{DateTime, Utc};
use serde_json::Value;
use storage_core::{
    Error, ErrorKind, ExecutionQuery, Job, JobPatch, JobQuery, JobStore, MetricRecord, NewJob,
    NewPipeline, Page, Pipeline, PipelinePatch, Result, StorageBackend,
};

use super::{Broken, Bug};
use crate::mutant_runner::moment::{Unless, pause};

/// Longer names are refused by a mutant.
const LONG: usize = 400;

/// Larger JSON is refused by a mutant.
const LARGE: usize = 100_000;

impl Broken {
    pub(super) fn refuse_good_ones(&self, name: &str, json: Option<&Value>) -> Result<()> {
        let is_large = || json.is_some_and(|json| json.to_string().len() > LARGE);
        match self.bug {
            Bug::RefusesLongNames if name.len() > LONG => Err(Error::invalid("too long")),
            Bug::RefusesLargeJson if is_large() => Err(Error::invalid("too large")),
            _ => Ok(()),
        }
    }

    /// An id as it is stored.
    pub(super) fn stored_id(&self, id: &str) -> String {
        let trimmed = id.trim();
        match self.bug {
            Bug::TrimsIds if !trimmed.is_empty() => trimmed.to_owned(),
            Bug::AcceptsBadNames if id.is_empty() || id.len() > 512 || id.contains('\0') => {
                "bad".to_owned()
            }
            _ => id.to_owned(),
        }
    }

    pub(super) async fn try_add_job(&self, job: &NewJob, at: DateTime<Utc>) -> Result<Job> {
        self.check_open().await?;
        self.refuse_good_ones(&job.id, None)?;
        let at = self.time(at)?;
        let mut job = job.clone();
        job.id = self.stored_id(&job.id);
        match self.bug {
            Bug::AcceptsBadNames => {
                (job.name, job.pipeline) =
                    (self.stored_id(&job.name), self.stored_id(&job.pipeline));
            }
            Bug::LosesNames => job.name.clone_from(&job.id),
            Bug::AddsReplace => {
                pause().await;
                self.inner.remove_job(&job.id).await.ok();
            }
            Bug::CountsAsSamples => {
                let sample = MetricRecord::new("jobs", DateTime::UNIX_EPOCH, "added", 1.0);
                self.metrics.inner.write_batch(&[sample]).await?;
            }
            // What one call brings is stored by the next, if there is one.
            Bug::AcknowledgesAndLoses => {
                let stored = job.clone().into_job(at)?;
                let before = self.shared.notes().held_back.replace((job, at));
                if let Some((job, at)) = before {
                    self.inner.add_job(&job, at).await?;
                }
                return Ok(stored);
            }
            _ => {}
        }
        Ok(self.seen_job(self.inner.add_job(&job, at).await?))
    }

    pub(super) async fn try_update_job(
        &self,
        id: &str,
        patch: &JobPatch,
        at: DateTime<Utc>,
    ) -> Result<Job> {
        let (id, at, mut patch) = (&*self.key(id), self.time(at)?, patch.clone());
        if self.is(Bug::RoundsTimes) {
            patch.next_run = patch.next_run.map(|next| self.time(next)).transpose()?;
        }
        let Ok(before) = self.inner.job(id).await else {
            return self.inner.update_job(id, &patch, at).await;
        };
        match self.bug {
            Bug::UpdatesClear => patch.name = patch.name.or_else(|| Some(id.to_owned())),
            Bug::SkipsEmptyUpdates if patch == JobPatch::default() => return Ok(before),
            Bug::IgnoresVersions => patch.expected_version = None,
            Bug::KeepsThePlan if before.enabled && patch.enabled != Some(false) => {
                patch.next_run = patch.next_run.or(before.next_run);
            }
            Bug::AlwaysPlansAnew if before.enabled && patch.enabled != Some(false) => {
                patch.next_run = patch.next_run.or_else(|| before.schedule.after(at));
            }
            Bug::MakesUpForDisabled if !before.enabled && patch.enabled == Some(true) => {
                patch.next_run =
                    patch.next_run.or_else(|| before.schedule.after(before.updated_at));
            }
            Bug::IgnoresNextRun => patch.next_run = None,
            Bug::TakesAnyNextRun if !patch.enabled.unwrap_or(before.enabled) => {
                patch.next_run = None;
            }
            Bug::UpdatesDropLeases => drop(self.shared.notes().unleased.insert(id.to_owned())),
            _ => {}
        }
        match self.inner.update_job(id, &patch, at).await {
            Err(error)
                if self.is(Bug::AppliesGoodPart) && error.kind() == ErrorKind::InvalidArgument =>
            {
                let good = JobPatch { enabled: patch.enabled, ..JobPatch::default() };
                self.inner.update_job(id, &good, at).await?;
                Err(error)
            }
            updated => Ok(self.seen_job(updated?)),
        }
    }

    pub(super) async fn try_remove_job(&self, id: &str) -> Result<u64> {
        let id = &*self.key(id);
        *self.shared.notes().removed.entry(id.to_owned()).or_default() += 1;
        if self.is(Bug::DroppedRemovalsTear) {
            let query = ExecutionQuery::of_job(id).page(Page::first(1000));
            let runs = self.inner.executions(&query).await?.items;
            self.shared.notes().hidden.extend(runs.into_iter().map(|run| run.id));
            pause().await;
        }
        let gone = self.inner.remove_job(id).await?;
        Ok(if self.is(Bug::MiscountsExecutions) { gone.min(20) } else { gone })
    }

    pub(super) async fn try_add_pipeline(
        &self,
        pipeline: &NewPipeline,
        at: DateTime<Utc>,
    ) -> Result<Pipeline> {
        self.check_open().await?;
        self.refuse_good_ones(&pipeline.name, Some(&pipeline.config))?;
        let mut pipeline = pipeline.clone();
        pipeline.name = self.stored_id(&pipeline.name);
        match self.bug {
            Bug::LosesDescriptions => pipeline.description.clear(),
            Bug::AcceptsBadJson if pipeline.validate().is_err() => pipeline.config = Value::Null,
            Bug::AddsReplace => {
                pause().await;
                self.inner.remove_pipeline(&pipeline.name).await.ok();
            }
            _ => {}
        }
        Ok(self.seen_pipeline(self.inner.add_pipeline(&pipeline, self.time(at)?).await?))
    }

    pub(super) async fn try_update_pipeline(
        &self,
        name: &str,
        patch: &PipelinePatch,
        at: DateTime<Utc>,
    ) -> Result<Pipeline> {
        let (name, at, mut patch) = (&*self.key(name), self.time(at)?, patch.clone());
        match self.bug {
            Bug::UpdatesClear => {
                patch.description = patch.description.or_else(|| Some(String::new()))
            }
            Bug::IgnoresVersions => patch.expected_version = None,
            _ => {}
        }
        match self.inner.update_pipeline(name, &patch, at).await {
            Err(error)
                if self.is(Bug::AppliesGoodPart) && error.kind() == ErrorKind::InvalidArgument =>
            {
                let good = PipelinePatch::default();
                self.inner.update_pipeline(name, &good, at).await?;
                Err(error)
            }
            updated => Ok(self.seen_pipeline(updated?)),
        }
    }

    pub(super) async fn try_remove_pipeline(&self, name: &str) -> Result<()> {
        let name = &*self.key(name);
        *self.shared.notes().removed.entry(name.to_owned()).or_default() += 1;
        if self.is(Bug::PipelinesTakeJobs) {
            let query = JobQuery { pipeline: Some(name.to_owned()), ..JobQuery::default() };
            for job in self.inner.jobs(&query).await?.items {
                self.inner.remove_job(&job.id).await?;
            }
        }
        self.inner.remove_pipeline(name).await
    }

    /// Tears nothing, unless it is dropped half way.
    pub(super) async fn unless_dropped(&self, undone: impl FnMut()) {
        let unfinished = Unless::done_or(undone);
        pause().await;
        unfinished.done();
    }
}
