//! A store that may be away when the program starts, and is opened as soon as it is there.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::{FutureExt, stream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::retry::RetryPolicy;
use crate::capabilities::Capabilities;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::{
    CheckReport, Health, HealthStatus, MetricAggregation, MetricRecord, ScanStream, SeriesFilter,
    SeriesInfo, SeriesSamples, SeriesWindows, StorageBackend, StorageStats, TimeRange,
};

/// How long [`Deferred::open`] waits for a store that does not say anything.
const PATIENCE: Duration = Duration::from_secs(5);

/// What it is called until it is open.
const NAME: &str = "deferred";

/// A store that may be away when the program starts.
///
/// [`open`](Self::open) tries to open it. If that fails for a passing reason
/// ([`Error::is_retryable`]: a server that is not there yet, a lock that somebody holds) the handle is
/// there all the same, and opening is tried again in the background, with growing delays, until it
/// works. A reason that does not pass (a wrong URL or password, no rights, tables of another program or
/// version) is an error of `open`; where it is found only later it ends the trying, and
/// [`opened`](Self::opened) returns it.
///
/// # What holds of the contract
/// All of it as the store keeps it, from when it is open. Until then every call fails at once, with
/// `Unavailable`, the outcome `NotApplied` and the reason as its source, `health` is `Down`, the name
/// is `deferred`, and it is taken to be capable of everything, so that nobody leaves something out because
/// the store is not there; `close` ends the trying. After an opening that failed for good calls fail with
/// the kind of that error, and are not worth repeating.
///
/// A [`Spool`](crate::pipeline::Spool) takes what is written meanwhile: in front of it
/// ([`Spooled`](crate::pipeline::Spooled)), or beside it in an actor.
///
/// # Cost
/// A call to a store that is open costs an atomic read.
///
/// # Example
/// ```
/// use std::sync::atomic::{AtomicU32, Ordering};
///
/// use storage_core::layers::Deferred;
/// use storage_core::{Error, ErrorKind, InMemory, StorageBackend};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let attempts = AtomicU32::new(0);
/// let store = Deferred::open(move || {
///     let is_first = attempts.fetch_add(1, Ordering::Relaxed) == 0;
///     async move {
///         if is_first { Err(Error::new(ErrorKind::Unavailable, "starting")) } else { Ok(InMemory::new()) }
///     }
/// })
/// .await?;
/// assert_eq!(store.stats().await.unwrap_err().kind(), ErrorKind::Unavailable);
///
/// store.opened().await?;
/// assert_eq!(store.stats().await?.total_metrics, 0);
/// # Ok(()) }
/// ```
pub struct Deferred<B> {
    shared: Arc<Shared<B>>,
    opening: AbortHandle,
}

struct Shared<B> {
    /// Set together with `State::Open`, for reads without a lock.
    store: OnceLock<B>,
    state: watch::Sender<State>,
}

/// How far the opening is.
#[derive(Debug, Clone)]
enum State {
    /// Under way; with what the last attempt failed of.
    Opening(Option<Arc<Error>>),
    Open,
    /// Given up for this reason.
    Refused(Arc<Error>),
    /// Given up because nobody wants it any more.
    Closed,
}

impl<B> Drop for Deferred<B> {
    fn drop(&mut self) {
        self.opening.abort();
    }
}

impl<B> std::fmt::Debug for Deferred<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deferred").field("state", &*self.shared.state.borrow()).finish()
    }
}

impl<B: StorageBackend + 'static> Deferred<B> {
    /// Opens a store by calling `opener`, as often as it takes. Must be called on a Tokio runtime.
    ///
    /// It returns when the first attempt has ended, after 5 s at the latest; an attempt that takes
    /// longer goes on in the background. Dropping the handle ends the trying.
    ///
    /// # Errors
    /// That of the first attempt, if it will not pass.
    pub async fn open<O, F>(opener: O) -> Result<Self>
    where
        O: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<B>> + Send + 'static,
    {
        Self::open_with(opener, RetryPolicy::default(), PATIENCE).await
    }

    /// Like [`open`](Self::open), with delays of one's own between attempts, whose number and time
    /// have no bound here, and another patience with the first attempt.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_with<O, F>(opener: O, retry: RetryPolicy, patience: Duration) -> Result<Self>
    where
        O: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<B>> + Send + 'static,
    {
        let shared = Arc::new(Shared {
            store: OnceLock::new(),
            state: watch::Sender::new(State::Opening(None)),
        });
        let mut state = shared.state.subscribe();
        let opening = tokio::spawn(Arc::clone(&shared).open(opener, retry)).abort_handle();
        let deferred = Self { shared, opening };
        // Nobody else has the sender, and time may run out: then it goes on behind.
        let _ = timeout(patience, state.changed()).await;
        match deferred.shared.take_refusal() {
            Some(error) => Err(error),
            None => Ok(deferred),
        }
    }

    /// The store, if it is open.
    pub fn get(&self) -> Option<&B> {
        self.shared.store.get()
    }

    /// Waits until the store is open.
    ///
    /// # Errors
    /// The reason why it will never be: that of an attempt, or `Closed`.
    pub async fn opened(&self) -> Result<&B> {
        let mut state = self.shared.state.subscribe();
        // The sender lives as long as this: there is no error.
        let _ = state.wait_for(|state| !matches!(state, State::Opening(_))).await;
        self.store("open")
    }

    /// The store for a call, or why there is none.
    fn store(&self, operation: &'static str) -> Result<&B> {
        if let Some(store) = self.shared.store.get() {
            return Ok(store);
        }
        // While this is held nobody opens it.
        let state = self.shared.state.borrow();
        let store = self.shared.store.get();
        store.ok_or_else(|| state.error().with_backend(NAME).with_operation(operation))
    }
}

