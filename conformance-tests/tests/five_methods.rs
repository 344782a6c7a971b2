//! A backend with the five required methods and nothing else passes, as the contract says: what
//! takes a filter is ignored, and its twins prove that it refuses.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use conformance_tests::{Fixture, Store};
use storage_core::metrics::Accumulator;
use storage_core::metrics::record::{validate_batch, validate_names};
use storage_core::metrics::time::{floor_ms, from_ms};
use storage_core::{
    Error, MetricAggregation, MetricRecord, Result, Sample, SeriesKey, StorageBackend,
    StorageStats, TimeRange,
};

type Map = BTreeMap<(SeriesKey, i64), Sample>;

/// What someone writes on the first day: one map behind one lock.
#[derive(Clone, Default)]
struct FiveMethods(Arc<Mutex<Map>>);

static LOCATIONS: LazyLock<Mutex<HashMap<String, FiveMethods>>> = LazyLock::new(Mutex::default);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn named(operation: &'static str) -> impl Fn(Error) -> Error {
    move |error| error.with_backend("five-methods").with_operation(operation)
}

#[async_trait]
impl StorageBackend for FiveMethods {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        validate_batch(records).map_err(named("write_batch"))?;
        let entry = |record: &MetricRecord| {
            let series = SeriesKey::new(&record.server_id, &record.metric_type);
            ((series, floor_ms(record.timestamp)), record.to_sample())
        };
        locked(&self.0).extend(records.iter().map(entry));
        Ok(())
    }

    async fn query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        validate_names(server_id, metric_type).map_err(named("query_range"))?;
        let series = SeriesKey::new(server_id, metric_type);
        let (start, end) = ((series.clone(), range.start_ms()), (series.clone(), range.end_ms()));
        let all = locked(&self.0);
        Ok(all.range(start..end).map(|(_, sample)| sample.clone().into_record(&series)).collect())
    }

    async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        validate_names(server_id, metric_type).map_err(named("aggregate"))?;
        let mut accumulator = Accumulator::default();
        for record in self.query_range(server_id, metric_type, range).await? {
            accumulator.push(record.value);
        }
        Ok(accumulator.finish())
    }

    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        let mut all = locked(&self.0);
        let before = all.len();
        all.retain(|(_, ms), _| *ms >= floor_ms(cutoff));
        Ok((before - all.len()) as u64)
    }

    async fn stats(&self) -> Result<StorageStats> {
        let all = locked(&self.0);
        let mut series: Vec<_> = all.keys().map(|(series, _)| series).collect();
        series.dedup();
        Ok(StorageStats {
            total_metrics: all.len() as u64,
            series: series.len() as u64,
            disk_usage_bytes: (all.len() * size_of::<Sample>()) as u64,
            oldest_metric: all.keys().map(|(_, ms)| from_ms(*ms)).min(),
            newest_metric: all.keys().map(|(_, ms)| from_ms(*ms)).max(),
        })
    }
}

struct Fix;

#[async_trait]
impl Fixture for Fix {
    fn name(&self) -> &str {
        "five-methods"
    }

    async fn open(&self, location: &str) -> Result<Store> {
        let store = locked(&LOCATIONS).entry(location.to_owned()).or_default().clone();
        Ok(Arc::new(store))
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        locked(&LOCATIONS).remove(location);
        Ok(())
    }
}

fn main() {
    conformance_tests::main(Fix)
}
