//! Workers of jobs whose connections are killed all the time: by repeating what failed, each run is
//! claimed and ended once.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use libtest_mimic::{Arguments, Failed};
use storage_core::metrics::time::from_ms;
use storage_core::{
    Claim, Error, ErrorKind, Execution, ExecutionPatch, ExecutionQuery, JobStore, NewJob, Page,
    RunResult, StorageBackend,
};
use storage_postgres::{PostgresBackend, PostgresJobs};
use tokio::time::MissedTickBehavior;

#[path = "support/mod.rs"]
mod support;

use support::server::shared_trial;

const JOBS: usize = 150;
const WORKERS: usize = 3;

fn main() {
    let trials = vec![shared_trial("a_killer_every_20_ms_doubles_no_run", || {
        tokio::runtime::Runtime::new()?.block_on(killer());
        Ok::<_, Failed>(())
    })];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// Says what a call gave at last that may fail because its connection was killed.
async fn patiently<T>(mut call: impl AsyncFnMut() -> Result<T, Error>) -> Result<T, Error> {
    loop {
        match call().await {
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Busy) => {}
            done => return done,
        }
    }
}

async fn work(jobs: PostgresJobs, worker: usize) -> Vec<Execution> {
    let (name, lease, now) = (format!("w{worker}"), Duration::from_secs(3600), from_ms(86_400_000));
    let mut done = Vec::new();
    loop {
        // The same id again, until it is known what came of it.
        let claim = Claim::next(format!("{name}-{}", done.len()), &name, lease, now);
        let Some(run) = patiently(async || jobs.claim(&claim).await).await.unwrap() else {
            return done;
        };
        let end = ExecutionPatch::end(RunResult::Succeeded);
        match patiently(async || jobs.update_execution(&run.id, &end, now).await).await {
            Ok(_) => {}
            // The attempt before was applied after all.
            Err(error) => assert_eq!(error.context("status"), Some("succeeded"), "{error:#}"),
        }
        done.push(run);
    }
}

async fn killer() {
    let (url, schema) = (support::url().unwrap(), format!("jobs_{}", std::process::id()));
    support::drop_schema(&url, &schema).await;
    let options = support::options(&url, &schema).application_name(&schema);
    let store = PostgresBackend::open(options).await.unwrap();
    for number in 0..JOBS {
        let job = NewJob::new(format!("j{number:03}"), "p", "0 * * * *".parse().unwrap());
        store.jobs().add_job(&job, from_ms(0)).await.unwrap();
    }
    let over = Arc::new(AtomicBool::new(false));
    let killing = tokio::spawn({
        let (admin, schema, over) = (support::raw(&url).await, schema.clone(), Arc::clone(&over));
        async move {
            let mut every = tokio::time::interval(Duration::from_millis(20));
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut kills = 0;
            while !over.load(Ordering::SeqCst) {
                every.tick().await;
                let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                    WHERE application_name = $1";
                kills += admin.query_one(sql, &[&schema]).await.unwrap().get::<_, i64>(0);
            }
            kills
        }
    });
    let given = join_all((0..WORKERS).map(|worker| work(store.jobs(), worker))).await;
    let mut given: Vec<_> = given.into_iter().flatten().map(|run| run.job_id).collect();
    over.store(true, Ordering::SeqCst);
    let kills = killing.await.unwrap();
    given.sort();
    let expected: Vec<_> = (0..JOBS).map(|number| format!("j{number:03}")).collect();
    assert_eq!(given, expected, "each job once");
    let all = ExecutionQuery::default().page(Page::first(1000));
    let all = patiently(async || store.jobs().executions(&all).await).await.unwrap().items;
    assert_eq!(all.len(), JOBS);
    assert!(all.iter().all(|run| run.status().as_str() == "succeeded" && run.attempt == 1));
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
    assert!(kills > 5, "{kills} connections killed");
    println!("{JOBS} runs, {kills} connections killed");
    store.close().await.unwrap();
    support::drop_schema(&url, &schema).await;
}
