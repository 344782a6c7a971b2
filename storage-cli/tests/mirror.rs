//! Mirrors by their URL: every verb, a second store that misses something, repair.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod common;

use common::Fixture;
use serde_json::json;

const SAMPLES: &str = "server_id,timestamp,metric_type,value\n\
    web-1,2026-01-01T00:00:00Z,cpu,1\nweb-1,2026-01-02T00:00:00Z,cpu,2\nweb-2,2026-01-02T00:00:00Z,cpu,3\n";

/// The URLs of two stores and of both.
fn urls(fixture: &Fixture, policy: &str) -> [String; 3] {
    let at = |name: &str| format!("sqlite://{}", fixture.path(name).display());
    let (first, second) = (at("first.db"), at("second.db"));
    let both = format!("mirrored://?primary={first}&secondary={second}&policy={policy}");
    [first, second, both]
}

#[test]
fn what_goes_into_a_mirror_is_in_both_and_can_be_asked_of_either() {
    let fixture = Fixture::new();
    let [first, second, both] = urls(&fixture, "require");
    let input = fixture.file("in.csv", SAMPLES);
    assert!(fixture.refused(&["stats", "--url", &both]).contains("there is no store"));
    fixture.ok(&["import", &input, "--url", &both]);
    for url in [&first, &second, &both] {
        assert_eq!(fixture.json(&["stats", "--url", url])["samples"], 3, "{url}");
    }
    assert_eq!(fixture.json(&["check", "--url", &both])["status"], "ok");
    assert_eq!(fixture.json(&["health", "--url", &both])["status"], "healthy");
    let removed = ["prune", "--before", "2026-01-02", "--yes", "--url", &both];
    assert_eq!(fixture.json(&removed)["removed"], 1);
    assert_eq!(fixture.json(&["stats", "--url", &second])["samples"], 2);
    let rolled = format!("rolled://?samples={}", both.replace('&', "%26"));
    fixture.ok(&["import", &input, "--url", &rolled]);
    assert_eq!(fixture.json(&["stats", "--url", &second])["samples"], 3);
    let windows = fixture.json(&["aggregate", "--window", "1d", "--rollups", "--url", &both]);
    assert_eq!(windows.as_array().unwrap().len(), 3);
}

#[test]
fn what_the_second_store_missed_is_found_and_repaired() {
    let fixture = Fixture::new();
    let [first, second, both] = urls(&fixture, "require");
    fixture.ok(&["import", &fixture.file("in.csv", SAMPLES), "--url", &both]);
    let missed = "server_id,timestamp,metric_type,value\n\
        web-1,2026-01-02T00:00:00Z,cpu,20\nweb-9,2026-01-05T00:00:00Z,cpu,9\n";
    fixture.ok(&["import", &fixture.file("missed.csv", missed), "--url", &first]);
    let extra = "server_id,timestamp,metric_type,value\nweb-1,2026-01-02T12:00:00Z,cpu,5\n";
    fixture.ok(&["import", &fixture.file("extra.csv", extra), "--url", &second]);

    let verify = ["--format", "json", "repair", "--verify", "--url", &both];
    let found = fixture.run(&verify);
    assert_eq!(found.code, 1, "{found:?}");
    assert_eq!(found.json(), json!({"samples": 4, "missing": 1, "different": 1, "extra": 1}));
    assert!(found.stderr.contains("storage prune"), "{}", found.stderr);
    // A part alone.
    let part = fixture.json(&["repair", "web-9", "--url", &both]);
    assert_eq!((&part["samples_repaired"], &part["windows_repaired"]), (&json!(1), &json!(1)));
    let all = fixture.json(&["repair", "--url", &both]);
    assert_eq!((&all["samples_repaired"], &all["extra"]), (&json!(1), &json!(1)), "{all}");
    assert_eq!(fixture.run(&verify).code, 0);
    assert_eq!(fixture.json(&["latest", "web-9", "cpu", "--url", &second])[0]["value"], 9.0);
}

/// Nobody listens there.
#[cfg(feature = "postgres")]
const AWAY: &str = "postgres://me@127.0.0.1:1/db";

#[cfg(feature = "postgres")]
#[test]
fn a_second_store_that_is_away_is_missed_and_said() {
    let fixture = Fixture::new();
    let [first, second, both] = urls(&fixture, "degrade");
    let input = fixture.file("in.csv", SAMPLES);
    let run = fixture.run(&["import", &input, "--url", &both.replace(&second, AWAY)]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.stderr.contains("warning: secondary: "), "{}", run.stderr);
    // What cannot be looked at is not passed over.
    assert!(
        fixture.refused(&["check", "--url", &both.replace(&second, AWAY)]).contains("not open yet")
    );
    let strict = both.replace(&second, AWAY).replace("degrade", "require");
    assert!(fixture.refused(&["import", &input, "--url", &strict]).contains("unavailable"));
    fixture.ok(&["import", &fixture.file("none.csv", "time,value\n"), "--url", &second]);
    assert_eq!(fixture.json(&["repair", "--url", &both])["samples_repaired"], 3);
    assert_eq!(fixture.json(&["stats", "--url", &second])["samples"], 3);
    assert_eq!(fixture.json(&["stats", "--url", &first])["samples"], 3);
}

#[cfg(feature = "postgres")]
#[test]
fn a_pipeline_into_a_mirror_says_what_the_second_store_misses() {
    let fixture = Fixture::new();
    let [first, second, both] = urls(&fixture, "degrade");
    let config = json!({ "storage": { "url": both.replace(&second, AWAY) } });
    fixture.file("storage.json", &config.to_string());
    let run =
        fixture.run_with_input(&["--format", "json", "run", "--stdin", "--metric", "m"], SAMPLES);
    assert_eq!((run.code, &run.json()["samples_stored"]), (0, &json!(3)), "{run:?}");
    assert!(run.stderr.contains("warning: secondary: "), "{}", run.stderr);
    assert_eq!(fixture.json(&["stats", "--url", &first])["samples"], 3);
}

#[test]
fn only_mirrors_are_repaired() {
    let fixture = Fixture::new();
    let [first, _, both] = urls(&fixture, "require");
    assert!(fixture.refused(&["repair", "--url", &first]).contains("mirrored://"));
    assert!(fixture.refused(&["repair", "--url", &both]).contains("there is no store"));
    assert!(
        fixture.refused(&["stats", "--url", &both.replace("require", "maybe")]).contains("degrade")
    );
}
