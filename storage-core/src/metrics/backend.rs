//! The contract for metrics: what every backend promises, word for word.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_core::Stream;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::aggregation::{MetricAggregation, SeriesWindows, WindowBuilder};
use super::filter::SeriesFilter;
use super::range::TimeRange;
use super::record::{MetricRecord, Sample, SeriesKey, SeriesSamples};
use super::stats::{CheckReport, Health, SeriesInfo, StorageStats};
use super::time::{floor_ms, width_ms};
use crate::capabilities::Capabilities;
use crate::error::{Error, Result};

/// What [`StorageBackend::scan`] returns: batches of samples, each of one series.
pub type ScanStream<'a> = Pin<Box<dyn Stream<Item = Result<SeriesSamples>> + Send + 'a>>;

/// The most samples that one batch of [`StorageBackend::scan`] holds.
pub const SCAN_BATCH_SAMPLES_MAX: usize = 4096;

/// A store for metrics.
///
/// Five methods are required; a backend that has them works. With [`series`](Self::series) it
/// also answers everything that takes a [`SeriesFilter`], by default implementations that a
/// backend replaces where it can do better. This documentation is the contract; the crate
/// `conformance-tests` checks a backend against every sentence of it.
///
/// # Model
/// A *series* is a pair of `server_id` and `metric_type`, compared byte by byte. A series holds at
/// most one *sample* per millisecond. A record that breaks a rule of [`MetricRecord`] is refused.
/// Every time that crosses the contract (of a record, a range, a cutoff) is floored to whole
/// milliseconds toward the past, also before 1970. A series exists while it holds a sample.
///
/// # Sharing
/// Any number of tasks, handles and, where the location is a file or a server, processes may use
/// one location at once. What one wrote, every other sees as soon as the writing call has
/// returned.
///
/// # Cancellation
/// Dropping the future of a call leaves all of its effect or none, and the handle usable. A write
/// that still takes effect after its future was dropped does so before any later write on the
/// same handle.
///
/// # Errors
/// Every method may return, besides the kinds that it lists, `Unavailable`, `Busy`, `Timeout`,
/// `Corrupt`, `Io` and, after [`close`](Self::close), `Closed`. Reads say the outcome `NotApplied`.
#[async_trait]
pub trait StorageBackend: Send + Sync {
    /// Stores a batch of records, all or nothing.
    ///
    /// When it returns `Ok` the whole batch is visible to every reader and survives a crash of
    /// the process and a power cut, unless the backend was told to relax durability. When it
    /// returns an error with the outcome `NotApplied`, nothing of the batch is stored, now or
    /// later; with `Unknown`, all of it or nothing is. No call that reads ever sees a part of a batch, except a scan,
    /// and those of the default implementations that ask series by series.
    ///
    /// A record of a series and millisecond that already holds a sample replaces it, metadata
    /// included: the write applied last wins; inside a batch, the record that comes last. So a
    /// batch may be written again without effect. Records may come in any order of time. An
    /// empty batch is `Ok` and does nothing. A batch may have any size.
    ///
    /// Values come back bit for bit, except that -0.0 comes back as 0.0; metadata comes back as
    /// equal JSON, `null` as none.
    ///
    /// # Errors
    /// `InvalidArgument` if a record breaks a rule of [`MetricRecord`], with the details `record`
    /// (index of the first bad one) and `field`; nothing is stored. `StorageFull` and
    /// `PermissionDenied` as the location has it; nothing is stored, reads go on.
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()>;

    /// Returns the samples of a series in `range` as records, oldest first.
    ///
    /// A series without samples, known or not, gives an empty answer.
    ///
    /// # Errors
    /// `InvalidArgument` if a name breaks the rules of a record's.
    async fn query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>>;

    /// Returns count, sum, minimum, maximum, average, first and last of a series in `range`.
    ///
    /// It equals what one computes from [`query_range`](Self::query_range): count, minimum,
    /// maximum, first and last exactly; the sum is the exact sum of the values up to a relative
    /// error of 1e-12 of the sum of their magnitudes, and infinite only if the exact sum does not
    /// fit into an `f64`; the average is sum by count. No samples give count 0 and `None`s.
    ///
    /// # Errors
    /// As [`query_range`](Self::query_range).
    async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation>;

