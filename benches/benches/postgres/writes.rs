//! Writing: batches against binary COPY of the same rows into the same table, and many callers.

use std::collections::HashMap;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt;
use futures_util::future::try_join_all;
use storage_benches::report::{OURS_POSTGRES, Report};
use storage_benches::timing::{Latencies, median, median_ratio};
use storage_benches::tsbs::{Fleet, Values, first_time};
use storage_core::{MetricRecord, StorageBackend};
use storage_postgres::PostgresBackend;

use crate::{HOSTS, Outcome, Server};

const ROUNDS: usize = 7;

/// Batches for a store and the same for the raw program, in turn.
pub(crate) async fn against_copy(
    report: &mut Report,
    server: &Server,
    batch: usize,
    batches: usize,
) -> Outcome<()> {
    let (store, other) = (server.open("bench_backend").await?, server.open("bench_raw").await?);
    let mut fleet = Fleet::new(HOSTS, chrono::Duration::seconds(1), Values::TwoDecimals, 1);
    // Both know their series and have their partition.
    let first = fleet.batch().to_vec();
    store.write_batch(&first).await?;
    other.write_batch(&first).await?;
    other.close().await?;
    fleet = fleet.in_batches_of(batch);
    let ids = ids_of(server).await?;
    let copy = "COPY bench_raw.samples (series_id, ts, value, metadata) FROM STDIN (FORMAT binary)";
    let copy = server.raw.prepare(copy).await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let (mut latencies, mut raw_latencies) = <(Latencies, Latencies)>::default();
    for _ in 0..ROUNDS {
        let data: Vec<_> = (0..batches).map(|_| fleet.batch().to_vec()).collect();
        let started = Instant::now();
        for records in &data {
            let before = Instant::now();
            store.write_batch(records).await?;
            latencies.push(before.elapsed());
        }
        let backend = (batch * batches) as f64 / started.elapsed().as_secs_f64();
        let started = Instant::now();
        for records in &data {
            let before = Instant::now();
            let sink = server.raw.copy_in::<_, Bytes>(&copy).await?;
            let mut sink = std::pin::pin!(sink);
            sink.send(rows(records, &ids)).await?;
            sink.finish().await?;
            raw_latencies.push(before.elapsed());
        }
        let program = (batch * batches) as f64 / started.elapsed().as_secs_f64();
        ours.push(backend);
        theirs.push(program);
    }
    let (what, ratio) = (format!("write {batch}"), median_ratio(&ours, &theirs));
    let rate = median(ours);
    report.add(&what, OURS_POSTGRES, "acknowledged", rate, "samples/s");
    report.add(&what, OURS_POSTGRES, "times raw COPY", ratio, "");
    report.add(&what, OURS_POSTGRES, "write p50", latencies.quantile_ms(0.5), "ms");
    report.add(&what, OURS_POSTGRES, "write p99", latencies.quantile_ms(0.99), "ms");
    report.add(&what, "raw COPY", "acknowledged", median(theirs), "samples/s");
    report.add(&what, "raw COPY", "write p50", raw_latencies.quantile_ms(0.5), "ms");
    if batch == 1000 {
        let (what, p50) = ("target: 10,000 metrics a second", latencies.quantile_ms(0.5));
        report.add(what, OURS_POSTGRES, "acknowledged", rate, "samples/s");
        report.add("target: batches under 10 ms", OURS_POSTGRES, "write p50", p50, "ms");
    }
    let found = server.raw.query_one(COMPARE, &[]).await?;
    if found.try_get::<_, i64>(0)? != 0 {
        return Err("the backend and the raw program stored different rows".into());
    }
    store.close().await?;
    server.remove("bench_backend").await?;
    server.remove("bench_raw").await
}

/// How many rows of the two are not the same.
const COMPARE: &str = "SELECT count(*) FROM (
        SELECT s.server_id, s.metric_type, p.ts, p.value
        FROM bench_backend.samples p JOIN bench_backend.series s ON s.id = p.series_id) a
    FULL JOIN (
        SELECT s.server_id, s.metric_type, p.ts, p.value
        FROM bench_raw.samples p JOIN bench_raw.series s ON s.id = p.series_id) b
    USING (server_id, metric_type, ts) WHERE a.value IS DISTINCT FROM b.value";

type Ids = HashMap<(String, String), i64>;

async fn ids_of(server: &Server) -> Outcome<Ids> {
    let sql = "SELECT server_id, metric_type, id FROM bench_raw.series";
    let rows = server.raw.query(sql, &[]).await?;
    let id = |row: &tokio_postgres::Row| Ok(((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?));
    rows.iter().map(id).collect()
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

/// Callers and the samples of each of their batches: the last is the most that sharing can give.
const CASES: [(usize, usize); 3] = [(1, 100), (16, 100), (1, 1600)];

/// One caller, then sixteen at once, then one who hands over as much as the sixteen together.
pub(crate) async fn callers(report: &mut Report, server: &Server, batches: usize) -> Outcome<()> {
    let store = server.open("bench_callers").await?;
    let mut rates: [Vec<f64>; 3] = Default::default();
    let mut next = 0;
    for _ in 0..ROUNDS {
        for ((callers, batch), rates) in CASES.into_iter().zip(&mut rates) {
            rates.push(write_together(&store, callers, batch, next..next + batches).await?);
            next += batches;
        }
    }
    for (index, (callers, batch)) in CASES.into_iter().enumerate() {
        let what = format!("callers {callers} of {batch}");
        let rate = median(rates[index].clone());
        report.add(&what, OURS_POSTGRES, "acknowledged", rate, "samples/s");
        if index > 0 {
            let ratio = median_ratio(&rates[index], &rates[0]);
            report.add(&what, OURS_POSTGRES, "times one caller", ratio, "");
        }
    }
    store.close().await?;
    server.remove("bench_callers").await
}

/// Returns samples a second of `callers`, each with series of its own, for steps of a second.
async fn write_together(
    store: &PostgresBackend,
    callers: usize,
    batch: usize,
    steps: std::ops::Range<usize>,
) -> Outcome<f64> {
    let started = Instant::now();
    let caller = |caller: usize| {
        let steps = steps.clone();
        async move {
            for step in steps {
                let time = first_time() + chrono::Duration::seconds(step as i64);
                let name = format!("host_{caller}");
                let record = |n: usize| MetricRecord::new(&*name, time, format!("m{n}"), 1.0);
                store.write_batch(&(0..batch).map(record).collect::<Vec<_>>()).await?;
            }
            Ok::<_, storage_core::Error>(())
        }
    };
    try_join_all((0..callers).map(caller)).await?;
    Ok((callers * steps.len() * batch) as f64 / started.elapsed().as_secs_f64())
}
