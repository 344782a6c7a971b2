//! Removing samples behind their rollups, and rollups that are not kept any longer.
//!
//! A prune goes in steps of a day at most, or one window of the widest tier. In each nobody may write samples
//! before its cutoff; their rollups are made from the samples themselves, whatever was rolled up
//! before; then it is published that these count instead of the samples; then the samples go.
//!
//! Where samples were removed before, or the cutoff lies within a window, the rollup is the sum of
//! what it was and of what is about to be removed. Such a sum is announced first, beside the
//! rollup, and put in its place only when it has been published that it counts: done twice it is
//! the same.

use std::sync::Arc;

use futures_util::TryStreamExt;

use super::gather::{Gathering, Windowing};
use super::ranges::{Ranges, align_up};
use super::roll::{range, roll};
use super::row::{FIELDS, Pending, Rollup, Row, Rows};
use super::turn::Turn;
use super::view::{Phase, View};
use super::{Stores, Tier};
use crate::error::{Error, Outcome, Result};
use crate::metrics::time::{MIN_MS, floor_ms, from_ms, window_start_ms};
use crate::metrics::{MetricRecord, SeriesFilter, SeriesKey, StorageBackend};

/// How long a step of a prune is at most, unless the widest windows are wider. A minute in tests, whose
/// samples are of minutes and are to be pruned in several steps.
const STEP_MS: i64 = if cfg!(test) { 60_000 } else { 86_400_000 };

/// How many samples of rows are written at once.
const BATCH_SAMPLES: usize = 8192;

impl Turn {
    /// Removes every sample before the cutoff, behind its rollups, and returns how many.
    pub(super) async fn prune_raw(&mut self, cutoff_ms: i64) -> Result<u64> {
        let stores = Arc::clone(&self.stores);
        let Some((_, widest_ms)) = stores.widths_ms() else {
            return self.lease.keeping(stores.raw.prune_before(from_ms(cutoff_ms))).await;
        };
        let mut removed = 0;
        while let Some(oldest) = stores.raw.stats().await?.oldest_metric {
            let oldest_ms = floor_ms(oldest);
            if oldest_ms >= cutoff_ms {
                break;
            }
            let step_ms = widest_ms * (STEP_MS / widest_ms).max(1);
            let step_ms = cutoff_ms.min(window_start_ms(oldest_ms, step_ms) + step_ms);
            let step = self.prune_step(step_ms).await;
            removed += step.map_err(|error| match removed {
                0 => error,
                _ => error.with_outcome(Outcome::Unknown),
            })?;
        }
        Ok(removed)
    }

    async fn prune_step(&mut self, cutoff_ms: i64) -> Result<u64> {
        let folds = match self.make_rollups(cutoff_ms).await {
            Ok(folds) => folds,
            Err(error) => {
                // If that fails too, whoever comes next does it.
                let _ = self.reopen().await;
                return Err(error);
            }
        };
        let unsure = |error: Error| error.with_outcome(Outcome::Unknown);
        self.publish(|view| {
            view.phase = if folds > 0 { Phase::Folding } else { Phase::Pruning };
            view.frozen_ms = view.frozen_ms.max(cutoff_ms);
            view.prunes += 1;
        })
        .await
        .map_err(unsure)?;
        self.finish_prune().await.map_err(unsure)
    }

