//! Killed connections, a server that crashes, a network that cuts and stalls, locks, quotas: after
//! each, nothing acknowledged is lost, nothing is doubled, errors say the right kind and outcome,
//! and the same handle works again.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use libtest_mimic::{Arguments, Failed};
use serde_json::json;
use storage_core::history::PersistExt;
use storage_core::layers::{Retry, RetryPolicy};
use storage_core::metrics::time::from_ms;
use storage_core::{
    Error, ErrorKind, EventStoreExt, HealthStatus, HistoryQuery, MetricRecord, NewEvent, Outcome,
    RecordHistory, SeriesFilter, StorageBackend, TimeRange,
};
use storage_postgres::{PostgresBackend, PostgresOptions};
use tokio::time::MissedTickBehavior;

#[path = "support/mod.rs"]
mod support;

use support::proxy::{Proxy, Then};
use support::server::{Server, shared_trial, trial};
use support::{block_on, eventually, start_ms};

const DAY_MS: i64 = 86_400_000;

const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let trials = vec![
        shared_trial("a_connection_killed_mid_copy_leaves_nothing", killed_mid_copy),
        shared_trial("a_killer_every_50_ms_costs_nothing", killer),
        shared_trial("a_killer_doubles_no_event_and_no_value", killer_of_events_and_values),
        shared_trial("a_full_pool_is_busy", full_pool),
        shared_trial("a_held_lock_is_busy", held_lock),
        shared_trial("a_dropped_write_that_waits_is_done_before_the_next", dropped_write),
        shared_trial("a_proxy_that_cuts_costs_nothing", || through_proxy(Then::Cut)),
        shared_trial("a_proxy_that_stalls_costs_nothing", || through_proxy(Then::Stall)),
        shared_trial("a_commit_whose_answer_is_lost_is_unknown_and_stored_once", lost_answer),
        shared_trial("a_statement_that_takes_too_long_is_a_timeout", slow_statements),
        shared_trial("a_server_that_is_not_there_is_named", no_server),
        trial("a_server_that_crashes_under_load_loses_nothing", false, crashing_server),
        trial("a_restart_between_two_calls_is_not_noticed", false, restart),
        trial("a_full_disk_loses_nothing", true, full_disk),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A store of a schema that nothing has used, removed by [`Fresh::remove`].
struct Fresh {
    url: String,
    schema: String,
}

impl Fresh {
    fn new() -> Self {
        Self::on(&support::url().unwrap())
    }

    fn on(url: &str) -> Self {
        let schema = format!("faults_{}_{:08x}", std::process::id(), fastrand::u32(..));
        Self { url: url.to_owned(), schema }
    }

    fn options(&self) -> PostgresOptions {
        support::options(&self.url, &self.schema).application_name(&self.schema)
    }

    async fn open(&self) -> PostgresBackend {
        PostgresBackend::open(self.options()).await.unwrap()
    }

    /// Options by way of a proxy.
    async fn by_proxy(&self) -> (Proxy, PostgresOptions) {
        let (proxy, url) = Proxy::before(&self.url).await;
        (proxy, support::options(&url, &self.schema))
    }

    /// A connection that keeps everybody from the samples until it is told to roll back.
    async fn lock_samples(&self) -> tokio_postgres::Client {
        let holder = support::raw(&self.url).await;
        let lock = format!("BEGIN; LOCK TABLE {}.samples IN ACCESS EXCLUSIVE MODE", self.schema);
        holder.batch_execute(&lock).await.unwrap();
        holder
    }

    async fn remove(self) {
        support::drop_schema(&self.url, &self.schema).await;
    }

    /// Ends the connections of the store whose statement starts like `query`; says how many.
    async fn terminate(&self, admin: &tokio_postgres::Client, query: &str) -> i64 {
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE application_name = $1 AND query LIKE $2 || '%'";
        admin.query_one(sql, &[&self.schema, &query]).await.unwrap().get(0)
    }

    /// Ends a connection of the store whose statement starts like `query`, and not the one of the process
    /// `before`, which may take a while to end; returns the process, or `before` if there is no other.
    async fn terminate_other(
        &self,
        admin: &tokio_postgres::Client,
        query: &str,
        before: i32,
    ) -> i32 {
        let sql = "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE application_name = $1 AND query LIKE $2 || '%' AND pid <> $3 LIMIT 1";
        let row = admin.query_opt(sql, &[&self.schema, &query, &before]).await.unwrap();
        row.map_or(before, |row| row.get(0))
    }
}

/// Samples `number * len ..` of a series, a minute apart, over several days.
fn batch(number: i64, len: i64) -> Vec<MetricRecord> {
    let ms = |index| start_ms() + (number * len + index) * 60_000;
    (0..len)
        .map(|i| MetricRecord::new("a", from_ms(ms(i)), "m", (number * len + i) as f64))
        .collect()
}

async fn assert_holds(store: &dyn StorageBackend, samples: i64) {
    let found = store.query_range("a", "m", TimeRange::all()).await.unwrap();
    let right = found.iter().zip(0..).all(|(record, index)| {
        record.value == index as f64 && record.timestamp == from_ms(start_ms() + index * 60_000)
    });
    assert!(right && found.len() as i64 == samples, "{} of {samples}", found.len());
    assert_eq!(store.stats().await.unwrap().total_metrics as i64, samples);
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
}

/// Whoever stores the same sample first makes the COPY wait in the middle; there it is killed.
fn killed_mid_copy() -> Result<(), Failed> {
    block_on(async {
        let fresh = Fresh::new();
        let store = Arc::new(fresh.open().await);
        store.write_batch(&batch(0, 10)).await.unwrap();
        let (admin, holder) = (support::raw(&fresh.url).await, support::raw(&fresh.url).await);
        let hold = format!(
            "BEGIN; INSERT INTO {}.samples SELECT id, to_timestamp({}), 0 FROM {}.series",
            fresh.schema,
            (start_ms() + 15 * 60_000) / 1000,
            fresh.schema
        );
        holder.batch_execute(&hold).await.unwrap();
        let writing = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.write_batch(&batch(1, 10)).await }
        });
        // Once for the connection that was there, which is replaced, once for the new one.
        let mut killed = 0;
        for _ in 0..2 {
            let before = killed;
            eventually(PATIENCE, "kill", async || {
                killed = fresh.terminate_other(&admin, "COPY samples", before).await;
                killed != before
            })
            .await;
        }
        let error = writing.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:#}");
        assert_eq!(error.outcome(), Outcome::NotApplied);
        assert!(error.is_retryable());
        holder.batch_execute("ROLLBACK").await.unwrap();
        assert_holds(&*store, 10).await;
        store.write_batch(&batch(1, 10)).await.unwrap();
        assert_holds(&*store, 20).await;
        store.close().await.unwrap();
        fresh.remove().await;
    });
    Ok(())
}

