//! Executions: added, found, changed, ended, removed.

use std::time::Duration;

use chrono::DateTime;
use serde_json::{Value, json};
use storage_core::metrics::time::{END_MS, MIN_MS};
use storage_core::{
    Ended, Execution, ExecutionPatch, ExecutionQuery, JobStore, LastRun, Result, RunResult,
};

use super::{
    HOUR, add_hourly, all_executions, bad_json, bad_names, claim, ended, expect_conflict,
    expect_missing, ids, odd_json, running,
};
use crate::data::{NOON, ODD_NAMES, at, at_us};
use crate::failure::{CaseResult, expect_refused};
use crate::harness::Ctx;

job_cases! { "executions":
    an_execution_comes_back_as_it_was_added,
    times_are_floored_and_null_is_nothing,
    first_and_last_times_of_the_calendar,
    any_json_comes_back_equal,
    odd_ids_are_ids_like_any_other,
    the_largest_fields_are_accepted,
    bad_fields_are_refused,
    an_execution_needs_its_job,
    an_id_that_is_taken_is_a_conflict,
    an_unknown_execution_is_not_found,
    an_execution_under_way_can_be_ended,
    an_end_stays_as_it_is,
    an_end_before_the_start_is_taken_for_the_start,
    what_it_did_is_kept,
    bad_patches_change_nothing,
    the_last_run_is_the_one_that_started_last,
    an_added_execution_holds_no_lease,
    removing_old_ones_keeps_the_cutoff_and_what_came_after,
    removing_old_ones_keeps_those_under_way,
    removing_old_ones_floors_its_cutoff,
    removing_old_ones_takes_any_cutoff,
    removing_old_ones_counts_exactly,
    removing_old_ones_leaves_jobs_alone,
}

async fn all(jobs: &dyn JobStore) -> Result<Vec<Execution>> {
    all_executions(jobs, ExecutionQuery::default()).await
}

/// What was added is found, with every field.
async fn an_execution_comes_back_as_it_was_added(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    let full = Execution {
        context: Some(json!({"city": "vienna"})),
        steps: Some(json!([{"name": "fetch", "duration_ms": 12}])),
        triggered_by: "api".to_owned(),
        scheduled_for: Some(at(NOON - 1)),
        missed_runs: 3,
        attempt: 2,
        worker: Some("host-1".to_owned()),
        ended: Some(Ended {
            at: at(NOON + 5),
            result: RunResult::Failed,
            error: Some("no\nnetwork".to_owned()),
        }),
        ..running("full", "a", NOON)
    };
    let plain = running("plain", "a", NOON + 1);
    jobs.add_execution(&full).await?;
    jobs.add_execution(&plain).await?;
    ensure_eq!(jobs.execution("full").await?, full);
    ensure_eq!(jobs.execution("plain").await?, plain);
    ensure_eq!(all(&**jobs).await?, [plain, full]);
    Ok(())
}

/// Finer digits than milliseconds are floored, also before 1970; `null` is the same as none.
async fn times_are_floored_and_null_is_nothing(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    let fine = Execution {
        started_at: at_us(-1001),
        scheduled_for: Some(at_us(-2999)),
        ended: Some(Ended { at: at_us(-1), result: RunResult::Succeeded, error: None }),
        context: Some(Value::Null),
        steps: Some(Value::Null),
        ..running("r", "a", 0)
    };
    jobs.add_execution(&fine).await?;
    let found = jobs.execution("r").await?;
    ensure_eq!((found.started_at, found.scheduled_for), (at(-2), Some(at(-3))));
    ensure_eq!(found.ended.map(|ended| ended.at), Some(at(-1)));
    ensure_eq!((found.context, found.steps), (None, None));
    Ok(())
}

/// Years 0001 to 9999.
async fn first_and_last_times_of_the_calendar(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    let end = |ms| Some(Ended { at: at(ms), result: RunResult::Succeeded, error: None });
    let first = Execution { ended: end(END_MS - 1), ..running("first", "a", MIN_MS) };
    let last = Execution { ended: end(END_MS - 1), ..running("last", "a", END_MS - 1) };
    jobs.add_execution(&first).await?;
    jobs.add_execution(&last).await?;
    ensure_eq!(all(&**jobs).await?, [last, first]);
    Ok(())
}

/// Context and steps are any JSON; whole numbers and fractions stay apart.
async fn any_json_comes_back_equal(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    for (number, json) in odd_json().into_iter().enumerate() {
        let id = format!("r{number}");
        let steps = Some(json!([json]));
        let one = Execution { context: Some(json), steps, ..running(&id, "a", NOON) };
        jobs.add_execution(&one).await?;
        ensure_eq!(jobs.execution(&id).await?, one);
    }
    Ok(())
}

