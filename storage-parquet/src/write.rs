//! Stores batches: sorted by their callers' tasks, committed by one task, several in one file.
//!
//! A caller turns its records into columns, hands them over and waits. The task takes all that
//! wait, lays them over each other in the order they came, writes them as one file with the next
//! number of the log, and answers each caller. Dropping a waiting caller changes nothing: what was
//! handed over is committed whole, what was not is not.

use std::sync::{Arc, Weak};
use std::time::Duration;

use storage_core::{Error, ErrorKind, MetricRecord, Outcome, Result};
use tokio::sync::{mpsc, oneshot};

use crate::encode::encode_fast;
use crate::error::copy_of;
use crate::maintenance;
use crate::manifest::{Change, Entry};
use crate::rows::{Collector, Rows, Unsorted, merge};
use crate::store::Store;

/// The most records that wait together for one commit.
const GROUP_RECORDS_MAX: usize = 100_000;

/// Callers that may wait in the queue before others wait in front of it.
const QUEUE_LENGTH: usize = 256;

/// Records that are taken at once before other tasks get their turn.
const RECORDS_AT_ONCE: usize = 4_096;

/// Ingestion waits while this many times as much waits to be merged as the options say, so that
/// memory and log stay bounded when merging cannot keep up.
const WAITING_FACTOR_MAX: u64 = 4;

/// How long it waits at most, in case merging cannot make progress at all.
const MERGE_WAIT_MAX: Duration = Duration::from_secs(10);

/// A batch on its way to the log.
struct Job {
    batch: Unsorted,
    records: usize,
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

    /// Waits until everything that was handed over is answered. Calls have to be refused before.
    pub(crate) async fn drain(&self, store: &Store) {
        drop(store.handing_over.write().await);
        let (done, drained) = oneshot::channel();
        let job = Job { batch: Unsorted::default(), records: 0, done };
        // Where the task is gone, nothing waits.
        if self.0.send(job).await.is_ok() {
            let _ = drained.await;
        }
    }

    /// Stores a batch that is valid.
    pub(crate) async fn write(&self, store: &Arc<Store>, records: &[MetricRecord]) -> Result<()> {
        store.check_writable()?;
        if records.is_empty() {
            return Ok(());
        }
        wait_for_merging(store).await;
        let mut collector = Collector::default();
        for (number, chunk) in records.chunks(RECORDS_AT_ONCE).enumerate() {
            if number > 0 {
                tokio::task::yield_now().await;
            }
            collector.add(&store.log.names, chunk, number * RECORDS_AT_ONCE)?;
        }
        let (done, committed) = oneshot::channel();
        let job = Job { batch: collector.finish(), records: records.len(), done };
        self.hand_over(store, job).await?;
        committed.await.map_err(|_| gone(Outcome::Unknown))?
    }

    /// Hands a batch over unless the store was closed while it was made ready, or waited.
    async fn hand_over(&self, store: &Store, job: Job) -> Result<()> {
        let _in_time = store.handing_over.read().await;
        store.check_open()?;
        self.0.send(job).await.map_err(|_| gone(Outcome::NotApplied))
    }
}

fn gone(outcome: Outcome) -> Error {
    Error::new(ErrorKind::Closed, "the store was closed").with_outcome(outcome)
}

async fn wait_for_merging(store: &Store) {
    let is_over = || {
        let state = store.log.current();
        let files_max = store.options.merge_files as u64 * WAITING_FACTOR_MAX;
        state.fresh_rows() > store.options.merge_samples.saturating_mul(WAITING_FACTOR_MAX)
            || state.fresh_entries.len() as u64 > files_max
    };
    if !is_over() {
        return;
    }
    let merged = async {
        loop {
            let rung = store.merged.notified();
            if !is_over() || store.upkeep_error().is_some() || store.is_closed() {
                return;
            }
            store.merge_due.notify_one();
            rung.await;
        }
    };
    if tokio::time::timeout(MERGE_WAIT_MAX, merged).await.is_err() {
        tracing::warn!(target: "storage", "merging does not keep up with writing");
    }
}

async fn commit_all(store: Weak<Store>, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.recv().await {
        let mut records = first.records;
        let mut group = vec![first];
        while records < GROUP_RECORDS_MAX {
            let Ok(job) = jobs.try_recv() else { break };
            records += job.records;
            group.push(job);
        }
        let Some(store) = store.upgrade() else { return };
        let (batches, callers): (Vec<_>, Vec<_>) =
            group.into_iter().map(|job| (job.batch, job.done)).unzip();
        let committing = Arc::clone(&store);
        let committed = tokio::task::spawn_blocking(move || commit(&committing, batches)).await;
        let result = committed.map_err(maintenance::panicked).flatten();
        for done in callers {
            // A caller that is gone does not want the answer.
            let _ = done.send(result.as_ref().map_err(copy_of).copied());
        }
        if maintenance::is_merge_due(&store) {
            store.merge_due.notify_one();
        }
    }
}

/// Commits batches together; if that fails, nothing of any of them is stored.
fn commit(store: &Store, batches: Vec<Unsorted>) -> Result<()> {
    let batches: Vec<Rows> = batches.into_iter().map(Unsorted::sort).collect();
    let batches: Vec<&Rows> = batches.iter().filter(|rows| !rows.is_empty()).collect();
    if batches.is_empty() {
        return Ok(());
    }
    store.check_trusted()?;
    let rows = Arc::new(merge(&batches));
    let entry = Entry::new(Change::Write);
    let encoded = encode_fast(&rows, &entry.to_text()?)?;
    let committed = store.log.commit_write(&entry, &encoded.bytes, rows);
    committed.inspect_err(|error| store.note_write_error(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ParquetOptions;
    use crate::files::LocalFiles;
    use storage_core::metrics::time::from_ms;

    #[test]
    fn a_write_that_waited_for_a_merge_is_refused_after_close() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let options = ParquetOptions::new(dir.path()).merge_files(1);
        let files = Arc::new(LocalFiles::new(dir.path().to_owned()));
        let store = Arc::new(Store::open(options, files, runtime.handle().clone()).unwrap());
        let write = async |committer: Committer, store: Arc<Store>, ms: i64| {
            committer.write(&store, &[MetricRecord::new("a", from_ms(ms), "b", 1.0)]).await
        };
        runtime.block_on(async {
            let committer = Committer::start(&store);
            // Nobody merges.
            for ms in 0..=WAITING_FACTOR_MAX as i64 {
                write(committer.clone(), Arc::clone(&store), ms).await.unwrap();
            }
            let version = store.log.current().version;
            let late = async {
                let error = write(committer.clone(), Arc::clone(&store), 99).await.unwrap_err();
                assert_eq!(
                    (error.kind(), error.outcome()),
                    (ErrorKind::Closed, Outcome::NotApplied)
                );
            };
            let close = async {
                store.refuse_calls();
                committer.drain(&store).await;
                assert_eq!(store.log.current().version, version);
            };
            // In this order, on one task: the write waits before the store is closed.
            tokio::join!(late, close);
            assert_eq!(store.log.refresh().unwrap().version, version);
        });
    }
}
