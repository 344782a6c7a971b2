//! Makes files that take the place of others: merges, and prunes that rewrite what straddles.
//!
//! A job starts from one state. All rows that wait are laid over the files of their days; a day
//! with few rows, or an old one, becomes one file, others one file for each hour. Nothing is
//! visible until the log says so, in one entry; what fails or is overtaken before leaves files
//! that nobody knows, which are removed.
//!
//! What a merge reads takes the place of what it is read from, for good. So a file is replaced only if
//! as many rows were taken out of it as it has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use rustc_hash::FxHashMap;
use storage_core::{Error, ErrorKind, Result, SeriesKey};

use crate::encode::{Encoded, Encoder};
use crate::error::{FILE, corrupt};
use crate::file::{Columns, DataFile};
use crate::files::{Source, directory_of};
use crate::index::IndexEntry;
use crate::log::Rewriting;
use crate::manifest::{
    Change, Entry, FileEntry, FreshRows, SeriesTotal, State, Total, series_total,
};
use crate::plan::{Spread, cut};
use crate::read::{in_steps, read_into};
use crate::rows::{Rows, count_by_day, merge};
use crate::schema::{DAY_MS, HOUR_MS, ValueEncoding, data_path};
use crate::store::Store;

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
    /// Rows taken over or dropped, by the file they are of.
    taken: FxHashMap<String, u64>,
    /// Files that cannot be read and that a prune drops all the same: by their paths.
    lost: BTreeSet<String>,
    /// The day at work.
    day: Option<i64>,
    /// When the job began, by a clock that nobody sets, and by one that goes on while a machine sleeps.
    pub(crate) began: (Instant, SystemTime),
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
    /// Rows that were read.
    taken: u64,
}

/// Rows that wait, as far as a part needs them.
#[derive(Debug, Clone, Copy)]
enum Waiting<'r> {
    Gathered(&'r Rows),
    /// Too many to be held: they are gathered portion by portion.
    Many,
}

impl Waiting<'_> {
    fn is_empty(self) -> bool {
        matches!(self, Self::Gathered(rows) if rows.is_empty())
    }
}

/// What of a part is merged at once: series between two, in a range of time.
#[derive(Debug)]
struct Portion {
    first: Arc<SeriesKey>,
    last: Arc<SeriesKey>,
    start_ms: i64,
    end_ms: i64,
}

impl<'s> Job<'s> {
    /// Starts a job; `lost` are the files that a prune drops without reading them.
    pub(crate) fn new(
        store: &'s Store,
        base: Arc<State>,
        goal: Goal,
        lost: BTreeSet<String>,
    ) -> Self {
        Self {
            store,
            base,
            goal,
            added: Vec::new(),
            replaced: BTreeSet::new(),
            removed_rows: 0,
            changes: FxHashMap::default(),
            taken: FxHashMap::default(),
            lost,
            day: None,
            began: (Instant::now(), SystemTime::now()),
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
            let rows = self.gather(*first, end_ms, |_| true)?;
            for (day, _) in some {
                self.make_day(*day, &rows.between(*day, day + DAY_MS))?;
            }
        }
        for fresh in &base.fresh {
            if let FreshRows::File(file) = &fresh.rows {
                self.check_taken(&file.path, file.rows())?;
            }
        }
        Ok(!self.replaced.is_empty() || !base.fresh.is_empty())
    }

