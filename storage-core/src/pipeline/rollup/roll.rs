//! Rolling up: samples of the store into rows of the tiers.

use std::time::Duration;

use futures_util::TryStreamExt;
use serde::Serialize;
use tokio::time::Instant;

use super::gather::{Gathering, Windowing};
use super::ranges::Ranges;
use super::row::{Rollup, Rows};
use super::turn::Turn;
use super::view::Reach;
use super::{Stores, Tier, marks};
use crate::error::Result;
use crate::metrics::time::{END_MS, MIN_MS, floor_ms, from_ms, window_start_ms};
use crate::metrics::{
    MetricRecord, SeriesFilter, SeriesKey, SeriesSamples, StorageBackend, TimeRange,
};
use crate::pipeline::windows::Windows;

/// How many samples of rows are written at once.
const BATCH_SAMPLES: usize = 8192;

/// How often a long refresh publishes how far it has got.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(5);

/// What a refresh did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct RefreshReport {
    /// Samples that were read; one that is read for two tiers at different times counts twice.
    pub samples_read: u64,
    /// Rollups that are new or changed.
    pub rollups_written: u64,
}

impl RefreshReport {
    fn add(&mut self, other: Self) {
        self.samples_read += other.samples_read;
        self.rollups_written += other.rollups_written;
    }
}

impl Turn {
    /// Rolls up what is complete and was not yet, and what late samples re-opened.
    pub(super) async fn refresh(&mut self) -> Result<RefreshReport> {
        let stores = std::sync::Arc::clone(&self.stores);
        let Some((_, widest_ms)) = stores.widths_ms() else { return Ok(RefreshReport::default()) };
        let due = self.due();
        let announced_ms = due.iter().copied().max().unwrap_or(MIN_MS);
        self.publish(|view| {
            view.epoch += 1;
            view.announced_ms = view.announced_ms.max(announced_ms);
            view.keep_tiers(stores.tiers.iter().map(|tier| tier.width_ms));
        })
        .await?;
        self.settle().await?;
        let done_epoch = self.view.epoch - 1;
        let marked = marks::read(stores.control.store(), self.view.done_epoch).await?;
        let oldest = stores.raw.stats().await?.oldest_metric;
        let jobs = match oldest {
            Some(oldest) => self.jobs(&marked.ranges, &due, floor_ms(oldest)),
            None => vec![Ranges::default(); due.len()],
        };
        let report = self.roll_in_steps(&jobs, &due, widest_ms).await?;
        for tier in &stores.tiers {
            tier.store.flush().await?;
        }
        self.publish(|view| {
            view.done_epoch = done_epoch;
            for (tier, due_ms) in stores.tiers.iter().zip(&due) {
                view.tiers.entry(tier.width_ms).and_modify(|reach| reach.raise(*due_ms));
            }
        })
        .await?;
        self.clear_up().await?;
        Ok(report)
    }

    /// Returns how far each tier can be rolled up now.
    fn due(&self) -> Vec<i64> {
        let Stores { options, tiers, .. } = &*self.stores;
        let delay_ms = i64::try_from(options.delay.as_millis()).unwrap_or(i64::MAX);
        let end_ms = self.stores.now_ms().saturating_sub(delay_ms).clamp(MIN_MS, END_MS);
        let due = |tier: &Tier| {
            let rolled_ms = self.view.reach(tier.width_ms).rolled_ms;
            window_start_ms(end_ms, tier.width_ms).max(rolled_ms)
        };
        tiers.iter().map(due).collect()
    }

    /// Returns, for each tier, the windows to roll up whose samples are all there.
    fn jobs(&self, marked: &Ranges, due: &[i64], oldest_ms: i64) -> Vec<Ranges> {
        let job = |(tier, due_ms): (&Tier, &i64)| {
            let Reach { rolled_ms, floor_ms } = self.view.reach(tier.width_ms);
            let first_ms = window_start_ms(oldest_ms, tier.width_ms);
            // The first of all windows may begin before the first of all times.
            let since = |ms: i64| if ms > MIN_MS { ms.max(first_ms) } else { first_ms };
            let from_ms = since(self.view.frozen_end(tier.width_ms).max(floor_ms));
            let new = Ranges::of([(since(rolled_ms), *due_ms)]);
            new.union(&marked.widened(tier.width_ms)).cut(from_ms, *due_ms)
        };
        self.stores.tiers.iter().zip(due).map(job).collect()
    }

