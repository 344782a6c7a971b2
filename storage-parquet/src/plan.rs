//! Cuts a question into pieces that fit into memory, in the order of the series.
//!
//! A small question is one piece, known to be small by the totals in the manifest alone. For a large
//! one the indexes of its files are asked how many rows each series really has.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use storage_core::{Result, SeriesFilter, SeriesKey, TimeRange};

use crate::file::DataFile;
use crate::manifest::{FreshRows, State};
use crate::read::{Select, counts, may_hold, rows_of};
use crate::store::Store;

/// A part of a question: series between two, in a range of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) first: Arc<SeriesKey>,
    pub(crate) last: Arc<SeriesKey>,
    /// Several only where it is a single series.
    pub(crate) times: Vec<(i64, i64)>,
}

/// Rows of a series in one file, spread over a range of time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    start_ms: i64,
    end_ms: i64,
    rows: u64,
}

impl Spread {
    /// Rows from a first to a last time.
    pub(crate) fn new(first_ms: i64, last_ms: i64, rows: u64) -> Self {
        Self { start_ms: first_ms, end_ms: last_ms + 1, rows }
    }

    /// How many of the rows lie between two times, if they are spread evenly.
    pub(crate) fn between(&self, start_ms: i64, end_ms: i64) -> u64 {
        let (from, to) = (self.start_ms.max(start_ms), self.end_ms.min(end_ms));
        if from >= to {
            return 0;
        }
        let share = (to - from) as f64 / (self.end_ms - self.start_ms) as f64;
        (self.rows as f64 * share).ceil() as u64
    }
}

impl Store {
    /// Cuts a question into pieces of at most about `rows_max` rows.
    pub(crate) fn pieces(
        &self,
        state: &State,
        filter: &SeriesFilter,
        range: TimeRange,
        rows_max: u64,
    ) -> Result<Vec<Piece>> {
        let (start_ms, end_ms) = (range.start_ms(), range.end_ms());
        let counts = counts(state, filter);
        let (Some(first), Some(last)) = (counts.keys().next(), counts.keys().next_back()) else {
            return Ok(Vec::new());
        };
        let inside: u64 = state.files_between(start_ms, end_ms).iter().map(|file| file.rows).sum();
        let most = counts.values().fold(0u64, |sum, (merged, fresh)| {
            sum.saturating_add((*merged).min(inside)).saturating_add(*fresh)
        });
        let piece = |first: &Arc<SeriesKey>, last: &Arc<SeriesKey>, times| Piece {
            first: Arc::clone(first),
            last: Arc::clone(last),
            times,
        };
        if most <= rows_max {
            return Ok(vec![piece(first, last, vec![(start_ms, end_ms)])]);
        }
        let select = Select::Between(filter, first, last);
        let merged = self.rows_of_series(state, select, start_ms, end_ms)?;
        let mut pieces: Vec<Piece> = Vec::new();
        let mut sum = u64::MAX;
        for (key, (_, fresh)) in &counts {
            let rows = merged.get(key).copied().unwrap_or(0) + fresh;
            sum = sum.saturating_add(rows);
            match pieces.last_mut() {
                Some(piece) if sum <= rows_max => piece.last = Arc::clone(key),
                _ if rows <= rows_max => {
                    pieces.push(piece(key, key, vec![(start_ms, end_ms)]));
                    sum = rows;
                }
                _ => {
                    let spreads = self.spreads(state, key, start_ms, end_ms)?;
                    let mut times = Vec::new();
                    cut(&spreads, start_ms, end_ms, rows_max.max(1), &mut times);
                    pieces.push(piece(key, key, times));
                    // Nothing else goes into a piece that was cut by time.
                    sum = u64::MAX;
                }
            }
        }
        Ok(pieces)
    }

