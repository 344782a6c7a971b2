//! Answers questions about the log: each is one statement, hence one snapshot.

use storage_core::metrics::time::from_ms;
use storage_core::{EventQuery, LogExtent, Matcher, Result, StoredEvent, StreamInfo};
use tokio_postgres::Row;

use crate::commit::gone;
use crate::convert::{PgTime, to_value};
use crate::error::from_pg;
use crate::filter::Condition;
use crate::store::{Parameter, Store};

/// The most that a page holds, in events and, unless it is a single one, in bytes.
const PAGE_EVENTS: usize = 8192;
const PAGE_BYTES: usize = 4 << 20;

/// What is read ahead is bounded by what the payloads take in the table, which may be compressed;
/// what they take here is counted as they come.
const PAGE: &str = "
    SELECT e.sequence, s.name, e.version, e.event_id, e.event_type, e.stored_at, e.payload
    FROM (SELECT *, sum(pg_column_size(payload)) OVER (ORDER BY sequence) AS size
          FROM (SELECT * FROM events WHERE {chosen} ORDER BY sequence LIMIT $2) l) e
    JOIN event_streams s ON s.id = e.stream_id
    WHERE e.size - pg_column_size(e.payload) < 4194304 ORDER BY e.sequence";

const OF_ALL: &str = "sequence >= $1";
const OF_STREAM: &str =
    "stream_id = (SELECT id FROM event_streams WHERE name = $3) AND sequence >= $1";

/// The events that have some ids, in no order.
pub(super) const BY_IDS: &str = "
    SELECT e.sequence, s.name, e.version, e.event_id, e.event_type, e.stored_at, e.payload
    FROM events e JOIN event_streams s ON s.id = e.stream_id
    WHERE e.event_id IS NOT NULL AND e.event_id = ANY($1)";

impl Store {
    /// A page of events.
    pub(super) async fn read_events(&self, query: &EventQuery) -> Result<Vec<StoredEvent>> {
        let limit = query.limit.min(PAGE_EVENTS) as i64;
        let Ok(from) = i64::try_from(query.from) else { return Ok(Vec::new()) };
        if limit == 0 {
            return Ok(Vec::new());
        }
        let chosen = if query.stream.is_some() { OF_STREAM } else { OF_ALL };
        let mut parameters: Vec<Parameter<'_>> = vec![&from, &limit];
        if let Some(stream) = &query.stream {
            parameters.push(stream);
        }
        let (mut page, mut bytes) = (Vec::new(), 0);
        let visit = |row: Row| {
            bytes += row.raw_size_bytes();
            if bytes <= PAGE_BYTES || page.is_empty() {
                page.push(event_of(&row)?);
            }
            // To stop costs the connection: mostly a few more events are all that comes.
            Ok(bytes <= 2 * PAGE_BYTES)
        };
        self.each_row(&PAGE.replace("{chosen}", chosen), &parameters, visit).await?;
        Ok(page)
    }

    pub(super) async fn extent(&self) -> Result<LogExtent> {
        let rows = self.rows("SELECT first, last FROM event_state", &[]).await?;
        extent_of(rows.first().ok_or_else(gone)?)
    }

    /// The streams that match, by name.
    pub(super) async fn streams(&self, streams: &Matcher) -> Result<Vec<StreamInfo>> {
        let condition = Condition::on("name", streams, 1);
        let sql = format!(
            "SELECT name, version FROM event_streams WHERE {} ORDER BY name",
            condition.sql
        );
        let info = |row: &Row| {
            let version: i64 = row.try_get(1)?;
            Ok(StreamInfo { stream: row.try_get(0)?, version: version.cast_unsigned() })
        };
        let rows = self.rows(&sql, &condition.parameters()).await?;
        rows.iter().map(info).collect::<Result<_, _>>().map_err(from_pg)
    }
}

/// The extent in a row of `event_state`.
pub(super) fn extent_of(row: &Row) -> Result<LogExtent> {
    let number = |index| row.try_get::<_, i64>(index).map(i64::cast_unsigned).map_err(from_pg);
    Ok(LogExtent { first: number(0)?, last: number(1)? })
}

pub(super) fn event_of(row: &Row) -> Result<StoredEvent> {
    let number = |index| row.try_get::<_, i64>(index).map(i64::cast_unsigned).map_err(from_pg);
    let sequence = number(0)?;
    let PgTime(ms) = row.try_get(5).map_err(from_pg)?;
    Ok(StoredEvent {
        sequence,
        stream: row.try_get(1).map_err(from_pg)?,
        version: number(2)?,
        event_id: row.try_get(3).map_err(from_pg)?,
        event_type: row.try_get(4).map_err(from_pg)?,
        stored_at: from_ms(ms),
        payload: to_value(row, 6).map_err(|error| error.with_context("sequence", sequence))?,
    })
}
