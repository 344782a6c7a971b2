//! The store of `storage run`, which may be away when it starts, and what keeps it up once it is open.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Error, Result};
use storage::compose::Tiered;
use storage::config::{StorageConfig, Upkeep};
use storage::layers::Deferred;
use storage::pipeline::{ArchiveCounts, ArchiveTask, RetentionCounts, RetentionTask, Rolled};
use storage::{HealthStatus, StorageBackend};
use tokio::time::interval;

use super::HEALTH_INTERVAL;
use crate::output::{Output, warn};
use crate::store::{is_mirrored, warn_if_degraded};

/// How often both stores of a mirror are asked how they are.
const MIRROR_INTERVAL: Duration = Duration::from_secs(10);

/// What keeps the store up, once it is open, if there is anything to do.
#[derive(Default)]
struct Tasks {
    /// Rolls up and prunes.
    retention: Option<RetentionTask>,
    archive: Option<ArchiveTask>,
}

impl Tasks {
    /// Names the tasks that have ended, which they do by a defect alone, and were not named before.
    fn newly_ended(&self, named: &mut [bool; 2]) -> Vec<&'static str> {
        let ended = [
            (
                "rollups and pruning",
                self.retention.as_ref().is_some_and(RetentionTask::is_finished),
            ),
            ("archiving", self.archive.as_ref().is_some_and(ArchiveTask::is_finished)),
        ];
        let news = ended.into_iter().zip(named).filter_map(|((what, ended), named)| {
            (ended && !std::mem::replace(named, ended)).then_some(what)
        });
        news.collect()
    }
}

/// What the tasks did.
#[derive(Default)]
pub(super) struct UpkeepCounts {
    pub(super) retention: RetentionCounts,
    pub(super) archive: ArchiveCounts,
}

type Slot = Arc<Mutex<Tasks>>;

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
        let (mut before, mut ended) = ([None, None], [false; 2]);
        let mut looks = interval(HEALTH_INTERVAL);
        loop {
            looks.tick().await;
            let UpkeepCounts { retention, archive } = self.upkeep_counts();
            for what in self.tasks().newly_ended(&mut ended) {
                warn(&format!("{what} broke off, and goes on when this is started again"));
            }
            let now = [retention.last_error, archive.last_error];
            for (work, error, before) in [
                ("rollups and old samples have to wait", &now[0], &before[0]),
                ("what is to be archived has to wait", &now[1], &before[1]),
            ] {
                if let Some(error) = error.as_ref().filter(|_| error != before) {
                    warn(&format!("{work}: {error}; tried again later"));
                }
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

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.upkeep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn upkeep_counts(&self) -> UpkeepCounts {
        let tasks = self.tasks();
        UpkeepCounts {
            retention: tasks.retention.as_ref().map(RetentionTask::counts).unwrap_or_default(),
            archive: tasks.archive.as_ref().map(ArchiveTask::counts).unwrap_or_default(),
        }
    }

    /// Ends the upkeep, and returns what it did.
    pub(super) async fn stop_upkeep(&self, within: Duration) -> UpkeepCounts {
        let tasks = std::mem::take(&mut *self.tasks());
        let retention = async {
            match tasks.retention {
                Some(task) => task.stop_within(within).await,
                None => RetentionCounts::default(),
            }
        };
        let archive = async {
            match tasks.archive {
                Some(task) => task.stop_within(within).await,
                None => ArchiveCounts::default(),
            }
        };
        let (retention, archive) = tokio::join!(retention, archive);
        UpkeepCounts { retention, archive }
    }
}

/// Opens the store with what is beside it, and begins its upkeep.
async fn open(config: StorageConfig, slot: Slot) -> storage::Result<Arc<dyn StorageBackend>> {
    let tiers = config.connect_tiered().await?;
    let mut tasks = Tasks::default();
    let store = match (config.upkeep()?, &tiers) {
        (None, None) => config.connect().await?,
        (None, Some(tiers)) => Arc::<Tiered>::clone(tiers),
        (Some(upkeep), _) => {
            let rolled = match &tiers {
                Some(tiers) => config.connect_rolled_over(Arc::clone(tiers), &upkeep).await?,
                None => config.connect_rolled(&upkeep).await?,
            };
            let rolled = Arc::new(rolled);
            tasks.retention = Some(keep_up(&rolled, upkeep));
            rolled
        }
    };
    if let (Some(archive), Some(tiers)) = (&config.archive, &tiers) {
        tasks.archive = Some(ArchiveTask::start(tiers, archive.policy(), archive.interval.0));
    }
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = tasks;
    Ok(store)
}

fn keep_up(store: &Arc<Rolled>, upkeep: Upkeep) -> RetentionTask {
    let Upkeep { policy, refresh_interval, retention_interval, .. } = upkeep;
    RetentionTask::start(store, policy, refresh_interval, retention_interval)
}

#[cfg(test)]
mod tests {
    use storage::InMemory;
    use storage::pipeline::{RetentionPolicy, RollupOptions, RollupTier};
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_broke_off_is_named_once() {
        let memory = || Arc::new(InMemory::new());
        let broken = RollupOptions::default().with_clock(|| panic!("a defect"));
        let tiers = vec![RollupTier::new(Duration::from_secs(3600), memory())];
        let store = Rolled::open_with(memory(), tiers, memory(), broken).await.unwrap();
        let (store, minute) = (Arc::new(store), Duration::from_secs(60));
        let policy = RetentionPolicy::default();
        let task = RetentionTask::start(&store, policy, minute, minute);
        let (tasks, mut named) = (Tasks { retention: Some(task), archive: None }, [false; 2]);
        assert!(tasks.newly_ended(&mut named).is_empty());
        sleep(minute).await;
        assert_eq!(tasks.newly_ended(&mut named), ["rollups and pruning"]);
        assert!(tasks.newly_ended(&mut named).is_empty());
    }
}
