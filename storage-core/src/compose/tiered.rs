//! A hot store for what is new and a cold one for what is old, as one backend.
//!
//! Every write goes to the hot tier, also one of a time that was archived: one store takes the
//! whole batch, so all of it or none. Archiving moves samples to the cold tier. An answer is what
//! the hot tier holds laid over what the cold one holds, so that a sample in both counts once, with
//! the value that was written last. What is moved at the moment, and by whom, stands in the
//! control store; a read that met a move is asked again.

mod cold;
mod moves;
mod overlay;
mod reads;
mod scan;
mod view;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::sync::RwLock;
use tokio::time::Instant;

use self::cold::ColdSeries;
use self::view::{Phase, View};
use crate::capabilities::Capabilities;
use crate::control::{Control, look_again};
use crate::deadline::after;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::metrics::time::{floor_ms, from_ms};
use crate::metrics::{
    CheckReport, Health, HealthStatus, MetricAggregation, MetricRecord, ScanStream, SeriesFilter,
    SeriesInfo, SeriesSamples, SeriesWindows, StorageBackend, StorageStats, TimeRange,
};

pub(crate) use self::moves::Moving;

/// How often a read is asked again because samples were moved under it.
const READS_MAX: u32 = 1000;

/// Options of [`Tiered`].
#[derive(Clone)]
pub struct TieredOptions {
    lease: Duration,
    settle: Duration,
    wait_max: Duration,
    clock: Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>,
}

impl std::fmt::Debug for TieredOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { lease, settle, wait_max, clock: _ } = self;
        f.debug_struct("TieredOptions")
            .field("lease", lease)
            .field("settle", settle)
            .field("wait_max", wait_max)
            .finish()
    }
}

impl Default for TieredOptions {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            settle: Duration::from_millis(200),
            wait_max: Duration::from_secs(90),
            clock: Arc::new(Utc::now),
        }
    }
}

impl TieredOptions {
    /// How long a process that moves or prunes samples and says nothing any more is waited for, 10
    /// ms at least. The clocks of the machines must agree to half of it. Default: 30 s.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Duration::from_millis(10));
        self
    }

    /// How long a move waits for late writes that were under way when it closed its window. A late
    /// batch that takes longer is stored as a whole all the same, but its newer samples may show before
    /// its older ones. Default: 200 ms.
    #[must_use]
    pub const fn with_settle(mut self, settle: Duration) -> Self {
        self.settle = settle;
        self
    }

    /// How long a call waits for a move or a prune to end before it says `Busy`; longer than the
    /// lease, or what somebody left behind is not cleared up. Default: 90 s.
    #[must_use]
    pub const fn with_wait_max(mut self, wait_max: Duration) -> Self {
        self.wait_max = wait_max;
        self
    }

    /// Says what time it is, for the ages of an [`ArchiveTask`](crate::pipeline::ArchiveTask). Default: the
    /// clock of the machine.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Fn() -> DateTime<Utc> + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }
}

/// What the calls of a [`Tiered`] share with those that outlive their caller.
struct Tiers {
    hot: Arc<dyn StorageBackend>,
    cold: Arc<dyn StorageBackend>,
    control: Control<View>,
    options: TieredOptions,
    /// Held to read by writes and prunes, to write by `close`, which lets them end.
    under_way: RwLock<()>,
}

