//! Fixtures made of fixtures: tiers, rollups, mirrors and spools over any stores that have a fixture.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use async_trait::async_trait;
//! # use conformance_tests::Fixture;
//! # use storage_core::{InMemory, Result, StorageBackend};
//! # struct Memory;
//! # #[async_trait]
//! # impl Fixture for Memory {
//! #     fn name(&self) -> &str { "memory" }
//! #     async fn open(&self, location: &str) -> Result<Arc<dyn StorageBackend>> {
//! #         Ok(Arc::new(InMemory::open(location)))
//! #     }
//! #     async fn destroy(&self, location: &str) -> Result<()> {
//! #         InMemory::forget(location);
//! #         Ok(())
//! #     }
//! # }
//! use conformance_tests::composed::{Archives, Composed, Tiers};
//!
//! fn main() {
//!     let store = || -> Arc<dyn Fixture> { Arc::new(Memory) };
//!     let tiers = Tiers::new(Archives::OlderHalf);
//!     conformance_tests::main(Composed::new("tiered", tiers, vec![store(), store(), store()]))
//! }
//! ```

mod upkeep;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use storage_core::compose::{MirrorPolicy, Mirrored, Tiered, TieredOptions};
use storage_core::layers::RetryPolicy;
use storage_core::metrics::time::{floor_ms, from_ms};
use storage_core::pipeline::{
    ArchiveOptions, Rolled, RollupOptions, RollupTier, Spool, SpoolLimits, Spooled, archive,
};
use storage_core::{Error, ErrorKind, Result, StorageBackend};

use self::upkeep::{Kept, Upkeep};
use crate::cases::{self, Case, Layout};
use crate::harness::{CASE_TIME_MAX, Fixture, Store};

/// How one store is made of several.
#[async_trait]
pub trait Composition: Send + Sync + 'static {
    /// What the stores are for, in the order in which they are given; short words, fit for the end of the name
    /// of a location.
    fn roles(&self) -> Vec<&'static str>;

    /// Makes one store of those of a location, in the order of [`roles`](Self::roles).
    ///
    /// # Errors
    /// Those of the stores.
    async fn join(&self, location: &str, stores: Vec<Store>) -> Result<Store>;

    /// Forgets what it remembers of a location that is destroyed.
    fn forget(&self, _location: &str) {}

    /// As [`Fixture::opt_outs`].
    fn opt_outs(&self) -> &[(&'static str, &'static str)] {
        &[]
    }
}

/// A fixture over the stores of others.
pub struct Composed<C> {
    name: &'static str,
    composition: C,
    bottoms: Vec<Arc<dyn Fixture>>,
    themes: &'static [&'static str],
    /// Cases that are left out because they run in another layout.
    left_out: HashSet<&'static str>,
}

impl<C> std::fmt::Debug for Composed<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Composed").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<C: Composition> Composed<C> {
    /// Joins stores of `bottoms`, one for each role of the composition; every location is one of each.
    pub fn new(name: &'static str, composition: C, bottoms: Vec<Arc<dyn Fixture>>) -> Self {
        Self { name, composition, bottoms, themes: &[], left_out: HashSet::new() }
    }

    /// Runs the cases of these themes alone, such as `write` or `prune`, or of all if none is named: for stores that are slow to make,
    /// where everything is run over the same composition of others.
    #[must_use]
    pub fn only(mut self, themes: &'static [&'static str]) -> Self {
        self.themes = themes;
        self
    }

    /// Runs cases that have several layouts in one alone, half compacted: that in which the most stores hold a part
    /// of the answer.
    #[must_use]
    pub fn half_compacted(mut self) -> Self {
        let table = cases::table();
        let halves = table.iter().filter(|case| case.layout == Layout::HalfCompacted);
        let halves = halves.filter_map(|case| case.name.strip_suffix("::half_compacted"));
        let others = table.iter().filter(|case| case.layout == Layout::Compacted);
        self.left_out = halves.chain(others.map(|case| case.name)).collect();
        self
    }

    /// For [`main_all`](crate::main_all).
    pub fn shared(self) -> Arc<dyn Fixture> {
        Arc::new(self)
    }

    fn parts(&self, location: &str) -> Vec<(&Arc<dyn Fixture>, String)> {
        let names = self.composition.roles().into_iter().map(|role| format!("{location}_{role}"));
        self.bottoms.iter().zip(names).collect()
    }
}

#[async_trait]
impl<C: Composition> Fixture for Composed<C> {
    fn name(&self) -> &str {
        self.name
    }

