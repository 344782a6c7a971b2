//! Stores batches: prepared by their callers, committed by one task, several in one transaction.
//!
//! A caller turns its records into entries, hands them over and waits. The task takes all that
//! wait, sorts them, keeps the last of each series and time, commits them by one COPY and answers
//! each caller. Dropping a waiting caller changes nothing: what was handed over is committed
//! whole, what was not is not. How one commit goes is in [`commit`](crate::commit).

use std::sync::{Arc, Weak};

use rustc_hash::FxHashMap;
use storage_core::{Error, ErrorKind, MetricRecord, Outcome, Result, SeriesKey};
use tokio::sync::{mpsc, oneshot};

use crate::commit::{Batch, Committing, Other};
use crate::convert::to_raw;
use crate::copy::Entry;
use crate::error::copy_of;
use crate::events::append::Append;
use crate::history::write::ValueRow;
use crate::store::Store;

/// The most records that wait together for one commit.
const GROUP_RECORDS_MAX: usize = 50_000;

/// Callers that may wait in the queue before others wait in front of it.
const QUEUE_LENGTH: usize = 256;

/// What the task is asked to do.
#[derive(Debug)]
enum Job {
    Write {
        batch: Batch,
        done: oneshot::Sender<Result<()>>,
    },
    Values {
        rows: Vec<ValueRow>,
        done: oneshot::Sender<Result<()>>,
    },
    Events {
        append: Append,
        done: oneshot::Sender<Result<()>>,
    },
    /// Answer everything before, then let go of the connection and refuse the rest.
    Close(oneshot::Sender<()>),
}

/// The way to the task that commits.
#[derive(Debug, Clone)]
pub(crate) struct Committer(mpsc::Sender<Job>);

impl Committer {
    /// Starts the task; it ends when the last sender is gone.
    pub(crate) fn start(store: &Arc<Store>) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
        let committing = Committing::new(store);
        store.runtime.spawn(commit_all(Arc::downgrade(store), committing, receiver));
        Self(sender)
    }

    /// Waits until everything that was handed over before is answered, and the connection closed.
    pub(crate) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        // Where the task is gone, nothing waits.
        if self.0.send(Job::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
    }

    /// Stores values of records.
    pub(crate) async fn write_values(&self, rows: Vec<ValueRow>) -> Result<()> {
        let (done, committed) = oneshot::channel();
        let job = Job::Values { rows, done };
        self.0.send(job).await.map_err(|_| closed(Outcome::NotApplied))?;
        committed.await.map_err(|_| closed(Outcome::Unknown))?
    }

    /// Appends events, or decides not to; the verdict says which.
    pub(crate) async fn append(&self, append: Append) -> Result<()> {
        let (done, committed) = oneshot::channel();
        let job = Job::Events { append, done };
        self.0.send(job).await.map_err(|_| closed(Outcome::NotApplied))?;
        committed.await.map_err(|_| closed(Outcome::Unknown))?
    }

    /// Stores a batch that is valid.
    pub(crate) async fn write(&self, store: &Store, records: &[MetricRecord]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let batch = prepare(store, records)?;
        let (done, committed) = oneshot::channel();
        self.0.send(Job::Write { batch, done }).await.map_err(|_| closed(Outcome::NotApplied))?;
        committed.await.map_err(|_| closed(Outcome::Unknown))?
    }
}

fn closed(outcome: Outcome) -> Error {
    Error::new(ErrorKind::Closed, "the store was closed").with_outcome(outcome)
}

/// Turns records into entries; those of series whose id is not known refer to a list of names.
fn prepare(store: &Store, records: &[MetricRecord]) -> Result<Batch> {
    let mut entries = Vec::with_capacity(records.len());
    let mut unknown = Unknown::default();
    let series = store.series_met();
    let known = series.known();
    for (index, record) in records.iter().enumerate() {
        let raw = to_raw(record).map_err(|error| error.with_context("record", index))?;
        let series_id = match known.id(&record.server_id, &record.metric_type) {
            Some(id) => id,
            None => unknown.refer(&record.server_id, &record.metric_type),
        };
        entries.push(Entry { series_id, ms: raw.ms, value: raw.value, metadata: raw.metadata });
    }
    let names = unknown.names;
    drop(known);
    Ok(Batch::new(entries, names, series))
}

