//! Jobs: added, found, changed, removed.

use storage_core::metrics::time::{END_MS, MIN_MS};
use storage_core::{
    ExecutionPatch, ExecutionQuery, JobPatch, JobQuery, JobStore, NewJob, RunResult, Schedule,
};

use super::{
    HOUR, add_hourly, all_executions, all_jobs, bad_names, claim, ended, expect_conflict,
    expect_missing, hourly, ids, job_ids, running,
};
use crate::data::{NOON, ODD_NAMES, at, at_us};
use crate::failure::{CaseResult, expect_refused};
use crate::harness::Ctx;

job_cases! { "jobs":
    a_job_comes_back_as_it_was_added,
    the_next_run_is_the_first_after_the_add,
    a_job_that_is_not_enabled_has_no_next_run,
    times_are_floored,
    first_and_last_times_of_the_calendar,
    odd_ids_are_ids_like_any_other,
    the_longest_names_are_accepted,
    schedules_come_back_as_they_were_written,
    bad_names_are_refused,
    bad_times_are_refused,
    an_id_that_is_taken_is_a_conflict,
    an_unknown_job_is_not_found,
    an_update_changes_what_it_says_and_nothing_else,
    every_update_counts,
    an_update_that_expects_another_version_changes_nothing,
    another_schedule_plans_anew,
    the_same_schedule_plans_nothing_anew,
    disabled_a_job_has_no_next_run,
    enabled_again_a_job_is_planned_from_then_on,
    a_next_run_may_be_set,
    a_job_that_is_not_enabled_takes_no_next_run,
    an_update_leaves_the_lease,
    bad_patches_change_nothing,
    runs_leave_the_version_alone,
    removing_a_job_removes_its_executions_and_counts_them,
    a_removed_id_can_be_added_again,
}

/// What was added is found, with what the store adds.
async fn a_job_comes_back_as_it_was_added(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    let nightly = NewJob::new("daily-sync", "sync.yaml", Schedule::parse("0 2 * * *")?);
    let added = jobs.add_job(&nightly.name("Daily Data Sync"), at(NOON + 7)).await?;
    ensure_eq!(
        (&*added.id, &*added.name, &*added.pipeline, added.schedule.as_str(), added.enabled),
        ("daily-sync", "Daily Data Sync", "sync.yaml", "0 2 * * *", true)
    );
    ensure_eq!(added.next_run, Some(at(NOON + 14 * HOUR)));
    ensure_eq!((added.last_run, &added.lease, added.version), (None, &None, 1));
    ensure_eq!((added.created_at, added.updated_at), (at(NOON + 7), at(NOON + 7)));
    ensure_eq!(jobs.job("daily-sync").await?, added);
    ensure_eq!(all_jobs(jobs).await?, [added]);
    Ok(())
}

/// After, not at: a job that is added at the time of a run waits for the next one.
async fn the_next_run_is_the_first_after_the_add(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    for (id, ms, next) in
        [("at", NOON, NOON + HOUR), ("before", NOON - 1, NOON), ("after", NOON + 1, NOON + HOUR)]
    {
        let added = jobs.add_job(&hourly(id)?, at(ms)).await?;
        ensure_eq!(added.next_run, Some(at(next)), "{id}");
        ensure_eq!(jobs.job(id).await?.next_run, Some(at(next)), "{id}, found");
    }
    Ok(())
}

/// Nothing is planned of a job that is not enabled.
async fn a_job_that_is_not_enabled_has_no_next_run(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    jobs.add_job(&hourly("a")?.enabled(false), at(NOON)).await?;
    let found = jobs.job("a").await?;
    ensure_eq!((found.enabled, found.next_run), (false, None));
    Ok(())
}

/// Finer digits than milliseconds are floored, also before 1970.
async fn times_are_floored(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    for (id, us, ms) in [("a", NOON * 1000 + 1999, NOON + 1), ("b", -1, -1), ("c", -1001, -2)] {
        jobs.add_job(&hourly(id)?, at_us(us)).await?;
        ensure_eq!(jobs.job(id).await?.created_at, at(ms), "{us} us");
        jobs.update_job(id, &JobPatch::default(), at_us(us + 1_000_000)).await?;
        ensure_eq!(jobs.job(id).await?.updated_at, at(ms + 1000), "{us} us, updated");
    }
    let planned = JobPatch { next_run: Some(at_us(-1)), ..JobPatch::default() };
    jobs.update_job("a", &planned, at(NOON)).await?;
    ensure_eq!(jobs.job("a").await?.next_run, Some(at(-1)));
    Ok(())
}

