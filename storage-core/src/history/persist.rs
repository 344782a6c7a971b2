//! `.persist(name)`: a task that stores whatever a channel or a stream gives.
//!
//! Two halves with a bounded queue between them. The first takes values from the source and turns
//! them into JSON; the second stores what waits, in batches, and tries again until it is stored.
//! Every value is counted, whatever becomes of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_core::Stream;
use futures_util::FutureExt;
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::backend::RecordHistory;
use super::query::HistoryQuery;
use super::source::{Next, Source, StreamSource};
use super::value::StoredValue;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::limits::check_name;
use crate::metrics::time::{floor_ms, from_ms};
use crate::metrics::{Matcher, TimeRange};

/// The delay after the first failed attempt to store; it doubles with each that follows.
const DELAY_MIN: Duration = Duration::from_millis(100);

/// The longest delay between two attempts.
const DELAY_MAX: Duration = Duration::from_secs(5);

/// What a task that is stopped takes from its source at most, so that one that never runs dry cannot
/// keep it.
const STOP_VALUES_MAX: usize = 131_072;

/// `.persist(name)` for receivers of Tokio's channels: `broadcast`, `watch`, `mpsc`.
///
/// ```
/// use std::sync::Arc;
/// use storage_core::history::{PersistExt, RecordHistoryExt};
/// use storage_core::{InMemory, RecordHistory};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let history: Arc<dyn RecordHistory> = Arc::new(InMemory::new().history());
/// let (sender, receiver) = tokio::sync::broadcast::channel(64);
/// let task = receiver.persist("temperature::vienna").start(Arc::clone(&history))?;
/// for degrees in [20.5, 21.0] {
///     sender.send(degrees).unwrap();
/// }
/// drop(sender);
/// let counts = task.finished().await;
/// assert_eq!((counts.stored, counts.lagged), (2, 0));
/// let found = history.query_latest::<f64>("temperature::*", 1).await?.into_values()?;
/// assert_eq!(found, [21.0]);
/// # Ok(()) }
/// ```
pub trait PersistExt: Source + Sized {
    /// Prepares to store everything that this receiver gives as values of one record;
    /// [`Persist::start`] begins.
    fn persist(self, record_name: impl Into<String>) -> Persist<Self>
    where
        Self::Item: Serialize,
    {
        Persist::new(self, record_name.into())
    }
}

impl<S: Source> PersistExt for S {}

/// `.persist(name)` for every stream.
pub trait PersistStreamExt: Stream + Sized + Send + 'static
where
    Self::Item: Serialize + Send + 'static,
{
    /// Prepares to store everything that this stream gives as values of one record;
    /// [`Persist::start`] begins.
    fn persist(self, record_name: impl Into<String>) -> Persist<StreamSource<Self::Item>> {
        Persist::new(StreamSource::new(self), record_name.into())
    }
}

impl<S> PersistStreamExt for S
where
    S: Stream + Send + 'static,
    S::Item: Serialize + Send + 'static,
{
}

/// What becomes of the values that a task was given; each is counted once.
///
/// `received` is the sum of `stored`, `refused`, `unstored` and `waiting`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PersistCounts {
    /// Values that the source gave.
    pub received: u64,
    /// Values that are stored.
    pub stored: u64,
    /// Values that cannot be stored: no JSON, or against the rules of [`StoredValue`].
    pub refused: u64,
    /// Values that were given up at the end, because the store did not take them, or because the source
    /// held more than [`PersistTask::stop`] takes.
    pub unstored: u64,
    /// Values that wait to be stored.
    pub waiting: u64,
    /// Values that the source lost before it could give them: see [`Next::Lagged`].
    pub lagged: u64,
    /// Attempts to store that failed.
    pub failures: u64,
    /// The last reason for a failure or refusal.
    pub last_error: Option<String>,
}

/// A source that is about to be persisted.
pub struct Persist<S> {
    source: S,
    record_name: String,
    batch_values_max: usize,
    queue_values_max: usize,
    drain_time_max: Duration,
    clock: Clock,
}

