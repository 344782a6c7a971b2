//! `storage executions`: runs of jobs.

use std::io;
use std::process::ExitCode;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use serde_json::Value;
use storage::metrics::time::{END_MS, MIN_MS, floor_ms, from_ms};
use storage::{
    Cursor, Execution, ExecutionPatch, ExecutionQuery, ExecutionStatus, JobStore, Page, Store,
};

use super::jobs::Pages;
use super::lines;
use crate::args::{ExecutionList, Executions, Prune};
use crate::output::{Cell, Output, ask_to_remove, text};

/// Executions of one page where they are only counted: each may hold 2 MiB of JSON.
const COUNTED_AT_ONCE: usize = 16;

const COLUMNS: [&str; 14] = [
    "id",
    "job_id",
    "pipeline",
    "status",
    "started_at",
    "ended_at",
    "error",
    "triggered_by",
    "scheduled_for",
    "missed_runs",
    "attempt",
    "worker",
    "context",
    "steps",
];

/// Reads what `add` is to add, all of it, before the store is opened.
pub(super) fn prepare(verb: &Executions) -> Result<Option<Vec<Execution>>> {
    let Executions::Add { execution } = verb else { return Ok(None) };
    if execution == "-" {
        let (input, words) = (io::stdin().lock(), ("execution", "added"));
        let parse = |line: &str| Ok(serde_json::from_str(line)?);
        return lines::read_all(input, words, parse, Execution::validate).map(Some);
    }
    let one: Execution = serde_json::from_str(execution).context("that is no execution as JSON")?;
    one.validate()?;
    Ok(Some(vec![one]))
}

pub(super) async fn run(
    store: &Store,
    verb: &Executions,
    prepared: Option<Vec<Execution>>,
    output: &mut Output,
    shown_url: &str,
) -> Result<ExitCode> {
    let jobs = &**store.jobs()?;
    let patch = match verb {
        Executions::List(args) => return list(jobs, args, output).await,
        Executions::Show { id } => {
            print(jobs.execution(id).await?, output)?;
            return Ok(ExitCode::SUCCESS);
        }
        Executions::Add { .. } => return add(jobs, &prepared.unwrap_or_default(), output).await,
        Executions::Cleanup(args) => return clean_up(jobs, args, output, shown_url).await,
        Executions::Update { steps, context, .. } => ExecutionPatch {
            steps: json_of(steps.as_deref())?,
            context: json_of(context.as_deref())?,
            ..ExecutionPatch::default()
        },
        Executions::Extend { lease, .. } => ExecutionPatch::extend(*lease),
        Executions::End { result, error, .. } => {
            ExecutionPatch { error: error.clone(), ..ExecutionPatch::end(*result) }
        }
    };
    let (Executions::Update { id, .. }
    | Executions::Extend { id, .. }
    | Executions::End { id, .. }) = verb
    else {
        return Ok(ExitCode::SUCCESS);
    };
    print(jobs.update_execution(id, &patch, Utc::now()).await?, output)?;
    Ok(ExitCode::SUCCESS)
}

fn json_of(text: Option<&str>) -> Result<Option<Value>> {
    text.map(|text| serde_json::from_str(text).context("that is no JSON")).transpose()
}

/// Prints one execution.
pub(super) fn print(execution: Execution, output: &mut Output) -> Result<()> {
    Ok(output.record(COLUMNS.into_iter().zip(cells_of(execution)).collect())?)
}

fn cells_of(execution: Execution) -> Vec<Cell> {
    let status = execution.status();
    let (ended_at, error) = match execution.ended {
        Some(ended) => (Cell::Time(ended.at), Cell::or_empty(ended.error, Cell::Text)),
        None => (Cell::Empty, Cell::Empty),
    };
    vec![
        Cell::Text(execution.id),
        Cell::Text(execution.job_id),
        Cell::Text(execution.pipeline),
        Cell::text(status.as_str()),
        Cell::Time(execution.started_at),
        ended_at,
        error,
        Cell::Text(execution.triggered_by),
        Cell::or_empty(execution.scheduled_for, Cell::Time),
        Cell::Count(execution.missed_runs),
        Cell::Count(execution.attempt),
        Cell::or_empty(execution.worker, Cell::Text),
        Cell::or_empty(execution.context, Cell::Json),
        Cell::or_empty(execution.steps, Cell::Json),
    ]
}

