//! Makes files that take the place of others: merges, and prunes that rewrite what straddles.
//!
//! A job starts from one state. All rows that wait are laid over the files of their days; a day
//! with few rows, or an old one, becomes one file, others one file for each hour. Nothing is
//! visible until the log says so, in one entry; what fails or is overtaken before leaves files
//! that nobody knows, which are removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustc_hash::FxHashMap;
use storage_core::{Error, ErrorKind, Result, SeriesKey};

use crate::encode::{Encoded, Encoder};
use crate::file::DataFile;
use crate::files::{Source, directory_of};
use crate::index::IndexEntry;
use crate::log::Rewriting;
use crate::manifest::{
    Change, Entry, FileEntry, FreshRows, SeriesTotal, State, Total, series_total,
};
use crate::read::read_into;
use crate::rows::{Rows, count_by_day, merge};
use crate::schema::{DAY_MS, HOUR_MS, data_path};
use crate::store::Store;

/// The size from which on a day or hour goes on in another file: files are made in memory.
const FILE_BYTES_MAX: usize = 64 << 20;

/// Rows that are read at once of a batch too large to be held.
const STEP_ROWS: u64 = 1_000_000;

/// What a job is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goal {
    /// Samples before this time are removed.
    pub(crate) cutoff_ms: Option<i64>,
    /// The clock.
    pub(crate) now_ms: i64,
}

/// A rewrite in the making.
pub(crate) struct Job<'s> {
    store: &'s Store,
    base: Arc<State>,
    goal: Goal,
    added: Vec<FileEntry>,
    /// Files of the base that are replaced or dropped.
    pub(crate) replaced: BTreeSet<String>,
    /// Samples that a prune removes.
    pub(crate) removed_rows: u64,
    changes: FxHashMap<Arc<SeriesKey>, Delta>,
}

/// How the total of a series changes.
#[derive(Debug, Clone, Copy)]
struct Delta {
    count: i64,
    oldest_ms: i64,
    newest_ms: i64,
}

impl Default for Delta {
    fn default() -> Self {
        Self { count: 0, oldest_ms: i64::MAX, newest_ms: i64::MIN }
    }
}

/// A file that is read to be replaced, with its rows of the part at hand.
struct Old {
    file: Arc<DataFile>,
    source: Source,
}

impl<'s> Job<'s> {
    pub(crate) fn new(store: &'s Store, base: Arc<State>, goal: Goal) -> Self {
        Self {
            store,
            base,
            goal,
            added: Vec::new(),
            replaced: BTreeSet::new(),
            removed_rows: 0,
            changes: FxHashMap::default(),
        }
    }

    /// Writes the new files; returns whether there is anything to publish.
    pub(crate) fn make(&mut self) -> Result<bool> {
        let base = Arc::clone(&self.base);
        let cutoff_ms = self.goal.cutoff_ms.unwrap_or(i64::MIN);
        let is_touched = base.fresh.iter().any(|fresh| fresh.min_ms < cutoff_ms)
            || base.files.iter().any(|file| file.min_ms < cutoff_ms);
        if self.goal.cutoff_ms.is_some() && !is_touched {
            return Ok(false);
        }
        let fresh = self.fresh_by_day()?;
        let days = self.days(&fresh);
        if days.is_empty() && base.fresh.is_empty() {
            return Ok(false);
        }
        let rows_max = self.store.options.rows_max();
        let days: Vec<(i64, u64)> =
            days.into_iter().map(|day| (day, fresh.get(&day).copied().unwrap_or(0))).collect();
        let mut rest = days.as_slice();
        while let Some((first, count)) = rest.first() {
            // As many days at once as fit into memory, one at least.
            let mut sum = *count;
            let more = rest[1..].iter().take_while(|(_, count)| {
                sum += count;
                sum <= rows_max
            });
            let (some, others) = rest.split_at(1 + more.count());
            rest = others;
            if *count > rows_max {
                self.make_large_day(*first)?;
                continue;
            }
            let end_ms = some.last().map_or(*first, |(last, _)| *last) + DAY_MS;
            let rows = self.gather(*first, end_ms)?;
            for (day, _) in some {
                self.make_day(*day, &rows.between(*day, day + DAY_MS))?;
            }
        }
        Ok(!self.replaced.is_empty() || !base.fresh.is_empty())
    }

