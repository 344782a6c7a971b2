//! A primary and its standby behind one URL: the primary dies, the standby is promoted, the handle
//! goes on; what was acknowledged by both is there once. And what a standby answers before that.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use libtest_mimic::{Arguments, Failed};
use storage_core::layers::{Retry, RetryPolicy};
use storage_core::metrics::time::from_ms;
use storage_core::{
    ErrorKind, HealthStatus, MetricRecord, Outcome, SeriesFilter, StorageBackend, TimeRange,
};
use storage_postgres::PostgresBackend;

#[path = "support/mod.rs"]
mod support;

use support::proxy::{Proxy, Then};
use support::server::{Server, shared_trial, trial};
use support::{assert_sound, block_on, eventually};

/// 2026-01-01.
const START_MS: i64 = 1_767_225_600_000;

const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let trials = vec![
        trial("a_failover_under_load_loses_and_doubles_nothing", false, failover),
        trial("a_failover_without_the_last_series_mixes_none_up", false, lossy_failover),
        trial("a_standby_answers_and_writes_once_it_is_promoted", false, standby),
        shared_trial("a_host_that_says_nothing_is_passed_over", silent_host),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn port_of(url: &str) -> u16 {
    url.parse::<tokio_postgres::Config>().unwrap().get_ports()[0]
}

/// The URL of one server with another one behind it.
fn both(first: &str, second: &str) -> String {
    let (rest, database) = first.rsplit_once('/').unwrap();
    format!("{rest},127.0.0.1:{}/{database}", port_of(second))
}

/// Series `number` with one sample.
fn of_series(name: &str, number: i64) -> MetricRecord {
    MetricRecord::new(format!("{name}-{number}"), from_ms(START_MS), "m", number as f64)
}

/// A sample of a series that all batches have, and one of a series of its own.
fn batch(number: i64) -> [MetricRecord; 2] {
    let time = from_ms(START_MS + number * 60_000);
    [MetricRecord::new("all", time, "m", number as f64), of_series("own", number)]
}

/// Commits wait for the standby from now on.
async fn wait_for_standby(primary: &str) {
    let admin = support::raw(primary).await;
    admin.batch_execute("ALTER SYSTEM SET synchronous_standby_names = '*'").await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    eventually(PATIENCE, "a standby that is waited for", async || {
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        admin.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
}

fn failover() -> Result<(), Failed> {
    let primary = Server::start(&[]);
    let standby = primary.standby(&[]);
    block_on(async {
        wait_for_standby(&primary.url).await;
        let url = both(&primary.url, &standby.url);
        let options = support::options(&url, "failover").connect_timeout(Duration::from_secs(2));
        let policy = RetryPolicy::default()
            .with_attempts_max(10_000)
            .with_delay_max(Duration::from_millis(50));
        let store = PostgresBackend::open(options).await.unwrap();
        let store = Arc::new(Retry::new(store, policy));
        let (over, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
        let writing = tokio::spawn({
            let (store, over) = (Arc::clone(&store), Arc::clone(&over));
            let acknowledged = Arc::clone(&acknowledged);
            async move {
                while !over.load(Ordering::SeqCst) {
                    let number = acknowledged.load(Ordering::SeqCst);
                    store.write_batch(&batch(number)).await.unwrap();
                    acknowledged.store(number + 1, Ordering::SeqCst);
                }
            }
        });
        let count = || acknowledged.load(Ordering::SeqCst);
        eventually(PATIENCE, "batches", async || count() >= 100).await;
        let (before, stopped) = (count(), Instant::now());
        tokio::task::block_in_place(|| primary.stop("immediate"));
        // Batches that are under way find a standby that takes no writes yet.
        tokio::task::block_in_place(|| standby.promote());
        let at_promotion = count();
        eventually(PATIENCE, "more batches", async || count() > at_promotion).await;
        let away = stopped.elapsed();
        eventually(PATIENCE, "more batches", async || count() > at_promotion + 100).await;
        over.store(true, Ordering::SeqCst);
        writing.await.unwrap();
        assert_holds(&*store, count()).await;
        println!("{before} batches before, {} in all, away for {away:?}", count());
        store.close().await.unwrap();
    });
    Ok(())
}

/// Every batch is there, once, each sample in its series.
async fn assert_holds(store: &dyn StorageBackend, batches: i64) {
    let all = store.query_range("all", "m", TimeRange::all()).await.unwrap();
    assert_eq!(all, (0..batches).map(|number| batch(number)[0].clone()).collect::<Vec<_>>());
    let own = SeriesFilter::parse("own-*", "m").unwrap();
    let own = store.latest(&own, 2).await.unwrap();
    assert_eq!(own.len() as i64, batches);
    for of in own {
        assert_eq!(of.samples.len(), 1, "{}", of.series);
        assert_eq!(of.series.server_id, format!("own-{}", of.samples[0].value));
    }
    assert_eq!(store.stats().await.unwrap().total_metrics as i64, 2 * batches);
    assert_sound(store).await;
}

/// The standby hears nothing more, so that it gives ids of the last series to others.
fn lossy_failover() -> Result<(), Failed> {
    const LOST: i64 = 200;
    let primary = Server::start(&[]);
    let standby = primary.standby(&[]);
    block_on(async {
        let url = both(&primary.url, &standby.url);
        let store = PostgresBackend::open(support::options(&url, "lossy")).await.unwrap();
        store.write_batch(&[of_series("kept", 0)]).await.unwrap();
        let follower = support::raw(&standby.url).await;
        eventually(PATIENCE, "the standby has the series", async || {
            let row = follower.query_opt("SELECT FROM lossy.series", &[]).await;
            row.is_ok_and(|row| row.is_some())
        })
        .await;
        follower.batch_execute("ALTER SYSTEM SET primary_conninfo = ''").await.unwrap();
        follower.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        eventually(PATIENCE, "the standby is deaf", async || {
            let row = follower.query_one("SELECT count(*) FROM pg_stat_wal_receiver", &[]).await;
            row.unwrap().get::<_, i64>(0) == 0
        })
        .await;
        let lost: Vec<_> = (0..LOST).map(|number| of_series("lost", number)).collect();
        store.write_batch(&lost).await.unwrap();
        let ids = async |url: &str, name: &str| {
            let sql = "SELECT array_agg(id) FROM lossy.series WHERE server_id LIKE $1 || '-%'";
            support::raw(url).await.query_one(sql, &[&name]).await.unwrap().get::<_, Vec<i64>>(0)
        };
        let lost_ids = ids(&primary.url, "lost").await;
        tokio::task::block_in_place(|| primary.stop("immediate"));
        tokio::task::block_in_place(|| standby.promote());
        let another = PostgresBackend::open(support::options(&standby.url, "lossy")).await.unwrap();
        let others: Vec<_> = (0..LOST).map(|number| of_series("other", number)).collect();
        another.write_batch(&others).await.unwrap();
        let other_ids = ids(&standby.url, "other").await;
        assert!(other_ids.iter().any(|id| lost_ids.contains(id)), "no id was given twice");

        store.write_batch(&lost).await.unwrap();
        for records in [lost, others] {
            for record in records {
                let found = store.query_range(&record.server_id, "m", TimeRange::all()).await;
                assert_eq!(found.unwrap(), [record]);
            }
        }
        assert_eq!(store.stats().await.unwrap().series as i64, 2 * LOST + 1);
        assert_sound(&store).await;
        store.close().await.unwrap();
        another.close().await.unwrap();
    });
    Ok(())
}

fn standby() -> Result<(), Failed> {
    let primary = Server::start(&[]);
    let standby = primary.standby(&[]);
    block_on(async {
        let options = || support::options(&standby.url, "read");
        let error = PostgresBackend::open(options()).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
        let writer = PostgresBackend::open(support::options(&primary.url, "read")).await.unwrap();
        for number in 0..10 {
            writer.write_batch(&batch(number)).await.unwrap();
        }
        let follower = support::raw(&standby.url).await;
        eventually(PATIENCE, "the standby has the samples", async || {
            let row = follower.query_one("SELECT count(*) FROM read.samples", &[]).await;
            row.is_ok_and(|row| row.get::<_, i64>(0) == 20)
        })
        .await;
        let reader = PostgresBackend::open(options()).await.unwrap();
        assert_eq!(reader.health().await.status, HealthStatus::Degraded);
        let any = SeriesFilter::any();
        let samples = reader.query_range("all", "m", TimeRange::all()).await.unwrap();
        assert_eq!(samples.len(), 10);
        let day = TimeRange::new(from_ms(START_MS), from_ms(START_MS + 86_400_000)).unwrap();
        let windows = reader.windows(&any, day, Duration::from_secs(60)).await.unwrap();
        assert_eq!(windows.len(), 11);
        assert_eq!(reader.aggregate("all", "m", day).await.unwrap().count, 10);
        assert_eq!(reader.latest(&any, 1).await.unwrap().len(), 11);
        assert_eq!(reader.series(&any).await.unwrap().len(), 11);
        assert_eq!(reader.stats().await.unwrap(), writer.stats().await.unwrap());
        let scanned: Vec<_> = reader.scan(&any, TimeRange::all()).try_collect().await.unwrap();
        assert_eq!(scanned.len(), 11);
        assert_eq!(reader.check().await.unwrap().problems, Vec::<String>::new());
        let error = reader.write_batch(&batch(10)).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
        assert!(error.is_retryable());
        writer.close().await.unwrap();

        tokio::task::block_in_place(|| primary.stop("immediate"));
        tokio::task::block_in_place(|| standby.promote());
        reader.write_batch(&batch(10)).await.unwrap();
        assert_holds(&reader, 11).await;
        reader.close().await.unwrap();
    });
    Ok(())
}

/// The first host takes connections and never answers: both the connection that writes and those
/// that ask come to the second.
fn silent_host() -> Result<(), Failed> {
    block_on(async {
        let url = support::url().unwrap();
        let schema = format!("silent_{}_{:08x}", std::process::id(), fastrand::u32(..));
        let proxy = Proxy::start(format!("127.0.0.1:{}", port_of(&url))).await;
        proxy.strike_after(0, Then::Stall);
        let (rest, address) = url.rsplit_once('@').unwrap();
        let (_, database) = address.split_once('/').unwrap();
        let first = format!("{rest}@127.0.0.1:{}/{database}", proxy.port);
        let options = support::options(&both(&first, &url), &schema);
        let options = options.connect_timeout(Duration::from_millis(200));
        let store = PostgresBackend::open(options.clone()).await.unwrap();
        store.write_batch(&batch(0)).await.unwrap();
        assert_holds(&store, 1).await;
        store.close().await.unwrap();
        // Also where a statement may take less time than passing the host over does.
        let options = options.connect_timeout(Duration::from_millis(700));
        let options = options.statement_timeout(Duration::from_millis(100));
        let store = PostgresBackend::open(options).await.unwrap();
        store.write_batch(&batch(1)).await.unwrap();
        store.close().await.unwrap();
        let silent = support::options(&first, &schema).connect_timeout(Duration::from_millis(200));
        let error = PostgresBackend::open(silent).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
        support::drop_schema(&url, &schema).await;
    });
    Ok(())
}
