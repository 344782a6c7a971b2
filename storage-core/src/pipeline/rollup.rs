//! Rollups: what is known of windows of time, kept when the samples themselves are gone.
//!
//! [`Rolled`] stands before a store of samples and sees every write and every prune. Each *tier* of
//! rollups is a store of its own, because a prune is all that the contract has to remove anything,
//! and tiers are kept for different lengths of time. How far they reach stands in a control store.
//!
//! | file | what lives there |
//! |---|---|
//! | `options` | which rollups are kept, and how |
//! | `backend`, `write` | the contract; writing so that no rollup misses a sample |
//! | `row` | a rollup, and the samples that it is kept as |
//! | `view`, `marks` | what the handles tell each other; which windows late samples re-open |
//! | `turn`, `roll`, `gather` | a turn at the tiers; rolling up |
//! | `prune` | removing samples behind their rollups, and old rollups |
//! | `reads`, `series` | windows out of rollups and samples |

mod backend;
mod gather;
mod marks;
mod options;
mod prune;
mod ranges;
mod reads;
mod roll;
mod row;
mod series;
mod turn;
mod view;
mod write;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{RwLock, RwLockReadGuard};
use tokio::time::Instant;

use self::marks::Marker;
use self::view::View;
use crate::control::{Control, look_again};
use crate::deadline::after;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::time::{END_MS, floor_ms, from_ms, width_ms};
use crate::metrics::{StorageBackend, TimeRange};

use self::options::SETTLE;
pub use self::options::{RollupOptions, RollupTier};
pub use self::reads::{PercentileWindow, RolledWindows, SeriesPercentiles, Stretch, WindowSource};
pub use self::roll::RefreshReport;
pub(super) use self::row::FIELDS;
pub(super) use self::turn::Turn;

/// A tier with its width in milliseconds.
struct Tier {
    width_ms: i64,
    store: Arc<dyn StorageBackend>,
}

/// The samples, or the rollups of one width.
pub(super) struct Place {
    /// `None` for samples.
    pub(super) width: Option<Duration>,
    /// Cutoffs are multiples of this.
    pub(super) align_ms: i64,
    /// What is from here on stays in any case.
    pub(super) end_ms: i64,
    /// What is younger is not rolled up yet.
    pub(super) delay: Duration,
    pub(super) store: Arc<dyn StorageBackend>,
}

/// What the calls of a [`Rolled`] share with those that outlive their caller.
struct Stores {
    raw: Arc<dyn StorageBackend>,
    /// From the narrowest windows to the widest.
    tiers: Vec<Tier>,
    control: Control<View>,
    options: RollupOptions,
    marker: Marker,
    /// Held to read by writes and prunes, to write by `close`, which lets them end.
    under_way: RwLock<()>,
}

impl Tier {
    fn width(&self) -> Duration {
        Duration::from_millis(self.width_ms.unsigned_abs())
    }
}

impl Stores {
    /// The widths of the narrowest and of the widest tier.
    fn widths_ms(&self) -> Option<(i64, i64)> {
        Some((self.tiers.first()?.width_ms, self.tiers.last()?.width_ms))
    }

    fn now_ms(&self) -> i64 {
        floor_ms((self.options.clock)())
    }
}

