//! The archive: rates of bulk load and merging on one core, bytes per sample, memory of a question and
//! of a merge, a group-by, and one hour of one series out of a year of hourly files; sizes and the
//! group-by against DuckDB on the same files where `scripts/test-tools` has made it.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use chrono::Duration as Span;
use storage_benches::machine::{
    disk_bytes, memory_mib, peak_memory_mib, reset_peak_memory, scratch,
};
use storage_benches::options::Options;
use storage_benches::report::{PARQUET, Report};
use storage_benches::timing::{Latencies, median};
use storage_benches::tsbs::{Fleet, Values, first_time};
use storage_core::{SeriesFilter, StorageBackend, TimeRange};
use storage_parquet::{ParquetBackend, ParquetOptions};

const BATCH: usize = 500_000;
const REPETITIONS: usize = 200;
const DAY_HOURS: i64 = 24;
const YEAR_HOURS: i64 = 8760;
/// Samples that wait before the bench has them merged, where there are more than fit into memory.
const MERGE_SAMPLES: usize = 5_000_000;
const MEMORY_BYTES: usize = 64 << 20;
const DUCKDB: &str = "duckdb";
/// Names the store to the process whose memory is measured.
const MEMORY_DIR: &str = "STORAGE_BENCH_MEMORY_DIR";

type Done = Result<(), Box<dyn Error + Send + Sync>>;

