//! Rollups and retention as a user has them: by configuration, beside `run`, and killed in the middle.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![cfg(unix)]

mod common;

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{Fixture, Run, Told, terminate, until};
use serde_json::{Value, json};

const DAYS: i64 = 16;
const STEP_MINUTES: i64 = 10;
/// Of two series.
const SAMPLES: u64 = (DAYS * 24 * 60 / STEP_MINUTES * 2) as u64;

/// Sixteen days that ended just now, as JSON lines of two series.
fn lines() -> String {
    let now = chrono::Utc::now().timestamp_millis();
    let mut text = String::new();
    for minute in (0..DAYS * 24 * 60).step_by(STEP_MINUTES as usize) {
        let ms = now - minute * 60_000;
        for server in ["web-1", "web-2"] {
            text.push_str(&format!(
                "{{\"server_id\":\"{server}\",\"metric_type\":\"m\",\"ts\":{ms},\"value\":{minute}}}\n"
            ));
        }
    }
    text
}

/// A configuration for the store of the fixture that keeps samples for a week.
fn configured(retention: Value) -> Fixture {
    let fixture = Fixture::new();
    let storage = json!({
        "sqlite": { "path": fixture.path("metrics.db") },
        "retention": retention,
        "pruning_interval": "1s",
        "rollup_interval": "1s",
    });
    fixture.file("storage.json", &json!({ "storage": storage }).to_string());
    fixture
}

fn a_week_of_samples() -> Value {
    json!({ "raw_metrics": "7d", "aggregated_5min": "12d", "aggregated_1hour_days": 365 })
}

fn daily(fixture: &Fixture) -> Value {
    fixture.json(&["aggregate", "--window", "1d", "--rollups"])
}

fn counted(windows: &Value) -> u64 {
    windows.as_array().unwrap().iter().map(|window| window["count"].as_u64().unwrap()).sum()
}

#[test]
fn a_plan_is_carried_out_and_no_day_is_forgotten() {
    let fixture = configured(a_week_of_samples());
    let input = fixture.file("in.jsonl", &lines());
    fixture.ok(&["import", &input]);
    let before = daily(&fixture);
    assert_eq!(counted(&before), SAMPLES);
    let rolled = fixture.json(&["rollup"]);
    assert!(rolled["rollups_written"].as_u64().unwrap() > SAMPLES, "{rolled}");
    assert_eq!(fixture.json(&["rollup"])["rollups_written"], 0);
    let note = fixture.run(&["aggregate", "--window", "1d", "--rollups"]).stderr;
    // Then of hours, unless the day has just begun.
    assert!(note.contains("from rollups of 1d, then "), "{note}");

    let plan = fixture.json(&["retention", "plan"]);
    assert_eq!(fixture.samples(), SAMPLES, "a plan removed something");
    let done = fixture.json(&["retention", "run"]);
    assert_eq!(plan[0]["would_remove"], done[0]["removed"], "{plan} {done}");
    let removed = done[0]["removed"].as_u64().unwrap();
    // Eight whole days, or the most of the first of them.
    assert!((8 * 288..=9 * 288).contains(&removed), "{done}");
    assert_eq!(fixture.samples(), SAMPLES - removed);
    assert!(done[1]["removed"].as_u64().unwrap() > 3 * 288 && done[2]["removed"] == 0, "{done}");
    assert_eq!(daily(&fixture), before);
    assert_eq!(counted(&fixture.json(&["aggregate", "--window", "1h", "--rollups"])), SAMPLES);
    let hours = fixture.json(&["stats", "--url", &format!("{}.rollup_1h", fixture.url())]);
    assert_eq!(hours["series"], 2);

    // What is imported by the URL of both is seen, also where it is late.
    let url = format!("rolled://?samples={}", fixture.url());
    let late = before[0]["window_start"].as_str().unwrap();
    let csv = format!("server_id,timestamp,metric_type,value\nweb-1,{late},m,7\n");
    fixture.ok(&["import", &fixture.file("late.csv", &csv), "--url", &url]);
    assert_eq!(counted(&daily(&fixture)), SAMPLES + 1);
    assert_eq!(fixture.json(&["rollup", "--rebuild"])["rollups_written"], 0);
}