/// Years 0001 to 9999; at the end of the calendar there is no next run.
async fn first_and_last_times_of_the_calendar(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    jobs.add_job(&hourly("first")?, at(MIN_MS)).await?;
    jobs.add_job(&hourly("last")?, at(END_MS - 1)).await?;
    let (first, last) = (jobs.job("first").await?, jobs.job("last").await?);
    ensure_eq!((first.created_at, first.next_run), (at(MIN_MS), Some(at(MIN_MS + HOUR))));
    ensure_eq!((last.created_at, last.next_run), (at(END_MS - 1), None));
    Ok(())
}

/// Ids are compared byte by byte; no character is special.
async fn odd_ids_are_ids_like_any_other(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    for name in ODD_NAMES {
        let job = NewJob::new(*name, *name, Schedule::parse("0 * * * *")?);
        jobs.add_job(&job, at(NOON)).await?;
    }
    let mut sorted = ODD_NAMES.to_vec();
    sorted.sort_unstable();
    ensure_eq!(job_ids(&all_jobs(jobs).await?), sorted);
    for name in ODD_NAMES {
        let found = jobs.job(name).await?;
        ensure_eq!((&*found.id, &*found.name, &*found.pipeline), (*name, *name, *name));
        let query = JobQuery { pipeline: Some((*name).to_owned()), ..JobQuery::default() };
        ensure_eq!(job_ids(&jobs.jobs(&query).await?.items), [*name]);
    }
    jobs.remove_job("i").await?;
    ensure_eq!(all_jobs(jobs).await?.len(), ODD_NAMES.len() - 1, "one alone is removed");
    Ok(())
}

/// Names of 512 bytes.
async fn the_longest_names_are_accepted(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    let name = "\u{e9}".repeat(256);
    let job = NewJob::new(&name, &name, Schedule::parse("0 * * * *")?);
    jobs.add_job(&job, at(NOON)).await?;
    jobs.add_execution(&running(&name, &name, NOON)).await?;
    ensure_eq!(jobs.job(&name).await?.pipeline, name);
    ensure_eq!(jobs.execution(&name).await?.job_id, name);
    Ok(())
}

/// The text of a schedule stays as it is, whatever it means.
async fn schedules_come_back_as_they_were_written(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    for text in ["*/5 * * * *", "  0   2 * * * ", "@daily", "30 0 2 * jan-mar MON,Fri", "0 0 L * *"]
    {
        let job = NewJob::new(text, "p", Schedule::parse(text)?);
        jobs.add_job(&job, at(NOON)).await?;
        ensure_eq!(jobs.job(text).await?.schedule.as_str(), text);
    }
    Ok(())
}

/// Ids, names and pipelines are 1 to 512 bytes long and hold no NUL; nothing is stored otherwise.
async fn bad_names_are_refused(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    for bad in bad_names() {
        let good = hourly("a")?;
        for (field, job) in [
            ("id", NewJob { id: bad.clone(), ..good.clone() }),
            ("name", NewJob { name: bad.clone(), ..good.clone() }),
            ("pipeline", NewJob { pipeline: bad.clone(), ..good.clone() }),
        ] {
            let refused = jobs.add_job(&job, at(NOON)).await;
            expect_refused(refused, Some(field), format!("{field} {bad:.20}"))?;
        }
    }
    ensure_eq!(all_jobs(jobs).await?, []);
    Ok(())
}

/// Times lie in the years 0001 to 9999.
async fn bad_times_are_refused(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    let before = jobs.job("a").await?;
    for time in [at_us(MIN_MS * 1000 - 1), at(END_MS)] {
        let refused = jobs.add_job(&hourly("b")?, time).await;
        expect_refused(refused, Some("at"), "an add")?;
        let refused = jobs.update_job("a", &JobPatch::default(), time).await;
        expect_refused(refused, Some("at"), "an update")?;
        let patch = JobPatch { next_run: Some(time), ..JobPatch::default() };
        let refused = jobs.update_job("a", &patch, at(NOON)).await;
        expect_refused(refused, Some("next_run"), "a next run")?;
        let refused = jobs.jobs(&JobQuery::due(time)).await;
        expect_refused(refused, Some("due_at"), "a query")?;
    }
    ensure_eq!(all_jobs(jobs).await?, [before]);
    Ok(())
}

