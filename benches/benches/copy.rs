//! Copying SQLite to PostgreSQL, verified, against writing the same samples to the same PostgreSQL.
//!
//! `STORAGE_TEST_POSTGRES_URL` names the server; `scripts/bench` starts one, with syncs on.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::Instant;

use chrono::Duration;
use futures_util::TryStreamExt;
use storage_benches::options::Options;
use storage_benches::ours::Ours;
use storage_benches::report::{OURS, Report};
use storage_benches::timing::{median, median_ratio};
use storage_benches::tsbs::{Fleet, Values};
use storage_core::pipeline::{CopyOptions, copy};
use storage_core::{MetricRecord, SeriesFilter, StorageBackend, TimeRange};
use storage_postgres::{PostgresBackend, PostgresOptions};
use storage_sqlite::Synchronous;
use tokio_postgres::NoTls;

const HOSTS: usize = 100;
/// As many as a copy writes at once.
const BATCH: usize = 20_000;
const SCHEMA: &str = "bench_copy";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    let mut report = Report::new("copy", &options);
    let Ok(url) = std::env::var("STORAGE_TEST_POSTGRES_URL") else {
        report.add_missing("", OURS, "times writing", "no server: run it by scripts/bench");
        println!("{}", report.finish()?);
        return Ok(());
    };
    report.progress("loading");
    let mut source = Ours::open(Synchronous::Full).await?;
    let mut fleet = Fleet::new(HOSTS, Duration::seconds(10), Values::TwoDecimals, 1);
    fleet = fleet.in_batches_of(10_000);
    for _ in 0..options.scaled(100, 10) {
        source.write(fleet.batch()).await?;
    }
    source.store.compact().await?;
    let (mut writes, mut copies) = (Vec::new(), Vec::new());
    for round in 0..options.scaled(3, 1) {
        report.progress(&format!("round {}", round + 1));
        writes.push(write(&source, &url).await?);
        copies.push(copy_all(&source, &url).await?);
    }
    let ratio = median_ratio(&copies, &writes);
    report.add("", OURS, "writing to PostgreSQL", median(writes), "samples/s");
    report.add("", OURS, "copying, verified", median(copies), "samples/s");
    report.add("", OURS, "times writing", ratio, "x");
    source.store.close().await?;
    remove(&url).await?;
    println!("{}", report.finish()?);
    Ok(())
}

/// Returns samples a second of plain writes, in the order in which a copy writes.
async fn write(source: &Ours, url: &str) -> Result<f64, Box<dyn Error>> {
    let store = open(url).await?;
    let mut all: Vec<MetricRecord> = Vec::new();
    let mut scan = source.store.scan(&SeriesFilter::any(), TimeRange::all());
    while let Some(batch) = scan.try_next().await? {
        let series = batch.series;
        all.extend(batch.samples.into_iter().map(|sample| sample.into_record(&series)));
    }
    let before = Instant::now();
    for batch in all.chunks(BATCH) {
        store.write_batch(batch).await?;
    }
    let rate = all.len() as f64 / before.elapsed().as_secs_f64();
    store.close().await?;
    Ok(rate)
}

async fn copy_all(source: &Ours, url: &str) -> Result<f64, Box<dyn Error>> {
    let store = open(url).await?;
    let before = Instant::now();
    let report = copy(&source.store, &store, &CopyOptions::default(), |_| {}).await?;
    let rate = report.source.samples as f64 / before.elapsed().as_secs_f64();
    assert_eq!(report.samples_copied, source.store.stats().await?.total_metrics);
    store.close().await?;
    Ok(rate)
}

/// Opens an empty store.
async fn open(url: &str) -> Result<PostgresBackend, Box<dyn Error>> {
    remove(url).await?;
    let options = PostgresOptions::from_url(url)?.schema(SCHEMA)?;
    Ok(PostgresBackend::open(options).await?)
}

async fn remove(url: &str) -> Result<(), Box<dyn Error>> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    let connection = tokio::spawn(connection);
    client.batch_execute(&format!("DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")).await?;
    drop(client);
    connection.await??;
    Ok(())
}
