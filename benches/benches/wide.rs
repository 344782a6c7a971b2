//! Many series: 100,000 of them report every 10 s, for a simulated hour as fast as it goes.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::Instant;

use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use storage_benches::machine::{disk_bytes, peak_memory_mib};
use storage_benches::options::Options;
use storage_benches::ours::Ours;
use storage_benches::report::{OURS, Report};
use storage_benches::timing::Latencies;
use storage_benches::tsbs::{FIELDS, Fleet, Values};
use storage_core::{SeriesFilter, StorageBackend, TimeRange};
use storage_sqlite::Synchronous;

const HOSTS: usize = 10_000;
const BATCH: usize = 10_000;
const HOUR_STEPS: usize = 360;

/// The journal is looked at after this many batches.
const JOURNAL_EVERY: usize = 20;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    let mut report = Report::new("wide", &options);
    let steps = options.scaled(HOUR_STEPS, HOUR_STEPS / 10);
    let fleet = Fleet::new(HOSTS, chrono::Duration::seconds(10), Values::Integers, 123);
    let mut fleet = fleet.in_batches_of(BATCH);
    report.add("", OURS, "peak memory before", peak_memory_mib(), "MiB");
    let mut ours = Ours::open(Synchronous::Full).await?;
    let started = Instant::now();
    let journal = load(&mut report, &mut ours, &mut fleet, steps).await?;
    let loaded = started.elapsed();
    report.add("", OURS, "peak memory", peak_memory_mib(), "MiB");
    let at_once = ours.bytes_per_sample().await?;

    let (lastpoint, minutes) = ask(&ours, &fleet, steps).await?;
    let before = Instant::now();
    ours.store.compact().await?;
    let sealed = before.elapsed();
    assert_eq!(ours.store.stats().await?.total_metrics, ours.writes.samples as u64);

    add_writes(&mut report, &ours);
    let sustained = ours.writes.samples as f64 / (loaded + sealed).as_secs_f64();
    report.add("", OURS, "sustained, sealing included", sustained, "samples/s");
    journal.add_to(&mut report);
    report.add("", OURS, "size at the end of the load", at_once, "B/sample");
    report.add("", OURS, "size sealed", ours.bytes_per_sample().await?, "B/sample");
    report.add("", OURS, "last ten minutes of a series, p50", minutes.quantile_ms(0.5), "ms");
    report.add("", OURS, "last ten minutes of a series, p99", minutes.quantile_ms(0.99), "ms");
    report.add("", OURS, "lastpoint p50", lastpoint.quantile_ms(0.5), "ms");
    report.add("", OURS, "lastpoint max", lastpoint.quantile_ms(1.0), "ms");
    ours.store.close().await?;
    println!("{}", report.finish()?);
    Ok(())
}

/// What waits unsealed during the load, and what lies on disk.
#[derive(Default)]
struct Journal {
    samples: Vec<i64>,
    disk_bytes_max: u64,
}

impl Journal {
    fn add_to(&self, report: &mut Report) {
        let (first, second) = self.samples.split_at(self.samples.len() / 2);
        let max = |half: &[i64]| half.iter().copied().max().unwrap_or(0) as f64;
        report.add("", OURS, "journal at most", max(&self.samples), "samples");
        report.add("", OURS, "journal, second half by first", max(second) / max(first), "");
        let mib = self.disk_bytes_max as f64 / f64::from(1 << 20);
        report.add("", OURS, "files at most", mib, "MiB");
    }
}

async fn load(
    report: &mut Report,
    ours: &mut Ours,
    fleet: &mut Fleet,
    steps: usize,
) -> Result<Journal, Box<dyn Error>> {
    let options = SqliteConnectOptions::new().filename(ours.file()).read_only(true);
    let mut connection = SqliteConnection::connect_with(&options).await?;
    let mut journal = Journal::default();
    let batches = fleet.batches_in(steps);
    for batch in 0..batches {
        ours.write(fleet.batch()).await?;
        if batch % JOURNAL_EVERY == 0 {
            let waiting = sqlx::query_scalar("SELECT coalesce(sum(rows), 0) FROM journal");
            journal.samples.push(waiting.fetch_one(&mut connection).await?);
            journal.disk_bytes_max = journal.disk_bytes_max.max(disk_bytes(ours.folder()));
        }
        if batch % 720 == 719 {
            report.progress(&format!("{} of {batches} batches", batch + 1));
        }
    }
    connection.close().await?;
    Ok(journal)
}

/// The newest sample of everything, and the last ten minutes of some series.
async fn ask(
    ours: &Ours,
    fleet: &Fleet,
    steps: usize,
) -> Result<(Latencies, Latencies), Box<dyn Error>> {
    let (mut lastpoint, mut minutes) = <(Latencies, Latencies)>::default();
    let end = fleet.next_time();
    let range = TimeRange::new(end - chrono::Duration::minutes(10), end)?;
    for host in 0..200 {
        let host = format!("host_{}", host * 47 % HOSTS);
        let before = Instant::now();
        let found = ours.store.query_range(&host, FIELDS[3], range).await?;
        minutes.push(before.elapsed());
        assert_eq!(found.len(), steps.min(60));
    }
    for _ in 0..20 {
        let before = Instant::now();
        let found = ours.store.latest(&SeriesFilter::any(), 1).await?;
        lastpoint.push(before.elapsed());
        assert_eq!(found.len(), fleet.series());
    }
    Ok((lastpoint, minutes))
}

fn add_writes(report: &mut Report, ours: &Ours) {
    let writes = &ours.writes;
    report.add("", OURS, "acknowledged", writes.rate(), "samples/s");
    for (metric, quantile) in [("write p50", 0.5), ("write p99", 0.99), ("write max", 1.0)] {
        report.add("", OURS, metric, writes.latencies.quantile_ms(quantile), "ms");
    }
}
