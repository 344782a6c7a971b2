//! The swap that the project promises: real measurements in SQLite, copied to PostgreSQL, archived to
//! Parquet, and every question has the same answer on all three and on the tiers.
#![cfg_attr(not(all(feature = "postgres", feature = "parquet")), allow(unused))]
#![allow(clippy::unwrap_used)]

mod common;

use std::process::{Command, ExitCode};

use common::{Fixture, nab_aws};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

const URL: &str = "STORAGE_TEST_POSTGRES_URL";
const SAMPLES: u64 = 67_718;

fn main() -> ExitCode {
    let url = std::env::var(URL).unwrap_or_default();
    let lack = if cfg!(not(all(feature = "postgres", feature = "parquet"))) {
        Some("built without the features `postgres` and `parquet`".to_owned())
    } else {
        url.is_empty().then(|| format!("{URL} is not set; see scripts/postgres"))
    };
    let required = std::env::var("CONFORMANCE_REQUIRE").unwrap_or_default();
    let is_required = required.split(',').any(|word| ["postgres", "all", "1"].contains(&word));
    let name = "sqlite_to_postgres_to_parquet_without_a_different_answer";
    let trial = match lack {
        None => Trial::test(name, move || swap(&url)),
        Some(reason) if is_required => Trial::test(name, move || Err(reason.into())),
        Some(reason) => Trial::test(name, || Ok(())).with_ignored_flag(true).with_kind(reason),
    };
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

fn swap(server: &str) -> Result<(), Failed> {
    let fixture = Fixture::new();
    let schema = format!("swap_{}", std::process::id());
    let files = std::fs::read_dir(nab_aws()).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "csv")).collect();
    let mut args = vec!["import", "--server", "aws"];
    args.extend(files.iter().map(|path| path.to_str().unwrap()));
    fixture.ok(&args);
    let marked = "server_id,timestamp,metric_type,value,metadata\n\
        a b,2014-03-01T00:00:00.001Z,\u{e9},-1e-300,\"{\"\"b\"\":[1.0,1e2,null],\"\"a\"\":\"\"x\"\"}\"\n\
        a b,1969-12-31T23:59:59.999Z,\u{e9},1e300,\n";
    fixture.ok(&["import", &fixture.file("marked.csv", marked)]);

    let sqlite = fixture.url();
    let postgres = format!("{server}?schema={schema}");
    let parquet = format!("parquet://{}", fixture.path("parquet").display());
    // The tiers move their samples out of a second copy.
    let hot = format!("{server}?schema={schema}_hot");
    let cold = format!("parquet://{}", fixture.path("cold").display());
    for (from, to) in [(&sqlite, &postgres), (&postgres, &parquet), (&parquet, &hot)] {
        let copied = fixture.json(&["copy", from, to]);
        assert_eq!(copied["samples_copied"], SAMPLES + 2, "{copied}");
        let verified = fixture.json(&["copy", &sqlite, to, "--verify"]);
        assert_eq!((&verified["missing"], &verified["different"]), (&0.into(), &0.into()));
        assert_eq!(verified["checksum"], copied["checksum"]);
    }
    // Until the middle of the measurements.
    let age = chrono::Utc::now()
        - "2014-03-15T12:00:00Z".parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    let age = format!("{}s", age.num_seconds());
    let moved = fixture.json(&["archive", &hot, &cold, "--older-than", &age, "--window", "7d"]);
    assert!((1000..SAMPLES).contains(&moved["moved"].as_u64().unwrap()), "{moved}");
    let tiered = format!("tiered://?hot={hot}&cold={cold}");

    for question in questions() {
        let ask = |url: &str| {
            let mut args = vec!["--url", url];
            args.extend(&question);
            fixture.json(&args)
        };
        let expected = ask(&sqlite);
        assert!(expected.as_array().is_none_or(|rows| !rows.is_empty()), "{question:?}");
        for url in [&postgres, &parquet, &tiered] {
            assert_same(&ask(url), &expected, &format!("{question:?} on {url}"));
        }
    }
    let export = fixture.ok(&["export"]);
    for url in [&postgres, &parquet, &tiered] {
        assert!(
            without_metadata_text(&fixture.ok(&["export", "--url", url]))
                == without_metadata_text(&export)
        );
    }
    let drop = format!(
        "DROP SCHEMA {schema} CASCADE; DROP SCHEMA {schema}_hot CASCADE; DROP SCHEMA {schema}_hot_tiers CASCADE"
    );
    let status = Command::new("psql").args(["-X", "-q", "-c", &drop, server]).status().unwrap();
    assert!(status.success());
    Ok(())
}

/// The arguments of every verb that asks, over a part of time or all of it.
fn questions() -> Vec<Vec<&'static str>> {
    let series = "ec2_cpu_utilization_24ae8d";
    vec![
        vec!["series"],
        vec!["series", "a*"],
        vec!["latest", "-n", "3"],
        vec!["latest", "aws", "ec2*", "-n", "5000"],
        vec!["query", "aws", series],
        vec!["query", "aws", series, "--start", "2014-02-20", "--end", "2014-02-21"],
        vec!["query", "a b", "\u{e9}"],
        vec!["aggregate"],
        vec!["aggregate", "aws", series],
        vec!["aggregate", "*", "*", "--start", "2014-03-10", "--end", "2014-04-01 00:00:01"],
        vec!["aggregate", "*", "*", "--window", "1h"],
        vec!["aggregate", "*", "*", "--window", "1d"],
        vec!["aggregate", "*", "*", "--window", "7h", "--start", "2014-03-01 03:00"],
        vec!["aggregate", "*", "*", "--window", "365d"],
    ]
}

/// Compares answers; sums may differ in their last digits, as the contract allows.
fn assert_same(found: &Value, expected: &Value, what: &str) {
    match (found, expected) {
        (Value::Array(found), Value::Array(expected)) => {
            assert_eq!(found.len(), expected.len(), "{what}");
            for (found, expected) in found.iter().zip(expected) {
                assert_same(found, expected, what);
            }
        }
        (Value::Object(found), Value::Object(expected)) => {
            assert_eq!(found.len(), expected.len(), "{what}");
            for (name, expected) in expected {
                let found = &found[name];
                match (name.as_str(), found.as_f64(), expected.as_f64()) {
                    ("sum" | "avg", Some(found), Some(expected)) => {
                        let close = (found - expected).abs() <= 1e-9 * expected.abs().max(1.0);
                        assert!(close, "{name} {found} is not {expected}: {what}");
                    }
                    ("metadata", ..) => assert_eq!(canonical(found), canonical(expected), "{what}"),
                    _ => assert_eq!(found, expected, "{name}: {what}"),
                }
            }
        }
        _ => assert_eq!(found, expected, "{what}"),
    }
}

/// JSON with its numbers as `f64`: `1e2` may come back as `100.0` or `100`.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().into(),
        Value::Array(items) => items.iter().map(canonical).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(name, field)| (name.clone(), canonical(field))).collect()
        }
        other => other.clone(),
    }
}

/// An export without its last column.
fn without_metadata_text(csv: &str) -> Vec<Vec<&str>> {
    csv.lines().map(|line| line.splitn(5, ',').take(4).collect()).collect()
}
