//! Handles, tasks, drops and ends: what holds whatever the jobs.

use std::sync::Arc;

use futures_util::future::{join_all, try_join_all};
use serde_json::json;
use storage_core::{
    Claim, Error, ErrorKind, ExecutionPatch, ExecutionQuery, HealthStatus, JobPatch, JobQuery,
    JobStore, NewPipeline, Outcome, Page, PipelinePatch, Result, RunResult,
};

use super::{HOUR, add_hourly, all_executions, all_jobs, claim, ended, hourly, job_ids, running};
use crate::cases::cancel::{drop_at, moments};
use crate::data::{NOON, at, rec};
use crate::failure::{CaseResult, Failure, expect_kind};
use crate::harness::Ctx;

job_cases! { "job_sharing":
    a_fresh_location_holds_no_job,
    two_handles_see_each_others_changes,
    two_locations_do_not_see_each_other,
    reopening_keeps_everything,
    dropping_a_handle_loses_nothing,
    sixteen_open_an_empty_location_and_add_at_once,
    of_many_who_add_one_id_one_succeeds,
    of_many_who_update_one_version_one_succeeds,
    of_many_who_end_one_execution_one_succeeds,
    readers_see_jobs_and_executions_together,
    parts_of_a_store_are_used_side_by_side,
    compact_changes_no_answer,
    a_store_that_was_used_is_found_in_order,
    a_dropped_change_is_made_whole_or_not_at_all,
    a_dropped_claim_gives_its_job_or_leaves_it,
    dropped_questions_leave_the_handle_usable,
    a_closed_handle_refuses_every_call,
    other_handles_go_on_after_a_close,
    close_finishes_what_is_under_way,
    errors_name_backend_and_call,
    the_name_is_that_of_the_store,
}

/// Nothing is made by opening.
async fn a_fresh_location_holds_no_job(ctx: &Ctx) -> CaseResult {
    for _ in 0..2 {
        let whole = ctx.open_whole().await?;
        ensure_eq!(all_jobs(&**whole.jobs()?).await?, []);
        ensure_eq!(all_executions(&**whole.jobs()?, ExecutionQuery::default()).await?, []);
        ensure_eq!(whole.jobs()?.pipelines(&Page::default()).await?.items, []);
        whole.close().await?;
    }
    Ok(())
}

/// As soon as a call has returned.
async fn two_handles_see_each_others_changes(ctx: &Ctx) -> CaseResult {
    let other = ctx.open_whole().await?;
    let (one, two) = (ctx.jobs()?, other.jobs()?);
    for round in 0..6 {
        let (id, now) = (format!("j{round}"), at(NOON + round));
        let added = one.add_job(&hourly(&id)?, now).await?;
        ensure_eq!(two.job(&id).await?, added);
        let updated = two.update_job(&id, &JobPatch::default(), now).await?;
        ensure_eq!(one.job(&id).await?, updated);
        let run = one.claim(&claim(&format!("r{round}"), NOON + HOUR).of_job(&id)).await?;
        ensure_eq!(two.execution(&format!("r{round}")).await.ok(), run);
        two.update_execution(&format!("r{round}"), &ExecutionPatch::fail("x"), now).await?;
        ensure_eq!(one.job(&id).await?.lease, None);
        let pipeline = NewPipeline::new(&id, json!(round));
        ensure_eq!(two.add_pipeline(&pipeline, now).await?, one.pipeline(&id).await?);
        if round % 2 == 0 {
            one.remove_job(&id).await?;
            two.remove_pipeline(&id).await?;
        }
        ensure_eq!(all_jobs(two).await?, all_jobs(one).await?);
        ensure_eq!(one.pipelines(&Page::default()).await?, two.pipelines(&Page::default()).await?);
    }
    ensure_eq!(job_ids(&all_jobs(one).await?), ["j1", "j3", "j5"]);
    Ok(())
}

