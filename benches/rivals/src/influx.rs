//! InfluxDB 1.x, as Debian packages it, over HTTP. It syncs its log for every write.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use storage_benches::queries::{Draw, Question, Row};
use storage_benches::tsbs::FIELDS;
use storage_core::MetricRecord;

use crate::engine::{Engine, Kind, Mode, Opened, Result};
use crate::server::{Server, free_address, is_installed, lines, package_version};

const PROGRAM: &str = "influxd";
const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 3_600_000;

pub(crate) const KIND: Kind =
    Kind { name: "influxdb", open, version: || package_version("influxdb") };

struct Influx(Server);

fn open(folder: &Path, mode: Mode) -> Opened {
    if !is_installed(PROGRAM) {
        return Ok(Err("not installed"));
    }
    if mode == Mode::Periodic {
        return Ok(Err("has no such mode"));
    }
    let address = free_address()?;
    let mut command = Command::new(PROGRAM);
    command.env("INFLUXDB_HTTP_BIND_ADDRESS", &address);
    command.env("INFLUXDB_BIND_ADDRESS", free_address()?);
    for (name, part) in [("META_DIR", "meta"), ("DATA_DIR", "data"), ("DATA_WAL_DIR", "wal")] {
        command.env(format!("INFLUXDB_{name}"), folder.join(part));
    }
    command.env("INFLUXDB_META_DIR", folder.join("meta"));
    command.env("INFLUXDB_REPORTING_DISABLED", "true");
    command.env("INFLUXDB_MONITOR_STORE_ENABLED", "false");
    command.env("INFLUXDB_DATA_QUERY_LOG_ENABLED", "false");
    command.env("INFLUXDB_HTTP_LOG_ENABLED", "false");
    // What it does after minutes of quiet happens within seconds, so that its size can be measured.
    command.env("INFLUXDB_DATA_CACHE_SNAPSHOT_WRITE_COLD_DURATION", "2s");
    command.env("INFLUXDB_DATA_COMPACT_FULL_WRITE_COLD_DURATION", "2s");
    let server = Server::start(command, address, "/ping", folder)?;
    server.post("/query", &[("q", "CREATE DATABASE bench")], "")?;
    Ok(Ok(Box::new(Influx(server))))
}

impl Engine for Influx {
    fn write(&mut self, records: &[MetricRecord]) -> Result<()> {
        self.0.post("/write", &[("db", "bench"), ("precision", "ms")], &lines(records, false))
    }

    fn settle(&mut self) -> Result<()> {
        self.0.wait_until_quiet();
        Ok(())
    }

    fn ask(&mut self, question: Question, draw: &Draw) -> Result<Option<Vec<Row>>> {
        let start_ms = draw.start().timestamp_millis();
        let within = |from_ms: i64, to_ms: i64| {
            format!("time >= {}ms AND time < {}ms", start_ms + from_ms, start_ms + to_ms)
        };
        let hours = |hours: i64| within(0, hours * HOUR_MS);
        let hosts = draw.hosts().iter().map(|host| format!("host = '{host}'"));
        let hosts = hosts.collect::<Vec<_>>().join(" OR ");
        let select = |function: &str, fields: usize| {
            let column = |field: &&str| format!("{function}({field}) AS {field}");
            FIELDS[..fields].iter().map(column).collect::<Vec<_>>().join(", ")
        };
        let ask = match question {
            Question::SingleGroupby { fields, hours: length, .. } => format!(
                "SELECT {} FROM cpu WHERE ({hosts}) AND {} GROUP BY time(1m) fill(none)",
                select("max", fields),
                hours(length)
            ),
            Question::CpuMaxAll { .. } => format!(
                "SELECT {} FROM cpu WHERE ({hosts}) AND {} GROUP BY time(1h) fill(none)",
                select("max", FIELDS.len()),
                hours(8)
            ),
            Question::DoubleGroupby { fields } => format!(
                "SELECT {} FROM cpu WHERE {} GROUP BY time(1h), host fill(none)",
                select("mean", fields),
                hours(12)
            ),
            Question::Lastpoint => {
                "SELECT * FROM cpu GROUP BY host ORDER BY time DESC LIMIT 1".to_owned()
            }
            Question::GroupbyOrderbyLimit => format!(
                "SELECT max({}) AS max FROM cpu WHERE {} GROUP BY time(1m) fill(none) \
                 ORDER BY time DESC LIMIT 5",
                FIELDS[0],
                within(-5 * MINUTE_MS, 0)
            ),
            Question::HighCpu => format!(
                "SELECT {} FROM cpu WHERE {} > 90 AND ({hosts}) AND {}",
                FIELDS.join(", "),
                FIELDS[0],
                hours(12)
            ),
        };
        Ok(Some(self.query(&ask)?))
    }
}

impl Influx {
    fn query(&self, ask: &str) -> Result<Vec<Row>> {
        let body = self.0.get("/query", &[("db", "bench"), ("epoch", "ms"), ("q", ask)])?;
        let answer: Value = serde_json::from_str(&body)?;
        if let Some(error) = answer["results"][0]["error"].as_str() {
            return Err(format!("{ask}: {error}").into());
        }
        let mut rows = Vec::new();
        for series in answer["results"][0]["series"].as_array().into_iter().flatten() {
            rows.extend(rows_of(series)?);
        }
        Ok(rows)
    }
}

fn rows_of(series: &Value) -> Result<Vec<Row>> {
    let columns = series["columns"].as_array().ok_or("a series without columns")?;
    let host = series["tags"]["host"].as_str();
    let mut rows = Vec::new();
    for values in series["values"].as_array().into_iter().flatten() {
        let time_ms = values[0].as_i64().ok_or("a row without time")?;
        for (index, column) in columns.iter().enumerate().skip(1) {
            let column = column.as_str().ok_or("a column without name")?;
            let name = host.map_or_else(|| column.to_owned(), |host| format!("{host} {column}"));
            if let Some(value) = values[index].as_f64() {
                rows.push((name, time_ms, value));
            }
        }
    }
    Ok(rows)
}
