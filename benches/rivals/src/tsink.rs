//! tsink, embedded: a metric per field, a label for the host. Its windows start where a question
//! starts, so that windows are made here of the samples that it returns.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use storage_benches::queries::{Draw, Question, Row};
use storage_benches::tsbs::FIELDS;
use storage_core::MetricRecord;
use tsink::{
    DataPoint, Label, Row as TsinkRow, Storage, StorageBuilder, TimestampPrecision, TsinkError,
    WalSyncMode,
};

use crate::engine::{Engine, Kind, Mode, Opened, Result};

pub(crate) const KIND: Kind =
    Kind { name: "tsink", open, version: || Some(crate::locked("tsink")) };

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 3_600_000;

/// The data is of 2016; it must not count as out of date.
const RETENTION: Duration = Duration::from_secs(100 * 365 * 86_400);

struct Tsink {
    storage: Arc<dyn Storage>,
    folder: PathBuf,
    mode: Mode,
    newest_ms: i64,
}

/// One series of an answer: its host, its samples.
type Found = (String, Vec<DataPoint>);

fn open(folder: &Path, mode: Mode) -> Opened {
    let (storage, folder) = (build(folder, mode)?, folder.to_owned());
    Ok(Ok(Box::new(Tsink { storage, folder, mode, newest_ms: i64::MIN })))
}

fn build(folder: &Path, mode: Mode) -> Result<Arc<dyn Storage>> {
    let sync = match mode {
        Mode::Durable => WalSyncMode::PerAppend,
        Mode::Periodic => WalSyncMode::Periodic(Duration::from_secs(1)),
    };
    let builder = StorageBuilder::new()
        .with_data_path(folder)
        .with_timestamp_precision(TimestampPrecision::Milliseconds)
        .with_retention(RETENTION)
        .with_wal_sync_mode(sync);
    Ok(builder.build()?)
}

impl Engine for Tsink {
    fn write(&mut self, records: &[MetricRecord]) -> Result<()> {
        let rows = records.iter().map(|record| {
            let labels = vec![Label::new("host", &record.server_id)];
            let time_ms = record.timestamp.timestamp_millis();
            self.newest_ms = self.newest_ms.max(time_ms);
            TsinkRow::with_labels(
                &record.metric_type,
                labels,
                DataPoint::new(time_ms, record.value),
            )
        });
        let rows: Vec<_> = rows.collect();
        Ok(self.storage.insert_rows(&rows)?)
    }

    fn settle(&mut self) -> Result<()> {
        self.storage.close()?;
        self.storage = build(&self.folder, self.mode)?;
        Ok(())
    }

    fn ask(&mut self, question: Question, draw: &Draw) -> Result<Option<Vec<Row>>> {
        let start_ms = draw.start().timestamp_millis();
        let hours = |hours: i64| (start_ms, start_ms + hours * HOUR_MS);
        Ok(Some(match question {
            Question::SingleGroupby { fields, hours: length, .. } => {
                self.maxima(&FIELDS[..fields], draw.hosts(), hours(length), MINUTE_MS)?
            }
            Question::CpuMaxAll { .. } => self.maxima(&FIELDS, draw.hosts(), hours(8), HOUR_MS)?,
            Question::DoubleGroupby { fields } => self.averages(&FIELDS[..fields], hours(12))?,
            Question::Lastpoint => self.lastpoint()?,
            Question::GroupbyOrderbyLimit => {
                self.newest_minutes((start_ms - 5 * MINUTE_MS, start_ms))?
            }
            Question::HighCpu => self.high_cpu(&draw.hosts()[0], hours(12))?,
        }))
    }
}

impl Tsink {
    fn of_host(&self, field: &str, host: &str, range: (i64, i64)) -> Result<Vec<DataPoint>> {
        let labels = [Label::new("host", host)];
        empty_if_none(self.storage.select(field, &labels, range.0, range.1))
    }

