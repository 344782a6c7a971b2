//! What group commit gives: 16 callers with 100 samples each, against one such caller.
//!
//! It shares the cost of a sync, so it gives as much as that is. Where syncs cost next to nothing
//! one caller alone is as fast as many; `scripts/bench --only slow-disk` makes each take 2 ms. What
//! one caller reaches who hands over the 1600 samples at once is the most that sharing can give.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use storage_benches::machine::scratch;
use storage_benches::options::Options;
use storage_benches::report::{OURS, Report};
use storage_benches::timing::{Latencies, median, median_ratio};
use storage_benches::tsbs::{FIELDS, Fleet, Values, first_time};
use storage_core::{MetricRecord, StorageBackend};
use storage_sqlite::{SqliteBackend, SqliteOptions};

/// Callers and the samples of each of their batches.
const CASES: [(usize, usize); 3] = [(1, 100), (16, 100), (1, 1600)];
const REPETITIONS: usize = 3;

/// Batches that a caller makes before the clock starts, so that the store alone is measured; then
/// it writes them in turn, at new times.
const PREPARED: usize = 256;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    let bench = if options.slow_disk { "slow-disk" } else { "callers" };
    let mut report = Report::new(bench, &options);
    let time = Duration::from_millis(options.scaled(3000, 500) as u64);
    let (mut rates, mut latencies) = <([Vec<f64>; 3], [Latencies; 3])>::default();
    for repetition in 0..REPETITIONS {
        report.progress(&format!("repetition {repetition}"));
        for (index, (callers, batch)) in CASES.into_iter().enumerate() {
            let (rate, calls) = write_together(callers, batch, time).await?;
            rates[index].push(rate);
            latencies[index].extend(&calls);
        }
    }
    for (index, (callers, batch)) in CASES.into_iter().enumerate() {
        let what = format!("{callers} of {batch}");
        let latencies = &latencies[index];
        report.add(&what, OURS, "acknowledged", median(rates[index].clone()), "samples/s");
        report.add(&what, OURS, "write p50", latencies.quantile_ms(0.5), "ms");
        report.add(&what, OURS, "write p99", latencies.quantile_ms(0.99), "ms");
        if index > 0 {
            let ratio = median_ratio(&rates[index], &rates[0]);
            report.add(&what, OURS, "times one caller", ratio, "");
        }
    }
    println!("{}", report.finish()?);
    Ok(())
}

/// Returns samples a second of all callers together, and their calls.
async fn write_together(
    callers: usize,
    batch: usize,
    time: Duration,
) -> Result<(f64, Latencies), Box<dyn Error>> {
    let dir = scratch()?;
    let options = SqliteOptions::new(dir.path().join("bench.db"));
    let store = Arc::new(SqliteBackend::open(options).await?);
    let prepared: Vec<_> = (0..callers as u64).map(|seed| prepare(seed, batch)).collect();
    for batches in &prepared {
        // Their series are known when the clock starts.
        store.write_batch(&batches[0]).await?;
    }
    let started = Instant::now();
    let tasks = prepared.into_iter().map(|batches| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { write_alone(&store, batches, started + time).await })
    });
    let mut all = Latencies::default();
    for task in tasks.collect::<Vec<_>>() {
        all.extend(&task.await??);
    }
    let rate = (all.calls() * batch) as f64 / started.elapsed().as_secs_f64();
    store.close().await?;
    Ok((rate, all))
}

/// Makes the batches of a caller, who has hosts of its own.
fn prepare(seed: u64, batch: usize) -> Vec<Vec<MetricRecord>> {
    let mut fleet = Fleet::new(batch / FIELDS.len(), step(), Values::Integers, seed).renamed(seed);
    (0..PREPARED).map(|_| fleet.batch().to_vec()).collect()
}

fn step() -> chrono::Duration {
    chrono::Duration::seconds(10)
}

async fn write_alone(
    store: &SqliteBackend,
    mut batches: Vec<Vec<MetricRecord>>,
    end: Instant,
) -> storage_core::Result<Latencies> {
    let mut latencies = Latencies::default();
    let mut next = first_time() + step();
    for index in (0..PREPARED).cycle() {
        if Instant::now() >= end {
            break;
        }
        batches[index].iter_mut().for_each(|record| record.timestamp = next);
        next += step();
        let before = Instant::now();
        store.write_batch(&batches[index]).await?;
        latencies.push(before.elapsed());
    }
    Ok(latencies)
}
