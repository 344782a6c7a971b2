//! Events into rows: several callers in one transaction, by one COPY.
//!
//! Which callers are served is decided in the core. The row of `event_state` is locked first: the
//! next transaction that appends, wherever it comes from, takes its numbers only when this one is
//! visible, so nobody ever sees an event below which another one still appears.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use storage_core::events::group::{self, Decision, Desk, Place, Slot, streams_of};
use storage_core::{Error, ErrorKind, Expectation, NewEvent, Result};
use tokio_postgres::{Row, Statement};

use super::read;
use crate::commit::{finish, gone, send};
use crate::connect::Connection;
use crate::convert::to_json;
use crate::copy::{EventEntry, encode_events};
use crate::error::from_pg;
use crate::store::{Parameter, Store};

const LAST: &str = "SELECT last FROM event_state FOR UPDATE";

const FIND_STREAMS: &str = "SELECT name, id, version FROM event_streams WHERE name = ANY($1)";

const FIND_IDS: &str =
    "SELECT event_id FROM events WHERE event_id IS NOT NULL AND event_id = ANY($1)";

const WRITE_STREAMS: &str = "
    INSERT INTO event_streams (name, version) SELECT * FROM unnest($1::text[], $2::bigint[])
    ON CONFLICT (name) DO UPDATE SET version = excluded.version RETURNING name, id";

const COPY: &str = "COPY events (sequence, stream_id, version, event_id, event_type, stored_at, \
     payload) FROM STDIN (FORMAT binary)";

const END: &str = "UPDATE event_state SET last = $1";

/// A batch on its way into the table.
pub(crate) type Append = group::Append<Bytes>;

type EventRow = group::EventRow<Bytes>;

/// Takes a batch that is valid, and says where its verdict will be.
pub(super) fn prepare(events: &[NewEvent], expected: &[Expectation]) -> Result<(Append, Slot)> {
    Append::new(events, expected, |event| {
        let json: Bytes = to_json(&event.payload)?.into_vec().into();
        let bytes = json.len();
        Ok((json, bytes))
    })
}

/// What an append needs, prepared.
#[derive(Debug, Clone)]
pub(crate) struct Statements {
    last: Statement,
    find_streams: Statement,
    find_ids: Statement,
    write_streams: Statement,
    copy: Statement,
    end: Statement,
    by_ids: Statement,
}

impl Statements {
    pub(crate) async fn prepare(connection: &Connection) -> Result<Self> {
        let prepare = async |sql| connection.prepare(sql).await.map_err(from_pg);
        Ok(Self {
            last: prepare(LAST).await?,
            find_streams: prepare(FIND_STREAMS).await?,
            find_ids: prepare(FIND_IDS).await?,
            write_streams: prepare(WRITE_STREAMS).await?,
            copy: prepare(COPY).await?,
            end: prepare(END).await?,
            by_ids: prepare(read::BY_IDS).await?,
        })
    }
}

/// Decides about each batch, and stores those that are accepted, in one transaction.
pub(crate) async fn insert(
    store: &Store,
    connection: &Connection,
    statements: &Statements,
    appends: &[Append],
) -> Result<()> {
    let server = &store.server;
    let begun = server.in_time(begin(connection, statements)).await?;
    let (mut desk, mut ids) = server.in_time(look(connection, statements, appends, begun)).await?;
    let (mut accepted, mut known) = (Vec::new(), Vec::new());
    for append in appends {
        match desk.decide(append) {
            Decision::Accepted(places) => accepted.extend(append.rows.iter().zip(places)),
            Decision::Refused => {}
            Decision::Known => known.push(append),
        }
    }
    if !accepted.is_empty() {
        let written = write_streams(connection, statements, &desk, &accepted);
        ids.extend(server.in_time(written).await?);
        let entries = entries(&accepted, &ids)?;
        let sink = async { connection.copy_in(&statements.copy).await.map_err(from_pg) };
        let sink = server.in_time(sink).await?;
        server.in_time(send(sink, encode_events(&entries))).await?;
    }
    for append in known {
        let ids: Vec<&str> = append.ids().collect();
        let stored = async {
            let rows = connection.query(&statements.by_ids, &[&ids]).await.map_err(from_pg)?;
            rows.iter().map(read::event_of).collect::<Result<Vec<_>>>()
        };
        append.found(server.in_time(stored).await?);
    }
    let last = desk.last().cast_signed();
    finish(store, connection, connection.execute(&statements.end, &[&last])).await
}