/// Ids are compared byte by byte; no character is special, nor in what they say.
async fn odd_ids_are_ids_like_any_other(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, ODD_NAMES).await?;
    for name in ODD_NAMES {
        let name = (*name).to_owned();
        let one = Execution {
            pipeline: name.clone(),
            triggered_by: name.clone(),
            worker: Some(name.clone()),
            ended: Some(Ended {
                at: at(NOON),
                result: RunResult::Failed,
                error: Some(name.clone()),
            }),
            ..running(&name, &name, NOON)
        };
        jobs.add_execution(&one).await?;
        ensure_eq!(jobs.execution(&name).await?, one);
        let found = all_executions(jobs, ExecutionQuery::of_job(&name)).await?;
        ensure_eq!(found, [one]);
    }
    let mut sorted = ODD_NAMES.to_vec();
    sorted.sort_unstable();
    sorted.reverse();
    ensure_eq!(ids(&all(&**jobs).await?), sorted, "of one start: by id backwards");
    Ok(())
}

/// 1 MiB of JSON in each place, and 64 KiB of error.
async fn the_largest_fields_are_accepted(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    let text = json!("x".repeat(1024 * 1024 - 2));
    let error = Some("e".repeat(64 * 1024));
    let one = Execution {
        context: Some(text.clone()),
        steps: Some(text),
        ended: Some(Ended { at: at(NOON), result: RunResult::Failed, error }),
        ..running("r", "a", NOON)
    };
    jobs.add_execution(&one).await?;
    ensure!(jobs.execution("r").await? == one, "as it was");
    Ok(())
}

/// Each by its name, and nothing is stored.
async fn bad_fields_are_refused(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    let good = running("r", "a", NOON);
    let mut bad = Vec::new();
    for name in bad_names() {
        bad.push(("id", Execution { id: name.clone(), ..good.clone() }));
        bad.push(("job_id", Execution { job_id: name.clone(), ..good.clone() }));
        bad.push(("pipeline", Execution { pipeline: name.clone(), ..good.clone() }));
        bad.push(("triggered_by", Execution { triggered_by: name.clone(), ..good.clone() }));
        bad.push(("worker", Execution { worker: Some(name), ..good.clone() }));
    }
    for json in bad_json() {
        bad.push(("context", Execution { context: Some(json.clone()), ..good.clone() }));
        bad.push(("steps", Execution { steps: Some(json), ..good.clone() }));
    }
    let end = |at, error: Option<&str>| {
        Some(Ended { at, result: RunResult::Failed, error: error.map(str::to_owned) })
    };
    for time in [at_us(MIN_MS * 1000 - 1), at(END_MS)] {
        bad.push(("started_at", Execution { started_at: time, ..good.clone() }));
        bad.push(("scheduled_for", Execution { scheduled_for: Some(time), ..good.clone() }));
        bad.push(("ended_at", Execution { ended: end(time, None), ..good.clone() }));
    }
    bad.push(("ended_at", Execution { ended: end(at(NOON - 1), None), ..good.clone() }));
    bad.push(("error", Execution { ended: end(at(NOON), Some("\0")), ..good.clone() }));
    bad.push(("attempt", Execution { attempt: 0, ..good.clone() }));
    bad.push(("attempt", Execution { attempt: u64::MAX, ..good.clone() }));
    bad.push(("missed_runs", Execution { missed_runs: u64::MAX, ..good }));
    for (field, execution) in bad {
        expect_refused(jobs.add_execution(&execution).await, Some(field), field)?;
    }
    ensure_eq!(all(&**jobs).await?, []);
    Ok(())
}

/// An execution of no job is refused, and nothing is stored.
async fn an_execution_needs_its_job(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    let lone = jobs.add_execution(&running("r", "nobody", NOON)).await;
    expect_missing(lone, ("job", "nobody"))?;
    ensure_eq!(all(&**jobs).await?, []);
    add_hourly(&**jobs, &["nobody"]).await?;
    jobs.add_execution(&running("r", "nobody", NOON)).await?;
    Ok(())
}

