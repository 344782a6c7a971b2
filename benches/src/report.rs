//! Figures: collected by a bench, added to a file of results, shown as Markdown.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bars::{Bar, bar_of};
use crate::machine::Machine;
use crate::options::Options;

/// What our default backend is called in the results.
pub const OURS: &str = "storage-sqlite";

/// What the Parquet backend is called.
pub const PARQUET: &str = "storage-parquet";

/// What the PostgreSQL backend is called.
pub const OURS_POSTGRES: &str = "storage-postgres";

/// Whether figures of an engine are held against bars.
pub fn is_ours(engine: &str) -> bool {
    [OURS, PARQUET, OURS_POSTGRES].contains(&engine)
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What was done; its first word is the bench.
    pub workload: String,
    /// What did it.
    pub engine: String,
    /// What was measured.
    pub metric: String,
    /// The number; none where there is nothing to measure, and `note` says why.
    pub value: Option<f64>,
    /// The unit of the number.
    pub unit: String,
    /// What the number is held against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bar: Option<Bar>,
    /// Whether it is met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
    /// What to know about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A file of results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// The day of the newest figure.
    pub date: String,
    /// Whether a part of it is from a quick run.
    pub quick: bool,
    /// Where it ran.
    pub machine: Machine,
    /// Versions of what was measured.
    pub versions: BTreeMap<String, String>,
    /// The figures.
    pub rows: Vec<Figure>,
}

impl Results {
    /// Reads a file of results.
    ///
    /// # Errors
    /// Those of the file system; `InvalidData` if it is no such file.
    pub fn read(path: &Path) -> std::io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    /// The figure of an engine for a metric of a workload.
    pub fn find(&self, workload: &str, engine: &str, metric: &str) -> Option<&Figure> {
        self.rows.iter().find(|figure| {
            (figure.workload.as_str(), figure.engine.as_str(), figure.metric.as_str())
                == (workload, engine, metric)
        })
    }

    /// The figure of ours, whichever backend it is of.
    pub fn find_ours(&self, workload: &str, metric: &str) -> Option<&Figure> {
        self.rows.iter().find(|figure| {
            (figure.workload.as_str(), figure.metric.as_str()) == (workload, metric)
                && is_ours(&figure.engine)
        })
    }

    fn empty() -> Self {
        let date = chrono::Utc::now().format("%Y-%m-%d").to_string();
        let versions = BTreeMap::new();
        Self { date, quick: false, machine: Machine::here(), versions, rows: Vec::new() }
    }

    fn write(&self, path: &Path) -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, serde_json::to_string_pretty(self)? + "\n")
    }
}

/// The figures of one bench, while it runs.
#[derive(Debug)]
pub struct Report {
    bench: &'static str,
    path: PathBuf,
    quick: bool,
    versions: BTreeMap<String, String>,
    rows: Vec<Figure>,
}

impl Report {
    /// Starts the report of the bench `bench`: one word.
    pub fn new(bench: &'static str, options: &Options) -> Self {
        let versions = BTreeMap::from([("storage".into(), env!("CARGO_PKG_VERSION").into())]);
        let path = options.json.clone();
        Self { bench, path, quick: options.quick, versions, rows: Vec::new() }
    }

    /// Says on standard error what comes next: a bench takes its time.
    #[allow(clippy::print_stderr)]
    pub fn progress(&self, what: &str) {
        eprintln!("{}: {what}", self.bench);
    }

    /// Notes the version of something measured.
    pub fn version(&mut self, name: &str, version: impl Into<String>) {
        self.versions.insert(name.to_owned(), version.into());
    }

    /// Adds a figure. `what` follows the name of the bench in the workload and may be empty. A
    /// figure of ours is held against its bar, if there is one and the run is not a quick one.
    pub fn add(&mut self, what: &str, engine: &str, metric: &str, value: f64, unit: &str) {
        let workload = self.workload(what);
        let bar = bar_of(&workload, metric).filter(|_| is_ours(engine) && !self.quick);
        let met = bar.map(|bar| bar.is_met(value));
        let (engine, metric, unit) = (engine.to_owned(), metric.to_owned(), unit.to_owned());
        let value = value.is_finite().then_some(value);
        self.rows.push(Figure { workload, engine, metric, value, unit, bar, met, note: None });
    }

