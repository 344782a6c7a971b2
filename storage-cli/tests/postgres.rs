//! The command on PostgreSQL: the same verbs, and `psql` shows the rows that a user wrote.
#![cfg_attr(not(feature = "postgres"), allow(unused))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::process::{Command, ExitCode};

use common::{Fixture, Run};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

const URL: &str = "STORAGE_TEST_POSTGRES_URL";

const SAMPLES: &str = "\
server_id,timestamp,metric_type,value,metadata
db-1,2026-01-01T00:00:00.000Z,cpu,0.1,
db-1,2026-01-01T00:01:00.000Z,cpu,1e300,
web-1,2026-01-01T00:00:00.000Z,cpu,-5,\"{\"\"zone\"\":\"\"a, b\"\"}\"
web-1,2026-01-01T00:00:00.250Z,cpu,2.5,
";

fn main() -> ExitCode {
    let url = std::env::var(URL).unwrap_or_default();
    let lack = if cfg!(not(feature = "postgres")) {
        Some("built without the feature `postgres`".to_owned())
    } else {
        url.is_empty().then(|| format!("{URL} is not set; see scripts/postgres"))
    };
    let required = std::env::var("CONFORMANCE_REQUIRE").unwrap_or_default();
    let is_required = required.split(',').any(|word| ["postgres", "all", "1"].contains(&word));
    let name = "every_verb_works_and_psql_shows_the_rows";
    let trial = match lack {
        None => Trial::test(name, every_verb),
        Some(reason) if is_required => Trial::test(name, move || Err(reason.into())),
        Some(reason) => Trial::test(name, every_verb).with_ignored_flag(true).with_kind(reason),
    };
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

/// The command on a schema of its own.
struct Store {
    fixture: Fixture,
    server: String,
    schema: String,
}

impl Store {
    fn new() -> Self {
        let schema = format!("cli_{}", std::process::id());
        Self { fixture: Fixture::new(), server: std::env::var(URL).unwrap(), schema }
    }

    fn run(&self, args: &[&str]) -> Run {
        let url = format!("{}?schema={}", self.server, self.schema);
        Run::of(self.fixture.command(args).env("STORAGE_URL", url).output().unwrap())
    }

    fn ok(&self, args: &[&str]) -> String {
        let run = self.run(args);
        assert_eq!(run.code, 0, "{args:?}: {}", run.stderr);
        run.stdout
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[&["--format", "json"], args].concat())).unwrap()
    }

    fn psql(&self, sql: &str) -> String {
        let output = Command::new("psql")
            .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql, &self.server])
            .env("PGTZ", "UTC")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn every_verb() -> Result<(), Failed> {
    let store = Store::new();
    let missing = store.run(&["stats"]);
    assert_eq!(missing.code, 1, "{missing:?}");
    let password = store.server.split([':', '@']).nth(2).unwrap_or_default();
    assert!(password.is_empty() || !missing.stderr.contains(password), "{}", missing.stderr);

    let file = store.fixture.file("samples.csv", SAMPLES);
    store.ok(&["import", &file]);
    assert_eq!(
        store.ok(&["query", "web-1", "cpu"]),
        "timestamp,value,metadata\n2026-01-01T00:00:00.000Z,-5,\"{\"\"zone\"\":\"\"a, b\"\"}\"\n\
         2026-01-01T00:00:00.250Z,2.5,\n"
    );
    assert_eq!(
        store.ok(&["aggregate", "web*", "cpu", "--window", "1m"]),
        "server_id,metric_type,window_start,count,min,max,avg,sum,first,last\n\
         web-1,cpu,2026-01-01T00:00:00.000Z,2,-5,2.5,-1.25,-2.5,-5,2.5\n"
    );
    let stats = store.json(&["stats"]);
    assert_eq!((&stats["samples"], &stats["series"]), (&4.into(), &2.into()));
    assert_eq!(store.json(&["check"])["status"], "ok");
    assert_eq!(store.json(&["health"])["status"], "healthy");

    let schema = &store.schema;
    assert_eq!(
        store.psql(&format!(
            "SELECT server_id, \"timestamp\", metric_type, value, metadata
             FROM {schema}.metrics ORDER BY 1, 2"
        )),
        "db-1|2026-01-01 00:00:00+00|cpu|0.1|\n\
         db-1|2026-01-01 00:01:00+00|cpu|1e+300|\n\
         web-1|2026-01-01 00:00:00+00|cpu|-5|{\"zone\": \"a, b\"}\n\
         web-1|2026-01-01 00:00:00.25+00|cpu|2.5|\n"
    );
    assert_eq!(
        store.psql(&format!("SELECT * FROM {schema}.servers WHERE server_id = 'db-1'")),
        "db-1|2026-01-01 00:00:00+00|2026-01-01 00:01:00+00\n"
    );

    let removed = store.json(&["prune", "--before", "2026-01-01 00:00:00.250", "--yes"]);
    assert_eq!(removed["removed"], 2);
    assert_eq!(store.json(&["stats"])["samples"], 2);
    store.ok(&["collect", "--duration", "500ms", "--interval", "200ms"]);
    assert!(store.json(&["stats"])["samples"].as_u64().unwrap() > 2);
    assert_eq!(store.json(&["check"])["status"], "ok");
    store.psql(&format!("DROP SCHEMA {schema} CASCADE"));
    Ok(())
}
