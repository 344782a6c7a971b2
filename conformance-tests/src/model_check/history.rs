//! Random operations on record history.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use storage_core::metrics::time::{END_MS, MIN_MS};
use storage_core::{
    ErrorKind, HistoryQuery, InMemory, InMemoryHistory, Matcher, RecordHistory, StoredValue,
    TimeRange,
};

use super::compare::{check, same, same_refusal};
use super::pair::Pair;
use super::{Modelled, Shrink, Sides, take_each};
use crate::data::{NOON, ODD_NAMES, at, at_us, range};
use crate::failure::{CaseResult, expect_kind};
use crate::harness::Fixture;

/// An operation, and the handle that does it: the number modulo how many are open.
#[derive(Debug, Clone)]
pub(super) struct HistoryStep {
    handle: usize,
    action: Action,
}

#[derive(Debug, Clone)]
enum Action {
    Store(Vec<StoredValue>),
    Query(HistoryQuery),
    Records(Matcher),
    Cleanup(DateTime<Utc>),
    Compact,
    Check,
    /// Open another handle.
    Open,
    /// Close the handle; where it was the only one, open another afterwards.
    Close,
}

impl fmt::Display for HistoryStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "handle {}: ", self.handle)?;
        match &self.action {
            Action::Store(values) => {
                write!(f, "store {} values", values.len())?;
                for StoredValue { record_name, stored_at, value } in values.iter().take(12) {
                    let text: String = value.to_string().chars().take(60).collect();
                    let name: String = record_name.chars().take(60).collect();
                    write!(f, "\n       {name:?} at {} us = {text}", stored_at.timestamp_micros())?;
                }
                Ok(())
            }
            Action::Query(query) => write!(f, "{query:?}"),
            Action::Records(matcher) => write!(f, "records {:?}", matcher.to_string()),
            Action::Cleanup(cutoff) => write!(f, "cleanup {} us", cutoff.timestamp_micros()),
            Action::Compact => f.write_str("compact"),
            Action::Check => f.write_str("check"),
            Action::Open => f.write_str("open another handle"),
            Action::Close => f.write_str("close"),
        }
    }
}

impl Shrink for HistoryStep {
    fn records(&self) -> usize {
        match &self.action {
            Action::Store(values) => values.len(),
            _ => 0,
        }
    }

    fn without(&mut self, some: Range<usize>) {
        if let Action::Store(values) = &mut self.action {
            values.drain(some);
        }
    }
}

/// The record history of a location.
pub(super) struct History;

impl Modelled for History {
    type Step = HistoryStep;

    async fn take_all(fixture: &dyn Fixture, location: &str, steps: &[HistoryStep]) -> CaseResult {
        take_each(Pair::new(fixture, location, InMemory::new().history()).await?, steps).await
    }
}

impl Sides<HistoryStep> for Pair<'_, InMemoryHistory> {
    async fn take(&mut self, step: &HistoryStep) -> CaseResult {
        let whole = self.handle(step.handle);
        let (history, model) = (Arc::clone(whole.history()?), &self.model);
        match &step.action {
            Action::Store(values) => {
                same_refusal(history.store_batch(values).await, model.store_batch(values).await)
            }
            Action::Query(query) => same(history.query(query).await, model.query(query).await),
            Action::Records(matcher) => {
                same(history.records(matcher).await, model.records(matcher).await)
            }
            Action::Cleanup(cutoff) => {
                same(history.cleanup(*cutoff).await, model.cleanup(*cutoff).await)
            }
            Action::Compact => Ok(whole.metrics().compact().await?),
            Action::Check => check(&**whole.metrics()).await,
            Action::Open => self.open().await,
            Action::Close => {
                let refused = async {
                    let closed = history.records(&Matcher::any()).await;
                    expect_kind(closed, ErrorKind::Closed, "records after close").map(drop)
                };
                self.close(step.handle, refused).await
            }
        }
    }

    async fn close(self) -> CaseResult {
        self.close_all().await
    }
}

