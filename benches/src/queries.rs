//! The questions of TSBS `cpu-only` that the contract can express, over any backend, so that one
//! backend's answers can be compared with another's.
//!
//! Where the suite's description and its code differ, the code counts: single-groupby groups by
//! the minute, double-groupby covers twelve hours.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::TryStreamExt;
use storage_core::{
    Matcher, MetricAggregation, MetricRecord, Result, Sample, SeriesFilter, SeriesSamples,
    StorageBackend, TimeRange, Window,
};

use crate::tsbs::FIELDS;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// What counts as high, and how near to each other stretches of that are read as one.
const HIGH: f64 = 90.0;
const NEAR: Duration = Duration::from_secs(600);

/// One kind of question, named as in the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Maximum by the minute of the first `fields` fields of `hosts` hosts over `hours` hours.
    SingleGroupby {
        /// How many of the fields.
        fields: usize,
        /// How many hosts.
        hosts: usize,
        /// Over how many hours.
        hours: i64,
    },
    /// Maximum by the hour of every field of some hosts over eight hours.
    CpuMaxAll {
        /// How many hosts.
        hosts: usize,
    },
    /// Average by the hour of the first fields of every host over twelve hours.
    DoubleGroupby {
        /// How many of the fields.
        fields: usize,
    },
    /// The newest sample of every series.
    Lastpoint,
    /// Maximum of the first field over all hosts by the minute, the newest five minutes before a
    /// random time.
    GroupbyOrderbyLimit,
    /// All samples of one host's fields at times when its first field is above 90, in twelve hours.
    HighCpu,
}

/// The questions of the table, with their names.
pub const QUESTIONS: &[(&str, Question)] = &[
    ("single-groupby-1-1-1", Question::SingleGroupby { fields: 1, hosts: 1, hours: 1 }),
    ("single-groupby-1-1-12", Question::SingleGroupby { fields: 1, hosts: 1, hours: 12 }),
    ("single-groupby-1-8-1", Question::SingleGroupby { fields: 1, hosts: 8, hours: 1 }),
    ("single-groupby-5-1-1", Question::SingleGroupby { fields: 5, hosts: 1, hours: 1 }),
    ("single-groupby-5-8-1", Question::SingleGroupby { fields: 5, hosts: 8, hours: 1 }),
    ("cpu-max-all-1", Question::CpuMaxAll { hosts: 1 }),
    ("cpu-max-all-8", Question::CpuMaxAll { hosts: 8 }),
    ("double-groupby-1", Question::DoubleGroupby { fields: 1 }),
    ("double-groupby-all", Question::DoubleGroupby { fields: FIELDS.len() }),
    ("lastpoint", Question::Lastpoint),
    ("groupby-orderby-limit", Question::GroupbyOrderbyLimit),
    ("high-cpu-1", Question::HighCpu),
];

/// One row of an answer: a name, a time in milliseconds, a value.
pub type Row = (String, i64, f64);

/// Where and over what a question is asked.
#[derive(Debug, Clone)]
pub struct Draw {
    /// The hosts asked about; none where all are.
    pub hosts: Vec<String>,
    /// Where the time asked about starts.
    pub start: DateTime<Utc>,
}

impl Draw {
    /// Draws hosts out of `hosts_total` and a start so that the question's time fits into the
    /// data, as far as that is long enough.
    pub fn of(
        question: Question,
        hosts_total: usize,
        data: TimeRange,
        random: &mut fastrand::Rng,
    ) -> Self {
        let (hosts, hours) = match question {
            Question::SingleGroupby { hosts, hours, .. } => (hosts, hours),
            Question::CpuMaxAll { hosts } => (hosts, 8),
            Question::HighCpu => (1, 12),
            _ => (0, 12),
        };
        let span_s = (data.end() - data.start()).num_seconds() - hours * 3600;
        let start = data.start() + chrono::Duration::seconds(random.i64(0..span_s.max(1)));
        let chosen = random.choose_multiple(0..hosts_total, hosts);
        Self { hosts: chosen.iter().map(|host| format!("host_{host}")).collect(), start }
    }

    /// The hosts that the question is about; none if it is about all.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// The time that the question starts at; that of groupby-orderby-limit ends there.
    pub fn start(&self) -> DateTime<Utc> {
        self.start
    }

    fn hours(&self, hours: i64) -> Result<TimeRange> {
        TimeRange::new(self.start, self.start + chrono::Duration::hours(hours))
    }
}

/// Asks `question` and returns the rows of the answer.
///
/// # Errors
/// Those of the backend.
pub async fn ask(store: &dyn StorageBackend, question: Question, draw: &Draw) -> Result<Vec<Row>> {
    match question {
        Question::SingleGroupby { fields, hours, .. } => {
            let range = draw.hours(hours)?;
            max_over_hosts(store, &FIELDS[..fields], draw, range, MINUTE).await
        }
        Question::CpuMaxAll { .. } => {
            max_over_hosts(store, &FIELDS, draw, draw.hours(8)?, HOUR).await
        }
        Question::DoubleGroupby { fields } => double_groupby(store, fields, draw.hours(12)?).await,
        Question::Lastpoint => lastpoint(store).await,
        Question::GroupbyOrderbyLimit => newest_minutes(store, draw.start).await,
        Question::HighCpu => high_cpu(store, draw).await,
    }
}

