//! Each verb as a user types it, and what it prints.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod common;

use common::Fixture;

const SAMPLES: &str = "\
server_id,timestamp,metric_type,value,metadata
db-1,2026-01-01T00:00:00.000Z,cpu,0.1,
db-1,2026-01-01T00:01:00.000Z,cpu,1e300,
web-1,2026-01-01T00:00:00.000Z,cpu,-5,\"{\"\"zone\"\":\"\"a, b\"\"}\"
web-1,2026-01-01T00:00:00.250Z,cpu,2.5,
web-1,2026-01-01T00:00:00.000Z,memory_used_bytes,1073741824,
";

fn filled() -> Fixture {
    let fixture = Fixture::new();
    let file = fixture.file("samples.csv", SAMPLES);
    fixture.ok(&["import", &file]);
    fixture
}

#[test]
fn query_aggregate_series_latest() {
    let fixture = filled();
    assert_eq!(
        fixture.ok(&["query", "web-1", "cpu"]),
        "timestamp,value,metadata\n2026-01-01T00:00:00.000Z,-5,\"{\"\"zone\"\":\"\"a, b\"\"}\"\n\
         2026-01-01T00:00:00.250Z,2.5,\n"
    );
    assert_eq!(
        fixture.ok(&["query", "web-1", "cpu", "-n", "1", "--start", "2026-01-01 00:00:00.1"]),
        "timestamp,value,metadata\n2026-01-01T00:00:00.250Z,2.5,\n"
    );
    assert_eq!(
        fixture.ok(&["aggregate", "web*", "cpu"]),
        "server_id,metric_type,count,min,max,avg,sum,first,last\nweb-1,cpu,2,-5,2.5,-1.25,-2.5,-5,2.5\n"
    );
    assert_eq!(
        fixture.ok(&["aggregate", "db-1", "cpu", "--window", "1m", "--end", "2026-01-01 00:01"]),
        "server_id,metric_type,window_start,count,min,max,avg,sum,first,last\n\
         db-1,cpu,2026-01-01T00:00:00.000Z,1,0.1,0.1,0.1,0.1,0.1,0.1\n"
    );
    assert_eq!(
        fixture.ok(&["series", "db-*"]),
        "server_id,metric_type,count,oldest,newest\n\
         db-1,cpu,2,2026-01-01T00:00:00.000Z,2026-01-01T00:01:00.000Z\n"
    );
    assert_eq!(
        fixture.ok(&["latest", "*", "cpu"]),
        "server_id,metric_type,timestamp,value,metadata\n\
         db-1,cpu,2026-01-01T00:01:00.000Z,1e300,\nweb-1,cpu,2026-01-01T00:00:00.250Z,2.5,\n"
    );
    assert_eq!(fixture.ok(&["latest", "db-1", "-n", "5"]).lines().count(), 3);
}

#[test]
fn json_and_tables() {
    let fixture = filled();
    let found = fixture.json(&["query", "web-1", "cpu"]);
    assert_eq!(found[0]["metadata"]["zone"], "a, b");
    assert_eq!(found[1]["value"], 2.5);
    assert_eq!(fixture.json(&["series", "nobody"]), serde_json::json!([]));
    let table = fixture.ok(&["--format", "table", "latest"]);
    assert!(table.contains("│ web-1") && table.contains("1e300"), "{table}");
    let table = fixture.ok(&["--format", "table", "stats"]);
    assert!(table.contains("KiB") || table.contains("MiB"), "{table}");
}

#[test]
fn an_empty_answer_is_explained_on_stderr() {
    let fixture = filled();
    let run = fixture.run(&["query", "web-1", "cpv"]);
    assert_eq!((run.code, run.stdout.lines().count()), (0, 1));
    assert!(run.stderr.contains("storage series"), "{}", run.stderr);
    assert_eq!(fixture.run(&["-q", "query", "web-1", "cpv"]).stderr, "");
}

#[test]
fn stats_health_check_compact() {
    let fixture = filled();
    let stats = fixture.json(&["stats"]);
    assert_eq!((&stats["samples"], &stats["series"]), (&5.into(), &3.into()));
    assert_eq!(stats["oldest"], "2026-01-01T00:00:00.000Z");
    assert!(stats["disk_usage_bytes"].as_u64().unwrap() > 0);
    assert_eq!(fixture.json(&["health"])["status"], "healthy");
    let check = fixture.json(&["check"]);
    assert_eq!((&check["status"], &check["samples"]), (&"ok".into(), &5.into()));
    assert_eq!(fixture.json(&["compact"])["samples"], 5);
    assert_eq!(fixture.json(&["check"])["status"], "ok");
}

#[test]
fn prune_wants_a_confirmation() {
    let fixture = filled();
    let before = ["prune", "--before", "2026-01-01 00:00:00.250"];
    let line = fixture.refused(&before);
    assert!(line.contains("--yes"), "{line}");
    let would = fixture.json(&[&before[..], &["--dry-run"]].concat());
    assert_eq!(would["would_remove"], 3);
    assert_eq!(fixture.samples(), 5);
    let removed = fixture.json(&[&before[..], &["--yes"]].concat());
    assert_eq!(removed["removed"], 3);
    assert_eq!(fixture.samples(), 2);
}

#[test]
fn plot_draws() {
    let fixture = filled();
    let chart =
        fixture.ok(&["plot", "*-1", "cpu", "--end", "2026-01-01 00:00:30", "--width", "80"]);
    for part in ["┤", "┬", "2026-01-01", "web-1 cpu  min -5  max 2.5", "db-1 cpu   min 0.1"] {
        assert!(chart.contains(part), "{part} is missing in\n{chart}");
    }
    assert!(!chart.contains('\x1b'), "colours in a file");
    assert!(fixture.refused(&["plot", "*", "*", "--format", "csv"]).contains("aggregate"));
    assert_eq!(fixture.run(&["plot", "nobody", "*"]).code, 0);
}

#[test]
fn completions_for_every_shell() {
    let fixture = Fixture::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = fixture.ok(&["completions", shell]);
        assert!(script.contains("aggregate"), "{shell}");
    }
    assert!(!fixture.path("metrics.db").exists());
}

#[test]
fn help_has_examples_and_no_secrets() {
    let fixture = Fixture::new();
    let verbs = [
        "collect",
        "import",
        "query",
        "aggregate",
        "series",
        "latest",
        "plot",
        "export",
        "prune",
        "stats",
        "health",
        "check",
        "compact",
        "completions",
    ];
    for verb in verbs {
        let mut command = fixture.command(&["help", verb]);
        command.env("STORAGE_URL", "postgres://me:s3cret@host/db");
        let help = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert!(help.contains("Example"), "{verb}");
        assert!(!help.contains("s3cret"), "{verb}");
    }
}
