//! Four processes write to one file and two read from it, all at once: no call fails, readers
//! see whole batches alone, and in the end nothing is lost or doubled.
//!
//! The test starts itself again in the role of a writer or reader. `STORAGE_PROCESSES_SECONDS`
//! sets how long they go on (30).
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use storage_core::metrics::time::from_ms;
use storage_core::{MetricRecord, Result, SeriesFilter, StorageBackend, TimeRange};
use storage_sqlite::{SqliteBackend, SqliteOptions};

const WRITERS: usize = 4;
const READERS: usize = 2;
const BATCH: u64 = 50;

fn main() -> ExitCode {
    let role = std::env::var("STORAGE_PROCESS_ROLE");
    if let Ok(role) = role {
        let path = PathBuf::from(std::env::var_os("STORAGE_PROCESS_FILE").unwrap_or_default());
        return play(&role, &path);
    }
    let test = Trial::test("four_processes_write_and_two_read", || {
        let done = test();
        done.map_err(Failed::from)
    });
    libtest_mimic::run(&Arguments::from_args(), vec![test]).exit_code()
}

fn seconds() -> u64 {
    let set = std::env::var("STORAGE_PROCESSES_SECONDS").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(30)
}

fn test() -> std::result::Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let path = dir.path().join("shared.db");
    let roles = (0..WRITERS).map(|no| format!("writer-{no}"));
    let roles = roles.chain((0..READERS).map(|no| format!("reader-{no}")));
    let children: Vec<(String, Child)> =
        roles.map(|role| (role.clone(), start(&role, &path))).collect();
    let mut written = Vec::new();
    for (role, child) in children {
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            return Err(format!(
                "{role} failed: {text}{}",
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        println!("{role}: {text}");
        if role.starts_with("writer") {
            written.push((role, text.trim().parse::<u64>().map_err(|error| error.to_string())?));
        }
    }
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(verify(&path, &written)).map_err(|error| format!("{error:#}"))?
}

fn start(role: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().expect("the test knows its own file"))
        .env("STORAGE_PROCESS_ROLE", role)
        .env("STORAGE_PROCESS_FILE", path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the test can start itself")
}

fn play(role: &str, path: &Path) -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let played = runtime.block_on(async {
        let store = SqliteBackend::open(SqliteOptions::new(path).seal_samples(5000)).await?;
        let count = match role.starts_with("writer") {
            true => write(&store, role).await?,
            false => read(&store).await?,
        };
        store.close().await?;
        Ok::<_, storage_core::Error>(count)
    });
    match played {
        Ok(count) => {
            println!("{count}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#} {error:?}");
            ExitCode::FAILURE
        }
    }
}

/// Writes batches until the time is over and returns how many.
async fn write(store: &SqliteBackend, role: &str) -> Result<u64> {
    let end = Instant::now() + Duration::from_secs(seconds());
    let mut batches = 0;
    while Instant::now() < end {
        let samples = (0..BATCH).map(|index| (batches * BATCH + index) as i64);
        let record = |ms| MetricRecord::new(role, from_ms(ms), "count", batches as f64);
        let records: Vec<_> = samples.map(record).collect();
        store.write_batch(&records).await?;
        batches += 1;
    }
    Ok(batches)
}

/// Reads until the time is over and returns how often.
async fn read(store: &SqliteBackend) -> Result<u64> {
    let end = Instant::now() + Duration::from_secs(seconds());
    let (mut reads, mut before) = (0, 0);
    while Instant::now() < end {
        for writer in 0..WRITERS {
            let name = format!("writer-{writer}");
            let seen = store.aggregate(&name, "count", TimeRange::all()).await?;
            assert_eq!(seen.count % BATCH, 0, "{name}: a part of a batch is visible");
        }
        let total = store.stats().await?.total_metrics;
        assert!(total >= before, "samples vanished: {before} then {total}");
        before = total;
        reads += 1;
    }
    Ok(reads)
}

async fn verify(path: &Path, written: &[(String, u64)]) -> Result<std::result::Result<(), String>> {
    let store = SqliteBackend::open(SqliteOptions::new(path)).await?;
    let report = store.check().await?;
    if !report.problems.is_empty() {
        return Ok(Err(format!("the file is damaged: {:?}", report.problems)));
    }
    for (role, batches) in written {
        let samples = store.query_range(role, "count", TimeRange::all()).await?;
        let right = samples.iter().zip(0..).all(|(sample, index)| {
            sample.timestamp == from_ms(index) && sample.value == (index as u64 / BATCH) as f64
        });
        if samples.len() as u64 != batches * BATCH || !right || *batches == 0 {
            return Ok(Err(format!("{role}: wrote {batches} batches, found {}", samples.len())));
        }
    }
    let series = store.series(&SeriesFilter::any()).await?;
    Ok(if series.len() == WRITERS { Ok(()) } else { Err(format!("{series:?}")) })
}
