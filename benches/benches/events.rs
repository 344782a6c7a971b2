//! The event store on SQLite: appending in batches and from many callers, replaying a million
//! events, starting with a projection that is current, pruning.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use serde_json::json;
use storage_benches::machine::scratch;
use storage_benches::options::Options;
use storage_benches::report::{OURS, Report};
use storage_benches::timing::{Latencies, Writes, median};
use storage_core::events::Rows;
use storage_core::metrics::time::from_ms;
use storage_core::{
    EventQuery, EventStore, EventStoreExt, NewEvent, Projection, StorageBackend, StoredEvent,
};
use storage_sqlite::{SqliteBackend, SqliteEvents, SqliteOptions};

const STREAMS: i64 = 10;
const BATCH: i64 = 1000;
const REPETITIONS: usize = 3;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::from_args()?;
    let mut report = Report::new("events", &options);
    let time = Duration::from_millis(options.scaled(3000, 500) as u64);
    for (what, ids) in [("append 1000 full", false), ("append 1000 with ids full", true)] {
        report.progress(what);
        let mut rates = Vec::new();
        for _ in 0..REPETITIONS {
            rates.push(append_batches(time, ids).await?.rate());
        }
        report.add(what, OURS, "acknowledged", median(rates), "events/s");
    }
    for (what, callers, size) in [("4 callers of 1000", 4, BATCH), ("64 callers of 1", 64, 1)] {
        report.progress(what);
        let mut rates = Vec::new();
        for _ in 0..REPETITIONS {
            rates.push(append_at_once(time, callers, size).await?);
        }
        report.add(what, OURS, "acknowledged", median(rates), "events/s");
    }
    whole_log(&mut report, options.scaled(1_000_000, 100_000) as i64).await?;
    println!("{}", report.finish()?);
    Ok(())
}

/// Events of many streams in turn, some of each together, as a program with many threads has them.
fn batch(first: i64, ids: bool) -> Vec<NewEvent> {
    let event = |n: i64| {
        let payload =
            json!({"thread": n / 10 % STREAMS, "turn": n % 77, "state": "running", "n": n});
        let stream = format!("thread-{}", n / 10 % STREAMS);
        let event =
            NewEvent::new(stream, "TurnStarted", payload).at(from_ms(1_767_268_800_000 + n * 100));
        // As long as a UUID, and growing as those of version 7 do.
        if ids { event.with_id(format!("01890a5d-ac96-774b-bcce-{n:012x}")) } else { event }
    };
    (first..first + BATCH).map(event).collect()
}

async fn open(dir: &Path) -> Result<SqliteBackend> {
    Ok(SqliteBackend::open(SqliteOptions::new(dir.join("bench.db"))).await?)
}

async fn append_batches(time: Duration, ids: bool) -> Result<Writes> {
    let dir = scratch()?;
    let store = open(dir.path()).await?;
    let (events, mut writes) = (store.events(), Writes::default());
    let (started, mut first) = (Instant::now(), 0);
    while started.elapsed() < time {
        let batch = batch(first, ids);
        let before = Instant::now();
        events.append_all(&batch).await?;
        writes.acknowledged(before, batch.len());
        first += BATCH;
    }
    store.close().await?;
    Ok(writes)
}

/// Returns events a second of all callers together.
async fn append_at_once(time: Duration, callers: usize, size: i64) -> Result<f64> {
    let dir = scratch()?;
    let store = open(dir.path()).await?;
    let started = Instant::now();
    let caller = |number: usize| {
        let events = store.events();
        tokio::spawn(async move {
            let (stream, mut appended) = (format!("caller-{number}"), 0);
            while started.elapsed() < time {
                let event = |n| NewEvent::new(&*stream, "Counted", json!({"n": n}));
                let batch: Vec<_> = (appended..appended + size).map(event).collect();
                events.append_all(&batch).await?;
                appended += size;
            }
            Ok::<_, storage_core::Error>(appended)
        })
    };
    let mut appended = 0;
    for task in (0..callers).map(caller).collect::<Vec<_>>() {
        appended += task.await??;
    }
    let rate = appended as f64 / started.elapsed().as_secs_f64();
    store.close().await?;
    Ok(rate)
}

