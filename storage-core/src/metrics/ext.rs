//! Comforts over [`StorageBackend`], for every backend: shorthands that need no method of their own.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;

use super::aggregation::Window;
use super::backend::StorageBackend;
use super::filter::SeriesFilter;
use super::range::TimeRange;
use super::record::{MetricRecord, Sample};
use crate::error::Result;

/// Shorthands for every [`StorageBackend`].
///
/// ```
/// use chrono::Utc;
/// use storage_core::{InMemory, StorageBackendExt};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let store = InMemory::new();
/// store.write("web-1", "cpu_usage", Utc::now(), 12.5).await?;
/// assert_eq!(store.latest_one("web-1", "cpu_usage").await?.unwrap().value, 12.5);
/// # Ok(()) }
/// ```
#[async_trait]
pub trait StorageBackendExt: StorageBackend {
    /// Writes one sample. Batches are many times cheaper: see [`StorageBackend::write_batch`].
    async fn write(
        &self,
        server_id: &str,
        metric_type: &str,
        timestamp: DateTime<Utc>,
        value: f64,
    ) -> Result<()> {
        self.write_batch(&[MetricRecord::new(server_id, timestamp, metric_type, value)]).await
    }

    /// Returns the newest sample of a series, if it holds any.
    async fn latest_one(&self, server_id: &str, metric_type: &str) -> Result<Option<Sample>> {
        let filter = SeriesFilter::exact(server_id, metric_type)?;
        let found = self.latest(&filter, 1).await?;
        Ok(found.into_iter().flat_map(|series| series.samples).next())
    }

    /// Returns the windows of one series; see [`StorageBackend::windows`].
    async fn windows_one(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<Window>> {
        let filter = SeriesFilter::exact(server_id, metric_type)?;
        let found = self.windows(&filter, range, width).await?;
        Ok(found.into_iter().flat_map(|series| series.windows).collect())
    }

    /// Removes every sample older than `age`, counted from now, and returns how many.
    async fn prune_older_than(&self, age: Duration) -> Result<u64> {
        let age = chrono::Duration::from_std(age).unwrap_or(chrono::Duration::MAX);
        let cutoff = Utc::now().checked_sub_signed(age).unwrap_or(DateTime::<Utc>::MIN_UTC);
        self.prune_before(cutoff).await
    }

    /// Counts the samples of the chosen series in `range`.
    async fn count(&self, filter: &SeriesFilter, range: TimeRange) -> Result<u64> {
        let mut batches = self.scan(filter, range);
        let mut count = 0;
        while let Some(batch) = batches.try_next().await? {
            count += batch.samples.len() as u64;
        }
        Ok(count)
    }
}

impl<B: StorageBackend + ?Sized> StorageBackendExt for B {}