/// Kills all connections of a store every 50 ms.
struct Killer {
    over: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<i64>,
}

impl Killer {
    fn start(fresh: &Fresh) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn({
            let (url, schema, over) = (fresh.url.clone(), fresh.schema.clone(), Arc::clone(&over));
            async move {
                let fresh = Fresh { url, schema };
                let admin = support::raw(&fresh.url).await;
                let mut every = tokio::time::interval(Duration::from_millis(50));
                // Not at once after a strike that took long: then nothing would ever get through.
                every.set_missed_tick_behavior(MissedTickBehavior::Delay);
                let mut kills = 0;
                while !over.load(Ordering::SeqCst) {
                    every.tick().await;
                    kills += fresh.terminate(&admin, "").await;
                }
                kills
            }
        });
        Self { over, task }
    }

    /// Returns how many it killed.
    async fn stop(self) -> i64 {
        self.over.store(true, Ordering::SeqCst);
        self.task.await.unwrap()
    }
}

/// Events with ids are appended again until there is an answer, values are persisted from a channel:
/// each is there once, in its order.
fn killer_of_events_and_values() -> Result<(), Failed> {
    const COUNT: i64 = 400;
    block_on(async {
        let fresh = Fresh::new();
        let store = fresh.open().await;
        let history: Arc<dyn RecordHistory> = Arc::new(store.history());
        let (sender, receiver) = tokio::sync::mpsc::channel(COUNT as usize);
        let persisting = receiver.persist("a").batch_values_max(5).start(history).unwrap();
        let killer = Killer::start(&fresh);
        for number in 0..COUNT {
            sender.send(number).await.unwrap();
            let event = NewEvent::new("s", "T", json!(number)).with_id(format!("id-{number}"));
            while let Err(error) = store.events().append_all(std::slice::from_ref(&event)).await {
                assert!(error.is_retryable(), "{error:#}");
            }
        }
        drop(sender);
        let counts = persisting.finished().await;
        let kills = killer.stop().await;
        assert!(kills > 5, "{kills} connections killed");
        assert_eq!((counts.stored, counts.unstored), (COUNT as u64, 0), "{counts:?}");
        let found = store.history().query(&HistoryQuery::parse("a").unwrap()).await.unwrap();
        assert!(found.into_iter().map(|value| value.value).eq((0..COUNT).map(|n| json!(n))));
        let log: Vec<_> = store.events().replay_all().try_collect().await.unwrap();
        assert!(
            log.iter().map(|event| event.sequence).eq(1..=COUNT as u64),
            "{} events",
            log.len()
        );
        assert!(log.into_iter().map(|event| event.payload).eq((0..COUNT).map(|n| json!(n))));
        assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
        store.close().await.unwrap();
        fresh.remove().await;
    });
    Ok(())
}

