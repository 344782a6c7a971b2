//! How fast questions are answered after a day of TSBS `cpu-only` data at scale 100: 8.64 million
//! samples of 1000 series.
//!
//! Prints a Markdown table. `QUERY_TICKS` sets how many steps of 10 s are loaded (8640, a day).
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::Instant;

use chrono::Duration;
use storage_benches::timing::Latencies;
use storage_benches::tsbs::{FIELDS, Fleet, Values, first_time};
use storage_core::{SeriesFilter, StorageBackend, TimeRange};
use storage_sqlite::{SqliteBackend, SqliteOptions};

const CALLS: usize = 300;

#[tokio::main]
async fn main() {
    let ticks = std::env::var("QUERY_TICKS").ok().and_then(|text| text.parse().ok());
    let ticks: usize = ticks.unwrap_or(8640);
    let dir = tempfile::tempdir_in(".").unwrap();
    let store = SqliteBackend::open(SqliteOptions::new(dir.path().join("day.db"))).await.unwrap();
    let end = load(&store, ticks).await;
    println!("| question | p50 ms | p99 ms |");
    println!("|---|---|---|");
    let hour = Duration::hours(1);
    let span_s = (end - first_time() - hour).num_seconds().max(1);
    let mut random = fastrand::Rng::with_seed(7);
    let mut pick = move || {
        let start = first_time() + Duration::seconds(random.i64(0..span_s));
        (format!("host_{}", random.usize(0..100)), *random.choice(&FIELDS).unwrap(), start)
    };
    let mut one = Latencies::default();
    let mut aggregate = Latencies::default();
    let mut windows = Latencies::default();
    for _ in 0..CALLS {
        let (host, field, start) = pick();
        let range = TimeRange::new(start, start + hour).unwrap();
        let before = Instant::now();
        let found = store.query_range(&host, field, range).await.unwrap();
        one.push(before.elapsed());
        assert!((359..=361).contains(&found.len()), "{}", found.len());
        let before = Instant::now();
        let counted = store.aggregate(&host, field, range).await.unwrap().count;
        aggregate.push(before.elapsed());
        assert_eq!(counted, found.len() as u64);
        let filter = SeriesFilter::exact(&host, field).unwrap();
        let before = Instant::now();
        store.windows(&filter, range, std::time::Duration::from_secs(60)).await.unwrap();
        windows.push(before.elapsed());
    }
    let mut last = Latencies::default();
    for _ in 0..20 {
        let before = Instant::now();
        assert_eq!(store.latest(&SeriesFilter::any(), 1).await.unwrap().len(), 1000);
        last.push(before.elapsed());
    }
    let mut stats = Latencies::default();
    for _ in 0..20 {
        let before = Instant::now();
        assert_eq!(store.stats().await.unwrap().total_metrics, ticks as u64 * 1000);
        stats.push(before.elapsed());
    }
    for (name, mut latencies) in [
        ("query_range, one hour of one series", one),
        ("aggregate, one hour of one series", aggregate),
        ("windows, one hour of one series by the minute", windows),
        ("latest, one sample of each of 1000 series", last),
        ("stats", stats),
    ] {
        println!(
            "| {name} | {:.3} | {:.3} |",
            latencies.quantile_ms(0.5),
            latencies.quantile_ms(0.99)
        );
    }
    store.close().await.unwrap();
}

async fn load(store: &SqliteBackend, ticks: usize) -> chrono::DateTime<chrono::Utc> {
    let mut fleet = Fleet::new(100, Duration::seconds(10), Values::Integers, 123);
    let before = Instant::now();
    for _ in 0..ticks {
        store.write_batch(fleet.tick()).await.unwrap();
    }
    let seconds = before.elapsed().as_secs_f64();
    let samples = ticks as f64 * 1000.0;
    store.compact().await.unwrap();
    let bytes = store.stats().await.unwrap().disk_usage_bytes as f64;
    println!(
        "loaded {samples:.0} samples at {:.0} a second; {:.2} bytes each\n",
        samples / seconds,
        bytes / samples
    );
    fleet.next_time()
}