    async fn open(&self, location: &str) -> Result<Store> {
        let parts = self.parts(location);
        if parts.len() != self.composition.roles().len() || parts.len() != self.bottoms.len() {
            return Err(Error::new(ErrorKind::Config, "a fixture is needed for each role")
                .with_context("roles", self.composition.roles().join(" ")));
        }
        let mut stores = Vec::with_capacity(parts.len());
        for (bottom, name) in parts {
            stores.push(bottom.open(&name).await?);
        }
        self.composition.join(location, stores).await
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        self.composition.forget(location);
        for (bottom, name) in self.parts(location) {
            bottom.destroy(&name).await?;
        }
        Ok(())
    }

    fn case_time_max(&self) -> Duration {
        self.bottoms.iter().map(|bottom| bottom.case_time_max()).max().unwrap_or(CASE_TIME_MAX)
    }

    fn unavailable(&self) -> Option<String> {
        self.bottoms.iter().find_map(|bottom| bottom.unavailable())
    }

    fn opt_outs(&self) -> &[(&'static str, &'static str)] {
        self.composition.opt_outs()
    }

    fn runs(&self, case: &Case) -> bool {
        if self.left_out.contains(case.name) {
            return false;
        }
        let theme = case.name.split("::").next();
        self.themes.is_empty() || theme.is_some_and(|theme| self.themes.contains(&theme))
    }
}

/// Takes the stores of a location, as many as there are roles.
fn taken<const N: usize>(stores: Vec<Store>) -> Result<[Store; N]> {
    let wrong = |_| Error::new(ErrorKind::Internal, "there is another number of stores than roles");
    stores.try_into().map_err(wrong)
}

/// How much of the hot tier is archived whenever a case compacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archives {
    /// Nothing: all stays hot.
    Nothing,
    /// Everything.
    All,
    /// The older half, so that late samples lie over cold ones.
    OlderHalf,
}

/// [`Tiered`] over stores for `hot`, `cold` and `control`.
#[derive(Debug, Clone, Copy)]
pub struct Tiers {
    archives: Archives,
}

impl Tiers {
    /// Archives that much.
    pub const fn new(archives: Archives) -> Self {
        Self { archives }
    }
}

#[async_trait]
impl Composition for Tiers {
    fn roles(&self) -> Vec<&'static str> {
        vec!["hot", "cold", "control"]
    }

    async fn join(&self, _location: &str, stores: Vec<Store>) -> Result<Store> {
        let [hot, cold, control] = taken(stores)?;
        // Cases compact often, and have a minute.
        let options = TieredOptions::default().with_settle(Duration::from_millis(60));
        let store = Tiered::open_with(hot, cold, control, options).await?;
        Ok(Arc::new(Kept { store, upkeep: self.archives }))
    }

    /// `compact` archives here, and the sum of two sums may differ in its last digit from the sum
    /// over all, as the contract allows; the case compares every digit.
    fn opt_outs(&self) -> &[(&'static str, &'static str)] {
        const REASON: &str = "the sum of an aggregate over both tiers differs in its last digit";
        const CASES: [(&str, &str); 3] = [
            ("lifecycle::compact_changes_no_answer", REASON),
            ("lifecycle::compact_changes_no_answer::compacted", REASON),
            ("lifecycle::compact_changes_no_answer::half_compacted", REASON),
        ];
        if self.archives == Archives::OlderHalf { &CASES } else { &[] }
    }
}

#[async_trait]
impl Upkeep<Tiered> for Archives {
    async fn after_compact(&self, store: &Tiered) -> Result<()> {
        let stats = store.hot().stats().await?;
        let (Some(oldest), Some(newest)) = (stats.oldest_metric, stats.newest_metric) else {
            return Ok(());
        };
        let (oldest, newest) = (floor_ms(oldest), floor_ms(newest));
        let span = (newest - oldest).max(1);
        let (cutoff, width) = match self {
            Self::Nothing => return Ok(()),
            // Two windows or three, which end after the newest.
            Self::All => (newest + span + 1, span),
            Self::OlderHalf => (oldest + span / 2, (span / 5).max(1)),
        };
        // A window of any width is fine, as long as it is not wider than time.
        let width = Duration::from_millis(width.unsigned_abs().min(300_000_000_000_000));
        let options = ArchiveOptions::before(from_ms(cutoff)).with_window(width);
        archive(store, &options, |_| {}).await.map(drop)
    }
}

