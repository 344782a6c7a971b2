//! Stores whose record history is broken on purpose, each in one way.

mod bugs;
mod metrics;
mod reading;
mod writing;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use conformance_tests::Fixture;
use conformance_tests::harness::Store as Handle;
use futures_util::FutureExt;
use storage_core::{
    Error, ErrorKind, HistoryQuery, InMemory, InMemoryHistory, Matcher, RecordHistory, RecordInfo,
    Result, Store, StoredValue,
};

pub(crate) use bugs::Bug;
use metrics::BrokenMetrics;

use crate::mutant_runner::locations::{Locations, forget, one, open_alone};
use crate::mutant_runner::moment::Pair;

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
    last_batch: Vec<StoredValue>,
    held_back: Vec<StoredValue>,
    late: Vec<StoredValue>,
    removed: u64,
    vanished: BTreeSet<String>,
    watermark_ms: Option<i64>,
    reorders: bool,
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
        let history = match bug {
            Bug::HandlesAreApart => InMemory::open(&format!("{location}#{number}")).history(),
            Bug::LocationsAreOne => InMemory::open(&one(location)).history(),
            Bug::CloseIsIgnored => InMemory::open(location).history(),
            _ => inner.history(),
        };
        if bug == Bug::OpeningStores {
            history
                .store_batch(&[StoredValue::new("meta", DateTime::UNIX_EPOCH, 1.into())])
                .await?;
        }
        if bug == Bug::OpeningLoses && number > 0 {
            history.cleanup(DateTime::<Utc>::MAX_UTC).await?;
        }
        let known = history.records(&Matcher::any()).await?;
        let known = known.into_iter().map(|info| info.record_name).collect();
        let metrics =
            Arc::new(BrokenMetrics::new(inner, bug, history.clone(), Arc::clone(&shared)));
        let store = Store::of_metrics(Arc::clone(&metrics) as Handle);
        Ok(store.with_history(Arc::new(Broken {
            inner: history,
            metrics,
            bug,
            shared,
            known: Mutex::new(known),
            remembered: Mutex::default(),
        })))
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        forget(location);
        Ok(())
    }
}

/// A history with one bug.
struct Broken {
    inner: InMemoryHistory,
    metrics: Arc<BrokenMetrics>,
    bug: Bug,
    shared: Arc<Shared>,
    /// The records that this handle has heard of.
    known: Mutex<BTreeSet<String>>,
    /// The longest answers that this handle has given.
    remembered: Mutex<HashMap<String, Vec<StoredValue>>>,
}

impl Broken {
    fn is(&self, bug: Bug) -> bool {
        self.bug == bug
    }

    fn known(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes before each call.
    fn enter(&self) -> Result<()> {
        if self.shared.broken.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Internal, "broken by what came before"));
        }
        if self.is(Bug::CloseClosesAll) && self.shared.closed.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Closed, "all handles were closed"));
        }
        Ok(())
    }

    /// What an error looks like when it leaves.
    fn leave(&self, error: Error, operation: &'static str) -> Error {
        match self.bug {
            Bug::ErrorsNameNothing => Error::new(error.kind(), error.message().to_owned()),
            _ => error.with_backend("memory").with_operation(operation),
        }
    }

    /// Everything there is, in order.
    async fn everything(&self) -> Result<Vec<StoredValue>> {
        self.inner.query(&HistoryQuery::new(Matcher::any())).await
    }
}

#[async_trait]
impl RecordHistory for Broken {
    async fn store_batch(&self, values: &[StoredValue]) -> Result<()> {
        let stored = async {
            self.enter()?;
            self.try_store(values).await
        };
        stored.await.map_err(|error| self.leave(error, "store_batch"))
    }

    async fn query(&self, query: &HistoryQuery) -> Result<Vec<StoredValue>> {
        let found = async {
            self.enter()?;
            self.try_query(query).await
        };
        found.await.map_err(|error| self.leave(error, "query"))
    }

    async fn records(&self, records: &Matcher) -> Result<Vec<RecordInfo>> {
        let found = async {
            self.enter()?;
            self.try_records(records).await
        };
        found.await.map_err(|error| self.leave(error, "records"))
    }

    async fn cleanup(&self, older_than: DateTime<Utc>) -> Result<u64> {
        let removed = async {
            self.enter()?;
            self.try_cleanup(older_than).await
        };
        removed.await.map_err(|error| self.leave(error, "cleanup"))
    }

    fn name(&self) -> &'static str {
        if self.is(Bug::HasAnotherName) { "another" } else { "memory" }
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        if self.is(Bug::DroppingLoses) {
            self.inner.cleanup(DateTime::<Utc>::MAX_UTC).now_or_never();
        }
    }
}
