//! Does one step on the backend and on the model, and compares what they say.

use std::fmt::Debug;
use std::sync::Arc;

use futures_util::TryStreamExt;
use storage_core::metrics::backend::SCAN_BATCH_SAMPLES_MAX;
use storage_core::metrics::time::floor_ms;
use storage_core::{
    Error, ErrorKind, InMemory, MetricAggregation, MetricRecord, Result, SeriesFilter, SeriesKey,
    SeriesSamples, SeriesWindows, StorageBackend, StorageStats, TimeRange,
};

use super::Sides;
use super::step::{Action, Step};
use crate::failure::{CaseResult, Failure, expect_kind, sides};
use crate::harness::{Fixture, Store};

/// The allowed error of a sum, relative to the sum of the magnitudes.
const SUM_ERROR: f64 = 1e-12;

/// The backend with its open handles, and the model beside it.
pub(super) struct Pair<'a> {
    fixture: &'a dyn Fixture,
    location: String,
    handles: Vec<Store>,
    model: InMemory,
}

impl<'a> Pair<'a> {
    pub(super) async fn open(fixture: &'a dyn Fixture, location: &str) -> Result<Self, Failure> {
        let handles = vec![fixture.open(location).await?];
        Ok(Self { fixture, location: location.to_owned(), handles, model: InMemory::new() })
    }
}

impl Sides<Step> for Pair<'_> {
    async fn take(&mut self, step: &Step) -> CaseResult {
        let number = step.handle % self.handles.len();
        let store = Arc::clone(&self.handles[number]);
        let model = &self.model;
        match &step.action {
            Action::Write(records) => {
                same_refusal(store.write_batch(records).await, model.write_batch(records).await)
            }
            Action::Query(key, range) => {
                let SeriesKey { server_id, metric_type } = key;
                let found = store.query_range(server_id, metric_type, *range).await;
                let expected = model.query_range(server_id, metric_type, *range).await;
                same(found.map(bitwise), expected.map(bitwise))
            }
            Action::Aggregate(key, range) => self.aggregate(&store, key, *range).await,
            Action::Prune(cutoff) => {
                same(store.prune_before(*cutoff).await, model.prune_before(*cutoff).await)
            }
            Action::Stats => {
                same(store.stats().await.map(comparable), model.stats().await.map(comparable))
            }
            Action::Series(filter) => same(store.series(filter).await, model.series(filter).await),
            Action::Latest(filter, n) => {
                let found = store.latest(filter, *n).await.map(bitwise_all);
                same(found, model.latest(filter, *n).await.map(bitwise_all))
            }
            Action::Windows(filter, range, width) => {
                let found = store.windows(filter, *range, *width).await?;
                let expected = model.windows(filter, *range, *width).await?;
                self.same_windows(&found, &expected, *range).await
            }
            Action::Scan(filter, range) => {
                let found = scanned(&*store, filter, *range).await?;
                same(Ok(found), Ok(scanned(model, filter, *range).await?))
            }
            Action::Flush => Ok(store.flush().await?),
            Action::Compact => Ok(store.compact().await?),
            Action::Check => check(&*store).await,
            Action::Open => {
                self.handles.push(self.fixture.open(&self.location).await?);
                Ok(())
            }
            Action::Close => {
                store.close().await?;
                self.handles.remove(number);
                if store.capabilities().close {
                    expect_kind(store.stats().await, ErrorKind::Closed, "stats after close")?;
                }
                if self.handles.is_empty() {
                    self.handles.push(self.fixture.open(&self.location).await?);
                }
                Ok(())
            }
        }
    }

    async fn close(self) -> CaseResult {
        for handle in self.handles {
            handle.close().await?;
        }
        Ok(())
    }
}

impl Pair<'_> {
    async fn aggregate(&self, store: &Store, key: &SeriesKey, range: TimeRange) -> CaseResult {
        let SeriesKey { server_id, metric_type } = key;
        let found = store.aggregate(server_id, metric_type, range).await;
        match self.model.aggregate(server_id, metric_type, range).await {
            Ok(expected) => {
                let records = self.model.query_range(server_id, metric_type, range).await?;
                same_aggregation(&found?, &expected, records.iter().map(|record| record.value))
            }
            Err(error) => same(found, Err(error)),
        }
    }

    async fn same_windows(
        &self,
        found: &[SeriesWindows],
        expected: &[SeriesWindows],
        range: TimeRange,
    ) -> CaseResult {
        ensure_eq!(starts(found), starts(expected), "series and starts of the windows");
        for (found, expected) in found.iter().zip(expected) {
            let SeriesKey { server_id, metric_type } = &expected.series;
            let records = self.model.query_range(server_id, metric_type, range).await?;
            let mut values = records.iter().map(|record| record.value);
            for (found, expected) in found.windows.iter().zip(&expected.windows) {
                let values = values.by_ref().take(expected.aggregation.count as usize);
                same_aggregation(&found.aggregation, &expected.aggregation, values)
                    .map_err(|failure| failure.during(format!("window at {}", expected.start)))?;
            }
        }
        Ok(())
    }
}

