//! A day in batches of 1000 as fast as they are acknowledged, the same samples for all engines, in
//! turns.

use std::time::Instant;

use storage_benches::machine::scratch;
use storage_benches::options::Options;
use storage_benches::report::{OURS, Report};
use storage_benches::timing::{Latencies, Writes, median, median_ratio};
use storage_benches::tsbs::{Fleet, Values};

use crate::engine::{Engine, KINDS, Mode, Result};

/// A step of 10 s of all series is a batch.
const DAY_BATCHES: usize = 8640;
const REPETITIONS: usize = 3;
const RATIOS_TO: [&str; 2] = ["tsink", "rusqlite"];

/// What one engine did in all repetitions.
#[derive(Default)]
struct Measured {
    rates: Vec<f64>,
    latencies: Latencies,
    missing: Option<&'static str>,
}

/// Measures all engines in both modes.
pub(crate) fn run(report: &mut Report, options: &Options) -> Result<()> {
    // Not a time: an engine that is slower would have less to keep in order.
    let batches = options.scaled(DAY_BATCHES, DAY_BATCHES / 10);
    for mode in [Mode::Durable, Mode::Periodic] {
        let mut measured: [Measured; KINDS.len()] = Default::default();
        for repetition in 1..=REPETITIONS {
            for (kind, measured) in KINDS.iter().zip(&mut measured) {
                let folder = scratch()?;
                match (kind.open)(folder.path(), mode)? {
                    Ok(mut engine) => {
                        report.progress(&format!("{}, {}, {repetition}", kind.name, mode.name()));
                        let writes = write(engine.as_mut(), batches)?;
                        measured.rates.push(writes.rate());
                        measured.latencies.extend(&writes.latencies);
                    }
                    Err(why) => measured.missing = Some(why),
                }
            }
        }
        add(report, mode, &measured);
    }
    Ok(())
}

fn write(engine: &mut dyn Engine, batches: usize) -> Result<Writes> {
    let mut fleet = Fleet::new(100, chrono::Duration::seconds(10), Values::Integers, 123);
    let mut writes = Writes::default();
    for _ in 0..batches {
        let records = fleet.batch();
        let before = Instant::now();
        engine.write(records)?;
        writes.acknowledged(before, records.len());
    }
    Ok(writes)
}

fn add(report: &mut Report, mode: Mode, measured: &[Measured]) {
    let what = format!("ingest 1000 {}", mode.name());
    for (kind, measured) in KINDS.iter().zip(measured) {
        if let Some(why) = measured.missing {
            report.add_missing(&what, kind.name, "acknowledged", why);
            continue;
        }
        let rate = median(measured.rates.clone());
        report.add(&what, kind.name, "acknowledged", rate, "samples/s");
        for (metric, quantile) in [("write p50", 0.5), ("write p99", 0.99), ("write max", 1.0)] {
            report.add(&what, kind.name, metric, measured.latencies.quantile_ms(quantile), "ms");
        }
    }
    for (kind, measured_rival) in KINDS.iter().zip(measured) {
        if RATIOS_TO.contains(&kind.name) {
            let ratio = median_ratio(&measured[0].rates, &measured_rival.rates);
            report.add(&what, OURS, &format!("times {}", kind.name), ratio, "");
        }
    }
}
