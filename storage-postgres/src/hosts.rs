//! The hosts that a URL names: a connection to the first of them that takes one.
//!
//! The driver tries them in turn as well, but waits for ever for one that takes a connection and
//! then says nothing, such as a machine that hangs, and so never comes to the next. Here each has
//! its time.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Connect;
use futures_util::future::BoxFuture;
use storage_core::Result;
use tokio::task::JoinHandle;
use tokio_postgres::config::{Config, Host, LoadBalanceHosts};
use tokio_postgres::{Client, Error as PgError};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::PostgresOptions;
use crate::tls;

/// Where connections lead, and what each is told first.
#[derive(Clone)]
pub(crate) struct Hosts {
    /// What reaches one host each, in order.
    each: Arc<[Config]>,
    /// Not always the first one first.
    is_balanced: bool,
    tls: MakeRustlsConnect,
    session: Arc<str>,
    /// How long one host is given.
    time_max: Duration,
}

impl Hosts {
    /// # Errors
    /// `Config` if the root certificates cannot be read.
    pub(crate) fn new(all: &Config, options: &PostgresOptions, session: String) -> Result<Self> {
        let count = all.get_hosts().len().max(all.get_hostaddrs().len());
        Ok(Self {
            each: (0..count).map(|n| one_host(all, n)).collect(),
            is_balanced: all.get_load_balance_hosts() == LoadBalanceHosts::Random,
            tls: tls::connector(options)?,
            session: session.into(),
            time_max: 2 * options.connect_timeout,
        })
    }

    /// How long it may take until every host was tried.
    pub(crate) fn time_max(&self) -> Duration {
        self.time_max * u32::try_from(self.each.len()).unwrap_or(u32::MAX)
    }

    /// Opens a connection to the first host that takes one, and sets it up.
    ///
    /// # Errors
    /// What the last one said that said anything; `None` if all were silent.
    pub(crate) async fn connect_to_first(&self) -> Result<(Client, Task), Option<PgError>> {
        let first = if self.is_balanced { RandomState::new().hash_one(0) } else { 0 };
        let first = (first % self.each.len().max(1) as u64) as usize;
        let (before, from_first) = self.each.split_at(first);
        let mut said = None;
        for host in from_first.iter().chain(before) {
            match tokio::time::timeout(self.time_max, self.connect_to(host)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => said = Some(error),
                Err(_) => {}
            }
        }
        Err(said)
    }

    async fn connect_to(&self, host: &Config) -> Result<(Client, Task), PgError> {
        let (client, connection) = host.connect(self.tls.clone()).await?;
        // Its errors reach whoever waits for an answer.
        let task = Task(Some(tokio::spawn(async move { drop(connection.await) })));
        client.batch_execute(&self.session).await?;
        Ok((client, task))
    }
}

impl Connect for Hosts {
    fn connect(&self, _: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), PgError>> {
        Box::pin(async {
            match self.connect_to_first().await {
                Ok((client, task)) => Ok((client, task.into_handle())),
                Err(Some(error)) => Err(error),
                // The pool's own timeout, as long as all of theirs, says so.
                Err(None) => std::future::pending().await,
            }
        })
    }
}

/// What moves the bytes of a connection. Dropped, the connection is closed at once, whatever it is
/// doing.
#[derive(Debug)]
pub(crate) struct Task(Option<JoinHandle<()>>);

impl Task {
    fn into_handle(mut self) -> JoinHandle<()> {
        self.0.take().expect("the task is there until it is given away")
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// Returns what reaches the `n`-th host alone: everything that a URL can set, with one host.
fn one_host(all: &Config, n: usize) -> Config {
    let mut one = Config::new();
    one.ssl_mode(all.get_ssl_mode())
        .keepalives_idle(all.get_keepalives_idle())
        .target_session_attrs(all.get_target_session_attrs())
        .channel_binding(all.get_channel_binding())
        .load_balance_hosts(all.get_load_balance_hosts());
    all.get_user().map(|user| one.user(user));
    all.get_password().map(|password| one.password(password));
    all.get_dbname().map(|name| one.dbname(name));
    all.get_application_name().map(|name| one.application_name(name));
    all.get_connect_timeout().map(|timeout| one.connect_timeout(*timeout));
    all.get_tcp_user_timeout().map(|timeout| one.tcp_user_timeout(*timeout));
    all.get_keepalives_interval().map(|interval| one.keepalives_interval(interval));
    all.get_keepalives_retries().map(|retries| one.keepalives_retries(retries));
    match all.get_hosts().get(n) {
        Some(Host::Tcp(name)) => Some(one.host(name)),
        #[cfg(unix)]
        Some(Host::Unix(path)) => Some(one.host_path(path)),
        None => None,
    };
    all.get_hostaddrs().get(n).map(|address| one.hostaddr(*address));
    let ports = all.get_ports();
    ports.get(n).or_else(|| ports.first()).map(|port| one.port(*port));
    one
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that [`PostgresOptions::from_url`] hands to the driver, none as it is by itself.
    const PARAMETERS: &str = "user=me&password=sesame&dbname=app&application_name=x&\
        channel_binding=require&keepalives_idle=1&keepalives_interval=2&keepalives_retries=3&\
        load_balance_hosts=random&target_session_attrs=read-only&tcp_user_timeout=4";

    #[test]
    fn nothing_is_lost_of_what_a_url_says() {
        for place in ["host=db&port=6000", "hostaddr=10.0.0.1&port=6000", "host=/run/postgresql"] {
            let url = format!("postgres://?{place}&{PARAMETERS}");
            let mut all = PostgresOptions::from_url(&url).unwrap().server;
            all.connect_timeout(Duration::from_secs(7))
                .ssl_mode(tokio_postgres::config::SslMode::Require);
            assert!(one_host(&all, 0) == all, "{place}");
        }
    }

    #[test]
    fn each_host_has_its_port_and_address() {
        let url = "postgres://me@/app?host=a,b&hostaddr=10.0.0.1,10.0.0.2&port=1,2";
        let all = PostgresOptions::from_url(url).unwrap().server;
        let second = one_host(&all, 1);
        assert_eq!(second.get_hosts(), [Host::Tcp("b".to_owned())]);
        assert_eq!(second.get_hostaddrs(), &all.get_hostaddrs()[1..]);
        assert_eq!(second.get_ports(), [2]);
        let shared = PostgresOptions::from_url("postgres://me@/app?host=a,b&port=6").unwrap();
        assert_eq!(one_host(&shared.server, 1).get_ports(), [6]);
    }
}