/// A second add of an id is refused, and the first stays; the job, too.
async fn an_id_that_is_taken_is_a_conflict(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a", "b"]).await?;
    let first = running("r", "a", NOON);
    jobs.add_execution(&first).await?;
    for job_id in ["a", "b"] {
        let second = ended("r", job_id, NOON + 1, RunResult::Failed);
        expect_conflict(jobs.add_execution(&second).await, ("execution", "r"))?;
        ensure_eq!(jobs.job(job_id).await?.last_run, None);
    }
    ensure_eq!(all(&**jobs).await?, [first]);
    Ok(())
}

/// What is about an execution that is not there says so.
async fn an_unknown_execution_is_not_found(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    jobs.add_execution(&running("r", "a", NOON)).await?;
    let bad = bad_names();
    for id in ["R", "r ", "a"].into_iter().chain(bad.iter().map(String::as_str)) {
        expect_missing(jobs.execution(id).await, ("execution", id))?;
        let patch = ExecutionPatch::end(RunResult::Succeeded);
        let updated = jobs.update_execution(id, &patch, at(NOON)).await;
        expect_missing(updated, ("execution", id))?;
    }
    ensure_eq!(jobs.execution("r").await?.ended, None);
    Ok(())
}

/// With every result; the rest stays.
async fn an_execution_under_way_can_be_ended(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    for (result, n) in RunResult::ALL.into_iter().zip(0..) {
        let id = format!("r{n}");
        let mut expected = Execution { steps: Some(json!([1])), ..running(&id, "a", NOON + n) };
        jobs.add_execution(&expected).await?;
        let error = (n > 0).then(|| format!("why {n}"));
        let patch = ExecutionPatch { error: error.clone(), ..ExecutionPatch::end(result) };
        let updated = jobs.update_execution(&id, &patch, at_us((NOON + 50) * 1000 + 999)).await?;
        expected.ended = Some(Ended { at: at(NOON + 50), result, error });
        ensure_eq!(updated, expected);
        ensure_eq!(jobs.execution(&id).await?, expected, "found");
        let last = LastRun { started_at: at(NOON + n), result };
        ensure_eq!(jobs.job("a").await?.last_run, Some(last));
    }
    Ok(())
}

/// What has ended is not ended again, nor changed in any other way.
async fn an_end_stays_as_it_is(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    jobs.add_execution(&running("r", "a", NOON)).await?;
    jobs.update_execution("r", &ExecutionPatch::fail("why"), at(NOON)).await?;
    jobs.add_execution(&ended("s", "a", NOON, RunResult::Succeeded)).await?;
    for (id, status) in [("r", "failed"), ("s", "succeeded")] {
        let before = jobs.execution(id).await?;
        let steps = ExecutionPatch { steps: Some(json!(1)), ..ExecutionPatch::default() };
        let extend = ExecutionPatch::extend(Duration::from_secs(1));
        let end = ExecutionPatch::end(RunResult::Cancelled);
        for patch in [steps, extend, end, ExecutionPatch::default()] {
            let refused = jobs.update_execution(id, &patch, at(NOON + 1)).await;
            let error = expect_conflict(refused, ("status", status))?;
            ensure_eq!(error.context("execution"), Some(id));
        }
        ensure_eq!(jobs.execution(id).await?, before);
    }
    Ok(())
}

/// A clock that went back does not keep an execution from ending.
async fn an_end_before_the_start_is_taken_for_the_start(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    jobs.add_execution(&running("r", "a", NOON)).await?;
    let end = ExecutionPatch::end(RunResult::Succeeded);
    let updated = jobs.update_execution("r", &end, at(NOON - HOUR)).await?;
    ensure_eq!(updated.ended.as_ref().map(|ended| ended.at), Some(at(NOON)));
    ensure_eq!(jobs.execution("r").await?, updated);
    Ok(())
}

/// Context and steps are replaced, each alone; `null` removes them.
async fn what_it_did_is_kept(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    let mut expected = Execution { context: Some(json!(1)), ..running("r", "a", NOON) };
    jobs.add_execution(&expected).await?;
    let (some, none) = (|json| Some(json), None);
    for (context, steps) in [
        (none.clone(), some(json!(["one"]))),
        (none.clone(), some(json!(["one", "two"]))),
        (some(json!({"n": 2})), none.clone()),
        (none.clone(), none.clone()),
        (none, some(Value::Null)),
    ] {
        let patch = ExecutionPatch { context, steps, ..ExecutionPatch::default() };
        let kept = |new: &Option<Value>, old: Option<Value>| new.clone().or(old);
        expected.context = kept(&patch.context, expected.context);
        expected.steps = kept(&patch.steps, expected.steps).filter(|steps| !steps.is_null());
        ensure_eq!(jobs.update_execution("r", &patch, at(NOON)).await?, expected);
        ensure_eq!(jobs.execution("r").await?, expected, "found");
    }
    Ok(())
}

