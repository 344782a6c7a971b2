//! Samples in memory, as columns: sorted by series, then time, one per series and millisecond.
//!
//! What a batch becomes before it is written, what waits to be merged, and what files are read
//! into. Laying newer samples over older ones is done here and nowhere else.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use storage_core::{Error, MetricRecord, Result, SeriesKey};

use crate::convert::to_stored;

/// The samples of one series, or of several one after the other: columns of equal length.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Samples {
    pub(crate) ms: Vec<i64>,
    pub(crate) values: Vec<f64>,
    /// JSON, or empty if no sample has any.
    metadata: Vec<Option<Arc<str>>>,
}

/// Some samples of one series, oldest first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slice<'a> {
    pub(crate) ms: &'a [i64],
    pub(crate) values: &'a [f64],
    metadata: &'a [Option<Arc<str>>],
}

impl<'a> Slice<'a> {
    pub(crate) fn len(&self) -> usize {
        self.ms.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ms.is_empty()
    }

    /// The metadata of the sample at `index`.
    pub(crate) fn metadata(&self, index: usize) -> Option<&'a Arc<str>> {
        self.metadata.get(index).and_then(Option::as_ref)
    }

    /// The samples from `start_ms` on and before `end_ms`.
    pub(crate) fn between(self, start_ms: i64, end_ms: i64) -> Self {
        let from = self.ms.partition_point(|ms| *ms < start_ms);
        let to = from + self.ms[from..].partition_point(|ms| *ms < end_ms);
        self.part(from, to)
    }

    /// The samples at the places `from..to`.
    pub(crate) fn part(self, from: usize, to: usize) -> Self {
        let metadata = if self.metadata.is_empty() { &[] } else { &self.metadata[from..to] };
        Self { ms: &self.ms[from..to], values: &self.values[from..to], metadata }
    }
}

impl Samples {
    pub(crate) fn len(&self) -> usize {
        self.ms.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ms.is_empty()
    }

    pub(crate) fn push(&mut self, ms: i64, value: f64, metadata: Option<Arc<str>>) {
        if metadata.is_some() || !self.metadata.is_empty() {
            self.metadata.resize(self.ms.len(), None);
            self.metadata.push(metadata);
        }
        self.ms.push(ms);
        self.values.push(value);
    }

    /// Adds samples after all others.
    pub(crate) fn extend(&mut self, slice: Slice<'_>) {
        if !slice.metadata.is_empty() || !self.metadata.is_empty() {
            self.metadata.resize(self.ms.len(), None);
            self.metadata.extend_from_slice(slice.metadata);
            self.metadata.resize(self.ms.len() + slice.len(), None);
        }
        self.ms.extend_from_slice(slice.ms);
        self.values.extend_from_slice(slice.values);
    }

    /// Gives metadata, by place, to samples that have none yet.
    pub(crate) fn set_metadata(&mut self, metadata: Vec<Option<Arc<str>>>) {
        self.metadata = metadata;
        self.metadata.resize(self.ms.len(), None);
    }

    pub(crate) fn as_slice(&self) -> Slice<'_> {
        Slice { ms: &self.ms, values: &self.values, metadata: &self.metadata }
    }

    pub(crate) fn part(&self, from: usize, to: usize) -> Slice<'_> {
        self.as_slice().part(from, to)
    }

    /// Lays newer samples of the same series over these.
    pub(crate) fn overlay(&mut self, newer: Slice<'_>) {
        let (Some(first), Some(last)) = (newer.ms.first(), self.ms.last()) else {
            return self.extend(newer);
        };
        if last < first {
            return self.extend(newer);
        }
        let from = self.ms.partition_point(|ms| ms < first);
        let mut merged = Self::default();
        merged.extend(self.part(0, from));
        merge_into(&mut merged, self.part(from, self.len()), newer);
        *self = merged;
    }

    fn truncate(&mut self, length: usize) {
        self.ms.truncate(length);
        self.values.truncate(length);
        self.metadata.truncate(length);
    }
}