    /// Removes every sample whose timestamp is before `cutoff`, and returns how many.
    ///
    /// A sample at the cutoff stays. The number is exact, the sum of two concurrent prunes too.
    /// Later writes before the cutoff are accepted and visible. A prune that fails or is
    /// dropped may have removed a part; repeating it removes the rest.
    ///
    /// # Errors
    /// `PermissionDenied` if the store is read-only. The outcome is `Unknown` if a part may have
    /// been removed.
    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64>;

    /// Returns the exact number of samples and series, the extent in time and the bytes on disk.
    async fn stats(&self) -> Result<StorageStats>;

    /// The name of the backend, as errors and logs show it. A wrapper returns that of what it
    /// wraps.
    fn name(&self) -> &'static str {
        std::any::type_name::<Self>()
    }

    /// What the backend offers beyond the required methods.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// Returns the series that `filter` chooses and that hold samples, ordered by server, then
    /// metric, byte by byte.
    ///
    /// # Errors
    /// `Unsupported` without [`Capabilities::series`].
    async fn series(&self, _filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        Err(Error::unsupported("series").with_backend(self.name()))
    }

    /// Returns the newest `n_per_series` samples of each series that `filter` chooses, newest
    /// first, the series ordered as in [`series`](Self::series).
    ///
    /// A series with fewer samples gives all it has; with `n_per_series` 0 the answer is empty.
    ///
    /// # Errors
    /// `Unsupported` without [`Capabilities::series`].
    async fn latest(
        &self,
        filter: &SeriesFilter,
        n_per_series: usize,
    ) -> Result<Vec<SeriesSamples>> {
        let mut found = Vec::new();
        for info in self.series(filter).await? {
            let samples = latest_of(self, &info, n_per_series).await?;
            if !samples.is_empty() {
                found.push(SeriesSamples { series: info.series, samples });
            }
        }
        Ok(found)
    }

    /// Returns aggregates of each series that `filter` chooses over windows of time `width` wide.
    ///
    /// A window starts at a multiple of its width since the Unix epoch, also before 1970. Only
    /// samples inside `range` count, also in the first and the last window. A window without
    /// samples does not appear, a series without windows neither. Series are ordered as in
    /// [`series`](Self::series), windows oldest first; each aggregate is as exact as
    /// [`aggregate`](Self::aggregate).
    ///
    /// # Errors
    /// `Unsupported` without [`Capabilities::series`]; `InvalidArgument` if `width` is not a
    /// whole number of milliseconds between 1 ms and 10,000 years.
    async fn windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        let width_ms = width_ms(width)?;
        let mut found = Vec::new();
        for info in self.series(filter).await? {
            let SeriesKey { server_id, metric_type } = &info.series;
            let records = self.query_range(server_id, metric_type, range).await?;
            let mut builder = WindowBuilder::new(width_ms);
            for record in &records {
                builder.push(floor_ms(record.timestamp), record.value);
            }
            let windows = builder.finish();
            if !windows.is_empty() {
                found.push(SeriesWindows { series: info.series, windows });
            }
        }
        Ok(found)
    }

    /// Streams every sample in `range` of the series that `filter` chooses, ordered by series,
    /// then time, in batches of one series and at most [`SCAN_BATCH_SAMPLES_MAX`] samples.
    ///
    /// No batch is empty. Samples that were stored before the first poll and are neither replaced
    /// nor pruned meanwhile are all returned; what is written meanwhile may or may not be; no
    /// sample comes twice. A store need not fit into memory to be scanned. After an error the
    /// stream ends.
    ///
    /// # Errors
    /// `Unsupported` without [`Capabilities::series`].
    fn scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        scan_by_series(self, filter.clone(), range)
    }

    /// Writes out whatever the backend or a layer holds back: after `Ok`, everything accepted
    /// before is stored as durably as `write_batch` promises. A backend that holds nothing back
    /// does nothing.
    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    /// Does now what upkeep would do later in the background (seal, merge, give space back), so
    /// that the store is as small as it gets. No answer changes by it.
    async fn compact(&self) -> Result<()> {
        Ok(())
    }

    /// Verifies the stored bytes, checksums included, and lists what is wrong.
    ///
    /// # Errors
    /// `Unsupported` without [`Capabilities::check`].
    async fn check(&self) -> Result<CheckReport> {
        Err(Error::unsupported("check").with_backend(self.name()))
    }

    /// Says whether reads and writes work at the moment. Never fails: an error is the answer.
    async fn health(&self) -> Health {
        match self.stats().await {
            Ok(_) => Health::healthy(),
            Err(error) => Health::down(&error),
        }
    }

    /// Finishes what is under way and frees the resources; nothing acknowledged is lost without it.
    ///
    /// With [`Capabilities::close`], later calls on this handle return `Closed`, also when `close` itself failed; a second
    /// `close` does nothing; other handles go on.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

