//! Whatever takes samples out of a tier: the steps of a move, a prune, and what a process that
//! died left undone.
//!
//! Each step is published before it is done, and each can be done again.

use std::cmp::Ordering;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::time::{Instant, sleep};

use super::Tiers;
use super::view::{Phase, View};
use crate::control::Lease;
use crate::deadline::after;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::metrics::time::{END_MS, MIN_MS, floor_ms, from_ms};
use crate::metrics::{SeriesFilter, StorageBackend, TimeRange};
use crate::pipeline::cursor::Pair;
use crate::pipeline::{CopyOptions, CopyProgress, compare, copy};

/// How often late samples are fetched again before a move gives up.
const ATTEMPTS_MAX: u32 = 3;

/// The right to move samples of two tiers, taken.
pub(crate) struct Moving {
    tiers: Arc<Tiers>,
    lease: Lease,
    view: View,
}

impl std::fmt::Debug for Moving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Moving").field("view", &self.view).finish_non_exhaustive()
    }
}

impl Moving {
    /// Waits for its turn, and finishes what others left undone.
    pub(super) async fn begin(tiers: Arc<Tiers>) -> Result<Self> {
        let deadline = after(Instant::now(), tiers.options.wait_max);
        let lease = tiers.control.acquire(deadline).await?;
        let view = tiers.control.view().await?;
        let mut moving = Self { tiers, lease, view };
        moving.finish_left().await?;
        Ok(moving)
    }

    /// The tier from which samples are moved.
    pub(crate) fn hot(&self) -> Arc<dyn StorageBackend> {
        Arc::clone(&self.tiers.hot)
    }

    /// When everything that was old enough had been archived; `None` if nobody has noted that yet.
    pub(crate) fn archived(&self) -> Option<DateTime<Utc>> {
        self.view.archived_ms.map(from_ms)
    }

    /// Notes that at this time everything that was old enough had been archived.
    pub(crate) async fn note_archived(&mut self, now: DateTime<Utc>) -> Result<()> {
        let view = View { archived_ms: Some(floor_ms(now)), ..self.view };
        self.put(View { generation: view.generation + 1, ..view }).await
    }

    /// Copies everything before `cutoff` to the cold tier, verified; the hot one keeps it.
    pub(crate) async fn copy(
        &mut self,
        cutoff_ms: i64,
        options: &CopyOptions,
        observe: impl FnMut(&CopyProgress) + Send,
    ) -> Result<()> {
        self.turn(Phase::Copying, cutoff_ms).await?;
        let tiers = Arc::clone(&self.tiers);
        let options = options.clone().with_range(before(cutoff_ms)?);
        let copying = async {
            match copy(&*tiers.hot, &*tiers.cold, &options, observe).await {
                // Samples that are replaced all the time are copied when nobody writes them.
                Err(error) if error.kind() == ErrorKind::Busy => {}
                result => drop(result?),
            }
            tiers.cold.flush().await
        };
        self.lease.keeping(copying).await
    }

    /// Keeps late writes out, and sees to it that the cold tier holds everything before the
    /// cutoff, with what came late; returns how many samples that are.
    pub(crate) async fn close(&mut self) -> Result<u64> {
        let cutoff_ms = self.view.cutoff_ms;
        self.turn(Phase::Closing, cutoff_ms).await?;
        let tiers = Arc::clone(&self.tiers);
        let closing = async {
            // For writes that began before they could know.
            sleep(tiers.options.settle).await;
            let (any, range) = (SeriesFilter::any(), before(cutoff_ms)?);
            for _ in 0..ATTEMPTS_MAX {
                let found = compare(&*tiers.hot, &*tiers.cold, &any, range).await?;
                if found.holds_source() {
                    return Ok(found.source.samples);
                }
                let options = CopyOptions::default().with_range(range);
                copy(&*tiers.hot, &*tiers.cold, &options, |_| {}).await?;
                tiers.cold.flush().await?;
            }
            Err(Error::new(ErrorKind::Busy, "late samples keep coming although they are kept out"))
        };
        self.lease.keeping(closing).await
    }

    /// From here on the cold tier's samples before the cutoff count, and not the hot one's.
    pub(crate) async fn publish(&mut self) -> Result<()> {
        self.turn(Phase::Moving, self.view.cutoff_ms).await
    }

    /// Removes from the hot tier what was moved, lets late writes in again, and returns how many
    /// samples were removed.
    pub(crate) async fn prune_hot(&mut self) -> Result<u64> {
        let (tiers, cutoff) = (Arc::clone(&self.tiers), from_ms(self.view.cutoff_ms));
        let removed = self.lease.keeping(tiers.hot.prune_before(cutoff)).await?;
        self.turn(Phase::Idle, MIN_MS).await?;
        Ok(removed)
    }

