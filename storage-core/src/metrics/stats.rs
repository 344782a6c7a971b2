//! What a store says about itself.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::record::SeriesKey;

/// Size and extent of a store; exact, not estimated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct StorageStats {
    /// Number of samples.
    pub total_metrics: u64,
    /// Number of series that hold at least one sample.
    pub series: u64,
    /// Bytes on disk, everything included that belongs to the store; in memory an estimate.
    pub disk_usage_bytes: u64,
    /// Time of the earliest sample.
    pub oldest_metric: Option<DateTime<Utc>>,
    /// Time of the latest sample.
    pub newest_metric: Option<DateTime<Utc>>,
}

/// Number and extent of the samples of one series.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SeriesInfo {
    /// Which series.
    #[serde(flatten)]
    pub series: SeriesKey,
    /// Number of samples, at least one.
    pub count: u64,
    /// Time of the earliest sample.
    pub oldest: DateTime<Utc>,
    /// Time of the latest sample.
    pub newest: DateTime<Utc>,
}

/// How a store is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The state in one word.
    pub status: HealthStatus,
    /// Why, in words for an operator; empty when healthy.
    pub message: String,
}

impl Health {
    /// Everything works.
    pub fn healthy() -> Self {
        Self { status: HealthStatus::Healthy, message: String::new() }
    }

    /// Nothing works, because of `error`.
    pub fn down(error: &crate::Error) -> Self {
        Self { status: HealthStatus::Down, message: error.to_string() }
    }
}

/// The state of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// Reads and writes work.
    Healthy,
    /// Reads work; writes, or upkeep in the background, do not.
    Degraded,
    /// Nothing works.
    Down,
}

/// What [`StorageBackend::check`](crate::StorageBackend::check) found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct CheckReport {
    /// Number of pieces (blocks, pages, files) that were verified.
    pub pieces: u64,
    /// Number of samples in them, those included that were replaced and are not cleared away yet.
    pub samples: u64,
    /// What is wrong, a line each; empty if nothing is.
    pub problems: Vec<String>,
}
