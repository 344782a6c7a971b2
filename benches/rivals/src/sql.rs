//! The questions in SQL, over a table `metrics` with a row per sample.

use storage_benches::queries::{Draw, Question};
use storage_benches::tsbs::FIELDS;

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 3_600_000;

/// Where the dialects differ: the value of the newest row of a group.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Dialect {
    /// A bare column beside `max` is of the row that has the maximum.
    Sqlite,
    /// There is a function for it.
    #[cfg_attr(not(feature = "duckdb"), expect(dead_code, reason = "DuckDB is a feature"))]
    DuckDb,
}

/// A bound parameter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Parameter {
    Text(String),
    Integer(i64),
}

/// Returns a statement whose rows are name, time in milliseconds and value, and its parameters.
pub(crate) fn statement(
    dialect: Dialect,
    question: Question,
    draw: &Draw,
) -> (String, Vec<Parameter>) {
    match question {
        Question::SingleGroupby { fields, hours, .. } => {
            maxima(&FIELDS[..fields], draw, hours, MINUTE_MS)
        }
        Question::CpuMaxAll { .. } => maxima(&FIELDS, draw, 8, HOUR_MS),
        Question::DoubleGroupby { fields } => averages(&FIELDS[..fields], draw),
        Question::Lastpoint => (newest(dialect), Vec::new()),
        Question::GroupbyOrderbyLimit => newest_minutes(draw),
        Question::HighCpu => high_cpu(draw),
    }
}

fn maxima(fields: &[&str], draw: &Draw, hours: i64, width_ms: i64) -> (String, Vec<Parameter>) {
    let sql = format!(
        "SELECT metric_type, timestamp - timestamp % {width_ms} AS start, max(value)
         FROM metrics
         WHERE server_id IN ({}) AND metric_type IN ({}) AND timestamp >= ? AND timestamp < ?
         GROUP BY metric_type, start",
        marks(draw.hosts().len()),
        marks(fields.len())
    );
    let mut parameters: Vec<_> = draw.hosts().iter().cloned().map(Parameter::Text).collect();
    parameters.extend(texts(fields));
    parameters.extend(range(draw, 0, hours * HOUR_MS));
    (sql, parameters)
}

fn averages(fields: &[&str], draw: &Draw) -> (String, Vec<Parameter>) {
    let sql = format!(
        "SELECT server_id || ' ' || metric_type, timestamp - timestamp % {HOUR_MS} AS start,
             avg(value)
         FROM metrics
         WHERE metric_type IN ({}) AND timestamp >= ? AND timestamp < ?
         GROUP BY server_id, metric_type, start",
        marks(fields.len())
    );
    (sql, texts(fields).chain(range(draw, 0, 12 * HOUR_MS)).collect())
}

fn newest(dialect: Dialect) -> String {
    let value = match dialect {
        Dialect::Sqlite => "value",
        Dialect::DuckDb => "arg_max(value, timestamp)",
    };
    format!(
        "SELECT server_id || ' ' || metric_type, max(timestamp), {value}
         FROM metrics GROUP BY server_id, metric_type"
    )
}

fn newest_minutes(draw: &Draw) -> (String, Vec<Parameter>) {
    let sql = format!(
        "SELECT 'max', timestamp - timestamp % {MINUTE_MS} AS start, max(value)
         FROM metrics
         WHERE metric_type = ? AND timestamp >= ? AND timestamp < ?
         GROUP BY start ORDER BY start DESC LIMIT 5"
    );
    (sql, texts(&FIELDS[..1]).chain(range(draw, -5 * MINUTE_MS, 0)).collect())
}

fn high_cpu(draw: &Draw) -> (String, Vec<Parameter>) {
    let sql = "SELECT metric_type, timestamp, value
         FROM metrics
         WHERE server_id = ? AND timestamp >= ? AND timestamp < ? AND timestamp IN (
             SELECT timestamp FROM metrics
             WHERE server_id = ? AND timestamp >= ? AND timestamp < ?
                 AND metric_type = ? AND value > 90)";
    let place =
        || draw.hosts().iter().cloned().map(Parameter::Text).chain(range(draw, 0, 12 * HOUR_MS));
    (sql.to_owned(), place().chain(place()).chain(texts(&FIELDS[..1])).collect())
}

fn marks(count: usize) -> String {
    vec!["?"; count].join(", ")
}

fn texts(names: &[&str]) -> impl Iterator<Item = Parameter> {
    names.iter().map(|name| Parameter::Text((*name).to_owned()))
}

/// A range of time from the start of the question on.
fn range(draw: &Draw, from_ms: i64, to_ms: i64) -> [Parameter; 2] {
    let start_ms = draw.start().timestamp_millis();
    [Parameter::Integer(start_ms + from_ms), Parameter::Integer(start_ms + to_ms)]
}
