//! Random operations on jobs, pipelines and executions.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use storage_core::metrics::time::{END_MS, MIN_MS};
use storage_core::{
    Claim, Ended, ErrorKind, Execution, ExecutionPatch, ExecutionQuery, ExecutionStatus, InMemory,
    InMemoryJobs, JobPatch, JobQuery, JobStore, NewJob, NewPipeline, Page, PipelinePatch,
    RunResult, Schedule,
};

use super::compare::{check, same_details};
use super::pair::Pair;
use super::{Modelled, Shrink, Sides, take_each};
use crate::data::{NOON, ODD_NAMES, at_us};
use crate::failure::{CaseResult, expect_kind};
use crate::harness::Fixture;

/// An operation, and the handle that does it: the number modulo how many are open.
#[derive(Debug, Clone)]
pub(super) struct JobStep {
    handle: usize,
    at: DateTime<Utc>,
    action: Action,
}

#[derive(Debug, Clone)]
enum Action {
    AddJob(NewJob),
    UpdateJob(String, JobPatch),
    RemoveJob(String),
    Jobs(JobQuery),
    AddPipeline(NewPipeline),
    UpdatePipeline(String, PipelinePatch),
    RemovePipeline(String),
    Pipelines(Page),
    Claim(Claim),
    AddExecution(Execution),
    UpdateExecution(String, ExecutionPatch),
    Executions(ExecutionQuery),
    RemoveExecutions,
    /// A job, a pipeline and an execution of this name.
    Find(String),
    Health,
    Compact,
    Check,
    /// Open another handle.
    Open,
    /// Close the handle; where it was the only one, open another afterwards.
    Close,
}

impl fmt::Display for JobStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { handle, at, action } = self;
        let text: String = format!("{action:?}").chars().take(400).collect();
        write!(f, "handle {handle} at {} us: {text}", at.timestamp_micros())
    }
}

impl Shrink for JobStep {
    fn records(&self) -> usize {
        0
    }

    fn without(&mut self, _some: Range<usize>) {}
}

/// The jobs of a location.
pub(super) struct Jobs;

impl Modelled for Jobs {
    type Step = JobStep;

    async fn take_all(fixture: &dyn Fixture, location: &str, steps: &[JobStep]) -> CaseResult {
        take_each(Pair::new(fixture, location, InMemory::new().jobs()).await?, steps).await
    }
}

/// What refusals say.
const DETAILS: &[&str] = &[
    "field",
    "job",
    "pipeline",
    "execution",
    "version",
    "expected_version",
    "status",
    "worker",
    "until",
];

fn same_answer<T: PartialEq + fmt::Debug>(
    found: storage_core::Result<T>,
    expected: storage_core::Result<T>,
) -> CaseResult {
    same_details(found, expected, DETAILS)
}

impl Sides<JobStep> for Pair<'_, InMemoryJobs> {
    async fn take(&mut self, step: &JobStep) -> CaseResult {
        let whole = self.handle(step.handle);
        let (jobs, model, now) = (Arc::clone(whole.jobs()?), &self.model, step.at);
        match &step.action {
            Action::AddJob(job) => {
                same_answer(jobs.add_job(job, now).await, model.add_job(job, now).await)
            }
            Action::UpdateJob(id, patch) => same_answer(
                jobs.update_job(id, patch, now).await,
                model.update_job(id, patch, now).await,
            ),
            Action::RemoveJob(id) => {
                same_answer(jobs.remove_job(id).await, model.remove_job(id).await)
            }
            Action::Jobs(query) => same_answer(jobs.jobs(query).await, model.jobs(query).await),
            Action::AddPipeline(pipeline) => same_answer(
                jobs.add_pipeline(pipeline, now).await,
                model.add_pipeline(pipeline, now).await,
            ),
            Action::UpdatePipeline(name, patch) => same_answer(
                jobs.update_pipeline(name, patch, now).await,
                model.update_pipeline(name, patch, now).await,
            ),
            Action::RemovePipeline(name) => {
                same_answer(jobs.remove_pipeline(name).await, model.remove_pipeline(name).await)
            }
            Action::Pipelines(page) => {
                same_answer(jobs.pipelines(page).await, model.pipelines(page).await)
            }
            Action::Claim(claim) => same_answer(jobs.claim(claim).await, model.claim(claim).await),
            Action::AddExecution(execution) => same_answer(
                jobs.add_execution(execution).await,
                model.add_execution(execution).await,
            ),
            Action::UpdateExecution(id, patch) => same_answer(
                jobs.update_execution(id, patch, now).await,
                model.update_execution(id, patch, now).await,
            ),
            Action::Executions(query) => {
                same_answer(jobs.executions(query).await, model.executions(query).await)
            }
            Action::RemoveExecutions => same_answer(
                jobs.remove_executions_before(now).await,
                model.remove_executions_before(now).await,
            ),
            Action::Find(name) => find(&*jobs, model, name).await,
            Action::Health => {
                ensure_eq!(jobs.health(now).await, model.health(now).await);
                Ok(())
            }
            Action::Compact => Ok(whole.metrics().compact().await?),
            Action::Check => check(&**whole.metrics()).await,
            Action::Open => self.open().await,
            Action::Close => {
                let refused = async {
                    let closed = whole.jobs()?.jobs(&JobQuery::default()).await;
                    expect_kind(closed, ErrorKind::Closed, "jobs after close").map(drop)
                };
                self.close(step.handle, refused).await
            }
        }
    }

    async fn close(self) -> CaseResult {
        self.close_all().await
    }
}

