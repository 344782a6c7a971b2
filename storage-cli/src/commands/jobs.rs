//! `storage jobs`: jobs and who runs them.

use std::process::ExitCode;

use anyhow::Result;
use chrono::Utc;
use storage::jobs::ext::random_id;
use storage::{
    Claim, Cursor, HealthStatus, Job, JobHealth, JobPatch, JobQuery, JobStore, NewJob, Page, Store,
};

use super::executions;
use crate::args::{JobAdd, JobClaim, JobList, JobUpdate, Jobs, Part, Remove};
use crate::output::{Cell, Output, ask_to_remove};

/// Items that are asked for at once.
const PAGE_ITEMS: usize = 500;

const COLUMNS: [&str; 14] = [
    "id",
    "name",
    "pipeline",
    "cron",
    "enabled",
    "next_run",
    "missed_runs",
    "last_run",
    "last_result",
    "worker",
    "execution",
    "lease_until",
    "version",
    "updated_at",
];

/// The job that `add` is to add, checked before the store is opened or made.
pub(super) fn prepare(args: &JobAdd) -> Result<NewJob> {
    let job = NewJob::new(&args.id, &args.pipeline, args.cron.clone()).enabled(!args.disabled);
    let job = job.name(args.name.as_ref().unwrap_or(&args.id));
    job.validate()?;
    Ok(job)
}

pub(super) async fn run(
    store: &Store,
    verb: &Jobs,
    output: &mut Output,
    shown_url: &str,
) -> Result<ExitCode> {
    let jobs = &**store.jobs()?;
    let enable = |enabled| JobPatch { enabled: Some(enabled), ..JobPatch::default() };
    let job = match verb {
        Jobs::Add(args) => jobs.add_job(&prepare(args)?, Utc::now()).await?,
        Jobs::List(args) => return list(jobs, args, output).await,
        Jobs::Show { id } => jobs.job(id).await?,
        Jobs::Update(args) => jobs.update_job(&args.id, &patch_of(args), Utc::now()).await?,
        Jobs::Enable { id } => jobs.update_job(id, &enable(true), Utc::now()).await?,
        Jobs::Disable { id } => jobs.update_job(id, &enable(false), Utc::now()).await?,
        Jobs::Remove(args) => return remove(jobs, args, output, shown_url).await,
        Jobs::Claim(args) => return claim(jobs, args, output).await,
        Jobs::Health => return health(jobs, output).await,
    };
    output.record(COLUMNS.into_iter().zip(cells_of(job)).collect())?;
    Ok(ExitCode::SUCCESS)
}

fn patch_of(args: &JobUpdate) -> JobPatch {
    JobPatch {
        expected_version: args.expect_version,
        name: args.name.clone(),
        pipeline: args.pipeline.clone(),
        schedule: args.cron.clone(),
        enabled: None,
        next_run: args.next_run,
    }
}

fn cells_of(job: Job) -> Vec<Cell> {
    let missed = job.missed_runs(Utc::now());
    let (worker, execution, until) = match job.lease {
        Some(lease) => {
            (Cell::Text(lease.worker), Cell::Text(lease.execution_id), Cell::Time(lease.until))
        }
        None => (Cell::Empty, Cell::Empty, Cell::Empty),
    };
    vec![
        Cell::Text(job.id),
        Cell::Text(job.name),
        Cell::Text(job.pipeline),
        Cell::text(job.schedule.as_str()),
        Cell::text(if job.enabled { "yes" } else { "no" }),
        Cell::or_empty(job.next_run, Cell::Time),
        Cell::Count(missed),
        Cell::or_empty(job.last_run, |last| Cell::Time(last.started_at)),
        Cell::or_empty(job.last_run, |last| Cell::text(last.result.as_str())),
        worker,
        execution,
        until,
        Cell::Count(job.version),
        Cell::Time(job.updated_at),
    ]
}

