//! Which cutoffs a policy comes to, and what lies before them.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{RetentionEntry, RetentionPolicy, RetentionReport, Rule};
use crate::error::Result;
use crate::metrics::time::{MIN_MS, before, floor_ms, from_ms, window_start_ms};
use crate::metrics::{SeriesFilter, StorageBackend, StorageBackendExt, StorageStats, TimeRange};
use crate::pipeline::rollup::{FIELDS, Place, Rolled, RollupTier, Turn};
use crate::repeated::is_due;

/// How often the oldest are removed until what is left is small enough.
const STEPS_MAX: u32 = 20;

/// The least part of a store that is removed when it is too large: of less it might not become smaller,
/// as files shrink by whole pages.
const SHARE_MIN: f64 = 0.01;

/// Applies a policy, unless somebody did within `interval`.
pub(super) async fn apply(
    store: &Rolled,
    policy: &RetentionPolicy,
    interval: Option<Duration>,
) -> Result<Option<RetentionReport>> {
    policy.check(store.tiers().iter().map(RollupTier::width))?;
    let _under_way = store.under_way().await;
    let (mut turn, now) = (store.begin_turn("retain").await?, store.now());
    let applied = apply_in_turn(store, policy, interval, &mut turn, now).await;
    let ended = turn.end().await;
    let report = applied?;
    ended.map(|()| report)
}

async fn apply_in_turn(
    store: &Rolled,
    policy: &RetentionPolicy,
    interval: Option<Duration>,
    turn: &mut Turn,
    now: DateTime<Utc>,
) -> Result<Option<RetentionReport>> {
    if interval.is_some_and(|interval| !is_due(turn.retained(), now, interval)) {
        return Ok(None);
    }
    let mut report = RetentionReport::default();
    for place in store.places().await? {
        let rule = policy.rule(place.width);
        let mut entry = entry(&place, &place.store.stats().await?);
        if let Some(cutoff) = cutoff_by_age(&place, rule, now) {
            entry.before = Some(cutoff);
            entry.rows_removed = turn.prune(&place, cutoff).await?;
        }
        if let Some(bytes_max) = rule.bytes_max {
            shrink(turn, &place, bytes_max, now, &mut entry).await?;
        }
        let after = place.store.stats().await?.disk_usage_bytes;
        entry.bytes_freed = entry.bytes.saturating_sub(after);
        report.entries.push(entry);
    }
    turn.note_retained(now).await?;
    Ok(Some(report))
}

/// Removes the oldest until the store is small enough, or does not become smaller.
async fn shrink(
    turn: &mut Turn,
    place: &Place,
    bytes_max: u64,
    now: DateTime<Utc>,
    entry: &mut RetentionEntry,
) -> Result<()> {
    let mut stats = place.store.stats().await?;
    for _ in 0..STEPS_MAX {
        let Some(cutoff) = cutoff_by_size(place, &stats, bytes_max, now) else { return Ok(()) };
        let removed = turn.prune(place, cutoff).await?;
        entry.before = entry.before.max(Some(cutoff));
        entry.rows_removed += removed;
        let after = place.store.stats().await?;
        // A single sample that is much older than all others takes no room, so removing little may
        // change nothing. What is too much is gone, and something else keeps its room.
        let too_much = share(&stats, bytes_max) * rows(place, &stats) as f64;
        let was_enough = removed >= too_much as u64;
        if was_enough && after.disk_usage_bytes >= stats.disk_usage_bytes {
            tracing::warn!(
                target: "storage", bytes = after.disk_usage_bytes, bytes_max,
                "samples were removed, but the store has not become smaller"
            );
            return Ok(());
        }
        stats = after;
    }
    Ok(())
}

