//! Real measurements of AWS machines, from the Numenta Anomaly Benchmark: what goes in is what
//! comes out, and every number about it is the one that a second computation gives.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;

use chrono::{DateTime, NaiveDateTime};
use common::{Fixture, nab_aws};
use serde_json::Value;

const LINES: u64 = 67_740;
const REPEATED: u64 = 22;
const HOUR_MS: i64 = 3_600_000;

/// Time in milliseconds and value, by metric.
type Truth = BTreeMap<String, BTreeMap<i64, f64>>;

fn files() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(nab_aws()).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "csv")).collect();
    files.sort();
    assert_eq!(files.len(), 17);
    files
}

/// Reads the files without any code of the program.
fn truth() -> Truth {
    let mut truth = Truth::new();
    for file in files() {
        let text = std::fs::read_to_string(&file).unwrap();
        let samples =
            truth.entry(file.file_stem().unwrap().to_str().unwrap().to_owned()).or_default();
        for line in text.lines().skip(1) {
            let (time, value) = line.split_once(',').unwrap();
            let time = NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S").unwrap();
            // A later line of the same time replaces an earlier one.
            samples.insert(time.and_utc().timestamp_millis(), value.parse().unwrap());
        }
    }
    truth
}

fn import(fixture: &Fixture) -> Value {
    let files: Vec<_> = files().iter().map(|path| path.display().to_string()).collect();
    let mut args = vec!["import", "--server", "aws"];
    args.extend(files.iter().map(String::as_str));
    fixture.json(&args)
}

fn assert_summary(summary: &Value, replaced: u64) {
    for (name, expected) in [
        ("lines_read", LINES),
        ("samples_stored", LINES),
        ("new", LINES - replaced),
        ("replaced", replaced),
        ("bad_lines", 0),
    ] {
        assert_eq!(summary[name], expected, "{name} of {summary}");
    }
}

fn ms_of(time: &Value) -> i64 {
    DateTime::parse_from_rfc3339(time.as_str().unwrap()).unwrap().timestamp_millis()
}

/// Compares an aggregate with what plain arithmetic gives for `values`.
fn assert_aggregate(found: &Value, values: &[f64]) {
    assert_eq!(found["count"], values.len() as u64, "{found}");
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    for (name, expected) in
        [("min", min), ("max", max), ("first", values[0]), ("last", values[values.len() - 1])]
    {
        assert_eq!(found[name].as_f64(), Some(expected), "{name} of {found}");
    }
    let sum: f64 = values.iter().sum();
    let magnitudes: f64 = values.iter().map(|value| value.abs()).sum();
    for (name, expected) in [("sum", sum), ("avg", sum / values.len() as f64)] {
        let error = (found[name].as_f64().unwrap() - expected).abs();
        assert!(error <= 1e-9 * magnitudes, "{name} of {found} is not {expected}");
    }
}

#[test]
fn every_number_is_the_one_of_the_files() {
    let fixture = Fixture::new();
    let truth = truth();
    assert_summary(&import(&fixture), REPEATED);
    assert_eq!(fixture.samples(), LINES - REPEATED);

    let series = fixture.json(&["series", "aws"]);
    assert_eq!(series.as_array().unwrap().len(), truth.len());
    for (found, (metric, samples)) in series.as_array().unwrap().iter().zip(&truth) {
        assert_eq!(found["metric_type"], metric.as_str());
        assert_eq!(found["count"], samples.len() as u64);
        assert_eq!(ms_of(&found["oldest"]), *samples.keys().next().unwrap());
        assert_eq!(ms_of(&found["newest"]), *samples.keys().next_back().unwrap());
    }

    let aggregates = fixture.json(&["aggregate", "aws"]);
    assert_eq!(aggregates.as_array().unwrap().len(), truth.len());
    for (found, (metric, samples)) in aggregates.as_array().unwrap().iter().zip(&truth) {
        assert_eq!(found["metric_type"], metric.as_str());
        assert_aggregate(found, &samples.values().copied().collect::<Vec<_>>());
    }

    let windows = fixture.json(&["aggregate", "aws", "--window", "1h"]);
    let mut expected: BTreeMap<(&str, i64), Vec<f64>> = BTreeMap::new();
    for (metric, samples) in &truth {
        for (ms, value) in samples {
            expected.entry((metric, ms - ms.rem_euclid(HOUR_MS))).or_default().push(*value);
        }
    }
    assert_eq!(windows.as_array().unwrap().len(), expected.len());
    for (found, ((metric, start_ms), values)) in windows.as_array().unwrap().iter().zip(&expected) {
        assert_eq!(found["metric_type"], *metric);
        assert_eq!(ms_of(&found["window_start"]), *start_ms);
        assert_aggregate(found, values);
    }
}

#[test]
fn again_it_changes_nothing_and_comes_out_as_it_went_in() {
    let fixture = Fixture::new();
    import(&fixture);
    let once = fixture.ok(&["export"]);
    assert_summary(&import(&fixture), LINES);
    let twice = fixture.ok(&["export"]);
    assert!(once == twice, "importing again changed the samples");

    let mut found = Truth::new();
    for line in once.lines().skip(1) {
        let fields: Vec<_> = line.split(',').collect();
        let [server, time, metric, value, metadata] = fields[..] else { panic!("{line}") };
        assert_eq!((server, metadata), ("aws", ""));
        let ms = DateTime::parse_from_rfc3339(time).unwrap().timestamp_millis();
        let before = found.entry(metric.to_owned()).or_default().insert(ms, value.parse().unwrap());
        assert_eq!(before, None, "{line} comes twice");
    }
    assert!(found == truth(), "the export differs from the files");
}

#[test]
fn part_of_a_series_by_time() {
    let fixture = Fixture::new();
    import(&fixture);
    let (metric, samples) = truth().into_iter().next().unwrap();
    let day = ["--start", "2014-02-20", "--end", "2014-02-21"];
    let (start_ms, end_ms) = (1_392_854_400_000, 1_392_940_800_000);
    let expected: Vec<_> = samples.range(start_ms..end_ms).collect();
    let found = fixture.json(&[&["query", "aws", &metric], &day[..]].concat());
    let found: Vec<_> = found.as_array().unwrap().iter().collect();
    assert_eq!(found.len(), expected.len());
    assert!(!expected.is_empty());
    for (found, (ms, value)) in found.iter().zip(&expected) {
        assert_eq!(ms_of(&found["timestamp"]), **ms);
        assert_eq!(found["value"].as_f64(), Some(**value));
    }
    let cut = &["prune", "--before", "2014-02-20"];
    let would = fixture.json(&[cut, &["--dry-run"][..]].concat());
    let removed = fixture.json(&[cut, &["--yes"][..]].concat());
    let before: usize = truth().values().map(|samples| samples.range(..start_ms).count()).sum();
    assert_eq!(would["would_remove"], before as u64);
    assert_eq!(removed["removed"], before as u64);
    assert_eq!(fixture.samples(), LINES - REPEATED - before as u64);
}
