//! What a store of jobs says no with: the same words in every backend.

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};
use crate::limits::{check_json, check_name};
use crate::metrics::time::{floor_ms, is_sample_ms};

/// The largest JSON value of a pipeline or execution, in bytes of compact text.
pub const JSON_BYTES_MAX: usize = 1024 * 1024;

/// The longest description or error, in bytes of UTF-8.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;

/// There is nothing with that id; `what` is `job`, `pipeline` or `execution`.
pub fn not_found(what: &'static str, id: &str) -> Error {
    Error::new(ErrorKind::NotFound, "there is none with this id").with_context(what, id)
}

/// Fails where nothing can have the id, because it breaks the rules of ids: then there is nothing.
///
/// # Errors
/// As [`not_found`] says.
pub fn check_possible(what: &'static str, id: &str) -> Result<()> {
    check_name(what, id).map_err(|_| not_found(what, id))
}

/// Something else has that id; `what` is `job`, `pipeline` or `execution`.
pub fn taken(what: &'static str, id: &str) -> Error {
    Error::new(ErrorKind::Conflict, "the id is taken").with_context(what, id)
}

/// Fails unless the version is the one that is expected.
///
/// # Errors
/// `Conflict` with the details `version` (as it is stored) and `expected_version`.
pub fn check_version(stored: u64, expected: Option<u64>) -> Result<()> {
    match expected {
        Some(expected) if expected != stored => {
            Err(Error::new(ErrorKind::Conflict, "somebody else has changed it")
                .with_context("version", stored)
                .with_context("expected_version", expected))
        }
        _ => Ok(()),
    }
}

/// Checks a time: years 0001 to 9999.
///
/// # Errors
/// `InvalidArgument` with the detail `field`.
pub fn check_time(field: &'static str, time: DateTime<Utc>) -> Result<()> {
    match is_sample_ms(floor_ms(time)) {
        true => Ok(()),
        false => Err(Error::invalid("the time is outside the years 0001 to 9999")
            .with_context("field", field)),
    }
}

pub(super) fn check_text(field: &'static str, text: &str) -> Result<()> {
    let problem = if text.len() > TEXT_BYTES_MAX {
        "the text is longer than 64 KiB"
    } else if text.contains('\0') {
        "the text holds a NUL character"
    } else {
        return Ok(());
    };
    Err(Error::invalid(problem).with_context("field", field).with_context("bytes", text.len()))
}

pub(super) fn check_optional(field: &'static str, json: Option<&Value>) -> Result<()> {
    json.map_or(Ok(()), |json| check_json(field, json, JSON_BYTES_MAX))
}

/// `null` is the same as nothing.
pub(super) fn without_null(json: Option<Value>) -> Option<Value> {
    json.filter(|json| !json.is_null())
}
