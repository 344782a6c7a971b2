//! Windows out of rollups and samples: which are taken where, and how they are joined.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use serde::Serialize;

use super::gather::Gathering;
use super::ranges::{Ranges, align_up};
use super::roll::range;
use super::row::{Decoder, Rollup, Row};
use super::view::{Phase, View};
use super::{Rolled, Stores, Tier, marks, series};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::time::{MIN_MS, floor_ms, from_ms, width_ms, window_start_ms};
use crate::metrics::{
    SeriesFilter, SeriesKey, SeriesWindows, StorageBackend, TimeRange, WindowBuilder,
};

/// How often a read is asked again because rollups changed under it.
const READS_MAX: u32 = 1000;

/// The most stretches that re-opened windows cut a range into.
const MARKED_MAX: usize = 16;

/// Where the windows of a stretch of time come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WindowSource {
    /// From samples.
    Samples,
    /// From rollups of this width; where samples came after others were removed, from both.
    Rollups(Duration),
    /// From nowhere: samples were removed, and no rollup fits the windows that were asked for.
    Gone,
}

/// A stretch of time with one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// From when to when.
    pub range: TimeRange,
    /// Where its windows come from.
    pub source: WindowSource,
}

/// Windows, and where they come from.
#[derive(Debug, Clone, PartialEq)]
pub struct RolledWindows {
    /// As [`StorageBackend::windows`] returns them.
    pub series: Vec<SeriesWindows>,
    /// The range that was asked for, in order, without gaps.
    pub stretches: Vec<Stretch>,
}

/// The percentile of a window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PercentileWindow {
    /// Where the window starts.
    pub start: DateTime<Utc>,
    /// Number of samples.
    pub count: u64,
    /// The smallest value that at least the share asked for of all values does not exceed.
    pub value: f64,
}

/// The percentiles of the windows of one series, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeriesPercentiles {
    /// Whose windows.
    pub series: SeriesKey,
    /// The windows that hold at least one sample.
    pub windows: Vec<PercentileWindow>,
}

impl Rolled {
    /// Returns aggregates over windows as [`StorageBackend::windows`] does, also of times whose
    /// samples were removed, and says where they come from.
    ///
    /// The widest rollups whose width divides `width` are taken, narrower ones toward the bounds of
    /// `range`, and samples where no rollup is yet, or late ones re-opened it. Without a
    /// tier that divides `width` samples alone are taken; where they are gone the stretch is
    /// [`WindowSource::Gone`]. What was acknowledged before the call is counted, each sample once. Of a
    /// batch that is written meanwhile a part may be.
    ///
    /// A bound of `range` that lies within a window whose samples are gone moves to the window's edge
    /// inside the range, and the rest of that window is `Gone`: nothing outside of the range counts.
    ///
    /// # Errors
    /// As [`StorageBackend::windows`]; `Busy` if rollups change faster than they can be read.
    ///
    /// # Cost
    /// One question to each store that is taken, and two small ones to the control store.
    pub async fn rolled_windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<RolledWindows> {
        self.check_open("rolled_windows")?;
        let width_ms = width_ms(width)?;
        let deadline = self.deadline();
        let mut view = self.look().await?;
        for _ in 0..READS_MAX {
            while view.phase == Phase::Folding {
                view = self.wait_past(&view, deadline).await?;
            }
            let control = self.stores.control.store();
            let marked = marks::read(control, view.done_epoch).await?.ranges;
            let reading = Reading { stores: &self.stores, view: &view, marked };
            let found = reading.windows(filter, range, width_ms).await;
            let now = self.look().await?;
            if now.generation == view.generation {
                return found;
            }
            view = now;
        }
        Err(Error::new(ErrorKind::Busy, "rollups change faster than they can be read")
            .with_operation("rolled_windows"))
    }

