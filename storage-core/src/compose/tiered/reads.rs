//! The reads of both tiers, each for one view of what is being moved.
//!
//! A read asks each tier once where it can, so that what it sees of the hot tier, which takes all
//! writes, is one moment of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use tokio::time::Instant;

use super::view::Phase;
use super::{Reading, Tiers, cold, overlay};
use crate::control::look_again;
use crate::deadline::after;
use crate::error::Result;
use crate::metrics::time::{END_MS, MIN_MS, floor_ms, from_ms, width_ms, window_start_ms};
use crate::metrics::{
    MetricAggregation, MetricRecord, ScanStream, SeriesFilter, SeriesInfo, SeriesKey,
    SeriesSamples, SeriesWindows, StorageBackend, TimeRange, Window, WindowBuilder,
};
use crate::pipeline::cursor::Pair;

/// What to ask the tiers for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    pub(super) hot: TimeRange,
    /// Empty where the cold tier holds nothing.
    pub(super) cold: TimeRange,
    /// Ask the hot tier after the cold one: what is copied meanwhile is in the hot one too.
    in_turn: bool,
}

impl Reading<'_> {
    fn tiers(&self) -> &Tiers {
        &self.store.tiers
    }

    /// Returns what counts of each tier in `range`.
    pub(super) fn parts(&self, range: TimeRange) -> Result<Parts> {
        let view = self.view;
        let (hot_ms, cold_ms) = match view.phase {
            Phase::Idle | Phase::Copying | Phase::Closing => (MIN_MS, MIN_MS),
            Phase::Moving => (view.cutoff_ms, MIN_MS),
            Phase::Pruning => (view.cutoff_ms, view.cutoff_ms),
        };
        Ok(Parts {
            hot: cut(range, hot_ms, END_MS)?,
            cold: cut(range, cold_ms, view.cold_end_ms)?,
            in_turn: matches!(view.phase, Phase::Copying | Phase::Closing),
        })
    }

    pub(super) async fn records(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        let (tiers, parts) = (self.tiers(), self.parts(range)?);
        let cold = async {
            if parts.cold.is_empty() {
                return Ok(Vec::new());
            }
            tiers.cold.query_range(server_id, metric_type, parts.cold).await
        };
        let hot = tiers.hot.query_range(server_id, metric_type, parts.hot);
        let (cold, hot) = both(parts.in_turn, cold, hot).await?;
        Ok(overlay::records(cold, hot))
    }

    pub(super) async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        let (tiers, parts) = (self.tiers(), self.parts(range)?);
        if parts.cold.is_empty() {
            return tiers.hot.aggregate(server_id, metric_type, parts.hot).await;
        }
        let cold = tiers.cold.aggregate(server_id, metric_type, parts.cold);
        let hot = tiers.hot.aggregate(server_id, metric_type, parts.hot);
        let (cold, hot) = both(parts.in_turn, cold, hot).await?;
        if cold.count == 0 || hot.count == 0 {
            return Ok(if hot.count == 0 { cold } else { hot });
        }
        let found = match self.late(server_id, metric_type, &parts).await? {
            late if late.is_empty() => overlay::added(&cold, &hot),
            late => self.overlaid(server_id, metric_type, &parts, &hot, late).await?,
        };
        match found {
            Some(found) => Ok(found),
            None => Ok(overlay::aggregate(&self.records(server_id, metric_type, range).await?)),
        }
    }

    /// Returns what the hot tier holds of the time of the cold one.
    async fn late(
        &self,
        server_id: &str,
        metric_type: &str,
        parts: &Parts,
    ) -> Result<Vec<MetricRecord>> {
        let range = cut(parts.hot, MIN_MS, parts.cold.end_ms())?;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        self.tiers().hot.query_range(server_id, metric_type, range).await
    }

    /// Returns the aggregate where late samples lie over the cold tier; `None` where the hot tier
    /// is no longer as it was when it said `hot`, or a sum is lost.
    ///
    /// Only the stretch that the late samples span is read sample by sample.
    async fn overlaid(
        &self,
        server_id: &str,
        metric_type: &str,
        parts: &Parts,
        hot: &MetricAggregation,
        late: Vec<MetricRecord>,
    ) -> Result<Option<MetricAggregation>> {
        let Some((first_ms, last_ms)) = overlay::span_ms(&late) else { return Ok(None) };
        let tiers = self.tiers();
        let of_late = overlay::aggregate(&late);
        let newer = cut(parts.hot, parts.cold.end_ms(), END_MS)?;
        let newer = tiers.hot.aggregate(server_id, metric_type, newer).await?;
        let same = overlay::added(&of_late, &newer).is_some_and(|all| overlay::alike(&all, hot));
        if !same {
            return Ok(None);
        }
        let early = cut(parts.cold, MIN_MS, first_ms)?;
        let span = cut(parts.cold, first_ms, last_ms + 1)?;
        let rest = cut(parts.cold, last_ms + 1, END_MS)?;
        let (early, span, rest) = futures_util::try_join!(
            tiers.cold.aggregate(server_id, metric_type, early),
            tiers.cold.query_range(server_id, metric_type, span),
            tiers.cold.aggregate(server_id, metric_type, rest),
        )?;
        if parts.in_turn {
            // Nothing may have been written late and copied since.
            let again = self.late(server_id, metric_type, parts).await?;
            if !overlay::alike(&overlay::aggregate(&again), &of_late) {
                return Ok(None);
            }
        }
        let span = overlay::aggregate(&overlay::records(span, late));
        let all = overlay::added(&early, &span).and_then(|all| overlay::added(&all, &rest));
        Ok(all.and_then(|all| overlay::added(&all, &newer)))
    }

    pub(super) async fn latest(
        &mut self,
        filter: &SeriesFilter,
        n: usize,
    ) -> Result<Vec<SeriesSamples>> {
        let known = self.cold_series(filter).await?;
        let (tiers, parts) = (self.tiers(), self.parts(TimeRange::all())?);
        // What does not count is older than all that does: it takes no place of the newest.
        let counted = |found: Vec<SeriesSamples>, range: TimeRange| {
            let of = |mut one: SeriesSamples| {
                one.samples.retain(|sample| range.contains(sample.timestamp));
                one
            };
            found.into_iter().map(of).collect::<Vec<_>>()
        };
        let (cold, hot) = match &known {
            Some(_) => (None, tiers.hot.latest(filter, n).await?),
            None => {
                let (cold, hot) = (tiers.cold.latest(filter, n), tiers.hot.latest(filter, n));
                let (cold, hot) = both(parts.in_turn, cold, hot).await?;
                (Some(cold), hot)
            }
        };
        let hot = counted(hot, parts.hot);
        let cold = match (cold, known) {
            (Some(cold), _) => cold,
            (None, Some(known)) if cold::is_older(&known, filter, &hot, n) => Vec::new(),
            (None, _) => tiers.cold.latest(filter, n).await?,
        };
        Ok(overlay::latest(counted(cold, parts.cold), hot, n))
    }

    /// Returns the series of both tiers, when no prune is under way that would have to be counted.
    pub(super) async fn settled_series(
        &mut self,
        filter: &SeriesFilter,
    ) -> Result<Vec<SeriesInfo>> {
        let deadline = after(Instant::now(), self.tiers().options.wait_max);
        loop {
            while self.view.phase == Phase::Pruning {
                self.view = self.store.wait_past(self.view, deadline).await?;
            }
            let found = self.series(filter).await?;
            if self.is_settled().await? {
                if let Some(found) = found {
                    return Ok(found);
                }
                self.again()?;
                look_again().await;
            }
        }
    }

    /// Returns the series of both tiers; `None` if late samples came while they were counted.
    async fn series(&self, filter: &SeriesFilter) -> Result<Option<Vec<SeriesInfo>>> {
        let (tiers, parts) = (self.tiers(), self.parts(TimeRange::all())?);
        let hot = self.hot_series(filter, &parts);
        let (cold, hot) = both(parts.in_turn, tiers.cold.series(filter), hot).await?;
        let Some(hot) = hot else { return Ok(None) };
        let overlap = |under: &SeriesInfo| {
            let over = hot.get(&under.series)?;
            let (from, to) = (under.oldest.max(over.oldest), under.newest.min(over.newest));
            (from <= to).then(|| (under.series.clone(), floor_ms(from), floor_ms(to)))
        };
        let overlapping: Vec<_> = cold.iter().filter_map(overlap).collect();
        let Some(doubles) = self.doubles(filter, &parts, &overlapping, &hot).await? else {
            return Ok(None);
        };
        let mut all = hot;
        for under in cold {
            match all.get_mut(&under.series) {
                None => drop(all.insert(under.series.clone(), under)),
                Some(over) => {
                    over.count += under.count;
                    over.oldest = over.oldest.min(under.oldest);
                    over.newest = over.newest.max(under.newest);
                }
            }
        }
        for (series, count) in doubles {
            if let Some(info) = all.get_mut(&series) {
                info.count = info.count.saturating_sub(count);
            }
        }
        // Of a series that is in the cold tier too the oldest sample is there.
        for info in all.values_mut().filter(|info| is_bound(&parts, info)) {
            info.oldest = self.hot_oldest(&info.series, &parts).await?.unwrap_or(info.oldest);
        }
        Ok(Some(all.into_values().collect()))
    }

    /// Returns the series of what counts in the hot tier; `None` if what does not count changed meanwhile.
    /// Where some of a series does not count its oldest sample is said to be at the bound, and may be newer.
    async fn hot_series(&self, filter: &SeriesFilter, parts: &Parts) -> Result<Option<HotSeries>> {
        let hot = &self.tiers().hot;
        let bound = parts.hot.start();
        let uncounted = async || match floor_ms(bound) {
            MIN_MS => Ok(BTreeMap::new()),
            bound_ms => count(hot.scan(filter, cut(TimeRange::all(), MIN_MS, bound_ms)?)).await,
        };
        let before = uncounted().await?;
        let found = hot.series(filter).await?;
        if uncounted().await? != before {
            return Ok(None);
        }
        let mut found: HotSeries =
            found.into_iter().map(|info| (info.series.clone(), info)).collect();
        for (series, count) in before {
            if let Some(info) = found.get_mut(&series) {
                *info = SeriesInfo {
                    oldest: bound,
                    count: info.count.saturating_sub(count),
                    ..info.clone()
                };
            }
        }
        found.retain(|_, info| info.count > 0);
        Ok(Some(found))
    }

    /// Looks up the oldest sample of a series that counts in the hot tier.
    async fn hot_oldest(&self, series: &SeriesKey, parts: &Parts) -> Result<Option<DateTime<Utc>>> {
        let filter = SeriesFilter::exact(&series.server_id, &series.metric_type)?;
        let first = self.tiers().hot.scan(&filter, parts.hot).next().await.transpose()?;
        Ok(first.and_then(|batch| batch.samples.first().map(|sample| sample.timestamp)))
    }

    /// Counts the samples that both tiers hold of series whose extents overlap; `None` if the hot
    /// tier does not hold as many as `hot` says any more.
    async fn doubles(
        &self,
        filter: &SeriesFilter,
        parts: &Parts,
        overlapping: &[(SeriesKey, i64, i64)],
        hot: &HotSeries,
    ) -> Result<Option<BTreeMap<SeriesKey, u64>>> {
        let mut doubles: BTreeMap<SeriesKey, u64> = BTreeMap::new();
        let (from, to) =
            (overlapping.iter().map(|o| o.1).min(), overlapping.iter().map(|o| o.2).max());
        let (Some(from), Some(to)) = (from, to) else { return Ok(Some(doubles)) };
        let filter = match overlapping {
            [(only, ..)] => SeriesFilter::exact(&only.server_id, &only.metric_type)?,
            _ => filter.clone(),
        };
        let (tiers, range) = (self.tiers(), TimeRange::new(from_ms(from), from_ms(to + 1))?);
        let mut pair = Pair::new(tiers.cold.scan(&filter, range), tiers.hot.scan(&filter, range));
        while let Some(which) = pair.next().await? {
            if let (true, Some((series, _))) = (which.is_eq(), pair.left.head()) {
                match doubles.get_mut(series) {
                    Some(count) => *count += 1,
                    None => drop(doubles.insert(series.clone(), 1)),
                }
            }
            pair.advance(which);
        }
        let Some(again) = self.hot_series(&filter, parts).await? else { return Ok(None) };
        let is_same = |(series, ..): &(SeriesKey, i64, i64)| again.get(series) == hot.get(series);
        Ok(overlapping.iter().all(is_same).then_some(doubles))
    }

    pub(super) async fn windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        let (tiers, parts) = (self.tiers(), self.parts(range)?);
        let cold = async {
            if parts.cold.is_empty() {
                return Ok(Vec::new());
            }
            tiers.cold.windows(filter, parts.cold, width).await
        };
        let hot = tiers.hot.windows(filter, parts.hot, width);
        let (cold, hot) = both(parts.in_turn, cold, hot).await?;
        if cold.is_empty() || hot.is_empty() {
            return Ok(if hot.is_empty() { cold } else { hot });
        }
        let mut all: BTreeMap<SeriesKey, [Vec<Window>; 2]> = BTreeMap::new();
        for (tier, found) in [cold, hot].into_iter().enumerate() {
            for SeriesWindows { series, windows } in found {
                all.entry(series).or_default()[tier] = windows;
            }
        }
        let joining = Joining { reading: self, filter, parts, width, late_at_edge: None };
        match joining.join(all).await? {
            Some(found) => Ok(found),
            None => self.windows_by_samples(filter, range, width).await,
        }
    }

    /// Returns windows series by series, from their samples: always right, and slow.
    async fn windows_by_samples(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        let tiers = self.tiers();
        let (cold, hot) =
            futures_util::try_join!(tiers.cold.series(filter), tiers.hot.series(filter))?;
        let all: BTreeSet<_> = cold.into_iter().chain(hot).map(|info| info.series).collect();
        let mut found = Vec::new();
        for series in all {
            let mut builder = WindowBuilder::new(width_ms(width)?);
            for one in self.records(&series.server_id, &series.metric_type, range).await? {
                builder.push(floor_ms(one.timestamp), one.value);
            }
            let windows = builder.finish();
            if !windows.is_empty() {
                found.push(SeriesWindows { series, windows });
            }
        }
        Ok(found)
    }
}

