//! The contract of record history, theme by theme, and what its cases share.

pub(super) mod cleanup;
pub(super) mod model;
pub(super) mod query;
pub(super) mod sharing;
pub(super) mod write;

use serde_json::Value;
use storage_core::metrics::time::floor_ms;
use storage_core::{HistoryQuery, RecordHistory, Result, StoredValue};

use crate::data::at;

/// A value of a record at `ms`.
fn val(name: &str, ms: i64, value: impl Into<Value>) -> StoredValue {
    StoredValue::new(name, at(ms), value.into())
}

/// Name, time and value of each answer.
type Rows = Vec<(String, i64, Value)>;

fn rows(found: Vec<StoredValue>) -> Rows {
    let row = |value: StoredValue| (value.record_name, floor_ms(value.stored_at), value.value);
    found.into_iter().map(row).collect()
}

/// What is expected of values that were stored: themselves.
fn rows_of(values: &[StoredValue]) -> Rows {
    rows(values.to_vec())
}

async fn ask(history: &dyn RecordHistory, pattern: &str) -> Result<Rows> {
    Ok(rows(history.query(&HistoryQuery::parse(pattern)?).await?))
}

/// Everything there is.
async fn all(history: &dyn RecordHistory) -> Result<Rows> {
    ask(history, "*").await
}

/// Times alone.
fn times(rows: &Rows) -> Vec<i64> {
    rows.iter().map(|(_, ms, _)| *ms).collect()
}

/// Values alone.
fn values(rows: &Rows) -> Vec<Value> {
    rows.iter().map(|(_, _, value)| value.clone()).collect()
}

/// The values 0, 1, 2 and on, of one record, one a second from noon on.
fn ramp(name: &str, count: i64) -> Vec<StoredValue> {
    (0..count).map(|n| val(name, crate::data::NOON + n * 1000, n)).collect()
}