    /// Makes the rollups of every sample before the cutoff, for good; returns how many of them
    /// are only announced.
    async fn make_rollups(&mut self, cutoff_ms: i64) -> Result<u64> {
        let stores = Arc::clone(&self.stores);
        self.publish(|view| {
            view.keep_tiers(stores.tiers.iter().map(|tier| tier.width_ms));
            (view.phase, view.cutoff_ms) = (Phase::Closing, cutoff_ms);
            view.turn += 1;
        })
        .await?;
        self.settle().await?;
        // What came until now may be older.
        let oldest = stores.raw.stats().await?.oldest_metric.unwrap_or(from_ms(cutoff_ms));
        let oldest_ms = floor_ms(oldest).min(cutoff_ms);
        self.publish(|view| view.from_ms = oldest_ms).await?;
        let view = self.view.clone();
        let making = async {
            let whole: Vec<_> =
                stores.tiers.iter().map(|tier| whole_windows(&view, tier, oldest_ms)).collect();
            roll(&stores, &whole, range(oldest_ms, cutoff_ms)?).await?;
            let mut folds = 0;
            for tier in &stores.tiers {
                folds += announce(&stores, tier, &view).await?;
                tier.store.flush().await?;
            }
            Ok(folds)
        };
        self.lease.keeping(making).await
    }

    /// Does what is left to do when the rollups of what is being pruned count.
    pub(super) async fn finish_prune(&mut self) -> Result<u64> {
        let stores = Arc::clone(&self.stores);
        if self.view.phase == Phase::Folding {
            let view = self.view.clone();
            let folding = async {
                for tier in &stores.tiers {
                    fold(tier, &view).await?;
                    tier.store.flush().await?;
                }
                Ok(())
            };
            self.lease.keeping(folding).await?;
            self.publish(|view| view.phase = Phase::Pruning).await?;
        }
        let cutoff = from_ms(self.view.cutoff_ms);
        let removed = self.lease.keeping(stores.raw.prune_before(cutoff)).await?;
        self.reopen().await?;
        Ok(removed)
    }

    /// Removes the rollups of a tier of windows that end at the cutoff or before, and returns
    /// how many.
    pub(super) async fn prune_tier(&mut self, width_ms: i64, cutoff_ms: i64) -> Result<u64> {
        let stores = Arc::clone(&self.stores);
        let Some(tier) = stores.tiers.iter().find(|tier| tier.width_ms == width_ms) else {
            return Ok(0);
        };
        let floor_ms = window_start_ms(cutoff_ms, width_ms);
        self.publish(|view| {
            view.keep_tiers(stores.tiers.iter().map(|tier| tier.width_ms));
            let mut reach = view.reach(width_ms);
            reach.floor_ms = reach.floor_ms.max(floor_ms);
            view.tiers.insert(width_ms, reach);
        })
        .await?;
        let pruning = tier.store.prune_before(from_ms(floor_ms));
        Ok(self.lease.keeping(pruning).await? / FIELDS as u64)
    }
}

/// The windows before the cutoff of which every sample is there.
fn whole_windows(view: &View, tier: &Tier, oldest_ms: i64) -> Ranges {
    let width_ms = tier.width_ms;
    let kept_ms = view.frozen_end(width_ms).max(view.reach(width_ms).floor_ms);
    let first_ms = window_start_ms(oldest_ms, width_ms);
    let from_ms = if kept_ms > MIN_MS { kept_ms.max(first_ms) } else { first_ms };
    Ranges::of([(from_ms, window_start_ms(view.cutoff_ms, width_ms))])
}

/// Where a rollup becomes a sum: what was removed before, and the window that the cutoff divides.
fn divided_windows(view: &View, tier: &Tier) -> Ranges {
    let cutoff_ms = view.cutoff_ms;
    let frozen_ms = view.frozen_end(tier.width_ms).min(cutoff_ms);
    let divided_ms = window_start_ms(cutoff_ms, tier.width_ms).max(view.from_ms);
    Ranges::of([(view.from_ms, frozen_ms), (divided_ms, cutoff_ms)])
}

