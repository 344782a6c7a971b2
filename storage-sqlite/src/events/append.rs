//! Events into rows, within the transaction of a commit.
//!
//! Several callers may be served by one transaction. Which of them are is decided in the core.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sqlx::Row;
use sqlx::sqlite::SqliteConnection;
use storage_core::events::group::{self, Decision, Desk, Place, Slot, streams_of};
use storage_core::{Error, ErrorKind, Expectation, NewEvent, Result};

use super::names_json;
use super::read;
use crate::error::from_sqlx;
use crate::insert;

/// A batch on its way into the table.
pub(crate) type Append = group::Append<Arc<str>>;

type EventRow = group::EventRow<Arc<str>>;

/// Takes a batch that is valid, and says where its verdict will be.
pub(super) fn prepare(events: &[NewEvent], expected: &[Expectation]) -> Result<(Append, Slot)> {
    Append::new(events, expected, |payload| {
        let json = serde_json::to_string(payload).map_err(|error| {
            Error::invalid("the payload cannot be written as JSON").with_source(error)
        })?;
        let bytes = json.len();
        Ok((json.into(), bytes))
    })
}

/// Decides about each batch, and inserts those that are accepted.
pub(crate) async fn insert(connection: &mut SqliteConnection, appends: &[Append]) -> Result<()> {
    let stored = find_ids(connection, appends).await?;
    let (mut ids, versions) = find_streams(connection, appends).await?;
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
        for rows in insert::parts(&accepted) {
            insert_some(connection, rows, &ids).await?;
        }
    }
    for append in known {
        let ids: Vec<&str> = append.ids().collect();
        append.found(read::by_ids(connection, &ids).await?);
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
        "SELECT e.event_id FROM json_each(?) AS chosen
         CROSS JOIN events AS e INDEXED BY events_by_id ON e.event_id = chosen.value",
    )
    .bind(names_json(&ids))
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    rows.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<_>>().map_err(from_sqlx)
}

/// Whether an id is stored that is not smaller.
async fn is_reached(connection: &mut SqliteConnection, id: &str) -> Result<bool> {
    let reached = "SELECT EXISTS (
        SELECT * FROM events INDEXED BY events_by_id WHERE event_id >= ?)";
    let row = sqlx::query(reached).bind(id).fetch_one(connection).await;
    row.and_then(|row| row.try_get(0)).map_err(from_sqlx)
}

/// The streams that these batches touch or expect something of: their ids and their versions.
async fn find_streams<'a>(
    connection: &mut SqliteConnection,
    appends: &'a [Append],
) -> Result<(HashMap<&'a str, i64>, HashMap<&'a str, u64>)> {
    let names = streams_of(appends);
    let rows = sqlx::query(
        "SELECT chosen.key, s.id, s.version FROM json_each(?) AS chosen
         CROSS JOIN event_streams AS s ON s.name = chosen.value",
    )
    .bind(names_json(&names))
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
    let last = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0)";
    crate::schema::number(connection, last).await
}

/// A row that is accepted, with its place.
type Accepted<'a> = (&'a EventRow, Place);

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
        ids.insert(changed[name], row.try_get(0).map_err(from_sqlx)?);
    }
    Ok(())
}

async fn insert_some(
    connection: &mut SqliteConnection,
    rows: &[Accepted<'_>],
    ids: &HashMap<&str, i64>,
) -> Result<()> {
    let places = vec!["(?,?,?,?,?,?,?)"; rows.len()].join(",");
    let sql = format!(
        "INSERT INTO events
         (sequence, stream_id, version, event_id, event_type, stored_at, payload) VALUES {places}"
    );
    // The places alone vary.
    let mut statement = sqlx::query(sqlx::AssertSqlSafe(sql));
    for (row, (sequence, version)) in rows {
        let stream_id = ids.get(&*row.stream);
        statement = statement
            .bind(sequence.cast_signed())
            .bind(stream_id.ok_or_else(|| internal("a stream that was added is not there"))?)
            .bind(version.cast_signed())
            .bind(row.event_id.clone())
            .bind(Arc::clone(&row.event_type))
            .bind(row.ms)
            .bind(Arc::clone(&row.json));
    }
    statement.execute(connection).await.map(drop).map_err(from_sqlx)
}

fn internal(problem: &'static str) -> Error {
    Error::new(ErrorKind::Internal, problem)
}
