//! Events into chunks, within the transaction of a commit.
//!
//! Several callers may be served by one transaction. Which of them are is decided in the core.

use std::collections::{HashMap, HashSet};

use sqlx::Row;
use sqlx::sqlite::SqliteConnection;
use storage_core::events::group::{self, Decision, Desk, Slot, streams_of};
use storage_core::{Error, ErrorKind, Expectation, NewEvent, Result};

use super::chunk::{Accepted, NewChunk, chunks_of, tail_of};
use super::read;
use crate::codec::corrupt;
use crate::error::from_sqlx;
use crate::insert;
use crate::list::json_list;

/// A batch on its way into the table.
pub(crate) type Append = group::Append<Box<str>>;

/// Takes a batch that is valid, and says where its verdict will be.
pub(super) fn prepare(events: &[NewEvent], expected: &[Expectation]) -> Result<(Append, Slot)> {
    Append::new(events, expected, |event| {
        let tail = tail_of(event)?;
        let bytes = tail.len();
        Ok((tail, bytes))
    })
}

/// What the log has, as one row, because each row changes threads: where it ends, the versions of
/// the streams ?1, and whether it has an id that is not smaller than ?2.
const EXTENT: &str = "
    SELECT coalesce((SELECT first + count - 1 FROM event_chunks ORDER BY first DESC LIMIT 1), 0),
        (SELECT json_group_array(json_array(chosen.key, s.version)) FROM json_each(?1) AS chosen
         CROSS JOIN event_streams AS s ON s.name = chosen.value),
        EXISTS (SELECT * FROM event_ids WHERE event_id >= ?2)";

/// The versions of streams, the chunks that hold their events, and the ids of events that follow each
/// other: three statements at once, for the same reason. The driver counts the places through all of
/// them, if none has a number.
const INDEX: &str = "
    INSERT INTO event_streams (name, version)
    SELECT value ->> 0, value ->> 1 FROM json_each(?) WHERE true
    ON CONFLICT (name) DO UPDATE SET version = excluded.version;

    INSERT INTO event_stream_chunks (stream_id, first, version)
    SELECT s.id, entry.value ->> 1, entry.value ->> 2 FROM json_each(?) AS entry
    CROSS JOIN event_streams AS s ON s.name = entry.value ->> 0;

    INSERT INTO event_ids (event_id, sequence)
    SELECT value, ? + key FROM json_each(?) WHERE type = 'text'";

/// Decides about each batch, and inserts those that are accepted.
pub(crate) async fn insert(connection: &mut SqliteConnection, appends: &[Append]) -> Result<()> {
    let event_ids: Vec<&str> = appends.iter().flat_map(Append::ids).collect();
    let known = known(connection, &streams_of(appends), &event_ids).await?;
    let stored = match known.reaches_ids {
        true => find_ids(connection, &event_ids).await?,
        false => HashSet::new(),
    };
    let mut desk = Desk::new(known.last.cast_unsigned(), known.versions, stored);
    let (mut accepted, mut repeated) = (Vec::new(), Vec::new());
    for append in appends {
        match desk.decide(append) {
            Decision::Accepted(places) => accepted.extend(append.rows.iter().zip(places)),
            Decision::Refused => {}
            Decision::Known => repeated.push(append),
        }
    }
    if !accepted.is_empty() {
        let chunks = chunks_of(&accepted);
        write_chunks(connection, &chunks).await?;
        let (versions, event_ids) = (versions_of(&desk, &accepted), ids_of(&accepted));
        write_index(connection, &chunks, &versions, &event_ids).await?;
    }
    for append in repeated {
        let ids: Vec<&str> = append.ids().collect();
        match read::by_ids(connection, &ids).await {
            Ok(stored) => append.found(stored),
            // A damaged chunk concerns who asks for its events, not those of the same commit.
            Err(error) if error.context("sequence").is_some() => append.failed(error),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What an append has to know of the log.
struct Known<'a> {
    last: i64,
    versions: HashMap<&'a str, u64>,
    /// Ids that grow with time are larger than all that are there: then none has to be looked for.
    reaches_ids: bool,
}

async fn known<'a>(
    connection: &mut SqliteConnection,
    streams: &[&'a str],
    event_ids: &[&str],
) -> Result<Known<'a>> {
    let row = sqlx::query(EXTENT)
        .bind(json_list(streams)?)
        .bind(event_ids.iter().min().copied())
        .fetch_one(connection)
        .await
        .map_err(from_sqlx)?;
    let pairs: &str = row.try_get(1).map_err(from_sqlx)?;
    let pairs: Vec<(usize, i64)> = serde_json::from_str(pairs)
        .map_err(|error| corrupt("the versions of streams cannot be read").with_source(error))?;
    let named = |(place, version): (usize, i64)| {
        let name = streams.get(place).copied();
        Ok((
            name.ok_or_else(|| internal("a stream that was not asked for"))?,
            version.cast_unsigned(),
        ))
    };
    Ok(Known {
        last: row.try_get(0).map_err(from_sqlx)?,
        versions: pairs.into_iter().map(named).collect::<Result<_>>()?,
        reaches_ids: row.try_get(2).map_err(from_sqlx)?,
    })
}

/// The ids of these batches that are stored already.
async fn find_ids(
    connection: &mut SqliteConnection,
    event_ids: &[&str],
) -> Result<HashSet<String>> {
    let rows = sqlx::query(
        "SELECT i.event_id FROM json_each(?) AS chosen
         CROSS JOIN event_ids AS i ON i.event_id = chosen.value",
    )
    .bind(json_list(event_ids)?)
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    rows.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<_>>().map_err(from_sqlx)
}

pub(super) async fn last_sequence(connection: &mut SqliteConnection) -> Result<i64> {
    let last = "SELECT coalesce((
        SELECT first + count - 1 FROM event_chunks ORDER BY first DESC LIMIT 1), 0)";
    crate::schema::number(connection, last).await
}

