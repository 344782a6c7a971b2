//! Copies between stores in memory: whole, again, interrupted, limited, beside writers, and into a
//! store that loses samples.

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::json;

use super::*;
use crate::layers::{Fault, FaultPlan, Faulty, Operation};
use crate::metrics::time::from_ms;
use crate::metrics::{MetricAggregation, ScanStream, SeriesInfo, StorageStats};
use crate::{Capabilities, InMemory};

const HOUR_MS: i64 = 3_600_000;

/// Ten series, three days, a sample every ten minutes.
fn records() -> Vec<MetricRecord> {
    let record = |n: i64| {
        let record = MetricRecord::new(
            format!("web-{}", n % 10),
            from_ms(n * HOUR_MS / 60),
            "cpu",
            n as f64,
        );
        if n % 7 == 0 { record.with_metadata(json!({"n": n, "a": [n]})) } else { record }
    };
    (0..3 * 24 * 60).map(record).collect()
}

async fn filled() -> InMemory {
    let store = InMemory::new();
    store.write_batch(&records()).await.unwrap();
    store
}

async fn same(one: &dyn StorageBackend, other: &dyn StorageBackend) -> bool {
    compare(one, other, &SeriesFilter::any(), TimeRange::all()).await.unwrap().is_same()
}

fn hourly() -> CopyOptions {
    CopyOptions::default().with_window(Duration::from_secs(3600)).with_batch_samples(7)
}

#[tokio::test]
async fn a_copy_is_the_same_and_a_second_finds_nothing_to_do() {
    let (source, destination) = (filled().await, InMemory::new());
    let (mut last, mut told) = (0, 0);
    let report = copy(&source, &destination, &hourly(), |progress| {
        assert!(progress.samples_done > last && progress.extent.start_ms() == 0);
        (last, told) = (progress.samples_done, told + 1);
        assert_eq!(progress.samples_total, Some(4320));
    })
    .await
    .unwrap();
    assert!(same(&source, &destination).await);
    assert_eq!((report.windows, report.windows_equal, report.samples_copied), (72, 0, 4320));
    let whole = digest(&source, &SeriesFilter::any(), TimeRange::all()).await.unwrap();
    assert_eq!(report.source, whole);
    assert_eq!((last, told), (4320, 72 * 9));

    let again = copy(&source, &destination, &hourly(), |_| {}).await.unwrap();
    assert_eq!((again.windows, again.windows_equal, again.samples_copied), (72, 72, 0));
    assert_eq!(again.source, whole);
}

#[tokio::test]
async fn what_differs_is_replaced_and_what_is_extra_stays() {
    let (source, destination) = (filled().await, InMemory::new());
    copy(&source, &destination, &hourly(), |_| {}).await.unwrap();
    let other = |ms, value| MetricRecord::new("web-0", from_ms(ms), "cpu", value);
    destination.write_batch(&[other(0, -1.0), other(1, -1.0)]).await.unwrap();

    let dry = copy(&source, &destination, &hourly().with_dry_run(true), |_| {}).await.unwrap();
    assert_eq!((dry.windows_equal, dry.samples_copied), (71, 60));
    assert_eq!((dry.samples_missing, dry.samples_different, dry.samples_extra), (0, 1, 1));
    assert_eq!(destination.stats().await.unwrap().total_metrics, 4321);
    assert!(!same(&source, &destination).await);

    let report = copy(&source, &destination, &hourly(), |_| {}).await.unwrap();
    assert_eq!((report.windows_equal, report.samples_copied), (71, 60));
    let found = compare(&source, &destination, &SeriesFilter::any(), TimeRange::all()).await;
    assert_eq!(found.map(|found| (found.holds_source(), found.extra)).unwrap(), (true, 1));
}

#[tokio::test]
async fn a_dry_run_into_nothing_counts_everything_and_writes_nothing() {
    let (source, destination) = (filled().await, InMemory::new());
    let dry = copy(&source, &destination, &hourly().with_dry_run(true), |_| {}).await.unwrap();
    assert_eq!((dry.windows, dry.samples_copied, dry.samples_missing), (72, 4320, 4320));
    assert_eq!(destination.stats().await.unwrap().total_metrics, 0);
}

