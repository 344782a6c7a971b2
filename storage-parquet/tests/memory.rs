//! The option `memory_bytes` bounds what a merge, a group-by, an aggregate, a scan, a check and a prune
//! hold, however much lies in one hour: measured as the peak of a process of its own.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, ExitCode};

use futures_util::TryStreamExt;
use libtest_mimic::{Arguments, Failed, Trial};
use storage_core::metrics::time::from_ms;
use storage_core::{MetricRecord, SeriesFilter, StorageBackend, TimeRange};
use storage_parquet::{ParquetBackend, ParquetOptions};

const NAME: &str = "the_peak_is_bounded_by_the_option";
const CHILD: &str = "STORAGE_TEST_MEMORY_DIR";

const MEMORY_BYTES: usize = 16 << 20;
/// Each with twice as many samples as a portion of a merge may have, all within one hour; together ten
/// times as many as a question may hold.
const SERIES: i64 = 10;
const SAMPLES: i64 = 340_000;
const BATCH: i64 = 20_000;
/// What the setting does not count: threads, a file in the making, what the allocator keeps.
const ON_TOP: usize = 40 << 20;

fn main() -> ExitCode {
    if let Some(dir) = std::env::var_os(CHILD) {
        block_on(measure(Path::new(&dir)));
        return ExitCode::SUCCESS;
    }
    let trial = match Path::new("/proc/self/clear_refs").exists() {
        true => Trial::test(NAME, test),
        false => Trial::test(NAME, test).with_ignored_flag(true).with_kind("needs Linux"),
    };
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

fn test() -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    block_on(write(dir.path()));
    // What this process has used and given back would hide what the next one uses.
    let child = Command::new(std::env::current_exe()?).env(CHILD, dir.path()).output()?;
    let text = String::from_utf8_lossy(&child.stdout).into_owned();
    #[allow(clippy::print_stdout)] // what a run is worth
    {
        print!("{text}");
    }
    let errors = String::from_utf8_lossy(&child.stderr).into_owned();
    if child.status.success() { Ok(()) } else { Err(format!("{text}{errors}").into()) }
}

/// Writes batches that nobody merges yet.
async fn write(dir: &Path) {
    let options = ParquetOptions::new(dir).merge_samples(100_000_000).merge_files(100_000);
    let store = ParquetBackend::open(options).await.unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    for batch in 0..SAMPLES / BATCH {
        let times = batch * BATCH..(batch + 1) * BATCH;
        let mut of = |(ms, series): (i64, i64)| {
            MetricRecord::new(format!("s{series}"), from_ms(ms), "b", random.f64())
        };
        let places = times.flat_map(|ms| (0..SERIES).map(move |series| (ms, series)));
        store.write_batch(&places.map(&mut of).collect::<Vec<_>>()).await.unwrap();
    }
    store.close().await.unwrap();
}

/// A line of `/proc/self/status`, in bytes.
fn status(name: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// How far the peak rises above what was there before.
async fn peak_of<T>(what: &str, work: impl Future<Output = storage_core::Result<T>>) -> T {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS:");
    let done = work.await.unwrap();
    let peak = status("VmHWM:").saturating_sub(before);
    #[allow(clippy::print_stdout)]
    {
        println!("{what}: {} MiB above {} MiB", peak >> 20, before >> 20);
    }
    assert!(peak <= MEMORY_BYTES + ON_TOP, "{what}: {} MiB", peak >> 20);
    done
}

async fn measure(dir: &Path) {
    // Batches that are larger than what may wait stay in their files until they are merged.
    let options = ParquetOptions::new(dir).memory_bytes(MEMORY_BYTES).merge_samples(1000);
    let opened = peak_of("open and merge", async {
        let store = ParquetBackend::open(options).await?;
        store.compact().await?;
        Ok(store)
    });
    let store = opened.await;
    let (all, any) = (TimeRange::all(), SeriesFilter::any());
    let minute = std::time::Duration::from_secs(60);
    let windows = peak_of("windows", store.windows(&any, all, minute)).await;
    let windows = windows.iter().flat_map(|series| &series.windows);
    let counted: u64 = windows.map(|window| window.aggregation.count).sum();
    assert_eq!(counted, (SERIES * SAMPLES) as u64);
    let aggregate = peak_of("aggregate", store.aggregate("s1", "b", all)).await;
    assert_eq!(aggregate.count, SAMPLES as u64);
    let scanned = peak_of("scan", async {
        let batches = store.scan(&any, all);
        batches.try_fold(0, async |sum, batch| Ok(sum + batch.samples.len())).await
    });
    assert_eq!(scanned.await as i64, SERIES * SAMPLES);
    let problems = peak_of("check", store.check()).await.problems;
    assert_eq!(problems, Vec::<String>::new());
    let half = from_ms(SAMPLES / 2);
    let pruned = peak_of("prune", store.prune_before(half)).await;
    assert_eq!(pruned as i64, SERIES * SAMPLES / 2);
    store.close().await.unwrap();
}
