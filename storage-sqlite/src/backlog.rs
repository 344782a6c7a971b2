//! Rows of the journal that this handle has committed and the head does not have yet.
//!
//! They wait for a moment in which it costs nobody time: while the next commit waits for the disk, or
//! until somebody asks or looks whether to seal. No answer depends on it, because whoever reads finds
//! them in the journal; sealing and the bound of what is unsealed lag by one commit.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use crate::codec::frame::Entry;
use crate::maintenance::is_seal_due;
use crate::store::Store;

/// More samples than these go into the head at once, on a thread of their own: the next commit would
/// take longer for them than for its sync.
const WAITING_MAX: usize = 2048;

/// Committed rows in the order of their ids.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    waiting: Mutex<Waiting>,
    /// Held by whoever puts rows into the head, which gets them in their order.
    applying: Mutex<()>,
}

#[derive(Debug, Default)]
struct Waiting {
    rows: Vec<(i64, Vec<Entry>)>,
    /// The last row that ever waited here.
    last_id: i64,
}

impl Backlog {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Takes committed rows, which follow each other. Returns whether it did: not if other processes
    /// have committed rows before them that this handle has not seen.
    pub(crate) fn put_off(self: &Arc<Self>, rows: Vec<(i64, Vec<Entry>)>) -> bool {
        let Some((first_id, last_id)) = rows.first().zip(rows.last()).map(|(a, b)| (a.0, b.0))
        else {
            return true;
        };
        let samples = {
            let mut waiting = self.backlog.waiting();
            if first_id > self.head().applied_id().max(waiting.last_id) + 1 {
                return false;
            }
            waiting.last_id = last_id;
            waiting.rows.extend(rows);
            waiting.rows.iter().map(|(_, entries)| entries.len()).sum::<usize>()
        };
        if samples > WAITING_MAX {
            let store = Arc::clone(self);
            self.runtime.spawn_blocking(move || {
                store.apply_backlog();
                if is_seal_due(&store) {
                    store.seal_due.notify_one();
                }
            });
        }
        true
    }

    /// Puts into the head what waits, unless somebody else is about it.
    pub(crate) fn apply_backlog(&self) {
        let _applying = match self.backlog.applying.try_lock() {
            Ok(applying) => applying,
            Err(TryLockError::Poisoned(applying)) => applying.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let rows = std::mem::take(&mut self.backlog.waiting().rows);
        if !rows.is_empty() {
            let mut head = self.head_mut();
            for (id, entries) in rows {
                // One is missing only where somebody panicked; the next question reads the journal.
                if id <= head.applied_id() + 1 {
                    head.apply(id, entries);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use storage_core::metrics::time::from_ms;
    use storage_core::{MetricRecord, Result, StorageBackend, TimeRange};
    use tokio::time::timeout;

    use crate::{SqliteBackend, SqliteOptions};

    fn samples(ms: i64, value: f64, count: i64) -> Vec<MetricRecord> {
        let one = |ms| MetricRecord::new("server", from_ms(ms), "m", value);
        (ms..ms + count).map(one).collect()
    }

    /// Waits until something is sealed, as another handle sees it, so that nobody asks the one that seals.
    async fn sealed(other: &SqliteBackend) -> Result<()> {
        while other.store.catch_up().await?.sealed_id == 0 {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    #[tokio::test]
    async fn rows_wait_until_somebody_asks_or_the_next_commit() -> Result<()> {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let store = SqliteBackend::open(SqliteOptions::new(dir.path().join("one.db"))).await?;
        store.write_batch(&samples(0, 1.0, 10)).await?;
        assert_eq!(store.store.head().samples(), 0);
        store.write_batch(&samples(5, 2.0, 10)).await?;
        assert_eq!(store.store.head().samples(), 10);
        let found = store.query_range("server", "m", TimeRange::all()).await?;
        assert_eq!(store.store.head().samples(), 20);
        assert_eq!((found.len(), found[4].value, found[5].value), (15, 1.0, 2.0));
        store.close().await
    }

    #[tokio::test]
    async fn many_rows_do_not_wait() -> Result<()> {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let store = SqliteBackend::open(SqliteOptions::new(dir.path().join("many.db"))).await?;
        let count = super::WAITING_MAX as i64 + 1;
        store.write_batch(&samples(0, 1.0, count)).await?;
        let applied = async {
            while store.store.head().samples() < super::WAITING_MAX {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), applied).await.expect("nobody asks, it is applied");
        store.close().await
    }

    #[tokio::test]
    async fn many_rows_are_sealed_though_nobody_asks() -> Result<()> {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let options = SqliteOptions::new(dir.path().join("due.db")).seal_samples(1000);
        let other = SqliteBackend::open(options.clone()).await?;
        let store = SqliteBackend::open(options).await?;
        store.write_batch(&samples(0, 1.0, super::WAITING_MAX as i64 + 1)).await?;
        // Earlier than the age of samples is looked at.
        let sealed = sealed(&other);
        timeout(Duration::from_secs(5), sealed).await.expect("it is sealed at once")?;
        store.close().await
    }

    /// Rows of another handle are never passed over, whichever commits first.
    #[tokio::test]
    async fn two_handles_see_each_others_rows_in_their_order() -> Result<()> {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let options = SqliteOptions::new(dir.path().join("two.db"));
        let handles =
            [SqliteBackend::open(options.clone()).await?, SqliteBackend::open(options).await?];
        let mut random = fastrand::Rng::with_seed(7);
        let mut last = [0.0; 20];
        for round in 1..400 {
            let (value, ms) = (f64::from(round), random.i64(0..15));
            handles[random.usize(..2)].write_batch(&samples(ms, value, 5)).await?;
            last[ms as usize..ms as usize + 5].fill(value);
            if random.u8(..4) == 0 {
                let asked = &handles[random.usize(..2)];
                let found = asked.query_range("server", "m", TimeRange::all()).await?;
                let expected = last.iter().copied().filter(|value| *value > 0.0);
                assert!(found.iter().map(|record| record.value).eq(expected), "in round {round}");
            }
        }
        Ok(())
    }

    #[tokio::test]
    async fn rows_that_nobody_asks_for_are_sealed_when_they_are_old() -> Result<()> {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let options = SqliteOptions::new(dir.path().join("old.db"));
        let other = SqliteBackend::open(options.clone()).await?;
        let store = SqliteBackend::open(options.seal_after(Duration::from_millis(20))).await?;
        store.write_batch(&samples(0, 1.0, 10)).await?;
        let sealed = sealed(&other);
        timeout(Duration::from_secs(10), sealed).await.expect("it is sealed by age")?;
        store.close().await
    }
}
