//! One operation of a random sequence: what it is, how it reads, and how it is drawn.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use storage_core::metrics::time::{END_MS, MIN_MS};
use storage_core::{MetricRecord, SeriesFilter, SeriesKey, TimeRange};

use crate::data::{NOON, ODD_NAMES, at, at_us, range};

/// An operation, and the handle that does it: the number modulo how many are open, so that a
/// sequence stays a sequence whatever is removed from it.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) handle: usize,
    pub(super) action: Action,
}

#[derive(Debug, Clone)]
pub(super) enum Action {
    Write(Vec<MetricRecord>),
    Query(SeriesKey, TimeRange),
    Aggregate(SeriesKey, TimeRange),
    Prune(DateTime<Utc>),
    Stats,
    Series(SeriesFilter),
    Latest(SeriesFilter, usize),
    Windows(SeriesFilter, TimeRange, Duration),
    Scan(SeriesFilter, TimeRange),
    Flush,
    Compact,
    Check,
    /// Open another handle.
    Open,
    /// Close the handle; where it was the only one, open another afterwards.
    Close,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "handle {}: {}", self.handle, self.action)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(records) => write_records(f, records),
            Self::Query(key, range) => write!(f, "query {} {}", named(key), Bounds(range)),
            Self::Aggregate(key, range) => write!(f, "aggregate {} {}", named(key), Bounds(range)),
            Self::Prune(cutoff) => write!(f, "prune before {} us", cutoff.timestamp_micros()),
            Self::Stats => f.write_str("stats"),
            Self::Series(filter) => write!(f, "series {}", chosen(filter)),
            Self::Latest(filter, n) => write!(f, "latest {n} of {}", chosen(filter)),
            Self::Windows(filter, range, width) => {
                write!(f, "windows of {width:?} of {} {}", chosen(filter), Bounds(range))
            }
            Self::Scan(filter, range) => write!(f, "scan {} {}", chosen(filter), Bounds(range)),
            Self::Flush => f.write_str("flush"),
            Self::Compact => f.write_str("compact"),
            Self::Check => f.write_str("check"),
            Self::Open => f.write_str("open another handle"),
            Self::Close => f.write_str("close"),
        }
    }
}

fn write_records(f: &mut fmt::Formatter<'_>, records: &[MetricRecord]) -> fmt::Result {
    const SHOWN_MAX: usize = 12;
    write!(f, "write {} records", records.len())?;
    for record in records.iter().take(SHOWN_MAX) {
        let MetricRecord { server_id, metric_type, timestamp, value, metadata } = record;
        let names = named(&SeriesKey::new(shortened(server_id), shortened(metric_type)));
        write!(f, "\n       {names} at {} us = {value:e}", timestamp.timestamp_micros())?;
        if let Some(metadata) = metadata {
            write!(f, " {}", shortened(&metadata.to_string()))?;
        }
    }
    match records.len() > SHOWN_MAX {
        true => write!(f, "\n       ..."),
        false => Ok(()),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

fn named(key: &SeriesKey) -> String {
    format!("{:?} {:?}", key.server_id, key.metric_type)
}

fn chosen(filter: &SeriesFilter) -> String {
    format!("{:?} {:?}", filter.server_id.to_string(), filter.metric_type.to_string())
}

struct Bounds<'a>(&'a TimeRange);

impl fmt::Display for Bounds<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self.0 == TimeRange::all() {
            true => f.write_str("at all times"),
            false => write!(f, "in [{} ms, {} ms)", self.0.start_ms(), self.0.end_ms()),
        }
    }
}

/// Draws steps. Everything follows from the seed, the character of the sequence included: how
/// late samples come, where in time they stand, how often upkeep runs.
pub(super) struct Generator {
    random: fastrand::Rng,
    series: Vec<SeriesKey>,
    /// Times that were written, to be hit again.
    times_ms: Vec<i64>,
    clock_ms: i64,
    step_ms_max: i64,
    late_percent: u32,
    upkeep_percent: u32,
    /// Only the five required methods, and handles.
    required_only: bool,
}

