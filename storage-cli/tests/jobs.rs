//! The verbs of jobs, pipelines and executions, over a SQLite file, and what a killed process
//! leaves there.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use chrono::Utc;
use common::{Fixture, until};
use serde_json::{Value, json};
use storage::{Claim, JobStore, NewJob};

const PATIENCE: Duration = Duration::from_secs(30);

const SYNC: [&str; 7] =
    ["jobs", "add", "daily-sync", "--cron", "0 2 * * *", "--pipeline", "sync.yaml"];

/// An execution of that job, under way.
fn execution(id: &str) -> Value {
    json!({"id": id, "job_id": "daily-sync", "pipeline": "sync.yaml",
           "started_at": "2026-01-01T00:00:00Z", "triggered_by": "manual"})
}

fn ids(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap()).collect()
}

#[test]
fn what_is_added_is_there_in_the_next_process() {
    let store = Fixture::new();
    let added = store.json(&SYNC);
    assert_eq!((&added["enabled"], &added["version"]), (&json!("yes"), &json!(1)));
    assert_eq!(store.json(&["jobs", "show", "daily-sync"]), added);
    store.ok(&["jobs", "add", "b", "--cron", "@hourly", "--pipeline", "p", "--disabled"]);
    assert_eq!(ids(&store.json(&["jobs", "list"])), ["b", "daily-sync"]);
    assert_eq!(ids(&store.json(&["jobs", "list", "--enabled"])), ["daily-sync"]);
    assert_eq!(ids(&store.json(&["jobs", "list", "--disabled", "--pipeline", "p"])), ["b"]);
    let line = store.refused(&SYNC);
    assert!(line.contains("taken") && line.contains("daily-sync"), "{line}");
    let line = store.refused(&["jobs", "show", "nobody"]);
    assert!(line.contains("job=nobody"), "{line}");
    assert_eq!(store.json(&["stats"])["samples"], 0);
}

#[test]
fn updates_can_expect_a_version() {
    let store = Fixture::new();
    store.ok(&SYNC);
    let update = ["jobs", "update", "daily-sync", "--cron", "0 3 * * *", "--expect-version", "1"];
    let updated = store.json(&update);
    assert_eq!((&updated["cron"], &updated["version"]), (&json!("0 3 * * *"), &json!(2)));
    assert!(store.refused(&update).contains("version=2"));
    assert_eq!(store.json(&["jobs", "disable", "daily-sync"])["enabled"], "no");
    let enabled = store.json(&["jobs", "enable", "daily-sync"]);
    assert_eq!((&enabled["enabled"], &enabled["version"]), (&json!("yes"), &json!(4)));
    let named = store.json(&["jobs", "update", "daily-sync", "--name", "Sync"]);
    assert_eq!((&named["name"], &named["cron"]), (&json!("Sync"), &json!("0 3 * * *")));
}