/// What counts in the hot tier, by series.
type HotSeries = BTreeMap<SeriesKey, SeriesInfo>;

/// Whether the oldest sample of a series may be newer than is said: see [`Reading::hot_series`].
fn is_bound(parts: &Parts, info: &SeriesInfo) -> bool {
    parts.hot.start_ms() != MIN_MS && info.oldest == parts.hot.start()
}

/// Counts samples by series.
async fn count(mut scan: ScanStream<'_>) -> Result<BTreeMap<SeriesKey, u64>> {
    let mut counts = BTreeMap::new();
    while let Some(batch) = scan.next().await.transpose()? {
        *counts.entry(batch.series).or_default() += batch.samples.len() as u64;
    }
    Ok(counts)
}

/// Joins the windows of both tiers.
struct Joining<'a> {
    reading: &'a Reading<'a>,
    filter: &'a SeriesFilter,
    parts: Parts,
    width: Duration,
    /// The series with late samples in the window in which the cold tier ends, once looked up.
    late_at_edge: Option<BTreeSet<SeriesKey>>,
}

impl Joining<'_> {
    /// Returns the windows of all series; `None` if that takes another look at the samples.
    async fn join(
        mut self,
        all: BTreeMap<SeriesKey, [Vec<Window>; 2]>,
    ) -> Result<Option<Vec<SeriesWindows>>> {
        let mut found = Vec::with_capacity(all.len());
        for (series, [cold, hot]) in all {
            let mut windows = Vec::with_capacity(cold.len() + hot.len());
            let mut hot = hot.into_iter().peekable();
            for under in cold {
                while let Some(over) = hot.next_if(|over| over.start < under.start) {
                    windows.push(over);
                }
                match hot.next_if(|over| over.start == under.start) {
                    None => windows.push(under),
                    Some(over) => match self.join_one(&series, &under, &over).await? {
                        Some(aggregation) => windows.push(Window { aggregation, ..under }),
                        None => return Ok(None),
                    },
                }
            }
            windows.extend(hot);
            found.push(SeriesWindows { series, windows });
        }
        Ok(Some(found))
    }

    /// Joins a window of which both tiers hold samples.
    async fn join_one(
        &mut self,
        series: &SeriesKey,
        cold: &Window,
        hot: &Window,
    ) -> Result<Option<MetricAggregation>> {
        let start_ms = hot.start.timestamp_millis();
        let end_ms = start_ms.saturating_add(width_ms(self.width)?);
        if end_ms > self.parts.cold.end_ms() && !self.late_at_edge().await?.contains(series) {
            return Ok(overlay::added(&cold.aggregation, &hot.aggregation));
        }
        let SeriesKey { server_id, metric_type } = series;
        let tiers = self.reading.tiers();
        let (in_cold, in_hot) =
            (cut(self.parts.cold, start_ms, end_ms)?, cut(self.parts.hot, start_ms, end_ms)?);
        let under = tiers.cold.query_range(server_id, metric_type, in_cold).await?;
        let over = tiers.hot.query_range(server_id, metric_type, in_hot).await?;
        let is_same = overlay::alike(&overlay::aggregate(&over), &hot.aggregation);
        Ok(is_same.then(|| overlay::aggregate(&overlay::records(under, over))))
    }

    async fn late_at_edge(&mut self) -> Result<&BTreeSet<SeriesKey>> {
        if self.late_at_edge.is_none() {
            let end_ms = self.parts.cold.end_ms();
            let start_ms = window_start_ms(end_ms - 1, width_ms(self.width)?);
            let range = cut(self.parts.hot, start_ms, end_ms)?;
            let late = match range.is_empty() {
                true => Vec::new(),
                false => self.reading.tiers().hot.windows(self.filter, range, self.width).await?,
            };
            self.late_at_edge = Some(late.into_iter().map(|late| late.series).collect());
        }
        Ok(self.late_at_edge.get_or_insert_default())
    }
}

/// Asks both tiers, at once or the cold one first.
async fn both<A, B>(
    in_turn: bool,
    cold: impl Future<Output = Result<A>>,
    hot: impl Future<Output = Result<B>>,
) -> Result<(A, B)> {
    if !in_turn {
        return futures_util::try_join!(cold, hot);
    }
    let cold = cold.await?;
    Ok((cold, hot.await?))
}

/// Returns the part of `range` from `from_ms` to `to_ms`; an empty range if there is none.
fn cut(range: TimeRange, start_ms: i64, to_ms: i64) -> Result<TimeRange> {
    let end_ms = range.end_ms().min(to_ms);
    let start_ms = range.start_ms().max(start_ms).min(end_ms);
    TimeRange::new(from_ms(start_ms), from_ms(end_ms))
}