    /// Counts the rows of series in merged files between two times, to a page at either end.
    fn rows_of_series(
        &self,
        state: &State,
        select: Select<'_>,
        start_ms: i64,
        end_ms: i64,
    ) -> Result<FxHashMap<Arc<SeriesKey>, u64>> {
        let mut found: FxHashMap<Arc<SeriesKey>, u64> = FxHashMap::default();
        for entry in state.files_between(start_ms, end_ms) {
            if may_hold(entry, select, start_ms, end_ms) {
                let (file, _) = self.open_file(&entry.path)?;
                for (index, rows) in rows_of(&file, select, start_ms, end_ms) {
                    *found.entry(Arc::clone(&index.key)).or_default() += rows.end - rows.start;
                }
            }
        }
        Ok(found)
    }

    /// Where the rows of one series lie.
    fn spreads(
        &self,
        state: &State,
        key: &SeriesKey,
        start_ms: i64,
        end_ms: i64,
    ) -> Result<Vec<Spread>> {
        let select = Select::One(key);
        let mut spreads = Vec::new();
        for entry in state.files_between(start_ms, end_ms) {
            if may_hold(entry, select, start_ms, end_ms) {
                spreads.extend(spread_in(&self.open_file(&entry.path)?.0, key));
            }
        }
        for fresh in state.fresh.iter().filter(|fresh| fresh.overlaps(start_ms, end_ms)) {
            match &fresh.rows {
                FreshRows::File(file) => spreads.extend(spread_in(file, key)),
                FreshRows::Memory(rows) => {
                    let slice = rows.get(key);
                    let times = slice.and_then(|slice| Some((slice.ms.first()?, slice.ms.last()?)));
                    let (Some(slice), Some((start_ms, last_ms))) = (slice, times) else { continue };
                    spreads.push(Spread::new(*start_ms, *last_ms, slice.len() as u64));
                }
            }
        }
        Ok(spreads)
    }
}

fn spread_in(file: &DataFile, key: &SeriesKey) -> Option<Spread> {
    let index = file.find(key)?;
    Some(Spread::new(index.min_ms, index.max_ms, index.count()))
}

/// Halves a range of time until each part has at most `rows_max` rows, or is a millisecond.
pub(crate) fn cut(
    spreads: &[Spread],
    start_ms: i64,
    end_ms: i64,
    rows_max: u64,
    times: &mut Vec<(i64, i64)>,
) {
    let inside = spreads.iter().filter(|s| s.start_ms < end_ms && s.end_ms > start_ms);
    let inside: Vec<Spread> = inside.copied().collect();
    let rows: u64 = inside.iter().map(|spread| spread.between(start_ms, end_ms)).sum();
    let first = inside.iter().map(|spread| spread.start_ms).min().unwrap_or(start_ms);
    let last = inside.iter().map(|spread| spread.end_ms).max().unwrap_or(end_ms);
    // Where there is nothing, nothing has to be cut.
    let (first, last) = (first.max(start_ms), last.min(end_ms));
    let middle = first + (last - first) / 2;
    if rows <= rows_max || middle <= start_ms || middle >= end_ms {
        times.push((start_ms, end_ms));
        return;
    }
    cut(&inside, start_ms, middle, rows_max, times);
    cut(&inside, middle, end_ms, rows_max, times);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_follow_each_other_and_are_small(
            files in proptest::collection::vec((-50i64..50, 1i64..40, 1u64..5_000), 1..8),
            rows_max in 1u64..3_000,
        ) {
            let spread = |(start, width, rows)| Spread {
                start_ms: start * 1000, end_ms: (start + width) * 1000, rows,
            };
            let spreads: Vec<_> = files.into_iter().map(spread).collect();
            let mut times = Vec::new();
            cut(&spreads, -60_000, 95_000, rows_max, &mut times);
            prop_assert_eq!((times[0].0, times[times.len() - 1].1), (-60_000, 95_000));
            prop_assert!(times.windows(2).all(|pair| pair[0].1 == pair[1].0));
            for (start, end) in &times {
                let rows: u64 = spreads.iter().map(|spread| spread.between(*start, *end)).sum();
                // A few rows too many where the rounding of several files adds up.
                prop_assert!(rows <= rows_max || end - start <= 1, "{rows} in {start}..{end}");
            }
            let all: u64 = spreads.iter().map(|spread| spread.rows).sum();
            prop_assert!(times.len() as u64 <= 16 * all.div_ceil(rows_max) + 16 * 8, "{}", times.len());
        }
    }
}
