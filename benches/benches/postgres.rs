//! The PostgreSQL backend against programs that do the raw thing on the same server and schema:
//! binary COPY into the same table, hand-written SQL for the questions of TSBS. Every answer is
//! compared.
//!
//! `STORAGE_TEST_POSTGRES_URL` names the server, by its local socket for figures worth comparing;
//! `scripts/bench` starts one, with syncs on. `POSTGRES_TICKS` sets how many steps of 10 s of 1000
//! series are loaded (4680, thirteen hours).
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::{Duration, Instant, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use chrono::{DateTime, Utc};
use futures_util::SinkExt;
use futures_util::future::join_all;
use storage_benches::queries::{Draw, QUESTIONS, Question, Row, ask};
use storage_benches::timing::{Latencies, median};
use storage_benches::tsbs::{FIELDS, Fleet, Values, first_time};
use storage_core::{MetricRecord, SeriesFilter, StorageBackend, TimeRange};
use storage_postgres::{PostgresBackend, PostgresOptions};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls};

const HOSTS: usize = 100;
const CALLS: usize = 60;
const ROUNDS: usize = 7;

#[tokio::main]
async fn main() {
    let Ok(url) = std::env::var("STORAGE_TEST_POSTGRES_URL") else {
        println!("no server: run it by scripts/bench, or set STORAGE_TEST_POSTGRES_URL");
        return;
    };
    let raw = connect(&url).await;
    println!("| what | backend | raw | ratio |\n|---|---|---|---|");
    for (batch, batches) in [(1000, 60), (10_000, 8)] {
        compare_writes(&url, &raw, batch, batches).await;
    }
    compare_callers(&url, &raw).await;
    let ticks = std::env::var("POSTGRES_TICKS").ok().and_then(|text| text.parse().ok());
    questions(&url, &raw, ticks.unwrap_or(4680)).await;
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn open(url: &str, schema: &str) -> PostgresBackend {
    let options = PostgresOptions::from_url(url).unwrap().schema(schema).unwrap();
    PostgresBackend::open(options).await.unwrap()
}

async fn remove(raw: &Client, schema: &str) {
    let sql = format!("DROP SCHEMA IF EXISTS {schema} CASCADE");
    raw.batch_execute(&sql).await.unwrap();
}

/// Batches for a store and the same for the raw program, in turn.
async fn compare_writes(url: &str, raw: &Client, batch: usize, batches: usize) {
    for schema in ["bench_backend", "bench_raw"] {
        remove(raw, schema).await;
    }
    let (store, other) = (open(url, "bench_backend").await, open(url, "bench_raw").await);
    let mut fleet = Fleet::new(HOSTS, chrono::Duration::seconds(1), Values::TwoDecimals, 1);
    fleet = fleet.in_batches_of(1000);
    let first = fleet.batch().to_vec();
    fleet = fleet.in_batches_of(batch);
    // Both know their series and have their partition.
    store.write_batch(&first).await.unwrap();
    other.write_batch(&first).await.unwrap();
    other.close().await.unwrap();
    let ids = ids_of(raw, "bench_raw").await;
    let sql = "COPY bench_raw.samples FROM STDIN (FORMAT binary)";
    let copy = raw.prepare(sql).await.unwrap();
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut latencies = Latencies::default();
    for _ in 0..ROUNDS {
        let data: Vec<_> = (0..batches).map(|_| fleet.batch().to_vec()).collect();
        let before = Instant::now();
        for records in &data {
            let before = Instant::now();
            store.write_batch(records).await.unwrap();
            latencies.push(before.elapsed());
        }
        let backend = (batch * batches) as f64 / before.elapsed().as_secs_f64();
        let before = Instant::now();
        for records in &data {
            let sink = raw.copy_in::<_, Bytes>(&copy).await.unwrap();
            let mut sink = std::pin::pin!(sink);
            sink.send(rows(records, &ids)).await.unwrap();
            sink.finish().await.unwrap();
        }
        let program = (batch * batches) as f64 / before.elapsed().as_secs_f64();
        ours.push(backend);
        theirs.push(program);
        ratios.push(backend / program);
    }
    let (ours, theirs, ratio) = (median(ours), median(theirs), median(ratios));
    println!("| write_batch of {batch}, samples/s | {ours:.0} | {theirs:.0} | {ratio:.2} |");
    if batch == 1000 {
        let p50 = latencies.quantile_ms(0.5);
        println!("| target: batches under 10 ms, p50 of {batch} | {p50:.2} | | |");
        println!("| target: 10,000 metrics/s | {ours:.0} | | |");
    }
    store.close().await.unwrap();
    for schema in ["bench_backend", "bench_raw"] {
        remove(raw, schema).await;
    }
}

type Ids = std::collections::HashMap<(String, String), i64>;

async fn ids_of(raw: &Client, schema: &str) -> Ids {
    let sql = format!("SELECT server_id, metric_type, id FROM {schema}.series");
    let rows = raw.query(&sql, &[]).await.unwrap();
    rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect()
}

/// What a plain program sends: rows in the order in which it has them.
fn rows(records: &[MetricRecord], ids: &Ids) -> Bytes {
    let mut out = BytesMut::with_capacity(records.len() * 42 + 32);
    out.put_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
    let mut key = (String::new(), String::new());
    for record in records {
        key.0.clone_from(&record.server_id);
        key.1.clone_from(&record.metric_type);
        out.put_i16(4);
        out.put_i32(8);
        out.put_i64(ids[&key]);
        out.put_i32(8);
        out.put_i64((record.timestamp.timestamp_millis() - 946_684_800_000) * 1000);
        out.put_i32(8);
        out.put_f64(record.value);
        out.put_i32(-1);
    }
    out.put_i16(-1);
    out.freeze()
}

/// One caller, then sixteen at once, with a hundred samples a batch each.
async fn compare_callers(url: &str, raw: &Client) {
    remove(raw, "bench_callers").await;
    let store = open(url, "bench_callers").await;
    let (mut one, mut sixteen, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut next = 0;
    for _ in 0..ROUNDS {
        let alone = write_for(&store, 1, &mut next).await;
        let together = write_for(&store, 16, &mut next).await;
        one.push(alone);
        sixteen.push(together);
        ratios.push(together / alone);
    }
    let (one, sixteen, ratio) = (median(one), median(sixteen), median(ratios));
    println!(
        "| 16 callers of 100, samples/s; raw: one caller | {sixteen:.0} | {one:.0} | {ratio:.2} |"
    );
    store.close().await.unwrap();
    remove(raw, "bench_callers").await;
}

/// Returns samples a second of `callers`, each with series of its own.
async fn write_for(store: &PostgresBackend, callers: usize, next: &mut i64) -> f64 {
    const BATCHES: i64 = 60;
    let start = *next;
    *next += BATCHES;
    let before = Instant::now();
    let caller = |caller: usize| async move {
        for step in start..start + BATCHES {
            let time = first_time() + chrono::Duration::seconds(step);
            let record =
                |n: usize| MetricRecord::new(format!("host_{caller}"), time, format!("m{n}"), 1.0);
            store.write_batch(&(0..100).map(record).collect::<Vec<_>>()).await.unwrap();
        }
    };
    join_all((0..callers).map(caller)).await;
    (callers as i64 * BATCHES * 100) as f64 / before.elapsed().as_secs_f64()
}

async fn questions(url: &str, raw: &Client, ticks: usize) {
    remove(raw, "bench_tsbs").await;
    let store = open(url, "bench_tsbs").await;
    let mut fleet = Fleet::new(HOSTS, chrono::Duration::seconds(10), Values::Integers, 123);
    fleet = fleet.in_batches_of(10_000);
    let mut dashboards = Latencies::default();
    for tick in 0..ticks.div_ceil(10) {
        store.write_batch(fleet.batch()).await.unwrap();
        if tick == 100 {
            dashboards =
                dashboard(&store, TimeRange::new(first_time(), fleet.next_time()).unwrap()).await;
        }
    }
    let p50 = dashboards.quantile_ms(0.5);
    println!("| target: dashboards under 100 ms at 1 M samples, p50 ms | {p50:.1} | | |");
    raw.batch_execute("SET search_path = bench_tsbs; VACUUM ANALYZE samples; ANALYZE series")
        .await
        .unwrap();
    raw.batch_execute("SET plan_cache_mode = force_custom_plan; SET jit = off").await.unwrap();
    let data = TimeRange::new(first_time(), fleet.next_time()).unwrap();
    for (name, question) in QUESTIONS {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut ours, mut theirs) = (Latencies::default(), Latencies::default());
        let calls = if matches!(question, Question::DoubleGroupby { .. }) { 12 } else { CALLS };
        for call in 0..calls + 3 {
            let draw = Draw::of(*question, HOSTS, data, &mut random);
            let before = Instant::now();
            let answer = ask(&store, *question, &draw).await.unwrap();
            let backend = before.elapsed();
            let before = Instant::now();
            let expected = by_hand(raw, *question, &draw).await;
            let program = before.elapsed();
            assert_same(name, &answer, &expected);
            // The first calls prepare statements.
            if call >= 3 {
                ours.push(backend);
                theirs.push(program);
            }
        }
        let (ours, theirs) = (ours.quantile_ms(0.5), theirs.quantile_ms(0.5));
        println!("| {name}, p50 ms | {ours:.2} | {theirs:.2} | {:.2} |", ours / theirs);
    }
    one_series(&store, data).await;
    store.close().await.unwrap();
    remove(raw, "bench_tsbs").await;
}

/// What a dashboard asks: the newest of everything, an hour of one host by the minute.
async fn dashboard(store: &PostgresBackend, data: TimeRange) -> Latencies {
    let mut latencies = Latencies::default();
    for host in 0..40 {
        let before = Instant::now();
        store.latest(&SeriesFilter::any(), 1).await.unwrap();
        let filter = SeriesFilter::parse(&format!("host_{host}"), "*").unwrap();
        let hour = TimeRange::new(data.end() - chrono::Duration::hours(1), data.end()).unwrap();
        store.windows(&filter, hour, Duration::from_secs(60)).await.unwrap();
        store.stats().await.unwrap();
        latencies.push(before.elapsed());
    }
    latencies
}

async fn one_series(store: &PostgresBackend, data: TimeRange) {
    let mut random = fastrand::Rng::with_seed(7);
    let span_s = (data.end() - data.start()).num_seconds() - 3600;
    let (mut hour, mut stats) = (Latencies::default(), Latencies::default());
    for _ in 0..200 {
        let (host, field) = (format!("host_{}", random.usize(..HOSTS)), FIELDS[random.usize(..10)]);
        let start = data.start() + chrono::Duration::seconds(random.i64(0..span_s.max(1)));
        let range = TimeRange::new(start, start + chrono::Duration::hours(1)).unwrap();
        let before = Instant::now();
        assert_eq!(store.query_range(&host, field, range).await.unwrap().len(), 360);
        hour.push(before.elapsed());
        let before = Instant::now();
        store.stats().await.unwrap();
        stats.push(before.elapsed());
    }
    let total = store.stats().await.unwrap().total_metrics;
    println!("| one hour of one series, p50 ms (at most 1.5) | {:.2} | | |", hour.quantile_ms(0.5));
    println!(
        "| stats of {total} samples, p50 ms (at most 50) | {:.2} | | |",
        stats.quantile_ms(0.5)
    );
}

type Parameters<'a> = Vec<&'a (dyn ToSql + Sync)>;

/// The questions as one writes them for this schema.
async fn by_hand(raw: &Client, question: Question, draw: &Draw) -> Vec<Row> {
    let (start, end) = bounds(question, draw);
    let mut parameters: Parameters<'_> = vec![&start, &end];
    let fields: Vec<&str> = FIELDS.to_vec();
    let some: Vec<&str> = match question {
        Question::SingleGroupby { fields, .. } | Question::DoubleGroupby { fields } => {
            FIELDS[..fields].to_vec()
        }
        _ => fields,
    };
    let sql = match question {
        Question::SingleGroupby { .. } | Question::CpuMaxAll { .. } => {
            parameters.extend([&draw.hosts as &(dyn ToSql + Sync), &some]);
            let width =
                if matches!(question, Question::CpuMaxAll { .. }) { "hour" } else { "minute" };
            format!(
                "SELECT s.metric_type, {} AS t, max(p.value) FROM samples p
                 JOIN series s ON s.id = p.series_id
                 WHERE s.server_id = ANY($3) AND s.metric_type = ANY($4) AND {RANGE}
                 GROUP BY 1, 2 ORDER BY 1, 2",
                bin(width)
            )
        }
        Question::DoubleGroupby { .. } => {
            parameters.push(&some);
            format!(
                "WITH w AS (SELECT series_id, {} AS t, avg(value) AS mean FROM samples p
                    WHERE series_id IN (SELECT id FROM series WHERE metric_type = ANY($3)) AND {RANGE}
                    GROUP BY 1, 2)
                 SELECT s.server_id || ' ' || s.metric_type, t, mean FROM w
                 JOIN series s ON s.id = w.series_id",
                bin("hour")
            )
        }
        Question::Lastpoint => {
            parameters.clear();
            "SELECT s.server_id || ' ' || s.metric_type, p.ts,
                p.value
             FROM series s CROSS JOIN LATERAL
                (SELECT ts, value FROM samples WHERE series_id = s.id ORDER BY ts DESC LIMIT 1) p"
                .to_owned()
        }
        Question::GroupbyOrderbyLimit => format!(
            "SELECT 'max', {} AS t, max(p.value) FROM samples p
             JOIN series s ON s.id = p.series_id
             WHERE s.metric_type = 'usage_user' AND {RANGE}
             GROUP BY 2 ORDER BY 2 DESC LIMIT 5",
            bin("minute")
        ),
        Question::HighCpu => {
            parameters.push(&draw.hosts[0]);
            format!(
                "SELECT s.metric_type, p.ts, p.value
                 FROM samples p JOIN series s ON s.id = p.series_id
                 WHERE s.server_id = $3 AND {RANGE} AND p.ts IN (
                    SELECT p.ts FROM samples p JOIN series s ON s.id = p.series_id
                    WHERE s.server_id = $3 AND s.metric_type = 'usage_user' AND p.value > 90
                    AND {RANGE})"
            )
        }
    };
    let statement = prepared(raw, &sql).await;
    let rows = raw.query(&statement, &parameters).await.unwrap();
    let row = |row: &tokio_postgres::Row| {
        let time: DateTime<Utc> = row.get::<_, SystemTime>(1).into();
        (row.get(0), time.timestamp_millis(), row.get(2))
    };
    rows.iter().map(row).collect()
}