/// A second add of an id is refused, and the first stays.
async fn an_id_that_is_taken_is_a_conflict(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    let first = jobs.add_job(&hourly("a")?, at(NOON)).await?;
    let second = NewJob::new("a", "other.yaml", Schedule::parse("@daily")?);
    expect_conflict(jobs.add_job(&second, at(NOON + 1)).await, ("job", "a"))?;
    ensure_eq!(all_jobs(jobs).await?, [first]);
    Ok(())
}

/// What is about a job that is not there says so.
async fn an_unknown_job_is_not_found(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    for id in ["A", "a ", "nobody"] {
        expect_missing(jobs.job(id).await, ("job", id))?;
        expect_missing(jobs.update_job(id, &JobPatch::default(), at(NOON)).await, ("job", id))?;
        expect_missing(jobs.remove_job(id).await, ("job", id))?;
        expect_missing(jobs.claim(&claim("r", NOON).of_job(id)).await, ("job", id))?;
    }
    // No job can have such ids: then there is none.
    for id in bad_names() {
        expect_missing(jobs.job(&id).await, ("job", &id))?;
        expect_missing(jobs.remove_job(&id).await, ("job", &id))?;
    }
    Ok(())
}

/// A patch changes what it says.
async fn an_update_changes_what_it_says_and_nothing_else(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a", "b"]).await?;
    let mut expected = jobs.job("a").await?;
    let patches = [
        JobPatch { name: Some("A".to_owned()), ..JobPatch::default() },
        JobPatch { pipeline: Some("other.yaml".to_owned()), ..JobPatch::default() },
        JobPatch { schedule: Some(Schedule::parse("@daily")?), ..JobPatch::default() },
        JobPatch { enabled: Some(false), ..JobPatch::default() },
    ];
    for (patch, later) in patches.iter().zip(1..) {
        let updated = jobs.update_job("a", patch, at(NOON + later)).await?;
        match later {
            1 => expected.name = "A".to_owned(),
            2 => expected.pipeline = "other.yaml".to_owned(),
            3 => {
                expected.schedule = Schedule::parse("@daily")?;
                expected.next_run = Some(at(NOON + 12 * HOUR));
            }
            _ => (expected.enabled, expected.next_run) = (false, None),
        }
        (expected.version, expected.updated_at) = (1 + later.unsigned_abs(), at(NOON + later));
        ensure_eq!(updated, expected);
        ensure_eq!(jobs.job("a").await?, expected, "found");
    }
    let other = jobs.job("b").await?;
    ensure_eq!((other.version, other.updated_at), (1, at(NOON)), "the other job");
    Ok(())
}

/// Also one that changes nothing.
async fn every_update_counts(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    for version in 2..6 {
        let updated = jobs.update_job("a", &JobPatch::default(), at(NOON + version)).await?;
        ensure_eq!(updated.version, version.unsigned_abs());
        ensure_eq!(jobs.job("a").await?, updated);
    }
    Ok(())
}

/// Optimistic: who has not seen the last version changes nothing.
async fn an_update_that_expects_another_version_changes_nothing(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    let expecting = |version| JobPatch {
        expected_version: Some(version),
        name: Some(format!("of {version}")),
        ..JobPatch::default()
    };
    ensure_eq!(jobs.update_job("a", &expecting(1), at(NOON)).await?.version, 2);
    for version in [0, 1, 3, u64::MAX] {
        let refused = jobs.update_job("a", &expecting(version), at(NOON)).await;
        let error = expect_conflict(refused, ("version", "2"))?;
        ensure_eq!(error.context("expected_version"), Some(&*version.to_string()));
    }
    let found = jobs.job("a").await?;
    ensure_eq!((&*found.name, found.version), ("of 1", 2));
    Ok(())
}

