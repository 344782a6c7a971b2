//! Connections: how one is opened and set up, the pool that answers questions, the time that a
//! conversation with the server may take.

use std::ops::Deref;
use std::time::Duration;

use deadpool_postgres::{
    ClientWrapper, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime,
};
use storage_core::{Error, ErrorKind, Result};
use tokio_postgres::Client;
use tokio_postgres::config::{Config, SslMode as DriverSslMode};

use crate::config::{PostgresOptions, SslMode};
use crate::error::{from_pg, from_pool, is_disconnect};
use crate::hosts::{Hosts, Task};

/// What the server is given beyond its own timeout before the connection counts as stalled.
const GRACE: Duration = Duration::from_secs(1);

/// How long a transaction may stay open without a statement: a client that is gone does not hold
/// its locks for longer.
const IDLE_IN_TRANSACTION_MS: u64 = 60_000;

/// What it takes to open connections.
#[derive(Clone)]
pub(crate) struct Server {
    config: Config,
    hosts: Hosts,
    /// How long one conversation may take; `None` without limit.
    time_max: Option<Duration>,
    /// The same for a step of upkeep.
    upkeep_time_max: Option<Duration>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("hosts", &self.config.get_hosts()).finish_non_exhaustive()
    }
}

impl Server {
    /// # Errors
    /// `Config` if the root certificates cannot be read.
    pub(crate) fn new(options: &PostgresOptions) -> Result<Self> {
        let mut config = options.server.clone();
        config.connect_timeout(options.connect_timeout);
        config.ssl_mode(match options.ssl_mode {
            SslMode::Disable => DriverSslMode::Disable,
            SslMode::Prefer => DriverSslMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => DriverSslMode::Require,
        });
        let limit = |timeout: Duration| (!timeout.is_zero()).then_some(timeout + GRACE);
        Ok(Self {
            hosts: Hosts::new(&config, options, session(options))?,
            config,
            time_max: limit(options.statement_timeout),
            upkeep_time_max: limit(options.upkeep_timeout()),
        })
    }

    /// Opens a connection of its own, set up.
    ///
    /// # Errors
    /// `Unavailable` with the hosts if none can be reached in time, else what the last one says.
    pub(crate) async fn connect(&self) -> Result<Connection> {
        let silent = || Error::new(ErrorKind::Unavailable, "the server cannot be reached in time");
        let connected = match self.hosts.connect_to_first().await {
            Ok((client, task)) => Ok(Connection { _task: task, client }),
            Err(said) => Err(said.map_or_else(silent, from_pg)),
        };
        connected.map_err(|error| self.name_host(error))
    }

    /// Makes a pool, which opens its connections when they are needed.
    pub(crate) fn pool(&self, options: &PostgresOptions) -> Result<Pool> {
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_connect(self.config.clone(), self.hosts.clone(), recycling);
        Pool::builder(manager)
            .max_size(options.pool_size)
            .wait_timeout(Some(options.pool_timeout))
            .create_timeout(Some(self.hosts.time_max()))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| {
                Error::new(ErrorKind::Internal, "the pool cannot be made").with_source(error)
            })
    }

    /// Waits for an answer, but not for longer than the server may take and a little more.
    ///
    /// # Errors
    /// `Timeout`; the connection must not be used again then.
    pub(crate) async fn in_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        within(self.time_max, work).await
    }

    /// The same for a step of upkeep.
    ///
    /// # Errors
    /// As [`in_time`](Self::in_time).
    pub(crate) async fn in_time_for_upkeep<T>(
        &self,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        within(self.upkeep_time_max, work).await
    }

    fn name_host(&self, error: Error) -> Error {
        let hosts: Vec<String> = self.config.get_hosts().iter().map(host_name).collect();
        let ports: Vec<String> = self.config.get_ports().iter().map(u16::to_string).collect();
        error.with_context("host", hosts.join(",")).with_context("port", ports.join(","))
    }
}

async fn within<T>(time_max: Option<Duration>, work: impl Future<Output = Result<T>>) -> Result<T> {
    let Some(time_max) = time_max else { return work.await };
    tokio::time::timeout(time_max, work).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Timeout, "the server does not answer")
            .with_context("stalled", true))
    })
}

fn host_name(host: &tokio_postgres::config::Host) -> String {
    match host {
        tokio_postgres::config::Host::Tcp(name) => name.clone(),
        #[cfg(unix)]
        tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
    }
}

/// Whether a connection that gave this error must not be used again.
pub(crate) fn is_unusable(error: &Error) -> bool {
    is_disconnect(error) || error.context("stalled").is_some()
}

/// What every connection is told first. The values are numbers, words of our own and a schema
/// that holds letters, digits and underscores only.
fn session(options: &PostgresOptions) -> String {
    // Partitions are chosen when a statement is planned, so each is planned for its times.
    // Compiling plans over many partitions takes longer than the questions do.
    format!(
        "SET search_path = \"{}\", pg_temp; SET timezone = 'UTC'; SET statement_timeout = {}; \
         SET lock_timeout = {}; SET synchronous_commit = {}; \
         SET idle_in_transaction_session_timeout = {IDLE_IN_TRANSACTION_MS}; \
         SET default_transaction_isolation = 'read committed'; \
         SET plan_cache_mode = force_custom_plan; SET jit = off",
        options.schema,
        options.statement_timeout.as_millis(),
        options.lock_timeout.as_millis(),
        options.synchronous_commit.as_str(),
    )
}

/// A connection of one's own. Dropped, it is closed at once, whatever it is doing.
#[derive(Debug)]
pub(crate) struct Connection {
    // Before the client, which would otherwise say goodbye first.
    _task: Task,
    client: Client,
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// A connection of the pool. It goes back when its work is done; dropped before, it is closed,
/// because the server may still be busy with it.
pub(crate) struct Lease(Option<Object>);

impl Lease {
    /// Waits for a connection.
    ///
    /// # Errors
    /// `Busy` if none is free in time, `Closed` after `close`; those of connecting.
    pub(crate) async fn take(pool: &Pool) -> Result<Self> {
        Ok(Self(Some(pool.get().await.map_err(from_pool)?)))
    }

    /// Whether the connection has been used before, so that it may have died meanwhile.
    pub(crate) fn is_used(&self) -> bool {
        self.0.as_ref().is_some_and(|object| Object::metrics(object).recycle_count > 0)
    }

    /// Gives the connection back.
    pub(crate) fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Deref for Lease {
    type Target = ClientWrapper;

    fn deref(&self) -> &ClientWrapper {
        self.0.as_ref().expect("the connection is there until it is given back")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(Object::take(object));
        }
    }
}
