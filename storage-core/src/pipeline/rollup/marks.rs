//! The windows that late samples re-open.
//!
//! A mark is written to the control store before the late samples of a batch are written, and says
//! which windows they touch. It carries the epoch in which it was made: the next refresh rolls those
//! windows up again, and says then that marks of that epoch are done with. A writer that finds the
//! epoch changed after its write marks again.

use std::sync::{Mutex, PoisonError};

use chrono::Utc;
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};

use super::ranges::{Ranges, align_up};
use super::view::View;
use crate::control::Published;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::time::{END_MS, floor_ms, from_ms, window_start_ms};
use crate::metrics::{MetricRecord, SeriesFilter, StorageBackend, TimeRange};

/// What the names of marks start with; a random part follows.
const MARK: &str = "mark-";

/// From so many marks of an epoch on, whole windows of the widest tier are marked.
const FINE_MARKS_MAX: u32 = 32;

/// The most ranges in one mark: more are joined.
const RANGES_MAX: usize = 500;

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    epoch: u64,
    ranges: Ranges,
}

/// Writes the marks of a handle.
#[derive(Debug)]
pub(super) struct Marker {
    name: String,
    made: Mutex<Made>,
}

/// The marks of this handle that are in the control store.
#[derive(Debug, Default)]
struct Made {
    epoch: u64,
    ranges: Ranges,
    count: u32,
    last_ms: i64,
}

