//! Claims and leases: who runs what, and who must wait.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use storage_core::metrics::time::{END_MS, MIN_MS};
use storage_core::{
    Claim, Ended, Error, Execution, ExecutionPatch, ExecutionQuery, JobPatch, Lease, NewJob,
    RunResult, Schedule,
};

use super::{
    HOUR, MINUTE, add_hourly, all_executions, all_jobs, bad_names, claim, claim_by, ended,
    expect_conflict, expect_missing, hourly, ids, running,
};
use crate::data::{NOON, at, at_us};
use crate::failure::{CaseResult, expect_refused};
use crate::harness::Ctx;

job_cases! { "claims":
    nothing_is_claimed_before_it_is_due,
    a_claim_gives_an_execution,
    a_claim_plans_the_next_run,
    a_claimed_job_is_given_to_nobody_else,
    missed_runs_are_counted_and_not_made_up_for,
    missed_runs_are_counted_up_to_a_limit,
    the_job_that_has_been_due_longest_comes_first,
    of_jobs_due_at_once_the_first_id_comes_first,
    jobs_that_are_not_enabled_are_not_claimed,
    one_job_can_be_asked_for,
    one_job_with_a_lease_is_a_conflict,
    a_lease_that_is_over_is_taken_over,
    a_job_that_is_asked_for_is_taken_over,
    attempts_are_counted,
    what_was_lost_stays_lost,
    an_extended_lease_keeps_others_off,
    after_its_lease_an_execution_can_still_be_ended,
    after_its_lease_an_execution_can_still_be_extended,
    an_end_gives_up_the_lease,
    a_run_that_lasts_longer_than_the_schedule_misses_runs,
    a_claim_can_be_repeated,
    an_execution_id_that_is_taken_is_a_conflict,
    bad_claims_are_refused,
    times_of_a_claim_are_floored,
    a_lease_ends_with_the_calendar,
    workers_get_each_job_once,
    workers_take_over_each_job_once,
}

/// Not a millisecond.
async fn nothing_is_claimed_before_it_is_due(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    ensure_eq!(jobs.claim(&claim("r", NOON)).await?, None, "there is no job");
    add_hourly(&**jobs, &["a"]).await?;
    for ms in [NOON, NOON + HOUR - 1] {
        ensure_eq!(jobs.claim(&claim("r", ms)).await?, None);
    }
    ensure_eq!(all_executions(jobs, ExecutionQuery::default()).await?, []);
    ensure!(jobs.claim(&claim("r", NOON + HOUR)).await?.is_some(), "due");
    Ok(())
}

/// With all that the worker needs; the job says who runs it.
async fn a_claim_gives_an_execution(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    let claimed = jobs.claim(&claim_by("r", "host-1", NOON + HOUR + 5)).await?;
    let expected = Execution {
        triggered_by: "schedule".to_owned(),
        scheduled_for: Some(at(NOON + HOUR)),
        worker: Some("host-1".to_owned()),
        ..running("r", "a", NOON + HOUR + 5)
    };
    ensure_eq!(claimed, Some(expected.clone()));
    ensure_eq!(jobs.execution("r").await?, expected);
    let until = at(NOON + HOUR + 5 + MINUTE);
    let lease = Lease { execution_id: "r".to_owned(), worker: "host-1".to_owned(), until };
    let found = jobs.job("a").await?;
    ensure_eq!((found.lease, found.last_run), (Some(lease), None));
    Ok(())
}

/// The first of the schedule after the claim.
async fn a_claim_plans_the_next_run(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    for (id, late, next) in [("a", 0, 2), ("b", 1, 2), ("c", HOUR, 3), ("d", 5 * HOUR + 1, 7)] {
        add_hourly(&**jobs, &[id]).await?;
        let run = jobs.claim(&claim(id, NOON + HOUR + late)).await?;
        ensure_eq!(run.map(|run| run.job_id).as_deref(), Some(id));
        ensure_eq!(jobs.job(id).await?.next_run, Some(at(NOON + next * HOUR)), "{id}");
        jobs.remove_job(id).await?;
    }
    Ok(())
}

