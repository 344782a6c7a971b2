//! A store whose upkeep is more than its own: what a composition wants done whenever a case compacts.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use storage_core::{
    Capabilities, CheckReport, Health, MetricAggregation, MetricRecord, Result, ScanStream,
    SeriesFilter, SeriesInfo, SeriesSamples, SeriesWindows, StorageBackend, StorageStats,
    TimeRange,
};

/// What is done after a store was compacted.
#[async_trait]
pub(super) trait Upkeep<S>: Send + Sync {
    async fn after_compact(&self, store: &S) -> Result<()>;
}

/// A store, and what is done after it was compacted.
pub(super) struct Kept<S, U> {
    pub(super) store: S,
    pub(super) upkeep: U,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: StorageBackend, U: Upkeep<S>> StorageBackend for Kept<S, U> {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        self.store.write_batch(records).await
    }
    async fn query_range(&self, s: &str, m: &str, range: TimeRange) -> Result<Vec<MetricRecord>> {
        self.store.query_range(s, m, range).await
    }
    async fn aggregate(&self, s: &str, m: &str, range: TimeRange) -> Result<MetricAggregation> {
        self.store.aggregate(s, m, range).await
    }
    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        self.store.prune_before(cutoff).await
    }
    async fn stats(&self) -> Result<StorageStats> {
        self.store.stats().await
    }
    fn name(&self) -> &'static str {
        self.store.name()
    }
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }
    async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        self.store.series(filter).await
    }
    async fn latest(&self, filter: &SeriesFilter, n: usize) -> Result<Vec<SeriesSamples>> {
        self.store.latest(filter, n).await
    }
    async fn windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        self.store.windows(filter, range, width).await
    }
    fn scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        self.store.scan(filter, range)
    }
    async fn flush(&self) -> Result<()> {
        self.store.flush().await
    }
    async fn compact(&self) -> Result<()> {
        self.store.compact().await?;
        self.upkeep.after_compact(&self.store).await
    }
    async fn check(&self) -> Result<CheckReport> {
        self.store.check().await
    }
    async fn health(&self) -> Health {
        self.store.health().await
    }
    async fn close(&self) -> Result<()> {
        self.store.close().await
    }
}