    /// Adds what could not be measured, and why.
    pub fn add_missing(&mut self, what: &str, engine: &str, metric: &str, why: &str) {
        self.add(what, engine, metric, f64::NAN, "");
        if let Some(figure) = self.rows.last_mut() {
            figure.note = Some(why.to_owned());
        }
    }

    /// Replaces the figures of this bench in the file of results and returns them as Markdown.
    ///
    /// # Errors
    /// Those of the file system; `InvalidData` if the file is no file of results.
    pub fn finish(self) -> std::io::Result<String> {
        let mut results = match Results::read(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Results::empty(),
            read => read?,
        };
        let before = |figure: &Figure| figure.workload.split(' ').next() != Some(self.bench);
        results.rows.retain(before);
        let markdown = format!("## {}\n\n{}", self.bench, table(&self.rows));
        results.rows.extend(self.rows);
        results.quick |= self.quick;
        results.versions.extend(self.versions);
        results.date = Results::empty().date;
        results.machine = Machine::here();
        results.write(&self.path)?;
        Ok(markdown)
    }

    fn workload(&self, what: &str) -> String {
        format!("{} {what}", self.bench).trim_end().to_owned()
    }
}

/// Figures as a Markdown table, an engine and workload to a line.
pub fn table(rows: &[Figure]) -> String {
    let mut lines: Vec<(&str, &str, String)> = Vec::new();
    for figure in rows {
        let text = format!("{} {}", figure.metric, measured(figure));
        let same = |line: &&mut (&str, &str, String)| {
            (line.0, line.1) == (figure.workload.as_str(), figure.engine.as_str())
        };
        match lines.iter_mut().find(same) {
            Some(line) => line.2 += &format!("; {text}"),
            None => lines.push((&figure.workload, &figure.engine, text)),
        }
    }
    let mut text = "| workload | engine | figures |\n|---|---|---|\n".to_owned();
    for (workload, engine, figures) in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {workload} | {engine} | {figures} |");
    }
    text
}

/// The value with its unit, or why there is none.
pub fn measured(figure: &Figure) -> String {
    match figure.value {
        Some(value) => format!("{} {}", number(value), figure.unit).trim_end().to_owned(),
        None => figure.note.clone().unwrap_or_else(|| "none".to_owned()),
    }
}

/// A bar as it is written in tables.
pub fn bar(bar: Option<Bar>) -> String {
    match bar {
        Some(Bar::AtLeast(limit)) => format!("at least {}", number(limit)),
        Some(Bar::AtMost(limit)) => format!("at most {}", number(limit)),
        None => String::new(),
    }
}

/// Three digits that count, thousands apart.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => thousands(value),
        size if size >= 100.0 || value == value.trunc() => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn thousands(value: f64) -> String {
    // The fourth digit is noise.
    let scale = 10f64.powi(value.abs().log10() as i32 - 2);
    let digits = format!("{:.0}", (value / scale).round() * scale);
    let parts = digits.as_bytes().rchunks(3).rev();
    let parts: Vec<_> = parts.map(String::from_utf8_lossy).collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_show_three_digits() {
        for (value, text) in [
            (1_234_567.0, "1,230,000"),
            (999.6, "1000"),
            (1000.0, "1,000"),
            (123.4, "123"),
            (6.0, "6"),
            (12.34, "12.3"),
            (1.234, "1.23"),
            (0.4567, "0.457"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn figures_of_a_bench_replace_its_old_ones_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let json = folder.path().join("results.json");
        let options = Options { quick: false, json, slow_disk: false };
        for (bench, value) in [("load", 1.0), ("year", 0.5), ("load", 9.0)] {
            let mut report = Report::new(bench, &options);
            report.add("", OURS, "aggregate p50", value, "ms");
            report.add_missing("", "rival", "aggregate p50", "not installed");
            assert!(report.finish().unwrap().contains("not installed"));
        }
        let results = Results::read(&options.json).unwrap();
        assert_eq!(results.rows.len(), 4);
        let load = results.find("load", OURS, "aggregate p50").unwrap();
        assert_eq!((load.value, load.bar), (Some(9.0), None));
        let year = results.find("year", OURS, "aggregate p50").unwrap();
        assert_eq!((year.bar, year.met), (Some(Bar::AtMost(1.0)), Some(true)));
        assert_eq!(results.find("year", "rival", "aggregate p50").unwrap().bar, None);
    }
}
