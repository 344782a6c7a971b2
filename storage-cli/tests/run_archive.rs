//! `run` that archives: beside retention, stopped by a signal, and killed in the middle.
#![cfg(all(unix, feature = "parquet"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::io::Write;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{Fixture, Run, terminate, until};
use serde_json::{Value, json};

const DAYS: i64 = 40;
const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 1440 * MINUTE_MS;
/// Of one series, a sample every twenty minutes.
const SAMPLES_A_DAY: u64 = 72;
const SAMPLES: u64 = DAYS as u64 * SAMPLES_A_DAY;
const PATIENCE: Duration = Duration::from_secs(90);

/// A SQLite file with forty days that ended just now, and a configuration that archives it.
struct Archived {
    fixture: Fixture,
    now_ms: i64,
}

impl Archived {
    fn new(archive: &Value, more: &Value) -> Self {
        let archived =
            Self { fixture: Fixture::new(), now_ms: chrono::Utc::now().timestamp_millis() };
        let mut section = json!({ "cold": archived.cold(), "interval": "1s" });
        section.as_object_mut().unwrap().extend(archive.as_object().unwrap().clone());
        let path = archived.fixture.path("metrics.db");
        let mut storage = json!({ "sqlite": { "path": path }, "archive": section });
        storage.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        archived.fixture.file("storage.json", &json!({ "storage": storage }).to_string());
        let of = |number: i64| line(archived.now_ms - number * 20 * MINUTE_MS);
        let lines: String = (0..SAMPLES as i64).map(of).collect();
        archived.fixture.ok(&["import", &archived.fixture.file("in.jsonl", &lines)]);
        archived
    }

    fn cold(&self) -> String {
        format!("parquet://{}", self.fixture.path("archive").display())
    }

    fn both(&self) -> String {
        format!("tiered://?hot={}&cold={}", self.fixture.url(), self.cold())
    }

