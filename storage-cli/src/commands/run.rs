//! `storage run`: the pipeline of a configuration as one process: collect or read, buffer, store, roll
//! up, archive, prune; and what is left at the end is drained.

mod input;
mod late_store;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use storage::config::Config;
use storage::pipeline::{DrainReport, StorageActor, StorageHandle};
use storage::{HealthStatus, MetricRecord, StorageBackend};
use tokio::time::interval;

use self::input::Input;
use self::late_store::{LateStore, UpkeepCounts};
use super::collect::stop_signals;
use crate::args::Run;
use crate::listen::Tally;
use crate::output::{Cell, Output, text, warn};
use crate::store::shown;

/// How many records that were not stored are spelt out.
const SET_ASIDE_SHOWN_MAX: usize = 10;

/// How often the health is looked at, to say when it changes.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn run(args: &Run, output: &mut Output) -> Result<ExitCode> {
    let config = Config::load(&args.file.config)?.storage;
    let mut stop = stop_signals()?;
    let input = Input::open(args, &config).await?;
    let spool = config.open_spool().await?;
    let store = LateStore::open(&config).await?;
    let shown_url = shown(&config.url()?);
    output.note(&format!("{} into {shown_url}, Ctrl-C ends", input.describe()));
    let (mut input, source) = input.start();
    let mut actor =
        StorageActor::new(store.backend()).options(config.actor_options()).source(source);
    if let Some(spool) = spool.clone() {
        actor = actor.spool(spool);
    }
    let actor = actor.start()?;
    let ended = tokio::select! {
        ended = input.ended() => ended,
        _ = stop.recv() => Ok(0),
        () = watch_health(&actor) => Ok(0),
        refused = store.watch(output) => Err(refused),
    };
    let shutdown = Duration::from_secs(config.shutdown_secs);
    let started = Instant::now();
    let draining = async {
        // The larger part of the time is for the store.
        input.stop(shutdown / 4).await;
        actor.shutdown(shutdown.saturating_sub(started.elapsed())).await
    };
    let report = tokio::select! {
        report = draining => report,
        // Who asks twice does not want to wait.
        _ = stop.recv() => actor.shutdown(Duration::ZERO).await,
    };
    let upkeep = store.stop_upkeep(shutdown).await;
    let tally = input.tally().await;
    let bad_lines = *ended.as_ref().unwrap_or(&0) + tally.bad_lines;
    let printed = print(output, &report, &actor, &upkeep, &Tally { bad_lines, ..tally });
    if let Some(spool) = spool {
        spool.close().await?;
    }
    store.warn_of_mirror().await;
    store.backend().close().await?;
    ended?;
    printed
}

/// Says when the store begins to fail and when it is well again. Never ends.
async fn watch_health(actor: &StorageHandle) {
    let mut before = HealthStatus::Healthy;
    let mut looks = interval(HEALTH_INTERVAL);
    loop {
        looks.tick().await;
        let health = actor.health();
        if health.status == before {
            continue;
        }
        before = health.status;
        let waiting = text::counted(health.backlog_records, "record");
        match health.status {
            HealthStatus::Healthy => warn("the store is well again"),
            HealthStatus::Degraded => warn(&format!("{waiting} waiting: {}", health.message)),
            HealthStatus::Down => {
                warn(&format!("{waiting} waiting and no room for more: {}", health.message))
            }
        }
    }
}

fn print(
    output: &mut Output,
    report: &DrainReport,
    actor: &StorageHandle,
    upkeep: &UpkeepCounts,
    lines: &Tally,
) -> Result<ExitCode> {
    let counters = &report.counters;
    let lost = counters.sum(|source| source.shed + source.lagged) + report.left;
    for one in actor.take_set_aside().iter().take(SET_ASIDE_SHOWN_MAX) {
        let MetricRecord { server_id, metric_type, .. } = &one.record;
        warn(&format!("not stored: {server_id} {metric_type}: {:#}", one.reason));
    }
    output.record(vec![
        ("samples_received", Cell::Count(counters.sum(|source| source.received))),
        ("samples_stored", Cell::Count(counters.sum(|source| source.stored) + counters.drained)),
        ("samples_in_spool", Cell::Count(report.spooled)),
        ("samples_archived", Cell::Count(upkeep.archive.samples)),
        ("samples_pruned", Cell::Count(upkeep.retention.samples_removed)),
        ("rollups_written", Cell::Count(upkeep.retention.rollups_written)),
        ("rollups_pruned", Cell::Count(upkeep.retention.rollups_removed)),
        (
            "samples_invalid",
            Cell::Count(counters.sum(|source| source.invalid) + counters.drained_invalid),
        ),
        ("samples_lost", Cell::Count(lost)),
        ("bad_lines", Cell::Count(lines.bad_lines)),
        ("connections", Cell::Count(lines.connections)),
        ("connections_refused", Cell::Count(lines.refused)),
        ("connections_cut_off", Cell::Count(lines.cut_off)),
        ("writes_failed", Cell::Count(counters.write_failures)),
    ])?;
    if lines.cut_off > 0 {
        let cut_off = text::counted(lines.cut_off, "connection");
        warn(&format!("{cut_off} had to be given up with lines unread"));
    }
    if lost > 0 {
        bail!("{} could not be stored; see that the store works", text::counted(lost, "sample"));
    }
    Ok(ExitCode::SUCCESS)
}
