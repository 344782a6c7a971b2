//! The mutant itself: the in-memory backend with one bug, and how it is opened.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use conformance_tests::{Fixture, Store};
use futures_util::FutureExt;
use storage_core::metrics::time::from_ms;
use storage_core::{
    Capabilities, Error, ErrorKind, InMemory, MetricRecord, Outcome, Result, SeriesKey,
    StorageBackend,
};

use super::bugs::Bug;
use super::state::{Shared, pause};

/// Opens mutants that all have the same bug.
pub(crate) struct Mutants {
    bug: Bug,
    locations: Mutex<HashMap<String, Arc<Shared>>>,
}

impl Mutants {
    pub(crate) fn new(bug: Bug) -> Self {
        Self { bug, locations: Mutex::default() }
    }

    /// The location that is really used: with one of the bugs, that beside it.
    fn real<'a>(&self, location: &'a str) -> &'a str {
        match (self.bug, location.match_indices('_').nth(3)) {
            (Bug::LocationsAreOne, Some((at, _))) => &location[..at],
            _ => location,
        }
    }
}

#[async_trait]
impl Fixture for Mutants {
    fn name(&self) -> &str {
        "mutant"
    }

    async fn open(&self, location: &str) -> Result<Store> {
        let (bug, location) = (self.bug, self.real(location));
        let shared = {
            let mut locations = self.locations.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(locations.entry(location.to_owned()).or_default())
        };
        if bug == Bug::OpeningExcludes {
            if shared.opening.swap(true, Ordering::SeqCst) {
                return Err(Error::new(ErrorKind::Busy, "somebody else opens it"));
            }
            pause().await;
            shared.opening.store(false, Ordering::SeqCst);
        }
        let number = shared.handles.fetch_add(1, Ordering::SeqCst);
        let inner = match bug {
            Bug::HandlesAreApart => InMemory::open(&format!("{location}#{number}")),
            _ => InMemory::open(location),
        };
        let others = shared.open.fetch_add(1, Ordering::SeqCst);
        if bug == Bug::ReopeningLoses && number > 0 && others == 0 {
            inner.prune_before(DateTime::<Utc>::MAX_UTC).await?;
        }
        if bug == Bug::OpeningWrites && number == 0 {
            inner.write_batch(&[MetricRecord::new("meta", from_ms(0), "version", 1.0)]).await?;
        }
        shared.log().metadata_lost |= bug == Bug::OpeningRewrites && number > 0;
        let known = inner.series(&storage_core::SeriesFilter::any()).await?;
        let known = known.into_iter().map(|info| info.series).collect();
        let known = Mutex::new(known);
        let (closed, remembered) = (AtomicBool::new(false), Mutex::default());
        Ok(Arc::new(Broken { inner, bug, shared, number, closed, known, remembered }))
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        InMemory::forget(self.real(location));
        Ok(())
    }
}

/// The in-memory backend with one bug.
pub(crate) struct Broken {
    pub(super) inner: InMemory,
    pub(super) bug: Bug,
    pub(super) shared: Arc<Shared>,
    /// How many handles the location had before.
    pub(super) number: u64,
    pub(super) closed: AtomicBool,
    /// The series that this handle has heard of.
    pub(super) known: Mutex<BTreeSet<SeriesKey>>,
    /// What this handle has read before.
    pub(super) remembered: Mutex<HashMap<String, Vec<MetricRecord>>>,
}

