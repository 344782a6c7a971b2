//! The event store on SQLite: each method checks, delegates to `append`, `read`, `project` or
//! `prune`, and names itself in the error.
//!
//! Events are stored in chunks, appended by the task that commits everything else.

pub(crate) mod append;
pub(crate) mod check;
mod chunk;
mod project;
mod prune;
mod read;
mod replay;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use storage_core::events::Row;
use storage_core::events::value::{validate_events, validate_expectations};
use storage_core::limits::check_name;
use storage_core::{
    EventQuery, EventStore, Expectation, LogExtent, Matcher, NewEvent, ProjectionInfo,
    ProjectionStep, Result, StoredEvent, StreamInfo,
};
use tokio::task::JoinSet;

use crate::backend::named;
use crate::commit::{Committer, Work};
use crate::maintenance::{panicked, upkeep};
use crate::store::Store;

/// How often a wait looks for events of other handles and processes.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The event store in a SQLite file; see [`SqliteBackend::events`](crate::SqliteBackend::events).
///
/// ```
/// use serde_json::json;
/// use storage_core::{EventStore, EventStoreExt, NewEvent};
/// use storage_sqlite::{SqliteBackend, SqliteOptions};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("store.db");
/// let store = SqliteBackend::open(SqliteOptions::new(&path)).await?;
/// let events = store.events();
/// events.append_all(&[NewEvent::new("thread-1", "TurnStarted", json!({"turn": 1}))]).await?;
/// assert_eq!(events.extent().await?.last, 1);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct SqliteEvents {
    store: Arc<Store>,
    committer: Committer,
}

impl SqliteEvents {
    pub(crate) fn new(store: Arc<Store>, committer: Committer) -> Self {
        Self { store, committer }
    }

    async fn try_append(
        &self,
        events: &[NewEvent],
        expected: &[Expectation],
    ) -> Result<Vec<StoredEvent>> {
        self.store.check_open()?;
        validate_events(events)?;
        validate_expectations(expected)?;
        self.store.check_writable()?;
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let (append, verdict) = append::prepare(events, expected)?;
        let weight = append.weight();
        let commit = self.committer.commit(Work::Events(append), weight);
        let stored = verdict.answer(events, commit).await?;
        self.store.appended.notify_waiters();
        Ok(stored)
    }

    async fn try_read(&self, query: &EventQuery) -> Result<Vec<StoredEvent>> {
        self.store.check_open()?;
        query.validate()?;
        if query.limit < read::READ_AHEAD_FROM {
            return self.store.read_events(query).await;
        }
        // In a task of its own: it goes on while nobody polls, and ends when nobody waits any more.
        let (mut task, store, query) = (JoinSet::new(), Arc::clone(&self.store), query.clone());
        task.spawn_on(async move { store.read_events(&query).await }, &self.store.runtime);
        let read = task.join_next().await.expect("it was spawned just now");
        read.map_err(panicked)?
    }

    async fn try_wait_for(&self, sequence: u64) -> Result<()> {
        loop {
            // Asked for before looking, so that what is appended in between rings.
            let appended = self.store.appended.notified();
            self.store.check_open()?;
            if self.store.extent().await?.last >= sequence {
                return Ok(());
            }
            // A time limit, because other handles do not ring.
            let _ = tokio::time::timeout(LOOK_INTERVAL, appended).await;
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl EventStore for SqliteEvents {
    async fn append(
        &self,
        events: &[NewEvent],
        expected: &[Expectation],
    ) -> Result<Vec<StoredEvent>> {
        self.try_append(events, expected).await.map_err(|error| named(error, "append"))
    }

    async fn read(&self, query: &EventQuery) -> Result<Vec<StoredEvent>> {
        self.try_read(query).await.map_err(|error| named(error, "read"))
    }

    fn reads_ahead(&self, query: &EventQuery) -> bool {
        query.limit >= read::READ_AHEAD_FROM
    }

    async fn extent(&self) -> Result<LogExtent> {
        let found = async {
            self.store.check_open()?;
            self.store.extent().await
        };
        found.await.map_err(|error| named(error, "extent"))
    }

    async fn streams(&self, streams: &Matcher) -> Result<Vec<StreamInfo>> {
        let found = async {
            self.store.check_open()?;
            self.store.streams(streams).await
        };
        found.await.map_err(|error| named(error, "streams"))
    }

    async fn wait_for(&self, sequence: u64) -> Result<()> {
        self.try_wait_for(sequence).await.map_err(|error| named(error, "wait_for"))
    }

    async fn project(&self, step: &ProjectionStep) -> Result<()> {
        let checked = self.store.check_open().and_then(|()| step.validate());
        checked.map_err(|error| named(error, "project"))?;
        let changes = project::Changes::of(step).map_err(|error| named(error, "project"))?;
        upkeep(
            &self.store,
            "project",
            move |store, _caller| async move { store.project(changes).await },
        )
        .await
    }

    async fn projections(&self) -> Result<Vec<ProjectionInfo>> {
        let found = async {
            self.store.check_open()?;
            self.store.projections().await
        };
        found.await.map_err(|error| named(error, "projections"))
    }

    async fn rows(&self, projection: &str, table: &str, keys: &Matcher) -> Result<Vec<Row>> {
        let found = async {
            self.store.check_open()?;
            check_name("projection", projection)?;
            check_name("table", table)?;
            self.store.projected_rows(projection, table, keys).await
        };
        found.await.map_err(|error| named(error, "rows"))
    }

    async fn forget_projection(&self, projection: &str) -> Result<bool> {
        let checked = self.store.check_open().and_then(|()| check_name("projection", projection));
        checked.map_err(|error| named(error, "forget_projection"))?;
        let name = projection.to_owned();
        upkeep(&self.store, "forget_projection", |store, _caller| async move {
            store.forget_projection(&name).await
        })
        .await
    }

    async fn prune_before(&self, sequence: u64) -> Result<u64> {
        upkeep(&self.store, "prune_before", move |store, caller| async move {
            let removed = store.prune_events(sequence, caller).await?;
            if removed > 0
                && let Err(error) = store.give_space_back().await
            {
                // The events are gone; space that cannot be given back now is used again.
                tracing::warn!(target: "storage", %error, "cannot give space back");
            }
            Ok(removed)
        })
        .await
    }

    fn name(&self) -> &'static str {
        "sqlite"
    }
}