/// Another location has other jobs.
async fn two_locations_do_not_see_each_other(ctx: &Ctx) -> CaseResult {
    let name = format!("{}_other", crate::harness::fresh_location());
    let elsewhere = ctx.fixture().open_store(&name).await?;
    add_hourly(&**elsewhere.jobs()?, &["a"]).await?;
    let found = all_jobs(&**ctx.jobs()?).await?;
    elsewhere.close().await?;
    ctx.fixture().destroy(&name).await?;
    ensure_eq!(found, []);
    Ok(())
}

/// Everything of every kind.
async fn reopening_keeps_everything(ctx: &Ctx) -> CaseResult {
    let mut before = None;
    for round in 0..4 {
        let whole = ctx.open_whole().await?;
        let jobs = whole.jobs()?;
        if let Some(before) = before {
            ensure_eq!(everything(&**jobs).await?, before, "round {round}");
        }
        let id = format!("j{round}");
        add_hourly(&**jobs, &[&id]).await?;
        jobs.add_pipeline(&NewPipeline::new(&id, json!({"n": 1.0})), at(NOON)).await?;
        jobs.add_execution(&ended(&id, &id, NOON, RunResult::Failed)).await?;
        jobs.claim(&claim(&format!("r{round}"), NOON + HOUR).of_job(&id)).await?;
        before = Some(everything(&**jobs).await?);
        whole.close().await?;
    }
    ensure_eq!(Some(everything(&**ctx.jobs()?).await?), before);
    Ok(())
}

type Everything =
    (Vec<storage_core::Job>, Vec<storage_core::Execution>, Vec<storage_core::Pipeline>);

async fn everything(jobs: &dyn JobStore) -> Result<Everything> {
    Ok((
        all_jobs(jobs).await?,
        all_executions(jobs, ExecutionQuery::default()).await?,
        jobs.pipelines(&Page::first(1000)).await?.items,
    ))
}

/// Nothing acknowledged is lost with a handle that is not closed.
async fn dropping_a_handle_loses_nothing(ctx: &Ctx) -> CaseResult {
    for round in 1..=5 {
        let whole = ctx.open_whole().await?;
        add_hourly(&**whole.jobs()?, &[&format!("j{round}")]).await?;
        drop(whole);
        ensure_eq!(all_jobs(&**ctx.jobs()?).await?.len(), round);
    }
    Ok(())
}

/// Any number of handles may make and use one location at once.
async fn sixteen_open_an_empty_location_and_add_at_once(ctx: &Ctx) -> CaseResult {
    let name = crate::harness::fresh_location();
    let fixture = Arc::clone(ctx.fixture());
    let open_and_add = |number: i64| {
        let (fixture, name) = (Arc::clone(&fixture), name.clone());
        tokio::spawn(async move {
            let whole = fixture.open_store(&name).await?;
            add_hourly(&**whole.jobs()?, &[&format!("j{number:02}")]).await?;
            whole.close().await
        })
    };
    let opened = join_all((0..16).map(open_and_add)).await;
    let whole = fixture.open_store(&name).await?;
    let found = all_jobs(&**whole.jobs()?).await;
    whole.close().await?;
    fixture.destroy(&name).await?;
    for result in opened {
        result??;
    }
    ensure_eq!(found?.len(), 16);
    Ok(())
}

/// How many of the calls succeeded; the others must be conflicts.
fn winners<T>(results: Vec<Result<T>>) -> std::result::Result<usize, Failure> {
    let mut count = 0;
    for result in results {
        match result {
            Ok(_) => count += 1,
            Err(error) => drop(expect_kind(Err::<T, _>(error), ErrorKind::Conflict, "a loser")?),
        }
    }
    Ok(count)
}