type Clock = Box<dyn Fn() -> DateTime<Utc> + Send>;

impl<S> std::fmt::Debug for Persist<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Persist").field("record_name", &self.record_name).finish_non_exhaustive()
    }
}

impl<S: Source> Persist<S>
where
    S::Item: Serialize,
{
    fn new(source: S, record_name: String) -> Self {
        Self {
            source,
            record_name,
            batch_values_max: 1000,
            queue_values_max: 65_536,
            drain_time_max: Duration::from_secs(30),
            clock: Box::new(Utc::now),
        }
    }

    /// The most values that are stored at once, at least 1. Default: 1000.
    #[must_use]
    pub fn batch_values_max(mut self, batch_values_max: usize) -> Self {
        self.batch_values_max = batch_values_max.max(1);
        self
    }

    /// The most values that wait in memory while the store is slow or away, at least 1. Default:
    /// 65,536. Beyond that the source is left to itself: a bounded `mpsc` makes its senders
    /// wait, a `broadcast` loses its oldest values, which are counted as lagged.
    #[must_use]
    pub fn queue_values_max(mut self, queue_values_max: usize) -> Self {
        self.queue_values_max = queue_values_max.max(1);
        self
    }

    /// How long the task goes on trying to store what waits once the source has ended or the task
    /// was stopped. Default: 30 s. What is left then counts as `unstored`.
    #[must_use]
    pub fn drain_time_max(mut self, drain_time_max: Duration) -> Self {
        self.drain_time_max = drain_time_max;
        self
    }

    /// Says what time it is when a value arrives. Default: the clock of the machine. A clock that
    /// goes back is not followed: times of one task never decrease, so that their order stays.
    #[must_use]
    pub fn clock(mut self, clock: impl Fn() -> DateTime<Utc> + Send + 'static) -> Self {
        self.clock = Box::new(clock);
        self
    }

    /// Starts storing into `history`, in a task on the current Tokio runtime.
    ///
    /// Values are stored in the order of the source, each once. A store that fails is tried again,
    /// with growing delays; values wait meanwhile. After an attempt of which nobody knows whether
    /// it was applied, the task looks before it repeats, which is certain as long as nobody else
    /// stores into the same record at the same millisecond. It ends when the source has ended, when
    /// it is stopped, or when the store is closed. Dropping the handle lets the task go on.
    ///
    /// # Errors
    /// `InvalidArgument` if the name breaks the rules of a record's.
    pub fn start(self, history: Arc<dyn RecordHistory>) -> Result<PersistTask> {
        check_name("record_name", &self.record_name)?;
        let only = HistoryQuery::new(Matcher::exact(&self.record_name)?);
        let counts = Counts::default();
        let (stop, stopped) = watch::channel(None);
        let (queue, queued) = mpsc::channel(self.queue_values_max);
        let writer = Writer {
            history,
            only,
            counts: counts.clone(),
            queued,
            batch_values_max: self.batch_values_max,
            batch: Vec::new(),
            last: None,
            delay: DELAY_MIN,
        };
        let given_up = given_up(stopped.clone(), self.drain_time_max);
        let reader = Reader {
            source: self.source,
            record_name: self.record_name,
            clock: self.clock,
            last_ms: i64::MIN,
            counts: counts.clone(),
            queue,
        };
        let stop_at_end = stop.clone();
        let task = tokio::spawn(async move {
            let reading = async {
                reader.run(stopped).await;
                begin_end(&stop_at_end);
            };
            tokio::join!(reading, writer.run(given_up));
        });
        Ok(PersistTask { counts, stop, task })
    }
}

/// When the end began, if it did.
type End = Option<Instant>;

fn begin_end(stop: &watch::Sender<End>) {
    stop.send_if_modified(|end| end.replace(end.unwrap_or_else(Instant::now)).is_none());
}

/// A task that persists.
#[derive(Debug)]
pub struct PersistTask {
    counts: Counts,
    stop: watch::Sender<End>,
    task: JoinHandle<()>,
}

