//! One location with everything that it holds.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::events::EventStore;
use crate::history::RecordHistory;
use crate::jobs::JobStore;
use crate::metrics::StorageBackend;

/// A handle to one location, which holds metrics and, beside them, what else its backend keeps.
///
/// The parts share connections and end together.
///
/// ```
/// use storage_core::{InMemory, RecordHistory, RecordHistoryExt, StorageBackend, Store};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let store = Store::from(InMemory::new());
/// store.history()?.store("accuracy::vienna", chrono::Utc::now(), &0.7).await?;
/// assert_eq!(store.metrics().stats().await?.total_metrics, 0);
/// store.close().await
/// # }
/// ```
#[derive(Clone)]
pub struct Store {
    metrics: Arc<dyn StorageBackend>,
    history: Option<Arc<dyn RecordHistory>>,
    events: Option<Arc<dyn EventStore>>,
    jobs: Option<Arc<dyn JobStore>>,
}

impl Store {
    /// A store that holds metrics alone.
    pub fn of_metrics(metrics: Arc<dyn StorageBackend>) -> Self {
        Self { metrics, history: None, events: None, jobs: None }
    }

    /// Adds the record history of the same location.
    #[must_use]
    pub fn with_history(mut self, history: Arc<dyn RecordHistory>) -> Self {
        self.history = Some(history);
        self
    }

    /// Adds the event store of the same location.
    #[must_use]
    pub fn with_events(mut self, events: Arc<dyn EventStore>) -> Self {
        self.events = Some(events);
        self
    }

    /// Adds the jobs of the same location.
    #[must_use]
    pub fn with_jobs(mut self, jobs: Arc<dyn JobStore>) -> Self {
        self.jobs = Some(jobs);
        self
    }

    /// The same location with other metrics over its own, such as tiers over their hot one.
    #[must_use]
    pub fn with_metrics(mut self, metrics: Arc<dyn StorageBackend>) -> Self {
        self.metrics = metrics;
        self
    }

    /// The metrics, and what concerns the location as a whole: `compact`, `check`, `health`.
    pub fn metrics(&self) -> &Arc<dyn StorageBackend> {
        &self.metrics
    }

    /// The record history.
    ///
    /// # Errors
    /// `Unsupported` if the backend keeps none.
    pub fn history(&self) -> Result<&Arc<dyn RecordHistory>> {
        self.history.as_ref().ok_or_else(|| self.lacks("history"))
    }

    /// The event store.
    ///
    /// # Errors
    /// `Unsupported` if the backend keeps none.
    pub fn events(&self) -> Result<&Arc<dyn EventStore>> {
        self.events.as_ref().ok_or_else(|| self.lacks("events"))
    }

    fn lacks(&self, part: &'static str) -> Error {
        Error::unsupported(part).with_backend(self.metrics.name())
    }

    /// The jobs, with pipelines and executions.
    ///
    /// # Errors
    /// `Unsupported` if the backend keeps none.
    pub fn jobs(&self) -> Result<&Arc<dyn JobStore>> {
        self.jobs.as_ref().ok_or_else(|| self.lacks("jobs"))
    }

    /// Closes the store with all its parts: see [`StorageBackend::close`].
    ///
    /// # Errors
    /// Those of the backend.
    pub async fn close(&self) -> Result<()> {
        self.metrics.close().await
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("backend", &self.metrics.name())
            .field("history", &self.history.is_some())
            .field("events", &self.events.is_some())
            .field("jobs", &self.jobs.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, InMemory};

    #[test]
    fn a_part_that_is_not_there_is_named() {
        let store = Store::of_metrics(Arc::new(InMemory::new()));
        let error = store.history().err().unwrap();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Unsupported, Some("history")));
        assert_eq!(error.backend(), Some("memory"));
        assert_eq!(store.events().err().unwrap().operation(), Some("events"));
        assert_eq!(store.jobs().err().unwrap().operation(), Some("jobs"));
    }
}
