//! How long what is kept, in both of its notations.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use storage_core::Result;

use super::age::Age;
use super::{bad_value, config_error};

/// How long samples and their rollups are kept: as `"7d"` or as a number of days, not both. What is
/// not named is kept for ever. How long rollups of other widths are kept stands beside their width: see
/// [`RollupsConfig`](super::RollupsConfig).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RetentionConfig {
    /// Samples as they came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_metrics: Option<Age>,
    /// Rollups of 5 minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregated_5min: Option<Age>,
    /// Rollups of an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregated_1hour: Option<Age>,
    /// Rollups of a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregated_1day: Option<Age>,
    /// The same in days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_metrics_days: Option<u32>,
    /// The same in days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregated_5min_days: Option<u32>,
    /// The same in days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregated_1hour_days: Option<u32>,
    /// The same in days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregated_1day_days: Option<u32>,
    /// The oldest samples go when their store takes more than so many bytes on disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_metrics_bytes_max: Option<u64>,
}

/// How long each tier is kept; `None` is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keep {
    /// Samples as they came.
    pub raw: Option<Duration>,
    /// Rollups of 5 minutes.
    pub five_minutes: Option<Duration>,
    /// Rollups of an hour.
    pub hour: Option<Duration>,
    /// Rollups of a day.
    pub day: Option<Duration>,
}

impl RetentionConfig {
    /// How long each tier is kept, whichever way it was written.
    ///
    /// # Errors
    /// `Config` if a tier is given both ways, or is to be kept for no time at all.
    pub fn keep(&self) -> Result<Keep> {
        Ok(Keep {
            raw: one_of("storage.retention.raw_metrics", self.raw_metrics, self.raw_metrics_days)?,
            five_minutes: one_of(
                "storage.retention.aggregated_5min",
                self.aggregated_5min,
                self.aggregated_5min_days,
            )?,
            hour: one_of(
                "storage.retention.aggregated_1hour",
                self.aggregated_1hour,
                self.aggregated_1hour_days,
            )?,
            day: one_of(
                "storage.retention.aggregated_1day",
                self.aggregated_1day,
                self.aggregated_1day_days,
            )?,
        })
    }

    /// How long rollups of 5 minutes, an hour and a day are kept, each with the key that says so.
    pub(super) fn rollup_ages(&self) -> Result<[(&'static str, Option<Duration>); 3]> {
        let keep = self.keep()?;
        Ok([
            ("storage.retention.aggregated_5min", keep.five_minutes),
            ("storage.retention.aggregated_1hour", keep.hour),
            ("storage.retention.aggregated_1day", keep.day),
        ])
    }

    /// Both notations, so that all of their keys are known.
    pub(super) fn example() -> Self {
        let (age, days) = (|days| Some(Age::days(days)), Some);
        Self {
            raw_metrics: age(7),
            aggregated_5min: age(30),
            aggregated_1hour: age(365),
            aggregated_1day: age(3650),
            raw_metrics_days: days(7),
            aggregated_5min_days: days(30),
            aggregated_1hour_days: days(365),
            aggregated_1day_days: days(3650),
            raw_metrics_bytes_max: Some(10 << 30),
        }
    }
}

fn one_of(key: &'static str, age: Option<Age>, days: Option<u32>) -> Result<Option<Duration>> {
    let age = match (age, days) {
        (Some(_), Some(_)) => {
            return Err(config_error("a retention is given as an age and in days")
                .with_context("key", key)
                .with_context("other", format!("{key}_days")));
        }
        (age, days) => age.or(days.map(|days| Age::days(u64::from(days)))),
    };
    match age {
        Some(Age(Duration::ZERO)) => Err(bad_value(key, "more than no time")),
        age => Ok(age.map(|age| age.0)),
    }
}
