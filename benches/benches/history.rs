//! Record history on SQLite: storing in batches and from many callers, and questions over a million
//! values, alone and beside a writer.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use storage_benches::machine::scratch;
use storage_benches::options::Options;
use storage_benches::report::{OURS, Report};
use storage_benches::timing::{Latencies, Writes, median};
use storage_core::metrics::time::from_ms;
use storage_core::{
    HistoryQuery, Matcher, RecordHistory, RecordHistoryExt, StorageBackend, StoredValue, TimeRange,
};
use storage_sqlite::{SqliteBackend, SqliteHistory, SqliteOptions};

const RECORDS: i64 = 10;
const BATCH: i64 = 1000;
const CALLERS: usize = 64;
const REPETITIONS: usize = 3;
const QUESTIONS: usize = 500;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::from_args()?;
    let mut report = Report::new("history", &options);
    let time = Duration::from_millis(options.scaled(3000, 500) as u64);
    report.progress("batches of 1000");
    let mut rates = Vec::new();
    for _ in 0..REPETITIONS {
        rates.push(store_batches(time).await?.rate());
    }
    report.add("store 1000 full", OURS, "acknowledged", median(rates), "values/s");
    report.progress("64 callers with one value each");
    let mut rates = Vec::new();
    for _ in 0..REPETITIONS {
        rates.push(store_singly(time).await?);
    }
    report.add("64 callers of 1", OURS, "acknowledged", median(rates), "values/s");
    ask(&mut report, options.scaled(1_000_000, 100_000) as i64).await?;
    println!("{}", report.finish()?);
    Ok(())
}

/// Values a second apart, of one record after the other.
fn batch(first: i64) -> Vec<StoredValue> {
    let value = |n: i64| {
        let name = format!("accuracy::city-{}", n % RECORDS);
        let value = json!({"mae": (n % 1000) as f64 / 100.0, "rmse": n % 77, "n": n});
        StoredValue::new(name, from_ms(1_767_268_800_000 + n * 100), value)
    };
    (first..first + BATCH).map(value).collect()
}

async fn open(dir: &std::path::Path) -> Result<SqliteBackend> {
    Ok(SqliteBackend::open(SqliteOptions::new(dir.join("bench.db"))).await?)
}

async fn store_batches(time: Duration) -> Result<Writes> {
    let dir = scratch()?;
    let store = open(dir.path()).await?;
    let (history, mut writes) = (store.history(), Writes::default());
    let (started, mut first) = (Instant::now(), 0);
    while started.elapsed() < time {
        let values = batch(first);
        let before = Instant::now();
        history.store_batch(&values).await?;
        writes.acknowledged(before, values.len());
        first += BATCH;
    }
    store.close().await?;
    Ok(writes)
}

/// Returns values a second of all callers together.
async fn store_singly(time: Duration) -> Result<f64> {
    let dir = scratch()?;
    let store = open(dir.path()).await?;
    let history = Arc::new(store.history());
    let started = Instant::now();
    let caller = |number: usize| {
        let history = Arc::clone(&history);
        tokio::spawn(async move {
            let (name, mut stored) = (format!("caller-{number}"), 0_u64);
            while started.elapsed() < time {
                history.store(&name, from_ms(stored as i64), &json!({"n": stored})).await?;
                stored += 1;
            }
            Ok::<_, storage_core::Error>(stored)
        })
    };
    let mut stored = 0;
    for task in (0..CALLERS).map(caller).collect::<Vec<_>>() {
        stored += task.await??;
    }
    let rate = stored as f64 / started.elapsed().as_secs_f64();
    store.close().await?;
    Ok(rate)
}

async fn ask(report: &mut Report, count: i64) -> Result<()> {
    report.progress("filling");
    let dir = scratch()?;
    let store = open(dir.path()).await?;
    let history = store.history();
    for first in (0..count).step_by(BATCH as usize) {
        history.store_batch(&batch(first)).await?;
    }
    store.compact().await?;
    let bytes = store.stats().await?.disk_usage_bytes as f64;
    report.add("1M values", OURS, "size", bytes / count as f64, "B/value");
    report.progress("questions");
    let latest = HistoryQuery::parse("accuracy::*")?.newest(1);
    measure(report, "latest of 10 records", &history, || latest.clone(), 10).await?;
    let mut at = 0;
    let ranged = || {
        // Ten values of one record, somewhere.
        at = (at + 7_919_000) % (count - 1000);
        let start = 1_767_268_800_000 + at / RECORDS * RECORDS * 100;
        let span = RECORDS * 10 * 100;
        let range =
            TimeRange::new(from_ms(start), from_ms(start + span)).unwrap_or(TimeRange::all());
        HistoryQuery::new(Matcher::exact("accuracy::city-3").unwrap_or_default()).range(range)
    };
    measure(report, "range of 10 values", &history, ranged, 10).await?;
    report.progress("questions beside a writer");
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (history, stop) = (history.clone(), Arc::clone(&stop));
        async move {
            let mut first = count;
            while !stop.load(Ordering::Acquire) {
                history.store_batch(&batch(first)).await?;
                first += BATCH;
            }
            Ok::<_, storage_core::Error>(first - count)
        }
    });
    measure(report, "latest beside a writer", &history, || latest.clone(), 10).await?;
    stop.store(true, Ordering::Release);
    let written = writer.await??;
    report.progress(&format!("{written} values were stored meanwhile"));
    report.progress("cleanup of half");
    let cutoff = from_ms(1_767_268_800_000 + count / 2 * 100);
    let before = Instant::now();
    let removed = history.cleanup(cutoff).await?;
    let rate = removed as f64 / before.elapsed().as_secs_f64();
    report.add("cleanup of half", OURS, "removed", rate, "values/s");
    store.close().await?;
    Ok(())
}

async fn measure(
    report: &mut Report,
    what: &str,
    history: &SqliteHistory,
    mut question: impl FnMut() -> HistoryQuery,
    expected: usize,
) -> Result<()> {
    let mut latencies = Latencies::default();
    for _ in 0..QUESTIONS {
        let question = question();
        let before = Instant::now();
        let found = history.query(&question).await?;
        latencies.push(before.elapsed());
        if found.len() != expected {
            return Err(format!("{what}: {} values, expected {expected}", found.len()).into());
        }
    }
    report.add(what, OURS, "p50", latencies.quantile_ms(0.5), "ms");
    report.add(what, OURS, "p99", latencies.quantile_ms(0.99), "ms");
    Ok(())
}
