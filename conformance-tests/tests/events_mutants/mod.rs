//! Stores whose events are broken on purpose, each in one way.

mod appending;
mod bugs;
mod metrics;
mod projecting;
mod reading;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use conformance_tests::Fixture;
use conformance_tests::harness::Store as Handle;
use futures_util::FutureExt;
use serde_json::json;
use storage_core::events::Row;
use storage_core::{
    Error, ErrorKind, EventQuery, EventStore, EventStoreExt, Expectation, InMemory, InMemoryEvents,
    LogExtent, Matcher, NewEvent, ProjectionInfo, ProjectionStep, Result, Store, StoredEvent,
    StreamInfo,
};

pub(crate) use bugs::Bug;
use metrics::BrokenMetrics;

use crate::mutant_runner::locations::{Locations, forget, one, open_alone};
use crate::mutant_runner::moment::Pair;

/// The stream of events that use numbers up; no reader sees them.
const HIDDEN: &str = "\u{1}hidden";

/// What the handles of a location share.
#[derive(Default)]
struct Shared {
    handles: AtomicU64,
    opening: AtomicBool,
    closed: AtomicBool,
    broken: AtomicBool,
    calls: AtomicI64,
    pair: Pair,
    log: Mutex<Log>,
}

/// What was done so far, as far as a bug needs to remember.
#[derive(Default)]
struct Log {
    ids: BTreeSet<String>,
    shown: BTreeSet<u64>,
    forgotten: bool,
    conflict: bool,
    removed: u64,
    restarted_at: u64,
    held_back: Vec<NewEvent>,
    late: Vec<NewEvent>,
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens stores that all have the same bug.
pub(crate) struct Mutants {
    bug: Bug,
    locations: Locations<Shared>,
}

impl Mutants {
    pub(crate) fn new(bug: Bug) -> Self {
        Self { bug, locations: Locations::default() }
    }
}

#[async_trait]
impl Fixture for Mutants {
    fn name(&self) -> &str {
        "mutant"
    }

    async fn open(&self, location: &str) -> Result<Handle> {
        Ok(Arc::clone(self.open_store(location).await?.metrics()))
    }

    async fn open_store(&self, location: &str) -> Result<Store> {
        let bug = self.bug;
        let shared = self.locations.shared(location);
        if bug == Bug::OpeningExcludes {
            open_alone(&shared.opening).await?;
        }
        let number = shared.handles.fetch_add(1, Ordering::SeqCst);
        let inner = InMemory::open(location);
        let events = match bug {
            Bug::HandlesAreApart => InMemory::open(&format!("{location}#{number}")).events(),
            Bug::LocationsAreOne => InMemory::open(&one(location)).events(),
            Bug::CloseIsIgnored => InMemory::open(location).events(),
            _ => inner.events(),
        };
        if bug == Bug::OpeningAppends {
            events.append_all(&[NewEvent::new("meta", "Opened", json!(1))]).await?;
        }
        if bug == Bug::OpeningLoses && number > 0 {
            lose_all(&events).await?;
        }
        let opened_at = events.extent().await?.last;
        let known = events.streams(&Matcher::any()).await?;
        let known = known.into_iter().map(|info| info.stream).collect();
        let metrics = Arc::new(BrokenMetrics::new(inner, bug, events.clone(), Arc::clone(&shared)));
        let store = Store::of_metrics(Arc::clone(&metrics) as Handle);
        Ok(store.with_events(Arc::new(Broken {
            inner: events,
            metrics,
            bug,
            shared,
            opened_at,
            known: Mutex::new(known),
            remembered: Mutex::default(),
        })))
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        forget(location);
        Ok(())
    }
}

/// Removes every event, whatever projections have seen.
async fn lose_all(events: &InMemoryEvents) -> Result<()> {
    for info in events.projections().await? {
        events.forget_projection(&info.projection).await?;
    }
    events.prune_before(u64::MAX).await.map(drop)
}

/// An event store with one bug.
struct Broken {
    inner: InMemoryEvents,
    metrics: Arc<BrokenMetrics>,
    bug: Bug,
    shared: Arc<Shared>,
    /// The last event when this handle was opened.
    opened_at: u64,
    /// The streams that this handle has heard of.
    known: Mutex<BTreeSet<String>>,
    /// The first answers that this handle has given.
    remembered: Mutex<HashMap<String, Vec<Row>>>,
}

impl Broken {
    fn is(&self, bug: Bug) -> bool {
        self.bug == bug
    }

