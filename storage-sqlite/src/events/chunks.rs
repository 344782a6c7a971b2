//! Reads many events at once: a chunk of the log as one row.
//!
//! The driver takes as long for a row as SQLite takes to read several. So SQLite joins the events of
//! a chunk into one text, which is cut apart here. Tasks of their own do that, several chunks at a
//! time, so that a page is being read whether its caller looks or not. What does not fit (many large
//! payloads, damage) is left to the reading of rows, one by one.

use std::sync::{Arc, PoisonError};

use futures_util::TryStreamExt;
use rustc_hash::FxHashMap;
use sqlx::Row;
use storage_core::metrics::time::from_ms;
use storage_core::{Result, StoredEvent};
use tokio::task::JoinSet;

use crate::error::from_sqlx;
use crate::maintenance::panicked;
use crate::read::json_of;
use crate::store::Store;

/// Events of a chunk, and the most that a page is made of.
const CHUNK_EVENTS: i64 = 1024;
const PAGE_CHUNKS: i64 = 8;

/// Payloads with more bytes are not joined to a chunk but read alone, and so many bytes of them at
/// most.
const PAYLOAD_BYTES: i64 = 1024;
const LARGE_BYTES: usize = 1 << 20;

/// Tasks that read the chunks of a page.
const READ_AT_ONCE: usize = 2;

/// The first event from a number on, and the last of the log.
const BOUNDS: &str = "
    SELECT (SELECT min(sequence) FROM events WHERE sequence >= ?1), (SELECT max(sequence) FROM events)";

/// The events of a range, by number, as they are read along the table. No name and no JSON text
/// holds a NUL, so that the text can be cut apart again.
const CHUNK: &str = "
    SELECT group_concat(
        stream_id || ?3 || version || ?3 || stored_at || ?3 || coalesce(event_id, '') || ?3
        || event_type || ?3 || iif(octet_length(payload) > ?4, '', payload), ?3)
    FROM events NOT INDEXED WHERE sequence BETWEEN ?1 AND ?2";

const LARGE: &str = "
    SELECT sequence, payload FROM events NOT INDEXED
    WHERE sequence BETWEEN ?1 AND ?2 AND octet_length(payload) > ?3";

/// A chunk, or nothing if it must be read row by row.
type Chunk = Option<Vec<StoredEvent>>;

impl Store {
    /// A page of the log from `from` on, or nothing if it must be read row by row.
    pub(super) async fn read_chunks(self: &Arc<Self>, from: i64, limit: usize) -> Result<Chunk> {
        let Some((first, last)) = self.bounds(from).await? else { return Ok(Some(Vec::new())) };
        let len = i64::try_from(limit).unwrap_or(i64::MAX);
        let len = len.min(PAGE_CHUNKS * CHUNK_EVENTS).min(last + 1 - first);
        let end = first + len;
        let starts: Vec<i64> = (first..end).step_by(CHUNK_EVENTS as usize).collect();
        let mut tasks = JoinSet::new();
        for lane in 0..READ_AT_ONCE.min(starts.len()) {
            let starts: Vec<i64> = starts[lane..].iter().copied().step_by(READ_AT_ONCE).collect();
            let store = Arc::clone(self);
            let read = async move { (lane, store.read_lane(&starts, end).await) };
            tasks.spawn_on(read, &self.runtime);
        }
        let mut lanes: [_; READ_AT_ONCE] = std::array::from_fn(|_| Vec::new().into_iter());
        while let Some(done) = tasks.join_next().await {
            let (lane, chunks) = done.map_err(panicked)?;
            lanes[lane] = chunks?.into_iter();
        }
        let mut page = Vec::with_capacity(len as usize);
        for nth in 0..starts.len() {
            // Chunks are read one after the other: what was pruned meanwhile is missing.
            let Some(chunk) = lanes[nth % READ_AT_ONCE].next() else { break };
            page.extend(chunk);
        }
        Ok((!page.is_empty()).then_some(page))
    }

    /// The chunks that begin here, up to the first that must be read row by row.
    async fn read_lane(&self, starts: &[i64], end: i64) -> Result<Vec<Vec<StoredEvent>>> {
        let mut chunks = Vec::with_capacity(starts.len());
        for start in starts {
            let Some(chunk) = self.read_chunk(*start, end.min(start + CHUNK_EVENTS)).await? else {
                break;
            };
            chunks.push(chunk);
        }
        Ok(chunks)
    }

    /// The first event from `from` on, and the last of the log, if there is one.
    async fn bounds(&self, from: i64) -> Result<Option<(i64, i64)>> {
        let row = sqlx::query(BOUNDS).bind(from).fetch_one(&self.readers).await;
        let row = row.map_err(from_sqlx)?;
        let number = |index| row.try_get::<Option<i64>, _>(index).map_err(from_sqlx);
        Ok(number(0)?.zip(number(1)?))
    }

