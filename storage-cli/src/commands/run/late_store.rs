//! The store of `storage run`, which may be away when it starts, and what keeps it up once it is open.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Error, Result};
use storage::StorageBackend;
use storage::config::{StorageConfig, Upkeep};
use storage::layers::Deferred;
use storage::pipeline::{RetentionCounts, RetentionTask};
use tokio::time::interval;

use super::HEALTH_INTERVAL;
use crate::output::{Output, warn};

/// The task that rolls up and prunes, once the store is open, if there is anything to do.
type Slot = Arc<Mutex<Option<RetentionTask>>>;

/// A store that is opened as soon as it can be.
pub(super) struct LateStore {
    store: Arc<Deferred<Arc<dyn StorageBackend>>>,
    upkeep: Slot,
}

impl LateStore {
    /// Opens the store, or begins to try. What will not pass is an error.
    pub(super) async fn open(config: &StorageConfig) -> Result<Self> {
        let (config, upkeep) = (config.clone(), Slot::default());
        let slot = Arc::clone(&upkeep);
        let store = Deferred::open(move || open(config.clone(), Arc::clone(&slot))).await?;
        Ok(Self { store: Arc::new(store), upkeep })
    }

    pub(super) fn backend(&self) -> Arc<dyn StorageBackend> {
        Arc::<Deferred<_>>::clone(&self.store)
    }

    /// Says that the store is awaited, when it is there, and when its upkeep begins to fail. Ends
    /// when it turns out that the store will never be opened, with the reason.
    pub(super) async fn watch(&self, output: &Output) -> Error {
        if self.store.get().is_none() {
            let health = self.store.health().await;
            warn(&format!("{}; what comes waits until it is there", health.message));
            match self.store.opened().await {
                Ok(_) => output.note("the store is open now"),
                Err(refused) => return refused.into(),
            }
        }
        self.watch_upkeep().await;
        std::future::pending().await
    }

    /// Never ends.
    async fn watch_upkeep(&self) {
        let mut before = None;
        let mut looks = interval(HEALTH_INTERVAL);
        loop {
            looks.tick().await;
            let now = self.upkeep_counts().last_error;
            if let Some(error) = now.as_ref().filter(|_| now != before) {
                warn(&format!("rollups and old samples have to wait: {error}; tried again later"));
            }
            before = now;
        }
    }

    fn upkeep_counts(&self) -> RetentionCounts {
        let upkeep = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        upkeep.as_ref().map(RetentionTask::counts).unwrap_or_default()
    }

    /// Ends the upkeep, and returns what it did.
    pub(super) async fn stop_upkeep(&self, within: Duration) -> RetentionCounts {
        let upkeep = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner).take();
        match upkeep {
            Some(upkeep) => upkeep.stop_within(within).await,
            None => RetentionCounts::default(),
        }
    }
}

/// Opens the store with what is beside it, and begins its upkeep.
async fn open(config: StorageConfig, slot: Slot) -> storage::Result<Arc<dyn StorageBackend>> {
    let Some(upkeep) = config.upkeep()? else { return config.connect().await };
    let store = Arc::new(config.connect_rolled(&upkeep).await?);
    let Upkeep { policy, refresh_interval, retention_interval, .. } = upkeep;
    let task = RetentionTask::start(&store, policy, refresh_interval, retention_interval);
    slot.lock().unwrap_or_else(PoisonError::into_inner).replace(task);
    Ok(store)
}
