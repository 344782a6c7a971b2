//! Moves old samples from the hot tier to the cold one, window by window: once, or again and again.

mod task;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::copy::CopyOptions;
use super::digest::digest;
use super::windows::Windows;
use crate::compose::{Moving, Tiered};
use crate::error::Result;
use crate::metrics::time::{floor_ms, from_ms, width_ms, window_start_ms};
use crate::metrics::{SeriesFilter, StorageBackend, TimeRange};

pub use self::task::{ArchiveCounts, ArchivePolicy, ArchiveTask};

/// What [`archive`] moves, and how.
///
/// ```
/// use std::time::Duration;
/// use storage_core::pipeline::ArchiveOptions;
///
/// let cutoff = chrono::Utc::now() - chrono::TimeDelta::days(30);
/// let options = ArchiveOptions::before(cutoff).with_window(Duration::from_secs(3600));
/// ```
#[derive(Debug, Clone)]
pub struct ArchiveOptions {
    cutoff: DateTime<Utc>,
    window: Duration,
    copy: CopyOptions,
    dry_run: bool,
}

impl ArchiveOptions {
    /// Moves the windows that end at `cutoff` or before.
    pub fn before(cutoff: DateTime<Utc>) -> Self {
        let copy = CopyOptions::default().with_batch_samples(100_000);
        Self { cutoff, window: Duration::from_secs(86_400), copy, dry_run: false }
    }

    /// How much time is moved at once; windows start at multiples of it since the Unix epoch.
    /// Default: a day.
    #[must_use]
    pub fn with_window(mut self, window: Duration) -> Self {
        self.window = window;
        self.copy = self.copy.with_window(window);
        self
    }

    /// Copies at most so many samples a second. Default: no limit.
    #[must_use]
    pub fn with_samples_per_second(mut self, samples_per_second: u64) -> Self {
        self.copy = self.copy.with_samples_per_second(samples_per_second);
        self
    }

    /// Counts only: the report says what would be moved. Default: off.
    #[must_use]
    pub const fn with_dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }
}

/// A step of moving a window, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ArchiveStep {
    /// Samples are being copied; told after each batch.
    Copying,
    /// The copy is there; late writes are about to be kept out.
    Copied,
    /// The cold tier is known to hold everything; its samples are about to count.
    Verified,
    /// They do; those of the hot tier are about to be removed.
    Published,
    /// They are, and late writes are let in again.
    Pruned,
}

/// How far an archiving has got: told after each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ArchiveProgress {
    /// The window that is being moved.
    pub window: TimeRange,
    /// From the oldest sample of the hot tier to the end of the last window that is moved.
    pub extent: TimeRange,
    /// What was done.
    pub step: ArchiveStep,
    /// Samples copied so far, those of earlier windows included.
    pub samples_copied: u64,
}

/// What an archiving did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct ArchiveReport {
    /// Windows that were moved; in a dry run, that would be.
    pub windows: u64,
    /// Samples that were moved; in a dry run, that would be.
    pub samples: u64,
    /// Samples that were removed from the hot tier. More than `samples` if a write that was not
    /// acknowledged came between; it is repeated.
    pub samples_pruned: u64,
}

/// Moves whole windows from the hot tier of `store` to its cold one.
///
/// Each window is copied, then verified sample by sample while late writes wait, then counts in the
/// cold tier, then is removed from the hot one. Answers are the same before, after and all the
/// time. A window of which the cold tier holds something already, because samples came late, is
/// merged: the hot sample replaces the cold one. Whoever else archives or prunes waits.
///
/// # Errors
/// `Busy` if another process had its turn for longer than a call waits; otherwise those of the tiers
/// and of the control store. Done again it goes on; nothing is lost or doubled wherever it
/// broke off, by an error, a crash or because the future was dropped.
///
/// # Cost
/// A window is read from each tier twice. Late writes before its end wait for one of these reads
/// and for the removal.
pub async fn archive(
    store: &Tiered,
    options: &ArchiveOptions,
    observe: impl FnMut(&ArchiveProgress) + Send,
) -> Result<ArchiveReport> {
    let width_ms = width_ms(options.window)?;
    let Some(extent) = extent_of(store, options, width_ms).await? else {
        return Ok(ArchiveReport::default());
    };
    if options.dry_run {
        return plan(store, extent, width_ms).await;
    }
    let mut moving = store.begin_move().await?;
    let mut report = ArchiveReport::default();
    let moved = move_windows(&mut moving, extent, options, || true, observe, &mut report).await;
    let ended = moving.end().await;
    moved?;
    ended.map(|()| report)
}

/// Moves the windows of `extent`, from the oldest on, for as long as `goes_on` says so; returns whether
/// all of them were moved. What was moved stands in the report after a failure, too.
async fn move_windows(
    moving: &mut Moving,
    extent: TimeRange,
    options: &ArchiveOptions,
    goes_on: impl Fn() -> bool + Send,
    mut observe: impl FnMut(&ArchiveProgress) + Send,
    report: &mut ArchiveReport,
) -> Result<bool> {
    let hot = moving.hot();
    let mut windows = Windows::new(extent, width_ms(options.window)?);
    while let Some(window) = windows.next(&*hot, &SeriesFilter::any()).await? {
        if !goes_on() {
            return Ok(false);
        }
        let (step, samples_copied) = (ArchiveStep::Copying, report.samples);
        let at = ArchiveProgress { window, extent, step, samples_copied };
        move_window(moving, at, options, &mut observe, report)
            .await
            .map_err(|error| error.with_context("window_end", window.end().to_rfc3339()))?;
    }
    Ok(true)
}

/// Moves everything before the end of a window.
async fn move_window(
    moving: &mut Moving,
    mut at: ArchiveProgress,
    options: &ArchiveOptions,
    observe: &mut (impl FnMut(&ArchiveProgress) + Send),
    report: &mut ArchiveReport,
) -> Result<()> {
    let before = at.samples_copied;
    let copying = moving.copy(at.window.end_ms(), &options.copy, |copied| {
        at.samples_copied = before + copied.samples_done;
        observe(&at);
    });
    copying.await?;
    let mut tell = |step| observe(&ArchiveProgress { step, ..at });
    tell(ArchiveStep::Copied);
    let samples = moving.close().await?;
    tell(ArchiveStep::Verified);
    moving.publish().await?;
    tell(ArchiveStep::Published);
    let pruned = moving.prune_hot().await?;
    report.windows += 1;
    report.samples += samples;
    report.samples_pruned += pruned;
    tell(ArchiveStep::Pruned);
    Ok(())
}

/// Counts what would be moved.
async fn plan(store: &Tiered, extent: TimeRange, width_ms: i64) -> Result<ArchiveReport> {
    let (hot, any) = (&**store.hot(), SeriesFilter::any());
    let mut windows = Windows::new(extent, width_ms);
    let mut report = ArchiveReport::default();
    while let Some(window) = windows.next(hot, &any).await? {
        report.windows += 1;
        report.samples += digest(hot, &any, window).await?.samples;
    }
    Ok(report)
}

/// From the oldest sample of the hot tier to the end of the last whole window before the cutoff.
async fn extent_of(
    store: &Tiered,
    options: &ArchiveOptions,
    width_ms: i64,
) -> Result<Option<TimeRange>> {
    let end_ms = window_start_ms(floor_ms(options.cutoff), width_ms);
    let Some(oldest) = store.hot().stats().await?.oldest_metric else { return Ok(None) };
    if floor_ms(oldest) >= end_ms {
        return Ok(None);
    }
    TimeRange::new(oldest, from_ms(end_ms)).map(Some)
}

#[cfg(test)]
mod tests;
