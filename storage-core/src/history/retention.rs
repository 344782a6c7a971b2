//! A task that removes what is old, again and again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::backend::RecordHistory;
use crate::error::{Error, Result};
use crate::metrics::time::before;
use crate::repeated::{Counted, Counts, Repeated, Stop};

/// How long values are kept, and how often what is older is removed.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use storage_core::history::{RecordHistoryExt, Retention};
/// use storage_core::{InMemory, RecordHistory};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let history: Arc<dyn RecordHistory> = Arc::new(InMemory::new().history());
/// let week = Duration::from_secs(7 * 86_400);
/// history.store("a", chrono::Utc::now() - 2 * week, &1).await?;
/// let task = Retention::keep(week)?.start(&history);
/// while task.counts().runs == 0 {
///     tokio::task::yield_now().await;
/// }
/// assert_eq!(task.stop().await.removed, 1);
/// # Ok(()) }
/// ```
pub struct Retention {
    keep: Duration,
    interval: Duration,
    clock: Box<dyn Fn() -> DateTime<Utc> + Send>,
}

impl std::fmt::Debug for Retention {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { keep, interval, .. } = self;
        f.debug_struct("Retention").field("keep", keep).field("interval", interval).finish()
    }
}

/// What a retention task did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RetentionCounts {
    /// Cleanups that were done.
    pub runs: u64,
    /// Values that they removed.
    pub removed: u64,
    /// Cleanups that failed.
    pub failures: u64,
    /// Why the last that failed did.
    pub last_error: Option<String>,
}

impl Counted for RetentionCounts {
    fn failures(&mut self) -> (&mut u64, &mut Option<String>) {
        (&mut self.failures, &mut self.last_error)
    }
}

impl Retention {
    /// Keeps values for `keep`, and removes what is older once an hour.
    ///
    /// # Errors
    /// `InvalidArgument` if `keep` is zero: that would remove everything.
    pub fn keep(keep: Duration) -> Result<Self> {
        if keep.is_zero() {
            return Err(
                Error::invalid("values must be kept for some time").with_context("field", "keep")
            );
        }
        Ok(Self { keep, interval: Duration::from_secs(3600), clock: Box::new(Utc::now) })
    }

    /// How often what is old is removed, at least a millisecond. Default: once an hour.
    #[must_use]
    pub fn every(mut self, interval: Duration) -> Self {
        self.interval = interval.max(Duration::from_millis(1));
        self
    }

    /// Says what time it is. Default: the clock of the machine.
    #[must_use]
    pub fn clock(mut self, clock: impl Fn() -> DateTime<Utc> + Send + 'static) -> Self {
        self.clock = Box::new(clock);
        self
    }

    /// Starts the task on the current Tokio runtime: a cleanup at once, then one after each
    /// interval. One that fails is counted, logged and followed by the next. It ends when it is
    /// stopped, when the store is closed, or when nobody else holds the history any more.
    pub fn start(self, history: &Arc<dyn RecordHistory>) -> RetentionTask {
        let history = Arc::downgrade(history);
        RetentionTask(Repeated::start(|counts, stop| run(self, history, counts, stop)))
    }
}

/// A task that removes what is old. Dropping it stops it before the next cleanup.
#[derive(Debug)]
pub struct RetentionTask(Repeated<RetentionCounts>);

impl RetentionTask {
    /// What it did so far.
    pub fn counts(&self) -> RetentionCounts {
        self.0.counts()
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits for the cleanup under way, if there is one, and ends.
    pub async fn stop(self) -> RetentionCounts {
        self.0.stop_within(Duration::MAX).await
    }
}

async fn run(
    retention: Retention,
    history: Weak<dyn RecordHistory>,
    counts: Counts<RetentionCounts>,
    mut stop: Stop,
) {
    while let Some(history) = history.upgrade() {
        let cutoff = before((retention.clock)(), retention.keep);
        let cleaned = history.cleanup(cutoff).await;
        drop(history);
        match cleaned {
            Ok(removed) => {
                let mut counts = counts.lock();
                counts.runs += 1;
                counts.removed += removed;
            }
            Err(error) => {
                if counts.note_failure("a cleanup", &error) {
                    return;
                }
            }
        }
        if tokio::time::timeout(retention.interval, stop.wait()).await.is_ok() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::RecordHistoryExt;
    use crate::metrics::time::from_ms;
    use crate::{ErrorKind, InMemory};
    use std::sync::atomic::{AtomicI64, Ordering};

    const HOUR: Duration = Duration::from_secs(3600);
    const HOUR_MS: i64 = 3_600_000;

    /// A clock that stands until it is set.
    fn clock(now_ms: &Arc<AtomicI64>) -> impl Fn() -> DateTime<Utc> + Send + 'static {
        let now_ms = Arc::clone(now_ms);
        move || from_ms(now_ms.load(Ordering::SeqCst))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_old_goes_by_the_clock_that_was_given() {
        let store = InMemory::new();
        let history: Arc<dyn RecordHistory> = Arc::new(store.history());
        for hour in 0..10 {
            history.store("a", from_ms(hour * HOUR_MS), &hour).await.unwrap();
        }
        let now_ms = Arc::new(AtomicI64::new(3 * HOUR_MS));
        let retention = Retention::keep(HOUR).unwrap().every(HOUR).clock(clock(&now_ms));
        let task = retention.start(&history);
        tokio::time::sleep(HOUR / 2).await;
        assert_eq!(task.counts().removed, 2, "a value at the cutoff stays");
        now_ms.store(5 * HOUR_MS, Ordering::SeqCst);
        tokio::time::sleep(HOUR / 4).await;
        assert_eq!(task.counts().removed, 2, "not before the interval is over");
        tokio::time::sleep(HOUR).await;
        assert_eq!((task.counts().runs, task.counts().removed), (2, 4));
        assert_eq!(task.stop().await.failures, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_with_the_store_or_the_last_handle() {
        let store = InMemory::new();
        let history: Arc<dyn RecordHistory> = Arc::new(store.history());
        let task = Retention::keep(HOUR).unwrap().start(&history);
        tokio::time::sleep(HOUR / 2).await;
        drop(history);
        tokio::time::sleep(HOUR).await;
        assert!(task.is_finished() && task.counts().failures == 0);

        let history: Arc<dyn RecordHistory> = Arc::new(store.history());
        let task = Retention::keep(HOUR).unwrap().start(&history);
        crate::StorageBackend::close(&store).await.unwrap();
        tokio::time::sleep(2 * HOUR).await;
        assert!(task.is_finished() && task.counts().failures == 1);
    }

    #[test]
    fn keeping_nothing_is_refused() {
        let error = Retention::keep(Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}
