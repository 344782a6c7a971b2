//! `storage run`: the pipeline of a configuration as one process: collect or read, buffer, store, roll
//! up, prune; and what is left at the end is drained.

use std::io::{self, BufReader};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use chrono::Utc;
use storage::config::{Config, StorageConfig, Upkeep};
use storage::metrics::record::validate_names;
use storage::pipeline::{
    Backpressure, DrainReport, RetentionCounts, RetentionTask, Source, StorageActor, StorageHandle,
};
use storage::{HealthStatus, MetricRecord, StorageBackend};
use tokio::sync::{mpsc, oneshot};
use tokio::time::interval;

use super::collect::{Ticks, stop_signals};
use crate::args::Run;
use crate::host::{self, Host};
use crate::input::{self, Defaults, Sink};
use crate::output::{Cell, Output, text, warn};
use crate::store::shown;

/// How many records may stand between the input and the actor.
const CHANNEL_RECORDS: usize = 8192;

/// How many bad lines are spelt out.
const BAD_SHOWN_MAX: u64 = 10;

/// How often the health is looked at, to say when it changes.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn run(args: &Run, output: &mut Output) -> Result<ExitCode> {
    let config = Config::load(&args.file.config)?.storage;
    let server = config.collect.server.clone().map_or_else(host::name, Ok)?;
    validate_names(&server, "cpu_usage_percent")?;
    let mut stop = stop_signals()?;
    let Opened { store, upkeep } = open(&config).await?;
    let spool = config.open_spool().await?;
    let (sender, receiver) = mpsc::channel(CHANNEL_RECORDS);
    let mut source = Source::mpsc(if args.stdin { "stdin" } else { "collect" }, receiver);
    if args.stdin {
        // Whoever writes into a pipe can wait; the clock of `collect` cannot.
        source = source.with_backpressure(Backpressure::Wait);
    }
    let mut actor =
        StorageActor::new(Arc::clone(&store)).options(config.actor_options()).source(source);
    if let Some(spool) = spool.clone() {
        actor = actor.spool(spool);
    }
    let actor = actor.start()?;
    let (what, shown_url) =
        (if args.stdin { "reading stdin" } else { "collecting" }, shown(&config.url()?));
    output.note(&format!("{what} into {shown_url}, Ctrl-C ends"));
    let input = async {
        if args.stdin {
            read(args, server, sender).await
        } else {
            collect(&config, server, sender).await
        }
    };
    let ended = tokio::select! {
        ended = input => ended,
        _ = stop.recv() => Ok(0),
        () = watch_health(&actor) => Ok(0),
        () = watch_upkeep(upkeep.as_ref()) => Ok(0),
    };
    let shutdown = Duration::from_secs(config.shutdown_secs);
    let report = tokio::select! {
        report = actor.shutdown(shutdown) => report,
        // Who asks twice does not want to wait.
        _ = stop.recv() => actor.shutdown(Duration::ZERO).await,
    };
    let upkeep = match upkeep {
        Some(upkeep) => upkeep.stop_within(shutdown).await,
        None => RetentionCounts::default(),
    };
    let printed = print(output, &report, &actor, &upkeep, *ended.as_ref().unwrap_or(&0));
    if let Some(spool) = spool {
        spool.close().await?;
    }
    store.close().await?;
    ended?;
    printed
}

/// Measures this host at every tick until nobody takes it any more.
async fn collect(
    config: &StorageConfig,
    server: String,
    sender: mpsc::Sender<MetricRecord>,
) -> Result<u64> {
    let mut host = tokio::task::spawn_blocking(Host::new).await??;
    let mut ticks = Ticks::new(config.collect.interval.0, None, Utc::now());
    while let Some((timestamp, pause)) = ticks.next(Utc::now()) {
        tokio::time::sleep(pause).await;
        for record in host.read(&server, timestamp).records {
            if sender.send(record).await.is_err() {
                return Ok(0);
            }
        }
    }
    Ok(0)
}