/// Appends two slices of one series in order of time; where both have a sample, the newer counts.
fn merge_into(merged: &mut Samples, older: Slice<'_>, newer: Slice<'_>) {
    let (mut old, mut new) = (0, 0);
    while old < older.len() && new < newer.len() {
        let (before, after) = (older.ms[old], newer.ms[new]);
        if before < after {
            // A run of older samples at once: the usual case is few newer ones among many.
            let run = old + older.ms[old..].partition_point(|ms| *ms < after);
            merged.extend(older.part(old, run));
            old = run;
        } else {
            old += usize::from(before == after);
            merged.extend(newer.part(new, new + 1));
            new += 1;
        }
    }
    merged.extend(older.part(old, older.len()));
    merged.extend(newer.part(new, newer.len()));
}

/// Which samples of [`Rows`] belong to a series: from the end of the run before to `end`.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) key: Arc<SeriesKey>,
    pub(crate) end: usize,
}

/// Samples of any number of series, ordered by series, then time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rows {
    runs: Vec<Run>,
    samples: Samples,
}

impl Rows {
    pub(crate) fn len(&self) -> usize {
        self.samples.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// The earliest and the latest time.
    pub(crate) fn extent(&self) -> Option<(i64, i64)> {
        let ms = &self.samples.ms;
        Some((*ms.iter().min()?, *ms.iter().max()?))
    }

    pub(crate) fn times(&self) -> &[i64] {
        &self.samples.ms
    }

    pub(crate) fn values(&self) -> &[f64] {
        &self.samples.values
    }

    /// Adds a series after all others; nothing if the slice is empty.
    pub(crate) fn push(&mut self, key: &Arc<SeriesKey>, slice: Slice<'_>) {
        if slice.is_empty() {
            return;
        }
        self.samples.extend(slice);
        let end = self.samples.len();
        match self.runs.last_mut() {
            Some(run) if run.key == *key => run.end = end,
            _ => self.runs.push(Run { key: Arc::clone(key), end }),
        }
    }

    /// Every series with its samples, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Arc<SeriesKey>, Slice<'_>)> {
        let mut start = 0;
        self.runs.iter().map(move |run| {
            let from = std::mem::replace(&mut start, run.end);
            (&run.key, self.samples.part(from, run.end))
        })
    }

    /// The samples of one series.
    pub(crate) fn get(&self, key: &SeriesKey) -> Option<Slice<'_>> {
        let place = self.runs.binary_search_by(|run| (*run.key).cmp(key)).ok()?;
        let start = place.checked_sub(1).map_or(0, |before| self.runs[before].end);
        Some(self.samples.part(start, self.runs[place].end))
    }

    /// Whether there are samples between two times.
    pub(crate) fn between(&self, start_ms: i64, end_ms: i64) -> Self {
        let mut rows = Self::default();
        for (key, slice) in self.iter() {
            rows.push(key, slice.between(start_ms, end_ms));
        }
        rows
    }
}

/// Lays several sets of rows over each other, the oldest first.
pub(crate) fn merge(parts: &[&Rows]) -> Rows {
    if let [only] = parts {
        return (*only).clone();
    }
    let mut all: Vec<_> = parts
        .iter()
        .enumerate()
        .flat_map(|(age, rows)| rows.iter().map(move |(key, slice)| (key, age, slice)))
        .collect();
    all.sort_unstable_by(|one, other| (one.0, one.1).cmp(&(other.0, other.1)));
    let mut merged = Rows::default();
    let mut start = 0;
    while let Some((key, _, first)) = all.get(start) {
        let end = start + all[start..].partition_point(|(other, ..)| other == key);
        if end - start == 1 {
            merged.push(key, *first);
        } else {
            let mut samples = Samples::default();
            samples.extend(*first);
            all[start + 1..end].iter().for_each(|(.., newer)| samples.overlay(*newer));
            merged.push(key, samples.as_slice());
        }
        start = end;
    }
    merged
}

