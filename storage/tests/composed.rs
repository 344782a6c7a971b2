//! The contract over what is made of stores, with PostgreSQL, SQLite and Parquet under it: the cases that
//! depend on what is under it, each in one layout. Over stores in memory the suite runs in all of them, in
//! `conformance-tests`. With `CONFORMANCE_COMPOSED=all` every case runs over tiers and over rollups, which
//! takes some ten minutes: `scripts/soak` does so.
#![cfg_attr(not(all(feature = "sqlite", feature = "postgres", feature = "parquet")), allow(unused))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use conformance_tests::composed::{Archives, Composed, Mirror, Refreshes, Rollups, Spools, Tiers};
use conformance_tests::{Fixture, Store};
use storage::compose::MirrorPolicy;
use storage::{Result, connect};

/// The variable that names a server for the tests: `scripts/postgres with COMMAND` sets it.
const URL: &str = "STORAGE_TEST_POSTGRES_URL";

const HOUR: Duration = Duration::from_secs(3600);

/// What depends on how a store writes, orders, removes and counts.
const PART: &[&str] = &["write", "prune", "concurrency", "model"];

/// A schema of the shared server.
struct Postgres;

#[async_trait]
impl Fixture for Postgres {
    fn name(&self) -> &str {
        "postgres"
    }

    async fn open(&self, location: &str) -> Result<Store> {
        let url = std::env::var(URL).unwrap_or_default();
        // Few connections, as many tests run side by side.
        connect(&format!("{url}?schema={location}&pool_size=2&partitions_ahead=1")).await
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        let url = std::env::var(URL).unwrap_or_default();
        let (client, connection) =
            tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let sql = format!("SET lock_timeout = '20s'; DROP SCHEMA IF EXISTS \"{location}\" CASCADE");
        client.batch_execute(&sql).await.unwrap();
        Ok(())
    }

    fn unavailable(&self) -> Option<String> {
        let is_there = std::env::var(URL).is_ok_and(|url| !url.is_empty());
        (!is_there).then(|| format!("{URL} is not set; see scripts/postgres"))
    }
}

/// Files in the directory for temporary ones.
struct Files {
    scheme: &'static str,
    parameters: &'static str,
}

impl Files {
    fn path(&self, location: &str) -> PathBuf {
        std::env::temp_dir().join(format!("{location}.{}", self.scheme))
    }
}

#[async_trait]
impl Fixture for Files {
    fn name(&self) -> &str {
        self.scheme
    }

    async fn open(&self, location: &str) -> Result<Store> {
        let path = self.path(location);
        connect(&format!("{}://{}?{}", self.scheme, path.display(), self.parameters)).await
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        // What was never created need not be removed.
        let _ = std::fs::remove_dir_all(self.path(location));
        for suffix in ["", "-wal", "-shm"] {
            let mut path = self.path(location).into_os_string();
            path.push(suffix);
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }
}

fn postgres() -> Arc<dyn Fixture> {
    Arc::new(Postgres)
}

fn sqlite() -> Arc<dyn Fixture> {
    Arc::new(Files { scheme: "sqlite", parameters: "synchronous=normal" })
}

/// Rows are merged early and days split early, so that all kinds of files occur.
fn parquet() -> Arc<dyn Fixture> {
    let parameters = "merge_samples=500&merge_files=20&hour_samples=50";
    Arc::new(Files { scheme: "parquet", parameters })
}

#[cfg(all(feature = "sqlite", feature = "postgres", feature = "parquet"))]
fn main() {
    let tiers = || Tiers::new(Archives::OlderHalf);
    let rollups = || Rollups::new(Refreshes::Always, &[HOUR]);
    let mirror = Mirror::new(MirrorPolicy::Require);
    // No theme in the list stands for all.
    let whole = std::env::var("CONFORMANCE_COMPOSED").is_ok_and(|wanted| wanted == "all");
    let of_the_largest = if whole { &[] } else { PART };
    conformance_tests::main_all(vec![
        Composed::new("tiered-postgres-parquet", tiers(), vec![postgres(), parquet(), postgres()])
            .half_compacted()
            .only(of_the_largest)
            .shared(),
        Composed::new("rolled-postgres", rollups(), vec![postgres(), postgres(), postgres()])
            .half_compacted()
            .only(of_the_largest)
            .shared(),
        Composed::new("rolled-parquet", rollups(), vec![parquet(), parquet(), parquet()])
            .half_compacted()
            .only(PART)
            .shared(),
        Composed::new("mirrored-sqlite-postgres", mirror, vec![sqlite(), postgres()])
            .half_compacted()
            .only(PART)
            .shared(),
        Composed::new("spooled-postgres", Spools::default(), vec![postgres(), sqlite()])
            .half_compacted()
            .only(PART)
            .shared(),
    ])
}

#[cfg(not(all(feature = "sqlite", feature = "postgres", feature = "parquet")))]
fn main() {}