impl Generator {
    pub(super) fn new(seed: u64, required_only: bool) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        // 1970 has both signs; year 1 and 9999 are the ends of what can be stored.
        let starts = [NOON, NOON, NOON, -40_000, MIN_MS, END_MS - 800_000];
        let clock_ms = starts[random.usize(..starts.len())];
        let step_ms_max = [1, 10, 1_000, 60_000][random.usize(..4)];
        let late_percent = [5, 25, 60][random.usize(..3)];
        let upkeep_percent = [4, 10, 20][random.usize(..3)];
        let series = series_of(&mut random);
        let times_ms = vec![clock_ms];
        Self {
            random,
            series,
            times_ms,
            clock_ms,
            step_ms_max,
            late_percent,
            upkeep_percent,
            required_only,
        }
    }

    /// Returns the next `count` steps.
    pub(super) fn steps(&mut self, count: usize) -> Vec<Step> {
        (0..count).map(|_| Step { handle: self.random.usize(..8), action: self.action() }).collect()
    }

    /// The series that records are drawn from.
    pub(super) fn series(&self) -> &[SeriesKey] {
        &self.series
    }

    fn action(&mut self) -> Action {
        if self.random.u32(..100) < self.upkeep_percent {
            return self.upkeep();
        }
        let kinds = if self.required_only { 10 } else { 16 };
        match self.random.u32(..kinds) {
            0..=4 => Action::Write(self.batch()),
            5..=6 => Action::Query(self.some_series(), self.some_range()),
            7..=8 => Action::Aggregate(self.some_series(), self.some_range()),
            9 => Action::Stats,
            10 => Action::Series(self.some_filter()),
            11 => Action::Latest(self.some_filter(), [0, 1, 2, 7, 1000][self.random.usize(..5)]),
            12..=13 => Action::Windows(self.some_filter(), self.some_range(), self.some_width()),
            _ => Action::Scan(self.some_filter(), self.some_range()),
        }
    }

    fn upkeep(&mut self) -> Action {
        let kind = self.random.u32(..10);
        match kind {
            0..=2 => Action::Prune(self.some_cutoff()),
            3 => Action::Open,
            4 => Action::Close,
            _ if self.required_only => Action::Stats,
            5 => Action::Flush,
            6 => Action::Check,
            _ => Action::Compact,
        }
    }

    fn batch(&mut self) -> Vec<MetricRecord> {
        let size = match self.random.u32(..20) {
            0 => 0,
            1..=8 => self.random.usize(1..4),
            9..=17 => self.random.usize(1..40),
            _ => self.random.usize(100..700),
        };
        let mut records: Vec<_> = (0..size).map(|_| self.record()).collect();
        if self.random.u32(..100) < 4 {
            let place = self.random.usize(..=records.len());
            let bad = self.bad_record();
            records.insert(place, bad);
        }
        records
    }

    fn record(&mut self) -> MetricRecord {
        let key = self.random.usize(..self.series.len());
        let time = self.some_time();
        let SeriesKey { server_id, metric_type } = self.series[key].clone();
        let record = MetricRecord::new(server_id, time, metric_type, self.some_value());
        match self.random.u32(..40) {
            0 => record.with_metadata(json!(null)),
            1..=2 => record.with_metadata(json!({"host": "é\"\\", "core": [1, 2.5e300, -0.1]})),
            3 => record.with_metadata(json!("x".repeat(self.random.usize(..300)))),
            _ => record,
        }
    }

    /// A time that is mostly later than all before, sometimes late, sometimes one that was there.
    fn some_time(&mut self) -> DateTime<Utc> {
        let late = self.random.u32(..100) < self.late_percent;
        let ms = if late && self.random.bool() {
            self.times_ms[self.random.usize(..self.times_ms.len())]
        } else if late {
            self.clock_ms - self.random.i64(0..1000) * self.step_ms_max.min(1000)
        } else {
            self.clock_ms += self.random.i64(0..=self.step_ms_max);
            self.clock_ms
        };
        let ms = ms.clamp(MIN_MS, END_MS - 1);
        self.times_ms.push(ms);
        // Finer digits are floored away.
        at_us(ms * 1000 + [0, 0, 0, 1, 999][self.random.usize(..5)])
    }

    fn some_value(&mut self) -> f64 {
        match self.random.u32(..20) {
            0 => 0.0,
            1 => -0.0,
            2 => self.random.f64() * 1e300,
            3 => -self.random.f64() * 1e-300,
            4 => f64::from_bits(self.random.u64(1..1000)),
            5..=10 => f64::from(self.random.i32(-5..100)),
            11..=15 => f64::from(self.random.u32(..10_000)) / 100.0,
            _ => (self.random.f64() - 0.5) * 1e6,
        }
    }

    fn bad_record(&mut self) -> MetricRecord {
        let mut record = self.record();
        match self.random.u32(..8) {
            0 => record.value = f64::NAN,
            1 => record.value = f64::NEG_INFINITY,
            2 => record.server_id.clear(),
            3 => record.server_id.push('\0'),
            4 => record.metric_type = "m".repeat(513),
            5 => record.timestamp = at(END_MS),
            6 => record.timestamp = at_us(MIN_MS * 1000 - 1),
            _ => record.metadata = Some(json!({"text": "x".repeat(65_536)})),
        }
        record
    }

    fn some_series(&mut self) -> SeriesKey {
        match self.random.u32(..30) {
            0 => SeriesKey::new("nobody", "nothing"),
            1 => SeriesKey::new("", "nothing"),
            _ => self.series[self.random.usize(..self.series.len())].clone(),
        }
    }

    fn some_filter(&mut self) -> SeriesFilter {
        let key = self.series[self.random.usize(..self.series.len())].clone();
        let prefix: String = key.server_id.chars().take(1).chain(['*']).collect();
        let filter = match self.random.u32(..6) {
            0 => SeriesFilter::exact(&key.server_id, &key.metric_type),
            1 => SeriesFilter::parse(&prefix, "*"),
            2 => SeriesFilter::parse("*", &key.metric_type),
            3 => SeriesFilter::parse("*-*", "*u*"),
            4 => SeriesFilter::parse("nobody", "*"),
            _ => Ok(SeriesFilter::any()),
        };
        filter.unwrap_or_default()
    }

    fn some_range(&mut self) -> TimeRange {
        if self.random.u32(..4) == 0 {
            return TimeRange::all();
        }
        let (one, other) = (self.some_bound(), self.some_bound());
        range(one.min(other), one.max(other))
    }

    /// A time at, or beside, one that was written.
    fn some_bound(&mut self) -> i64 {
        self.times_ms[self.random.usize(..self.times_ms.len())] + self.random.i64(-2..=2)
    }

    /// Mostly early, so that something stays.
    fn some_cutoff(&mut self) -> DateTime<Utc> {
        let times = self.times_ms.len();
        let mut sorted = self.times_ms.clone();
        sorted.sort_unstable();
        let most = if self.random.u32(..5) == 0 { times } else { times.div_ceil(4) };
        let ms = sorted[self.random.usize(..most)] + self.random.i64(-1..=1);
        at_us(ms * 1000 + [0, 500][self.random.usize(..2)])
    }

    /// Wide enough that no answer has more than some thousand windows that hold anything.
    fn some_width(&mut self) -> Duration {
        Duration::from_millis([1, 7, 1_000, 60_000, 3_600_000, 86_400_000][self.random.usize(..6)])
    }
}

/// Four to seven series, some of one server, some of one metric, some with odd names.
fn series_of(random: &mut fastrand::Rng) -> Vec<SeriesKey> {
    let mut series = vec![
        SeriesKey::new("web-1", "cpu_usage"),
        SeriesKey::new("web-1", "cpu"),
        SeriesKey::new("web-10", "cpu_usage"),
        SeriesKey::new("db-1", "cpu_usage"),
    ];
    for _ in 0..random.usize(..4) {
        let mut odd = || ODD_NAMES[random.usize(..ODD_NAMES.len())];
        let key = SeriesKey::new(odd(), odd());
        if !series.contains(&key) {
            series.push(key);
        }
    }
    series
}
