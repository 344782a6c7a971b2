//! What goes wrong is said in one line that tells what to do, with the exit code for it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::io::Read;
use std::process::Stdio;

use common::{Fixture, Run};

#[test]
fn wrong_usage_exits_with_2() {
    let fixture = Fixture::new();
    for args in [
        &[][..],
        &["nonsense"],
        &["query", "a"],
        &["query", "a", "b", "--start", "yesterday"],
        &["collect", "--interval", "1ms"],
        &["import"],
        &["prune"],
        &["--format", "xml", "stats"],
    ] {
        assert_eq!(fixture.run(args).code, 2, "{args:?}");
    }
}

#[test]
fn urls_that_open_nothing() {
    let fixture = Fixture::new();
    let file = fixture.file("m.csv", "time,value\n2026-01-01,1\n");
    fixture.ok(&["import", &file]);
    let url = fixture.url();
    for (url, hint) in [
        ("mysql://host/db".to_owned(), "mysql"),
        ("metrics.db".to_owned(), "sqlite://"),
        (format!("{url}?synchronus=normal"), "synchronus"),
        (format!("sqlite://{}", fixture.path("missing.db").display()), "storage import"),
        (format!("sqlite://{}", fixture.path("").display()), ""),
        (format!("sqlite://{file}"), ""),
    ] {
        let line = fixture.refused(&["--url", &url, "stats"]);
        assert!(line.contains(hint), "{url}: {line}");
    }
    assert!(!fixture.path("missing.db").exists(), "a question created a store");
    // What is no store stays as it is, also when something is to be written.
    for target in [fixture.path("").display().to_string(), file.clone()] {
        let url = format!("sqlite://{target}");
        assert_eq!(fixture.run(&["--url", &url, "import", &file]).code, 1, "{url}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "time,value\n2026-01-01,1\n");
}

#[test]
fn a_password_is_never_shown() {
    let fixture = Fixture::new();
    for url in ["postgres://me:s3cret@host/db", "mysql://me:s3cret@host/db?x=s3cret"] {
        for args in [&["stats"][..], &["-vv", "stats"], &["collect", "--duration", "1s"]] {
            let run = fixture.run(&[&["--url", url], args].concat());
            assert_eq!(run.code, 1);
            assert!(!run.stderr.contains("s3cret") && !run.stdout.contains("s3cret"), "{run:?}");
        }
    }
}

#[test]
fn files_that_cannot_be_read_are_found_before_anything_is_stored() {
    let fixture = Fixture::new();
    let good = fixture.file("m.csv", "time,value\n2026-01-01,1\n");
    let missing = fixture.path("missing.csv").display().to_string();
    let line = fixture.refused(&["import", &good, &missing]);
    assert!(line.contains("missing.csv"), "{line}");
    let directory = fixture.path("").display().to_string();
    let line = fixture.refused(&["import", &good, &directory]);
    assert!(line.contains("directory"), "{line}");
    assert_eq!(fixture.samples(), 0);
    let headless = fixture.file("h.csv", "2026-01-01,1\n2026-01-02,2\n");
    let line = fixture.refused(&["import", &headless]);
    assert!(line.contains("header"), "{line}");
    let line = fixture.refused(&["import", "--server", "", &good]);
    assert!(line.contains("server"), "{line}");
}

#[test]
fn ranges_names_and_outputs_that_make_no_sense() {
    let fixture = Fixture::new();
    let good = fixture.file("m.csv", "time,value\n2026-01-01,1\n");
    fixture.ok(&["import", &good]);
    let backwards = ["--start", "2026-01-02", "--end", "2026-01-01"];
    let line = fixture.refused(&[&["query", "import", "m"], &backwards[..]].concat());
    assert!(line.contains("starts after it ends"), "{line}");
    fixture.refused(&["query", "", "m"]);
    fixture.refused(&["aggregate", "--window", "1us"]);
    fixture.refused(&["-q", "export", "--output", "/no/such/directory/x.csv"]);
    fixture.refused(&["export", "--format", "table"]);
    fixture.refused(&["collect", "--interval", "5s", "--duration", "1s"]);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let fixture = Fixture::new();
    let lines: String =
        (0..200_000).map(|ms| format!("{},1\n", 1_700_000_000_000_i64 + ms)).collect();
    let file = fixture.file("m.csv", &format!("time,value\n{lines}"));
    fixture.ok(&["import", &file]);
    for args in
        [&["export"][..], &["query", "import", "m"], &["--format", "json", "query", "import", "m"]]
    {
        let mut child =
            fixture.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = [0; 10];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let run = Run::of(child.wait_with_output().unwrap());
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{args:?}");
    }
}
