//! `run` and `config check`: a whole pipeline in a process.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![cfg(unix)]

mod common;

use std::io::Write;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{Fixture, Run, terminate, until};
use serde_json::{Value, json};

/// Writes a configuration for the store of the fixture, with `more` in its section.
fn configure(fixture: &Fixture, more: Value) -> String {
    let mut storage = json!({ "sqlite": { "path": fixture.path("metrics.db") } });
    storage.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    fixture.file("storage.json", &json!({ "storage": storage }).to_string())
}

fn start(fixture: &Fixture, args: &[&str]) -> Child {
    let args = [&["--format", "json", "run"], args].concat();
    let mut command = fixture.command(&args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn lines(numbers: std::ops::Range<i64>) -> String {
    let line =
        |ms| format!("{{\"server_id\":\"a\",\"metric_type\":\"m\",\"ts\":{ms},\"value\":1}}\n");
    numbers.map(|no| line(1_767_225_600_000 + no)).collect()
}

fn wait_for_samples(fixture: &Fixture, count: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !fixture.path("metrics.db").exists() || fixture.samples() < count {
        assert!(Instant::now() < deadline, "{count} samples were not stored");
        std::thread::yield_now();
    }
}

#[test]
fn standard_input_is_stored_to_its_end() {
    let fixture = Fixture::new();
    configure(&fixture, json!({}));
    let input = format!("{}nonsense\n{}", lines(0..5000), lines(5000..7000));
    let run = fixture.run_with_input(&["--format", "json", "run", "--stdin"], &input);
    assert_eq!(run.code, 0, "{run:?}");
    let summary = run.json();
    assert_eq!((&summary["samples_stored"], &summary["bad_lines"]), (&json!(7000), &json!(1)));
    assert_eq!((&summary["samples_lost"], fixture.samples()), (&json!(0), 7000));
    assert!(run.stderr.contains("stdin:5001"), "{}", run.stderr);
}

/// What nobody reads is the summary alone.
#[test]
fn who_reads_no_output_has_everything_stored() {
    let fixture = Fixture::new();
    configure(&fixture, json!({}));
    let mut child = start(&fixture, &["--stdin"]);
    drop(child.stdout.take());
    child.stdin.take().unwrap().write_all(lines(0..3000).as_bytes()).unwrap();
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!((run.code, run.stderr.contains("error"), fixture.samples()), (0, false, 3000));
}

/// Parquet is written in larger batches than other stores.
#[cfg(feature = "parquet")]
#[test]
fn a_batch_for_parquet_is_as_large_as_is_said() {
    let fixture = Fixture::new();
    let base = fixture.path("archive");
    let sizes = json!({
        "parquet": { "base_path": base, "batch_size": 2000 },
        "buffer_size": 1,
        "flush_interval_secs": 3600,
    });
    let mut with_parquet = sizes.clone();
    with_parquet["backend"] = json!("parquet");
    configure(&fixture, with_parquet);
    let mut child = start(&fixture, &["--stdin"]);
    let mut input = child.stdin.take().unwrap();
    input.write_all(lines(0..3000).as_bytes()).unwrap();
    let url = format!("parquet://{}", base.display());
    let stored = || fixture.samples_at(&url);
    until(Duration::from_secs(60), "no batch was stored", || stored() > 0);
    // What is left is not a batch, and waits.
    assert_eq!(stored(), 2000);
    terminate(&child);
    let run = Run::of(child.wait_with_output().unwrap());
    drop(input);
    assert_eq!((run.code, stored()), (0, 3000), "{run:?}");

    configure(&fixture, sizes);
    let mut child = start(&fixture, &["--stdin"]);
    let mut input = child.stdin.take().unwrap();
    input.write_all(lines(0..10).as_bytes()).unwrap();
    wait_for_samples(&fixture, 10);
    drop(input);
    assert!(child.wait().unwrap().success());
}

/// Records are in a batch that is neither full nor old when the signal comes.
#[test]
fn a_signal_drains_what_was_read() {
    let fixture = Fixture::new();
    configure(&fixture, json!({ "flush_interval_secs": 3600 }));
    let mut child = start(&fixture, &["--stdin"]);
    let mut input = child.stdin.take().unwrap();
    input.write_all(lines(0..1500).as_bytes()).unwrap();
    // The first batch is full; the rest came before it was stored, or comes before the signal.
    wait_for_samples(&fixture, 1000);
    terminate(&child);
    let run = Run::of(child.wait_with_output().unwrap());
    drop(input);
    assert_eq!(run.code, 0, "{run:?}");
    let summary = run.json();
    assert_eq!(summary["samples_received"], summary["samples_stored"]);
    assert_eq!(summary["samples_stored"].as_u64().unwrap(), fixture.samples());
    assert!(fixture.samples() > 1000, "{summary}");
}

#[test]
fn this_host_is_collected_until_a_signal() {
    let fixture = Fixture::new();
    let config = configure(
        &fixture,
        json!({ "collect": { "interval": "200ms", "server": "here" }, "flush_interval_secs": 1 }),
    );
    let child = start(&fixture, &["--config", &config]);
    wait_for_samples(&fixture, 1);
    terminate(&child);
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(run.json()["samples_stored"].as_u64().unwrap(), fixture.samples());
    let latest = fixture.json(&["latest", "here", "cpu_usage_percent"]);
    assert_eq!(latest.as_array().unwrap().len(), 1);
}

#[test]
fn old_samples_are_pruned_and_new_ones_stay() {
    let fixture = Fixture::new();
    fixture.file("old.csv", "time,value\n2001-01-01,1\n2001-01-02,2\n2999-01-01,3\n");
    fixture.ok(&["import", "old.csv"]);
    configure(&fixture, json!({ "retention": { "raw_metrics": "7d" }, "pruning_interval": "1s" }));
    let child = start(&fixture, &["--stdin"]);
    let deadline = Instant::now() + Duration::from_secs(60);
    while fixture.samples() > 1 {
        assert!(Instant::now() < deadline, "nothing was removed");
    }
    terminate(&child);
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!((run.code, fixture.samples()), (0, 1), "{run:?}");
}

/// What a former process left in the spool is stored by the next one.
#[test]
fn a_spool_is_made_and_drained() {
    let fixture = Fixture::new();
    configure(&fixture, json!({ "spool": { "path": fixture.path("spool/spool.db") } }));
    let run = fixture.run_with_input(&["--format", "json", "run", "--stdin"], &lines(0..10));
    assert_eq!((run.code, &run.json()["samples_in_spool"]), (0, &json!(0)), "{run:?}");
    assert!(fixture.path("spool/spool.db").exists());
    assert_eq!(fixture.samples(), 10);
}

#[test]
fn check_prints_what_is_in_effect_without_secrets() {
    let fixture = Fixture::new();
    let config = configure(
        &fixture,
        json!({ "backend": "postgres", "postgres": { "url": "postgres://me:s3cret@host/db" } }),
    );
    let mut command = fixture.command(&["config", "check", "--config", &config]);
    command.env("STORAGE__BUFFER_SIZE", "7").env("STORAGE__POSTGRES__POOL_SIZE", "3");
    let run = Run::of(command.output().unwrap());
    assert_eq!(run.code, 0, "{run:?}");
    let storage = &run.json()["storage"];
    assert_eq!((&storage["buffer_size"], &storage["flush_interval_secs"]), (&json!(7), &json!(30)));
    assert_eq!(storage["postgres"]["url"], "postgres://me:***@host/db");
    assert!(!format!("{run:?}").contains("s3cret"), "{run:?}");
    assert!(run.stderr.contains("postgres://me:***@host/db?pool_size=3"), "{run:?}");
}

#[test]
fn mistakes_are_named_in_one_line_and_make_no_store() {
    let fixture = Fixture::new();
    configure(&fixture, json!({ "bufer_size": 7 }));
    for verb in [&["run", "--stdin"][..], &["config", "check"]] {
        let line = fixture.refused(verb);
        assert!(
            line.contains("storage.bufer_size") && line.contains("did_you_mean=buffer_size"),
            "{line}"
        );
    }
    assert!(fixture.refused(&["run", "--config", "nowhere.json"]).contains("nowhere.json"));
    assert!(!fixture.path("metrics.db").exists());
}