/// Also when its next run comes, while the lease is in force.
async fn a_claimed_job_is_given_to_nobody_else(ctx: &Ctx) -> CaseResult {
    let (jobs, other) = (ctx.jobs()?, ctx.open_whole().await?);
    add_hourly(&**jobs, &["a"]).await?;
    let long = Claim { lease: Duration::from_secs(86_400), ..claim("r", NOON + HOUR) };
    ensure!(jobs.claim(&long).await?.is_some(), "due");
    for (number, late) in [0, 1, HOUR, 5 * HOUR, 24 * HOUR - 1].into_iter().enumerate() {
        for jobs in [jobs, other.jobs()?] {
            let again = claim(&format!("again {number}"), NOON + HOUR + late);
            ensure_eq!(jobs.claim(&again).await?, None, "{late} ms later");
        }
    }
    ensure_eq!(all_executions(jobs, ExecutionQuery::default()).await?.len(), 1);
    Ok(())
}

/// One execution stands for all; it says how many.
async fn missed_runs_are_counted_and_not_made_up_for(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    ensure_eq!(jobs.job("a").await?.missed_runs(at(NOON + 5 * HOUR)), 5, "before the claim");
    let run = jobs.claim(&claim("r", NOON + 5 * HOUR)).await?;
    let run = run.ok_or("nothing is due").map_err(crate::Failure::new)?;
    ensure_eq!((run.scheduled_for, run.missed_runs), (Some(at(NOON + HOUR)), 4));
    ensure_eq!(jobs.execution("r").await?, run);
    ensure_eq!(jobs.job("a").await?.missed_runs(at(NOON + 5 * HOUR)), 0, "after the claim");
    let end = ExecutionPatch::end(RunResult::Succeeded);
    jobs.update_execution("r", &end, at(NOON + 5 * HOUR)).await?;
    ensure_eq!(jobs.claim(&claim("s", NOON + 6 * HOUR - 1)).await?, None);
    Ok(())
}

/// At most 999 beside the one that is run.
async fn missed_runs_are_counted_up_to_a_limit(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    let often = NewJob::new("a", "p", Schedule::parse("* * * * *")?);
    jobs.add_job(&often, at(NOON)).await?;
    let later = NOON + 2000 * MINUTE;
    ensure_eq!(jobs.job("a").await?.missed_runs(at(later)), 1000);
    let run = jobs.claim(&claim("r", later)).await?;
    ensure_eq!(run.map(|run| run.missed_runs), Some(999));
    ensure_eq!(jobs.job("a").await?.next_run, Some(at(later + MINUTE)));
    Ok(())
}

/// By next run or end of lease, whichever makes it due.
async fn the_job_that_has_been_due_longest_comes_first(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["stalled"]).await?;
    jobs.claim(&claim("lost", NOON + HOUR)).await?;
    for (id, minutes) in [("a", 90), ("z", 30), ("b", 180), ("m", 62), ("l", 60)] {
        let patch = JobPatch { next_run: Some(at(NOON + minutes * MINUTE)), ..JobPatch::default() };
        jobs.add_job(&hourly(id)?, at(NOON)).await?;
        jobs.update_job(id, &patch, at(NOON)).await?;
    }
    let mut found = Vec::new();
    while let Some(run) = jobs.claim(&claim(&format!("r{}", found.len()), NOON + 2 * HOUR)).await? {
        found.push(run.job_id);
    }
    ensure_eq!(found, ["z", "l", "stalled", "m", "a"]);
    Ok(())
}

/// Byte by byte.
async fn of_jobs_due_at_once_the_first_id_comes_first(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["b", "a", "B", "\u{e9}", "a ", "_"]).await?;
    let mut found = Vec::new();
    while let Some(run) = jobs.claim(&claim(&format!("r{}", found.len()), NOON + HOUR)).await? {
        found.push(run.job_id);
    }
    ensure_eq!(found, ["B", "_", "a", "a ", "b", "\u{e9}"]);
    Ok(())
}

/// Neither when a run comes, nor when a lease is over.
async fn jobs_that_are_not_enabled_are_not_claimed(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    jobs.add_job(&hourly("b")?.enabled(false), at(NOON)).await?;
    jobs.claim(&claim("r", NOON + HOUR)).await?;
    let disable = JobPatch { enabled: Some(false), ..JobPatch::default() };
    jobs.update_job("a", &disable, at(NOON + HOUR)).await?;
    ensure_eq!(jobs.claim(&claim("s", NOON + 9 * HOUR)).await?, None);
    ensure_eq!(jobs.execution("r").await?.ended, None);
    Ok(())
}

