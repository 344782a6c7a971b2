//! The server is stopped under load and comes back: an actor with a spool on disk loses nothing,
//! doubles nothing, and holds up no producer. `STORAGE_OUTAGE_SECONDS` says for how long (30).
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::DateTime;
use libtest_mimic::{Arguments, Failed};
use storage::config::Config;
use storage::pipeline::{Source, StorageActor};
use storage::{HealthStatus, MetricRecord, StorageBackend, TimeRange};
use storage_postgres::{PostgresBackend, PostgresOptions};
use tokio::sync::mpsc;

#[path = "../../storage-postgres/tests/support/server.rs"]
mod server;

use server::{Server, trial};

/// What the helpers for servers look at where a server is shared.
const URL: &str = "STORAGE_TEST_POSTGRES_URL";

fn url() -> Option<String> {
    std::env::var(URL).ok()
}

/// 2026-01-01.
const START_MS: i64 = 1_767_225_600_000;
const SERIES: i64 = 100;
const RECORDS_PER_SECOND: i64 = 10_000;
const TICK: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    let trials = vec![trial("an_outage_under_load_loses_and_doubles_nothing", false, outage)];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn outage_time() -> Duration {
    let seconds = std::env::var("STORAGE_OUTAGE_SECONDS").ok();
    Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(30))
}

fn outage() -> Result<(), Failed> {
    tokio::runtime::Runtime::new()?.block_on(run());
    Ok(())
}

fn from_ms(ms: i64) -> DateTime<chrono::Utc> {
    DateTime::from_timestamp_millis(ms).unwrap()
}

/// The records of a tick, over all series; each has a value and a time of its own.
fn tick(number: i64) -> Vec<MetricRecord> {
    let per_tick = RECORDS_PER_SECOND * TICK.as_millis() as i64 / 1000;
    let of = |index: i64| {
        let value = number * per_tick + index;
        let time = from_ms(START_MS + value / SERIES);
        MetricRecord::new(format!("web-{}", value % SERIES), time, "cpu", value as f64)
    };
    (0..per_tick).map(of).collect()
}

async fn run() {
    let outage = outage_time();
    let mut server = Server::start(&[]);
    let options = PostgresOptions::from_url(&server.url).unwrap();
    let options = options.connect_timeout(Duration::from_secs(2));
    let store = Arc::new(PostgresBackend::open(options).await.unwrap());
    let dir = tempfile::tempdir().unwrap();
    let spool = serde_json::json!({ "path": dir.path().join("spool.db") });
    let config = serde_json::json!({ "storage": { "spool": spool } }).to_string();
    let config = Config::from_json(&config, &[] as &[(&str, &str)]).unwrap().storage;
    let spool = config.open_spool().await.unwrap().unwrap();
    let (sender, receiver) = mpsc::channel(8);
    let actor = StorageActor::new(Arc::<PostgresBackend>::clone(&store))
        .source(Source::mpsc("load", receiver))
        .spool(spool)
        .start()
        .unwrap();

    let producer = tokio::spawn(produce(sender, outage + Duration::from_secs(4)));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let stopped = Instant::now();
    tokio::task::block_in_place(|| server.stop("immediate"));
    tokio::time::sleep(outage.saturating_sub(stopped.elapsed())).await;
    let health = actor.health();
    assert_ne!(health.status, HealthStatus::Healthy, "{health:?}");
    let away = stopped.elapsed();
    tokio::task::block_in_place(|| server.start_again());
    let back = Instant::now();

    let (ticks, slowest) = producer.await.unwrap();
    let drained = tokio::time::timeout(Duration::from_secs(120), actor.drained()).await;
    assert!(drained.is_ok(), "{:?}", actor.health());
    let caught_up = back.elapsed();
    let report = actor.shutdown(Duration::from_secs(30)).await;
    let sent = ticks * tick(0).len() as i64;
    assert!(report.is_complete(), "{report:?}");
    let source = &report.counters.sources[0];
    assert_eq!((source.received as i64, source.shed), (sent, 0), "{report:?}");
    assert!(report.counters.write_failures > 0, "there was no outage: {report:?}");
    // The spool is used after a while.
    let is_long = outage >= Duration::from_secs(10);
    assert!(report.counters.drained > 0 || !is_long, "nothing came through the spool: {report:?}");
    // Much more than a send takes, much less than the store was away.
    assert!(slowest < Duration::from_secs(1), "a producer waited for {slowest:?}");

    assert_eq!(store.stats().await.unwrap().total_metrics as i64, sent);
    for series in 0..SERIES {
        let name = format!("web-{series}");
        let found = store.query_range(&name, "cpu", TimeRange::all()).await.unwrap();
        let right = |(index, record): (i64, &MetricRecord)| {
            record.value as i64 == index * SERIES + series
                && record.timestamp == from_ms(START_MS + index)
        };
        assert!((0..).zip(&found).all(right), "{name}");
        assert_eq!(found.len() as i64, sent / SERIES, "{name}");
    }
    println!(
        "away for {away:.1?} under {RECORDS_PER_SECOND} records/s: {sent} sent, {sent} stored, \
         {} by way of the spool, caught up after {caught_up:.1?}, slowest send {slowest:.1?}",
        report.counters.drained
    );
}

/// Sends at a steady rate; returns how many ticks, and what the slowest send took.
async fn produce(sender: mpsc::Sender<Vec<MetricRecord>>, time: Duration) -> (i64, Duration) {
    let mut ticks = tokio::time::interval(TICK);
    let (started, mut slowest, mut number) = (Instant::now(), Duration::ZERO, 0);
    while started.elapsed() < time {
        ticks.tick().await;
        let records = tick(number);
        let sending = Instant::now();
        sender.send(records).await.unwrap();
        slowest = slowest.max(sending.elapsed());
        number += 1;
    }
    (number, slowest)
}