/// Counts what would be removed.
pub(super) async fn plan(store: &Rolled, policy: &RetentionPolicy) -> Result<RetentionReport> {
    policy.check(store.tiers().iter().map(RollupTier::width))?;
    let now = store.now();
    let mut report = RetentionReport::default();
    for place in store.places().await? {
        let rule = policy.rule(place.width);
        let stats = place.store.stats().await?;
        let mut entry = entry(&place, &stats);
        if let Some(cutoff) = cutoff_by_age(&place, rule, now) {
            entry.foresee(&place, cutoff).await?;
        }
        let left = entry.bytes - entry.bytes_freed;
        let bytes_max = rule.bytes_max.filter(|bytes_max| left > *bytes_max);
        let by_size = bytes_max.and_then(|max| cutoff_by_size(&place, &stats, max, now));
        if let Some(cutoff) = by_size.filter(|cutoff| entry.before.is_none_or(|by| by < *cutoff)) {
            entry.foresee(&place, cutoff).await?;
        }
        report.entries.push(entry);
    }
    Ok(report)
}

impl RetentionEntry {
    /// Says what a prune would remove.
    async fn foresee(&mut self, place: &Place, cutoff: DateTime<Utc>) -> Result<()> {
        let range = TimeRange::new(from_ms(MIN_MS), cutoff)?;
        let samples = place.store.count(&SeriesFilter::any(), range).await?;
        self.before = Some(cutoff);
        self.rows_removed = samples / place.row_samples();
        let share = self.rows_removed as f64 / self.rows.max(1) as f64;
        self.bytes_freed = ((self.bytes as f64 * share) as u64).min(self.bytes);
        Ok(())
    }
}

fn entry(place: &Place, stats: &StorageStats) -> RetentionEntry {
    RetentionEntry {
        width: place.width,
        before: None,
        rows: rows(place, stats),
        rows_removed: 0,
        bytes: stats.disk_usage_bytes,
        bytes_freed: 0,
    }
}

/// What is counted of a store.
fn rows(place: &Place, stats: &StorageStats) -> u64 {
    stats.total_metrics / place.row_samples()
}

/// Which part of a store that is too large is too much.
fn share(stats: &StorageStats, bytes_max: u64) -> f64 {
    let bytes = stats.disk_usage_bytes;
    let share = bytes.saturating_sub(bytes_max) as f64 / bytes.max(1) as f64;
    share.max(SHARE_MIN)
}

/// Where whole windows end that are older than the rule has it.
fn cutoff_by_age(place: &Place, rule: Rule, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    Some(place.align(floor_ms(before(now, rule.age?))))
}

/// Where the oldest windows end that make out what is too much, as if all time were alike.
fn cutoff_by_size(
    place: &Place,
    stats: &StorageStats,
    bytes_max: u64,
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let oldest = floor_ms(stats.oldest_metric?);
    // A clock that is ahead must not make what is there look like a small part of all time.
    let newest = floor_ms(stats.newest_metric?).min(floor_ms(now));
    if stats.disk_usage_bytes <= bytes_max || newest < oldest {
        return None;
    }
    let cutoff_ms = oldest + ((newest - oldest) as f64 * share(stats, bytes_max)) as i64;
    // At least the oldest window.
    let cutoff_ms = cutoff_ms.max(oldest).saturating_add(place.align_ms);
    let cutoff = place.align(cutoff_ms.min(floor_ms(before(now, place.delay))));
    (floor_ms(cutoff) > oldest).then_some(cutoff)
}

impl Place {
    /// How many samples of the store make what is counted.
    fn row_samples(&self) -> u64 {
        if self.width.is_some() { FIELDS as u64 } else { 1 }
    }

    /// The bound of windows at `ms` or before, as far as samples may go at all.
    fn align(&self, ms: i64) -> DateTime<Utc> {
        from_ms(window_start_ms(ms.min(self.end_ms), self.align_ms))
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let store: &Arc<dyn StorageBackend> = &self.store;
        f.debug_struct("Place").field("width", &self.width).field("store", &store.name()).finish()
    }
}