/// From the time of the update on.
async fn another_schedule_plans_anew(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    let patch = JobPatch { schedule: Some(Schedule::parse("30 * * * *")?), ..JobPatch::default() };
    let updated = jobs.update_job("a", &patch, at(NOON + 5 * HOUR)).await?;
    ensure_eq!(updated.next_run, Some(at(NOON + 5 * HOUR + HOUR / 2)));
    Ok(())
}

/// What is due stays due.
async fn the_same_schedule_plans_nothing_anew(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    let patch = JobPatch {
        schedule: Some(Schedule::parse("0 * * * *")?),
        enabled: Some(true),
        ..JobPatch::default()
    };
    let updated = jobs.update_job("a", &patch, at(NOON + 5 * HOUR)).await?;
    ensure_eq!(updated.next_run, Some(at(NOON + HOUR)));
    Ok(())
}

/// A job that is disabled is planned no more.
async fn disabled_a_job_has_no_next_run(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    let patch = JobPatch { enabled: Some(false), ..JobPatch::default() };
    let updated = jobs.update_job("a", &patch, at(NOON)).await?;
    ensure_eq!((updated.enabled, updated.next_run), (false, None));
    ensure_eq!(jobs.claim(&claim("r", NOON + 9 * HOUR)).await?, None);
    Ok(())
}

/// What was missed while it was not enabled does not count.
async fn enabled_again_a_job_is_planned_from_then_on(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    jobs.add_job(&hourly("a")?.enabled(false), at(NOON)).await?;
    let patch = JobPatch { enabled: Some(true), ..JobPatch::default() };
    let updated = jobs.update_job("a", &patch, at(NOON + 5 * HOUR)).await?;
    ensure_eq!((updated.enabled, updated.next_run), (true, Some(at(NOON + 6 * HOUR))));
    ensure_eq!(jobs.claim(&claim("r", NOON + 6 * HOUR - 1)).await?, None);
    Ok(())
}

/// Whatever the schedule says; after it the schedule goes on.
async fn a_next_run_may_be_set(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    let next = |ms| JobPatch {
        next_run: Some(at(ms)),
        schedule: Schedule::parse("0 * * * *").ok(),
        ..JobPatch::default()
    };
    jobs.update_job("a", &next(NOON - 5), at(NOON)).await?;
    let run = jobs.claim(&claim("r1", NOON)).await?;
    ensure_eq!(run.and_then(|run| run.scheduled_for), Some(at(NOON - 5)));
    ensure_eq!(jobs.job("a").await?.next_run, Some(at(NOON + HOUR)));
    jobs.update_execution("r1", &ExecutionPatch::end(RunResult::Succeeded), at(NOON)).await?;
    jobs.update_job("a", &next(NOON + 7 * HOUR + 1), at(NOON)).await?;
    ensure_eq!(
        jobs.claim(&claim("r2", NOON + 7 * HOUR)).await?,
        None,
        "what was missed is skipped"
    );
    ensure!(jobs.claim(&claim("r2", NOON + 7 * HOUR + 1)).await?.is_some(), "then it is due");
    Ok(())
}

/// Neither one that is, nor one that becomes so by the same patch.
async fn a_job_that_is_not_enabled_takes_no_next_run(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    jobs.add_job(&hourly("b")?.enabled(false), at(NOON)).await?;
    let before = all_jobs(jobs).await?;
    let patch = JobPatch { next_run: Some(at(NOON)), ..JobPatch::default() };
    let refused = jobs.update_job("b", &patch, at(NOON)).await;
    expect_refused(refused, Some("next_run"), "of a job that is not enabled")?;
    let disable = JobPatch { enabled: Some(false), ..patch.clone() };
    let refused = jobs.update_job("a", &disable, at(NOON)).await;
    expect_refused(refused, Some("next_run"), "of a job that is disabled")?;
    ensure_eq!(all_jobs(jobs).await?, before);
    let enable = JobPatch { enabled: Some(true), ..patch };
    ensure_eq!(jobs.update_job("b", &enable, at(NOON)).await?.next_run, Some(at(NOON)));
    Ok(())
}

