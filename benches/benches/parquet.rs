//! The archive: rates of bulk load and merging, bytes per sample, and one hour of one series out of a
//! year of hourly files, against DuckDB on the same files where `scripts/test-tools` has made it.
//!
//! Prints Markdown. `PARQUET_HOURS` sets how many hours of 1000 series every 10 s are loaded (12).
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use chrono::Duration as Span;
use storage_benches::timing::{Latencies, median};
use storage_benches::tsbs::{Fleet, Values, first_time};
use storage_core::{SeriesFilter, StorageBackend, TimeRange};
use storage_parquet::{ParquetBackend, ParquetOptions};

const BATCH: usize = 500_000;
const REPETITIONS: usize = 30;
const YEAR_HOURS: i64 = 8760;

#[tokio::main]
async fn main() {
    let hours =
        std::env::var("PARQUET_HOURS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    println!("| values | load, M/s | merge, M/s | bytes per sample | DuckDB's |");
    println!("|---|---|---|---|---|");
    for values in [Values::Integers, Values::TwoDecimals, Values::FullPrecision] {
        load(values, hours).await;
    }
    println!("\n| one hour of one series | ms (p50) | files touched | bytes read |");
    println!("|---|---|---|---|");
    for hours in [24, YEAR_HOURS] {
        one_hour(hours).await;
    }
}

/// Options under which nothing is merged until it is asked for, and hours stay hours.
fn options(path: &Path) -> ParquetOptions {
    ParquetOptions::new(path)
        .merge_samples(100_000_000)
        .merge_files(100_000)
        .merge_after(Duration::from_secs(86_400))
        .day_after(Duration::from_secs(100 * 365 * 86_400))
}

async fn load(values: Values, hours: i64) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let store = ParquetBackend::open(options(dir.path())).await.unwrap();
    let mut fleet = Fleet::new(100, Span::seconds(10), values, 7).in_batches_of(BATCH);
    let (mut samples, mut loading) = (0, Duration::ZERO);
    while fleet.next_time() < first_time() + Span::hours(hours) {
        let batch = fleet.batch();
        let started = Instant::now();
        store.write_batch(batch).await.unwrap();
        loading += started.elapsed();
        samples += batch.len();
    }
    let started = Instant::now();
    store.compact().await.unwrap();
    let merging = started.elapsed();
    let bytes = data_bytes(&dir.path().join("data"));
    let per_sample = bytes as f64 / samples as f64;
    let rate = |time: Duration| samples as f64 / time.as_secs_f64() / 1e6;
    let theirs = duckdb(dir.path())
        .map_or("-".to_owned(), |(bytes, _)| format!("{:.3}", bytes as f64 / samples as f64));
    println!(
        "| {values:?} | {:.2} | {:.2} | {per_sample:.3} | {theirs} |",
        rate(loading),
        rate(merging)
    );
    if values == Values::Integers {
        double_groupby(&store, dir.path()).await;
    }
    store.close().await.unwrap();
}

/// The average of one field per host and hour, over everything.
async fn double_groupby(store: &ParquetBackend, path: &Path) {
    let filter = SeriesFilter::parse("*", "usage_user").unwrap();
    let mut times = Vec::new();
    for _ in 0..7 {
        let started = Instant::now();
        let found = store.windows(&filter, TimeRange::all(), Duration::from_secs(3600)).await;
        assert_eq!(found.unwrap().len(), 100);
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let theirs = duckdb(path).map_or("-".to_owned(), |(_, ms)| format!("{ms:.1}"));
    println!("| double-groupby-1: {:.1} ms, DuckDB {theirs} ms | | | | |", median(times));
}

fn data_bytes(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    let bytes = entries.map(|entry| match entry.file_type().unwrap().is_dir() {
        true => data_bytes(&entry.path()),
        false => entry.metadata().unwrap().len(),
    });
    bytes.sum()
}

/// The size of the same rows as DuckDB writes them, sorted, and its time for the double group-by
/// over our files, in milliseconds; none without DuckDB.
fn duckdb(path: &Path) -> Option<(u64, f64)> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-tools/bin/python");
    let script = r#"
import duckdb, os, statistics, sys, time
files = sys.argv[1] + "/data/**/*.parquet"
con = duckdb.connect()
out = sys.argv[1] + "/theirs.parquet"
con.execute(f"""COPY (SELECT server_id, timestamp, metric_type, value, metadata FROM read_parquet('{files}')
    ORDER BY server_id, metric_type, timestamp) TO '{out}' (FORMAT parquet, COMPRESSION zstd)""")
times = []
for _ in range(7):
    start = time.perf_counter()
    con.execute(f"""SELECT server_id, epoch_ms(timestamp) // 3600000 AS t, avg(value)
        FROM read_parquet('{files}') WHERE metric_type = 'usage_user' GROUP BY ALL""").fetchall()
    times.append((time.perf_counter() - start) * 1e3)
print(os.path.getsize(out), statistics.median(times))
os.remove(out)
"#;
    let output = Command::new(python).arg("-c").arg(script).arg(path).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (bytes, ms) = text.trim().split_once(' ')?;
    Some((bytes.parse().ok()?, ms.parse().ok()?))
}

/// 100 series every ten minutes, a file for each hour.
async fn one_hour(hours: i64) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let store = ParquetBackend::open(options(dir.path()).hour_samples(1)).await.unwrap();
    let batch = BATCH.min(600 * hours as usize);
    let mut fleet = Fleet::new(10, Span::minutes(10), Values::Integers, 7).in_batches_of(batch);
    while fleet.next_time() < first_time() + Span::hours(hours) {
        store.write_batch(fleet.batch()).await.unwrap();
    }
    store.compact().await.unwrap();
    let start = first_time() + Span::hours(hours / 2);
    let range = TimeRange::new(start, start + Span::hours(1)).unwrap();
    let mut latencies = Latencies::default();
    let mut touched = store.read_counts();
    for round in 0..REPETITIONS {
        let before = store.read_counts();
        let started = Instant::now();
        let found = store.query_range("host_3", "usage_idle", range).await.unwrap();
        let taken = started.elapsed();
        assert_eq!(found.len(), 6);
        let after = store.read_counts();
        (touched.files, touched.bytes) = (after.files - before.files, after.bytes - before.bytes);
        if round > 0 {
            latencies.push(taken);
        }
    }
    println!(
        "| {hours} hourly files | {:.3} | {} | {} |",
        latencies.quantile_ms(0.5),
        touched.files,
        touched.bytes
    );
    store.close().await.unwrap();
}
