//! `storage run`: the pipeline of a configuration as one process: collect or read, buffer, store, roll
//! up, archive, prune; and what is left at the end is drained.

mod input;
mod late_store;

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::future::maybe_done;
use storage::config::Config;
use storage::pipeline::{DrainReport, Spool, StorageActor, StorageHandle};
use storage::{HealthStatus, MetricRecord, StorageBackend};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, sleep_until, timeout};

use self::input::{Input, Running};
use self::late_store::{LateStore, UpkeepCounts};
use super::collect::stop_signals;
use crate::args::Run;
use crate::error::is_broken_pipe;
use crate::listen::Tally;
use crate::output::{Cell, Output, text, warn};
use crate::store::shown;

/// How many records that were not stored are spelt out.
const SET_ASIDE_SHOWN_MAX: usize = 10;

/// How often the health is looked at, to say when it changes.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// How long the end takes that somebody asked for twice, in each of its parts.
const HASTE: Duration = Duration::from_secs(1);

/// How long the stores have to close when the time for the end is over.
const CLOSE_TIME_MIN: Duration = Duration::from_secs(5);

pub(super) async fn run(args: &Run, output: &mut Output) -> Result<ExitCode> {
    let config = Config::load(&args.file.config)?.storage;
    let mut stop = Stop { signals: stop_signals()?, is_asked: false };
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
        () = stop.asked() => Ok(()),
        () = watch_health(&actor) => Ok(()),
        refused = store.watch(output) => Err(refused),
    };
    let shutdown = Duration::from_secs(config.shutdown_secs);
    let end = Instant::now() + shutdown;
    let (report, upkeep) = drain(&mut input, &actor, &store, &mut stop, shutdown).await;
    let tally = input.tally().await;
    let printed = print(output, &report, &actor, &upkeep, &tally);
    let closed = close(spool, &store, &mut stop, end).await;
    ended?;
    match (printed, closed) {
        // Nobody reading this is the least.
        (Err(unread), Err(closed)) if is_broken_pipe(&unread) => Err(closed),
        (Err(error), _) => Err(error),
        (Ok(code), closed) => closed.map(|()| code),
    }
}

/// Who asks for the end. Once may come when it has begun by itself; only twice means that nobody wants to
/// wait.
struct Stop {
    signals: mpsc::Receiver<()>,
    is_asked: bool,
}

impl Stop {
    /// Waits until somebody asks.
    async fn asked(&mut self) {
        self.signals.recv().await;
        self.is_asked = true;
    }

    /// Waits until somebody who has asked asks again.
    async fn asked_again(&mut self) {
        if !self.is_asked {
            self.asked().await;
        }
        self.signals.recv().await;
    }
}

/// Ends input, actor and upkeep, all within `shutdown`.
async fn drain(
    input: &mut Running,
    actor: &StorageHandle,
    store: &LateStore,
    stop: &mut Stop,
    shutdown: Duration,
) -> (DrainReport, UpkeepCounts) {
    let started = Instant::now();
    let mut upkeep = pin!(maybe_done(store.stop_upkeep(shutdown)));
    let storing = async {
        // The larger part of the time is for the store.
        input.stop(shutdown / 4).await;
        actor.shutdown(shutdown.saturating_sub(started.elapsed())).await
    };
    let report = tokio::select! {
        (report, ()) = async { tokio::join!(storing, &mut upkeep) } => report,
        // Who asks twice does not want to wait; what the spool can take at once goes there.
        () = stop.asked_again() => {
            let report = actor.shutdown(HASTE).await;
            // What it did until then is lost to the summary alone.
            let _ = timeout(HASTE, &mut upkeep).await;
            report
        }
    };
    (report, upkeep.take_output().unwrap_or_default())
}

/// Closes spool and store, by `end` or a little later, or until somebody does not want to wait.
async fn close(
    spool: Option<Spool>,
    store: &LateStore,
    stop: &mut Stop,
    end: Instant,
) -> Result<()> {
    let closing = async {
        let spool = match spool {
            Some(spool) => spool.close().await,
            None => Ok(()),
        };
        store.warn_of_mirror().await;
        store.backend().close().await?;
        Ok(spool?)
    };
    let late = end.max(Instant::now() + CLOSE_TIME_MIN);
    tokio::select! {
        closed = closing => closed,
        () = sleep_until(late) => bail!("the store did not close in time"),
        () = stop.asked_again() => bail!("ended before the store was closed"),
    }
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
        let mut waiting = text::counted(health.backlog_records, "record") + " waiting";
        if let Some(age) = health.oldest_age {
            let age = Duration::from_secs(age.as_secs());
            waiting.push_str(&format!(" (the oldest for {})", humantime::format_duration(age)));
        }
        match health.status {
            HealthStatus::Healthy => warn("the store is well again"),
            HealthStatus::Degraded => warn(&format!("{waiting}: {}", health.message)),
            HealthStatus::Down => {
                warn(&format!("{waiting} and no room for more: {}", health.message))
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
    for error in [&upkeep.retention.last_error, &upkeep.archive.last_error].into_iter().flatten() {
        warn(&format!("rollups, archive or old samples had to wait to the end: {error}"));
    }
    for one in actor.take_set_aside().iter().take(SET_ASIDE_SHOWN_MAX) {
        let MetricRecord { server_id, metric_type, .. } = &one.record;
        warn(&format!("not stored: {server_id} {metric_type}: {:#}", one.reason));
    }
    let written = output.record(vec![
        ("samples_received", Cell::Count(counters.sum(|source| source.received))),
        ("samples_stored", Cell::Count(counters.sum(|source| source.stored) + counters.drained)),
        ("samples_in_spool", Cell::Count(report.spooled)),
        ("samples_archived", Cell::Count(upkeep.archive.samples)),
        ("samples_pruned", Cell::Count(upkeep.retention.samples_removed)),
        ("rollups_written", Cell::Count(upkeep.retention.rollups_written)),
        ("rollups_pruned", Cell::Count(upkeep.retention.rollups_removed)),
        ("bytes_freed", Cell::Count(upkeep.retention.bytes_freed)),
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
    ]);
    if lines.cut_off > 0 {
        let cut_off = text::counted(lines.cut_off, "connection");
        warn(&format!("{cut_off} had to be given up with lines unread"));
    }
    if lost > 0 {
        bail!("{} could not be stored; see that the store works", text::counted(lost, "sample"));
    }
    if !report.sources_ended {
        bail!("the end came before all that was read had been taken");
    }
    // After what is worse than nobody reading this.
    written?;
    Ok(ExitCode::SUCCESS)
}
