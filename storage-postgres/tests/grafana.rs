//! The dashboard in `examples/grafana`: every query in it runs, by a role that may only read, with
//! what Grafana puts in the place of its macros, and gives what the library itself answers.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::Arguments;
use serde_json::Value;
use storage_core::metrics::time::from_ms;
use storage_core::{MetricRecord, SeriesFilter, StorageBackend, TimeRange};
use storage_postgres::PostgresBackend;
use tokio_postgres::{Row, SimpleQueryMessage};

#[path = "support/mod.rs"]
mod support;

use support::server::shared_trial;

/// 2026-01-01, and what the dashboard shows: two hours in steps of five minutes.
const START_MS: i64 = 1_767_225_600_000;
const SHOWN_MS: i64 = 7_200_000;
const STEP: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    let trials = vec![shared_trial("the_dashboard_shows_what_the_library_answers", || {
        tokio::runtime::Runtime::new()?.block_on(dashboard());
        Ok(())
    })];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn read() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/grafana/dashboards");
    let text = std::fs::read_to_string(path.join("metrics.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The query of the panel with this number.
fn panel(dashboard: &Value, id: u64) -> &str {
    let panels = dashboard["panels"].as_array().unwrap();
    let panel = panels.iter().find(|panel| panel["id"] == id).unwrap();
    panel["targets"][0]["rawSql"].as_str().unwrap()
}

/// What Grafana's data source for PostgreSQL makes of a query: a time filter is BETWEEN two times, a
/// group is a whole number of steps since 1970, a variable is a list of literals.
fn expanded(sql: &str, schema: &str) -> String {
    let time = |ms| from_ms(ms).to_rfc3339();
    let (from, to) = (time(START_MS), time(START_MS + SHOWN_MS));
    let sql = sql.replace("$__interval", "5m").replace("storage.", &format!("{schema}."));
    let sql = sql.replace("$__timeFrom()", &format!("'{from}'"));
    let mut sql = sql.replace("$__timeTo()", &format!("'{to}'"));
    while let Some(start) = sql.find("$__timeFilter(") {
        let end = start + sql[start..].find(')').unwrap();
        let column = sql[start..end].split_once('(').unwrap().1;
        let filter = format!("{column} BETWEEN '{from}' AND '{to}'");
        sql.replace_range(start..=end, &filter);
    }
    while let Some(start) = sql.find("$__timeGroupAlias(") {
        let end = start + sql[start..].find(')').unwrap();
        let (column, step) = sql[start..end].split_once('(').unwrap().1.split_once(", ").unwrap();
        assert_eq!(step, "5m");
        let seconds = STEP.as_secs();
        let group = format!("floor(extract(epoch from {column})/{seconds})*{seconds} AS \"time\"");
        sql.replace_range(start..=end, &group);
    }
    let sql = sql.replace("${metric:sqlstring}", "'cpu'");
    let sql = sql.replace("${server:sqlstring}", "'web-0','web''1'");
    assert!(!sql.contains('$'), "what is this: {sql}");
    sql
}

/// Two servers, one with a quote in its name; a third that is not chosen; a metric that is not.
fn records() -> Vec<MetricRecord> {
    let of = |server: &str, metric: &str, factor: f64| {
        let (server, metric) = (server.to_owned(), metric.to_owned());
        (0..300).map(move |minute| {
            let time = from_ms(START_MS - 3_600_000 + minute * 60_000);
            MetricRecord::new(server.clone(), time, metric.clone(), factor * minute as f64)
        })
    };
    let chosen = of("web-0", "cpu", 1.0).chain(of("web'1", "cpu", 2.0));
    chosen.chain(of("web-0", "memory", 3.0)).chain(of("web-2", "cpu", 4.0)).collect()
}

async fn dashboard() {
    let url = support::url().unwrap();
    let schema = format!("grafana_{}_{:08x}", std::process::id(), fastrand::u32(..));
    let store = PostgresBackend::open(support::options(&url, &schema)).await.unwrap();
    store.write_batch(&records()).await.unwrap();
    let client = support::raw(&url).await;
    let reader = format!(
        "CREATE ROLE {schema}; GRANT USAGE ON SCHEMA {schema} TO {schema}; \
         GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {schema}; SET ROLE {schema}"
    );
    client.batch_execute(&reader).await.unwrap();
    let dashboard = read();
    let rows = async |id| {
        let sql = expanded(panel(&dashboard, id), &schema);
        // The seconds of a group are numeric, which the driver does not read.
        let sql = match sql.contains("floor(") {
            true => format!("SELECT \"time\"::double precision, metric, value FROM ({sql}) shown"),
            false => sql,
        };
        client.query(&sql, &[]).await.unwrap_or_else(|error| panic!("{error:?}: {sql}"))
    };
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let sql = expanded(variable["query"].as_str().unwrap(), &schema);
        let found = client.simple_query(&sql).await.unwrap();
        let named: Vec<&str> = found.iter().filter_map(first_column).collect();
        let expected = match variable["name"].as_str() {
            Some("metric") => ["cpu", "memory"].as_slice(),
            _ => ["web'1", "web-0", "web-2"].as_slice(),
        };
        assert_eq!(named, expected);
    }
    assert_eq!(dashboard["panels"].as_array().unwrap().len(), 4, "a panel without a test");
    averages(&store, &rows(1).await).await;
    newest(&store, &rows(2).await).await;
    let servers: Vec<String> = rows(3).await.iter().map(|row| row.get(0)).collect();
    assert_eq!(servers.len(), 2);
    let samples: f64 = rows(4).await.iter().map(|row| row.get::<_, f64>("samples")).sum();
    // The day before ends with an hour of samples, none of them shown.
    assert_eq!(samples, 4.0 * 240.0);
    client.batch_execute(&format!("RESET ROLE; DROP OWNED BY {schema}")).await.unwrap();
    store.close().await.unwrap();
    support::drop_schema(&url, &schema).await;
    client.batch_execute(&format!("DROP ROLE {schema}")).await.unwrap();
}

fn first_column(message: &SimpleQueryMessage) -> Option<&str> {
    match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    }
}