    fn start(&self) -> Child {
        let mut command = self.fixture.command(&["--format", "json", "run", "--stdin"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// Everything since so many days ago, in both tiers.
    fn since(&self, days: i64) -> String {
        self.since_at(&self.both(), days)
    }

    /// The same before there is a cold one.
    fn hot_since(&self, days: i64) -> String {
        self.since_at(&self.fixture.url(), days)
    }

    fn since_at(&self, url: &str, days: i64) -> String {
        let start = chrono::DateTime::from_timestamp_millis(self.now_ms - days * DAY_MS).unwrap();
        self.fixture.ok(&["export", "--url", url, "--start", &start.to_rfc3339()])
    }
}

fn line(ms: i64) -> String {
    format!("{{\"server_id\":\"a\",\"metric_type\":\"m\",\"ts\":{ms},\"value\":{ms}}}\n")
}

fn ended(child: Child) -> Run {
    terminate(&child);
    Run::of(child.wait_with_output().unwrap())
}

#[test]
fn what_is_old_is_archived_then_removed_and_what_comes_is_stored() {
    let more = json!({
        "retention": { "raw_metrics": "20d", "aggregated_1day": "1y" },
        "pruning_interval": "1s",
        "rollup_interval": "1s",
    });
    let archived = Archived::new(&json!({ "after": "7d" }), &more);
    let before = archived.hot_since(19);
    let mut child = archived.start();
    until(PATIENCE, "nothing was archived and removed", || {
        let in_hot = archived.fixture.samples_at(&archived.fixture.url());
        let in_cold = archived.fixture.samples_at(&archived.cold());
        // Of each the day in which its age ends, or a part of it, may be there.
        in_hot <= 8 * SAMPLES_A_DAY && in_hot + in_cold <= 21 * SAMPLES_A_DAY + 1
    });
    assert!(archived.since(19) == before, "the answers changed");
    let (new, late) = (archived.now_ms + 1, archived.now_ms - 15 * DAY_MS + 1);
    let mut input = child.stdin.take().unwrap();
    input.write_all(format!("{}{}", line(new), line(late)).as_bytes()).unwrap();
    drop(input);
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, 0, "{run:?}");
    let summary = run.json();
    let count = |key: &str| summary[key].as_u64().unwrap();
    assert_eq!((count("samples_stored"), count("samples_lost")), (2, 0));
    assert!(count("samples_archived") >= 32 * SAMPLES_A_DAY, "{summary}");
    let left = archived.fixture.samples_at(&archived.both());
    assert_eq!(left, SAMPLES + 2 - count("samples_pruned"), "{summary}");
    // The rollups are those of all days.
    let samples = archived.both().replace('%', "%25").replace('&', "%26");
    let rolled = format!("rolled://?samples={samples}");
    let days =
        archived.fixture.json(&["aggregate", "--window", "1d", "--rollups", "--url", &rolled]);
    let all = days.as_array().unwrap().iter().map(|day| day["count"].as_u64().unwrap());
    assert_eq!(all.sum::<u64>(), SAMPLES + 2);
}

/// It copies so slowly that the signal comes in the middle.
#[test]
fn a_signal_ends_it_with_the_window_under_way() {
    let archived = Archived::new(
        &json!({ "after": "1d", "samples_per_second": SAMPLES_A_DAY * 2 }),
        &json!({ "flush_interval_secs": 3600 }),
    );
    let before = archived.hot_since(DAYS);
    let mut child = archived.start();
    let mut input = child.stdin.take().unwrap();
    input.write_all(line(archived.now_ms + 1).as_bytes()).unwrap();
    until(PATIENCE, "nothing was archived", || {
        archived.fixture.samples_at(&archived.fixture.url()) < SAMPLES - SAMPLES_A_DAY
    });
    let run = ended(child);
    drop(input);
    assert_eq!(run.code, 0, "{run:?}");
    let moved = run.json()["samples_archived"].as_u64().unwrap();
    assert!((SAMPLES_A_DAY..SAMPLES / 2).contains(&moved), "{run:?}");
    let stored = run.json()["samples_stored"].as_u64().unwrap();
    assert_eq!(archived.fixture.samples_at(&archived.cold()), moved);
    assert_eq!(archived.fixture.samples_at(&archived.fixture.url()), SAMPLES - moved + stored);
    let after = archived.since(DAYS);
    assert!(after.starts_with(before.trim_end()), "the answers changed");
    // Its turn was given back: nobody has to wait until it runs out.
    let began = Instant::now();
    let (hot, cold) = (archived.fixture.url(), archived.cold());
    archived.fixture.ok(&["archive", &hot, &cold, "--older-than", "1d"]);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

/// One kill: the turn that it leaves behind takes half a minute to run out. The test of the library kills
/// at every step.
#[test]
fn killed_in_the_middle_it_neither_loses_nor_doubles() {
    let archived = Archived::new(
        &json!({ "after": "1d", "window": "6h", "samples_per_second": SAMPLES_A_DAY * 4 }),
        &json!({}),
    );
    let before = archived.hot_since(DAYS);
    let mut child = archived.start();
    until(PATIENCE, "nothing was archived", || archived.fixture.samples_at(&archived.cold()) > 0);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(archived.since(DAYS) == before, "changed after the kill");
    let moved = archived.fixture.samples_at(&archived.cold());
    assert!(moved < SAMPLES / 2, "{moved} were moved already");
    let child = archived.start();
    until(PATIENCE, "the next one did not go on", || {
        archived.fixture.samples_at(&archived.cold()) > moved
    });
    let run = ended(child);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(archived.since(DAYS) == before, "changed in the end");
    let (in_hot, in_cold) = (
        archived.fixture.samples_at(&archived.fixture.url()),
        archived.fixture.samples_at(&archived.cold()),
    );
    assert_eq!(
        (in_hot + in_cold, archived.fixture.samples_at(&archived.both())),
        (SAMPLES, SAMPLES)
    );
}

#[test]
fn a_check_says_what_is_archived_and_what_is_wrong_with_it() {
    let archived = Archived::new(&json!({ "after": "7d" }), &json!({}));
    let run = archived.fixture.run(&["config", "check"]);
    assert_eq!(run.code, 0, "{run:?}");
    let section = &run.json()["storage"]["archive"];
    assert_eq!((&section["after"], &section["window"]), (&json!("7d"), &json!("1d")));
    assert!(run.stderr.contains("tiered://?hot=sqlite://"), "{run:?}");
    let mut command = archived.fixture.command(&["run", "--stdin"]);
    let run = Run::of(command.env("STORAGE__RETENTION__RAW_METRICS", "7d").output().unwrap());
    assert!(run.code == 1 && run.stderr.contains("before they are archived"), "{run:?}");
    assert_eq!(archived.fixture.samples_at(&archived.fixture.url()), SAMPLES);
}
