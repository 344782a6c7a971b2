//! Verifies a store: every row is read, and what is kept in several places is compared.
//!
//! The server verifies its pages while they are read, if it has checksums. Each comparison is one
//! statement with a snapshot of its own: to a snapshot that is older, chunks that TimescaleDB
//! compresses meanwhile are empty.

use storage_core::Result;
use storage_core::metrics::stats::CheckReport;
use tokio_postgres::types::ToSql;

use crate::connect::Connection;
use crate::error::from_pg;
use crate::schema::{EVENTS_VERSION, HISTORY_VERSION, JOBS_VERSION};
use crate::store::Store;

/// Each finds problems of one kind and says each in a line.
const FINDERS: &[&str] = &[
    "SELECT format('%s: %s samples are counted, %s are there', coalesce(c.day, a.day),
            coalesce(c.samples, 0), coalesce(a.samples, 0))
     FROM (SELECT day, sum(samples) AS samples FROM days GROUP BY day) c
     FULL JOIN (SELECT (ts AT TIME ZONE 'UTC')::date AS day, count(*) AS samples
                FROM samples GROUP BY 1) a ON a.day = c.day
     WHERE coalesce(c.samples, 0) <> coalesce(a.samples, 0) LIMIT $1",
    "SELECT format('%s: samples reach from %s to %s, it says from %s to %s', c.day,
            a.oldest, a.newest, c.oldest, c.newest)
     FROM (SELECT day, min(oldest) AS oldest, max(newest) AS newest FROM days GROUP BY day) c
     JOIN (SELECT (ts AT TIME ZONE 'UTC')::date AS day, min(ts) AS oldest, max(ts) AS newest
           FROM samples GROUP BY 1) a ON a.day = c.day
     WHERE NOT (SELECT prune_pending FROM state)
     AND (c.oldest, c.newest) IS DISTINCT FROM (a.oldest, a.newest) LIMIT $1",
    "SELECT format('series %s: %s samples without a name', p.series_id, count(*))
     FROM samples p WHERE NOT EXISTS (SELECT FROM series s WHERE s.id = p.series_id)
     GROUP BY p.series_id LIMIT $1",
    "SELECT format('series %s: it says %s, but holds %s', s.id,
            CASE WHEN s.emptied THEN 'empty' ELSE 'not empty' END,
            CASE WHEN s.emptied THEN 'samples' ELSE 'none' END)
     FROM series s
     WHERE (s.emptied OR NOT (SELECT prune_pending FROM state))
     AND s.emptied = EXISTS (SELECT FROM samples p WHERE p.series_id = s.id) LIMIT $1",
    "SELECT format('series %s, %s: a value that no sample can have', series_id, ts)
     FROM samples WHERE value IN ('NaN', 'Infinity', '-Infinity')
     OR ts <> date_trunc('milliseconds', ts) LIMIT $1",
    "SELECT format('the partition %s is not one of the samples', p.name) FROM partitions p
     WHERE NOT EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                       WHERE i.inhparent = 'samples'::regclass AND c.relname = p.name) LIMIT $1",
];

/// The same for record history.
const HISTORY_FINDERS: &[&str] = &[
    "SELECT format('record %s: %s values without a name', h.record_id, count(*))
     FROM record_history h WHERE NOT EXISTS (SELECT FROM record_names n WHERE n.id = h.record_id)
     GROUP BY h.record_id LIMIT $1",
    "SELECT format('record %s, %s: a time that no value can have', record_id, stored_at)
     FROM record_history WHERE stored_at <> date_trunc('milliseconds', stored_at) LIMIT $1",
];

/// The same for events and projections.
const EVENT_FINDERS: &[&str] = &[
    "SELECT format('the log has %s events from %s to %s', count(e.sequence), s.first, s.last)
     FROM event_state s LEFT JOIN events e ON e.sequence BETWEEN s.first AND s.last
     GROUP BY s.first, s.last HAVING count(e.sequence) <> s.last + 1 - s.first LIMIT $1",
    "SELECT format('event %s lies outside the log', e.sequence) FROM events e, event_state s
     WHERE e.sequence NOT BETWEEN s.first AND s.last LIMIT $1",
    "SELECT format('event %s: its stream is unknown or shorter', e.sequence)
     FROM events e LEFT JOIN event_streams s ON s.id = e.stream_id
     WHERE s.id IS NULL OR e.version > s.version ORDER BY e.sequence LIMIT $1",
    "SELECT format('%s rows of a projection without a name', count(*)) FROM projection_rows r
     WHERE NOT EXISTS (SELECT FROM projections p WHERE p.id = r.projection_id)
     GROUP BY r.projection_id LIMIT $1",
];

/// The same for jobs and executions.
const JOB_FINDERS: &[&str] = &[
    "SELECT format('execution %s: the lease of its job says that it is under way',
            lease_execution_id)
     FROM scheduled_jobs j WHERE lease_execution_id IS NOT NULL AND NOT EXISTS (
         SELECT FROM job_executions e WHERE e.id = j.lease_execution_id AND e.job_id = j.id
         AND e.status = 'running') LIMIT $1",
    "SELECT format('execution %s: the status %s does not fit its end', id, status)
     FROM job_executions
     WHERE status NOT IN ('running', 'succeeded', 'failed', 'cancelled', 'lost')
     OR (status = 'running') <> (end_time IS NULL) LIMIT $1",
];

/// Problems of one kind that are listed.
const LISTED_MAX: i64 = 100;

pub(crate) async fn check(store: &Store) -> Result<CheckReport> {
    let connection = store.server.connect().await?;
    let begin = "BEGIN READ ONLY; SET LOCAL statement_timeout = 0";
    connection.batch_execute(begin).await.map_err(from_pg)?;
    let mut report = CheckReport {
        samples: number(&connection, "SELECT count(*) FROM samples", &[]).await?,
        pieces: number(&connection, PIECES, &[]).await?,
        problems: Vec::new(),
    };
    let parts = [
        (1, FINDERS),
        (HISTORY_VERSION, HISTORY_FINDERS),
        (EVENTS_VERSION, EVENT_FINDERS),
        (JOBS_VERSION, JOB_FINDERS),
    ];
    let parts = parts.iter().filter(|(version, _)| store.opened.version >= *version);
    for finder in parts.flat_map(|(_, finders)| *finders) {
        let rows = connection.query(*finder, &[&LISTED_MAX]).await.map_err(from_pg)?;
        for row in rows {
            report.problems.push(row.try_get(0).map_err(from_pg)?);
        }
    }
    connection.batch_execute("COMMIT").await.map_err(from_pg)?;
    Ok(report)
}

/// Tables and the partitions of the samples.
const PIECES: &str = "SELECT count(*) FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p')";

async fn number(
    connection: &Connection,
    sql: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<u64> {
    let row = connection.query_one(sql, parameters).await;
    let number: i64 = row.and_then(|row| row.try_get(0)).map_err(from_pg)?;
    Ok(u64::try_from(number).unwrap_or_default())
}
