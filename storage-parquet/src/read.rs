//! Answers questions about a state: which files and rows they need, what is newer laid over it.
//!
//! Read-only: what changes files lives in `write` and `maintenance`. A question looks into the
//! files whose time it asks about, in each at the series it asks about; large ones are answered in
//! pieces, so that memory stays within the options.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustc_hash::FxHashMap;
use storage_core::metrics::time::from_ms;
use storage_core::metrics::{Accumulator, WindowBuilder};
use storage_core::{
    MetricAggregation, Result, SeriesFilter, SeriesInfo, SeriesKey, SeriesWindows, StorageStats,
    TimeRange,
};

use crate::file::{Columns, DataFile};
use crate::index::IndexEntry;
use crate::manifest::{FileEntry, Fresh, FreshRows, State};
use crate::rows::{Samples, Slice};
use crate::store::Store;

/// Which series are read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Select<'a> {
    One(&'a SeriesKey),
    /// Those that match and lie between two, both included.
    Between(&'a SeriesFilter, &'a SeriesKey, &'a SeriesKey),
    Of(&'a BTreeSet<Arc<SeriesKey>>),
}

impl Select<'_> {
    fn matches(&self, key: &SeriesKey) -> bool {
        match self {
            Self::One(one) => *one == key,
            Self::Between(filter, first, last) => {
                (*first..=*last).contains(&key) && filter.matches_key(key)
            }
            Self::Of(keys) => keys.contains(key),
        }
    }

    /// The first and the last series that can match.
    fn bounds(&self) -> Option<(&SeriesKey, &SeriesKey)> {
        match self {
            Self::One(one) => Some((one, one)),
            Self::Between(_, first, last) => Some((first, last)),
            Self::Of(keys) => Some((keys.first()?, keys.last()?)),
        }
    }

    /// The entries of an index that match.
    fn of_index<'f>(&self, index: &'f [IndexEntry]) -> Vec<&'f IndexEntry> {
        let Some((first, last)) = self.bounds() else { return Vec::new() };
        let from = index.partition_point(|entry| *entry.key < *first);
        let to = index.partition_point(|entry| *entry.key <= *last);
        index[from..to.max(from)].iter().filter(|entry| self.matches(&entry.key)).collect()
    }
}

/// Every time that there is.
const ALWAYS: (i64, i64) = (i64::MIN, i64::MAX);

/// Samples by series.
pub(crate) type Found = FxHashMap<Arc<SeriesKey>, Samples>;

impl Store {
    /// Reads the chosen series between two times.
    pub(crate) fn collect(
        &self,
        state: &State,
        select: Select<'_>,
        start_ms: i64,
        end_ms: i64,
        columns: Columns,
    ) -> Result<Found> {
        let mut found = self.collect_files(state, select, start_ms, end_ms, columns)?;
        for fresh in state.fresh.iter().filter(|fresh| fresh.overlaps(start_ms, end_ms)) {
            self.lay_over(&mut found, fresh, select, (start_ms, end_ms), columns)?;
        }
        Ok(found)
    }

    /// Reads the chosen series out of merged files.
    fn collect_files(
        &self,
        state: &State,
        select: Select<'_>,
        start_ms: i64,
        end_ms: i64,
        columns: Columns,
    ) -> Result<Found> {
        let mut found = Found::default();
        for entry in state.files_between(start_ms, end_ms) {
            if may_hold(entry, select, start_ms, end_ms) {
                let (file, source) = self.open_file(&entry.path)?;
                let rows = rows_of(&file, select, start_ms, end_ms);
                if !rows.is_empty() {
                    self.files_read.fetch_add(1, Ordering::Relaxed);
                }
                // In steps, so that little is there twice.
                for step in in_steps(rows, self.options.step_rows()) {
                    read_into(&file, &source, &step, (start_ms, end_ms), columns, |key, slice| {
                        found.entry(Arc::clone(key)).or_default().extend(slice);
                    })?;
                }
            }
        }
        Ok(found)
    }

