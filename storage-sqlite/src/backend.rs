//! The contract on SQLite: each method checks, delegates to `write`, `read` or `maintenance`, and
//! names itself in the error.

use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::{StreamExt, TryStreamExt, stream};
use storage_core::metrics::backend::{batches_of, end_after_error};
use storage_core::metrics::record::validate_names;
use storage_core::metrics::stats::CheckReport;
use storage_core::metrics::time::{floor_ms, from_ms, width_ms};
use storage_core::{
    Capabilities, Error, Health, HealthStatus, MetricAggregation, MetricRecord, Result, ScanStream,
    SeriesFilter, SeriesInfo, SeriesKey, SeriesSamples, SeriesWindows, StorageBackend,
    StorageStats, Store as WholeStore, TimeRange,
};

use crate::commit::Committer;
use crate::config::SqliteOptions;
use crate::convert::{to_record, to_sample};
use crate::events::SqliteEvents;
use crate::history::SqliteHistory;
use crate::jobs::SqliteJobs;
use crate::maintenance::{self, panicked, upkeep};
use crate::read::Payloads;
use crate::slice::Slice;
use crate::store::Store;
use crate::write;

/// Blocks that one step of a scan reads.
const SCAN_BLOCKS: usize = 16;

/// Blocks with payload from which on decoding leaves the async threads.
const INLINE_BLOCKS_MAX: usize = 16;

/// A store in a SQLite file. See the [crate documentation](crate) for when to choose it.
///
/// ```
/// use storage_core::{MetricRecord, StorageBackend};
/// use storage_sqlite::{SqliteBackend, SqliteOptions};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("metrics.db");
/// let store = SqliteBackend::open(SqliteOptions::new(&path)).await?;
/// store.write_batch(&[MetricRecord::new("web-1", chrono::Utc::now(), "cpu", 12.5)]).await?;
/// assert_eq!(store.stats().await?.total_metrics, 1);
/// store.close().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct SqliteBackend {
    pub(crate) store: Arc<Store>,
    committer: Committer,
}

impl SqliteBackend {
    /// Opens the store, and creates the file if it does not exist. Must be called on a Tokio
    /// runtime, on which the handle's tasks then run.
    ///
    /// # Errors
    /// `Config` if the path is a directory, lies in none, or names another program's file;
    /// `VersionMismatch` if a newer version of this library wrote it, and nothing is changed;
    /// `Corrupt`, `PermissionDenied`, `Busy`, `StorageFull` as the file has it. Each names the path.
    pub async fn open(options: SqliteOptions) -> Result<Self> {
        let store = Store::open(options).await.map_err(|error| named(error, "connect"))?;
        let store = Arc::new(store);
        store.catch_up().await.map_err(|error| named(error, "connect"))?;
        let committer = Committer::start(&store);
        if !store.options.read_only {
            maintenance::start(&store);
        }
        Ok(Self { store, committer })
    }

    /// Opens the store at a `sqlite://` URL; see [`SqliteOptions::from_url`].
    ///
    /// # Errors
    /// As [`SqliteOptions::from_url`] and [`open`](Self::open).
    pub async fn connect(url: &str) -> Result<Self> {
        Self::open(SqliteOptions::from_url(url)?).await
    }

    /// The record history in the same file; it shares this handle's connections and closes with it.
    pub fn history(&self) -> SqliteHistory {
        SqliteHistory::new(Arc::clone(&self.store), self.committer.clone())
    }

    /// The event store in the same file; it shares this handle's connections and closes with it.
    pub fn events(&self) -> SqliteEvents {
        SqliteEvents::new(Arc::clone(&self.store), self.committer.clone())
    }

    /// The jobs in the same file; they share this handle's connections and close with it.
    pub fn jobs(&self) -> SqliteJobs {
        SqliteJobs::new(Arc::clone(&self.store))
    }