/// The widths of the configuration, an age for each; who does not name them finds them.
#[test]
fn widths_of_ones_own_are_kept_each_for_its_time() {
    let fixture = Fixture::new();
    let storage = json!({
        "sqlite": { "path": fixture.path("metrics.db") },
        "rollups": [{ "width": "15m", "keep": "10d" }, { "width": "2h" }],
        "retention": { "raw_metrics": "3d" },
    });
    fixture.file("storage.json", &json!({ "storage": storage }).to_string());
    fixture.ok(&["import", &fixture.file("in.jsonl", &lines())]);
    fixture.ok(&["rollup"]);
    let before = fixture.json(&["aggregate", "--window", "2h", "--rollups"]);
    assert_eq!(counted(&before), SAMPLES);
    let done = fixture.json(&["retention", "run"]);
    let kept: Vec<_> = done.as_array().unwrap().iter().map(|entry| &entry["kept"]).collect();
    assert_eq!(kept, ["samples", "rollups of 15m", "rollups of 2h"]);
    assert!(done[1]["removed"].as_u64().unwrap() > 5 * 2 * 96, "{done}");
    assert_eq!(done[2]["removed"], 0);
    for suffix in ["rollup_15m", "rollup_2h", "rollups"] {
        assert!(fixture.path(&format!("metrics.db.{suffix}")).exists(), "{suffix}");
    }
    assert!(!fixture.path("metrics.db.rollup_5m").exists());

    assert_eq!(fixture.json(&["aggregate", "--window", "2h", "--rollups"]), before);
    let url = format!("rolled://?samples={}", fixture.url());
    for url in [&url, &format!("{url}&widths=15m,2h")] {
        let again = ["aggregate", "--window", "2h", "--rollups", "--url", url];
        assert_eq!(fixture.json(&again), before, "{url}");
    }
    // A late sample by that URL is seen by those rollups.
    let late = before[0]["window_start"].as_str().unwrap();
    let csv = format!("server_id,timestamp,metric_type,value\nweb-1,{late},m,7\n");
    fixture.ok(&["import", &fixture.file("late.csv", &csv), "--url", &url]);
    let after = fixture.json(&["aggregate", "--window", "2h", "--rollups"]);
    assert_eq!(counted(&after), SAMPLES + 1);
    assert!(!fixture.path("metrics.db.rollup_5m").exists());

    let refused = fixture.refused(&["stats", "--url", &format!("{url}&widths=15m,2x")]);
    assert!(refused.contains("widths=5m,1h,1d"), "{refused}");
    let refused = fixture.refused(&["stats", "--url", &format!("{url}&widths=15m,20m")]);
    assert!(refused.contains("parameter=widths") && refused.contains("1200s"), "{refused}");
}