/// One bad field keeps the whole patch out.
async fn bad_patches_change_nothing(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    jobs.claim(&claim("r", NOON + HOUR)).await?;
    let before = (jobs.job("a").await?, jobs.execution("r").await?);
    let good = ExecutionPatch { steps: Some(json!(1)), ..ExecutionPatch::default() };
    let end = ExecutionPatch { result: Some(RunResult::Failed), ..good.clone() };
    let mut bad = Vec::new();
    for json in bad_json() {
        bad.push(("context", ExecutionPatch { context: Some(json.clone()), ..end.clone() }));
        bad.push(("steps", ExecutionPatch { steps: Some(json), ..end.clone() }));
    }
    let minute = Some(Duration::from_secs(60));
    bad.push(("error", ExecutionPatch { error: Some("\0".to_owned()), ..end.clone() }));
    bad.push(("error", ExecutionPatch { error: Some("x".repeat(65_537)), ..end.clone() }));
    bad.push(("error", ExecutionPatch { error: Some("why".to_owned()), ..good.clone() }));
    bad.push(("lease", ExecutionPatch { lease: minute, ..end.clone() }));
    for lease in [Duration::ZERO, Duration::from_micros(999), Duration::MAX] {
        bad.push(("lease", ExecutionPatch { lease: Some(lease), ..good.clone() }));
    }
    for (field, patch) in bad {
        let refused = jobs.update_execution("r", &patch, at(NOON + HOUR)).await;
        expect_refused(refused, Some(field), field)?;
    }
    for time in [at_us(MIN_MS * 1000 - 1), at(END_MS)] {
        expect_refused(jobs.update_execution("r", &end, time).await, Some("at"), "a time")?;
    }
    ensure_eq!((jobs.job("a").await?, jobs.execution("r").await?), before);
    Ok(())
}

/// Whichever is added or ended last; of one start the last wins.
async fn the_last_run_is_the_one_that_started_last(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a", "b"]).await?;
    let last = async |ms, result| {
        let found = jobs.job("a").await?.last_run;
        ensure_eq!(found, Some(LastRun { started_at: at(ms), result }));
        CaseResult::Ok(())
    };
    jobs.add_execution(&running("long", "a", NOON + 5)).await?;
    ensure_eq!(jobs.job("a").await?.last_run, None, "while it is under way");
    jobs.add_execution(&ended("old", "a", NOON, RunResult::Failed)).await?;
    last(NOON, RunResult::Failed).await?;
    jobs.add_execution(&ended("new", "a", NOON + 9, RunResult::Succeeded)).await?;
    last(NOON + 9, RunResult::Succeeded).await?;
    jobs.add_execution(&ended("older", "a", NOON - 9, RunResult::Failed)).await?;
    let end = ExecutionPatch::end(RunResult::Cancelled);
    jobs.update_execution("long", &end, at(NOON + HOUR)).await?;
    last(NOON + 9, RunResult::Succeeded).await?;
    jobs.add_execution(&ended("same", "a", NOON + 9, RunResult::Lost)).await?;
    last(NOON + 9, RunResult::Lost).await?;
    ensure_eq!(jobs.job("b").await?.last_run, None, "the other job");
    Ok(())
}

/// Its job can be claimed meanwhile, and ending it leaves the lease of the claim.
async fn an_added_execution_holds_no_lease(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    let added = Execution { worker: Some("w".to_owned()), ..running("r", "a", NOON + HOUR) };
    jobs.add_execution(&added).await?;
    ensure_eq!(jobs.job("a").await?.lease, None);
    let extend = ExecutionPatch::extend(Duration::from_secs(1));
    let refused = jobs.update_execution("r", &extend, at(NOON)).await;
    expect_conflict(refused, ("execution", "r"))?;
    ensure!(jobs.claim(&claim("s", NOON + HOUR)).await?.is_some(), "it can be claimed");
    let lease = jobs.job("a").await?.lease;
    let end = ExecutionPatch::end(RunResult::Failed);
    jobs.update_execution("r", &end, at(NOON + HOUR)).await?;
    ensure_eq!(jobs.job("a").await?.lease, lease);
    Ok(())
}

async fn add_ramp(jobs: &dyn JobStore, count: i64) -> Result<()> {
    for n in 0..count {
        let one = ended(&format!("r{n:03}"), "a", NOON + n * 1000, RunResult::Succeeded);
        jobs.add_execution(&one).await?;
    }
    Ok(())
}

