//! `storage copy`: the real process, killed again and again, and started again.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Fixture, ended_within, nab_aws};

fn import(fixture: &Fixture) {
    let files = std::fs::read_dir(nab_aws()).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "csv")).collect();
    let mut args = vec!["import", "--server", "aws"];
    args.extend(files.iter().map(|path| path.to_str().unwrap()));
    fixture.ok(&args);
}

fn sqlite(fixture: &Fixture, name: &str) -> String {
    format!("sqlite://{}", fixture.path(name).display())
}

#[test]
fn a_copy_holds_the_same_and_finds_what_differs() {
    let fixture = Fixture::new();
    import(&fixture);
    let (source, other) = (fixture.url(), sqlite(&fixture, "other.db"));
    let dry = fixture.json(&["copy", &source, &other, "--dry-run"]);
    assert_eq!(dry["samples_to_copy"], 67_718);
    assert!(!fixture.path("other.db").exists(), "a dry run made a store");
    let refused = fixture.refused(&["copy", &source, &other, "--verify"]);
    assert!(refused.contains("other.db"), "{refused}");

    let copied = fixture.json(&["copy", &source, &other]);
    assert_eq!((&copied["samples_copied"], &copied["samples"]), (&67_718.into(), &67_718.into()));
    assert_eq!(fixture.ok(&["export"]), fixture.ok(&["export", "--url", &other]));
    let verified = fixture.json(&["copy", &source, &other, "--verify"]);
    assert_eq!(verified["windows"], verified["windows_equal"]);
    assert_eq!(verified["checksum"], copied["checksum"]);
    let again = fixture.json(&["copy", &source, &other]);
    assert_eq!(again["samples_copied"], 0);

    let change = fixture.file("change.csv", "timestamp,value\n2014-02-20T00:00:01Z,-1\n");
    let series = ["--server", "aws", "--metric", "ec2_cpu_utilization_24ae8d"];
    fixture.ok(&[&["import", "--url", &source, &change], &series[..]].concat());
    let run = fixture.run(&["--format", "json", "copy", &source, &other, "--verify"]);
    assert_eq!((run.code, &run.json()["missing"]), (1, &1.into()), "{run:?}");
    let part = fixture.json(&["copy", &source, &other, "no-such"]);
    assert_eq!(part["samples"], 0);
    let part = ["--start", "2014-02-20", "--end", "2014-02-21"];
    let copied = fixture.json(&[&["copy", &source, &other, "aws"], &part[..]].concat());
    assert_eq!((&copied["windows"], &copied["missing"]), (&1.into(), &1.into()));
    assert_eq!(fixture.run(&["copy", &source, &other, "--verify"]).code, 0);
}

#[test]
fn what_is_not_copied_is_said() {
    let fixture = Fixture::new();
    import(&fixture);
    let (source, other) = (fixture.url(), sqlite(&fixture, "other.db"));
    let notes = |run: &common::Run| {
        run.stderr.lines().filter(|line| line.contains("samples alone")).count()
    };
    assert_eq!(notes(&fixture.run(&["copy", &source, &other])), 0);
    fixture.ok(&["events", "append", "s", "T", "{}"]);
    let run = fixture.run(&["copy", &source, &other]);
    assert_eq!((run.code, notes(&run)), (0, 1), "{}", run.stderr);
    assert!(run.stderr.contains("not: events"), "{}", run.stderr);
}

#[test]
fn a_copy_that_is_killed_is_resumed_to_the_same() {
    let fixture = Fixture::new();
    import(&fixture);
    let (source, other) = (fixture.url(), sqlite(&fixture, "other.db"));
    let (mut before, mut kills) = (0, 0);
    for round in 1..20 {
        let mut child = fixture
            .command(&["copy", &source, &other, "--window", "1h"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The later the kill, the further it gets; some hit the very start.
        let delay = Duration::from_millis(100 * (round % 5) + 20);
        if let Some(status) = ended_within(&mut child, delay) {
            assert!(status.success());
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        let stats = fixture.run(&["--format", "json", "stats", "--url", &other]);
        // Killed early there is no store yet.
        if stats.code == 0 {
            let samples = stats.json()["samples"].as_u64().unwrap();
            assert!(samples >= before, "{samples} samples after {before}");
            before = samples;
        }
    }
    assert!(kills > 0, "it was never killed");
    fixture.ok(&["copy", &source, &other, "--window", "1h"]);
    assert_eq!(fixture.ok(&["export"]), fixture.ok(&["export", "--url", &other]));
    assert_eq!(fixture.json(&["check", "--url", &other])["status"], "ok");
}

#[test]
fn wrong_stores_are_refused_and_passwords_are_not_shown() {
    let fixture = Fixture::new();
    import(&fixture);
    let source = fixture.url();
    fixture.refused(&["copy", &source, &source]);
    let missing = sqlite(&fixture, "missing.db");
    assert!(fixture.refused(&["copy", &missing, &source]).contains("missing.db"));
    assert!(!fixture.path("missing.db").exists());
    let secret = "nosuch://me:s3cret@host/db";
    let line = fixture.refused(&["copy", &source, secret]);
    assert!(!line.contains("s3cret"), "{line}");
    assert_eq!(fixture.run(&["copy", &source, &missing, "--rate", "0"]).code, 2);
}

#[test]
fn a_limited_copy_takes_its_time() {
    let fixture = Fixture::new();
    let lines: String = (0..300).map(|n| format!("{},1\n", 1_700_000_000_000_i64 + n)).collect();
    let file = fixture.file("cpu.csv", &format!("timestamp,value\n{lines}"));
    fixture.ok(&["import", &file]);
    let started = Instant::now();
    fixture.ok(&["copy", &fixture.url(), &sqlite(&fixture, "other.db"), "--rate", "200"]);
    assert!(started.elapsed() >= Duration::from_millis(1300), "{:?}", started.elapsed());
}