    /// Counts the rows that wait by day.
    fn fresh_by_day(&self) -> Result<BTreeMap<i64, u64>> {
        let mut days = BTreeMap::new();
        for fresh in &self.base.fresh {
            match &fresh.rows {
                FreshRows::Memory(rows) => count_by_day(&mut days, rows.times(), DAY_MS),
                FreshRows::File(file) => {
                    let source = self.store.open_file(&file.path)?.1;
                    for (from, to) in steps(file.rows()) {
                        let samples = file.read(&source, std::slice::from_ref(&(from..to)))?;
                        count_by_day(&mut days, &samples.ms, DAY_MS);
                    }
                }
            }
        }
        Ok(days)
    }

    /// The days that have something to do; whole files before the cutoff are dropped at once.
    fn days(&mut self, fresh: &BTreeMap<i64, u64>) -> BTreeSet<i64> {
        let mut days: BTreeSet<i64> = fresh.keys().copied().collect();
        let base = Arc::clone(&self.base);
        let cutoff_ms = self.goal.cutoff_ms.unwrap_or(i64::MIN);
        for file in base.files.iter() {
            let day = file.start_ms.div_euclid(DAY_MS) * DAY_MS;
            let is_split = file.end_ms - file.start_ms < DAY_MS;
            if file.min_ms < cutoff_ms || (is_split && self.is_whole_day(day)) {
                days.insert(day);
            }
        }
        days
    }

    /// Whether a day is old enough to be one file.
    fn is_whole_day(&self, day: i64) -> bool {
        // The newest sample alone would be enough, but for a single one of a far future.
        let newest = self.base.files.last().map_or(i64::MIN, |file| file.max_ms);
        let newest = self.base.fresh.iter().map(|fresh| fresh.max_ms).fold(newest, i64::max);
        let day_after = i64::try_from(self.store.options.day_after.as_millis()).unwrap_or(i64::MAX);
        newest.min(self.goal.now_ms) >= (day + DAY_MS).saturating_add(day_after)
    }

    /// Lays the rows that wait between two times over each other.
    fn gather(&self, start_ms: i64, end_ms: i64) -> Result<Rows> {
        let mut parts = Vec::new();
        for fresh in self.base.fresh.iter().filter(|fresh| fresh.overlaps(start_ms, end_ms)) {
            match &fresh.rows {
                FreshRows::Memory(rows) => parts.push(rows.between(start_ms, end_ms)),
                FreshRows::File(file) => {
                    let source = self.store.open_file(&file.path)?.1;
                    parts.push(part_of(file, &source, start_ms, end_ms)?);
                }
            }
        }
        Ok(merge(&parts.iter().filter(|rows| !rows.is_empty()).collect::<Vec<_>>()))
    }

    /// Makes a day whose rows that wait do not fit into memory: hour by hour.
    fn make_large_day(&mut self, day: i64) -> Result<()> {
        let files = self.files_of(day);
        for hour in (day..day + DAY_MS).step_by(HOUR_MS as usize) {
            let rows = self.gather(hour, hour + HOUR_MS)?;
            self.make_part(hour, hour + HOUR_MS, &files, &rows)?;
        }
        self.replace(&files)
    }

    fn files_of(&self, day: i64) -> Vec<Arc<FileEntry>> {
        self.base.files_between(day, day + DAY_MS).to_vec()
    }

