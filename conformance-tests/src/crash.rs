//! Kill -9 at random moments, for the test targets of backends that keep data on disk.
//!
//! A child process writes and says what was acknowledged; the parent kills it, reopens the store
//! and proves that every acknowledged batch is there, whole, and that of the one batch under way
//! all is there or nothing. Then the next child goes on in the same place.
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::Arc;
//!
//! use async_trait::async_trait;
//! use conformance_tests::Store;
//! use conformance_tests::crash::{DirFixture, KillPlan, child_entry, kill_loop};
//! use storage_core::{InMemory, Result};
//!
//! struct MyFixture;
//!
//! #[async_trait]
//! impl DirFixture for MyFixture {
//!     fn name(&self) -> &str {
//!         "mine"
//!     }
//!     async fn open_in(&self, dir: &Path) -> Result<Store> {
//!         // A backend that survives its process would open a file in `dir`.
//!         Ok(Arc::new(InMemory::open(&dir.to_string_lossy())))
//!     }
//! }
//!
//! child_entry(&MyFixture);
//! kill_loop(Arc::new(MyFixture), KillPlan { kills: 10, seed: 1, writers: 1 }).unwrap();
//! ```

mod child;
mod events;
mod history;
mod jobs;
mod workload;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use storage_core::{Result, Store as WholeStore};

use crate::failure::{CaseResult, Failure};
use crate::harness::{Store, within};
pub(crate) use child::Writer;
pub use child::child_entry;
pub(crate) use workload::prune_to;
use workload::within_bounds;
pub use workload::{Lane, REACH, SERIES, Verified, survey, verify, verify_whole, write_forever};

/// How long one verification may take.
pub(crate) const VERIFY_TIME_MAX: Duration = Duration::from_secs(120);

/// Batches that are kept; older ones are pruned between two rounds, so that a long run does not
/// get slower and slower.
const KEPT: u64 = 2 * REACH;

/// What a backend that keeps data on disk supplies: how to open a store in a directory.
#[async_trait]
pub trait DirFixture: Send + Sync + 'static {
    /// A name, different for each fixture of a test target.
    fn name(&self) -> &str;

    /// Opens the store in `dir`, or creates it where there is none.
    ///
    /// # Errors
    /// Those of the backend.
    async fn open_in(&self, dir: &Path) -> Result<Store>;

    /// Opens the store in `dir` as [`open_in`](Self::open_in) does, with everything that it holds
    /// beside metrics.
    ///
    /// # Errors
    /// Those of the backend.
    async fn open_store_in(&self, dir: &Path) -> Result<WholeStore> {
        Ok(WholeStore::of_metrics(self.open_in(dir).await?))
    }
}

/// The part of a store that writers write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The metrics.
    Metrics,
    /// The record history.
    History,
    /// The event store.
    Events,
    /// The jobs.
    Jobs,
}

impl Part {
    /// Writes batch `start` of a lane and all that follow, until `on_ack` says no or an error comes.
    pub(crate) async fn write_forever(
        self,
        store: &WholeStore,
        lane: Lane,
        start: u64,
        on_ack: impl FnMut(u64) -> bool,
    ) -> Result<(), Failure> {
        match self {
            Self::Metrics => write_forever(&**store.metrics(), lane, start, on_ack).await,
            Self::History => history::write_forever(store, lane, start, on_ack).await,
            Self::Events => events::write_forever(store, lane, start, on_ack).await,
            Self::Jobs => jobs::write_forever(store, lane, start, on_ack).await,
        }
    }

    /// Proves that lanes hold whole batches from `first` on and nothing else.
    async fn verify_whole(
        self,
        store: &WholeStore,
        first: u64,
        lanes: &[Lane],
    ) -> Result<Vec<Verified>, Failure> {
        match self {
            Self::Metrics => verify_whole(&**store.metrics(), first, lanes).await,
            Self::History => history::verify_whole(store, first, lanes).await,
            Self::Events => events::verify_whole(store, lanes).await,
            Self::Jobs => jobs::verify_whole(store, first, lanes).await,
        }
    }