    /// Returns the percentile `share` (0.5 is the median, 0.99 the 99th) of each window, by nearest
    /// rank, from samples.
    ///
    /// # Errors
    /// `Unsupported`, with the detail `samples_from`, if samples in `range` may have been removed:
    /// rollups do not tell percentiles. `InvalidArgument` if `share` is not above 0 and at most 1, or
    /// as [`StorageBackend::windows`].
    ///
    /// # Cost
    /// Every sample in `range` is read; the values of one window are held in memory.
    pub async fn percentiles(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
        share: f64,
    ) -> Result<Vec<SeriesPercentiles>> {
        self.check_open("percentiles")?;
        if !(share > 0.0 && share <= 1.0) {
            return Err(Error::invalid("the share of a percentile is above 0 and at most 1")
                .with_context("share", share));
        }
        let width_ms = width_ms(width)?;
        self.refuse_removed(range).await?;
        let mut ranking = Ranking { share, found: Vec::new(), open_ms: 0, values: Vec::new() };
        let mut scan = self.stores.raw.scan(filter, range);
        while let Some(batch) = scan.try_next().await? {
            for sample in &batch.samples {
                let start_ms = window_start_ms(floor_ms(sample.timestamp), width_ms);
                ranking.push(&batch.series, start_ms, sample.value);
            }
        }
        ranking.close();
        // Nothing may have been removed meanwhile.
        self.refuse_removed(range).await?;
        Ok(ranking.found)
    }

    async fn refuse_removed(&self, range: TimeRange) -> Result<()> {
        let view = self.look().await?;
        if range.is_empty() || range.start_ms() >= view.frozen_ms {
            return Ok(());
        }
        Err(Error::unsupported("percentiles")
            .with_backend(self.name())
            .with_context("samples_from", from_ms(view.frozen_ms).to_rfc3339()))
    }
}

/// Finds the percentile of one window after the other.
struct Ranking {
    share: f64,
    found: Vec<SeriesPercentiles>,
    open_ms: i64,
    values: Vec<f64>,
}

impl Ranking {
    fn push(&mut self, series: &SeriesKey, start_ms: i64, value: f64) {
        let is_new = self.found.last().is_none_or(|last| last.series != *series);
        if is_new || self.open_ms != start_ms {
            self.close();
            self.open_ms = start_ms;
        }
        if is_new {
            self.found.push(SeriesPercentiles { series: series.clone(), windows: Vec::new() });
        }
        self.values.push(value);
    }

    fn close(&mut self) {
        let (Some(last), false) = (self.found.last_mut(), self.values.is_empty()) else { return };
        let count = self.values.len();
        let rank = ((self.share * count as f64).ceil() as usize).clamp(1, count);
        let (_, value, _) = self.values.select_nth_unstable_by(rank - 1, f64::total_cmp);
        let start = DateTime::from_timestamp_millis(self.open_ms).unwrap_or(DateTime::UNIX_EPOCH);
        last.windows.push(PercentileWindow { start, count: count as u64, value: *value });
        self.values.clear();
    }
}

/// A piece of a range, and the tier that is taken; `None` for samples.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Piece<'a> {
    start_ms: i64,
    end_ms: i64,
    from: From<'a>,
}

#[derive(Clone, Copy)]
enum From<'a> {
    Samples,
    Rollups(&'a Tier),
    Gone,
}

impl PartialEq for From<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.source() == other.source()
    }
}

impl std::fmt::Debug for From<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.source().fmt(f)
    }
}

impl From<'_> {
    fn source(&self) -> WindowSource {
        match self {
            Self::Samples => WindowSource::Samples,
            Self::Rollups(tier) => WindowSource::Rollups(tier.width()),
            Self::Gone => WindowSource::Gone,
        }
    }
}

/// A read for one view.
struct Reading<'a> {
    stores: &'a Stores,
    view: &'a Arc<View>,
    marked: Ranges,
}

impl<'a> Reading<'a> {
    async fn windows(
        &self,
        filter: &SeriesFilter,
        asked: TimeRange,
        width_ms: i64,
    ) -> Result<RolledWindows> {
        let pieces = self.pieces(asked, width_ms);
        let mut joining = Joining { width_ms, series: BTreeMap::new() };
        let mut stretches: Vec<Stretch> = Vec::new();
        for piece in pieces {
            self.join(&mut joining, filter, &piece).await?;
            let (part, source) = (range(piece.start_ms, piece.end_ms)?, piece.from.source());
            match stretches.last_mut() {
                Some(last) if last.source == source => {
                    last.range = TimeRange::new(last.range.start(), part.end())?;
                }
                _ => stretches.push(Stretch { range: part, source }),
            }
        }
        Ok(RolledWindows { series: joining.finish(), stretches })
    }

