//! Many series: 100,000 of them report every 10 s, for a simulated hour as fast as it goes.
//!
//! Prints a Markdown table. `WIDE_TICKS` sets how many steps of 10 s are written (360, an hour).
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use storage_benches::timing::Latencies;
use storage_benches::tsbs::{FIELDS, Fleet, Values};
use storage_core::{SeriesFilter, StorageBackend, TimeRange};
use storage_sqlite::{SqliteBackend, SqliteOptions};

const HOSTS: usize = 10_000;
const BATCH: usize = 10_000;

#[tokio::main]
async fn main() {
    let ticks = std::env::var("WIDE_TICKS").ok().and_then(|text| text.parse().ok());
    let ticks: usize = ticks.unwrap_or(360);
    let dir = tempfile::tempdir_in(".").unwrap();
    let store = SqliteBackend::open(SqliteOptions::new(dir.path().join("wide.db"))).await.unwrap();
    let mut fleet = Fleet::new(HOSTS, chrono::Duration::seconds(10), Values::Integers, 123);
    let memory_before = peak_memory_mib();
    let (mut writes, mut busy) = (Latencies::default(), Duration::ZERO);
    for _ in 0..ticks {
        for batch in fleet.tick().chunks(BATCH) {
            let before = Instant::now();
            store.write_batch(batch).await.unwrap();
            writes.push(before.elapsed());
            busy += before.elapsed();
        }
    }
    let memory_load = peak_memory_mib();
    let samples = (ticks * HOSTS * FIELDS.len()) as f64;
    let mut last = Latencies::default();
    for _ in 0..10 {
        let before = Instant::now();
        assert_eq!(store.latest(&SeriesFilter::any(), 1).await.unwrap().len(), HOSTS * 10);
        last.push(before.elapsed());
    }
    let mut recent = Latencies::default();
    let end = fleet.next_time();
    let range = TimeRange::new(end - chrono::Duration::minutes(10), end).unwrap();
    for host in 0..100 {
        let before = Instant::now();
        let host = format!("host_{}", host * 97);
        let found = store.query_range(&host, FIELDS[3], range).await.unwrap();
        assert_eq!(found.len(), ticks.min(60));
        recent.push(before.elapsed());
    }
    let unsealed = store.stats().await.unwrap().disk_usage_bytes as f64;
    store.compact().await.unwrap();
    let sealed = store.stats().await.unwrap();
    assert_eq!(sealed.total_metrics, samples as u64);
    println!("| what | value |\n|---|---|");
    println!("| samples | {samples:.0} |");
    println!("| samples acknowledged a second | {:.0} |", samples / busy.as_secs_f64());
    println!("| write of {BATCH}, p50 ms | {:.2} |", writes.quantile_ms(0.5));
    println!("| write of {BATCH}, p99 ms | {:.2} |", writes.quantile_ms(0.99));
    println!("| peak memory before, MiB | {memory_before} |");
    println!("| peak memory of the load, MiB | {memory_load} |");
    println!("| last ten minutes of one series, p50 ms | {:.3} |", recent.quantile_ms(0.5));
    println!("| newest sample of every series, p50 ms | {:.1} |", last.quantile_ms(0.5));
    println!("| bytes a sample on disk at the end of the load | {:.2} |", unsealed / samples);
    let compacted = sealed.disk_usage_bytes as f64 / samples;
    println!("| bytes a sample on disk when compacted | {compacted:.2} |");
    store.close().await.unwrap();
}

/// The largest resident memory of this process so far.
fn peak_memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    kib.unwrap_or(0u64) / 1024
}