    /// Ends a turn, after success or failure.
    pub(crate) async fn end(mut self) -> Result<()> {
        self.finish_left().await?;
        self.tiers.control.clear_up(END_MS).await?;
        self.lease.release().await
    }

    /// Does again what a phase that is not over was to do.
    async fn finish_left(&mut self) -> Result<()> {
        let (tiers, cutoff) = (Arc::clone(&self.tiers), from_ms(self.view.cutoff_ms));
        match self.view.phase {
            Phase::Idle => return Ok(()),
            // The copy is in the cold tier, the originals in the hot one: nothing to undo.
            Phase::Copying | Phase::Closing => {}
            Phase::Moving => {
                self.lease.keeping(tiers.hot.prune_before(cutoff)).await?;
            }
            Phase::Pruning => {
                self.lease.keeping(tiers.cold.prune_before(cutoff)).await?;
                self.lease.keeping(tiers.hot.prune_before(cutoff)).await?;
            }
        }
        self.turn(Phase::Idle, MIN_MS).await
    }

    async fn turn(&mut self, phase: Phase, cutoff_ms: i64) -> Result<()> {
        let settle_ms = u64::try_from(self.tiers.options.settle.as_millis()).unwrap_or(u64::MAX);
        self.put(self.view.turned(phase, cutoff_ms, settle_ms)).await
    }

    async fn put(&mut self, view: View) -> Result<()> {
        self.lease.keep().await?;
        self.tiers.control.advance(&mut self.view, view).await
    }
}

/// Finishes what a process that died left undone, if its turn has run out by `deadline`.
pub(super) async fn clear_up(tiers: &Arc<Tiers>, deadline: Instant) -> Result<()> {
    let lease = match tiers.control.acquire(deadline).await {
        Err(error) if error.kind() == ErrorKind::Busy => return Ok(()),
        result => result?,
    };
    let view = tiers.control.view().await?;
    Moving { tiers: Arc::clone(tiers), lease, view }.end().await
}

/// Removes every sample before the cutoff from both tiers, and returns how many there were.
pub(super) async fn prune(tiers: &Arc<Tiers>, cutoff_ms: i64) -> Result<u64> {
    let cutoff = from_ms(cutoff_ms);
    let mut turn = Moving::begin(Arc::clone(tiers)).await?;
    let unsure = |error: Error| error.with_outcome(Outcome::Unknown);
    turn.turn(Phase::Pruning, cutoff_ms).await?;
    let removing = async {
        let doubles = count_doubles(tiers, cutoff_ms).await?;
        // The cold tier first: what lies over its samples must not go before them.
        let cold = tiers.cold.prune_before(cutoff).await.map_err(unsure)?;
        let hot = tiers.hot.prune_before(cutoff).await.map_err(unsure)?;
        Ok((cold + hot).saturating_sub(doubles))
    };
    let removed = turn.lease.keeping(removing).await;
    if removed.is_err() {
        // What was removed is gone and the rest shows again: as of any prune that failed.
        let _ = turn.turn(Phase::Idle, MIN_MS).await;
        let _ = turn.lease.release().await;
        return removed;
    }
    turn.turn(Phase::Idle, MIN_MS).await.map_err(unsure)?;
    turn.lease.release().await.map_err(unsure)?;
    removed
}

/// Counts the samples before a cutoff that both tiers hold.
async fn count_doubles(tiers: &Tiers, cutoff_ms: i64) -> Result<u64> {
    let (hot, cold) = futures_util::join!(tiers.hot.stats(), tiers.cold.stats());
    let (Some(oldest), Some(newest)) = (hot?.oldest_metric, cold?.newest_metric) else {
        return Ok(0);
    };
    let end_ms = cutoff_ms.min(floor_ms(newest) + 1);
    if floor_ms(oldest) >= end_ms {
        return Ok(0);
    }
    let (any, range) = (SeriesFilter::any(), TimeRange::new(oldest, from_ms(end_ms))?);
    let mut pair = Pair::new(tiers.cold.scan(&any, range), tiers.hot.scan(&any, range));
    let mut doubles = 0;
    while let Some(which) = pair.next().await? {
        doubles += u64::from(which == Ordering::Equal);
        pair.advance(which);
    }
    Ok(doubles)
}

fn before(cutoff_ms: i64) -> Result<TimeRange> {
    TimeRange::new(from_ms(MIN_MS), from_ms(cutoff_ms))
}
