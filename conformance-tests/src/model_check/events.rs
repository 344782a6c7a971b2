//! Random operations on an event store.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Value, json};
use storage_core::{
    ErrorKind, EventQuery, EventStore, Expectation, ExpectedVersion, InMemory, InMemoryEvents,
    Matcher, NewEvent, ProjectionStep, Result, StoredEvent,
};

use super::compare::{check, same, same_details};
use super::pair::Pair;
use super::{Modelled, Shrink, Sides, take_each};
use crate::data::{NOON, ODD_NAMES, at_us};
use crate::failure::{CaseResult, expect_kind};
use crate::harness::Fixture;

/// An operation, and the handle that does it: the number modulo how many are open.
#[derive(Debug, Clone)]
pub(super) struct EventsStep {
    handle: usize,
    action: Action,
}

#[derive(Debug, Clone)]
enum Action {
    Append(Vec<NewEvent>, Vec<Expectation>),
    /// Reads page by page, until the limit.
    Read(EventQuery),
    Extent,
    Streams(Matcher),
    Project(ProjectionStep),
    Projections,
    Rows(String, String, Matcher),
    Forget(String),
    Prune(u64),
    Compact,
    Check,
    /// Open another handle.
    Open,
    /// Close the handle; where it was the only one, open another afterwards.
    Close,
}

impl fmt::Display for EventsStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "handle {}: ", self.handle)?;
        match &self.action {
            Action::Append(events, expected) => {
                write!(f, "append {} events, expecting {expected:?}", events.len())?;
                for NewEvent { event_id, stream, payload, .. } in events.iter().take(12) {
                    let text: String = payload.to_string().chars().take(60).collect();
                    let stream: String = stream.chars().take(60).collect();
                    write!(f, "\n       {event_id:?} in {stream:?} = {text}")?;
                }
                Ok(())
            }
            Action::Read(query) => write!(f, "{query:?}"),
            Action::Project(step) => {
                let ProjectionStep { projection, from, to, reset, changes } = step;
                let reset = if *reset { ", reset" } else { "" };
                write!(f, "{projection}: {from} to {to}{reset}, {} changes", changes.len())
            }
            other => write!(f, "{other:?}"),
        }
    }
}

impl Shrink for EventsStep {
    fn records(&self) -> usize {
        match &self.action {
            Action::Append(events, _) => events.len(),
            Action::Project(step) => step.changes.len(),
            _ => 0,
        }
    }

    fn without(&mut self, some: Range<usize>) {
        match &mut self.action {
            Action::Append(events, _) => drop(events.drain(some)),
            Action::Project(step) => drop(step.changes.drain(some)),
            _ => {}
        }
    }
}

/// The event store of a location.
pub(super) struct Events;

impl Modelled for Events {
    type Step = EventsStep;

    async fn take_all(fixture: &dyn Fixture, location: &str, steps: &[EventsStep]) -> CaseResult {
        take_each(Pair::new(fixture, location, InMemory::new().events()).await?, steps).await
    }
}

impl Sides<EventsStep> for Pair<'_, InMemoryEvents> {
    async fn take(&mut self, step: &EventsStep) -> CaseResult {
        let whole = self.handle(step.handle);
        let (events, model) = (Arc::clone(whole.events()?), &self.model);
        match &step.action {
            Action::Append(batch, expected) => same_details(
                events.append(batch, expected).await,
                model.append(batch, expected).await,
                DETAILS,
            ),
            Action::Read(query) => same(read(&*events, query).await, read(model, query).await),
            Action::Extent => same(events.extent().await, model.extent().await),
            Action::Streams(streams) => {
                same(events.streams(streams).await, model.streams(streams).await)
            }
            Action::Project(step) => {
                same_details(events.project(step).await, model.project(step).await, DETAILS)
            }
            Action::Projections => same(events.projections().await, model.projections().await),
            Action::Rows(of, table, keys) => {
                same(events.rows(of, table, keys).await, model.rows(of, table, keys).await)
            }
            Action::Forget(name) => {
                same(events.forget_projection(name).await, model.forget_projection(name).await)
            }
            Action::Prune(sequence) => same_details(
                events.prune_before(*sequence).await,
                model.prune_before(*sequence).await,
                DETAILS,
            ),
            Action::Compact => Ok(whole.metrics().compact().await?),
            Action::Check => check(&**whole.metrics()).await,
            Action::Open => self.open().await,
            Action::Close => {
                let refused = async {
                    expect_kind(events.extent().await, ErrorKind::Closed, "extent after close")
                        .map(drop)
                };
                self.close(step.handle, refused).await
            }
        }
    }

    async fn close(self) -> CaseResult {
        self.close_all().await
    }
}

/// Reads page by page: how much a page holds is left to the backend.
async fn read(events: &dyn EventStore, query: &EventQuery) -> Result<Vec<StoredEvent>> {
    let (mut query, mut found) = (query.clone(), Vec::new());
    loop {
        let page = events.read(&query).await?;
        let Some(last) = page.last() else { return Ok(found) };
        query.from = last.sequence + 1;
        query.limit -= page.len();
        found.extend(page);
    }
}

/// What refusals say.
const DETAILS: &[&str] = &[
    "event",
    "field",
    "stream",
    "expected",
    "version",
    "event_id",
    "sequence",
    "projection",
    "checkpoint",
    "change",
    "first",
    "last",
];

