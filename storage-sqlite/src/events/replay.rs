//! Reads many events at once: whole chunks of the log, by tasks of their own.
//!
//! Each task takes every second stretch of a page, so that a page is being read and taken apart on two
//! cores, whether its caller looks or not. Chunks of a stretch come as one row, because the driver takes
//! as long for a row as SQLite takes to read several. What does not fit (many large payloads, damage) is
//! left to the reading of single chunks.

use std::sync::Arc;

use sqlx::Row;
use storage_core::{Result, StoredEvent};
use tokio::task::JoinSet;

use super::chunk;
use crate::error::from_sqlx;
use crate::maintenance::panicked;
use crate::store::Store;

/// Numbers of a stretch, and the most stretches of a page. A chunk belongs where its first event does.
const STRETCH_EVENTS: i64 = 1024;
const PAGE_STRETCHES: i64 = 8;

/// Stretches with more bytes are not read as one row.
const STRETCH_BYTES: i64 = 1 << 20;

/// Tasks that read the stretches of a page.
const READ_AT_ONCE: usize = 2;

/// Where the chunk begins that a number is in, or the first one after it, and where the log ends.
const BOUNDS: &str = "
    SELECT coalesce((SELECT max(first) FROM event_chunks WHERE first <= ?1),
                    (SELECT min(first) FROM event_chunks)),
           (SELECT first + count FROM event_chunks ORDER BY first DESC LIMIT 1)";

/// The chunks that begin in a range, as they are read along the table: where they begin and end, and
/// their texts one behind the other. Without a text if that is too large.
const STRETCH: &str = "
    SELECT min(first), max(first + count), group_concat(
        iif((SELECT sum(octet_length(events)) FROM event_chunks WHERE first BETWEEN ?1 AND ?2) <= ?3,
            events, NULL), '')
    FROM event_chunks WHERE first BETWEEN ?1 AND ?2";

impl Store {
    /// A page of the log from `from` on, or nothing if it must be read chunk by chunk.
    pub(super) async fn read_stretches(
        self: &Arc<Self>,
        from: i64,
        limit: usize,
    ) -> Result<Option<Vec<StoredEvent>>> {
        let Some((first, end)) = self.bounds(from).await? else { return Ok(Some(Vec::new())) };
        if from.saturating_sub(first) >= STRETCH_EVENTS {
            // No chunk is as long: it is damaged, or what was behind it is gone.
            return Ok(None);
        }
        let wanted = i64::try_from(limit).unwrap_or(i64::MAX).min(PAGE_STRETCHES * STRETCH_EVENTS);
        let end = end.min(from.max(first).saturating_add(wanted));
        if from >= end {
            return Ok(Some(Vec::new()));
        }
        let starts: Vec<i64> = (first..end).step_by(STRETCH_EVENTS as usize).collect();
        let mut tasks = JoinSet::new();
        for lane in 0..READ_AT_ONCE.min(starts.len()) {
            let starts: Vec<i64> = starts[lane..].iter().copied().step_by(READ_AT_ONCE).collect();
            let store = Arc::clone(self);
            let read = async move { (lane, store.read_lane(&starts, end).await) };
            tasks.spawn_on(read, &self.runtime);
        }
        let mut lanes: [_; READ_AT_ONCE] = std::array::from_fn(|_| Vec::new().into_iter());
        while let Some(done) = tasks.join_next().await {
            let (lane, stretches) = done.map_err(panicked)?;
            lanes[lane] = stretches?.into_iter();
        }
        let mut page: Vec<StoredEvent> = Vec::with_capacity((end - first).max(0) as usize);
        for nth in 0..starts.len() {
            let Some(stretch) = lanes[nth % READ_AT_ONCE].next() else { break };
            let follows = |event: &StoredEvent| {
                page.last().is_none_or(|last| event.sequence == last.sequence + 1)
            };
            // Stretches are read one after the other: what was pruned meanwhile is missing.
            if !stretch.first().is_none_or(follows) {
                break;
            }
            page.extend(stretch);
        }
        let (from, before) = (from.cast_unsigned(), end.cast_unsigned());
        page.retain(|event| (from..before).contains(&event.sequence));
        Ok((!page.is_empty()).then_some(page))
    }

    /// The stretches that begin here, up to the first that must be read chunk by chunk.
    async fn read_lane(&self, starts: &[i64], end: i64) -> Result<Vec<Vec<StoredEvent>>> {
        let mut stretches = Vec::with_capacity(starts.len());
        for start in starts {
            let last = (start + STRETCH_EVENTS).min(end) - 1;
            let Some(stretch) = self.read_stretch(*start, last).await? else { break };
            stretches.push(stretch);
        }
        Ok(stretches)
    }

    async fn bounds(&self, from: i64) -> Result<Option<(i64, i64)>> {
        let row = sqlx::query(BOUNDS).bind(from).fetch_one(&self.readers).await;
        let row = row.map_err(from_sqlx)?;
        let number = |index| row.try_get::<Option<i64>, _>(index).map_err(from_sqlx);
        Ok(number(0)?.zip(number(1)?))
    }

    /// The events of the chunks that begin between two numbers, both included, or nothing if they do
    /// not fit.
    async fn read_stretch(&self, start: i64, last: i64) -> Result<Option<Vec<StoredEvent>>> {
        let row = sqlx::query(STRETCH)
            .bind(start)
            .bind(last)
            .bind(STRETCH_BYTES)
            .fetch_one(&self.readers)
            .await
            .map_err(from_sqlx)?;
        let number = |index| row.try_get::<Option<i64>, _>(index).map_err(from_sqlx);
        let Some((first, end)) = number(0)?.zip(number(1)?) else { return Ok(Some(Vec::new())) };
        // Where one is damaged, and be it that its bytes are no text, those before can still be read.
        let text = row.try_get::<Option<&str>, _>(2).ok().flatten();
        let events = |text| chunk::events(first.cast_unsigned(), end.cast_unsigned(), text);
        Ok(text.and_then(|text| events(text).ok()))
    }
}