    /// Makes the files of a day out of those it has and of rows that waited.
    fn make_day(&mut self, day: i64, fresh: &Rows) -> Result<()> {
        let files = self.files_of(day);
        let rows = files.iter().map(|file| file.rows).sum::<u64>() + fresh.len() as u64;
        if rows < self.store.options.hour_samples || self.is_whole_day(day) {
            self.make_part(day, day + DAY_MS, &files, fresh)?;
            return self.replace(&files);
        }
        let cutoff_ms = self.goal.cutoff_ms.unwrap_or(i64::MIN);
        let mut replaced = Vec::new();
        let is_split = files.iter().all(|file| file.end_ms - file.start_ms == HOUR_MS);
        for hour in (day..day + DAY_MS).step_by(HOUR_MS as usize) {
            let end_ms = hour + HOUR_MS;
            let fresh = fresh.between(hour, end_ms);
            let inside: Vec<_> = files
                .iter()
                .filter(|file| file.start_ms < end_ms && file.end_ms > hour)
                .cloned()
                .collect();
            let is_cut = inside.iter().any(|file| file.min_ms < cutoff_ms);
            if is_split && fresh.is_empty() && !is_cut {
                continue;
            }
            self.make_part(hour, end_ms, &inside, &fresh)?;
            replaced.extend(inside);
        }
        self.replace(&replaced)
    }

    /// Makes the files of a day or hour.
    fn make_part(
        &mut self,
        start_ms: i64,
        end_ms: i64,
        files: &[Arc<FileEntry>],
        fresh: &Rows,
    ) -> Result<()> {
        self.store.check_open()?;
        let cutoff_ms = self.goal.cutoff_ms.unwrap_or(i64::MIN);
        let overlapping =
            files.iter().filter(|file| file.min_ms < end_ms && file.max_ms >= start_ms);
        let mut old = Vec::new();
        for entry in overlapping {
            let is_inside = start_ms <= entry.start_ms && entry.end_ms <= end_ms;
            if is_inside && entry.max_ms < cutoff_ms && fresh.is_empty() {
                // All of it goes: there is nothing to read.
                self.removed_rows += entry.rows;
                continue;
            }
            let (file, source) = self.store.open_file(&entry.path)?;
            old.push(Old { file, source });
        }
        if old.is_empty() && fresh.is_empty() {
            return Ok(());
        }
        let mut encoder = None;
        for keys in self.portions(&old, fresh) {
            let rows = merge_portion(&old, fresh, &keys, start_ms, end_ms)?;
            let kept =
                if cutoff_ms > start_ms { rows.between(cutoff_ms, end_ms) } else { rows.clone() };
            self.removed_rows += (rows.len() - kept.len()) as u64;
            drop(rows);
            for (key, slice) in kept.iter() {
                if encoder
                    .as_ref()
                    .is_some_and(|encoder: &Encoder| encoder.bytes() > FILE_BYTES_MAX)
                    && let Some(full) = encoder.take()
                {
                    self.complete(full, start_ms, end_ms)?;
                }
                encoder.get_or_insert_with(|| Encoder::new(None)).push(key, slice)?;
            }
        }
        encoder.map_or(Ok(()), |encoder| self.complete(encoder, start_ms, end_ms))
    }

    /// Cuts the series of a part into runs whose rows fit into memory: first and last of each.
    fn portions(&self, old: &[Old], fresh: &Rows) -> Vec<(Arc<SeriesKey>, Arc<SeriesKey>)> {
        let mut counts: BTreeMap<&Arc<SeriesKey>, u64> = BTreeMap::new();
        let indexes = old.iter().flat_map(|old| &old.file.index);
        indexes.for_each(|entry| *counts.entry(&entry.key).or_default() += entry.count());
        fresh.iter().for_each(|(key, slice)| *counts.entry(key).or_default() += slice.len() as u64);
        let rows_max = self.store.options.rows_max() / 2;
        let mut portions: Vec<(Arc<SeriesKey>, Arc<SeriesKey>)> = Vec::new();
        let mut sum = 0;
        for (key, count) in counts {
            sum += count;
            match portions.last_mut() {
                Some((_, last)) if sum <= rows_max => *last = Arc::clone(key),
                _ => {
                    portions.push((Arc::clone(key), Arc::clone(key)));
                    sum = count;
                }
            }
        }
        portions
    }