    /// Removes the batches before `first`, and returns how many samples or values those were. Not
    /// for events, which their writers prune.
    async fn prune_to(self, store: &WholeStore, first: u64) -> Result<u64> {
        match self {
            Self::Metrics => prune_to(&**store.metrics(), first).await,
            Self::History => history::clean_up_to(store, first).await,
            Self::Events => Ok(0),
            Self::Jobs => jobs::clean_up_to(store, first).await,
        }
    }

    /// Samples or values of each batch that stay once it cannot be replaced any more.
    fn per_batch(self) -> u64 {
        match self {
            Self::Metrics => SERIES,
            Self::History => history::RECORDS,
            Self::Events => events::EVENTS,
            Self::Jobs => jobs::EXECUTIONS,
        }
    }
}

/// How often to kill, and how many writers at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KillPlan {
    /// Rounds; each kills every writer once.
    pub kills: u32,
    /// Decides when each kill comes.
    pub seed: u64,
    /// Processes that write into the same store at the same time.
    pub writers: usize,
}

/// What a kill loop did. Its `Display` is one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KillReport {
    /// Processes that were killed.
    pub kills: u64,
    /// Of these, before the first acknowledgement: while opening, recovering or in the first batch.
    pub early: u64,
    /// Batches that were acknowledged, none of which was lost.
    pub acked: u64,
    /// Batches that were under way when the kill came and turned out to be stored, whole.
    pub under_way_kept: u64,
    /// Samples that the last verification read back.
    pub samples: u64,
    /// How long all that took.
    pub elapsed: Duration,
}

impl fmt::Display for KillReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kills, early, acked, under_way_kept, samples, elapsed } = self;
        write!(
            f,
            "{kills} kills ({early} before the first acknowledgement), {acked} batches acknowledged, \
             0 lost, {under_way_kept} under way kept whole, {samples} samples at the end, {:.1} s",
            elapsed.as_secs_f64()
        )
    }
}

/// Kills writers at random moments and verifies what they leave, in a temporary directory.
///
/// # Errors
/// What was lost, torn or damaged, with the round and the seed; what went wrong otherwise.
pub fn kill_loop(fixture: Arc<dyn DirFixture>, plan: KillPlan) -> Result<KillReport, Failure> {
    kill_loop_on(fixture, Part::Metrics, plan)
}

/// As [`kill_loop`], with writers that write to one part of the store.
///
/// # Errors
/// As [`kill_loop`].
pub fn kill_loop_on(
    fixture: Arc<dyn DirFixture>,
    part: Part,
    plan: KillPlan,
) -> Result<KillReport, Failure> {
    let dir = tempfile::tempdir()?;
    let started = Instant::now();
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let mut story = Story::new(&fixture, dir.path(), plan.writers).of(part);
    let mut report = KillReport {
        kills: 0,
        early: 0,
        acked: 0,
        under_way_kept: 0,
        samples: 0,
        elapsed: Duration::ZERO,
    };
    for round in 1..=plan.kills {
        kill_round(&mut story, &mut random, &mut report).map_err(|failure| {
            failure.during(format!("round {round} of {} with the seed {}", plan.kills, plan.seed))
        })?;
    }
    report.elapsed = started.elapsed();
    Ok(report)
}

fn kill_round(
    story: &mut Story<'_>,
    random: &mut fastrand::Rng,
    report: &mut KillReport,
) -> CaseResult {
    let mut writers = story.start_writers()?;
    // Some kills come while the store is being opened and repaired after the last one.
    if random.u32(..5) == 0 {
        std::thread::sleep(Duration::from_micros(random.u64(..15_000)));
    } else {
        writers.iter().try_for_each(Writer::wait_first_ack)?;
        let most_us = if random.bool() { 20_000 } else { 250_000 };
        std::thread::sleep(Duration::from_micros(random.u64(..most_us)));
    }
    random.shuffle(&mut writers);
    let mut bounds = Vec::new();
    let before = story.last.clone();
    for mut writer in writers {
        let acked = writer.kill()?;
        writer.check()?;
        report.kills += 1;
        report.early += u64::from(acked == before[writer.lane.0]);
        report.acked += acked - before[writer.lane.0];
        bounds.push((writer.lane, acked..=acked + 1));
        // The others go on for a while, in a store that one of them has left as it was.
        std::thread::sleep(Duration::from_micros(random.u64(..20_000)));
    }
    bounds.sort_by_key(|(lane, _)| lane.0);
    let found = story.verify(bounds.clone())?;
    let kept = bounds.iter().zip(&found).filter(|((_, acked), found)| found.last > *acked.start());
    report.under_way_kept += kept.count() as u64;
    report.samples = found.iter().map(|lane| lane.samples).sum();
    Ok(())
}

