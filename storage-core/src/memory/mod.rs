//! The in-memory backend: a whole backend on a few pages, and the reference for all others.
//!
//! One lock, one ordered map; nothing clever. Every method checks, takes the lock, answers. Its
//! record history, events and jobs, made the same way, are in `history`, `events` and `jobs`.

mod events;
mod history;
mod jobs;

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use crate::capabilities::Capabilities;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::record::{validate_batch, validate_names};
use crate::metrics::time::{floor_ms, from_ms, width_ms};
use crate::metrics::{
    Accumulator, CheckReport, MetricAggregation, MetricRecord, Sample, SeriesFilter, SeriesInfo,
    SeriesKey, SeriesSamples, SeriesWindows, StorageBackend, StorageStats, TimeRange,
    WindowBuilder,
};
use crate::store::Store;

pub use events::InMemoryEvents;
pub use history::InMemoryHistory;
pub use jobs::InMemoryJobs;

type Samples = BTreeMap<i64, Sample>;

/// What all handles of one store share.
#[derive(Debug, Clone, Default)]
struct Parts {
    series: Arc<RwLock<BTreeMap<SeriesKey, Samples>>>,
    records: Arc<RwLock<history::Records>>,
    log: Arc<events::Log>,
    jobs: Arc<RwLock<jobs::Jobs>>,
}

/// A store that lives as long as the process.
///
/// ```
/// use storage_core::{InMemory, StorageBackend};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let one = InMemory::open("shared");
/// let two = InMemory::open("shared");
/// one.write_batch(&[storage_core::MetricRecord::new("a", chrono::Utc::now(), "b", 1.0)]).await?;
/// assert_eq!(two.stats().await?.total_metrics, 1);
/// InMemory::forget("shared");
/// # Ok(()) }
/// ```
#[derive(Debug, Default)]
pub struct InMemory {
    parts: Parts,
    closed: Arc<AtomicBool>,
}

static NAMED: LazyLock<Mutex<HashMap<String, Parts>>> = LazyLock::new(Mutex::default);

impl InMemory {
    /// Creates an empty store of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens the store `name` of this process, empty at first; all handles of a name share it,
    /// and it stays until [`forget`](Self::forget).
    pub fn open(name: &str) -> Self {
        let parts = named().entry(name.to_owned()).or_default().clone();
        Self { parts, closed: Arc::default() }
    }

    /// Forgets the store `name`; handles that are open keep it.
    pub fn forget(name: &str) {
        named().remove(name);
    }

    fn check_open(&self) -> Result<()> {
        check_open(&self.closed)
    }

    /// Runs `read` over the samples of one series in `range`.
    fn read_one<T>(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
        read: impl FnOnce(&SeriesKey, &mut dyn Iterator<Item = &Sample>) -> T,
    ) -> Result<T> {
        self.check_open()?;
        validate_names(server_id, metric_type)?;
        let key = SeriesKey::new(server_id, metric_type);
        let all = self.parts.series.read().unwrap_or_else(PoisonError::into_inner);
        match all.get(&key) {
            Some(samples) => Ok(read(&key, &mut in_range(samples, range))),
            None => Ok(read(&key, &mut std::iter::empty())),
        }
    }
}

