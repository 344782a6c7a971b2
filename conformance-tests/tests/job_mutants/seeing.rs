//! What is read, each with its bugs: what comes out differs from what is stored.

use chrono::TimeDelta;
use serde_json::Value;
use storage_core::{Execution, Job, Pipeline, Schedule};

use super::{Broken, Bug};

impl Broken {
    pub(super) fn seen_job(&self, mut job: Job) -> Job {
        let notes = self.shared.notes();
        match self.bug {
            Bug::PlansAtTheAdd => {
                let before = job.created_at - TimeDelta::milliseconds(1);
                if job.next_run.is_some() && job.schedule.after(before) == Some(job.created_at) {
                    job.next_run = Some(job.created_at);
                }
            }
            Bug::PlansDisabled if !job.enabled => {
                job.next_run = job.schedule.after(job.updated_at);
            }
            Bug::TidiesSchedules => {
                let words: Vec<_> = job.schedule.as_str().split_whitespace().collect();
                if let Ok(tidy) = Schedule::parse(&words.join(" ")) {
                    job.schedule = tidy;
                }
            }
            Bug::UpdatesDropLeases if notes.unleased.contains(&job.id) => job.lease = None,
            Bug::RunsCount => job.version += notes.runs.get(&job.id).copied().unwrap_or_default(),
            Bug::RemembersRemoved => {
                job.version += notes.removed.get(&job.id).copied().unwrap_or_default();
            }
            Bug::LastEndedIsLastRun => {
                job.last_run = notes.last_ended.get(&job.id).copied().or(job.last_run);
            }
            Bug::AddedHoldLeases | Bug::EndsKeepLeases => {
                job.lease = job.lease.or_else(|| notes.leases.get(&job.id).cloned());
            }
            Bug::ForgetsLastRun if notes.cleaned => job.last_run = None,
            Bug::PlansFromTheLastRun => {
                job.next_run = notes.planned.get(&job.id).copied().unwrap_or(job.next_run);
            }
            _ => {}
        }
        job
    }

    pub(super) fn seen_pipeline(&self, mut pipeline: Pipeline) -> Pipeline {
        if self.is(Bug::RemembersRemoved) {
            let notes = self.shared.notes();
            pipeline.version += notes.removed.get(&pipeline.name).copied().unwrap_or_default();
        }
        if self.is(Bug::ParsesTexts) {
            pipeline.config = parsed(pipeline.config);
        }
        pipeline
    }

    pub(super) fn seen_run(&self, mut run: Execution) -> Execution {
        match self.bug {
            Bug::LosesWorkers => run.worker = None,
            Bug::CountsNoMissedRuns => run.missed_runs = 0,
            Bug::AttemptsStayOne => run.attempt = 1,
            Bug::ParsesTexts => run.context = run.context.map(parsed),
            _ => {}
        }
        run
    }
}

/// A text that holds JSON, as that JSON.
fn parsed(json: Value) -> Value {
    let inner = json.as_str().and_then(|text| serde_json::from_str(text).ok());
    inner.unwrap_or(json)
}
