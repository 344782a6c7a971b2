//! What a worker does with a job until it is killed, and the proof that what it left is whole.
//!
//! Batch n of a lane claims the job of the lane as the execution n, a second after the one before, whose
//! lease is over: so each call ends an execution, adds one, and changes the job. The number of the
//! last batch decides every field of all of them, so a store that holds a part of a call, or skips
//! one, is equal to none of the states that may be. A second job of the lane has executions of a long
//! time ago, for removals: one that is killed may leave some executions, but none without their job.

use std::time::Duration;

use storage_core::{
    Claim, Ended, ErrorKind, Execution, ExecutionQuery, JobStore, LastRun, Lease, NewJob, Page,
    Result, RunResult, Store as WholeStore,
};

use super::workload::{Lane, Verified, time_of};
use crate::data::{NOON, at};
use crate::failure::Failure;

/// Executions of one batch.
pub(super) const EXECUTIONS: u64 = 1;

/// How long each claim lasts: less than the time to the next.
const LEASE: Duration = Duration::from_millis(900);

/// Every so many batches the worker removes what is old, the job of that, and compacts.
const CLEANUP_EVERY: u64 = 37;
const REMOVE_EVERY: u64 = 23;
const COMPACT_EVERY: u64 = 128;

fn job_id(lane: Lane) -> String {
    format!("lane-{}", lane.0)
}

/// The job whose executions are removed.
fn old_job_id(lane: Lane) -> String {
    format!("old-{}", lane.0)
}

fn old_execution(lane: Lane, number: u64) -> Execution {
    let id = format!("{}/{number:08}", old_job_id(lane));
    let start = at(NOON - 1 - (number % 100_000) as i64);
    let ended = Ended { at: at(NOON), result: RunResult::Succeeded, error: None };
    let ended = Some(ended);
    Execution { ended, ..Execution::new(id, old_job_id(lane), "crash.yaml", start) }
}

/// Ids of one job in the order of their numbers.
fn execution_id(lane: Lane, number: u64) -> String {
    format!("{}/{number:08}", job_id(lane))
}

pub(super) async fn write_forever(
    store: &WholeStore,
    lane: Lane,
    start: u64,
    mut on_ack: impl FnMut(u64) -> bool,
) -> Result<(), Failure> {
    let jobs = store.jobs()?;
    add_job(&**jobs, job_id(lane)).await?;
    add_job(&**jobs, old_job_id(lane)).await?;
    let mut number = start.max(1);
    loop {
        let claim = Claim::next(execution_id(lane, number), "worker", LEASE, time_of(number));
        let given = jobs.claim(&claim.of_job(job_id(lane))).await?;
        ensure!(given.is_some_and(|run| run.attempt == number), "claim {number} of {lane:?}");
        if !on_ack(number) {
            return Ok(());
        }
        jobs.add_execution(&old_execution(lane, number)).await?;
        if number.is_multiple_of(REMOVE_EVERY) {
            jobs.remove_job(&old_job_id(lane)).await?;
            add_job(&**jobs, old_job_id(lane)).await?;
        }
        if number.is_multiple_of(CLEANUP_EVERY) {
            jobs.remove_executions_before(at(NOON)).await?;
            let left = executions(&**jobs, &old_job_id(lane)).await?;
            ensure_eq!(left.len(), 0, "executions left by a removal");
        }
        if number.is_multiple_of(COMPACT_EVERY) {
            store.metrics().compact().await?;
        }
        number += 1;
    }
}

/// Adds a job, unless it is there.
async fn add_job(jobs: &dyn JobStore, id: String) -> Result<()> {
    let job = NewJob::new(id, "crash.yaml", "0 0 29 2 *".parse()?);
    match jobs.add_job(&job, at(NOON)).await {
        Err(error) if error.kind() != ErrorKind::Conflict => Err(error),
        _ => Ok(()),
    }
}

/// Proves of each lane that it holds the batches `first..=n` and nothing else, whatever `n` is, and
/// that nothing stored is damaged.
pub(super) async fn verify_whole(
    store: &WholeStore,
    first: u64,
    lanes: &[Lane],
) -> Result<Vec<Verified>, Failure> {
    let jobs = &**store.jobs()?;
    for lane in lanes {
        survey_old(jobs, *lane).await?;
    }
    // What a removal that was killed has left.
    jobs.remove_executions_before(at(NOON)).await?;
    let mut verified = Vec::new();
    for lane in lanes {
        ensure_eq!(executions(jobs, &old_job_id(*lane)).await?.len(), 0, "old executions");
        verified.push(survey(jobs, *lane, first).await?);
    }
    if store.metrics().capabilities().check {
        let problems = store.metrics().check().await?.problems;
        ensure!(problems.is_empty(), "check finds {problems:?}");
    }
    Ok(verified)
}

