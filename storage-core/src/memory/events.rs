//! The event store in memory: one lock, one row of events, ordered maps for the rest.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::Notify;

use super::{check_open, named_error};
use crate::error::Result;
use crate::events::rows::check_prune;
use crate::events::value::{repeated, validate_events, validate_expectations};
use crate::events::{
    EventQuery, EventStore, Expectation, LogExtent, NewEvent, ProjectionInfo, ProjectionStep, Row,
    StoredEvent, StreamInfo,
};
use crate::limits::check_name;
use crate::metrics::Matcher;

/// What the handles of one store share.
#[derive(Debug, Default)]
pub(super) struct Log {
    state: RwLock<State>,
    appended: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Those that were not pruned; the last one has the number `last`.
    events: VecDeque<StoredEvent>,
    last: u64,
    /// The versions of all streams that ever were.
    streams: BTreeMap<String, u64>,
    by_id: HashMap<String, u64>,
    projections: BTreeMap<String, Projected>,
}

#[derive(Debug, Default)]
struct Projected {
    checkpoint: u64,
    rows: BTreeMap<(String, String), Value>,
}

impl Log {
    /// Wakes who waits for events.
    pub(super) fn ring(&self) {
        self.appended.notify_waiters();
    }
}

impl State {
    fn extent(&self) -> LogExtent {
        LogExtent { first: self.last + 1 - self.events.len() as u64, last: self.last }
    }

    /// The events from `sequence` on.
    fn from(&self, sequence: u64) -> impl Iterator<Item = &StoredEvent> {
        let skipped = sequence.saturating_sub(self.extent().first);
        self.events.iter().skip(usize::try_from(skipped).unwrap_or(usize::MAX))
    }

    /// The stored events that have the ids of a batch.
    fn found(&self, events: &[NewEvent]) -> Vec<Option<StoredEvent>> {
        let find = |event: &NewEvent| {
            let sequence = self.by_id.get(event.event_id.as_ref()?)?;
            self.from(*sequence).next().cloned()
        };
        events.iter().map(find).collect()
    }

    fn append(&mut self, events: &[NewEvent]) -> Vec<StoredEvent> {
        let append = |event: &NewEvent| {
            self.last += 1;
            let version = self.streams.entry(event.stream.clone()).or_default();
            *version += 1;
            if let Some(id) = &event.event_id {
                self.by_id.insert(id.clone(), self.last);
            }
            let stored = event.clone().into_stored(self.last, *version);
            self.events.push_back(stored.clone());
            stored
        };
        events.iter().map(append).collect()
    }
}

/// The event store of [`InMemory`](crate::InMemory).
#[derive(Debug, Clone)]
pub struct InMemoryEvents {
    log: Arc<Log>,
    /// That of the handle.
    closed: Arc<AtomicBool>,
}

impl InMemoryEvents {
    fn check_open(&self, operation: &'static str) -> Result<()> {
        check_open(&self.closed).map_err(|error| named_error(error, operation))
    }

