//! How a program talks to its actor.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::actor::Tasks;
use super::counters::{ActorCounters, SetAside};
use super::health::ActorHealth;
use super::state::Shared;
use crate::deadline::after;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::{MetricAggregation, MetricRecord, StorageBackend, StorageStats, TimeRange};

/// How long tasks that are told to end are waited for: only a store that blocks takes any time.
const ABORT_TIME_MAX: Duration = Duration::from_millis(100);

/// A handle to a running [`StorageActor`](super::StorageActor); clones are handles to the same.
///
/// Questions go to the store at once, on the caller's task: no flush holds them up. They see what
/// is stored; [`flush`](Self::flush) first to see what was sent.
#[derive(Clone)]
pub struct StorageHandle {
    shared: Arc<Shared>,
    tasks: Arc<Tasks>,
}

impl std::fmt::Debug for StorageHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StorageHandle").field("store", &self.shared.store.name()).finish()
    }
}

/// What a [`StorageHandle::shutdown`] came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DrainReport {
    /// Records that were in memory and are neither in the store nor in the spool: they are lost.
    pub left: u64,
    /// Records that wait in the spool, for the next process to drain.
    pub spooled: u64,
    /// Whether every source was read to its end, or to what was there when it was asked to stop.
    /// If not, a channel may still have held items.
    pub sources_ended: bool,
    /// How long it took.
    pub elapsed: Duration,
    /// The final numbers.
    pub counters: ActorCounters,
}

impl DrainReport {
    /// Whether nothing was left behind, but in the spool.
    pub fn is_complete(&self) -> bool {
        self.left == 0 && self.sources_ended
    }
}

impl StorageHandle {
    pub(super) fn new(shared: Arc<Shared>, tasks: Tasks) -> Self {
        Self { shared, tasks: Arc::new(tasks) }
    }

    /// The store that it writes to.
    pub fn store(&self) -> &Arc<dyn StorageBackend> {
        &self.shared.store
    }

    /// Returns the stored samples of a series; see [`StorageBackend::query_range`].
    ///
    /// # Errors
    /// Those of the store.
    pub async fn query(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        self.shared.store.query_range(server_id, metric_type, range).await
    }

