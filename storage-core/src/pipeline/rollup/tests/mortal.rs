//! Stores of a process that dies at a call that was chosen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use crate::InMemory;
use crate::capabilities::Capabilities;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::{
    MetricAggregation, MetricRecord, ScanStream, SeriesFilter, SeriesInfo, SeriesSamples,
    StorageBackend, StorageStats, TimeRange,
};

/// How many changes a process makes before it dies.
#[derive(Debug)]
pub(super) struct Life {
    changes_left: AtomicI64,
    /// Whether the last change is made.
    makes_last: bool,
    is_dead: AtomicBool,
}

impl Life {
    pub(super) fn of(changes: i64, makes_last: bool) -> Arc<Self> {
        let changes_left = AtomicI64::new(changes);
        Arc::new(Self { changes_left, makes_last, is_dead: AtomicBool::new(false) })
    }

    pub(super) fn immortal() -> Arc<Self> {
        Self::of(i64::MAX, true)
    }

    pub(super) fn is_dead(&self) -> bool {
        self.is_dead.load(SeqCst)
    }

    fn alive(&self) -> Result<()> {
        if self.is_dead() {
            return Err(Error::new(ErrorKind::Unavailable, "the process is dead"));
        }
        Ok(())
    }

    async fn change<T>(&self, change: impl Future<Output = Result<T>>) -> Result<T> {
        self.alive()?;
        if self.changes_left.fetch_sub(1, SeqCst) > 0 {
            return change.await;
        }
        if self.makes_last {
            change.await?;
        }
        self.is_dead.store(true, SeqCst);
        self.alive()?;
        Err(Error::new(ErrorKind::Internal, "it lives on"))
    }
}

/// A store in memory, as a process sees it.
#[derive(Debug)]
pub(super) struct Mortal {
    inner: Arc<InMemory>,
    life: Arc<Life>,
}

impl Mortal {
    pub(super) fn new(inner: Arc<InMemory>, life: Arc<Life>) -> Self {
        Self { inner, life }
    }
}

#[async_trait]
impl StorageBackend for Mortal {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        self.life.change(self.inner.write_batch(records)).await
    }
    async fn query_range(&self, s: &str, m: &str, range: TimeRange) -> Result<Vec<MetricRecord>> {
        self.life.alive()?;
        self.inner.query_range(s, m, range).await
    }
    async fn aggregate(&self, s: &str, m: &str, range: TimeRange) -> Result<MetricAggregation> {
        self.life.alive()?;
        self.inner.aggregate(s, m, range).await
    }
    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        self.life.change(self.inner.prune_before(cutoff)).await
    }
    async fn stats(&self) -> Result<StorageStats> {
        self.life.alive()?;
        self.inner.stats().await
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        self.life.alive()?;
        self.inner.series(filter).await
    }
    async fn latest(&self, filter: &SeriesFilter, n: usize) -> Result<Vec<SeriesSamples>> {
        self.life.alive()?;
        self.inner.latest(filter, n).await
    }
    fn scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        match self.life.alive() {
            Ok(()) => self.inner.scan(filter, range),
            Err(error) => Box::pin(futures_util::stream::once(std::future::ready(Err(error)))),
        }
    }
}