impl PersistTask {
    /// What became of the values so far.
    pub fn counts(&self) -> PersistCounts {
        self.counts.get().clone()
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits until the source has ended and what it gave is stored.
    pub async fn finished(mut self) -> PersistCounts {
        if let Err(error) = (&mut self.task).await {
            self.counts.get().last_error = Some(error.to_string());
        }
        self.counts()
    }

    /// Takes from the source what it holds now, at most 131,072 values, stores it, and ends. What a
    /// channel holds beyond that counts as `unstored`.
    pub async fn stop(self) -> PersistCounts {
        begin_end(&self.stop);
        self.finished().await
    }
}

#[derive(Debug, Clone, Default)]
struct Counts(Arc<Mutex<PersistCounts>>);

impl Counts {
    fn get(&self) -> MutexGuard<'_, PersistCounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(&self, error: &dyn std::fmt::Display) {
        tracing::warn!(target: "storage", %error, "a value cannot be persisted");
        let mut counts = self.get();
        counts.refused += 1;
        counts.last_error = Some(error.to_string());
    }

    /// What the source still holds at the end is given up.
    fn leave(&self, values: usize) {
        if values > 0 {
            tracing::warn!(target: "storage", values, "values were left in their source");
        }
        let mut counts = self.get();
        counts.received += values as u64;
        counts.unstored += values as u64;
    }

    /// What waited is given up.
    fn give_up(&self, values: usize) {
        let mut counts = self.get();
        counts.waiting -= values as u64;
        counts.unstored += values as u64;
    }
}

/// The half that takes values from the source.
struct Reader<S> {
    source: S,
    record_name: String,
    clock: Clock,
    last_ms: i64,
    counts: Counts,
    queue: mpsc::Sender<StoredValue>,
}

impl<S: Source> Reader<S>
where
    S::Item: Serialize,
{
    async fn run(mut self, mut stopped: watch::Receiver<End>) {
        while !self.queue.is_closed() {
            let next = tokio::select! {
                // A stop comes first, so that a source that never ends cannot delay it.
                biased;
                _ = stopped.wait_for(Option::is_some) => break,
                next = self.source.next() => next,
            };
            if !self.take(next).await {
                return;
            }
        }
        // What the source holds now, also where nothing can be done but count it. Unconstrained,
        // because a channel would seem empty once this task has had its turn.
        for _ in 0..STOP_VALUES_MAX {
            let next = tokio::task::unconstrained(self.source.next()).now_or_never();
            let Some(next) = next else { return };
            if !self.take(next).await {
                return;
            }
        }
        self.counts.leave(self.source.held());
    }

    /// Counts what the source gave and hands it over; says whether anything can follow.
    async fn take(&mut self, next: Next<S::Item>) -> bool {
        let item = match next {
            Next::Value(item) => item,
            Next::Lagged(count) => {
                tracing::warn!(target: "storage", record = self.record_name, count, "values lagged");
                self.counts.get().lagged += count;
                return true;
            }
            Next::End => return false,
        };
        self.counts.get().received += 1;
        match self.stamped(&item) {
            Ok(value) => {
                self.counts.get().waiting += 1;
                if self.queue.send(value).await.is_err() {
                    self.counts.give_up(1);
                }
            }
            Err(error) => self.counts.refuse(&error),
        }
        true
    }

    fn stamped(&mut self, item: &S::Item) -> Result<StoredValue> {
        let value = serde_json::to_value(item)
            .map_err(|error| Error::invalid("the value is no JSON").with_source(error))?;
        let ms = floor_ms((self.clock)()).max(self.last_ms);
        let value = StoredValue::new(&self.record_name, from_ms(ms), value);
        value.validate()?;
        self.last_ms = ms;
        Ok(value)
    }
}

/// The half that stores.
struct Writer {
    history: Arc<dyn RecordHistory>,
    only: HistoryQuery,
    counts: Counts,
    queued: mpsc::Receiver<StoredValue>,
    batch_values_max: usize,
    /// What was taken from the queue and is not stored yet.
    batch: Vec<StoredValue>,
    /// The time of the last value stored, and how many were stored at that time.
    last: Option<(DateTime<Utc>, usize)>,
    delay: Duration,
}