/// Keeps one copy of the names of each series.
#[derive(Debug, Default)]
pub(crate) struct Names(FxHashMap<u64, Arc<SeriesKey>>);

/// Series that may come and go before the copies are given up.
const NAMES_MAX: usize = 2_000_000;

impl Names {
    /// Returns the one copy of these names.
    pub(crate) fn intern(&mut self, server_id: &str, metric_type: &str) -> Arc<SeriesKey> {
        use std::hash::BuildHasher;
        let hash = rustc_hash::FxBuildHasher.hash_one((server_id, metric_type));
        if let Some(key) = self.0.get(&hash)
            && key.server_id == server_id
            && key.metric_type == metric_type
        {
            return Arc::clone(key);
        }
        if self.0.len() >= NAMES_MAX {
            self.0.clear();
        }
        let key = Arc::new(SeriesKey::new(server_id, metric_type));
        self.0.insert(hash, Arc::clone(&key));
        key
    }
}

/// Records on their way to be rows: taken in any order, sorted at the end.
#[derive(Debug, Default)]
pub(crate) struct Collector<'a> {
    ids: FxHashMap<(&'a str, &'a str), u32>,
    last: Option<(&'a str, &'a str, u32)>,
    unsorted: Unsorted,
}

/// Samples in the order they came.
#[derive(Debug, Default)]
pub(crate) struct Unsorted {
    keys: Vec<Arc<SeriesKey>>,
    series: Vec<u32>,
    samples: Samples,
}

impl<'a> Collector<'a> {
    /// Adds records that are valid; the first of them has the number `first` in its batch.
    pub(crate) fn add(
        &mut self,
        names: &std::sync::Mutex<Names>,
        records: &'a [MetricRecord],
        first: usize,
    ) -> Result<()> {
        let mut names = names.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (index, record) in records.iter().enumerate() {
            let stored = to_stored(record)
                .map_err(|error: Error| error.with_context("record", first + index))?;
            let id = self.id_of(&mut names, &record.server_id, &record.metric_type);
            self.unsorted.series.push(id);
            self.unsorted.samples.push(stored.0, stored.1, stored.2);
        }
        Ok(())
    }

    fn id_of(&mut self, names: &mut Names, server_id: &'a str, metric_type: &'a str) -> u32 {
        if let Some((server, metric, id)) = self.last
            && server == server_id
            && metric == metric_type
        {
            return id;
        }
        let next = self.unsorted.keys.len() as u32;
        let id = *self.ids.entry((server_id, metric_type)).or_insert(next);
        if id == next {
            self.unsorted.keys.push(names.intern(server_id, metric_type));
        }
        self.last = Some((server_id, metric_type, id));
        id
    }

    pub(crate) fn finish(self) -> Unsorted {
        self.unsorted
    }
}

impl Unsorted {
    /// Sorts by series, then time; of several samples at one time the last counts.
    pub(crate) fn sort(self) -> Rows {
        let Self { keys, series, samples } = self;
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_unstable_by(|one, other| keys[*one].cmp(&keys[*other]));
        let mut rank = vec![0; keys.len()];
        order.iter().enumerate().for_each(|(place, id)| rank[*id] = place);
        let mut ends = vec![0; keys.len() + 1];
        series.iter().for_each(|id| ends[rank[*id as usize] + 1] += 1);
        for place in 1..ends.len() {
            ends[place] += ends[place - 1];
        }
        let starts = ends.clone();
        let mut next = ends;
        let mut places = vec![0; series.len()];
        for (index, id) in series.iter().enumerate() {
            let place = &mut next[rank[*id as usize]];
            places[*place] = index;
            *place += 1;
        }
        let mut rows = Rows::default();
        for (place, id) in order.iter().enumerate() {
            let places = &mut places[starts[place]..starts[place + 1]];
            rows.push(&keys[*id], gather(&samples, places).as_slice());
        }
        rows
    }
}

