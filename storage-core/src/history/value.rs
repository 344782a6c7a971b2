//! Stored values and the rules that every one of them obeys, checked here, once, for all backends.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::limits::{check_json, check_name};
use crate::metrics::time::{floor_ms, from_ms, is_sample_ms};

/// The largest value, in bytes of compact JSON.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;

/// One value of a record: what a program stores and reads back.
///
/// ```
/// use chrono::Utc;
/// use storage_core::StoredValue;
///
/// let value = StoredValue::new("accuracy::vienna", Utc::now(), serde_json::json!({"mae": 0.7}));
/// assert!(value.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredValue {
    /// Which record, such as `accuracy::vienna`: 1 to 512 bytes, no NUL.
    pub record_name: String,
    /// When, years 0001 to 9999; stored in whole milliseconds, finer digits floored.
    pub stored_at: DateTime<Utc>,
    /// Any JSON, `null` included: at most 1 MiB as compact text, nested at most 64 levels deep, no
    /// NUL in texts.
    pub value: Value,
}

impl StoredValue {
    /// Creates a value. Nothing is checked before it is stored.
    pub fn new(record_name: impl Into<String>, stored_at: DateTime<Utc>, value: Value) -> Self {
        Self { record_name: record_name.into(), stored_at, value }
    }

    /// Checks the value against the contract.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field` naming the first field that breaks a rule.
    pub fn validate(&self) -> Result<()> {
        check_name("record_name", &self.record_name)?;
        if !is_sample_ms(floor_ms(self.stored_at)) {
            return Err(Error::invalid("the time is outside the years 0001 to 9999")
                .with_context("field", "stored_at"));
        }
        check_json("value", &self.value, VALUE_BYTES_MAX)
    }

    /// Returns the value as every backend gives it back: its time in whole milliseconds.
    #[must_use]
    pub fn into_stored(self) -> Self {
        Self { stored_at: from_ms(floor_ms(self.stored_at)), ..self }
    }
}

/// Checks every value of a batch.
///
/// # Errors
/// `InvalidArgument` with the details `record` (the index of the first bad one) and `field`.
///
/// ```
/// use chrono::Utc;
/// use storage_core::{StoredValue, history::value::validate_values};
///
/// let bad = StoredValue::new("", Utc::now(), serde_json::json!(1));
/// let error = validate_values(&[bad]).unwrap_err();
/// assert_eq!((error.context("record"), error.context("field")), (Some("0"), Some("record_name")));
/// ```
pub fn validate_values(values: &[StoredValue]) -> Result<()> {
    for (index, value) in values.iter().enumerate() {
        value.validate().map_err(|error| error.with_context("record", index))?;
    }
    Ok(())
}

/// Number and extent of the values of one record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RecordInfo {
    /// Which record.
    pub record_name: String,
    /// Number of values, at least one.
    pub count: u64,
    /// Time of the earliest value.
    pub oldest: DateTime<Utc>,
    /// Time of the latest value.
    pub newest: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::time::{END_MS, MIN_MS};
    use serde_json::json;

    fn field_of(value: &StoredValue) -> Option<String> {
        value.validate().err()?.context("field").map(str::to_owned)
    }

    #[test]
    fn names_times_and_values_have_limits() {
        let good = StoredValue::new("a", from_ms(0), json!(null));
        assert_eq!(field_of(&good), None);
        for name in ["", "a\0", &"x".repeat(513)] {
            let bad = StoredValue { record_name: name.to_owned(), ..good.clone() };
            assert_eq!(field_of(&bad).as_deref(), Some("record_name"));
        }
        let outside = |ms| DateTime::from_timestamp_millis(ms).unwrap();
        for stored_at in [outside(MIN_MS - 1), outside(END_MS)] {
            let bad = StoredValue { stored_at, ..good.clone() };
            assert_eq!(field_of(&bad).as_deref(), Some("stored_at"));
        }
        let largest = json!("x".repeat(VALUE_BYTES_MAX - 2));
        assert_eq!(field_of(&StoredValue { value: largest, ..good.clone() }), None);
        for value in [json!("x".repeat(VALUE_BYTES_MAX - 1)), json!({"a": ["\0"]})] {
            let bad = StoredValue { value, ..good.clone() };
            assert_eq!(field_of(&bad).as_deref(), Some("value"));
        }
    }

    #[test]
    fn times_are_floored() {
        let time = from_ms(-1) + chrono::Duration::microseconds(999);
        let stored = StoredValue::new("a", time, json!(1)).into_stored();
        assert_eq!(stored.stored_at, from_ms(-1));
    }
}