/// A row per step and server, each the average that the library gives for that window.
async fn averages(store: &PostgresBackend, rows: &[Row]) {
    // The filter of Grafana holds its end as well.
    let range = TimeRange::new(from_ms(START_MS), from_ms(START_MS + SHOWN_MS + 1)).unwrap();
    let filter = SeriesFilter::parse("web*", "cpu").unwrap();
    let windows = store.windows(&filter, range, STEP).await.unwrap();
    let mut expected = Vec::new();
    for of in windows.into_iter().filter(|of| of.series.server_id != "web-2") {
        for window in of.windows {
            let average = window.aggregation.avg.unwrap();
            expected.push((window.start.timestamp(), of.series.server_id.clone(), average));
        }
    }
    expected.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    let shown = |row: &Row| (row.get::<_, f64>("time") as i64, row.get("metric"), row.get("value"));
    let shown: Vec<(i64, String, f64)> = rows.iter().map(shown).collect();
    assert_eq!(shown.len(), 2 * 25);
    assert_eq!(shown, expected);
}

/// A row per series, with its last sample.
async fn newest(store: &PostgresBackend, rows: &[Row]) {
    let latest = store.latest(&SeriesFilter::any(), 1).await.unwrap();
    let chosen = latest.into_iter().filter(|of| of.series.server_id != "web-2");
    let expected: Vec<_> = chosen
        .map(|of| (of.series.server_id, of.series.metric_type, of.samples[0].value))
        .collect();
    let shown: Vec<(String, String, f64)> =
        rows.iter().map(|row| (row.get(0), row.get(1), row.get("value"))).collect();
    assert_eq!(shown, expected);
}
