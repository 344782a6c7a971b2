//! How fast batches are acknowledged: 1000 series, batches of three sizes, both modes of
//! durability, in turns.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::{Duration, Instant};

use storage_benches::options::Options;
use storage_benches::ours::{MODES, Ours};
use storage_benches::report::{OURS, Report};
use storage_benches::timing::{Latencies, median};
use storage_benches::tsbs::{Fleet, Values};
use storage_core::StorageBackend;
use storage_sqlite::Synchronous;

const BATCHES: [usize; 3] = [100, 1000, 10_000];
const REPETITIONS: usize = 3;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    let mut report = Report::new("ingest", &options);
    let time = Duration::from_millis(options.scaled(3000, 500) as u64);
    for batch in BATCHES {
        report.progress(&format!("batches of {batch}"));
        let (mut rates, mut latencies) = <([Vec<f64>; 2], [Latencies; 2])>::default();
        for _ in 0..REPETITIONS {
            for (index, (_, synchronous)) in MODES.into_iter().enumerate() {
                let ours = write_for(time, batch, synchronous).await?;
                rates[index].push(ours.writes.rate());
                latencies[index].extend(&ours.writes.latencies);
                ours.store.close().await?;
            }
        }
        for (((mode, _), rates), latencies) in MODES.into_iter().zip(rates).zip(latencies) {
            let what = format!("{batch} {mode}");
            report.add(&what, OURS, "acknowledged", median(rates), "samples/s");
            for (metric, quantile) in [("write p50", 0.5), ("write p99", 0.99), ("write max", 1.0)]
            {
                report.add(&what, OURS, metric, latencies.quantile_ms(quantile), "ms");
            }
        }
    }
    println!("{}", report.finish()?);
    Ok(())
}

async fn write_for(
    time: Duration,
    batch: usize,
    synchronous: Synchronous,
) -> Result<Ours, Box<dyn Error>> {
    let fleet = Fleet::new(100, chrono::Duration::seconds(10), Values::Integers, 123);
    let mut fleet = fleet.in_batches_of(batch);
    let mut ours = Ours::open(synchronous).await?;
    let started = Instant::now();
    while started.elapsed() < time {
        ours.write(fleet.batch()).await?;
    }
    Ok(ours)
}
