//! A day of data in every engine: its size, and the questions of the suite with every answer
//! compared.

use std::time::{Duration, Instant};

use storage_benches::machine::{disk_bytes, scratch};
use storage_benches::options::Options;
use storage_benches::queries::{Draw, QUESTIONS, Question, Row, ask, difference};
use storage_benches::report::Report;
use storage_benches::timing::{Latencies, Writes};
use storage_benches::tsbs::{Fleet, Values, first_time};
use storage_core::{InMemory, StorageBackend, TimeRange};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::engine::{Engine, KINDS, Mode, Result};

const BATCH: usize = 10_000;
const DAY_STEPS: usize = 8640;

/// A slow question is asked less often, but so often.
const CALLS_MIN: usize = 5;
const TIME_MAX: Duration = Duration::from_secs(4);

/// An engine with the data.
struct Loaded {
    name: &'static str,
    engine: Box<dyn Engine>,
    _folder: TempDir,
}

/// Loads all engines and asks them in turns.
pub(crate) fn run(report: &mut Report, options: &Options) -> Result<()> {
    // Fewer hosts, not less time: the questions need half a day.
    let hosts = options.scaled(100, 20);
    let calls = options.scaled(100, 20);
    let runtime = Runtime::new()?;
    report.progress("loading the in-memory backend");
    let (reference, data) = runtime.block_on(load_reference(hosts))?;
    let mut loaded = Vec::new();
    for kind in &KINDS {
        loaded.extend(load(report, kind.name, kind.open, hosts)?);
    }
    for (name, question) in QUESTIONS {
        for engine in &mut loaded {
            report.progress(&format!("{name}, {}", engine.name));
            let what = format!("query {name}");
            let reference = |draw: &Draw| runtime.block_on(ask(&reference, *question, draw));
            match measure(engine, *question, (hosts, data), calls, reference)? {
                Some(answers) => add(report, &what, engine.name, &answers),
                None => report.add_missing(&what, engine.name, "p50", "cannot be asked"),
            }
        }
    }
    Ok(())
}

async fn load_reference(hosts: usize) -> Result<(InMemory, TimeRange)> {
    let reference = InMemory::new();
    let mut fleet = fleet(hosts);
    for _ in 0..fleet.batches_in(DAY_STEPS) {
        reference.write_batch(fleet.batch()).await?;
    }
    Ok((reference, TimeRange::new(first_time(), fleet.next_time())?))
}

fn fleet(hosts: usize) -> Fleet {
    let fleet = Fleet::new(hosts, chrono::Duration::seconds(10), Values::Integers, 123);
    fleet.in_batches_of(BATCH)
}

fn load(
    report: &mut Report,
    name: &'static str,
    open: fn(&std::path::Path, Mode) -> crate::engine::Opened,
    hosts: usize,
) -> Result<Option<Loaded>> {
    let folder = scratch()?;
    let opened = match open(folder.path(), Mode::Durable)? {
        // Where the other mode is all there is, that.
        Err(_) => open(folder.path(), Mode::Periodic)?,
        durable => durable,
    };
    let mut engine = match opened {
        Ok(engine) => engine,
        Err(why) => {
            report.add_missing("size", name, "on disk", why);
            return Ok(None);
        }
    };
    report.progress(&format!("loading {name}"));
    let (mut fleet, mut writes) = (fleet(hosts), Writes::default());
    let started = Instant::now();
    for _ in 0..fleet.batches_in(DAY_STEPS) {
        let records = fleet.batch();
        let before = Instant::now();
        engine.write(records)?;
        writes.acknowledged(before, records.len());
    }
    report.add("load 10000", name, "acknowledged", writes.rate(), "samples/s");
    engine.settle()?;
    let sustained = writes.samples as f64 / started.elapsed().as_secs_f64();
    report.add("load 10000", name, "sustained, settling included", sustained, "samples/s");
    let bytes = disk_bytes(folder.path()) as f64 / writes.samples as f64;
    report.add("size", name, "on disk", bytes, "B/sample");
    Ok(Some(Loaded { name, engine, _folder: folder }))
}

/// What the calls of one question gave.
#[derive(Default)]
struct Answers {
    latencies: Latencies,
    differing: usize,
    rows_max: usize,
}

fn measure(
    loaded: &mut Loaded,
    question: Question,
    (hosts, data): (usize, TimeRange),
    calls: usize,
    reference: impl Fn(&Draw) -> storage_core::Result<Vec<Row>>,
) -> Result<Option<Answers>> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut answers = Answers::default();
    while answers.latencies.calls() < calls {
        let latencies = &mut answers.latencies;
        if latencies.calls() >= CALLS_MIN && latencies.total() > TIME_MAX {
            break;
        }
        let draw = Draw::of(question, hosts, data, &mut random);
        let before = Instant::now();
        let Some(mut answer) = loaded.engine.ask(question, &draw)? else { return Ok(None) };
        latencies.push(before.elapsed());
        let mut expected = reference(&draw)?;
        if loaded.engine.has_rough_edges() {
            cut_edges(&mut answer, &mut expected);
        }
        answers.rows_max = answers.rows_max.max(answer.len());
        answer.sort_by(by_name_and_time);
        expected.sort_by(by_name_and_time);
        if let Some(difference) = difference(&answer, &expected) {
            eprintln!("{}: {question:?}: {difference}", loaded.name);
            answers.differing += 1;
        }
    }
    Ok(Some(answers))
}

fn by_name_and_time(a: &Row, b: &Row) -> std::cmp::Ordering {
    (&a.0, a.1).cmp(&(&b.0, b.1))
}

/// Leaves out the first and the last window: the engine does not cut them at the range.
fn cut_edges(answer: &mut Vec<Row>, expected: &mut Vec<Row>) {
    let times = expected.iter().map(|row| row.1);
    let (Some(first), Some(last)) = (times.clone().min(), times.max()) else { return };
    for rows in [answer, expected] {
        rows.retain(|row| row.1 > first && row.1 < last);
    }
}

fn add(report: &mut Report, what: &str, name: &str, answers: &Answers) {
    let calls = answers.latencies.calls();
    report.add(what, name, "p50", answers.latencies.quantile_ms(0.5), "ms");
    report.add(what, name, "p99", answers.latencies.quantile_ms(0.99), "ms");
    report.add(what, name, "rows at most", answers.rows_max as f64, "");
    report.add(what, name, "answers checked", calls as f64, "");
    report.add(what, name, "answers that differ", answers.differing as f64, "");
}
