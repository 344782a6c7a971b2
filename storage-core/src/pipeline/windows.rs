//! The windows of a range that hold samples, found without asking for every empty one.

use futures_util::StreamExt;

use crate::error::Result;
use crate::metrics::time::{from_ms, window_start_ms};
use crate::metrics::{SeriesFilter, StorageBackend, TimeRange};

/// Goes through a range from its oldest to its newest window.
#[derive(Debug)]
pub(crate) struct Windows {
    at_ms: i64,
    end_ms: i64,
    width_ms: i64,
    /// How many windows are asked for at once: more and more while there is nothing.
    step: i64,
}

impl Windows {
    /// Cuts `range` at multiples of `width_ms` since the epoch.
    pub(crate) fn new(range: TimeRange, width_ms: i64) -> Self {
        Self { at_ms: range.start_ms(), end_ms: range.end_ms(), width_ms, step: 1 }
    }

    /// Returns the next window in which `store` holds a sample of the series of `filter`.
    pub(crate) async fn next(
        &mut self,
        store: &dyn StorageBackend,
        filter: &SeriesFilter,
    ) -> Result<Option<TimeRange>> {
        while self.at_ms < self.end_ms {
            let start_ms = window_start_ms(self.at_ms, self.width_ms);
            let reach_ms = self.width_ms.saturating_mul(self.step);
            let end_ms = start_ms.saturating_add(reach_ms).min(self.end_ms);
            let range = TimeRange::new(from_ms(self.at_ms), from_ms(end_ms))?;
            let holds_some = store.scan(filter, range).next().await.transpose()?.is_some();
            match (holds_some, self.step) {
                (true, 1) => {
                    self.at_ms = end_ms;
                    return Ok(Some(range));
                }
                (true, _) => self.step /= 2,
                (false, _) => {
                    self.at_ms = end_ms;
                    self.step = self.step.saturating_mul(2);
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{FaultPlan, Faulty};
    use crate::metrics::time::{END_MS, MIN_MS};
    use crate::{InMemory, MetricRecord};

    const DAY_MS: i64 = 86_400_000;

    async fn windows_of(times_ms: &[i64], range: TimeRange) -> (Vec<(i64, i64)>, u64) {
        let store = Faulty::new(InMemory::new(), FaultPlan::new(1));
        let record = |ms: &i64| MetricRecord::new("a", from_ms(*ms), "b", 1.0);
        store.write_batch(&times_ms.iter().map(record).collect::<Vec<_>>()).await.unwrap();
        let before = store.control().counts().calls;
        let mut windows = Windows::new(range, DAY_MS);
        let mut found = Vec::new();
        while let Some(window) = windows.next(&store, &SeriesFilter::any()).await.unwrap() {
            found.push((window.start_ms(), window.end_ms()));
        }
        (found, store.control().counts().calls - before)
    }

    #[tokio::test]
    async fn every_sample_is_in_one_window() {
        let times = [MIN_MS, -1, 0, 5, DAY_MS - 1, DAY_MS, 9 * DAY_MS + 7, END_MS - 1];
        let (found, scans) = windows_of(&times, TimeRange::all()).await;
        let expected = [
            (MIN_MS, MIN_MS + DAY_MS),
            (-DAY_MS, 0),
            (0, DAY_MS),
            (DAY_MS, 2 * DAY_MS),
            (9 * DAY_MS, 10 * DAY_MS),
            (END_MS - DAY_MS, END_MS),
        ];
        assert_eq!(found, expected);
        assert!(scans < 150, "{scans} scans over ten thousand years");
    }

    #[tokio::test]
    async fn the_range_cuts_the_first_and_the_last_window() {
        let range = TimeRange::new(from_ms(5), from_ms(DAY_MS + 1)).unwrap();
        let (found, _) = windows_of(&[4, 5, DAY_MS, DAY_MS + 1], range).await;
        assert_eq!(found, [(5, DAY_MS), (DAY_MS, DAY_MS + 1)]);
        let (none, _) = windows_of(&[4, DAY_MS + 1], range).await;
        assert_eq!(none, []);
    }
}