    fn read_state(&self, operation: &'static str) -> Result<RwLockReadGuard<'_, State>> {
        self.check_open(operation)?;
        Ok(self.log.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write_state(&self, operation: &'static str) -> Result<RwLockWriteGuard<'_, State>> {
        self.check_open(operation)?;
        Ok(self.log.state.write().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl EventStore for InMemoryEvents {
    async fn append(
        &self,
        events: &[NewEvent],
        expected: &[Expectation],
    ) -> Result<Vec<StoredEvent>> {
        let mut state = self.write_state("append")?;
        let mut append = || {
            validate_events(events)?;
            validate_expectations(expected)?;
            if events.is_empty() {
                return Ok(Vec::new());
            }
            if let Some(stored) = repeated(events, state.found(events))? {
                return Ok(stored);
            }
            for expected in expected {
                expected.check(state.streams.get(&expected.stream).copied().unwrap_or(0))?;
            }
            Ok(state.append(events))
        };
        let stored = append().map_err(|error| named_error(error, "append"))?;
        drop(state);
        self.log.ring();
        Ok(stored)
    }

    async fn read(&self, query: &EventQuery) -> Result<Vec<StoredEvent>> {
        let state = self.read_state("read")?;
        query.validate().map_err(|error| named_error(error, "read"))?;
        let is_of = |event: &&StoredEvent| {
            query.stream.as_ref().is_none_or(|stream| event.stream == *stream)
        };
        Ok(state.from(query.from).filter(is_of).take(query.limit).cloned().collect())
    }

    fn reads_ahead(&self, _query: &EventQuery) -> bool {
        false
    }

    async fn extent(&self) -> Result<LogExtent> {
        Ok(self.read_state("extent")?.extent())
    }

    async fn streams(&self, streams: &Matcher) -> Result<Vec<StreamInfo>> {
        let state = self.read_state("streams")?;
        let chosen = state.streams.iter().filter(|(stream, _)| streams.matches(stream));
        let info = |(stream, version): (&String, &u64)| StreamInfo {
            stream: stream.clone(),
            version: *version,
        };
        Ok(chosen.map(info).collect())
    }

    async fn wait_for(&self, sequence: u64) -> Result<()> {
        loop {
            // Asked for before looking, so that what is appended in between rings.
            let appended = self.log.appended.notified();
            if self.read_state("wait_for")?.last >= sequence {
                return Ok(());
            }
            appended.await;
        }
    }

    async fn project(&self, step: &ProjectionStep) -> Result<()> {
        let mut state = self.write_state("project")?;
        let checkpoint = state.projections.get(&step.projection).map_or(0, |p| p.checkpoint);
        step.validate()
            .and_then(|()| step.check(checkpoint, state.extent()))
            .map_err(|error| named_error(error, "project"))?;
        let projected = state.projections.entry(step.projection.clone()).or_default();
        if step.reset {
            projected.rows.clear();
        }
        for change in &step.changes {
            let place = (change.table.clone(), change.key.clone());
            match &change.value {
                Some(value) => projected.rows.insert(place, value.clone()),
                None => projected.rows.remove(&place),
            };
        }
        projected.checkpoint = step.to;
        Ok(())
    }

    async fn projections(&self) -> Result<Vec<ProjectionInfo>> {
        let state = self.read_state("projections")?;
        let info = |(projection, projected): (&String, &Projected)| ProjectionInfo {
            projection: projection.clone(),
            checkpoint: projected.checkpoint,
        };
        Ok(state.projections.iter().map(info).collect())
    }

    async fn rows(&self, projection: &str, table: &str, keys: &Matcher) -> Result<Vec<Row>> {
        let state = self.read_state("rows")?;
        check_name("projection", projection)
            .and_then(|()| check_name("table", table))
            .map_err(|error| named_error(error, "rows"))?;
        let Some(projected) = state.projections.get(projection) else { return Ok(Vec::new()) };
        let chosen =
            projected.rows.iter().filter(|((of, key), _)| of == table && keys.matches(key));
        let row = |((_, key), value): (&(String, String), &Value)| Row {
            key: key.clone(),
            value: value.clone(),
        };
        Ok(chosen.map(row).collect())
    }

    async fn forget_projection(&self, projection: &str) -> Result<bool> {
        let mut state = self.write_state("forget_projection")?;
        check_name("projection", projection)
            .map_err(|error| named_error(error, "forget_projection"))?;
        Ok(state.projections.remove(projection).is_some())
    }

    async fn prune_before(&self, sequence: u64) -> Result<u64> {
        let mut state = self.write_state("prune_before")?;
        let checkpoints = state.projections.iter().map(|(name, p)| (name.as_str(), p.checkpoint));
        check_prune(checkpoints, sequence, state.extent())
            .map_err(|error| named_error(error, "prune_before"))?;
        let removed = state.events.iter().take_while(|event| event.sequence < sequence).count();
        state.events.drain(..removed);
        state.by_id.retain(|_, place| *place >= sequence);
        Ok(removed as u64)
    }

    fn name(&self) -> &'static str {
        "memory"
    }
}

impl super::InMemory {
    /// The event store of this store; it closes with this handle.
    pub fn events(&self) -> InMemoryEvents {
        InMemoryEvents { log: Arc::clone(&self.parts.log), closed: Arc::clone(&self.closed) }
    }
}