/// Names without ids: the n-th is referred to by -1 - n, which no id is.
#[derive(Default)]
struct Unknown<'a> {
    by_name: FxHashMap<(&'a str, &'a str), i64>,
    names: Vec<SeriesKey>,
}

impl<'a> Unknown<'a> {
    fn refer(&mut self, server_id: &'a str, metric_type: &'a str) -> i64 {
        *self.by_name.entry((server_id, metric_type)).or_insert_with(|| {
            self.names.push(SeriesKey::new(server_id, metric_type));
            -(self.names.len() as i64)
        })
    }
}

async fn commit_all(store: Weak<Store>, mut committing: Committing, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.recv().await {
        let mut group = vec![first];
        while records_of(&group) < GROUP_RECORDS_MAX {
            let Ok(job) = jobs.try_recv() else { break };
            group.push(job);
        }
        let Some(store) = store.upgrade() else { return };
        let mut taken = Group::default();
        group.into_iter().for_each(|job| taken.take(job, committing.is_closed()));
        if !taken.batches.is_empty() {
            let result = committing.commit(&store, Batch::join(taken.batches)).await;
            answer(taken.callers, &result);
            committing.make_partitions_ahead(&store).await;
        }
        if !taken.values.is_empty() {
            let result = committing.commit_other(&store, Other::Values(&taken.values)).await;
            answer(taken.callers_of_values, &result);
        }
        if !taken.appends.is_empty() {
            let result = committing.commit_other(&store, Other::Events(&taken.appends)).await;
            answer(taken.callers_of_appends, &result);
        }
        if !taken.closers.is_empty() {
            committing.close();
            for done in taken.closers {
                let _ = done.send(());
            }
        }
    }
}

/// What is done at one go: samples, values and events each in one transaction.
#[derive(Default)]
struct Group {
    batches: Vec<Batch>,
    callers: Vec<oneshot::Sender<Result<()>>>,
    values: Vec<ValueRow>,
    callers_of_values: Vec<oneshot::Sender<Result<()>>>,
    appends: Vec<Append>,
    callers_of_appends: Vec<oneshot::Sender<Result<()>>>,
    closers: Vec<oneshot::Sender<()>>,
}

impl Group {
    fn take(&mut self, job: Job, is_closed: bool) {
        let refuses = is_closed || !self.closers.is_empty();
        match job {
            Job::Write { done, .. } | Job::Values { done, .. } | Job::Events { done, .. }
                if refuses =>
            {
                let _ = done.send(Err(closed(Outcome::NotApplied)));
            }
            Job::Write { batch, done } => {
                self.batches.push(batch);
                self.callers.push(done);
            }
            Job::Values { rows, done } => {
                self.values.extend(rows);
                self.callers_of_values.push(done);
            }
            Job::Events { append, done } => {
                self.appends.push(append);
                self.callers_of_appends.push(done);
            }
            Job::Close(done) => self.closers.push(done),
        }
    }
}

fn answer(callers: Vec<oneshot::Sender<Result<()>>>, result: &Result<()>) {
    for done in callers {
        // A caller that is gone does not want the answer.
        let _ = done.send(result.as_ref().map_err(copy_of).copied());
    }
}

fn records_of(group: &[Job]) -> usize {
    let records = |job: &Job| match job {
        Job::Write { batch, .. } => batch.entries.len(),
        Job::Values { rows, .. } => rows.iter().map(ValueRow::weight).sum(),
        Job::Events { append, .. } => append.weight(),
        Job::Close(_) => 0,
    };
    group.iter().map(records).sum()
}