const RANGE: &str = "p.ts >= $1 AND p.ts < $2";

/// The window of a sample.
fn bin(width: &str) -> String {
    format!("date_bin('1 {width}', p.ts, '2000-01-01 00:00:00+00')")
}

fn bounds(question: Question, draw: &Draw) -> (SystemTime, SystemTime) {
    let start = draw.start;
    let (start, end) = match question {
        Question::SingleGroupby { hours, .. } => (start, start + chrono::Duration::hours(hours)),
        Question::CpuMaxAll { .. } => (start, start + chrono::Duration::hours(8)),
        Question::GroupbyOrderbyLimit => (start - chrono::Duration::minutes(5), start),
        _ => (start, start + chrono::Duration::hours(12)),
    };
    (start.into(), end.into())
}

async fn prepared(raw: &Client, sql: &str) -> tokio_postgres::Statement {
    use std::cell::RefCell;
    use std::collections::HashMap;
    thread_local! {
        static KNOWN: RefCell<HashMap<String, tokio_postgres::Statement>> = RefCell::default();
    }
    if let Some(known) = KNOWN.with_borrow(|known| known.get(sql).cloned()) {
        return known;
    }
    let statement = raw.prepare(sql).await.unwrap();
    KNOWN.with_borrow_mut(|known| known.insert(sql.to_owned(), statement.clone()));
    statement
}

fn assert_same(name: &str, found: &[Row], expected: &[Row]) {
    let sorted = |rows: &[Row]| {
        let mut rows = rows.to_vec();
        rows.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        rows
    };
    let (found, expected) = (sorted(found), sorted(expected));
    assert_eq!(found.len(), expected.len(), "{name}: rows");
    for (found, expected) in found.iter().zip(&expected) {
        let close = (found.2 - expected.2).abs() <= 1e-9 * expected.2.abs().max(1.0);
        assert!(
            found.0 == expected.0 && found.1 == expected.1 && close,
            "{name}: {found:?} {expected:?}"
        );
    }
}
