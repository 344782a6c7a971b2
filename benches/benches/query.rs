//! How fast the questions of TSBS `cpu-only` are answered after a day of data at scale 100: 8.64
//! million samples of 1000 series. Every answer is compared with the in-memory backend's.
//!
//! Prints a Markdown table. `QUERY_TICKS` sets how many steps of 10 s are loaded (8640, a day).
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::Instant;

use chrono::Duration;
use storage_benches::queries::{Draw, QUESTIONS, Row, ask};
use storage_benches::timing::Latencies;
use storage_benches::tsbs::{FIELDS, Fleet, Values, first_time};
use storage_core::{InMemory, StorageBackend, TimeRange};
use storage_sqlite::{SqliteBackend, SqliteOptions};

const HOSTS: usize = 100;

/// How often each question is asked, each time of other hosts and times.
const CALLS: usize = 200;

#[tokio::main]
async fn main() {
    let ticks = std::env::var("QUERY_TICKS").ok().and_then(|text| text.parse().ok());
    let dir = tempfile::tempdir_in(".").unwrap();
    let store = SqliteBackend::open(SqliteOptions::new(dir.path().join("day.db"))).await.unwrap();
    let reference = InMemory::new();
    let data = load(&store, &reference, ticks.unwrap_or(8640)).await;

    println!("| question | p50 ms | p99 ms | rows |\n|---|---|---|---|");
    for (name, question) in QUESTIONS {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut latencies, mut rows) = (Latencies::default(), 0);
        for _ in 0..CALLS {
            let draw = Draw::of(*question, HOSTS, data, &mut random);
            let before = Instant::now();
            let answer = ask(&store, *question, &draw).await.unwrap();
            latencies.push(before.elapsed());
            rows = rows.max(answer.len());
            let expected = ask(&reference, *question, &draw).await.unwrap();
            assert_same(name, &answer, &expected);
        }
        show(name, latencies, rows);
    }
    show_one_series(&store, &reference, data).await;
    store.close().await.unwrap();
}

async fn load(store: &SqliteBackend, reference: &InMemory, ticks: usize) -> TimeRange {
    let mut fleet = Fleet::new(HOSTS, Duration::seconds(10), Values::Integers, 123);
    let mut busy = std::time::Duration::ZERO;
    for _ in 0..ticks {
        let records = fleet.tick();
        let before = Instant::now();
        store.write_batch(records).await.unwrap();
        busy += before.elapsed();
        reference.write_batch(records).await.unwrap();
    }
    let samples = (ticks * HOSTS * FIELDS.len()) as f64;
    store.compact().await.unwrap();
    let bytes = store.stats().await.unwrap().disk_usage_bytes as f64;
    let rate = samples / busy.as_secs_f64();
    println!(
        "loaded {samples:.0} samples at {rate:.0} a second; {:.3} bytes each\n",
        bytes / samples
    );
    TimeRange::new(first_time(), fleet.next_time()).unwrap()
}

/// The questions that are not the suite's: one hour of one series, and the store as a whole.
async fn show_one_series(store: &SqliteBackend, reference: &InMemory, data: TimeRange) {
    let mut random = fastrand::Rng::with_seed(7);
    let span_s = (data.end() - data.start()).num_seconds() - 3600;
    let (mut hour, mut whole, mut stats) = Default::default();
    let timed = |latencies: &mut Latencies, before: Instant| latencies.push(before.elapsed());
    for _ in 0..CALLS {
        let (host, field) = (format!("host_{}", random.usize(..HOSTS)), FIELDS[random.usize(..10)]);
        let start = data.start() + Duration::seconds(random.i64(0..span_s.max(1)));
        let range = TimeRange::new(start, start + Duration::hours(1)).unwrap();
        let before = Instant::now();
        let found = store.query_range(&host, field, range).await.unwrap();
        timed(&mut hour, before);
        assert!(found == reference.query_range(&host, field, range).await.unwrap());
        let before = Instant::now();
        let found = store.aggregate(&host, field, data).await.unwrap();
        timed(&mut whole, before);
        assert_eq!(found, reference.aggregate(&host, field, data).await.unwrap());
        let before = Instant::now();
        let found = store.stats().await.unwrap().total_metrics;
        timed(&mut stats, before);
        assert_eq!(found, reference.stats().await.unwrap().total_metrics);
    }
    show("query_range, one hour of one series", hour, 360);
    show("aggregate, everything of one series", whole, 1);
    show("stats", stats, 1);
}

fn show(name: &str, mut latencies: Latencies, rows: usize) {
    let (p50, p99) = (latencies.quantile_ms(0.5), latencies.quantile_ms(0.99));
    println!("| {name} | {p50:.3} | {p99:.3} | {rows} |");
}

fn assert_same(name: &str, answer: &[Row], expected: &[Row]) {
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs().max(1.0);
    let same = |(a, b): (&Row, &Row)| a.0 == b.0 && a.1 == b.1 && close(a.2, b.2);
    assert!(
        answer.len() == expected.len() && answer.iter().zip(expected).all(same),
        "{name}: {} rows, expected {}",
        answer.len(),
        expected.len()
    );
}
