//! Files in, files out: bad lines, strict, standard input, every format there and back.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod common;

use common::Fixture;

const SOME_BAD: &str = "timestamp,value\n2026-01-01 00:00:00,1\nlately,2\n2026-01-01 00:00:01,x\n\
                        2026-01-01 00:00:02,NaN\n2026-01-01 00:00:03,4\n";

#[test]
fn bad_lines_are_named_and_the_others_stored() {
    let fixture = Fixture::new();
    let file = fixture.file("cpu.csv", SOME_BAD);
    let run = fixture.run(&["--format", "json", "import", &file]);
    assert_eq!(run.code, 0, "{run:?}");
    for line in ["cpu.csv:3: ", "cpu.csv:4: ", "cpu.csv:5: ", "3 bad lines"] {
        assert!(run.stderr.contains(line), "{line} is missing in {}", run.stderr);
    }
    let summary = run.json();
    assert_eq!((&summary["lines_read"], &summary["bad_lines"]), (&5.into(), &3.into()));
    assert_eq!(fixture.json(&["series"])[0]["metric_type"], "cpu");
    assert_eq!(fixture.json(&["series"])[0]["server_id"], "import");
    assert_eq!(fixture.samples(), 2);
}

#[test]
fn of_many_bad_lines_ten_are_shown() {
    let fixture = Fixture::new();
    let file = fixture.file("cpu.csv", &format!("time,value\n{}", "x,1\n".repeat(500)));
    let run = fixture.run(&["--format", "json", "import", &file]);
    assert_eq!(run.stderr.lines().count(), 12, "{}", run.stderr);
    assert_eq!(run.json()["bad_lines"], 500);
}

#[test]
fn strict_stores_all_or_nothing() {
    let fixture = Fixture::new();
    let good = fixture.file("good.csv", "timestamp,value\n2026-01-01,1\n");
    let bad = fixture.file("bad.csv", SOME_BAD);
    let run = fixture.run(&["import", "--strict", &good, &bad]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("bad.csv:3: ") && run.stderr.contains("nothing was stored"));
    assert_eq!(run.stdout, "");
    assert_eq!(fixture.samples(), 0);
    fixture.ok(&["import", "--strict", &good]);
    assert_eq!(fixture.samples(), 1);
}

#[test]
fn standard_input_in_each_format() {
    let fixture = Fixture::new();
    let inputs = [
        ("ts,value\n2026-01-01,1\n", &["--metric", "m"][..]),
        ("{\"ts\":\"2026-01-01\",\"metric\":\"m\",\"host\":\"h\",\"value\":2}\n", &[]),
        ("m,host=h2,zone=a value=3,n=4i 1767225600000000000\n", &[]),
    ];
    for (text, args) in inputs {
        for strict in [&[][..], &["--strict"]] {
            let args = [&["import", "-"], args, strict].concat();
            let run = fixture.run_with_input(&args, text);
            assert_eq!(run.code, 0, "{run:?}");
        }
    }
    assert_eq!(
        fixture.ok(&["export"]),
        "server_id,timestamp,metric_type,value,metadata\n\
         h,2026-01-01T00:00:00.000Z,m,2,\n\
         h2,2026-01-01T00:00:00.000Z,m,3,\"{\"\"zone\"\":\"\"a\"\"}\"\n\
         h2,2026-01-01T00:00:00.000Z,m_n,4,\"{\"\"zone\"\":\"\"a\"\"}\"\n\
         import,2026-01-01T00:00:00.000Z,m,1,\n"
    );
}

#[test]
fn a_metric_that_nothing_names_is_a_bad_line() {
    let fixture = Fixture::new();
    let run = fixture.run_with_input(&["import", "-"], "ts,value\n2026-01-01,1\n");
    assert!(run.stderr.contains("--metric"), "{}", run.stderr);
    assert_eq!(fixture.samples(), 0);
}

