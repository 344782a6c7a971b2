//! A store with rollups as a backend: the store of samples, with every write and prune seen.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::turn::Turn;
use super::write::in_doubt;
use super::{Rolled, RollupTier};
use crate::capabilities::Capabilities;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::metrics::time::floor_ms;
use crate::metrics::{
    CheckReport, Health, HealthStatus, MetricAggregation, MetricRecord, ScanStream, SeriesFilter,
    SeriesInfo, SeriesSamples, SeriesWindows, StorageBackend, StorageStats, TimeRange,
};

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl StorageBackend for Rolled {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        self.check_open("write_batch")?;
        let _under_way = self.under_way().await;
        self.check_open("write_batch")?;
        match self.stores.widths_ms() {
            Some(widths_ms) => self.write(records, widths_ms).await,
            None => self.stores.raw.write_batch(records).await,
        }
    }

    async fn query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        self.check_open("query_range")?;
        self.stores.raw.query_range(server_id, metric_type, range).await
    }

    async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        self.check_open("aggregate")?;
        self.stores.raw.aggregate(server_id, metric_type, range).await
    }

    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        self.check_open("prune_before")?;
        let (stores, deadline) = (Arc::clone(&self.stores), self.deadline());
        // In a task of its own: given up half way, it would hold up others until its lease ends.
        let pruning = tokio::spawn(async move {
            let _under_way = stores.under_way.read().await;
            if stores.tiers.is_empty() {
                return stores.raw.prune_before(cutoff).await;
            }
            let mut turn = Turn::begin(&stores, deadline).await?;
            let removed = turn.prune_raw(floor_ms(cutoff)).await;
            let ended = turn.end().await.map_err(in_doubt(Outcome::Unknown));
            let removed = removed?;
            ended.map(|()| removed)
        });
        match pruning.await {
            Ok(result) => result,
            Err(error) => Err(Error::new(ErrorKind::Internal, "the prune broke off")
                .with_outcome(Outcome::Unknown)
                .with_operation("prune_before")
                .with_source(error)),
        }
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.check_open("stats")?;
        self.stores.raw.stats().await
    }

    fn name(&self) -> &'static str {
        self.stores.raw.name()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { close: true, ..self.stores.raw.capabilities() }
    }

    async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        self.check_open("series")?;
        self.stores.raw.series(filter).await
    }

    async fn latest(
        &self,
        filter: &SeriesFilter,
        n_per_series: usize,
    ) -> Result<Vec<SeriesSamples>> {
        self.check_open("latest")?;
        self.stores.raw.latest(filter, n_per_series).await
    }

    async fn windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        self.check_open("windows")?;
        self.stores.raw.windows(filter, range, width).await
    }

    fn scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        match self.check_open("scan") {
            Ok(()) => self.stores.raw.scan(filter, range),
            Err(error) => Box::pin(futures_util::stream::once(std::future::ready(Err(error)))),
        }
    }

    async fn flush(&self) -> Result<()> {
        self.check_open("flush")?;
        self.stores.raw.flush().await
    }

    async fn compact(&self) -> Result<()> {
        self.check_open("compact")?;
        self.stores.raw.compact().await?;
        for tier in &self.tiers {
            tier.store.compact().await?;
        }
        Ok(())
    }

    async fn check(&self) -> Result<CheckReport> {
        self.check_open("check")?;
        let mut all = self.stores.raw.check().await?;
        for RollupTier { width, store } in &self.tiers {
            if !store.capabilities().check {
                continue;
            }
            let found = store.check().await?;
            let named = |problem| format!("rollups of {width:?}: {problem}");
            all.problems.extend(found.problems.into_iter().map(named));
        }
        Ok(all)
    }

    async fn health(&self) -> Health {
        if let Err(error) = self.check_open("health") {
            return Health::down(&error);
        }
        let raw = self.stores.raw.health().await;
        if raw.status != HealthStatus::Healthy {
            return raw;
        }
        // Every write reads it; what was stored can still be read.
        let mut problem = self.stores.control.view().await.err().map(|error| error.to_string());
        for RollupTier { width, store } in &self.tiers {
            let health = store.health().await;
            if health.status != HealthStatus::Healthy {
                problem.get_or_insert(format!("rollups of {width:?}: {}", health.message));
            }
        }
        match problem {
            Some(message) => Health { status: HealthStatus::Degraded, message },
            None => raw,
        }
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        // What is under way still needs all of them.
        let _none_under_way = self.stores.under_way.write().await;
        self.stores.raw.close().await?;
        for tier in &self.tiers {
            tier.store.close().await?;
        }
        self.stores.control.store().close().await
    }
}
