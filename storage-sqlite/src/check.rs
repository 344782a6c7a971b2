//! Verifies what is stored: SQLite's own check, then every blob against its checksum, its summary
//! and its neighbours. Read-only, in one snapshot.

use futures_util::TryStreamExt;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use storage_core::metrics::stats::CheckReport;
use storage_core::{Error, Result};

use crate::codec::{block, frame};
use crate::error::from_sqlx;
use crate::jobs::rows;
use crate::read::summary_of;
use crate::schema::number;
use crate::store::Store;

/// So that a ruined file does not make a list without end.
const PROBLEMS_MAX: usize = 1000;

impl Store {
    /// Verifies everything and lists what is wrong.
    pub(crate) async fn check(&self) -> Result<CheckReport> {
        let mut snapshot = self.readers.begin().await.map_err(from_sqlx)?;
        let mut report = CheckReport::default();
        let checked = check_all(&mut snapshot, &mut report).await;
        snapshot.rollback().await.map_err(from_sqlx)?;
        match checked {
            // What SQLite itself cannot read is a finding, not a failure to look.
            Err(error) if error.kind() == storage_core::ErrorKind::Corrupt => {
                note(&mut report, format!("{error:#}"));
            }
            checked => checked?,
        }
        Ok(report)
    }
}

async fn check_all(connection: &mut SqliteConnection, report: &mut CheckReport) -> Result<()> {
    check_file(connection, report).await?;
    check_journal(connection, report).await?;
    check_blocks(connection, report).await?;
    check_orphans(connection, report).await?;
    check_history(connection, report).await?;
    crate::events::check::run(connection, report).await?;
    check_jobs(connection, report).await
}

async fn check_file(connection: &mut SqliteConnection, report: &mut CheckReport) -> Result<()> {
    let lines = sqlx::query("PRAGMA quick_check").fetch_all(connection).await.map_err(from_sqlx)?;
    for line in lines {
        let line: String = line.try_get(0).map_err(from_sqlx)?;
        if line != "ok" {
            note(report, format!("sqlite: {line}"));
        }
    }
    Ok(())
}

async fn check_journal(connection: &mut SqliteConnection, report: &mut CheckReport) -> Result<()> {
    let mut rows = sqlx::query(
        "SELECT id, rows, payload FROM journal, state WHERE id > sealed_id ORDER BY id",
    )
    .fetch(connection);
    while let Some(row) = rows.try_next().await.map_err(from_sqlx)? {
        let (id, count): (i64, i64) =
            (row.try_get(0).map_err(from_sqlx)?, row.try_get(1).map_err(from_sqlx)?);
        report.pieces += 1;
        match frame::decode_payload(row.try_get(2).map_err(from_sqlx)?) {
            Ok(entries) if entries.len() as i64 == count => report.samples += count as u64,
            Ok(_) => note(report, format!("journal row {id}: holds another number of samples")),
            Err(error) => note(report, format!("journal row {id}: {}", error.message())),
        }
    }
    Ok(())
}

async fn check_blocks(connection: &mut SqliteConnection, report: &mut CheckReport) -> Result<()> {
    let mut rows = sqlx::query(
        "SELECT b.series_id, b.start_ms, b.end_ms, b.count, b.min, b.max, b.sum, b.first, b.last,
                b.has_metadata, p.bytes, s.id IS NOT NULL
         FROM blocks b LEFT JOIN payloads p ON p.id = b.payload_id
         LEFT JOIN series s ON s.id = b.series_id ORDER BY b.series_id, b.start_ms",
    )
    .fetch(connection);
    let mut before = (i64::MIN, i64::MIN);
    while let Some(row) = rows.try_next().await.map_err(from_sqlx)? {
        let place: (i64, i64) =
            (row.try_get(0).map_err(from_sqlx)?, row.try_get(1).map_err(from_sqlx)?);
        let end_ms: i64 = row.try_get(2).map_err(from_sqlx)?;
        report.pieces += 1;
        if place.0 == before.0 && place.1 <= before.1 {
            note(report, format!("block {place:?}: overlaps the one before"));
        }
        before = (place.0, end_ms);
        match check_block(&row) {
            Ok(count) => report.samples += count,
            Err(error) => note(report, format!("block {place:?}: {}", error.message())),
        }
    }
    Ok(())
}

