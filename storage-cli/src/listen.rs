//! Samples by sockets: who connects sends lines, as a file holds them.
//!
//! Input from outside is never trusted: there are bounds for connections, for lines and for what is
//! said on stderr about them. A thread reads each connection and waits while the pipeline is full, so
//! that the peer waits too. Nothing is answered: see `docs/guide/pipeline.md` for what a peer may
//! rely on.
//!
//! | file | what lives there |
//! |---|---|
//! | `socket` | listening and connected sockets of either kind; the file of a Unix socket |
//! | `connection` | the lines of one connection into records |
//! | `voice` | what is said on stderr about all of them, not too much at a time |

mod connection;
mod socket;
mod voice;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use storage::MetricRecord;
use storage::config::{ListenAddress, ListenConfig};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use self::connection::Connection;
use self::socket::{Listener, Stream};
use self::voice::Voice;
use crate::input::Syntax;
use crate::output::text;

/// The stack of a thread that reads a connection: parsing is not recursive beyond what JSON may be.
const STACK_BYTES: usize = 1 << 20;

/// How long readers may take to notice that nobody takes records any more.
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// How long it takes to find out at the end that nobody waits to be let in.
const WAITING_PAUSE: Duration = Duration::from_millis(20);

/// How long nobody is let in after that has failed: mostly there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What came of the connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Connections that were read.
    pub(crate) connections: u64,
    /// Connections that were closed at once, because there were too many.
    pub(crate) refused: u64,
    /// Lines of which nothing could be made.
    pub(crate) bad_lines: u64,
    /// Connections that were given up at the end with lines unread.
    pub(crate) cut_off: u64,
}

/// Sockets that listen, and let nobody in yet.
pub(crate) struct Bound {
    listeners: Vec<Listener>,
    config: ListenConfig,
    syntax: Syntax,
}

/// Sockets that listen, and the connections that they brought.
pub(crate) struct Listening {
    acceptors: JoinSet<()>,
    shared: Arc<Shared>,
}

struct Shared {
    config: ListenConfig,
    syntax: Syntax,
    sender: mpsc::Sender<MetricRecord>,
    /// One for each connection that there may be.
    places: Arc<Semaphore>,
    /// Whether connections are being ended.
    stopping: watch::Sender<bool>,
    /// What the threads that read wait on.
    runtime: Handle,
    voice: Voice,
    tally: Mutex<Tally>,
}

impl Bound {
    /// Listens at all addresses of `config`.
    ///
    /// # Errors
    /// An address is taken, may not be listened at, or is one that other machines reach.
    pub(crate) async fn open(config: &ListenConfig, syntax: Syntax) -> Result<Self> {
        let is_open = |address: &&ListenAddress| !config.allow_remote && !address.is_local();
        if let Some(address) = config.addresses.iter().find(is_open) {
            bail!(
                "other machines reach {address}, and whoever reaches it may write; say --allow-remote \
                 (`listen.allow_remote`: true) if that is meant, or listen at 127.0.0.1"
            );
        }
        let mut listeners = Vec::with_capacity(config.addresses.len());
        for address in &config.addresses {
            listeners.push(Listener::bind(address).await?);
        }
        Ok(Self { listeners, config: config.clone(), syntax })
    }

    /// Where it listens, with the ports that were chosen for it.
    pub(crate) fn addresses(&self) -> String {
        self.listeners.iter().map(Listener::name).collect::<Vec<_>>().join(", ")
    }

    /// Lets connections in, and sends what they hold.
    pub(crate) fn start(self, sender: mpsc::Sender<MetricRecord>) -> Listening {
        let Self { listeners, config, syntax } = self;
        let places = Arc::new(Semaphore::new(config.connections_max));
        let shared = Arc::new(Shared {
            config,
            syntax,
            sender,
            places,
            stopping: watch::Sender::new(false),
            runtime: Handle::current(),
            voice: Voice::default(),
            tally: Mutex::default(),
        });
        let mut acceptors = JoinSet::new();
        for listener in listeners {
            acceptors.spawn(Arc::clone(&shared).accept(listener));
        }
        Listening { acceptors, shared }
    }
}

impl Listening {
    /// Lets nobody in any more, and reads what was sent by now, for as long as `within`.
    pub(crate) async fn stop(&mut self, within: Duration) {
        let started = Instant::now();
        self.shared.stopping.send_replace(true);
        // Their sockets go with them.
        let accepted = async { while self.acceptors.join_next().await.is_some() {} };
        if timeout(within, accepted).await.is_err() {
            self.acceptors.shutdown().await;
        }
        self.shared.ended(within.saturating_sub(started.elapsed())).await;
    }

    /// What came of the connections, when nobody takes records any more.
    pub(crate) async fn tally(self) -> Tally {
        // Also where nobody has waited for them to end.
        self.shared.stopping.send_replace(true);
        self.shared.ended(LAST_PAUSE).await;
        *self.shared.tally()
    }
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no connection is read any more, for as long as `within`.
    async fn ended(&self, within: Duration) {
        // They are many fewer than fit into 32 bits.
        let all = u32::try_from(self.config.connections_max).unwrap_or(u32::MAX);
        // Who asks looks what is left.
        let _ = timeout(within, self.places.acquire_many(all)).await;
    }

    /// Lets connections in until it is told to stop; then those that are there already.
    async fn accept(self: Arc<Self>, listener: Listener) {
        let mut stopping = self.stopping.subscribe();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                // The sender lives in `self`, so there is no error.
                _ = stopping.wait_for(|stopping| *stopping) => break,
            };
            match accepted {
                Ok((stream, peer)) => self.let_in(stream, peer),
                Err(error) => {
                    self.voice.say(&format!("nobody can connect to {}: {error}", listener.name()));
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        while let Ok(Ok((stream, peer))) = timeout(WAITING_PAUSE, listener.accept()).await {
            self.let_in(stream, peer);
        }
    }

    fn let_in(self: &Arc<Self>, stream: Stream, peer: String) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.tally().refused += 1;
            let max = text::counted(self.config.connections_max as u64, "connection");
            return self.voice.say(&format!("{peer} is refused: {max} at a time are allowed"));
        };
        self.tally().connections += 1;
        let shared = Arc::clone(self);
        let read = move || {
            Connection::new(&shared, &stream, peer).read();
            // It is closed before its place is free.
            drop(stream);
            drop(place);
        };
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        if let Err(error) = thread.name("connection".to_owned()).spawn(read) {
            self.voice.say(&format!("a connection is closed: no thread reads it: {error}"));
        }
    }
}

#[cfg(test)]
mod tests;