    fn known(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes before each call. A closed handle says so first, whatever the bug.
    async fn enter(&self) -> Result<()> {
        if self.shared.broken.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Internal, "broken by what came before"));
        }
        if self.is(Bug::CloseClosesAll) && self.shared.closed.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Closed, "all handles were closed"));
        }
        self.inner.extent().await.map(drop)
    }

    /// What an error looks like when it leaves: it names the call that was made.
    fn leave(&self, error: Error, operation: &'static str) -> Error {
        let same = Error::new(error.kind(), error.message().to_owned())
            .with_outcome(error.outcome())
            .with_retryable(error.is_retryable());
        if self.is(Bug::ErrorsNameNothing) {
            return same;
        }
        let details = [
            "event",
            "field",
            "stream",
            "expected",
            "version",
            "event_id",
            "sequence",
            "projection",
            "checkpoint",
            "change",
            "first",
            "last",
        ];
        let found = details.into_iter().filter_map(|key| Some((key, error.context(key)?)));
        let same = found.fold(same, |same, (key, value)| same.with_context(key, value));
        same.with_backend("memory").with_operation(operation)
    }

    /// Everything there is, in order.
    async fn everything(&self) -> Result<Vec<StoredEvent>> {
        self.inner.read(&EventQuery::from(1)).await
    }
}

#[async_trait]
impl EventStore for Broken {
    async fn append(
        &self,
        events: &[NewEvent],
        expected: &[Expectation],
    ) -> Result<Vec<StoredEvent>> {
        let stored = async {
            self.enter().await?;
            self.try_append(events, expected).await
        };
        stored.await.map_err(|error| self.leave(error, "append"))
    }

    async fn read(&self, query: &EventQuery) -> Result<Vec<StoredEvent>> {
        let found = async {
            self.enter().await?;
            self.try_read(query).await
        };
        found.await.map_err(|error| self.leave(error, "read"))
    }

    async fn extent(&self) -> Result<LogExtent> {
        let found = async {
            self.enter().await?;
            self.try_extent().await
        };
        found.await.map_err(|error| self.leave(error, "extent"))
    }

    async fn streams(&self, streams: &Matcher) -> Result<Vec<StreamInfo>> {
        let found = async {
            self.enter().await?;
            self.try_streams(streams).await
        };
        found.await.map_err(|error| self.leave(error, "streams"))
    }

    async fn wait_for(&self, sequence: u64) -> Result<()> {
        let waited = async {
            self.enter().await?;
            self.try_wait_for(sequence).await
        };
        waited.await.map_err(|error| self.leave(error, "wait_for"))
    }

    async fn project(&self, step: &ProjectionStep) -> Result<()> {
        let made = async {
            self.enter().await?;
            self.try_project(step).await
        };
        made.await.map_err(|error| self.leave(error, "project"))
    }

    async fn projections(&self) -> Result<Vec<ProjectionInfo>> {
        let found = async {
            self.enter().await?;
            self.try_projections().await
        };
        found.await.map_err(|error| self.leave(error, "projections"))
    }

    async fn rows(&self, projection: &str, table: &str, keys: &Matcher) -> Result<Vec<Row>> {
        let found = async {
            self.enter().await?;
            self.try_rows(projection, table, keys).await
        };
        found.await.map_err(|error| self.leave(error, "rows"))
    }

    async fn forget_projection(&self, projection: &str) -> Result<bool> {
        let forgotten = async {
            self.enter().await?;
            self.try_forget(projection).await
        };
        forgotten.await.map_err(|error| self.leave(error, "forget_projection"))
    }

    async fn prune_before(&self, sequence: u64) -> Result<u64> {
        let removed = async {
            self.enter().await?;
            self.try_prune(sequence).await
        };
        removed.await.map_err(|error| self.leave(error, "prune_before"))
    }

    fn name(&self) -> &'static str {
        if self.is(Bug::HasAnotherName) { "another" } else { "memory" }
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        if self.is(Bug::DroppingLoses) {
            lose_all(&self.inner).now_or_never();
        }
    }
}
