//! Which cutoffs a policy comes to, and what lies before them.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{RetentionEntry, RetentionPolicy, RetentionReport, Rule};
use crate::error::Result;
use crate::metrics::time::{MIN_MS, before, floor_ms, from_ms, span, window_start_ms};
use crate::metrics::{SeriesFilter, StorageBackend, StorageBackendExt, StorageStats, TimeRange};
use crate::pipeline::rollup::{FIELDS, Place, Rolled, RollupTier, Turn};
use crate::repeated::is_due;

/// How often the oldest are removed until what is left is small enough.
const STEPS_MAX: u32 = 20;

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

/// Removes the oldest until the store is small enough.
async fn shrink(
    turn: &mut Turn,
    place: &Place,
    bytes_max: u64,
    now: DateTime<Utc>,
    entry: &mut RetentionEntry,
) -> Result<()> {
    for _ in 0..STEPS_MAX {
        let stats = place.store.stats().await?;
        let Some(cutoff) = cutoff_by_size(place, &stats, bytes_max, now) else { return Ok(()) };
        let removed = turn.prune(place, cutoff).await?;
        entry.before = entry.before.max(Some(cutoff));
        entry.rows_removed += removed;
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
        let by_size = rule.bytes_max.and_then(|max| cutoff_by_size(&place, &stats, max, now));
        entry.before = cutoff_by_age(&place, rule, now).max(by_size);
        if let Some(cutoff) = entry.before {
            let range = TimeRange::new(from_ms(MIN_MS), cutoff)?;
            let samples = place.store.count(&SeriesFilter::any(), range).await?;
            entry.rows_removed = samples / place.row_samples();
        }
        if entry.rows > 0 {
            let share = entry.rows_removed as f64 / entry.rows as f64;
            entry.bytes_freed = (entry.bytes as f64 * share) as u64;
        }
        report.entries.push(entry);
    }
    Ok(report)
}

fn entry(place: &Place, stats: &StorageStats) -> RetentionEntry {
    RetentionEntry {
        width: place.width,
        before: None,
        rows: stats.total_metrics / place.row_samples(),
        rows_removed: 0,
        bytes: stats.disk_usage_bytes,
        bytes_freed: 0,
    }
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
    let (oldest, newest) = (floor_ms(stats.oldest_metric?), floor_ms(stats.newest_metric?));
    let bytes = stats.disk_usage_bytes;
    if bytes <= bytes_max {
        return None;
    }
    let share = (bytes - bytes_max) as f64 / bytes as f64;
    let cutoff_ms = oldest + ((newest - oldest) as f64 * share) as i64;
    // At least the oldest window.
    let cutoff_ms = cutoff_ms.max(oldest).saturating_add(place.align_ms);
    let newest_ms = floor_ms(now - span(place.delay));
    let cutoff = place.align(cutoff_ms.min(newest_ms));
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