/// Begins a transaction beside which nobody appends; gives the last sequence number.
async fn begin(connection: &Connection, statements: &Statements) -> Result<i64> {
    let (begun, row) = tokio::join!(
        connection.batch_execute("BEGIN"),
        connection.query_opt(&statements.last, &[])
    );
    begun.map_err(from_pg)?;
    row.map_err(from_pg)?.ok_or_else(gone)?.try_get(0).map_err(from_pg)
}

/// Looks up what is stored of the streams and ids of these batches.
async fn look<'a>(
    connection: &Connection,
    statements: &Statements,
    appends: &'a [Append],
    last: i64,
) -> Result<(Desk<'a>, HashMap<String, i64>)> {
    let names = streams_of(appends);
    let new_ids: Vec<&str> = appends.iter().flat_map(Append::ids).collect();
    let of_names: [Parameter<'_>; 1] = [&names];
    let of_ids: [Parameter<'_>; 1] = [&new_ids];
    let (streams, stored) = tokio::join!(
        connection.query(&statements.find_streams, &of_names),
        connection.query(&statements.find_ids, &of_ids)
    );
    let (mut ids, mut versions) = (HashMap::new(), HashMap::new());
    for row in streams.map_err(from_pg)? {
        let (name, id, version): (String, i64, i64) = of_stream(&row).map_err(from_pg)?;
        if let Ok(place) = names.binary_search(&&*name) {
            versions.insert(names[place], version.cast_unsigned());
        }
        ids.insert(name, id);
    }
    let stored = stored.map_err(from_pg)?;
    let stored: HashSet<String> =
        stored.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(from_pg)?;
    Ok((Desk::new(last.cast_unsigned(), versions, stored), ids))
}

fn of_stream(row: &Row) -> Result<(String, i64, i64), tokio_postgres::Error> {
    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
}

/// A row that is accepted, with its place.
type Accepted<'a> = (&'a EventRow, Place);

/// Stores the new versions of the streams that got events; gives their ids.
async fn write_streams(
    connection: &Connection,
    statements: &Statements,
    desk: &Desk<'_>,
    accepted: &[Accepted<'_>],
) -> Result<Vec<(String, i64)>> {
    let mut names: Vec<&str> = accepted.iter().map(|(row, _)| &*row.stream).collect();
    names.sort_unstable();
    names.dedup();
    let versions: Vec<i64> = names.iter().map(|name| desk.version(name).cast_signed()).collect();
    let rows = connection.query(&statements.write_streams, &[&names, &versions]).await;
    let pair = |row: &Row| Ok((row.try_get(0)?, row.try_get(1)?));
    rows.map_err(from_pg)?.iter().map(pair).collect::<Result<_, _>>().map_err(from_pg)
}

fn entries(accepted: &[Accepted<'_>], ids: &HashMap<String, i64>) -> Result<Vec<EventEntry>> {
    let missing = || Error::new(ErrorKind::Internal, "a stream that was added is not there");
    let entry = |(row, (sequence, version)): &Accepted<'_>| {
        Ok(EventEntry {
            sequence: sequence.cast_signed(),
            stream_id: *ids.get(&*row.stream).ok_or_else(missing)?,
            version: version.cast_signed(),
            event_id: row.event_id.clone(),
            event_type: Arc::clone(&row.event_type),
            ms: row.ms,
            json: row.json.clone(),
        })
    };
    accepted.iter().map(entry).collect()
}
