//! Questions whose answers are large: what is read of them, and what becomes of the connection that
//! an answer was not read to its end from.
#![allow(clippy::unwrap_used)]

use std::process::ExitCode;
use std::time::Duration;

use futures_util::TryStreamExt;
use libtest_mimic::{Arguments, Failed};
use serde_json::{Value, json};
use storage_core::metrics::time::from_ms;
use storage_core::{
    EventQuery, EventStore, EventStoreExt, MetricRecord, NewEvent, SeriesFilter, SeriesKey,
    StorageBackend, TimeRange,
};
use storage_postgres::PostgresBackend;
use tokio_postgres::Client;

#[path = "support/mod.rs"]
mod support;

use support::server::shared_trial;
use support::{block_on, eventually};

/// 2026-01-01.
const START_MS: i64 = 1_767_225_600_000;
const DAY_MS: i64 = 86_400_000;

const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let trials = vec![
        shared_trial("windows_that_are_more_than_expected_keep_nobody_waiting", more_than_expected),
        shared_trial("a_page_of_compressed_events_keeps_nobody_waiting", compressed_events),
        shared_trial("much_metadata_comes_row_by_row", much_metadata),
        shared_trial("steps_of_a_scan_are_bounded_in_bytes", scan_of_much_metadata),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A store with one connection for questions.
struct Setting {
    url: String,
    schema: String,
    store: PostgresBackend,
    admin: Client,
}

impl Setting {
    async fn new(what: &str) -> Self {
        let url = support::url().unwrap();
        let schema = format!("questions_{what}_{}_{:08x}", std::process::id(), fastrand::u32(..));
        let options = support::options(&url, &schema).pool_size(1).application_name(&schema);
        let store = PostgresBackend::open(options).await.unwrap();
        let admin = support::raw(&url).await;
        Self { url, schema, store, admin }
    }

    /// The connections that answer questions, by what they were asked last.
    async fn asked(&self) -> Vec<(i32, String)> {
        let sql = "SELECT pid, query FROM pg_stat_activity
            WHERE application_name = $1 AND query NOT IN ('COMMIT', 'ROLLBACK') ORDER BY pid";
        let rows = self.admin.query(sql, &[&self.schema]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// Asks a small question; gives the one connection that answered it.
    async fn connection(&self) -> i32 {
        self.store.stats().await.unwrap();
        let mut found = Vec::new();
        eventually(PATIENCE, "one connection is left", async || {
            found = self.asked().await;
            found.len() == 1
        })
        .await;
        found[0].0
    }

    async fn remove(self) {
        self.store.close().await.unwrap();
        support::drop_schema(&self.url, &self.schema).await;
    }
}

fn record(server: &str, ms: i64) -> MetricRecord {
    MetricRecord::new(server, from_ms(START_MS + ms), "m", 1.0)
}

fn day(number: i64) -> TimeRange {
    let at = |day| from_ms(START_MS + day * DAY_MS);
    TimeRange::new(at(number), at(number + 1)).unwrap()
}

/// A day with few samples makes the store expect few of the next one as well.
fn more_than_expected() -> Result<(), Failed> {
    block_on(async {
        let setting = Setting::new("windows").await;
        let store = &setting.store;
        store.write_batch(&[record("a", 0)]).await.unwrap();
        let second = |n: i64| record(&format!("s{}", n % 100), DAY_MS + n / 100 * 1000);
        let dense: Vec<_> = (0..100_000).map(second).collect();
        store.write_batch(&dense).await.unwrap();
        let before = setting.connection().await;
        let (any, hour) = (SeriesFilter::any(), Duration::from_secs(3600));
        // Nothing is expected: some are fetched, the server groups.
        assert_eq!(store.windows(&any, day(1), hour).await.unwrap().len(), 100);
        assert_eq!(setting.connection().await, before, "a first try costs no connection");
        assert_eq!(store.windows(&any, day(0), hour).await.unwrap().len(), 1);
        assert_eq!(setting.connection().await, before);
        // Too many: what is left of them is not waited for.
        assert_eq!(store.windows(&any, day(1), hour).await.unwrap().len(), 100);
        assert_ne!(setting.connection().await, before, "its answer was not read to the end");
        setting.remove().await;
    });
    Ok(())
}

/// The server counts what payloads take in its table, the store what they take on the way.
fn compressed_events() -> Result<(), Failed> {
    block_on(async {
        let setting = Setting::new("events").await;
        let events = setting.store.events();
        let event = |_| NewEvent::new("s", "T", json!("a".repeat(60_000)));
        for _ in 0..3 {
            events.append_all(&(0..100).map(event).collect::<Vec<_>>()).await.unwrap();
        }
        let before = setting.connection().await;
        let page = events.read(&EventQuery::from(0)).await.unwrap();
        assert!((50..100).contains(&page.len()), "{} events", page.len());
        assert_ne!(setting.connection().await, before, "its answer was not read to the end");
        // What goes over by a little is read to the end.
        let before = setting.connection().await;
        let query = EventQuery { limit: page.len() + 10, ..EventQuery::from(0) };
        assert_eq!(events.read(&query).await.unwrap().len(), page.len());
        assert_eq!(setting.connection().await, before);
        setting.remove().await;
    });
    Ok(())
}

/// Arrays of metadata are formed in the memory of the server, so they hold what is small.
fn much_metadata() -> Result<(), Failed> {
    block_on(async {
        let setting = Setting::new("arrays").await;
        let store = &setting.store;
        let metadata = |n| match n % 3 {
            0 => None,
            1 => Some(json!({ "n": n })),
            _ => Some(json!("b".repeat(200))),
        };
        let records = |first: i64, of: &dyn Fn(i64) -> Option<Value>| -> Vec<_> {
            let record = |n| MetricRecord { metadata: of(n), ..record("a", n * 1000) };
            (first..first + 300).map(record).collect()
        };
        let small = records(0, &metadata);
        store.write_batch(&small).await.unwrap();
        let all = TimeRange::all();
        assert_eq!(store.query_range("a", "m", all).await.unwrap(), small);
        assert!(setting.asked().await.iter().any(|(_, query)| query.contains("array_agg")));
        // Large as it is, or by what it was compressed from.
        for large in [json!("c".repeat(300)), json!("d".repeat(10_000))] {
            let last = MetricRecord { metadata: Some(large), ..record("b", 300_000) };
            let mut written: Vec<_> = records(0, &metadata);
            written.iter_mut().for_each(|record| record.server_id = "b".to_owned());
            written.push(last);
            store.write_batch(&written).await.unwrap();
            assert_eq!(store.query_range("b", "m", all).await.unwrap(), written);
            assert!(setting.asked().await.iter().all(|(_, query)| !query.contains("array_agg")));
        }
        setting.remove().await;
    });
    Ok(())
}

/// Samples without metadata, then many that have as much as they may, then without again.
fn scan_of_much_metadata() -> Result<(), Failed> {
    const BYTES: usize = 60_000;
    block_on(async {
        let setting = Setting::new("scan").await;
        let store = &setting.store;
        let metadata = |n| (1000..2000).contains(&n).then(|| json!("e".repeat(BYTES)));
        let records: Vec<_> = (0..40_000)
            .map(|n| MetricRecord { metadata: metadata(n), ..record("a", n * 1000) })
            .collect();
        for some in records.chunks(500) {
            store.write_batch(some).await.unwrap();
        }
        let scan = store.scan(&SeriesFilter::any(), TimeRange::all());
        let batches: Vec<_> = scan.try_collect().await.unwrap();
        let with_metadata = |batch: &storage_core::SeriesSamples| {
            batch.samples.iter().filter(|sample| sample.metadata.is_some()).count()
        };
        let most = batches.iter().map(with_metadata).max().unwrap();
        assert!(most * BYTES <= 17 << 20, "{most} in one step");
        assert!(batches.len() < 40, "{} steps", batches.len());
        let samples = batches.into_iter().flat_map(|batch| batch.samples);
        let found = samples.map(|sample| sample.into_record(&SeriesKey::new("a", "m")));
        assert!(found.eq(records.iter().cloned()));
        setting.remove().await;
    });
    Ok(())
}
