//! Events into rows, within the transaction of a commit.
//!
//! Several callers may be served by one transaction. Whether each of them is, is decided here
//! from what is stored, one after the other; no constraint of a table is ever met.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::Row;
use sqlx::sqlite::SqliteConnection;
use storage_core::metrics::time::floor_ms;
use storage_core::{Error, ErrorKind, Expectation, NewEvent, Result, StoredEvent};

use super::names_json;
use super::read;
use crate::error::from_sqlx;

/// Rows that one statement inserts: each statement costs as much as some rows.
const INSERT_ROWS: usize = 128;

/// Bytes of JSON that cost as much as storing one sample.
const BYTES_PER_WEIGHT: usize = 256;

/// Number and version of an event.
type Place = (u64, u64);

/// What became of a batch, once the transaction is committed.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It was appended, in these places.
    Appended(Vec<Place>),
    /// Nothing was: these events, each in the place of the one that has its id, are stored already.
    Found(Vec<Option<StoredEvent>>),
}

/// Where a verdict is put, and found by the caller.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slot(Arc<Mutex<Option<Result<Verdict>>>>);

impl Slot {
    fn put(&self, verdict: Result<Verdict>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
    }

    pub(super) fn take(&self) -> Result<Verdict> {
        let verdict = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        verdict.unwrap_or_else(|| Err(Error::new(ErrorKind::Internal, "an append was not decided")))
    }
}

/// A batch on its way into the table.
#[derive(Debug)]
pub(crate) struct Append {
    rows: Vec<EventRow>,
    expected: Vec<Expectation>,
    verdict: Slot,
}

#[derive(Debug)]
struct EventRow {
    event_id: Option<Arc<str>>,
    stream: Arc<str>,
    event_type: Arc<str>,
    ms: i64,
    json: Arc<str>,
}

impl Append {
    /// Takes a batch that is valid, and says where its verdict will be.
    pub(super) fn new(events: &[NewEvent], expected: &[Expectation]) -> Result<(Self, Slot)> {
        let (mut stream, mut event_type) = (Arc::from(""), Arc::from(""));
        let row = |event: &NewEvent| {
            let json = serde_json::to_string(&event.payload).map_err(|error| {
                Error::invalid("the payload cannot be written as JSON").with_source(error)
            })?;
            Ok(EventRow {
                event_id: event.event_id.as_deref().map(Arc::from),
                stream: shared(&mut stream, &event.stream),
                event_type: shared(&mut event_type, &event.event_type),
                ms: floor_ms(event.stored_at),
                json: json.into(),
            })
        };
        let rows = events.iter().map(row).collect::<Result<_>>()?;
        let verdict = Slot::default();
        Ok((Self { rows, expected: expected.to_vec(), verdict: verdict.clone() }, verdict))
    }

    pub(crate) fn bytes(&self) -> u64 {
        // A row of the table is not much longer than its payload; the indexes count as much again.
        self.rows.iter().map(|row| row.json.len() as u64 + 64).sum()
    }

    /// What it costs, in samples.
    pub(crate) fn weight(&self) -> usize {
        self.rows.iter().map(|row| 1 + row.json.len() / BYTES_PER_WEIGHT).sum()
    }

    fn ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.rows.iter().filter_map(|row| row.event_id.as_ref())
    }
}

/// Names mostly come in runs: then they share their bytes.
fn shared(last: &mut Arc<str>, name: &str) -> Arc<str> {
    if **last != *name {
        *last = name.into();
    }
    Arc::clone(last)
}

/// The streams of a commit, as they are stored and as they will be.
#[derive(Debug, Default)]
struct Streams<'a> {
    versions: HashMap<&'a str, i64>,
    ids: HashMap<&'a str, i64>,
}

impl Streams<'_> {
    fn version(&self, stream: &str) -> u64 {
        self.versions.get(stream).copied().unwrap_or(0).cast_unsigned()
    }
}

/// Decides about each batch, and inserts those that are accepted.
pub(crate) async fn insert(connection: &mut SqliteConnection, appends: &[Append]) -> Result<()> {
    let known = find_ids(connection, appends).await?;
    let mut streams = find_streams(connection, appends).await?;
    let mut last = last_sequence(connection).await?;
    let (mut accepted, mut fresh, mut again) = (Vec::new(), HashSet::new(), Vec::new());
    for append in appends {
        if append.ids().any(|id| known.contains(&**id) || fresh.contains(&**id)) {
            again.push(append);
            continue;
        }
        let holds = |expected: &Expectation| expected.check(streams.version(&expected.stream));
        if let Err(refused) = append.expected.iter().try_for_each(holds) {
            append.verdict.put(Err(refused));
            continue;
        }
        fresh.extend(append.ids().map(|id| &**id));
        let mut places = Vec::with_capacity(append.rows.len());
        for row in &append.rows {
            let version = streams.versions.entry(&row.stream).or_default();
            *version += 1;
            last += 1;
            places.push((last.cast_unsigned(), version.cast_unsigned()));
            accepted.push((row, last, *version));
        }
        append.verdict.put(Ok(Verdict::Appended(places)));
    }
    if !accepted.is_empty() {
        write_streams(connection, &mut streams, &accepted).await?;
        for rows in accepted.chunks(INSERT_ROWS) {
            insert_some(connection, rows, &streams).await?;
        }
    }
    for append in again {
        append.verdict.put(Ok(Verdict::Found(find_stored(connection, append).await?)));
    }
    Ok(())
}