/// Returns the number of samples of a block that is as it should be.
fn check_block(row: &SqliteRow) -> Result<u64> {
    let payload: Option<&[u8]> = row.try_get(10).map_err(from_sqlx)?;
    let payload = payload.ok_or_else(|| wrong("the payload is missing"))?;
    let samples = block::decode(payload)?;
    let summary = summary_of(&samples);
    let integer = |index: usize| row.try_get::<i64, _>(index).map_err(from_sqlx);
    let real = |index: usize| row.try_get::<f64, _>(index).map_err(from_sqlx).map(Some);
    let has_metadata = samples.iter().any(|sample| sample.metadata.is_some());
    let extent = (samples.first().map(|s| s.ms), samples.last().map(|s| s.ms));
    if extent != (Some(integer(1)?), Some(integer(2)?)) || integer(3)? != samples.len() as i64 {
        return Err(wrong("times or count differ from the summary"));
    }
    let values = (real(4)?, real(5)?, real(6)?, real(7)?, real(8)?);
    if values != (summary.min, summary.max, summary.sum, summary.first, summary.last)
        || (integer(9)? != 0) != has_metadata
    {
        return Err(wrong("the values differ from the summary"));
    }
    if integer(11)? == 0 {
        return Err(wrong("its series is unknown"));
    }
    Ok(samples.len() as u64)
}

async fn check_orphans(connection: &mut SqliteConnection, report: &mut CheckReport) -> Result<()> {
    let orphans = number(
        connection,
        "SELECT (SELECT count(*) FROM payloads) - (SELECT count(DISTINCT payload_id) FROM blocks)",
    )
    .await?;
    if orphans != 0 {
        note(report, format!("{orphans} payloads belong to no block"));
    }
    Ok(())
}

/// Values without a record or that are no JSON. A file of an older version has none.
async fn check_history(connection: &mut SqliteConnection, report: &mut CheckReport) -> Result<()> {
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name = 'record_history'";
    if number(connection, tables).await? == 0 {
        return Ok(());
    }
    let mut rows = sqlx::query(
        "SELECT h.id, n.id IS NULL FROM record_history AS h
         LEFT JOIN record_names AS n ON n.id = h.record_id
         WHERE n.id IS NULL OR NOT json_valid(h.value_json)",
    )
    .fetch(connection);
    while let Some(row) = rows.try_next().await.map_err(from_sqlx)? {
        let id: i64 = row.try_get(0).map_err(from_sqlx)?;
        let problem = match row.try_get(1).map_err(from_sqlx)? {
            true => "its record is unknown",
            false => "it is no JSON",
        };
        note(report, format!("value {id} of the history: {problem}"));
    }
    Ok(())
}

/// Jobs, pipelines and executions that cannot be read, executions without a job, and leases of what
/// is not under way. A file of an older version has none.
async fn check_jobs(connection: &mut SqliteConnection, report: &mut CheckReport) -> Result<()> {
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name = 'scheduled_jobs'";
    if number(connection, tables).await? == 0 {
        return Ok(());
    }
    check_rows(connection, report, rows::JOBS, |row| rows::job_of(row).map(drop)).await?;
    check_rows(connection, report, rows::PIPELINES, |row| rows::pipeline_of(row).map(drop)).await?;
    check_rows(connection, report, rows::EXECUTIONS, |row| rows::execution_of(row).map(drop))
        .await?;
    for (problem, sql) in [
        (
            "its job is unknown",
            "SELECT id FROM job_executions
             WHERE job_id NOT IN (SELECT id FROM scheduled_jobs)",
        ),
        (
            "the lease of its job says that it is under way",
            "SELECT lease_execution_id FROM scheduled_jobs AS j
             WHERE lease_execution_id IS NOT NULL AND NOT EXISTS (
                 SELECT * FROM job_executions AS e WHERE e.id = j.lease_execution_id
                 AND e.job_id = j.id AND e.status = 'running')",
        ),
    ] {
        for row in sqlx::query(sql).fetch_all(&mut *connection).await.map_err(from_sqlx)? {
            let id: String = row.try_get(0).map_err(from_sqlx)?;
            note(report, format!("execution {id:?}: {problem}"));
        }
    }
    Ok(())
}

async fn check_rows(
    connection: &mut SqliteConnection,
    report: &mut CheckReport,
    sql: &'static str,
    check: impl Fn(&SqliteRow) -> Result<()>,
) -> Result<()> {
    let mut rows = sqlx::query(sql).fetch(connection);
    while let Some(row) = rows.try_next().await.map_err(from_sqlx)? {
        if let Err(error) = check(&row) {
            note(report, error.to_string());
        }
    }
    Ok(())
}

fn wrong(problem: &'static str) -> Error {
    crate::codec::corrupt(problem)
}

pub(crate) fn note(report: &mut CheckReport, problem: String) {
    if report.problems.len() < PROBLEMS_MAX {
        report.problems.push(problem);
    }
}
