//! `storage run` is started before the server that it writes to: nothing is lost, nothing doubled; and
//! what waiting does not mend is said at once.
#![cfg_attr(not(feature = "postgres"), allow(unused))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod common;
#[path = "../../storage-postgres/tests/support/server.rs"]
mod server;

use std::io::Write;
use std::process::{Child, ChildStdin, ExitCode, Stdio};
use std::time::Duration;

use common::{Fixture, Run, Told, ended_within, terminate, until};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use server::{Server, trial};

/// What the helpers for servers look at where a server is shared.
const URL: &str = "STORAGE_TEST_POSTGRES_URL";

fn url() -> Option<String> {
    std::env::var(URL).ok()
}

/// 2026-01-01.
const START_MS: i64 = 1_767_225_600_000;
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let trials = if cfg!(feature = "postgres") {
        vec![
            trial("what_comes_before_the_server_waits_in_the_spool", false, plain),
            trial("so_it_does_with_rollups", false, rolled),
            trial("without_a_spool_memory_carries_it", false, in_memory),
            trial("what_is_lost_is_told_to_who_reads_no_output", false, unread),
            trial("a_signal_while_it_is_away_leaves_all_in_the_spool", false, signalled),
            trial("a_second_signal_does_not_wait_for_the_store", false, signalled_twice),
            trial("what_waiting_does_not_mend_ends_it_at_once", false, refused_at_once),
            trial("what_is_found_later_ends_it_with_everything_in_the_spool", false, refused_later),
        ]
    } else {
        vec![Trial::test("built_without_postgres", || Ok(())).with_ignored_flag(true)]
    };
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A server, a configuration for it, and a process that reads standard input.
struct Late {
    fixture: Fixture,
    server: Server,
}

impl Late {
    fn new(more: Value) -> Self {
        let (fixture, server) = (Fixture::new(), Server::start(&["fsync=off"]));
        let mut storage = json!({
            "backend": "postgres",
            "postgres": { "url": server.url },
            "flush_interval_secs": 1,
        });
        storage.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        fixture.file("storage.json", &json!({ "storage": storage }).to_string());
        Self { fixture, server }
    }

    fn spool(&self) -> Value {
        json!({ "path": self.fixture.path("spool.db") })
    }

