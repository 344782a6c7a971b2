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
mod workload;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use storage_core::Result;

use crate::failure::{CaseResult, Failure};
use crate::harness::{Store, within};
pub(crate) use child::Writer;
pub use child::child_entry;
pub(crate) use workload::prune_to;
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
    let dir = tempfile::tempdir()?;
    let started = Instant::now();
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let mut story = Story::new(&fixture, dir.path(), plan.writers);
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
    /// The first batch that was not pruned.
    pub(crate) first: u64,
    /// The last batch of each lane.
    pub(crate) last: Vec<u64>,
    prunes: bool,
}

impl<'a> Story<'a> {
    pub(crate) fn new(fixture: &'a Arc<dyn DirFixture>, dir: &'a Path, writers: usize) -> Self {
        Self { fixture, dir, first: 1, last: vec![0; writers], prunes: true }
    }

    /// Keeps every batch.
    pub(crate) fn without_pruning(self) -> Self {
        Self { prunes: false, ..self }
    }

    pub(crate) fn start_writers(&self) -> Result<Vec<Writer>, Failure> {
        let start = |(lane, last): (usize, &u64)| {
            Writer::start(&**self.fixture, self.dir, Lane(lane), last + 1)
        };
        self.last.iter().enumerate().map(start).collect()
    }

    /// Opens the store, verifies it, prunes what is no longer needed, and closes it.
    pub(crate) fn verify(
        &mut self,
        bounds: Vec<(Lane, std::ops::RangeInclusive<u64>)>,
    ) -> Result<Vec<Verified>, Failure> {
        let first = self.first;
        let found = self.with_store(async move |store| verify(&*store, first, &bounds).await)?;
        self.go_on_after(&found)?;
        Ok(found)
    }

    /// As [`verify`](Self::verify), where batches may have been lost.
    pub(crate) fn verify_whole(&mut self) -> Result<Vec<Verified>, Failure> {
        let (first, lanes) = (self.first, (0..self.last.len()).map(Lane).collect::<Vec<_>>());
        let found =
            self.with_store(async move |store| verify_whole(&*store, first, &lanes).await)?;
        self.go_on_after(&found)?;
        Ok(found)
    }

    fn go_on_after(&mut self, found: &[Verified]) -> CaseResult {
        self.last = found.iter().map(|lane| lane.last).collect();
        let first = self.last.iter().min().map_or(1, |last| last.saturating_sub(KEPT).max(1));
        if !self.prunes || first < self.first + KEPT / 2 {
            return Ok(());
        }
        let removed = self.with_store(async move |store| Ok(prune_to(&*store, first).await?))?;
        let expected = (first - self.first) * SERIES * self.last.len() as u64;
        ensure_eq!(removed, expected, "samples pruned before batch {first}");
        self.first = first;
        Ok(())
    }

    fn with_store<T: Send + 'static, F>(
        &self,
        work: impl FnOnce(Store) -> F + Send + 'static,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let (fixture, dir) = (Arc::clone(self.fixture), self.dir.to_owned());
        within(VERIFY_TIME_MAX, async move {
            let store = fixture.open_in(&dir).await?;
            let result = work(Arc::clone(&store)).await;
            store.close().await?;
            result
        })
    }
}

#[cfg(test)]
mod tests;