/// Returns `count` steps that follow from `seed`, and some that read everything back.
pub(super) fn steps(seed: u64, count: usize) -> Vec<EventsStep> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut streams: Vec<String> = ["s-1", "s-2", "s", "S-1"].map(str::to_owned).into();
    streams.extend((0..3).map(|_| ODD_NAMES[random.usize(..ODD_NAMES.len())].to_owned()));
    let mut generator = Generator { random, streams, ids: 0, appended: 0, stands: BTreeMap::new() };
    let mut steps: Vec<_> = (0..count).map(|_| generator.step()).collect();
    let last = [
        Action::Read(EventQuery::from(1)),
        Action::Extent,
        Action::Streams(Matcher::any()),
        Action::Projections,
        Action::Check,
    ];
    steps.extend(last.map(|action| EventsStep { handle: 0, action }));
    steps
}

/// Draws steps. Everything follows from the seed; what it draws fits the store more often than
/// not, because it keeps count of what it appended.
struct Generator {
    random: fastrand::Rng,
    streams: Vec<String>,
    ids: usize,
    /// Roughly the end of the log.
    appended: u64,
    /// Where projections stand, if what was drawn was done.
    stands: BTreeMap<String, u64>,
}

impl Generator {
    fn step(&mut self) -> EventsStep {
        let action = match self.random.u32(..30) {
            0..=9 => self.append(),
            10..=13 => Action::Read(self.query()),
            14 => Action::Extent,
            15 => Action::Streams(self.matcher()),
            16..=20 => Action::Project(self.projection_step()),
            21 => Action::Projections,
            22..=23 => Action::Rows(self.projection(), self.table(), self.matcher()),
            24 => {
                let name = self.projection();
                self.stands.remove(&name);
                Action::Forget(name)
            }
            25 => Action::Prune(self.random.u64(..=self.appended + 2) / 2),
            26 => Action::Compact,
            27 => Action::Check,
            28 => Action::Open,
            _ => Action::Close,
        };
        EventsStep { handle: self.random.usize(..8), action }
    }

    fn stream(&mut self) -> String {
        self.streams[self.random.usize(..self.streams.len())].clone()
    }

    fn append(&mut self) -> Action {
        let size = [0, 1, 1, 3, 10, 40, 300][self.random.usize(..7)];
        let mut batch: Vec<_> = (0..size).map(|n| self.event(n)).collect();
        if self.random.u32(..100) < 4 {
            let bad = NewEvent::new(["", "\0"][self.random.usize(..2)], "T", json!(1));
            batch.insert(self.random.usize(..=batch.len()), bad);
        }
        let expected = match self.random.u32(..4) {
            0 => vec![Expectation::new(self.stream(), self.version())],
            1 => vec![
                Expectation::new(self.stream(), ExpectedVersion::Any),
                Expectation::new(self.stream(), self.version()),
            ],
            _ => Vec::new(),
        };
        self.appended += batch.len() as u64;
        Action::Append(batch, expected)
    }

    fn version(&mut self) -> ExpectedVersion {
        match self.random.u32(..4) {
            0 => ExpectedVersion::NoStream,
            1 => ExpectedVersion::Any,
            _ => ExpectedVersion::Exact(self.random.u64(..12)),
        }
    }

    fn event(&mut self, n: usize) -> NewEvent {
        let micros = NOON * 1000 + self.random.i64(-5_000_000..5_000_000);
        let event = NewEvent::new(self.stream(), "Drawn", self.value(n)).at(at_us(micros));
        match self.random.u32(..40) {
            // One that may be there already, as another event or, below, as the same.
            0 => event.with_id(format!("id-{}", self.random.usize(..=self.ids))),
            1 => NewEvent::new("same", "Same", json!(1)).with_id("same"),
            2..=20 => {
                self.ids += 1;
                event.with_id(format!("id-{}", self.ids))
            }
            _ => event,
        }
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
        let name = self.stream();
        let prefix: String = name.chars().take(1).chain(['*']).collect();
        let matcher = match self.random.u32(..5) {
            0 => Matcher::exact(&name),
            1 => Matcher::parse(&prefix),
            2 => Matcher::parse("*1*"),
            3 => Matcher::any_of([name.as_str(), "s-1", "nobody"]),
            _ => Ok(Matcher::any()),
        };
        matcher.unwrap_or_default()
    }

    fn query(&mut self) -> EventQuery {
        let from = self.random.u64(..=self.appended + 2);
        let limit = [0, 1, 7, 100, usize::MAX][self.random.usize(..5)];
        let query = EventQuery::from(from).limit(limit);
        if self.random.bool() { query } else { query.stream(self.stream()) }
    }

    fn projection(&mut self) -> String {
        ["p", "q", "P"][self.random.usize(..3)].to_owned()
    }

    fn table(&mut self) -> String {
        ["t", "u"][self.random.usize(..2)].to_owned()
    }

    fn projection_step(&mut self) -> ProjectionStep {
        let projection = self.projection();
        let stands = self.stands.get(&projection).copied().unwrap_or(0);
        let from = [stands, stands, stands, self.random.u64(..=self.appended)];
        let from = from[self.random.usize(..4)];
        let to = from + self.random.u64(..=(self.appended / 2).max(from) - from);
        let mut step = ProjectionStep::new(projection, from, to);
        step.reset = self.random.u32(..4) == 0;
        self.stands.insert(step.projection.clone(), to);
        for n in 0..[0, 1, 5, 50][self.random.usize(..4)] {
            let (table, key) = (self.table(), self.stream());
            step = match self.random.u32(..4) {
                0 => step.remove(table, key),
                _ => step.put(table, key, self.value(n)),
            };
        }
        step
    }
}
