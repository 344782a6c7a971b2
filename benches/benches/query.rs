//! How fast the questions of TSBS `cpu-only` are answered after a day of data at scale 100: 8.64
//! million samples of 1000 series. Every answer is compared with the in-memory backend's.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::Instant;

use chrono::Duration;
use storage_benches::options::Options;
use storage_benches::ours::Ours;
use storage_benches::queries::{Draw, QUESTIONS, Question, ask, difference};
use storage_benches::report::{OURS, Report};
use storage_benches::timing::Latencies;
use storage_benches::tsbs::{FIELDS, Fleet, Values, first_time};
use storage_core::{InMemory, StorageBackend, TimeRange};
use storage_sqlite::Synchronous;

const DAY_STEPS: usize = 8640;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    let mut report = Report::new("query", &options);
    let calls = options.scaled(200, 30);
    report.progress("loading");
    let mut ours = Ours::open(Synchronous::Full).await?;
    let reference = InMemory::new();
    // Fewer hosts, not less time: the questions need half a day.
    let hosts = options.scaled(100, 20);
    let data = load(&mut ours, &reference, hosts).await?;
    for (name, question) in QUESTIONS {
        report.progress(name);
        let latencies = measure(&ours, &reference, *question, (hosts, data), calls).await;
        add(&mut report, name, &latencies.map_err(|error| format!("{name}: {error}"))?);
    }
    report.progress("one series");
    one_series(&mut report, &ours, &reference, (hosts, data), calls).await?;
    ours.store.close().await?;
    println!("{}", report.finish()?);
    Ok(())
}

async fn load(
    ours: &mut Ours,
    reference: &InMemory,
    hosts: usize,
) -> Result<TimeRange, Box<dyn Error>> {
    let mut fleet = Fleet::new(hosts, Duration::seconds(10), Values::Integers, 123);
    for _ in 0..DAY_STEPS {
        let records = fleet.batch();
        ours.write(records).await?;
        reference.write_batch(records).await?;
    }
    ours.store.compact().await?;
    Ok(TimeRange::new(first_time(), fleet.next_time())?)
}

/// Asks one question many times, each time of other hosts and times.
async fn measure(
    ours: &Ours,
    reference: &InMemory,
    question: Question,
    (hosts, data): (usize, TimeRange),
    calls: usize,
) -> Result<Latencies, Box<dyn Error>> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut latencies = Latencies::default();
    for _ in 0..calls {
        let draw = Draw::of(question, hosts, data, &mut random);
        let before = Instant::now();
        let answer = ask(&ours.store, question, &draw).await?;
        latencies.push(before.elapsed());
        let expected = ask(reference, question, &draw).await?;
        if let Some(difference) = difference(&answer, &expected) {
            return Err(difference.into());
        }
    }
    Ok(latencies)
}

/// The questions that are not the suite's: one hour of one series, and the store as a whole.
async fn one_series(
    report: &mut Report,
    ours: &Ours,
    reference: &InMemory,
    (hosts, data): (usize, TimeRange),
    calls: usize,
) -> Result<(), Box<dyn Error>> {
    let mut random = fastrand::Rng::with_seed(7);
    let span_s = (data.end() - data.start()).num_seconds() - 3600;
    let (mut hour, mut whole, mut stats) = <(Latencies, Latencies, Latencies)>::default();
    for _ in 0..calls {
        let (host, field) = (format!("host_{}", random.usize(..hosts)), FIELDS[random.usize(..10)]);
        let start = data.start() + Duration::seconds(random.i64(0..span_s.max(1)));
        let range = TimeRange::new(start, start + Duration::hours(1))?;
        let before = Instant::now();
        let found = ours.store.query_range(&host, field, range).await?;
        hour.push(before.elapsed());
        assert!(found == reference.query_range(&host, field, range).await?);
        let before = Instant::now();
        let found = ours.store.aggregate(&host, field, data).await?;
        whole.push(before.elapsed());
        assert_eq!(found, reference.aggregate(&host, field, data).await?);
        let before = Instant::now();
        let found = ours.store.stats().await?.total_metrics;
        stats.push(before.elapsed());
        assert_eq!(found, reference.stats().await?.total_metrics);
    }
    add(report, "query_range, an hour of a series", &hour);
    add(report, "aggregate, all of a series", &whole);
    add(report, "stats", &stats);
    Ok(())
}

fn add(report: &mut Report, what: &str, latencies: &Latencies) {
    report.add(what, OURS, "p50", latencies.quantile_ms(0.5), "ms");
    report.add(what, OURS, "p99", latencies.quantile_ms(0.99), "ms");
}
