//! The PostgreSQL backend against a plain program that does the raw thing on the same server and
//! tables, in the same run and in turns: binary COPY into the same table, hand-written SQL for the
//! questions of TSBS. Every answer is compared.
//!
//! `STORAGE_TEST_POSTGRES_URL` names the server, which is asked over its local socket where it has
//! one; `scripts/bench` starts one, with syncs on. `scripts/bench --only postgres-slow-disk` makes each sync
//! take 2 ms, and asks of callers alone.
#![allow(clippy::print_stdout)]

mod by_hand;
mod questions;
mod writes;

use std::error::Error;

use storage_benches::options::Options;
use storage_benches::report::Report;
use storage_postgres::{PostgresBackend, PostgresOptions};
use tokio_postgres::config::{Config, Host};
use tokio_postgres::{Client, NoTls};

/// Hosts of the fleet; each reports ten fields.
const HOSTS: usize = 100;

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let options = Options::from_args()?;
    let Ok(url) = std::env::var("STORAGE_TEST_POSTGRES_URL") else {
        return Err("STORAGE_TEST_POSTGRES_URL names no server; scripts/bench starts one".into());
    };
    let name = if options.slow_disk { "postgres-slow-disk" } else { "postgres" };
    let mut report = Report::new(name, &options);
    let server = Server::of(&url).await?;
    report.version("postgresql", server.version.clone());
    if !options.slow_disk {
        for (batch, batches) in [(1000, 60), (10_000, 8)] {
            report.progress(&format!("batches of {batch}"));
            let batches = options.scaled(batches, batches / 6 + 1);
            writes::against_copy(&mut report, &server, batch, batches).await?;
        }
    }
    report.progress("callers");
    writes::callers(&mut report, &server, options.scaled(60, 10)).await?;
    if !options.slow_disk {
        questions::run(&mut report, &server, &options).await?;
    }
    println!("{}", report.finish()?);
    Ok(())
}

/// The server and a connection of the plain program.
pub(crate) struct Server {
    url: String,
    pub(crate) raw: Client,
    version: String,
}

impl Server {
    async fn of(url: &str) -> Outcome<Self> {
        let url = by_socket(url, &connect(url).await?).await?;
        let raw = connect(&url).await?;
        let version = raw.query_one("SELECT current_setting('server_version')", &[]).await?;
        Ok(Self { url, raw, version: version.try_get(0)? })
    }

    /// An empty store in a schema of its own.
    pub(crate) async fn open(&self, schema: &str) -> Outcome<PostgresBackend> {
        self.remove(schema).await?;
        Ok(PostgresBackend::open(PostgresOptions::from_url(&self.url)?.schema(schema)?).await?)
    }

    pub(crate) async fn remove(&self, schema: &str) -> Outcome<()> {
        Ok(self.raw.batch_execute(&format!("DROP SCHEMA IF EXISTS {schema} CASCADE")).await?)
    }
}

async fn connect(url: &str) -> Outcome<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// The same server by its local socket, where it is on this machine and has one.
async fn by_socket(url: &str, client: &Client) -> Outcome<String> {
    let config: Config = url.parse()?;
    let is_local = matches!(config.get_hosts(), [Host::Tcp(host)] if host == "127.0.0.1");
    let row = client
        .query_one(
            "SELECT split_part(current_setting('unix_socket_directories'), ',', 1),
                    current_setting('port')",
            &[],
        )
        .await?;
    let (dir, port): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    if !is_local || !std::path::Path::new(&dir).join(format!(".s.PGSQL.{port}")).exists() {
        return Ok(url.to_owned());
    }
    Ok(url.replacen("127.0.0.1", &dir.replace('/', "%2F"), 1))
}