    fn lay_over(
        &self,
        found: &mut Found,
        fresh: &Fresh,
        select: Select<'_>,
        (start_ms, end_ms): (i64, i64),
        columns: Columns,
    ) -> Result<()> {
        let mut lay = |key: &Arc<SeriesKey>, slice: Slice<'_>| {
            let slice = slice.between(start_ms, end_ms);
            if !slice.is_empty() {
                found.entry(Arc::clone(key)).or_default().overlay(slice);
            }
        };
        match &fresh.rows {
            FreshRows::Memory(rows) => match select {
                Select::One(key) => {
                    if let Some(slice) = rows.get(key) {
                        lay(&Arc::new(key.clone()), slice);
                    }
                }
                _ => {
                    rows.iter().filter(|(key, _)| select.matches(key)).for_each(|(k, s)| lay(k, s))
                }
            },
            FreshRows::File(file) => {
                let rows = rows_of(file, select, start_ms, end_ms);
                let source = self.open_file(&file.path)?.1;
                read_into(file, &source, &rows, (start_ms, end_ms), columns, lay)?;
            }
        }
        Ok(())
    }

    /// Reads the samples of one series.
    pub(crate) fn samples_of(&self, key: &SeriesKey, range: TimeRange) -> Result<Samples> {
        self.ask(|state| {
            let (start_ms, end_ms) = (range.start_ms(), range.end_ms());
            let found = self.collect(state, Select::One(key), start_ms, end_ms, Columns::All)?;
            Ok(found.into_values().next().unwrap_or_default())
        })
    }

    /// Aggregates one series.
    pub(crate) fn aggregate_of(
        &self,
        key: &SeriesKey,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        let filter = SeriesFilter::exact(&key.server_id, &key.metric_type)?;
        self.ask(|state| {
            let mut accumulator = Accumulator::default();
            for piece in self.pieces(state, &filter, range, self.options.rows_max())? {
                for (start_ms, end_ms) in piece.times {
                    let (one, numbers) = (Select::One(key), Columns::Numbers);
                    let found = self.collect(state, one, start_ms, end_ms, numbers)?;
                    let values = found.values().flat_map(|samples| &samples.values);
                    values.for_each(|value| accumulator.push(*value));
                }
            }
            Ok(accumulator.finish())
        })
    }

    /// Builds the windows of every series that `filter` chooses.
    pub(crate) fn windows_of(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width_ms: i64,
    ) -> Result<Vec<SeriesWindows>> {
        self.ask(|state| {
            let mut answer = Vec::new();
            for piece in self.pieces(state, filter, range, self.options.rows_max())? {
                let mut builders: BTreeMap<Arc<SeriesKey>, WindowBuilder> = BTreeMap::new();
                let select = Select::Between(filter, &piece.first, &piece.last);
                for (start_ms, end_ms) in &piece.times {
                    let found =
                        self.collect(state, select, *start_ms, *end_ms, Columns::Numbers)?;
                    for (key, samples) in found {
                        let builder =
                            builders.entry(key).or_insert_with(|| WindowBuilder::new(width_ms));
                        let pairs = samples.ms.iter().zip(&samples.values);
                        pairs.for_each(|(ms, value)| builder.push(*ms, *value));
                    }
                }
                answer.extend(builders.into_iter().map(|(series, builder)| SeriesWindows {
                    series: SeriesKey::clone(&series),
                    windows: builder.finish(),
                }));
            }
            Ok(answer)
        })
    }

    /// Reads the newest samples of every series that `filter` chooses, oldest first.
    pub(crate) fn newest_of(
        &self,
        filter: &SeriesFilter,
        n: usize,
    ) -> Result<Vec<(Arc<SeriesKey>, Samples)>> {
        self.ask(|state| {
            let mut newest = self.newest_in_files(state, filter, n)?;
            let Some((first, last)) = bounds_of(counts(state, filter).keys()) else {
                return Ok(Vec::new());
            };
            let select = Select::Between(filter, &first, &last);
            for fresh in &state.fresh {
                self.lay_over(&mut newest, fresh, select, ALWAYS, Columns::All)?;
            }
            let mut answer: Vec<_> = newest
                .into_iter()
                .map(|(key, samples)| {
                    let mut kept = Samples::default();
                    kept.extend(samples.part(samples.len().saturating_sub(n), samples.len()));
                    (key, kept)
                })
                .collect();
            answer.sort_unstable_by(|one, other| one.0.cmp(&other.0));
            Ok(answer)
        })
    }

    /// Goes through the files from the newest to the oldest, until each series has enough.
    fn newest_in_files(&self, state: &State, filter: &SeriesFilter, n: usize) -> Result<Found> {
        let mut found = Found::default();
        // Per series: how many samples are left in older files, and none later than when.
        let mut wanted: BTreeMap<Arc<SeriesKey>, (u64, i64)> = matching(state, filter)
            .map(|(key, total)| (Arc::clone(key), (total.count, total.newest_ms)))
            .collect();
        for entry in state.files.iter().rev() {
            let newest = wanted.values().map(|(_, newest_ms)| *newest_ms).max();
            let Some(newest) = newest else { break };
            if entry.min_ms > newest {
                continue;
            }
            let (file, source) = self.open_file(&entry.path)?;
            let mut rows = Vec::new();
            for index in &file.index {
                let Some((left, _)) = wanted.get(&index.key) else { continue };
                let have = found.get(&index.key).map_or(0, Samples::len) as u64;
                let take = (n as u64).saturating_sub(have).min(*left).min(index.count());
                rows.push((index, index.end - take..index.end));
            }
            if rows.is_empty() {
                continue;
            }
            self.files_read.fetch_add(1, Ordering::Relaxed);
            read_into(&file, &source, &rows, ALWAYS, Columns::All, |key, slice| {
                let mut older = Samples::default();
                older.extend(slice);
                if let Some(newer) = found.get(key) {
                    older.extend(newer.as_slice());
                }
                found.insert(Arc::clone(key), older);
            })?;
            for (index, _) in rows {
                let Some((left, newest_ms)) = wanted.get_mut(&index.key) else { continue };
                *left = left.saturating_sub(index.count());
                *newest_ms = entry.start_ms - 1;
                let is_enough = found.get(&index.key).is_some_and(|found| found.len() >= n);
                if *left == 0 || is_enough {
                    wanted.remove(&index.key);
                }
            }
        }
        Ok(found)
    }

    /// Counts the samples of every series that `filter` chooses, exactly.
    pub(crate) fn series_of(
        &self,
        state: &State,
        filter: &SeriesFilter,
    ) -> Result<BTreeMap<Arc<SeriesKey>, crate::manifest::Total>> {
        let mut totals: BTreeMap<_, _> =
            matching(state, filter).map(|(key, total)| (Arc::clone(key), *total)).collect();
        let Some((first, last)) = bounds_of(counts(state, filter).keys()) else {
            return Ok(totals);
        };
        let select = Select::Between(filter, &first, &last);
        let mut fresh = Found::default();
        for piece in &state.fresh {
            self.lay_over(&mut fresh, piece, select, ALWAYS, Columns::Numbers)?;
        }
        let twice = self.written_twice(state, &fresh)?;
        for (key, samples) in fresh {
            let (Some(oldest), Some(newest)) = (samples.ms.first(), samples.ms.last()) else {
                continue;
            };
            let added = samples.len() as u64 - twice.get(&key).copied().unwrap_or(0);
            let total = totals.entry(key).or_insert(crate::manifest::Total {
                count: 0,
                oldest_ms: *oldest,
                newest_ms: *newest,
            });
            total.count += added;
            total.oldest_ms = total.oldest_ms.min(*oldest);
            total.newest_ms = total.newest_ms.max(*newest);
        }
        Ok(totals)
    }

    /// Counts the fresh samples that replace one in a merged file, for the series that have any.
    fn written_twice(
        &self,
        state: &State,
        fresh: &Found,
    ) -> Result<FxHashMap<Arc<SeriesKey>, u64>> {
        let mut late: BTreeSet<Arc<SeriesKey>> = BTreeSet::new();
        let (mut start_ms, mut end_ms) = (i64::MAX, i64::MIN);
        for (key, samples) in fresh {
            let (Some(total), Some(first)) = (state.totals.get(key), samples.ms.first()) else {
                continue;
            };
            if *first <= total.newest_ms {
                late.insert(Arc::clone(key));
                start_ms = start_ms.min(*first);
                end_ms = end_ms.max(samples.ms.last().copied().unwrap_or(*first) + 1);
            }
        }
        let mut twice = FxHashMap::default();
        if late.is_empty() {
            return Ok(twice);
        }
        // File by file: no more than one is held.
        for entry in state.files_between(start_ms, end_ms) {
            let one = Select::Of(&late);
            if !may_hold(entry, one, start_ms, end_ms) {
                continue;
            }
            let (file, source) = self.open_file(&entry.path)?;
            let touched = one.of_index(&file.index).into_iter().filter_map(|index| {
                let slice = fresh.get(&index.key)?.as_slice();
                let slice = slice.between(index.min_ms, index.max_ms + 1);
                let rows = file.narrow(index, *slice.ms.first()?, slice.ms.last()? + 1);
                Some((index, rows))
            });
            for part in in_steps(touched, self.options.step_rows()) {
                read_into(&file, &source, &part, ALWAYS, Columns::Numbers, |key, slice| {
                    let Some(newer) = fresh.get(key) else { return };
                    let both = slice.ms.iter().filter(|ms| newer.ms.binary_search(ms).is_ok());
                    *twice.entry(Arc::clone(key)).or_default() += both.count() as u64;
                })?;
            }
        }
        Ok(twice)
    }

    /// Lists the series.
    pub(crate) fn list_series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        let totals = self.ask(|state| self.series_of(state, filter))?;
        let infos = totals.into_iter().map(|(key, total)| SeriesInfo {
            series: SeriesKey::clone(&key),
            count: total.count,
            oldest: from_ms(total.oldest_ms),
            newest: from_ms(total.newest_ms),
        });
        Ok(infos.collect())
    }

    /// Size and extent of the store.
    pub(crate) fn stats(&self) -> Result<StorageStats> {
        self.ask(|state| {
            let totals = self.series_of(state, &SeriesFilter::any())?;
            let merged: u64 = state.files.iter().map(|file| file.bytes).sum();
            let mut bytes = merged;
            for directory in ["log", "checkpoint"] {
                bytes += self.files().list(directory)?.iter().map(|file| file.bytes).sum::<u64>();
            }
            Ok(StorageStats {
                total_metrics: totals.values().map(|total| total.count).sum(),
                series: totals.len() as u64,
                disk_usage_bytes: bytes,
                oldest_metric: totals.values().map(|total| total.oldest_ms).min().map(from_ms),
                newest_metric: totals.values().map(|total| total.newest_ms).max().map(from_ms),
            })
        })
    }
}

