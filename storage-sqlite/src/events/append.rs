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

/// Decides about each batch, and inserts those that are accepted.
pub(crate) async fn insert(connection: &mut SqliteConnection, appends: &[Append]) -> Result<()> {
    let stored = find_ids(connection, appends).await?;
    let (mut ids, versions) = find_streams(connection, &streams_of(appends)).await?;
    let last = last_sequence(connection).await?;
    let mut desk = Desk::new(last.cast_unsigned(), versions, stored);
    let (mut accepted, mut known) = (Vec::new(), Vec::new());
    for append in appends {
        match desk.decide(append) {
            Decision::Accepted(places) => accepted.extend(append.rows.iter().zip(places)),
            Decision::Refused => {}
            Decision::Known => known.push(append),
        }
    }
    if !accepted.is_empty() {
        write_streams(connection, &desk, &mut ids, &accepted).await?;
        let chunks = chunks_of(&accepted);
        write_chunks(connection, &chunks).await?;
        index_streams(connection, &chunks, &ids).await?;
        index_ids(connection, &accepted).await?;
    }
    for append in known {
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

/// The ids of these batches that are stored already.
async fn find_ids(
    connection: &mut SqliteConnection,
    appends: &[Append],
) -> Result<HashSet<String>> {
    let ids: Vec<&str> = appends.iter().flat_map(Append::ids).collect();
    let Some(smallest) = ids.iter().min() else { return Ok(HashSet::new()) };
    // Ids that grow with time are larger than all that are there: one look instead of one for each.
    if !is_reached(connection, smallest).await? {
        return Ok(HashSet::new());
    }
    let rows = sqlx::query(
        "SELECT i.event_id FROM json_each(?) AS chosen
         CROSS JOIN event_ids AS i ON i.event_id = chosen.value",
    )
    .bind(json_list(&ids)?)
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    rows.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<_>>().map_err(from_sqlx)
}

/// Whether an id is stored that is not smaller.
async fn is_reached(connection: &mut SqliteConnection, id: &str) -> Result<bool> {
    let reached = "SELECT EXISTS (SELECT * FROM event_ids WHERE event_id >= ?)";
    let row = sqlx::query(reached).bind(id).fetch_one(connection).await;
    row.and_then(|row| row.try_get(0)).map_err(from_sqlx)
}

/// The ids and the versions of streams, by name.
pub(super) async fn find_streams<'a>(
    connection: &mut SqliteConnection,
    names: &[&'a str],
) -> Result<(HashMap<&'a str, i64>, HashMap<&'a str, u64>)> {
    let rows = sqlx::query(
        "SELECT chosen.key, s.id, s.version FROM json_each(?) AS chosen
         CROSS JOIN event_streams AS s ON s.name = chosen.value",
    )
    .bind(json_list(names)?)
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    let (mut ids, mut versions) = (HashMap::new(), HashMap::new());
    for row in rows {
        let number = |index| row.try_get::<i64, _>(index).map_err(from_sqlx);
        let name = usize::try_from(number(0)?).ok().and_then(|place| names.get(place));
        let name = *name.ok_or_else(|| internal("a stream that was not asked for"))?;
        ids.insert(name, number(1)?);
        versions.insert(name, number(2)?.cast_unsigned());
    }
    Ok((ids, versions))
}

pub(super) async fn last_sequence(connection: &mut SqliteConnection) -> Result<i64> {
    let last = "SELECT coalesce((
        SELECT first + count - 1 FROM event_chunks ORDER BY first DESC LIMIT 1), 0)";
    crate::schema::number(connection, last).await
}

/// Stores the new versions of the streams that got events, and learns the ids of new ones.
async fn write_streams<'a>(
    connection: &mut SqliteConnection,
    desk: &Desk<'a>,
    ids: &mut HashMap<&'a str, i64>,
    accepted: &[Accepted<'a>],
) -> Result<()> {
    let mut changed: Vec<&'a str> = accepted.iter().map(|(row, _)| &*row.stream).collect();
    changed.sort_unstable();
    changed.dedup();
    let pairs: Vec<(&str, u64)> = changed.iter().map(|name| (*name, desk.version(name))).collect();
    let rows = sqlx::query(
        "INSERT INTO event_streams (name, version)
         SELECT value ->> 0, value ->> 1 FROM json_each(?) WHERE true
         ON CONFLICT (name) DO UPDATE SET version = excluded.version RETURNING id, name",
    )
    .bind(json_list(&pairs)?)
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    for row in rows {
        let name: &str = row.try_get(1).map_err(from_sqlx)?;
        let place = changed.binary_search(&name);
        let name = place.map_err(|_| internal("a stream that was not written"))?;
        ids.insert(changed[name], row.try_get(0).map_err(from_sqlx)?);
    }
    Ok(())
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

/// Says which chunks hold events of a stream.
pub(super) async fn index_streams(
    connection: &mut SqliteConnection,
    chunks: &[NewChunk<'_>],
    ids: &HashMap<&str, i64>,
) -> Result<()> {
    let mut entries = Vec::new();
    for chunk in chunks {
        for (stream, version) in &chunk.streams {
            let id = ids.get(&**stream);
            let id = id.ok_or_else(|| internal("a stream that was added is not there"))?;
            entries.push((*id, chunk.first, *version));
        }
    }
    sqlx::query(
        "INSERT INTO event_stream_chunks (stream_id, first, version)
         SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?)",
    )
    .bind(json_list(&entries)?)
    .execute(connection)
    .await
    .map(drop)
    .map_err(from_sqlx)
}

/// Says which numbers the events have that have ids; all follow each other.
async fn index_ids(connection: &mut SqliteConnection, accepted: &[Accepted<'_>]) -> Result<()> {
    let ids: Vec<Option<&str>> = accepted.iter().map(|(row, _)| row.event_id.as_deref()).collect();
    if ids.iter().all(Option::is_none) {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO event_ids (event_id, sequence)
         SELECT value, ?1 + key FROM json_each(?2) WHERE type = 'text'",
    )
    .bind(accepted[0].1.0.cast_signed())
    .bind(json_list(&ids)?)
    .execute(connection)
    .await
    .map(drop)
    .map_err(from_sqlx)
}

fn internal(problem: &'static str) -> Error {
    Error::new(ErrorKind::Internal, problem)
}
