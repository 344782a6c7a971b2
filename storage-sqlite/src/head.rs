//! The samples that are in the journal and not sealed yet, decoded and by series.
//!
//! Kept in step with the journal by id: whoever commits or reads a journal row applies it here, in
//! order. A question takes its view of the head *before* it reads the database: then whatever
//! was sealed in between is in the blocks that it reads, and nothing is missing or doubled.

use std::collections::hash_map::Entry as MapEntry;
use std::sync::Arc;
use std::time::Instant;

use rustc_hash::FxHashMap;
use storage_core::TimeRange;

use crate::codec::RawSample;
use crate::codec::frame::Entry;

/// Unsealed samples of every series.
#[derive(Debug, Default)]
pub(crate) struct Head {
    series: FxHashMap<i64, Arc<Unsealed>>,
    applied_id: i64,
    trimmed_id: i64,
    samples: usize,
    /// When the oldest unsealed sample was applied.
    since: Option<Instant>,
}

/// What one question sees of the head.
#[derive(Debug)]
pub(crate) struct HeadView {
    pub(crate) applied_id: i64,
    pub(crate) series: FxHashMap<i64, Arc<Unsealed>>,
}

/// Unsealed samples of one series, in the order they were written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unsealed {
    samples: Vec<HeadSample>,
    /// Whether times rise strictly, as they mostly do.
    in_order: bool,
}

#[derive(Debug, Clone)]
struct HeadSample {
    journal_id: i64,
    sample: RawSample,
}

impl Head {
    /// The last journal row that is applied; all before are applied or sealed.
    pub(crate) fn applied_id(&self) -> i64 {
        self.applied_id
    }

    /// The last journal row up to which everything was dropped as sealed.
    pub(crate) fn trimmed_id(&self) -> i64 {
        self.trimmed_id
    }

    /// Number of unsealed samples, replaced ones included, metadata counted by its size.
    pub(crate) fn samples(&self) -> usize {
        self.samples
    }

    /// Number of series with unsealed samples.
    pub(crate) fn series(&self) -> usize {
        self.series.len()
    }

    /// When the oldest unsealed sample was applied.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Applies a journal row, unless it is applied already.
    pub(crate) fn apply(&mut self, journal_id: i64, entries: impl IntoIterator<Item = Entry>) {
        if journal_id <= self.applied_id {
            return;
        }
        self.applied_id = journal_id;
        for Entry { series_id, sample } in entries {
            let unsealed = self.series.entry(series_id).or_default();
            self.samples += weight(&sample);
            Arc::make_mut(unsealed).push(HeadSample { journal_id, sample });
        }
        if self.samples > 0 {
            self.since.get_or_insert_with(Instant::now);
        }
    }

    /// Drops what is in blocks for every series: journal rows up to `sealed_id`.
    pub(crate) fn trim(&mut self, sealed_id: i64) {
        if sealed_id <= self.trimmed_id {
            return;
        }
        self.trimmed_id = sealed_id;
        self.applied_id = self.applied_id.max(sealed_id);
        self.series.retain(|_, unsealed| {
            if unsealed.samples.first().is_some_and(|first| first.journal_id <= sealed_id) {
                *unsealed = Arc::new(unsealed.after(sealed_id));
            }
            !unsealed.samples.is_empty()
        });
        let samples = self.series.values().flat_map(|unsealed| &unsealed.samples);
        self.samples = samples.map(|sample| weight(&sample.sample)).sum();
        self.since = (self.samples > 0).then(Instant::now);
    }

    /// Returns the view of some series.
    pub(crate) fn view_of(&self, ids: &[i64]) -> HeadView {
        let pairs = ids.iter().filter_map(|id| Some((*id, Arc::clone(self.series.get(id)?))));
        HeadView { applied_id: self.applied_id, series: pairs.collect() }
    }

    /// Returns the view of every series.
    pub(crate) fn view(&self) -> HeadView {
        HeadView { applied_id: self.applied_id, series: self.series.clone() }
    }
}

/// How many samples a sample counts for: metadata takes memory too.
fn weight(sample: &RawSample) -> usize {
    const SAMPLE_BYTES: usize = 40;
    1 + sample.metadata.as_ref().map_or(0, |metadata| metadata.len() / SAMPLE_BYTES)
}

impl HeadView {
    /// Adds journal rows that the head had not seen yet.
    pub(crate) fn extend(&mut self, journal_id: i64, entries: &[Entry]) {
        for entry in entries {
            let sample = HeadSample { journal_id, sample: entry.sample.clone() };
            match self.series.entry(entry.series_id) {
                MapEntry::Occupied(mut occupied) => Arc::make_mut(occupied.get_mut()).push(sample),
                MapEntry::Vacant(vacant) => {
                    Arc::make_mut(vacant.insert(Arc::default())).push(sample);
                }
            }
        }
    }
}