/// A thousand batches through the retry layer, each of new and of replaced samples, while all
/// connections are killed every 50 ms.
fn killer() -> Result<(), Failed> {
    block_on(async {
        let fresh = Fresh::new();
        let store = Retry::new(fresh.open().await, patient());
        let killer = Killer::start(&fresh);
        for number in 0..1000 {
            let mut records = batch(number, 5);
            // The last sample of the batch before, again: as it is.
            records.extend(batch(number.max(1) - 1, 5).pop());
            store.write_batch(&records).await.unwrap();
        }
        let kills = killer.stop().await;
        assert!(kills > 20, "{kills} connections killed");
        let store = fresh.open().await;
        assert_holds(&store, 5000).await;
        store.close().await.unwrap();
        fresh.remove().await;
        println!("1000 batches, {kills} connections killed");
    });
    Ok(())
}

fn patient() -> RetryPolicy {
    RetryPolicy::default().with_attempts_max(1000).with_delay_max(Duration::from_millis(50))
}

/// One connection for questions, held by one that waits for a lock.
fn full_pool() -> Result<(), Failed> {
    block_on(async {
        let fresh = Fresh::new();
        let options = fresh.options().pool_size(1).pool_timeout(Duration::from_millis(100));
        let store = PostgresBackend::open(options).await.unwrap();
        let store = Arc::new(store);
        store.write_batch(&batch(0, 10)).await.unwrap();
        let (admin, holder) = (support::raw(&fresh.url).await, support::raw(&fresh.url).await);
        let lock = format!("BEGIN; LOCK TABLE {}.series IN ACCESS EXCLUSIVE MODE", fresh.schema);
        holder.batch_execute(&lock).await.unwrap();
        let asking = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.series(&SeriesFilter::any()).await }
        });
        let waiting = "SELECT count(*) FROM pg_stat_activity
            WHERE application_name = $1 AND wait_event_type = 'Lock'";
        eventually(PATIENCE, "wait", async || {
            let row = admin.query_one(waiting, &[&fresh.schema]).await.unwrap();
            row.get::<_, i64>(0) > 0
        })
        .await;
        let error = store.latest(&SeriesFilter::any(), 1).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Busy, Outcome::NotApplied));
        holder.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(asking.await.unwrap().unwrap().len(), 1);
        assert_holds(&*store, 10).await;
        store.close().await.unwrap();
        fresh.remove().await;
    });
    Ok(())
}