#[test]
fn time_formats() {
    let fixture = Fixture::new();
    for (format, time) in [
        ("s", "1767225600"),
        ("ms", "1767225600000"),
        ("us", "1767225600000000"),
        ("ns", "1767225600000000000"),
        ("%d.%m.%Y %H:%M", "01.01.2026 00:00"),
    ] {
        let file = fixture.file("m.csv", &format!("time,value\n{time},1\n"));
        fixture.ok(&["import", "--strict", "--time-format", format, &file]);
    }
    assert_eq!(fixture.json(&["stats"])["oldest"], "2026-01-01T00:00:00.000Z");
    assert_eq!(fixture.samples(), 1);
    let file = fixture.file("m.csv", "time,value\n1767225600,1\n");
    let run = fixture.run(&["import", &file]);
    assert!(run.stderr.contains("--time-format"), "{}", run.stderr);
}

/// Values, names and metadata that are easily bent.
fn odd_samples() -> String {
    let values = ["0.1", "5e-324", "1.7976931348623157e308", "-0.0", "123456789.12345679", "1e22"];
    let mut csv = String::from("server,time,metric,value,metadata\n");
    for (index, value) in values.iter().enumerate() {
        csv.push_str(&format!("a b,2026-01-01 00:00:00.00{index},\"m,=\"\"x\",{value},\n"));
    }
    csv.push_str("é,1700000000001,m,1,\"{\"\"k 1\"\":\"\"v=,\"\"}\"\n");
    csv
}

#[test]
fn every_format_comes_back_byte_for_byte() {
    let source = Fixture::new();
    let file = source.file("odd.csv", &odd_samples());
    source.ok(&["import", "--strict", &file]);
    let expected = source.ok(&["export"]);
    assert_eq!(expected.lines().count(), 8);
    for name in ["x.csv", "x.jsonl", "x.lp"] {
        let target = Fixture::new();
        let file = target.path(name).display().to_string();
        assert_eq!(source.ok(&["export", "--output", &file]), "");
        target.ok(&["import", "--strict", &file]);
        assert_eq!(target.ok(&["export"]), expected, "{name}");
    }
}

#[test]
fn names_with_line_breaks_survive_csv_and_json_and_are_refused_by_line_protocol() {
    let source = Fixture::new();
    let file = source.file("odd.csv", "server,time,metric,value\n\"a\r\nb\",2026-01-01,m,1\n");
    source.ok(&["import", "--strict", &file]);
    let expected = source.ok(&["export"]);
    for format in ["csv", "jsonl"] {
        let target = Fixture::new();
        let text = source.ok(&["export", "--output-format", format]);
        assert_eq!(target.run_with_input(&["import", "--strict", "-"], &text).code, 0);
        assert_eq!(target.ok(&["export"]), expected, "{format}");
    }
    let target = source.path("x.lp");
    let line = source.refused(&["-q", "export", "--output", target.to_str().unwrap()]);
    assert!(line.contains("use csv"), "{line}");
    assert!(!target.exists() && !source.path("x.lp.partial").exists());
}

#[test]
fn an_export_is_part_of_the_store_if_asked() {
    let fixture = Fixture::new();
    let file = fixture.file(
        "s.csv",
        "server,metric,time,value\na,m,2026-01-01,1\na,n,2026-01-01,2\nb,m,2026-01-02,3\n",
    );
    fixture.ok(&["import", &file]);
    assert_eq!(fixture.ok(&["export", "a"]).lines().count(), 3);
    assert_eq!(fixture.ok(&["export", "*", "m", "--start", "2026-01-02"]).lines().count(), 2);
    assert_eq!(fixture.ok(&["--format", "json", "export", "b"]).lines().count(), 1);
}

#[test]
fn columns_that_are_left_out_are_named() {
    let fixture = Fixture::new();
    let file = fixture.file("m.csv", "time,value,metdata\n2026-01-01,1,{}\n");
    assert!(fixture.run(&["import", &file]).stderr.contains("metdata"));
}

#[test]
fn small_batches_store_the_same() {
    let fixture = Fixture::new();
    let file = fixture.file("cpu.csv", SOME_BAD);
    fixture.ok(&["import", "--batch-size", "1", &file]);
    assert_eq!(fixture.samples(), 2);
    assert_eq!(fixture.run(&["import", "--batch-size", "0", &file]).code, 2);
}