impl Marker {
    pub(super) fn new() -> Self {
        let name = format!("{MARK}{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        Self { name, made: Mutex::default() }
    }

    /// Sees to it that the windows of the late samples among `records` are marked in the epoch of
    /// `view`.
    pub(super) async fn mark(
        &self,
        control: &dyn StorageBackend,
        view: &View,
        records: &[MetricRecord],
        widths_ms: (i64, i64),
    ) -> Result<()> {
        let late = records.iter().map(|record| floor_ms(record.timestamp));
        let late = late.filter(|ms| view.is_late(*ms)).collect::<Vec<_>>();
        let Some((time_ms, ranges)) = self.missing(view.epoch, &late, widths_ms) else {
            return Ok(());
        };
        self.write(control, view.epoch, time_ms, ranges).await
    }

    /// Marks whole ranges.
    pub(super) async fn mark_ranges(
        &self,
        control: &dyn StorageBackend,
        view: &View,
        ranges: Ranges,
    ) -> Result<()> {
        let time_ms = self.made().next_ms();
        self.write(control, view.epoch, time_ms, ranges).await
    }

    async fn write(
        &self,
        control: &dyn StorageBackend,
        epoch: u64,
        time_ms: i64,
        ranges: Ranges,
    ) -> Result<()> {
        let content = Content { epoch, ranges: ranges.at_most(RANGES_MAX) };
        let metadata = serde_json::to_value(&content).map_err(|error| {
            Error::new(ErrorKind::Internal, "a mark does not serialise").with_source(error)
        })?;
        let (server, time) = (View::SERVER, from_ms(time_ms));
        let record = MetricRecord::new(server, time, &*self.name, epoch as f64);
        control.write_batch(&[record.with_metadata(metadata)]).await?;
        self.made().add(epoch, &content.ranges);
        Ok(())
    }

    /// Returns the windows that are not marked yet, and the time of the next mark.
    fn missing(&self, epoch: u64, late: &[i64], widths_ms: (i64, i64)) -> Option<(i64, Ranges)> {
        let (finest_ms, widest_ms) = widths_ms;
        let mut made = self.made();
        let is_new = made.epoch != epoch;
        let width_ms = match made.count {
            FINE_MARKS_MAX.. if !is_new => widest_ms,
            _ => finest_ms,
        };
        let unmarked = late.iter().filter(|ms| is_new || !made.ranges.contains(**ms));
        let window = |ms: &i64| (window_start_ms(*ms, width_ms), align_up(*ms + 1, width_ms));
        let ranges = Ranges::of(unmarked.map(window));
        if ranges.is_empty() { None } else { Some((made.next_ms(), ranges)) }
    }

    fn made(&self) -> std::sync::MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Made {
    fn add(&mut self, epoch: u64, ranges: &Ranges) {
        if self.epoch != epoch {
            *self = Self { epoch, last_ms: self.last_ms, ..Self::default() };
        }
        self.ranges = self.ranges.union(ranges);
        self.count += 1;
    }

    /// A time at which this handle has no mark yet.
    fn next_ms(&mut self) -> i64 {
        self.last_ms = floor_ms(Utc::now()).max(self.last_ms + 1);
        self.last_ms
    }
}

/// The marks that are not done with.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// What they mark.
    pub(super) ranges: Ranges,
    /// The time of the oldest, or the end of time.
    pub(super) oldest_ms: i64,
}

/// Reads the marks of epochs after `done_epoch`.
pub(super) async fn read(control: &dyn StorageBackend, done_epoch: u64) -> Result<Marks> {
    let filter = SeriesFilter::parse(View::SERVER, &format!("{MARK}*"))?;
    let mut scan = control.scan(&filter, TimeRange::all());
    let (mut ranges, mut oldest_ms) = (Vec::new(), END_MS);
    while let Some(batch) = scan.try_next().await? {
        for sample in batch.samples {
            if sample.value <= done_epoch as f64 {
                continue;
            }
            let content = serde_json::from_value(sample.metadata.unwrap_or_default());
            let content: Content = content.map_err(|error| {
                Error::new(ErrorKind::Corrupt, "a mark of late samples is none").with_source(error)
            })?;
            ranges.extend(content.ranges.iter());
            oldest_ms = oldest_ms.min(floor_ms(sample.timestamp));
        }
    }
    Ok(Marks { ranges: Ranges::of(ranges), oldest_ms })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InMemory;

    fn view(epoch: u64) -> View {
        View { epoch, frozen_ms: 0, announced_ms: 1000, ..View::default() }
    }

    fn records(times_ms: &[i64]) -> Vec<MetricRecord> {
        times_ms.iter().map(|ms| MetricRecord::new("a", from_ms(*ms), "m", 1.0)).collect()
    }

    async fn ranges(store: &InMemory, done_epoch: u64) -> Vec<(i64, i64)> {
        read(store, done_epoch).await.unwrap().ranges.iter().collect()
    }

    #[tokio::test]
    async fn late_samples_are_marked_once_an_epoch() {
        let (store, marker) = (InMemory::new(), Marker::new());
        let mark = |epoch, times: Vec<i64>| {
            let (store, marker) = (&store, &marker);
            async move {
                marker.mark(store, &view(epoch), &records(&times), (10, 100)).await.unwrap();
                store.stats().await.unwrap().total_metrics
            }
        };
        assert_eq!(mark(1, vec![-5, 1000, 2000]).await, 0, "none of these is late");
        assert_eq!(mark(1, vec![5, 18, 999]).await, 1);
        assert_eq!(mark(1, vec![0, 11]).await, 1, "marked already");
        assert_eq!(ranges(&store, 0).await, [(0, 20), (990, 1000)]);
        assert_eq!(mark(2, vec![0]).await, 2, "a new epoch");
        assert_eq!(ranges(&store, 1).await, [(0, 10)]);
        assert_eq!(ranges(&store, 2).await, []);
        assert_eq!(read(&store, 2).await.unwrap().oldest_ms, END_MS);
        // Two handles do not know of each other.
        Marker::new().mark(&store, &view(2), &records(&[5]), (10, 100)).await.unwrap();
        assert_eq!(store.stats().await.unwrap().total_metrics, 3);
    }

    #[tokio::test]
    async fn many_marks_get_coarse() {
        let (store, marker) = (InMemory::new(), Marker::new());
        for ms in (0..1000).step_by(10) {
            marker.mark(&store, &view(1), &records(&[ms]), (10, 100)).await.unwrap();
        }
        assert_eq!(ranges(&store, 0).await, [(0, 1000)]);
        assert_eq!(store.stats().await.unwrap().total_metrics, 32 + 7);
    }
}