/// The totals of the merged files that `filter` chooses.
fn matching<'s>(
    state: &'s State,
    filter: &SeriesFilter,
) -> impl Iterator<Item = (&'s Arc<SeriesKey>, &'s crate::manifest::Total)> {
    let exact = filter.as_exact().map(|(server, metric)| SeriesKey::new(server, metric));
    let one = exact.as_ref().and_then(|key| state.totals.get_key_value(key));
    let prefix = filter.server_id.literal_prefix();
    let from = SeriesKey::new(prefix, "");
    let prefix = prefix.to_owned();
    let filter = filter.clone();
    let many = exact.is_none().then(move || {
        let all = state.totals.range::<SeriesKey, _>(from..);
        all.take_while(move |(key, _)| key.server_id.starts_with(&prefix))
            .filter(move |(key, _)| filter.matches_key(key))
    });
    one.into_iter().chain(many.into_iter().flatten())
}

/// How many samples each chosen series has in merged files, and how many fresh ones, counted
/// once more where they replace each other.
pub(crate) fn counts(state: &State, filter: &SeriesFilter) -> BTreeMap<Arc<SeriesKey>, (u64, u64)> {
    let mut counts: BTreeMap<_, _> =
        matching(state, filter).map(|(key, total)| (Arc::clone(key), (total.count, 0))).collect();
    let mut add = |key: &Arc<SeriesKey>, count: u64| {
        if filter.matches_key(key) {
            counts.entry(Arc::clone(key)).or_insert((0, 0)).1 += count;
        }
    };
    let exact = filter.as_exact().map(|(server, metric)| SeriesKey::new(server, metric));
    for fresh in &state.fresh {
        match (&fresh.rows, &exact) {
            (FreshRows::Memory(rows), Some(key)) => {
                if let Some(slice) = rows.get(key) {
                    add(&Arc::new(key.clone()), slice.len() as u64);
                }
            }
            (FreshRows::Memory(rows), None) => {
                rows.iter().for_each(|(key, slice)| add(key, slice.len() as u64));
            }
            (FreshRows::File(file), _) => {
                file.index.iter().for_each(|entry| add(&entry.key, entry.count()));
            }
        }
    }
    counts
}