/// The others are told that it is taken.
async fn of_many_who_add_one_id_one_succeeds(ctx: &Ctx) -> CaseResult {
    let other = ctx.open_whole().await?;
    let handles = [ctx.jobs()?, other.jobs()?];
    for round in 0..4 {
        let job = hourly(&format!("j{round}"))?;
        let adds = (0..12).map(|n: usize| {
            let job = job.clone().name(format!("by {n}"));
            async move { handles[n % 2].add_job(&job, at(NOON)).await }
        });
        ensure_eq!(winners(join_all(adds).await)?, 1, "of those who add a job");
        let pipeline = NewPipeline::new(format!("p{round}"), json!(1));
        let adds = (0..12).map(|n: usize| handles[n % 2].add_pipeline(&pipeline, at(NOON)));
        ensure_eq!(winners(join_all(adds).await)?, 1, "of those who add a pipeline");
        let run = running(&format!("r{round}"), "j0", NOON);
        let adds = (0..12).map(|n: usize| handles[n % 2].add_execution(&run));
        ensure_eq!(winners(join_all(adds).await)?, 1, "of those who add an execution");
    }
    Ok(())
}

/// The others are told that somebody was faster.
async fn of_many_who_update_one_version_one_succeeds(ctx: &Ctx) -> CaseResult {
    let other = ctx.open_whole().await?;
    let handles = [ctx.jobs()?, other.jobs()?];
    add_hourly(&**handles[0], &["a"]).await?;
    handles[0].add_pipeline(&NewPipeline::new("a", json!(0)), at(NOON)).await?;
    for version in 1..5 {
        let patch = |n| JobPatch {
            expected_version: Some(version),
            name: Some(format!("by {n}")),
            ..JobPatch::default()
        };
        let updates = (0..12).map(|n: usize| {
            let patch = patch(n);
            async move { handles[n % 2].update_job("a", &patch, at(NOON)).await }
        });
        ensure_eq!(winners(join_all(updates).await)?, 1, "of those who update a job");
        ensure_eq!(handles[1].job("a").await?.version, version + 1);
        let patch = PipelinePatch { expected_version: Some(version), ..PipelinePatch::default() };
        let updates = (0..12).map(|n: usize| handles[n % 2].update_pipeline("a", &patch, at(NOON)));
        ensure_eq!(winners(join_all(updates).await)?, 1, "of those who update a pipeline");
        ensure_eq!(handles[1].pipeline("a").await?.version, version + 1);
    }
    // Who expects nothing loses nothing.
    let nothing = JobPatch::default();
    let updates = (0..12).map(|n: usize| handles[n % 2].update_job("a", &nothing, at(NOON)));
    try_join_all(Vec::from_iter(updates)).await?;
    ensure_eq!(handles[0].job("a").await?.version, 17);
    Ok(())
}

/// The others are told that it has ended.
async fn of_many_who_end_one_execution_one_succeeds(ctx: &Ctx) -> CaseResult {
    let other = ctx.open_whole().await?;
    let handles = [ctx.jobs()?, other.jobs()?];
    add_hourly(&**handles[0], &["a"]).await?;
    for round in 0..4 {
        let id = format!("r{round}");
        handles[0].claim(&claim(&id, NOON + HOUR).of_job("a")).await?;
        let ends = (0..12).map(|n: usize| {
            let (patch, id) = (ExecutionPatch::fail(format!("by {n}")), id.clone());
            async move { handles[n % 2].update_execution(&id, &patch, at(NOON + HOUR)).await }
        });
        ensure_eq!(winners(join_all(ends).await)?, 1);
    }
    Ok(())
}