fn held_lock() -> Result<(), Failed> {
    block_on(async {
        let fresh = Fresh::new();
        let options = fresh.options().lock_timeout(Duration::from_millis(100));
        let store = PostgresBackend::open(options).await.unwrap();
        store.write_batch(&batch(0, 10)).await.unwrap();
        let holder = fresh.lock_samples().await;
        let cutoff = from_ms(start_ms() + DAY_MS);
        let query = store.query_range("a", "m", TimeRange::all()).await.map(drop);
        let written = store.write_batch(&batch(1, 10)).await;
        let pruned = store.prune_before(cutoff).await.map(drop);
        for (call, result) in [("query", query), ("write", written), ("prune", pruned)] {
            let error: Error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy, "{call}: {error:#}");
            assert_eq!(error.outcome(), Outcome::NotApplied, "{call}");
            assert!(error.is_retryable(), "{call}");
        }
        holder.batch_execute("ROLLBACK").await.unwrap();
        assert_holds(&store, 10).await;
        store.write_batch(&batch(1, 10)).await.unwrap();
        assert_holds(&store, 20).await;
        // A COPY that could not begin leaves the driver one answer behind: the second is the first of
        // its connection, so that what comes after it is not tried again.
        for _ in 0..5 {
            let holder = fresh.lock_samples().await;
            for _ in 0..2 {
                let error = store.write_batch(&batch(1, 10)).await.unwrap_err();
                assert_eq!((error.kind(), error.outcome()), (ErrorKind::Busy, Outcome::NotApplied));
            }
            holder.batch_execute("ROLLBACK").await.unwrap();
            store.write_batch(&batch(1, 10)).await.unwrap();
        }
        assert_holds(&store, 20).await;
        // A question that is under way makes a prune wait, and then give up.
        let question = format!("BEGIN; SELECT count(*) FROM {}.samples", fresh.schema);
        holder.batch_execute(&question).await.unwrap();
        let error = store.prune_before(cutoff).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Busy, Outcome::NotApplied));
        holder.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(store.prune_before(cutoff).await.unwrap(), 20);
        store.close().await.unwrap();
        fresh.remove().await;
    });
    Ok(())
}

/// A caller gives up while its batch waits in the middle of a COPY: the batch is stored before the
/// next one, or not at all.
fn dropped_write() -> Result<(), Failed> {
    block_on(async {
        let fresh = Fresh::new();
        let store = Arc::new(fresh.open().await);
        store.write_batch(&batch(0, 10)).await.unwrap();
        let (admin, holder) = (support::raw(&fresh.url).await, fresh.lock_samples().await);
        let given_up = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.write_batch(&batch(1, 10)).await }
        });
        let waiting = "SELECT count(*) FROM pg_stat_activity
            WHERE application_name = $1 AND wait_event_type = 'Lock' AND query LIKE 'COPY%'";
        eventually(PATIENCE, "wait", async || {
            let row = admin.query_one(waiting, &[&fresh.schema]).await.unwrap();
            row.get::<_, i64>(0) > 0
        })
        .await;
        given_up.abort();
        assert!(given_up.await.unwrap_err().is_cancelled());
        let next = tokio::spawn({
            let store = Arc::clone(&store);
            async move {
                let over: Vec<_> = batch(1, 10)
                    .into_iter()
                    .map(|record| record.with_metadata(serde_json::json!("later")))
                    .collect();
                store.write_batch(&over).await
            }
        });
        holder.batch_execute("ROLLBACK").await.unwrap();
        next.await.unwrap().unwrap();
        assert_holds(&*store, 20).await;
        let found = store.query_range("a", "m", TimeRange::all()).await.unwrap();
        assert!(found[10..].iter().all(|record| record.metadata.is_some()));
        store.close().await.unwrap();
        fresh.remove().await;
    });
    Ok(())
}