fn bounds_of<'k>(
    keys: impl DoubleEndedIterator<Item = &'k Arc<SeriesKey>>,
) -> Option<(Arc<SeriesKey>, Arc<SeriesKey>)> {
    let mut keys = keys;
    let first = Arc::clone(keys.next()?);
    let last = keys.next_back().map_or_else(|| Arc::clone(&first), Arc::clone);
    Some((first, last))
}

pub(crate) fn may_hold(entry: &FileEntry, select: Select<'_>, start_ms: i64, end_ms: i64) -> bool {
    let in_time = entry.min_ms < end_ms && entry.max_ms >= start_ms;
    let bounds = select.bounds();
    in_time && bounds.is_some_and(|(first, last)| entry.first <= *last && entry.last >= *first)
}

/// The rows of a file that a question needs, by series.
pub(crate) fn rows_of<'f>(
    file: &'f DataFile,
    select: Select<'_>,
    start_ms: i64,
    end_ms: i64,
) -> Vec<(&'f IndexEntry, Range<u64>)> {
    let entries = match select {
        Select::One(key) => file.find(key).into_iter().collect(),
        _ => select.of_index(&file.index),
    };
    let overlapping =
        entries.into_iter().filter(|entry| entry.min_ms < end_ms && entry.max_ms >= start_ms);
    let narrowed = overlapping.map(|entry| (entry, file.narrow(entry, start_ms, end_ms)));
    narrowed.filter(|(_, rows)| !rows.is_empty()).collect()
}

