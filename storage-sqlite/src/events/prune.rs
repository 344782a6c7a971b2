//! Removes events that every projection has seen, in steps that writers need not wait long for.

use futures_util::TryStreamExt;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use storage_core::events::rows::check_prune;
use storage_core::{Error, ErrorKind, LogExtent, Result};
use tokio::sync::oneshot;

use super::append::{write_chunks, write_index};
use super::chunk::{self, Part};
use super::project::checkpoints;
use super::read::{extent, parts_of};
use crate::error::{from_sqlx, of_commit};
use crate::list::json_list;
use crate::maintenance::partly;
use crate::schema::{begin, finish};
use crate::store::Store;

/// Events that one step removes, to the end of a chunk: some ten milliseconds of work.
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
    let before = sequence.min(log.last + 1).min(step_end(connection, log).await?);
    if before <= log.first {
        return Ok(0);
    }
    let chunks = look_through(connection, before).await?;
    forget_index(connection, chunks.names, before).await?;
    sqlx::query("DELETE FROM event_chunks WHERE first < ?")
        .bind(before.cast_signed())
        .execute(&mut *connection)
        .await
        .map_err(from_sqlx)?;
    match chunks.cut {
        Some((first, text)) => keep_rest(connection, first, before, &text).await?,
        None if before > log.last => remember_end(connection, before).await?,
        None => {}
    }
    Ok(before - log.first)
}

/// Where a step ends. At a chunk: only the caller's number cuts one, which must not be damaged then.
async fn step_end(connection: &mut SqliteConnection, log: LogExtent) -> Result<u64> {
    let row = sqlx::query("SELECT min(first) FROM event_chunks WHERE first >= ?")
        .bind(log.first.saturating_add(STEP_EVENTS).cast_signed())
        .fetch_one(connection)
        .await;
    let next: Option<i64> = row.and_then(|row| row.try_get(0)).map_err(from_sqlx)?;
    Ok(next.map_or(log.last + 1, i64::cast_unsigned))
}

/// What there is of chunks that begin before a number.
struct Chunks {
    /// Their ids and streams; nothing if a chunk is damaged, of which nobody knows what was in it.
    names: Option<[Vec<String>; 2]>,
    /// First number and text of the one that goes on behind the number.
    cut: Option<(u64, String)>,
}

/// Reads chunks as they come: together they may be large.
async fn look_through(connection: &mut SqliteConnection, before: u64) -> Result<Chunks> {
    let mut rows = sqlx::query(
        "SELECT first, events, count, first + count FROM event_chunks
         WHERE first < ? ORDER BY first",
    )
    .bind(before.cast_signed())
    .fetch(connection);
    let mut found = Chunks { names: Some([Vec::new(), Vec::new()]), cut: None };
    while let Some(row) = rows.try_next().await.map_err(from_sqlx)? {
        let is_cut = number_of(&row, 3)? > before;
        match parts_of(&row) {
            Ok(parts) => {
                if let Some(names) = &mut found.names {
                    add_names(names, parts);
                }
            }
            Err(error) if is_cut => return Err(error),
            Err(_) => found.names = None,
        }
        if is_cut {
            found.cut = Some((number_of(&row, 0)?, row.try_get(1).map_err(from_sqlx)?));
        }
    }
    Ok(found)
}

/// Adds the ids and the streams of events, which mostly come in runs.
fn add_names<'a>(
    [ids, streams]: &mut [Vec<String>; 2],
    parts: impl Iterator<Item = (u64, Part<'a>)>,
) {
    for (_, part) in parts {
        ids.extend(part.2);
        if streams.last().is_none_or(|last| *last != part.1) {
            streams.push(part.1.into_owned());
        }
    }
}

/// Removes the entries of events before a number from the indexes of ids and of streams: by their names,
/// or where those are not known by looking through all of both.
async fn forget_index(
    connection: &mut SqliteConnection,
    names: Option<[Vec<String>; 2]>,
    before: u64,
) -> Result<()> {
    let Some([ids, mut streams]) = names else {
        for sql in FORGET_ALL {
            let forget = sqlx::query(sql).bind(before.cast_signed());
            forget.execute(&mut *connection).await.map_err(from_sqlx)?;
        }
        return Ok(());
    };
    streams.sort_unstable();
    streams.dedup();
    for (sql, names) in FORGET.into_iter().zip([ids, streams]) {
        let forget = sqlx::query(sql).bind(before.cast_signed()).bind(json_list(&names)?);
        forget.execute(&mut *connection).await.map_err(from_sqlx)?;
    }
    Ok(())
}

/// Stores what a chunk holds from a number on.
async fn keep_rest(
    connection: &mut SqliteConnection,
    first: u64,
    from: u64,
    text: &str,
) -> Result<()> {
    let kept = chunk::rest(first, from, text)?;
    let chunks = std::slice::from_ref(&kept);
    write_chunks(connection, chunks).await?;
    write_index(connection, chunks, &[], &[]).await
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
