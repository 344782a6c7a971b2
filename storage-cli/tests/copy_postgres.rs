//! `storage copy` from SQLite to PostgreSQL, killed at random moments and started again until it is done:
//! every sample is there exactly once.
#![cfg_attr(not(feature = "postgres"), allow(unused))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod common;
#[path = "../../storage-postgres/tests/support/server.rs"]
mod server;

use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use common::{Fixture, ended_within, nab_aws};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;
use server::shared_trial;

/// What the helpers for servers look at where a server is shared.
const URL: &str = "STORAGE_TEST_POSTGRES_URL";

/// How often it is killed before it may come to its end.
const KILLS: u32 = 8;

fn url() -> Option<String> {
    std::env::var(URL).ok().filter(|url| !url.is_empty())
}

fn main() -> ExitCode {
    let trials = if cfg!(feature = "postgres") {
        vec![shared_trial("a_copy_that_is_killed_is_resumed_to_the_same", killed)]
    } else {
        vec![Trial::test("built_without_postgres", || Ok(())).with_ignored_flag(true)]
    };
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A store with measurements, some with metadata, and a schema to copy them to.
struct Stores {
    fixture: Fixture,
    server: String,
    schema: String,
}

impl Stores {
    fn filled() -> Self {
        let (fixture, server) = (Fixture::new(), url().unwrap());
        let files = std::fs::read_dir(nab_aws()).unwrap().map(|entry| entry.unwrap().path());
        let files: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|e| e == "csv")).collect();
        let mut args = vec!["import", "--server", "aws"];
        args.extend(files.iter().map(|path| path.to_str().unwrap()));
        fixture.ok(&args);
        let marked = |n: i64| {
            format!("a b,{},\u{e9},{n},\"{{\"\"n\"\":{n}}}\"\n", 1_394_000_000_000 + n * 300_000)
        };
        let lines: String = (0..500).map(marked).collect();
        let text = format!("server_id,timestamp,metric_type,value,metadata\n{lines}");
        fixture.ok(&["import", &fixture.file("marked.csv", &text)]);
        let schema = format!("copy_{}_{:08x}", std::process::id(), fastrand::u32(..));
        Self { fixture, server, schema }
    }

    fn target(&self) -> String {
        format!("{}?schema={}", self.server, self.schema)
    }

    fn copy(&self) -> Command {
        self.fixture.command(&["copy", &self.fixture.url(), &self.target(), "--window", "1h"])
    }

    /// How many samples were copied; `None` while there is no store.
    fn copied(&self) -> Option<u64> {
        let run = self.fixture.run(&["--format", "json", "stats", "--url", &self.target()]);
        (run.code == 0).then(|| run.json()["samples"].as_u64().unwrap())
    }

    fn psql(&self, sql: &str) -> String {
        server::psql(&self.server, sql)
    }
}

impl Drop for Stores {
    fn drop(&mut self) {
        self.psql(&format!("DROP SCHEMA IF EXISTS {} CASCADE", self.schema));
    }
}

fn killed() -> Result<(), Failed> {
    let stores = Stores::filled();
    let samples = stores.fixture.samples();
    let (mut kills, mut before, mut delays_ms) = (0, 0, Vec::new());
    while kills < KILLS {
        let delay_ms = fastrand::u64(1..900);
        delays_ms.push(delay_ms);
        let mut child = stores.copy().stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        if let Some(status) = ended_within(&mut child, Duration::from_millis(delay_ms)) {
            assert!(status.success(), "after kills at {delays_ms:?} ms");
            break;
        }
        child.kill()?;
        child.wait()?;
        kills += 1;
        if let Some(copied) = stores.copied() {
            assert!(copied >= before, "{copied} after {before}, killed at {delays_ms:?} ms");
            before = copied;
        }
    }
    assert!(kills > 0, "it was never killed");
    let output = stores.copy().output()?;
    assert!(output.status.success(), "killed at {delays_ms:?} ms: {output:?}");

    let verified =
        stores.fixture.json(&["copy", &stores.fixture.url(), &stores.target(), "--verify"]);
    let count = |key: &str| verified[key].as_u64().unwrap();
    assert_eq!(
        (count("samples"), count("missing"), count("different")),
        (samples, 0, 0),
        "{verified}"
    );
    let schema = &stores.schema;
    let rows = stores
        .psql(&format!("SELECT count(*), count(DISTINCT (series_id, ts)) FROM {schema}.samples"));
    assert_eq!(rows, format!("{samples}|{samples}"), "killed at {delays_ms:?} ms");
    assert_eq!(stores.copied(), Some(samples));
    let checked = stores.fixture.json(&["check", "--url", &stores.target()]);
    assert_eq!(checked["status"], Value::from("ok"), "{checked}");
    Ok(())
}
