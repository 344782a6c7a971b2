//! Verifies what is stored: every page against its checksum, every file against its index, its
//! entry in the manifest and its neighbours, and the totals against the files. Read-only.

use std::collections::BTreeMap;
use std::sync::Arc;

use storage_core::metrics::stats::CheckReport;
use storage_core::{Error, ErrorKind, Result, SeriesKey};

use crate::error::{corrupt, is_gone};
use crate::file::{Columns, DataFile};
use crate::manifest::{Checkpoint, FileEntry, State, Total};
use crate::store::Store;

/// So that a ruined store does not make a list without end.
const PROBLEMS_MAX: usize = 1000;

impl Store {
    /// Verifies everything and lists what is wrong.
    pub(crate) fn check(&self) -> Result<CheckReport> {
        match self.ask(|state| self.check_state(state)) {
            // What cannot be read at all is a finding, not a failure to look.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let mut report = CheckReport::default();
                note(&mut report, &error);
                Ok(report)
            }
            checked => checked,
        }
    }

    fn check_state(&self, state: &State) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        let mut totals: BTreeMap<Arc<SeriesKey>, Total> = BTreeMap::new();
        let mut before: Option<&FileEntry> = None;
        for entry in state.files.iter() {
            report.pieces += 1;
            if before.is_some_and(|before| is_overlapping(before, entry)) {
                note(&mut report, &corrupt(&entry.path, "it overlaps the file before it"));
            }
            before = Some(entry);
            match self.check_file(entry, &mut totals) {
                Ok(()) => report.samples += entry.rows,
                Err(error) if is_gone(&error) => return Err(error),
                Err(error) if error.kind() == ErrorKind::Corrupt => note(&mut report, &error),
                Err(error) => return Err(error),
            }
        }
        // A file that could not be read has been named.
        if report.problems.is_empty() && !totals.iter().eq(state.totals.iter()) {
            let error =
                Error::new(ErrorKind::Corrupt, "the totals of series differ from the files");
            note(&mut report, &error);
        }
        self.check_fresh(state, &mut report)?;
        self.check_checkpoints(&mut report)?;
        Ok(report)
    }

    fn check_file(
        &self,
        entry: &FileEntry,
        totals: &mut BTreeMap<Arc<SeriesKey>, Total>,
    ) -> Result<()> {
        let path = &entry.path;
        let source = self.files().open(path)?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "not there").with_context("file", path)
        })?;
        // Not from memory: what is on disk counts.
        let file = DataFile::open(&source, &self.log.names)?;
        let times = file.extent() == Some((entry.min_ms, entry.max_ms));
        let inside = entry.start_ms <= entry.min_ms && entry.max_ms < entry.end_ms;
        let names = file.index.first().map(|first| &*first.key) == Some(&entry.first)
            && file.index.last().map(|last| &*last.key) == Some(&entry.last);
        if file.rows() != entry.rows || source.bytes != entry.bytes || !times || !inside || !names {
            return Err(corrupt(path, "the manifest describes another file"));
        }
        check_rows(&file, &source, self.options.step_rows())?;
        for index in &file.index {
            let total = totals.entry(Arc::clone(&index.key)).or_insert(Total {
                count: 0,
                oldest_ms: index.min_ms,
                newest_ms: index.max_ms,
            });
            total.count += index.count();
            total.oldest_ms = total.oldest_ms.min(index.min_ms);
            total.newest_ms = total.newest_ms.max(index.max_ms);
        }
        Ok(())
    }

    fn check_fresh(&self, state: &State, report: &mut CheckReport) -> Result<()> {
        for entry in &state.fresh_entries {
            report.pieces += 1;
            let path = crate::schema::log_path(entry.version);
            let Some(source) = self.files().open(&path)? else {
                return Err(Error::new(ErrorKind::NotFound, "not there").with_context("file", path));
            };
            let checked = DataFile::open(&source, &self.log.names).and_then(|file| {
                check_rows(&file, &source, self.options.step_rows())?;
                Ok(file.rows())
            });
            match checked {
                Ok(rows) => report.samples += rows,
                Err(error) if error.kind() == ErrorKind::Corrupt => note(report, &error),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn check_checkpoints(&self, report: &mut CheckReport) -> Result<()> {
        for listed in self.files().list("checkpoint")? {
            let is_one = crate::schema::version_of(&listed.path).is_some();
            let Some(source) = self.files().open(&listed.path)?.filter(|_| is_one) else {
                continue;
            };
            report.pieces += 1;
            match Checkpoint::parse(&source.read_all()?, &listed.path) {
                Err(error) if error.kind() == ErrorKind::Corrupt => note(report, &error),
                checked => drop(checked?),
            }
        }
        Ok(())
    }
}

/// Verifies every page and row of a file against its index, and the bounds of its pages.
fn check_rows(file: &DataFile, source: &crate::files::Source, step_rows: u64) -> Result<()> {
    let pages = file.pages_inside(&(0..file.rows()));
    for from in (0..file.rows()).step_by(step_rows as usize) {
        let to = (from + step_rows).min(file.rows());
        let samples = file.read(source, std::slice::from_ref(&(from..to)), Columns::All)?;
        for (page, min_ms, max_ms) in &pages {
            let place = |row: u64| (row.clamp(from, to) - from) as usize;
            let times = &samples.ms[place(page.start)..place(page.end)];
            if times.iter().any(|ms| ms < min_ms || ms > max_ms) {
                return Err(corrupt(&file.path, "the bounds of a page are not those of its rows"));
            }
        }
        let names = file.read_names(source, from..to)?;
        let first = file.index.partition_point(|entry| entry.end <= from);
        for entry in file.index[first..].iter().take_while(|entry| entry.start < to) {
            let (start, end) = (entry.start.max(from), entry.end.min(to));
            let slice = samples.part((start - from) as usize, (end - from) as usize);
            let ordered = slice.ms.is_sorted_by(|one, other| one < other);
            let bounds = (start != entry.start || slice.ms.first() == Some(&entry.min_ms))
                && (end != entry.end || slice.ms.last() == Some(&entry.max_ms));
            let same = names[(start - from) as usize..(end - from) as usize]
                .iter()
                .all(|(s, m)| **s == *entry.key.server_id && **m == *entry.key.metric_type);
            if !ordered || !bounds || !same {
                return Err(corrupt(&file.path, "the rows differ from the index"));
            }
        }
    }
    Ok(())
}

fn is_overlapping(before: &FileEntry, entry: &FileEntry) -> bool {
    entry.start_ms < before.end_ms
        && (entry.start_ms != before.start_ms
            || entry.end_ms != before.end_ms
            || entry.first <= before.last)
}

fn note(report: &mut CheckReport, error: &Error) {
    if report.problems.len() < PROBLEMS_MAX {
        let file = error.context("file").unwrap_or("the manifest");
        report.problems.push(format!("{file}: {}", error.message()));
    }
}
