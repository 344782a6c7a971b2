//! Record history in memory: one lock, one ordered map.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{check_open, named_error};
use crate::error::Result;
use crate::history::value::validate_values;
use crate::history::{HistoryQuery, RecordHistory, RecordInfo, StoredValue};
use crate::metrics::Matcher;
use crate::metrics::time::{floor_ms, from_ms};

/// Time and number of insertion.
type Place = (i64, u64);

/// What the handles of one store share.
#[derive(Debug, Default)]
pub(super) struct Records {
    by_name: BTreeMap<String, BTreeMap<Place, Value>>,
    inserted: u64,
}

/// The record history of [`InMemory`](crate::InMemory).
#[derive(Debug, Clone)]
pub struct InMemoryHistory {
    pub(super) records: Arc<RwLock<Records>>,
    /// That of the handle.
    pub(super) closed: Arc<AtomicBool>,
}

impl InMemoryHistory {
    fn read(&self, operation: &'static str) -> Result<RwLockReadGuard<'_, Records>> {
        check_open(&self.closed).map_err(|error| named_error(error, operation))?;
        Ok(self.records.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, operation: &'static str) -> Result<RwLockWriteGuard<'_, Records>> {
        check_open(&self.closed).map_err(|error| named_error(error, operation))?;
        Ok(self.records.write().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl RecordHistory for InMemoryHistory {
    async fn store_batch(&self, values: &[StoredValue]) -> Result<()> {
        let mut records = self.write("store_batch")?;
        validate_values(values).map_err(|error| named_error(error, "store_batch"))?;
        for value in values {
            records.inserted += 1;
            let place = (floor_ms(value.stored_at), records.inserted);
            let of_record = records.by_name.entry(value.record_name.clone()).or_default();
            of_record.insert(place, value.value.clone());
        }
        Ok(())
    }

    async fn query(&self, query: &HistoryQuery) -> Result<Vec<StoredValue>> {
        let records = self.read("query")?;
        let mut found = Vec::new();
        if query.is_empty() {
            return Ok(found);
        }
        let bounds = (
            Bound::Included((query.range.start_ms(), 0)),
            Bound::Excluded((query.range.end_ms(), 0)),
        );
        for (name, values) in records.by_name.iter().filter(|(name, _)| query.records.matches(name))
        {
            let first = found.len();
            let newest =
                values.range(bounds).rev().take(query.limit_per_record.unwrap_or(usize::MAX));
            found.extend(newest.map(|((ms, _), value)| StoredValue {
                record_name: name.clone(),
                stored_at: from_ms(*ms),
                value: value.clone(),
            }));
            found[first..].reverse();
        }
        Ok(found)
    }

    async fn records(&self, records: &Matcher) -> Result<Vec<RecordInfo>> {
        let all = self.read("records")?;
        let chosen = all.by_name.iter().filter(|(name, _)| records.matches(name));
        Ok(chosen.filter_map(|(name, values)| info_of(name, values)).collect())
    }

    async fn cleanup(&self, older_than: DateTime<Utc>) -> Result<u64> {
        let mut records = self.write("cleanup")?;
        let mut removed = 0;
        records.by_name.retain(|_, values| {
            let kept = values.split_off(&(floor_ms(older_than), 0));
            removed += values.len() as u64;
            *values = kept;
            !values.is_empty()
        });
        Ok(removed)
    }

    fn name(&self) -> &'static str {
        "memory"
    }
}

fn info_of(name: &str, values: &BTreeMap<Place, Value>) -> Option<RecordInfo> {
    let ((oldest, _), (newest, _)) = (values.keys().next()?, values.keys().next_back()?);
    Some(RecordInfo {
        record_name: name.to_owned(),
        count: values.len() as u64,
        oldest: from_ms(*oldest),
        newest: from_ms(*newest),
    })
}

impl super::InMemory {
    /// The record history of this store; it closes with this handle.
    pub fn history(&self) -> InMemoryHistory {
        let closed = Arc::clone(&self.closed);
        InMemoryHistory { records: Arc::clone(&self.parts.records), closed }
    }
}