/// A store of samples with rollups beside it.
///
/// Its name is that of the store of samples; errors name the store that they come from.
///
/// # What it promises
/// As a [`StorageBackend`] it is the store of samples: every answer is about the samples that are
/// there, and all of the contract holds as that store keeps it. A prune removes samples and never a
/// rollup: what is removed is rolled up first, in every tier, from the samples themselves.
///
/// [`rolled_windows`](Self::rolled_windows) answers beyond that from rollups, where samples are gone
/// or where rollups are cheaper, and says which it took. It never differs from what one computes
/// from all samples that were ever acknowledged, in three respects apart: sums may
/// differ in their last digits, and one that does not fit into an `f64` stays infinite; a range that
/// begins or ends within a window whose samples are gone is answered for whole windows inside it;
/// and a sample that is written *again* after it was pruned counts as another one.
///
/// # Late samples
/// A window is rolled up once, [`RollupOptions::with_delay`] after its end, by
/// [`refresh`](Self::refresh). A sample that comes later, or replaces one, re-opens it: until the next
/// refresh the window is answered from samples. Where samples were removed, what comes late is added
/// to the rollup, and becomes a part of it with the next prune.
///
/// # The stores
/// Tiers and control store hold nothing else. All handles on the same samples, in whatever process,
/// must use the same ones, and write and prune through them. [`kept_widths`](Self::kept_widths) says which
/// these are. A tier that is new begins where samples begin, one that is left out is not
/// answered from any more; its store stays as it is. What is written by another way is
/// rolled up all the same if it is new; late, it is missed until
/// [`rebuild`](Self::rebuild) or the prune of its samples. What is pruned by another way keeps the
/// rollups that were there.
///
/// # Crashes
/// A process may be killed anywhere: no rollup is lost, and none counts twice. Whoever comes next
/// finishes what it had begun, when its lease has run out. Until then reads wait at most as long
/// as it takes to put rollups together, and writes of samples that were about to be pruned wait at most
/// [`RollupOptions::with_wait_max`]. One thing is left to luck: a batch with samples that are about to be
/// pruned, which takes longer than [`RollupOptions::with_settle`] in the moment in which that
/// prune begins, may count twice; if its process is killed before it was acknowledged, its older part may be missing.
///
/// # Errors
/// Those of the stores; `Busy` where another process took longer than a call waits.
///
/// # Cost
/// A write costs one read of the control store more, and one write if it re-opens windows that are
/// not re-opened yet. Reads by the contract cost nothing more.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use chrono::{TimeDelta, Utc};
/// use storage_core::pipeline::{RollupTier, Rolled};
/// use storage_core::{InMemory, SeriesFilter, StorageBackend, StorageBackendExt, TimeRange};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let memory = || Arc::new(InMemory::new());
/// let tiers = RollupTier::DEFAULT_WIDTHS.map(|width| RollupTier::new(width, memory()));
/// let store = Rolled::open(memory(), tiers.into(), memory()).await?;
/// let month_ago = Utc::now() - TimeDelta::days(30);
/// store.write("web-1", "cpu", month_ago, 2.0).await?;
/// store.prune_before(Utc::now() - TimeDelta::days(7)).await?;
/// assert_eq!(store.stats().await?.total_metrics, 0);
///
/// let (any, day) = (SeriesFilter::any(), Duration::from_secs(86_400));
/// let found = store.rolled_windows(&any, TimeRange::all(), day).await?;
/// assert_eq!(found.series[0].windows[0].aggregation.sum, Some(2.0));
/// # Ok(()) }
/// ```
pub struct Rolled {
    stores: Arc<Stores>,
    tiers: Vec<RollupTier>,
    /// The view as it was when it was last looked at, and when that was.
    seen: Mutex<(Arc<View>, Instant)>,
    closed: AtomicBool,
}

impl std::fmt::Debug for Rolled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { stores, tiers, seen, closed } = self;
        f.debug_struct("Rolled")
            .field("raw", &stores.raw.name())
            .field("tiers", tiers)
            .field("seen", seen)
            .field("closed", closed)
            .finish()
    }
}

impl Rolled {
    /// Keeps rollups beside `raw`, with the defaults of [`RollupOptions`].
    ///
    /// # Errors
    /// `Config` if a store cannot list its series, or the tiers do not fit: each width must be whole
    /// seconds, and a multiple of the one below. Otherwise those of the stores.
    pub async fn open(
        raw: Arc<dyn StorageBackend>,
        tiers: Vec<RollupTier>,
        control: Arc<dyn StorageBackend>,
    ) -> Result<Self> {
        Self::open_with(raw, tiers, control, RollupOptions::default()).await
    }