impl<B: StorageBackend> Shared<B> {
    /// Tries until the store is open, or never will be.
    async fn open<O, F>(self: Arc<Self>, opener: O, retry: RetryPolicy)
    where
        O: Fn() -> F + Send + Sync,
        F: Future<Output = Result<B>> + Send + 'static,
    {
        let mut delays = retry.with_attempts_max(u32::MAX).delays();
        loop {
            let attempt = AssertUnwindSafe(async { opener().await }).catch_unwind();
            let panicked = |_| Err(Error::new(ErrorKind::Internal, "opening the store panicked"));
            let error = match attempt.await.unwrap_or_else(panicked) {
                Ok(store) => return self.hold(store).await,
                Err(error) => error,
            };
            if !error.is_retryable() {
                tracing::warn!(target: "storage", error = format!("{error:#}"), "the store cannot be opened");
                return self.turn(State::Refused(Arc::new(error)));
            }
            tracing::debug!(target: "storage", error = format!("{error:#}"), "the store is not there yet");
            self.turn(State::Opening(Some(Arc::new(error))));
            // There is always a next delay.
            sleep(delays.next().unwrap_or(PATIENCE)).await;
        }
    }

    /// Keeps a store that was opened, or closes it if nobody wants it any more.
    async fn hold(&self, store: B) {
        let mut unwanted = Some(store);
        self.state.send_if_modified(|state| {
            if !matches!(state, State::Opening(_)) {
                return false;
            }
            let Some(store) = unwanted.take() else { return false };
            // Only this sets it, and only once.
            let _ = self.store.set(store);
            *state = State::Open;
            true
        });
        if let Some(store) = unwanted {
            // Nobody is left to hear of an error.
            let _ = store.close().await;
        }
    }

    /// Takes the reason why the store will never be open, if there is one.
    fn take_refusal(&self) -> Option<Error> {
        let mut refused = None;
        self.state.send_if_modified(|state| {
            if let State::Refused(reason) = state {
                refused = Some(Arc::clone(reason));
                *state = State::Closed;
            }
            false
        });
        // Nobody else has it by now; if somebody had, he would hear what every call says.
        let only = |reason| {
            Arc::try_unwrap(reason).unwrap_or_else(|reason| State::Refused(reason).error())
        };
        refused.map(only)
    }

    /// Lets the store never be opened, unless it is.
    fn give_up(&self) {
        self.state.send_if_modified(|state| {
            let is_open = matches!(state, State::Open);
            if !is_open {
                *state = State::Closed;
            }
            !is_open
        });
    }

    /// Goes on to a state other than `Open`, unless the opening has come to its end.
    fn turn(&self, next: State) {
        self.state.send_if_modified(|state| {
            let is_opening = matches!(state, State::Opening(_));
            if is_opening {
                *state = next;
            }
            is_opening
        });
    }
}

impl State {
    /// What a call says while there is no store.
    fn error(&self) -> Error {
        match self {
            Self::Opening(None) | Self::Open => unavailable(),
            Self::Opening(Some(reason)) => unavailable().with_source(Arc::clone(reason)),
            Self::Refused(reason) => {
                // A caller would take it for a fault of its records.
                let kind = match reason.kind() {
                    ErrorKind::InvalidArgument => ErrorKind::Config,
                    kind => kind,
                };
                Error::new(kind, "the store cannot be opened")
                    .with_retryable(false)
                    .with_source(Arc::clone(reason))
            }
            Self::Closed => Error::new(ErrorKind::Closed, "the store was closed"),
        }
    }
}

fn unavailable() -> Error {
    Error::new(ErrorKind::Unavailable, "the store is not open yet")
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<B: StorageBackend + 'static> StorageBackend for Deferred<B> {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        self.store("write_batch")?.write_batch(records).await
    }

    async fn query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        self.store("query_range")?.query_range(server_id, metric_type, range).await
    }

    async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        self.store("aggregate")?.aggregate(server_id, metric_type, range).await
    }

    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        self.store("prune_before")?.prune_before(cutoff).await
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.store("stats")?.stats().await
    }

    fn name(&self) -> &'static str {
        self.get().map_or(NAME, StorageBackend::name)
    }

    fn capabilities(&self) -> Capabilities {
        let unknown = Capabilities { series: true, check: true, close: true };
        self.get().map_or(unknown, StorageBackend::capabilities)
    }

    async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        self.store("series")?.series(filter).await
    }

    async fn latest(
        &self,
        filter: &SeriesFilter,
        n_per_series: usize,
    ) -> Result<Vec<SeriesSamples>> {
        self.store("latest")?.latest(filter, n_per_series).await
    }

    async fn windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        self.store("windows")?.windows(filter, range, width).await
    }

    fn scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        match self.store("scan") {
            Ok(store) => store.scan(filter, range),
            Err(error) => Box::pin(stream::once(std::future::ready(Err(error)))),
        }
    }

    async fn flush(&self) -> Result<()> {
        self.store("flush")?.flush().await
    }

    async fn compact(&self) -> Result<()> {
        self.store("compact")?.compact().await
    }

    async fn check(&self) -> Result<CheckReport> {
        self.store("check")?.check().await
    }

    async fn health(&self) -> Health {
        match self.store("health") {
            Ok(store) => store.health().await,
            Err(error) => Health { status: HealthStatus::Down, message: format!("{error:#}") },
        }
    }

    async fn close(&self) -> Result<()> {
        // From here on it is open, or never will be.
        self.shared.give_up();
        match self.get() {
            Some(store) => store.close().await,
            None => {
                self.opening.abort();
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
