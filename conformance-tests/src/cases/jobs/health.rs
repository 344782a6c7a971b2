//! Health that means something.

use storage_core::{
    ExecutionPatch, HealthStatus, JobCounts, JobPatch, JobStoreExt, Restored, RunResult,
};

use super::{HOUR, MINUTE, add_hourly, claim, hourly};
use crate::data::{NOON, at};
use crate::failure::CaseResult;
use crate::harness::Ctx;

job_cases! { "job_health":
    jobs_that_are_served_are_healthy,
    a_job_that_nobody_claims_is_overdue,
    a_lease_that_is_over_is_stalled,
    a_closed_store_is_down,
    a_start_finds_every_job_with_what_was_missed,
}

/// Also none.
async fn jobs_that_are_served_are_healthy(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    let health = jobs.health(at(NOON)).await;
    ensure_eq!((health.status, &*health.message), (HealthStatus::Healthy, ""));
    ensure_eq!(health.counts, JobCounts::default());
    add_hourly(&**jobs, &["a", "b"]).await?;
    jobs.add_job(&hourly("c")?.enabled(false), at(NOON)).await?;
    jobs.claim(&claim("r", NOON + HOUR)).await?;
    let health = jobs.health(at(NOON + HOUR)).await;
    ensure_eq!((health.status, &*health.message), (HealthStatus::Healthy, ""));
    ensure_eq!(health.counts, JobCounts { jobs: 3, running: 1, stalled: 0, overdue: 0 });
    Ok(())
}

/// A minute after its run, not before; claimed it is no longer.
async fn a_job_that_nobody_claims_is_overdue(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a", "b"]).await?;
    let health = jobs.health(at(NOON + HOUR + MINUTE - 1)).await;
    ensure_eq!((health.status, health.counts.overdue), (HealthStatus::Healthy, 0));
    let health = jobs.health(at(NOON + HOUR + MINUTE)).await;
    ensure_eq!((health.status, health.counts.overdue), (HealthStatus::Degraded, 2));
    ensure!(!health.message.is_empty() && !health.message.contains('\n'), "{}", health.message);
    jobs.claim(&claim("r", NOON + HOUR + MINUTE)).await?;
    let disable = JobPatch { enabled: Some(false), ..JobPatch::default() };
    jobs.update_job("b", &disable, at(NOON)).await?;
    let health = jobs.health(at(NOON + HOUR + MINUTE)).await;
    ensure_eq!(health.status, HealthStatus::Healthy);
    ensure_eq!(health.counts, JobCounts { jobs: 2, running: 1, stalled: 0, overdue: 0 });
    Ok(())
}

/// At its end, whether the job is enabled or not, until the execution ends.
async fn a_lease_that_is_over_is_stalled(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a", "b"]).await?;
    for id in ["a", "b"] {
        jobs.claim(&claim(id, NOON).of_job(id)).await?;
    }
    let disable = JobPatch { enabled: Some(false), ..JobPatch::default() };
    jobs.update_job("b", &disable, at(NOON)).await?;
    let health = jobs.health(at(NOON + MINUTE - 1)).await;
    ensure_eq!((health.status, health.counts.running), (HealthStatus::Healthy, 2));
    let health = jobs.health(at(NOON + MINUTE)).await;
    ensure_eq!(health.status, HealthStatus::Degraded);
    ensure_eq!(health.counts, JobCounts { jobs: 2, running: 0, stalled: 2, overdue: 0 });
    for id in ["a", "b"] {
        let end = ExecutionPatch::end(RunResult::Succeeded);
        jobs.update_execution(id, &end, at(NOON + MINUTE)).await?;
    }
    let health = jobs.health(at(NOON + MINUTE)).await;
    ensure_eq!((health.status, health.counts.stalled), (HealthStatus::Healthy, 0));
    Ok(())
}

/// It says so instead of failing.
async fn a_closed_store_is_down(ctx: &Ctx) -> CaseResult {
    let whole = ctx.open_whole().await?;
    add_hourly(&**whole.jobs()?, &["a"]).await?;
    whole.close().await?;
    let health = whole.jobs()?.health(at(NOON)).await;
    ensure_eq!((health.status, health.counts), (HealthStatus::Down, JobCounts::default()));
    ensure!(!health.message.is_empty(), "it does not say why");
    Ok(())
}

/// After a stop everything is there, and what passed meanwhile can be seen.
async fn a_start_finds_every_job_with_what_was_missed(ctx: &Ctx) -> CaseResult {
    let before = ctx.open_whole().await?;
    add_hourly(&**before.jobs()?, &["a", "b"]).await?;
    before.jobs()?.add_job(&hourly("c")?.enabled(false), at(NOON)).await?;
    before.jobs()?.claim(&claim("r", NOON + HOUR)).await?;
    drop(before);
    let after = ctx.open_whole().await?;
    let restored = after.jobs()?.restore(at(NOON + 4 * HOUR)).await?;
    let seen = |one: &Restored| (one.job.id.clone(), one.missed_runs, one.stalled);
    let expected = [("a", 3, true), ("b", 4, false), ("c", 0, false)];
    ensure_eq!(
        restored.iter().map(seen).collect::<Vec<_>>(),
        expected.map(|(id, missed, stalled)| (id.to_owned(), missed, stalled))
    );
    Ok(())
}