/// Due or not, enabled or not; its next run stays as it is.
async fn one_job_can_be_asked_for(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a", "b", "c"]).await?;
    let disable = JobPatch { enabled: Some(false), ..JobPatch::default() };
    jobs.update_job("c", &disable, at(NOON)).await?;
    for (id, ms, next) in [
        ("b", NOON + 1, Some(NOON + HOUR)),
        ("a", NOON + 5 * HOUR, Some(NOON + HOUR)),
        ("c", NOON, None),
    ] {
        let run = jobs.claim(&claim(id, ms).of_job(id)).await?;
        let expected = Execution { worker: Some("w".to_owned()), ..running(id, id, ms) };
        ensure_eq!(run, Some(expected), "{id}");
        let found = jobs.job(id).await?;
        ensure_eq!(found.next_run, next.map(at), "{id}");
        ensure_eq!(found.lease.map(|lease| lease.until), Some(at(ms + MINUTE)), "{id}");
    }
    Ok(())
}

/// The error says who has it, and until when.
async fn one_job_with_a_lease_is_a_conflict(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    jobs.claim(&claim_by("r", "host-1", NOON).of_job("a")).await?;
    let before = all_jobs(jobs).await?;
    for ms in [NOON, NOON + MINUTE - 1] {
        let refused = jobs.claim(&claim("s", ms).of_job("a")).await;
        let error = expect_conflict(refused, ("worker", "host-1"))?;
        ensure_eq!(error.context("job"), Some("a"));
        ensure_eq!(error.context("until"), Some(&*at(NOON + MINUTE).to_rfc3339()));
    }
    ensure_eq!(all_jobs(jobs).await?, before);
    ensure_eq!(ids(&all_executions(jobs, ExecutionQuery::default()).await?), ["r"]);
    Ok(())
}

/// At its end, not before; the run is lost and tried again.
async fn a_lease_that_is_over_is_taken_over(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    jobs.claim(&claim_by("r", "host-1", NOON + 3 * HOUR)).await?;
    let over = NOON + 3 * HOUR + MINUTE;
    ensure_eq!(jobs.claim(&claim("s", over - 1)).await?, None);
    let retry = jobs.claim(&claim_by("s", "host-2", over)).await?;
    let expected = Execution {
        triggered_by: "schedule".to_owned(),
        scheduled_for: Some(at(NOON + HOUR)),
        missed_runs: 2,
        attempt: 2,
        worker: Some("host-2".to_owned()),
        ..running("s", "a", over)
    };
    ensure_eq!(retry, Some(expected.clone()));
    ensure_eq!(jobs.execution("s").await?, expected);
    let lost = jobs.execution("r").await?;
    let end = lost.ended.map(|Ended { at, result, error }| (at, result, error.is_some()));
    ensure_eq!(end, Some((at(over), RunResult::Lost, true)));
    let found = jobs.job("a").await?;
    ensure_eq!(found.next_run, Some(at(NOON + 4 * HOUR)), "as it was planned");
    ensure_eq!(found.last_run.map(|last| last.result), Some(RunResult::Lost));
    ensure_eq!(found.lease.map(|lease| lease.execution_id).as_deref(), Some("s"));
    Ok(())
}

/// Also if it is not enabled; what made the lost one run made the next one run, too.
async fn a_job_that_is_asked_for_is_taken_over(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a", "b"]).await?;
    jobs.claim(&claim("ra", NOON + HOUR)).await?;
    jobs.claim(&claim("rb", NOON + HOUR).of_job("b")).await?;
    let disable = JobPatch { enabled: Some(false), ..JobPatch::default() };
    jobs.update_job("a", &disable, at(NOON + HOUR)).await?;
    let over = NOON + HOUR + MINUTE;
    for (id, triggered_by, planned) in
        [("a", "schedule", Some(at(NOON + HOUR))), ("b", "manual", None)]
    {
        let run = jobs.claim(&claim(&format!("s{id}"), over).of_job(id)).await?;
        let run = run.ok_or("none was given").map_err(crate::Failure::new)?;
        let found = (&*run.triggered_by, run.scheduled_for, run.attempt);
        ensure_eq!(found, (triggered_by, planned, 2), "{id}");
        let lost = jobs.execution(&format!("r{id}")).await?;
        ensure_eq!(lost.status().as_str(), "lost", "{id}");
    }
    Ok(())
}

