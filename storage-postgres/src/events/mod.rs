//! The event store on PostgreSQL: each method checks, delegates to `append`, `read`, `project` or
//! `prune`, and names itself in the error.

pub(crate) mod append;
mod project;
mod prune;
mod read;

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

use self::project::Work;
use crate::backend::named;
use crate::maintenance::upkeep;
use crate::schema::EVENTS_VERSION;
use crate::store::Store;
use crate::write::Committer;

/// How often a wait looks for events of other handles.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// The event store in a schema of a PostgreSQL database; see
/// [`PostgresBackend::events`](crate::PostgresBackend::events).
#[derive(Debug, Clone)]
pub struct PostgresEvents {
    store: Arc<Store>,
    committer: Committer,
}

impl PostgresEvents {
    pub(crate) fn new(store: Arc<Store>, committer: Committer) -> Self {
        Self { store, committer }
    }

    async fn try_append(
        &self,
        events: &[NewEvent],
        expected: &[Expectation],
    ) -> Result<Vec<StoredEvent>> {
        self.store.check_events()?;
        validate_events(events)?;
        validate_expectations(expected)?;
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let (append, verdict) = append::prepare(events, expected)?;
        let stored = verdict.answer(events, self.committer.append(append)).await?;
        self.store.appended.notify_waiters();
        Ok(stored)
    }

    async fn try_wait_for(&self, sequence: u64) -> Result<()> {
        loop {
            // Asked for before looking, so that what is appended in between rings.
            let appended = self.store.appended.notified();
            self.store.check_events()?;
            if self.store.extent().await?.last >= sequence {
                return Ok(());
            }
            // A time limit, because other handles do not ring.
            let _ = tokio::time::timeout(LOOK_INTERVAL, appended).await;
        }
    }
}

impl Store {
    /// # Errors
    /// `Closed` after `close`; `PermissionDenied` where an older store could not be migrated.
    fn check_events(&self) -> Result<()> {
        self.check_part(EVENTS_VERSION)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl EventStore for PostgresEvents {
    async fn append(
        &self,
        events: &[NewEvent],
        expected: &[Expectation],
    ) -> Result<Vec<StoredEvent>> {
        self.try_append(events, expected).await.map_err(|error| named(error, "append"))
    }

    async fn read(&self, query: &EventQuery) -> Result<Vec<StoredEvent>> {
        let found = async {
            self.store.check_events()?;
            query.validate()?;
            self.store.read_events(query).await
        };
        found.await.map_err(|error| named(error, "read"))
    }

    fn reads_ahead(&self, _query: &EventQuery) -> bool {
        false
    }

    async fn extent(&self) -> Result<LogExtent> {
        let found = async {
            self.store.check_events()?;
            self.store.extent().await
        };
        found.await.map_err(|error| named(error, "extent"))
    }

    async fn streams(&self, streams: &Matcher) -> Result<Vec<StreamInfo>> {
        let found = async {
            self.store.check_events()?;
            self.store.streams(streams).await
        };
        found.await.map_err(|error| named(error, "streams"))
    }

    async fn wait_for(&self, sequence: u64) -> Result<()> {
        self.try_wait_for(sequence).await.map_err(|error| named(error, "wait_for"))
    }

    async fn project(&self, step: &ProjectionStep) -> Result<()> {
        let checked = self.store.check_events().and_then(|()| step.validate());
        checked.map_err(|error| named(error, "project"))?;
        let changes = project::Changes::of(step).map_err(|error| named(error, "project"))?;
        upkeep(&self.store, "project", move |store, _caller| async move {
            project::transaction(&store, Work::Step(&changes)).await.map(drop)
        })
        .await
    }

    async fn projections(&self) -> Result<Vec<ProjectionInfo>> {
        let found = async {
            self.store.check_events()?;
            self.store.projections().await
        };
        found.await.map_err(|error| named(error, "projections"))
    }

    async fn rows(&self, projection: &str, table: &str, keys: &Matcher) -> Result<Vec<Row>> {
        let found = async {
            self.store.check_events()?;
            check_name("projection", projection)?;
            check_name("table", table)?;
            self.store.projected_rows(projection, table, keys).await
        };
        found.await.map_err(|error| named(error, "rows"))
    }

    async fn forget_projection(&self, projection: &str) -> Result<bool> {
        let checked = self.store.check_events().and_then(|()| check_name("projection", projection));
        checked.map_err(|error| named(error, "forget_projection"))?;
        let name = projection.to_owned();
        upkeep(&self.store, "forget_projection", |store, _caller| async move {
            let forgotten = project::transaction(&store, Work::Forget(&name)).await?;
            Ok(forgotten > 0)
        })
        .await
    }

    async fn prune_before(&self, sequence: u64) -> Result<u64> {
        upkeep(&self.store, "prune_before", move |store, caller| async move {
            store.check_events()?;
            prune::run(&store, sequence, caller).await
        })
        .await
    }

    fn name(&self) -> &'static str {
        "postgres"
    }
}
