//! A full disk, damaged files, a reader through every merge, several writers that merge: what can go
//! wrong around a directory.
//!
//! The full disk needs root; where the machine has none the test shows as ignored, and fails if
//! `CONFORMANCE_REQUIRE` names `faults`.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt;
use libtest_mimic::{Arguments, Failed, Trial};
use storage_core::metrics::time::from_ms;
use storage_core::{
    Error, ErrorKind, HealthStatus, MetricRecord, Outcome, SeriesFilter, StorageBackend, TimeRange,
};
use storage_parquet::{ParquetBackend, ParquetOptions};

const HOUR_MS: i64 = 3_600_000;

type Test = fn() -> Result<(), Failed>;

fn main() -> ExitCode {
    let tests: [(&str, Test); 6] = [
        ("a_damaged_file_is_named_and_the_rest_stays_readable", damaged_file),
        ("a_damaged_hour_keeps_no_other_from_being_merged", damaged_hour),
        ("a_reader_through_every_merge_sees_each_row_once", reader_through_merges),
        ("a_writer_a_second_leaves_few_files", few_files),
        ("files_that_belong_to_nobody_go_after_a_while", orphans),
        ("a_clock_that_is_wrong_changes_no_answer", wrong_clock),
    ];
    let mut trials: Vec<_> =
        tests.into_iter().map(|(name, test)| Trial::test(name, test)).collect();
    let name = "a_full_disk_loses_nothing_and_can_be_recovered";
    let id = Command::new("id").arg("-u").output().map(|output| output.stdout);
    let required = std::env::var("CONFORMANCE_REQUIRE").unwrap_or_default();
    let is_required = required.split(',').any(|word| ["faults", "all", "1"].contains(&word.trim()));
    trials.push(match id.ok().as_deref() == Some(b"0\n") {
        true => Trial::test(name, full_disk),
        false if is_required => Trial::test(name, || Err("needs root".into())),
        false => Trial::test(name, full_disk).with_ignored_flag(true).with_kind("needs root"),
    });
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

async fn open(options: ParquetOptions) -> ParquetBackend {
    ParquetBackend::open(options).await.unwrap()
}

fn small(path: &Path) -> ParquetOptions {
    ParquetOptions::new(path).merge_samples(20_000).merge_files(100_000).hour_samples(100)
}

/// A batch of noise, so that it does not compress away.
fn batch(number: i64) -> Vec<MetricRecord> {
    let mut random = fastrand::Rng::with_seed(number as u64);
    let samples = (0..1000).map(|index| (number * 1000 + index, random.f64()));
    samples.map(|(ms, value)| MetricRecord::new("a", from_ms(ms), "noise", value)).collect()
}

async fn assert_holds(store: &ParquetBackend, batches: i64) {
    let found = store.query_range("a", "noise", TimeRange::all()).await.unwrap();
    let expected: Vec<_> = (0..batches).flat_map(batch).collect();
    assert!(found == expected, "{} samples, expected {}", found.len(), expected.len());
}

/// A small file system in memory, unmounted when it goes.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", size, "tmpfs"]).arg(dir.path()));
        Self(dir)
    }

    fn remount(&self, option: &str) {
        let option = format!("remount,{option}");
        run(Command::new("mount").args(["-o", &option]).arg(self.0.path()));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(self.0.path()));
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}");
}

fn full_disk() -> Result<(), Failed> {
    let disk = Disk::new("size=2m");
    let path = disk.0.path().join("archive");
    block_on(async {
        let store = open(small(&path)).await;
        let mut batches = 0;
        let error: Error = loop {
            match store.write_batch(&batch(batches)).await {
                Ok(()) => batches += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error:#}");
        assert_eq!(error.outcome(), Outcome::NotApplied);
        assert!(batches > 10, "{batches}");
        assert_holds(&store, batches).await;
        disk.remount("size=64m");
        store.write_batch(&batch(batches)).await.unwrap();
        store.compact().await.unwrap();
        assert_holds(&store, batches + 1).await;
        store.close().await.unwrap();
        let store = open(small(&path)).await;
        assert_holds(&store, batches + 1).await;
        assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
        store.close().await.unwrap();
        disk.remount("ro");
        let store = open(small(&path).read_only(true)).await;
        assert_holds(&store, batches + 1).await;
        assert_eq!(store.health().await.status, HealthStatus::Degraded);
        store.close().await.unwrap();
        let store = open(small(&path)).await;
        let error = store.write_batch(&batch(0)).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.outcome()),
            (ErrorKind::PermissionDenied, Outcome::NotApplied)
        );
        store.close().await.unwrap();
    });
    Ok(())
}

/// Every file below `data`, in order.
fn data_files(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).into_iter().flatten() {
        let entry = entry.unwrap().path();
        if entry.is_dir() { found.extend(data_files(&entry)) } else { found.push(entry) }
    }
    found.sort();
    found
}

