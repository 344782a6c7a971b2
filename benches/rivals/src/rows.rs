//! rusqlite with a row per sample: the schema of the design that this project grew from.

use std::path::Path;

use rusqlite::types::Value;
use rusqlite::{Connection, params, params_from_iter};
use storage_benches::queries::{Draw, Question, Row};
use storage_core::MetricRecord;

use crate::engine::{Engine, Kind, Mode, Opened, Result};
use crate::sql::{Dialect, Parameter, statement};

pub(crate) const KIND: Kind = Kind {
    name: "rusqlite",
    open,
    version: || Some(format!("{} (SQLite {})", crate::locked("rusqlite"), rusqlite::version())),
};

const SCHEMA: &str = "
    CREATE TABLE metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, server_id TEXT NOT NULL,
        timestamp INTEGER NOT NULL, metric_type TEXT NOT NULL, value REAL NOT NULL, metadata TEXT);
    CREATE INDEX idx_metrics_server_time ON metrics(server_id, timestamp DESC);
    CREATE INDEX idx_metrics_type_time ON metrics(metric_type, timestamp DESC);";

struct Rows(Connection);

fn open(folder: &Path, mode: Mode) -> Opened {
    let connection = Connection::open(folder.join("rows.db"))?;
    let synchronous = match mode {
        Mode::Durable => "FULL",
        Mode::Periodic => "NORMAL",
    };
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.execute_batch(SCHEMA)?;
    Ok(Ok(Box::new(Rows(connection))))
}

impl Engine for Rows {
    fn write(&mut self, records: &[MetricRecord]) -> Result<()> {
        let transaction = self.0.transaction()?;
        {
            let mut insert = transaction.prepare(
                "INSERT INTO metrics (server_id, timestamp, metric_type, value, metadata)
                 VALUES (?, ?, ?, ?, NULL)",
            )?;
            for record in records {
                let time_ms = record.timestamp.timestamp_millis();
                insert.execute(params![
                    record.server_id,
                    time_ms,
                    record.metric_type,
                    record.value
                ])?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn settle(&mut self) -> Result<()> {
        Ok(self.0.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?)
    }

    fn ask(&mut self, question: Question, draw: &Draw) -> Result<Option<Vec<Row>>> {
        let (sql, parameters) = statement(Dialect::Sqlite, question, draw);
        let parameters = parameters.into_iter().map(|parameter| match parameter {
            Parameter::Text(text) => Value::Text(text),
            Parameter::Integer(integer) => Value::Integer(integer),
        });
        let mut prepared = self.0.prepare(&sql)?;
        let found = prepared.query_map(params_from_iter(parameters), |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
        Ok(Some(found.collect::<rusqlite::Result<_>>()?))
    }
}
