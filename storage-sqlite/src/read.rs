//! Answers questions: one SQL statement each, which is one snapshot, with the head over it.
//!
//! Read-only: what changes rows lives in `write` and `maintenance`. The order matters: first the
//! view of the head is taken, then the statement runs, see `head`.

use std::fmt::Write as _;
use std::time::Duration;

use futures_util::TryStreamExt;
use rustc_hash::FxHashMap;
use sqlx::Row;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use storage_core::metrics::Accumulator;
use storage_core::metrics::time::from_ms;
use storage_core::{
    Error, ErrorKind, Matcher, MetricAggregation, Result, SeriesFilter, SeriesKey, TimeRange,
};

use crate::codec::frame::{self, Entry};
use crate::codec::{RawSample, corrupt};
use crate::error::from_sqlx;
use crate::gathered::gathered;
use crate::head::HeadView;
use crate::slice::{BlockRow, Slice};
use crate::store::Store;
use crate::tails::Tail;

const SNAPSHOT: &str = include_str!("sql/snapshot.sql");
const IN_RANGE: &str =
    concat!(include_str!("sql/snapshot.sql"), include_str!("sql/blocks_in_range.sql"));
const MERGED: &str =
    concat!(include_str!("sql/snapshot.sql"), include_str!("sql/blocks_merged.sql"));
const NEWEST: &str =
    concat!(include_str!("sql/snapshot.sql"), include_str!("sql/newest_blocks.sql"));
const NEXT: &str = concat!(include_str!("sql/snapshot.sql"), include_str!("sql/next_blocks.sql"));
const TOTALS: &str = concat!(include_str!("sql/snapshot.sql"), include_str!("sql/totals.sql"));

/// How often a question is asked again because the store changed under it, before it gives up.
const ATTEMPTS_MAX: usize = 1000;

/// How long a question waits for the tails to follow a seal of this handle.
const TAILS_LOOK_INTERVAL: Duration = Duration::from_millis(1);
const TAILS_LOOKS_MAX: usize = 50;

/// The row of the table `state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) sealed_id: i64,
    pub(crate) sealing_id: i64,
    pub(crate) sealing_next: i64,
    pub(crate) version: i64,
}

impl State {
    /// The last journal row that is in blocks for a series.
    pub(crate) fn sealed_through(&self, series_id: i64) -> i64 {
        if series_id < self.sealing_next { self.sealing_id } else { self.sealed_id }
    }
}

/// Which payloads a question needs beside the summaries.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Payloads {
    /// All.
    All,
    /// Those of blocks that the range cuts.
    Edges,
    /// Those of blocks that the range cuts, or that lie in several windows of this width.
    Windows(i64),
}

/// What one statement saw, with the view of the head that was taken before it.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) state: State,
    pub(crate) head: HeadView,
    /// The series that were asked for, in the order of their names.
    pub(crate) ids: Vec<i64>,
    blocks: Vec<BlockRow>,
    tails: Vec<(i64, Tail)>,
}

/// Number and extent of the samples of a series.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Totals {
    pub(crate) series_id: i64,
    pub(crate) count: u64,
    pub(crate) oldest_ms: i64,
    pub(crate) newest_ms: i64,
}

/// The block part of a question: what follows the common part of the statement.
enum Blocks {
    /// No blocks, and nothing of the head: the state, and what is new to this handle.
    None,
    /// No blocks, but what is unsealed of the series.
    Unsealed,
    InRange(TimeRange, Payloads),
    /// Those of one series that the range cuts, and all between them as one.
    Merged {
        series_id: i64,
        range: TimeRange,
    },
    Newest {
        before_last: i64,
        n: usize,
    },
    Next {
        series_id: i64,
        range: TimeRange,
        limit: i64,
    },
    Totals,
}

impl Store {
    /// Returns the samples of each chosen series in `range`, ordered by series.
    pub(crate) async fn slices(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        payloads: Payloads,
    ) -> Result<Vec<Slice>> {
        let snapshot = self.ask(filter, Blocks::InRange(range, payloads)).await?;
        let slices = Self::cut(snapshot, range);
        if slices.iter().any(Slice::lacks_payload) {
            let snapshot = self.ask(filter, Blocks::InRange(range, Payloads::All)).await?;
            return Ok(Self::cut(snapshot, range));
        }
        Ok(slices)
    }