/// Strictly before.
async fn removing_old_ones_keeps_the_cutoff_and_what_came_after(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    add_ramp(&**jobs, 10).await?;
    ensure_eq!(jobs.remove_executions_before(at(NOON)).await?, 0);
    ensure_eq!(jobs.remove_executions_before(at(NOON + 4000)).await?, 4);
    let found = all(&**jobs).await?;
    ensure_eq!(ids(&found), ["r009", "r008", "r007", "r006", "r005", "r004"]);
    expect_missing(jobs.execution("r003").await, ("execution", "r003"))?;
    jobs.add_execution(&ended("r003", "a", NOON, RunResult::Failed)).await?;
    ensure_eq!(all(&**jobs).await?.len(), 7, "an old one can be added later");
    Ok(())
}

/// However old they are.
async fn removing_old_ones_keeps_those_under_way(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    add_ramp(&**jobs, 3).await?;
    jobs.add_execution(&running("under way", "a", NOON)).await?;
    jobs.claim(&claim("claimed", NOON + HOUR)).await?;
    ensure_eq!(jobs.remove_executions_before(at(NOON + 99 * HOUR)).await?, 3);
    ensure_eq!(ids(&all(&**jobs).await?), ["claimed", "under way"]);
    let end = ExecutionPatch::end(RunResult::Succeeded);
    jobs.update_execution("claimed", &end, at(NOON + HOUR)).await?;
    ensure_eq!(jobs.remove_executions_before(at(NOON + 99 * HOUR)).await?, 1);
    Ok(())
}

/// A cutoff has whole milliseconds, as every time.
async fn removing_old_ones_floors_its_cutoff(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    jobs.add_execution(&ended("r", "a", NOON, RunResult::Failed)).await?;
    jobs.add_execution(&ended("s", "a", -1, RunResult::Failed)).await?;
    ensure_eq!(jobs.remove_executions_before(at_us(-1)).await?, 0);
    ensure_eq!(jobs.remove_executions_before(at_us(NOON * 1000 + 999)).await?, 1);
    ensure_eq!(jobs.remove_executions_before(at_us(NOON * 1000 + 1000)).await?, 1);
    Ok(())
}

/// Also one outside the calendar.
async fn removing_old_ones_takes_any_cutoff(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    let end = |at| Some(Ended { at, result: RunResult::Failed, error: None });
    let last = at(END_MS - 1);
    let execution = Execution { ended: end(last), ..running("r", "a", END_MS - 1) };
    jobs.add_execution(&execution).await?;
    ensure_eq!(jobs.remove_executions_before(DateTime::UNIX_EPOCH).await?, 0);
    ensure_eq!(jobs.remove_executions_before(chrono::DateTime::<chrono::Utc>::MIN_UTC).await?, 0);
    ensure_eq!(jobs.remove_executions_before(last).await?, 0);
    ensure_eq!(jobs.remove_executions_before(chrono::DateTime::<chrono::Utc>::MAX_UTC).await?, 1);
    Ok(())
}

/// Of several jobs, in steps, and by two at once.
async fn removing_old_ones_counts_exactly(ctx: &Ctx) -> CaseResult {
    let (jobs, other) = (ctx.jobs()?, ctx.open_whole().await?);
    add_hourly(&**jobs, &["a", "b"]).await?;
    add_ramp(&**jobs, 60).await?;
    for n in 0..60 {
        jobs.add_execution(&ended(&format!("b{n}"), "b", NOON + n, RunResult::Failed)).await?;
    }
    ensure_eq!(jobs.remove_executions_before(at(NOON + 10_000)).await?, 70);
    ensure_eq!(jobs.remove_executions_before(at(NOON + 10_000)).await?, 0);
    let cutoff = at(NOON + 60_000);
    let both = futures_util::future::try_join(
        jobs.remove_executions_before(cutoff),
        other.jobs()?.remove_executions_before(cutoff),
    );
    let (one, two) = both.await?;
    ensure_eq!(one + two, 50);
    ensure_eq!(all(&**jobs).await?, []);
    Ok(())
}

/// Jobs keep their last run.
async fn removing_old_ones_leaves_jobs_alone(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    add_ramp(&**jobs, 3).await?;
    let before = jobs.job("a").await?;
    ensure_eq!(jobs.remove_executions_before(at(NOON + HOUR)).await?, 3);
    ensure_eq!(jobs.job("a").await?, before);
    ensure!(before.last_run.is_some(), "it had one");
    Ok(())
}
