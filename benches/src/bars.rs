//! What the figures are held against, in one table.
//!
//! A bar belongs to a workload and a metric as [`Report::add`](crate::report::Report::add) names
//! them, and to our backends alone.

use serde::{Deserialize, Serialize};

/// A limit that a figure keeps or breaks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    /// The figure is this or more.
    AtLeast(f64),
    /// The figure is this or less.
    AtMost(f64),
}

impl Bar {
    /// Whether `value` keeps the limit.
    pub fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(limit) => value >= limit,
            Self::AtMost(limit) => value <= limit,
        }
    }

    /// The number of the limit.
    pub fn limit(self) -> f64 {
        match self {
            Self::AtLeast(limit) | Self::AtMost(limit) => limit,
        }
    }
}

/// A bar and what it is for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// The workload.
    pub workload: &'static str,
    /// The metric.
    pub metric: &'static str,
    /// The limit.
    pub bar: Bar,
}

const fn at_least(workload: &'static str, metric: &'static str, limit: f64) -> Target {
    Target { workload, metric, bar: Bar::AtLeast(limit) }
}

const fn at_most(workload: &'static str, metric: &'static str, limit: f64) -> Target {
    Target { workload, metric, bar: Bar::AtMost(limit) }
}

/// Every bar.
pub const TARGETS: &[Target] = &[
    at_least("rivals ingest 1000 durable", "times tsink", 6.0),
    at_least("rivals ingest 1000 durable", "times rusqlite", 15.0),
    at_least("rivals ingest 1000 periodic", "times tsink", 8.0),
    at_least("ingest 1000 full", "acknowledged", 800e3),
    at_least("ingest 1000 normal", "acknowledged", 1.5e6),
    at_least("ingest 10000 full", "acknowledged", 3e6),
    at_least("load 10000 full integers", "sustained, sealing included", 1.2e6),
    at_least("callers 16 of 100", "times one caller", 8.0),
    at_least("slow-disk 16 of 100", "times one caller", 8.0),
    at_least("actor 1000 full", "end to end", 1e6),
    at_most("actor store hangs", "own memory", 64.0),
    at_most("actor store hangs", "send p99", 1.0),
    at_most("load 1000 full integers", "write p99", 10.0),
    at_least("wide", "sustained, sealing included", 500e3),
    at_most("wide", "peak memory", 400.0),
    at_most("wide", "journal, second half by first", 1.5),
    at_most("wide", "size at the end of the load", 3.0),
    at_most("wide", "last ten minutes of a series, p50", 5.0),
    at_most("wide", "lastpoint p50", 300.0),
    at_most("load 1000 full integers", "size sealed", 0.60),
    at_most("load 1000 full two decimals", "size sealed", 1.6),
    at_most("load 1000 full full precision", "size sealed", 6.8),
    at_most("query single-groupby-1-1-1", "p50", 0.2),
    at_most("query cpu-max-all-8", "p50", 5.0),
    at_most("query double-groupby-all", "p50", 60.0),
    at_most("query lastpoint", "p50", 2.0),
    at_most("year", "aggregate p50", 1.0),
    at_most("load 1000 full integers", "peak memory", 150.0),
    at_least("parquet integers", "load on one core", 3e6),
    at_least("parquet integers", "merge on one core", 3e6),
    at_least("parquet two decimals", "load on one core", 3e6),
    at_least("parquet two decimals", "merge on one core", 3e6),
    at_least("parquet full precision", "load on one core", 3e6),
    at_least("parquet full precision", "merge on one core", 3e6),
    at_most("parquet integers", "size", 0.70),
    at_most("parquet two decimals", "size", 1.9),
    at_most("parquet full precision", "size", 6.9),
    at_most("parquet integers", "size by DuckDB's", 1.0),
    at_most("parquet two decimals", "size by DuckDB's", 1.0),
    at_most("parquet full precision", "size by DuckDB's", 1.0),
    at_most("parquet an hour of a series in a year", "p50", 3.0),
    at_most("parquet an hour of a series in a year", "p50, a year by a day", 1.5),
    at_most("parquet an hour of a series in a year", "files touched", 1.0),
    at_most("parquet double-groupby-1", "by DuckDB's", 1.0),
    // The setting is 64 MiB; a file in the making and what threads and allocator hold come on top.
    at_most("parquet memory", "a question, above what was there", 128.0),
    at_most("parquet memory", "a merge, above what was there", 128.0),
    at_least("copy", "times writing", 0.8),
    at_most("tiers an hour around the border, samples", "times the slower", 1.2),
    at_most("tiers all of one series, aggregate", "times the slower", 1.2),
    at_most("tiers hourly windows of one host", "times the slower", 1.2),
    at_most("tiers newest of everything", "times the slower", 1.2),
    at_most("tiers stats", "times the slower", 1.2),
    at_most("tiers scan of everything", "times the slower", 1.2),
    at_most("rollups", "a year of hours of a series, p50", 5.0),
    at_least("history store 1000 full", "acknowledged", 200e3),
    at_least("history 64 callers of 1", "acknowledged", 20e3),
    at_most("history latest of 10 records", "p50", 1.0),
    at_most("history range of 10 values", "p50", 1.0),
    // "Never wait": as fast as alone, but for the processor that the writer takes.
    at_most("history latest beside a writer", "p50", 1.0),
    at_least("events append 1000 full", "acknowledged", 300e3),
    at_least("events append 1000 with ids full", "acknowledged", 300e3),
    at_least("events replay", "read", 1e6),
    at_most("events start with a current checkpoint", "p50", 50.0),
    // "No more", as far as two interleaved runs can tell.
    at_most("growth", "write, 10 times the data by 1", 1.05),
    at_most("growth", "question, 10 times the data by 1, worst", 1.2),
    at_least("postgres write 1000", "times raw COPY", 0.9),
    at_least("postgres write 10000", "times raw COPY", 0.9),
    at_least("postgres callers 16 of 100", "times one caller", 5.0),
    at_least("postgres-slow-disk callers 16 of 100", "times one caller", 5.0),
    at_most("postgres single-groupby-1-1-1", "times SQL by hand", 1.15),
    at_most("postgres single-groupby-1-1-12", "times SQL by hand", 1.15),
    at_most("postgres single-groupby-1-8-1", "times SQL by hand", 1.15),
    at_most("postgres single-groupby-5-1-1", "times SQL by hand", 1.15),
    at_most("postgres single-groupby-5-8-1", "times SQL by hand", 1.15),
    at_most("postgres cpu-max-all-1", "times SQL by hand", 1.15),
    at_most("postgres cpu-max-all-8", "times SQL by hand", 1.15),
    at_most("postgres double-groupby-1", "times SQL by hand", 1.15),
    at_most("postgres double-groupby-all", "times SQL by hand", 1.15),
    at_most("postgres lastpoint", "times SQL by hand", 1.15),
    at_most("postgres groupby-orderby-limit", "times SQL by hand", 1.15),
    at_most("postgres high-cpu-1", "times SQL by hand", 1.15),
    at_most("postgres query_range, an hour of a series", "p50", 1.5),
    at_most("postgres stats", "p50", 50.0),
    at_least("postgres target: 10,000 metrics a second", "acknowledged", 10e3),
    at_most("postgres target: batches under 10 ms", "write p50", 10.0),
    at_most("postgres target: dashboards under 100 ms at a million samples", "p50", 100.0),
];

/// The bar of a metric, if it has one.
pub fn bar_of(workload: &str, metric: &str) -> Option<Bar> {
    let of = |target: &&Target| target.workload == workload && target.metric == metric;
    TARGETS.iter().find(of).map(|target| target.bar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_met_from_its_limit_on() {
        assert!(Bar::AtLeast(6.0).is_met(6.0) && !Bar::AtLeast(6.0).is_met(5.9));
        assert!(Bar::AtMost(5.0).is_met(5.0) && !Bar::AtMost(5.0).is_met(5.1));
        assert!(!Bar::AtMost(5.0).is_met(f64::NAN));
    }

    #[test]
    fn no_metric_has_two_bars() {
        for (index, target) in TARGETS.iter().enumerate() {
            let same = |other: &&Target| {
                (other.workload, other.metric) == (target.workload, target.metric)
            };
            assert_eq!(TARGETS.iter().position(|other| same(&other)), Some(index));
        }
    }
}
