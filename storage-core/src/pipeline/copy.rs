//! Copies samples from one store to another, window by window, each verified.
//!
//! Nothing is written down on the way: how far a copy got is read from the destination, whose
//! windows are compared with those of the source. So there is no journal that could be lost, or
//! be wrong about a destination that somebody changed meanwhile.

use std::pin::pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use super::compare::{Comparison, compare};
use super::cursor::Cursor;
use super::digest::{Digest, Hasher, digest};
use super::windows::Windows;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::time::width_ms;
use crate::metrics::{MetricRecord, SeriesFilter, StorageBackend, TimeRange};

/// How often a window is copied before the copy gives up.
const ATTEMPTS_MAX: u32 = 3;

/// Batches that are being written at once, so that the destination never waits for the source.
const WRITES_IN_FLIGHT: usize = 2;

/// How many batches a second a limited copy writes at least, so that it flows evenly.
const LIMITED_BATCHES_PER_SECOND: u64 = 10;

/// What [`copy`] copies, and how.
///
/// ```
/// use std::time::Duration;
/// use storage_core::SeriesFilter;
/// use storage_core::pipeline::CopyOptions;
///
/// let options = CopyOptions::default()
///     .with_filter(SeriesFilter::parse("web-*", "*")?)
///     .with_window(Duration::from_secs(3600))
///     .with_samples_per_second(50_000);
/// # Ok::<(), storage_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct CopyOptions {
    filter: SeriesFilter,
    range: TimeRange,
    window: Duration,
    batch_samples: usize,
    samples_per_second: Option<u64>,
    dry_run: bool,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            filter: SeriesFilter::any(),
            range: TimeRange::all(),
            window: Duration::from_secs(86_400),
            batch_samples: 20_000,
            samples_per_second: None,
            dry_run: false,
        }
    }
}

impl CopyOptions {
    /// Copies these series. Default: all.
    #[must_use]
    pub fn with_filter(mut self, filter: SeriesFilter) -> Self {
        self.filter = filter;
        self
    }

    /// Copies the samples of this range. Default: all.
    #[must_use]
    pub fn with_range(mut self, range: TimeRange) -> Self {
        self.range = range;
        self
    }

    /// How much time is copied and verified at once, and done again after an interruption.
    /// Default: a day.
    #[must_use]
    pub fn with_window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// The most samples that are written at once, 1 at least. Default: 20,000. Memory is bounded by
    /// three times as many.
    #[must_use]
    pub fn with_batch_samples(mut self, batch_samples: usize) -> Self {
        self.batch_samples = batch_samples.max(1);
        self
    }

    /// Writes at most so many samples a second, 1 at least. Default: no limit.
    #[must_use]
    pub fn with_samples_per_second(mut self, samples_per_second: u64) -> Self {
        self.samples_per_second = Some(samples_per_second.max(1));
        self
    }

    /// Compares only: the report says what would be written. Default: off.
    #[must_use]
    pub fn with_dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// The series that are copied.
    pub const fn filter(&self) -> &SeriesFilter {
        &self.filter
    }

    /// The range of the samples that are copied.
    pub const fn range(&self) -> TimeRange {
        self.range
    }

    /// How much time is copied and verified at once.
    pub const fn window(&self) -> Duration {
        self.window
    }

    /// Whether it compares only.
    pub const fn dry_run(&self) -> bool {
        self.dry_run
    }

    /// Samples in one batch, fewer where a limit would make it take long.
    fn batch_samples(&self) -> usize {
        let even =
            self.samples_per_second.map_or(u64::MAX, |rate| rate / LIMITED_BATCHES_PER_SECOND);
        self.batch_samples.min(usize::try_from(even.max(1)).unwrap_or(usize::MAX))
    }
}

/// How far a copy has got: told after each batch and each window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyProgress {
    /// The window that is being copied.
    pub window: TimeRange,
    /// From the oldest to the newest sample that is to be copied, as they were at the start.
    pub extent: TimeRange,
    /// Samples copied, or found to be there already.
    pub samples_done: u64,
    /// Samples to be copied in all, where that is known without counting them.
    pub samples_total: Option<u64>,
}

