//! Every verb on an archive of Parquet files, and files that go out and come in.
#![cfg(feature = "parquet")]
#![allow(clippy::unwrap_used)]

mod common;

use common::Fixture;

const CSV: &str = "server_id,timestamp,metric_type,value,metadata
web-1,2026-01-01T00:00:00Z,cpu,1.5,
web-1,2026-01-01T00:01:00Z,cpu,2.5,\"{\"\"core\"\":1}\"
web-2,2026-01-03T00:00:00Z,cpu,3.5,
";

#[test]
fn the_verbs_work_on_an_archive() {
    let fixture = Fixture::new();
    let url = format!("parquet://{}", fixture.path("archive").display());
    let csv = fixture.file("in.csv", CSV);
    let ok = |args: &[&str]| fixture.ok(&[&["--url", &url], args].concat());
    let json = |args: &[&str]| fixture.json(&[&["--url", &url], args].concat());
    ok(&["import", &csv]);
    assert_eq!(json(&["stats"])["samples"], 3);
    ok(&["compact"]);
    assert_eq!(json(&["query", "web-1", "cpu"]).as_array().unwrap().len(), 2);
    assert_eq!(json(&["check"])["problems"], 0);
    let file = fixture.path("out.parquet").display().to_string();
    ok(&["export", "--format", "parquet", "--output", &file]);
    assert_eq!(json(&["prune", "--before", "2026-01-02", "--yes"])["removed"], 2);
    assert_eq!(json(&["stats"])["samples"], 1);

    let other = format!("parquet://{}", fixture.path("other").display());
    let adopted = fixture.json(&["--url", &other, "adopt", &file]);
    assert_eq!((&adopted["files"], &adopted["samples"]), (&1.into(), &3.into()));
    let again = fixture.ok(&["--url", &other, "export"]);
    assert_eq!(again, fixture.ok(&["--url", &other, "export", "--format", "csv"]));
    assert_eq!(again.lines().count(), 4);
    assert!(again.contains("\"{\"\"core\"\":1}\""), "{again}");
}

#[test]
fn parquet_is_a_format_of_export_alone() {
    let fixture = Fixture::new();
    fixture.refused(&["stats", "--format", "parquet"]);
    let file = fixture.file("in.parquet", "PAR1");
    fixture.refused(&["import", &file]);
    fixture.refused(&["adopt", &file]);
}
