//! The contract on PostgreSQL: each method checks, delegates to `write`, `read`, `windows` or
//! `maintenance`, and names itself in the error.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::{StreamExt, TryStreamExt, stream};
use storage_core::metrics::backend::{batches_of, end_after_error};
use storage_core::metrics::record::{validate_batch, validate_names};
use storage_core::metrics::stats::CheckReport;
use storage_core::metrics::time::{floor_ms, from_ms, width_ms};
use storage_core::{
    Capabilities, Error, Health, HealthStatus, MetricAggregation, MetricRecord, Result, ScanStream,
    SeriesFilter, SeriesInfo, SeriesKey, SeriesSamples, SeriesWindows, StorageBackend,
    StorageStats, Store as WholeStore, TimeRange, Window,
};

use crate::check;
use crate::config::PostgresOptions;
use crate::events::PostgresEvents;
use crate::history::PostgresHistory;
use crate::jobs::PostgresJobs;
use crate::maintenance::{self, Prune, upkeep};
use crate::read::SCAN_STEP_SAMPLES;
use crate::store::Store;
use crate::timescale::Tier;
use crate::windows::Windows;
use crate::write::Committer;

/// A store in a schema of a PostgreSQL database. See the [crate documentation](crate) for when to
/// choose it.
///
/// ```no_run
/// use storage_core::{MetricRecord, StorageBackend};
/// use storage_postgres::{PostgresBackend, PostgresOptions};
///
/// # async fn example() -> storage_core::Result<()> {
/// let options = PostgresOptions::from_url("postgres://me:secret@db.example/app")?;
/// let store = PostgresBackend::open(options.schema("metrics")?).await?;
/// store.write_batch(&[MetricRecord::new("web-1", chrono::Utc::now(), "cpu", 12.5)]).await?;
/// store.close().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct PostgresBackend {
    store: Arc<Store>,
    committer: Committer,
}

impl PostgresBackend {
    /// Connects, and creates schema and tables where there are none. Must be called on a Tokio
    /// runtime, on which the handle's tasks then run.
    ///
    /// # Errors
    /// `Unavailable` with host and port if the server cannot be reached; `PermissionDenied` if it
    /// refuses the role or the role may not create the tables; `NotFound` if there is no such
    /// database, or no store and `create` is off; `Config` if TLS fails, the schema holds tables
    /// of another program, the database is not in UTF-8, or the server is older than
    /// PostgreSQL 14; `VersionMismatch` if a newer version of this library made the store, and nothing
    /// is changed.
    pub async fn open(options: PostgresOptions) -> Result<Self> {
        let store = Store::open(options).await.map_err(|error| named(error, "connect"))?;
        let store = Arc::new(store);
        let committer = Committer::start(&store);
        Ok(Self { store, committer })
    }

    /// Opens the store at a `postgres://` URL; see [`PostgresOptions::from_url`].
    ///
    /// # Errors
    /// As [`PostgresOptions::from_url`] and [`open`](Self::open).
    pub async fn connect(url: &str) -> Result<Self> {
        Self::open(PostgresOptions::from_url(url)?).await
    }

    /// Which edition of TimescaleDB the database has, if any.
    pub fn tier(&self) -> Tier {
        self.store.opened.extension.as_ref().map_or(Tier::Plain, |extension| extension.tier)
    }

    /// Whether TimescaleDB keeps the samples of this store; decided when it was created.
    pub fn uses_timescale(&self) -> bool {
        self.store.opened.hypertable
    }

    /// The version of the server as a number, such as 150018 for 15.18.
    pub fn server_version(&self) -> i32 {
        self.store.opened.server_version
    }

    /// The record history in the same schema; it shares this handle's connections and closes with it.
    pub fn history(&self) -> PostgresHistory {
        PostgresHistory::new(Arc::clone(&self.store), self.committer.clone())
    }

    /// The event store in the same schema; it shares this handle's connections and closes with it.
    pub fn events(&self) -> PostgresEvents {
        PostgresEvents::new(Arc::clone(&self.store), self.committer.clone())
    }

    /// The jobs in the same schema; they share this handle's connections and close with it.
    pub fn jobs(&self) -> PostgresJobs {
        PostgresJobs::new(Arc::clone(&self.store))
    }

