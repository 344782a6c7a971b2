//! The scan over both tiers.

use futures_util::{StreamExt, stream};

use super::{Reading, Tiered};
use crate::error::Result;
use crate::metrics::backend::{SCAN_BATCH_SAMPLES_MAX, end_after_error};
use crate::metrics::time::floor_ms;
use crate::metrics::{
    ScanStream, SeriesFilter, SeriesKey, SeriesSamples, StorageBackend, TimeRange,
};
use crate::pipeline::cursor::Pair;

/// Streams what both tiers hold; where both have a sample the hot one counts.
///
/// A scan may take longer than a move. If one began or ended since the tiers were opened, they are
/// opened again, and what was returned before is passed over.
pub(super) fn scan(store: &Tiered, filter: SeriesFilter, range: TimeRange) -> ScanStream<'_> {
    let scan = Scan { store, filter, range, open: None, after: None };
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
    /// The last sample that was returned.
    after: Option<(SeriesKey, i64)>,
}

impl<'a> Scan<'a> {
    async fn next(&mut self) -> Result<Option<SeriesSamples>> {
        loop {
            let (mut reading, mut pair) = match self.open.take() {
                Some(open) => open,
                None => self.open()?,
            };
            let batch = collect(&mut pair, self.after.as_ref()).await?;
            if !reading.is_settled().await? {
                continue;
            }
            if let Some(last) = batch.as_ref().and_then(|batch| batch.samples.last()) {
                let series = batch.as_ref().map(|batch| batch.series.clone());
                self.after = series.map(|series| (series, floor_ms(last.timestamp)));
            }
            self.open = Some((reading, pair));
            return Ok(batch);
        }
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

/// Returns the next samples of one series, those up to `after` left out.
async fn collect(
    pair: &mut Pair<'_>,
    after: Option<&(SeriesKey, i64)>,
) -> Result<Option<SeriesSamples>> {
    let mut batch: Option<SeriesSamples> = None;
    while let Some(which) = pair.next().await? {
        let place = if which.is_ge() { pair.right.head() } else { pair.left.head() };
        let Some((series, sample)) = place else { break };
        let is_old =
            after.is_some_and(|(last, ms)| (series, floor_ms(sample.timestamp)) <= (last, *ms));
        if !is_old {
            let batch = batch.get_or_insert_with(|| SeriesSamples {
                series: series.clone(),
                samples: Vec::new(),
            });
            if batch.series != *series || batch.samples.len() == SCAN_BATCH_SAMPLES_MAX {
                break;
            }
            batch.samples.push(sample.clone());
        }
        pair.advance(which);
    }
    Ok(batch)
}
