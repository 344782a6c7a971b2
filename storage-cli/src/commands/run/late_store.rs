//! The store of `storage run`, which may be away when it starts, and what keeps it up once it is open.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Error, Result};
use storage::config::{StorageConfig, Upkeep};
use storage::layers::Deferred;
use storage::pipeline::{RetentionCounts, RetentionTask};
use storage::{HealthStatus, StorageBackend};
use tokio::time::interval;

use super::HEALTH_INTERVAL;
use crate::output::{Output, warn};
use crate::store::{is_mirrored, warn_if_degraded};

/// How often both stores of a mirror are asked how they are.
const MIRROR_INTERVAL: Duration = Duration::from_secs(10);

/// The task that rolls up and prunes, once the store is open, if there is anything to do.
type Slot = Arc<Mutex<Option<RetentionTask>>>;

/// A store that is opened as soon as it can be.
pub(super) struct LateStore {
    store: Arc<Deferred<Arc<dyn StorageBackend>>>,
    upkeep: Slot,
    /// Whether writes may succeed that only one of two stores has.
    is_mirrored: bool,
}

impl LateStore {
    /// Opens the store, or begins to try. What will not pass is an error.
    pub(super) async fn open(config: &StorageConfig) -> Result<Self> {
        let is_mirrored = is_mirrored(&config.url()?);
        let (config, upkeep) = (config.clone(), Slot::default());
        let slot = Arc::clone(&upkeep);
        let store = Deferred::open(move || open(config.clone(), Arc::clone(&slot))).await?;
        Ok(Self { store: Arc::new(store), upkeep, is_mirrored })
    }

    pub(super) fn backend(&self) -> Arc<dyn StorageBackend> {
        Arc::<Deferred<_>>::clone(&self.store)
    }

    /// Says that the store is awaited, when it is there, and when its upkeep or the second store of a mirror
    /// begins to fail. Ends when it turns out that the store will never be opened, with the reason.
    pub(super) async fn watch(&self, output: &Output) -> Error {
        if self.store.get().is_none() {
            let health = self.store.health().await;
            warn(&format!("{}; what comes waits until it is there", health.message));
            match self.store.opened().await {
                Ok(_) => output.note("the store is open now"),
                Err(refused) => return refused.into(),
            }
        }
        tokio::join!(self.watch_upkeep(), self.watch_mirror());
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

    async fn watch_mirror(&self) {
        if !self.is_mirrored {
            return;
        }
        let mut before = HealthStatus::Healthy;
        let mut looks = interval(MIRROR_INTERVAL);
        loop {
            looks.tick().await;
            let health = self.store.health().await;
            if health.status != before && health.status != HealthStatus::Healthy {
                warn(&health.message);
            }
            before = health.status;
        }
    }

    /// Says at the end what the second store of a mirror missed: nobody counts it any more then.
    pub(super) async fn warn_of_mirror(&self) {
        if self.is_mirrored {
            warn_if_degraded(&*self.store).await;
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