    /// Counts the rows that wait by day.
    fn fresh_by_day(&self) -> Result<BTreeMap<i64, u64>> {
        let step_rows = self.store.options.step_rows();
        let mut days = BTreeMap::new();
        for fresh in &self.base.fresh {
            match &fresh.rows {
                FreshRows::Memory(rows) => count_by_day(&mut days, rows.times(), DAY_MS),
                FreshRows::File(file) => {
                    let source = self.store.open_file(&file.path)?.1;
                    for from in (0..file.rows()).step_by(step_rows as usize) {
                        let rows = from..file.rows().min(from + step_rows);
                        let rows = std::slice::from_ref(&rows);
                        let samples = file.read(&source, rows, Columns::Numbers)?;
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
        if self.store.is_damaged(day) {
            return false;
        }
        // The newest sample alone would be enough, but for a single one of a far future.
        let newest = self.base.files.last().map_or(i64::MIN, |file| file.max_ms);
        let newest = self.base.fresh.iter().map(|fresh| fresh.max_ms).fold(newest, i64::max);
        let day_after = i64::try_from(self.store.options.day_after.as_millis()).unwrap_or(i64::MAX);
        newest.min(self.goal.now_ms) >= (day + DAY_MS).saturating_add(day_after)
    }

    /// Lays the rows of some series that wait between two times over each other.
    fn gather(
        &mut self,
        start_ms: i64,
        end_ms: i64,
        is_wanted: impl Fn(&SeriesKey) -> bool,
    ) -> Result<Rows> {
        let step_rows = self.store.options.step_rows();
        let mut parts = Vec::new();
        for fresh in self.base.fresh.iter().filter(|fresh| fresh.overlaps(start_ms, end_ms)) {
            match &fresh.rows {
                FreshRows::Memory(rows) => {
                    let mut part = Rows::default();
                    rows.iter()
                        .filter(|(key, _)| is_wanted(key))
                        .for_each(|(key, slice)| part.push(key, slice.between(start_ms, end_ms)));
                    parts.push(part);
                }
                FreshRows::File(file) => {
                    let source = self.store.open_file(&file.path)?.1;
                    let entries = file.index.iter().filter(|entry| is_wanted(&entry.key));
                    let times = (start_ms, end_ms);
                    let part = rows_between(file, &source, entries, times, step_rows)?;
                    *self.taken.entry(file.path.to_string()).or_default() += part.len() as u64;
                    parts.push(part);
                }
            }
        }
        Ok(merge(&parts.iter().filter(|rows| !rows.is_empty()).collect::<Vec<_>>()))
    }

    /// Makes a day whose rows that wait do not fit into memory: hour by hour.
    fn make_large_day(&mut self, day: i64) -> Result<()> {
        self.day = Some(day);
        let files = self.files_of(day);
        for hour in (day..day + DAY_MS).step_by(HOUR_MS as usize) {
            self.make_part(hour, hour + HOUR_MS, &files, Waiting::Many)?;
        }
        self.replace(&files)
    }

    fn files_of(&self, day: i64) -> Vec<Arc<FileEntry>> {
        self.base.files_between(day, day + DAY_MS).to_vec()
    }

    /// The day at work, if it need not be touched as a whole: its hours could stay as they are.
    pub(crate) fn optional_day(&self) -> Option<i64> {
        self.day.filter(|day| self.is_whole_day(*day))
    }

    /// The file that an error is about, if this is a prune that needs nothing of it.
    pub(crate) fn dispensable(&self, error: &Error) -> Option<&str> {
        let path = error.context(FILE).filter(|path| !self.lost.contains(*path))?;
        let file = self.base.files.iter().find(|file| file.path == path)?;
        (file.max_ms < self.goal.cutoff_ms?).then_some(&*file.path)
    }

    /// Makes the files of a day out of those it has and of rows that waited.
    fn make_day(&mut self, day: i64, fresh: &Rows) -> Result<()> {
        self.day = Some(day);
        let files = self.files_of(day);
        let rows = files.iter().map(|file| file.rows).sum::<u64>() + fresh.len() as u64;
        if rows < self.store.options.hour_samples || self.is_whole_day(day) {
            self.make_part(day, day + DAY_MS, &files, Waiting::Gathered(fresh))?;
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
            self.make_part(hour, end_ms, &inside, Waiting::Gathered(&fresh))?;
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
        waiting: Waiting<'_>,
    ) -> Result<()> {
        self.store.check_open()?;
        let cutoff_ms = self.goal.cutoff_ms.unwrap_or(i64::MIN);
        let overlapping =
            files.iter().filter(|file| file.min_ms < end_ms && file.max_ms >= start_ms);
        let mut old = Vec::new();
        for entry in overlapping.filter(|file| !self.lost.contains(&file.path)) {
            let is_inside = start_ms <= entry.start_ms && entry.end_ms <= end_ms;
            if is_inside && entry.max_ms < cutoff_ms && waiting.is_empty() {
                // All of it goes: there is nothing to read.
                self.removed_rows += entry.rows;
                self.taken.insert(entry.path.clone(), entry.rows);
                continue;
            }
            let (file, source) = self.store.open_file(&entry.path)?;
            old.push(Old { file, source, taken: 0 });
        }
        if old.is_empty() && waiting.is_empty() {
            return Ok(());
        }
        let is_plain = !self.store.options.byte_stream_split;
        let encoding = is_plain.then_some(ValueEncoding::DictionaryOrPlain);
        let file_bytes_max = self.store.options.file_bytes_max();
        let group_rows = self.store.options.group_rows();
        let mut encoder: Option<Encoder> = None;
        for portion in self.portions(&old, waiting, start_ms, end_ms) {
            let rows = self.merge_portion(&mut old, waiting, &portion)?;
            let before = rows.len();
            let kept = if cutoff_ms > start_ms { rows.between(cutoff_ms, end_ms) } else { rows };
            self.removed_rows += (before - kept.len()) as u64;
            for (key, slice) in kept.iter() {
                // Between series alone: files of one day or hour hold different ones.
                let is_full = |encoder: &Encoder| {
                    encoder.bytes() > file_bytes_max && encoder.last_key() != Some(key)
                };
                if encoder.as_ref().is_some_and(is_full)
                    && let Some(full) = encoder.take()
                {
                    self.complete(full, start_ms, end_ms)?;
                }
                encoder
                    .get_or_insert_with(|| Encoder::new(encoding, group_rows))
                    .push(key, slice)?;
            }
        }
        for Old { file, taken, .. } in old {
            *self.taken.entry(file.path.to_string()).or_default() += taken;
        }
        encoder.map_or(Ok(()), |encoder| self.complete(encoder, start_ms, end_ms))
    }

    /// Cuts a part into portions whose rows fit into memory, in the order of series, then time.
    fn portions(
        &self,
        old: &[Old],
        waiting: Waiting<'_>,
        start_ms: i64,
        end_ms: i64,
    ) -> Vec<Portion> {
        let mut counts: BTreeMap<Arc<SeriesKey>, u64> = BTreeMap::new();
        self.spreads(old, waiting, |key, spread| {
            *counts.entry(Arc::clone(key)).or_default() += spread.between(start_ms, end_ms);
        });
        let rows_max = self.store.options.rows_max() / 2;
        let mut portions: Vec<Portion> = Vec::new();
        let mut sum = u64::MAX;
        for (key, rows) in counts {
            let portion = |(start_ms, end_ms)| {
                let (first, last) = (Arc::clone(&key), Arc::clone(&key));
                Portion { first, last, start_ms, end_ms }
            };
            sum = sum.saturating_add(rows);
            match portions.last_mut() {
                Some(portion) if sum <= rows_max => portion.last = key,
                _ if rows <= rows_max => {
                    portions.push(portion((start_ms, end_ms)));
                    sum = rows;
                }
                _ => {
                    let (mut spreads, mut times) = (Vec::new(), Vec::new());
                    self.spreads(old, waiting, |other, spread| {
                        if *other == key {
                            spreads.push(spread);
                        }
                    });
                    cut(&spreads, start_ms, end_ms, rows_max, &mut times);
                    portions.extend(times.into_iter().map(portion));
                    // Nothing else goes into a portion that was cut by time.
                    sum = u64::MAX;
                }
            }
        }
        portions
    }

    /// Where the rows of each series lie that a part is made of.
    fn spreads(
        &self,
        old: &[Old],
        waiting: Waiting<'_>,
        mut note: impl FnMut(&Arc<SeriesKey>, Spread),
    ) {
        let of_index = |entry: &IndexEntry| Spread::new(entry.min_ms, entry.max_ms, entry.count());
        for entry in old.iter().flat_map(|old| &old.file.index) {
            note(&entry.key, of_index(entry));
        }
        let mut note_rows = |rows: &Rows| {
            for (key, slice) in rows.iter() {
                if let (Some(first), Some(last)) = (slice.ms.first(), slice.ms.last()) {
                    note(key, Spread::new(*first, *last, slice.len() as u64));
                }
            }
        };
        match waiting {
            Waiting::Gathered(rows) => note_rows(rows),
            Waiting::Many => {
                for fresh in &self.base.fresh {
                    if let FreshRows::Memory(rows) = &fresh.rows {
                        note_rows(rows);
                    }
                }
                for fresh in &self.base.fresh {
                    if let FreshRows::File(file) = &fresh.rows {
                        file.index.iter().for_each(|entry| note(&entry.key, of_index(entry)));
                    }
                }
            }
        }
    }

    /// Lays rows that wait over those of old files, for one portion.
    fn merge_portion(
        &mut self,
        old: &mut [Old],
        waiting: Waiting<'_>,
        portion: &Portion,
    ) -> Result<Rows> {
        let Portion { first, last, start_ms, end_ms } = portion;
        let (start_ms, end_ms) = (*start_ms, *end_ms);
        let is_inside = |key: &SeriesKey| (&**first..=&**last).contains(&key);
        let step_rows = self.store.options.step_rows();
        let mut parts = Vec::new();
        for Old { file, source, taken } in old {
            let entries = file.index.iter().filter(|entry| is_inside(&entry.key));
            let part = rows_between(file, source, entries, (start_ms, end_ms), step_rows)?;
            *taken += part.len() as u64;
            parts.push(part);
        }
        parts.push(match waiting {
            Waiting::Gathered(rows) => {
                let mut newest = Rows::default();
                rows.iter()
                    .filter(|(key, _)| is_inside(key))
                    .for_each(|(key, slice)| newest.push(key, slice.between(start_ms, end_ms)));
                newest
            }
            Waiting::Many => self.gather(start_ms, end_ms, is_inside)?,
        });
        Ok(merge(&parts.iter().filter(|rows| !rows.is_empty()).collect::<Vec<_>>()))
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
    ///
    /// # Errors
    /// `Corrupt` if not all rows of one were taken over or dropped.
    fn replace(&mut self, files: &[Arc<FileEntry>]) -> Result<()> {
        for entry in files {
            if !self.replaced.insert(entry.path.clone()) {
                continue;
            }
            if self.lost.contains(&entry.path) {
                self.removed_rows += entry.rows;
                continue;
            }
            self.check_taken(&entry.path, entry.rows)?;
            let (file, _) = self.store.open_file(&entry.path)?;
            for index in &file.index {
                self.changes.entry(Arc::clone(&index.key)).or_default().count -=
                    index.count() as i64;
            }
        }
        Ok(())
    }

    /// Whether as many rows were taken out of a file as it has: where they lie inside is known from
    /// the file alone.
    fn check_taken(&self, path: &str, rows: u64) -> Result<()> {
        let taken = self.taken.get(path).copied().unwrap_or(0);
        if taken == rows {
            return Ok(());
        }
        Err(corrupt(path, "some rows of the file are not to be found")
            .with_context("rows", rows)
            .with_context("found", taken))
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
            let is_cut = count > 0 && oldest_ms < cutoff_ms;
            if is_cut {
                unknown.insert(Arc::clone(key));
            }
            let total = Total {
                count,
                oldest_ms: oldest_ms.min(change.oldest_ms),
                newest_ms: newest_ms.max(change.newest_ms),
            };
            // Where as many samples were merged as removed all may look the same but for the oldest.
            let is_changed = is_cut || before != Some(total);
            if is_changed && (count > 0 || before.is_some()) {
                totals.insert(Arc::clone(key), total);
            }
        }
        for (key, oldest_ms) in self.oldest_of(unknown)? {
            if let Some(total) = totals.get_mut(&key) {
                total.oldest_ms = oldest_ms;
            }
        }
        totals.extend(self.recounted()?);
        Ok(totals.iter().map(|(key, total)| series_total(key, *total)).collect())
    }

    /// Counts the series anew of which a lost file may have had samples, over all files that stay.
    fn recounted(&self) -> Result<BTreeMap<Arc<SeriesKey>, Total>> {
        let mut counted = BTreeMap::new();
        for lost in self.base.files.iter().filter(|file| self.lost.contains(&file.path)) {
            let series = self.base.totals.range::<SeriesKey, _>(&lost.first..=&lost.last);
            let none = Total { count: 0, oldest_ms: i64::MAX, newest_ms: i64::MIN };
            counted.extend(series.map(|(key, _)| (Arc::clone(key), none)));
        }
        if counted.is_empty() {
            return Ok(counted);
        }
        for entry in self.files_after() {
            for index in &self.store.open_file(&entry.path)?.0.index {
                if let Some(total) = counted.get_mut(&index.key) {
                    total.count += index.count();
                    total.oldest_ms = total.oldest_ms.min(index.min_ms);
                    total.newest_ms = total.newest_ms.max(index.max_ms);
                }
            }
        }
        Ok(counted)
    }

    /// The files that there are once the job is published.
    fn files_after(&self) -> impl Iterator<Item = &FileEntry> {
        let kept = self.base.files.iter().filter(|file| !self.replaced.contains(&file.path));
        kept.map(|file| &**file).chain(&self.added)
    }

    /// Finds the earliest sample that series have once the files are replaced.
    fn oldest_of(&self, mut keys: BTreeSet<Arc<SeriesKey>>) -> Result<Vec<(Arc<SeriesKey>, i64)>> {
        let mut files: Vec<&FileEntry> = self.files_after().collect();
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
    ///
    /// # Errors
    /// `Timeout` if the files are so old that others may take them for nobody's; with the outcome
    /// `Unknown` if they may count already, or may still come to.
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
        self.check_age()?;
        let entry = Entry::new(change);
        self.store.log.commit_rewrite(&entry, &self.base, self.goal.cutoff_ms).map(Some)
    }

    /// Whether others are sure to leave the files alone until they count. They wait twice as long from
    /// when they first see one, which leaves as much time again for the commit.
    fn check_age(&self) -> Result<()> {
        let grace = self.store.options.orphans_after;
        let (instant, time) = self.began;
        let age = instant.elapsed().max(time.elapsed().unwrap_or_default());
        if grace.is_zero() || age < grace / 2 {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Timeout, "a merge took longer than half of orphans_after")
            .with_context("seconds", age.as_secs()))
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

/// The rows of some series of a file between two times, read step by step.
fn rows_between<'f>(
    file: &'f DataFile,
    source: &Source,
    entries: impl Iterator<Item = &'f IndexEntry>,
    (start_ms, end_ms): (i64, i64),
    step_rows: u64,
) -> Result<Rows> {
    let overlapping = entries.filter(|entry| entry.min_ms < end_ms && entry.max_ms >= start_ms);
    let rows = overlapping.map(|entry| (entry, file.narrow(entry, start_ms, end_ms)));
    let mut part = Rows::default();
    for step in in_steps(rows, step_rows) {
        let times = (start_ms, end_ms);
        read_into(file, source, &step, times, Columns::All, |key, slice| part.push(key, slice))?;
    }
    Ok(part)
}
