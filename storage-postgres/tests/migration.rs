//! A schema that an older version of this library made is opened, migrated and read.
#![allow(clippy::unwrap_used)]

use libtest_mimic::{Arguments, Failed};
use storage_core::metrics::time::from_ms;
use storage_core::{
    ErrorKind, EventQuery, EventStore, EventStoreExt, HistoryQuery, JobQuery, JobStore,
    MetricRecord, NewEvent, NewJob, ProjectionStep, RecordHistory, RecordHistoryExt,
    StorageBackend, TimeRange,
};
use storage_postgres::PostgresBackend;

#[path = "support/mod.rs"]
mod support;

use support::server::shared_trial;

/// What version 1 made in an empty schema, word for word.
const VERSION_1: [&str; 3] = [
    include_str!("../src/sql/schema_v1.sql"),
    include_str!("../src/sql/samples_plain.sql"),
    include_str!("../src/sql/views.sql"),
];

fn main() {
    let trials = vec![
        shared_trial("version_1_is_migrated_and_keeps_everything", || block_on(keeps_everything())),
        shared_trial("versions_2_and_3_keep_what_they_hold", || block_on(keep_what_they_hold())),
        shared_trial("many_open_version_1_at_once", || block_on(many_at_once())),
        shared_trial("a_newer_version_is_refused_and_left_alone", || block_on(is_refused())),
        shared_trial("version_1_that_may_not_be_written_is_read", || block_on(is_read())),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn block_on(test: impl Future<Output = ()>) -> Result<(), Failed> {
    tokio::runtime::Runtime::new()?.block_on(test);
    Ok(())
}

fn url() -> String {
    support::url().unwrap()
}

async fn open(schema: &str) -> PostgresBackend {
    PostgresBackend::open(support::options(&url(), schema)).await.unwrap()
}

/// Makes a schema of version 1 and returns its name.
async fn make_version_1(name: &str) -> String {
    let schema = format!("migration_{name}_{}", std::process::id());
    support::drop_schema(&url(), &schema).await;
    let client = support::raw(&url()).await;
    let begin = format!("CREATE SCHEMA {schema}; SET search_path = {schema}, pg_temp;");
    client.batch_execute(&begin).await.unwrap();
    client.batch_execute(&VERSION_1.concat()).await.unwrap();
    let state = "INSERT INTO state (version, hypertable) VALUES (1, false)";
    client.batch_execute(state).await.unwrap();
    schema
}

/// What a later library made is not touched, and opens again where it is known.
async fn is_refused() {
    let schema = format!("migration_newer_{}", std::process::id());
    let store = open(&schema).await;
    let record = MetricRecord::new("a", from_ms(1_767_225_600_000), "m", 1.0);
    store.write_batch(std::slice::from_ref(&record)).await.unwrap();
    store.close().await.unwrap();
    let client = support::raw(&url()).await;
    let current = format!("SELECT version FROM {schema}.state");
    let version: i32 = client.query_one(&current, &[]).await.unwrap().get(0);
    let set = async |version: i32| {
        let set = format!("UPDATE {schema}.state SET version = {version}");
        client.batch_execute(&set).await.unwrap();
    };
    for unknown in [99, version + 1, 0] {
        set(unknown).await;
        let refused = PostgresBackend::open(support::options(&url(), &schema)).await;
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::VersionMismatch, "{error:#}");
        assert_eq!(error.context("store_version"), Some(&*unknown.to_string()));
        let left: i32 = client.query_one(&current, &[]).await.unwrap().get(0);
        assert_eq!(left, unknown);
    }
    set(version).await;
    let store = open(&schema).await;
    assert_eq!(store.query_range("a", "m", TimeRange::all()).await.unwrap(), [record]);
    store.close().await.unwrap();
    support::drop_schema(&url(), &schema).await;
}

/// What takes the tables of a version away again.
const TAKE_BACK: [(i32, &str); 3] = [
    (4, "DROP TABLE job_executions, scheduled_jobs, pipelines;"),
    (
        3,
        "DROP VIEW event_log, projected;
         DROP TABLE event_state, event_streams, events, projections, projection_rows;",
    ),
    (2, "DROP VIEW record_values; DROP TABLE record_history, record_names;"),
];

/// Takes all later tables away again: what is left is what `version` made and filled.
async fn take_back(schema: &str, version: i32) {
    let later = TAKE_BACK.iter().filter(|(of, _)| *of > version).map(|(_, sql)| *sql);
    let sql = format!(
        "SET search_path = {schema}, pg_temp; {} UPDATE state SET version = {version}",
        later.collect::<String>()
    );
    support::raw(&url()).await.batch_execute(&sql).await.unwrap();
}

fn records() -> Vec<MetricRecord> {
    (0..50).map(|n| MetricRecord::new("web-1", from_ms(n * 1000), "cpu", n as f64)).collect()
}

async fn assert_metrics(store: &PostgresBackend) {
    let found = store.query_range("web-1", "cpu", TimeRange::all()).await.unwrap();
    assert_eq!(found, records());
}

async fn keeps_everything() {
    let schema = make_version_1("keeps").await;
    let store = open(&schema).await;
    store.write_batch(&records()).await.unwrap();
    store.close().await.unwrap();
    take_back(&schema, 1).await;
    for round in 0..3_usize {
        let store = open(&schema).await;
        assert_metrics(&store).await;
        store.history().store("a", from_ms(0), &round).await.unwrap();
        let found = store.history().query_latest::<usize>("*", 9).await.unwrap();
        assert_eq!(found.into_values().unwrap(), (0..=round).collect::<Vec<_>>());
        let event = NewEvent::new("s", "Opened", round.into());
        let stored = store.events().append_all(&[event]).await.unwrap();
        assert_eq!(stored[0].sequence, round as u64 + 1);
        let job = NewJob::new(format!("j{round}"), "p", "@daily".parse().unwrap());
        store.jobs().add_job(&job, from_ms(0)).await.unwrap();
        let found = store.jobs().jobs(&JobQuery::default()).await.unwrap().items;
        assert_eq!(found.len(), round + 1);
        assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
        store.close().await.unwrap();
    }
    support::drop_schema(&url(), &schema).await;
}

async fn keep_what_they_hold() {
    for version in [2, 3] {
        let schema = make_version_1(&format!("from_{version}")).await;
        let store = open(&schema).await;
        store.write_batch(&records()).await.unwrap();
        store.history().store("a", from_ms(0), &version).await.unwrap();
        let event = NewEvent::new("s", "Stored", version.into()).with_id("one");
        let stored = store.events().append_all(std::slice::from_ref(&event)).await.unwrap();
        let seen = ProjectionStep::new("p", 0, 1).put("t", "key", version.into());
        store.events().project(&seen).await.unwrap();
        store.close().await.unwrap();
        take_back(&schema, version).await;
        let store = open(&schema).await;
        assert_metrics(&store).await;
        let found = store.history().query_latest::<i32>("*", 9).await.unwrap();
        assert_eq!(found.into_values().unwrap(), [version]);
        let events = store.events();
        if version == 3 {
            let log = events.read(&EventQuery::from(1)).await.unwrap();
            assert_eq!(log, stored);
            assert_eq!(events.append_all(&[event]).await.unwrap(), stored, "it is known");
            assert_eq!(events.row::<i32>("p", "t", "key").await.unwrap(), Some(version));
        }
        let next = events.append_all(&[NewEvent::new("s", "Stored", 0.into())]).await.unwrap();
        assert_eq!(next[0].sequence, if version == 3 { 2 } else { 1 });
        let job = NewJob::new("j", "p", "@daily".parse().unwrap());
        store.jobs().add_job(&job, from_ms(0)).await.unwrap();
        assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
        store.close().await.unwrap();
        support::drop_schema(&url(), &schema).await;
    }
}

async fn many_at_once() {
    let schema = make_version_1("many").await;
    let open_and_store = |number: i64| {
        let schema = schema.clone();
        tokio::spawn(async move {
            let store = open(&schema).await;
            store.history().store("a", from_ms(0), &number).await.unwrap();
            store.close().await.unwrap();
        })
    };
    for opened in (0..8).map(open_and_store).collect::<Vec<_>>() {
        opened.await.unwrap();
    }
    let store = open(&schema).await;
    assert_eq!(store.history().query(&HistoryQuery::parse("a").unwrap()).await.unwrap().len(), 8);
    store.close().await.unwrap();
    support::drop_schema(&url(), &schema).await;
}

async fn is_read() {
    let schema = make_version_1("read").await;
    let store = open(&schema).await;
    store.write_batch(&records()).await.unwrap();
    store.close().await.unwrap();
    take_back(&schema, 1).await;
    let role = format!("reader_{}", std::process::id());
    let grant = format!(
        "DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN PASSWORD 'reader';
         GRANT USAGE ON SCHEMA {schema} TO {role};
         GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}"
    );
    let client = support::raw(&url()).await;
    client.batch_execute(&grant).await.unwrap();
    let owner = url();
    let (scheme, rest) = owner.split_once("://").unwrap();
    let place = rest.split_once('@').map_or(rest, |(_, place)| place);
    let as_reader = format!("{scheme}://{role}:reader@{place}");
    let reader = PostgresBackend::open(support::options(&as_reader, &schema)).await.unwrap();
    assert_metrics(&reader).await;
    let history = reader.history();
    let error = history.query(&HistoryQuery::parse("*").unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:#}");
    let error = reader.events().extent().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:#}");
    let error = reader.jobs().jobs(&JobQuery::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:#}");
    reader.close().await.unwrap();
    let store = open(&schema).await;
    assert_metrics(&store).await;
    store.close().await.unwrap();
    support::drop_schema(&url(), &schema).await;
    client.batch_execute(&format!("DROP ROLE {role}")).await.unwrap();
}
