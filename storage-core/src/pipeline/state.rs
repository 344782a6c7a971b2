//! What the tasks of an actor share, and the one lock it is under.
//!
//! Every change that another task may wait for bumps `progress`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::actor::ActorOptions;
use super::buffer::{Batch, Buffer, Part, Pushed};
use super::counters::{ActorCounters, SetAside, SourceCounters};
use super::health::ActorHealth;
use super::source::Backpressure;
use super::spool::Spool;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::{HealthStatus, MetricRecord, StorageBackend};

/// How long records that were dropped show in the health at least, unless memory is empty before.
const SHED_SHOWN: Duration = Duration::from_secs(10);

/// How many records that were set aside are kept to be looked at.
const SET_ASIDE_MAX: usize = 100;

/// What the tasks of an actor share.
pub(super) struct Shared {
    pub(super) store: Arc<dyn StorageBackend>,
    pub(super) spool: Option<Spool>,
    pub(super) options: ActorOptions,
    state: Mutex<State>,
    /// Rung for the writer: a batch was closed, or there is nothing more to come.
    pub(super) work: Notify,
    /// Rung for the writer: memory is half full of what shall go to the spool.
    pub(super) overflow: Notify,
    /// Rung for the task of each source: there may be room.
    room: Vec<Notify>,
    /// A number that grows with everything somebody may wait for.
    pub(super) progress: watch::Sender<u64>,
    /// Asks the sources to take what is there: the number of the request.
    pub(super) sync: watch::Sender<u64>,
    /// When the actor must have ended, once it was asked to.
    pub(super) stop: watch::Sender<Option<Instant>>,
}

struct State {
    buffer: Buffer,
    /// What the writer has taken and not yet stored or spooled.
    taken: Option<TakenInfo>,
    sources: Vec<SourceState>,
    writes: u64,
    write_failures: u64,
    drained: u64,
    drained_invalid: u64,
    failing: Option<Failing>,
    /// When records were dropped last; `None` when memory was empty since, or the store took some
    /// long after.
    shed_at: Option<Instant>,
    spool_trouble: Option<String>,
    set_aside: VecDeque<SetAside>,
    writer_ended: bool,
}

/// A record that the store refused for good.
pub(super) struct Refused {
    /// Where it stood in the batch.
    pub(super) index: usize,
    pub(super) record: MetricRecord,
    pub(super) reason: Error,
}

struct TakenInfo {
    seq: u64,
    since: Instant,
}

#[derive(Default)]
struct SourceState {
    name: String,
    received: u64,
    invalid: u64,
    shed: u64,
    stored: u64,
    spooled: u64,
    lagged: u64,
    waits: u64,
    /// Records in the hands of the source's task, which waits for room.
    waiting: u64,
    /// The newest request to take everything that it has answered.
    synced: u64,
    ended: bool,
    /// Whether it ended because there was nothing more to take.
    is_whole: bool,
}

/// Why, and since when, the store takes nothing.
struct Failing {
    since: Instant,
    kind: ErrorKind,
    message: String,
}