/// Proves that a job whose removal was killed has all to itself or nothing left.
async fn survey_old(jobs: &dyn JobStore, lane: Lane) -> Result<(), Failure> {
    let id = old_job_id(lane);
    match jobs.job(&id).await {
        Ok(job) => ensure_eq!(job.id, id, "the job of old executions"),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            ensure_eq!(executions(jobs, &id).await?.len(), 0, "executions without their job");
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

async fn survey(jobs: &dyn JobStore, lane: Lane, first: u64) -> Result<Verified, Failure> {
    let (job, found) = loop {
        let before = jobs.job(&job_id(lane)).await;
        let found = executions(jobs, &job_id(lane)).await?;
        match (before, jobs.job(&job_id(lane)).await) {
            (Ok(before), Ok(after)) if before == after => break (Some(after), found),
            (Err(error), Err(_)) if error.kind() == ErrorKind::NotFound => break (None, found),
            // What was under way on a server when its client was killed may end meanwhile.
            (Ok(_), Ok(_)) | (Err(_), Ok(_)) => {}
            (_, Err(error)) => return Err(error.into()),
        }
    };
    let last = found.first().map_or(0, |run| run.attempt);
    let expected: Vec<_> =
        (first..=last).rev().map(|number| expected(lane, number, last)).collect();
    ensure_eq!(found, expected, "executions of {lane:?}, batches {first}..={last}");
    let lease = (last > 0).then(|| Lease {
        execution_id: execution_id(lane, last),
        worker: "worker".to_owned(),
        until: time_of(last) + LEASE,
    });
    let last_run =
        (last > 1).then(|| LastRun { started_at: time_of(last - 1), result: RunResult::Lost });
    let found = job.map(|job| (job.lease, job.last_run, job.version));
    ensure_eq!(found.unwrap_or((None, None, 1)), (lease, last_run, 1), "the job of {lane:?}");
    Ok(Verified { last, samples: (last + 1).saturating_sub(first) })
}

/// All executions of a job, the newest first.
async fn executions(jobs: &dyn JobStore, job_id: &str) -> Result<Vec<Execution>, Failure> {
    let mut query = ExecutionQuery::of_job(job_id).page(Page::first(1000));
    let mut found = Vec::new();
    loop {
        let listed = jobs.executions(&query).await?;
        found.extend(listed.items);
        query.page.after = listed.next;
        if query.page.after.is_none() {
            return Ok(found);
        }
    }
}

fn expected(lane: Lane, number: u64, last: u64) -> Execution {
    let ended = (number < last).then(|| Ended {
        at: time_of(number + 1),
        result: RunResult::Lost,
        error: Some("the lease expired".to_owned()),
    });
    let id = execution_id(lane, number);
    Execution {
        ended,
        attempt: number,
        worker: Some("worker".to_owned()),
        ..Execution::new(id, job_id(lane), "crash.yaml", time_of(number))
    }
}

pub(super) async fn clean_up_to(store: &WholeStore, first: u64) -> Result<u64> {
    store.jobs()?.remove_executions_before(time_of(first)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage_core::InMemory;

    const LANE: Lane = Lane(0);

    async fn written(last: u64) -> WholeStore {
        let store = WholeStore::from(InMemory::new());
        write_forever(&store, LANE, 1, |number| number < last).await.unwrap();
        store
    }

    #[tokio::test]
    async fn whole_calls_are_accepted_and_nothing_else() {
        let store = written(50).await;
        let found = verify_whole(&store, 1, &[LANE]).await.unwrap();
        assert_eq!(found, [Verified { last: 50, samples: 50 }]);
        assert_eq!(clean_up_to(&store, 11).await.unwrap(), 10);
        assert!(verify_whole(&store, 11, &[LANE]).await.is_ok());
        assert!(verify_whole(&store, 1, &[LANE]).await.is_err(), "some are missing");
        let jobs = store.jobs().unwrap();
        jobs.add_execution(&expected(LANE, 51, 51)).await.unwrap();
        assert!(verify_whole(&store, 11, &[LANE]).await.is_err(), "an execution without its job");
        let store = written(20).await;
        let gap = Claim::next(execution_id(LANE, 22), "worker", LEASE, time_of(22));
        store.jobs().unwrap().claim(&gap.of_job(job_id(LANE))).await.unwrap();
        assert!(verify_whole(&store, 1, &[LANE]).await.is_err(), "a batch is missing");
        let empty = WholeStore::from(InMemory::new());
        assert_eq!(verify_whole(&empty, 1, &[LANE]).await.unwrap()[0].samples, 0);
    }
}