    /// Keeps rollups beside `raw`. Without tiers there are none, and a prune is just a prune.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_with(
        raw: Arc<dyn StorageBackend>,
        mut tiers: Vec<RollupTier>,
        control: Arc<dyn StorageBackend>,
        options: RollupOptions,
    ) -> Result<Self> {
        tiers.sort_by_key(RollupTier::width);
        for store in tiers.iter().map(RollupTier::store).chain([&raw, &control]) {
            if !store.capabilities().series {
                return Err(config("the store cannot list its series").with_backend(store.name()));
            }
        }
        let own = checked(&tiers)?;
        let control = Control::<View>::new(control, options.lease);
        let view = control.view().await?;
        for width in view.widths().filter(|width| own.iter().all(|tier| tier.width() != *width)) {
            tracing::warn!(target: "storage", ?width, "rollups that were kept are not kept any more");
        }
        let stores = Stores {
            raw,
            tiers: own,
            control,
            options,
            marker: Marker::new(),
            under_way: RwLock::new(()),
        };
        Ok(Self {
            stores: Arc::new(stores),
            tiers,
            seen: Mutex::new((Arc::new(view), Instant::now())),
            closed: AtomicBool::new(false),
        })
    }

    /// Says which widths of rollups are kept by who uses `control`, from the narrowest; `None` where
    /// nobody has rolled up or pruned yet.
    ///
    /// # Errors
    /// Those of the store; `Corrupt` if it is no control store of rollups.
    pub async fn kept_widths(control: Arc<dyn StorageBackend>) -> Result<Option<Vec<Duration>>> {
        let control = Control::<View>::new(control, RollupOptions::default().lease);
        let widths: Vec<_> = control.view().await?.widths().collect();
        Ok(if widths.is_empty() { None } else { Some(widths) })
    }

    /// The store of samples.
    pub fn raw(&self) -> &Arc<dyn StorageBackend> {
        &self.stores.raw
    }

    /// The tiers, from the narrowest windows to the widest.
    pub fn tiers(&self) -> &[RollupTier] {
        &self.tiers
    }

    /// Rolls up what is complete and was not yet, and what late samples re-opened.
    ///
    /// # Errors
    /// `Busy` if another process had its turn for longer than a call waits; otherwise those of
    /// the stores. Done again it goes on where it broke off.
    ///
    /// # Cost
    /// Samples of each window are read once for each tier; of what is new alone.
    pub async fn refresh(&self) -> Result<RefreshReport> {
        self.check_open("refresh")?;
        if self.tiers.is_empty() {
            return Ok(RefreshReport::default());
        }
        let _under_way = self.under_way().await;
        let mut turn = Turn::begin(&self.stores, self.deadline()).await?;
        let done = turn.refresh().await;
        turn.end().await?;
        done
    }

    /// Rolls up everything in `range` anew whose samples are there: for what was written by another
    /// way than through this.
    ///
    /// # Errors
    /// As [`refresh`](Self::refresh).
    pub async fn rebuild(&self, range: TimeRange) -> Result<RefreshReport> {
        self.check_open("rebuild")?;
        let mark = ranges::Ranges::of([(range.start_ms(), range.end_ms())]);
        loop {
            let view = self.look().await?;
            let (stores, mark) = (&self.stores, mark.clone());
            stores.marker.mark_ranges(stores.control.store(), &view, mark).await?;
            // A refresh that began meanwhile may have passed over the mark.
            if self.look().await?.epoch == view.epoch {
                return self.refresh().await;
            }
        }
    }

    /// Takes a turn at the stores.
    pub(super) async fn begin_turn(&self, operation: &'static str) -> Result<Turn> {
        self.check_open(operation)?;
        Turn::begin(&self.stores, self.deadline()).await
    }

    /// Holds up `close` while it is held.
    pub(super) async fn under_way(&self) -> RwLockReadGuard<'_, ()> {
        self.stores.under_way.read().await
    }

    /// What time it is, by the clock that was given.
    pub(super) fn now(&self) -> DateTime<Utc> {
        (self.stores.options.clock)()
    }

    /// What can be removed from: the samples, then the tiers.
    pub(super) async fn places(&self) -> Result<Vec<Place>> {
        let delay = self.stores.options.delay;
        let (raw, widths_ms) = (Arc::clone(&self.stores.raw), self.stores.widths_ms());
        // Without rollups any time is a bound.
        let align_ms = widths_ms.map_or(1, |(_, widest_ms)| widest_ms);
        let end_ms = self.archived_end_ms().await?;
        let samples = Place { width: None, align_ms, end_ms, delay, store: raw };
        let tier = |(tier, own): (&RollupTier, &Tier)| Place {
            width: Some(tier.width),
            align_ms: own.width_ms,
            end_ms: END_MS,
            delay,
            store: Arc::clone(&tier.store),
        };
        let tiers = self.tiers.iter().zip(&self.stores.tiers).map(tier);
        Ok(std::iter::once(samples).chain(tiers).collect())
    }

    /// Before which time samples are archived; the end of all time if all are, or none are to be.
    async fn archived_end_ms(&self) -> Result<i64> {
        let Some(tiers) = &self.stores.options.archived else { return Ok(END_MS) };
        Ok(tiers.archived_before().await?.map_or(END_MS, floor_ms))
    }

    fn deadline(&self) -> Instant {
        after(Instant::now(), self.stores.options.wait_max)
    }

    fn check_open(&self, operation: &'static str) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "the store was closed")
                .with_backend(self.name())
                .with_operation(operation));
        }
        Ok(())
    }

    /// Returns a view that is so new that a refresh or prune which began since still waits, also one by
    /// a handle that waits less than this one. With it when it was read, or a moment before.
    async fn seen_lately(&self) -> Result<(Arc<View>, Instant)> {
        {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let settle = seen.0.settle().unwrap_or(SETTLE).min(self.stores.options.settle);
            if seen.1.elapsed() < settle / 4 {
                return Ok((Arc::clone(&seen.0), seen.1));
            }
        }
        let looked = Instant::now();
        Ok((self.look().await?, looked))
    }

    /// Looks at the view again, and remembers it.
    async fn look(&self) -> Result<Arc<View>> {
        let looked = Instant::now();
        let now = Arc::new(self.stores.control.view().await?);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if now.generation >= seen.0.generation {
            *seen = (Arc::clone(&now), looked.max(seen.1));
        }
        Ok(now)
    }

    /// Waits until the view is another than `before`; clears up behind who has died.
    async fn wait_past(&self, before: &View, deadline: Instant) -> Result<Arc<View>> {
        let interval = self.stores.options.lease / 8;
        let mut clears_up = after(Instant::now(), interval);
        loop {
            let now = self.look().await?;
            if now.generation != before.generation {
                return Ok(now);
            }
            if Instant::now() >= deadline {
                let cutoff = from_ms(before.cutoff_ms).to_rfc3339();
                return Err(Error::new(ErrorKind::Busy, "samples of that time are being pruned")
                    .with_backend(self.name())
                    .with_context("before", cutoff));
            }
            if Instant::now() >= clears_up {
                turn::clear_up(&self.stores).await?;
                clears_up = after(Instant::now(), interval);
            }
            look_again().await;
        }
    }
}

/// Returns the tiers with their widths in milliseconds.
fn checked(tiers: &[RollupTier]) -> Result<Vec<Tier>> {
    RollupTier::check_widths(&tiers.iter().map(RollupTier::width).collect::<Vec<_>>())?;
    let of = |tier: &RollupTier| {
        Ok(Tier { width_ms: width_ms(tier.width)?, store: Arc::clone(&tier.store) })
    };
    tiers.iter().map(of).collect()
}

fn config(message: &'static str) -> Error {
    Error::new(ErrorKind::Config, message).with_operation("open")
}

#[cfg(test)]
mod tests;