async fn list(jobs: &dyn JobStore, args: &JobList, output: &mut Output) -> Result<ExitCode> {
    let mut query = JobQuery {
        pipeline: args.pipeline.clone(),
        enabled: (args.enabled || args.disabled).then_some(args.enabled),
        due_at: args.due.then(Utc::now),
        ..JobQuery::default()
    };
    let mut pages = Pages::of(&args.part);
    let mut rows = output.rows(&COLUMNS)?;
    while let Some(page) = pages.next() {
        query.page = page;
        let listed = jobs.jobs(&query).await?;
        pages.took(listed.items.len(), listed.next);
        for job in listed.items {
            rows.row(cells_of(job))?;
        }
    }
    rows.finish()?;
    drop(rows);
    pages.note(output, "no such jobs");
    Ok(ExitCode::SUCCESS)
}

/// Goes through the pages of a list, up to the number that was asked for.
pub(super) struct Pages {
    left: Option<u64>,
    after: Option<Cursor>,
    is_over: bool,
    found: u64,
}

impl Pages {
    pub(super) fn of(part: &Part) -> Self {
        let after = part.after.as_ref().map(Cursor::new);
        Self { left: part.limit, after, is_over: false, found: 0 }
    }

    /// The page to ask for; none at the end.
    pub(super) fn next(&self) -> Option<Page> {
        let left = self.left.map_or(PAGE_ITEMS, |left| usize::try_from(left).unwrap_or(PAGE_ITEMS));
        let page = Page { limit: left.min(PAGE_ITEMS), after: self.after.clone() };
        (!self.is_over && left > 0).then_some(page)
    }

    pub(super) fn took(&mut self, items: usize, next: Option<Cursor>) {
        self.found += items as u64;
        self.left = self.left.map(|left| left.saturating_sub(items as u64));
        self.is_over = next.is_none();
        self.after = next;
    }

    /// Says what the rows do not.
    pub(super) fn note(&self, output: &Output, nothing: &str) {
        if self.found == 0 {
            output.note(nothing);
        } else if let Some(after) = &self.after {
            output.note(&format!("there are more; go on with --after '{after}'"));
        }
    }
}

async fn remove(
    jobs: &dyn JobStore,
    args: &Remove,
    output: &mut Output,
    shown_url: &str,
) -> Result<ExitCode> {
    jobs.job(&args.id).await?;
    let what = format!("the job {} with its executions", args.id);
    if !ask_to_remove(&what, args.yes, shown_url)? {
        output.note("nothing was removed");
        return Ok(ExitCode::FAILURE);
    }
    let gone = jobs.remove_job(&args.id).await?;
    output.record(vec![
        ("removed", Cell::text(&args.id)),
        ("executions_removed", Cell::Count(gone)),
    ])?;
    Ok(ExitCode::SUCCESS)
}

async fn claim(jobs: &dyn JobStore, args: &JobClaim, output: &mut Output) -> Result<ExitCode> {
    let id = args.execution.clone().unwrap_or_else(random_id);
    let mut claim = Claim::next(id, &args.worker, args.lease, Utc::now());
    claim.job_id.clone_from(&args.id);
    let claimed = jobs.claim(&claim).await;
    match claimed.map_err(|error| claim.name_execution(error))? {
        Some(execution) => {
            executions::print(execution, output)?;
            Ok(ExitCode::SUCCESS)
        }
        None => {
            output.note("no job is due");
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn health(jobs: &dyn JobStore, output: &mut Output) -> Result<ExitCode> {
    let JobHealth { status, message, counts } = jobs.health(Utc::now()).await;
    let (word, code) = match status {
        HealthStatus::Healthy => ("healthy", ExitCode::SUCCESS),
        HealthStatus::Degraded => ("degraded", ExitCode::FAILURE),
        HealthStatus::Down => ("down", ExitCode::FAILURE),
    };
    output.record(vec![
        ("status", Cell::text(word)),
        ("jobs", Cell::Count(counts.jobs)),
        ("running", Cell::Count(counts.running)),
        ("stalled", Cell::Count(counts.stalled)),
        ("overdue", Cell::Count(counts.overdue)),
        ("message", Cell::Text(message)),
    ])?;
    Ok(code)
}
