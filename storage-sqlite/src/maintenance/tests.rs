//! A seal as slow as can be: between its steps samples are written, replaced and read, by this
//! handle and another one, and every answer is that of the in-memory backend.

use futures_util::TryStreamExt;
use storage_core::metrics::time::from_ms;
use storage_core::{
    InMemory, MetricRecord, Result, Sample, SeriesFilter, SeriesKey, SeriesSamples, StorageBackend,
    TimeRange,
};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::store::Store;
use crate::{SqliteBackend, SqliteOptions};

use super::{Duration, STEP_SERIES_MAX};

/// Waits until the test lets the next step of a seal pass, if it holds any back.
pub(super) async fn pass_gate(store: &Store) {
    if let Some(gate) = store.seal_gate.get() {
        gate.acquire().await.expect("the gate is never closed").forget();
    }
}

const SERIES: usize = STEP_SERIES_MAX * 3 + 7;

/// Lets one more step pass and waits until it is committed, or the seal is over.
async fn let_one_step_pass(store: &Store, sealing: &JoinHandle<Result<()>>) -> Result<()> {
    let before = store.catch_up().await?.version;
    store.seal_gate.get().expect("the test has set it").add_permits(1);
    while store.catch_up().await?.version == before && !sealing.is_finished() {
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Writes the same samples to both: some at new times, some over old ones, some with metadata.
async fn write(stores: [&dyn StorageBackend; 2], random: &mut fastrand::Rng) -> Result<()> {
    let record = |_| {
        let server = format!("server-{}", random.usize(..SERIES));
        let record = MetricRecord::new(server, from_ms(random.i64(..40)), "m", random.f64());
        match random.u8(..10) {
            0 => record.with_metadata(serde_json::json!({ "note": random.u8(..) })),
            _ => record,
        }
    };
    let records: Vec<_> = (0..2 * SERIES).map(record).collect();
    for store in stores {
        store.write_batch(&records).await?;
    }
    Ok(())
}

async fn ensure_same(found: &dyn StorageBackend, expected: &dyn StorageBackend) -> Result<()> {
    let all = SeriesFilter::any();
    let (stats, other) = (found.stats().await?, expected.stats().await?);
    assert_eq!((stats.total_metrics, stats.series), (other.total_metrics, other.series));
    assert_eq!(stats.newest_metric, other.newest_metric);
    assert_eq!(found.series(&all).await?, expected.series(&all).await?);
    for n in [1, 3] {
        assert_eq!(found.latest(&all, n).await?, expected.latest(&all, n).await?);
    }
    let range = TimeRange::new(from_ms(3), from_ms(38))?;
    let width = Duration::from_millis(8);
    assert_eq!(
        found.windows(&all, range, width).await?,
        expected.windows(&all, range, width).await?
    );
    for server in (0..SERIES).step_by(97).map(|server| format!("server-{server}")) {
        let (found, expected) = (
            found.query_range(&server, "m", range).await?,
            expected.query_range(&server, "m", range).await?,
        );
        assert_eq!(found, expected);
    }
    Ok(())
}

async fn ensure_same_samples(
    found: &dyn StorageBackend,
    expected: &dyn StorageBackend,
) -> Result<()> {
    assert_eq!(all_samples(found).await?, all_samples(expected).await?);
    Ok(())
}

async fn all_samples(store: &dyn StorageBackend) -> Result<Vec<(SeriesKey, Sample)>> {
    let mut batches = store.scan(&SeriesFilter::any(), TimeRange::all());
    let mut all = Vec::new();
    while let Some(SeriesSamples { series, samples }) = batches.try_next().await? {
        all.extend(samples.into_iter().map(|sample| (series.clone(), sample)));
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_seal_neither_loses_nor_doubles() -> Result<()> {
    let dir = tempfile::tempdir().expect("a directory can be made");
    // Nothing seals but the test.
    let options = SqliteOptions::new(dir.path().join("slow.db")).seal_samples(16_000_000);
    let (store, other) =
        (SqliteBackend::open(options.clone()).await?, SqliteBackend::open(options.clone()).await?);
    let reference = InMemory::new();
    let mut random = fastrand::Rng::with_seed(5);
    write([&store, &reference], &mut random).await?;
    store.compact().await?;
    write([&store, &reference], &mut random).await?;
    write([&store, &reference], &mut random).await?;
    store.store.seal_gate.set(Semaphore::new(0)).expect("it is set once");

    let sealing = tokio::spawn({
        let store = std::sync::Arc::clone(&store.store);
        async move { store.seal().await }
    });
    let mut steps = 0;
    while !sealing.is_finished() {
        for handle in [&store, &other] {
            ensure_same(handle, &reference).await?;
        }
        let writer = if steps % 2 == 0 { &store } else { &other };
        write([writer, &reference], &mut random).await?;
        for handle in [&store, &other] {
            ensure_same(handle, &reference).await?;
        }
        let_one_step_pass(&store.store, &sealing).await?;
        steps += 1;
    }
    assert!(steps >= 3, "the seal was over after {steps} steps");
    sealing.await.expect("the seal does not panic")?;
    for handle in [&store, &other] {
        ensure_same(handle, &reference).await?;
        ensure_same_samples(handle, &reference).await?;
    }
    assert_eq!(store.check().await?.problems, Vec::<String>::new());
    drop((store, other));
    ensure_same_samples(&SqliteBackend::open(options).await?, &reference).await
}