impl Shared {
    pub(super) fn new(
        store: Arc<dyn StorageBackend>,
        spool: Option<Spool>,
        options: ActorOptions,
        sources: Vec<(String, Backpressure)>,
    ) -> Self {
        let buffer = Buffer::new(options.bounds(), sources.iter().map(|(_, policy)| *policy));
        let room = sources.iter().map(|_| Notify::new()).collect();
        let of = |(name, _)| SourceState { name, ..SourceState::default() };
        let state = State {
            buffer,
            taken: None,
            sources: sources.into_iter().map(of).collect(),
            writes: 0,
            write_failures: 0,
            drained: 0,
            drained_invalid: 0,
            failing: None,
            shed_at: None,
            spool_trouble: None,
            set_aside: VecDeque::new(),
            writer_ended: false,
        };
        Self {
            store,
            spool,
            options,
            state: Mutex::new(state),
            work: Notify::new(),
            overflow: Notify::new(),
            room,
            progress: watch::Sender::new(0),
            sync: watch::Sender::new(0),
            stop: watch::Sender::new(None),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets those look again who wait for something.
    pub(super) fn bump(&self) {
        self.progress.send_modify(|number| *number += 1);
    }

    // What the tasks of the sources do.

    /// Counts what was taken from a source, and sets aside what is invalid.
    pub(super) fn received(&self, lane: usize, records: &mut Vec<MetricRecord>, lagged: u64) {
        let count = records.len() as u64;
        // First without the lock, and mostly only this: it takes longer than all of the rest.
        let mut invalid = Vec::new();
        if records.iter().any(|record| record.validate().is_err()) {
            for record in std::mem::take(records) {
                match record.validate() {
                    Ok(()) => records.push(record),
                    Err(reason) => invalid.push((record, reason)),
                }
            }
        }
        let mut state = self.state();
        let source = &mut state.sources[lane];
        source.received += count;
        source.lagged += lagged;
        source.invalid += invalid.len() as u64;
        let name = source.name.clone();
        if lagged > 0 {
            tracing::warn!(target: "storage", source = name, lagged, "items were lost on the way");
        }
        for (record, reason) in invalid {
            state.set_aside(SetAside { source: Some(name.clone()), record, reason });
        }
    }

    /// Adds records to the lane of a source; waits for room if the source shall.
    pub(super) async fn push(&self, lane: usize, records: &mut Vec<MetricRecord>) {
        let mut has_waited = false;
        while !self.try_push(lane, records, has_waited) {
            has_waited = true;
            self.room[lane].notified().await;
        }
    }

    fn try_push(&self, lane: usize, records: &mut Vec<MetricRecord>, has_waited: bool) -> bool {
        if records.is_empty() {
            return true;
        }
        let count = records.len() as u64;
        let mut state = self.state();
        let seq_before = state.buffer.next_seq();
        let pushed = state.buffer.push(lane, records, Instant::now());
        let closed = state.buffer.next_seq() > seq_before;
        let source = &mut state.sources[lane];
        let (is_in, overflows) = match pushed {
            Pushed::Full => {
                source.waits += u64::from(!has_waited);
                source.waiting = count;
                (false, false)
            }
            Pushed::In { shed, overflows } => {
                source.waiting = 0;
                source.shed += shed;
                if shed > 0 {
                    state.shed(lane, shed);
                }
                (true, overflows)
            }
        };
        drop(state);
        if closed {
            self.work.notify_one();
        }
        if overflows {
            self.overflow.notify_one();
        }
        is_in
    }

    /// When the open batch of a source is due.
    pub(super) fn due(&self, lane: usize) -> Option<Instant> {
        self.state().buffer.due(lane)
    }

    /// Closes the open batch of a source.
    pub(super) fn close(&self, lane: usize) {
        self.state().buffer.close(lane);
        self.work.notify_one();
    }

    /// Says that a source has taken everything that was there at request `number`.
    pub(super) fn synced(&self, lane: usize, number: u64) {
        let mut state = self.state();
        state.buffer.close(lane);
        state.sources[lane].synced = number;
        drop(state);
        self.work.notify_one();
        self.bump();
    }

    /// Says that a source will give nothing more, and whether everything was taken from it.
    pub(super) fn ended(&self, lane: usize, is_whole: bool) {
        let mut state = self.state();
        state.buffer.close(lane);
        state.sources[lane].ended = true;
        state.sources[lane].is_whole = is_whole;
        drop(state);
        self.work.notify_one();
        self.bump();
    }

    // What the writer does.

    /// Takes the oldest closed batches: one, and more up to `records_max` records.
    pub(super) fn take(&self, records_max: usize) -> Option<Batch> {
        let mut state = self.state();
        let batch = state.buffer.take(records_max.min(self.options.write_records_max))?;
        state.taken = Some(TakenInfo { seq: batch.seq, since: batch.since });
        Some(batch)
    }

    /// Whether the actor was asked to stop and nothing is left in memory.
    pub(super) fn is_finished(&self) -> bool {
        self.stop.borrow().is_some() && self.state().is_empty()
    }

    /// Notes that what was taken is in the store, but for what it refused.
    pub(super) fn stored(&self, parts: &[Part], refused: Vec<Refused>) {
        let mut state = self.state();
        state.worked();
        for part in parts {
            state.sources[part.lane].stored += part.records;
        }
        for Refused { index, record, reason } in refused {
            let mut end = 0;
            let behind = |part: &&Part| {
                end += part.records as usize;
                index < end
            };
            let Some(part) = parts.iter().find(behind) else { continue };
            let source = &mut state.sources[part.lane];
            source.stored -= 1;
            source.invalid += 1;
            let source = Some(source.name.clone());
            state.set_aside(SetAside { source, record, reason });
        }
        self.let_go(state, parts);
    }

    /// Notes that what was taken is in the spool.
    pub(super) fn spooled(&self, parts: &[Part]) {
        let mut state = self.state();
        for part in parts {
            state.sources[part.lane].spooled += part.records;
        }
        state.spool_trouble = None;
        self.let_go(state, parts);
    }

    fn let_go(&self, mut state: MutexGuard<'_, State>, parts: &[Part]) {
        state.buffer.done(parts);
        state.taken = None;
        if state.holds_nothing() {
            state.shed_at = None;
        }
        drop(state);
        for part in parts {
            self.room[part.lane].notify_one();
        }
        self.bump();
    }

    /// Notes that records of the spool are in the store.
    pub(super) fn drained(&self, records: u64, refused: Vec<Refused>) {
        let mut state = self.state();
        state.worked();
        state.spool_trouble = None;
        state.drained += records - refused.len() as u64;
        state.drained_invalid += refused.len() as u64;
        for Refused { record, reason, .. } in refused {
            state.set_aside(SetAside { source: None, record, reason });
        }
    }

    /// Notes that a write failed.
    pub(super) fn failed(&self, error: &Error) {
        let mut state = self.state();
        state.write_failures += 1;
        let message = format!("{error:#}");
        if state.failing.is_none() {
            tracing::warn!(target: "storage", error = message, "the store fails; records are kept");
        }
        let since = state.failing.as_ref().map_or_else(Instant::now, |failing| failing.since);
        state.failing = Some(Failing { since, kind: error.kind(), message });
        drop(state);
        self.bump();
    }

    /// Notes that the spool takes nothing, or gives nothing back.
    pub(super) fn spool_failed(&self, error: &Error) {
        let mut state = self.state();
        let message = format!("{error:#}");
        if state.spool_trouble.is_none() {
            tracing::warn!(target: "storage", error = message, "the spool fails");
        }
        state.spool_trouble = Some(message);
        drop(state);
        self.bump();
    }

    /// Notes that the writer has ended.
    pub(super) fn writer_ended(&self) {
        self.state().writer_ended = true;
        self.bump();
    }

    // What the handle asks.

    pub(super) fn is_failing(&self) -> bool {
        self.state().failing.is_some()
    }

    pub(super) fn has_writer_ended(&self) -> bool {
        self.state().writer_ended
    }

    /// Whether all sources have ended and nothing of theirs is on its way.
    pub(super) fn is_drained(&self) -> bool {
        let spool_is_empty = self.spool.as_ref().is_none_or(Spool::is_empty);
        spool_is_empty && self.state().is_empty()
    }

    /// Whether everything was taken from every source.
    pub(super) fn have_sources_ended(&self) -> bool {
        self.state().sources.iter().all(|source| source.is_whole)
    }

    /// Whether records that the store does not take can only wait in memory.
    pub(super) fn has_memory_only(&self) -> bool {
        let is_full = self.spool.as_ref().is_none_or(Spool::is_full);
        is_full || self.state().spool_trouble.is_some()
    }

    /// Whether all sources have answered request `number`; then the number before which all
    /// batches must be done.
    pub(super) fn synced_seq(&self, number: u64) -> Option<u64> {
        let state = self.state();
        let all = state.sources.iter().all(|source| source.ended || source.synced >= number);
        all.then(|| state.buffer.next_seq())
    }

    /// Whether no batch before `seq` is in memory any more.
    pub(super) fn is_done_to(&self, seq: u64) -> bool {
        let state = self.state();
        let oldest = state.taken.as_ref().map(|taken| taken.seq);
        oldest.into_iter().chain(state.buffer.oldest_seq()).all(|oldest| oldest >= seq)
    }

    /// How many writes have failed, and the last reason if they still do.
    pub(super) fn failures(&self) -> (u64, Option<Error>) {
        let state = self.state();
        let error = |failing: &Failing| Error::new(failing.kind, failing.message.clone());
        (state.write_failures, state.failing.as_ref().map(error))
    }

    pub(super) fn counters(&self) -> ActorCounters {
        let state = self.state();
        let of = |(no, source): (usize, &SourceState)| SourceCounters {
            name: source.name.clone(),
            backpressure: state.buffer.lanes[no].backpressure,
            received: source.received,
            invalid: source.invalid,
            shed: source.shed,
            stored: source.stored,
            spooled: source.spooled,
            held: state.buffer.lanes[no].held_records + source.waiting,
            lagged: source.lagged,
            waits: source.waits,
            ended: source.ended,
        };
        ActorCounters {
            sources: state.sources.iter().enumerate().map(of).collect(),
            writes: state.writes,
            write_failures: state.write_failures,
            drained: state.drained,
            drained_invalid: state.drained_invalid,
        }
    }

    pub(super) fn take_set_aside(&self) -> Vec<SetAside> {
        self.state().set_aside.drain(..).collect()
    }

    pub(super) fn health(&self) -> ActorHealth {
        let spool = self.spool.as_ref().map(Spool::backlog);
        let spool_is_full = self.spool.as_ref().is_none_or(Spool::is_full);
        let state = self.state();
        let now = Instant::now();
        let waiting: u64 = state.sources.iter().map(|source| source.waiting).sum();
        let lanes = &state.buffer.lanes;
        let held: u64 = lanes.iter().map(|lane| lane.held_records).sum();
        let taken_since = state.taken.as_ref().map(|taken| taken.since);
        let oldest = taken_since.into_iter().chain(state.buffer.oldest_since()).min();
        let oldest_age = oldest.map(|since| now.duration_since(since));
        let spool_is_lost = spool_is_full || state.spool_trouble.is_some();
        let sheds = state.has_shed(now) || (state.shed_at.is_some() && state.failing.is_some());
        // Then all are to end.
        let is_stopping = self.stop.borrow().is_some();
        let defects = if is_stopping { Vec::new() } else { state.defects() };
        let status = match &state.failing {
            _ if sheds || (state.writer_ended && !is_stopping) => HealthStatus::Down,
            Some(_) if waiting > 0 && spool_is_lost => HealthStatus::Down,
            Some(_) => HealthStatus::Degraded,
            None if state.spool_trouble.is_some() => HealthStatus::Degraded,
            None if spool.is_some_and(|spool| spool.records > 0) => HealthStatus::Degraded,
            None if !defects.is_empty() => HealthStatus::Degraded,
            None => HealthStatus::Healthy,
        };
        let failing = state.failing.as_ref().map(|failing| failing.message.clone());
        let shed = sheds.then(|| "memory is full, records are dropped".to_owned());
        let messages: Vec<_> = failing
            .into_iter()
            .chain(state.spool_trouble.clone())
            .chain(shed)
            .chain(defects)
            .collect();
        ActorHealth {
            status,
            message: messages.join("; "),
            failing_for: state.failing.as_ref().map(|failing| now.duration_since(failing.since)),
            backlog_records: held + waiting + spool.map_or(0, |spool| spool.records),
            memory_bytes: lanes.iter().map(|lane| lane.held_bytes as u64).sum(),
            spool,
            oldest_age: oldest_age.max(spool.and_then(|spool| spool.oldest_age)),
        }
    }

    /// Asks the actor to stop by `deadline`; an earlier one stays.
    pub(super) fn stop_by(&self, deadline: Instant) {
        self.stop.send_if_modified(|stop| {
            let is_earlier = stop.is_none_or(|before| deadline < before);
            if is_earlier {
                *stop = Some(deadline);
            }
            is_earlier
        });
        self.work.notify_one();
    }

    /// Waits until `is_so`, which is asked again after every change.
    pub(super) async fn wait_until<T>(
        &self,
        mut is_so: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T> {
        let mut progress = self.progress.subscribe();
        loop {
            progress.mark_unchanged();
            if let Some(answer) = is_so(self) {
                return Ok(answer);
            }
            if progress.changed().await.is_err() {
                return Err(Error::new(ErrorKind::Closed, "the actor is gone"));
            }
        }
    }
}

impl State {
    fn worked(&mut self) {
        self.writes += 1;
        if !self.has_shed(Instant::now()) {
            self.shed_at = None;
        }
        if self.failing.take().is_some() {
            tracing::info!(target: "storage", "the store takes records again");
        }
    }

    /// What has ended without being told to, or having come to its end.
    fn defects(&self) -> Vec<String> {
        let writer = self.writer_ended.then(|| "the task that stores has ended".to_owned());
        let broken = self.sources.iter().filter(|source| source.ended && !source.is_whole);
        let broken = broken.map(|source| format!("source {} broke off", source.name));
        writer.into_iter().chain(broken).collect()
    }

    /// Whether records were dropped a short time ago.
    fn has_shed(&self, now: Instant) -> bool {
        self.shed_at.is_some_and(|at| now.duration_since(at) < SHED_SHOWN)
    }

    /// Notes that records of a source were dropped; told once while it goes on.
    fn shed(&mut self, lane: usize, shed: u64) {
        let now = Instant::now();
        if !self.has_shed(now) {
            let source = &*self.sources[lane].name;
            tracing::warn!(target: "storage", source, shed, "memory is full, records are dropped");
        }
        self.shed_at = Some(now);
    }

    fn holds_nothing(&self) -> bool {
        self.buffer.lanes.iter().all(|lane| lane.held_records == 0)
    }

    /// Whether no source will give anything more, and nothing is in memory.
    fn is_empty(&self) -> bool {
        self.sources.iter().all(|source| source.ended) && self.holds_nothing()
    }

    fn set_aside(&mut self, record: SetAside) {
        tracing::warn!(target: "storage", reason = %record.reason, "a record was set aside");
        if self.set_aside.len() == SET_ASIDE_MAX {
            self.set_aside.pop_front();
        }
        self.set_aside.push_back(record);
    }
}
