//! The task that commits: takes what callers hand over, several callers in one commit.
//!
//! Callers prepare what is to be stored and wait. The task takes all that wait, whatever kind it
//! is, writes it in one transaction (one sync of the disk) and answers each caller. Dropping a
//! waiting caller changes nothing: what was handed over is committed whole, what was not is not.

use std::sync::{Arc, Weak};

use sqlx::sqlite::SqliteConnection;
use storage_core::{Error, ErrorKind, Outcome, Result};
use tokio::sync::{mpsc, oneshot};

use crate::error::of_commit;
use crate::events::append::{self as events, Append};
use crate::history::write::{self as history, Learned, ValueRow};
use crate::maintenance;
use crate::schema::{begin, finish};
use crate::store::{Store, WriterGuard};
use crate::write::{self, JournalRow};

/// The most that waits together for one commit, in samples or what costs as much.
const GROUP_WEIGHT_MAX: usize = 100_000;

/// How often other tasks get a turn before a commit goes on without them: a fraction of what the
/// sync of a disk takes.
const GATHER_MOMENTS: usize = 32;

/// Callers that may wait in the queue before others wait in front of it.
const QUEUE_LENGTH: usize = 256;

/// What a caller wants stored.
#[derive(Debug)]
pub(crate) enum Work {
    /// Samples, as rows of the journal.
    Samples(Vec<JournalRow>),
    /// Values of records.
    Values(Vec<ValueRow>),
    /// Events, and where to say what became of them.
    Events(Append),
    /// Nothing but an answer after everything before.
    Drain,
}

/// Work with the way back to its caller.
struct Job {
    work: Work,
    weight: usize,
    done: oneshot::Sender<Result<()>>,
}

/// The way to the task that commits.
#[derive(Debug, Clone)]
pub(crate) struct Committer(mpsc::Sender<Job>);

impl Committer {
    /// Starts the task; it ends when the last sender is gone.
    pub(crate) fn start(store: &Arc<Store>) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
        store.runtime.spawn(commit_all(Arc::downgrade(store), receiver));
        Self(sender)
    }

    /// Waits until everything that was handed over before is answered.
    pub(crate) async fn drain(&self) {
        // Where the task is gone, nothing waits.
        let _ = self.commit(Work::Drain, 0).await;
    }

    /// Hands work over and waits until it is committed; `weight` is what it costs, in samples.
    pub(crate) async fn commit(&self, work: Work, weight: usize) -> Result<()> {
        let (done, committed) = oneshot::channel();
        let job = Job { work, weight, done };
        self.0.send(job).await.map_err(|_| gone(Outcome::NotApplied))?;
        committed.await.map_err(|_| gone(Outcome::Unknown))?
    }
}

fn gone(outcome: Outcome) -> Error {
    Error::new(ErrorKind::Closed, "the store was closed").with_outcome(outcome)
}

async fn commit_all(store: Weak<Store>, mut jobs: mpsc::Receiver<Job>) {
    let mut callers = 1;
    while let Some(first) = jobs.recv().await {
        let group = gather(first, &mut jobs, callers).await;
        callers = group.len();
        let Some(store) = store.upgrade() else { return };
        commit_group(&store, group).await;
        if maintenance::is_seal_due(&store) {
            store.seal_due.notify_one();
        }
    }
}

/// Takes what waits for the next commit.
///
/// Callers that were answered together come back one by one: where there were several, they get a
/// moment to do so, else each commit would take the few that were quickest.
async fn gather(first: Job, jobs: &mut mpsc::Receiver<Job>, callers_before: usize) -> Vec<Job> {
    let mut weight = first.weight;
    let mut group = vec![first];
    let mut moments = if callers_before > 1 { GATHER_MOMENTS } else { 0 };
    while weight < GROUP_WEIGHT_MAX {
        match jobs.try_recv() {
            Ok(job) => {
                weight += job.weight;
                group.push(job);
            }
            Err(_) if moments == 0 || group.len() >= callers_before => break,
            Err(_) => {
                moments -= 1;
                tokio::task::yield_now().await;
            }
        }
    }
    group
}

/// What one transaction stores.
#[derive(Default)]
struct Group {
    rows: Vec<JournalRow>,
    values: Vec<ValueRow>,
    appends: Vec<Append>,
}

