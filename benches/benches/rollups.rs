//! What rollups cost and save: a year of samples rolled up, all but a week of them pruned, and
//! hourly windows of the year.
//!
//! Ten series report every 30 s. Every answer is compared with what was written.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use storage_benches::machine::scratch;
use storage_benches::options::Options;
use storage_benches::report::{OURS, Report};
use storage_benches::timing::Latencies;
use storage_benches::tsbs::first_time;
use storage_core::pipeline::{RetentionPolicy, Rolled, RollupOptions, RollupTier};
use storage_core::{MetricRecord, SeriesFilter, StorageBackend, TimeRange};
use storage_sqlite::{SqliteBackend, SqliteOptions};

const SERIES: usize = 10;
const STEP_S: i64 = 30;
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// A quiet hour is late by nothing: a little after it everything is rolled up but the last minutes.
const AFTER: TimeDelta = TimeDelta::minutes(2);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    let mut report = Report::new("rollups", &options);
    report.progress("loading");
    let days = options.scaled(365, 365) as i64;
    let dir = scratch()?;
    let store = open(dir.path(), days).await?;
    let samples = load(&store, days).await?;
    report.progress("rolling up");
    let before = Instant::now();
    store.refresh().await?;
    let rate = samples as f64 / before.elapsed().as_secs_f64();
    report.add("", OURS, "rolling up", rate, "samples/s");
    let size = store.stats().await?.disk_usage_bytes as f64 / samples as f64;
    report.add("", OURS, "samples", size, "B/sample");
    report.progress("pruning");
    let before = Instant::now();
    let removed = store.retain(&RetentionPolicy::default().keep_samples(7 * DAY)?).await?;
    let rate = removed.rows_removed() as f64 / before.elapsed().as_secs_f64();
    report.add("", OURS, "pruning behind rollups", rate, "samples/s");
    for tier in store.tiers() {
        tier.store().compact().await?;
    }
    let hourly = store.tiers()[1].store().stats().await?;
    let rows = hourly.total_metrics as f64 / 8.0;
    report.add("", OURS, "rollups", hourly.disk_usage_bytes as f64 / rows, "B/rollup");
    report.progress("windows");
    let latencies = windows(&store, days, options.scaled(200, 50)).await?;
    report.add("", OURS, "a year of hours of a series, p50", latencies.quantile_ms(0.5), "ms");
    report.add("", OURS, "a year of hours of a series, p99", latencies.quantile_ms(0.99), "ms");
    store.close().await?;
    println!("{}", report.finish()?);
    Ok(())
}

async fn open(dir: &Path, days: i64) -> storage_core::Result<Rolled> {
    let mut tiers = Vec::new();
    for (width, name) in RollupTier::DEFAULT_WIDTHS.into_iter().zip(["5m.db", "1h.db", "1d.db"]) {
        tiers.push(RollupTier::new(width, sqlite(dir, name).await?));
    }
    let now = first_time() + TimeDelta::days(days) + AFTER;
    let options =
        RollupOptions::default().with_settle(Duration::from_millis(1)).with_clock(move || now);
    Rolled::open_with(
        sqlite(dir, "raw.db").await?,
        tiers,
        sqlite(dir, "control.db").await?,
        options,
    )
    .await
}

async fn sqlite(dir: &Path, name: &str) -> storage_core::Result<Arc<dyn StorageBackend>> {
    Ok(Arc::new(SqliteBackend::open(SqliteOptions::new(dir.join(name))).await?))
}

/// Writes whole numbers that say which sample of its series it is.
async fn load(store: &Rolled, days: i64) -> storage_core::Result<usize> {
    let steps = days * 86_400 / STEP_S;
    let mut records = Vec::new();
    for step in 0..steps {
        let time = first_time() + TimeDelta::seconds(step * STEP_S);
        let value = (step % 1000) as f64;
        let of = |host| MetricRecord::new(format!("host_{host}"), time, "usage_user", value);
        records.extend((0..SERIES).map(of));
        if records.len() >= 20_000 {
            store.write_batch(&records).await?;
            records.clear();
        }
    }
    store.write_batch(&records).await?;
    store.compact().await?;
    Ok(steps as usize * SERIES)
}

async fn windows(store: &Rolled, days: i64, calls: usize) -> storage_core::Result<Latencies> {
    let range = TimeRange::new(first_time(), first_time() + TimeDelta::days(days))?;
    let mut latencies = Latencies::default();
    for call in 0..calls {
        let filter = SeriesFilter::exact(&format!("host_{}", call % SERIES), "usage_user")?;
        let before = Instant::now();
        let found = store.rolled_windows(&filter, range, HOUR).await?;
        latencies.push(before.elapsed());
        let windows = &found.series[0].windows;
        assert_eq!(windows.len() as i64, days * 24, "{:?}", found.stretches);
        assert!(windows.iter().all(|window| window.aggregation.count == 3600 / STEP_S as u64));
        assert!(windows.iter().all(|window| window.aggregation.max <= Some(999.0)));
    }
    Ok(latencies)
}