/// Two stores as one: `hot` takes all writes, `cold` keeps what was archived.
///
/// Its name is that of the hot tier; errors name the tier that they come from.
///
/// # What it promises
/// All of the contract, as exactly as the tiers keep it. A batch is stored in the hot tier, whole.
/// Where both tiers hold a sample of a series and millisecond the hot one counts: it was written
/// later. Late samples of a time that was archived stay in the hot tier until the next
/// [`archive`](crate::pipeline::archive()) moves them to the cold one.
///
/// # The control store
/// Which samples are being moved, and by whom, stands in a third store, `control`: a few samples,
/// read with every call. All handles on the same tiers, in whatever process, must use the same
/// one. While handles are open the tiers must be written through them alone; reading a tier by
/// itself is fine.
///
/// # Crashes
/// A process may be killed anywhere. Its turn at the tiers runs out after
/// [`TieredOptions::with_lease`]; whoever comes next finishes what it had begun. Until then
/// answers are exact, and only late writes before the cutoff wait, at most
/// [`TieredOptions::with_wait_max`]. One thing is left to luck: if a *late* batch takes longer than
/// [`TieredOptions::with_settle`], in the moment in which an archiver closes the same window, its newer
/// part shows before its older part; and if its process is killed before it was
/// acknowledged, the older part may be missing for good. What such a batch writes again is there again,
/// also where somebody pruned it meanwhile.
///
/// # Errors
/// Those of the tiers and of the control store; `Busy` where a move took longer than a call waits.
///
/// # Cost
/// A write costs one read of the control store more. A read asks both tiers at once, and the hot
/// one alone for what is newer than everything archived, then the control store. Which series the cold
/// tier holds is remembered between moves, about a hundred bytes and its names for each of 100,000 at
/// most: `latest` asks the hot tier first then, and the cold one only if there are series that stopped.
/// Where late samples lie over archived ones, aggregates read the samples of the stretch that they span,
/// and `stats` and `series` count them by a scan of it.
///
/// # Example
/// ```
/// use std::sync::Arc;
///
/// use chrono::{TimeDelta, Utc};
/// use storage_core::compose::Tiered;
/// use storage_core::pipeline::{ArchiveOptions, archive};
/// use storage_core::{InMemory, StorageBackend, StorageBackendExt};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let (hot, cold) = (Arc::new(InMemory::new()), Arc::new(InMemory::new()));
/// let store = Tiered::open(hot.clone(), cold.clone(), Arc::new(InMemory::new())).await?;
/// store.write("web-1", "cpu", Utc::now(), 1.0).await?;
/// store.write("web-1", "cpu", Utc::now() - TimeDelta::days(60), 2.0).await?;
///
/// let cutoff = Utc::now() - TimeDelta::days(30);
/// archive(&store, &ArchiveOptions::before(cutoff), |_| {}).await?;
/// assert_eq!(hot.stats().await?.total_metrics, 1);
/// assert_eq!(cold.stats().await?.total_metrics, 1);
/// assert_eq!(store.stats().await?.total_metrics, 2);
/// # Ok(()) }
/// ```
pub struct Tiered {
    tiers: Arc<Tiers>,
    /// The view as it was when it was last looked at, and when that was.
    seen: Mutex<(View, Instant)>,
    cold_series: ColdSeries,
    closed: AtomicBool,
}

impl std::fmt::Debug for Tiered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { tiers, seen, cold_series: _, closed } = self;
        f.debug_struct("Tiered")
            .field("hot", &tiers.hot.name())
            .field("cold", &tiers.cold.name())
            .field("seen", seen)
            .field("closed", closed)
            .finish()
    }
}

impl Tiered {
    /// Joins two stores, with the defaults of [`TieredOptions`].
    ///
    /// # Errors
    /// `Config` if one of the three cannot list its series; otherwise those of the stores.
    pub async fn open(
        hot: Arc<dyn StorageBackend>,
        cold: Arc<dyn StorageBackend>,
        control: Arc<dyn StorageBackend>,
    ) -> Result<Self> {
        Self::open_with(hot, cold, control, TieredOptions::default()).await
    }

    /// Joins two stores.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_with(
        hot: Arc<dyn StorageBackend>,
        cold: Arc<dyn StorageBackend>,
        control: Arc<dyn StorageBackend>,
        options: TieredOptions,
    ) -> Result<Self> {
        for (role, store) in [("hot", &hot), ("cold", &cold), ("control", &control)] {
            if !store.capabilities().series {
                return Err(Error::new(ErrorKind::Config, "the store cannot list its series")
                    .with_backend(store.name())
                    .with_context("tier", role));
            }
        }
        // First what may be in the cold tier already, then how far it is filled since.
        let newest = cold.stats().await?.newest_metric;
        let control = Control::<View>::new(control, options.lease);
        let mut view = control.view().await?;
        if let Some(newest) = newest {
            view.cold_end_ms = view.cold_end_ms.max(floor_ms(newest) + 1);
        }
        let tiers = Tiers { hot, cold, control, options, under_way: RwLock::new(()) };
        Ok(Self {
            tiers: Arc::new(tiers),
            seen: Mutex::new((view, Instant::now())),
            cold_series: ColdSeries::default(),
            closed: AtomicBool::new(false),
        })
    }

    /// The hot tier.
    pub fn hot(&self) -> &Arc<dyn StorageBackend> {
        &self.tiers.hot
    }

    /// The cold tier.
    pub fn cold(&self) -> &Arc<dyn StorageBackend> {
        &self.tiers.cold
    }

    /// The end of the time of which the cold tier holds everything: the oldest sample of the hot one; `None` if
    /// that one is empty. A sample that comes late makes it earlier, until it is archived too.
    ///
    /// # Errors
    /// Those of the hot tier.
    pub async fn archived_before(&self) -> Result<Option<DateTime<Utc>>> {
        self.check_open("archived_before")?;
        Ok(self.tiers.hot.stats().await?.oldest_metric)
    }

    /// What time it is, by the clock that was given.
    pub(crate) fn now(&self) -> DateTime<Utc> {
        (self.tiers.options.clock)()
    }

    /// Takes the turn to move samples from the hot tier to the cold one.
    pub(crate) async fn begin_move(&self) -> Result<Moving> {
        self.check_open("archive")?;
        Moving::begin(Arc::clone(&self.tiers)).await
    }

    fn check_open(&self, operation: &'static str) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "the store was closed")
                .with_backend(self.name())
                .with_operation(operation));
        }
        Ok(())
    }

    fn seen(&self) -> View {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Returns a view that is so new that a move which closed since still waits for late writes.
    /// With it when it was read, or a moment before.
    async fn seen_lately(&self) -> Result<(View, Instant)> {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.1.elapsed() < self.tiers.options.settle / 4 {
            return Ok(seen);
        }
        let looked = Instant::now();
        Ok((self.look().await?, looked))
    }

    /// Looks at the view again, and remembers it.
    async fn look(&self) -> Result<View> {
        let looked = Instant::now();
        let mut now = self.tiers.control.view().await?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        now.cold_end_ms = now.cold_end_ms.max(seen.0.cold_end_ms);
        if now.generation >= seen.0.generation {
            *seen = (now, looked.max(seen.1));
        }
        Ok(now)
    }

    /// Begins a read.
    fn reading(&self, operation: &'static str) -> Result<Reading<'_>> {
        self.check_open(operation)?;
        Ok(Reading { store: self, view: self.seen(), reads: 0 })
    }
}

/// A read that is asked again for as long as samples were moved while it was answered.
struct Reading<'a> {
    store: &'a Tiered,
    view: View,
    reads: u32,
}

