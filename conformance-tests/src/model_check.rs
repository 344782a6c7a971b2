//! Random operations on a backend and on the in-memory one, compared at every step.
//!
//! Everything follows from a seed. A sequence that fails is shrunk to a short one that still
//! fails, and shown with its seed; `CONFORMANCE_SEED` replays that seed.

mod compare;
mod events;
mod history;
mod jobs;
mod pair;
mod step;

use std::fmt;
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
    run_steps::<Metrics>(fixture, steps, seed, operations).await
}

/// As [`run`], on the record history of a location.
///
/// # Errors
/// As [`run`].
pub async fn run_history(fixture: &dyn Fixture, seed: u64, operations: usize) -> CaseResult {
    let steps = history::steps(seed, operations);
    run_steps::<history::History>(fixture, steps, seed, operations).await
}

/// As [`run`], on the event store of a location.
///
/// # Errors
/// As [`run`].
pub async fn run_events(fixture: &dyn Fixture, seed: u64, operations: usize) -> CaseResult {
    let steps = events::steps(seed, operations);
    run_steps::<events::Events>(fixture, steps, seed, operations).await
}

/// As [`run`], on the jobs of a location.
///
/// # Errors
/// As [`run`].
pub async fn run_jobs(fixture: &dyn Fixture, seed: u64, operations: usize) -> CaseResult {
    let steps = jobs::steps(seed, operations);
    run_steps::<jobs::Jobs>(fixture, steps, seed, operations).await
}

/// A step as shrinking sees it.
trait Shrink: Clone + fmt::Display {
    /// How many records it writes.
    fn records(&self) -> usize;
    /// The same without some of them.
    fn without(&mut self, records: std::ops::Range<usize>);
}

/// A part of a store with a model beside it.
trait Modelled {
    type Step: Shrink;

    /// Takes the steps on both and fails at the first that differs.
    fn take_all(
        fixture: &dyn Fixture,
        location: &str,
        steps: &[Self::Step],
    ) -> impl Future<Output = CaseResult>;
}

/// What the steps of one kind are taken on: a backend, and the model of what it should do.
trait Sides<S> {
    /// Takes a step on both.
    async fn take(&mut self, step: &S) -> CaseResult;

    /// Closes the handles that are open.
    async fn close(self) -> CaseResult;
}

async fn take_each<S: Shrink>(mut sides: impl Sides<S>, steps: &[S]) -> CaseResult {
    let mut result = Ok(());
    for (number, step) in steps.iter().enumerate() {
        result = sides.take(step).await.map_err(|failure| in_step(failure, number, step));
        if result.is_err() {
            break;
        }
    }
    let closed = sides.close().await;
    result?;
    closed
}

struct Metrics;

impl Modelled for Metrics {
    type Step = Step;

    async fn take_all(fixture: &dyn Fixture, location: &str, steps: &[Step]) -> CaseResult {
        take_each(Pair::open(fixture, location).await?, steps).await
    }
}

impl Shrink for Step {
    fn records(&self) -> usize {
        match &self.action {
            Action::Write(records) => records.len(),
            _ => 0,
        }
    }

    fn without(&mut self, some: std::ops::Range<usize>) {
        if let Action::Write(records) = &mut self.action {
            records.drain(some);
        }
    }
}

async fn run_steps<M: Modelled>(
    fixture: &dyn Fixture,
    steps: Vec<M::Step>,
    seed: u64,
    operations: usize,
) -> CaseResult {
    let Err(first) = attempt::<M>(fixture, &steps).await else { return Ok(()) };
    let (shortest, failure) = shrink::<M>(fixture, steps, first).await;
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
async fn attempt<M: Modelled>(fixture: &dyn Fixture, steps: &[M::Step]) -> CaseResult {
    let location = fresh_location();
    let taking = AssertUnwindSafe(M::take_all(fixture, &location, steps)).catch_unwind();
    let result = match taking.await {
        Ok(result) => result,
        Err(_) => Err(Failure::new("panicked")),
    };
    let destroyed = fixture.destroy(&location).await;
    result?;
    Ok(destroyed?)
}

/// Says which step failed, by its first line.
fn in_step(failure: Failure, number: usize, step: &impl fmt::Display) -> Failure {
    let text = step.to_string();
    let brief = text.lines().next().unwrap_or_default();
    failure.during(format!("step {} ({brief})", number + 1))
}

/// Removes steps, then records, as long as what is left still fails.
async fn shrink<M: Modelled>(
    fixture: &dyn Fixture,
    mut steps: Vec<M::Step>,
    mut failure: Failure,
) -> (Vec<M::Step>, Failure) {
    let deadline = Instant::now() + SHRINK_TIME_MAX;
    loop {
        let before = size_of(&steps);
        let (len, without) = (|steps: &[M::Step]| steps.len(), without_steps);
        remove_chunks::<M>(fixture, deadline, &mut steps, &mut failure, len, without).await;
        for number in 0..steps.len() {
            let len = |steps: &[M::Step]| steps[number].records();
            let without = |steps: &[M::Step], start, end| {
                let mut fewer = steps.to_vec();
                fewer[number].without(start..end);
                fewer
            };
            remove_chunks::<M>(fixture, deadline, &mut steps, &mut failure, len, without).await;
        }
        if size_of(&steps) == before || Instant::now() > deadline {
            return (steps, failure);
        }
    }
}

/// Removes ever smaller chunks of something as long as the rest still fails.
async fn remove_chunks<M: Modelled>(
    fixture: &dyn Fixture,
    deadline: Instant,
    steps: &mut Vec<M::Step>,
    failure: &mut Failure,
    len: impl Fn(&[M::Step]) -> usize,
    without: impl Fn(&[M::Step], usize, usize) -> Vec<M::Step>,
) {
    let mut chunk = len(steps);
    while chunk > 0 {
        let mut start = 0;
        while start < len(steps) && Instant::now() < deadline {
            let fewer = without(steps, start, (start + chunk).min(len(steps)));
            match attempt::<M>(fixture, &fewer).await {
                Err(still) => (*steps, *failure) = (fewer, still),
                Ok(()) => start += chunk,
            }
        }
        chunk /= 2;
    }
}

fn size_of<S: Shrink>(steps: &[S]) -> usize {
    steps.len() + steps.iter().map(Shrink::records).sum::<usize>()
}

fn without_steps<S: Shrink>(steps: &[S], start: usize, end: usize) -> Vec<S> {
    [&steps[..start], &steps[end..]].concat()
}

#[cfg(test)]
mod tests;
