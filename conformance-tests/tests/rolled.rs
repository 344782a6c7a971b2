//! The contract over `Rolled`: with nothing rolled up, and with everything rolled up wherever a case
//! compacts, so that later samples are late.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use conformance_tests::{Fixture, Store};
use storage_core::pipeline::{Rolled, RollupOptions, RollupTier};
use storage_core::{
    Capabilities, CheckReport, Health, InMemory, MetricAggregation, MetricRecord, Result,
    ScanStream, SeriesFilter, SeriesInfo, SeriesSamples, SeriesWindows, StorageBackend,
    StorageStats, TimeRange,
};

struct Rollups {
    name: &'static str,
    refreshes: bool,
}

/// A store for the samples, one for each tier, and the control store.
const STORES: [&str; 5] = ["raw", "5m", "1h", "1d", "control"];

#[async_trait]
impl Fixture for Rollups {
    fn name(&self) -> &str {
        self.name
    }

    async fn open(&self, location: &str) -> Result<Store> {
        let store = |name: &str| -> Arc<dyn StorageBackend> {
            Arc::new(InMemory::open(&format!("{location}_{name}")))
        };
        let [raw, five_minutes, hour, day, control] = STORES.map(store);
        let stores = [five_minutes, hour, day];
        let tiers = RollupTier::DEFAULT_WIDTHS.into_iter().zip(stores);
        let tiers = tiers.map(|(width, store)| RollupTier::new(width, store)).collect();
        // Cases prune often, and have a minute; less would take a busy machine for writers that are
        // too slow for a prune. All times are over, also those to come.
        let options = RollupOptions::default()
            .with_settle(Duration::from_millis(100))
            .with_clock(|| DateTime::<Utc>::MAX_UTC);
        let store = Rolled::open_with(raw, tiers, control, options).await?;
        Ok(Arc::new(Refreshing { store, refreshes: self.refreshes }))
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        STORES.iter().for_each(|name| InMemory::forget(&format!("{location}_{name}")));
        Ok(())
    }
}

/// A store that rolls everything up whenever it is compacted.
struct Refreshing {
    store: Rolled,
    refreshes: bool,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl StorageBackend for Refreshing {
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
        if self.refreshes {
            self.store.refresh().await?;
        }
        Ok(())
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

fn main() {
    let of = |name, refreshes| -> Arc<dyn Fixture> { Arc::new(Rollups { name, refreshes }) };
    conformance_tests::main_all(vec![of("rolled", false), of("rolled-refreshed", true)])
}