impl Reading<'_> {
    /// Whether the answer that was made with [`view`](Self::view) counts.
    ///
    /// It does if the view is still the same: then no move began or ended since it was read.
    async fn is_settled(&mut self) -> Result<bool> {
        let now = self.store.look().await?;
        if now.generation == self.view.generation {
            return Ok(true);
        }
        self.view = now;
        self.again()?;
        Ok(false)
    }

    fn again(&mut self) -> Result<()> {
        self.reads += 1;
        if self.reads < READS_MAX {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Busy, "samples are moved faster than they can be read"))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl StorageBackend for Tiered {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        self.check_open("write_batch")?;
        let _under_way = self.tiers.under_way.read().await;
        self.check_open("write_batch")?;
        let Some(earliest_ms) = records.iter().map(|record| floor_ms(record.timestamp)).min()
        else {
            return self.tiers.hot.write_batch(records).await;
        };
        // Whether samples of the batch are kept out at the moment.
        let is_late = |view: &View| {
            earliest_ms < view.cutoff_ms && matches!(view.phase, Phase::Closing | Phase::Moving)
        };
        let deadline = after(Instant::now(), self.tiers.options.wait_max);
        let (mut before, mut looked) = self.seen_lately().await?;
        let mut outcome = Outcome::NotApplied;
        loop {
            while is_late(&before) {
                self.wait_past(before, deadline).await.map_err(in_doubt(outcome))?;
                looked = Instant::now();
                before = self.look().await.map_err(in_doubt(outcome))?;
            }
            self.tiers.hot.write_batch(records).await.map_err(in_doubt(outcome))?;
            let landed = looked.elapsed();
            outcome = Outcome::Unknown;
            looked = Instant::now();
            let mut after = self.look().await.map_err(in_doubt(outcome))?;
            // What was written beside a prune shows when the prune is over.
            if after.phase == Phase::Pruning && earliest_ms < after.cutoff_ms {
                after = self.wait_past(after, deadline).await.map_err(in_doubt(outcome))?;
            }
            // A move that closed meanwhile may remove it without having copied it.
            let untouched = after.moves == before.moves || earliest_ms >= after.cold_end_ms;
            if after.waited_for(landed) || untouched && !is_late(&after) {
                return Ok(());
            }
            before = after;
        }
    }

    async fn query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        let mut reading = self.reading("query_range")?;
        loop {
            let answer = reading.records(server_id, metric_type, range).await?;
            if reading.is_settled().await? {
                return Ok(answer);
            }
        }
    }

    async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        let mut reading = self.reading("aggregate")?;
        loop {
            let answer = reading.aggregate(server_id, metric_type, range).await?;
            if reading.is_settled().await? {
                return Ok(answer);
            }
        }
    }

    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        self.check_open("prune_before")?;
        let tiers = Arc::clone(&self.tiers);
        // In a task of its own: given up half way, it would hold up others until its lease ends.
        let pruning = tokio::spawn(async move {
            let _under_way = tiers.under_way.read().await;
            moves::prune(&tiers, floor_ms(cutoff)).await
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
        let mut reading = self.reading("stats")?;
        let any = SeriesFilter::any();
        let series = reading.settled_series(&any);
        let (series, hot, cold) =
            futures_util::join!(series, self.tiers.hot.stats(), self.tiers.cold.stats());
        let series = series?;
        Ok(StorageStats {
            total_metrics: series.iter().map(|info| info.count).sum(),
            series: series.len() as u64,
            disk_usage_bytes: hot?.disk_usage_bytes + cold?.disk_usage_bytes,
            oldest_metric: series.iter().map(|info| info.oldest).min(),
            newest_metric: series.iter().map(|info| info.newest).max(),
        })
    }

    fn name(&self) -> &'static str {
        self.tiers.hot.name()
    }

    fn capabilities(&self) -> Capabilities {
        let (hot, cold) = (self.tiers.hot.capabilities(), self.tiers.cold.capabilities());
        Capabilities { series: true, check: hot.check && cold.check, close: true }
    }

    async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        self.reading("series")?.settled_series(filter).await
    }

    async fn latest(
        &self,
        filter: &SeriesFilter,
        n_per_series: usize,
    ) -> Result<Vec<SeriesSamples>> {
        let mut reading = self.reading("latest")?;
        loop {
            let answer = reading.latest(filter, n_per_series).await?;
            if reading.is_settled().await? {
                return Ok(answer);
            }
        }
    }

    async fn windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width: Duration,
    ) -> Result<Vec<SeriesWindows>> {
        let mut reading = self.reading("windows")?;
        loop {
            let answer = reading.windows(filter, range, width).await?;
            if reading.is_settled().await? {
                return Ok(answer);
            }
        }
    }

    fn scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        scan::scan(self, filter.clone(), range)
    }

    async fn flush(&self) -> Result<()> {
        self.check_open("flush")?;
        self.tiers.hot.flush().await?;
        self.tiers.cold.flush().await
    }

    async fn compact(&self) -> Result<()> {
        self.check_open("compact")?;
        self.tiers.hot.compact().await?;
        self.tiers.cold.compact().await
    }

    async fn check(&self) -> Result<CheckReport> {
        self.check_open("check")?;
        if !self.capabilities().check {
            return Err(Error::unsupported("check").with_backend(self.name()));
        }
        let mut all = CheckReport::default();
        for (role, tier) in [("hot", &self.tiers.hot), ("cold", &self.tiers.cold)] {
            let found = tier.check().await?;
            all.pieces += found.pieces;
            all.samples += found.samples;
            all.problems.extend(found.problems.iter().map(|problem| format!("{role}: {problem}")));
        }
        Ok(all)
    }

    async fn health(&self) -> Health {
        if let Err(error) = self.check_open("health") {
            return Health::down(&error);
        }
        if let Err(error) = self.tiers.control.view().await {
            return Health::down(&error);
        }
        let (hot, cold) = futures_util::join!(self.tiers.hot.health(), self.tiers.cold.health());
        let message = |role: &str, health: &Health| format!("{role} tier: {}", health.message);
        match (hot.status, cold.status) {
            (HealthStatus::Healthy, HealthStatus::Healthy) => Health::healthy(),
            (HealthStatus::Down, _) => {
                Health { status: HealthStatus::Down, message: message("hot", &hot) }
            }
            // What is new can still be written and read.
            (HealthStatus::Healthy, _) => {
                Health { status: HealthStatus::Degraded, message: message("cold", &cold) }
            }
            (HealthStatus::Degraded, _) => {
                Health { status: HealthStatus::Degraded, message: message("hot", &hot) }
            }
        }
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        // What is under way still needs all three.
        let _none_under_way = self.tiers.under_way.write().await;
        self.tiers.hot.close().await?;
        self.tiers.cold.close().await?;
        self.tiers.control.store().close().await
    }
}

impl Tiered {
    /// Waits until the view is another than `before`; clears up behind who has died.
    async fn wait_past(&self, before: View, deadline: Instant) -> Result<View> {
        let mut clears_up = after(Instant::now(), self.tiers.options.lease);
        loop {
            let now = self.look().await?;
            if now.generation != before.generation {
                return Ok(now);
            }
            if Instant::now() >= deadline {
                let cutoff = from_ms(before.cutoff_ms).to_rfc3339();
                return Err(Error::new(ErrorKind::Busy, "samples of that time are being moved")
                    .with_backend(self.name())
                    .with_context("before", cutoff));
            }
            if Instant::now() >= clears_up {
                moves::clear_up(&self.tiers, Instant::now()).await?;
                clears_up = after(Instant::now(), self.tiers.options.lease);
            }
            look_again().await;
        }
    }
}

/// Says of an error what is known of the batch by then.
fn in_doubt(outcome: Outcome) -> impl Fn(Error) -> Error {
    move |error| if outcome == Outcome::Unknown { error.with_outcome(outcome) } else { error }
}

#[cfg(test)]
mod tests;