#[tokio::test]
async fn range_and_filter_choose() {
    let (source, destination) = (filled().await, InMemory::new());
    let range = TimeRange::new(from_ms(HOUR_MS + 1), from_ms(3 * HOUR_MS)).unwrap();
    let filter = SeriesFilter::exact("web-3", "cpu").unwrap();
    let options = hourly().with_range(range).with_filter(filter.clone());
    let report = copy(&source, &destination, &options, |progress| {
        assert_eq!(progress.samples_total, None);
    })
    .await
    .unwrap();
    assert_eq!((report.windows, report.samples_copied), (2, 12));
    assert_eq!(destination.stats().await.unwrap().total_metrics, 12);
    let whole = hourly().with_filter(filter);
    let total = |progress: &CopyProgress| assert_eq!(progress.samples_total, Some(432));
    copy(&source, &InMemory::new(), &whole, total).await.unwrap();

    let outside = TimeRange::new(from_ms(-HOUR_MS), from_ms(0)).unwrap();
    let options = hourly().with_range(outside);
    let nothing = copy(&source, &InMemory::new(), &options, |_| {}).await.unwrap();
    assert_eq!(nothing, CopyReport::default());
    let empty = copy(&InMemory::new(), &source, &hourly(), |_| {}).await.unwrap();
    assert_eq!(empty, CopyReport::default());
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_copy_goes_on_where_it_was() {
    let source = filled().await;
    let slow = FaultPlan::new(3).with_slow(1.0, Duration::from_millis(10));
    let destination = Faulty::new(InMemory::new(), slow.only(&[Operation::WriteBatch]));
    let mut before = 0;
    for time_ms in [1, 30, 100, 300, 600] {
        let options = hourly();
        let copying = copy(&source, &destination, &options, |_| {});
        let interrupted = tokio::time::timeout(Duration::from_millis(time_ms), copying).await;
        assert!(interrupted.is_err(), "done within {time_ms} ms");
        let samples = destination.inner().stats().await.unwrap().total_metrics;
        assert!(samples >= before, "{samples} after {before}");
        before = samples;
    }
    assert!((1..4320).contains(&before), "{before} samples before the last run");
    let report = copy(&source, &destination, &hourly(), |_| {}).await.unwrap();
    assert!(report.windows_equal > 0 && report.samples_copied < 4320, "{report:?}");
    assert!(same(&source, &destination).await);
}

#[tokio::test]
async fn a_failing_store_ends_the_copy_and_the_error_says_which() {
    for (operation, at_source) in
        [(Operation::Scan, true), (Operation::WriteBatch, false), (Operation::Scan, false)]
    {
        let source = Faulty::new(filled().await, FaultPlan::new(1));
        let destination = Faulty::new(InMemory::new(), FaultPlan::new(1));
        let failing = if at_source { &source } else { &destination };
        failing.control().inject(operation, Fault::Refused);
        let error = copy(&source, &destination, &hourly(), |_| {}).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let side = if at_source { "source" } else { "destination" };
        assert_eq!(error.context("side"), Some(side));
        copy(&source, &destination, &hourly(), |_| {}).await.unwrap();
        assert!(same(&source, &destination).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_limited_copy_takes_its_time() {
    let (source, destination) = (filled().await, InMemory::new());
    let options = CopyOptions::default().with_samples_per_second(432);
    let started = Instant::now();
    let mut seconds = Vec::new();
    copy(&source, &destination, &options, |_| seconds.push(started.elapsed().as_secs()))
        .await
        .unwrap();
    let elapsed = started.elapsed().as_secs_f64();
    assert!((9.8..10.1).contains(&elapsed), "4320 samples at 432 a second took {elapsed} s");
    seconds.dedup();
    assert_eq!(seconds, (0..10).collect::<Vec<_>>(), "it flows evenly");
    assert!(same(&source, &destination).await);
}

/// A store that keeps of what it acknowledges what `keeps` says, and may change with every scan.
struct Odd {
    inner: InMemory,
    keeps: fn(MetricRecord) -> Option<MetricRecord>,
    changes: u64,
    scans: AtomicU64,
}

impl Odd {
    fn keeping(keeps: fn(MetricRecord) -> Option<MetricRecord>) -> Self {
        Self { inner: InMemory::new(), keeps, changes: 0, scans: AtomicU64::new(0) }
    }
}

#[async_trait]
impl StorageBackend for Odd {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        let kept: Vec<_> = records.iter().cloned().filter_map(self.keeps).collect();
        self.inner.write_batch(&kept).await
    }
    async fn query_range(&self, s: &str, m: &str, range: TimeRange) -> Result<Vec<MetricRecord>> {
        self.inner.query_range(s, m, range).await
    }
    async fn aggregate(&self, s: &str, m: &str, range: TimeRange) -> Result<MetricAggregation> {
        self.inner.aggregate(s, m, range).await
    }
    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        self.inner.prune_before(cutoff).await
    }
    async fn stats(&self) -> Result<StorageStats> {
        self.inner.stats().await
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        self.inner.series(filter).await
    }
    fn scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        let filter = filter.clone();
        let disturbed = async move {
            let number = self.scans.fetch_add(1, Ordering::Relaxed);
            if number < self.changes {
                let record = MetricRecord::new("web-0", from_ms(5), "cpu", number as f64);
                self.inner.write_batch(&[record]).await?;
            }
            Ok::<_, Error>(self.inner.scan(&filter, range))
        };
        Box::pin(stream::once(disturbed).try_flatten())
    }
}

async fn is_found_out(destination: &Odd) {
    let error = copy(&filled().await, destination, &hourly(), |_| {}).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Corrupt, false));
    assert!(error.context("window").is_some());
}

