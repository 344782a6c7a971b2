//! A whole year of one series that reports every 10 s: 3.15 million samples in one aggregate.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::Instant;

use chrono::Duration;
use storage_benches::options::Options;
use storage_benches::ours::Ours;
use storage_benches::report::{OURS, Report};
use storage_benches::timing::Latencies;
use storage_benches::tsbs::first_time;
use storage_core::{MetricRecord, StorageBackend, TimeRange};
use storage_sqlite::Synchronous;

const STEP_S: i64 = 10;
const YEAR_S: i64 = 365 * 86_400;
const BATCH: usize = 10_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    let mut report = Report::new("year", &options);
    report.progress("loading");
    let mut ours = Ours::open(Synchronous::Full).await?;
    let values = load(&mut ours).await?;
    ours.store.compact().await?;
    report.add("", OURS, "acknowledged", ours.writes.rate(), "samples/s");
    report.add("", OURS, "size sealed", ours.bytes_per_sample().await?, "B/sample");
    report.progress("aggregates");
    let latencies = aggregates(&ours, &values, options.scaled(500, 100)).await?;
    report.add("", OURS, "aggregate p50", latencies.quantile_ms(0.5), "ms");
    report.add("", OURS, "aggregate p99", latencies.quantile_ms(0.99), "ms");
    ours.store.close().await?;
    println!("{}", report.finish()?);
    Ok(())
}

async fn load(ours: &mut Ours) -> Result<Vec<f64>, Box<dyn Error>> {
    let mut random = fastrand::Rng::with_seed(8);
    let (mut values, mut walk) = (Vec::new(), 50i32);
    let mut records = Vec::with_capacity(BATCH);
    for step in 0..YEAR_S / STEP_S {
        walk = (walk + random.i32(-1..=1)).clamp(0, 100);
        values.push(f64::from(walk));
        let time = first_time() + Duration::seconds(step * STEP_S);
        records.push(MetricRecord::new("host_0", time, "usage_user", f64::from(walk)));
        if records.len() == BATCH {
            ours.write(&records).await?;
            records.clear();
        }
    }
    ours.write(&records).await?;
    Ok(values)
}

/// Aggregates that begin and end a few samples inside the year, so that both edges are cut.
async fn aggregates(
    ours: &Ours,
    values: &[f64],
    calls: usize,
) -> Result<Latencies, Box<dyn Error>> {
    let mut random = fastrand::Rng::with_seed(9);
    let mut latencies = Latencies::default();
    for _ in 0..calls {
        let (from, to) = (random.usize(..1000), values.len() - random.usize(..1000));
        let time = |index: usize| first_time() + Duration::seconds(index as i64 * STEP_S);
        let range = TimeRange::new(time(from), time(to))?;
        let before = Instant::now();
        let found = ours.store.aggregate("host_0", "usage_user", range).await?;
        latencies.push(before.elapsed());
        let expected = &values[from..to];
        let sum: f64 = expected.iter().sum();
        assert_eq!((found.count, found.sum), (expected.len() as u64, Some(sum)));
        assert_eq!(found.max, expected.iter().copied().max_by(f64::total_cmp));
    }
    Ok(latencies)
}
