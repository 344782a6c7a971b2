//! What only PostgreSQL has of jobs: connections that are killed all the time, by which no run is
//! claimed or ended twice, commits and removals that take long, and what is written how often.
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
use storage_postgres::{PostgresBackend, PostgresJobs, PostgresOptions};
use tokio::time::MissedTickBehavior;

#[path = "support/mod.rs"]
mod support;

use support::server::shared_trial;
use support::{block_on, eventually};

const JOBS: usize = 150;
const WORKERS: usize = 3;

/// How long something that is due in a moment may take.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() {
    let trials = vec![
        shared_trial("a_killer_every_20_ms_doubles_no_run", || run(killer())),
        shared_trial("a_claim_repeated_while_it_commits_gives_the_same", || run(slow_commit())),
        shared_trial("a_long_removal_holds_up_no_lease", || run(slow_removal())),
        shared_trial("a_sign_of_life_leaves_the_execution_alone", || run(sign_of_life())),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn run(test: impl Future<Output = ()>) -> Result<(), Failed> {
    block_on(test);
    Ok(())
}

/// A schema that nothing has used, whose stores name their connections like it.
async fn fresh_schema(what: &str) -> (String, PostgresOptions) {
    let url = support::url().unwrap();
    let schema = format!("jobs_{what}_{}", std::process::id());
    support::drop_schema(&url, &schema).await;
    let options = support::options(&url, &schema).application_name(&schema);
    (schema, options)
}

fn hourly(id: &str) -> NewJob {
    NewJob::new(id, "p", "0 * * * *".parse().unwrap())
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
    let url = support::url().unwrap();
    let (schema, options) = fresh_schema("killed").await;
    let store = PostgresBackend::open(options).await.unwrap();
    for number in 0..JOBS {
        store.jobs().add_job(&hourly(&format!("j{number:03}")), from_ms(0)).await.unwrap();
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

/// Waits until so many connections of a store wait for a lock.
async fn until_waiting(admin: &tokio_postgres::Client, schema: &str, connections: i64) {
    let sql = "SELECT count(*) FROM pg_stat_activity
        WHERE application_name = $1 AND wait_event_type = 'Lock'";
    eventually(PATIENCE, "connections that wait", async || {
        let row = admin.query_one(sql, &[&schema]).await.unwrap();
        row.get::<_, i64>(0) == connections
    })
    .await;
}

/// The answer to a claim is lost on its way, and the claim repeated, while the first is committed.
async fn slow_commit() {
    let url = support::url().unwrap();
    let (schema, options) = fresh_schema("slow").await;
    let [one, two] = [options.clone(), options].map(PostgresBackend::open);
    let (one, two) = (one.await.unwrap(), two.await.unwrap());
    for id in ["a", "b"] {
        one.jobs().add_job(&hourly(id), from_ms(0)).await.unwrap();
    }
    let admin = support::raw(&url).await;
    // A commit that has added an execution waits until the lock is given up.
    let slow = format!(
        "SET search_path = {schema};
         CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM pg_advisory_xact_lock(hashtext(TG_TABLE_SCHEMA)); RETURN NULL; END';
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON job_executions
             DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()"
    );
    admin.batch_execute(&slow).await.unwrap();
    let lease = Duration::from_secs(3600);
    let claim = |id| Claim::next(id, "w", lease, from_ms(3_600_000));
    for claim in [claim("asked").of_job("b"), claim("due")] {
        admin.execute("SELECT pg_advisory_lock(hashtext($1))", &[&schema]).await.unwrap();
        let claimed = |store: &PostgresBackend| {
            let (jobs, claim) = (store.jobs(), claim.clone());
            tokio::spawn(async move { jobs.claim(&claim).await })
        };
        let first = claimed(&one);
        until_waiting(&admin, &schema, 1).await;
        let again = claimed(&two);
        until_waiting(&admin, &schema, 2).await;
        admin.execute("SELECT pg_advisory_unlock(hashtext($1))", &[&schema]).await.unwrap();
        let first = first.await.unwrap().unwrap();
        assert_eq!(first.as_ref().map(|run| &*run.id), Some(&*claim.execution_id));
        assert_eq!(again.await.unwrap().unwrap(), first);
    }
    let all = one.jobs().executions(&ExecutionQuery::default()).await.unwrap().items;
    assert_eq!(all.len(), 2);
    one.close().await.unwrap();
    two.close().await.unwrap();
    support::drop_schema(&url, &schema).await;
}

/// A job has so many executions that removing them takes longer than a statement may; workers of the
/// same handle say meanwhile that they are alive.
async fn slow_removal() {
    let url = support::url().unwrap();
    let (schema, options) = fresh_schema("removed").await;
    let store = PostgresBackend::open(options.statement_timeout(Duration::from_secs(1)));
    let store = store.await.unwrap();
    let jobs = store.jobs();
    let (now, lease) = (from_ms(3_600_000), Duration::from_secs(60));
    for id in ["large", "other"] {
        jobs.add_job(&hourly(id), from_ms(0)).await.unwrap();
        jobs.claim(&Claim::next(id, "w", lease, now).of_job(id)).await.unwrap();
    }
    let admin = support::raw(&url).await;
    let slow = format!(
        "SET search_path = {schema};
         CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM pg_sleep(3); RETURN OLD; END';
         CREATE TRIGGER slow BEFORE DELETE ON job_executions
             FOR EACH ROW EXECUTE FUNCTION sleep()"
    );
    admin.batch_execute(&slow).await.unwrap();
    let removal = {
        let jobs = jobs.clone();
        tokio::spawn(async move { jobs.remove_job("large").await })
    };
    let asleep = "SELECT FROM pg_stat_activity
        WHERE application_name = $1 AND wait_event = 'PgSleep'";
    eventually(PATIENCE, "a removal under way", async || {
        admin.query_opt(asleep, &[&schema]).await.unwrap().is_some()
    })
    .await;
    jobs.update_execution("other", &ExecutionPatch::extend(lease), now).await.unwrap();
    jobs.update_execution("other", &ExecutionPatch::end(RunResult::Succeeded), now).await.unwrap();
    assert!(!removal.is_finished(), "waited for");
    assert_eq!(removal.await.unwrap().unwrap(), 1);
    assert_eq!(jobs.job("large").await.unwrap_err().kind(), ErrorKind::NotFound);
    store.close().await.unwrap();
    support::drop_schema(&url, &schema).await;
}

/// What an execution did may be large; it is not written anew each time that its lease is extended.
async fn sign_of_life() {
    let url = support::url().unwrap();
    let (schema, options) = fresh_schema("alive").await;
    let store = PostgresBackend::open(options).await.unwrap();
    let (jobs, now) = (store.jobs(), from_ms(3_600_000));
    jobs.add_job(&hourly("a"), from_ms(0)).await.unwrap();
    jobs.claim(&Claim::next("r", "w", Duration::from_secs(60), now)).await.unwrap();
    let admin = support::raw(&url).await;
    let place = async || {
        let sql = format!("SELECT ctid::text FROM {schema}.job_executions");
        admin.query_one(&sql, &[]).await.unwrap().get::<_, String>(0)
    };
    let before = place().await;
    let extend = ExecutionPatch::extend(Duration::from_secs(90));
    jobs.update_execution("r", &extend, now).await.unwrap();
    let lease = jobs.job("a").await.unwrap().lease.unwrap();
    assert_eq!((lease.until, place().await), (from_ms(3_690_000), before));
    store.close().await.unwrap();
    support::drop_schema(&url, &schema).await;
}
