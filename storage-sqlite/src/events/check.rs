//! Verifies the log: no gap, no chunk that is no JSON, streams as long as their last event says, and
//! indexes that lead to every event.

use futures_util::TryStreamExt;
use rustc_hash::{FxHashMap, FxHashSet};
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use storage_core::Result;
use storage_core::metrics::stats::CheckReport;

use super::read::{finds_table, parts_of};
use crate::check::note;
use crate::error::from_sqlx;
use crate::list::json_list;
use crate::schema::number;

/// Chunks that are looked at together.
const PAGE_CHUNKS: i64 = 64;

const PAGE: &str = "
    SELECT first, events, count FROM event_chunks WHERE first > ? ORDER BY first LIMIT ?";

/// Of the pairs of id and number ?1 those that the index of ids has.
const INDEXED_IDS: &str = "
    SELECT count(*) FROM json_each(?1) AS seen CROSS JOIN event_ids AS i
        ON i.event_id = seen.value ->> 0 AND i.sequence = seen.value ->> 1";

/// Of the triples of stream, chunk and version ?1 those that the index of streams has.
const INDEXED_STREAMS: &str = "
    SELECT count(*) FROM json_each(?1) AS seen
    CROSS JOIN event_streams AS s ON s.name = seen.value ->> 0
    CROSS JOIN event_stream_chunks AS m
        ON m.stream_id = s.id AND m.first = seen.value ->> 1 AND m.version = seen.value ->> 2";

/// Verifies what a file has of events, within a snapshot.
pub(crate) async fn run(connection: &mut SqliteConnection, report: &mut CheckReport) -> Result<()> {
    if finds_table(connection, "event_chunks").await? {
        check_log(connection, report).await?;
    } else if finds_table(connection, "events").await? {
        let how = "they are not looked at before the file was opened for writing";
        note(report, format!("events: kept as an older version did, {how}"));
    }
    match finds_table(connection, "projection_rows").await? {
        true => check_rows(connection, report).await,
        false => Ok(()),
    }
}

/// What was seen of the log so far.
#[derive(Default)]
struct Seen {
    /// The number that comes next.
    next: i64,
    /// The last version of each stream, as far as nothing is missing after it.
    streams: FxHashMap<String, u64>,
    /// Entries that the indexes should have.
    ids: i64,
    stream_chunks: i64,
    /// Whether there are chunks of which nobody knows what was in them.
    is_damaged: bool,
}

async fn check_log(connection: &mut SqliteConnection, report: &mut CheckReport) -> Result<()> {
    let mut seen = Seen::default();
    let mut after = i64::MIN;
    loop {
        let page = sqlx::query(PAGE).bind(after).bind(PAGE_CHUNKS);
        let page = page.fetch_all(&mut *connection).await.map_err(from_sqlx)?;
        let Some(last) = page.last() else { break };
        after = last.try_get(0).map_err(from_sqlx)?;
        let mut index = Index::default();
        for row in &page {
            check_chunk(row, &mut seen, &mut index, report)?;
        }
        check_index(connection, &index, report).await?;
        seen.ids += index.ids.len() as i64;
        seen.stream_chunks += index.streams.len() as i64;
    }
    if !seen.is_damaged {
        check_rest(connection, &seen, report).await?;
    }
    check_streams(connection, &seen, report).await
}

/// What the indexes should have of some chunks.
#[derive(Default)]
struct Index {
    ids: Vec<(String, u64)>,
    streams: Vec<(String, u64, u64)>,
}

