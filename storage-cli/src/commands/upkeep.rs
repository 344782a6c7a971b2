//! `storage rollup` and `storage retention`: what `storage run` does now and then, done now.

use std::process::ExitCode;

use anyhow::{Result, bail};
use storage::StorageBackend;
use storage::config::{Config, StorageConfig};
use storage::pipeline::{RetentionReport, Rolled};

use crate::args::{ConfigFile, Retention, Rollup};
use crate::output::{Cell, Output};
use crate::store;

const COLUMNS: [&str; 6] = ["kept", "before", "rows", "removed", "bytes", "bytes_freed"];
const PLANNED: [&str; 6] = ["kept", "before", "rows", "would_remove", "bytes", "bytes_would_free"];

pub(super) async fn rollup(args: &Rollup, output: &mut Output) -> Result<ExitCode> {
    let config = Config::load(&args.file.config)?.storage;
    if !config.upkeep()?.is_some_and(|upkeep| upkeep.has_rollups()) {
        bail!(
            "the configuration has no rollups; name an age in `retention.aggregated_1hour`, \
             or say `rollups`: true"
        );
    }
    let rolled = open(&config).await?;
    let report = match args.rebuild {
        true => rolled.rebuild(args.span.range()?).await,
        false => rolled.refresh().await,
    };
    rolled.close().await?;
    let report = report?;
    output.record(vec![
        ("samples_read", Cell::Count(report.samples_read)),
        ("rollups_written", Cell::Count(report.rollups_written)),
    ])?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn retention(args: &Retention, output: &mut Output) -> Result<ExitCode> {
    let (ConfigFile { config }, is_planned) = match args {
        Retention::Run(file) => (file, false),
        Retention::Plan(file) => (file, true),
    };
    let config = Config::load(config)?.storage;
    let policy = config.retention_policy()?;
    let rolled = open(&config).await?;
    let report = match is_planned {
        true => rolled.plan_retention(&policy).await,
        false => rolled.retain(&policy).await,
    };
    rolled.close().await?;
    print(&report?, if is_planned { &PLANNED } else { &COLUMNS }, output)?;
    Ok(ExitCode::SUCCESS)
}

/// Opens the store with what is beside it. A typo must not come out as an empty store.
async fn open(config: &StorageConfig) -> Result<Rolled> {
    let Some(upkeep) = config.upkeep()? else {
        bail!("the configuration keeps everything for ever; name an age in `retention`");
    };
    let samples = store::open_existing(&config.hot_url()?).await?;
    samples.close().await?;
    Ok(config.connect_rolled(&upkeep).await?)
}

fn print(report: &RetentionReport, columns: &[&str], output: &mut Output) -> Result<()> {
    let mut rows = output.rows(columns)?;
    for entry in &report.entries {
        let kept = match entry.width {
            None => "samples".to_owned(),
            Some(width) => format!("rollups of {}", storage::config::Age(width)),
        };
        rows.row(vec![
            Cell::text(kept),
            Cell::or_empty(entry.before, Cell::Time),
            Cell::Count(entry.rows),
            Cell::Count(entry.rows_removed),
            Cell::Bytes(entry.bytes),
            Cell::Bytes(entry.bytes_freed),
        ])?;
    }
    rows.finish()?;
    Ok(())
}
