//! `collect` on the machine that runs the tests.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![cfg(unix)]

mod common;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Fixture, Run};

fn start(fixture: &Fixture, args: &[&str]) -> Child {
    let args = [&["--format", "json", "collect", "--server", "here"], args].concat();
    fixture.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

/// Waits until the store holds samples.
fn wait_for_samples(fixture: &Fixture) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !fixture.path("metrics.db").exists() || fixture.samples() == 0 {
        assert!(Instant::now() < deadline, "nothing was stored");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn ticks_are_multiples_of_the_interval_and_as_many_as_fit() {
    let fixture = Fixture::new();
    let child = start(&fixture, &["--interval", "500ms", "--duration", "3s"]);
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, 0, "{run:?}");
    let summary = run.json();
    let ticks = summary["ticks"].as_u64().unwrap() + summary["ticks_missed"].as_u64().unwrap();
    assert_eq!(ticks, 6, "{summary}");
    assert_eq!(summary["samples_lost"], 0);
    assert_eq!(summary["samples_stored"], fixture.samples());
    for metric in ["cpu_usage_percent", "cpu_core_0_usage_percent", "memory_used_bytes"] {
        let samples = fixture.json(&["query", "here", metric]);
        let samples = samples.as_array().unwrap();
        assert_eq!(samples.len() as u64, summary["ticks"].as_u64().unwrap(), "{metric}");
        for sample in samples {
            let time = sample["timestamp"].as_str().unwrap();
            assert!(time.ends_with(".000Z") || time.ends_with(".500Z"), "{time}");
        }
    }
}

#[test]
fn signals_write_out_what_is_left_and_exit_with_0() {
    for name in ["INT", "TERM"] {
        let fixture = Fixture::new();
        let child = start(&fixture, &["--interval", "200ms"]);
        wait_for_samples(&fixture);
        signal(&child, name);
        let run = Run::of(child.wait_with_output().unwrap());
        assert_eq!(run.code, 0, "{name}: {run:?}");
        let summary = run.json();
        assert_eq!(summary["samples_stored"], fixture.samples(), "{name}");
        assert_eq!(summary["samples_lost"], 0);
    }
}