    /// Turns slices into answers, off the async threads if that takes long.
    async fn answer<T: Send + 'static>(
        &self,
        slices: Vec<Slice>,
        turn: impl Fn(&Slice) -> Result<T> + Send + Clone + 'static,
    ) -> Result<Vec<(SeriesKey, T)>> {
        let keys = self.keys_of(slices.iter().map(|slice| slice.series_id));
        let blocks = slices.iter().flat_map(|slice| &slice.blocks);
        let heavy = blocks.filter(|block| block.payload.is_some()).count() > INLINE_BLOCKS_MAX;
        let answers = if heavy {
            turn_in_parallel(slices, turn).await?
        } else {
            slices.iter().map(turn).collect::<Result<_>>()?
        };
        Ok(keys.into_iter().zip(answers).collect())
    }

    fn keys_of(&self, ids: impl Iterator<Item = i64>) -> Vec<SeriesKey> {
        let dictionary = self.store.dictionary();
        let key_of = |id| match dictionary.key(id) {
            Some(key) => SeriesKey::clone(key),
            None => SeriesKey::new("", ""),
        };
        ids.map(key_of).collect()
    }

    async fn slices_of_one(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<Slice>> {
        self.store.check_open()?;
        validate_names(server_id, metric_type)?;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let filter = SeriesFilter::exact(server_id, metric_type)?;
        self.store.slices(&filter, range, Payloads::All).await
    }

    async fn try_query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        let slices = self.slices_of_one(server_id, metric_type, range).await?;
        let key = SeriesKey::new(server_id, metric_type);
        let to_records = move |slice: &Slice| slice.samples(|raw| to_record(&key, raw));
        let answers = self.answer(slices, to_records).await?;
        Ok(answers.into_iter().flat_map(|(_, records)| records).collect())
    }

    async fn try_aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        self.store.check_open()?;
        validate_names(server_id, metric_type)?;
        if range.is_empty() {
            return Ok(MetricAggregation::default());
        }
        let slice = self.store.merged_slice(server_id, metric_type, range).await?;
        let answers = self.answer(Vec::from_iter(slice), Slice::aggregate).await?;
        Ok(answers.into_iter().next().map(|(_, aggregation)| aggregation).unwrap_or_default())
    }

    async fn try_stats(&self) -> Result<StorageStats> {
        self.store.check_open()?;
        let totals = self.store.totals(&SeriesFilter::any()).await?;
        Ok(StorageStats {
            total_metrics: totals.iter().map(|series| series.count).sum(),
            series: totals.len() as u64,
            disk_usage_bytes: disk_usage(&self.store.options.path),
            oldest_metric: totals.iter().map(|series| series.oldest_ms).min().map(from_ms),
            newest_metric: totals.iter().map(|series| series.newest_ms).max().map(from_ms),
        })
    }

    async fn try_series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        self.store.check_open()?;
        let totals = self.store.totals(filter).await?;
        let keys = self.keys_of(totals.iter().map(|series| series.series_id));
        let series = keys
            .into_iter()
            .zip(totals)
            .map(|(series, totals)| SeriesInfo {
                series,
                count: totals.count,
                oldest: from_ms(totals.oldest_ms),
                newest: from_ms(totals.newest_ms),
            })
            .collect();
        Ok(series)
    }

    async fn try_latest(&self, filter: &SeriesFilter, n: usize) -> Result<Vec<SeriesSamples>> {
        self.store.check_open()?;
        if n == 0 {
            return Ok(Vec::new());
        }
        if n == 1
            && let Some(newest) = self.store.newest_by_tails(filter).await?
        {
            let found = newest
                .into_iter()
                .map(|(series, raw)| Ok(SeriesSamples { series, samples: vec![to_sample(&raw)?] }));
            return found.collect();
        }
        let slices = self.store.newest(filter, n).await?;
        let newest =
            move |slice: &Slice| slice.newest(n)?.iter().map(to_sample).collect::<Result<Vec<_>>>();
        let answers = self.answer(slices, newest).await?;
        Ok(answers.into_iter().map(|(series, samples)| SeriesSamples { series, samples }).collect())
    }

    async fn try_windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        self.store.check_open()?;
        let width_ms = width_ms(width)?;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let slices = self.store.slices(filter, range, Payloads::Windows(width_ms)).await?;
        let answers = self.answer(slices, move |slice| slice.windows(width_ms)).await?;
        let answers = answers.into_iter().filter(|(_, windows)| !windows.is_empty());
        Ok(answers.map(|(series, windows)| SeriesWindows { series, windows }).collect())
    }

    /// The series of a scan, in order.
    async fn scan_keys(&self, filter: &SeriesFilter) -> Result<Vec<SeriesKey>> {
        self.store.check_open()?;
        // A series that is named and known needs no look at what others have added.
        let mut ids = match filter.as_exact() {
            Some(_) => self.store.dictionary().matching(filter),
            None => Vec::new(),
        };
        if ids.is_empty() {
            self.store.catch_up().await?;
            ids = self.store.dictionary().matching(filter);
        }
        Ok(self.keys_of(ids.into_iter()))
    }

    /// Streams one series in steps, each a snapshot of its own that starts where the last ended. Between
    /// two steps nothing is held: whoever takes the samples may take long.
    fn scan_series(&self, key: SeriesKey, range: TimeRange) -> ScanStream<'_> {
        let steps = stream::try_unfold(Some(range), move |rest| {
            let key = key.clone();
            async move {
                let Some(rest) = rest.filter(|rest| !rest.is_empty()) else { return Ok(None) };
                self.store.check_open()?;
                let Some(slice) = self.store.next_slice(&key, rest, SCAN_BLOCKS).await? else {
                    return Ok(None);
                };
                let next = TimeRange::new(slice.range.end(), rest.end())?;
                let mut answers =
                    self.answer(vec![slice], |slice| slice.samples(to_sample)).await?;
                let samples = answers.pop().map(|(_, samples)| samples).unwrap_or_default();
                Ok::<_, Error>(Some((batches_of(key, samples), Some(next))))
            }
        });
        Box::pin(steps.try_flatten())
    }
}