    /// With a spool in the directory of the test.
    fn with_spool(more: Value) -> Self {
        let late = Self::new(more);
        let text = std::fs::read_to_string(late.fixture.path("storage.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["storage"]["spool"] = late.spool();
        late.fixture.file("storage.json", &config.to_string());
        late
    }

    fn start(&self) -> (Child, ChildStdin) {
        let mut command = self.fixture.command(&["--format", "json", "run", "--stdin"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        (child, input)
    }

    fn stored(&self) -> u64 {
        self.fixture.samples_at(&self.server.url)
    }

    fn spooled(&self) -> u64 {
        self.fixture.samples_at(&format!("sqlite://{}", self.fixture.path("spool.db").display()))
    }

    fn psql(&self, sql: &str) {
        server::psql(&self.server.url, sql);
    }
}

fn lines(numbers: std::ops::Range<i64>) -> String {
    let of = |number| {
        let ms = START_MS + number;
        format!("{{\"server_id\":\"a\",\"metric_type\":\"m\",\"ts\":{ms},\"value\":{number}}}\n")
    };
    numbers.map(of).collect()
}

fn ended(child: Child, input: ChildStdin) -> Run {
    terminate(&child);
    let run = Run::of(child.wait_with_output().unwrap());
    drop(input);
    run
}

/// Every sample once, with its own value.
fn assert_all(late: &Late, count: i64) {
    let found = late.fixture.json(&["query", "a", "m", "--url", &late.server.url]);
    let values = found.as_array().unwrap().iter().map(|sample| sample["value"].as_f64().unwrap());
    assert!(
        values.eq((0..count).map(|number| number as f64)),
        "{} of {count}",
        found.as_array().unwrap().len()
    );
}

fn plain() -> Result<(), Failed> {
    by_way_of_the_spool(&mut Late::with_spool(json!({})))
}

fn rolled() -> Result<(), Failed> {
    let more = json!({ "rollups": true, "rollup_interval": "1s", "rollup_delay": "1s" });
    let mut late = Late::with_spool(more);
    by_way_of_the_spool(&mut late)?;
    let windows = ["aggregate", "--window", "1d", "--rollups", "--url", &late.server.url];
    assert_eq!(late.fixture.json(&windows)[0]["count"], 10_000);
    Ok(())
}

fn by_way_of_the_spool(late: &mut Late) -> Result<(), Failed> {
    late.server.stop("fast");
    let (mut child, mut input) = late.start();
    let told = Told::of(&mut child);
    input.write_all(lines(0..5000).as_bytes())?;
    until(PATIENCE, "nothing came into the spool", || late.spooled() > 0);
    input.write_all(lines(5000..8000).as_bytes())?;
    late.server.start_again();
    input.write_all(lines(8000..10_000).as_bytes())?;
    until(PATIENCE, "not everything was stored", || late.stored() == 10_000);
    until(PATIENCE, "nobody said that it is well", || told.text().contains("is well again"));
    let run = Run { stderr: told.text(), ..ended(child, input) };
    assert_eq!(run.code, 0, "{run:?}");
    let summary = run.json();
    assert_eq!((&summary["samples_stored"], &summary["samples_lost"]), (&json!(10_000), &json!(0)));
    assert_eq!((&summary["samples_in_spool"], late.spooled()), (&json!(0), 0), "{run:?}");
    let (awaited, opened) = (run.stderr.find("not open yet"), run.stderr.find("is open now"));
    assert!(awaited.is_some() && awaited < opened, "{}", run.stderr);
    assert!(run.stderr.contains(" waiting (the oldest for "), "{}", run.stderr);
    assert_all(late, 10_000);
    Ok(())
}

fn in_memory() -> Result<(), Failed> {
    let mut late = Late::new(json!({ "shutdown_secs": 2 }));
    late.server.stop("fast");
    let (child, mut input) = late.start();
    input.write_all(lines(0..5000).as_bytes())?;
    late.server.start_again();
    until(PATIENCE, "not everything was stored", || late.stored() == 5000);
    let run = ended(child, input);
    assert_eq!((run.code, &run.json()["samples_stored"]), (0, &json!(5000)), "{run:?}");
    assert_all(&late, 5000);

    // The end comes before the server does.
    late.server.stop("fast");
    let (child, mut input) = late.start();
    input.write_all(lines(0..1500).as_bytes())?;
    drop(input);
    let run = Run::of(child.wait_with_output()?);
    assert_eq!((run.code, &run.json()["samples_lost"]), (1, &json!(1500)), "{run:?}");
    Ok(())
}

fn unread() -> Result<(), Failed> {
    let late = Late::new(json!({ "shutdown_secs": 1 }));
    late.server.stop("fast");
    let (mut child, mut input) = late.start();
    drop(child.stdout.take());
    input.write_all(lines(0..1500).as_bytes())?;
    drop(input);
    let run = Run::of(child.wait_with_output()?);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("1,500 samples could not be stored"), "{}", run.stderr);
    Ok(())
}

fn signalled() -> Result<(), Failed> {
    let mut late = Late::with_spool(json!({}));
    late.server.stop("fast");
    let (child, mut input) = late.start();
    input.write_all(lines(0..3000).as_bytes())?;
    until(PATIENCE, "nothing came into the spool", || late.spooled() > 0);
    let run = ended(child, input);
    let summary = run.json();
    assert_eq!((run.code, &summary["samples_lost"]), (0, &json!(0)), "{run:?}");
    let received = summary["samples_received"].as_i64().unwrap();
    assert_eq!(summary["samples_in_spool"], received, "{run:?}");
    assert!(received > 0);

    late.server.start_again();
    let (child, input) = late.start();
    until(PATIENCE, "not everything was stored", || late.stored() == received as u64);
    let run = ended(child, input);
    assert_eq!((run.code, &run.json()["samples_stored"]), (0, &json!(received)), "{run:?}");
    assert_all(&late, received);
    Ok(())
}

/// Without a spool, and with a minute for the end.
fn signalled_twice() -> Result<(), Failed> {
    let late = Late::new(json!({ "shutdown_secs": 60 }));
    late.server.stop("fast");
    let (mut child, mut input) = late.start();
    let told = Told::of(&mut child);
    input.write_all(lines(0..1500).as_bytes())?;
    until(PATIENCE, "nothing waits", || told.text().contains(" waiting ("));
    terminate(&child);
    assert_eq!(ended_within(&mut child, Duration::from_secs(2)), None);
    terminate(&child);
    assert!(ended_within(&mut child, Duration::from_secs(25)).is_some());
    let run = Run { stderr: told.text(), ..Run::of(child.wait_with_output()?) };
    drop(input);
    assert_eq!(run.code, 1, "{run:?}");
    let summary = run.json();
    assert_eq!(summary["samples_lost"], summary["samples_received"], "{run:?}");
    Ok(())
}

fn refused_at_once() -> Result<(), Failed> {
    let late = Late::with_spool(json!({}));
    late.psql("CREATE SCHEMA storage; CREATE TABLE storage.other (id integer)");
    let line = late.fixture.refused(&["run", "--stdin"]);
    assert!(line.contains("another program"), "{line}");
    let password = late.server.url.split([':', '@']).nth(2).unwrap().to_owned();
    let wrong = late.server.url.replace(&password, "wrong");
    let mut command = late.fixture.command(&["run", "--stdin"]);
    let run = Run::of(command.env("STORAGE__POSTGRES__URL", wrong).output()?);
    assert!(run.code == 1 && run.stderr.contains("permission denied"), "{run:?}");
    Ok(())
}

fn refused_later() -> Result<(), Failed> {
    let mut late = Late::with_spool(json!({}));
    late.psql("CREATE SCHEMA storage; CREATE TABLE storage.other (id integer)");
    late.server.stop("fast");
    let (child, mut input) = late.start();
    input.write_all(lines(0..5000).as_bytes())?;
    until(PATIENCE, "nothing came into the spool", || late.spooled() > 0);
    late.server.start_again();
    let run = Run::of(child.wait_with_output()?);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("another program"), "{}", run.stderr);
    let summary = run.json();
    assert_eq!(
        (&summary["samples_received"], &summary["samples_lost"]),
        (&summary["samples_in_spool"], &json!(0))
    );
    drop(input);
    Ok(())
}