    /// Rolls up from the oldest to the newest, and says now and then how far it is.
    async fn roll_in_steps(
        &mut self,
        jobs: &[Ranges],
        due: &[i64],
        widest_ms: i64,
    ) -> Result<RefreshReport> {
        let stores = std::sync::Arc::clone(&self.stores);
        let mut report = RefreshReport::default();
        let mut published = Instant::now();
        let all = jobs.iter().fold(Ranges::default(), |all, job| all.union(job));
        for (start_ms, end_ms) in all.iter() {
            let mut windows = Windows::new(range(start_ms, end_ms)?, widest_ms);
            while let Some(window) = windows.next(&*stores.raw, &SeriesFilter::any()).await? {
                let rolling = roll(&stores, jobs, window);
                report.add(self.lease.keeping(rolling).await?);
                if published.elapsed() < PUBLISH_INTERVAL {
                    continue;
                }
                published = Instant::now();
                self.publish(|view| {
                    for (tier, due_ms) in stores.tiers.iter().zip(due) {
                        let done_ms = window_start_ms(window.end_ms(), tier.width_ms).min(*due_ms);
                        view.tiers.entry(tier.width_ms).and_modify(|reach| reach.raise(done_ms));
                    }
                })
                .await?;
            }
        }
        Ok(report)
    }
}

impl Reach {
    fn raise(&mut self, rolled_ms: i64) {
        self.rolled_ms = self.rolled_ms.max(rolled_ms);
    }
}

/// Rolls up the windows of `jobs`, one set for each tier, that lie in `part`.
///
/// No window may lie in `part` with a piece alone. Rows that are the same already are not written.
pub(super) async fn roll(
    stores: &Stores,
    jobs: &[Ranges],
    part: TimeRange,
) -> Result<RefreshReport> {
    let any = SeriesFilter::any();
    let mut writers: Vec<_> = stores
        .tiers
        .iter()
        .zip(jobs)
        .map(|(tier, job)| {
            (tier, job.cut(window_start_ms(part.start_ms(), tier.width_ms), part.end_ms()))
        })
        .filter(|(_, job)| !job.is_empty())
        .map(|(tier, job)| TierWriter::new(tier, job))
        .collect::<Result<_>>()?;
    let mut report = RefreshReport::default();
    let mut scan = stores.raw.scan(&any, part);
    while let Some(batch) = scan.try_next().await? {
        report.samples_read += batch.samples.len() as u64;
        for writer in &mut writers {
            writer.push(&batch).await?;
        }
    }
    for writer in writers {
        report.rollups_written += writer.finish().await?;
    }
    Ok(report)
}

/// Gathers samples into the rows of a tier.
struct TierWriter<'a> {
    tier: &'a Tier,
    job: Ranges,
    rows: Rows<'a>,
    windowing: Windowing,
    out: Vec<MetricRecord>,
    written: u64,
}

impl<'a> TierWriter<'a> {
    fn new(tier: &'a Tier, job: Ranges) -> Result<Self> {
        let (first, last) = (job.iter().next(), job.iter().next_back());
        let (start_ms, end_ms) =
            first.zip(last).map_or((0, 0), |((start, _), (_, end))| (start, end));
        let scan = tier.store.scan(&SeriesFilter::any(), range(start_ms, end_ms)?);
        let rows = Rows::new(scan, tier.width_ms);
        let windowing = Windowing::new(tier.width_ms);
        Ok(Self { tier, job, rows, windowing, out: Vec::new(), written: 0 })
    }

    async fn push(&mut self, batch: &SeriesSamples) -> Result<()> {
        for sample in &batch.samples {
            if let Some((series, window)) = self.windowing.push(&batch.series, sample) {
                self.add(&series, &window).await?;
            }
        }
        Ok(())
    }

    /// Writes the row of a window, unless it stands there already.
    async fn add(&mut self, series: &SeriesKey, window: &Gathering) -> Result<()> {
        let start_ms = window.start_ms;
        let Some(rollup) = window.finish().filter(|_| self.job.contains(start_ms)) else {
            return Ok(());
        };
        let before = self.rows.find(series, start_ms).await?.and_then(|row| row.rollup);
        if before.is_some_and(|before| is_settled(&before, &rollup)) {
            return Ok(());
        }
        rollup.write(series, start_ms, &mut self.out);
        self.written += 1;
        if self.out.len() >= BATCH_SAMPLES {
            self.tier.store.write_batch(&self.out).await?;
            self.out.clear();
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<u64> {
        if let Some((series, window)) = self.windowing.finish() {
            self.add(&series, &window).await?;
        }
        self.tier.store.write_batch(&self.out).await?;
        Ok(self.written)
    }
}

/// Whether a row stays as it is.
///
/// Samples come and are replaced, and are never fewer while they are there: one that knows of more
/// is of samples that somebody pruned by another way.
fn is_settled(before: &Rollup, now: &Rollup) -> bool {
    before == now || before.count > now.count
}

pub(super) fn range(start_ms: i64, end_ms: i64) -> Result<TimeRange> {
    TimeRange::new(from_ms(start_ms), from_ms(end_ms.max(start_ms)))
}