/// Who runs it goes on running it.
async fn an_update_leaves_the_lease(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    jobs.claim(&claim("r", NOON + HOUR)).await?;
    let before = jobs.job("a").await?.lease;
    let patch = JobPatch { enabled: Some(false), ..JobPatch::default() };
    let updated = jobs.update_job("a", &patch, at(NOON + HOUR)).await?;
    ensure!(before.is_some() && updated.lease == before, "{:?}", updated.lease);
    jobs.update_execution("r", &ExecutionPatch::end(RunResult::Failed), at(NOON + HOUR)).await?;
    ensure_eq!(jobs.job("a").await?.lease, None);
    Ok(())
}

/// One bad field keeps the whole patch out.
async fn bad_patches_change_nothing(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    let before = jobs.job("a").await?;
    for bad in bad_names() {
        let good = JobPatch {
            enabled: Some(false),
            schedule: Some(Schedule::parse("@daily")?),
            ..JobPatch::default()
        };
        let name = JobPatch { name: Some(bad.clone()), ..good.clone() };
        let refused = jobs.update_job("a", &name, at(NOON)).await;
        expect_refused(refused, Some("name"), format!("{bad:.20}"))?;
        let pipeline = JobPatch { pipeline: Some(bad.clone()), ..good };
        let refused = jobs.update_job("a", &pipeline, at(NOON)).await;
        expect_refused(refused, Some("pipeline"), format!("{bad:.20}"))?;
    }
    ensure_eq!(jobs.job("a").await?, before);
    Ok(())
}

/// A version is that of what people changed.
async fn runs_leave_the_version_alone(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    jobs.claim(&claim("r", NOON + HOUR)).await?;
    jobs.update_execution("r", &ExecutionPatch::end(RunResult::Failed), at(NOON + HOUR)).await?;
    jobs.add_execution(&ended("s", "a", NOON, RunResult::Failed)).await?;
    let found = jobs.job("a").await?;
    ensure_eq!((found.version, found.updated_at), (1, at(NOON)));
    let patch = JobPatch { expected_version: Some(1), ..JobPatch::default() };
    ensure_eq!(jobs.update_job("a", &patch, at(NOON)).await?.version, 2);
    Ok(())
}

/// Those of the job and no others, one under way included.
async fn removing_a_job_removes_its_executions_and_counts_them(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a", "b", "a2"]).await?;
    for n in 0..20 {
        jobs.add_execution(&ended(&format!("a{n}"), "a", NOON + n, RunResult::Succeeded)).await?;
        jobs.add_execution(&ended(&format!("b{n}"), "b", NOON + n, RunResult::Failed)).await?;
    }
    jobs.claim(&claim("under way", NOON + HOUR).of_job("a")).await?;
    ensure_eq!(jobs.remove_job("a").await?, 21);
    expect_missing(jobs.job("a").await, ("job", "a"))?;
    expect_missing(jobs.execution("a7").await, ("execution", "a7"))?;
    let end = ExecutionPatch::end(RunResult::Succeeded);
    let late = jobs.update_execution("under way", &end, at(NOON + HOUR)).await;
    expect_missing(late, ("execution", "under way"))?;
    ensure_eq!(all_executions(jobs, ExecutionQuery::of_job("a")).await?, []);
    ensure_eq!(
        all_executions(jobs, ExecutionQuery::default()).await?.len(),
        20,
        "of the other job"
    );
    ensure_eq!(jobs.remove_job("a2").await?, 0);
    ensure_eq!(job_ids(&all_jobs(jobs).await?), ["b"]);
    Ok(())
}

/// As if it had never been there.
async fn a_removed_id_can_be_added_again(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    for round in 0..3 {
        let added = jobs.add_job(&hourly("a")?, at(NOON + round)).await?;
        ensure_eq!((added.version, added.last_run, &added.lease), (1, None, &None));
        ensure_eq!(all_executions(jobs, ExecutionQuery::of_job("a")).await?, []);
        jobs.update_job("a", &JobPatch::default(), at(NOON)).await?;
        jobs.add_execution(&ended("r", "a", NOON, RunResult::Succeeded)).await?;
        jobs.claim(&claim("s", NOON + HOUR)).await?;
        let found = all_executions(jobs, ExecutionQuery::of_job("a")).await?;
        ensure_eq!(ids(&found), ["s", "r"]);
        ensure_eq!(jobs.remove_job("a").await?, 2);
    }
    Ok(())
}