async fn list(jobs: &dyn JobStore, args: &ExecutionList, output: &mut Output) -> Result<ExitCode> {
    let mut query = ExecutionQuery {
        job_id: args.job.clone(),
        status: args.status,
        ..ExecutionQuery::default()
    };
    let mut pages = Pages::of(&args.part);
    let mut rows = output.rows(&COLUMNS)?;
    while let Some(page) = pages.next() {
        query.page = page;
        let listed = jobs.executions(&query).await?;
        pages.took(listed.items.len(), listed.next);
        for execution in listed.items {
            rows.row(cells_of(execution))?;
        }
    }
    rows.finish()?;
    drop(rows);
    pages.note(output, "no such executions");
    Ok(ExitCode::SUCCESS)
}

async fn add(
    jobs: &dyn JobStore,
    executions: &[Execution],
    output: &mut Output,
) -> Result<ExitCode> {
    for (added, execution) in (0..).zip(executions) {
        let place = || format!("after {} added", text::counted(added, "execution"));
        let done = jobs.add_execution(execution).await;
        match added {
            0 => done?,
            _ => done.with_context(place)?,
        }
    }
    let added = executions.len() as u64;
    output.record(vec![("executions_added", Cell::Count(added))])?;
    Ok(ExitCode::SUCCESS)
}

async fn clean_up(
    jobs: &dyn JobStore,
    args: &Prune,
    output: &mut Output,
    shown_url: &str,
) -> Result<ExitCode> {
    let before = ("before", Cell::Time(args.before));
    if args.dry_run {
        let count = count_before(jobs, args.before).await?;
        output.record(vec![before, ("would_remove", Cell::Count(count))])?;
        return Ok(ExitCode::SUCCESS);
    }
    let what = format!("executions before {}", text::time(args.before));
    if !ask_to_remove(&what, args.yes, shown_url)? {
        output.note("nothing was removed");
        return Ok(ExitCode::FAILURE);
    }
    let removed = jobs.remove_executions_before(args.before).await?;
    output.record(vec![before, ("removed", Cell::Count(removed))])?;
    Ok(ExitCode::SUCCESS)
}

/// Counts what a cleanup would remove, without reading what started later.
async fn count_before(jobs: &dyn JobStore, before: DateTime<Utc>) -> Result<u64> {
    let page = Page { limit: COUNTED_AT_ONCE, after: cursor_at(before) };
    let mut query = ExecutionQuery::default().page(page);
    let mut count = 0;
    loop {
        let listed = jobs.executions(&query).await?;
        let has_ended = |one: &&Execution| one.status() != ExecutionStatus::Running;
        count += listed.items.iter().filter(has_ended).count() as u64;
        query.page.after = listed.next;
        if query.page.after.is_none() {
            return Ok(count);
        }
    }
}

/// Where a listing goes on with what started before `time`, which is floored as a store floors it;
/// none if that is everything.
fn cursor_at(time: DateTime<Utc>) -> Option<Cursor> {
    let ms = floor_ms(time);
    // The newest come first, those of one start by id backwards: no id comes after this one.
    let last = |ms| Execution::new("\u{1}", "any", "any", from_ms(ms));
    (ms < END_MS).then(|| Cursor::after_execution(&last(ms.max(MIN_MS))))
}

#[cfg(test)]
mod tests {
    use storage::{Ended, InMemory, NewJob, RunResult};

    use super::*;

    /// Floored, as a cleanup floors it, however early or late; those under way stay.
    #[tokio::test]
    async fn a_dry_run_counts_what_a_cleanup_removes() {
        let jobs = InMemory::new().jobs();
        let (at, us) = (from_ms, DateTime::from_timestamp_micros);
        jobs.add_job(&NewJob::new("a", "p", "@daily".parse().unwrap()), at(0)).await.unwrap();
        for n in 0..40 {
            let ended = Some(Ended { at: at(99), result: RunResult::Failed, error: None });
            let run = Execution::new(format!("r{n}"), "a", "p", at(n));
            jobs.add_execution(&Execution { ended, ..run.clone() }).await.unwrap();
            let under_way = Execution { id: format!("s{n}"), ..run };
            jobs.add_execution(&under_way).await.unwrap();
        }
        let (min, max) = (DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC);
        for before in [min, us(-1).unwrap(), at(0), us(1_999).unwrap(), at(2), at(39), max] {
            let counted = count_before(&jobs, before).await.unwrap();
            let removed = jobs.remove_executions_before(before).await.unwrap();
            assert_eq!(counted, removed, "before {before}");
        }
        assert_eq!(count_before(&jobs, max).await.unwrap(), 0);
    }
}
