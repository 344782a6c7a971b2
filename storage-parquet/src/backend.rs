//! The contract on Parquet files: each method checks, delegates to `write`, `read` or
//! `maintenance` on a blocking thread, and names itself in the error.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::{StreamExt, TryStreamExt, stream};
use storage_core::metrics::backend::{batches_of, end_after_error};
use storage_core::metrics::record::{validate_batch, validate_names};
use storage_core::metrics::stats::CheckReport;
use storage_core::metrics::time::{floor_ms, width_ms};
use storage_core::{
    Capabilities, Error, Health, HealthStatus, MetricAggregation, MetricRecord, Result, Sample,
    ScanStream, SeriesFilter, SeriesInfo, SeriesKey, SeriesSamples, SeriesWindows, StorageBackend,
    StorageStats, TimeRange,
};
use tokio::runtime::Handle;

use crate::config::{Location, ParquetOptions};
use crate::convert::{to_records, to_samples};
use crate::file::Columns;
use crate::files::{Files, LocalFiles};
use crate::maintenance::{self, panicked};
use crate::plan::Piece;
use crate::read::Select;
use crate::store::Store;
use crate::write::Committer;

/// Samples that one step of a scan reads at most.
const SCAN_ROWS_MAX: u64 = 500_000;

/// A store in Parquet files. See the [crate documentation](crate) for when to choose it.
///
/// ```
/// use storage_core::{MetricRecord, StorageBackend};
/// use storage_parquet::{ParquetBackend, ParquetOptions};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// let store = ParquetBackend::open(ParquetOptions::new(dir.path())).await?;
/// store.write_batch(&[MetricRecord::new("web-1", chrono::Utc::now(), "cpu", 12.5)]).await?;
/// assert_eq!(store.stats().await?.total_metrics, 1);
/// store.close().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ParquetBackend {
    store: Arc<Store>,
    committer: Committer,
}

/// What questions have touched since the handle was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadCounts {
    /// Files of merged rows in which a question read rows.
    pub files: u64,
    /// Bytes of pages read, by every handle of this process.
    pub bytes: u64,
}

impl ParquetBackend {
    /// Opens the store, and makes it if there is none. Must be called on a Tokio runtime, on which
    /// the handle's tasks then run.
    ///
    /// # Errors
    /// `Config` if the path is a file, or the object store's options are wrong; `NotFound` if
    /// there is no store and none is to be made; `VersionMismatch` if a newer version of this
    /// library wrote it, and nothing is changed; `Corrupt`, `PermissionDenied`, `StorageFull`,
    /// `Unavailable` as the location has it.
    pub async fn open(options: ParquetOptions) -> Result<Self> {
        let opened = blocking(move || {
            let files = files_of(&options)?;
            Store::open(options, files, Handle::current())
        });
        let store = Arc::new(opened.await.map_err(|error| named(error, "connect"))?);
        let committer = Committer::start(&store);
        if !store.options.read_only {
            maintenance::start(&store);
        }
        Ok(Self { store, committer })
    }

    /// Opens the store at a `parquet://` or `parquet+s3://` URL; see
    /// [`ParquetOptions::from_url`].
    ///
    /// # Errors
    /// As [`ParquetOptions::from_url`] and [`open`](Self::open).
    pub async fn connect(url: &str) -> Result<Self> {
        Self::open(ParquetOptions::from_url(url)?).await
    }

    /// What questions have touched so far: to see how well they are narrowed down.
    pub fn read_counts(&self) -> ReadCounts {
        ReadCounts {
            files: self.store.files_read.load(Ordering::Relaxed),
            bytes: crate::file::BYTES_READ.load(Ordering::Relaxed),
        }
    }

    /// Runs a question on a blocking thread.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.store.check_open()?;
        let store = Arc::clone(&self.store);
        blocking(move || question(&store)).await
    }

    async fn try_query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        self.store.check_open()?;
        validate_names(server_id, metric_type)?;
        let key = SeriesKey::new(server_id, metric_type);
        self.ask(move |store| {
            let samples = store.samples_of(&key, range)?;
            to_records(&key, samples.as_slice())
        })
        .await
    }

    async fn try_aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        self.store.check_open()?;
        validate_names(server_id, metric_type)?;
        let key = SeriesKey::new(server_id, metric_type);
        self.ask(move |store| store.aggregate_of(&key, range)).await
    }

    async fn try_latest(&self, filter: SeriesFilter, n: usize) -> Result<Vec<SeriesSamples>> {
        if n == 0 {
            self.store.check_open()?;
            return Ok(Vec::new());
        }
        self.ask(move |store| {
            let newest = store.newest_of(&filter, n)?;
            let answer = newest.into_iter().map(|(key, samples)| {
                let mut samples = to_samples(samples.as_slice())?;
                samples.reverse();
                Ok(SeriesSamples { series: SeriesKey::clone(&key), samples })
            });
            answer.collect()
        })
        .await
    }

    async fn try_windows(
        &self,
        filter: SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        self.store.check_open()?;
        let width_ms = width_ms(width)?;
        self.ask(move |store| store.windows_of(&filter, range, width_ms)).await
    }

    async fn scan_pieces(&self, filter: SeriesFilter, range: TimeRange) -> Result<Vec<Piece>> {
        self.ask(move |store| {
            // They are there twice while they are turned into what the caller gets.
            let rows_max = (store.options.rows_max() / 2).min(SCAN_ROWS_MAX);
            store.ask(|state| store.pieces(state, &filter, range, rows_max))
        })
        .await
    }

    /// Reads one step of a scan: of a range of time, the series that lie in a piece.
    async fn scan_step(
        &self,
        filter: SeriesFilter,
        piece: Piece,
        (start_ms, end_ms): (i64, i64),
    ) -> Result<Vec<(SeriesKey, Vec<Sample>)>> {
        self.ask(move |store| {
            let select = Select::Between(&filter, &piece.first, &piece.last);
            let all = Columns::All;
            let found = store.ask(|state| store.collect(state, select, start_ms, end_ms, all))?;
            let mut found: Vec<_> = found.into_iter().collect();
            found.sort_unstable_by(|one, other| one.0.cmp(&other.0));
            let samples = found.into_iter().map(|(key, samples)| {
                Ok((SeriesKey::clone(&key), to_samples(samples.as_slice())?))
            });
            samples.collect()
        })
        .await
    }
}