fn check_chunk(
    row: &SqliteRow,
    seen: &mut Seen,
    index: &mut Index,
    report: &mut CheckReport,
) -> Result<()> {
    let number = |index| row.try_get::<i64, _>(index).map_err(from_sqlx);
    let (first, count) = (number(0)?, number(2)?);
    if seen.next > 0 && first != seen.next {
        note(report, format!("events {} to {}: missing", seen.next, first.saturating_sub(1)));
        seen.streams.clear();
    }
    seen.next = first.saturating_add(count.max(1));
    let Ok(parts) = parts_of(row) else {
        note(report, format!("event {first}: its chunk of {count} is damaged"));
        seen.is_damaged = true;
        seen.streams.clear();
        return Ok(());
    };
    let mut here = FxHashSet::default();
    for (sequence, part) in parts {
        let (version, stream) = (part.0, part.1);
        index.ids.extend(part.2.map(|id| (id, sequence)));
        if here.insert(stream.clone()) {
            index.streams.push((stream.clone().into_owned(), first.cast_unsigned(), version));
        }
        match seen.streams.get_mut(&*stream) {
            Some(last) => {
                if version != *last + 1 {
                    note(report, format!("event {sequence}: its version is not the next"));
                }
                *last = version;
            }
            None => drop(seen.streams.insert(stream.into_owned(), version)),
        }
    }
    Ok(())
}

async fn check_index(
    connection: &mut SqliteConnection,
    index: &Index,
    report: &mut CheckReport,
) -> Result<()> {
    let ids = (index.ids.len(), json_list(&index.ids)?, INDEXED_IDS, "ids");
    let streams = (index.streams.len(), json_list(&index.streams)?, INDEXED_STREAMS, "streams");
    for (expected, json, sql, what) in [ids, streams] {
        let row = sqlx::query(sql).bind(json).fetch_one(&mut *connection).await;
        let found: i64 = row.and_then(|row| row.try_get(0)).map_err(from_sqlx)?;
        if found != expected as i64 {
            let missing = expected as i64 - found;
            note(report, format!("the index of {what} lacks {missing} entries"));
        }
    }
    Ok(())
}

/// The indexes must have no more than what leads to events.
async fn check_rest(
    connection: &mut SqliteConnection,
    seen: &Seen,
    report: &mut CheckReport,
) -> Result<()> {
    for (what, expected, count) in [
        ("ids", seen.ids, "SELECT count(*) FROM event_ids"),
        ("streams", seen.stream_chunks, "SELECT count(*) FROM event_stream_chunks"),
    ] {
        let found = number(connection, count).await?;
        if found > expected {
            let more = found - expected;
            note(report, format!("the index of {what} has {more} entries of no event"));
        }
    }
    Ok(())
}

/// Every stream must be known, and be as long as its last event says.
async fn check_streams(
    connection: &mut SqliteConnection,
    seen: &Seen,
    report: &mut CheckReport,
) -> Result<()> {
    let mut left: FxHashMap<&str, u64> =
        seen.streams.iter().map(|(name, version)| (name.as_str(), *version)).collect();
    let mut rows = sqlx::query("SELECT name, version FROM event_streams").fetch(connection);
    while let Some(row) = rows.try_next().await.map_err(from_sqlx)? {
        let name: &str = row.try_get(0).map_err(from_sqlx)?;
        let version = row.try_get::<i64, _>(1).map_err(from_sqlx)?.cast_unsigned();
        if left.remove(name).is_some_and(|last| last != version) {
            note(report, format!("stream {name}: its last event has another version"));
        }
    }
    let mut unknown: Vec<&str> = left.into_keys().collect();
    unknown.sort_unstable();
    for name in unknown {
        note(report, format!("stream {name}: it is unknown"));
    }
    Ok(())
}

/// Rows of projections belong to one, and are JSON.
async fn check_rows(connection: &mut SqliteConnection, report: &mut CheckReport) -> Result<()> {
    let mut rows = sqlx::query(
        "SELECT p.name, r.table_name, r.key FROM projection_rows AS r
         LEFT JOIN projections AS p ON p.id = r.projection_id
         WHERE p.id IS NULL OR NOT json_valid(r.value_json)",
    )
    .fetch(connection);
    while let Some(row) = rows.try_next().await.map_err(from_sqlx)? {
        let text = |index| row.try_get::<Option<String>, _>(index).map_err(from_sqlx);
        let place = [text(0)?, text(1)?, text(2)?].map(|name| name.unwrap_or("?".to_owned()));
        note(report, format!("row {}: damaged", place.join(" / ")));
    }
    Ok(())
}