    /// Returns what is stored of one series in `range`, with the blocks that lie inside added up to
    /// one, in the database: a year has thousands.
    pub(crate) async fn merged_slice(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Option<Slice>> {
        let filter = SeriesFilter::exact(server_id, metric_type)?;
        let known = self.dictionary().id(server_id, metric_type);
        if let Some(series_id) = known {
            let snapshot = self.ask(&filter, Blocks::Merged { series_id, range }).await?;
            let fits = |block: &BlockRow| block.summary.sum.is_some_and(f64::is_finite);
            let whole = snapshot.blocks.iter().all(|b| b.payload.is_some() || fits(b));
            let slice = Self::cut(snapshot, range).pop();
            if whole && !slice.as_ref().is_some_and(Slice::lacks_payload) {
                return Ok(slice);
            }
        }
        Ok(self.slices(&filter, range, Payloads::Edges).await?.pop())
    }

    /// Returns, of each chosen series, enough of its end to hold the newest `n` samples.
    pub(crate) async fn newest(&self, filter: &SeriesFilter, n: usize) -> Result<Vec<Slice>> {
        let mut before_last = (n / 256) as i64;
        loop {
            let snapshot = self.ask(filter, Blocks::Newest { before_last, n }).await?;
            let slices = Self::cut(snapshot, TimeRange::all());
            // A series whose blocks were cut off before they held n samples may have more.
            let short = slices.iter().any(|slice| {
                let sealed: u64 = slice.blocks.iter().map(|block| block.summary.count).sum();
                slice.blocks.len() as i64 > before_last && sealed < n as u64
            });
            if !short {
                return Ok(slices);
            }
            before_last = before_last * 2 + 1;
        }
    }

    /// Returns the samples of one series from the start of `range` on, as far as `blocks_max`
    /// blocks go, and the end of what they cover.
    pub(crate) async fn next_slice(
        &self,
        key: &SeriesKey,
        range: TimeRange,
        blocks_max: usize,
    ) -> Result<Option<Slice>> {
        let Some(series_id) = self.dictionary().id(&key.server_id, &key.metric_type) else {
            return Ok(None);
        };
        let filter = SeriesFilter::exact(&key.server_id, &key.metric_type)?;
        // One block more than is used: where it starts, the next slice does.
        let limit = blocks_max as i64 + 1;
        let mut snapshot = self.ask(&filter, Blocks::Next { series_id, range, limit }).await?;
        let mut covered = range;
        if snapshot.blocks.len() > blocks_max {
            let next_ms = snapshot.blocks.pop().map_or(range.end_ms(), |block| block.start_ms);
            covered = TimeRange::new(range.start(), from_ms(next_ms))?;
        }
        Ok(Self::cut(snapshot, covered).pop())
    }

    /// Returns the newest sample of each chosen series, ordered by series; `None` if what is in
    /// memory does not tell all of it.
    pub(crate) async fn newest_by_tails(
        &self,
        filter: &SeriesFilter,
    ) -> Result<Option<Vec<(SeriesKey, RawSample)>>> {
        let version = self.catch_up().await?.version;
        if !self.wait_for_tails(version).await {
            self.ask_with_tails(filter).await?;
        }
        // Nothing but memory from here on, so that what one lock shows fits to the others.
        let (dictionary, head, tails) = (self.dictionary(), self.head(), self.tails());
        let Some(state) = tails.state().filter(|state| state.version >= version) else {
            return Ok(None);
        };
        let mut newest = Vec::new();
        for (key, id) in dictionary.chosen(filter) {
            let after_id = state.sealed_through(id);
            if head.trimmed_through(id) > after_id {
                return Ok(None);
            }
            let unsealed = head.unsealed(id).and_then(|unsealed| unsealed.newest(after_id));
            let sample = match (unsealed, tails.get(id)) {
                (None, None) => continue,
                (Some(sample), None) => sample,
                (Some(sample), Some(tail)) if sample.ms >= tail.newest_ms => sample,
                (_, Some(tail)) if tail.has_metadata => return Ok(None),
                (_, Some(tail)) => {
                    RawSample { ms: tail.newest_ms, value: tail.last, metadata: None }
                }
            };
            newest.push((key.clone(), sample));
        }
        Ok(Some(newest))
    }

    /// Returns number and extent of the samples of each chosen series that holds any.
    pub(crate) async fn totals(&self, filter: &SeriesFilter) -> Result<Vec<Totals>> {
        for _ in 0..ATTEMPTS_MAX {
            let snapshot = self.ask_with_tails(filter).await?;
            let counted = self.tails().of(snapshot.state.version).map(|t| count_up(&snapshot, t));
            let Some((totals, unclear)) = counted else { continue };
            if unclear.is_empty() {
                return Ok(totals);
            }
            let (state, head) = (snapshot.state, &snapshot.head);
            if let Some(totals) = self.clear_up(totals, state, head, unclear).await? {
                return Ok(totals);
            }
        }
        Err(Error::new(ErrorKind::Busy, "the store changed faster than it could be counted"))
    }

    /// Waits a moment for the tails of `version`: an own seal carries them along right after it has
    /// committed. Returns whether they are there.
    async fn wait_for_tails(&self, version: i64) -> bool {
        let is_there = || self.tails().state().is_some_and(|state| state.version >= version);
        for _ in 0..TAILS_LOOKS_MAX {
            if is_there() || self.sealing.try_lock().is_ok() {
                break;
            }
            tokio::time::sleep(TAILS_LOOK_INTERVAL).await;
        }
        is_there()
    }

    /// Takes a snapshot without blocks, with the tails in step if nobody changes blocks just now.
    async fn ask_with_tails(&self, filter: &SeriesFilter) -> Result<Snapshot> {
        let snapshot = self.ask(filter, Blocks::Unsealed).await?;
        if self.tails().of(snapshot.state.version).is_some() {
            return Ok(snapshot);
        }
        self.load_tails(filter).await
    }

    /// Takes a snapshot of all tails, whatever the filter is.
    async fn load_tails(&self, filter: &SeriesFilter) -> Result<Snapshot> {
        let mut snapshot = self.ask(filter, Blocks::Totals).await?;
        let tails = std::mem::take(&mut snapshot.tails);
        self.tails_mut().load(snapshot.state, tails);
        Ok(snapshot)
    }

    /// Brings the tails in step, so that they can follow what this handle does to the blocks.
    pub(crate) async fn catch_up_tails(&self) -> Result<State> {
        let state = self.catch_up().await?;
        if self.tails().of(state.version).is_some() {
            return Ok(state);
        }
        let nothing =
            SeriesFilter { server_id: Matcher::any_of::<&str>([])?, ..Default::default() };
        Ok(self.load_tails(&nothing).await?.state)
    }

    /// Subtracts from the totals what is counted twice: unsealed samples that replace sealed ones.
    /// `None` if blocks changed since the totals were taken.
    async fn clear_up(
        &self,
        mut totals: Vec<Totals>,
        state: State,
        head: &HeadView,
        unclear: FxHashMap<i64, TimeRange>,
    ) -> Result<Option<Vec<Totals>>> {
        for counted in &mut totals {
            let Some(range) = unclear.get(&counted.series_id) else { continue };
            let Some(one) = self.exactly(counted.series_id) else { continue };
            let Snapshot { state: now, blocks, .. } =
                self.ask(&one, Blocks::InRange(*range, Payloads::All)).await?;
            if now.version != state.version {
                return Ok(None);
            }
            let unsealed = unsealed_of(head, &state, counted.series_id, *range);
            let slice = Slice { series_id: counted.series_id, range: *range, unsealed, blocks };
            counted.count -= slice.replaced()?;
        }
        Ok(Some(totals))
    }

    /// Brings the head in step with the journal and returns the state.
    pub(crate) async fn catch_up(&self) -> Result<State> {
        Ok(self.ask(&SeriesFilter::any(), Blocks::None).await?.state)
    }

    fn exactly(&self, series_id: i64) -> Option<SeriesFilter> {
        let dictionary = self.dictionary();
        let key = dictionary.key(series_id)?;
        SeriesFilter::exact(&key.server_id, &key.metric_type).ok()
    }

    /// Asks until the snapshot holds no series that the filter chooses and this did not know.
    async fn ask(&self, filter: &SeriesFilter, blocks: Blocks) -> Result<Snapshot> {
        for _ in 0..ATTEMPTS_MAX {
            let (ids, known_id) = {
                let dictionary = self.dictionary();
                let ids = match blocks {
                    Blocks::None => Vec::new(),
                    _ => dictionary.matching(filter),
                };
                (ids, dictionary.last_id())
            };
            self.apply_backlog();
            let head = self.head().view_of(&ids);
            let (snapshot, new_series) = self.ask_once(ids, known_id, head, &blocks).await?;
            let missed = new_series.iter().any(|(_, key)| filter.matches_key(key));
            self.learn(new_series);
            if !missed || matches!(blocks, Blocks::None) {
                return Ok(snapshot);
            }
        }
        Err(Error::new(ErrorKind::Busy, "new series appeared faster than they could be read"))
    }

    async fn ask_once(
        &self,
        ids: Vec<i64>,
        known_id: i64,
        mut head: HeadView,
        blocks: &Blocks,
    ) -> Result<(Snapshot, Vec<(i64, SeriesKey)>)> {
        let query = bind(blocks, head.applied_id, known_id, &ids);
        let mut rows = gathered(query.fetch(&self.readers));
        let (mut state, mut found, mut series) = (None, Vec::new(), Vec::new());
        let (mut journal, mut tails) = (Vec::new(), Vec::new());
        while let Some(row) = rows.try_next().await? {
            match number(&row, 0)? {
                0 => state = Some(state_of(&row)?),
                1 => journal.push(journal_row(&row)?),
                2 => series.push((number(&row, 1)?, key_of(&row)?)),
                _ if matches!(blocks, Blocks::Totals) => tails.push(tail_of(&row)?),
                _ => found.push(block_of(&row)?),
            }
        }
        drop(rows);
        let state = state.ok_or_else(|| corrupt("the table of state is empty"))?;
        journal.sort_unstable_by_key(|(id, _)| *id);
        for (id, entries) in &journal {
            head.extend(*id, entries);
        }
        self.apply(&state, journal);
        found.sort_unstable_by_key(|block: &BlockRow| (block.series_id, block.start_ms));
        Ok((Snapshot { state, head, ids, blocks: found, tails }, series))
    }

    /// Applies to the head what a snapshot showed of the journal.
    fn apply(&self, state: &State, journal: Vec<(i64, Vec<Entry>)>) {
        if journal.is_empty() && state.sealed_id <= self.head().trimmed_id() {
            return;
        }
        let mut head = self.head_mut();
        for (id, entries) in journal {
            head.apply(id, entries);
        }
        head.trim(state.sealed_id);
    }

    pub(crate) fn learn(&self, series: Vec<(i64, SeriesKey)>) {
        if !series.is_empty() {
            let mut dictionary = self.dictionary_mut();
            series.into_iter().for_each(|(id, key)| dictionary.insert(id, key));
        }
    }

    /// Cuts a snapshot into one slice per series, ordered by the names of the series.
    fn cut(snapshot: Snapshot, range: TimeRange) -> Vec<Slice> {
        let Snapshot { state, head, ids, blocks, .. } = snapshot;
        let mut by_series: FxHashMap<i64, Vec<BlockRow>> = FxHashMap::default();
        for block in blocks {
            by_series.entry(block.series_id).or_default().push(block);
        }
        let slices = ids.into_iter().map(|series_id| Slice {
            series_id,
            range,
            unsealed: unsealed_of(&head, &state, series_id, range),
            blocks: by_series.remove(&series_id).unwrap_or_default(),
        });
        slices.filter(|slice| !slice.unsealed.is_empty() || !slice.blocks.is_empty()).collect()
    }
}

fn unsealed_of(head: &HeadView, state: &State, series_id: i64, range: TimeRange) -> Vec<RawSample> {
    let unsealed = head.series.get(&series_id);
    let after_id = state.sealed_through(series_id);
    unsealed.map(|unsealed| unsealed.samples(after_id, i64::MAX, range)).unwrap_or_default()
}

/// Adds up sealed and unsealed samples. The second part names the series, and where, in which
/// unsealed samples may replace sealed ones, so that both were counted.
fn count_up(
    snapshot: &Snapshot,
    tails: &FxHashMap<i64, Tail>,
) -> (Vec<Totals>, FxHashMap<i64, TimeRange>) {
    let (mut totals, mut unclear) = (Vec::new(), FxHashMap::default());
    for &series_id in &snapshot.ids {
        let after_id = snapshot.state.sealed_through(series_id);
        let unsealed = snapshot.head.series.get(&series_id);
        let (count, oldest_ms, newest_ms) = unsealed
            .and_then(|unsealed| unsealed.extent(after_id))
            .unwrap_or((0, i64::MAX, i64::MIN));
        let mut counted = Totals { series_id, count, oldest_ms, newest_ms };
        if let Some(tail) = tails.get(&series_id) {
            if counted.oldest_ms <= tail.newest_ms && counted.newest_ms >= tail.oldest_ms {
                let from = from_ms(counted.oldest_ms);
                let to = from_ms(counted.newest_ms.saturating_add(1));
                unclear.extend(TimeRange::new(from, to).ok().map(|range| (series_id, range)));
            }
            counted.count += tail.count;
            counted.oldest_ms = counted.oldest_ms.min(tail.oldest_ms);
            counted.newest_ms = counted.newest_ms.max(tail.newest_ms);
        }
        if counted.count > 0 {
            totals.push(counted);
        }
    }
    (totals, unclear)
}

fn bind<'q>(
    blocks: &Blocks,
    applied_id: i64,
    known_id: i64,
    ids: &[i64],
) -> sqlx::query::Query<'q, sqlx::Sqlite, SqliteArguments> {
    let common = |sql: &'static str| sqlx::query(sql).bind(applied_id).bind(known_id);
    match *blocks {
        Blocks::None | Blocks::Unsealed => common(SNAPSHOT),
        Blocks::InRange(range, payloads) => common(IN_RANGE)
            .bind(json_of(ids))
            .bind(range.start_ms())
            .bind(range.end_ms())
            .bind(matches!(payloads, Payloads::All))
            .bind(match payloads {
                Payloads::Windows(width_ms) => Some(width_ms),
                Payloads::All | Payloads::Edges => None,
            }),
        Blocks::Merged { series_id, range } => {
            common(MERGED).bind(series_id).bind(range.start_ms()).bind(range.end_ms())
        }
        Blocks::Newest { before_last, n } => {
            common(NEWEST).bind(json_of(ids)).bind(before_last).bind(n == 1)
        }
        Blocks::Next { series_id, range, limit } => {
            common(NEXT).bind(series_id).bind(range.start_ms()).bind(range.end_ms()).bind(limit)
        }
        Blocks::Totals => common(TOTALS),
    }
}

