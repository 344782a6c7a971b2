//! Two stores that take the same writes, as one backend.
//!
//! The primary decides: what it took is stored, and it alone answers. The secondary follows;
//! where it could not, that is counted until a repair has made it the same again.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::sync::{OwnedMutexGuard, RwLock};

use crate::capabilities::Capabilities;
use crate::error::{Outcome, Result};
use crate::metrics::time::{floor_ms, from_ms, width_ms};
use crate::metrics::{
    CheckReport, Health, HealthStatus, MetricAggregation, MetricRecord, ScanStream, SeriesFilter,
    SeriesInfo, SeriesSamples, SeriesWindows, StorageBackend, StorageStats, TimeRange,
};
use crate::pipeline::windows::Windows;
use crate::pipeline::{Comparison, CopyOptions, compare, copy};

/// Writes of series with the same number wait for each other.
const LANES: usize = 64;

/// What becomes of a write that the secondary does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MirrorPolicy {
    /// It fails, with the outcome `Unknown`: the primary has it. Write it again.
    Require,
    /// It succeeds, and is counted as missed.
    Degrade,
}

/// What the secondary is known to have missed since the handle was opened or last repaired.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Divergence {
    /// Batches that the primary holds, or may hold, and the secondary may not.
    pub batches_missed: u64,
    /// Samples of these batches.
    pub samples_missed: u64,
    /// Prunes that were done, or begun, on the primary and failed on the secondary.
    pub prunes_missed: u64,
    /// Time of the earliest and of the latest sample missed.
    pub extent: Option<(DateTime<Utc>, DateTime<Utc>)>,
    /// When the first of these was missed.
    pub since: Option<DateTime<Utc>>,
    /// What the secondary said last.
    pub last_error: Option<String>,
    /// The latest cutoff of the prunes missed.
    #[serde(skip)]
    cutoff: Option<DateTime<Utc>>,
}

impl Divergence {
    /// Whether nothing was missed.
    pub fn is_none(&self) -> bool {
        self.batches_missed == 0 && self.prunes_missed == 0
    }

    fn miss_batch(&mut self, records: u64, extent_ms: (i64, i64)) {
        self.batches_missed += 1;
        self.samples_missed += records;
        let (start, end) = (from_ms(extent_ms.0), from_ms(extent_ms.1));
        let (oldest, newest) = self.extent.unwrap_or((start, end));
        self.extent = Some((oldest.min(start), newest.max(end)));
        self.since.get_or_insert_with(Utc::now);
    }

    fn miss_prune(&mut self, cutoff: DateTime<Utc>) {
        self.prunes_missed += 1;
        self.cutoff = self.cutoff.max(Some(cutoff));
        self.since.get_or_insert_with(Utc::now);
    }
}

/// What [`Mirrored::repair`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct RepairReport {
    /// Windows that were compared.
    pub windows: u64,
    /// Windows in which the secondary lacked something, or had it otherwise.
    pub windows_repaired: u64,
    /// Samples that the secondary lacked or had otherwise.
    pub samples_repaired: u64,
    /// Samples that only the secondary holds, in windows in which the primary holds some. The
    /// contract has no way to remove them.
    pub samples_extra: u64,
    /// Samples removed by prunes that the secondary had missed.
    pub samples_pruned: u64,
}

