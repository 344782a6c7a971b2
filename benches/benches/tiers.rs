//! What tiers cost: questions over SQLite and Parquet together, against the slower of the two alone.
//!
//! Half of the time was archived. Each question is asked of the tiers over all of the time, and of a
//! SQLite file and of Parquet files that hold everything. Every answer is compared.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use storage_benches::machine::scratch;
use storage_benches::options::Options;
use storage_benches::report::{OURS, Report};
use storage_benches::timing::Latencies;
use storage_benches::tsbs::{FIELDS, Fleet, Values, first_time};
use storage_core::compose::Tiered;
use storage_core::pipeline::{ArchiveOptions, archive};
use storage_core::{SeriesFilter, StorageBackend, TimeRange};
use storage_parquet::{ParquetBackend, ParquetOptions};
use storage_sqlite::{SqliteBackend, SqliteOptions};

const HOSTS: usize = 20;
const HOUR: Duration = Duration::from_secs(3600);

/// What is asked.
#[derive(Debug, Clone, Copy)]
enum Question {
    Samples,
    Aggregate,
    Windows,
    Latest,
    Stats,
    Scan,
}

const QUESTIONS: [(&str, Question, usize); 6] = [
    ("an hour around the border, samples", Question::Samples, 200),
    ("all of one series, aggregate", Question::Aggregate, 200),
    ("hourly windows of one host", Question::Windows, 60),
    ("newest of everything", Question::Latest, 60),
    ("stats", Question::Stats, 60),
    ("scan of everything", Question::Scan, 3),
];

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    let mut report = Report::new("tiers", &options);
    report.progress("loading");
    let dir = scratch()?;
    let sqlite = |name: &str| SqliteBackend::open(SqliteOptions::new(dir.path().join(name)));
    let parquet = |name: &str| ParquetBackend::open(ParquetOptions::new(dir.path().join(name)));
    let (whole_sqlite, whole_parquet) = (sqlite("whole.db").await?, parquet("whole").await?);
    let hot = Arc::new(sqlite("hot.db").await?);
    let cold = Arc::new(parquet("cold").await?);
    let control = Arc::new(sqlite("control.db").await?);
    let tiered = Tiered::open(hot, cold, control).await?;
    let mut fleet = Fleet::new(HOSTS, chrono::Duration::seconds(10), Values::Integers, 5);
    fleet = fleet.in_batches_of(50_000);
    for _ in 0..options.scaled(70, 14) {
        let batch = fleet.batch();
        whole_sqlite.write_batch(batch).await?;
        whole_parquet.write_batch(batch).await?;
        tiered.write_batch(batch).await?;
    }
    let data = TimeRange::new(first_time(), fleet.next_time())?;
    let border = first_time() + (data.end() - data.start()) / 2;
    report.progress("archiving");
    let before = Instant::now();
    let moved = archive(&tiered, &ArchiveOptions::before(border).with_window(HOUR), |_| {}).await?;
    report.add(
        "",
        OURS,
        "archiving",
        moved.samples as f64 / before.elapsed().as_secs_f64(),
        "samples/s",
    );
    for store in [&whole_sqlite as &dyn StorageBackend, &whole_parquet, &tiered] {
        store.compact().await?;
    }
    for (name, question, calls) in QUESTIONS {
        report.progress(name);
        let stores: [&dyn StorageBackend; 3] = [&whole_sqlite, &whole_parquet, &tiered];
        let mut latencies = [Latencies::default(), Latencies::default(), Latencies::default()];
        for call in 0..options.scaled(calls, 3) + 1 {
            let mut answers = Vec::new();
            for (store, latencies) in stores.iter().zip(&mut latencies) {
                let before = Instant::now();
                answers.push(ask(*store, question, call, border, data).await?);
                // The first call of each fills caches.
                if call > 0 {
                    latencies.push(before.elapsed());
                }
            }
            assert!(answers[0] == answers[1] && answers[0] == answers[2], "{name}: {answers:?}");
        }
        let [one, other, both] = latencies.map(|latencies| latencies.quantile_ms(0.5));
        report.add(name, "SQLite alone", "p50", one, "ms");
        report.add(name, "Parquet alone", "p50", other, "ms");
        report.add(name, OURS, "p50", both, "ms");
        report.add(name, OURS, "times the slower", both / one.max(other), "x");
    }
    tiered.close().await?;
    whole_sqlite.close().await?;
    whole_parquet.close().await?;
    println!("{}", report.finish()?);
    Ok(())
}

/// Returns what shows whether two answers are the same: how much there is, and the last value of it.
async fn ask(
    store: &dyn StorageBackend,
    question: Question,
    call: usize,
    border: chrono::DateTime<chrono::Utc>,
    data: TimeRange,
) -> storage_core::Result<(u64, Option<f64>)> {
    let (host, field) = (format!("host_{}", call % HOSTS), FIELDS[call % FIELDS.len()]);
    let one_host = SeriesFilter::parse(&host, "*")?;
    match question {
        Question::Samples => {
            let half = chrono::Duration::minutes(30);
            let range = TimeRange::new(border - half, border + half)?;
            let found = store.query_range(&host, field, range).await?;
            Ok((found.len() as u64, found.last().map(|record| record.value)))
        }
        Question::Aggregate => {
            let found = store.aggregate(&host, field, data).await?;
            Ok((found.count, found.sum))
        }
        Question::Windows => {
            let found = store.windows(&one_host, data, HOUR).await?;
            let all = || found.iter().flat_map(|series| &series.windows);
            let last = all().last().and_then(|window| window.aggregation.max);
            Ok((all().map(|window| window.aggregation.count).sum(), last))
        }
        Question::Latest => {
            let found = store.latest(&SeriesFilter::any(), 1).await?;
            Ok((found.len() as u64, found.last().map(|series| series.samples[0].value)))
        }
        Question::Stats => {
            let found = store.stats().await?;
            Ok((found.total_metrics, Some(found.series as f64)))
        }
        Question::Scan => {
            let mut batches = store.scan(&SeriesFilter::any(), data);
            let (mut count, mut last) = (0, None);
            while let Some(batch) = batches.try_next().await? {
                count += batch.samples.len() as u64;
                last = batch.samples.last().map(|sample| sample.value);
            }
            Ok((count, last))
        }
    }
}