impl Broken {
    pub(super) fn is(&self, bug: Bug) -> bool {
        self.bug == bug
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// What goes before each call.
    pub(super) fn enter(&self) -> Result<()> {
        if self.shared.broken.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Internal, "broken by what came before"));
        }
        if self.is(Bug::CloseClosesAll) && self.shared.closed.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Closed, "all handles were closed"));
        }
        if self.is(Bug::ErrorsRunOut) && self.shared.errors.load(Ordering::SeqCst) > 200 {
            return Err(Error::new(ErrorKind::Unavailable, "no connection left"));
        }
        Ok(())
    }

    /// What an error looks like when it leaves.
    pub(super) fn leave(&self, error: Error) -> Error {
        self.shared.errors.fetch_add(1, Ordering::SeqCst);
        let kind = error.kind();
        let message = error.message().to_owned();
        match self.bug {
            Bug::ErrorsPoison => {
                self.shared.broken.store(true, Ordering::SeqCst);
                error
            }
            Bug::ErrorsAreInternal => {
                respelled(&error, ErrorKind::Internal, message, &["record", "field"])
            }
            Bug::ErrorsAreUnknown => error.with_outcome(Outcome::Unknown),
            Bug::ErrorsAreRetryable => error.with_retryable(true),
            Bug::ClosedIsRetryable => error.with_retryable(kind == ErrorKind::Closed),
            Bug::ErrorsNameNoBackend => {
                let operation = error.operation().unwrap_or("none");
                let bare = Error::new(kind, message).with_operation(operation);
                with_details(bare, &error, &["record", "field"])
            }
            Bug::ErrorsNameAnotherCall => {
                let named = Error::new(kind, message).with_backend("memory").with_operation("call");
                with_details(named, &error, &["record", "field"])
            }
            Bug::ErrorsOfSeriesNameNothing if error.operation() == Some("series") => {
                Error::new(kind, message).with_backend("memory")
            }
            Bug::ErrorsHaveLines => respelled(
                &error,
                kind,
                "First line.\nSecond line.".to_owned(),
                &["record", "field"],
            ),
            Bug::ErrorsNameRecordZero => {
                respelled(&error, kind, message, &["field"]).with_context("record", 0)
            }
            Bug::ErrorsNameNoField => respelled(&error, kind, message, &["record"]),
            Bug::ErrorsNameNoName if error.context("record").is_none() => {
                respelled(&error, kind, message, &[])
            }
            Bug::ErrorsHaveEndlessCauses => {
                let cause = |cause, _| Error::new(ErrorKind::Internal, "caused").with_source(cause);
                let innermost = Error::new(ErrorKind::Internal, "the first cause");
                error.with_source((0..30).fold(innermost, cause))
            }
            _ => error,
        }
    }

    pub(super) fn offered(&self) -> Capabilities {
        let late = self.is(Bug::CapabilitiesComeAndGo) && self.is_closed();
        let other = self.is(Bug::CapabilitiesOfTheHandle) && self.number > 0;
        Capabilities { check: !late && !other, ..self.bug.capabilities() }
    }

    /// Removes the oldest sample there is.
    pub(super) fn lose_oldest(&self) {
        let oldest = self.inner.stats().now_or_never().and_then(Result::ok);
        if let Some(oldest) = oldest.and_then(|stats| stats.oldest_metric) {
            let past = oldest + chrono::Duration::milliseconds(1);
            self.inner.prune_before(past).now_or_never();
        }
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        if self.is(Bug::DroppingLoses) && !self.is_closed() {
            self.inner.prune_before(DateTime::<Utc>::MAX_UTC).now_or_never();
        }
    }
}

impl Bug {
    /// What a mutant with this bug says that it offers.
    pub(crate) fn capabilities(self) -> Capabilities {
        Capabilities {
            series: !matches!(self, Self::LacksSeriesButAnswers | Self::LacksSeriesSaysInvalid),
            check: self != Self::LacksCheckButAnswers,
            close: self != Self::LacksCloseButCloses,
        }
    }
}

/// The same error in other words, with some of its details.
fn respelled(error: &Error, kind: ErrorKind, message: String, details: &[&'static str]) -> Error {
    let mut new = Error::new(kind, message)
        .with_outcome(error.outcome())
        .with_retryable(error.is_retryable());
    if let Some(backend) = error.backend() {
        new = new.with_backend(backend);
    }
    if let Some(operation) = error.operation() {
        new = new.with_operation(operation);
    }
    with_details(new, error, details)
}

fn with_details(mut new: Error, old: &Error, details: &[&'static str]) -> Error {
    for detail in details {
        if let Some(value) = old.context(detail) {
            new = new.with_context(detail, value);
        }
    }
    new
}