async fn latest_of<B: StorageBackend + ?Sized>(
    backend: &B,
    info: &SeriesInfo,
    n: usize,
) -> Result<Vec<Sample>> {
    let SeriesKey { server_id, metric_type } = &info.series;
    let records = backend.query_range(server_id, metric_type, TimeRange::all()).await?;
    Ok(records.into_iter().rev().take(n).map(into_sample).collect())
}

fn scan_by_series<B: StorageBackend + ?Sized>(
    backend: &B,
    filter: SeriesFilter,
    range: TimeRange,
) -> ScanStream<'_> {
    let series = async move {
        Ok::<_, Error>(stream::iter(backend.series(&filter).await?.into_iter().map(Ok)))
    };
    let batches = stream::once(series).try_flatten().then(move |info| async move {
        let info: SeriesInfo = info?;
        let SeriesKey { server_id, metric_type } = &info.series;
        let records = backend.query_range(server_id, metric_type, range).await?;
        let samples: Vec<_> = records.into_iter().map(into_sample).collect();
        Ok(batches_of(info.series, samples))
    });
    end_after_error(batches.try_flatten())
}

/// Cuts the samples of a series into the batches of a scan.
///
/// For backends: the shared part of [`StorageBackend::scan`].
pub fn batches_of(
    series: SeriesKey,
    samples: Vec<Sample>,
) -> impl Stream<Item = Result<SeriesSamples>> + Send {
    let mut rest = samples.into_iter();
    stream::iter(std::iter::from_fn(move || {
        let samples: Vec<_> = rest.by_ref().take(SCAN_BATCH_SAMPLES_MAX).collect();
        (!samples.is_empty()).then(|| Ok(SeriesSamples { series: series.clone(), samples }))
    }))
}

/// Ends a scan after its first error.
///
/// For backends: the shared part of [`StorageBackend::scan`].
pub fn end_after_error<'a>(
    batches: impl Stream<Item = Result<SeriesSamples>> + Send + 'a,
) -> ScanStream<'a> {
    let mut failed = false;
    Box::pin(batches.take_while(move |batch| {
        let go_on = !failed;
        failed |= batch.is_err();
        std::future::ready(go_on)
    }))
}

fn into_sample(record: MetricRecord) -> Sample {
    Sample { timestamp: record.timestamp, value: record.value, metadata: record.metadata }
}

macro_rules! forward_to_inner {
    ($($wrapper:ty),+) => {$(
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<B: StorageBackend + ?Sized> StorageBackend for $wrapper {
            async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
                (**self).write_batch(records).await
            }
            async fn query_range(
                &self,
                server_id: &str,
                metric_type: &str,
                range: TimeRange,
            ) -> Result<Vec<MetricRecord>> {
                (**self).query_range(server_id, metric_type, range).await
            }
            async fn aggregate(
                &self,
                server_id: &str,
                metric_type: &str,
                range: TimeRange,
            ) -> Result<MetricAggregation> {
                (**self).aggregate(server_id, metric_type, range).await
            }
            async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
                (**self).prune_before(cutoff).await
            }
            async fn stats(&self) -> Result<StorageStats> {
                (**self).stats().await
            }
            fn name(&self) -> &'static str {
                (**self).name()
            }
            fn capabilities(&self) -> Capabilities {
                (**self).capabilities()
            }
            async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
                (**self).series(filter).await
            }
            async fn latest(
                &self,
                filter: &SeriesFilter,
                n_per_series: usize,
            ) -> Result<Vec<SeriesSamples>> {
                (**self).latest(filter, n_per_series).await
            }
            async fn windows(
                &self,
                filter: &SeriesFilter,
                range: TimeRange,
                width: Duration,
            ) -> Result<Vec<SeriesWindows>> {
                (**self).windows(filter, range, width).await
            }
            fn scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
                (**self).scan(filter, range)
            }
            async fn flush(&self) -> Result<()> {
                (**self).flush().await
            }
            async fn compact(&self) -> Result<()> {
                (**self).compact().await
            }
            async fn check(&self) -> Result<CheckReport> {
                (**self).check().await
            }
            async fn health(&self) -> Health {
                (**self).health().await
            }
            async fn close(&self) -> Result<()> {
                (**self).close().await
            }
        }
    )+};
}

forward_to_inner!(&B, Box<B>, Arc<B>);