/// A change is seen whole: of a job and its executions neither without the other.
async fn readers_see_jobs_and_executions_together(ctx: &Ctx) -> CaseResult {
    let (jobs, other) = (Arc::clone(ctx.jobs()?), ctx.open_whole().await?);
    add_hourly(&*jobs, &["a"]).await?;
    let work = async {
        for n in 0..40 {
            let id = format!("r{n:02}");
            jobs.claim(&claim(&id, NOON + n).of_job("a")).await?;
            let end = ExecutionPatch::end(RunResult::Succeeded);
            jobs.update_execution(&id, &end, at(NOON + n)).await?;
        }
        Ok::<_, Failure>(())
    };
    let read = |jobs: Arc<dyn JobStore>| async move {
        loop {
            // The job first: what it speaks of is there by the time that it is looked for.
            let job = jobs.job("a").await?;
            if let Some(lease) = &job.lease {
                jobs.execution(&lease.execution_id).await?;
            }
            let query = ExecutionQuery::of_job("a").page(Page::first(1000));
            let all = jobs.executions(&query).await?.items;
            let running = all.iter().filter(|run| run.ended.is_none()).count();
            ensure!(running <= 1, "{running} under way at once");
            if job.last_run.is_some_and(|last| last.started_at == at(NOON + 39)) {
                return Ok::<_, Failure>(());
            }
        }
    };
    let readers =
        [Arc::clone(&jobs), Arc::clone(other.jobs()?)].map(|jobs| tokio::spawn(read(jobs)));
    work.await?;
    for reader in readers {
        reader.await??;
    }
    Ok(())
}

/// Callers of several parts at once: everything of each is there, and the store is sound.
async fn parts_of_a_store_are_used_side_by_side(ctx: &Ctx) -> CaseResult {
    let caller = |caller: i64| {
        let (store, jobs) = (Arc::clone(ctx.store()), ctx.jobs().cloned());
        async move {
            let jobs = jobs?;
            for n in 0..8 {
                let samples = [rec(NOON + caller * 1000 + n, n as f64)];
                let id = format!("j{caller}-{n}");
                let job = hourly(&id)?;
                let add = async { jobs.add_job(&job, at(NOON)).await.map(drop) };
                futures_util::future::try_join(store.write_batch(&samples), add).await?;
                jobs.claim(&claim(&id, NOON).of_job(&id)).await?;
            }
            Ok::<_, Error>(())
        }
    };
    try_join_all((0..6).map(caller)).await?;
    ensure_eq!(ctx.points().await?.len(), 48);
    ensure_eq!(all_jobs(&**ctx.jobs()?).await?.len(), 48);
    ensure_eq!(ctx.store().stats().await?.total_metrics, 48);
    ensure_eq!(ctx.jobs()?.health(at(NOON)).await.counts.running, 48);
    if ctx.store().capabilities().check {
        ensure_eq!(ctx.store().check().await?.problems, Vec::<String>::new());
    }
    Ok(())
}

/// Upkeep of the location changes no answer.
async fn compact_changes_no_answer(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a", "b"]).await?;
    for n in 0..40 {
        jobs.add_execution(&ended(&format!("r{n}"), "a", NOON + n, RunResult::Failed)).await?;
    }
    jobs.claim(&claim("r", NOON + HOUR)).await?;
    jobs.remove_executions_before(at(NOON + 20)).await?;
    let before = everything(&**jobs).await?;
    ctx.store().compact().await?;
    ctx.store().flush().await?;
    ctx.store().prune_before(at(NOON + 9 * HOUR)).await?;
    ensure_eq!(everything(&**jobs).await?, before);
    Ok(())
}

/// A check of the location finds jobs that were used in order.
async fn a_store_that_was_used_is_found_in_order(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a", "b", "c"]).await?;
    jobs.add_pipeline(&NewPipeline::new("p", json!(1)), at(NOON)).await?;
    for n in 0..20 {
        jobs.add_execution(&ended(&format!("r{n}"), "a", NOON + n, RunResult::Failed)).await?;
    }
    jobs.claim(&claim("r", NOON + HOUR)).await?;
    jobs.remove_job("b").await?;
    jobs.remove_executions_before(at(NOON + 10)).await?;
    if ctx.store().capabilities().check {
        ensure_eq!(ctx.store().check().await?.problems, Vec::<String>::new());
    }
    ensure_eq!(ctx.store().health().await.status, HealthStatus::Healthy);
    Ok(())
}

