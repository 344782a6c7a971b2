//! DuckDB, embedded, with a row per sample: an appender and a transaction for each batch.

#[cfg(not(feature = "duckdb"))]
pub(crate) use absent::KIND;
#[cfg(feature = "duckdb")]
pub(crate) use present::KIND;

#[cfg(not(feature = "duckdb"))]
mod absent {
    use crate::engine::Kind;

    pub(crate) const KIND: Kind =
        Kind { name: "duckdb", open: |_, _| Ok(Err("not installed")), version: || None };
}

#[cfg(feature = "duckdb")]
mod present {
    use std::path::Path;

    use duckdb::types::Value;
    use duckdb::{Connection, params, params_from_iter};
    use storage_benches::queries::{Draw, Question, Row};
    use storage_core::MetricRecord;

    use crate::engine::{Engine, Kind, Mode, Opened, Result};
    use crate::sql::{Dialect, Parameter, statement};

    pub(crate) const KIND: Kind = Kind {
        name: "duckdb",
        open,
        version: || Connection::open_in_memory().and_then(|open| open.version()).ok(),
    };

    const SCHEMA: &str =
        "CREATE TABLE metrics (server_id VARCHAR NOT NULL, timestamp BIGINT NOT NULL,
        metric_type VARCHAR NOT NULL, value DOUBLE NOT NULL)";

    struct Duck(Connection);

    fn open(folder: &Path, mode: Mode) -> Opened {
        if mode == Mode::Periodic {
            return Ok(Err("has no such mode"));
        }
        let connection = Connection::open(folder.join("duck.db"))?;
        connection.execute_batch(SCHEMA)?;
        Ok(Ok(Box::new(Duck(connection))))
    }

    impl Engine for Duck {
        fn write(&mut self, records: &[MetricRecord]) -> Result<()> {
            self.0.execute_batch("BEGIN")?;
            let mut appender = self.0.appender("metrics")?;
            for record in records {
                let time_ms = record.timestamp.timestamp_millis();
                let MetricRecord { server_id, metric_type, value, .. } = record;
                appender.append_row(params![server_id, time_ms, metric_type, value])?;
            }
            appender.flush()?;
            drop(appender);
            Ok(self.0.execute_batch("COMMIT")?)
        }

        fn settle(&mut self) -> Result<()> {
            Ok(self.0.execute_batch("CHECKPOINT")?)
        }

        fn ask(&mut self, question: Question, draw: &Draw) -> Result<Option<Vec<Row>>> {
            let (sql, parameters) = statement(Dialect::DuckDb, question, draw);
            let parameters = parameters.into_iter().map(|parameter| match parameter {
                Parameter::Text(text) => Value::Text(text),
                Parameter::Integer(integer) => Value::BigInt(integer),
            });
            let mut prepared = self.0.prepare(&sql)?;
            let found = prepared.query_map(params_from_iter(parameters), |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
            Ok(Some(found.collect::<duckdb::Result<_>>()?))
        }
    }
}
