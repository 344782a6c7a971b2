//! The command on PostgreSQL: the same verbs, and `psql` shows the rows that a user wrote.
#![cfg_attr(not(feature = "postgres"), allow(unused))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::process::{Command, ExitCode};

use common::{Fixture, Run};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};

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

    /// Asks with the tables of the store in sight.
    fn rows(&self, sql: &str) -> String {
        self.psql(&format!("SET search_path = {}; {sql}", self.schema))
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
    history(&store);
    events(&store);
    pipelines(&store);
    jobs_and_executions(&store);
    assert_eq!(store.json(&["check"])["status"], "ok");
    store.psql(&format!("DROP SCHEMA {schema} CASCADE"));
    Ok(())
}

fn history(store: &Store) {
    for (value, at) in [("0.5", "1000"), ("{\"mae\": 0.7}", "2000")] {
        store.ok(&["history", "store", "accuracy::vienna", value, "--at", at]);
    }
    let found = store.json(&["history", "query", "accuracy::*"]);
    assert_eq!((&found[0]["value"], &found[1]["value"]), (&json!(0.5), &json!({"mae": 0.7})));
    assert_eq!(store.json(&["history", "latest", "*vienna"]), json!([found[1]]));
    assert_eq!(store.json(&["history", "list"])[0]["values"], 2);
    let rows = store.rows("SELECT record_name, value FROM record_values ORDER BY stored_at");
    assert_eq!(rows, "accuracy::vienna|0.5\naccuracy::vienna|{\"mae\": 0.7}\n");
    let cleanup = ["history", "cleanup", "--before", "2000", "--yes"];
    assert_eq!(store.json(&cleanup)["removed"], 1);
}

fn events(store: &Store) {
    let append = |turn: &str, expect: &str| {
        store.run(&["events", "append", "thread-1", "TurnStarted", turn, "--expect", expect])
    };
    assert_eq!((append("1", "none").code, append("2", "1").code), (0, 0));
    let refused = append("3", "1");
    assert!(refused.code == 1 && refused.stderr.contains("version=2"), "{refused:?}");
    let log = store.json(&["events", "replay"]);
    assert_eq!((&log[1]["sequence"], &log[1]["payload"]), (&json!(2), &json!(2)));
    assert_eq!(store.json(&["events", "stream", "thread-1"]), log);
    assert_eq!(store.json(&["events", "tail", "-n", "1"]), json!([log[1]]));
    let streams = json!([{"stream": "thread-1", "version": 2}]);
    assert_eq!(store.json(&["events", "streams"]), streams);
    let rows = store.rows("SELECT sequence, stream, payload FROM event_log ORDER BY 1");
    assert_eq!(rows, "1|thread-1|1\n2|thread-1|2\n");
    assert_eq!(store.json(&["events", "prune", "--before", "2", "--yes"])["removed"], 1);
    let extent = json!({"events": 1, "first": 2, "last": 2});
    assert_eq!(store.json(&["events", "extent"]), extent);
}

fn pipelines(store: &Store) {
    store.ok(&["pipelines", "add", "sync.yaml", "{\"steps\": []}"]);
    let update = ["pipelines", "update", "sync.yaml", "--config", "{\"steps\": [1]}"];
    let updated = store.json(&update);
    assert_eq!((&updated["config"], &updated["version"]), (&json!({"steps": [1]}), &json!(2)));
    assert_eq!(store.json(&["pipelines", "show", "sync.yaml"]), updated);
    assert_eq!(store.json(&["pipelines", "list"]), json!([updated]));
    let rows = store.rows("SELECT name, config, version FROM pipelines");
    assert_eq!(rows, "sync.yaml|{\"steps\": [1]}|2\n");
    store.ok(&["pipelines", "remove", "sync.yaml", "--yes"]);
    assert_eq!(store.json(&["pipelines", "list"]), json!([]));
}

fn jobs_and_executions(store: &Store) {
    store.ok(&["jobs", "add", "sync", "--cron", "0 2 * * *", "--pipeline", "sync.yaml"]);
    store.ok(&["jobs", "disable", "sync"]);
    store.ok(&["jobs", "enable", "sync"]);
    store.ok(&["jobs", "update", "sync", "--next-run", "2020-01-01", "--expect-version", "3"]);
    assert_eq!(store.run(&["jobs", "health"]).code, 1, "overdue");
    assert_eq!(store.json(&["jobs", "list", "--due"])[0]["id"], "sync");
    let claim = ["jobs", "claim", "--worker", "w", "--lease", "1h", "--execution", "r1"];
    assert_eq!(store.json(&claim)["triggered_by"], "schedule");
    assert_eq!(store.run(&["jobs", "claim", "--worker", "v"]).code, 1, "no other is due");
    store.ok(&["executions", "extend", "r1", "--lease", "2h"]);
    store.ok(&["executions", "update", "r1", "--steps", "[\"fetch\"]"]);
    let ended = store.json(&["executions", "end", "r1", "failed", "--error", "no network"]);
    assert_eq!(store.json(&["executions", "show", "r1"]), ended);
    let rows = store.rows("SELECT status, error, steps FROM job_executions");
    assert_eq!(rows, "failed|no network|[\"fetch\"]\n");
    let rows = store.rows("SELECT id, last_result, lease_worker FROM scheduled_jobs");
    assert_eq!(rows, "sync|failed|\n");
    assert_eq!(store.json(&["jobs", "health"])["status"], "healthy");
    let start = "2020-01-01T00:00:00Z";
    let old = json!({"id": "r0", "job_id": "sync", "pipeline": "sync.yaml", "started_at": start,
        "triggered_by": "import", "ended": {"at": start, "result": "succeeded"}});
    store.ok(&["executions", "add", &old.to_string()]);
    let listed = store.json(&["executions", "list", "sync"]);
    assert_eq!((&listed[0], &listed[1]["id"]), (&ended, &json!("r0")));
    let before = ["executions", "cleanup", "--before", "2021-01-01"];
    assert_eq!(store.json(&[&before[..], &["--dry-run"]].concat())["would_remove"], 1);
    assert_eq!(store.json(&[&before[..], &["--yes"]].concat())["removed"], 1);
    assert_eq!(store.json(&["jobs", "remove", "sync", "--yes"])["executions_removed"], 1);
    assert_eq!(store.json(&["jobs", "list"]), json!([]));
}