#[async_trait]
impl StorageBackend for InMemory {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        self.check_open().map_err(|error| named_error(error, "write_batch"))?;
        validate_batch(records).map_err(|error| named_error(error, "write_batch"))?;
        let mut all = self.parts.series.write().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            let key = SeriesKey::new(&record.server_id, &record.metric_type);
            let samples = all.entry(key).or_default();
            samples.insert(floor_ms(record.timestamp), record.to_sample());
        }
        Ok(())
    }

    async fn query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        self.read_one(server_id, metric_type, range, |key, samples| {
            samples.map(|sample| sample.clone().into_record(key)).collect()
        })
        .map_err(|error| named_error(error, "query_range"))
    }

    async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        self.read_one(server_id, metric_type, range, |_, samples| {
            let mut accumulator = Accumulator::default();
            samples.for_each(|sample| accumulator.push(sample.value));
            accumulator.finish()
        })
        .map_err(|error| named_error(error, "aggregate"))
    }

    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        self.check_open().map_err(|error| named_error(error, "prune_before"))?;
        let cutoff_ms = floor_ms(cutoff);
        let mut removed = 0;
        let mut all = self.parts.series.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, samples| {
            let kept = samples.split_off(&cutoff_ms);
            removed += samples.len() as u64;
            *samples = kept;
            !samples.is_empty()
        });
        Ok(removed)
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.check_open().map_err(|error| named_error(error, "stats"))?;
        let all = self.parts.series.read().unwrap_or_else(PoisonError::into_inner);
        let total = all.values().map(|samples| samples.len() as u64).sum();
        let oldest = all.values().filter_map(|samples| samples.keys().next()).min();
        let newest = all.values().filter_map(|samples| samples.keys().next_back()).max();
        Ok(StorageStats {
            total_metrics: total,
            series: all.len() as u64,
            disk_usage_bytes: total * size_of::<(i64, Sample)>() as u64,
            oldest_metric: oldest.copied().map(from_ms),
            newest_metric: newest.copied().map(from_ms),
        })
    }

    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { series: true, check: true, close: true }
    }

    async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        self.check_open().map_err(|error| named_error(error, "series"))?;
        let all = self.parts.series.read().unwrap_or_else(PoisonError::into_inner);
        let chosen = all.iter().filter(|(key, _)| filter.matches_key(key));
        Ok(chosen.filter_map(|(key, samples)| info_of(key, samples)).collect())
    }

    async fn latest(
        &self,
        filter: &SeriesFilter,
        n_per_series: usize,
    ) -> Result<Vec<SeriesSamples>> {
        self.check_open().map_err(|error| named_error(error, "latest"))?;
        if n_per_series == 0 {
            return Ok(Vec::new());
        }
        let all = self.parts.series.read().unwrap_or_else(PoisonError::into_inner);
        let chosen = all.iter().filter(|(key, _)| filter.matches_key(key));
        Ok(chosen
            .map(|(key, samples)| SeriesSamples {
                series: key.clone(),
                samples: samples.values().rev().take(n_per_series).cloned().collect(),
            })
            .collect())
    }

    async fn windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        self.check_open().map_err(|error| named_error(error, "windows"))?;
        let width_ms = width_ms(width).map_err(|error| named_error(error, "windows"))?;
        let all = self.parts.series.read().unwrap_or_else(PoisonError::into_inner);
        let chosen = all.iter().filter(|(key, _)| filter.matches_key(key));
        let windows = chosen.map(|(key, samples)| {
            let mut builder = WindowBuilder::new(width_ms);
            for sample in in_range(samples, range) {
                builder.push(floor_ms(sample.timestamp), sample.value);
            }
            SeriesWindows { series: key.clone(), windows: builder.finish() }
        });
        Ok(windows.filter(|series| !series.windows.is_empty()).collect())
    }

    async fn flush(&self) -> Result<()> {
        self.check_open().map_err(|error| named_error(error, "flush"))
    }

    async fn compact(&self) -> Result<()> {
        self.check_open().map_err(|error| named_error(error, "compact"))
    }

    async fn check(&self) -> Result<CheckReport> {
        let stats = self.stats().await.map_err(|error| named_error(error, "check"))?;
        // Memory cannot rot: there is nothing to compare the samples with.
        Ok(CheckReport { pieces: stats.series, samples: stats.total_metrics, problems: Vec::new() })
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        // Whoever waits for events looks again.
        self.parts.log.ring();
        Ok(())
    }
}

impl From<InMemory> for Store {
    fn from(backend: InMemory) -> Self {
        let (history, events) = (Arc::new(backend.history()), Arc::new(backend.events()));
        let jobs = Arc::new(backend.jobs());
        let store = Self::of_metrics(Arc::new(backend));
        store.with_history(history).with_events(events).with_jobs(jobs)
    }
}

fn check_open(closed: &AtomicBool) -> Result<()> {
    if closed.load(Ordering::Acquire) {
        return Err(Error::new(ErrorKind::Closed, "the store was closed"));
    }
    Ok(())
}

fn named() -> MutexGuard<'static, HashMap<String, Parts>> {
    NAMED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn named_error(error: Error, operation: &'static str) -> Error {
    error.with_backend("memory").with_operation(operation)
}

fn in_range(samples: &Samples, range: TimeRange) -> impl Iterator<Item = &Sample> {
    let bounds = (Bound::Included(range.start_ms()), Bound::Excluded(range.end_ms()));
    // An empty range is no valid argument of `BTreeMap::range`.
    let some = (!range.is_empty()).then(|| samples.range(bounds));
    some.into_iter().flatten().map(|(_, sample)| sample)
}

fn info_of(key: &SeriesKey, samples: &Samples) -> Option<SeriesInfo> {
    Some(SeriesInfo {
        series: key.clone(),
        count: samples.len() as u64,
        oldest: from_ms(*samples.keys().next()?),
        newest: from_ms(*samples.keys().next_back()?),
    })
}
