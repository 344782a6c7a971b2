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
