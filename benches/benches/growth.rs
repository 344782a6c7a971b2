//! What ten times the data costs: a store of a day and one of ten days, written and asked in turns.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::Instant;

use chrono::Duration;
use storage_benches::options::Options;
use storage_benches::ours::Ours;
use storage_benches::queries::{Draw, QUESTIONS, Question, ask, difference};
use storage_benches::report::{OURS, Report};
use storage_benches::timing::{Latencies, Writes};
use storage_benches::tsbs::{Fleet, Values, first_time};
use storage_core::{StorageBackend, TimeRange};
use storage_sqlite::Synchronous;

const DAY_STEPS: usize = 8640;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    let mut report = Report::new("growth", &options);
    // Fewer hosts, not less time: the questions need half a day.
    let hosts = options.scaled(100, 10);
    let mut small = Ours::open(Synchronous::Full).await?;
    let mut large = Ours::open(Synchronous::Full).await?;
    let data = write(&mut report, &mut small, &mut large, hosts).await?;
    let (few, many) = (small.writes.rate(), large.writes.rate());
    report.add("", OURS, "write, 10 times the data by 1", few / many, "");
    report.add("", OURS, "acknowledged into 1 times the data", few, "samples/s");
    report.add("", OURS, "acknowledged into 10 times the data", many, "samples/s");
    small.store.compact().await?;
    large.store.compact().await?;

    let (mut worst, calls) = (0f64, options.scaled(100, 20));
    for (name, question) in QUESTIONS {
        report.progress(name);
        let [few, many] = questions(&small, &large, *question, hosts, data, calls).await?;
        let (few, many) = (few.quantile_ms(0.5), many.quantile_ms(0.5));
        report.add(name, OURS, "p50, 1 times the data", few, "ms");
        report.add(name, OURS, "p50, 10 times the data", many, "ms");
        worst = worst.max(many / few);
    }
    report.add("", OURS, "question, 10 times the data by 1, worst", worst, "");
    small.store.close().await?;
    large.store.close().await?;
    println!("{}", report.finish()?);
    Ok(())
}

/// Nine days into the large store, then its tenth and the first of the small one in turns. Returns
/// the day that both have.
async fn write(
    report: &mut Report,
    small: &mut Ours,
    large: &mut Ours,
    hosts: usize,
) -> Result<TimeRange, Box<dyn Error>> {
    let fleet = || Fleet::new(hosts, Duration::seconds(10), Values::Integers, 123);
    let mut ahead = fleet().in_batches_of(10_000);
    for day in 1..10 {
        report.progress(&format!("day {day}"));
        for _ in 0..ahead.batches_in(DAY_STEPS) {
            large.write(ahead.batch()).await?;
        }
    }
    large.store.compact().await?;
    large.writes = Writes::default();
    report.progress("day 10, in turns");
    let (mut ahead, mut first) = (ahead.in_batches_of(hosts * 10), fleet());
    for _ in 0..DAY_STEPS {
        large.write(ahead.batch()).await?;
        small.write(first.batch()).await?;
    }
    Ok(TimeRange::new(first_time(), first.next_time())?)
}

/// Asks both stores the same in turns, about the day that both have; the answers must be equal.
async fn questions(
    small: &Ours,
    large: &Ours,
    question: Question,
    hosts: usize,
    data: TimeRange,
    calls: usize,
) -> Result<[Latencies; 2], Box<dyn Error>> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut latencies = <[Latencies; 2]>::default();
    for _ in 0..calls {
        let draw = Draw::of(question, hosts, data, &mut random);
        let mut answers = Vec::new();
        for (store, latencies) in [small, large].into_iter().zip(&mut latencies) {
            let before = Instant::now();
            answers.push(ask(&store.store, question, &draw).await?);
            latencies.push(before.elapsed());
        }
        // The newest samples are of other days.
        let differs =
            difference(&answers[0], &answers[1]).filter(|_| question != Question::Lastpoint);
        if let Some(difference) = differs {
            return Err(format!("{question:?}: {difference}").into());
        }
    }
    Ok(latencies)
}
