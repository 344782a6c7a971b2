//! The verbs of the event store, over a SQLite file.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use common::Fixture;
use serde_json::{Value, json};

fn append(store: &Fixture, stream: &str, turn: u64) {
    store.ok(&["events", "append", stream, "TurnStarted", &json!({ "turn": turn }).to_string()]);
}

fn sequences(found: &Value) -> Vec<u64> {
    found.as_array().unwrap().iter().map(|event| event["sequence"].as_u64().unwrap()).collect()
}

#[test]
fn what_is_appended_is_there_in_the_next_process() {
    let store = Fixture::new();
    for (stream, turn) in [("thread-1", 1), ("thread-2", 1), ("thread-1", 2)] {
        append(&store, stream, turn);
    }
    let log = store.json(&["events", "replay"]);
    assert_eq!(sequences(&log), [1, 2, 3]);
    assert_eq!((&log[2]["version"], &log[2]["payload"]), (&json!(2), &json!({"turn": 2})));
    assert_eq!(sequences(&store.json(&["events", "replay", "--from", "2", "-n", "1"])), [2]);
    assert_eq!(sequences(&store.json(&["events", "stream", "thread-1"])), [1, 3]);
    assert_eq!(sequences(&store.json(&["events", "tail", "-n", "2"])), [2, 3]);
    let streams = store.json(&["events", "streams", "*-1"]);
    assert_eq!(streams, json!([{"stream": "thread-1", "version": 2}]));
    let extent = store.json(&["events", "extent"]);
    assert_eq!(extent, json!({"events": 3, "first": 1, "last": 3}));
}

#[test]
fn expectations_and_ids_are_kept() {
    let store = Fixture::new();
    let first = ["events", "append", "a", "T", "1", "--expect", "none", "--id", "x"];
    store.ok(&first);
    store.ok(&first);
    let line = store.refused(&["events", "append", "a", "T", "2", "--expect", "none"]);
    assert!(line.contains("version=1"), "{line}");
    store.ok(&["events", "append", "a", "T", "2", "--expect", "1"]);
    let line = store.refused(&["events", "append", "b", "T", "2", "--id", "x"]);
    assert!(line.contains("event_id=x"), "{line}");
    assert_eq!(sequences(&store.json(&["events", "replay"])), [1, 2]);
}

#[test]
fn lines_go_from_store_to_store() {
    let store = Fixture::new();
    let lines = "{\"stream\":\"a\",\"event_type\":\"T\",\"payload\":1,\"event_id\":\"x\"}\n\n\
                 {\"stream\":\"b\",\"event_type\":\"U\",\"payload\":null,\
                  \"stored_at\":\"2026-01-01T00:00:01Z\"}\n";
    let run = store.run_with_input(&["events", "append", "-"], lines);
    assert_eq!(run.code, 0, "{run:?}");
    let found = store.json(&["events", "replay"]);
    assert_eq!(found[1]["stored_at"], "2026-01-01T00:00:01.000Z");
    let lines: String = found.as_array().unwrap().iter().map(|row| format!("{row}\n")).collect();
    let other = Fixture::new();
    assert_eq!(other.run_with_input(&["events", "append", "-"], &lines).code, 0);
    assert_eq!(other.json(&["events", "replay"]), found);
}

#[test]
fn a_bad_line_is_named_and_nothing_is_appended() {
    let store = Fixture::new();
    let good = "{\"stream\":\"a\",\"event_type\":\"T\",\"payload\":1}\n";
    for bad in ["{}", "oops", "{\"stream\":\"\",\"event_type\":\"T\",\"payload\":1}"] {
        let run = store.run_with_input(&["events", "append", "-"], &format!("{good}{bad}\n"));
        assert_eq!(run.code, 1, "{run:?}");
        assert!(run.stderr.contains("line 2"), "{}", run.stderr);
        assert!(!store.path("metrics.db").exists(), "no store is made for nothing");
    }
}

#[test]
fn a_follower_prints_what_another_process_appends() {
    let store = Fixture::new();
    append(&store, "a", 1);
    let mut follower =
        store.command(&["events", "tail", "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["sequence"], 1);
    append(&store, "a", 2);
    assert_eq!(next()["payload"], json!({"turn": 2}));
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn a_prune_asks_counts_and_removes() {
    let store = Fixture::new();
    for turn in 1..=4 {
        append(&store, "a", turn);
    }
    let line = store.refused(&["events", "prune", "--before", "3"]);
    assert!(line.contains("--yes"), "{line}");
    let counted = store.json(&["events", "prune", "--before", "3", "--dry-run"]);
    assert_eq!(counted["would_remove"], 2);
    assert_eq!(store.json(&["events", "prune", "--before", "3", "--yes"])["removed"], 2);
    assert_eq!(sequences(&store.json(&["events", "replay"])), [3, 4]);
}

#[tokio::test]
async fn projections_are_listed_read_and_forgotten() {
    use storage::{EventStoreExt, NewEvent, ProjectionStep};
    let store = Fixture::new();
    let whole = storage::open(&store.url()).await.unwrap();
    let events = whole.events().unwrap();
    let event = |n: u64| NewEvent::new("a", "T", json!(n));
    events.append_all(&[event(1), event(2), event(3)]).await.unwrap();
    let step = ProjectionStep::new("p", 0, 2).put("threads", "a", json!({"turns": 2}));
    events.project(&step).await.unwrap();
    whole.close().await.unwrap();
    let listed = store.json(&["events", "projections"]);
    assert_eq!(listed, json!([{"projection": "p", "checkpoint": 2, "behind": 1}]));
    let rows = store.json(&["events", "rows", "p", "threads"]);
    assert_eq!(rows, json!([{"key": "a", "value": {"turns": 2}}]));
    for how in ["--yes", "--dry-run"] {
        let line = store.refused(&["events", "prune", "--before", "4", how]);
        assert!(line.contains("projection=p"), "{line}");
    }
    store.ok(&["events", "forget", "p", "--yes"]);
    store.refused(&["events", "forget", "p", "--yes"]);
    assert_eq!(store.json(&["events", "prune", "--before", "4", "--yes"])["removed"], 3);
}

#[test]
fn wrong_calls_change_nothing() {
    let store = Fixture::new();
    append(&store, "a", 1);
    for args in [
        &["events", "append", "a", "T", "sunny"][..],
        &["events", "append", "a"],
        &["events", "append", "", "T", "1"],
        &["events", "append", "-", "T"],
        &["events", "stream", ""],
        &["events", "rows", "", "t"],
        &["events", "extent", "--url", "memory://a?b=c"],
    ] {
        store.refused(args);
    }
    let negative = store.run(&["events", "replay", "--from", "-1"]);
    assert_eq!(negative.code, 2, "{negative:?}");
    assert_eq!(store.json(&["events", "replay"]).as_array().unwrap().len(), 1);
}