async fn find(jobs: &dyn JobStore, model: &InMemoryJobs, name: &str) -> CaseResult {
    same_answer(jobs.job(name).await, model.job(name).await)?;
    same_answer(jobs.pipeline(name).await, model.pipeline(name).await)?;
    same_answer(jobs.execution(name).await, model.execution(name).await)
}

/// Returns `count` steps that follow from `seed`, and some that read everything back.
pub(super) fn steps(seed: u64, count: usize) -> Vec<JobStep> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut names: Vec<String> = ["a", "b", "B", "a "].map(str::to_owned).into();
    names.extend((0..3).map(|_| ODD_NAMES[random.usize(..ODD_NAMES.len())].to_owned()));
    let now_ms = [NOON, NOON, NOON, -500, MIN_MS + 10, END_MS - 9_000_000][random.usize(..6)];
    let mut generator = Generator { random, names, now_ms };
    let mut steps: Vec<_> = (0..count).map(|_| generator.step()).collect();
    let page = Page::first(1000);
    let last = [
        Action::Jobs(JobQuery::default().page(page.clone())),
        Action::Executions(ExecutionQuery::default().page(page.clone())),
        Action::Pipelines(page),
        Action::Check,
    ];
    steps.extend(last.map(|action| generator.with(action)));
    steps
}

/// Draws steps. Everything follows from the seed.
struct Generator {
    random: fastrand::Rng,
    names: Vec<String>,
    /// What time it is; goes on from step to step, now and then back.
    now_ms: i64,
}

impl Generator {
    fn step(&mut self) -> JobStep {
        let forth = [0, 0, 1, 500, 20_000, 60_000, 900_000][self.random.usize(..7)];
        let back = [0, 0, 0, 0, 0, 1, 70_000][self.random.usize(..7)];
        self.now_ms = (self.now_ms + forth - back).clamp(MIN_MS, END_MS - 1);
        let action = match self.random.u32(..40) {
            0..=4 => Action::AddJob(self.job()),
            5..=8 => Action::UpdateJob(self.name(), self.job_patch()),
            9 => Action::RemoveJob(self.name()),
            10..=12 => Action::Jobs(self.job_query()),
            13..=14 => Action::AddPipeline(self.pipeline()),
            15 => Action::UpdatePipeline(self.name(), self.pipeline_patch()),
            16 => Action::RemovePipeline(self.name()),
            17 => Action::Pipelines(Page::first(self.random.usize(..6))),
            18..=23 => Action::Claim(self.claim()),
            24..=25 => Action::AddExecution(self.execution()),
            26..=29 => Action::UpdateExecution(self.execution_id(), self.execution_patch()),
            30..=31 => Action::Executions(self.execution_query()),
            32 => Action::RemoveExecutions,
            33..=34 => Action::Find(self.name()),
            35 => Action::Health,
            36 => Action::Compact,
            37 => Action::Check,
            38 => Action::Open,
            _ => Action::Close,
        };
        self.with(action)
    }

    fn with(&mut self, action: Action) -> JobStep {
        JobStep { handle: self.random.usize(..8), at: self.time(), action }
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.random.u32(..n) == 0
    }

    fn time(&mut self) -> DateTime<Utc> {
        at_us(self.now_ms * 1000 + [0, 0, 1, 999][self.random.usize(..4)])
    }