/// Dropping the future of a call leaves all of its effect or none.
async fn a_dropped_change_is_made_whole_or_not_at_all(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    for (round, moment) in (0_i64..).zip(moments()) {
        let id = format!("j{round:02}");
        add_hourly(&**jobs, &[&id]).await?;
        for n in 0..3 {
            let run = ended(&format!("{id}-{n}"), &id, NOON + n, RunResult::Failed);
            jobs.add_execution(&run).await?;
        }
        drop_at(moment, jobs.remove_job(&id)).await.transpose()?;
        // A later change of the same handle comes after whatever the dropped one does.
        jobs.add_job(&hourly(&format!("later{round}"))?, at(NOON)).await?;
        let is_there = jobs.job(&id).await.is_ok();
        let found = all_executions(jobs, ExecutionQuery::of_job(&id)).await?.len();
        ensure_eq!(found, if is_there { 3 } else { 0 }, "executions of a job, there: {is_there}");
        jobs.add_job(&hourly(&format!("last{round}"))?, at(NOON)).await?;
        ensure_eq!(jobs.job(&id).await.is_ok(), is_there, "it changed later on");
    }
    Ok(())
}

/// The claim can be repeated, and gives the job that it gave or could have given.
async fn a_dropped_claim_gives_its_job_or_leaves_it(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    for (round, moment) in (0_i64..).zip(moments()) {
        let (id, run) = (format!("j{round:02}"), format!("r{round:02}"));
        add_hourly(&**jobs, &[&id]).await?;
        let claim =
            Claim { lease: std::time::Duration::from_secs(86_400), ..claim(&run, NOON + HOUR) };
        drop_at(moment, jobs.claim(&claim)).await.transpose()?;
        let again = jobs.claim(&claim).await?;
        ensure_eq!(again.map(|run| run.job_id), Some(id.clone()), "round {round}");
        let found = all_executions(jobs, ExecutionQuery::of_job(&id)).await?;
        ensure_eq!(found.len(), 1, "executions in round {round}");
    }
    Ok(())
}

/// Questions that nobody waits for leave the handle usable.
async fn dropped_questions_leave_the_handle_usable(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    for n in 0..50 {
        jobs.add_execution(&running(&format!("r{n}"), "a", NOON)).await?;
    }
    for moment in moments() {
        drop_at(moment, jobs.executions(&ExecutionQuery::default())).await.transpose()?;
        drop_at(moment, jobs.job("a")).await.transpose()?;
        drop_at(moment, jobs.health(at(NOON))).await;
    }
    ensure_eq!(all_executions(jobs, ExecutionQuery::default()).await?.len(), 50);
    jobs.add_job(&hourly("b")?, at(NOON)).await?;
    ensure_eq!(all_jobs(jobs).await?.len(), 2);
    Ok(())
}

/// Each call, with the error that it gave.
async fn errors_of_all(jobs: &dyn JobStore) -> Vec<(&'static str, Option<Error>)> {
    let (now, pipeline) = (at(NOON), NewPipeline::new("p", json!(1)));
    let Ok(job) = hourly("z") else { return Vec::new() };
    let end = ExecutionPatch::end(RunResult::Failed);
    vec![
        ("add_job", jobs.add_job(&job, now).await.err()),
        ("job", jobs.job("a").await.err()),
        ("jobs", jobs.jobs(&JobQuery::default()).await.err()),
        ("update_job", jobs.update_job("a", &JobPatch::default(), now).await.err()),
        ("remove_job", jobs.remove_job("a").await.err()),
        ("add_pipeline", jobs.add_pipeline(&pipeline, now).await.err()),
        ("pipeline", jobs.pipeline("a").await.err()),
        ("pipelines", jobs.pipelines(&Page::default()).await.err()),
        ("update_pipeline", jobs.update_pipeline("a", &PipelinePatch::default(), now).await.err()),
        ("remove_pipeline", jobs.remove_pipeline("a").await.err()),
        ("claim", jobs.claim(&claim("z", NOON + HOUR)).await.err()),
        ("add_execution", jobs.add_execution(&running("z", "a", NOON)).await.err()),
        ("execution", jobs.execution("r").await.err()),
        ("executions", jobs.executions(&ExecutionQuery::default()).await.err()),
        ("update_execution", jobs.update_execution("r", &end, now).await.err()),
        ("remove_executions_before", jobs.remove_executions_before(at(NOON + HOUR)).await.err()),
    ]
}