/// The network fails at random bytes; what was acknowledged is there, what was not is repeated.
fn through_proxy(then: Then) -> Result<(), Failed> {
    let rounds = if then == Then::Cut { 60 } else { 12 };
    block_on(async {
        let fresh = Fresh::new();
        let direct = fresh.open().await;
        let (proxy, options) = fresh.by_proxy().await;
        let options = options
            .statement_timeout(Duration::from_millis(400))
            .connect_timeout(Duration::from_millis(400));
        let store = PostgresBackend::open(options).await.unwrap();
        let mut random = fastrand::Rng::with_seed(5);
        let (mut unknown, mut refused) = (0, 0);
        for number in 0..rounds {
            proxy.strike_after(random.i64(0..12_000), then);
            let (mut attempts, mut in_doubt) = (0, false);
            while let Err(error) = store.write_batch(&batch(number, 200)).await {
                assert!(
                    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout),
                    "{error:#}"
                );
                assert!(error.is_retryable(), "{error:#}");
                match error.outcome() {
                    Outcome::Unknown => {
                        unknown += 1;
                        in_doubt = true;
                    }
                    Outcome::NotApplied => {
                        refused += 1;
                        let found = direct.stats().await.unwrap().total_metrics as i64;
                        let applied = in_doubt && found == (number + 1) * 200;
                        assert!(applied || found == number * 200, "{found} in round {number}");
                    }
                }
                proxy.heal();
                attempts += 1;
                assert!(attempts < 5, "{error:#}");
            }
            proxy.heal();
            // Questions fail, too, and are answered afterwards.
            proxy.strike_after(random.i64(0..2_000), then);
            let asked = store.query_range("a", "m", TimeRange::all()).await;
            if let Err(error) = asked {
                assert_eq!(error.outcome(), Outcome::NotApplied, "{error:#}");
                assert!(
                    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout),
                    "{error:#}"
                );
            }
            proxy.heal();
        }
        assert!(proxy.struck() > rounds as u64 / 3, "struck {} times", proxy.struck());
        eventually(PATIENCE, "answer", async || {
            store.health().await.status == HealthStatus::Healthy
        })
        .await;
        assert_holds(&direct, rounds * 200).await;
        println!("struck {} times: {refused} refused, {unknown} unknown", proxy.struck());
        store.close().await.unwrap();
        direct.close().await.unwrap();
        fresh.remove().await;
    });
    Ok(())
}

