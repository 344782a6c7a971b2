//! Backends that are broken on purpose, each in one way.

mod broken;
mod bugs;
mod choosing;
mod reading;
mod state;
mod writing;

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use storage_core::metrics::SeriesWindows;
use storage_core::metrics::backend::ScanStream;
use storage_core::{
    Capabilities, CheckReport, Error, ErrorKind, Health, MetricAggregation, MetricRecord, Result,
    SeriesFilter, SeriesInfo, SeriesSamples, StorageBackend, StorageStats, TimeRange,
};

use broken::Broken;
pub(crate) use broken::Mutants;
pub(crate) use bugs::Bug;
use state::{Unfinished, pause};

#[async_trait]
impl StorageBackend for Broken {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        let named = |error| self.leave(named(error, "write_batch"));
        self.try_write(records).await.map_err(named)
    }

    async fn query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        let found = self.read(server_id, metric_type, range).await;
        found.map_err(|error| self.leave(named(error, "query_range")))
    }

    async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        let found = self.try_aggregate(server_id, metric_type, range).await;
        found.map_err(|error| self.leave(named(error, "aggregate")))
    }

    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        let named = |error| self.leave(named(error, "prune_before"));
        if self.is_closed() {
            return self.inner.prune_before(cutoff).await.map_err(named);
        }
        self.try_prune(cutoff).await.map_err(named)
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.try_stats().await.map_err(|error| self.leave(named(error, "stats")))
    }

    fn name(&self) -> &'static str {
        if self.is(Bug::NameOfTheHandle) && self.number > 0 { "another" } else { "memory" }
    }

    fn capabilities(&self) -> Capabilities {
        self.offered()
    }

    async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        self.try_series(filter).await.map_err(|error| self.leave(error))
    }

    async fn latest(&self, filter: &SeriesFilter, n: usize) -> Result<Vec<SeriesSamples>> {
        self.try_latest(filter, n).await.map_err(|error| self.leave(error))
    }

    async fn windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        self.try_windows(filter, range, width).await.map_err(|error| self.leave(error))
    }

    fn scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        self.try_scan(filter, range)
    }

    async fn flush(&self) -> Result<()> {
        self.enter()?;
        match self.bug {
            Bug::UpkeepFailsOnNothing => self.try_compact().await,
            Bug::FlushLosesMetadata => {
                self.shared.log().metadata_lost = true;
                Ok(())
            }
            Bug::DroppedUpkeepLoses => {
                let unfinished = Unfinished::new(&self.shared.broken);
                pause().await;
                unfinished.done();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn compact(&self) -> Result<()> {
        self.try_compact().await
    }

    async fn check(&self) -> Result<CheckReport> {
        self.enter()?;
        if self.is(Bug::CheckGoesOnClosed) && self.is_closed() {
            return Ok(CheckReport::default());
        }
        let mut report = self.inner.check().await?;
        let problem = || vec!["the moon is in the wrong quarter".to_owned()];
        match self.bug {
            Bug::CheckFindsNonsense if report.samples > 0 => report.problems = problem(),
            Bug::CheckFindsOldNonsense => report.problems = problem(),
            Bug::CheckCountsNothing => report.samples = 0,
            Bug::CheckRepairs => self.lose_oldest(),
            Bug::CheckRacesWrites if self.shared.writing.load(Ordering::SeqCst) > 0 => {
                report.problems = problem();
            }
            Bug::DroppedCheckBreaks => {
                let unfinished = Unfinished::new(&self.shared.broken);
                pause().await;
                unfinished.done();
            }
            _ => {}
        }
        Ok(report)
    }

    async fn health(&self) -> Health {
        match self.stats().await {
            _ if self.is(Bug::HealthIsAlwaysGood) => Health::healthy(),
            Ok(_) if self.is(Bug::HealthIsAlwaysBad) => {
                Health::down(&Error::new(ErrorKind::Unavailable, "a bad day"))
            }
            Ok(_) => Health::healthy(),
            Err(error) => Health::down(&error),
        }
    }

    async fn close(&self) -> Result<()> {
        self.enter()?;
        if self.is(Bug::CloseHalfDone) {
            let unfinished = Unfinished::new(&self.shared.broken);
            pause().await;
            unfinished.done();
        }
        if self.closed.swap(true, Ordering::SeqCst) {
            return match self.bug {
                Bug::CloseTwiceFails => Err(Error::new(ErrorKind::Closed, "closed before")),
                _ => Ok(()),
            };
        }
        self.shared.open.fetch_sub(1, Ordering::SeqCst);
        self.shared.closed.store(true, Ordering::SeqCst);
        let pending = std::mem::take(&mut self.shared.log().pending);
        self.inner.write_batch(&pending).await?;
        if self.is(Bug::CloseIsIgnored) { Ok(()) } else { self.inner.close().await }
    }
}

fn named(error: Error, operation: &'static str) -> Error {
    error.with_backend("memory").with_operation(operation)
}
