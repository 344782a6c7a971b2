//! A turn at the tiers: one handle at a time rolls up or prunes, and finishes first what the dead
//! left.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::time::{Instant, sleep};

use super::view::{Phase, View};
use super::{Place, Stores, marks};
use crate::control::Lease;
use crate::error::{ErrorKind, Result};
use crate::metrics::time::{MIN_MS, floor_ms, from_ms};

/// The right to change rollups, taken.
pub(in crate::pipeline) struct Turn {
    pub(super) stores: Arc<Stores>,
    pub(super) lease: Lease,
    pub(super) view: View,
}

impl Turn {
    /// Waits for its turn until `deadline`, and finishes what others left undone.
    pub(super) async fn begin(stores: &Arc<Stores>, deadline: Instant) -> Result<Self> {
        let lease = stores.control.acquire(deadline).await?;
        let view = stores.control.view().await?;
        let mut turn = Self { stores: Arc::clone(stores), lease, view };
        match turn.finish_left().await {
            Ok(()) => Ok(turn),
            Err(error) => {
                // If that fails too it runs out.
                let _ = turn.lease.release().await;
                Err(error)
            }
        }
    }

    /// Publishes a change of the view.
    pub(super) async fn publish(&mut self, change: impl FnOnce(&mut View)) -> Result<()> {
        self.lease.keep().await?;
        let mut view = self.view.clone();
        change(&mut view);
        view.generation += 1;
        view.note_settle(self.stores.options.settle);
        self.stores.control.advance(&mut self.view, view).await
    }

    /// Waits for writes that began before they could know.
    pub(super) async fn settle(&mut self) -> Result<()> {
        let settle = self.stores.options.settle;
        self.lease
            .keeping(async {
                sleep(settle).await;
                Ok(())
            })
            .await
    }

    /// Ends a turn, after success or failure.
    pub(in crate::pipeline) async fn end(self) -> Result<()> {
        self.lease.release().await
    }

    /// When retention was applied last.
    pub(in crate::pipeline) fn retained(&self) -> DateTime<Utc> {
        from_ms(self.view.retained_ms)
    }

    /// Notes that retention was applied.
    pub(in crate::pipeline) async fn note_retained(&mut self, now: DateTime<Utc>) -> Result<()> {
        self.publish(|view| view.retained_ms = floor_ms(now)).await
    }

    /// Removes what is before the cutoff, and returns how many samples or rollups.
    pub(in crate::pipeline) async fn prune(
        &mut self,
        place: &Place,
        cutoff: DateTime<Utc>,
    ) -> Result<u64> {
        match place.width {
            None => self.prune_raw(floor_ms(cutoff)).await,
            Some(_) => self.prune_tier(place.align_ms, floor_ms(cutoff)).await,
        }
    }

    /// Removes marks that are done with, and leases of the dead.
    pub(super) async fn clear_up(&mut self) -> Result<()> {
        let control = &self.stores.control;
        let left = marks::read(control.store(), self.view.done_epoch).await?;
        control.clear_up(left.oldest_ms).await
    }

    /// Does again what a phase that is not over was to do.
    async fn finish_left(&mut self) -> Result<()> {
        match self.view.phase {
            Phase::Idle => Ok(()),
            // What was announced does not count, and will be announced anew.
            Phase::Closing => self.reopen().await,
            Phase::Folding | Phase::Pruning => self.finish_prune().await.map(drop),
        }
    }

    /// Lets everybody write again.
    pub(super) async fn reopen(&mut self) -> Result<()> {
        self.publish(|view| {
            view.phase = Phase::Idle;
            view.cutoff_ms = MIN_MS;
        })
        .await
    }
}

/// Finishes what a process that died left undone, if its lease has run out.
pub(super) async fn clear_up(stores: &Arc<Stores>) -> Result<()> {
    match Turn::begin(stores, Instant::now()).await {
        Err(error) if error.kind() == ErrorKind::Busy => Ok(()),
        turn => turn?.end().await,
    }
}
