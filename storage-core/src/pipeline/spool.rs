//! A bounded queue of batches on any store: what waits there waits safely, and in order.
//!
//! A batch becomes text, cut into chunks that fit into metadata; the chunks are samples of one
//! series, numbered through by their timestamps. So the five required methods are a queue: a push
//! is one `write_batch`, all or nothing; the front is a `query_range`; done is `prune_before`.

use std::any::Any;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::sync::futures::Notified;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::Instant;

use super::spool_codec::{self as codec, Front};
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::metrics::record::validate_batch;
use crate::metrics::time::{floor_ms, from_ms};
use crate::metrics::{MetricRecord, StorageBackend, TimeRange};

/// How many chunks are read at once to find the front.
const CHUNKS_READ: i64 = 32;

/// How many chunks that are done may lie there until they are pruned. A crash lets them be drained
/// again, in order, which changes nothing.
const CHUNKS_DONE_MAX: i64 = 512;

/// How much a [`Spool`] holds at most.
///
/// ```
/// use storage_core::pipeline::SpoolLimits;
///
/// let small = SpoolLimits::default().with_records_max(100_000);
/// assert_eq!((small.records_max(), small.bytes_max()), (100_000, 1 << 30));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolLimits {
    records_max: u64,
    bytes_max: u64,
}

impl Default for SpoolLimits {
    /// Ten million records, a gibibyte of text: some 15 minutes of 10,000 records a second.
    fn default() -> Self {
        Self { records_max: 10_000_000, bytes_max: 1 << 30 }
    }
}

impl SpoolLimits {
    /// Sets the most records.
    #[must_use]
    pub const fn with_records_max(mut self, records_max: u64) -> Self {
        self.records_max = records_max;
        self
    }

    /// Sets the most bytes of text, before the store compresses it.
    #[must_use]
    pub const fn with_bytes_max(mut self, bytes_max: u64) -> Self {
        self.bytes_max = bytes_max;
        self
    }

    /// The most records.
    pub const fn records_max(&self) -> u64 {
        self.records_max
    }

    /// The most bytes of text.
    pub const fn bytes_max(&self) -> u64 {
        self.bytes_max
    }
}

/// What waits in a [`Spool`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct SpoolBacklog {
    /// Records that wait.
    pub records: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// How long the oldest has waited, at most.
    pub oldest_age: Option<Duration>,
}

/// A bounded queue of batches on a [`StorageBackend`] of its own.
///
/// Clones are handles to the same queue. Any number of tasks may push and drain; batches come out
/// as they went in, one drain at a time. What was pushed survives whatever the store survives:
/// a spool on SQLite is there after a power cut, one in memory ends with the process.
///
/// One process at a time may use the store of a spool, and nothing else may lie in it.
///
/// ```
/// use std::sync::Arc;
/// use storage_core::pipeline::{Spool, SpoolLimits};
/// use storage_core::{InMemory, MetricRecord, StorageBackend};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let spool = Spool::open(Arc::new(InMemory::new()), SpoolLimits::default()).await?;
/// spool.push(&[MetricRecord::new("web-1", chrono::Utc::now(), "cpu", 1.0)]).await?;
/// assert_eq!(spool.backlog().records, 1);
///
/// let store = InMemory::new();
/// spool.drain_step(1000, async |records| store.write_batch(&records).await).await?;
/// assert!(spool.is_empty());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Spool(Arc<Inner>);

struct Inner {
    store: Arc<dyn StorageBackend>,
    limits: SpoolLimits,
    opened_at: (DateTime<Utc>, Instant),
    state: Mutex<State>,
    /// Held while a batch is written: batches stand in the order of their numbers.
    pushing: Arc<AsyncMutex<()>>,
    /// How many batches have their turn, and are not counted yet.
    on_their_way: AtomicUsize,
    /// Held while a batch is drained: nobody else takes the same one, or the next before it.
    draining: AsyncMutex<()>,
    /// Rung for everybody after every push.
    pushed: Notify,
    /// Rung after every batch that is gone.
    popped: Notify,
    /// Kept as long as this is.
    _guard: Box<dyn Any + Send + Sync>,
}

