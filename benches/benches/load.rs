//! A day of TSBS `cpu-only` at scale 100, 8.64 million samples of 1000 series: rate with sealing
//! included, peak memory, size, for three kinds of values.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::Instant;

use storage_benches::machine::peak_memory_mib;
use storage_benches::options::Options;
use storage_benches::ours::Ours;
use storage_benches::report::{OURS, Report};
use storage_benches::tsbs::{Fleet, Values};
use storage_core::StorageBackend;
use storage_sqlite::Synchronous;

const DAY_STEPS: usize = 8640;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    let mut report = Report::new("load", &options);
    let steps = options.scaled(DAY_STEPS, DAY_STEPS / 10);
    let before = peak_memory_mib();
    load(&mut report, "1000 full integers", 1000, Values::Integers, steps).await?;
    // Only the first load: later ones find memory that this one has left.
    report.add("1000 full integers", OURS, "peak memory", peak_memory_mib(), "MiB");
    report.add("1000 full integers", OURS, "peak memory before", before, "MiB");
    load(&mut report, "1000 full two decimals", 1000, Values::TwoDecimals, steps).await?;
    load(&mut report, "1000 full full precision", 1000, Values::FullPrecision, steps).await?;
    load(&mut report, "100 full integers", 100, Values::Integers, steps / 4).await?;
    load(&mut report, "10000 full integers", 10_000, Values::Integers, steps).await?;
    println!("{}", report.finish()?);
    Ok(())
}

async fn load(
    report: &mut Report,
    what: &str,
    batch: usize,
    values: Values,
    steps: usize,
) -> Result<(), Box<dyn Error>> {
    report.progress(what);
    let fleet = Fleet::new(100, chrono::Duration::seconds(10), values, 123);
    let mut fleet = fleet.in_batches_of(batch);
    let mut ours = Ours::open(Synchronous::Full).await?;
    let started = Instant::now();
    for _ in 0..fleet.batches_in(steps) {
        ours.write(fleet.batch()).await?;
    }
    let at_once = ours.bytes_per_sample().await?;
    ours.store.compact().await?;
    let sustained = ours.writes.samples as f64 / started.elapsed().as_secs_f64();
    assert_eq!(ours.store.stats().await?.total_metrics, ours.writes.samples as u64);
    report.add(what, OURS, "acknowledged", ours.writes.rate(), "samples/s");
    // The clock on the wall, with making the data, until all is sealed.
    report.add(what, OURS, "sustained, sealing included", sustained, "samples/s");
    for (metric, quantile) in [("write p50", 0.5), ("write p99", 0.99), ("write max", 1.0)] {
        report.add(what, OURS, metric, ours.writes.latencies.quantile_ms(quantile), "ms");
    }
    report.add(what, OURS, "size at the end of the load", at_once, "B/sample");
    report.add(what, OURS, "size sealed", ours.bytes_per_sample().await?, "B/sample");
    ours.store.close().await?;
    Ok(())
}