/// The server has committed when the connection is cut, and the client cannot know.
fn lost_answer() -> Result<(), Failed> {
    block_on(async {
        let fresh = Fresh::new();
        let (proxy, options) = fresh.by_proxy().await;
        let store = PostgresBackend::open(options).await.unwrap();
        store.write_batch(&batch(0, 20)).await.unwrap();
        // Partitions are made ahead meanwhile, and that ends with a commit, too. So all is on one day.
        let admin = support::raw(&fresh.url).await;
        let partitions = format!("SELECT count(*) FROM {}.partitions", fresh.schema);
        eventually(PATIENCE, "partitions are made", async || {
            admin.query_one(&partitions, &[]).await.unwrap().get::<_, i64>(0) >= 3
        })
        .await;
        // The answer to that has come through, too.
        store.write_batch(&batch(0, 20)).await.unwrap();
        for number in 1..10 {
            proxy.withhold_commit();
            let error = store.write_batch(&batch(number, 20)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:#}");
            assert_eq!(error.outcome(), Outcome::Unknown);
            assert!(error.is_retryable());
            assert_eq!(proxy.struck(), number as u64);
            assert_holds(&store, (number + 1) * 20).await;
            store.write_batch(&batch(number, 20)).await.unwrap();
            assert_holds(&store, (number + 1) * 20).await;
        }
        store.close().await.unwrap();
        fresh.remove().await;
    });
    Ok(())
}

/// The server gives a statement up before the lock that it waits for would be.
fn slow_statements() -> Result<(), Failed> {
    block_on(async {
        let fresh = Fresh::new();
        let options = fresh.options().statement_timeout(Duration::from_secs(1));
        let store =
            PostgresBackend::open(options.lock_timeout(Duration::from_secs(5))).await.unwrap();
        store.write_batch(&batch(0, 10)).await.unwrap();
        let holder = fresh.lock_samples().await;
        let query = store.query_range("a", "m", TimeRange::all()).await.map(drop);
        let written = store.write_batch(&batch(1, 10)).await;
        for (call, result) in [("query", query), ("write", written)] {
            let error: Error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout, "{call}: {error:#}");
            assert_eq!(error.outcome(), Outcome::NotApplied, "{call}");
            assert_eq!(error.context("sqlstate"), Some("57014"), "{call}");
            assert!(error.is_retryable(), "{call}");
        }
        holder.batch_execute("ROLLBACK").await.unwrap();
        assert_holds(&store, 10).await;
        store.write_batch(&batch(1, 10)).await.unwrap();
        assert_holds(&store, 20).await;
        store.close().await.unwrap();
        fresh.remove().await;
    });
    Ok(())
}

fn no_server() -> Result<(), Failed> {
    block_on(async {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let url = format!("postgres://me:sesame@127.0.0.1:{port}/db");
        let error = PostgresBackend::connect(&url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:#}");
        assert!(error.is_retryable());
        assert_eq!(error.context("host"), Some("127.0.0.1"));
        assert_eq!(error.context("port"), Some(&*port.to_string()));
        let url = support::url().unwrap();
        let wrong = url.replacen("tester:", "tester:sesame", 1);
        if wrong != url {
            let error = PostgresBackend::connect(&wrong).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:#}");
            assert!(!format!("{error:#} {error:?}").contains("sesame"));
        }
        let missing = PostgresOptions::from_url(&url).unwrap().create(false);
        let error = PostgresBackend::open(missing.schema("never_made").unwrap()).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::NotFound);
    });
    Ok(())
}

/// Writers go on while the server is stopped without a checkpoint and started again.
fn crashing_server() -> Result<(), Failed> {
    let mut server = Server::start(&[]);
    let url = server.url.clone();
    let writing = std::thread::spawn({
        let url = url.clone();
        move || block_on(write_until_told(&url))
    });
    for _ in 0..3 {
        let rows = || block_on(async { committed(&url).await });
        let before = rows();
        let deadline = Instant::now() + Duration::from_secs(30);
        while rows() < before + 500 {
            assert!(Instant::now() < deadline, "nothing is written");
        }
        server.stop("immediate");
        server.start_again();
    }
    block_on(async {
        support::raw(&url).await.batch_execute("CREATE TABLE public.stop ()").await.unwrap();
    });
    let (batches, errors) = writing.join().unwrap();
    assert!(batches >= 150 && errors > 0, "{batches} batches, {errors} errors");
    println!("{batches} batches, {errors} errors, 3 crashes");
    Ok(())
}

async fn committed(url: &str) -> i64 {
    let client = support::raw(url).await;
    let sql = "SELECT coalesce(sum(samples), 0)::bigint FROM crashing.days";
    client.query_one(sql, &[]).await.map_or(0, |row| row.get(0))
}