    /// Cuts a range into pieces, from the oldest to the newest.
    fn pieces(&self, asked: TimeRange, width_ms: i64) -> Vec<Piece<'a>> {
        let fits = |tier: &&Tier| width_ms % tier.width_ms == 0;
        let tiers: Vec<_> = self.stores.tiers.iter().filter(fits).collect();
        let mut pieces = Vec::new();
        self.cover(asked.start_ms(), asked.end_ms(), &tiers, &mut pieces);
        pieces
    }

    /// Takes the widest tier for as much as it has of whole windows, the others for the rest.
    fn cover(&self, start_ms: i64, end_ms: i64, tiers: &[&'a Tier], out: &mut Vec<Piece<'a>>) {
        if start_ms >= end_ms {
            return;
        }
        let Some((tier, narrower)) = tiers.split_last() else {
            let samples_ms = self.view.frozen_ms.clamp(start_ms, end_ms);
            self.push(out, start_ms, samples_ms, From::Gone);
            return self.push(out, samples_ms, end_ms, From::Samples);
        };
        let width_ms = tier.width_ms;
        let reach = self.view.reach(width_ms);
        let rolled_ms = reach.rolled_ms.max(self.view.frozen_end(width_ms));
        let core_start_ms = match start_ms.max(reach.floor_ms) {
            // The first of all windows may begin before it.
            MIN_MS => MIN_MS,
            ms => align_up(ms, width_ms),
        };
        let core_end_ms = window_start_ms(end_ms.min(rolled_ms), width_ms);
        if core_start_ms >= core_end_ms {
            return self.cover(start_ms, end_ms, narrower, out);
        }
        self.cover(start_ms, core_start_ms, narrower, out);
        self.cover_core(core_start_ms, core_end_ms, tier, out);
        self.cover(core_end_ms, end_ms, narrower, out);
    }

    /// Takes samples for the windows of a tier that are re-opened.
    fn cover_core(&self, start_ms: i64, end_ms: i64, tier: &'a Tier, out: &mut Vec<Piece<'a>>) {
        let frozen_ms = self.view.frozen_end(tier.width_ms);
        let mut open = self.marked.clone();
        if self.view.phase == Phase::Closing {
            // They are being rolled up once more.
            open = open.union(&Ranges::of([(self.view.frozen_ms, self.view.cutoff_ms)]));
        }
        let open = open.widened(tier.width_ms).at_most(MARKED_MAX).cut(start_ms, end_ms);
        let open = open.cut(frozen_ms, end_ms);
        let mut at_ms = start_ms;
        for (open_ms, closed_ms) in open.iter() {
            self.push(out, at_ms, open_ms, From::Rollups(tier));
            self.push(out, open_ms, closed_ms, From::Samples);
            at_ms = closed_ms;
        }
        self.push(out, at_ms, end_ms, From::Rollups(tier));
    }

    fn push(&self, out: &mut Vec<Piece<'a>>, start_ms: i64, end_ms: i64, from: From<'a>) {
        match out.last_mut() {
            _ if start_ms >= end_ms => {}
            Some(last) if last.from == from && last.end_ms == start_ms => last.end_ms = end_ms,
            _ => out.push(Piece { start_ms, end_ms, from }),
        }
    }

    async fn join(
        &self,
        joining: &mut Joining,
        filter: &SeriesFilter,
        piece: &Piece<'_>,
    ) -> Result<()> {
        let part = range(piece.start_ms, piece.end_ms)?;
        match piece.from {
            From::Gone => Ok(()),
            From::Samples => {
                let width = Duration::from_millis(joining.width_ms.unsigned_abs());
                for SeriesWindows { series, windows } in
                    self.stores.raw.windows(filter, part, width).await?
                {
                    let builder = joining.builder(series);
                    for window in windows {
                        let start_ms = window.start.timestamp_millis();
                        builder.push_aggregation(start_ms, &window.aggregation);
                    }
                }
                Ok(())
            }
            From::Rollups(tier) => {
                let frozen_ms = self.view.frozen_end(tier.width_ms);
                let frozen_ms = frozen_ms.clamp(piece.start_ms, piece.end_ms);
                let mut late = self.late(filter, piece.start_ms, frozen_ms, tier).await?;
                let Some((server_id, metric_type)) = filter.as_exact() else {
                    return joining.rollups(tier, filter, part, late).await;
                };
                let key = SeriesKey::new(server_id, metric_type);
                let rows = series::rows(tier, filter, part).await?;
                let mut late = late.remove(&key).unwrap_or_default();
                let builder = joining.builder(key);
                rows.iter().flatten().for_each(|row| add(builder, row, &mut late));
                push_all(builder, &late);
                Ok(())
            }
        }
    }

    /// Returns what samples there are of windows of which some were removed.
    async fn late(
        &self,
        filter: &SeriesFilter,
        start_ms: i64,
        end_ms: i64,
        tier: &Tier,
    ) -> Result<Late> {
        let start_ms = match self.view.phase {
            // What is before this is in the rollups.
            Phase::Pruning => start_ms.max(self.view.cutoff_ms),
            _ => start_ms,
        };
        let mut late = Late::new();
        if start_ms >= end_ms {
            return Ok(late);
        }
        let mut scan = self.stores.raw.scan(filter, range(start_ms, end_ms)?);
        while let Some(batch) = scan.try_next().await? {
            let windows = late.entry(batch.series).or_default();
            for sample in batch.samples {
                let ms = floor_ms(sample.timestamp);
                let start_ms = window_start_ms(ms, tier.width_ms);
                let window = windows.entry(start_ms);
                window.or_insert_with(|| Gathering::new(start_ms, ms)).push(ms, sample.value);
            }
        }
        Ok(late)
    }
}