/// A store over many lives of its writers.
pub(crate) struct Story<'a> {
    fixture: &'a Arc<dyn DirFixture>,
    dir: &'a Path,
    part: Part,
    /// The first batch that was not pruned.
    pub(crate) first: u64,
    /// The last batch of each lane.
    pub(crate) last: Vec<u64>,
    prunes: bool,
}

impl<'a> Story<'a> {
    pub(crate) fn new(fixture: &'a Arc<dyn DirFixture>, dir: &'a Path, writers: usize) -> Self {
        let part = Part::Metrics;
        Self { fixture, dir, part, first: 1, last: vec![0; writers], prunes: true }
    }

    /// A story of one part of the store. Events are pruned by their writers: lanes share the log.
    pub(crate) fn of(self, part: Part) -> Self {
        Self { part, prunes: self.prunes && part != Part::Events, ..self }
    }

    /// Keeps every batch.
    pub(crate) fn without_pruning(self) -> Self {
        Self { prunes: false, ..self }
    }

    pub(crate) fn start_writers(&self) -> Result<Vec<Writer>, Failure> {
        let start = |(lane, last): (usize, &u64)| {
            Writer::start(&**self.fixture, self.dir, self.part, Lane(lane), last + 1)
        };
        self.last.iter().enumerate().map(start).collect()
    }

    /// Opens the store, verifies it, prunes what is no longer needed, and closes it.
    pub(crate) fn verify(
        &mut self,
        bounds: Vec<(Lane, std::ops::RangeInclusive<u64>)>,
    ) -> Result<Vec<Verified>, Failure> {
        let (first, part) = (self.first, self.part);
        let found = self.with_store(async move |store| {
            let lanes: Vec<_> = bounds.iter().map(|(lane, _)| *lane).collect();
            let found = part.verify_whole(&store, first, &lanes).await?;
            within_bounds(&found, &bounds)?;
            Ok(found)
        })?;
        self.go_on_after(&found)?;
        Ok(found)
    }

    /// As [`verify`](Self::verify), where batches may have been lost.
    pub(crate) fn verify_whole(&mut self) -> Result<Vec<Verified>, Failure> {
        let (first, part) = (self.first, self.part);
        let lanes: Vec<_> = (0..self.last.len()).map(Lane).collect();
        let found =
            self.with_store(async move |store| part.verify_whole(&store, first, &lanes).await)?;
        self.go_on_after(&found)?;
        Ok(found)
    }

    fn go_on_after(&mut self, found: &[Verified]) -> CaseResult {
        self.last = found.iter().map(|lane| lane.last).collect();
        let first = self.last.iter().min().map_or(1, |last| last.saturating_sub(KEPT).max(1));
        if !self.prunes || first < self.first + KEPT / 2 {
            return Ok(());
        }
        let part = self.part;
        let removed =
            self.with_store(async move |store| Ok(part.prune_to(&store, first).await?))?;
        let expected = (first - self.first) * part.per_batch() * self.last.len() as u64;
        ensure_eq!(removed, expected, "samples pruned before batch {first}");
        self.first = first;
        Ok(())
    }

    fn with_store<T: Send + 'static, F>(
        &self,
        work: impl FnOnce(WholeStore) -> F + Send + 'static,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let (fixture, dir) = (Arc::clone(self.fixture), self.dir.to_owned());
        within(VERIFY_TIME_MAX, async move {
            let store = fixture.open_store_in(&dir).await?;
            let result = work(store.clone()).await;
            store.close().await?;
            result
        })
    }
}

#[cfg(test)]
mod tests;