fn start(fixture: &Fixture) -> Child {
    let mut command = fixture.command(&["--format", "json", "run", "--stdin"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn run_prunes_behind_rollups() {
    let fixture = configured(a_week_of_samples());
    let mut child = start(&fixture);
    let mut input = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, lines().as_bytes()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let pruned = || (8 * 288..=9 * 288).contains(&(SAMPLES - fixture.samples()));
    while !fixture.path("metrics.db.rollup_1d").exists() || !pruned() {
        assert!(Instant::now() < deadline, "{} samples are left", fixture.samples());
        assert!(child.try_wait().unwrap().is_none());
    }
    terminate(&child);
    let run = Run::of(child.wait_with_output().unwrap());
    drop(input);
    assert_eq!(run.code, 0, "{run:?}");
    let summary = run.json();
    assert_eq!(summary["samples_stored"], SAMPLES);
    assert_eq!(summary["samples_pruned"], SAMPLES - fixture.samples(), "{run:?}");
    assert!(summary["rollups_written"].as_u64().unwrap() > 0, "{summary}");
    assert_eq!(counted(&daily(&fixture)), SAMPLES);
}

/// Both would prune all the time; one at a time does.
#[test]
fn of_two_processes_one_at_a_time_prunes() {
    let fixture = configured(a_week_of_samples());
    fixture.ok(&["import", &fixture.file("in.jsonl", &lines())]);
    let before = daily(&fixture);
    let mut children = [start(&fixture), start(&fixture)];
    let told = children.each_mut().map(Told::of);
    let both = || told.iter().all(|told| told.text().contains("Ctrl-C ends"));
    until(Duration::from_secs(60), "they did not begin", both);
    until(Duration::from_secs(60), "nothing was pruned", || fixture.samples() < SAMPLES);
    let runs = children.map(|mut child| {
        let input = child.stdin.take();
        terminate(&child);
        let run = Run::of(child.wait_with_output().unwrap());
        drop(input);
        assert_eq!(run.code, 0, "{run:?} {:?}", told.each_ref().map(Told::text));
        run.json()
    });
    let pruned = |run: &Value| run["samples_pruned"].as_u64().unwrap();
    let sum: u64 = runs.iter().map(pruned).sum();
    assert_eq!(sum, SAMPLES - fixture.samples(), "{runs:?}");
    assert_eq!(daily(&fixture), before);
}

/// The file is not larger than is said, and everything newer than what was removed is left.
#[test]
fn a_store_is_kept_as_small_as_is_said() {
    let fixture = Fixture::new();
    let now = chrono::Utc::now().timestamp_millis();
    let mut random = fastrand::Rng::with_seed(1);
    let rows = (0..200_000_i64)
        .map(|no| format!("web-1,{},m,{}\n", now - 864_000_000 + no * 4000, random.f64()));
    let csv = format!("server_id,timestamp,metric_type,value\n{}", rows.collect::<String>());
    fixture.ok(&["import", &fixture.file("in.csv", &csv)]);
    fixture.ok(&["compact"]);
    let size = || fixture.json(&["stats"])["disk_usage_bytes"].as_u64().unwrap();
    let (before, bound, newest) = (size(), size() / 2, fixture.json(&["stats"])["newest"].clone());
    let storage = json!({
        "sqlite": { "path": fixture.path("metrics.db") },
        "retention": { "raw_metrics_bytes_max": bound },
    });
    fixture.file("storage.json", &json!({ "storage": storage }).to_string());
    let plan = fixture.json(&["retention", "plan"]);
    let done = fixture.json(&["retention", "run"]);
    let removed = done[0]["removed"].as_u64().unwrap();
    assert!(size() <= bound, "{before} to {}, not {bound}: {plan} {done}", size());
    assert_eq!(done[0]["bytes_freed"], before - size(), "{done}");
    // About half, and not much more.
    assert!((80_000..140_000).contains(&removed), "{plan} {done}");
    assert_eq!(fixture.samples(), 200_000 - removed);
    assert_eq!(fixture.json(&["stats"])["newest"], newest);
}

#[test]
fn retention_that_is_killed_neither_loses_nor_doubles() {
    let fixture = configured(a_week_of_samples());
    fixture.ok(&["import", &fixture.file("in.jsonl", &lines())]);
    let before = daily(&fixture);
    // One kill: the lease that it leaves behind takes half a minute to run out. The test of the
    // library kills at every change.
    let run = ["retention", "run"];
    let mut child =
        fixture.command(&run).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while fixture.samples() == SAMPLES {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none());
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(daily(&fixture), before, "changed after the kill");
    fixture.ok(&run);
    assert_eq!(daily(&fixture), before, "changed in the end");
    let left = fixture.samples();
    assert!((SAMPLES - 9 * 288..=SAMPLES - 8 * 288).contains(&left), "{left}");
}

#[test]
fn what_makes_no_sense_is_refused_in_one_line() {
    let fixture = configured(json!({}));
    fixture.ok(&["import", &fixture.file("in.jsonl", &lines())]);
    assert!(fixture.refused(&["retention", "run"]).contains("for ever"));
    assert!(fixture.refused(&["rollup"]).contains("no rollups"));
    let plain = configured(json!({ "raw_metrics": "7d" }));
    assert!(plain.refused(&["retention", "plan"]).contains("there is no store"));
    assert!(!plain.path("metrics.db").exists());
    assert!(plain.refused(&["rollup"]).contains("no rollups"));
}
