//! Removes events that every projection has seen, in steps that writers need not wait long for.

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use storage_core::events::rows::check_prune;
use storage_core::{Error, ErrorKind, Result};
use tokio::sync::oneshot;

use super::append::{find_streams, index_streams, write_chunks};
use super::chunk;
use super::names_json;
use super::project::checkpoints;
use super::read::extent;
use crate::error::{from_sqlx, of_commit};
use crate::maintenance::partly;
use crate::schema::{begin, finish};
use crate::store::Store;

/// Events that one step removes: some ten milliseconds of work.
const STEP_EVENTS: u64 = 4096;

/// What removing an event writes to the log, roughly: a part of a page of the index of ids.
const EVENT_BYTES: u64 = 128;

/// Removes what is before ?1 from an index, of these names ?2.
const FORGET: [&str; 2] = [
    "DELETE FROM event_ids
     WHERE event_id IN (SELECT value FROM json_each(?2)) AND sequence < ?1",
    "DELETE FROM event_stream_chunks WHERE first < ?1 AND stream_id IN (
         SELECT s.id FROM json_each(?2) AS chosen
         CROSS JOIN event_streams AS s ON s.name = chosen.value)",
];

/// The same whatever its name, by looking through all of it.
const FORGET_ALL: [&str; 2] = [
    "DELETE FROM event_ids WHERE sequence < ?1",
    "DELETE FROM event_stream_chunks WHERE first < ?1",
];

impl Store {
    /// Removes every event before `sequence`, the oldest first, and returns how many. Stops when
    /// `caller` is closed.
    pub(super) async fn prune_events(
        &self,
        sequence: u64,
        caller: oneshot::Sender<()>,
    ) -> Result<u64> {
        let mut removed = 0;
        loop {
            let step = self.prune_some(sequence, &caller).await;
            let count = step.map_err(|error| partly(error, removed))?;
            removed += count;
            if count < STEP_EVENTS {
                return Ok(removed);
            }
        }
    }

    async fn prune_some(&self, sequence: u64, caller: &oneshot::Sender<()>) -> Result<u64> {
        let mut writer = self.writer().await?;
        let connection = writer.connection()?;
        if caller.is_closed() {
            return Err(Error::new(ErrorKind::Closed, "the caller gave up"));
        }
        let mut transaction = begin(connection).await?;
        let removed = delete_some(&mut transaction, sequence).await;
        let removed = finish(transaction, removed).await.map_err(of_commit);
        let removed = removed.inspect_err(|error| self.note_write_error(error))?;
        self.checkpoint_if_due(connection, removed * EVENT_BYTES).await;
        Ok(removed)
    }
}

async fn delete_some(connection: &mut SqliteConnection, sequence: u64) -> Result<u64> {
    let log = extent(connection).await?;
    let projections = checkpoints(connection).await?;
    let seen = projections.iter().map(|of| (of.projection.as_str(), of.checkpoint));
    check_prune(seen, sequence, log)?;
    let before = sequence.min(log.last + 1).min(log.first.saturating_add(STEP_EVENTS));
    if before <= log.first {
        return Ok(0);
    }
    let chunks = sqlx::query(
        "SELECT first, events, first + count FROM event_chunks WHERE first < ? ORDER BY first",
    )
    .bind(before.cast_signed())
    .fetch_all(&mut *connection)
    .await
    .map_err(from_sqlx)?;
    forget_index(connection, &chunks, before).await?;
    sqlx::query("DELETE FROM event_chunks WHERE first < ?")
        .bind(before.cast_signed())
        .execute(&mut *connection)
        .await
        .map_err(from_sqlx)?;
    match chunks.last() {
        Some(last) if number_of(last, 2)? > before => keep_rest(connection, last, before).await?,
        _ if before > log.last => remember_end(connection, before).await?,
        _ => {}
    }
    Ok(before - log.first)
}

/// Removes the entries of events before a number from the indexes of ids and of streams.
async fn forget_index(
    connection: &mut SqliteConnection,
    chunks: &[SqliteRow],
    before: u64,
) -> Result<()> {
    let named: Result<Vec<_>> = chunks.iter().map(names_of).collect();
    let statements: Vec<_> = match named {
        Ok(named) => {
            let (ids, streams): (Vec<_>, Vec<_>) = named.into_iter().unzip();
            let names = [names_json(&ids.concat()), names_json(&streams.concat())];
            FORGET.into_iter().zip(names).map(|(sql, names)| (sql, Some(names))).collect()
        }
        // Of a damaged chunk nobody knows what was in it.
        Err(_) => FORGET_ALL.map(|sql| (sql, None)).to_vec(),
    };
    for (sql, names) in statements {
        let mut forget = sqlx::query(sql).bind(before.cast_signed());
        if let Some(names) = names {
            forget = forget.bind(names);
        }
        forget.execute(&mut *connection).await.map_err(from_sqlx)?;
    }
    Ok(())
}

/// The ids and the streams of a chunk.
fn names_of(row: &SqliteRow) -> Result<(Vec<String>, Vec<String>)> {
    let parts = chunk::parts(number_of(row, 0)?, row.try_get(1).map_err(from_sqlx)?)?;
    let (mut ids, mut streams) = (Vec::new(), Vec::new());
    for part in parts {
        if streams.last().is_none_or(|stream| *stream != part.1) {
            streams.push(part.1.into_owned());
        }
        ids.extend(part.2);
    }
    streams.sort_unstable();
    streams.dedup();
    Ok((ids, streams))
}

/// Stores what a chunk holds from a number on.
async fn keep_rest(connection: &mut SqliteConnection, row: &SqliteRow, from: u64) -> Result<()> {
    let first = number_of(row, 0)?;
    let kept = chunk::rest(first, from, row.try_get(1).map_err(from_sqlx)?)?;
    let chunks = std::slice::from_ref(&kept);
    let names: Vec<&str> = kept.streams.iter().map(|(stream, _)| &**stream).collect();
    let (ids, _) = find_streams(connection, &names).await?;
    write_chunks(connection, chunks).await?;
    index_streams(connection, chunks, &ids).await
}

/// Says where a log goes on that holds no event any more.
async fn remember_end(connection: &mut SqliteConnection, next: u64) -> Result<()> {
    sqlx::query("INSERT INTO event_chunks (first, count, events) VALUES (?, 0, '[]')")
        .bind(next.cast_signed())
        .execute(connection)
        .await
        .map(drop)
        .map_err(from_sqlx)
}

fn number_of(row: &SqliteRow, index: usize) -> Result<u64> {
    row.try_get::<i64, _>(index).map(i64::cast_unsigned).map_err(from_sqlx)
}