/// Writes to two stores, and answers from the first.
///
/// A batch goes to the primary and then to the secondary, so that what is acknowledged is in both, or
/// known to be missing in the secondary: see [`MirrorPolicy`] and [`divergence`](Self::divergence).
/// Writes of one series and prunes reach both in the same order, as far as they come by this
/// handle. Those of several handles may not, and a process that is killed between the two writes
/// leaves the second undone without anybody counting it: [`verify`](Self::verify) compares the stores,
/// [`repair`](Self::repair) makes the secondary the same.
///
/// Every answer, name and capabilities included, is the primary's; `disk_usage_bytes` too. `health` is `Degraded` while
/// the secondary does not work or is known to have missed something; what it says in `check`, or why it cannot
/// be checked, stands among the problems.
///
/// A write whose future is kept but not polled holds up later ones of its series, prunes and repairs; one that is
/// dropped does not.
///
/// # Errors
/// Those of the primary; with [`MirrorPolicy::Require`] also those of the secondary, with the detail
/// `mirror` and, but for `check`, the outcome `Unknown`.
///
/// # Example
/// ```
/// use std::sync::Arc;
///
/// use storage_core::compose::{MirrorPolicy, Mirrored};
/// use storage_core::layers::{Fault, FaultPlan, Faulty, Operation};
/// use storage_core::pipeline::CopyOptions;
/// use storage_core::{InMemory, StorageBackend, StorageBackendExt};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let shaky = Arc::new(Faulty::new(InMemory::new(), FaultPlan::new(1)));
/// shaky.control().inject(Operation::WriteBatch, Fault::Refused);
/// let store = Mirrored::new(Arc::new(InMemory::new()), shaky.clone(), MirrorPolicy::Degrade);
///
/// store.write("web-1", "cpu", chrono::Utc::now(), 1.0).await?;
/// assert_eq!(store.divergence().samples_missed, 1);
/// let report = store.repair(&CopyOptions::default()).await?;
/// assert_eq!(report.samples_repaired, 1);
/// assert!(store.divergence().is_none());
/// # Ok(()) }
/// ```
pub struct Mirrored {
    primary: Arc<dyn StorageBackend>,
    secondary: Arc<dyn StorageBackend>,
    policy: MirrorPolicy,
    /// Held to read by writes, to write by prunes and repairs.
    gate: RwLock<()>,
    lanes: Vec<Arc<tokio::sync::Mutex<()>>>,
    divergence: Mutex<Divergence>,
}

impl std::fmt::Debug for Mirrored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mirrored")
            .field("primary", &self.primary.name())
            .field("secondary", &self.secondary.name())
            .field("policy", &self.policy)
            .field("divergence", &self.divergence)
            .finish_non_exhaustive()
    }
}

impl Mirrored {
    /// Joins two stores.
    pub fn new(
        primary: Arc<dyn StorageBackend>,
        secondary: Arc<dyn StorageBackend>,
        policy: MirrorPolicy,
    ) -> Self {
        Self {
            primary,
            secondary,
            policy,
            gate: RwLock::new(()),
            lanes: (0..LANES).map(|_| Arc::default()).collect(),
            divergence: Mutex::default(),
        }
    }

    /// The store that answers.
    pub fn primary(&self) -> &Arc<dyn StorageBackend> {
        &self.primary
    }

    /// The store that follows.
    pub fn secondary(&self) -> &Arc<dyn StorageBackend> {
        &self.secondary
    }

    /// Returns what the secondary has missed, as far as this handle knows.
    pub fn divergence(&self) -> Divergence {
        self.known().clone()
    }

    /// Compares both stores sample by sample; the primary is the source.
    ///
    /// Writes meanwhile may show as differences.
    ///
    /// # Errors
    /// Those of [`compare`](crate::pipeline::compare()).
    pub async fn verify(&self, filter: &SeriesFilter, range: TimeRange) -> Result<Comparison> {
        compare(&*self.primary, &*self.secondary, filter, range).await
    }