/// Of one planned run, not of the next.
async fn attempts_are_counted(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    for n in 0..5_i64 {
        let run = jobs.claim(&claim(&format!("r{n}"), NOON + HOUR + n * MINUTE)).await?;
        ensure_eq!(run.map(|run| run.attempt), Some(1 + n.unsigned_abs()));
    }
    let end = ExecutionPatch::end(RunResult::Succeeded);
    jobs.update_execution("r4", &end, at(NOON + HOUR + 5 * MINUTE)).await?;
    let run = jobs.claim(&claim("next", NOON + 2 * HOUR)).await?;
    ensure_eq!(run.map(|run| run.attempt), Some(1));
    Ok(())
}

/// Its worker learns of it, and does not disturb the new one.
async fn what_was_lost_stays_lost(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    jobs.claim(&claim("r", NOON + HOUR)).await?;
    jobs.claim(&claim("s", NOON + HOUR + MINUTE)).await?;
    let before = (all_jobs(jobs).await?, jobs.execution("r").await?);
    let extend = ExecutionPatch::extend(Duration::from_secs(60));
    for patch in [ExecutionPatch::end(RunResult::Succeeded), extend] {
        let refused = jobs.update_execution("r", &patch, at(NOON + HOUR + MINUTE)).await;
        expect_conflict(refused, ("status", "lost"))?;
    }
    ensure_eq!((all_jobs(jobs).await?, jobs.execution("r").await?), before);
    Ok(())
}

/// From the time of the call on; it may become shorter, too.
async fn an_extended_lease_keeps_others_off(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    jobs.claim(&claim("r", NOON + HOUR)).await?;
    for (seconds, lasts) in [(30, 300), (200, 10)] {
        let before = jobs.execution("r").await?;
        let patch = ExecutionPatch::extend(Duration::from_secs(lasts));
        let (now, lasts) = (NOON + HOUR + seconds * 1000, lasts.cast_signed() * 1000);
        ensure_eq!(jobs.update_execution("r", &patch, at(now)).await?, before);
        let lease = jobs.job("a").await?.lease;
        ensure_eq!(lease.map(|lease| lease.until), Some(at(now + lasts)));
        ensure_eq!(jobs.claim(&claim("s", now + lasts - 1)).await?, None);
    }
    ensure!(jobs.claim(&claim("s", NOON + HOUR + 210_000)).await?.is_some(), "then it is over");
    Ok(())
}

/// As long as nobody else has it.
async fn after_its_lease_an_execution_can_still_be_ended(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    jobs.claim(&claim("r", NOON + HOUR)).await?;
    let late = NOON + HOUR + 30 * MINUTE;
    let ended = jobs.update_execution("r", &ExecutionPatch::fail("slow"), at(late)).await?;
    ensure_eq!(ended.ended.map(|ended| ended.at), Some(at(late)));
    ensure_eq!(jobs.claim(&claim("s", late)).await?, None, "its run is done");
    Ok(())
}

/// As long as nobody else has it.
async fn after_its_lease_an_execution_can_still_be_extended(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    jobs.claim(&claim("r", NOON + HOUR)).await?;
    let late = NOON + HOUR + 30 * MINUTE;
    let extend = ExecutionPatch::extend(Duration::from_secs(60));
    jobs.update_execution("r", &extend, at(late)).await?;
    ensure_eq!(jobs.claim(&claim("s", late)).await?, None);
    Ok(())
}

/// Whatever the result; its job is due at its next run, not before.
async fn an_end_gives_up_the_lease(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    for (result, n) in RunResult::ALL.into_iter().zip(1..) {
        let id = format!("r{n}");
        ensure!(jobs.claim(&claim(&id, NOON + n * HOUR)).await?.is_some(), "due");
        let end = ExecutionPatch::end(result);
        jobs.update_execution(&id, &end, at(NOON + n * HOUR + 5)).await?;
        let found = jobs.job("a").await?;
        ensure_eq!((&found.lease, found.next_run), (&None, Some(at(NOON + (n + 1) * HOUR))));
        ensure_eq!(found.last_run.map(|last| last.result), Some(result));
        ensure_eq!(jobs.claim(&claim("s", NOON + (n + 1) * HOUR - 1)).await?, None);
    }
    Ok(())
}