/// What a copy did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct CopyReport {
    /// Windows that hold samples in the source.
    pub windows: u64,
    /// Windows among them that the destination held already.
    pub windows_equal: u64,
    /// What was found in the source; in the end the destination holds all of it.
    pub source: Digest,
    /// Samples written; in a dry run, those of the windows that would be copied.
    pub samples_copied: u64,
    /// Samples that the destination did not hold, as far as it was compared: in windows where it
    /// held something before.
    pub samples_missing: u64,
    /// Samples that had another value or other metadata in the destination, as far as it was
    /// compared.
    pub samples_different: u64,
    /// Samples that only the destination holds, as far as it was compared. They stay.
    pub samples_extra: u64,
    /// Windows that were copied again, because the source changed meanwhile.
    pub windows_repeated: u64,
}

/// Copies the samples of `source` into `destination`, and verifies each window by number and
/// checksum.
///
/// Windows go from the oldest to the newest. Where the destination holds nothing of a window it is
/// streamed over; where it holds something both are compared first, and nothing is written if the
/// destination holds all of it. So a copy that was interrupted, in whatever way, goes on where it
/// was when it is started again, and one that is done finds nothing to do. Samples that only
/// the destination holds stay.
///
/// # The source changes meanwhile
/// At the end the destination holds every sample that the source held at the start and that nobody
/// replaced or pruned since. What was written to the source since may be missing, and what was
/// pruned since may be there. Copy again for the rest: what is equal costs two reads. What the
/// destination holds at the same time and series is replaced, also if it was written meanwhile.
///
/// # Errors
/// Those of both stores, with the details `side` and `window`; a failed copy is started again as it
/// is. `Busy` if the source kept changing a window while it was verified; `Corrupt` if the
/// destination does not return what it acknowledged.
///
/// # Cost
/// Each window is read from the source once and from the destination once; from each once more
/// where the destination held a part of it. A window is verified while the next one is copied.
///
/// # Example
/// ```
/// use storage_core::pipeline::{CopyOptions, copy};
/// use storage_core::{InMemory, StorageBackendExt};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let (source, destination) = (InMemory::new(), InMemory::new());
/// source.write("web-1", "cpu", chrono::Utc::now(), 1.0).await?;
/// let options = CopyOptions::default();
/// let report = copy(&source, &destination, &options, |_| {}).await?;
/// assert_eq!((report.windows, report.samples_copied), (1, 1));
/// let again = copy(&source, &destination, &options, |_| {}).await?;
/// assert_eq!((again.windows_equal, again.samples_copied), (1, 0));
/// # Ok(()) }
/// ```
pub async fn copy(
    source: &dyn StorageBackend,
    destination: &dyn StorageBackend,
    options: &CopyOptions,
    observe: impl FnMut(&CopyProgress) + Send,
) -> Result<CopyReport> {
    let stores = Stores { source, destination, options };
    let Some((extent, samples_total)) = survey(source, options).await.map_err(at_source)? else {
        return Ok(CopyReport::default());
    };
    let mut job = Job {
        report: CopyReport::default(),
        progress: CopyProgress { window: extent, extent, samples_done: 0, samples_total },
        observe,
        pace: Pace { samples_per_second: options.samples_per_second, next: Instant::now() },
    };
    let mut windows = Windows::new(extent, width_ms(options.window)?);
    let mut unverified: Option<(TimeRange, Digest)> = None;
    loop {
        let window = windows.next(source, &options.filter).await.map_err(at_source)?;
        let verifying = async {
            match unverified {
                Some((window, digest)) => stores.verify(window, digest).await,
                None => Ok(true),
            }
        };
        let copying = async {
            match window {
                Some(window) => job.copy_unless_there(&stores, window).await,
                None => Ok(None),
            }
        };
        let (verified, copied) = futures_util::join!(verifying, copying);
        if let Some((window, digest)) = unverified {
            match verified? {
                true => job.report.source = job.report.source.and(digest),
                false => job.settle(&stores, window, digest).await?,
            }
        }
        unverified = copied?;
        if window.is_none() {
            return Ok(job.report);
        }
    }
}