/// Returns the samples at some places of one series, sorted by time, the last one of each.
fn gather(samples: &Samples, places: &mut [usize]) -> Samples {
    let is_sorted = places.is_sorted_by(|one, other| samples.ms[*one] < samples.ms[*other]);
    if !is_sorted {
        places.sort_by_key(|place| samples.ms[*place]);
    }
    let mut sorted = Samples::default();
    for place in places {
        let ms = samples.ms[*place];
        if sorted.ms.last() == Some(&ms) {
            sorted.truncate(sorted.len() - 1);
        }
        sorted.push(ms, samples.values[*place], samples.as_slice().metadata(*place).cloned());
    }
    sorted
}

/// Counts samples by the day they belong to.
pub(crate) fn count_by_day(days: &mut BTreeMap<i64, u64>, times: &[i64], day_ms: i64) {
    for run in times.chunk_by(|one, other| one.div_euclid(day_ms) == other.div_euclid(day_ms)) {
        if let Some(first) = run.first() {
            *days.entry(first.div_euclid(day_ms) * day_ms).or_default() += run.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(name: &str) -> Arc<SeriesKey> {
        Arc::new(SeriesKey::new(name, "m"))
    }

    fn samples(points: &[(i64, f64)]) -> Samples {
        let mut samples = Samples::default();
        points.iter().for_each(|(ms, value)| samples.push(*ms, *value, None));
        samples
    }

    fn points(slice: Slice<'_>) -> Vec<(i64, f64)> {
        slice.ms.iter().copied().zip(slice.values.iter().copied()).collect()
    }

    #[test]
    fn metadata_stays_with_its_sample() {
        let mut older = samples(&[(1, 1.0), (3, 3.0)]);
        older.push(5, 5.0, Some(Arc::from("5")));
        let mut newer = Samples::default();
        newer.push(3, 9.0, Some(Arc::from("9")));
        newer.push(4, 4.0, None);
        older.overlay(newer.as_slice());
        assert_eq!(points(older.as_slice()), [(1, 1.0), (3, 9.0), (4, 4.0), (5, 5.0)]);
        let texts: Vec<_> =
            (0..4).map(|place| older.as_slice().metadata(place).map(|text| &**text)).collect();
        assert_eq!(texts, [None, Some("9"), None, Some("5")]);
    }

    proptest! {
        #[test]
        fn merging_is_what_a_map_would_do(
            parts in proptest::collection::vec(
                proptest::collection::vec((0u8..4, -20i64..20, any::<u8>()), 0..30), 0..5)
        ) {
            let mut expected: BTreeMap<(String, i64), f64> = BTreeMap::new();
            let mut rows = Vec::new();
            for part in &parts {
                let mut unsorted = Unsorted::default();
                for (series, ms, value) in part {
                    let name = format!("s{series}");
                    let place = unsorted.keys.iter().position(|key| key.server_id == name);
                    let id = place.unwrap_or_else(|| {
                        unsorted.keys.push(key(&name));
                        unsorted.keys.len() - 1
                    });
                    unsorted.series.push(id as u32);
                    unsorted.samples.push(*ms, f64::from(*value), None);
                    expected.insert((name, *ms), f64::from(*value));
                }
                rows.push(unsorted.sort());
            }
            let merged = merge(&rows.iter().collect::<Vec<_>>());
            let found: Vec<_> = merged
                .iter()
                .flat_map(|(key, slice)| points(slice).into_iter().map(|(ms, value)| {
                    ((key.server_id.clone(), ms), value)
                }))
                .collect();
            prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn days_are_floored_before_the_epoch_too() {
        let mut days = BTreeMap::new();
        count_by_day(&mut days, &[-1, 0, 99, 100, 5], 100);
        assert_eq!(days.into_iter().collect::<Vec<_>>(), [(-100, 1), (0, 3), (100, 1)]);
    }
}