impl Writer {
    /// Stores until the queue has ended, the store is closed, or `given_up` says that it has taken
    /// too long.
    async fn run(mut self, given_up: impl Future<Output = ()>) {
        tokio::select! {
            () = self.work() => {}
            () = given_up => {}
        }
        self.queued.close();
        self.counts.give_up(self.batch.len());
        while let Some(_lost) = self.queued.recv().await {
            self.counts.give_up(1);
        }
    }

    async fn work(&mut self) {
        while self.queued.recv_many(&mut self.batch, self.batch_values_max).await > 0 {
            let mut together = self.batch_values_max;
            while !self.batch.is_empty() {
                let count = together.min(self.batch.len());
                match self.history.store_batch(&self.batch[..count]).await {
                    Ok(()) => self.note_stored(count),
                    // Rules stricter than those that were checked: one by one, the bad are found.
                    Err(error) if error.kind() == ErrorKind::InvalidArgument && count == 1 => {
                        self.counts.refuse(&error);
                        self.counts.get().waiting -= 1;
                        self.batch.remove(0);
                    }
                    Err(error) if error.kind() == ErrorKind::InvalidArgument => together = 1,
                    Err(error) => {
                        self.note_failure(&error);
                        let unsure = error.outcome() == Outcome::Unknown;
                        if error.kind() == ErrorKind::Closed && !unsure {
                            return;
                        }
                        if unsure && self.is_stored(count).await {
                            self.note_stored(count);
                        } else {
                            self.wait().await;
                        }
                    }
                }
            }
        }
    }

    /// Looks whether values of which nobody knows are there, until there is an answer.
    async fn is_stored(&mut self, count: usize) -> bool {
        let Some(first) = self.batch.first().map(|value| value.stored_at) else { return true };
        // All of a batch or none: so a look at its first millisecond is enough.
        let expected = self.stored_at(first) + count_at(&self.batch[..count], first);
        let end = first + chrono::Duration::milliseconds(1);
        let Ok(range) = TimeRange::new(first, end) else { return false };
        loop {
            match self.history.query(&self.only.clone().range(range)).await {
                Ok(found) => return found.len() >= expected,
                Err(error) => self.note_failure(&error),
            }
            self.wait().await;
        }
    }

    /// How many values this task has stored at `time`, if that is the last.
    fn stored_at(&self, time: DateTime<Utc>) -> usize {
        self.last.filter(|(last, _)| *last == time).map_or(0, |(_, count)| count)
    }

    fn note_stored(&mut self, count: usize) {
        self.delay = DELAY_MIN;
        if let Some(time) = self.batch[..count].last().map(|value| value.stored_at) {
            let here = count_at(&self.batch[..count], time);
            self.last = Some((time, self.stored_at(time) + here));
        }
        self.batch.drain(..count);
        let mut counts = self.counts.get();
        counts.waiting -= count as u64;
        counts.stored += count as u64;
    }

    fn note_failure(&self, error: &Error) {
        tracing::warn!(target: "storage", %error, "values cannot be persisted; they wait");
        let mut counts = self.counts.get();
        counts.failures += 1;
        counts.last_error = Some(error.to_string());
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.delay).await;
        self.delay = DELAY_MAX.min(self.delay * 2);
    }
}

fn count_at(values: &[StoredValue], time: DateTime<Utc>) -> usize {
    values.iter().filter(|value| value.stored_at == time).count()
}

/// Ends when the end has lasted for `time_max`.
async fn given_up(mut stopped: watch::Receiver<End>, time_max: Duration) {
    let ended = stopped.wait_for(Option::is_some).await.map(|end| *end);
    // Nobody is left to say so: the queue ends first.
    let Ok(end) = ended else { return std::future::pending().await };
    tokio::time::sleep_until(end.unwrap_or_else(Instant::now) + time_max).await;
}

#[cfg(test)]
mod tests;
