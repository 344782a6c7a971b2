//! Random operations on a backend and on the in-memory one, compared at every step.
//!
//! Everything follows from a seed. A sequence that fails is shrunk to a short one that still
//! fails, and shown with its seed; `CONFORMANCE_SEED` replays that seed.

mod compare;
mod step;

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use storage_core::TimeRange;

use crate::failure::{CaseResult, Failure};
use crate::harness::{Fixture, fresh_location};
use compare::Pair;
use step::{Action, Generator, Step};

/// How long a failing sequence is shrunk.
const SHRINK_TIME_MAX: Duration = Duration::from_secs(25);

/// Which methods a sequence uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Methods {
    /// All, for backends that have `series`.
    All,
    /// The five required ones.
    Required,
}

/// Runs `operations` random operations that follow from `seed` on a fresh location.
///
/// # Errors
/// The first difference between the backend and the model, with the seed and a short sequence of
/// operations that shows it.
pub async fn run(
    fixture: &dyn Fixture,
    methods: Methods,
    seed: u64,
    operations: usize,
) -> CaseResult {
    let mut generator = Generator::new(seed, methods == Methods::Required);
    let mut steps = generator.steps(operations);
    steps.extend(last_look(&generator, methods));
    let Err(first) = attempt(fixture, &steps).await else { return Ok(()) };
    let (shortest, failure) = shrink(fixture, steps, first).await;
    let list: Vec<_> =
        shortest.iter().enumerate().map(|(n, step)| format!("  {:>2}. {step}", n + 1)).collect();
    Err(Failure::new(format!(
        "differs from the model with the seed {seed} ({operations} operations; \
         CONFORMANCE_SEED={seed} replays it): {failure}\nshortest sequence that fails:\n{}",
        list.join("\n")
    )))
}

/// Returns the seed that `CONFORMANCE_SEED` gives, if it does.
///
/// # Errors
/// If it is no number.
pub fn seed_from_env() -> Result<Option<u64>, Failure> {
    match std::env::var("CONFORMANCE_SEED") {
        Err(_) => Ok(None),
        Ok(text) => match text.parse() {
            Ok(seed) => Ok(Some(seed)),
            Err(_) => Err(Failure::new(format!("CONFORMANCE_SEED={text} is no number"))),
        },
    }
}

/// Steps that read everything back.
fn last_look(generator: &Generator, methods: Methods) -> Vec<Step> {
    let keys = generator.series().iter();
    let mut actions: Vec<_> = keys
        .flat_map(|key| {
            let all = TimeRange::all();
            [Action::Query(key.clone(), all), Action::Aggregate(key.clone(), all)]
        })
        .collect();
    actions.push(Action::Stats);
    if methods == Methods::All {
        let any = storage_core::SeriesFilter::any();
        actions.extend([Action::Scan(any.clone(), TimeRange::all()), Action::Series(any)]);
        actions.push(Action::Check);
    }
    actions.into_iter().map(|action| Step { handle: 0, action }).collect()
}

/// Takes the steps on a fresh location, which is destroyed afterwards, and fails at the first
/// that differs.
async fn attempt(fixture: &dyn Fixture, steps: &[Step]) -> CaseResult {
    let location = fresh_location();
    let taking = AssertUnwindSafe(take_all(fixture, &location, steps)).catch_unwind();
    let result = match taking.await {
        Ok(result) => result,
        Err(_) => Err(Failure::new("panicked")),
    };
    let destroyed = fixture.destroy(&location).await;
    result?;
    Ok(destroyed?)
}

async fn take_all(fixture: &dyn Fixture, location: &str, steps: &[Step]) -> CaseResult {
    let mut pair = Pair::open(fixture, location).await?;
    let mut result = Ok(());
    for (number, step) in steps.iter().enumerate() {
        result = pair.take(step).await;
        if let Err(failure) = result {
            result = Err(failure.during(format!("step {} ({})", number + 1, in_brief(step))));
            break;
        }
    }
    let closed = pair.close().await;
    result?;
    closed
}

/// The first line of a step.
fn in_brief(step: &Step) -> String {
    step.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Removes steps, then records, as long as what is left still fails.
async fn shrink(
    fixture: &dyn Fixture,
    mut steps: Vec<Step>,
    mut failure: Failure,
) -> (Vec<Step>, Failure) {
    let deadline = Instant::now() + SHRINK_TIME_MAX;
    loop {
        let before = size_of(&steps);
        remove_chunks(
            fixture,
            deadline,
            &mut steps,
            &mut failure,
            |steps| steps.len(),
            without_steps,
        )
        .await;
        for number in 0..steps.len() {
            let len = |steps: &[Step]| records_of(steps, number);
            let without = |steps: &[Step], start, end| without_records(steps, number, start, end);
            remove_chunks(fixture, deadline, &mut steps, &mut failure, len, without).await;
        }
        if size_of(&steps) == before || Instant::now() > deadline {
            return (steps, failure);
        }
    }
}

/// Removes ever smaller chunks of something as long as the rest still fails.
async fn remove_chunks(
    fixture: &dyn Fixture,
    deadline: Instant,
    steps: &mut Vec<Step>,
    failure: &mut Failure,
    len: impl Fn(&[Step]) -> usize,
    without: impl Fn(&[Step], usize, usize) -> Vec<Step>,
) {
    let mut chunk = len(steps);
    while chunk > 0 {
        let mut start = 0;
        while start < len(steps) && Instant::now() < deadline {
            let fewer = without(steps, start, (start + chunk).min(len(steps)));
            match attempt(fixture, &fewer).await {
                Err(still) => (*steps, *failure) = (fewer, still),
                Ok(()) => start += chunk,
            }
        }
        chunk /= 2;
    }
}

fn size_of(steps: &[Step]) -> usize {
    steps.len() + (0..steps.len()).map(|number| records_of(steps, number)).sum::<usize>()
}

fn records_of(steps: &[Step], number: usize) -> usize {
    match &steps[number].action {
        Action::Write(records) => records.len(),
        _ => 0,
    }
}

fn without_steps(steps: &[Step], start: usize, end: usize) -> Vec<Step> {
    [&steps[..start], &steps[end..]].concat()
}

fn without_records(steps: &[Step], number: usize, start: usize, end: usize) -> Vec<Step> {
    let mut fewer = steps.to_vec();
    if let Action::Write(records) = &mut fewer[number].action {
        records.drain(start..end);
    }
    fewer
}

#[cfg(test)]
mod tests;