impl Unsealed {
    fn push(&mut self, sample: HeadSample) {
        let last = self.samples.last().map(|last| last.sample.ms);
        self.in_order = match last {
            None => true,
            Some(last_ms) => self.in_order && last_ms < sample.sample.ms,
        };
        self.samples.push(sample);
    }

    fn after(&self, sealed_id: i64) -> Self {
        let from = self.samples.partition_point(|sample| sample.journal_id <= sealed_id);
        let mut rest = Self::default();
        self.samples[from..].iter().for_each(|sample| rest.push(sample.clone()));
        rest
    }

    /// Returns number and extent of the samples that journal rows after `after_id` wrote.
    pub(crate) fn extent(&self, after_id: i64) -> Option<(u64, i64, i64)> {
        if !self.in_order {
            let samples = self.samples(after_id, i64::MAX, TimeRange::all());
            return Some((samples.len() as u64, samples.first()?.ms, samples.last()?.ms));
        }
        let from = self.samples.partition_point(|sample| sample.journal_id <= after_id);
        let written = &self.samples[from..];
        Some((written.len() as u64, written.first()?.sample.ms, written.last()?.sample.ms))
    }

    /// Returns the newest of the samples that journal rows after `after_id` wrote.
    pub(crate) fn newest(&self, after_id: i64) -> Option<RawSample> {
        let from = self.samples.partition_point(|sample| sample.journal_id <= after_id);
        // Of several written for the newest time, the last one: what `max_by_key` returns.
        let newest = self.samples[from..].iter().max_by_key(|sample| sample.sample.ms)?;
        Some(newest.sample.clone())
    }

    /// Returns the samples in `range` that journal rows in `(after_id, up_to_id]` wrote: in order
    /// of time, of each millisecond the one written last.
    pub(crate) fn samples(&self, after_id: i64, up_to_id: i64, range: TimeRange) -> Vec<RawSample> {
        let from = self.samples.partition_point(|sample| sample.journal_id <= after_id);
        let to = self.samples.partition_point(|sample| sample.journal_id <= up_to_id);
        let written = &self.samples[from..to];
        let (start_ms, end_ms) = (range.start_ms(), range.end_ms());
        if self.in_order {
            let first = written.partition_point(|sample| sample.sample.ms < start_ms);
            let last = written.partition_point(|sample| sample.sample.ms < end_ms);
            return written[first..last.max(first)].iter().map(|s| s.sample.clone()).collect();
        }
        let inside = written.iter().filter(|s| (start_ms..end_ms).contains(&s.sample.ms));
        last_written(inside.map(|s| s.sample.clone()).collect())
    }
}

/// Sorts samples by time and keeps, of each millisecond, the one that came last.
pub(crate) fn last_written(mut samples: Vec<RawSample>) -> Vec<RawSample> {
    samples.sort_by_key(|sample| sample.ms);
    samples.dedup_by(|later, earlier| {
        let same = later.ms == earlier.ms;
        if same {
            std::mem::swap(later, earlier);
        }
        same
    });
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(series_id: i64, ms: i64, value: f64) -> Entry {
        Entry { series_id, sample: RawSample { ms, value, metadata: None } }
    }

    fn seen(view: &HeadView, id: i64, after_id: i64) -> Vec<(i64, f64)> {
        let Some(unsealed) = view.series.get(&id) else { return Vec::new() };
        let samples = unsealed.samples(after_id, i64::MAX, TimeRange::all());
        samples.iter().map(|sample| (sample.ms, sample.value)).collect()
    }

    #[test]
    fn the_last_written_wins_and_rows_apply_once() {
        let mut head = Head::default();
        head.apply(1, [entry(7, 20, 1.0), entry(7, 10, 2.0), entry(7, 20, 3.0)]);
        head.apply(2, [entry(7, 10, 4.0)]);
        head.apply(2, [entry(7, 10, 9.0)]);
        assert_eq!(seen(&head.view(), 7, 0), [(10, 4.0), (20, 3.0)]);
        assert_eq!(seen(&head.view(), 7, 1), [(10, 4.0)]);
        assert_eq!(head.samples(), 4);
    }

    #[test]
    fn a_view_does_not_change_when_the_head_does() {
        let mut head = Head::default();
        head.apply(1, [entry(7, 10, 1.0)]);
        let view = head.view_of(&[7, 8]);
        head.apply(2, [entry(7, 20, 2.0)]);
        head.trim(1);
        assert_eq!(seen(&view, 7, 0), [(10, 1.0)]);
        assert_eq!(seen(&head.view(), 7, 0), [(20, 2.0)]);
        head.trim(5);
        assert_eq!((head.samples(), head.applied_id()), (0, 5));
    }

    #[test]
    fn a_view_takes_rows_that_the_head_has_not_seen() {
        let mut head = Head::default();
        head.trim(3);
        let mut view = head.view();
        view.extend(4, &[entry(1, 5, 1.0)]);
        assert_eq!(seen(&view, 1, 3), [(5, 1.0)]);
    }
}
