//! Where `storage run` takes samples from: this host, standard input, or sockets.

use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use chrono::Utc;
use storage::MetricRecord;
use storage::config::{CollectConfig, ListenConfig, StorageConfig};
use storage::metrics::record::validate_names;
use storage::pipeline::{Backpressure, Source};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

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

/// How often it is looked whether what was read of standard input is sent.
const LOOK: Duration = Duration::from_millis(20);

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
    Reading(Reading),
    Collecting { config: CollectConfig, server: String, sender: mpsc::Sender<MetricRecord> },
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
                (Running::Reading(Reading::start(syntax, sender)), source)
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
    /// Waits for the end of the input, for ever where there is none.
    pub(super) async fn ended(&mut self) -> Result<()> {
        match self {
            Self::Reading(reading) => reading.ended().await,
            Self::Collecting { config, server, sender } => collect(config, server, sender).await,
            Self::Listening(_) => std::future::pending().await,
        }
    }

    /// Takes in what has been sent already, for as long as `within`.
    pub(super) async fn stop(&mut self, within: Duration) {
        match self {
            Self::Listening(listening) => listening.stop(within).await,
            Self::Reading(reading) => reading.stop(within).await,
            Self::Collecting { .. } => {}
        }
    }

    /// What came of lines and connections, when nobody takes records any more.
    pub(super) async fn tally(self) -> Tally {
        match self {
            Self::Listening(listening) => listening.tally().await,
            Self::Reading(reading) => {
                Tally { bad_lines: reading.shared.bad.load(Ordering::Relaxed), ..Tally::default() }
            }
            Self::Collecting { .. } => Tally::default(),
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
) -> Result<()> {
    let mut host = tokio::task::spawn_blocking(Host::new).await??;
    let mut ticks = Ticks::new(config.interval.0, None, Utc::now());
    while let Some((timestamp, pause)) = ticks.next(Utc::now()) {
        tokio::time::sleep(pause).await;
        for record in host.read(server, timestamp).records {
            if sender.send(record).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A thread that reads standard input.
pub(super) struct Reading {
    ended: oneshot::Receiver<Result<()>>,
    shared: Arc<ReadingState>,
}

/// What that thread and who ends it tell each other.
#[derive(Default)]
struct ReadingState {
    /// Whether nothing more shall be read.
    stopping: AtomicBool,
    /// Whether the thread waits for input: then all that was read is sent but a line without its end.
    waits: AtomicBool,
    /// Lines of which nothing could be made.
    bad: AtomicU64,
}

impl Reading {
    fn start(syntax: Syntax, sender: mpsc::Sender<MetricRecord>) -> Self {
        let (done, ended) = oneshot::channel();
        let shared = Arc::<ReadingState>::default();
        let state = Arc::clone(&shared);
        // Not a task: the runtime would wait for it at the end, and it may wait for input for ever.
        std::thread::spawn(move || {
            let mut sink = Sending { sender, state: Arc::clone(&state) };
            let text = Stoppable { text: io::stdin(), state: Arc::clone(&state) };
            let read = input::read(BufReader::with_capacity(256 << 10, text), &syntax, &mut sink);
            let is_stopped = state.stopping.load(Ordering::SeqCst);
            // Nobody waits any more when the program ends.
            let _ = done.send(if is_stopped { Ok(()) } else { read.map(drop) });
        });
        Self { ended, shared }
    }

    async fn ended(&mut self) -> Result<()> {
        (&mut self.ended).await.map_err(|_| anyhow!("reading standard input broke off"))?
    }

    /// Reads no further, and waits until what was read is sent, for as long as `within`.
    async fn stop(&mut self, within: Duration) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let sent = async {
            let is_reading = || !self.shared.waits.load(Ordering::SeqCst);
            while is_reading() && matches!(self.ended.try_recv(), Err(TryRecvError::Empty)) {
                // It may be kept in a read, and tells nobody.
                sleep(LOOK).await;
            }
        };
        // What is left then is counted by nobody: the pipeline is full, and its end says so.
        let _ = timeout(within, sent).await;
    }
}

/// Standard input until the command is told to end. A line that was not read to its end is none.
struct Stoppable<R> {
    text: R,
    state: Arc<ReadingState>,
}

impl<R: Read> Read for Stoppable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // In this order: who stops it sees that it waits, or it sees that it is stopped.
        self.state.waits.store(true, Ordering::SeqCst);
        if self.state.stopping.load(Ordering::SeqCst) {
            return Err(io::Error::other("the command is ending"));
        }
        let read = self.text.read(buffer)?;
        self.state.waits.store(false, Ordering::SeqCst);
        match self.state.stopping.load(Ordering::SeqCst) {
            // It comes too late, as what is in the pipe behind it.
            true => Err(io::Error::other("the command is ending")),
            false => Ok(read),
        }
    }
}

struct Sending {
    sender: mpsc::Sender<MetricRecord>,
    state: Arc<ReadingState>,
}

impl Sink for Sending {
    fn line(&mut self) -> Result<()> {
        Ok(())
    }

    fn record(&mut self, record: MetricRecord) -> Result<()> {
        self.sender.blocking_send(record).map_err(|_| anyhow!("the pipeline has ended"))
    }

    fn bad(&mut self, line: u64, reason: &str) {
        match self.state.bad.fetch_add(1, Ordering::Relaxed) + 1 {
            ..=BAD_SHOWN_MAX => warn(&format!("stdin:{line}: {reason}")),
            more if more == BAD_SHOWN_MAX + 1 => warn("further bad lines are only counted"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::time::TimeFormat;

    /// Ends the reading with the first record, as a signal may.
    struct Ending {
        state: Arc<ReadingState>,
        values: Vec<f64>,
    }

    impl Sink for Ending {
        fn line(&mut self) -> Result<()> {
            Ok(())
        }

        fn record(&mut self, record: MetricRecord) -> Result<()> {
            self.values.push(record.value);
            self.state.stopping.store(true, Ordering::SeqCst);
            Ok(())
        }

        fn bad(&mut self, line: u64, reason: &str) {
            panic!("{line}: {reason}");
        }
    }

    /// The whole lines that were read count; one without its end could have gone on.
    #[test]
    fn what_was_read_when_the_end_came_is_taken_to_its_last_whole_line() {
        let defaults =
            Defaults { server: "here".into(), metric: None, time_format: TimeFormat::Auto };
        let syntax = Syntax { format: None, defaults, lines: LineRules::default() };
        let text = "cpu,host=a usage=1 1000000\ncpu,host=a usage=2 2000000\ncpu,host=a usage=3";
        let state = Arc::<ReadingState>::default();
        let mut sink = Ending { state: Arc::clone(&state), values: Vec::new() };
        let text = BufReader::new(Stoppable { text: text.as_bytes(), state: Arc::clone(&state) });
        input::read(text, &syntax, &mut sink).unwrap_err();
        assert_eq!(sink.values, [1.0, 2.0]);
        assert!(state.waits.load(Ordering::SeqCst));
    }
}