fn files_of(options: &ParquetOptions) -> Result<Arc<dyn Files>> {
    match &options.location {
        Location::Local(path) => Ok(Arc::new(LocalFiles::new(path.clone()))),
        #[cfg(feature = "cloud")]
        Location::Cloud { url, options } => {
            Ok(Arc::new(crate::files::ObjectFiles::connect(url, options, Handle::current())?))
        }
        #[cfg(not(feature = "cloud"))]
        Location::Cloud { .. } => Err(crate::config::config(
            "this build has no object stores; build with the feature parquet-cloud",
        )),
    }
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(panicked).flatten()
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl StorageBackend for ParquetBackend {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        let write = async {
            self.store.check_open()?;
            validate_batch(records)?;
            self.committer.write(&self.store, records).await
        };
        write.await.map_err(|error| named(error, "write_batch"))
    }

    async fn query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        let found = self.try_query_range(server_id, metric_type, range).await;
        found.map_err(|error| named(error, "query_range"))
    }

    async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        let found = self.try_aggregate(server_id, metric_type, range).await;
        found.map_err(|error| named(error, "aggregate"))
    }

    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        let cutoff_ms = floor_ms(cutoff);
        let pruned = self.ask(move |store| store.prune(cutoff_ms)).await;
        pruned.map_err(|error| named(error, "prune_before"))
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.ask(Store::stats).await.map_err(|error| named(error, "stats"))
    }

    fn name(&self) -> &'static str {
        "parquet"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { series: true, check: true, close: true }
    }

    async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        let filter = filter.clone();
        let found = self.ask(move |store| store.list_series(&filter)).await;
        found.map_err(|error| named(error, "series"))
    }

    async fn latest(
        &self,
        filter: &SeriesFilter,
        n_per_series: usize,
    ) -> Result<Vec<SeriesSamples>> {
        let found = self.try_latest(filter.clone(), n_per_series).await;
        found.map_err(|error| named(error, "latest"))
    }

    async fn windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        let found = self.try_windows(filter.clone(), range, width).await;
        found.map_err(|error| named(error, "windows"))
    }

    fn scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        let filter = filter.clone();
        let pieces = {
            let filter = filter.clone();
            async move { Ok(stream::iter(self.scan_pieces(filter, range).await?).map(Ok)) }
        };
        let steps = stream::once(pieces).try_flatten().map_ok(|piece: Piece| {
            let times = piece.times.clone();
            stream::iter(times.into_iter().map(move |time| Ok((piece.clone(), time))))
        });
        let batches = steps
            .try_flatten()
            .and_then(move |(piece, time)| self.scan_step(filter.clone(), piece, time))
            .map_ok(|series| {
                let batches = series.into_iter().map(|(key, samples)| batches_of(key, samples));
                stream::iter(batches).flatten()
            });
        end_after_error(batches.try_flatten().map_err(|error: Error| named(error, "scan")))
    }

    async fn flush(&self) -> Result<()> {
        self.store.check_open().map_err(|error| named(error, "flush"))
    }

    async fn compact(&self) -> Result<()> {
        self.ask(Store::compact).await.map_err(|error| named(error, "compact"))
    }

    async fn check(&self) -> Result<CheckReport> {
        self.ask(Store::check).await.map_err(|error| named(error, "check"))
    }

    async fn health(&self) -> Health {
        if let Err(error) = self.stats().await {
            return Health::down(&error);
        }
        match (self.store.check_writable(), self.store.upkeep_error()) {
            (Err(error), _) => degraded(error.to_string()),
            (Ok(()), Some(upkeep)) => degraded(format!("upkeep fails: {upkeep}")),
            (Ok(()), None) => Health::healthy(),
        }
    }

    async fn close(&self) -> Result<()> {
        self.store.refuse_calls();
        self.committer.drain(&self.store).await;
        // A merge that is under way notices and gives up.
        let store = Arc::clone(&self.store);
        let waited = blocking(move || {
            drop(store.rewriting.lock());
            Ok(())
        });
        waited.await.map_err(|error| named(error, "close"))
    }
}

impl Drop for ParquetBackend {
    fn drop(&mut self) {
        // The task that merges holds no handle; it looks, finds none and ends.
        self.store.merge_due.notify_one();
    }
}

fn named(error: Error, operation: &'static str) -> Error {
    error.with_backend("parquet").with_operation(operation)
}

fn degraded(message: String) -> Health {
    Health { status: HealthStatus::Degraded, message }
}