/// Writes beside each rollup that becomes a sum what it becomes, and returns how many there are.
async fn announce(stores: &Stores, tier: &Tier, view: &View) -> Result<u64> {
    let mut announced = 0;
    for (start_ms, end_ms) in divided_windows(view, tier).iter() {
        let rows_range =
            range(window_start_ms(start_ms, tier.width_ms), align_up(end_ms, tier.width_ms))?;
        let any = SeriesFilter::any();
        let mut announcing = Announcing {
            view,
            floor_ms: view.reach(tier.width_ms).floor_ms,
            rows: Rows::new(tier.store.scan(&any, rows_range), tier.width_ms),
            tier,
            out: Vec::new(),
            count: 0,
        };
        let mut scan = stores.raw.scan(&any, range(start_ms, end_ms)?);
        let mut windowing = Windowing::new(tier.width_ms);
        while let Some(batch) = scan.try_next().await? {
            for sample in &batch.samples {
                if let Some((series, window)) = windowing.push(&batch.series, sample) {
                    announcing.add(&series, &window).await?;
                }
            }
        }
        if let Some((series, window)) = windowing.finish() {
            announcing.add(&series, &window).await?;
        }
        announced += announcing.finish().await?;
    }
    Ok(announced)
}

struct Announcing<'a> {
    view: &'a View,
    /// Windows that begin before this are not kept.
    floor_ms: i64,
    tier: &'a Tier,
    rows: Rows<'a>,
    out: Vec<MetricRecord>,
    count: u64,
}

impl Announcing<'_> {
    /// Adds what is removed of a window.
    async fn add(&mut self, series: &SeriesKey, window: &Gathering) -> Result<()> {
        let start_ms = window.start_ms;
        let Some(part) = window.finish().filter(|_| start_ms >= self.floor_ms) else {
            return Ok(());
        };
        while let Some((series, row)) = self.rows.next_before(series, start_ms).await? {
            self.pass(&series, &row).await?;
        }
        let found = self.rows.find(series, start_ms).await?;
        let now = found.as_ref().and_then(|row| row.rollup);
        if found.is_some() {
            self.rows.next().await?;
        }
        // Where nothing was removed yet the row is of the same samples.
        let base = now.filter(|_| start_ms < self.view.frozen_ms);
        let after = base.map_or(part, |base| base.plus(&part));
        self.announce(series, start_ms, now.as_ref(), Some(after)).await
    }

    /// A row none of whose samples is removed: where it was of all samples of its window, it is of
    /// those alone that were removed, which are none.
    async fn pass(&mut self, series: &SeriesKey, row: &Row) -> Result<()> {
        if row.rollup.is_none() || row.start_ms < self.view.frozen_ms {
            return Ok(());
        }
        self.announce(series, row.start_ms, row.rollup.as_ref(), None).await
    }

    async fn announce(
        &mut self,
        series: &SeriesKey,
        start_ms: i64,
        now: Option<&Rollup>,
        after: Option<Rollup>,
    ) -> Result<()> {
        let pending = Pending { turn: self.view.turn, after };
        self.out.push(Row::announce(series, start_ms, now, &pending)?);
        self.count += 1;
        if self.out.len() >= BATCH_SAMPLES {
            self.tier.store.write_batch(&self.out).await?;
            self.out.clear();
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<u64> {
        while let Some((series, row)) = self.rows.next().await? {
            self.pass(&series, &row).await?;
        }
        self.tier.store.write_batch(&self.out).await?;
        Ok(self.count)
    }
}

/// Puts what was announced in its place.
async fn fold(tier: &Tier, view: &View) -> Result<()> {
    let from_ms = window_start_ms(view.from_ms, tier.width_ms);
    let rows_range = range(from_ms, align_up(view.cutoff_ms, tier.width_ms))?;
    let mut rows = Rows::new(tier.store.scan(&SeriesFilter::any(), rows_range), tier.width_ms);
    let mut out = Vec::new();
    while let Some((series, row)) = rows.next().await? {
        let Some(pending) = row.pending.filter(|pending| pending.turn == view.turn) else {
            continue;
        };
        match pending.after {
            Some(after) => after.write(&series, row.start_ms, &mut out),
            None => out.push(Row::clear(&series, row.start_ms)),
        }
        if out.len() >= BATCH_SAMPLES {
            tier.store.write_batch(&out).await?;
            out.clear();
        }
    }
    tier.store.write_batch(&out).await
}
