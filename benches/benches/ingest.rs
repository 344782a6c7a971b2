//! How fast batches are acknowledged, against the plain row schema in the same run, both through
//! sqlx and both with `synchronous=FULL`.
//!
//! Prints a Markdown table. `INGEST_SECONDS` sets how long each measurement writes (2).
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqliteSynchronous};
use storage_benches::timing::{Latencies, median};
use storage_benches::tsbs::{Fleet, Values};
use storage_core::{MetricRecord, StorageBackend};
use storage_sqlite::{SqliteBackend, SqliteOptions, Synchronous};

const REPETITIONS: usize = 3;

struct Measured {
    samples_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
}

#[tokio::main]
async fn main() {
    let seconds = std::env::var("INGEST_SECONDS").ok().and_then(|text| text.parse().ok());
    let time = Duration::from_secs_f64(seconds.unwrap_or(2.0));
    println!("| batch | store | samples/s | p50 ms | p99 ms | times rows |");
    println!("|---|---|---|---|---|---|");
    for batch in [1000, 10_000] {
        let mut rates = [Vec::new(), Vec::new(), Vec::new()];
        let mut last: [Option<Measured>; 3] = [None, None, None];
        for _ in 0..REPETITIONS {
            let runs = [
                rows(batch, time).await,
                blocks(batch, time, Synchronous::Full).await,
                blocks(batch, time, Synchronous::Normal).await,
            ];
            for ((run, rates), last) in runs.into_iter().zip(&mut rates).zip(&mut last) {
                rates.push(run.samples_per_s);
                *last = Some(run);
            }
        }
        let rates = rates.map(median);
        let names = ["rows, synchronous=FULL", "blocks, full", "blocks, normal"];
        for ((name, rate), last) in names.into_iter().zip(rates).zip(last) {
            let last = last.unwrap();
            println!(
                "| {batch} | {name} | {rate:.0} | {:.3} | {:.3} | {:.1} |",
                last.p50_ms,
                last.p99_ms,
                rate / rates[0]
            );
        }
    }
}

async fn blocks(batch: usize, time: Duration, synchronous: Synchronous) -> Measured {
    let dir = tempfile::tempdir_in(".").unwrap();
    let options = SqliteOptions::new(dir.path().join("blocks.db")).synchronous(synchronous);
    let store = SqliteBackend::open(options).await.unwrap();
    let measured = measure(batch, time, async |records| store.write_batch(records).await.unwrap());
    let measured = measured.await;
    store.close().await.unwrap();
    measured
}

async fn rows(batch: usize, time: Duration) -> Measured {
    let dir = tempfile::tempdir_in(".").unwrap();
    let pool = row_store(&dir.path().join("rows.db")).await;
    let measured = measure(batch, time, async |records| insert_rows(&pool, records).await).await;
    pool.close().await;
    measured
}

/// The schema of the design that started the project: a row per sample, two indexes.
async fn row_store(path: &Path) -> SqlitePool {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    sqlx::raw_sql(
        "CREATE TABLE metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, server_id TEXT NOT NULL,
             timestamp INTEGER NOT NULL, metric_type TEXT NOT NULL, value REAL NOT NULL, metadata TEXT);
         CREATE INDEX idx_metrics_server_time ON metrics(server_id, timestamp DESC);
         CREATE INDEX idx_metrics_type_time ON metrics(metric_type, timestamp DESC);",
    )
    .execute(&pool)
    .await
    .unwrap();
    pool
}

async fn insert_rows(pool: &SqlitePool, records: &[MetricRecord]) {
    let mut transaction = pool.begin().await.unwrap();
    for record in records {
        sqlx::query(
            "INSERT INTO metrics (server_id, timestamp, metric_type, value, metadata)
             VALUES (?, ?, ?, ?, ?)",
        )
        .bind(&record.server_id)
        .bind(record.timestamp.timestamp_millis())
        .bind(&record.metric_type)
        .bind(record.value)
        .bind(None::<String>)
        .execute(&mut *transaction)
        .await
        .unwrap();
    }
    transaction.commit().await.unwrap();
}

async fn measure(batch: usize, time: Duration, write: impl AsyncFn(&[MetricRecord])) -> Measured {
    let mut fleet = Fleet::new(100, chrono::Duration::seconds(10), Values::Integers, 123);
    let (mut latencies, mut samples, mut busy) = (Latencies::default(), 0, Duration::ZERO);
    let started = Instant::now();
    while started.elapsed() < time {
        let records = fleet.batch(batch);
        let before = Instant::now();
        write(&records).await;
        let took = before.elapsed();
        latencies.push(took);
        busy += took;
        samples += records.len();
    }
    Measured {
        samples_per_s: samples as f64 / busy.as_secs_f64(),
        p50_ms: latencies.quantile_ms(0.5),
        p99_ms: latencies.quantile_ms(0.99),
    }
}