/// Stores chunks where there are none yet, or one without events.
pub(super) async fn write_chunks(
    connection: &mut SqliteConnection,
    chunks: &[NewChunk<'_>],
) -> Result<()> {
    for some in insert::parts(chunks) {
        let places = vec!["(?,?,?)"; some.len()].join(",");
        let sql = format!(
            "INSERT INTO event_chunks (first, count, events) VALUES {places}
             ON CONFLICT (first) DO UPDATE SET count = excluded.count, events = excluded.events
             WHERE event_chunks.count = 0 AND event_chunks.events = '[]'"
        );
        // The places alone vary.
        let mut statement = sqlx::query(sqlx::AssertSqlSafe(sql));
        for chunk in some {
            let (first, count) = (chunk.first.cast_signed(), chunk.count as i64);
            statement = statement.bind(first).bind(count).bind(chunk.text.as_str());
        }
        let inserted = statement.execute(&mut *connection).await.map_err(from_sqlx)?;
        if inserted.rows_affected() != some.len() as u64 {
            return Err(internal("a chunk of events is there already"));
        }
    }
    Ok(())
}

/// The streams that got events, with their new versions.
fn versions_of<'a>(desk: &Desk<'_>, accepted: &[Accepted<'a>]) -> Vec<(&'a str, u64)> {
    let mut changed: Vec<&'a str> = accepted.iter().map(|(row, _)| &*row.stream).collect();
    changed.sort_unstable();
    changed.dedup();
    changed.into_iter().map(|name| (name, desk.version(name))).collect()
}

/// The ids of events in their order; nothing if none has one.
fn ids_of<'a>(accepted: &[Accepted<'a>]) -> Vec<Option<&'a str>> {
    let ids: Vec<_> = accepted.iter().map(|(row, _)| row.event_id.as_deref()).collect();
    if ids.iter().all(Option::is_none) { Vec::new() } else { ids }
}

/// Says which versions streams have, which chunks hold their events, and which ids the events from
/// the first one on have.
pub(super) async fn write_index(
    connection: &mut SqliteConnection,
    chunks: &[NewChunk<'_>],
    versions: &[(&str, u64)],
    event_ids: &[Option<&str>],
) -> Result<()> {
    let Some(first) = chunks.first().map(|chunk| chunk.first.cast_signed()) else { return Ok(()) };
    let entries = entries_of(chunks);
    let written = sqlx::query(INDEX)
        .bind(json_list(versions)?)
        .bind(json_list(&entries)?)
        .bind(first)
        .bind(json_list(event_ids)?)
        .execute(connection)
        .await
        .map_err(from_sqlx)?;
    let rows = versions.len() + entries.len() + event_ids.iter().flatten().count();
    if written.rows_affected() != rows as u64 {
        return Err(internal("a stream of events is not there"));
    }
    Ok(())
}

/// The streams of chunks, with the first number of the chunk and its first version there.
fn entries_of<'a>(chunks: &'a [NewChunk<'_>]) -> Vec<(&'a str, u64, u64)> {
    let of_one = |chunk: &'a NewChunk<'_>| {
        chunk.streams.iter().map(|(stream, version)| (&**stream, chunk.first, *version))
    };
    chunks.iter().flat_map(of_one).collect()
}

fn internal(problem: &'static str) -> Error {
    Error::new(ErrorKind::Internal, problem)
}