/// The two ends of a copy.
struct Stores<'a> {
    source: &'a dyn StorageBackend,
    destination: &'a dyn StorageBackend,
    options: &'a CopyOptions,
}

impl Stores<'_> {
    async fn compare(&self, window: TimeRange) -> Result<Comparison> {
        compare(self.source, self.destination, &self.options.filter, window)
            .await
            .map_err(|error| within(error, window))
    }

    /// Whether the destination holds exactly `expected` in `window`.
    async fn verify(&self, window: TimeRange, expected: Digest) -> Result<bool> {
        let found = digest(self.destination, &self.options.filter, window).await;
        Ok(found.map_err(|error| within(at_destination(error), window))? == expected)
    }

    async fn destination_is_empty(&self, window: TimeRange) -> Result<bool> {
        let first = self.destination.scan(&self.options.filter, window).next().await;
        Ok(first.transpose().map_err(|error| within(at_destination(error), window))?.is_none())
    }

    async fn write(&self, records: &[MetricRecord], window: TimeRange) -> Result<()> {
        let written = self.destination.write_batch(records).await;
        written.map_err(|error| within(at_destination(error), window))
    }
}

/// Keeps to a number of samples a second.
#[derive(Debug, Clone, Copy)]
struct Pace {
    samples_per_second: Option<u64>,
    next: Instant,
}

impl Pace {
    /// Returns when the next `samples` may be written.
    fn reserve(&mut self, samples: usize) -> Instant {
        let due = self.next.max(Instant::now());
        if let Some(rate) = self.samples_per_second {
            self.next = due + Duration::from_secs_f64(samples as f64 / rate as f64);
        }
        due
    }
}

/// A copy under way.
struct Job<F> {
    report: CopyReport,
    progress: CopyProgress,
    observe: F,
    pace: Pace,
}

impl<F: FnMut(&CopyProgress) + Send> Job<F> {
    /// Copies a window unless the destination holds it; returns it with what was copied if it
    /// is still to be verified.
    async fn copy_unless_there(
        &mut self,
        stores: &Stores<'_>,
        window: TimeRange,
    ) -> Result<Option<(TimeRange, Digest)>> {
        self.report.windows += 1;
        self.progress.window = window;
        if !stores.options.dry_run && stores.destination_is_empty(window).await? {
            return Ok(Some((window, self.copy_window(stores, window).await?)));
        }
        let found = stores.compare(window).await?;
        self.report.samples_missing += found.missing;
        self.report.samples_different += found.different;
        self.report.samples_extra += found.extra;
        if !found.holds_source() && !stores.options.dry_run {
            let copied = self.copy_window(stores, window).await?;
            self.settle(stores, window, copied).await?;
            return Ok(None);
        }
        if found.holds_source() {
            self.report.windows_equal += 1;
        } else {
            self.report.samples_copied += found.source.samples;
        }
        self.report.source = self.report.source.and(found.source);
        self.progress.samples_done += found.source.samples;
        (self.observe)(&self.progress);
        Ok(None)
    }

    /// Streams a window over, and returns what was written.
    async fn copy_window(&mut self, stores: &Stores<'_>, window: TimeRange) -> Result<Digest> {
        let Self { report, progress, observe, pace } = self;
        let options = stores.options;
        let batches = batches(stores.source, &options.filter, window, options.batch_samples());
        let writes = batches.map(|batch| {
            let due = batch.as_ref().ok().map(|batch| pace.reserve(batch.records.len()));
            async move {
                let batch = batch.map_err(|error| within(at_source(error), window))?;
                if let Some(due) = due {
                    sleep_until(due).await;
                }
                stores.write(&batch.records, window).await?;
                Ok::<_, Error>(batch.digest)
            }
        });
        // Their order does not matter: no two batches hold the same sample.
        let mut writes = pin!(writes.buffer_unordered(WRITES_IN_FLIGHT));
        let mut copied = Digest::default();
        while let Some(written) = writes.try_next().await? {
            copied = copied.and(written);
            report.samples_copied += written.samples;
            progress.samples_done += written.samples;
            observe(progress);
        }
        Ok(copied)
    }