    /// The events from `start` to `end`, without that, or nothing if they do not fit or are not all
    /// there.
    async fn read_chunk(&self, start: i64, end: i64) -> Result<Chunk> {
        let row = sqlx::query(CHUNK)
            .bind(start)
            .bind(end - 1)
            .bind("\0")
            .bind(PAYLOAD_BYTES)
            .fetch_one(&self.readers)
            .await
            .map_err(from_sqlx)?;
        let text: Option<&str> = row.try_get(0).map_err(from_sqlx)?;
        let Some(rows) = cut(text.unwrap_or_default(), (end - start) as usize) else {
            return Ok(None);
        };
        let large = match rows.iter().any(|row| row.payload.is_empty()) {
            true => self.read_large(start, end).await?,
            false => Some(FxHashMap::default()),
        };
        let Some(large) = large else { return Ok(None) };
        let names = self.names_of_streams(&rows).await?;
        Ok(events(start, &rows, &names, &large))
    }

    /// The large payloads of a chunk by their numbers, or nothing if there are too many.
    async fn read_large(&self, start: i64, end: i64) -> Result<Option<FxHashMap<i64, String>>> {
        let statement = sqlx::query(LARGE).bind(start).bind(end - 1).bind(PAYLOAD_BYTES);
        let mut rows = statement.fetch(&self.readers);
        let (mut large, mut bytes) = (FxHashMap::default(), 0);
        while let Some(row) = rows.try_next().await.map_err(from_sqlx)? {
            let payload: String = row.try_get(1).map_err(from_sqlx)?;
            bytes += payload.len();
            if bytes > LARGE_BYTES {
                return Ok(None);
            }
            large.insert(row.try_get(0).map_err(from_sqlx)?, payload);
        }
        Ok(Some(large))
    }

    /// The names of these streams, by id.
    async fn names_of_streams(&self, rows: &[Cut<'_>]) -> Result<FxHashMap<i64, Arc<str>>> {
        let mut unknown: Vec<i64> = rows.iter().map(|row| row.stream).collect();
        // They mostly come in runs.
        unknown.dedup();
        unknown.sort_unstable();
        unknown.dedup();
        let mut names = FxHashMap::default();
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

/// An event as it is cut out of the text of a chunk.
struct Cut<'a> {
    stream: i64,
    version: i64,
    ms: i64,
    event_id: &'a str,
    event_type: &'a str,
    /// Empty, which no JSON is, if it is too large.
    payload: &'a str,
}

/// Cuts a chunk of so many events apart; nothing if it does not fit together.
fn cut(text: &str, len: usize) -> Option<Vec<Cut<'_>>> {
    let mut words = text.split('\0');
    let mut rows = Vec::with_capacity(len);
    for _ in 0..len {
        rows.push(Cut {
            stream: words.next()?.parse().ok()?,
            version: words.next()?.parse().ok()?,
            ms: words.next()?.parse().ok()?,
            event_id: words.next()?,
            event_type: words.next()?,
            payload: words.next()?,
        });
    }
    words.next().is_none().then_some(rows)
}

/// The events of a chunk; nothing if something is damaged.
fn events(
    start: i64,
    rows: &[Cut<'_>],
    names: &FxHashMap<i64, Arc<str>>,
    large: &FxHashMap<i64, String>,
) -> Chunk {
    let event = |(sequence, row): (i64, &Cut<'_>)| {
        let payload = match row.payload {
            "" => large.get(&sequence)?,
            payload => payload,
        };
        Some(StoredEvent {
            sequence: sequence.cast_unsigned(),
            stream: names.get(&row.stream)?.as_ref().to_owned(),
            version: row.version.cast_unsigned(),
            event_id: Some(row.event_id).filter(|id| !id.is_empty()).map(str::to_owned),
            event_type: row.event_type.to_owned(),
            stored_at: from_ms(row.ms),
            payload: serde_json::from_str(payload).ok()?,
        })
    };
    (start..).zip(rows).map(event).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_fits_is_cut() {
        let text = "7\x001\x00-5\x00\x00T\x00{}\x007\x002\x000\x00id\x00a b\x00";
        let rows = cut(text, 2).unwrap();
        let found: Vec<_> = rows.iter().map(|row| (row.stream, row.version, row.ms)).collect();
        assert_eq!(found, [(7, 1, -5), (7, 2, 0)]);
        let texts: Vec<_> =
            rows.iter().map(|row| (row.event_id, row.event_type, row.payload)).collect();
        assert_eq!(texts, [("", "T", "{}"), ("id", "a b", "")]);
        let bad = [("", 1), (text, 1), (text, 3), ("7\x00x\x000\x00\x00T\x001", 1)];
        assert!(bad.iter().all(|(text, len)| cut(text, *len).is_none()));
    }
}