/// Sample by sample, so that 0.0 and -0.0 differ.
type Bitwise = (u64, MetricRecord);

fn bitwise(records: Vec<MetricRecord>) -> Vec<Bitwise> {
    records.into_iter().map(|record| (record.value.to_bits(), record)).collect()
}

fn bitwise_all(all: Vec<SeriesSamples>) -> Vec<Bitwise> {
    let records = all.into_iter().flat_map(|SeriesSamples { series, samples }| {
        samples.into_iter().map(move |sample| sample.into_record(&series)).collect::<Vec<_>>()
    });
    bitwise(records.collect())
}

/// What can be compared: everything but the bytes on disk.
fn comparable(stats: StorageStats) -> StorageStats {
    StorageStats { disk_usage_bytes: 0, ..stats }
}

fn starts(found: &[SeriesWindows]) -> Vec<(&SeriesKey, Vec<i64>)> {
    let start_ms = |of: &SeriesWindows| of.windows.iter().map(|w| floor_ms(w.start)).collect();
    found.iter().map(|of| (&of.series, start_ms(of))).collect()
}

/// Collects a scan, and checks the shape of its batches.
async fn scanned(
    store: &dyn StorageBackend,
    filter: &SeriesFilter,
    range: TimeRange,
) -> Result<Vec<Bitwise>, Failure> {
    let batches: Vec<SeriesSamples> = store.scan(filter, range).try_collect().await?;
    for batch in &batches {
        let count = batch.samples.len();
        ensure!((1..=SCAN_BATCH_SAMPLES_MAX).contains(&count), "a batch of {count} samples");
    }
    Ok(bitwise_all(batches))
}

/// The backend finds nothing wrong with what is stored, if it can look.
pub(super) async fn check(store: &dyn StorageBackend) -> CaseResult {
    if store.capabilities().check {
        let problems = store.check().await?.problems;
        ensure!(problems.is_empty(), "check finds {problems:?}");
    }
    Ok(())
}

/// As [`same`]; what is refused also has the same details of these names.
pub(super) fn same_details<T: PartialEq + Debug>(
    found: Result<T>,
    expected: Result<T>,
    names: &[&str],
) -> CaseResult {
    let details = |result: &Result<T>| {
        let error = result.as_ref().err()?;
        let of = |name: &&str| error.context(name).map(str::to_owned);
        Some(names.iter().map(of).collect::<Vec<_>>())
    };
    let both = (details(&found), details(&expected));
    same(found, expected)?;
    ensure_eq!(both.0, both.1, "the details of the refusal");
    Ok(())
}

/// Both succeed with the same answer, or fail with the same kind of error.
pub(super) fn same<T: PartialEq + Debug>(found: Result<T>, expected: Result<T>) -> CaseResult {
    match (found, expected) {
        (Ok(found), Ok(expected)) if found == expected => Ok(()),
        (Ok(found), Ok(expected)) => {
            Err(Failure::new(format!("the answers differ{}", sides(&found, &expected))))
        }
        (Err(error), Ok(_)) => Err(Failure::from(error).during("failed, expected an answer")),
        (found, Err(expected)) => {
            expect_kind(found, expected.kind(), "what the model refuses").map(drop)
        }
    }
}

/// As [`same`]; a refused batch also names the same record and field.
pub(super) fn same_refusal(found: Result<()>, expected: Result<()>) -> CaseResult {
    let place = |result: &Result<()>| {
        let of = |error: &Error, name| error.context(name).map(str::to_owned);
        result.as_ref().err().map(|error| (of(error, "record"), of(error, "field")))
    };
    let places = (place(&found), place(&expected));
    same(found, expected)?;
    ensure_eq!(places.0, places.1, "the details of the refusal");
    Ok(())
}

/// Equal, but for the rounding that a sum may have.
fn same_aggregation(
    found: &MetricAggregation,
    expected: &MetricAggregation,
    values: impl Iterator<Item = f64>,
) -> CaseResult {
    let exact = |of: &MetricAggregation| {
        let bits = |value: Option<f64>| value.map(f64::to_bits);
        (of.count, bits(of.min), bits(of.max), bits(of.first), bits(of.last))
    };
    let error_max = SUM_ERROR * values.map(f64::abs).sum::<f64>();
    let near = |found: Option<f64>, expected: Option<f64>, error_max: f64| match (found, expected) {
        (Some(found), Some(expected)) => (found - expected).abs() <= error_max,
        (found, expected) => found == expected,
    };
    let close = near(found.sum, expected.sum, error_max)
        && near(found.avg, expected.avg, error_max / expected.count.max(1) as f64 + 1e-323);
    ensure!(
        exact(found) == exact(expected) && close,
        "aggregates differ{}",
        sides(found, expected)
    );
    Ok(())
}