fn main() -> Result<(), Box<dyn Error>> {
    if let Some(dir) = std::env::var_os(MEMORY_DIR) {
        let measured = tokio::runtime::Runtime::new()?.block_on(measure_memory(Path::new(&dir)));
        return measured.map_err(|error| error.to_string().into());
    }
    let options = Options::from_args()?;
    let mut report = Report::new("parquet", &options);
    let kinds = [
        ("integers", Values::Integers),
        ("two decimals", Values::TwoDecimals),
        ("full precision", Values::FullPrecision),
    ];
    let hours = options.scaled(DAY_HOURS as usize, 4) as i64;
    for (what, values) in kinds {
        report.progress(what);
        on_one_core(load(&mut report, what, values, hours)).map_err(|error| error.to_string())?;
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let rest = async {
        report.progress("memory");
        memory(&mut report, hours).await?;
        report.progress("double-groupby-1");
        double_groupby(&mut report, hours.min(12)).await?;
        let hours = options.scaled(YEAR_HOURS as usize, 24 * 30) as i64;
        let mut day = Latencies::default();
        for (what, hours) in [("in a day", 24), ("in a year", hours)] {
            report.progress(what);
            one_hour(&mut report, what, hours, &mut day).await?;
        }
        Done::Ok(())
    };
    runtime.block_on(rest).map_err(|error| error.to_string())?;
    println!("{}", report.finish()?);
    Ok(())
}

/// Runs something on a thread that, with all threads it starts, is bound to one core.
fn on_one_core(work: impl Future<Output = Done> + Send) -> Done {
    let run = || -> Done {
        let mut cores = rustix::thread::CpuSet::new();
        let allowed = rustix::thread::sched_getaffinity(None)?;
        cores.set((0..rustix::thread::CpuSet::MAX_CPU).find(|core| allowed.is_set(*core)).unwrap());
        rustix::thread::sched_setaffinity(None, &cores)?;
        tokio::runtime::Runtime::new()?.block_on(work)
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

/// Options under which nothing is merged until it is asked for, and hours stay hours.
fn options(path: &Path) -> ParquetOptions {
    ParquetOptions::new(path)
        .merge_samples(100_000_000)
        .merge_files(100_000)
        .merge_after(Duration::from_secs(86_400))
        .day_after(Duration::from_secs(100 * 365 * 86_400))
}

async fn load(report: &mut Report, what: &str, values: Values, hours: i64) -> Done {
    let dir = scratch()?;
    let store = ParquetBackend::open(options(dir.path())).await?;
    let mut fleet = Fleet::new(100, Span::seconds(10), values, 7).in_batches_of(BATCH);
    let (mut samples, mut loading) = (0, Duration::ZERO);
    while fleet.next_time() < first_time() + Span::hours(hours) {
        let batch = fleet.batch();
        let started = Instant::now();
        store.write_batch(batch).await?;
        loading += started.elapsed();
        samples += batch.len();
    }
    let started = Instant::now();
    store.compact().await?;
    let merging = started.elapsed();
    assert_eq!(store.stats().await?.total_metrics, samples as u64);
    let rate = |time: Duration| samples as f64 / time.as_secs_f64();
    report.add(what, PARQUET, "load on one core", rate(loading), "samples/s");
    report.add(what, PARQUET, "merge on one core", rate(merging), "samples/s");
    let size = disk_bytes(&dir.path().join("data")) as f64 / samples as f64;
    report.add(what, PARQUET, "size", size, "B/sample");
    match duckdb(dir.path(), COPY) {
        Ok(bytes) => {
            let theirs = bytes / samples as f64;
            report.add(what, DUCKDB, "size", theirs, "B/sample");
            report.add(what, PARQUET, "size by DuckDB's", size / theirs, "");
        }
        Err(why) => report.add_missing(what, DUCKDB, "size", &why),
    }
    store.close().await?;
    Ok(())
}

/// Peaks for a setting of 64 MiB and data that takes far more, in a process of its own: what this one
/// has used before would hide them.
async fn memory(report: &mut Report, hours: i64) -> Done {
    let dir = scratch()?;
    let writer = ParquetBackend::open(options(dir.path())).await?;
    let mut fleet =
        Fleet::new(100, Span::seconds(10), Values::FullPrecision, 7).in_batches_of(BATCH);
    while fleet.next_time() < first_time() + Span::hours(hours) {
        writer.write_batch(fleet.batch()).await?;
    }
    writer.close().await?;
    let child = Command::new(std::env::current_exe()?).env(MEMORY_DIR, dir.path()).output()?;
    let text = String::from_utf8(child.stdout)?;
    let what = "memory";
    report.add(what, PARQUET, "setting", (MEMORY_BYTES >> 20) as f64, "MiB");
    let metrics = ["a merge, above what was there", "a question, above what was there"];
    for (metric, peak) in metrics.iter().zip(text.lines()) {
        report.add(what, PARQUET, metric, peak.parse()?, "MiB");
    }
    Ok(())
}

/// Plays the process that is measured: opens the store, merges, asks, and prints the two peaks.
async fn measure_memory(dir: &Path) -> Done {
    // Batches that are larger than what may wait stay in their files until they are merged.
    let options = options(dir).merge_samples(1).memory_bytes(MEMORY_BYTES);
    let before = memory_mib();
    let store = ParquetBackend::open(options).await?;
    store.compact().await?;
    println!("{}", peak_memory_mib() - before);
    let before = memory_mib();
    reset_peak_memory();
    let width = Duration::from_secs(3600);
    let found = store.windows(&SeriesFilter::any(), TimeRange::all(), width).await?;
    assert_eq!(found.len(), 1000);
    println!("{}", peak_memory_mib() - before);
    store.close().await?;
    Ok(())
}

/// The average of one field per host and hour.
async fn double_groupby(report: &mut Report, hours: i64) -> Done {
    let dir = scratch()?;
    let store = ParquetBackend::open(options(dir.path())).await?;
    let mut fleet = Fleet::new(100, Span::seconds(10), Values::Integers, 7).in_batches_of(BATCH);
    // A little more than is asked for.
    while fleet.next_time() < first_time() + Span::hours(hours + 2) {
        store.write_batch(fleet.batch()).await?;
    }
    store.compact().await?;
    let filter = SeriesFilter::parse("*", "usage_user")?;
    let start = first_time() + Span::hours(1);
    let range = TimeRange::new(start, start + Span::hours(hours))?;
    let mut times = Vec::new();
    for _ in 0..15 {
        let started = Instant::now();
        let found = store.windows(&filter, range, Duration::from_secs(3600)).await?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
        let windows: usize = found.iter().map(|series| series.windows.len()).sum();
        assert_eq!(windows, 100 * hours as usize);
    }
    let ours = median(times);
    let what = "double-groupby-1";
    report.add(what, PARQUET, "p50", ours, "ms");
    match duckdb(dir.path(), &GROUPBY.replace("HOURS", &hours.to_string())) {
        Ok(theirs) => {
            report.add(what, DUCKDB, "p50", theirs, "ms");
            report.add(what, PARQUET, "by DuckDB's", ours / theirs, "");
        }
        Err(why) => report.add_missing(what, DUCKDB, "p50", &why),
    }
    store.close().await?;
    Ok(())
}

/// The same rows, sorted, as DuckDB writes them: their size.
const COPY: &str = r#"
out = sys.argv[1] + "/theirs.parquet"
con.execute(f"""COPY (SELECT server_id, timestamp, metric_type, value, metadata FROM read_parquet('{files}')
    ORDER BY server_id, metric_type, timestamp) TO '{out}' (FORMAT parquet, COMPRESSION zstd)""")
print(os.path.getsize(out))
os.remove(out)
"#;

/// The group-by over the same files: its time in milliseconds.
const GROUPBY: &str = r#"
times = []
for _ in range(15):
    start = time.perf_counter()
    rows = con.execute(f"""SELECT server_id, epoch_ms(timestamp) // 3600000 AS hour, avg(value)
        FROM read_parquet('{files}') WHERE metric_type = 'usage_user'
        AND timestamp >= TIMESTAMPTZ '2016-01-01 01:00:00Z'
        AND timestamp < TIMESTAMPTZ '2016-01-01 01:00:00Z' + INTERVAL HOURS HOUR GROUP BY ALL""").fetchall()
    times.append((time.perf_counter() - start) * 1e3)
assert len(rows) == 100 * HOURS
print(statistics.median(times))
"#;

/// Runs a script with DuckDB and returns the number that it prints, or why there is none.
fn duckdb(path: &Path, script: &str) -> Result<f64, String> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-tools/bin/python");
    let start = "import duckdb, os, statistics, sys, time\nfiles = sys.argv[1] + '/data/**/*.parquet'\n\
                 con = duckdb.connect()\ncon.execute('SET enable_progress_bar = false')\n";
    let script = format!("{start}{script}");
    let output = Command::new(python).arg("-c").arg(script).arg(path).output();
    let output = output.map_err(|_| "needs scripts/test-tools".to_owned())?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.trim().lines().last().unwrap_or_default();
    text.parse().map_err(|_| format!("failed: {text} {last}"))
}

/// 1000 series every ten minutes, a file for each hour.
async fn one_hour(report: &mut Report, span: &str, hours: i64, day: &mut Latencies) -> Done {
    let dir = scratch()?;
    let store = ParquetBackend::open(options(dir.path()).hour_samples(1)).await?;
    let batch = BATCH.min(6_000 * hours as usize);
    let mut fleet = Fleet::new(100, Span::minutes(10), Values::Integers, 7).in_batches_of(batch);
    let mut waiting = 0;
    while fleet.next_time() < first_time() + Span::hours(hours) {
        let records = fleet.batch();
        waiting += records.len();
        store.write_batch(records).await?;
        if waiting >= MERGE_SAMPLES {
            store.compact().await?;
            waiting = 0;
        }
    }
    store.compact().await?;
    let start = first_time() + Span::hours(hours / 2);
    let range = TimeRange::new(start, start + Span::hours(1))?;
    let (mut latencies, mut before) = (Latencies::default(), store.read_counts());
    let mut touched = (0, 0);
    for round in 0..=REPETITIONS {
        let started = Instant::now();
        let found = store.query_range("host_3", "usage_idle", range).await?;
        let taken = started.elapsed();
        assert_eq!(found.len(), 6);
        let after = store.read_counts();
        touched = (after.files - before.files, after.bytes - before.bytes);
        before = after;
        if round > 0 {
            latencies.push(taken);
        }
    }
    let what = format!("an hour of a series {span}");
    report.add(&what, PARQUET, "hourly files", hours as f64, "");
    report.add(&what, PARQUET, "p50", latencies.quantile_ms(0.5), "ms");
    report.add(&what, PARQUET, "files touched", touched.0 as f64, "");
    report.add(&what, PARQUET, "bytes read", touched.1 as f64, "B");
    if day.calls() > 0 {
        let ratio = latencies.quantile_ms(0.5) / day.quantile_ms(0.5);
        report.add(&what, PARQUET, "p50, a year by a day", ratio, "");
    }
    *day = latencies;
    store.close().await?;
    Ok(())
}
