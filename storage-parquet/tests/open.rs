//! Open means open: DuckDB, pyarrow and pandas read the directory as it is, and what they write can
//! be adopted.
//!
//! `scripts/test-tools` makes the Python environment; where there is none the tests show as ignored,
//! and fail if `CONFORMANCE_REQUIRE` names `open`.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use storage_core::metrics::time::from_ms;
use storage_core::{MetricRecord, StorageBackend, TimeRange};
use storage_parquet::{ParquetBackend, ParquetOptions, read_parquet_file};

const START_MS: i64 = 1_767_225_600_000;

type Test = fn(&Path) -> Result<(), Failed>;

fn main() -> ExitCode {
    let tests: [(&str, Test); 3] = [
        ("duckdb_reads_the_same_rows", duckdb_reads_the_same_rows),
        ("pyarrow_and_pandas_read_the_same_rows", pyarrow_reads_the_same_rows),
        ("files_of_pyarrow_and_duckdb_are_adopted", files_of_others_are_adopted),
    ];
    let required = std::env::var("CONFORMANCE_REQUIRE").unwrap_or_default();
    let is_required = required.split(',').any(|word| ["open", "all", "1"].contains(&word.trim()));
    let trials = tests.into_iter().map(|(name, test)| match python() {
        Ok(python) => Trial::test(name, move || test(&python)),
        Err(reason) if is_required => Trial::test(name, move || Err(reason.into())),
        Err(reason) => Trial::test(name, || Ok(())).with_ignored_flag(true).with_kind(reason),
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn python() -> Result<PathBuf, String> {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-tools/bin/python");
    let path = std::env::var_os("STORAGE_TEST_PYTHON").map_or(made, PathBuf::from);
    if path.exists() { Ok(path) } else { Err("needs scripts/test-tools".to_owned()) }
}

/// Runs a script and returns the JSON that it prints.
fn run(python: &Path, script: &str, arguments: &[&Path]) -> Value {
    let output = Command::new(python).arg("-c").arg(script).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(text.trim()).unwrap()
}

/// Samples of some series over three days, with metadata here and there, in no order.
fn records() -> Vec<MetricRecord> {
    let of = |no: i64| {
        let server = format!("web-{}", no % 3);
        let metric = ["cpu", "mém"][(no % 2) as usize];
        let record =
            MetricRecord::new(server, from_ms(START_MS + no * 60_000), metric, no as f64 / 7.0);
        if no % 10 == 0 { record.with_metadata(json!({ "no": no })) } else { record }
    };
    let mut records: Vec<_> = (0..4_000).map(of).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut records);
    records
}

fn as_json(mut records: Vec<MetricRecord>) -> Value {
    records.sort_by(|one, other| {
        let place = |r: &MetricRecord| (r.server_id.clone(), r.metric_type.clone(), r.timestamp);
        place(one).cmp(&place(other))
    });
    let row = |r: MetricRecord| {
        let metadata = r.metadata.map(|metadata| metadata.to_string());
        json!([r.server_id, r.timestamp.timestamp_millis(), r.metric_type, r.value, metadata])
    };
    records.into_iter().map(row).collect()
}

/// A directory with the records, merged, some days as hours; overwritten rows among them.
fn filled() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let options = ParquetOptions::new(dir.path()).hour_samples(1_400);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let store = ParquetBackend::open(options).await.unwrap();
        let mut old = records();
        old.iter_mut().for_each(|record| record.value = -1.0);
        store.write_batch(&old[..500]).await.unwrap();
        store.compact().await.unwrap();
        for batch in records().chunks(700) {
            store.write_batch(batch).await.unwrap();
        }
        store.compact().await.unwrap();
        store.close().await.unwrap();
    });
    dir
}

fn assert_same(found: &Value, expected: &Value) {
    let (found, expected) = (found.as_array().unwrap(), expected.as_array().unwrap());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len());
}