/// They count, and are not run beside it.
async fn a_run_that_lasts_longer_than_the_schedule_misses_runs(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    let long = Claim { lease: Duration::from_secs(86_400), ..claim("r", NOON + HOUR) };
    jobs.claim(&long).await?;
    let over = NOON + 4 * HOUR + 1;
    ensure_eq!(jobs.job("a").await?.missed_runs(at(over)), 3);
    let end = ExecutionPatch::end(RunResult::Succeeded);
    jobs.update_execution("r", &end, at(over)).await?;
    let run = jobs.claim(&claim("s", over)).await?;
    let run = run.map(|run| (run.scheduled_for, run.missed_runs, run.attempt));
    ensure_eq!(run, Some((Some(at(NOON + 2 * HOUR)), 2, 1)));
    Ok(())
}

/// The same id by the same worker gives the same, and changes nothing.
async fn a_claim_can_be_repeated(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a", "b", "c"]).await?;
    let first = jobs.claim(&claim("r", NOON + HOUR)).await?;
    let asked = jobs.claim(&claim("s", NOON + HOUR).of_job("c")).await?;
    let before = all_jobs(jobs).await?;
    for ms in [NOON + HOUR, NOON + HOUR + 1, NOON + 9 * HOUR] {
        ensure_eq!(jobs.claim(&claim("r", ms)).await?, first);
        ensure_eq!(jobs.claim(&claim("r", ms).of_job("a")).await?, first);
        ensure_eq!(jobs.claim(&claim("s", ms).of_job("c")).await?, asked);
    }
    ensure_eq!(all_jobs(jobs).await?, before);
    ensure_eq!(ids(&all_executions(jobs, ExecutionQuery::default()).await?), ["s", "r"]);
    Ok(())
}

/// By another worker, for another job, after its end, or of an execution that nobody claimed.
async fn an_execution_id_that_is_taken_is_a_conflict(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a", "b", "c"]).await?;
    jobs.claim(&claim("r", NOON + HOUR)).await?;
    let added = Execution { worker: Some("w".to_owned()), ..running("added", "b", NOON) };
    jobs.add_execution(&added).await?;
    jobs.add_execution(&running("nobody's", "b", NOON)).await?;
    jobs.add_execution(&ended("ended", "b", NOON, RunResult::Succeeded)).await?;
    let before = all_jobs(jobs).await?;
    for (id, claim) in [
        ("r", claim_by("r", "another", NOON + HOUR)),
        ("r", claim("r", NOON + HOUR).of_job("b")),
        ("added", claim("added", NOON + HOUR)),
        ("added", claim("added", NOON + HOUR).of_job("b")),
        ("nobody's", claim("nobody's", NOON + HOUR)),
        ("ended", claim("ended", NOON + HOUR)),
        ("ended", claim("ended", NOON)),
    ] {
        expect_conflict(jobs.claim(&claim).await, ("execution", id))?;
    }
    ensure_eq!(all_jobs(jobs).await?, before);
    let run = jobs.claim(&claim("free", NOON + HOUR)).await?;
    ensure_eq!(run.map(|run| run.job_id).as_deref(), Some("b"));
    expect_conflict(jobs.claim(&claim("added", NOON + HOUR)).await, ("execution", "added"))?;
    Ok(())
}

/// Each field by its name, and nothing is claimed.
async fn bad_claims_are_refused(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    let before = all_jobs(jobs).await?;
    let good = claim("r", NOON + HOUR);
    let mut bad = Vec::new();
    for name in bad_names() {
        bad.push(("execution_id", Claim { execution_id: name.clone(), ..good.clone() }));
        bad.push(("worker", Claim { worker: name, ..good.clone() }));
    }
    for time in [at_us(MIN_MS * 1000 - 1), at(END_MS)] {
        bad.push(("at", Claim { at: time, ..good.clone() }));
    }
    let days = |days: u64| Duration::from_secs(days * 86_400);
    for lease in [Duration::ZERO, Duration::from_micros(999), days(367), Duration::MAX] {
        bad.push(("lease", Claim { lease, ..good.clone() }));
    }
    for (field, claim) in bad {
        expect_refused(jobs.claim(&claim).await, Some(field), field)?;
        expect_refused(jobs.claim(&claim.of_job("a")).await, Some(field), field)?;
    }
    ensure_eq!(all_jobs(jobs).await?, before);
    let longest = Claim { lease: days(366), ..good };
    ensure!(jobs.claim(&longest).await?.is_some(), "the longest lease");
    Ok(())
}