impl Group {
    fn add(&mut self, work: Work) {
        match work {
            Work::Samples(more) => self.rows.extend(more),
            Work::Values(more) => self.values.extend(more),
            Work::Events(append) => self.appends.push(append),
            Work::Drain => {}
        }
    }

    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.values.is_empty() && self.appends.is_empty()
    }

    /// What it writes beside the rows of the journal, in bytes, roughly.
    fn other_bytes(&self) -> u64 {
        let values = self.values.iter().map(ValueRow::bytes);
        values.chain(self.appends.iter().map(Append::bytes)).sum()
    }
}

/// Commits jobs together; if that fails, nothing of any of them is stored.
async fn commit_group(store: &Store, jobs: Vec<Job>) {
    let (mut group, mut callers) = (Group::default(), Vec::new());
    for job in jobs {
        group.add(job.work);
        callers.push(job.done);
    }
    let answer = |result: Result<()>| {
        for done in callers {
            // A caller that is gone does not want the answer.
            let _ = done.send(result.as_ref().map_err(copy_of).copied());
        }
    };
    if group.is_empty() {
        return answer(Ok(()));
    }
    group.rows = write::join_small(group.rows);
    match commit(store, &group).await {
        Ok((mut writer, ids)) => {
            // Before the head has the rows: whoever asks meanwhile finds them in the journal, and
            // the callers make their next batches.
            answer(Ok(()));
            settle(store, &mut writer, ids, group).await;
        }
        Err(error) => answer(Err(error)),
    }
}

/// Commits a group, and returns the connection that did with the ids that the rows got.
async fn commit<'a>(store: &'a Store, group: &Group) -> Result<(WriterGuard<'a>, Vec<i64>)> {
    let mut writer = store.writer_of_commit().await?;
    let inserted = insert(store, writer.connection()?, group).await;
    let (ids, learned) = inserted.map_err(of_commit).inspect_err(|e| store.note_write_error(e))?;
    store.record_names_mut().learn(learned);
    Ok((writer, ids))
}

/// Does what is due after a commit.
async fn settle(store: &Store, writer: &mut WriterGuard<'_>, ids: Vec<i64>, group: Group) {
    // It is there: this is the guard that has just committed.
    let Ok(connection) = writer.connection() else { return };
    let bytes = group.rows.iter().map(JournalRow::bytes).sum::<u64>() + group.other_bytes();
    if !group.rows.is_empty() {
        write::apply(store, connection, ids, group.rows).await;
    }
    store.checkpoint_if_due(connection, bytes).await;
}

/// Inserts everything in one transaction; returns the ids that journal rows got, and the names of
/// records that were read. What is one statement needs no more, being a transaction of its own.
async fn insert(
    store: &Store,
    connection: &mut SqliteConnection,
    group: &Group,
) -> Result<(Vec<i64>, Learned)> {
    match (&*group.rows, &*group.values, &*group.appends) {
        ([row], [], []) => Ok((vec![write::insert_row(connection, row).await?], Vec::new())),
        ([], values, []) if history::is_one_statement(store, values) => {
            Ok((Vec::new(), history::insert(store, connection, values).await?))
        }
        _ => {
            let mut transaction = begin(connection).await?;
            let inserted = insert_all(store, &mut transaction, group).await;
            finish(transaction, inserted).await
        }
    }
}

async fn insert_all(
    store: &Store,
    connection: &mut SqliteConnection,
    group: &Group,
) -> Result<(Vec<i64>, Learned)> {
    let mut ids = Vec::with_capacity(group.rows.len());
    for row in &group.rows {
        ids.push(write::insert_row(connection, row).await?);
    }
    if !group.appends.is_empty() {
        events::insert(connection, &group.appends).await?;
    }
    Ok((ids, history::insert(store, connection, &group.values).await?))
}

/// Returns the same error for one more caller; the source goes with its text alone.
fn copy_of(error: &Error) -> Error {
    let copy = Error::new(error.kind(), error.message().to_owned())
        .with_outcome(error.outcome())
        .with_retryable(error.is_retryable());
    match std::error::Error::source(error) {
        Some(source) => copy.with_source(source.to_string()),
        None => copy,
    }
}