    /// Streams the samples of series, step by step, each a snapshot of its own.
    fn scan_all(&self, filter: SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        let series = async move {
            self.store.check_open()?;
            self.store.scan_series(&filter).await
        };
        let steps = stream::once(series).map_ok(move |series| {
            let start = (series, 0, range.start_ms(), SCAN_STEP_SAMPLES);
            stream::try_unfold(start, move |(series, at, start_ms, limit)| async move {
                if at >= series.len() || range.is_empty() {
                    return Ok(None);
                }
                let rest = &series[at..];
                let (step, limit) = self.store.scan_step(rest, start_ms, range, limit).await?;
                let (at, next_ms) = (at + step.done, step.next_ms.unwrap_or(range.start_ms()));
                let found = step.found.into_iter();
                let batches = stream::iter(found.map(|f| batches_of(f.series, f.samples)));
                Ok::<_, Error>(Some((batches.flatten(), (series, at, next_ms, limit))))
            })
        });
        Box::pin(steps.try_flatten().try_flatten())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl StorageBackend for PostgresBackend {
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
        let query = async {
            self.store.check_open()?;
            validate_names(server_id, metric_type)?;
            match range.is_empty() {
                true => Ok(Vec::new()),
                false => self.store.query_range(server_id, metric_type, range).await,
            }
        };
        query.await.map_err(|error| named(error, "query_range"))
    }

    async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        let aggregate = async {
            self.store.check_open()?;
            validate_names(server_id, metric_type)?;
            if range.is_empty() {
                return Ok(MetricAggregation::default());
            }
            let filter = SeriesFilter::exact(server_id, metric_type)?;
            let found = self.store.windows(&filter, range, None).await?;
            Ok(found.into_values().flat_map(Windows::into_values).next().unwrap_or_default())
        };
        aggregate.await.map_err(|error| named(error, "aggregate"))
    }

    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        upkeep(&self.store, "prune_before", move |store, caller| async move {
            Prune::run(&store, floor_ms(cutoff), caller).await
        })
        .await
    }

    async fn stats(&self) -> Result<StorageStats> {
        let stats = async {
            self.store.check_open()?;
            self.store.stats().await
        };
        stats.await.map_err(|error| named(error, "stats"))
    }

    fn name(&self) -> &'static str {
        "postgres"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { series: true, check: true, close: true }
    }

    async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        let series = async {
            self.store.check_open()?;
            self.store.series(filter).await
        };
        series.await.map_err(|error| named(error, "series"))
    }

    async fn latest(
        &self,
        filter: &SeriesFilter,
        n_per_series: usize,
    ) -> Result<Vec<SeriesSamples>> {
        let latest = async {
            self.store.check_open()?;
            match n_per_series {
                0 => Ok(Vec::new()),
                n => self.store.latest(filter, n).await,
            }
        };
        latest.await.map_err(|error| named(error, "latest"))
    }

    async fn windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        let windows = async {
            self.store.check_open()?;
            let width_ms = width_ms(width)?;
            if range.is_empty() {
                return Ok(Vec::new());
            }
            let found = self.store.windows(filter, range, Some(width_ms)).await?;
            Ok(found.into_iter().map(of_series).collect())
        };
        windows.await.map_err(|error| named(error, "windows"))
    }

    fn scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        let batches = self.scan_all(filter.clone(), range);
        end_after_error(batches.map_err(|error: Error| named(error, "scan")))
    }

    async fn flush(&self) -> Result<()> {
        self.store.check_open().map_err(|error| named(error, "flush"))
    }

    async fn compact(&self) -> Result<()> {
        upkeep(&self.store, "compact", |store, caller| async move {
            maintenance::compact(&store, caller).await
        })
        .await
    }

    async fn check(&self) -> Result<CheckReport> {
        let check = async {
            self.store.check_open()?;
            check::check(&self.store).await
        };
        check.await.map_err(|error| named(error, "check"))
    }

    async fn health(&self) -> Health {
        if let Err(error) = self.stats().await {
            return Health::down(&error);
        }
        match self.store.check_takes_writes().await {
            Ok(None) => Health::healthy(),
            Ok(Some(error)) => {
                Health { status: HealthStatus::Degraded, message: error.message().to_owned() }
            }
            Err(error) => Health::down(&named(error, "health")),
        }
    }

    async fn close(&self) -> Result<()> {
        self.store.refuse_calls();
        self.committer.close().await;
        // What is under way is finished; what waits behind it finds the store closed.
        drop(self.store.job_order.turn().await);
        self.store.pool.close();
        Ok(())
    }
}

fn of_series((series, windows): (SeriesKey, Windows)) -> SeriesWindows {
    let window = |(start_ms, aggregation)| Window {
        // The very first window may start before year 1.
        start: DateTime::from_timestamp_millis(start_ms).unwrap_or_else(|| from_ms(start_ms)),
        aggregation,
    };
    SeriesWindows { series, windows: windows.into_iter().map(window).collect() }
}

impl From<PostgresBackend> for WholeStore {
    fn from(backend: PostgresBackend) -> Self {
        let (history, events) = (Arc::new(backend.history()), Arc::new(backend.events()));
        let jobs = Arc::new(backend.jobs());
        let store = Self::of_metrics(Arc::new(backend));
        store.with_history(history).with_events(events).with_jobs(jobs)
    }
}

pub(crate) fn named(error: Error, operation: &'static str) -> Error {
    error.with_backend("postgres").with_operation(operation)
}