    /// Makes the secondary hold what the primary holds, for the series and the range of `options`.
    ///
    /// Window by window both are compared; where they differ the window is copied, and writes of
    /// this handle wait for that. Prunes that were missed are done again, if all series are repaired and
    /// all that the primary holds before their cutoff is in the range: what it kept, or took late, is
    /// copied back then. What the handle counts as missed starts from nothing afterwards, if all series
    /// and all of the time missed were repaired, the prunes too, and nothing was missed meanwhile.
    ///
    /// A dry run changes nothing, and forgets nothing.
    ///
    /// # Errors
    /// Those of both stores; done again it goes on.
    pub async fn repair(&self, options: &CopyOptions) -> Result<RepairReport> {
        let known = self.divergence();
        let mut report = RepairReport::default();
        let is_pruned = match known.cutoff {
            Some(cutoff) => self.prune_again(cutoff, options, &mut report).await?,
            None => true,
        };
        let primary = &*self.primary;
        let mut windows = Windows::new(options.range(), width_ms(options.window())?);
        while let Some(window) = windows.next(primary, options.filter()).await? {
            report.windows += 1;
            let found = self.verify(options.filter(), window).await?;
            report.samples_extra += found.extra;
            if !found.holds_source() {
                let _alone = self.gate.write().await;
                let options = options.clone().with_range(window);
                copy(primary, &*self.secondary, &options, |_| {}).await?;
                report.windows_repaired += 1;
                report.samples_repaired += found.missing + found.different;
            }
        }
        let covers = known.extent.is_none_or(|(oldest, newest)| {
            options.range().contains(oldest) && options.range().contains(newest)
        });
        let is_whole = covers && is_pruned && !options.dry_run();
        let mut now = self.known();
        if *now == known && is_whole && *options.filter() == SeriesFilter::any() {
            *now = Divergence::default();
        }
        Ok(report)
    }

    /// Does a prune again that the secondary missed. Returns whether it could: the secondary may lose
    /// nothing by it that this repair does not bring back.
    async fn prune_again(
        &self,
        cutoff: DateTime<Utc>,
        options: &CopyOptions,
        report: &mut RepairReport,
    ) -> Result<bool> {
        if options.dry_run() || *options.filter() != SeriesFilter::any() {
            return Ok(false);
        }
        let _alone = self.gate.write().await;
        // The prune may have failed on the primary, too, and late samples come at any time.
        let held = self.primary.stats().await?;
        let (range, newest) = (options.range(), held.newest_metric);
        let brings_back =
            held.oldest_metric.filter(|oldest| *oldest < cutoff).is_none_or(|oldest| {
                let to_the_end = newest.is_some_and(|newest| range.contains(newest));
                range.contains(oldest) && (cutoff <= range.end() || to_the_end)
            });
        if brings_back {
            report.samples_pruned = self.secondary.prune_before(cutoff).await?;
        }
        Ok(brings_back)
    }

    fn known(&self) -> MutexGuard<'_, Divergence> {
        self.divergence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other write of the series of `records` is under way.
    async fn take_lanes(&self, records: &[MetricRecord]) -> Vec<OwnedMutexGuard<()>> {
        let lane = |record: &MetricRecord| {
            let mut hasher = DefaultHasher::new();
            (&record.server_id, &record.metric_type).hash(&mut hasher);
            hasher.finish() as usize % LANES
        };
        let wanted: BTreeSet<_> = records.iter().map(lane).collect();
        let mut held = Vec::with_capacity(wanted.len());
        // In order, so that no two wait for each other.
        for lane in wanted {
            held.push(Arc::clone(&self.lanes[lane]).lock_owned().await);
        }
        held
    }

    /// Turns what the secondary said into what the caller hears.
    fn judged(&self, result: Result<()>) -> Result<()> {
        let Err(error) = result else { return Ok(()) };
        tracing::warn!(target: "storage", %error, "the secondary of a mirror failed");
        self.known().last_error = Some(error.to_string());
        match self.policy {
            MirrorPolicy::Degrade => Ok(()),
            MirrorPolicy::Require => {
                Err(error.with_outcome(Outcome::Unknown).with_context("mirror", "secondary"))
            }
        }
    }
}

/// Counts something as missed by the secondary, unless it is told otherwise before it is dropped.
struct Doubt<'a> {
    store: &'a Mirrored,
    missed: Option<Missed>,
}

enum Missed {
    Batch { records: u64, extent_ms: (i64, i64) },
    Prune(DateTime<Utc>),
}

