//! Records, samples, series and the rules that every one of them obeys.
//!
//! The rules are checked here, once, for all backends: [`MetricRecord::validate`] and
//! [`validate_batch`].

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::time::{floor_ms, from_ms, is_sample_ms};
use crate::error::{Error, Result};
pub use crate::limits::{JSON_DEPTH_MAX as METADATA_DEPTH_MAX, NAME_BYTES_MAX};
use crate::limits::{check_json, check_name};

/// The largest metadata, in bytes of compact JSON.
pub const METADATA_BYTES_MAX: usize = 64 * 1024;

/// One measured value: what a program writes and reads back.
///
/// ```
/// use chrono::Utc;
/// use storage_core::MetricRecord;
///
/// let record = MetricRecord::new("web-1", Utc::now(), "cpu_usage", 12.5)
///     .with_metadata(serde_json::json!({"core": 3}));
/// assert!(record.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricRecord {
    /// Who was measured, such as a host or `192.168.1.100:3000`: 1 to 512 bytes, no NUL.
    pub server_id: String,
    /// When, years 0001 to 9999; stored in whole milliseconds, finer digits floored.
    pub timestamp: DateTime<Utc>,
    /// What was measured, such as `cpu_usage`: 1 to 512 bytes, no NUL.
    pub metric_type: String,
    /// The value: finite; -0.0 is stored as 0.0.
    pub value: f64,
    /// Anything more about this one sample, at most 64 KiB of JSON; `null` is the same as none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
}

impl MetricRecord {
    /// Creates a record without metadata. Nothing is checked before it is written.
    pub fn new(
        server_id: impl Into<String>,
        timestamp: DateTime<Utc>,
        metric_type: impl Into<String>,
        value: f64,
    ) -> Self {
        Self {
            server_id: server_id.into(),
            timestamp,
            metric_type: metric_type.into(),
            value,
            metadata: None,
        }
    }

    /// Adds metadata.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Value) -> Self {
        self.metadata = Some(metadata);
        self
    }

    /// Returns the sample of this record as every backend stores it: whole milliseconds, 0.0
    /// for -0.0, no metadata for `null`.
    pub fn to_sample(&self) -> Sample {
        Sample {
            timestamp: from_ms(floor_ms(self.timestamp)),
            value: normal_value(self.value),
            metadata: normal_metadata(self.metadata.as_ref()).cloned(),
        }
    }

    /// Checks the record against the contract.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field` naming the first field that breaks a rule.
    pub fn validate(&self) -> Result<()> {
        validate_names(&self.server_id, &self.metric_type)?;
        self.validate_sample()
    }

    /// Checks all but the names, for a backend that knows the series already.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn validate_sample(&self) -> Result<()> {
        if !is_sample_ms(floor_ms(self.timestamp)) {
            return Err(Error::invalid("the timestamp is outside the years 0001 to 9999")
                .with_context("field", "timestamp"));
        }
        if !self.value.is_finite() {
            return Err(Error::invalid("the value is not a finite number")
                .with_context("field", "value")
                .with_context("value", self.value));
        }
        match normal_metadata(self.metadata.as_ref()) {
            Some(metadata) => check_json("metadata", metadata, METADATA_BYTES_MAX),
            None => Ok(()),
        }
    }
}

/// Checks every record of a batch.
///
/// # Errors
/// `InvalidArgument` with the details `record` (the index of the first bad one) and `field`.
///
/// ```
/// use chrono::Utc;
/// use storage_core::{MetricRecord, metrics::record::validate_batch};
///
/// let bad = MetricRecord::new("web-1", Utc::now(), "cpu_usage", f64::NAN);
/// let error = validate_batch(&[bad]).unwrap_err();
/// assert_eq!((error.context("record"), error.context("field")), (Some("0"), Some("value")));
/// ```
pub fn validate_batch(records: &[MetricRecord]) -> Result<()> {
    for (index, record) in records.iter().enumerate() {
        record.validate().map_err(|error| error.with_context("record", index))?;
    }
    Ok(())
}

/// Checks the names of a series that a caller asks for.
///
/// # Errors
/// `InvalidArgument` with the detail `field`, by the rules of the names of a record.
pub fn validate_names(server_id: &str, metric_type: &str) -> Result<()> {
    check_name("server_id", server_id)?;
    check_name("metric_type", metric_type)
}

/// Returns `value` as it is stored: 0.0 for -0.0, otherwise bit for bit the same.
pub fn normal_value(value: f64) -> f64 {
    if value == 0.0 { 0.0 } else { value }
}

/// Returns `metadata` as it is stored: none for `null`.
pub fn normal_metadata(metadata: Option<&Value>) -> Option<&Value> {
    metadata.filter(|value| !value.is_null())
}

/// What identifies a series. Ordered by server, then metric, byte by byte.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SeriesKey {
    /// Who is measured.
    pub server_id: String,
    /// What is measured.
    pub metric_type: String,
}

impl SeriesKey {
    /// Creates a key. Nothing is checked.
    pub fn new(server_id: impl Into<String>, metric_type: impl Into<String>) -> Self {
        Self { server_id: server_id.into(), metric_type: metric_type.into() }
    }
}

impl fmt::Display for SeriesKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.server_id, self.metric_type)
    }
}

/// One value of a series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When, in whole milliseconds.
    pub timestamp: DateTime<Utc>,
    /// The value, finite.
    pub value: f64,
    /// The metadata written with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
}

impl Sample {
    /// Returns the record that this sample of `series` came from.
    pub fn into_record(self, series: &SeriesKey) -> MetricRecord {
        MetricRecord {
            server_id: series.server_id.clone(),
            timestamp: self.timestamp,
            metric_type: series.metric_type.clone(),
            value: self.value,
            metadata: self.metadata,
        }
    }
}

/// Some samples of one series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeriesSamples {
    /// Whose samples.
    pub series: SeriesKey,
    /// The samples, in the order that the call which returns them states.
    pub samples: Vec<Sample>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record() -> MetricRecord {
        MetricRecord::new("web-1", from_ms(0), "cpu", 1.0)
    }

    fn field_of(record: &MetricRecord) -> Option<String> {
        record.validate().err()?.context("field").map(str::to_owned)
    }

    #[test]
    fn names_have_limits() {
        for (name, ok) in [("", false), ("a\0b", false), ("é", true), ("  ", true)] {
            let record = MetricRecord { server_id: name.into(), ..record() };
            assert_eq!(record.validate().is_ok(), ok, "{name:?}");
        }
        let longest = MetricRecord { metric_type: "x".repeat(512), ..record() };
        assert!(longest.validate().is_ok());
        let too_long = MetricRecord { metric_type: "x".repeat(513), ..record() };
        assert_eq!(field_of(&too_long).as_deref(), Some("metric_type"));
    }

    #[test]
    fn metadata_has_limits() {
        let mut deep = json!(1);
        for _ in 0..65 {
            deep = json!([deep]);
        }
        let bad = [json!({"a\0": 1}), json!(["x\0"]), json!("x".repeat(65_536)), deep];
        for metadata in bad {
            assert_eq!(field_of(&record().with_metadata(metadata)).as_deref(), Some("metadata"));
        }
        let largest = record().with_metadata(json!("x".repeat(65_534)));
        assert!(largest.validate().is_ok());
    }

    #[test]
    fn samples_are_normal() {
        let sample =
            MetricRecord { value: -0.0, ..record() }.with_metadata(Value::Null).to_sample();
        assert_eq!(sample.value.to_bits(), 0.0f64.to_bits());
        assert_eq!(sample.metadata, None);
    }
}