fn duckdb_reads_the_same_rows(python: &Path) -> Result<(), Failed> {
    let dir = filled();
    let script = r#"
import duckdb, json, sys
files = sys.argv[1] + "/data/**/*.parquet"
con = duckdb.connect()
con.execute("SET TimeZone = 'UTC'")
rows = con.execute(f"""SELECT server_id, epoch_ms(timestamp), metric_type, value, metadata
    FROM read_parquet('{files}', hive_partitioning = true) ORDER BY server_id, metric_type, timestamp""").fetchall()
types = con.execute(f"DESCRIBE SELECT * FROM read_parquet('{files}', hive_partitioning = true)").fetchall()
days = con.execute(f"""SELECT count(*) FROM read_parquet('{files}', hive_partitioning = true)
    WHERE date = '2026-01-02'""").fetchone()[0]
wrong = con.execute(f"""SELECT count(*) FROM read_parquet('{files}', hive_partitioning = true)
    WHERE date <> CAST(timestamp AS DATE)""").fetchone()[0]
unsorted = 0
for (name,) in con.execute(f"SELECT file FROM glob('{files}')").fetchall():
    found = con.execute(f"SELECT server_id, metric_type, epoch_ms(timestamp) FROM read_parquet('{name}', hive_partitioning = false)").fetchall()
    unsorted += found != sorted(found)
print(json.dumps({"rows": rows, "types": [t[:2] for t in types], "days": days, "wrong": wrong, "unsorted": unsorted}))
"#;
    let found = run(python, script, &[dir.path()]);
    assert_same(&found["rows"], &as_json(records()));
    let types = json!([
        ["server_id", "VARCHAR"],
        ["timestamp", "TIMESTAMP WITH TIME ZONE"],
        ["metric_type", "VARCHAR"],
        ["value", "DOUBLE"],
        ["metadata", "VARCHAR"],
        ["date", "DATE"]
    ]);
    assert_eq!(found["types"], types);
    assert_eq!((&found["days"], &found["wrong"]), (&json!(1440), &json!(0)));
    assert_eq!(found["unsorted"], json!(0));
    Ok(())
}

fn pyarrow_reads_the_same_rows(python: &Path) -> Result<(), Failed> {
    let dir = filled();
    let script = r#"
import json, sys
import pyarrow.dataset as ds, pyarrow.parquet as pq, pandas as pd
root = sys.argv[1] + "/data"
data = ds.dataset(root, format="parquet", partitioning="hive")
table = data.to_table().sort_by([("server_id", "ascending"), ("metric_type", "ascending"), ("timestamp", "ascending")])
rows = [[r["server_id"], round(r["timestamp"].timestamp() * 1000), r["metric_type"], r["value"], r["metadata"]] for r in table.to_pylist()]
sorting = {str(pq.ParquetFile(f).metadata.row_group(0).sorting_columns) for f in data.files}
frame = pd.read_parquet(root)
log = sum(pq.read_table(f).num_rows for f in ds.dataset(sys.argv[1] + "/log", format="parquet").files)
print(json.dumps({"rows": rows, "schema": [[f.name, str(f.type)] for f in data.schema], "sorting": sorted(sorting),
    "pandas": len(frame), "sum": float(frame["value"].sum()), "log": log > 0}))
"#;
    let found = run(python, script, &[dir.path()]);
    assert_same(&found["rows"], &as_json(records()));
    let schema = json!([
        ["server_id", "string"],
        ["timestamp", "timestamp[ms, tz=UTC]"],
        ["metric_type", "string"],
        ["value", "double"],
        ["metadata", "string"],
        ["date", "string"]
    ]);
    assert_eq!(found["schema"], schema);
    assert_eq!(found["sorting"].as_array().unwrap().len(), 1);
    let order: Vec<_> = ["column_index=0", "column_index=2", "column_index=1"].into();
    let text = found["sorting"][0].as_str().unwrap();
    let places: Vec<_> = order.iter().map(|name| text.find(name).unwrap()).collect();
    assert!(places.is_sorted(), "{text}");
    assert_eq!((&found["pandas"], &found["log"]), (&json!(4000), &json!(true)));
    Ok(())
}

