//! The metrics beside broken jobs: sound, but for what they do to them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use storage_core::{
    Capabilities, CheckReport, InMemory, InMemoryJobs, MetricAggregation, MetricRecord, Result,
    StorageBackend, StorageStats, TimeRange,
};

use super::{Bug, Shared, remove_everything};

pub(super) struct BrokenMetrics {
    pub(super) inner: InMemory,
    pub(super) bug: Bug,
    pub(super) jobs: InMemoryJobs,
    pub(super) shared: Arc<Shared>,
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
        self.inner.prune_before(cutoff).await
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.inner.stats().await
    }

    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { check: true, close: true, ..Capabilities::default() }
    }

    async fn compact(&self) -> Result<()> {
        if self.bug == Bug::CompactLoses {
            remove_everything(&self.jobs).await?;
        }
        self.inner.compact().await
    }

    async fn check(&self) -> Result<CheckReport> {
        let mut report = self.inner.check().await?;
        if self.bug == Bug::CheckFindsNonsense {
            report.problems.push("the moon is in the wrong quarter".to_owned());
        }
        Ok(report)
    }

    async fn close(&self) -> Result<()> {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.inner.close().await
    }
}