/// Start and end of the lease have whole milliseconds, also before 1970.
async fn times_of_a_claim_are_floored(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    jobs.add_job(&hourly("a")?, at(-2 * HOUR)).await?;
    let fine = Claim { at: at_us(-1), lease: Duration::from_micros(1999), ..claim("r", 0) };
    let run = jobs.claim(&fine).await?;
    ensure_eq!(run.map(|run| run.started_at), Some(at(-1)));
    let lease = jobs.job("a").await?.lease;
    ensure_eq!(lease.map(|lease| lease.until), Some(at(0)));
    let extend = ExecutionPatch::extend(fine.lease);
    jobs.update_execution("r", &extend, at_us(2999)).await?;
    let lease = jobs.job("a").await?.lease;
    ensure_eq!(lease.map(|lease| lease.until), Some(at(3)), "extended");
    Ok(())
}

/// There is no time after it.
async fn a_lease_ends_with_the_calendar(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    let last = claim("r", END_MS - 2);
    ensure!(jobs.claim(&last.of_job("a")).await?.is_some(), "asked for");
    let found = jobs.job("a").await?;
    ensure_eq!(found.lease.map(|lease| lease.until), Some(at(END_MS - 1)));
    ensure!(jobs.claim(&claim("s", END_MS - 1)).await?.is_some(), "taken over");
    ensure_eq!(jobs.execution("r").await?.status().as_str(), "lost");
    Ok(())
}

/// Workers claim until nothing is due; returns what each claim gave.
async fn claim_all(ctx: &Ctx, round: &str, ms: i64) -> Result<Vec<Execution>, crate::Failure> {
    let other = ctx.open_whole().await?;
    let worker = |worker: usize| {
        let jobs = if worker.is_multiple_of(2) { ctx.jobs() } else { other.jobs() }.cloned();
        let (name, round) = (format!("w{worker}"), round.to_owned());
        async move {
            let (jobs, mut given) = (Arc::clone(&jobs?), Vec::new());
            loop {
                let id = format!("{round} {name} {}", given.len());
                match jobs.claim(&claim_by(&id, &name, ms)).await? {
                    Some(run) => given.push(run),
                    None => return Ok::<_, Error>(given),
                }
            }
        }
    };
    let given = try_join_all((0..16).map(worker)).await?;
    Ok(given.into_iter().flatten().collect())
}

/// However many ask at once, through several handles.
async fn workers_get_each_job_once(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    let names: Vec<_> = (0..40).map(|n| format!("j{n:02}")).collect();
    add_hourly(&**jobs, &names.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let given = claim_all(ctx, "one", NOON + HOUR).await?;
    ensure_eq!(given.len(), 40, "claims that gave a job");
    let given: BTreeSet<_> = given.into_iter().map(|run| run.job_id).collect();
    ensure!(given.into_iter().eq(names), "each job once");
    ensure_eq!(all_executions(jobs, ExecutionQuery::default()).await?.len(), 40);
    Ok(())
}

/// However many ask at once, through several handles.
async fn workers_take_over_each_job_once(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    let names: Vec<_> = (0..20).map(|n| format!("j{n:02}")).collect();
    add_hourly(&**jobs, &names.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    claim_all(ctx, "one", NOON + HOUR).await?;
    let given = claim_all(ctx, "two", NOON + HOUR + MINUTE).await?;
    ensure_eq!(given.len(), 20, "claims that gave a job");
    ensure!(given.iter().all(|run| run.attempt == 2), "each is the second attempt");
    let all = all_executions(jobs, ExecutionQuery::default()).await?;
    let lost = all.iter().filter(|run| run.status().as_str() == "lost").count();
    ensure_eq!((all.len(), lost), (40, 20));
    expect_missing(jobs.execution("one w0 99").await, ("execution", "one w0 99"))?;
    Ok(())
}