/// Returns a JSON array of ids, the one way to bind a list of any length.
pub(crate) fn json_of(ids: &[i64]) -> String {
    let mut json = String::with_capacity(2 + ids.len() * 8);
    json.push('[');
    for (index, id) in ids.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(json, "{comma}{id}");
    }
    json.push(']');
    json
}

fn state_of(row: &SqliteRow) -> Result<State> {
    Ok(State {
        sealed_id: number(row, 1)?,
        sealing_id: number(row, 2)?,
        sealing_next: number(row, 3)?,
        version: number(row, 4)?,
    })
}

fn journal_row(row: &SqliteRow) -> Result<(i64, Vec<Entry>)> {
    let id = number(row, 1)?;
    let payload: &[u8] = row.try_get_unchecked(11).map_err(from_sqlx)?;
    let entries =
        frame::decode_payload(payload).map_err(|error| error.with_context("journal_id", id))?;
    Ok((id, entries))
}

fn key_of(row: &SqliteRow) -> Result<SeriesKey> {
    let server_id: String = row.try_get_unchecked(2).map_err(from_sqlx)?;
    let metric_type: String = row.try_get_unchecked(3).map_err(from_sqlx)?;
    Ok(SeriesKey { server_id, metric_type })
}

fn block_of(row: &SqliteRow) -> Result<BlockRow> {
    let real = |index: usize| row.try_get_unchecked::<f64, _>(index).map_err(from_sqlx);
    let sum = real(7)?;
    let count = number(row, 4)? as u64;
    Ok(BlockRow {
        series_id: number(row, 1)?,
        start_ms: number(row, 2)?,
        end_ms: number(row, 3)?,
        summary: MetricAggregation {
            count,
            sum: Some(sum),
            min: Some(real(5)?),
            max: Some(real(6)?),
            avg: Some(sum / count as f64),
            first: Some(real(8)?),
            last: Some(real(9)?),
        },
        has_metadata: number(row, 10)? != 0,
        payload: row.try_get_unchecked(11).map_err(from_sqlx)?,
    })
}

fn tail_of(row: &SqliteRow) -> Result<(i64, Tail)> {
    let tail = Tail {
        count: number(row, 4)? as u64,
        oldest_ms: number(row, 2)?,
        newest_ms: number(row, 3)?,
        last: row.try_get_unchecked(9).map_err(from_sqlx)?,
        has_metadata: number(row, 10)? != 0,
    };
    Ok((number(row, 1)?, tail))
}

fn number(row: &SqliteRow, index: usize) -> Result<i64> {
    row.try_get_unchecked(index).map_err(from_sqlx)
}

/// Returns the summary of samples, as it stands beside their block.
pub(crate) fn summary_of(samples: &[RawSample]) -> MetricAggregation {
    let mut accumulator = Accumulator::default();
    samples.iter().for_each(|sample| accumulator.push(sample.value));
    accumulator.finish()
}
