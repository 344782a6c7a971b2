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
    /// What is left of a batch, and whose it is.
    batch: Option<(SeriesKey, std::vec::IntoIter<Sample>)>,
}

impl<'a> Cursor<'a> {
    /// Starts before the first sample; [`fill`](Self::fill) goes to it.
    pub(crate) fn new(stream: ScanStream<'a>) -> Self {
        Self { stream: Some(stream), batch: None }
    }

    /// Sees to it that [`head`](Self::head) is a sample, unless the scan is over.
    pub(crate) async fn fill(&mut self) -> Result<()> {
        while self.head().is_none() {
            let Some(stream) = &mut self.stream else { return Ok(()) };
            let next = stream.next().await.transpose();
            if !matches!(next, Ok(Some(_))) {
                self.stream = None;
            }
            self.batch = next?.map(|batch| (batch.series, batch.samples.into_iter()));
        }
        Ok(())
    }

    /// The sample here; `None` at the end, or where a batch has ended and `fill` comes next.
    pub(crate) fn head(&self) -> Option<(&SeriesKey, &Sample)> {
        let (series, rest) = self.batch.as_ref()?;
        Some((series, rest.as_slice().first()?))
    }

    /// Goes past the sample here.
    pub(crate) fn advance(&mut self) {
        if let Some((_, rest)) = &mut self.batch {
            rest.next();
        }
    }

    /// Takes the samples from here on that come before `limit` in the order of a scan, as far as the
    /// batch goes.
    fn take_before(&mut self, limit: Option<(&SeriesKey, &Sample)>) -> Option<SeriesSamples> {
        let (series, rest) = self.batch.as_ref()?;
        let len = match limit.map(|(limit, sample)| (series.cmp(limit), sample)) {
            None | Some((Ordering::Less, _)) => rest.len(),
            Some((Ordering::Greater, _)) => 0,
            Some((Ordering::Equal, limit)) => {
                let limit_ms = floor_ms(limit.timestamp);
                rest.as_slice().partition_point(|sample| floor_ms(sample.timestamp) < limit_ms)
            }
        };
        self.take(len)
    }

    /// Takes so many samples from here on, as far as the batch goes; all that is left is not copied.
    fn take(&mut self, len: usize) -> Option<SeriesSamples> {
        let (series, mut rest) = self.batch.take()?;
        if len >= rest.len() {
            return Some(SeriesSamples { series, samples: rest.collect() });
        }
        let samples = rest.by_ref().take(len).collect();
        let run = SeriesSamples { series: series.clone(), samples };
        self.batch = Some((series, rest));
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
                self.left.advance();
                self.right.take(1)
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

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;
    use crate::metrics::time::from_ms;

    fn scan(batches: &[(&str, &[i64])], value: f64) -> ScanStream<'static> {
        let sample = |ms: &i64| Sample { timestamp: from_ms(*ms), value, metadata: None };
        let batch = |(server, times): &(&str, &[i64])| {
            let samples = times.iter().map(sample).collect();
            Ok(SeriesSamples { series: SeriesKey::new(*server, "m"), samples })
        };
        stream::iter(batches.iter().map(batch).collect::<Vec<_>>()).boxed()
    }

    #[tokio::test]
    async fn runs_go_up_to_where_the_other_scan_goes_on() {
        let left = scan(&[("a", &[1, 2, 4, 6]), ("a", &[7, 8]), ("b", &[1])], 1.0);
        let right = scan(&[("a", &[4, 5]), ("c", &[0, 1])], 2.0);
        let mut pair = Pair::new(left, right);
        let mut runs = Vec::new();
        while let Some(which) = pair.next().await.unwrap() {
            let run = pair.take(which).unwrap();
            let times: Vec<_> = run.samples.iter().map(|s| floor_ms(s.timestamp)).collect();
            runs.push((run.series.server_id, times, run.samples[0].value));
        }
        let run = |server: &str, times: &[i64], value| (server.to_owned(), times.to_vec(), value);
        let expected = [
            run("a", &[1, 2], 1.0),
            run("a", &[4], 2.0),
            run("a", &[5], 2.0),
            run("a", &[6], 1.0),
            run("a", &[7, 8], 1.0),
            run("b", &[1], 1.0),
            run("c", &[0, 1], 2.0),
        ];
        assert_eq!(runs, expected);
    }
}