    /// Aggregates the stored samples of a series; see [`StorageBackend::aggregate`].
    ///
    /// # Errors
    /// Those of the store.
    pub async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        self.shared.store.aggregate(server_id, metric_type, range).await
    }

    /// Says how much is stored; see [`StorageBackend::stats`].
    ///
    /// # Errors
    /// Those of the store.
    pub async fn stats(&self) -> Result<StorageStats> {
        self.shared.store.stats().await
    }

    /// Takes what is ready in every source, closes all batches, and returns when everything of it
    /// is in the store, or in the spool; or was dropped, where a source sheds, which its counters tell.
    /// A source that never runs dry is taken from for as long as batches gather, a second at least.
    ///
    /// # Errors
    /// The error of the store if a write fails after this was called and no spool takes the records. Nothing
    /// is dropped then: the records stay, and are tried until they are stored.
    /// `Closed` if the actor ended before.
    pub async fn flush(&self) -> Result<()> {
        let (failures_before, _) = self.shared.failures();
        let mut number = 0;
        self.shared.sync.send_modify(|last| {
            *last += 1;
            number = *last;
        });
        let mut seq = None;
        let done = self.shared.wait_until(|shared| {
            seq = seq.or_else(|| shared.synced_seq(number));
            if seq.is_some_and(|seq| shared.is_done_to(seq)) {
                return Some(Ok(()));
            }
            if shared.has_writer_ended() {
                return Some(Err(Error::new(ErrorKind::Closed, "the actor has ended")));
            }
            let (failures, error) = shared.failures();
            let error = error.filter(|_| failures > failures_before && shared.has_memory_only());
            error.map(Err)
        });
        done.await?.map_err(|error| error.with_operation("flush"))
    }

    /// Stops taking records, stores what is there, and ends the actor, all within `deadline`.
    ///
    /// What was sent into an `mpsc` channel before is taken; what is ready in a stream or broadcast
    /// channel too. If the store fails, or has not taken everything after three quarters of the
    /// time, the rest goes to the spool, if there is one. Called again, it waits for the same end.
    pub async fn shutdown(&self, deadline: Duration) -> DrainReport {
        let started = Instant::now();
        let end = after(started, deadline);
        self.shared.stop_by(end);
        let ended = self.shared.wait_until(|shared| shared.has_writer_ended().then_some(()));
        if timeout_at(end, ended).await.is_err() {
            let ended = async { self.tasks.0.lock().await.shutdown().await };
            if timeout(ABORT_TIME_MAX, ended).await.is_err() {
                tracing::error!(target: "storage", "the store blocks a task that was told to end");
            }
        }
        let counters = self.shared.counters();
        let report = DrainReport {
            left: counters.sum(|source| source.held),
            spooled: self.shared.spool.as_ref().map_or(0, |spool| spool.backlog().records),
            sources_ended: self.shared.have_sources_ended(),
            elapsed: started.elapsed(),
            counters,
        };
        if !report.is_complete() {
            tracing::error!(target: "storage", left = report.left, "records are left behind");
        }
        report
    }

    /// Waits until every source has ended by itself and everything is in the store, the spool
    /// empty. It may wait for ever: for a store that is down, and for sources that go on.
    pub async fn drained(&self) {
        let drained = self
            .shared
            .wait_until(|shared| (shared.is_drained() || shared.has_writer_ended()).then_some(()));
        // The only error is that the actor is gone, and then there is nothing to wait for.
        drained.await.unwrap_or_default();
    }

    /// How it is doing.
    pub fn health(&self) -> ActorHealth {
        self.shared.health()
    }

    /// What it has counted until now.
    pub fn counters(&self) -> ActorCounters {
        self.shared.counters()
    }

    /// Takes the newest records that were set aside, at most 100; all are counted.
    pub fn take_set_aside(&self) -> Vec<SetAside> {
        self.shared.take_set_aside()
    }

    /// Makes a mailbox that takes [`StorageCommand`]s, for programs made of actors. Each command is
    /// answered by a task of its own, so that none waits for another.
    pub fn mailbox(&self, capacity: usize) -> mpsc::Sender<StorageCommand> {
        let (sender, mut commands) = mpsc::channel::<StorageCommand>(capacity.max(1));
        let handle = self.clone();
        tokio::spawn(async move {
            while let Some(command) = commands.recv().await {
                let handle = handle.clone();
                tokio::spawn(async move { handle.answer(command).await });
            }
        });
        sender
    }

    /// Answers a command. Nobody may be left to hear it: that is no error.
    async fn answer(&self, command: StorageCommand) {
        match command {
            StorageCommand::Query { server_id, metric_type, range, respond_to } => {
                let _ = respond_to.send(self.query(&server_id, &metric_type, range).await);
            }
            StorageCommand::Aggregate { server_id, metric_type, range, respond_to } => {
                let _ = respond_to.send(self.aggregate(&server_id, &metric_type, range).await);
            }
            StorageCommand::Stats { respond_to } => {
                let _ = respond_to.send(self.stats().await);
            }
            StorageCommand::Flush { respond_to } => {
                let _ = respond_to.send(self.flush().await);
            }
            StorageCommand::Shutdown { deadline, respond_to } => {
                let _ = respond_to.send(self.shutdown(deadline).await);
            }
        }
    }
}

/// A message to an actor; see [`StorageHandle::mailbox`].
///
/// ```
/// # use std::sync::Arc;
/// # use storage_core::{InMemory, pipeline::{StorageActor, StorageCommand}};
/// use tokio::sync::oneshot;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// # let actor = StorageActor::new(Arc::new(InMemory::new())).start()?;
/// let mailbox = actor.mailbox(16);
/// let (respond_to, answer) = oneshot::channel();
/// mailbox.send(StorageCommand::Stats { respond_to }).await.unwrap();
/// assert_eq!(answer.await.unwrap()?.total_metrics, 0);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub enum StorageCommand {
    /// [`StorageHandle::query`]
    Query {
        /// Whose samples.
        server_id: String,
        /// Which of them.
        metric_type: String,
        /// When.
        range: TimeRange,
        /// Where the answer goes.
        respond_to: oneshot::Sender<Result<Vec<MetricRecord>>>,
    },
    /// [`StorageHandle::aggregate`]
    Aggregate {
        /// Whose samples.
        server_id: String,
        /// Which of them.
        metric_type: String,
        /// When.
        range: TimeRange,
        /// Where the answer goes.
        respond_to: oneshot::Sender<Result<MetricAggregation>>,
    },
    /// [`StorageHandle::stats`]
    Stats {
        /// Where the answer goes.
        respond_to: oneshot::Sender<Result<StorageStats>>,
    },
    /// [`StorageHandle::flush`]
    Flush {
        /// Where the answer goes.
        respond_to: oneshot::Sender<Result<()>>,
    },
    /// [`StorageHandle::shutdown`]
    Shutdown {
        /// How long it may take.
        deadline: Duration,
        /// Where the answer goes.
        respond_to: oneshot::Sender<DrainReport>,
    },
}