    fn of_all(&self, field: &str, range: (i64, i64)) -> Result<Vec<Found>> {
        let found = empty_if_none(self.storage.select_all(field, range.0, range.1))?;
        let host =
            |labels: Vec<Label>| labels.into_iter().next().map_or_else(String::new, |l| l.value);
        Ok(found.into_iter().map(|(labels, points)| (host(labels), points)).collect())
    }

    fn maxima(
        &self,
        fields: &[&str],
        hosts: &[String],
        range: (i64, i64),
        width_ms: i64,
    ) -> Result<Vec<Row>> {
        let mut windows = BTreeMap::new();
        for field in fields {
            for host in hosts {
                let points = self.of_host(field, host, range)?;
                add_maxima(&mut windows, field, &points, width_ms)?;
            }
        }
        Ok(windows.into_iter().map(|((name, ms), value)| (name, ms, value)).collect())
    }

    fn averages(&self, fields: &[&str], range: (i64, i64)) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for field in fields {
            for (host, points) in self.of_all(field, range)? {
                let mut windows: BTreeMap<i64, (f64, f64)> = BTreeMap::new();
                for point in &points {
                    let window = windows.entry(floor(point.timestamp, HOUR_MS)).or_default();
                    *window = (window.0 + value(point)?, window.1 + 1.0);
                }
                let name = format!("{host} {field}");
                let row = |(ms, (sum, count)): (i64, (f64, f64))| (name.clone(), ms, sum / count);
                rows.extend(windows.into_iter().map(row));
            }
        }
        Ok(rows)
    }

    /// It cannot ask for the newest sample; the last five minutes hold it.
    fn lastpoint(&self) -> Result<Vec<Row>> {
        let range = (self.newest_ms - 5 * MINUTE_MS, self.newest_ms + 1);
        let mut rows = Vec::new();
        for field in FIELDS {
            for (host, points) in self.of_all(field, range)? {
                if let Some(newest) = points.last() {
                    rows.push((format!("{host} {field}"), newest.timestamp, value(newest)?));
                }
            }
        }
        Ok(rows)
    }

    fn newest_minutes(&self, range: (i64, i64)) -> Result<Vec<Row>> {
        let mut windows = BTreeMap::new();
        for (_, points) in self.of_all(FIELDS[0], range)? {
            add_maxima(&mut windows, "max", &points, MINUTE_MS)?;
        }
        let newest = windows.into_iter().rev().take(5);
        Ok(newest.map(|((name, ms), value)| (name, ms, value)).collect())
    }

    fn high_cpu(&self, host: &str, range: (i64, i64)) -> Result<Vec<Row>> {
        let mut high = Vec::new();
        for point in self.of_host(FIELDS[0], host, range)? {
            if value(&point)? > 90.0 {
                high.push(point.timestamp);
            }
        }
        let mut rows = Vec::new();
        for field in FIELDS.iter().filter(|_| !high.is_empty()) {
            for point in self.of_host(field, host, range)? {
                if high.binary_search(&point.timestamp).is_ok() {
                    rows.push(((*field).to_owned(), point.timestamp, value(&point)?));
                }
            }
        }
        Ok(rows)
    }
}

fn empty_if_none<T: Default>(found: tsink::Result<T>) -> Result<T> {
    match found {
        Err(TsinkError::NoDataPoints { .. }) => Ok(T::default()),
        found => Ok(found?),
    }
}

fn add_maxima(
    windows: &mut BTreeMap<(String, i64), f64>,
    name: &str,
    points: &[DataPoint],
    width_ms: i64,
) -> Result<()> {
    let same =
        |a: &DataPoint, b: &DataPoint| floor(a.timestamp, width_ms) == floor(b.timestamp, width_ms);
    for window in points.chunk_by(same) {
        let start_ms = floor(window[0].timestamp, width_ms);
        let max = windows.entry((name.to_owned(), start_ms)).or_insert(f64::NEG_INFINITY);
        for point in window {
            *max = max.max(value(point)?);
        }
    }
    Ok(())
}

fn floor(ms: i64, width_ms: i64) -> i64 {
    ms - ms.rem_euclid(width_ms)
}

fn value(point: &DataPoint) -> Result<f64> {
    Ok(point.value_as_f64().ok_or("a value that is no number")?)
}