impl Doubt<'_> {
    fn settle(mut self) {
        self.missed = None;
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        match self.missed.take() {
            Some(Missed::Batch { records, extent_ms }) => {
                self.store.known().miss_batch(records, extent_ms);
            }
            Some(Missed::Prune(cutoff)) => self.store.known().miss_prune(cutoff),
            None => {}
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl StorageBackend for Mirrored {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        let times = || records.iter().map(|record| floor_ms(record.timestamp));
        let (Some(first_ms), Some(last_ms)) = (times().min(), times().max()) else {
            return self.primary.write_batch(records).await;
        };
        let _no_prune = self.gate.read().await;
        let _lanes = self.take_lanes(records).await;
        let missed =
            Missed::Batch { records: records.len() as u64, extent_ms: (first_ms, last_ms) };
        let doubt = Doubt { store: self, missed: Some(missed) };
        if let Err(error) = self.primary.write_batch(records).await {
            if error.outcome() == Outcome::NotApplied {
                doubt.settle();
            }
            return Err(error);
        }
        let written = self.secondary.write_batch(records).await;
        if written.is_ok() {
            doubt.settle();
        }
        self.judged(written)
    }

    async fn query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        self.primary.query_range(server_id, metric_type, range).await
    }

    async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        self.primary.aggregate(server_id, metric_type, range).await
    }

    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        let _alone = self.gate.write().await;
        let doubt = Doubt { store: self, missed: Some(Missed::Prune(cutoff)) };
        let removed = match self.primary.prune_before(cutoff).await {
            Ok(removed) => removed,
            Err(error) => {
                if error.outcome() == Outcome::NotApplied {
                    doubt.settle();
                }
                return Err(error);
            }
        };
        let pruned = self.secondary.prune_before(cutoff).await.map(drop);
        if pruned.is_ok() {
            doubt.settle();
        }
        self.judged(pruned).map(|()| removed)
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.primary.stats().await
    }

    fn name(&self) -> &'static str {
        self.primary.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.primary.capabilities()
    }

    async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        self.primary.series(filter).await
    }

    async fn latest(
        &self,
        filter: &SeriesFilter,
        n_per_series: usize,
    ) -> Result<Vec<SeriesSamples>> {
        self.primary.latest(filter, n_per_series).await
    }

    async fn windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        self.primary.windows(filter, range, width).await
    }

    fn scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        self.primary.scan(filter, range)
    }

    async fn flush(&self) -> Result<()> {
        self.primary.flush().await?;
        self.judged(self.secondary.flush().await)
    }

    async fn compact(&self) -> Result<()> {
        self.primary.compact().await?;
        self.judged(self.secondary.compact().await)
    }

    async fn check(&self) -> Result<CheckReport> {
        let mut found = self.primary.check().await?;
        if self.secondary.capabilities().check {
            let problems = match self.secondary.check().await {
                Ok(second) => second.problems,
                Err(error) if self.policy == MirrorPolicy::Degrade => vec![error.to_string()],
                Err(error) => return Err(error.with_context("mirror", "secondary")),
            };
            let of_secondary = problems.iter().map(|problem| format!("secondary: {problem}"));
            found.problems.extend(of_secondary);
        }
        Ok(found)
    }

    async fn health(&self) -> Health {
        let primary = self.primary.health().await;
        if primary.status != HealthStatus::Healthy {
            return primary;
        }
        let secondary = self.secondary.health().await;
        let known = self.divergence();
        let message = match (secondary.status, known.is_none()) {
            (HealthStatus::Healthy, true) => return primary,
            (HealthStatus::Healthy, false) => format!(
                "the secondary has missed {} batches and {} prunes; repair it",
                known.batches_missed, known.prunes_missed
            ),
            _ => format!("secondary: {}", secondary.message),
        };
        Health { status: HealthStatus::Degraded, message }
    }

    async fn close(&self) -> Result<()> {
        if !self.capabilities().close {
            return Ok(());
        }
        // What is under way ends on both.
        let _none_under_way = self.gate.write().await;
        let closed = self.primary.close().await;
        let second = self.secondary.close().await;
        closed.and(self.judged(second))
    }
}

#[cfg(test)]
mod tests;
