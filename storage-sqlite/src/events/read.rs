//! Answers questions about the log. What is read chunk by chunk is within one snapshot.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::TryStreamExt;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use storage_core::{
    Error, ErrorKind, EventQuery, LogExtent, Matcher, Result, StoredEvent, StreamInfo,
};

use super::append::last_sequence;
use super::chunk::{self, Part};
use crate::error::from_sqlx;
use crate::list::json_list;
use crate::schema::number;
use crate::store::Store;

/// The most that a page holds that is read chunk by chunk, in events and, unless it is a single one, in
/// bytes of payloads.
const PAGE_EVENTS: usize = 4096;
const PAGE_BYTES: usize = 4 << 20;

/// From so many events on they are read by tasks of their own.
pub(super) const READ_AHEAD_FROM: usize = 512;

/// The chunks that hold ?2 events from number ?1 on. The last one is left out if it ends before;
/// no other is, so that a count that is damaged hides nothing.
const ALL: &str = "
    SELECT first, events, count FROM event_chunks
    WHERE first >= coalesce((SELECT max(first) FROM event_chunks WHERE first <= ?1), 0)
        AND first < max(?1, (SELECT min(first) FROM event_chunks)) + ?2
        AND (first + count > ?1 OR first < (SELECT max(first) FROM event_chunks))
    ORDER BY first";

/// The chunks that hold ?2 events of the stream ?3 from number ?1 on: the one that the number is in if it
/// has any, and by the versions so many after it as are needed.
const OF_STREAM: &str = "
    WITH near AS MATERIALIZED (
        SELECT m.first, m.version FROM event_streams AS s
        CROSS JOIN event_stream_chunks AS m ON m.stream_id = s.id
            AND m.first >= coalesce((SELECT max(first) FROM event_chunks WHERE first <= ?1), 0)
        WHERE s.name = ?3 ORDER BY m.first LIMIT ?2 + 1)
    SELECT c.first, c.events, c.count FROM near CROSS JOIN event_chunks AS c ON c.first = near.first
    WHERE near.first <= ?1 OR near.version < ?2 + (SELECT min(version) FROM near WHERE first > ?1)
    ORDER BY near.first";

/// The chunks that hold the events with these ids.
const BY_IDS: &str = "
    SELECT first, events, count FROM event_chunks WHERE first IN (
        SELECT (SELECT max(first) FROM event_chunks WHERE first <= i.sequence)
        FROM json_each(?1) AS chosen CROSS JOIN event_ids AS i ON i.event_id = chosen.value)";

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
            && query.limit >= READ_AHEAD_FROM
            && let Some(page) = self.read_stretches(from, query.limit).await?
        {
            return Ok(page);
        }
        self.read_chunks(from, query).await
    }

    /// A page of events, chunk by chunk.
    async fn read_chunks(&self, from: i64, query: &EventQuery) -> Result<Vec<StoredEvent>> {
        let limit = query.limit.min(PAGE_EVENTS);
        let mut connection = self.readers.acquire().await.map_err(from_sqlx)?;
        let sql = if query.stream.is_some() { OF_STREAM } else { ALL };
        let mut statement = sqlx::query(sql).bind(from).bind(limit as i64);
        if let Some(stream) = &query.stream {
            statement = statement.bind(stream);
        }
        let is_asked = |sequence: u64, part: &Part<'_>| {
            sequence >= query.from && query.stream.as_ref().is_none_or(|stream| part.1 == **stream)
        };
        let mut rows = statement.fetch(&mut *connection);
        let (mut page, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.try_next().await.map_err(from_sqlx)? {
            let parts = match parts_of(&row) {
                // What is before a damaged chunk can be read; the next page begins with it.
                Err(_) if !page.is_empty() => return Ok(page),
                parts => parts?,
            };
            for (sequence, part) in parts.filter(|(sequence, part)| is_asked(*sequence, part)) {
                bytes += part.payload_bytes();
                if page.len() == limit || (bytes > PAGE_BYTES && !page.is_empty()) {
                    return Ok(page);
                }
                match part.into_event(sequence) {
                    Err(_) if !page.is_empty() => return Ok(page),
                    event => page.push(event?),
                }
            }
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
            .bind(json_list(names)?),
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
    ///
    /// # Errors
    /// `VersionMismatch` if it has those of an older version.
    pub(super) async fn finds_events(&self) -> Result<bool> {
        if self.has_events.load(Ordering::Acquire) {
            return Ok(true);
        }
        let mut connection = self.readers.acquire().await.map_err(from_sqlx)?;
        if finds_table(&mut connection, "event_chunks").await? {
            self.has_events.store(true, Ordering::Release);
            return Ok(true);
        }
        match finds_table(&mut connection, "events").await? {
            true => Err(older_tables()),
            false => Ok(false),
        }
    }
}

pub(super) async fn finds_table(connection: &mut SqliteConnection, name: &str) -> Result<bool> {
    let found = "SELECT EXISTS (SELECT * FROM sqlite_schema WHERE name = ?)";
    let row = sqlx::query(found).bind(name).fetch_one(connection).await;
    row.and_then(|row| row.try_get(0)).map_err(from_sqlx)
}

fn older_tables() -> Error {
    let problem = "the file keeps events as an older version did, until it is opened for writing";
    Error::new(ErrorKind::VersionMismatch, problem)
}

/// Where the log begins and ends, within a transaction.
pub(super) async fn extent(connection: &mut SqliteConnection) -> Result<LogExtent> {
    let last = last_sequence(connection).await?;
    let first = number(connection, "SELECT coalesce(min(first), 1) FROM event_chunks").await?;
    Ok(LogExtent { first: first.cast_unsigned(), last: last.cast_unsigned() })
}

/// The events that have these ids, in no order.
pub(super) async fn by_ids(
    connection: &mut SqliteConnection,
    ids: &[&str],
) -> Result<Vec<StoredEvent>> {
    let wanted: HashSet<&str> = ids.iter().copied().collect();
    let mut rows = sqlx::query(BY_IDS).bind(json_list(ids)?).fetch(connection);
    let mut found = Vec::new();
    // A chunk may be large, and a few of its events be asked for.
    while let Some(row) = rows.try_next().await.map_err(from_sqlx)? {
        for (sequence, part) in parts_of(&row)? {
            if part.2.as_deref().is_some_and(|id| wanted.contains(id)) {
                found.push(part.into_event(sequence)?);
            }
        }
    }
    Ok(found)
}

/// The events of a chunk with their numbers, out of a row of its first number, its text and its count.
///
/// # Errors
/// `Corrupt` with the number of the first event that is damaged, or missing.
pub(super) fn parts_of(row: &SqliteRow) -> Result<impl Iterator<Item = (u64, Part<'_>)>> {
    let number = |index| row.try_get::<i64, _>(index).map_err(from_sqlx);
    let (first, count) = (number(0)?, number(2)?);
    let first = u64::try_from(first).map_err(|error| chunk::damaged(0).with_source(error))?;
    let text = row.try_get(1).map_err(|error| chunk::damaged(first).with_source(error))?;
    let parts = chunk::parts(first, text)?;
    let count = u64::try_from(count).unwrap_or(0);
    match parts.len() as u64 == count {
        true => Ok((first..).zip(parts)),
        false => Err(chunk::damaged(first + count.min(parts.len() as u64))),
    }
}
