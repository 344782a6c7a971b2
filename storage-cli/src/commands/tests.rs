//! Verbs over the in-memory backend.

use std::io;
use std::sync::{Arc, Mutex};

use chrono::{DateTime, Utc};
use storage::{MetricRecord, StorageBackend};

use super::*;
use crate::args;
use crate::args::Format;

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn at(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(ms).unwrap()
}

async fn filled() -> Arc<dyn StorageBackend> {
    let store = storage::connect("memory://").await.unwrap();
    let records: Vec<_> = (0..10)
        .flat_map(|n| {
            let value = f64::from(n) / 10.0;
            let time = at(i64::from(n) * 60_000);
            ["a", "b"].map(|server| MetricRecord::new(server, time, "cpu", value))
        })
        .collect();
    store.write_batch(&records).await.unwrap();
    store
}

fn chosen(server: &str, metric: &str) -> Chosen {
    Chosen { server: server.into(), metric: metric.into() }
}

#[tokio::test]
async fn query_limits_and_prints_every_format() {
    let store = filled().await;
    let expected = [
        (Format::Csv, "timestamp,value,metadata\n1970-01-01T00:03:00.000Z,0.3,\n"),
        (
            Format::Json,
            "[\n{\"timestamp\":\"1970-01-01T00:03:00.000Z\",\"value\":0.3,\"metadata\":null}\n]\n",
        ),
    ];
    for (format, text) in expected {
        let shared = Shared::default();
        let args = args::Query {
            server: "a".into(),
            metric: "cpu".into(),
            span: Span { start: Some(at(180_000)), end: None },
            limit: Some(1),
        };
        query::run(&*store, &args, &mut Output::to(shared.clone(), format)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&shared.0.lock().unwrap()), text);
    }
}

#[tokio::test]
async fn aggregate_by_glob_and_by_window() {
    let store = filled().await;
    let shared = Shared::default();
    let mut args = args::Aggregate {
        chosen: chosen("*", "c*"),
        span: Span::default(),
        window: None,
        rollups: false,
    };
    aggregate::run(&*store, &args, &mut Output::to(shared.clone(), Format::Csv)).await.unwrap();
    args.window = Some(std::time::Duration::from_secs(300));
    args.chosen = chosen("b", "cpu");
    aggregate::run(&*store, &args, &mut Output::to(shared.clone(), Format::Csv)).await.unwrap();
    let text = String::from_utf8(shared.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("\na,cpu,10,0,0.9,0.45,4.5,0,0.9\n"), "{text}");
    assert!(
        text.contains("\nb,cpu,1970-01-01T00:05:00.000Z,5,0.5,0.9,0.7,3.5,0.5,0.9\n"),
        "{text}"
    );
}

#[tokio::test]
async fn a_range_that_ends_before_it_starts_is_refused() {
    let store = filled().await;
    let span = Span { start: Some(at(5)), end: Some(at(1)) };
    let args = args::Aggregate { chosen: chosen("*", "*"), span, window: None, rollups: false };
    let mut output = Output::to(Shared::default(), Format::Csv);
    assert!(aggregate::run(&*store, &args, &mut output).await.is_err());
}

#[tokio::test]
async fn prune_counts_what_it_would_remove() {
    let store = filled().await;
    let shared = Shared::default();
    let mut args = args::Prune { before: at(120_000), dry_run: true, yes: false };
    prune::run(&*store, &args, &mut Output::to(shared.clone(), Format::Csv), "").await.unwrap();
    args = args::Prune { dry_run: false, yes: true, ..args };
    prune::run(&*store, &args, &mut Output::to(shared.clone(), Format::Csv), "").await.unwrap();
    let text = String::from_utf8(shared.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.matches("1970-01-01T00:02:00.000Z,4\n").count(), 2, "{text}");
    assert_eq!(store.stats().await.unwrap().total_metrics, 16);
}
