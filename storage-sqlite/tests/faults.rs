//! A full disk, a disk that may not be written, and a sync that fails: real ones, on a small file
//! system of their own and by injection into system calls. They need root (and `strace`); where
//! the machine has none they show as ignored, and fail if `CONFORMANCE_REQUIRE` names `faults`.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use futures_util::TryStreamExt;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::json;
use storage_core::metrics::time::from_ms;
use storage_core::{
    Error, ErrorKind, EventStoreExt, Execution, ExecutionQuery, HealthStatus, HistoryQuery,
    JobStore, MetricRecord, NewEvent, NewJob, Outcome, Page, RecordHistory, RecordHistoryExt,
    StorageBackend, StoredEvent, TimeRange,
};
use storage_sqlite::{SqliteBackend, SqliteOptions};

type Test = fn() -> Result<(), Failed>;

const ROLE: &str = "STORAGE_FAULTS_FILE";

fn main() -> ExitCode {
    if let Some(file) = std::env::var_os(ROLE) {
        return block_on(write_under_failing_syncs(Path::new(&file)));
    }
    let tests: [(&str, Test, &[&str]); 4] = [
        ("a_full_disk_loses_nothing_and_can_be_recovered", full_disk, &["mount"]),
        ("a_full_disk_keeps_values_events_and_jobs_whole", full_of_everything, &["mount"]),
        ("a_read_only_disk_can_be_read", read_only_disk, &["mount"]),
        ("after_a_failed_sync_nothing_more_is_written", failed_sync, &["strace"]),
    ];
    let trials = tests.into_iter().map(|(name, test, tools)| match lack(tools) {
        None => Trial::test(name, test),
        Some(reason) if is_required() => Trial::test(name, move || Err(reason.into())),
        Some(reason) => Trial::test(name, test).with_ignored_flag(true).with_kind(reason),
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// Says what the machine lacks for a test.
fn lack(tools: &[&str]) -> Option<String> {
    let id = Command::new("id").arg("-u").output().map(|output| output.stdout);
    if id.ok().as_deref() != Some(b"0\n") {
        return Some("needs root".to_owned());
    }
    let missing = |tool: &&&str| Command::new(tool).arg("--version").output().is_err();
    tools.iter().find(missing).map(|tool| format!("needs {tool}"))
}

fn is_required() -> bool {
    let required = std::env::var("CONFORMANCE_REQUIRE").unwrap_or_default();
    required.split(',').any(|word| ["faults", "all", "1"].contains(&word.trim()))
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

    fn file(&self) -> PathBuf {
        self.0.path().join("metrics.db")
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

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

async fn open(path: &Path) -> SqliteBackend {
    SqliteBackend::open(SqliteOptions::new(path).seal_samples(20_000)).await.unwrap()
}

/// A batch of noise, so that it does not compress away.
fn batch(number: i64) -> Vec<MetricRecord> {
    let mut random = fastrand::Rng::with_seed(number as u64);
    let samples = (0..1000).map(|index| (number * 1000 + index, random.f64()));
    samples.map(|(ms, value)| MetricRecord::new("a", from_ms(ms), "noise", value)).collect()
}

async fn assert_holds(store: &SqliteBackend, batches: i64) {
    let found = store.query_range("a", "noise", TimeRange::all()).await.unwrap();
    let expected: Vec<_> = (0..batches).flat_map(batch).collect();
    assert!(found == expected, "{} samples, expected {}", found.len(), expected.len());
}

fn full_disk() -> Result<(), Failed> {
    let disk = Disk::new("size=3m");
    block_on(async {
        let store = open(&disk.file()).await;
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
        let store = open(&disk.file()).await;
        assert_holds(&store, batches + 1).await;
        assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
        store.close().await.unwrap();
    });
    Ok(())
}

/// What the other parts store until the disk is full: a value, two events and an execution a round.
async fn store_round(store: &SqliteBackend, number: i64) -> Result<(), Error> {
    let text = format!("{number}{}", "x".repeat(2000));
    store.history().store("a", from_ms(number), &text).await?;
    let event = |n: u8| NewEvent::new("s", "T", json!([number, n, text]));
    store.events().append_all(&[event(0), event(1)]).await?;
    let run = Execution::new(format!("{number:06}"), "job", "p", from_ms(number));
    store.jobs().add_execution(&run).await
}

/// Returns how many there are of each, all from the first on.
async fn found_rounds(store: &SqliteBackend) -> [u64; 3] {
    let values = store.history().query(&HistoryQuery::parse("a").unwrap()).await.unwrap();
    assert!(values.iter().zip(0..).all(|(value, ms)| value.stored_at == from_ms(ms)));
    let log: Vec<_> = store.events().replay_all().try_collect().await.unwrap();
    let place = |(event, at): (&StoredEvent, u64)| event.payload[0] == json!(at / 2);
    assert!(log.len() % 2 == 0 && log.iter().zip(0..).all(place));
    let mut runs = 0;
    let mut query = ExecutionQuery::of_job("job").page(Page::first(1000));
    loop {
        let listed = store.jobs().executions(&query).await.unwrap();
        runs += listed.items.len() as u64;
        query.page.after = listed.next;
        if query.page.after.is_none() {
            return [values.len() as u64, log.len() as u64 / 2, runs];
        }
    }
}

fn full_of_everything() -> Result<(), Failed> {
    let disk = Disk::new("size=3m");
    block_on(async {
        let store = open(&disk.file()).await;
        let job = NewJob::new("job", "p", "@daily".parse().unwrap());
        store.jobs().add_job(&job, from_ms(0)).await.unwrap();
        let mut rounds = 0;
        let error = loop {
            match store_round(&store, rounds).await {
                Ok(()) => rounds += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error:#}");
        assert_eq!(error.outcome(), Outcome::NotApplied);
        assert!(rounds > 20, "{rounds}");
        let found = found_rounds(&store).await;
        // Of the last round a part of the three calls may have got through.
        let (least, most) = (rounds as u64, rounds as u64 + 1);
        assert!(found.iter().all(|count| (least..=most).contains(count)), "{found:?}");
        disk.remount("size=64m");
        store.close().await.unwrap();
        let store = open(&disk.file()).await;
        assert_eq!(found_rounds(&store).await, found);
        store.history().store("a", from_ms(found[0] as i64), &"more").await.unwrap();
        let event = |n: u8| NewEvent::new("s", "T", json!([found[1], n, "more"]));
        store.events().append_all(&[event(0), event(1)]).await.unwrap();
        assert_eq!(found_rounds(&store).await[..2], [found[0] + 1, found[1] + 1]);
        assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
        store.close().await.unwrap();
    });
    Ok(())
}

fn read_only_disk() -> Result<(), Failed> {
    let disk = Disk::new("size=16m");
    block_on(async {
        let store = open(&disk.file()).await;
        store.write_batch(&batch(0)).await.unwrap();
        store.close().await.unwrap();
        disk.remount("ro");
        let error = SqliteBackend::open(SqliteOptions::new(disk.file())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:#}");
        assert_eq!(error.context("path"), disk.file().to_str());
        let options = SqliteOptions::new(disk.file()).read_only(true);
        let store = SqliteBackend::open(options).await.unwrap();
        assert_holds(&store, 1).await;
        store.close().await.unwrap();
        disk.remount("rw");
        let store = open(&disk.file()).await;
        store.write_batch(&batch(1)).await.unwrap();
        assert_holds(&store, 2).await;
        store.close().await.unwrap();
    });
    Ok(())
}

/// Starts this test again under `strace`, which lets the syncs of the log fail from the sixtieth on.
fn failed_sync() -> Result<(), Failed> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = dir.path().join("metrics.db");
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync"])
        .args(["-e", "inject=fsync,fdatasync:error=EIO:when=60+"])
        .arg(std::env::current_exe()?)
        .env(ROLE, &file)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    let acknowledged: i64 = text.trim().parse()?;
    block_on(async {
        let store = open(&file).await;
        let found = store.query_range("a", "noise", TimeRange::all()).await.unwrap().len() as i64;
        // The batch whose sync failed is stored whole or not at all.
        assert!([acknowledged * 1000, acknowledged * 1000 + 1000].contains(&found), "{found}");
        assert_holds(&store, found / 1000).await;
        store.write_batch(&batch(found / 1000)).await.unwrap();
        store.close().await.unwrap();
    });
    Ok(())
}

/// Writes until a sync fails, and checks what the handle does then.
async fn write_under_failing_syncs(path: &Path) -> ExitCode {
    let store = open(path).await;
    let mut batches = 0;
    let error = loop {
        match store.write_batch(&batch(batches)).await {
            Ok(()) => batches += 1,
            Err(error) => break error,
        }
        assert!(batches < 1000, "no sync fails");
    };
    // The sync of the batch failed, or before it one of copying back the log, which nobody waits for.
    assert_eq!(error.kind(), ErrorKind::Io, "{error:#}");
    let error = store.write_batch(&batch(batches)).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Io, Outcome::NotApplied), "{error:#}");
    assert_eq!(store.health().await.status, HealthStatus::Degraded);
    assert!(batches > 0);
    println!("{batches}");
    ExitCode::SUCCESS
}