    fn name(&mut self) -> String {
        match self.one_in(40) {
            true => ["", "\0", "nobody"][self.random.usize(..3)].to_owned(),
            false => self.names[self.random.usize(..self.names.len())].clone(),
        }
    }

    /// Few, so that many are taken and many are found.
    fn execution_id(&mut self) -> String {
        match self.one_in(8) {
            true => self.name(),
            false => format!("run:{}", self.random.u32(..25)),
        }
    }

    fn schedule(&mut self) -> Schedule {
        let text = ["* * * * *", "*/10 * * * * *", "0 * * * *", "@daily", "30 2 * * 1"];
        Schedule::parse(text[self.random.usize(..5)]).expect("all of these are expressions")
    }

    fn json(&mut self) -> Value {
        match self.random.u32(..6) {
            0 => json!(null),
            1 => json!(self.random.f64() * 1e6),
            2 => json!({"n": 1.0, "text": "x".repeat(self.random.usize(..200))}),
            3 => json!([1, 1.0, "é\"\\"]),
            4 if self.one_in(6) => json!("\0"),
            _ => json!(self.random.i32(..)),
        }
    }

    fn job(&mut self) -> NewJob {
        let job = NewJob::new(self.name(), self.name(), self.schedule());
        job.name(self.name()).enabled(!self.one_in(5))
    }

    fn maybe<T>(&mut self, draw: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.one_in(3).then(|| draw(self))
    }

    fn expected_version(&mut self) -> Option<u64> {
        self.maybe(|all| all.random.u64(1..4))
    }

    fn job_patch(&mut self) -> JobPatch {
        JobPatch {
            expected_version: self.expected_version(),
            name: self.maybe(Self::name),
            pipeline: self.maybe(Self::name),
            schedule: self.maybe(Self::schedule),
            enabled: self.maybe(|all| !all.one_in(3)),
            next_run: self.maybe(Self::time),
        }
    }

    fn pipeline(&mut self) -> NewPipeline {
        NewPipeline::new(self.name(), self.json()).description(self.name())
    }

    fn pipeline_patch(&mut self) -> PipelinePatch {
        PipelinePatch {
            expected_version: self.expected_version(),
            description: self.maybe(Self::name),
            config: self.maybe(Self::json),
        }
    }

    fn lease(&mut self) -> Duration {
        let micros = [0, 999, 1000, 1_500_500, 60_000_000, 60_000_000, 600_000_000];
        Duration::from_micros(micros[self.random.usize(..7)])
    }

    fn claim(&mut self) -> Claim {
        Claim {
            execution_id: self.execution_id(),
            worker: ["w", "v"][self.random.usize(..2)].to_owned(),
            lease: self.lease(),
            at: self.time(),
            job_id: self.maybe(Self::name),
        }
    }

    fn result(&mut self) -> RunResult {
        RunResult::ALL[self.random.usize(..4)]
    }

    fn execution(&mut self) -> Execution {
        let start = self.time();
        let ended = self.maybe(|all| Ended {
            at: all.time(),
            result: all.result(),
            error: all.maybe(Self::name),
        });
        Execution {
            ended,
            context: self.maybe(Self::json),
            steps: self.maybe(Self::json),
            scheduled_for: self.maybe(Self::time),
            ..Execution::new(self.execution_id(), self.name(), self.name(), start)
        }
    }

    fn execution_patch(&mut self) -> ExecutionPatch {
        let result = self.one_in(2).then(|| self.result());
        ExecutionPatch {
            lease: (result.is_none() || self.one_in(9)).then(|| self.lease()),
            context: self.maybe(Self::json),
            steps: self.maybe(Self::json),
            error: (result.is_some() || self.one_in(9)).then(|| self.name()),
            result,
        }
    }

    fn page(&mut self) -> Page {
        Page::first([1, 2, 3, 7, 100, 1000, 0][self.random.usize(..7)])
    }

    fn job_query(&mut self) -> JobQuery {
        JobQuery {
            pipeline: self.maybe(Self::name),
            enabled: self.maybe(|all| all.one_in(2)),
            due_at: self.maybe(Self::time),
            page: self.page(),
        }
    }

    fn execution_query(&mut self) -> ExecutionQuery {
        let running = self.one_in(2);
        let status = self.maybe(|all| match running {
            true => ExecutionStatus::Running,
            false => ExecutionStatus::Ended(all.result()),
        });
        ExecutionQuery { job_id: self.maybe(Self::name), status, page: self.page() }
    }
}