#[test]
fn a_worker_claims_extends_and_ends() {
    let store = Fixture::new();
    store.ok(&SYNC);
    let claim = ["jobs", "claim", "--worker", "w", "--lease", "1h", "--execution", "r1"];
    let none = store.run(&claim);
    assert_eq!((none.code, &*none.stdout), (1, ""), "{none:?}");
    assert!(none.stderr.contains("no job is due"), "{none:?}");
    let due = store.json(&["jobs", "update", "daily-sync", "--next-run", "2020-01-01"]);
    assert_eq!(due["missed_runs"], 1000, "at least so many");
    assert_eq!(ids(&store.json(&["jobs", "list", "--due"])), ["daily-sync"]);
    assert_eq!(store.run(&["jobs", "health", "-q"]).code, 1, "overdue");
    let run = store.json(&claim);
    assert_eq!((&run["id"], &run["status"]), (&json!("r1"), &json!("running")));
    assert_eq!((&run["triggered_by"], &run["missed_runs"]), (&json!("schedule"), &json!(999)));
    assert_eq!(store.json(&["jobs", "health"])["running"], 1);
    let busy = ["jobs", "claim", "daily-sync", "--worker", "v"];
    let line = store.refused(&busy);
    assert!(line.contains("worker=w") && line.contains("execution="), "another has it: {line}");
    store.ok(&["executions", "extend", "r1", "--lease", "2h"]);
    store.ok(&["executions", "update", "r1", "--steps", r#"["fetch"]"#]);
    let ended = store.json(&["executions", "end", "r1", "failed", "--error", "no network"]);
    assert_eq!((&ended["status"], &ended["steps"]), (&json!("failed"), &json!(["fetch"])));
    let line = store.refused(&["executions", "end", "r1", "succeeded"]);
    assert!(line.contains("status=failed"), "{line}");
    let job = store.json(&["jobs", "show", "daily-sync"]);
    assert_eq!((&job["last_result"], &job["worker"]), (&json!("failed"), &Value::Null));
    assert_eq!(store.run(&["jobs", "health"]).code, 0);
}

#[test]
fn pipelines_are_kept() {
    let store = Fixture::new();
    let run = store.run_with_input(&["pipelines", "add", "sync.yaml", "-"], "{\"steps\": []}\n");
    assert_eq!(run.code, 0, "{run:?}");
    let changed = store.json(&["pipelines", "update", "sync.yaml", "--description", "d"]);
    assert_eq!((&changed["config"], &changed["version"]), (&json!({"steps": []}), &json!(2)));
    assert_eq!(store.json(&["pipelines", "list"]), json!([changed]));
    assert!(store.refused(&["pipelines", "remove", "sync.yaml"]).contains("--yes"));
    store.ok(&["pipelines", "remove", "sync.yaml", "--yes"]);
    assert!(store.refused(&["pipelines", "show", "sync.yaml"]).contains("not found"));
}

#[test]
fn executions_are_added_listed_by_parts_and_cleaned_up() {
    let store = Fixture::new();
    store.ok(&SYNC);
    let line = |n: i64| {
        let (start, end) = (format!("2026-01-01T00:00:0{n}Z"), format!("2026-01-01T00:01:0{n}Z"));
        let ended = json!({"at": end, "result": "succeeded"});
        json!({"id": format!("r{n}"), "job_id": "daily-sync", "pipeline": "sync.yaml",
               "started_at": start, "triggered_by": "import", "ended": ended})
    };
    let lines: String = (0..6).map(|n| format!("{}\n", line(n))).collect();
    let run = store.run_with_input(&["executions", "add", "-"], &lines);
    assert_eq!((run.code, &*run.stdout), (0, "executions_added\n6\n"), "{run:?}");
    let run = store.run(&["--format", "json", "executions", "list", "-n", "4"]);
    assert_eq!(ids(&run.json()), ["r5", "r4", "r3", "r2"]);
    let place = run.stderr.split('\'').nth(1).unwrap().to_owned();
    let rest = store.json(&["executions", "list", "daily-sync", "--after", &place]);
    assert_eq!(ids(&rest), ["r1", "r0"]);
    assert_eq!(ids(&store.json(&["executions", "list", "--status", "failed"])), [""; 0]);
    let before = ["executions", "cleanup", "--before", "2026-01-01 00:00:02"];
    assert_eq!(store.json(&[&before[..], &["--dry-run"]].concat())["would_remove"], 2);
    let finer = ["executions", "cleanup", "--before", "2026-01-01 00:00:02.0009", "--dry-run"];
    assert_eq!(store.json(&finer)["would_remove"], 2, "whole milliseconds");
    assert!(store.refused(&before).contains("--yes"));
    assert_eq!(store.json(&[&before[..], &["--yes"]].concat())["removed"], 2);
    assert!(store.refused(&["jobs", "remove", "daily-sync"]).contains("--yes"));
    assert_eq!(store.json(&["jobs", "remove", "daily-sync", "--yes"])["executions_removed"], 4);
    assert_eq!(ids(&store.json(&["executions", "list"])), [""; 0]);
}

#[test]
fn a_bad_line_is_named_and_nothing_is_added() {
    let store = Fixture::new();
    store.ok(&SYNC);
    let good = execution("r1");
    let (part, long) = (json!({"id": "r1"}), execution(&"r".repeat(513)));
    for bad in ["oops".to_owned(), part.to_string(), long.to_string()] {
        let run = store.run_with_input(&["executions", "add", "-"], &format!("{good}\n\n{bad}\n"));
        assert_eq!(run.code, 1, "{run:?}");
        assert!(run.stderr.contains("line 3") && run.stderr.contains("nothing"), "{run:?}");
        assert_eq!(ids(&store.json(&["executions", "list"])), [""; 0]);
    }
    // What only the store can know comes too late for that, and says how far it got.
    let run = store.run_with_input(&["executions", "add", "-"], &format!("{good}\n{good}\n"));
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("after 1 execution added"), "{run:?}");
    assert_eq!(ids(&store.json(&["executions", "list"])), ["r1"]);
}

#[test]
fn bad_input_is_refused_and_makes_no_store() {
    let store = Fixture::new();
    for (args, code) in [
        (&["jobs", "add", "a", "--cron", "61 * * * *", "--pipeline", "p"][..], 2),
        (&["jobs", "add", "", "--cron", "@daily", "--pipeline", "p"], 1),
        (&["pipelines", "add", "a", "{oops"], 1),
        (&["pipelines", "add", "", "{}"], 1),
        (&["jobs", "list"], 1),
        (&["jobs", "list", "-n", "0"], 2),
        (&["jobs", "list", "-n", "-1"], 2),
        (&["executions", "list", "--status", "done"], 2),
    ] {
        assert_eq!(store.run(args).code, code, "{args:?}");
        assert!(!store.path("metrics.db").exists(), "{args:?} made a store");
    }
    store.ok(&SYNC);
    for args in [
        &["executions", "add", "{}"][..],
        &["executions", "list", "--after", "nowhere"],
        &["executions", "end", "r", "failed"],
        &["jobs", "claim", "--worker", "", "daily-sync"],
        &["jobs", "claim", "--worker", "w", "--lease", "0s"],
        &["jobs", "update", "nobody"],
    ] {
        store.refused(args);
    }
}

/// Where the process of [`scheduler`] adds a job, and the file by which it says that it has.
const SCHEDULER: [&str; 2] = ["STORAGE_TEST_SCHEDULER_URL", "STORAGE_TEST_SCHEDULER_FILE"];

/// Adds a job, claims it for a moment, and then waits to be killed with the store open.
#[tokio::test]
#[ignore = "the process that jobs_survive_a_killed_process kills"]
async fn scheduler() {
    let [Ok(url), Ok(file)] = SCHEDULER.map(std::env::var) else { return };
    let store = storage::open(&url).await.unwrap();
    let jobs = store.jobs().unwrap();
    let sync = NewJob::new("daily-sync", "sync.yaml", "0 2 * * *".parse().unwrap());
    jobs.add_job(&sync, Utc::now()).await.unwrap();
    let claim = Claim::next("r1", "w", Duration::from_millis(1), Utc::now());
    jobs.claim(&claim.of_job("daily-sync")).await.unwrap();
    std::fs::write(file, "added").unwrap();
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// Add a job, kill -9, start: it is there, and what ran is tried again.
#[test]
fn jobs_survive_a_killed_process() {
    let store = Fixture::new();
    let (url, file) = (store.url(), store.path("added"));
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "scheduler", "--ignored"])
        .envs(SCHEDULER.into_iter().zip([url.as_ref(), file.as_os_str()]))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until(PATIENCE, "the job", || file.exists());
    process.kill().unwrap();
    assert_eq!(process.wait().unwrap().signal(), Some(9), "it had not ended");
    let job = store.json(&["jobs", "show", "daily-sync"]);
    assert_eq!((&job["cron"], &job["execution"]), (&json!("0 2 * * *"), &json!("r1")));
    assert!(job["next_run"].is_string(), "{job}");
    assert_eq!(store.json(&["check"])["problems"], 0);
    // Whose worker is gone is taken over when the lease is over.
    let claim = ["jobs", "claim", "--worker", "v", "--execution", "r2"];
    until(PATIENCE, "the lease", || store.run(&claim).code == 0);
    assert_eq!(store.json(&["executions", "show", "r2"])["attempt"], 2);
    assert_eq!(store.json(&["executions", "show", "r1"])["status"], "lost");
}
