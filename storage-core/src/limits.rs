//! The limits of names and JSON values that all kinds of a store share.

use serde_json::Value;

use crate::error::{Error, Result};

/// The longest name, in bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 512;

/// The deepest nesting of arrays and objects in JSON.
pub const JSON_DEPTH_MAX: usize = 64;

/// Checks a name: 1 to 512 bytes, no NUL.
///
/// # Errors
/// `InvalidArgument` with the details `field` and `bytes`.
pub fn check_name(field: &'static str, name: &str) -> Result<()> {
    let problem = if name.is_empty() {
        "the name is empty"
    } else if name.len() > NAME_BYTES_MAX {
        "the name is longer than 512 bytes"
    } else if name.as_bytes().contains(&0) {
        "the name holds a NUL character"
    } else {
        return Ok(());
    };
    Err(Error::invalid(problem).with_context("field", field).with_context("bytes", name.len()))
}

/// Checks a JSON value: at most `bytes_max` bytes of compact text, nested at most 64 levels deep,
/// no NUL in texts and names.
///
/// # Errors
/// `InvalidArgument` with the detail `field` and, where it is too large, `bytes` and `bytes_max`.
pub fn check_json(field: &'static str, value: &Value, bytes_max: usize) -> Result<()> {
    let refuse = |problem: &'static str| Error::invalid(problem).with_context("field", field);
    if !is_shallow(value, JSON_DEPTH_MAX) {
        return Err(refuse("the JSON is nested more than 64 levels deep"));
    }
    if holds_nul(value) {
        return Err(refuse("the JSON holds a NUL character"));
    }
    // Most values are far from the limit; the others are written out to be counted.
    if bytes_at_most(value) <= bytes_max {
        return Ok(());
    }
    let bytes = bytes_of(value)
        .map_err(|error| refuse("the value cannot be written as JSON").with_source(error))?;
    if bytes > bytes_max {
        return Err(refuse("the JSON is too large")
            .with_context("bytes", bytes)
            .with_context("bytes_max", bytes_max));
    }
    Ok(())
}

fn bytes_of<T: serde::Serialize>(value: &T) -> serde_json::Result<usize> {
    let mut counter = ByteCounter(0);
    serde_json::to_writer(&mut counter, value)?;
    Ok(counter.0)
}

/// How long a value is as JSON at most, without writing it. A character takes up to six bytes.
fn bytes_at_most(value: &Value) -> usize {
    let text = |text: &str| text.len().saturating_mul(6).saturating_add(2);
    let add = |sum: usize, bytes: usize| sum.saturating_add(bytes).saturating_add(1);
    match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(number) if number.is_i64() || number.is_u64() => 20,
        Value::Number(number) => bytes_of(number).unwrap_or(usize::MAX),
        Value::String(string) => text(string),
        Value::Array(items) => items.iter().map(bytes_at_most).fold(2, add),
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| add(text(name), bytes_at_most(value));
            fields.iter().map(field).fold(2, add)
        }
    }
}

fn is_shallow(value: &Value, depth_left: usize) -> bool {
    match value {
        Value::Array(_) | Value::Object(_) if depth_left == 0 => false,
        Value::Array(items) => items.iter().all(|item| is_shallow(item, depth_left - 1)),
        Value::Object(fields) => fields.values().all(|field| is_shallow(field, depth_left - 1)),
        _ => true,
    }
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(holds_nul),
        Value::Object(fields) => {
            fields.iter().any(|(name, field)| name.contains('\0') || holds_nul(field))
        }
        _ => false,
    }
}

/// Counts what is written to it and keeps nothing.
struct ByteCounter(usize);

impl std::io::Write for ByteCounter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn no_json_is_longer_than_its_estimate() {
        let values = [
            json!(null),
            json!([]),
            json!({}),
            json!([false, true, null]),
            json!([i64::MIN, u64::MAX, 0]),
            json!([f64::MIN, f64::MIN_POSITIVE, -1.5e-300, 0.1]),
            json!("\u{1}\u{2}\u{1f}\"\\\n"),
            json!({"\u{1}": "é", "": [[], {"a": {"b": ["\u{7f}"]}}]}),
        ];
        for value in values {
            let bytes = value.to_string().len();
            assert!(bytes_at_most(&value) >= bytes, "{value}");
            check_json("value", &value, bytes).unwrap();
            let error = check_json("value", &value, bytes - 1).unwrap_err();
            assert_eq!(error.context("bytes"), Some(&*bytes.to_string()));
        }
    }
}
