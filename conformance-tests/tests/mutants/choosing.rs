//! How mutants answer what takes a filter: series, latest, windows, scans.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::DateTime;
use futures_util::{FutureExt, StreamExt, stream};
use storage_core::metrics::backend::{SCAN_BATCH_SAMPLES_MAX, ScanStream};
use storage_core::metrics::time::{floor_ms, from_ms, width_ms, window_start_ms};
use storage_core::metrics::{SeriesWindows, Window};
use storage_core::{
    Error, Matcher, MetricRecord, Result, Sample, SeriesFilter, SeriesInfo, SeriesKey,
    SeriesSamples, StorageBackend, TimeRange,
};

use super::broken::Broken;
use super::bugs::Bug;
use super::state::{Held, Unfinished, pause};

impl Broken {
    pub(super) async fn try_series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        self.enter()?;
        if self.is(Bug::LacksSeriesSaysInvalid) {
            return Err(Error::invalid("what is a series?").with_backend("memory"));
        }
        if self.is(Bug::DroppedReadBreaks) {
            let unfinished = Unfinished::new(&self.shared.broken);
            pause().await;
            unfinished.done();
        }
        let mut found = self.inner.series(&SeriesFilter::any()).await?;
        self.add_empty_ones(&mut found);
        found.retain(|info| self.chooses(filter, &info.series));
        if self.is(Bug::SeriesUnknownFails) && found.is_empty() && filter.as_exact().is_some() {
            return Err(Error::invalid("no such series").with_backend("memory"));
        }
        found.iter_mut().for_each(|info| self.spoil_info(info));
        let key = |info: &SeriesInfo| info.series.clone();
        match self.bug {
            Bug::SeriesBackwards => found.reverse(),
            Bug::SeriesByMetric => {
                found.sort_by_key(|info| (key(info).metric_type, key(info).server_id));
            }
            Bug::SeriesTwice => found.extend(found.clone()),
            Bug::SeriesAtMost1000 => found.truncate(1000),
            Bug::HandlesKnowOwnSeries => {
                let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                found.retain(|info| known.contains(&info.series));
            }
            _ => {}
        }
        Ok(found)
    }

    /// Lists series that hold nothing, as some bugs do.
    fn add_empty_ones(&self, found: &mut Vec<SeriesInfo>) {
        let log = self.shared.log();
        let listed = match self.bug {
            Bug::SeriesListEmpty => &log.series_ever,
            Bug::SeriesListRefused => &log.refused,
            Bug::SeriesListAsked => &log.asked,
            _ => return,
        };
        let there: Vec<_> = found.iter().map(|info| info.series.clone()).collect();
        for series in listed.iter().filter(|series| !there.contains(series)) {
            let (oldest, newest) = (from_ms(0), from_ms(0));
            found.push(SeriesInfo { series: series.clone(), count: 0, oldest, newest });
        }
        found.sort_by(|a, b| a.series.cmp(&b.series));
    }

    fn spoil_info(&self, info: &mut SeriesInfo) {
        let log = self.shared.log();
        match self.bug {
            Bug::SeriesCountWrites => {
                info.count += log.overwrites_by_series.get(&info.series).copied().unwrap_or(0);
            }
            Bug::SeriesKeepOldest => {
                let oldest = log.oldest_of.get(&info.series).copied();
                info.oldest = oldest.map_or(info.oldest, from_ms);
            }
            Bug::SeriesSwapExtent => std::mem::swap(&mut info.oldest, &mut info.newest),
            _ => {}
        }
    }

    fn chooses(&self, filter: &SeriesFilter, key: &SeriesKey) -> bool {
        let (server, metric) = (filter.server_id.to_string(), filter.metric_type.to_string());
        let by = |matches: &dyn Fn(&str, &str) -> bool| {
            matches(&server, &key.server_id) && matches(&metric, &key.metric_type)
        };
        match self.bug {
            Bug::FilterIgnoresCase => {
                by(&|text, name| wild(&text.to_lowercase(), &name.to_lowercase(), false, 0))
            }
            Bug::FilterIgnoresMetric => filter.server_id.matches(&key.server_id),
            Bug::FilterQuestionMark => by(&|text, name| wild(text, name, true, 0)),
            Bug::FilterExactIsGlob => by(&|text, name| wild(text, name, false, 0)),
            Bug::FilterFirstNameOnly => {
                let first = |matcher: &Matcher, name: &str| match matcher.names() {
                    Some(names) => names.first().is_some_and(|first| first == name),
                    None => matcher.matches(name),
                };
                first(&filter.server_id, &key.server_id)
                    && first(&filter.metric_type, &key.metric_type)
            }
            Bug::FilterStarNeedsOne => by(&|text, name| wild(text, name, false, 1)),
            _ => filter.matches_key(key),
        }
    }

    pub(super) async fn try_latest(
        &self,
        filter: &SeriesFilter,
        n: usize,
    ) -> Result<Vec<SeriesSamples>> {
        if self.is(Bug::OffersWhatItRefuses) {
            return Err(Error::unsupported("latest").with_backend("memory"));
        }
        let (mut found, mut left) = (Vec::new(), n);
        for info in self.try_series(filter).await? {
            let mut records = self.read_key(&info.series, TimeRange::all()).await?;
            if !self.is(Bug::LatestOldestFirst) {
                records.reverse();
            }
            let n = match self.bug {
                Bug::LatestOneMore if n > 0 => n + 1,
                Bug::LatestZeroIsAll if n == 0 => usize::MAX,
                Bug::LatestOfAllSeries => left,
                _ => n,
            };
            let mut samples: Vec<_> = records.iter().take(n).map(MetricRecord::to_sample).collect();
            left -= samples.len().min(left);
            if self.is(Bug::LatestDropsMetadata) {
                samples.iter_mut().for_each(|sample| sample.metadata = None);
            }
            if !samples.is_empty() {
                found.push(SeriesSamples { series: info.series, samples });
            }
        }
        Ok(found)
    }

    async fn read_key(&self, key: &SeriesKey, range: TimeRange) -> Result<Vec<MetricRecord>> {
        self.read(&key.server_id, &key.metric_type, range).await
    }

    pub(super) async fn try_windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        let width_ms = match width_ms(width) {
            Err(_) if self.is(Bug::WindowsTakeAnyWidth) => 1,
            width_ms => width_ms?,
        };
        let mut found = Vec::new();
        for info in self.try_series(filter).await? {
            let asked = if self.is(Bug::WindowsIgnoreRange) { TimeRange::all() } else { range };
            let mut windows: BTreeMap<i64, Vec<(i64, f64)>> = BTreeMap::new();
            for record in self.read_key(&info.series, asked).await? {
                let ms = floor_ms(record.timestamp);
                let start = self.window_of(ms, width_ms, range);
                windows.entry(start).or_default().push((ms, record.value));
            }
            if let (Bug::WindowsAreFilled, Some((first, _)), Some((last, _))) =
                (self.bug, windows.first_key_value(), windows.last_key_value())
            {
                let (first, last) = (*first, *last);
                for start in (first..last).step_by(width_ms as usize).take(1000) {
                    windows.entry(start).or_default();
                }
            }
            let window = |(start, points): (i64, Vec<(i64, f64)>)| {
                let mut aggregation = self.aggregate_of(&points)?;
                if self.is(Bug::WindowsSumNaively) && !points.is_empty() {
                    aggregation.sum = Some(points.iter().map(|(_, value)| value).sum());
                }
                let start = DateTime::from_timestamp_millis(start).unwrap_or_default();
                Ok(Window { start, aggregation })
            };
            let windows = windows.into_iter().map(window).collect::<Result<Vec<_>>>()?;
            if !windows.is_empty() || self.is(Bug::WindowsOfEverySeries) {
                found.push(SeriesWindows { series: info.series, windows });
            }
        }
        Ok(found)
    }

    fn window_of(&self, ms: i64, width_ms: i64, range: TimeRange) -> i64 {
        match self.bug {
            Bug::WindowsTruncate => ms - ms % width_ms,
            Bug::WindowsFromRangeStart => ms - (ms - range.start_ms()).rem_euclid(width_ms),
            Bug::WindowsEdgeEarlier => window_start_ms(ms - 1, width_ms),
            _ => window_start_ms(ms, width_ms),
        }
    }

    pub(super) fn try_scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        let filter = match self.bug {
            Bug::ScanIgnoresFilter => SeriesFilter::any(),
            _ => filter.clone(),
        };
        let range = if self.is(Bug::ScanIgnoresRange) { TimeRange::all() } else { range };
        if self.is(Bug::ScanPagesByOffset) {
            return self.scan_pages(filter, range);
        }
        let early = self
            .is(Bug::ScanStartsAtCall)
            .then(|| self.scan_batches(&filter, range).now_or_never().unwrap_or_default());
        let batches = async move {
            let held = Held::new(&self.shared.scans);
            let compactions = self.shared.compactions.load(Ordering::SeqCst);
            let batches = match early {
                Some(batches) => batches,
                None => self.scan_batches(&filter, range).await,
            };
            if self.is(Bug::ScanLeaks) {
                self.shared.errors.fetch_add(1, Ordering::SeqCst);
                let leaked = self.shared.errors.load(Ordering::SeqCst) > 10;
                self.shared.broken.fetch_or(leaked, Ordering::SeqCst);
            }
            stream::iter(batches).take_while(move |_| {
                let _ = &held;
                let now = self.shared.compactions.load(Ordering::SeqCst);
                let over = self.is(Bug::ScanEndsAtCompaction) && now != compactions;
                std::future::ready(!over)
            })
        };
        Box::pin(stream::once(batches).flatten())
    }

    /// All batches of a scan, or its error.
    async fn scan_batches(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
    ) -> Vec<Result<SeriesSamples>> {
        let found = match self.scan_series(filter, range).await {
            Ok(found) => found,
            Err(error) if self.is(Bug::ScanGoesOnAfterError) => {
                let again = Error::new(error.kind(), "again");
                return vec![Err(self.leave(error)), Err(again)];
            }
            Err(error) => return vec![Err(self.leave(error))],
        };
        let size = match self.bug {
            Bug::ScanLargeBatches => SCAN_BATCH_SAMPLES_MAX + 1,
            _ => SCAN_BATCH_SAMPLES_MAX,
        };
        let mut batches = Vec::new();
        for (no, (series, samples)) in found.into_iter().enumerate() {
            let mut rest = samples.as_slice();
            while !rest.is_empty() {
                let (batch, later) = rest.split_at(rest.len().min(size));
                batches.push(SeriesSamples { series: series.clone(), samples: batch.to_vec() });
                let edge = usize::from(self.is(Bug::ScanDoublesEdges) && !later.is_empty());
                rest = &samples[samples.len() - later.len() - edge..];
            }
            if self.is(Bug::ScanEmptyBatches) {
                batches.push(SeriesSamples { series: series.clone(), samples: Vec::new() });
            }
            if self.is(Bug::ScanMixesSeries) && no > 0 && batches.len() > 1 {
                let last = batches.pop();
                if let (Some(before), Some(last)) = (batches.last_mut(), last) {
                    before.samples.extend(last.samples);
                }
            }
        }
        match self.bug {
            Bug::ScanLosesRest => {
                batches.iter_mut().for_each(|batch| drop(batch.samples.pop()));
                batches.retain(|batch| !batch.samples.is_empty());
            }
            Bug::ScanRestarts => batches.extend(batches.clone()),
            _ => {}
        }
        batches.into_iter().map(Ok).collect()
    }

    async fn scan_series(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
    ) -> Result<Vec<(SeriesKey, Vec<Sample>)>> {
        let mut found = Vec::new();
        for info in self.try_series(filter).await? {
            let records = self.read_key(&info.series, range).await?;
            let mut samples: Vec<_> = records.iter().map(MetricRecord::to_sample).collect();
            if self.is(Bug::KeepsNegativeZero) {
                samples.iter_mut().filter(|s| s.value == 0.0).for_each(|s| s.value = -0.0);
            }
            if self.is(Bug::ScanDropsMetadata) {
                samples.iter_mut().for_each(|sample| sample.metadata = None);
            }
            found.push((info.series, samples));
        }
        if self.is(Bug::ScanDropsLastSeries) && found.len() > 1 {
            found.pop();
        }
        Ok(found)
    }

    /// Reads anew for each page, and skips as many samples as there were before.
    fn scan_pages(&self, filter: SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        let pages = stream::unfold((0, 0), move |(mut no, mut offset)| {
            let filter = filter.clone();
            async move {
                loop {
                    let found = match self.scan_series(&filter, range).await {
                        Ok(found) => found,
                        Err(error) => return Some((Err(self.leave(error)), (usize::MAX, 0))),
                    };
                    let (series, samples) = found.get(no)?;
                    if offset < samples.len() {
                        let page = samples.iter().skip(offset).take(SCAN_BATCH_SAMPLES_MAX);
                        let samples: Vec<_> = page.cloned().collect();
                        offset += samples.len();
                        let batch = SeriesSamples { series: series.clone(), samples };
                        return Some((Ok(batch), (no, offset)));
                    }
                    (no, offset) = (no + 1, 0);
                }
            }
        });
        Box::pin(pages)
    }
}

/// Matches a pattern in which `*` stands for `star_min` characters or more and, if so wished,
/// `?` for one.
fn wild(pattern: &str, name: &str, question: bool, star_min: usize) -> bool {
    let Some(first) = pattern.chars().next() else { return name.is_empty() };
    let rest = &pattern[first.len_utf8()..];
    if first == '*' {
        let places = name.char_indices().map(|(at, _)| at).chain([name.len()]);
        return places.skip(star_min).any(|at| wild(rest, &name[at..], question, star_min));
    }
    let Some(found) = name.chars().next() else { return false };
    let fits = first == found || (question && first == '?');
    fits && wild(rest, &name[found.len_utf8()..], question, star_min)
}
