//! What does not come in order: a tenth of the samples up to a day late, and existing samples
//! written again with other values.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::Instant;

use storage_benches::disorder::LateFleet;
use storage_benches::options::Options;
use storage_benches::ours::Ours;
use storage_benches::report::{OURS, Report};
use storage_benches::timing::Writes;
use storage_benches::tsbs::{Fleet, Values};
use storage_core::{MetricRecord, SeriesFilter, StorageBackend, TimeRange};
use storage_sqlite::Synchronous;

const DAY_STEPS: usize = 8640;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    let mut report = Report::new("disorder", &options);
    let steps = options.scaled(DAY_STEPS, DAY_STEPS / 10);
    late(&mut report, steps).await?;
    rewrites(&mut report, steps).await?;
    println!("{}", report.finish()?);
    Ok(())
}

fn fleet() -> Fleet {
    Fleet::new(100, chrono::Duration::seconds(10), Values::Integers, 123)
}

async fn late(report: &mut Report, steps: usize) -> Result<(), Box<dyn Error>> {
    report.progress("a tenth of the samples late");
    let mut ours = Ours::open(Synchronous::Full).await?;
    let mut arriving = LateFleet::new(fleet(), steps, DAY_STEPS, 5);
    let mut expected = 0.0;
    let started = Instant::now();
    while let Some(batch) = arriving.batch() {
        expected += sum_of(&batch);
        if !batch.is_empty() {
            ours.write(&batch).await?;
        }
    }
    finish(report, "late", &ours, started).await?;
    check(&ours, ours.writes.samples, expected).await?;
    ours.store.close().await?;
    Ok(())
}

async fn rewrites(report: &mut Report, steps: usize) -> Result<(), Box<dyn Error>> {
    report.progress("a tenth of the samples written again");
    let mut ours = Ours::open(Synchronous::Full).await?;
    let (mut fleet, mut random) = (fleet(), fastrand::Rng::with_seed(6));
    let (mut again, mut expected) = (Vec::new(), 0.0);
    for _ in 0..steps {
        let batch = fleet.batch();
        ours.write(batch).await?;
        expected += sum_of(batch);
        if random.usize(..10) == 0 {
            again.push(batch.to_vec());
        }
    }
    ours.store.compact().await?;
    let stored = ours.writes.samples;
    ours.writes = Writes::default();
    random.shuffle(&mut again);
    let started = Instant::now();
    for batch in &mut again {
        expected += batch.len() as f64;
        batch.iter_mut().for_each(|record| record.value += 1.0);
        ours.write(batch).await?;
    }
    finish(report, "rewrites", &ours, started).await?;
    check(&ours, stored, expected).await?;
    ours.store.close().await?;
    Ok(())
}

fn sum_of(batch: &[MetricRecord]) -> f64 {
    batch.iter().map(|record| record.value).sum()
}

async fn finish(
    report: &mut Report,
    what: &str,
    ours: &Ours,
    started: Instant,
) -> Result<(), Box<dyn Error>> {
    ours.store.compact().await?;
    let sustained = ours.writes.samples as f64 / started.elapsed().as_secs_f64();
    report.add(what, OURS, "acknowledged", ours.writes.rate(), "samples/s");
    report.add(what, OURS, "sustained, sealing included", sustained, "samples/s");
    for (metric, quantile) in [("write p50", 0.5), ("write p99", 0.99), ("write max", 1.0)] {
        report.add(what, OURS, metric, ours.writes.latencies.quantile_ms(quantile), "ms");
    }
    report.add(what, OURS, "size sealed", ours.bytes_per_sample().await?, "B/sample");
    Ok(())
}

/// Nothing is lost, doubled or old: the values are whole, so that their sum is exact.
async fn check(ours: &Ours, samples: usize, sum: f64) -> Result<(), Box<dyn Error>> {
    let (mut count, mut found) = (0, 0.0);
    for info in ours.store.series(&SeriesFilter::any()).await? {
        let series = info.series;
        let all = TimeRange::all();
        let aggregation = ours.store.aggregate(&series.server_id, &series.metric_type, all).await?;
        count += aggregation.count;
        found += aggregation.sum.unwrap_or(0.0);
    }
    assert_eq!((count, found), (samples as u64, sum));
    Ok(())
}