/// After the store was closed, every call says so, and nothing is changed.
async fn a_closed_handle_refuses_every_call(ctx: &Ctx) -> CaseResult {
    let whole = ctx.open_whole().await?;
    let jobs = whole.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    jobs.add_pipeline(&NewPipeline::new("a", json!(1)), at(NOON)).await?;
    jobs.add_execution(&ended("r", "a", NOON, RunResult::Failed)).await?;
    let before = everything(&**jobs).await?;
    whole.close().await?;
    for (call, error) in errors_of_all(&**jobs).await {
        let error = error.ok_or_else(|| Failure::new(format!("{call} succeeded")))?;
        let found = (error.kind(), error.outcome());
        ensure_eq!(found, (ErrorKind::Closed, Outcome::NotApplied), "{call}");
    }
    ensure_eq!(everything(&**ctx.jobs()?).await?, before);
    Ok(())
}

/// Closing one handle leaves the others alone.
async fn other_handles_go_on_after_a_close(ctx: &Ctx) -> CaseResult {
    let whole = ctx.open_whole().await?;
    add_hourly(&**whole.jobs()?, &["a"]).await?;
    whole.close().await?;
    add_hourly(&**ctx.jobs()?, &["b"]).await?;
    ensure_eq!(job_ids(&all_jobs(&**ctx.jobs()?).await?), ["a", "b"]);
    Ok(())
}

/// Close finishes what is under way: what was acknowledged is there, what was refused is not.
async fn close_finishes_what_is_under_way(ctx: &Ctx) -> CaseResult {
    let whole = ctx.open_whole().await?;
    let add = |n: i64| {
        let jobs = whole.jobs().cloned();
        tokio::spawn(async move { jobs?.add_job(&hourly(&format!("j{n:02}"))?, at(NOON)).await })
    };
    let tasks: Vec<_> = (0..30).map(add).collect();
    tokio::task::yield_now().await;
    whole.close().await?;
    let mut acknowledged = Vec::new();
    for task in tasks {
        match task.await? {
            Ok(job) => acknowledged.push(job),
            Err(error) => {
                let found = (error.kind(), error.outcome());
                ensure_eq!(found, (ErrorKind::Closed, Outcome::NotApplied));
            }
        }
    }
    ensure_eq!(all_jobs(&**ctx.jobs()?).await?, acknowledged);
    Ok(())
}

/// Errors name the backend and the call, in one line.
async fn errors_name_backend_and_call(ctx: &Ctx) -> CaseResult {
    let whole = ctx.open_whole().await?;
    let refused = whole.jobs()?.update_execution("r", &ExecutionPatch::default(), at(NOON)).await;
    add_hourly(&**ctx.jobs()?, &["a"]).await?;
    let conflict = whole.jobs()?.add_job(&hourly("a")?, at(NOON)).await;
    whole.close().await?;
    let mut errors = errors_of_all(&**whole.jobs()?).await;
    errors.extend([("update_execution", refused.err()), ("add_job", conflict.err())]);
    for (operation, error) in errors {
        let Some(error) = error else { return Err(Failure::new(format!("{operation} succeeded"))) };
        ensure_eq!(error.operation(), Some(operation));
        ensure_eq!(error.backend(), Some(ctx.store().name()), "{operation}");
        ensure!(!error.to_string().contains('\n'), "{operation}: more than one line");
    }
    Ok(())
}

/// The parts of a store have one name.
async fn the_name_is_that_of_the_store(ctx: &Ctx) -> CaseResult {
    ensure_eq!(ctx.jobs()?.name(), ctx.store().name());
    Ok(())
}
