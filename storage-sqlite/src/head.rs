//! The samples that are in the journal and not sealed yet, decoded and by series.
//!
//! Kept in step with the journal by id: journal rows are applied here in their order, those that this
//! handle commits by way of the `backlog`, others by whoever reads them. A question takes its view of the head *before* it reads the database: then whatever
//! was sealed in between is in the blocks that it reads, and nothing is missing or doubled.

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
    /// While a seal is under way: the journal row up to which series below this id are trimmed.
    trimming: Option<(i64, i64)>,
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
    /// Metadata of the few samples that have any, by their index.
    metadata: Vec<(usize, Arc<str>)>,
    /// Whether times rise strictly, as they mostly do.
    in_order: bool,
    /// The last seal that took samples out. Their memory is kept for what comes next.
    trimmed_by: i64,
}

/// A sample without its metadata: there are millions of them.
#[derive(Debug, Clone, Copy)]
struct HeadSample {
    journal_id: i64,
    ms: i64,
    value: f64,
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

    /// The last journal row up to which everything of a series was dropped as sealed.
    pub(crate) fn trimmed_through(&self, series_id: i64) -> i64 {
        match self.trimming {
            Some((next, journal_id)) if series_id < next => journal_id.max(self.trimmed_id),
            _ => self.trimmed_id,
        }
    }

    /// Number of unsealed samples, replaced ones included, metadata counted by its size.
    pub(crate) fn samples(&self) -> usize {
        self.samples
    }

    /// Number of series that have unsealed samples, or had some a seal ago.
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
            self.samples += weight(sample.metadata.as_ref());
            Arc::make_mut(unsealed).push(journal_id, sample);
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
        self.trimming = None;
        self.drop_sealed(&self.ids(), sealed_id);
        let is_idle = |u: &Unsealed| u.samples.is_empty() && u.trimmed_by < sealed_id;
        self.series.retain(|_, unsealed| !is_idle(unsealed));
        self.since = (self.samples > 0).then(Instant::now);
    }

    /// Drops what is in blocks for series below `next`, of which only those of `ids` may have any:
    /// journal rows up to `sealed_id`.
    pub(crate) fn trim_below(&mut self, next: i64, ids: &[i64], sealed_id: i64) {
        self.trimming = Some((next, sealed_id));
        self.drop_sealed(ids, sealed_id);
    }

    fn drop_sealed(&mut self, ids: &[i64], sealed_id: i64) {
        for id in ids {
            if let Some(unsealed) = self.series.get_mut(id) {
                self.samples -= unsealed.weight_up_to(sealed_id);
                if unsealed.up_to(sealed_id) > 0 {
                    Arc::make_mut(unsealed).drop_up_to(sealed_id);
                }
            }
        }
    }

    /// Returns the view of some series.
    pub(crate) fn view_of(&self, ids: &[i64]) -> HeadView {
        let pairs = ids.iter().filter_map(|id| Some((*id, Arc::clone(self.series.get(id)?))));
        HeadView { applied_id: self.applied_id, series: pairs.collect() }
    }

    /// Returns the series that have unsealed samples, by id.
    pub(crate) fn ids(&self) -> Vec<i64> {
        let with = self.series.iter().filter(|(_, unsealed)| !unsealed.samples.is_empty());
        let mut ids: Vec<i64> = with.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// Returns what is unsealed of a series, as it is now.
    pub(crate) fn unsealed(&self, id: i64) -> Option<&Unsealed> {
        self.series.get(&id).map(Arc::as_ref)
    }
}

/// How many samples a sample counts for: metadata takes memory too.
fn weight(metadata: Option<&Arc<str>>) -> usize {
    1 + metadata.map_or(0, |metadata| METADATA_BYTES.saturating_add(metadata.len()) / SAMPLE_BYTES)
}

const SAMPLE_BYTES: usize = size_of::<HeadSample>();

/// What metadata takes beside its text.
const METADATA_BYTES: usize = size_of::<(usize, Arc<str>)>() + 2 * size_of::<usize>();

impl HeadView {
    /// Adds journal rows that the head had not seen yet.
    pub(crate) fn extend(&mut self, journal_id: i64, entries: &[Entry]) {
        for entry in entries {
            let unsealed = self.series.entry(entry.series_id).or_default();
            Arc::make_mut(unsealed).push(journal_id, entry.sample.clone());
        }
    }
}

impl Unsealed {
    fn push(&mut self, journal_id: i64, sample: RawSample) {
        let RawSample { ms, value, metadata } = sample;
        self.in_order = self.samples.last().is_none_or(|last| self.in_order && last.ms < ms);
        self.metadata.extend(metadata.map(|metadata| (self.samples.len(), metadata)));
        self.samples.push(HeadSample { journal_id, ms, value });
    }

    /// How many of the samples journal rows up to `journal_id` wrote: they come first.
    fn up_to(&self, journal_id: i64) -> usize {
        self.samples.partition_point(|sample| sample.journal_id <= journal_id)
    }