fn damaged_file() -> Result<(), Failed> {
    let dir = tempfile::tempdir().unwrap();
    let hour = |number: i64| {
        let range = TimeRange::new(from_ms(number * HOUR_MS), from_ms((number + 1) * HOUR_MS));
        range.unwrap()
    };
    block_on(async {
        let store = open(small(dir.path())).await;
        let of = |no: i64| {
            let record = MetricRecord::new("a", from_ms(no * HOUR_MS / 50), "b", no as f64);
            if no % 9 == 0 { record.with_metadata(serde_json::json!({ "no": no })) } else { record }
        };
        store.write_batch(&(0..200).map(of).collect::<Vec<_>>()).await.unwrap();
        store.compact().await.unwrap();
        store.close().await.unwrap();
    });
    let files = data_files(&dir.path().join("data"));
    assert_eq!(files.len(), 4);
    let whole = std::fs::read(&files[1]).unwrap();
    let name = files[1].strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned();
    let mut breaks: Vec<Vec<u8>> =
        (0..whole.len()).step_by(61).map(|n| whole[..n].to_vec()).collect();
    breaks.extend((0..whole.len()).step_by(7).map(|byte| {
        let mut broken = whole.clone();
        broken[byte] ^= 0x10;
        broken
    }));
    block_on(async {
        let mut noticed = 0;
        for broken in breaks {
            std::fs::write(&files[1], &broken).unwrap();
            let store = open(small(dir.path())).await;
            match store.query_range("a", "b", hour(1)).await {
                Ok(found) => {
                    let values: Vec<_> = found.iter().map(|record| record.value).collect();
                    assert_eq!(values, (50..100).map(f64::from).collect::<Vec<_>>());
                }
                Err(error) => {
                    noticed += 1;
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:#}");
                    assert_eq!(error.context("file"), Some(&*name));
                    let report = store.check().await.unwrap();
                    assert!(report.problems.iter().any(|line| line.contains(&name)), "{report:?}");
                }
            }
            for other in [0, 2, 3] {
                let found = store.query_range("a", "b", hour(other)).await.unwrap();
                assert_eq!(found.len(), 50);
            }
            store.write_batch(&[MetricRecord::new("c", from_ms(0), "d", 1.0)]).await.unwrap();
            store.close().await.unwrap();
        }
        assert!(noticed > 50, "{noticed}");
    });
    Ok(())
}

/// Three days in hours; one hour is damaged; then the days are old enough to become one file each.
fn damaged_hour() -> Result<(), Failed> {
    block_on(async {
        one_hour_lost(|name, whole| std::fs::write(name, &whole[..whole.len() / 2]).unwrap()).await;
        one_hour_lost(|name, _| std::fs::remove_file(name).unwrap()).await;
    });
    Ok(())
}

async fn one_hour_lost(damage: impl Fn(&Path, &[u8])) {
    let dir = tempfile::tempdir().unwrap();
    let long = Duration::from_secs(100 * 365 * 86_400);
    let store = open(small(dir.path()).day_after(long)).await;
    let of = |no: i64| MetricRecord::new("a", from_ms(no * HOUR_MS / 10), "b", no as f64);
    store.write_batch(&(0..720).map(of).collect::<Vec<_>>()).await.unwrap();
    store.compact().await.unwrap();
    store.close().await.unwrap();
    let files = data_files(&dir.path().join("data"));
    assert_eq!(files.len(), 72);
    let (name, whole) = (&files[30], std::fs::read(&files[30]).unwrap());
    damage(name, &whole);
    let store = open(small(dir.path()).day_after(Duration::ZERO)).await;
    // A late row of the same day, in another hour.
    store.write_batch(&[of(241)]).await.unwrap();
    store.compact().await.unwrap();
    // The first day is one file; the last one is not over by the newest sample.
    let left = data_files(&dir.path().join("data"));
    assert_eq!(left.iter().filter(|path| *path != name).count(), 1 + 23 + 24);
    let hours = |from, to| TimeRange::new(from_ms(from * HOUR_MS), from_ms(to * HOUR_MS)).unwrap();
    assert_eq!(store.query_range("a", "b", hours(0, 30)).await.unwrap().len(), 300);
    let error = store.query_range("a", "b", hours(30, 31)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(name.ends_with(error.context("file").unwrap()));
    // Something that has to be merged into the hour itself cannot be, and is not lost.
    store.write_batch(&[of(305)]).await.unwrap();
    assert_eq!(store.compact().await.unwrap_err().kind(), ErrorKind::Corrupt);
    store.close().await.unwrap();
    // Put back from a copy, all is well.
    std::fs::write(name, &whole).unwrap();
    let store = open(small(dir.path()).day_after(Duration::ZERO)).await;
    store.compact().await.unwrap();
    assert_eq!(data_files(&dir.path().join("data")).len(), 1 + 1 + 24);
    assert_eq!(store.query_range("a", "b", TimeRange::all()).await.unwrap().len(), 720);
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
    store.close().await.unwrap();
}

/// One handle writes and merges and prunes; another asks everything all the time.
fn reader_through_merges() -> Result<(), Failed> {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let writer = Arc::new(open(small(dir.path()).merge_files(5)).await);
        let reader = open(small(dir.path())).await;
        let done = Arc::new(AtomicBool::new(false));
        let writing = tokio::spawn({
            let (writer, done) = (Arc::clone(&writer), Arc::clone(&done));
            async move {
                for number in 0..150i64 {
                    // Each batch replaces a half of the one before, at the same values.
                    let of = |no: i64| MetricRecord::new("a", from_ms(no * 60_000), "b", no as f64);
                    let start = number * 20;
                    let records: Vec<_> = (start.max(10) - 10..start + 20).map(of).collect();
                    writer.write_batch(&records).await.unwrap();
                    if number % 10 == 0 {
                        writer.compact().await.unwrap();
                    }
                }
                done.store(true, Ordering::Release);
            }
        });
        let (mut rounds, mut before) = (0, 0);
        while !done.load(Ordering::Acquire) || rounds == 0 {
            let found = reader.query_range("a", "b", TimeRange::all()).await.unwrap();
            for (no, record) in found.iter().enumerate() {
                assert_eq!(
                    (record.timestamp, record.value),
                    (from_ms(no as i64 * 60_000), no as f64)
                );
            }
            assert!(found.len() >= before && found.len() % 20 == 0, "{} {before}", found.len());
            let stats = reader.stats().await.unwrap();
            assert!(stats.total_metrics >= found.len() as u64 && stats.total_metrics % 20 == 0);
            let batches: Vec<_> =
                reader.scan(&SeriesFilter::any(), TimeRange::all()).try_collect().await.unwrap();
            let scanned: Vec<_> = batches.iter().flat_map(|batch| &batch.samples).collect();
            assert!(scanned.len() >= found.len());
            for (no, sample) in scanned.iter().enumerate() {
                assert_eq!(sample.timestamp, from_ms(no as i64 * 60_000));
            }
            before = found.len();
            rounds += 1;
        }
        writing.await.unwrap();
        assert_eq!(reader.stats().await.unwrap().total_metrics, 3000);
        assert!(rounds > 3, "{rounds}");
        writer.close().await.unwrap();
        reader.close().await.unwrap();
    });
    Ok(())
}