/// Groups rows of a file so that no group has more than `rows_max`; a series may go on in the next.
pub(crate) fn in_steps<'f>(
    rows: impl IntoIterator<Item = (&'f IndexEntry, Range<u64>)>,
    rows_max: u64,
) -> Vec<Vec<(&'f IndexEntry, Range<u64>)>> {
    let (mut steps, mut step, mut room) = (Vec::new(), Vec::new(), rows_max);
    for (entry, Range { mut start, end }) in rows {
        while start < end {
            let taken = start..end.min(start + room);
            room -= taken.end - taken.start;
            start = taken.end;
            step.push((entry, taken));
            if room == 0 {
                steps.push(std::mem::take(&mut step));
                room = rows_max;
            }
        }
    }
    if !step.is_empty() {
        steps.push(step);
    }
    steps
}

/// Reads rows of a file and hands on those between two times, series by series.
pub(crate) fn read_into(
    file: &DataFile,
    source: &crate::files::Source,
    rows: &[(&IndexEntry, Range<u64>)],
    (start_ms, end_ms): (i64, i64),
    columns: Columns,
    mut hand_on: impl FnMut(&Arc<SeriesKey>, Slice<'_>),
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut ranges: Vec<Range<u64>> = Vec::with_capacity(rows.len());
    for (_, range) in rows {
        match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range.clone()),
        }
    }
    let samples = file.read(source, &ranges, columns)?;
    let mut place = 0;
    for (entry, range) in rows {
        let end = place + (range.end - range.start) as usize;
        let slice = samples.part(place, end);
        if !slice.ms.is_sorted_by(|one, other| one < other) {
            return Err(crate::error::corrupt(&file.path, "the rows of a series are not in order"));
        }
        let slice = slice.between(start_ms, end_ms);
        if !slice.is_empty() {
            hand_on(&entry.key, slice);
        }
        place = end;
    }
    Ok(())
}
