//! A task that archives what is older than an age, again and again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::{MissedTickBehavior, interval};

use super::{ArchiveOptions, ArchiveReport, extent_of, move_windows};
use crate::compose::Tiered;
use crate::error::{ErrorKind, Result};
use crate::metrics::time::{before, width_ms};
use crate::repeated::{Counted, Counts, Repeated, Stop, is_due};

/// Which samples are archived: windows that ended longer ago than an age.
///
/// ```
/// use std::time::Duration;
/// use storage_core::pipeline::ArchivePolicy;
///
/// let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(86_400));
/// let policy = ArchivePolicy::after(30 * day).with_window(hour);
/// assert_eq!(policy.age(), 30 * day);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchivePolicy {
    age: Duration,
    window: Option<Duration>,
    samples_per_second: Option<u64>,
}

impl ArchivePolicy {
    /// Archives windows that ended so long ago.
    pub const fn after(age: Duration) -> Self {
        Self { age, window: None, samples_per_second: None }
    }

    /// How much time is moved at once: see [`ArchiveOptions::with_window`]. Default: a day.
    #[must_use]
    pub const fn with_window(mut self, window: Duration) -> Self {
        self.window = Some(window);
        self
    }

    /// Copies at most so many samples a second. Default: no limit.
    #[must_use]
    pub const fn with_samples_per_second(mut self, samples_per_second: u64) -> Self {
        self.samples_per_second = Some(samples_per_second);
        self
    }

    /// How long ago windows ended that are archived.
    pub const fn age(&self) -> Duration {
        self.age
    }

    fn options(&self, now: DateTime<Utc>) -> ArchiveOptions {
        let mut options = ArchiveOptions::before(before(now, self.age));
        if let Some(window) = self.window {
            options = options.with_window(window);
        }
        match self.samples_per_second {
            Some(samples_per_second) => options.with_samples_per_second(samples_per_second),
            None => options,
        }
    }
}

/// What the task of a policy did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ArchiveCounts {
    /// How often it looked for what is old enough, and moved it if there was anything.
    pub runs: u64,
    /// How often it did not, because another process had done it or was at it.
    pub skipped: u64,
    /// Windows that it moved.
    pub windows: u64,
    /// Samples that it moved.
    pub samples: u64,
    /// How often it failed.
    pub failures: u64,
    /// Why it failed the last time; `None` if it worked since.
    pub last_error: Option<String>,
}

impl Counted for ArchiveCounts {
    fn failures(&mut self) -> (&mut u64, &mut Option<String>) {
        (&mut self.failures, &mut self.last_error)
    }
}

/// A task that archives, again and again. Dropping it stops it before it begins the next window.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use storage_core::compose::Tiered;
/// use storage_core::pipeline::{ArchivePolicy, ArchiveTask};
/// use storage_core::{InMemory, StorageBackend, StorageBackendExt};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let memory = || Arc::new(InMemory::new());
/// let store = Arc::new(Tiered::open(memory(), memory(), memory()).await?);
/// let week = Duration::from_secs(7 * 86_400);
/// store.write("web-1", "cpu", chrono::Utc::now() - 3 * week, 1.0).await?;
///
/// let task = ArchiveTask::start(&store, ArchivePolicy::after(week), Duration::from_secs(3600));
/// while task.counts().runs == 0 {
///     tokio::time::sleep(Duration::from_millis(5)).await;
/// }
/// assert_eq!(task.stop().await.samples, 1);
/// assert_eq!(store.cold().stats().await?.total_metrics, 1);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ArchiveTask(Repeated<ArchiveCounts>);

impl ArchiveTask {
    /// Starts it on the current Tokio runtime: at once, then every `interval`, at least a millisecond.
    ///
    /// Any number of processes may run one on the same tiers: one at a time archives, and once in an
    /// interval all of them together. What fails is counted, logged and tried again the next time; what was
    /// moved until then is moved. It ends when it is stopped, when the store is closed, or
    /// when nobody else holds the store any more.
    pub fn start(store: &Arc<Tiered>, policy: ArchivePolicy, interval: Duration) -> Self {
        let interval = interval.max(Duration::from_millis(1));
        let store = Arc::downgrade(store);
        Self(Repeated::start(|counts, stop| Work { store, policy, interval, counts }.run(stop)))
    }

    /// What it did so far.
    pub fn counts(&self) -> ArchiveCounts {
        self.0.counts()
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits until the window that is being moved is moved, if one is, and ends.
    pub async fn stop(self) -> ArchiveCounts {
        self.stop_within(Duration::MAX).await
    }

    /// Waits for the window that is being moved for so long, then breaks it off, and ends. What was broken
    /// off is finished the next time; until its lease has run out others wait.
    pub async fn stop_within(self, time_max: Duration) -> ArchiveCounts {
        self.0.stop_within(time_max).await
    }
}

struct Work {
    store: Weak<Tiered>,
    policy: ArchivePolicy,
    interval: Duration,
    counts: Counts<ArchiveCounts>,
}

impl Work {
    async fn run(self, mut stop: Stop) {
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = stop.wait() => return,
                _ = ticks.tick() => {}
            }
            let Some(store) = self.store.upgrade() else { return };
            let mut report = ArchiveReport::default();
            let goes_on = || !stop.is_said();
            let result = self.archive_if_due(&store, goes_on, &mut report).await;
            if self.note(result, report) {
                return;
            }
        }
    }

    /// Archives, unless anybody did within the interval; whether it did.
    async fn archive_if_due(
        &self,
        store: &Tiered,
        goes_on: impl Fn() -> bool + Send,
        report: &mut ArchiveReport,
    ) -> Result<bool> {
        let now = store.now();
        let options = self.policy.options(now);
        // Where nothing is old enough nobody has to wait for a turn.
        let Some(extent) = extent_of(store, &options, width_ms(options.window)?).await? else {
            return Ok(true);
        };
        let mut moving = store.begin_move().await?;
        let is_due = moving.archived().is_none_or(|last| is_due(last, now, self.interval));
        let moved = match is_due {
            true => move_windows(&mut moving, extent, &options, goes_on, |_| {}, report).await,
            false => Ok(false),
        };
        let noted = match moved {
            Ok(true) => moving.note_archived(now).await,
            _ => Ok(()),
        };
        let ended = moving.end().await;
        moved.and(noted).and(ended).map(|()| is_due)
    }

    /// Counts what was done, or a failure; whether it is one to end with.
    fn note(&self, result: Result<bool>, report: ArchiveReport) -> bool {
        let mut counts = self.counts.lock();
        counts.windows += report.windows;
        counts.samples += report.samples;
        counts.last_error = None;
        match result {
            Ok(true) => counts.runs += 1,
            Ok(false) => counts.skipped += 1,
            Err(error) if error.kind() == ErrorKind::Busy => counts.skipped += 1,
            Err(error) => {
                drop(counts);
                return self.counts.note_failure("archiving", &error);
            }
        }
        false
    }
}