/// Returns `count` steps that follow from `seed`, and some that read everything back.
pub(super) fn steps(seed: u64, count: usize) -> Vec<HistoryStep> {
    let mut random = fastrand::Rng::with_seed(seed);
    let start_ms = [NOON, NOON, -500, MIN_MS + 10, END_MS - 2_000_000][random.usize(..5)];
    let mut names: Vec<String> = ["a::1", "a::2", "a", "b::1", "B::1"].map(str::to_owned).into();
    names.extend((0..4).map(|_| ODD_NAMES[random.usize(..ODD_NAMES.len())].to_owned()));
    let spread_ms = [20, 1000, 1_000_000][random.usize(..3)];
    let mut generator = Generator { random, names, start_ms, spread_ms };
    let mut steps: Vec<_> = (0..count).map(|_| generator.step()).collect();
    let last = [
        Action::Query(HistoryQuery::new(Matcher::any())),
        Action::Records(Matcher::any()),
        Action::Check,
    ];
    steps.extend(last.map(|action| HistoryStep { handle: 0, action }));
    steps
}

/// Draws steps. Everything follows from the seed.
struct Generator {
    random: fastrand::Rng,
    names: Vec<String>,
    start_ms: i64,
    spread_ms: i64,
}

impl Generator {
    fn step(&mut self) -> HistoryStep {
        let action = match self.random.u32(..24) {
            0..=8 => Action::Store(self.batch()),
            9..=15 => Action::Query(self.query()),
            16..=17 => Action::Records(self.matcher()),
            18..=19 => Action::Cleanup(self.cutoff()),
            20 => Action::Compact,
            21 => Action::Check,
            22 => Action::Open,
            _ => Action::Close,
        };
        HistoryStep { handle: self.random.usize(..8), action }
    }

    fn name(&mut self) -> String {
        self.names[self.random.usize(..self.names.len())].clone()
    }

    fn ms(&mut self) -> i64 {
        // Few distinct times, so that many values share one.
        self.start_ms + self.random.i64(0..20) * (self.spread_ms / 20)
    }

    fn batch(&mut self) -> Vec<StoredValue> {
        let size = [0, 1, 1, 3, 10, 40, 300][self.random.usize(..7)];
        let mut batch: Vec<_> = (0..size)
            .map(|n| {
                let micros = self.ms() * 1000 + [0, 0, 1, 999][self.random.usize(..4)];
                let name = self.name();
                StoredValue::new(name, at_us(micros), self.value(n))
            })
            .collect();
        if self.random.u32(..100) < 4 {
            let bad = StoredValue::new(["", "\0"][self.random.usize(..2)], at(NOON), json!(1));
            batch.insert(self.random.usize(..=batch.len()), bad);
        }
        batch
    }

    fn value(&mut self, n: usize) -> Value {
        match self.random.u32(..8) {
            0 => json!(null),
            1 => json!(self.random.f64() * 1e6),
            2 => json!({"n": n, "text": "x".repeat(self.random.usize(..200))}),
            3 => json!([n, 1.0, "é\"\\"]),
            _ => json!(self.random.i32(..)),
        }
    }

    fn matcher(&mut self) -> Matcher {
        let name = self.name();
        let prefix: String = name.chars().take(1).chain(['*']).collect();
        let matcher = match self.random.u32(..6) {
            0 => Matcher::exact(&name),
            1 => Matcher::parse(&prefix),
            2 => Matcher::parse("a::*"),
            3 => Matcher::parse("*1*"),
            4 => Matcher::any_of([name.as_str(), "a::1", "nobody"]),
            _ => Ok(Matcher::any()),
        };
        matcher.unwrap_or_default()
    }

    fn query(&mut self) -> HistoryQuery {
        let records = self.matcher();
        let (one, other) = (self.ms(), self.ms() + self.random.i64(-1..=1));
        let range = match self.random.u32(..3) {
            0 => TimeRange::all(),
            _ => range(one.min(other), one.max(other)),
        };
        let limit_per_record = [None, Some(0), Some(1), Some(2), Some(9), Some(1000)];
        let limit_per_record = limit_per_record[self.random.usize(..6)];
        HistoryQuery { records, range, limit_per_record }
    }

    /// Mostly early, so that something stays.
    fn cutoff(&mut self) -> DateTime<Utc> {
        let ms = self.ms().min(self.ms()).min(self.ms()) + self.random.i64(-1..=1);
        at_us(ms.max(MIN_MS) * 1000 + [0, 500][self.random.usize(..2)])
    }
}