    /// Compares a window that was copied, and copies it again where the source has changed.
    async fn settle(
        &mut self,
        stores: &Stores<'_>,
        window: TimeRange,
        mut copied: Digest,
    ) -> Result<()> {
        for attempt in 1.. {
            let found = stores.compare(window).await?;
            if found.holds_source() {
                self.report.samples_extra += found.extra;
                self.report.source = self.report.source.and(found.source);
                return Ok(());
            }
            if attempt == ATTEMPTS_MAX {
                return Err(within(unsettled(&found, copied), window));
            }
            self.report.windows_repeated += 1;
            self.progress.samples_done -= copied.samples;
            copied = self.copy_window(stores, window).await?;
        }
        Ok(())
    }
}

/// Says why a window does not verify, however often it is copied.
fn unsettled(found: &Comparison, copied: Digest) -> Error {
    let error = if found.source == copied {
        Error::new(ErrorKind::Corrupt, "the destination does not return what it acknowledged")
    } else {
        Error::new(ErrorKind::Busy, "the source keeps changing while it is copied")
    };
    error.with_context("missing", found.missing).with_context("different", found.different)
}

/// Samples on their way.
struct Batch {
    records: Vec<MetricRecord>,
    digest: Digest,
}

/// Returns the samples of a window in batches of `batch_samples`.
fn batches<'a>(
    source: &'a dyn StorageBackend,
    filter: &SeriesFilter,
    window: TimeRange,
    batch_samples: usize,
) -> impl Stream<Item = Result<Batch>> + 'a {
    let start = (Cursor::new(source.scan(filter, window)), Hasher::default());
    stream::try_unfold(start, move |(mut cursor, mut hasher)| async move {
        let mut batch = Batch { records: Vec::new(), digest: Digest::default() };
        while batch.records.len() < batch_samples {
            cursor.fill().await?;
            let Some((series, sample)) = cursor.head() else { break };
            batch.digest.push(hasher.of(series)(sample));
            batch.records.push(sample.clone().into_record(series));
            cursor.advance();
        }
        Ok((!batch.records.is_empty()).then_some((batch, (cursor, hasher))))
    })
}

/// Returns the extent of what is to be copied, and how many samples it holds if that is known.
async fn survey(
    source: &dyn StorageBackend,
    options: &CopyOptions,
) -> Result<Option<(TimeRange, Option<u64>)>> {
    let stats = source.stats().await?;
    let (Some(oldest), Some(newest)) = (stats.oldest_metric, stats.newest_metric) else {
        return Ok(None);
    };
    let (start, end) = (options.range.start(), options.range.end());
    let extent_end = (newest + chrono::Duration::milliseconds(1)).min(end);
    let extent = TimeRange::new(oldest.max(start).min(extent_end), extent_end)?;
    let is_whole = oldest >= start && newest < end;
    let total = match (is_whole, options.filter == SeriesFilter::any()) {
        (false, _) => None,
        (true, true) => Some(stats.total_metrics),
        (true, false) => {
            let series = source.series(&options.filter).await?;
            Some(series.iter().map(|info| info.count).sum())
        }
    };
    Ok((!extent.is_empty()).then_some((extent, total)))
}

fn at_source(error: Error) -> Error {
    error.with_context("side", "source")
}

fn at_destination(error: Error) -> Error {
    error.with_context("side", "destination")
}

fn within(error: Error, window: TimeRange) -> Error {
    let (start, end) = (window.start().to_rfc3339(), window.end().to_rfc3339());
    error.with_context("window", format!("{start}/{end}"))
}

#[cfg(test)]
mod tests;