    /// Writes a file that is complete and notes it.
    fn complete(&mut self, encoder: Encoder, start_ms: i64, end_ms: i64) -> Result<()> {
        let encoded = encoder.finish("{}")?;
        let entry = entry_of(&encoded, data_path(start_ms, end_ms), start_ms, end_ms)?;
        for index in &encoded.index {
            let change = self.changes.entry(Arc::clone(&index.key)).or_default();
            change.count += index.count() as i64;
            change.oldest_ms = change.oldest_ms.min(index.min_ms);
            change.newest_ms = change.newest_ms.max(index.max_ms);
        }
        self.store.files().write(&entry.path, &encoded.bytes)?;
        self.added.push(entry);
        Ok(())
    }

    /// Notes files of the base as replaced.
    fn replace(&mut self, files: &[Arc<FileEntry>]) -> Result<()> {
        for entry in files {
            if !self.replaced.insert(entry.path.clone()) {
                continue;
            }
            let (file, _) = self.store.open_file(&entry.path)?;
            for index in &file.index {
                self.changes.entry(Arc::clone(&index.key)).or_default().count -=
                    index.count() as i64;
            }
        }
        Ok(())
    }

    /// The new totals of the series that change.
    fn totals(&self) -> Result<Vec<SeriesTotal>> {
        let cutoff_ms = self.goal.cutoff_ms.unwrap_or(i64::MIN);
        let mut totals = BTreeMap::new();
        let mut unknown = BTreeSet::new();
        for (key, change) in &self.changes {
            let before = self.base.totals.get(key).copied();
            let count = before.map_or(0, |total| total.count).checked_add_signed(change.count);
            let count = count.ok_or_else(|| {
                Error::new(ErrorKind::Corrupt, "the manifest counts fewer samples than its files")
                    .with_context("series", key)
            })?;
            let (oldest_ms, newest_ms) =
                before.map_or((i64::MAX, i64::MIN), |total| (total.oldest_ms, total.newest_ms));
            if count > 0 && oldest_ms < cutoff_ms {
                unknown.insert(Arc::clone(key));
            }
            let total = Total {
                count,
                oldest_ms: oldest_ms.min(change.oldest_ms),
                newest_ms: newest_ms.max(change.newest_ms),
            };
            if before != Some(total) && (count > 0 || before.is_some()) {
                totals.insert(Arc::clone(key), total);
            }
        }
        for (key, oldest_ms) in self.oldest_of(unknown)? {
            if let Some(total) = totals.get_mut(&key) {
                total.oldest_ms = oldest_ms;
            }
        }
        Ok(totals.iter().map(|(key, total)| series_total(key, *total)).collect())
    }

    /// Finds the earliest sample that series have once the files are replaced.
    fn oldest_of(&self, mut keys: BTreeSet<Arc<SeriesKey>>) -> Result<Vec<(Arc<SeriesKey>, i64)>> {
        let kept = self.base.files.iter().filter(|file| !self.replaced.contains(&file.path));
        let mut files: Vec<&FileEntry> = kept.map(|file| &**file).chain(&self.added).collect();
        files.sort_by_key(|file| file.start_ms);
        let mut found = Vec::new();
        for entry in files {
            if keys.is_empty() {
                break;
            }
            let (file, _) = self.store.open_file(&entry.path)?;
            for index in &file.index {
                if keys.remove(&index.key) {
                    found.push((Arc::clone(&index.key), index.min_ms));
                }
            }
        }
        Ok(found)
    }

