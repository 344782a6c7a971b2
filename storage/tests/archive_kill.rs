//! An archiver between a SQLite file and Parquet files that is killed at every step it tells of: what
//! it leaves gives the same answers at once, and the next one finishes it.
#![cfg(all(feature = "sqlite", feature = "parquet"))]
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use storage::compose::{Tiered, TieredOptions};
use storage::pipeline::{ArchiveOptions, archive, compare};
use storage::{InMemory, MetricRecord, SeriesFilter, StorageBackend, TimeRange, connect};

const DIR: &str = "ARCHIVE_KILL_DIR";
const STEP: &str = "ARCHIVE_KILL_STEP";
const DAYS: i64 = 3;

fn time(minute: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::minutes(minute)
}

fn records() -> Vec<MetricRecord> {
    let minutes = (0..(DAYS + 1) * 1440).step_by(20);
    minutes.map(|n| MetricRecord::new(format!("web-{}", n % 3), time(n), "cpu", n as f64)).collect()
}

async fn open(dir: &Path) -> Tiered {
    let url = |scheme: &str, name: &str| format!("{scheme}://{}", dir.join(name).display());
    let options = TieredOptions::default()
        .with_lease(Duration::from_millis(1500))
        .with_wait_max(Duration::from_secs(60));
    let hot = connect(&url("sqlite", "hot.db")).await.unwrap();
    let cold = connect(&url("parquet", "cold")).await.unwrap();
    let control = connect(&url("sqlite", "control.db")).await.unwrap();
    Tiered::open_with(hot, cold, control, options).await.unwrap()
}

fn options() -> ArchiveOptions {
    ArchiveOptions::before(time(DAYS * 1440))
}

/// The child: archives, and dies at the step of that number.
#[test]
fn archiver() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let last: usize = std::env::var(STEP).unwrap().parse().unwrap();
    block_on(async {
        let store = open(Path::new(&dir)).await;
        let told = AtomicUsize::new(0);
        let options = options();
        let archiving = archive(&store, &options, |_| {
            if told.fetch_add(1, Ordering::Relaxed) == last {
                std::process::abort();
            }
        });
        archiving.await.unwrap();
        store.close().await.unwrap();
    });
}

fn block_on(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(work);
}

#[test]
fn killed_at_every_step_it_neither_loses_nor_doubles() {
    if std::env::var(DIR).is_ok() {
        return;
    }
    let mut deaths = 0;
    for step in 0.. {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let store = open(dir.path()).await;
            store.write_batch(&records()).await.unwrap();
            store.close().await.unwrap();
        });
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "archiver", "--nocapture"])
            .env(DIR, dir.path())
            .env(STEP, step.to_string())
            .output()
            .unwrap()
            .status;
        block_on(check(dir.path()));
        if status.success() {
            break;
        }
        deaths += 1;
    }
    // Copying, copied, verified, published and pruned, for each of the days.
    assert_eq!(deaths, 5 * DAYS);
}

async fn check(dir: &Path) {
    let plain = InMemory::new();
    plain.write_batch(&records()).await.unwrap();
    let store = Arc::new(open(dir).await);
    assert_same(&store, &plain).await;
    let late = [MetricRecord::new("web-0", time(1), "cpu", -1.0)];
    store.write_batch(&late).await.unwrap();
    plain.write_batch(&late).await.unwrap();
    assert_same(&store, &plain).await;
    archive_to_the_end(&store).await;
    assert_same(&store, &plain).await;
    let hot = store.hot().stats().await.unwrap();
    assert_eq!((hot.total_metrics, hot.oldest_metric), (72, Some(time(DAYS * 1440))));
    store.close().await.unwrap();
}

/// Archives until it is done: on a busy machine a turn as short as this may run out, and whoever lost
/// it is told to come again.
async fn archive_to_the_end(store: &Tiered) {
    for _ in 0..20 {
        match archive(store, &options(), |_| {}).await {
            Ok(_) => return,
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
    panic!("no turn was long enough");
}

async fn assert_same(store: &Tiered, plain: &InMemory) {
    let any = SeriesFilter::any();
    assert!(compare(plain, store, &any, TimeRange::all()).await.unwrap().is_same());
    let (found, expected) = (store.series(&any).await.unwrap(), plain.series(&any).await.unwrap());
    assert_eq!(found, expected);
    let total = plain.stats().await.unwrap().total_metrics;
    assert_eq!(store.stats().await.unwrap().total_metrics, total);
}