async fn max_over_hosts(
    store: &dyn StorageBackend,
    fields: &[&str],
    draw: &Draw,
    range: TimeRange,
    width: Duration,
) -> Result<Vec<Row>> {
    let filter = SeriesFilter {
        server_id: Matcher::any_of(&draw.hosts)?,
        metric_type: Matcher::any_of(fields)?,
    };
    let mut rows: Vec<Row> = Vec::new();
    for found in store.windows(&filter, range, width).await? {
        let name = &found.series.metric_type;
        rows.extend(rows_of(name, &found.windows, |aggregation| aggregation.max));
    }
    Ok(merged(rows, f64::max))
}

async fn double_groupby(
    store: &dyn StorageBackend,
    fields: usize,
    range: TimeRange,
) -> Result<Vec<Row>> {
    let fields = &FIELDS[..fields];
    let filter = SeriesFilter { server_id: Matcher::any(), metric_type: Matcher::any_of(fields)? };
    let mut rows = Vec::new();
    for found in store.windows(&filter, range, HOUR).await? {
        let name = found.series.to_string();
        rows.extend(rows_of(&name, &found.windows, |aggregation| aggregation.avg));
    }
    Ok(rows)
}

async fn lastpoint(store: &dyn StorageBackend) -> Result<Vec<Row>> {
    let found = store.latest(&SeriesFilter::any(), 1).await?;
    let rows = found.into_iter().flat_map(|found| {
        let name = found.series.to_string();
        let samples = found.samples.into_iter();
        samples.map(move |sample| (name.clone(), sample.timestamp.timestamp_millis(), sample.value))
    });
    Ok(rows.collect())
}

async fn newest_minutes(store: &dyn StorageBackend, end: DateTime<Utc>) -> Result<Vec<Row>> {
    let filter =
        SeriesFilter { server_id: Matcher::any(), metric_type: Matcher::exact(FIELDS[0])? };
    // Every host reports in every minute, so that the last five are the newest five.
    let range = TimeRange::new(end - chrono::Duration::minutes(5), end)?;
    let mut rows: Vec<Row> = Vec::new();
    for found in store.windows(&filter, range, MINUTE).await? {
        rows.extend(rows_of("max", &found.windows, |aggregation| aggregation.max));
    }
    let mut newest = merged(rows, f64::max);
    newest.reverse();
    newest.truncate(5);
    Ok(newest)
}

/// Asks for the first field, and then for all fields around the times at which it is high.
async fn high_cpu(store: &dyn StorageBackend, draw: &Draw) -> Result<Vec<Row>> {
    let (range, host) = (draw.hours(12)?, &draw.hosts[0]);
    let first = store.query_range(host, FIELDS[0], range).await?;
    let is_high = |record: &MetricRecord| (record.value > HIGH).then_some(record.timestamp);
    let high: BTreeSet<_> = first.iter().filter_map(is_high).collect();
    let all =
        SeriesFilter { server_id: Matcher::exact(host)?, metric_type: Matcher::any_of(FIELDS)? };
    let mut rows: Vec<Row> = Vec::new();
    for stretch in stretches(&high)? {
        let mut batches = store.scan(&all, stretch);
        while let Some(SeriesSamples { series, samples }) = batches.try_next().await? {
            let chosen = samples.into_iter().filter(|sample| high.contains(&sample.timestamp));
            let row =
                |s: Sample| (series.metric_type.clone(), s.timestamp.timestamp_millis(), s.value);
            rows.extend(chosen.map(row));
        }
    }
    rows.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    Ok(rows)
}

/// Joins times to stretches; what lies between two that are near each other is cheaper to read
/// than to leave out.
fn stretches(times: &BTreeSet<DateTime<Utc>>) -> Result<Vec<TimeRange>> {
    let mut bounds: Vec<(DateTime<Utc>, DateTime<Utc>)> = Vec::new();
    for &start in times {
        let end = start + TimeDelta::milliseconds(1);
        match bounds.last_mut() {
            Some(last) if start <= last.1 + NEAR => last.1 = end,
            _ => bounds.push((start, end)),
        }
    }
    bounds.into_iter().map(|(start, end)| TimeRange::new(start, end)).collect()
}

fn rows_of(
    name: &str,
    windows: &[Window],
    value: impl Fn(&MetricAggregation) -> Option<f64>,
) -> Vec<Row> {
    let row = |window: &Window| {
        let start_ms = window.start.timestamp_millis();
        Some((name.to_owned(), start_ms, value(&window.aggregation)?))
    };
    windows.iter().filter_map(row).collect()
}

/// Joins rows of the same name and time, ordered by both.
fn merged(mut rows: Vec<Row>, join: impl Fn(f64, f64) -> f64) -> Vec<Row> {
    rows.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    let mut merged: Vec<Row> = Vec::new();
    for row in rows {
        match merged.last_mut() {
            Some(last) if last.0 == row.0 && last.1 == row.1 => last.2 = join(last.2, row.2),
            _ => merged.push(row),
        }
    }
    merged
}

/// Says how an answer differs from what is expected. `None` if it does not: averages may differ in
/// the last digits.
pub fn difference(answer: &[Row], expected: &[Row]) -> Option<String> {
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs().max(1.0);
    let same = |(a, b): &(&Row, &Row)| a.0 == b.0 && a.1 == b.1 && close(a.2, b.2);
    if answer.len() != expected.len() {
        return Some(format!("{} rows, expected {}", answer.len(), expected.len()));
    }
    let other = answer.iter().zip(expected).find(|pair| !same(pair));
    other.map(|(found, expected)| format!("{found:?}, expected {expected:?}"))
}
