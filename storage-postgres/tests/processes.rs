//! Several processes open one location that does not exist yet, at once, and write: each finds the
//! tables made, once, and every sample is there.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Failed};
use storage_core::metrics::time::from_ms;
use storage_core::{MetricRecord, StorageBackend, TimeRange};
use storage_postgres::PostgresBackend;

#[path = "support/mod.rs"]
mod support;

use support::block_on;
use support::server::shared_trial;

const SCHEMA: &str = "STORAGE_PROCESS_SCHEMA";
const NUMBER: &str = "STORAGE_PROCESS_NUMBER";
const PROCESSES: i64 = 6;
const BATCHES: i64 = 20;
const ROUNDS: usize = 4;

fn main() -> ExitCode {
    if let Ok(schema) = std::env::var(SCHEMA) {
        return block_on(write(&schema));
    }
    let trial = shared_trial("processes_that_migrate_at_once_make_one_store", migrate_at_once);
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

/// Samples of process `number`: of a series of its own, and of one that all replace.
async fn write(schema: &str) -> ExitCode {
    let number: i64 = std::env::var(NUMBER).unwrap().parse().unwrap();
    let store = PostgresBackend::open(support::options(&support::url().unwrap(), schema)).await;
    let store = match store {
        Ok(store) => store,
        Err(error) => {
            println!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    for batch in 0..BATCHES {
        let own = MetricRecord::new(format!("own-{number}"), from_ms(batch), "m", batch as f64);
        let shared = MetricRecord::new("shared", from_ms(batch), "m", batch as f64);
        if let Err(error) = store.write_batch(&[shared, own]).await {
            println!("{error:#}");
            return ExitCode::FAILURE;
        }
    }
    store.close().await.unwrap();
    ExitCode::SUCCESS
}

fn migrate_at_once() -> Result<(), Failed> {
    for round in 0..ROUNDS {
        let schema = format!("processes_{}_{round}", std::process::id());
        let start = |number: i64| {
            Command::new(std::env::current_exe().unwrap())
                .env(SCHEMA, &schema)
                .env(NUMBER, number.to_string())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let children: Vec<_> = (0..PROCESSES).map(start).collect();
        for child in children {
            let output = child.wait_with_output()?;
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
        block_on(verify(&schema));
    }
    Ok(())
}

async fn verify(schema: &str) {
    let url = support::url().unwrap();
    let store = PostgresBackend::open(support::options(&url, schema)).await.unwrap();
    let stats = store.stats().await.unwrap();
    assert_eq!(stats.total_metrics as i64, BATCHES * (PROCESSES + 1));
    assert_eq!(stats.series as i64, PROCESSES + 1);
    for server in (0..PROCESSES).map(|n| format!("own-{n}")).chain(["shared".to_owned()]) {
        let found = store.query_range(&server, "m", TimeRange::all()).await.unwrap();
        let values: Vec<_> = found.iter().map(|record| record.value as i64).collect();
        assert_eq!(values, (0..BATCHES).collect::<Vec<_>>(), "{server}");
    }
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
    store.close().await.unwrap();
    support::drop_schema(&url, schema).await;
}
