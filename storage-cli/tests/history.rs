//! The verbs of record history, over a SQLite file.
#![allow(clippy::unwrap_used)]

mod common;

use common::Fixture;
use serde_json::json;

#[test]
fn what_is_stored_is_there_in_the_next_process() {
    let store = Fixture::new();
    for (city, mae, at) in
        [("vienna", "0.5", "1000"), ("vienna", "0.7", "2000"), ("graz", "0.4", "1500")]
    {
        store.ok(&["history", "store", &format!("accuracy::{city}"), mae, "--at", at]);
    }
    store.ok(&["history", "store", "weather", r#"{"sky": "blue"}"#]);
    let latest = store.json(&["history", "latest", "accuracy::*"]);
    assert_eq!(latest[0]["record_name"], "accuracy::graz");
    assert_eq!((&latest[1]["value"], latest.as_array().unwrap().len()), (&json!(0.7), 2));
    let ranged = ["history", "query", "accuracy::*", "--start", "1000", "--end", "2000"];
    assert_eq!(store.json(&ranged).as_array().unwrap().len(), 2);
    let newest = store.json(&["history", "query", "*", "-n", "1"]);
    assert_eq!(newest[2]["value"], json!({"sky": "blue"}));
    let listed = store.json(&["history", "list", "*vienna"]);
    assert_eq!(
        (&listed[0]["record_name"], &listed[0]["values"]),
        (&json!("accuracy::vienna"), &json!(2))
    );
    assert_eq!(store.json(&["stats"])["samples"], 0);
}

#[test]
fn lines_go_from_store_to_store() {
    let store = Fixture::new();
    let lines = "{\"record_name\":\"a\",\"stored_at\":\"2026-01-01T00:00:00Z\",\"value\":1}\n\n\
                 {\"record_name\":\"b\",\"stored_at\":\"2026-01-01T00:00:01Z\",\"value\":null}\n";
    let run = store.run_with_input(&["history", "store", "-"], lines);
    assert_eq!((run.code, &*run.stdout), (0, "values_stored\n2\n"), "{run:?}");
    let found = store.json(&["history", "query", "*"]);
    let lines: String = found.as_array().unwrap().iter().map(|row| format!("{row}\n")).collect();
    let other = Fixture::new();
    assert_eq!(other.run_with_input(&["history", "store", "-"], &lines).code, 0);
    assert_eq!(other.json(&["history", "query", "*"]), found);
}

#[test]
fn a_bad_line_is_named_and_nothing_is_stored() {
    let store = Fixture::new();
    let good = "{\"record_name\":\"a\",\"stored_at\":\"2026-01-01T00:00:00Z\",\"value\":1}\n";
    for bad in
        ["{}", "oops", "{\"record_name\":\"\",\"stored_at\":\"2026-01-01T00:00:00Z\",\"value\":1}"]
    {
        let run = store.run_with_input(&["history", "store", "-"], &format!("{good}{bad}\n"));
        assert_eq!(run.code, 1, "{run:?}");
        assert!(run.stderr.contains("line 2"), "{}", run.stderr);
        assert!(!store.path("metrics.db").exists(), "no store is made for nothing");
    }
}

#[test]
fn cleanups_count_ask_and_remove() {
    let store = Fixture::new();
    for at in ["1000", "2000", "3000"] {
        store.ok(&["history", "store", "a", "1", "--at", at]);
    }
    let line = store.refused(&["history", "cleanup", "--before", "2500"]);
    assert!(line.contains("--yes"), "{line}");
    let counted = store.json(&["history", "cleanup", "--before", "2500", "--dry-run"]);
    assert_eq!(counted["would_remove"], 2);
    assert_eq!(store.json(&["history", "cleanup", "--before", "2500", "--yes"])["removed"], 2);
    assert_eq!(store.json(&["history", "query", "a"]).as_array().unwrap().len(), 1);
}

#[test]
fn bad_input_is_one_line() {
    let store = Fixture::new();
    store.ok(&["history", "store", "a", "1"]);
    for args in [
        &["history", "store", "a", "sunny"][..],
        &["history", "store", "a"],
        &["history", "store", "", "1"],
        &["history", "query", ""],
        &["history", "query", "a", "--start", "2000", "--end", "1000"],
        &["history", "latest", "*", "--url", "memory://a?b=c"],
    ] {
        store.refused(args);
    }
    let negative = store.run(&["history", "latest", "*", "-n", "-1"]);
    assert_eq!(negative.code, 2, "{negative:?}");
    assert_eq!(store.json(&["history", "query", "*"]).as_array().unwrap().len(), 1);
}
