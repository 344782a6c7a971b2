//! Behind a handle the store is replaced by an earlier one that went on without it: a backup, a
//! snapshot of the disk, a standby that lacked the last transactions. What the handle remembers of
//! ids is wrong then; what it writes and reads still belongs to the right series and records.
#![allow(clippy::unwrap_used)]

use std::process::{Command, ExitCode};
use std::time::Duration;

use futures_util::StreamExt;
use libtest_mimic::{Arguments, Failed};
use serde_json::json;
use storage_core::metrics::time::from_ms;
use storage_core::{
    HistoryQuery, Matcher, MetricRecord, RecordHistory, Sample, SeriesFilter, StorageBackend,
    StoredValue, TimeRange,
};
use storage_postgres::PostgresBackend;
use tokio_postgres::Client;

#[path = "support/mod.rs"]
mod support;

use support::server::{Server, shared_trial, trial};
use support::{assert_sound, block_on};

/// 2026-01-01.
const START_MS: i64 = 1_767_225_600_000;
const HOUR_MS: i64 = 3_600_000;

fn main() -> ExitCode {
    let trials = vec![
        shared_trial("ids_of_a_lost_connection_are_forgotten", || ids_are_forgotten(true)),
        shared_trial("ids_of_tables_that_were_replaced_are_forgotten", || ids_are_forgotten(false)),
        shared_trial("marks_of_empty_series_are_forgotten", marks_are_forgotten),
        shared_trial("a_scan_goes_on_by_name", scan_by_name),
        trial("a_snapshot_of_the_disk_is_played_back", false, snapshot),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn sample(server: &str, hour: i64, value: f64) -> MetricRecord {
    MetricRecord::new(server, from_ms(START_MS + hour * HOUR_MS), "m", value)
}

async fn values_of(store: &PostgresBackend, server: &str) -> Vec<f64> {
    let found = store.query_range(server, "m", TimeRange::all()).await.unwrap();
    found.into_iter().map(|record| record.value).collect()
}

/// Two stores: one that is in use, and one that takes its place.
struct Pair {
    url: String,
    used: String,
    other: String,
    admin: Client,
}

impl Pair {
    async fn new() -> Self {
        let url = support::url().unwrap();
        let used = format!("replaced_{}_{:08x}", std::process::id(), fastrand::u32(..));
        let other = format!("{used}_other");
        let admin = support::raw(&url).await;
        Self { url, used, other, admin }
    }

    async fn open(&self, schema: &str) -> PostgresBackend {
        let options = support::options(&self.url, schema).application_name(schema);
        PostgresBackend::open(options).await.unwrap()
    }

    /// Puts the other store in the place of the one that is used; may end the connections to it.
    async fn replace(&self, ends_connections: bool) {
        let Self { used, other, .. } = self;
        let swap = format!(
            "BEGIN; ALTER SCHEMA {used} RENAME TO {used}_gone; \
             ALTER SCHEMA {other} RENAME TO {used}; COMMIT"
        );
        self.admin.batch_execute(&swap).await.unwrap();
        if ends_connections {
            let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE application_name = $1";
            let ended: i64 = self.admin.query_one(end, &[used]).await.unwrap().get(0);
            assert!(ended > 0, "no connection of the handle");
        }
    }

    async fn remove(self) {
        support::drop_schema(&self.url, &self.used).await;
        support::drop_schema(&self.url, &format!("{}_gone", self.used)).await;
    }
}

/// Both stores begin with the same; then each gives the next id to a name of its own.
fn ids_are_forgotten(ends_connections: bool) -> Result<(), Failed> {
    block_on(async {
        let pair = Pair::new().await;
        let store = pair.open(&pair.used).await;
        let other = pair.open(&pair.other).await;
        for (store, own, value) in [(&store, "lost", 1.0), (&other, "other", 2.0)] {
            for name in ["a", own] {
                store.write_batch(&[sample(name, 0, value)]).await.unwrap();
                let stored = StoredValue::new(name, from_ms(START_MS), json!(value));
                store.history().store_batch(&[stored]).await.unwrap();
            }
        }
        let mut ids = Vec::new();
        for (schema, name) in [(&pair.used, "lost"), (&pair.other, "other")] {
            let sql = format!(
                "SELECT s.id, n.id FROM {schema}.series s JOIN {schema}.record_names n
                 ON n.name = s.server_id WHERE n.name = $1"
            );
            let row = pair.admin.query_one(&sql, &[&name]).await.unwrap();
            ids.push((row.get::<_, i64>(0), row.get::<_, i64>(1)));
        }
        assert_eq!(ids[0], ids[1], "the test is about ids that are given twice");
        other.close().await.unwrap();
        let windows = async || {
            let all = SeriesFilter::any();
            let range = TimeRange::new(from_ms(START_MS), from_ms(START_MS + 24 * HOUR_MS));
            let found = store.windows(&all, range.unwrap(), Duration::from_secs(86_400)).await;
            let found = found.unwrap().into_iter();
            found
                .map(|of| (of.series.server_id, of.windows[0].aggregation.sum.unwrap()))
                .collect::<Vec<_>>()
        };
        // Twice: what is known of the density chooses another way.
        for _ in 0..2 {
            assert_eq!(windows().await, [("a".to_owned(), 1.0), ("lost".to_owned(), 1.0)]);
        }

        pair.replace(ends_connections).await;
        for _ in 0..2 {
            assert_eq!(windows().await, [("a".to_owned(), 2.0), ("other".to_owned(), 2.0)]);
        }
        let batch = ["a", "lost", "other"].map(|name| sample(name, 1, 3.0));
        store.write_batch(&batch[..2]).await.unwrap();
        store.write_batch(&batch[2..]).await.unwrap();
        let late = StoredValue::new("lost", from_ms(START_MS), json!(3.0));
        store.history().store_batch(&[late]).await.unwrap();
        assert_eq!(values_of(&store, "a").await, [2.0, 3.0]);
        assert_eq!(values_of(&store, "lost").await, [3.0]);
        assert_eq!(values_of(&store, "other").await, [2.0, 3.0]);
        let of = async |name: &str| {
            let query = HistoryQuery::new(Matcher::exact(name).unwrap());
            store.history().query(&query).await.unwrap().len()
        };
        assert_eq!((of("a").await, of("lost").await, of("other").await), (1, 1, 1));
        assert_sound(&store).await;
        store.close().await.unwrap();
        pair.remove().await;
    });
    Ok(())
}

/// In both stores the series was emptied by as many prunes; in one it has samples again.
fn marks_are_forgotten() -> Result<(), Failed> {
    block_on(async {
        let pair = Pair::new().await;
        let store = pair.open(&pair.used).await;
        let other = pair.open(&pair.other).await;
        for store in [&store, &other] {
            store.write_batch(&[sample("a", 1, 1.0)]).await.unwrap();
            let removed = store.prune_before(sample("a", 2, 0.0).timestamp).await.unwrap();
            assert_eq!(removed, 1);
        }
        store.write_batch(&[sample("a", 3, 2.0)]).await.unwrap();
        other.close().await.unwrap();
        pair.replace(true).await;
        store.write_batch(&[sample("a", 4, 3.0)]).await.unwrap();
        let latest = store.latest(&SeriesFilter::any(), 1).await.unwrap();
        assert_eq!(latest.len(), 1, "the series has a sample and is not shown");
        assert_sound(&store).await;
        store.close().await.unwrap();
        pair.remove().await;
    });
    Ok(())
}

/// Series with one value each: one that is longer than a step, more others than a step touches.
fn scan_by_name() -> Result<(), Failed> {
    const SERIES: i64 = 150;
    block_on(async {
        let pair = Pair::new().await;
        let store = pair.open(&pair.used).await;
        let other = pair.open(&pair.other).await;
        let name = |number: i64| format!("s{number:03}");
        for number in 0..SERIES {
            store.write_batch(&[sample(&name(number), 0, number as f64)]).await.unwrap();
            let reversed = SERIES - 1 - number;
            other.write_batch(&[sample(&name(reversed), 0, reversed as f64)]).await.unwrap();
        }
        let long = |index| MetricRecord::new(name(0), from_ms(START_MS + index), "m", 0.0);
        let long: Vec<_> = (0..20_000).map(long).collect();
        for store in [&store, &other] {
            store.write_batch(&long).await.unwrap();
        }
        other.close().await.unwrap();
        let mut scan = store.scan(&SeriesFilter::any(), TimeRange::all());
        let mut found = Vec::new();
        let mut is_replaced = false;
        while let Some(batch) = scan.next().await {
            let batch = batch.unwrap();
            let record = |sample: Sample| sample.into_record(&batch.series);
            found.extend(batch.samples.into_iter().map(record));
            if !std::mem::replace(&mut is_replaced, true) {
                pair.replace(true).await;
            }
        }
        drop(scan);
        assert_eq!(found.len(), 20_000 + SERIES as usize - 1);
        for record in found {
            assert_eq!(record.server_id, name(record.value as i64), "{record:?}");
        }
        store.close().await.unwrap();
        pair.remove().await;
    });
    Ok(())
}

/// The same server, system identifier and timeline included, as it was a moment ago.
fn snapshot() -> Result<(), Failed> {
    let mut server = Server::start(&[]);
    let (data, kept) = (server.data(), server.path().join("kept"));
    let runtime = tokio::runtime::Runtime::new()?;
    let opened = PostgresBackend::open(support::options(&server.url, "snapshot"));
    let store = runtime.block_on(opened).unwrap();
    runtime.block_on(store.write_batch(&[sample("a", 0, 1.0)])).unwrap();
    server.stop("fast");
    let copied = Command::new("cp").arg("-a").args([&data, &kept]).status().unwrap();
    assert!(copied.success());
    server.start_again();
    runtime.block_on(store.write_batch(&[sample("lost", 0, 1.0)])).unwrap();
    server.stop("fast");
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&kept, &data).unwrap();
    server.start_again();
    runtime.block_on(async {
        let another = PostgresBackend::open(support::options(&server.url, "snapshot")).await;
        let another = another.unwrap();
        another.write_batch(&[sample("other", 0, 2.0)]).await.unwrap();
        another.close().await.unwrap();
        store.write_batch(&[sample("lost", 1, 3.0)]).await.unwrap();
        assert_eq!(values_of(&store, "a").await, [1.0]);
        assert_eq!(values_of(&store, "lost").await, [3.0]);
        assert_eq!(values_of(&store, "other").await, [2.0]);
        assert_sound(&store).await;
        store.close().await.unwrap();
    });
    Ok(())
}
