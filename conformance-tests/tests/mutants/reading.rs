//! How mutants read: one series, the aggregate, the stats.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use storage_core::metrics::Accumulator;
use storage_core::metrics::record::validate_names;
use storage_core::metrics::time::{END_MS, MIN_MS, floor_ms, from_ms};
use storage_core::{
    Error, ErrorKind, MetricAggregation, MetricRecord, Result, SeriesFilter, SeriesKey,
    StorageBackend, StorageStats, TimeRange,
};

use super::broken::Broken;
use super::bugs::Bug;
use super::state::{Held, Unfinished, pause};

impl Broken {
    /// What every kind of read is made of.
    pub(super) async fn read(
        &self,
        server: &str,
        metric: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        self.enter()?;
        let _reading = self.begin_read().await?;
        if self.is(Bug::AcceptsBadNamesInReads) && validate_names(server, metric).is_err() {
            return Ok(Vec::new());
        }
        if self.is(Bug::EmptyRangeIsAnError) && range.is_empty() {
            return Err(Error::invalid("the range is empty"));
        }
        let (server, metric) = self.rename(server, metric);
        let asked = self.spoil_range(range);
        let mut found = self.inner.query_range(&server, &metric, asked).await?;
        self.shared.log().asked.insert(SeriesKey::new(&server, &metric));
        self.spoil_found(&server, &metric, asked, &mut found).await?;
        if self.is(Bug::RemembersReads) {
            let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            let question = format!("{server}\0{metric}\0{range:?}");
            found.clone_from(remembered.entry(question).or_insert_with(|| found.clone()));
        }
        Ok(found)
    }

