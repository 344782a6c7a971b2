//! Answers questions about the log, each within one snapshot.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::TryStreamExt;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use storage_core::metrics::time::from_ms;
use storage_core::{
    Error, ErrorKind, EventQuery, LogExtent, Matcher, Result, StoredEvent, StreamInfo,
};

use super::append::last_sequence;
use super::names_json;
use crate::error::from_sqlx;
use crate::schema::number;
use crate::store::Store;

/// The most that a page holds that is read row by row, in events and, unless it is a single one, in
/// bytes of payloads.
const PAGE_EVENTS: usize = 4096;
const PAGE_BYTES: usize = 4 << 20;

/// From so many events on they are read in chunks, by tasks of their own.
pub(super) const CHUNKS_FROM: usize = 64;

const ALL: &str = "
    SELECT e.sequence, s.name, e.version, e.event_id, e.event_type, e.stored_at, e.payload
    FROM events AS e CROSS JOIN event_streams AS s ON s.id = e.stream_id
    WHERE e.sequence >= ?1 ORDER BY e.sequence LIMIT ?2";

const OF_STREAM: &str = "
    SELECT e.sequence, s.name, e.version, e.event_id, e.event_type, e.stored_at, e.payload
    FROM event_streams AS s CROSS JOIN events AS e INDEXED BY events_by_stream
        ON e.stream_id = s.id AND e.sequence >= ?1
    WHERE s.name = ?3 ORDER BY e.sequence LIMIT ?2";

const BY_IDS: &str = "
    SELECT e.sequence, s.name, e.version, e.event_id, e.event_type, e.stored_at, e.payload
    FROM json_each(?1) AS chosen
    CROSS JOIN events AS e INDEXED BY events_by_id ON e.event_id = chosen.value
    CROSS JOIN event_streams AS s ON s.id = e.stream_id";

impl Store {
    /// A page of events.
    pub(super) async fn read_events(
        self: &Arc<Self>,
        query: &EventQuery,
    ) -> Result<Vec<StoredEvent>> {
        let Ok(from) = i64::try_from(query.from) else { return Ok(Vec::new()) };
        if query.limit == 0 || !self.finds_events().await? {
            return Ok(Vec::new());
        }
        if query.stream.is_none()
            && query.limit >= CHUNKS_FROM
            && let Some(page) = self.read_chunks(from, query.limit).await?
        {
            return Ok(page);
        }
        let limit = query.limit.min(PAGE_EVENTS);
        let mut connection = self.readers.acquire().await.map_err(from_sqlx)?;
        let sql = if query.stream.is_some() { OF_STREAM } else { ALL };
        let mut statement = sqlx::query(sql).bind(from).bind(limit as i64);
        if let Some(stream) = &query.stream {
            statement = statement.bind(stream);
        }
        let mut rows = statement.fetch(&mut *connection);
        let (mut page, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.try_next().await.map_err(from_sqlx)? {
            let payload: &str = row.try_get(6).map_err(from_sqlx)?;
            bytes += payload.len();
            if bytes > PAGE_BYTES && !page.is_empty() {
                break;
            }
            page.push(event_of(&row, payload)?);
        }
        Ok(page)
    }

    pub(super) async fn extent(&self) -> Result<LogExtent> {
        if !self.finds_events().await? {
            return Ok(LogExtent { first: 1, last: 0 });
        }
        let mut snapshot = self.readers.begin().await.map_err(from_sqlx)?;
        let extent = extent(&mut snapshot).await;
        snapshot.rollback().await.map_err(from_sqlx)?;
        extent
    }

    /// The streams that match, by name.
    pub(super) async fn streams(&self, streams: &Matcher) -> Result<Vec<StreamInfo>> {
        if !self.finds_events().await? {
            return Ok(Vec::new());
        }
        let mut connection = self.readers.acquire().await.map_err(from_sqlx)?;
        let statement = match streams.names() {
            Some(names) => sqlx::query(
                "SELECT s.name, s.version FROM json_each(?) AS chosen
                 CROSS JOIN event_streams AS s ON s.name = chosen.value ORDER BY s.name",
            )
            .bind(names_json(names)),
            None => {
                sqlx::query("SELECT name, version FROM event_streams WHERE name >= ? ORDER BY name")
                    .bind(streams.literal_prefix().to_owned())
            }
        };
        let mut rows = statement.fetch(&mut *connection);
        let mut found = Vec::new();
        while let Some(row) = rows.try_next().await.map_err(from_sqlx)? {
            let name: &str = row.try_get(0).map_err(from_sqlx)?;
            if !name.starts_with(streams.literal_prefix()) && streams.names().is_none() {
                break;
            }
            if streams.matches(name) {
                let version: i64 = row.try_get(1).map_err(from_sqlx)?;
                let version = version.cast_unsigned();
                found.push(StreamInfo { stream: name.to_owned(), version });
            }
        }
        Ok(found)
    }

    /// Whether the file has the tables: one of an older version that is open for reading alone
    /// may not.
    pub(super) async fn finds_events(&self) -> Result<bool> {
        if self.has_events.load(Ordering::Acquire) {
            return Ok(true);
        }
        let mut connection = self.readers.acquire().await.map_err(from_sqlx)?;
        let sql = "SELECT count(*) FROM sqlite_schema WHERE name = 'events'";
        let found = number(&mut connection, sql).await? > 0;
        self.has_events.store(found, Ordering::Release);
        Ok(found)
    }
}

/// Where the log begins and ends, within a transaction.
pub(super) async fn extent(connection: &mut SqliteConnection) -> Result<LogExtent> {
    let last = last_sequence(connection).await?;
    let first = sqlx::query("SELECT coalesce(min(sequence), ?) FROM events")
        .bind(last + 1)
        .fetch_one(connection)
        .await
        .and_then(|row| row.try_get::<i64, _>(0))
        .map_err(from_sqlx)?;
    Ok(LogExtent { first: first.cast_unsigned(), last: last.cast_unsigned() })
}

/// The events that have these ids, in no order.
pub(super) async fn by_ids(
    connection: &mut SqliteConnection,
    ids: &[&str],
) -> Result<Vec<StoredEvent>> {
    let rows = sqlx::query(BY_IDS).bind(names_json(ids)).fetch_all(connection).await;
    let event = |row: &SqliteRow| event_of(row, row.try_get(6).map_err(from_sqlx)?);
    rows.map_err(from_sqlx)?.iter().map(event).collect()
}

fn event_of(row: &SqliteRow, payload: &str) -> Result<StoredEvent> {
    let number = |index| row.try_get::<i64, _>(index).map_err(from_sqlx);
    let text = |index| row.try_get::<String, _>(index).map_err(from_sqlx);
    let sequence = number(0)?.cast_unsigned();
    let payload = serde_json::from_str(payload).map_err(|error| {
        Error::new(ErrorKind::Corrupt, "a stored payload is no JSON")
            .with_context("sequence", sequence)
            .with_source(error)
    })?;
    Ok(StoredEvent {
        sequence,
        stream: text(1)?,
        version: number(2)?.cast_unsigned(),
        event_id: row.try_get(3).map_err(from_sqlx)?,
        event_type: text(4)?,
        stored_at: from_ms(number(5)?),
        payload,
    })
}