/// Whether everything is rolled up whenever a case compacts, so that later samples are late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refreshes {
    /// Nothing is rolled up but what is pruned.
    Never,
    /// Everything is.
    Always,
}

/// [`Rolled`] over stores for `raw`, `control`, and the rollups of each width.
#[derive(Debug, Clone)]
pub struct Rollups {
    refreshes: Refreshes,
    widths: Vec<Duration>,
}

/// What the stores of rollups are called, from the first width on.
const WIDTHS: [&str; 3] = ["first", "second", "third"];

impl Rollups {
    /// Keeps rollups of these widths, three at most.
    pub fn new(refreshes: Refreshes, widths: &[Duration]) -> Self {
        Self { refreshes, widths: widths.iter().copied().take(WIDTHS.len()).collect() }
    }
}

#[async_trait]
impl Composition for Rollups {
    fn roles(&self) -> Vec<&'static str> {
        ["raw", "control"].into_iter().chain(WIDTHS).take(2 + self.widths.len()).collect()
    }

    async fn join(&self, _location: &str, mut stores: Vec<Store>) -> Result<Store> {
        let rollups = stores.split_off(2);
        let [raw, control] = taken(stores)?;
        let tiers = self.widths.iter().zip(rollups);
        let tiers = tiers.map(|(width, store)| RollupTier::new(*width, store)).collect();
        // Cases prune often, and have a minute; less would take a busy machine for writers that are
        // too slow for a prune. All times are over, also those to come.
        let options = RollupOptions::default()
            .with_settle(Duration::from_millis(100))
            .with_clock(|| DateTime::<Utc>::MAX_UTC);
        let store = Rolled::open_with(raw, tiers, control, options).await?;
        Ok(Arc::new(Kept { store, upkeep: self.refreshes }))
    }
}

#[async_trait]
impl Upkeep<Rolled> for Refreshes {
    async fn after_compact(&self, store: &Rolled) -> Result<()> {
        match self {
            Self::Never => Ok(()),
            Self::Always => store.refresh().await.map(drop),
        }
    }
}

/// [`Mirrored`] over stores for `primary` and `secondary`.
#[derive(Debug, Clone, Copy)]
pub struct Mirror {
    policy: MirrorPolicy,
}

impl Mirror {
    /// Mirrors by that policy.
    pub const fn new(policy: MirrorPolicy) -> Self {
        Self { policy }
    }
}

#[async_trait]
impl Composition for Mirror {
    fn roles(&self) -> Vec<&'static str> {
        vec!["primary", "secondary"]
    }

    async fn join(&self, _location: &str, stores: Vec<Store>) -> Result<Store> {
        let [primary, secondary] = taken(stores)?;
        Ok(Arc::new(Mirrored::new(primary, secondary, self.policy)))
    }
}

/// [`Spooled`] over stores for what is `behind` and for the `spool`, which all handles to a location share.
#[derive(Debug, Default)]
pub struct Spools {
    open: Mutex<HashMap<String, Spool>>,
    behind_refuses: bool,
}

#[async_trait]
impl Composition for Spools {
    fn roles(&self) -> Vec<&'static str> {
        vec!["behind", "spool"]
    }

    async fn join(&self, location: &str, stores: Vec<Store>) -> Result<Store> {
        let [behind, of_spool] = taken(stores)?;
        let found = self.spools().get(location).cloned();
        let spool = match found {
            Some(spool) => spool,
            None => {
                let spool = Spool::open(of_spool, SpoolLimits::default()).await?;
                // Another handle may have been faster.
                self.spools().entry(location.to_owned()).or_insert(spool).clone()
            }
        };
        let retry = RetryPolicy::default()
            .with_delay_first(Duration::from_millis(1))
            .with_delay_max(Duration::from_millis(10));
        Ok(Arc::new(Spooled::with_retry(behind, spool, retry)))
    }

    fn forget(&self, location: &str) {
        self.spools().remove(location);
    }

    fn opt_outs(&self) -> &[(&'static str, &'static str)] {
        const CASES: [(&str, &str); 1] =
            [("lifecycle::health_is_healthy_empty_and_filled", "batches wait in the spool")];
        if self.behind_refuses { &CASES } else { &[] }
    }
}

impl Spools {
    /// Says that what is behind often refuses a write: then batches wait in the spool, which is no error
    /// and still to be told by `health`.
    #[must_use]
    pub fn behind_refuses(mut self) -> Self {
        self.behind_refuses = true;
        self
    }

    fn spools(&self) -> std::sync::MutexGuard<'_, HashMap<String, Spool>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
