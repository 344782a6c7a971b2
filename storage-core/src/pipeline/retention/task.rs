//! A task that rolls up and applies a policy, again and again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{RetentionPolicy, RetentionReport};
use crate::deadline::after;
use crate::error::{ErrorKind, Result};
use crate::pipeline::rollup::Rolled;
use crate::repeated::{Counted, Counts, Repeated, Stop};

/// What the task of a policy did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RetentionCounts {
    /// How often it rolled up.
    pub refreshes: u64,
    /// Rollups that are new or changed.
    pub rollups_written: u64,
    /// How often it applied the policy.
    pub runs: u64,
    /// How often it did not, because another process had done it or was at it.
    pub skipped: u64,
    /// Samples that it removed.
    pub samples_removed: u64,
    /// Rollups that it removed.
    pub rollups_removed: u64,
    /// By how many bytes the stores became smaller. A backend may give space back later.
    pub bytes_freed: u64,
    /// How often it failed.
    pub failures: u64,
    /// Why it failed the last time; `None` if what failed has worked since.
    pub last_error: Option<String>,
}

impl Counted for RetentionCounts {
    fn failures(&mut self) -> (&mut u64, &mut Option<String>) {
        (&mut self.failures, &mut self.last_error)
    }
}

/// A task that rolls up and applies a policy, again and again. Dropping it stops it before it begins
/// the next time.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use storage_core::pipeline::{RetentionPolicy, RetentionTask, Rolled, RollupTier};
/// use storage_core::{InMemory, StorageBackend, StorageBackendExt};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let memory = || Arc::new(InMemory::new());
/// let (day, week) = (Duration::from_secs(86_400), Duration::from_secs(7 * 86_400));
/// let tiers = vec![RollupTier::new(day, memory())];
/// let store = Arc::new(Rolled::open(memory(), tiers, memory()).await?);
/// store.write("web-1", "cpu", chrono::Utc::now() - 3 * week, 1.0).await?;
///
/// let policy = RetentionPolicy::default().keep_samples(week)?;
/// let task = RetentionTask::start(&store, policy, Duration::from_secs(60), day);
/// while task.counts().runs == 0 {
///     tokio::time::sleep(Duration::from_millis(5)).await;
/// }
/// assert_eq!(task.stop().await.samples_removed, 1);
/// assert_eq!(store.tiers()[0].store().stats().await?.series, 1);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct RetentionTask(Repeated<RetentionCounts>);

impl RetentionTask {
    /// Starts it on the current Tokio runtime: at once, then rolls up every `refresh_interval` and
    /// applies `policy` every `retention_interval`, both at least a millisecond.
    ///
    /// Any number of processes may run one on the same stores: one at a time does something, and a
    /// policy is applied once in an interval by all of them together. What fails is counted, logged
    /// and tried again. It ends when it is stopped, when the store is closed, or when
    /// nobody else holds the store any more.
    pub fn start(
        store: &Arc<Rolled>,
        policy: RetentionPolicy,
        refresh_interval: Duration,
        retention_interval: Duration,
    ) -> Self {
        let at_least = Duration::from_millis(1);
        let retention_interval = retention_interval.max(at_least);
        let store = Arc::downgrade(store);
        Self(Repeated::start(|counts, stop| {
            let work = Work { store, policy, retention_interval, counts };
            work.run(refresh_interval.max(at_least), stop)
        }))
    }

    /// What it did so far.
    pub fn counts(&self) -> RetentionCounts {
        self.0.counts()
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits for what is under way, if anything is, and ends.
    pub async fn stop(self) -> RetentionCounts {
        self.stop_within(Duration::MAX).await
    }

    /// Waits for what is under way for so long, then breaks it off, and ends. What was broken off
    /// is finished the next time; until its lease has run out others wait.
    pub async fn stop_within(self, time_max: Duration) -> RetentionCounts {
        self.0.stop_within(time_max).await
    }
}

struct Work {
    store: Weak<Rolled>,
    policy: RetentionPolicy,
    retention_interval: Duration,
    counts: Counts<RetentionCounts>,
}

impl Work {
    async fn run(self, refresh_interval: Duration, mut stop: Stop) {
        let mut refreshes = interval(refresh_interval.min(self.retention_interval));
        refreshes.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut due = Instant::now();
        // What retention failed with and has not made good.
        let mut behind = None;
        loop {
            tokio::select! {
                () = stop.wait() => return,
                _ = refreshes.tick() => {}
            }
            let Some(store) = self.store.upgrade() else { return };
            let refreshed = self.refresh(&store).await;
            if self.note(&refreshed, &behind) {
                return;
            }
            if refreshed.is_err() || Instant::now() < due {
                continue;
            }
            let retained = self.retain(&store).await;
            due = after(Instant::now(), self.retention_interval);
            let is_busy = retained.as_ref().is_err_and(|error| error.kind() == ErrorKind::Busy);
            if !is_busy {
                behind = None;
            }
            if self.note(&retained, &behind) {
                return;
            }
            if !is_busy {
                behind.clone_from(&self.counts.lock().last_error);
            }
        }
    }

    async fn refresh(&self, store: &Rolled) -> Result<()> {
        let report = store.refresh().await?;
        let mut counts = self.counts.lock();
        counts.refreshes += 1;
        counts.rollups_written += report.rollups_written;
        Ok(())
    }

    async fn retain(&self, store: &Rolled) -> Result<()> {
        let report = store.retain_if_due(&self.policy, self.retention_interval).await?;
        let mut counts = self.counts.lock();
        match report {
            None => counts.skipped += 1,
            Some(RetentionReport { entries }) => {
                counts.runs += 1;
                for entry in entries {
                    counts.bytes_freed += entry.bytes_freed;
                    match entry.width {
                        None => counts.samples_removed += entry.rows_removed,
                        Some(_) => counts.rollups_removed += entry.rows_removed,
                    }
                }
            }
        }
        Ok(())
    }

    /// Counts a failure; whether it is one to end with. After a success what is told is what retention is
    /// `behind` with.
    fn note(&self, result: &Result<()>, behind: &Option<String>) -> bool {
        self.counts.lock().last_error.clone_from(behind);
        let Err(error) = result else { return false };
        if error.kind() == ErrorKind::Busy {
            self.counts.lock().skipped += 1;
            return false;
        }
        self.counts.note_failure("rolling up or retention", error)
    }
}