/// Turns slices into answers on as many threads as the machine has, in equal shares.
async fn turn_in_parallel<T: Send + 'static>(
    mut slices: Vec<Slice>,
    turn: impl Fn(&Slice) -> Result<T> + Send + Clone + 'static,
) -> Result<Vec<T>> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let share = slices.len().div_ceil(threads).max(1);
    let mut shares = Vec::new();
    while !slices.is_empty() {
        let rest = slices.split_off(share.min(slices.len()));
        let (part, turn) = (std::mem::replace(&mut slices, rest), turn.clone());
        let turn_part = move || part.iter().map(turn).collect::<Result<Vec<T>>>();
        shares.push(tokio::task::spawn_blocking(turn_part));
    }
    let mut answers = Vec::new();
    for share in shares {
        answers.extend(share.await.map_err(panicked)??);
    }
    Ok(answers)
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl StorageBackend for SqliteBackend {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        let write = async {
            self.store.check_open()?;
            write::write(&self.store, &self.committer, records).await
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
        upkeep(&self.store, "prune_before", move |store, caller| async move {
            let removed = store.prune(floor_ms(cutoff), caller).await?;
            if removed > 0
                && let Err(error) = store.give_space_back().await
            {
                // The samples are gone; space that cannot be given back now is used again.
                tracing::warn!(target: "storage", %error, "cannot give space back");
            }
            Ok(removed)
        })
        .await
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.try_stats().await.map_err(|error| named(error, "stats"))
    }

    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { series: true, check: true, close: true }
    }

    async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        self.try_series(filter).await.map_err(|error| named(error, "series"))
    }

    async fn latest(
        &self,
        filter: &SeriesFilter,
        n_per_series: usize,
    ) -> Result<Vec<SeriesSamples>> {
        self.try_latest(filter, n_per_series).await.map_err(|error| named(error, "latest"))
    }

    async fn windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        self.try_windows(filter, range, width).await.map_err(|error| named(error, "windows"))
    }

    fn scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        let filter = filter.clone();
        let keys = async move { Ok(stream::iter(self.scan_keys(&filter).await?).map(Ok)) };
        let batches =
            stream::once(keys).try_flatten().map_ok(move |key| self.scan_series(key, range));
        end_after_error(batches.try_flatten().map_err(|error: Error| named(error, "scan")))
    }

    async fn flush(&self) -> Result<()> {
        self.store.check_open().map_err(|error| named(error, "flush"))
    }

    async fn compact(&self) -> Result<()> {
        upkeep(&self.store, "compact", |store, _caller| async move {
            store.check_writable()?;
            store.seal().await?;
            store.give_space_back().await
        })
        .await
    }

    async fn check(&self) -> Result<CheckReport> {
        self.store.check_open().map_err(|error| named(error, "check"))?;
        self.store.check().await.map_err(|error| named(error, "check"))
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
        self.committer.drain().await;
        self.store.close_connections().await.map_err(|error| named(error, "close"))
    }
}

impl Drop for SqliteBackend {
    fn drop(&mut self) {
        // The task that seals holds no handle; it looks, finds none and ends.
        self.store.seal_due.notify_one();
    }
}

impl From<SqliteBackend> for WholeStore {
    fn from(backend: SqliteBackend) -> Self {
        let (history, events) = (Arc::new(backend.history()), Arc::new(backend.events()));
        let jobs = Arc::new(backend.jobs());
        let store = Self::of_metrics(Arc::new(backend));
        store.with_history(history).with_events(events).with_jobs(jobs)
    }
}

pub(crate) fn named(error: Error, operation: &'static str) -> Error {
    error.with_backend("sqlite").with_operation(operation)
}

fn degraded(message: String) -> Health {
    Health { status: HealthStatus::Degraded, message }
}

/// Returns the size of the database, its write-ahead log and its shared memory.
fn disk_usage(path: &Path) -> u64 {
    let size = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        std::fs::metadata(name).map_or(0, |metadata| metadata.len())
    };
    size("") + size("-wal") + size("-shm")
}