/// Counts a batch as on its way.
struct OnItsWay(Arc<Inner>);

impl OnItsWay {
    fn new(inner: &Arc<Inner>) -> Self {
        inner.on_their_way.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(inner))
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.0.on_their_way.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Numbers of chunks: `pruned..head` is done, `head..tail` waits.
#[derive(Debug, Clone, Copy)]
struct State {
    pruned: i64,
    head: i64,
    tail: i64,
    records: u64,
    bytes: u64,
    oldest_at_ms: Option<i64>,
}

impl State {
    /// Counts what stands before `end` as done.
    fn advance(&mut self, end: i64) {
        self.head = end;
        if self.head == self.tail {
            // What was in doubt and did not come is not counted any longer.
            (self.records, self.bytes) = (0, 0);
        }
    }
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool").field("store", &self.0.store.name()).finish_non_exhaustive()
    }
}

impl Spool {
    /// Opens the spool on `store`, with whatever a former process left in it.
    ///
    /// # Errors
    /// `Config` if other samples than those of a spool lie there; otherwise those of the store.
    pub async fn open(store: Arc<dyn StorageBackend>, limits: SpoolLimits) -> Result<Self> {
        Self::open_guarded(store, limits, ()).await
    }

    /// Opens the spool on `store`, and keeps `guard` until its last handle is gone: what keeps other
    /// processes away, such as a locked file.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_guarded(
        store: Arc<dyn StorageBackend>,
        limits: SpoolLimits,
        guard: impl Send + Sync + 'static,
    ) -> Result<Self> {
        let state = read_state(&*store).await?;
        Ok(Self(Arc::new(Inner {
            store,
            limits,
            opened_at: (Utc::now(), Instant::now()),
            state: Mutex::new(state),
            pushing: Arc::default(),
            on_their_way: AtomicUsize::new(0),
            draining: AsyncMutex::default(),
            pushed: Notify::new(),
            popped: Notify::new(),
            _guard: Box::new(guard),
        })))
    }

    /// Adds a batch at the end. It is kept in one piece, also when its future is dropped.
    ///
    /// # Errors
    /// `InvalidArgument` if a record breaks a rule of [`MetricRecord`], `StorageFull` if there is
    /// no room, and nothing is added; otherwise those of the store, with the outcome as it has it.
    pub async fn push(&self, records: &[MetricRecord]) -> Result<()> {
        self.push_aged(records, Duration::ZERO).await
    }

    /// Adds a batch whose oldest record has waited for `age` already.
    pub(super) async fn push_aged(&self, records: &[MetricRecord], age: Duration) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        validate_batch(records).map_err(|error| error.with_operation("push"))?;
        let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        let at_ms = self.0.now_ms().saturating_sub(age_ms);
        let chunks = codec::encode(records)?;
        let count = records.len() as u64;
        let inner = Arc::clone(&self.0);
        // The turn first: what is dropped from here on is still before all that is pushed later.
        let turn = Arc::clone(&inner.pushing).lock_owned().await;
        let on_its_way = OnItsWay::new(&inner);
        // In a task of its own: dropped half way, nobody would know whether the batch is there.
        let append = tokio::spawn(async move {
            let appended = inner.append(chunks, count, at_ms).await;
            drop((on_its_way, turn));
            appended
        });
        append.await.map_err(|error| {
            Error::new(ErrorKind::Internal, "the spool broke off")
                .with_outcome(Outcome::Unknown)
                .with_source(error)
        })?
    }

    /// Hands the oldest batches, together at most `records_max` records or one batch, to `write`,
    /// and removes them once it returned `Ok`. Returns how many records that were; 0 if none wait.
    ///
    /// Dropped half way, it leaves the batches where they are, and they come again.
    ///
    /// # Errors
    /// Those of `write`, and those of the store; `Corrupt` if the text does not decode.
    pub async fn drain_step<W, F>(&self, records_max: usize, write: W) -> Result<usize>
    where
        W: FnOnce(Vec<MetricRecord>) -> F,
        F: Future<Output = Result<()>>,
    {
        let inner = &*self.0;
        let _one = inner.draining.lock().await;
        let Some(front) = inner.front(records_max).await? else {
            inner.prune().await?;
            return Ok(0);
        };
        let count = front.records.len();
        write(front.records).await?;
        inner.pop(front.end, count as u64, front.bytes, front.next_at_ms).await?;
        Ok(count)
    }

    /// Closes the store that it lies in; what waits stays there for the next one that opens it, and what
    /// was drained does not, also if the step that drained it was dropped before it was removed.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn close(&self) -> Result<()> {
        let removed = self.0.prune().await;
        self.0.store.close().await?;
        removed
    }

    /// What waits.
    pub fn backlog(&self) -> SpoolBacklog {
        let state = *self.0.state();
        let age = |at_ms: i64| Duration::from_millis((self.0.now_ms() - at_ms).max(0) as u64);
        SpoolBacklog {
            records: state.records,
            bytes: state.bytes,
            oldest_age: state.oldest_at_ms.filter(|_| state.head < state.tail).map(age),
        }
    }

    /// Whether nothing waits, and what was drained is removed.
    pub fn is_empty(&self) -> bool {
        let state = self.0.state();
        state.pruned == state.tail
    }

    /// Whether nothing waits. What was drained may still be there.
    pub(super) fn is_drained(&self) -> bool {
        let state = self.0.state();
        state.head == state.tail
    }

    /// Whether it is empty and nothing is about to be in it.
    pub(super) fn is_idle(&self) -> bool {
        // In this order: what is no longer on its way is counted.
        self.0.on_their_way.load(Ordering::Acquire) == 0 && self.is_empty()
    }

    /// How many more records it may hold.
    pub(super) fn room(&self) -> usize {
        let records = self.0.limits.records_max.saturating_sub(self.0.state().records);
        usize::try_from(records).unwrap_or(usize::MAX)
    }

    /// Whether it holds as much as it may.
    pub fn is_full(&self) -> bool {
        let (state, limits) = (*self.0.state(), self.0.limits);
        state.records >= limits.records_max || state.bytes >= limits.bytes_max
    }

    /// The number behind the newest chunk: what is drained up to here was pushed before.
    pub(super) fn tail(&self) -> i64 {
        self.0.state().tail
    }

    /// Whether everything before `tail` is drained. It may still be there.
    pub(super) fn is_drained_to(&self, tail: i64) -> bool {
        self.0.state().head >= tail
    }

    /// Removes what was drained.
    pub(super) async fn remove_drained(&self) -> Result<()> {
        let _one = self.0.draining.lock().await;
        self.0.prune().await
    }

    /// Waits until something is pushed after this was called.
    pub(super) fn pushed(&self) -> Notified<'_> {
        self.0.pushed.notified()
    }

    /// Waits until something was drained.
    pub(super) async fn popped(&self) {
        self.0.popped.notified().await;
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time of the wall when the spool was opened, and what has passed since: no step of the
    /// clock makes a batch old.
    fn now_ms(&self) -> i64 {
        let (opened, instant) = self.opened_at;
        let passed_ms = i64::try_from(instant.elapsed().as_millis()).unwrap_or(i64::MAX);
        floor_ms(opened).saturating_add(passed_ms)
    }

    async fn append(&self, chunks: Vec<String>, count: u64, at_ms: i64) -> Result<()> {
        let bytes = chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        let (start, end) = {
            let state = self.state();
            let fits = state.records.saturating_add(count) <= self.limits.records_max
                && state.bytes.saturating_add(bytes) <= self.limits.bytes_max;
            if !fits {
                return Err(full(&state, &self.limits));
            }
            (state.tail, state.tail + chunks.len() as i64)
        };
        let written = self.store.write_batch(&codec::samples(chunks, count, start, at_ms)).await;
        let mut state = self.state();
        // In doubt it may stand there: nothing else may take its numbers, and it counts.
        if written.as_ref().err().is_none_or(|error| error.outcome() == Outcome::Unknown) {
            if state.head == state.tail {
                state.oldest_at_ms = Some(at_ms);
            }
            state.tail = end;
            state.records += count;
            state.bytes += bytes;
            drop(state);
            self.pushed.notify_waiters();
        }
        written
    }

    /// Reads the oldest batches. Numbers without a chunk are those of pushes that failed.
    async fn front(&self, records_max: usize) -> Result<Option<Front>> {
        loop {
            let State { head, tail, .. } = *self.state();
            if head == tail {
                return Ok(None);
            }
            let end = tail.min(head + CHUNKS_READ);
            let mut chunks = codec::read(&*self.store, head, end).await?;
            let missing = codec::chunks_missing(&chunks)?;
            if missing > 0 {
                // One batch larger than all that was read.
                chunks.extend(codec::read(&*self.store, end, end + missing).await?);
            }
            if !chunks.is_empty() {
                return codec::front(&chunks, records_max).map(Some);
            }
            self.state().advance(end);
        }
    }

    async fn pop(&self, end: i64, records: u64, bytes: u64, next_at_ms: Option<i64>) -> Result<()> {
        let must_prune = {
            let mut state = self.state();
            state.records = state.records.saturating_sub(records);
            state.bytes = state.bytes.saturating_sub(bytes);
            state.oldest_at_ms = next_at_ms.or(state.oldest_at_ms);
            state.advance(end);
            state.head == state.tail || state.head - state.pruned >= CHUNKS_DONE_MAX
        };
        let pruned = if must_prune { self.prune().await } else { Ok(()) };
        self.popped.notify_one();
        pruned
    }

    async fn prune(&self) -> Result<()> {
        let State { head, pruned, .. } = *self.state();
        if pruned < head {
            self.store.prune_before(from_ms(head)).await?;
            self.state().pruned = head;
        }
        Ok(())
    }
}

