//! Reads many events at once: a chunk of the log as one row.
//!
//! The driver takes as long for a row as SQLite takes to read ten. So SQLite joins the columns of a
//! chunk into texts, which are cut apart here; while one chunk is cut, the next is read. What
//! does not fit (large payloads, damage) is left to the reading of rows, one by one.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use futures_util::{StreamExt, stream};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use storage_core::metrics::time::from_ms;
use storage_core::{Error, ErrorKind, Result, StoredEvent};

use crate::error::from_sqlx;
use crate::read::json_of;
use crate::store::Store;

/// Events of a chunk, and the most that a page is made of.
const CHUNK_EVENTS: usize = 1024;
const PAGE_CHUNKS: usize = 8;

/// The most bytes of payloads of a chunk.
const CHUNK_BYTES: i64 = 1 << 20;

/// Chunks that are read at once.
const READ_AT_ONCE: usize = 2;

/// Looks at the lengths of payloads, not at what they hold.
const SIZE: &str = "
    SELECT coalesce(sum(octet_length(payload)), 0)
    FROM (SELECT payload FROM events WHERE sequence >= ?1 ORDER BY sequence LIMIT ?2)";

/// No name and no JSON text holds a NUL, so that texts can be cut apart again.
const CHUNK: &str = "
    SELECT count(*), coalesce(min(sequence), 0), coalesce(max(sequence), 0),
           coalesce(group_concat(stream_id, ' '), ''), coalesce(group_concat(version, ' '), ''),
           coalesce(group_concat(stored_at, ' '), ''),
           coalesce(group_concat(coalesce(event_id, ''), char(0)), ''),
           coalesce(group_concat(event_type, char(0)), ''),
           coalesce(group_concat(payload, char(0)), '')
    FROM (SELECT * FROM events WHERE sequence >= ?1 ORDER BY sequence LIMIT ?2)";

impl Store {
    /// A page of the log from `from` on, or nothing if it must be read row by row.
    pub(super) async fn read_chunks(
        &self,
        from: i64,
        limit: usize,
    ) -> Result<Option<Vec<StoredEvent>>> {
        let Some(mut page) = self.read_chunk(from, limit.min(CHUNK_EVENTS)).await? else {
            return Ok(None);
        };
        let Some(next) = page.last().filter(|_| page.len() == CHUNK_EVENTS) else {
            return Ok(Some(page));
        };
        let next = next.sequence.cast_signed() + 1;
        let lens = (1..PAGE_CHUNKS).map(|chunk| limit.saturating_sub(chunk * CHUNK_EVENTS));
        let lens = lens.map(|len| len.min(CHUNK_EVENTS)).take_while(|len| *len > 0);
        let starts = (next..).step_by(CHUNK_EVENTS);
        let reads = starts.zip(lens).map(|(start, len)| async move {
            Ok::<_, Error>((start, len, self.read_chunk(start, len).await?))
        });
        let mut chunks = stream::iter(reads).buffered(READ_AT_ONCE);
        while let Some(chunk) = chunks.next().await {
            let (start, len, Some(chunk)) = chunk? else { break };
            // Chunks are read one after the other: what was pruned or appended in between may have
            // left a gap in front of this one, or behind it.
            if chunk.first().is_none_or(|first| first.sequence != start.cast_unsigned()) {
                break;
            }
            let is_full = chunk.len() == len;
            page.extend(chunk);
            if !is_full {
                break;
            }
        }
        Ok(Some(page))
    }

    async fn read_chunk(&self, from: i64, len: usize) -> Result<Option<Vec<StoredEvent>>> {
        let mut connection = self.readers.acquire().await.map_err(from_sqlx)?;
        let size: i64 = sqlx::query(SIZE)
            .bind(from)
            .bind(len as i64)
            .fetch_one(&mut *connection)
            .await
            .and_then(|row| row.try_get(0))
            .map_err(from_sqlx)?;
        if size > CHUNK_BYTES {
            return Ok(None);
        }
        let row = sqlx::query(CHUNK).bind(from).bind(len as i64).fetch_one(&mut *connection).await;
        drop(connection);
        let row = row.map_err(from_sqlx)?;
        let Some(columns) = Columns::of(&row)? else { return Ok(None) };
        let names = self.names_of_streams(&columns.streams).await?;
        Ok(columns.events(&names))
    }