fn files_of_others_are_adopted(python: &Path) -> Result<(), Failed> {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
import duckdb, json, sys
import pyarrow as pa, pyarrow.parquet as pq
out, n = sys.argv[1], 2000
ms = [1767225600000 + i * 1000 for i in range(n)]
columns = {
    "metadata": pa.array(['{"no": %d}' % i if i % 3 == 0 else None for i in range(n)]),
    "value": pa.array([i / 7 for i in range(n)]),
    "metric_type": pa.array(["cpu"] * n).dictionary_encode(),
    "timestamp": pa.array(ms, pa.timestamp("ms", tz="UTC")),
    "server_id": pa.array(["pyarrow"] * n),
    "more": pa.array([1] * n),
}
pq.write_table(pa.table(columns), out + "/pyarrow.parquet", compression="zstd")
con = duckdb.connect()
con.execute(f"""COPY (SELECT 'duckdb' AS server_id, make_timestamptz((1767225600000 + i * 1000) * 1000) AS timestamp,
    'cpu' AS metric_type, i / 7 AS value FROM range({n}) t(i)) TO '{out}/duckdb.parquet' (FORMAT parquet)""")
numbers = {"decimal": "CAST(12.345 AS DECIMAL(12, 3))", "short": "CAST(-0.5 AS DECIMAL(4, 1))", "big": "18446744073709551615::UBIGINT",
    "int": "-7::INTEGER", "float": "0.5::FLOAT", "wide": "CAST(1.5 AS DECIMAL(38, 1))", "date": "DATE '2026-01-01'"}
for name, sql in numbers.items():
    con.execute(f"""COPY (SELECT 'x' AS server_id, TIMESTAMP '1970-01-01 00:00:01' AS timestamp, 'y' AS metric_type,
        {sql} AS value) TO '{out}/{name}.parquet' (FORMAT parquet)""")
pq.write_table(pa.table({"server_id": ["x"], "timestamp": pa.array([0], pa.timestamp("ms")), "metric_type": ["y"],
    "value": [1], "metadata": pa.array([b'"\xff"'], pa.binary())}), out + "/bytes.parquet")
old = pa.array([-1, 1_000_999_999], pa.timestamp("ns"))
pq.write_table(pa.table({"server_id": ["x"] * 2, "timestamp": old, "metric_type": ["y"] * 2, "value": [-1.0, 1000.0]}),
    out + "/int96.parquet", use_deprecated_int96_timestamps=True)
pq.write_table(pa.table({"server_id": ["x"], "value": [1.0]}), out + "/lacks.parquet")
pq.write_table(pa.table({"server_id": ["x"], "timestamp": pa.array([0], pa.timestamp("ns")), "metric_type": ["y"],
    "value": [float("nan")]}), out + "/nan.parquet")
print("{}")
"#;
    run(python, script, &[dir.path()]);
    let archive = dir.path().join("archive");
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let store = ParquetBackend::open(ParquetOptions::new(&archive)).await.unwrap();
        for name in ["pyarrow", "duckdb"] {
            let mut all = Vec::new();
            let path = dir.path().join(format!("{name}.parquet"));
            let rows = read_parquet_file(&path, |records| {
                all.extend(records);
                Ok(())
            });
            assert_eq!(rows.unwrap(), 2000);
            store.write_batch(&all).await.unwrap();
            store.compact().await.unwrap();
            let found = store.query_range(name, "cpu", TimeRange::all()).await.unwrap();
            assert_eq!(found.len(), 2000);
            for (no, record) in found.iter().enumerate() {
                assert_eq!(record.timestamp, from_ms(START_MS + no as i64 * 1000));
                assert_eq!(record.value, no as f64 / 7.0);
                let metadata = (name == "pyarrow" && no % 3 == 0).then(|| json!({ "no": no }));
                assert_eq!(record.metadata, metadata);
            }
        }
        store.close().await.unwrap();
    });
    for (name, value) in [
        ("decimal", 12.345),
        ("short", -0.5),
        ("big", 18_446_744_073_709_551_615.0),
        ("int", -7.0),
        ("float", 0.5),
    ] {
        let mut all = Vec::new();
        read_parquet_file(&dir.path().join(format!("{name}.parquet")), |records| {
            all.extend(records);
            Ok(())
        })
        .unwrap();
        assert_eq!(all, [MetricRecord::new("x", from_ms(1000), "y", value)], "{name}");
    }
    let mut all = Vec::new();
    read_parquet_file(&dir.path().join("int96.parquet"), |records| {
        all.extend(records);
        Ok(())
    })
    .unwrap();
    let expected = [(-1, -1.0), (1000, 1000.0)];
    assert_eq!(all, expected.map(|(ms, value)| MetricRecord::new("x", from_ms(ms), "y", value)));
    for (name, detail) in [
        ("lacks", "column"),
        ("nan", "row"),
        ("wide", "column"),
        ("date", "column"),
        ("bytes", "row"),
    ] {
        let path = dir.path().join(format!("{name}.parquet"));
        let error = read_parquet_file(&path, |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), storage_core::ErrorKind::InvalidArgument);
        assert_eq!(error.context("file"), path.to_str());
        assert!(error.context(detail).is_some(), "{error}");
    }
    Ok(())
}
