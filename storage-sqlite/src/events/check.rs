//! Verifies the log: no gap, no payload that is no JSON, streams as long as their last event says.

use futures_util::TryStreamExt;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;
use storage_core::Result;
use storage_core::metrics::stats::CheckReport;

use super::read::extent;
use crate::check::note;
use crate::error::from_sqlx;
use crate::schema::number;

/// Number and problem of each event that is damaged, in the order of the log.
const DAMAGED: &str = "
    SELECT e.sequence, CASE
        WHEN s.id IS NULL THEN 'its stream is unknown'
        WHEN e.version > s.version THEN 'its stream is shorter'
        ELSE 'it is no JSON' END
    FROM events AS e LEFT JOIN event_streams AS s ON s.id = e.stream_id
    WHERE s.id IS NULL OR e.version > s.version OR NOT json_valid(e.payload)
    ORDER BY e.sequence";

/// Verifies what a file has of events, within a snapshot.
pub(crate) async fn run(connection: &mut SqliteConnection, report: &mut CheckReport) -> Result<()> {
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name = 'events'";
    if number(connection, tables).await? == 0 {
        return Ok(());
    }
    let log = extent(connection).await?;
    let count = number(connection, "SELECT count(*) FROM events").await?;
    if count.cast_unsigned() != log.count() {
        note(report, format!("the log has {count} of {} events", log.count()));
    }
    let mut rows = sqlx::query(DAMAGED).fetch(&mut *connection);
    while let Some(row) = rows.try_next().await.map_err(from_sqlx)? {
        let sequence: i64 = row.try_get(0).map_err(from_sqlx)?;
        let problem: &str = row.try_get(1).map_err(from_sqlx)?;
        note(report, format!("event {sequence}: {problem}"));
    }
    drop(rows);
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
