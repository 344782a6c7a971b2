//! Chunks that TimescaleDB's Community edition has compressed, or compresses right now: what is
//! written to them, read from them and pruned of them is as exact as elsewhere.
#![allow(clippy::unwrap_used)]

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed};
use storage_core::metrics::time::from_ms;
use storage_core::pipeline::compare;
use storage_core::{InMemory, MetricRecord, SeriesFilter, StorageBackend, TimeRange};
use storage_postgres::{PostgresBackend, Tier};

#[path = "support/mod.rs"]
mod support;

use support::block_on;
use support::server::community_trial;

/// 2026-01-01, long enough ago for the policy, and a day.
const START_MS: i64 = 1_767_225_600_000;
const DAY_MS: i64 = 86_400_000;

fn main() -> ExitCode {
    let trials = vec![
        community_trial("compressed_chunks_are_as_others", compressed_chunks),
        community_trial("answers_are_exact_while_chunks_are_compressed", while_compressing),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn fresh_schema() -> String {
    format!("compression_{}_{:08x}", std::process::id(), fastrand::u32(..))
}

async fn open(schema: &str) -> PostgresBackend {
    let options = support::options(&support::server::community_url().unwrap(), schema);
    let store = PostgresBackend::open(options).await.unwrap();
    assert_eq!((store.tier(), store.uses_timescale()), (Tier::Community, true));
    store
}

/// How many chunks are compressed, and how many there are.
async fn chunks(schema: &str) -> (i64, i64) {
    let sql = "SELECT count(*) FILTER (WHERE is_compressed), count(*)
        FROM timescaledb_information.chunks WHERE hypertable_schema = $1";
    let server = support::raw(&support::server::community_url().unwrap()).await;
    let row = server.query_one(sql, &[&schema]).await.unwrap();
    (row.get(0), row.get(1))
}

/// A store, and what it should hold.
struct Pair {
    store: PostgresBackend,
    model: InMemory,
}

impl Pair {
    async fn write(&self, records: &[MetricRecord]) {
        self.store.write_batch(records).await.unwrap();
        self.model.write_batch(records).await.unwrap();
    }

    async fn prune(&self, cutoff_ms: i64) {
        let cutoff = from_ms(cutoff_ms);
        let removed = self.store.prune_before(cutoff).await.unwrap();
        assert_eq!(removed, self.model.prune_before(cutoff).await.unwrap());
    }

    async fn assert_same(&self) {
        let (any, all, hour) = (SeriesFilter::any(), TimeRange::all(), Duration::from_secs(3600));
        let Self { store, model } = self;
        let found = compare(store, model, &any, all).await.unwrap();
        assert!(found.is_same(), "{found:?}");
        let (stats, expected) = (store.stats().await.unwrap(), model.stats().await.unwrap());
        assert_eq!((stats.total_metrics, stats.series), (expected.total_metrics, expected.series));
        assert_eq!(stats.oldest_metric, expected.oldest_metric);
        assert_eq!(stats.newest_metric, expected.newest_metric);
        assert_eq!(store.series(&any).await.unwrap(), model.series(&any).await.unwrap());
        assert_eq!(store.latest(&any, 3).await.unwrap(), model.latest(&any, 3).await.unwrap());
        let windows = store.windows(&any, all, hour).await.unwrap();
        assert_eq!(windows, model.windows(&any, all, hour).await.unwrap());
        assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
    }
}

/// Whole numbers, so that every sum is the same.
fn samples(days: std::ops::Range<i64>, step_s: i64, offset_ms: i64) -> Vec<MetricRecord> {
    let times = (days.start * DAY_MS..days.end * DAY_MS).step_by(step_s as usize * 1000);
    let record = |(n, ms): (usize, i64)| {
        let server = format!("s{}", n % 7);
        let record = MetricRecord::new(server, from_ms(START_MS + ms + offset_ms), "m", n as f64);
        match n % 3 {
            0 => record.with_metadata(serde_json::json!({ "n": n % 5, "f": (n % 2) as f64 })),
            _ => record,
        }
    };
    (0..).zip(times).map(|(n, ms)| record((n, ms))).collect()
}

fn compressed_chunks() -> Result<(), Failed> {
    block_on(async {
        let schema = fresh_schema();
        let pair = Pair { store: open(&schema).await, model: InMemory::new() };
        pair.write(&samples(0..10, 60, 0)).await;
        let before = pair.store.stats().await.unwrap().disk_usage_bytes;
        pair.store.compact().await.unwrap();
        assert_eq!(chunks(&schema).await, (10, 10));
        let after = pair.store.stats().await.unwrap().disk_usage_bytes;
        assert!(after < before, "{before} bytes are {after} when they are compressed");
        pair.assert_same().await;

        // Late ones, ones that replace, and of both some in one batch; a chunk that is new.
        pair.write(&samples(2..4, 300, 1)).await;
        pair.write(&samples(3..6, 600, 0)).await;
        pair.write(&samples(8..11, 900, 0)).await;
        pair.assert_same().await;
        pair.store.compact().await.unwrap();
        assert_eq!(chunks(&schema).await, (11, 11));
        pair.assert_same().await;

        // Whole chunks, and a part of one that is compressed.
        pair.prune(4 * DAY_MS + START_MS + DAY_MS / 3).await;
        pair.assert_same().await;
        // Late ones for what is gone.
        pair.write(&samples(0..1, 3600, 5)).await;
        pair.assert_same().await;
        pair.store.compact().await.unwrap();
        pair.prune(START_MS + 20 * DAY_MS).await;
        pair.assert_same().await;
        pair.store.close().await.unwrap();
        support::drop_schema(&support::server::community_url().unwrap(), &schema).await;
    });
    Ok(())
}

/// One writes late samples, one compresses, others ask: nobody misses what was acknowledged, and
/// nobody sees anything twice.
fn while_compressing() -> Result<(), Failed> {
    const ROUNDS: i64 = 40;
    const ROUND: i64 = 500;
    block_on(async {
        let schema = fresh_schema();
        let store = Arc::new(open(&schema).await);
        let (sent, stored) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
        let done = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for kind in 0..4 {
            let (store, done) = (Arc::clone(&store), Arc::clone(&done));
            let (sent, stored) = (Arc::clone(&sent), Arc::clone(&stored));
            tasks.push(tokio::spawn(async move {
                while !done.load(Ordering::SeqCst) {
                    let least = stored.load(Ordering::SeqCst);
                    let count = count(&store, kind).await;
                    let most = sent.load(Ordering::SeqCst);
                    assert!((least..=most).contains(&count), "{count} of {least} to {most}");
                }
            }));
        }
        let compactor = tokio::spawn({
            let (store, done) = (Arc::clone(&store), Arc::clone(&done));
            async move {
                while !done.load(Ordering::SeqCst) {
                    store.compact().await.unwrap();
                }
            }
        });
        for round in 0..ROUNDS {
            let at = |n| from_ms(START_MS + (n % 2) * DAY_MS + round * ROUND + n);
            let batch: Vec<_> =
                (0..ROUND).map(|n| MetricRecord::new("s", at(n), "m", n as f64)).collect();
            sent.fetch_add(ROUND, Ordering::SeqCst);
            store.write_batch(&batch).await.unwrap();
            stored.fetch_add(ROUND, Ordering::SeqCst);
        }
        done.store(true, Ordering::SeqCst);
        for task in tasks {
            task.await.unwrap();
        }
        compactor.await.unwrap();
        assert_eq!(store.stats().await.unwrap().total_metrics as i64, ROUNDS * ROUND);
        assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
        store.close().await.unwrap();
        support::drop_schema(&support::server::community_url().unwrap(), &schema).await;
    });
    Ok(())
}

/// How many samples there are, by another question for each kind.
async fn count(store: &PostgresBackend, kind: usize) -> i64 {
    let (any, all) = (SeriesFilter::any(), TimeRange::all());
    let count = match kind {
        0 => store.aggregate("s", "m", all).await.unwrap().count,
        1 => store.query_range("s", "m", all).await.unwrap().len() as u64,
        2 => store.series(&any).await.unwrap().iter().map(|series| series.count).sum(),
        _ => {
            assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
            store.stats().await.unwrap().total_metrics
        }
    };
    count as i64
}