async fn read_state(store: &dyn StorageBackend) -> Result<State> {
    let stats = store.stats().await?;
    let (batch, bytes) = (codec::BATCH, codec::BYTES);
    let batches = store.aggregate(codec::SERVER, batch, TimeRange::all()).await?;
    let sizes = store.aggregate(codec::SERVER, bytes, TimeRange::all()).await?;
    if batches.count + sizes.count != stats.total_metrics {
        return Err(Error::new(ErrorKind::Config, "the store of the spool holds other samples")
            .with_backend(store.name())
            .with_operation("open_spool"));
    }
    let pruned = stats.oldest_metric.map_or(0, floor_ms);
    let tail = stats.newest_metric.map_or(pruned, |newest| floor_ms(newest) + 1);
    let mut state = State {
        pruned,
        head: pruned,
        tail,
        records: batches.sum.unwrap_or_default() as u64,
        bytes: sizes.sum.unwrap_or_default() as u64,
        oldest_at_ms: None,
    };
    // A removal that was killed may have left the end of a batch that is done.
    let mut chunks_read = 1;
    while state.head < tail && state.oldest_at_ms.is_none() {
        let end = tail.min(state.head + chunks_read);
        let chunks = codec::read(store, state.head, end).await?;
        match chunks.iter().find(|chunk| chunk.is_first()) {
            Some(first) => (state.head, state.oldest_at_ms) = (first.seq, Some(first.at_ms)),
            None => state.advance(end),
        }
        chunks_read = CHUNKS_READ;
    }
    Ok(state)
}

fn full(state: &State, limits: &SpoolLimits) -> Error {
    Error::new(ErrorKind::StorageFull, "the spool is full")
        .with_operation("push")
        .with_context("records", state.records)
        .with_context("records_max", limits.records_max)
        .with_context("bytes", state.bytes)
        .with_context("bytes_max", limits.bytes_max)
}