    /// Makes the new files count.
    pub(crate) fn publish(&mut self) -> Result<Option<Rewriting>> {
        let directories: BTreeSet<String> =
            self.added.iter().map(|file| directory_of(&file.path).to_owned()).collect();
        self.store.files().sync(&directories)?;
        let change = Change::Rewrite {
            consumed: self.base.version,
            added: self.added.clone(),
            removed: self.replaced.iter().cloned().collect(),
            series: self.totals()?,
        };
        for file in &self.added {
            // Nobody else should remove what is not published; a clock that jumps could.
            if self.store.files().stamp(&file.path)?.is_none() {
                return Ok(Some(Rewriting::Overtaken));
            }
        }
        let entry = Entry::new(change);
        self.store.log.commit_rewrite(&entry, &self.base, self.goal.cutoff_ms).map(Some)
    }

    /// Removes the files that were made and will not be published.
    pub(crate) fn withdraw(&self) {
        for file in &self.added {
            if let Err(error) = self.store.files().remove(&file.path) {
                tracing::warn!(target: "storage", %error, "a file that nobody needs stays");
            }
        }
    }
}

fn entry_of(encoded: &Encoded, path: String, start_ms: i64, end_ms: i64) -> Result<FileEntry> {
    let (Some(first), Some(last)) = (encoded.index.first(), encoded.index.last()) else {
        return Err(Error::new(ErrorKind::Internal, "a file without rows"));
    };
    let times = |of: fn(&IndexEntry) -> i64| encoded.index.iter().map(of);
    Ok(FileEntry {
        path,
        rows: encoded.rows(),
        bytes: encoded.bytes.len() as u64,
        start_ms,
        end_ms,
        min_ms: times(|entry| entry.min_ms).min().unwrap_or(start_ms),
        max_ms: times(|entry| entry.max_ms).max().unwrap_or(start_ms),
        first: SeriesKey::clone(&first.key),
        last: SeriesKey::clone(&last.key),
    })
}

/// Lays fresh rows over those of old files, for the series of one portion.
fn merge_portion(
    old: &[Old],
    fresh: &Rows,
    keys: &(Arc<SeriesKey>, Arc<SeriesKey>),
    start_ms: i64,
    end_ms: i64,
) -> Result<Rows> {
    let is_inside = |key: &Arc<SeriesKey>| (&keys.0..=&keys.1).contains(&key);
    let mut parts = Vec::new();
    for Old { file, source } in old {
        let entries = file.index.iter().filter(|entry| is_inside(&entry.key));
        let rows: Vec<_> =
            entries.map(|entry| (entry, file.narrow(entry, start_ms, end_ms))).collect();
        let mut part = Rows::default();
        read_into(file, source, &rows, start_ms, end_ms, |key, slice| part.push(key, slice))?;
        parts.push(part);
    }
    let mut newest = Rows::default();
    fresh.iter().filter(|(key, _)| is_inside(key)).for_each(|(key, slice)| newest.push(key, slice));
    parts.push(newest);
    Ok(merge(&parts.iter().filter(|rows| !rows.is_empty()).collect::<Vec<_>>()))
}

/// The rows of a large batch between two times, read step by step.
fn part_of(file: &DataFile, source: &Source, start_ms: i64, end_ms: i64) -> Result<Rows> {
    let mut part = Rows::default();
    let mut rows = Vec::new();
    let mut sum = 0;
    for entry in file.index.iter().filter(|e| e.min_ms < end_ms && e.max_ms >= start_ms) {
        let range = file.narrow(entry, start_ms, end_ms);
        for (from, to) in steps(range.end - range.start) {
            sum += to - from;
            rows.push((entry, range.start + from..range.start + to));
            if sum >= STEP_ROWS {
                read_into(file, source, &rows, start_ms, end_ms, |key, slice| {
                    part.push(key, slice)
                })?;
                rows.clear();
                sum = 0;
            }
        }
    }
    read_into(file, source, &rows, start_ms, end_ms, |key, slice| part.push(key, slice))?;
    Ok(part)
}

fn steps(rows: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..rows).step_by(STEP_ROWS as usize).map(move |from| (from, (from + STEP_ROWS).min(rows)))
}
