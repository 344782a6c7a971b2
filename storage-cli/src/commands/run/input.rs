//! Where `storage run` takes samples from: this host, standard input, or sockets.

use std::io::{self, BufReader};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use chrono::Utc;
use storage::MetricRecord;
use storage::config::{CollectConfig, ListenConfig, StorageConfig};
use storage::metrics::record::validate_names;
use storage::pipeline::{Backpressure, Source};
use tokio::sync::{mpsc, oneshot};

use crate::args::Run;
use crate::commands::collect::Ticks;
use crate::host::{self, Host};
use crate::input::{self, Defaults, LineRules, Sink, Syntax};
use crate::listen::{Bound, Listening, Tally};
use crate::output::warn;

/// How many records may stand between the input and the actor.
const CHANNEL_RECORDS: usize = 8192;

/// The same where they come from outside: each may hold much metadata.
const LISTEN_CHANNEL_RECORDS: usize = 1024;

/// How many bad lines of standard input are spelt out.
const BAD_SHOWN_MAX: u64 = 10;

/// Where samples are to come from, ready to begin.
pub(super) enum Input {
    Collect { config: CollectConfig, server: String },
    Stdin(Syntax),
    Listen(Bound),
}

/// An input from which samples come.
pub(super) enum Running {
    /// Until this ends, with how many bad lines there were.
    Reading(oneshot::Receiver<Result<u64>>),
    Collecting {
        config: CollectConfig,
        server: String,
        sender: mpsc::Sender<MetricRecord>,
    },
    Listening(Listening),
}

impl Input {
    /// Finds out where samples come from, and listens if it is by sockets.
    pub(super) async fn open(args: &Run, config: &StorageConfig) -> Result<Self> {
        let server = config.collect.server.clone().map_or_else(host::name, Ok)?;
        validate_names(&server, args.metric.as_deref().unwrap_or("cpu_usage_percent"))?;
        let listen = listen_config(args, &config.listen);
        let is_read = args.stdin || !listen.addresses.is_empty();
        if !is_read && (args.input_format.is_some() || args.metric.is_some()) {
            bail!("--input-format and --metric are about lines; say --stdin or --listen too");
        }
        let lines = LineRules::default();
        let defaults = Defaults {
            server: server.clone(),
            metric: args.metric.clone(),
            time_format: args.time_format.clone(),
        };
        let syntax = Syntax { format: args.input_format, defaults, lines };
        if args.stdin {
            Ok(Self::Stdin(syntax))
        } else if is_read {
            let lines = LineRules { bytes_max: listen.line_bytes_max, needs_end: true };
            Ok(Self::Listen(Bound::open(&listen, Syntax { lines, ..syntax }).await?))
        } else {
            Ok(Self::Collect { config: config.collect.clone(), server })
        }
    }

    /// What it does, for the note at the start.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Collect { .. } => "collecting".to_owned(),
            Self::Stdin(_) => "reading stdin".to_owned(),
            Self::Listen(bound) => format!("listening at {}", bound.addresses()),
        }
    }

    /// Makes a source of it.
    pub(super) fn start(self) -> (Running, Source) {
        // Whoever writes into a pipe or a socket can wait; the clock of `collect` cannot.
        match self {
            Self::Collect { config, server } => {
                let (sender, receiver) = mpsc::channel(CHANNEL_RECORDS);
                let running = Running::Collecting { config, server, sender };
                (running, Source::mpsc("collect", receiver))
            }
            Self::Stdin(syntax) => {
                let (sender, receiver) = mpsc::channel(CHANNEL_RECORDS);
                let source = Source::mpsc("stdin", receiver).with_backpressure(Backpressure::Wait);
                (Running::Reading(read(syntax, sender)), source)
            }
            Self::Listen(bound) => {
                let (sender, receiver) = mpsc::channel(LISTEN_CHANNEL_RECORDS);
                let source = Source::mpsc("listen", receiver).with_backpressure(Backpressure::Wait);
                (Running::Listening(bound.start(sender)), source)
            }
        }
    }
}

impl Running {
    /// Waits for the end of the input, for ever where there is none; returns how many lines were
    /// bad.
    pub(super) async fn ended(&mut self) -> Result<u64> {
        match self {
            Self::Reading(ended) => {
                ended.await.map_err(|_| anyhow!("reading standard input broke off"))?
            }
            Self::Collecting { config, server, sender } => collect(config, server, sender).await,
            Self::Listening(_) => std::future::pending().await,
        }
    }

    /// Takes in what has been sent already, for as long as `within`.
    pub(super) async fn stop(&mut self, within: Duration) {
        if let Self::Listening(listening) = self {
            listening.stop(within).await;
        }
    }

    /// What came of connections, when nobody takes records any more.
    pub(super) async fn tally(self) -> Tally {
        match self {
            Self::Listening(listening) => listening.tally().await,
            Self::Reading(_) | Self::Collecting { .. } => Tally::default(),
        }
    }
}

/// What the command line says about sockets goes before the configuration.
fn listen_config(args: &Run, config: &ListenConfig) -> ListenConfig {
    let mut config = config.clone();
    if !args.listen.is_empty() {
        config.addresses.clone_from(&args.listen);
    }
    config.allow_remote |= args.allow_remote;
    config
}

/// Measures this host at every tick until nobody takes it any more.
async fn collect(
    config: &CollectConfig,
    server: &str,
    sender: &mpsc::Sender<MetricRecord>,
) -> Result<u64> {
    let mut host = tokio::task::spawn_blocking(Host::new).await??;
    let mut ticks = Ticks::new(config.interval.0, None, Utc::now());
    while let Some((timestamp, pause)) = ticks.next(Utc::now()) {
        tokio::time::sleep(pause).await;
        for record in host.read(server, timestamp).records {
            if sender.send(record).await.is_err() {
                return Ok(0);
            }
        }
    }
    Ok(0)
}

/// Reads standard input to its end, and then says how many lines were bad.
fn read(syntax: Syntax, sender: mpsc::Sender<MetricRecord>) -> oneshot::Receiver<Result<u64>> {
    let (done, result) = oneshot::channel();
    // Not a task: the runtime would wait for it at the end, and it may wait for input for ever.
    std::thread::spawn(move || {
        let mut sink = Sending { sender, bad: 0 };
        let text = BufReader::with_capacity(256 << 10, io::stdin());
        let read = input::read(text, &syntax, &mut sink);
        // Nobody waits any more when the program ends.
        let _ = done.send(read.map(|_| sink.bad));
    });
    result
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
