//! The metrics beside broken events: sound, but for what they do to them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use storage_core::{
    Capabilities, CheckReport, EventStore, Health, InMemory, InMemoryEvents, MetricAggregation,
    MetricRecord, Result, StorageBackend, StorageStats, TimeRange,
};

use super::{Bug, Shared, lose_all};

pub(super) struct BrokenMetrics {
    pub(super) inner: InMemory,
    bug: Bug,
    events: InMemoryEvents,
    shared: Arc<Shared>,
}

impl BrokenMetrics {
    pub(super) fn new(
        inner: InMemory,
        bug: Bug,
        events: InMemoryEvents,
        shared: Arc<Shared>,
    ) -> Self {
        Self { inner, bug, events, shared }
    }
}

#[async_trait]
impl StorageBackend for BrokenMetrics {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        self.inner.write_batch(records).await
    }

    async fn query_range(&self, s: &str, m: &str, range: TimeRange) -> Result<Vec<MetricRecord>> {
        self.inner.query_range(s, m, range).await
    }

    async fn aggregate(&self, s: &str, m: &str, range: TimeRange) -> Result<MetricAggregation> {
        self.inner.aggregate(s, m, range).await
    }

    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        if self.bug == Bug::MetricsPruneEvents {
            lose_all(&self.events).await?;
        }
        self.inner.prune_before(cutoff).await
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.inner.stats().await
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { series: false, ..self.inner.capabilities() }
    }

    async fn flush(&self) -> Result<()> {
        self.inner.flush().await
    }

    async fn compact(&self) -> Result<()> {
        if self.bug == Bug::CompactPrunes {
            self.events.prune_before(self.events.extent().await?.first + 1).await?;
        }
        self.inner.compact().await
    }

    async fn check(&self) -> Result<CheckReport> {
        let mut report = self.inner.check().await?;
        if self.bug == Bug::CheckComplains && self.events.extent().await?.first > 1 {
            report.problems.push("the log has a gap".to_owned());
        }
        Ok(report)
    }

    async fn health(&self) -> Health {
        self.inner.health().await
    }

    async fn close(&self) -> Result<()> {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.inner.close().await
    }
}