#[tokio::test]
async fn a_destination_that_loses_samples_is_found_out() {
    is_found_out(&Odd::keeping(|record| (record.value != 77.0).then_some(record))).await;
    is_found_out(&Odd::keeping(|record| record.metadata.is_none().then_some(record))).await;
    // The oldest, and the newest.
    is_found_out(&Odd::keeping(|record| (record.value != 0.0).then_some(record))).await;
    is_found_out(&Odd::keeping(|record| (record.value != 4319.0).then_some(record))).await;
}

#[tokio::test]
async fn a_destination_that_changes_samples_is_found_out() {
    is_found_out(&Odd::keeping(|record| Some(MetricRecord { metadata: None, ..record }))).await;
    is_found_out(&Odd::keeping(|mut record| {
        record.value = record.value.min(4000.0);
        Some(record)
    }))
    .await;
}

/// Where a window held something before it goes another way.
#[tokio::test]
async fn what_is_mended_is_verified_too() {
    let odd = Odd::keeping(|record| (record.value != 77.0).then_some(record));
    odd.inner
        .write_batch(&[MetricRecord::new("web-0", from_ms(HOUR_MS), "cpu", 1.0)])
        .await
        .unwrap();
    is_found_out(&odd).await;
}

#[tokio::test]
async fn a_source_that_changes_meanwhile_is_copied_again() {
    for (changes, settles) in [(4, true), (u64::MAX, false)] {
        let inner = filled().await;
        let source = Odd { inner, changes, ..Odd::keeping(Some) };
        let destination = InMemory::new();
        // Where there is something already, both are compared.
        let extra = MetricRecord::new("web-0", from_ms(1), "cpu", 1.0);
        destination.write_batch(&[extra]).await.unwrap();
        let result = copy(&source, &destination, &hourly(), |_| {}).await;
        if settles {
            assert_eq!(result.unwrap().windows_repeated, 1);
            let all = compare(&source, &destination, &SeriesFilter::any(), TimeRange::all()).await;
            assert_eq!(all.map(|found| (found.holds_source(), found.extra)).unwrap(), (true, 1));
        } else {
            let error = result.unwrap_err();
            assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Busy, true));
        }
    }
}