    async fn begin_read(&self) -> Result<Held<'_>> {
        let reading = Held::new(&self.shared.reading);
        match self.bug {
            Bug::FewReaders => {
                pause().await;
                if self.shared.reading.load(Ordering::SeqCst) > 16 {
                    return Err(Error::new(ErrorKind::Busy, "too many readers"));
                }
            }
            Bug::DroppedReadBreaks => {
                let unfinished = Unfinished::new(&self.shared.broken);
                pause().await;
                unfinished.done();
            }
            _ => {}
        }
        Ok(reading)
    }

    fn spoil_range(&self, range: TimeRange) -> TimeRange {
        let (start, end) = (range.start_ms(), range.end_ms());
        let (start, end) = match self.bug {
            Bug::IncludesEnd => (start, end + 1),
            Bug::ExcludesStart => (start + 1, end),
            Bug::ForgetsBefore1970 => (start.max(0), end),
            _ => (start, end),
        };
        let (start, end) = (start.clamp(MIN_MS, END_MS), end.clamp(MIN_MS, END_MS));
        TimeRange::new(from_ms(start.min(end)), from_ms(end)).unwrap_or(range)
    }

    async fn spoil_found(
        &self,
        server: &str,
        metric: &str,
        range: TimeRange,
        found: &mut Vec<MetricRecord>,
    ) -> Result<()> {
        let compacted = self.shared.compactions.load(Ordering::SeqCst) > 0;
        match self.bug {
            Bug::KeepsNegativeZero => {
                found.iter_mut().filter(|r| r.value == 0.0).for_each(|r| r.value = -0.0);
            }
            Bug::ReadsNewestFirst => found.reverse(),
            Bug::CompactReorders if compacted => found.reverse(),
            Bug::ReadsTwice => found.extend(found.clone()),
            Bug::CompactDoubles if compacted => found.extend(found.first().cloned()),
            Bug::ReadsAtMostTwo => found.truncate(2),
            Bug::UnknownIsAnError if found.is_empty() => {
                return Err(Error::invalid("no such series").with_backend("memory"));
            }
            Bug::AppendsWhatIsRepeated => {
                let repeated = self.shared.log().repeated.clone();
                let twice = |record: MetricRecord| {
                    let times =
                        1 + usize::from(repeated.contains(&super::state::place_of(&record)));
                    std::iter::repeat_n(record, times)
                };
                *found = std::mem::take(found).into_iter().flat_map(twice).collect();
            }
            Bug::ReadsNeighbours => {
                for info in self.inner.series(&SeriesFilter::any()).await? {
                    let key = info.series;
                    if key.server_id == server && key.metric_type != metric {
                        found
                            .extend(self.inner.query_range(server, &key.metric_type, range).await?);
                    }
                }
            }
            Bug::ReadingRemoves if found.len() > 1 => self.lose_oldest(),
            Bug::PruneMakesHoles if self.shared.pruning.load(Ordering::SeqCst) > 0 => {
                *found = std::mem::take(found).into_iter().step_by(2).collect();
            }
            _ => {}
        }
        if self.shared.hidden.load(Ordering::SeqCst) > 0 {
            found.clear();
        }
        if self.shared.log().metadata_lost {
            found.iter_mut().for_each(|record| record.metadata = None);
        }
        Ok(())
    }

    pub(super) async fn try_aggregate(
        &self,
        server: &str,
        metric: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        let range = match self.bug {
            Bug::AggregateIgnoresRange => TimeRange::all(),
            Bug::AggregateIncludesEnd => {
                let end = from_ms(range.end_ms() + 1);
                TimeRange::new(range.start(), end).unwrap_or(range)
            }
            _ => range,
        };
        // Its errors are those of `aggregate`, whatever the call is made of.
        self.inner.aggregate(server, metric, range).await.map(drop).or_else(|error| {
            let excused = error.kind() == ErrorKind::InvalidArgument;
            if self.is(Bug::AcceptsBadNamesInReads) && excused { Ok(()) } else { Err(error) }
        })?;
        let found = self.read(server, metric, range).await?;
        let points: Vec<_> = found.iter().map(|r| (floor_ms(r.timestamp), r.value)).collect();
        self.aggregate_of(&points)
    }

    pub(super) fn aggregate_of(&self, points: &[(i64, f64)]) -> Result<MetricAggregation> {
        let mut accumulator = Accumulator::default();
        points.iter().for_each(|(_, value)| accumulator.push(*value));
        let mut found = accumulator.finish();
        if points.is_empty() {
            return match self.bug {
                Bug::EmptyAggregateFails => Err(Error::new(ErrorKind::Internal, "no rows")),
                Bug::EmptyAggregateIsZero => {
                    Ok(MetricAggregation { sum: Some(0.0), min: Some(0.0), ..found })
                }
                _ => Ok(found),
            };
        }
        let naive: f64 = points.iter().map(|(_, value)| value).sum();
        let sum = found.sum.unwrap_or_default();
        match self.bug {
            Bug::SumsNaively => found.sum = Some(naive),
            Bug::SumIsNan if !naive.is_finite() => found.sum = Some(f64::NAN),
            Bug::SumSaturates => found.sum = Some(sum.clamp(f64::MIN, f64::MAX)),
            Bug::AverageRounds => found.avg = found.avg.map(f64::round),
            Bug::SwapsFirstAndLast => std::mem::swap(&mut found.first, &mut found.last),
            Bug::MinimumStartsAtZero => {
                found.min = found.min.map(|min| min.min(0.0));
                found.max = found.max.map(|max| max.max(0.0));
            }
            _ => {}
        }
        Ok(found)
    }

    pub(super) async fn try_stats(&self) -> Result<StorageStats> {
        self.enter()?;
        if self.is(Bug::DroppedReadBreaks) {
            drop(self.begin_read().await?);
        }
        let mut stats = self.inner.stats().await?;
        let series = match self.bug {
            Bug::StatsCountServers => self.inner.series(&SeriesFilter::any()).await?,
            _ => Vec::new(),
        };
        let log = self.shared.log();
        let time = |ms: Option<i64>| ms.map(from_ms);
        match self.bug {
            Bug::StatsCountWrites => stats.total_metrics += log.overwrites,
            Bug::CompactedCountsTwice => stats.total_metrics += log.frozen_overwrites,
            Bug::StatsCountServers => {
                let mut servers: Vec<_> = series.iter().map(|one| &one.series.server_id).collect();
                servers.dedup();
                stats.series = servers.len() as u64;
            }
            Bug::StatsKeepOldest => stats.oldest_metric = time(log.oldest_ever),
            Bug::StatsKeepNewest => stats.newest_metric = time(log.newest_ever),
            Bug::StatsFirstIsOldest => stats.oldest_metric = time(log.first_ever),
            Bug::StatsSwapExtent => {
                std::mem::swap(&mut stats.oldest_metric, &mut stats.newest_metric);
            }
            Bug::StatsRoundCounts => {
                stats.total_metrics = stats.total_metrics.next_multiple_of(100)
            }
            Bug::StatsCountRefused => stats.total_metrics += log.refused_count,
            Bug::NoBytes => stats.disk_usage_bytes = 0,
            Bug::BytesGrow => stats.disk_usage_bytes = log.bytes,
            _ => {}
        }
        Ok(stats)
    }
}
