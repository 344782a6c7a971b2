//! A scan read sample by sample, and two of them side by side.

use std::cmp::Ordering;

use futures_util::StreamExt;

use crate::error::Result;
use crate::metrics::time::floor_ms;
use crate::metrics::{Sample, ScanStream, SeriesKey, SeriesSamples};

/// A place in a scan.
pub(crate) struct Cursor<'a> {
    /// `None` after the end: a stream must not be polled again then.
    stream: Option<ScanStream<'a>>,
    batch: Option<SeriesSamples>,
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Starts before the first sample; [`fill`](Self::fill) goes to it.
    pub(crate) fn new(stream: ScanStream<'a>) -> Self {
        Self { stream: Some(stream), batch: None, at: 0 }
    }

    /// Sees to it that [`head`](Self::head) is a sample, unless the scan is over.
    pub(crate) async fn fill(&mut self) -> Result<()> {
        while self.head().is_none() {
            let Some(stream) = &mut self.stream else { return Ok(()) };
            let next = stream.next().await.transpose();
            if !matches!(next, Ok(Some(_))) {
                self.stream = None;
            }
            (self.batch, self.at) = (next?, 0);
        }
        Ok(())
    }

    /// The sample here; `None` at the end, or where a batch has ended and `fill` comes next.
    pub(crate) fn head(&self) -> Option<(&SeriesKey, &Sample)> {
        let batch = self.batch.as_ref()?;
        Some((&batch.series, batch.samples.get(self.at)?))
    }

    /// Goes past the sample here.
    pub(crate) fn advance(&mut self) {
        self.at += 1;
    }

    /// Takes the samples from here on that come before `limit` in the order of a scan, as far as the
    /// batch goes.
    fn take_before(&mut self, limit: Option<(&SeriesKey, &Sample)>) -> Option<SeriesSamples> {
        let mut batch = self.batch.take()?;
        let rest = batch.samples.get(self.at..).unwrap_or_default();
        let len = match limit.map(|(series, sample)| (batch.series.cmp(series), sample)) {
            None | Some((Ordering::Less, _)) => rest.len(),
            Some((Ordering::Greater, _)) => 0,
            Some((Ordering::Equal, limit)) => {
                let limit_ms = floor_ms(limit.timestamp);
                rest.partition_point(|sample| floor_ms(sample.timestamp) < limit_ms)
            }
        };
        if len == batch.samples.len() {
            return Some(batch);
        }
        let mut samples = batch.samples.split_off(self.at);
        batch.samples = samples.split_off(len);
        let run = SeriesSamples { series: batch.series.clone(), samples };
        (self.batch, self.at) = (Some(batch), 0);
        Some(run)
    }
}

/// Compares the places of two samples in the order of a scan.
pub(crate) fn order(left: (&SeriesKey, &Sample), right: (&SeriesKey, &Sample)) -> Ordering {
    let time = |sample: &Sample| floor_ms(sample.timestamp);
    left.0.cmp(right.0).then_with(|| time(left.1).cmp(&time(right.1)))
}

/// Two scans in step.
pub(crate) struct Pair<'a> {
    pub(crate) left: Cursor<'a>,
    pub(crate) right: Cursor<'a>,
}

impl<'a> Pair<'a> {
    pub(crate) fn new(left: ScanStream<'a>, right: ScanStream<'a>) -> Self {
        Self { left: Cursor::new(left), right: Cursor::new(right) }
    }

    /// Goes to the next place where either has a sample, and says which has the earlier one;
    /// `Equal` if both have the same place. `None` at the end of both.
    pub(crate) async fn next(&mut self) -> Result<Option<Ordering>> {
        if self.left.head().is_none() || self.right.head().is_none() {
            let (left, right) = futures_util::join!(self.left.fill(), self.right.fill());
            left.and(right)?;
        }
        Ok(match (self.left.head(), self.right.head()) {
            (None, None) => None,
            (Some(_), None) => Some(Ordering::Less),
            (None, Some(_)) => Some(Ordering::Greater),
            (Some(left), Some(right)) => Some(order(left, right)),
        })
    }

    /// The place that [`next`](Self::next) returned `which` for.
    pub(crate) fn head(&self, which: Ordering) -> Option<(&SeriesKey, &Sample)> {
        if which.is_ge() { self.right.head() } else { self.left.head() }
    }

    /// Takes the samples of the earlier scan up to where the other goes on, after
    /// [`next`](Self::next) returned `which`; those of the right one if both are at the same place.
    pub(crate) fn take(&mut self, which: Ordering) -> Option<SeriesSamples> {
        match which {
            Ordering::Less => self.left.take_before(self.right.head()),
            Ordering::Greater => self.right.take_before(self.left.head()),
            Ordering::Equal => {
                let (series, sample) = self.head(which)?;
                let one = SeriesSamples { series: series.clone(), samples: vec![sample.clone()] };
                self.advance(which);
                Some(one)
            }
        }
    }

    /// Goes past the place that [`next`](Self::next) returned `which` for.
    pub(crate) fn advance(&mut self, which: Ordering) {
        if which.is_le() {
            self.left.advance();
        }
        if which.is_ge() {
            self.right.advance();
        }
    }
}