    /// The names of these streams, by id.
    async fn names_of_streams(&self, ids: &[i64]) -> Result<HashMap<i64, Arc<str>>> {
        let mut unknown: Vec<i64> = ids.to_vec();
        unknown.sort_unstable();
        unknown.dedup();
        let mut names = HashMap::with_capacity(unknown.len());
        {
            let known = self.stream_names.read().unwrap_or_else(PoisonError::into_inner);
            names.extend(unknown.iter().filter_map(|id| Some((*id, Arc::clone(known.get(id)?)))));
            unknown.retain(|id| !names.contains_key(id));
        }
        if unknown.is_empty() {
            return Ok(names);
        }
        let rows = sqlx::query(
            "SELECT s.id, s.name FROM json_each(?) AS chosen
             CROSS JOIN event_streams AS s ON s.id = chosen.value",
        )
        .bind(json_of(&unknown))
        .fetch_all(&self.readers)
        .await
        .map_err(from_sqlx)?;
        let mut known = self.stream_names.write().unwrap_or_else(PoisonError::into_inner);
        for row in rows {
            let id = row.try_get(0).map_err(from_sqlx)?;
            let name: Arc<str> = row.try_get::<&str, _>(1).map_err(from_sqlx)?.into();
            known.insert(id, Arc::clone(&name));
            names.insert(id, name);
        }
        Ok(names)
    }
}

/// The columns of a chunk, of one length.
struct Columns<'a> {
    first: u64,
    streams: Vec<i64>,
    versions: Vec<i64>,
    times: Vec<i64>,
    ids: Vec<&'a str>,
    types: Vec<&'a str>,
    payloads: Vec<&'a str>,
}

impl<'a> Columns<'a> {
    /// Cuts a row apart; nothing if it does not fit together.
    fn of(row: &'a SqliteRow) -> Result<Option<Self>> {
        let number = |index| row.try_get::<i64, _>(index).map_err(from_sqlx);
        let (count, first, last) = (number(0)?, number(1)?, number(2)?);
        let len = usize::try_from(count).unwrap_or_default();
        let columns = Self {
            first: first.cast_unsigned(),
            streams: numbers(row, 3)?,
            versions: numbers(row, 4)?,
            times: numbers(row, 5)?,
            ids: texts(row, 6, len)?,
            types: texts(row, 7, len)?,
            payloads: texts(row, 8, len)?,
        };
        let Self { streams, versions, times, ids, types, payloads, .. } = &columns;
        let lens =
            [streams.len(), versions.len(), times.len(), ids.len(), types.len(), payloads.len()];
        let fits = lens.iter().all(|found| *found == len) && last - first == (count - 1).max(0);
        Ok(fits.then_some(columns))
    }

    /// Nothing if something is damaged.
    fn events(&self, names: &HashMap<i64, Arc<str>>) -> Option<Vec<StoredEvent>> {
        let event = |index: usize| {
            let event_id = Some(self.ids[index]).filter(|id| !id.is_empty());
            Some(StoredEvent {
                sequence: self.first + index as u64,
                stream: names.get(&self.streams[index])?.to_string(),
                version: self.versions[index].cast_unsigned(),
                event_id: event_id.map(str::to_owned),
                event_type: self.types[index].to_owned(),
                stored_at: from_ms(self.times[index]),
                payload: serde_json::from_str(self.payloads[index]).ok()?,
            })
        };
        (0..self.streams.len()).map(event).collect()
    }
}

fn numbers(row: &SqliteRow, index: usize) -> Result<Vec<i64>> {
    let text: &str = row.try_get(index).map_err(from_sqlx)?;
    let number = |word: &str| {
        word.parse().map_err(|_| Error::new(ErrorKind::Corrupt, "an event has a text for a number"))
    };
    text.split_ascii_whitespace().map(number).collect()
}

/// Texts with a NUL between two: of none and of one empty text they are the same.
fn texts(row: &SqliteRow, index: usize, len: usize) -> Result<Vec<&str>> {
    let text: &str = row.try_get(index).map_err(from_sqlx)?;
    Ok(if len == 0 { Vec::new() } else { text.split('\0').collect() })
}
