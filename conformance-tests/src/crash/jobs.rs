//! What a worker does with a job until it is killed, and the proof that what it left is whole.
//!
//! Batch n of a lane claims the job of the lane as the execution n, a second after the one before, whose
//! lease is over: so each call ends an execution, adds one, and changes the job. The number of the
//! last batch decides every field of all of them, so a store that holds a part of a call, or skips
//! one, is equal to none of the states that may be.

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

/// Every so many batches the worker removes nothing, and compacts.
const CLEANUP_EVERY: u64 = 37;
const COMPACT_EVERY: u64 = 128;

fn job_id(lane: Lane) -> String {
    format!("lane-{}", lane.0)
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
    let job = NewJob::new(job_id(lane), "crash.yaml", "0 0 29 2 *".parse()?);
    match jobs.add_job(&job, at(NOON)).await {
        Err(error) if error.kind() != ErrorKind::Conflict => return Err(error.into()),
        _ => {}
    }
    let mut number = start.max(1);
    loop {
        let claim = Claim::next(execution_id(lane, number), "worker", LEASE, time_of(number));
        let given = jobs.claim(&claim.of_job(job_id(lane))).await?;
        ensure!(given.is_some_and(|run| run.attempt == number), "claim {number} of {lane:?}");
        if !on_ack(number) {
            return Ok(());
        }
        if number.is_multiple_of(CLEANUP_EVERY) {
            ensure_eq!(jobs.remove_executions_before(at(NOON)).await?, 0, "before everything");
        }
        if number.is_multiple_of(COMPACT_EVERY) {
            store.metrics().compact().await?;
        }
        number += 1;
    }
}

/// Proves of each lane that it holds the batches `first..=n` and nothing else, whatever `n` is, and
/// that nothing stored is damaged.
pub(super) async fn verify_whole(
    store: &WholeStore,
    first: u64,
    lanes: &[Lane],
) -> Result<Vec<Verified>, Failure> {
    let mut verified = Vec::new();
    for lane in lanes {
        verified.push(survey(&**store.jobs()?, *lane, first).await?);
    }
    if store.metrics().capabilities().check {
        let problems = store.metrics().check().await?.problems;
        ensure!(problems.is_empty(), "check finds {problems:?}");
    }
    Ok(verified)
}

async fn survey(jobs: &dyn JobStore, lane: Lane, first: u64) -> Result<Verified, Failure> {
    let (job, found) = loop {
        let before = jobs.job(&job_id(lane)).await;
        let found = executions(jobs, lane).await?;
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

/// All executions of a lane, the newest first.
async fn executions(jobs: &dyn JobStore, lane: Lane) -> Result<Vec<Execution>, Failure> {
    let mut query = ExecutionQuery::of_job(job_id(lane)).page(Page::first(1000));
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
