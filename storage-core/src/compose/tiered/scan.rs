//! The scan over both tiers.

use std::cmp::Ordering;
use std::collections::VecDeque;

use futures_util::{StreamExt, stream};

use super::{Reading, Tiered};
use crate::error::Result;
use crate::metrics::backend::{SCAN_BATCH_SAMPLES_MAX, end_after_error};
use crate::metrics::time::floor_ms;
use crate::metrics::{
    ScanStream, SeriesFilter, SeriesKey, SeriesSamples, StorageBackend, TimeRange,
};
use crate::pipeline::cursor::Pair;

/// The most samples, roughly, that are read between two looks whether something is moved; the first
/// batch is handed on at once.
const STEP_SAMPLES_MAX: usize = 8 * SCAN_BATCH_SAMPLES_MAX;

/// Streams what both tiers hold; where both have a sample the hot one counts.
///
/// A scan may take longer than a move. If one began or ended since the tiers were opened, they are
/// opened again, and what was returned before is passed over.
pub(super) fn scan(store: &Tiered, filter: SeriesFilter, range: TimeRange) -> ScanStream<'_> {
    let ready = VecDeque::new();
    let scan = Scan { store, filter, range, open: None, step: 1, ready, after: None };
    end_after_error(stream::try_unfold(scan, |mut scan| async move {
        Ok(scan.next().await?.map(|batch| (batch, scan)))
    }))
}

struct Scan<'a> {
    store: &'a Tiered,
    filter: SeriesFilter,
    range: TimeRange,
    /// The tiers side by side, and the view for which they were opened.
    open: Option<(Reading<'a>, Pair<'a>)>,
    /// Samples, roughly, to read next.
    step: usize,
    /// Batches that were read while nothing was moved.
    ready: VecDeque<SeriesSamples>,
    /// The last sample of them.
    after: Option<(SeriesKey, i64)>,
}

impl<'a> Scan<'a> {
    async fn next(&mut self) -> Result<Option<SeriesSamples>> {
        while self.ready.is_empty() {
            let (mut reading, mut pair) = match self.open.take() {
                Some(open) => open,
                None => self.open()?,
            };
            let batches = collect(&mut pair, self.step, self.after.as_ref()).await?;
            if !reading.is_settled().await? {
                continue;
            }
            let Some(last) = batches.back() else { return Ok(None) };
            let last_ms = last.samples.last().map(|sample| floor_ms(sample.timestamp));
            self.after = last_ms.map(|ms| (last.series.clone(), ms));
            self.open = Some((reading, pair));
            self.ready = batches;
            self.step = (2 * self.step).clamp(SCAN_BATCH_SAMPLES_MAX, STEP_SAMPLES_MAX);
        }
        Ok(self.ready.pop_front())
    }

    fn open(&self) -> Result<(Reading<'a>, Pair<'a>)> {
        let reading = self.store.reading("scan")?;
        let parts = reading.parts(self.range)?;
        let tiers = &self.store.tiers;
        let cold: ScanStream<'a> = match parts.cold.is_empty() {
            true => stream::empty().boxed(),
            false => tiers.cold.scan(&self.filter, parts.cold),
        };
        Ok((reading, Pair::new(cold, tiers.hot.scan(&self.filter, parts.hot))))
    }
}

/// Returns the next batches, of `step` samples or more, what is up to `after` left out; none at the
/// end.
async fn collect(
    pair: &mut Pair<'_>,
    step: usize,
    after: Option<&(SeriesKey, i64)>,
) -> Result<VecDeque<SeriesSamples>> {
    let (mut batches, mut samples) = (VecDeque::<SeriesSamples>::new(), 0);
    while let Some(which) = pair.next().await? {
        let is_enough = samples >= step && !goes_on(pair, which, batches.back());
        if is_enough || samples >= step + SCAN_BATCH_SAMPLES_MAX {
            break;
        }
        let Some(mut run) = pair.take(which) else { break };
        if let Some((series, ms)) = after {
            leave_out(&mut run, series, *ms);
        }
        samples += run.samples.len();
        match batches.back_mut() {
            _ if run.samples.is_empty() => {}
            Some(last) if fits(last, &run) => last.samples.append(&mut run.samples),
            _ => batches.push_back(run),
        }
    }
    Ok(batches)
}

/// Whether what comes next belongs into the last batch.
fn goes_on(pair: &Pair<'_>, which: Ordering, last: Option<&SeriesSamples>) -> bool {
    let (Some(last), Some((series, _))) = (last, pair.head(which)) else { return false };
    last.series == *series && last.samples.len() < SCAN_BATCH_SAMPLES_MAX
}

/// Whether short runs of the same series make one batch.
fn fits(last: &SeriesSamples, run: &SeriesSamples) -> bool {
    last.series == run.series && last.samples.len() + run.samples.len() <= SCAN_BATCH_SAMPLES_MAX
}

/// Removes the samples that come no later than this place in the order of a scan.
fn leave_out(run: &mut SeriesSamples, series: &SeriesKey, ms: i64) {
    let old = match run.series.cmp(series) {
        Ordering::Less => run.samples.len(),
        Ordering::Equal => run.samples.partition_point(|sample| floor_ms(sample.timestamp) <= ms),
        Ordering::Greater => 0,
    };
    run.samples.drain(..old);
}
