//! VictoriaMetrics, as Debian packages it, over HTTP. It syncs its files by the second, never a
//! batch. Its windows cannot be cut at the edges of a range.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use storage_benches::queries::{Draw, Question, Row};
use storage_benches::tsbs::FIELDS;
use storage_core::MetricRecord;

use crate::engine::{Engine, Kind, Mode, Opened, Result};
use crate::server::{Server, free_address, is_installed, lines, package_version};

const PROGRAM: &str = "victoria-metrics";
const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 3_600_000;

pub(crate) const KIND: Kind =
    Kind { name: "victoria-metrics", open, version: || package_version("victoria-metrics") };

struct Victoria(Server);

fn open(folder: &Path, mode: Mode) -> Opened {
    if !is_installed(PROGRAM) {
        return Ok(Err("not installed"));
    }
    if mode == Mode::Durable {
        return Ok(Err("has no such mode"));
    }
    let address = free_address()?;
    let mut command = Command::new(PROGRAM);
    command.arg(format!("-storageDataPath={}", folder.display()));
    command.arg(format!("-httpListenAddr={address}"));
    // The data is of 2016; it must not count as out of date.
    command.arg("-retentionPeriod=100y");
    Ok(Ok(Box::new(Victoria(Server::start(command, address, "/health", folder)?))))
}

impl Engine for Victoria {
    fn write(&mut self, records: &[MetricRecord]) -> Result<()> {
        self.0.post("/write", &[], &lines(records, true))
    }

    fn settle(&mut self) -> Result<()> {
        self.0.get("/internal/force_flush", &[])?;
        self.0.get("/internal/force_merge", &[])?;
        self.0.wait_until_quiet();
        Ok(())
    }

    fn ask(&mut self, question: Question, draw: &Draw) -> Result<Option<Vec<Row>>> {
        let hosts = draw.hosts().join("|");
        let maxima = |fields: usize, window: &str| {
            let names = FIELDS[..fields].join("|");
            format!(
                "max(max_over_time({{__name__=~\"cpu_({names})\",host=~\"{hosts}\"}}[{window}]) \
                 keep_metric_names) by (__name__)"
            )
        };
        let start_ms = draw.start().timestamp_millis();
        Ok(match question {
            Question::SingleGroupby { fields, hours, .. } => {
                Some(self.range(&maxima(fields, "1m"), start_ms, hours, MINUTE_MS)?)
            }
            Question::CpuMaxAll { .. } => {
                Some(self.range(&maxima(FIELDS.len(), "1h"), start_ms, 8, HOUR_MS)?)
            }
            Question::DoubleGroupby { fields } => {
                let names = FIELDS[..fields].join("|");
                let ask =
                    format!("avg_over_time({{__name__=~\"cpu_({names})\"}}[1h]) keep_metric_names");
                Some(self.range(&ask, start_ms, 12, HOUR_MS)?)
            }
            // As in the suite.
            Question::Lastpoint | Question::GroupbyOrderbyLimit | Question::HighCpu => None,
        })
    }

    fn has_rough_edges(&self) -> bool {
        true
    }
}

impl Victoria {
    /// A window before each step, its end included: asked for a millisecond before the end of
    /// each window of ours, it covers the same samples.
    fn range(&self, ask: &str, start_ms: i64, hours: i64, width_ms: i64) -> Result<Vec<Row>> {
        let first_ms = start_ms - start_ms.rem_euclid(width_ms) + width_ms - 1;
        let seconds = |ms: i64| format!("{}.{:03}", ms / 1000, ms % 1000);
        let (start, end) = (seconds(first_ms), seconds(first_ms + hours * HOUR_MS));
        let step = format!("{}s", width_ms / 1000);
        let query =
            [("query", ask), ("start", &start), ("end", &end), ("step", &step), ("nocache", "1")];
        let answer: Value = serde_json::from_str(&self.0.get("/api/v1/query_range", &query)?)?;
        let mut rows = Vec::new();
        for series in answer["data"]["result"].as_array().ok_or("an answer without result")? {
            rows.extend(rows_of(series, width_ms)?);
        }
        Ok(rows)
    }
}

fn rows_of(series: &Value, width_ms: i64) -> Result<Vec<Row>> {
    let labels = &series["metric"];
    let metric = labels["__name__"].as_str().ok_or("a series without name")?;
    let metric = metric.strip_prefix("cpu_").unwrap_or(metric);
    let name = match labels["host"].as_str() {
        Some(host) => format!("{host} {metric}"),
        None => metric.to_owned(),
    };
    let mut rows = Vec::new();
    for point in series["values"].as_array().into_iter().flatten() {
        let time_s = point[0].as_f64().ok_or("a point without time")?;
        let value: f64 = point[1].as_str().ok_or("a point without value")?.parse()?;
        let end_ms = (time_s * 1000.0).round() as i64;
        rows.push((name.clone(), end_ms + 1 - width_ms, value));
    }
    Ok(rows)
}