/// Samples that came after others of their windows were removed.
type Late = BTreeMap<SeriesKey, BTreeMap<i64, Gathering>>;

/// Joins what comes from different sources, in order of time.
struct Joining {
    width_ms: i64,
    series: BTreeMap<SeriesKey, WindowBuilder>,
}

impl Joining {
    fn builder(&mut self, series: SeriesKey) -> &mut WindowBuilder {
        let width_ms = self.width_ms;
        self.series.entry(series).or_insert_with(|| WindowBuilder::new(width_ms))
    }

    /// Adds the rollups of a tier, and to each what came late.
    async fn rollups(
        &mut self,
        tier: &Tier,
        filter: &SeriesFilter,
        part: TimeRange,
        mut late: Late,
    ) -> Result<()> {
        let mut scan = tier.store.scan(filter, part);
        let mut open: Option<(SeriesKey, Decoder, BTreeMap<i64, Gathering>)> = None;
        while let Some(batch) = scan.try_next().await? {
            if open.as_ref().is_none_or(|(series, ..)| *series != batch.series) {
                self.close(open.take())?;
                let late = late.remove(&batch.series).unwrap_or_default();
                open = Some((batch.series.clone(), Decoder::new(tier.width_ms), late));
            }
            let Some((_, decoder, late)) = &mut open else { continue };
            let builder = self.builder(batch.series);
            for sample in &batch.samples {
                if let Some(row) = decoder.push(sample)? {
                    add(builder, &row, late);
                }
            }
        }
        self.close(open)?;
        for (series, late) in late {
            push_all(self.builder(series), &late);
        }
        Ok(())
    }

    fn close(
        &mut self,
        open: Option<(SeriesKey, Decoder, BTreeMap<i64, Gathering>)>,
    ) -> Result<()> {
        let Some((series, mut decoder, mut late)) = open else { return Ok(()) };
        let builder = self.builder(series);
        if let Some(row) = decoder.finish()? {
            add(builder, &row, &mut late);
        }
        push_all(builder, &late);
        Ok(())
    }

    fn finish(self) -> Vec<SeriesWindows> {
        let of = |(series, builder): (SeriesKey, WindowBuilder)| {
            let mut windows = builder.finish();
            for sum in windows.iter_mut().filter_map(|window| window.aggregation.sum.as_mut()) {
                // Two sums that did not fit, of different signs.
                *sum = if sum.is_nan() { f64::INFINITY } else { *sum };
            }
            SeriesWindows { series, windows }
        };
        self.series.into_iter().map(of).filter(|found| !found.windows.is_empty()).collect()
    }
}

/// Adds a row, and before it what came late of windows that have none.
fn add(builder: &mut WindowBuilder, row: &Row, late: &mut BTreeMap<i64, Gathering>) {
    while let Some(first) = late.first_entry().filter(|first| *first.key() < row.start_ms) {
        if let Some(one) = first.remove().finish() {
            push(builder, &one);
        }
    }
    let late = late.remove(&row.start_ms).and_then(|late| late.finish());
    let both = match (row.rollup, late) {
        (Some(rollup), Some(late)) => Some(rollup.plus(&late)),
        (rollup, late) => rollup.or(late),
    };
    if let Some(both) = both {
        push(builder, &both);
    }
}

/// Adds what came late and is left.
fn push_all(builder: &mut WindowBuilder, late: &BTreeMap<i64, Gathering>) {
    late.values().filter_map(Gathering::finish).for_each(|one| push(builder, &one));
}

fn push(builder: &mut WindowBuilder, rollup: &Rollup) {
    builder.push_aggregation(rollup.first_ms, &rollup.aggregation());
}