/// Reads standard input to its end, and returns how many lines were bad.
async fn read(args: &Run, server: String, sender: mpsc::Sender<MetricRecord>) -> Result<u64> {
    let defaults =
        Defaults { server, metric: args.metric.clone(), time_format: args.time_format.clone() };
    let format = args.input_format;
    let (done, result) = oneshot::channel();
    // Not a task: the runtime would wait for it at the end, and it may wait for input for ever.
    std::thread::spawn(move || {
        let mut sink = Sending { sender, bad: 0 };
        let text = BufReader::with_capacity(256 << 10, io::stdin());
        let read = input::read(text, format, &defaults, &mut sink);
        // Nobody waits any more when the program ends.
        let _ = done.send(read.map(|_| sink.bad));
    });
    result.await.map_err(|_| anyhow!("reading standard input broke off"))?
}

struct Sending {
    sender: mpsc::Sender<MetricRecord>,
    bad: u64,
}

impl Sink for Sending {
    fn line(&mut self) -> Result<()> {
        Ok(())
    }

    fn record(&mut self, record: MetricRecord) -> Result<()> {
        self.sender.blocking_send(record).map_err(|_| anyhow!("the pipeline has ended"))
    }

    fn bad(&mut self, line: u64, reason: &str) {
        self.bad += 1;
        match self.bad {
            ..=BAD_SHOWN_MAX => warn(&format!("stdin:{line}: {reason}")),
            more if more == BAD_SHOWN_MAX + 1 => warn("further bad lines are only counted"),
            _ => {}
        }
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

/// Says when rolling up or removing what is old begins to fail. Never ends, also where there is
/// nothing to do.
async fn watch_upkeep(upkeep: Option<&RetentionTask>) {
    let Some(upkeep) = upkeep else { return std::future::pending().await };
    let mut before = None;
    let mut looks = interval(HEALTH_INTERVAL);
    loop {
        looks.tick().await;
        let now = upkeep.counts().last_error;
        if let Some(error) = now.as_ref().filter(|_| now != before) {
            warn(&format!("rollups and old samples have to wait: {error}; tried again later"));
        }
        before = now;
    }
}

/// The store, and the task that keeps it up if there is anything to do.
struct Opened {
    store: Arc<dyn StorageBackend>,
    upkeep: Option<RetentionTask>,
}

async fn open(config: &StorageConfig) -> Result<Opened> {
    let Some(upkeep) = config.upkeep()? else {
        return Ok(Opened { store: config.connect().await?, upkeep: None });
    };
    let store = Arc::new(config.connect_rolled(&upkeep).await?);
    let Upkeep { policy, refresh_interval, retention_interval, .. } = upkeep;
    let task = RetentionTask::start(&store, policy, refresh_interval, retention_interval);
    Ok(Opened { store, upkeep: Some(task) })
}

fn print(
    output: &mut Output,
    report: &DrainReport,
    actor: &StorageHandle,
    upkeep: &RetentionCounts,
    bad_lines: u64,
) -> Result<ExitCode> {
    let counters = &report.counters;
    let lost = counters.sum(|source| source.shed + source.lagged) + report.left;
    for one in actor.take_set_aside().iter().take(BAD_SHOWN_MAX as usize) {
        let MetricRecord { server_id, metric_type, .. } = &one.record;
        warn(&format!("not stored: {server_id} {metric_type}: {:#}", one.reason));
    }
    output.record(vec![
        ("samples_received", Cell::Count(counters.sum(|source| source.received))),
        ("samples_stored", Cell::Count(counters.sum(|source| source.stored) + counters.drained)),
        ("samples_in_spool", Cell::Count(report.spooled)),
        ("samples_pruned", Cell::Count(upkeep.samples_removed)),
        ("rollups_written", Cell::Count(upkeep.rollups_written)),
        ("rollups_pruned", Cell::Count(upkeep.rollups_removed)),
        (
            "samples_invalid",
            Cell::Count(counters.sum(|source| source.invalid) + counters.drained_invalid),
        ),
        ("samples_lost", Cell::Count(lost)),
        ("bad_lines", Cell::Count(bad_lines)),
        ("writes_failed", Cell::Count(counters.write_failures)),
    ])?;
    if lost > 0 {
        bail!("{} could not be stored; see that the store works", text::counted(lost, "sample"));
    }
    Ok(ExitCode::SUCCESS)
}