    fn at(&self, index: usize) -> RawSample {
        let HeadSample { ms, value, .. } = self.samples[index];
        let found = self.metadata.binary_search_by_key(&index, |(index, _)| *index);
        let metadata = found.ok().map(|at| Arc::clone(&self.metadata[at].1));
        RawSample { ms, value, metadata }
    }

    fn weight_up_to(&self, sealed_id: i64) -> usize {
        let sealed = self.up_to(sealed_id);
        let metadata = self.metadata.iter().take_while(|(index, _)| *index < sealed);
        sealed + metadata.map(|(_, metadata)| weight(Some(metadata)) - 1).sum::<usize>()
    }

    fn drop_up_to(&mut self, sealed_id: i64) {
        let sealed = self.up_to(sealed_id);
        self.samples.drain(..sealed);
        self.metadata.retain(|(index, _)| *index >= sealed);
        self.metadata.iter_mut().for_each(|(index, _)| *index -= sealed);
        self.in_order = self.samples.is_sorted_by(|a, b| a.ms < b.ms);
        self.trimmed_by = sealed_id;
    }

    /// Returns number and extent of the samples that journal rows after `after_id` wrote.
    pub(crate) fn extent(&self, after_id: i64) -> Option<(u64, i64, i64)> {
        if !self.in_order {
            let samples = self.samples(after_id, i64::MAX, TimeRange::all());
            return Some((samples.len() as u64, samples.first()?.ms, samples.last()?.ms));
        }
        let written = &self.samples[self.up_to(after_id)..];
        Some((written.len() as u64, written.first()?.ms, written.last()?.ms))
    }

    /// Returns the newest of the samples that journal rows after `after_id` wrote.
    pub(crate) fn newest(&self, after_id: i64) -> Option<RawSample> {
        let from = self.up_to(after_id);
        if self.in_order && from < self.samples.len() {
            return Some(self.at(self.samples.len() - 1));
        }
        // Of several written for the newest time, the last one: what `max_by_key` returns.
        let newest = (from..self.samples.len()).max_by_key(|index| self.samples[*index].ms)?;
        Some(self.at(newest))
    }

    /// Returns the samples in `range` that journal rows in `(after_id, up_to_id]` wrote: in order
    /// of time, of each millisecond the one written last.
    pub(crate) fn samples(&self, after_id: i64, up_to_id: i64, range: TimeRange) -> Vec<RawSample> {
        let (from, to) = (self.up_to(after_id), self.up_to(up_to_id));
        let (start_ms, end_ms) = (range.start_ms(), range.end_ms());
        if self.in_order {
            let before = |ms| self.samples[..to].partition_point(|sample| sample.ms < ms).max(from);
            return (before(start_ms)..before(end_ms)).map(|index| self.at(index)).collect();
        }
        let inside = |index: &usize| (start_ms..end_ms).contains(&self.samples[*index].ms);
        last_written((from..to).filter(inside).map(|index| self.at(index)).collect())
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
        assert_eq!(seen(&head.view_of(&[7]), 7, 0), [(10, 4.0), (20, 3.0)]);
        assert_eq!(seen(&head.view_of(&[7]), 7, 1), [(10, 4.0)]);
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
        assert_eq!(seen(&head.view_of(&[7]), 7, 0), [(20, 2.0)]);
        assert_eq!((head.samples(), head.ids()), (1, vec![7]));
        head.trim(5);
        assert_eq!((head.samples(), head.applied_id()), (0, 5));
    }

    #[test]
    fn series_are_trimmed_one_by_one_with_their_metadata() {
        let mut head = Head::default();
        let long = RawSample { ms: 1, value: 1.0, metadata: Some("x".repeat(100).into()) };
        let short = RawSample { ms: 2, value: 2.0, metadata: Some("{}".into()) };
        head.apply(1, [Entry { series_id: 7, sample: long }, entry(8, 1, 1.0)]);
        head.apply(2, [entry(7, 0, 0.5), Entry { series_id: 7, sample: short.clone() }]);
        let weight_before = head.samples();
        assert!(weight_before > 8, "metadata takes memory too");
        head.trim_below(8, &[7], 1);
        assert_eq!((head.trimmed_through(7), head.trimmed_through(8)), (1, 0));
        let view = head.view_of(&[7]);
        let left = view.series[&7].samples(0, i64::MAX, TimeRange::all());
        assert_eq!((left.len(), &left[1]), (2, &short));
        assert!(head.samples() < weight_before - 4);
        head.trim_below(9, &[7, 8], 2);
        assert_eq!((head.samples(), head.ids()), (0, Vec::new()));
    }

    #[test]
    fn a_view_takes_rows_that_the_head_has_not_seen() {
        let mut head = Head::default();
        head.trim(3);
        let mut view = head.view_of(&[1]);
        view.extend(4, &[entry(1, 5, 1.0)]);
        assert_eq!(seen(&view, 1, 3), [(5, 1.0)]);
    }
}
