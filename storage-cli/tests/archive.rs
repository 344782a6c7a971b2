//! `storage archive`: the real process, killed again and again; and the same answers all the time.
#![cfg(feature = "parquet")]
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Fixture, ended_within};
use serde_json::Value;

const MINUTES: i64 = 40 * 24 * 60;

/// Forty days that ended just now, a sample every ten minutes of two series, some with metadata.
fn filled() -> (Fixture, i64) {
    let fixture = Fixture::new();
    let now = chrono::Utc::now().timestamp_millis();
    let mut csv = "server_id,timestamp,metric_type,value,metadata\n".to_owned();
    for minute in (0..MINUTES).step_by(10) {
        let ms = now - minute * 60_000;
        csv.push_str(&format!(
            "web-1,{ms},cpu,{minute},\nweb-2,{ms},cpu,0.5,\"{{\"\"n\"\":{minute}}}\"\n"
        ));
    }
    let file = fixture.file("all.csv", &csv);
    fixture.ok(&["import", &file]);
    (fixture, now)
}

struct Tiers {
    hot: String,
    cold: String,
    both: String,
}

fn tiers(fixture: &Fixture) -> Tiers {
    let (hot, cold) = (fixture.url(), format!("parquet://{}", fixture.path("archive").display()));
    let both = format!("tiered://?hot={hot}&cold={cold}");
    Tiers { hot, cold, both }
}

fn samples(fixture: &Fixture, url: &str) -> u64 {
    fixture.json(&["stats", "--url", url])["samples"].as_u64().unwrap()
}

#[test]
fn old_windows_move_and_the_answers_stay() {
    let (fixture, now) = filled();
    let Tiers { hot, cold, both } = tiers(&fixture);
    let answers = || ["export", "series", "latest"].map(|verb| fixture.ok(&[verb, "--url", &both]));
    let plain = ["export", "series", "latest"].map(|verb| fixture.ok(&[verb]));
    let archive = ["archive", &hot, &cold, "--older-than", "30d"];
    let dry = fixture.json(&[&archive[..], &["--dry-run"]].concat());
    assert!(!fixture.path("archive").exists(), "a dry run made a store");
    let moved = fixture.json(&archive);
    assert_eq!(moved["moved"], dry["would_move"]);
    let total = (MINUTES / 10 * 2) as u64;
    let (in_hot, in_cold) = (samples(&fixture, &hot), samples(&fixture, &cold));
    assert_eq!((in_cold, in_hot + in_cold), (moved["moved"].as_u64().unwrap(), total));
    assert!((2590..=2880).contains(&in_cold), "{in_cold} samples of ten days");
    assert!(answers() == plain, "the answers changed");

    let late = fixture.file("late.csv", &format!("timestamp,value\n{},7\n", now - 35 * 86_400_000));
    let series = ["--server", "web-9", "--metric", "cpu"];
    fixture.ok(&[&["import", &late, "--url", &both], &series[..]].concat());
    assert_eq!(samples(&fixture, &both), total + 1);
    assert_eq!(fixture.json(&archive)["moved"], 1);
    assert_eq!((samples(&fixture, &cold), samples(&fixture, &both)), (in_cold + 1, total + 1));
    let stats = fixture.json(&["prune", "--url", &both, "--before", "now-20d", "--yes"]);
    assert_eq!(stats["removed"], 20 * 144 * 2 + 1);
    assert_eq!(fixture.json(&["check", "--url", &both])["problems"], Value::from(0));
}

#[test]
fn an_archiver_that_is_killed_neither_loses_nor_doubles() {
    let (fixture, _) = filled();
    let Tiers { hot, cold, both } = tiers(&fixture);
    let all = fixture.ok(&["export"]);
    let archive = ["archive", &hot, &cold, "--older-than", "1d", "--window", "6h"];
    // One kill: the turn at the tiers that it leaves behind takes half a minute to run out. The
    // test of the library kills at every step.
    let mut child =
        fixture.command(&archive).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !fixture.path("archive").exists() {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    match ended_within(&mut child, Duration::from_millis(500)) {
        Some(status) => assert!(status.success()),
        None => child.kill().unwrap(),
    }
    child.wait().unwrap();
    assert!(fixture.ok(&["export", "--url", &both]) == all, "changed after the kill");
    fixture.ok(&archive);
    assert!(fixture.ok(&["export", "--url", &both]) == all, "changed in the end");
    let (in_hot, in_cold) = (samples(&fixture, &hot), samples(&fixture, &cold));
    assert_eq!(in_hot + in_cold, (MINUTES / 10 * 2) as u64);
    assert!(in_hot <= 2 * 144 * 2 && in_cold > in_hot, "{in_hot} hot, {in_cold} cold");
}