/// A batch for every second of some hours, merged as the options have it.
fn few_files() -> Result<(), Failed> {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let options = ParquetOptions::new(dir.path()).hour_samples(1_000);
        let store = open(options).await;
        let hours = 2;
        for second in 0..hours * 3600 {
            let of =
                |no: i64| MetricRecord::new(format!("s{no}"), from_ms(second * 1000), "b", 1.0);
            store.write_batch(&(0..3).map(of).collect::<Vec<_>>()).await.unwrap();
        }
        store.compact().await.unwrap();
        assert_eq!(data_files(&dir.path().join("data")).len() as i64, hours);
        assert_eq!(store.stats().await.unwrap().total_metrics, 3 * 3600 * hours as u64);
        // What is left of the log are the entries since the last checkpoint but one.
        let log = data_files(&dir.path().join("log")).len();
        assert!(log <= 2 * 256 * 4, "{log} entries");
        store.close().await.unwrap();
    });
    Ok(())
}

fn orphans() -> Result<(), Failed> {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let patient = open(small(dir.path())).await;
        patient.write_batch(&batch(0)).await.unwrap();
        patient.compact().await.unwrap();
        let orphan = dir.path().join("data/date=1970-01-01/hour-05-00000000ffffffff.parquet");
        let half = dir.path().join("log/.tmp-0123");
        std::fs::write(&orphan, "left by a merge that was killed").unwrap();
        std::fs::write(&half, "left by a write that was killed").unwrap();
        patient.compact().await.unwrap();
        assert!(orphan.exists() && half.exists(), "they may be under way elsewhere");
        patient.close().await.unwrap();
        let store = open(small(dir.path()).orphans_after(Duration::ZERO)).await;
        store.compact().await.unwrap();
        assert!(!orphan.exists() && !half.exists());
        assert_holds(&store, 1).await;
        store.close().await.unwrap();
    });
    Ok(())
}

/// Whatever the clock says, also about the files, order comes from the numbers of the log alone.
fn wrong_clock() -> Result<(), Failed> {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let store = open(small(dir.path())).await;
        for round in 0..6i64 {
            let value = round as f64;
            let records: Vec<_> = (0..500)
                .map(|no| MetricRecord::new("a", from_ms(no * 60_000), "b", value))
                .collect();
            store.write_batch(&records).await.unwrap();
            if round % 2 == 1 {
                store.compact().await.unwrap();
            }
            // The files seem older, or newer, with every round.
            for file in data_files(dir.path()) {
                let at = if round % 3 == 0 { "2001-01-01" } else { "2099-01-01" };
                run(Command::new("touch").args(["-d", at]).arg(file));
            }
            let found = store.query_range("a", "b", TimeRange::all()).await.unwrap();
            assert!(found.len() == 500 && found.iter().all(|record| record.value == value));
        }
        assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
        store.close().await.unwrap();
    });
    Ok(())
}