/// One handle all the time. Returns how many batches and errors there were.
async fn write_until_told(url: &str) -> (i64, u64) {
    let store = PostgresBackend::open(support::options(url, "crashing")).await.unwrap();
    let (mut number, mut errors) = (0, 0);
    loop {
        match store.write_batch(&batch(number, 10)).await {
            Ok(()) => number += 1,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:#}");
                errors += 1;
                // A server that starts takes its time.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        if number % 50 == 0 && is_over(url).await {
            assert_holds(&store, number * 10).await;
            store.close().await.unwrap();
            return (number, errors);
        }
    }
}

async fn is_over(url: &str) -> bool {
    let Ok((client, connection)) = tokio_postgres::connect(url, tokio_postgres::NoTls).await else {
        return false;
    };
    tokio::spawn(connection);
    client
        .query_one("SELECT to_regclass('public.stop') IS NOT NULL", &[])
        .await
        .is_ok_and(|row| row.get(0))
}

fn restart() -> Result<(), Failed> {
    let mut server = Server::start(&[]);
    block_on(async {
        let store =
            PostgresBackend::open(support::options(&server.url, "restarted")).await.unwrap();
        for round in 0..3 {
            store.write_batch(&batch(round, 10)).await.unwrap();
            assert_holds(&store, (round + 1) * 10).await;
            server.stop(if round % 2 == 0 { "fast" } else { "immediate" });
            let health = store.health().await;
            assert_eq!(health.status, HealthStatus::Down);
            let error = store.write_batch(&batch(9, 10)).await.unwrap_err();
            assert_eq!(
                (error.kind(), error.outcome()),
                (ErrorKind::Unavailable, Outcome::NotApplied)
            );
            server.start_again();
            assert_eq!(store.health().await.status, HealthStatus::Healthy);
        }
        server.stop("immediate");
        server.start_again();
        // The connections that lie ready are dead; nobody notices.
        store.write_batch(&batch(3, 10)).await.unwrap();
        assert_holds(&store, 40).await;
        store.close().await.unwrap();
    });
    Ok(())
}

/// A tablespace on a small file system: the database grows against a wall, its log does not.
fn full_disk() -> Result<(), Failed> {
    let server = Server::start(&[]);
    let disk = Disk::new("size=6m");
    block_on(async {
        let admin = support::raw(&server.url).await;
        let space =
            format!("CREATE TABLESPACE small LOCATION '{}'", disk.0.path().join("space").display());
        admin.batch_execute(&space).await.unwrap();
        admin.batch_execute("ALTER ROLE tester SET default_tablespace = small").await.unwrap();
        let store = PostgresBackend::open(support::options(&server.url, "full")).await.unwrap();
        let mut batches = 0;
        let error = loop {
            match store.write_batch(&batch(batches, 1000)).await {
                Ok(()) => batches += 1,
                Err(error) => break error,
            }
            assert!(batches < 1000, "the disk does not fill");
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error:#}");
        assert_eq!(error.outcome(), Outcome::NotApplied);
        assert!(batches > 5, "{batches}");
        assert_holds(&store, batches * 1000).await;
        disk.remount("size=64m");
        store.write_batch(&batch(batches, 1000)).await.unwrap();
        assert_holds(&store, batches * 1000 + 1000).await;
        store.close().await.unwrap();
    });
    Ok(())
}

/// A small file system in memory, unmounted when it goes.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", size, "tmpfs"]).arg(dir.path()));
        let disk = Self(dir);
        let space = disk.0.path().join("space");
        std::fs::create_dir(&space).unwrap();
        open_way(disk.0.path());
        if let Some((user, group)) = support::server::user() {
            run(Command::new("chown").arg(format!("{user}:{group}")).arg(&space));
        }
        disk
    }

    fn remount(&self, option: &str) {
        let option = format!("remount,{option}");
        run(Command::new("mount").args(["-o", &option]).arg(self.0.path()));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(self.0.path()));
    }
}

/// Lets the server's user in.
fn open_way(path: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(path, mode).unwrap();
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}");
}