/// The newest state of each stream.
struct Newest;

#[async_trait]
impl Projection for Newest {
    fn name(&self) -> &str {
        "newest"
    }

    async fn apply(&self, event: &StoredEvent, rows: &mut Rows<'_>) -> storage_core::Result<()> {
        rows.put("streams", &event.stream, &event.payload)
    }
}

async fn whole_log(report: &mut Report, count: i64) -> Result<()> {
    report.progress("filling");
    let dir = scratch()?;
    let store = open(dir.path()).await?;
    let events = store.events();
    for first in (0..count).step_by(BATCH as usize) {
        events.append_all(&batch(first, true)).await?;
    }
    store.compact().await?;
    let bytes = store.stats().await?.disk_usage_bytes as f64;
    report.add("1M events", OURS, "size", bytes / count as f64, "B/event");
    report.progress("replay");
    let mut rates = Vec::new();
    for _ in 0..REPETITIONS {
        rates.push(replay(&events, count).await?);
    }
    report.add("replay", OURS, "read", median(rates), "events/s");
    one_stream(report, &events, count).await?;
    report.progress("rebuild");
    let before = Instant::now();
    events.rebuild(&Newest).await?;
    let rate = count as f64 / before.elapsed().as_secs_f64();
    report.add("rebuild of a projection", OURS, "applied", rate, "events/s");
    store.close().await?;
    start(report, dir.path()).await?;
    report.progress("prune of half");
    let store = open(dir.path()).await?;
    let before = Instant::now();
    let removed = store.events().prune_before(count.cast_unsigned() / 2 + 1).await?;
    let rate = removed as f64 / before.elapsed().as_secs_f64();
    report.add("prune of half", OURS, "removed", rate, "events/s");
    store.close().await?;
    Ok(())
}

/// Returns events a second.
async fn replay(events: &SqliteEvents, count: i64) -> Result<f64> {
    let (before, mut seen) = (Instant::now(), 0);
    let mut log = events.replay_all();
    while let Some(event) = log.try_next().await? {
        seen += 1;
        if event.sequence != seen {
            return Err(format!("event {} came as number {seen}", event.sequence).into());
        }
    }
    if seen != count.cast_unsigned() {
        return Err(format!("{seen} events, expected {count}").into());
    }
    Ok(count as f64 / before.elapsed().as_secs_f64())
}

async fn one_stream(report: &mut Report, events: &SqliteEvents, count: i64) -> Result<()> {
    report.progress("one stream");
    let mut latencies = Latencies::default();
    for n in 0..200_u64 {
        let from = n * 4999 % count.cast_unsigned().saturating_sub(20_000).max(1) + 1;
        let query = EventQuery::from(from).stream(format!("thread-{}", n % 10)).limit(10);
        let before = Instant::now();
        let found = events.read(&query).await?;
        latencies.push(before.elapsed());
        if found.len() != 10 {
            return Err(format!("{} events of a stream, expected 10", found.len()).into());
        }
    }
    report.add("10 events of a stream", OURS, "p50", latencies.quantile_ms(0.5), "ms");
    report.add("10 events of a stream", OURS, "p99", latencies.quantile_ms(0.99), "ms");
    Ok(())
}

/// From nothing to rows that are current.
async fn start(report: &mut Report, dir: &Path) -> Result<()> {
    report.progress("starts");
    let mut latencies = Latencies::default();
    for _ in 0..20 {
        let before = Instant::now();
        let store = open(dir).await?;
        let events = store.events();
        let done = events.catch_up(&Newest).await?;
        latencies.push(before.elapsed());
        if done.events() != 0 {
            return Err("the checkpoint was not current".into());
        }
        store.close().await?;
    }
    report.add("start with a current checkpoint", OURS, "p50", latencies.quantile_ms(0.5), "ms");
    report.add("start with a current checkpoint", OURS, "max", latencies.quantile_ms(1.0), "ms");
    Ok(())
}