/// The ids of these batches that are stored already.
async fn find_ids(
    connection: &mut SqliteConnection,
    appends: &[Append],
) -> Result<HashSet<String>> {
    let ids: Vec<&str> = appends.iter().flat_map(Append::ids).map(|id| &**id).collect();
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    let rows = sqlx::query(
        "SELECT e.event_id FROM json_each(?) AS chosen
         CROSS JOIN events AS e INDEXED BY events_by_id ON e.event_id = chosen.value",
    )
    .bind(names_json(&ids))
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    rows.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<_>>().map_err(from_sqlx)
}

/// The streams that these batches touch or expect something of.
async fn find_streams<'a>(
    connection: &mut SqliteConnection,
    appends: &'a [Append],
) -> Result<Streams<'a>> {
    let mut names: Vec<&str> = Vec::new();
    for append in appends {
        for row in &append.rows {
            if names.last() != Some(&&*row.stream) {
                names.push(&row.stream);
            }
        }
        names.extend(append.expected.iter().map(|expected| &*expected.stream));
    }
    names.sort_unstable();
    names.dedup();
    let rows = sqlx::query(
        "SELECT chosen.key, s.id, s.version FROM json_each(?) AS chosen
         CROSS JOIN event_streams AS s ON s.name = chosen.value",
    )
    .bind(names_json(&names))
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    let mut streams = Streams::default();
    for row in rows {
        let number = |index| row.try_get::<i64, _>(index).map_err(from_sqlx);
        let name = usize::try_from(number(0)?).ok().and_then(|place| names.get(place));
        let name = *name.ok_or_else(|| internal("a stream that was not asked for"))?;
        streams.ids.insert(name, number(1)?);
        streams.versions.insert(name, number(2)?);
    }
    Ok(streams)
}

pub(super) async fn last_sequence(connection: &mut SqliteConnection) -> Result<i64> {
    let last = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0)";
    crate::schema::number(connection, last).await
}

/// A row that is accepted, with its number and its version.
type Accepted<'a> = (&'a EventRow, i64, i64);

/// Stores the new versions of the streams that got events, and learns the ids of new ones.
async fn write_streams<'a>(
    connection: &mut SqliteConnection,
    streams: &mut Streams<'a>,
    accepted: &[Accepted<'a>],
) -> Result<()> {
    let mut changed: Vec<&'a str> = accepted.iter().map(|(row, ..)| &*row.stream).collect();
    changed.sort_unstable();
    changed.dedup();
    let pairs: Vec<(&str, i64)> =
        changed.iter().map(|name| (*name, streams.versions[name])).collect();
    let json = serde_json::to_string(&pairs)
        .map_err(|error| internal("cannot list streams").with_source(error))?;
    let rows = sqlx::query(
        "INSERT INTO event_streams (name, version)
         SELECT value ->> 0, value ->> 1 FROM json_each(?) WHERE true
         ON CONFLICT (name) DO UPDATE SET version = excluded.version RETURNING id, name",
    )
    .bind(json)
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    for row in rows {
        let name: &str = row.try_get(1).map_err(from_sqlx)?;
        let place = changed.binary_search(&name);
        let name = place.map_err(|_| internal("a stream that was not written"))?;
        streams.ids.insert(changed[name], row.try_get(0).map_err(from_sqlx)?);
    }
    Ok(())
}

async fn insert_some(
    connection: &mut SqliteConnection,
    rows: &[Accepted<'_>],
    streams: &Streams<'_>,
) -> Result<()> {
    let places = vec!["(?,?,?,?,?,?,?)"; rows.len()].join(",");
    let sql = format!(
        "INSERT INTO events
         (sequence, stream_id, version, event_id, event_type, stored_at, payload) VALUES {places}"
    );
    // The places alone vary. Kept prepared are the two sizes that come again and again.
    let is_usual = rows.len() == INSERT_ROWS || rows.len() == 1;
    let mut statement = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(is_usual);
    for (row, sequence, version) in rows {
        let stream_id = streams.ids.get(&*row.stream);
        statement = statement
            .bind(sequence)
            .bind(stream_id.ok_or_else(|| internal("a stream that was added is not there"))?)
            .bind(version)
            .bind(row.event_id.clone())
            .bind(Arc::clone(&row.event_type))
            .bind(row.ms)
            .bind(Arc::clone(&row.json));
    }
    statement.execute(connection).await.map(drop).map_err(from_sqlx)
}

/// The stored events that have the ids of a batch.
async fn find_stored(
    connection: &mut SqliteConnection,
    append: &Append,
) -> Result<Vec<Option<StoredEvent>>> {
    let ids: Vec<&str> = append.ids().map(|id| &**id).collect();
    let stored = read::by_ids(connection, &ids).await?;
    let by_id: HashMap<_, _> =
        stored.into_iter().filter_map(|event| Some((event.event_id.clone()?, event))).collect();
    let find = |row: &EventRow| by_id.get(&**row.event_id.as_ref()?).cloned();
    Ok(append.rows.iter().map(find).collect())
}

fn internal(problem: &'static str) -> Error {
    Error::new(ErrorKind::Internal, problem)
}
