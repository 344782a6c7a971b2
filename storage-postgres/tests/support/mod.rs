//! What the test targets share: the server that the environment names, and stores on it; servers of
//! their own; a proxy in front of one.
#![allow(dead_code, clippy::unwrap_used)] // each target uses a part of it

pub(crate) mod proxy;
pub(crate) mod server;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use conformance_tests::Fixture;
use storage_core::{HealthStatus, Result, StorageBackend, Store};
use storage_postgres::{PostgresBackend, PostgresOptions, Tier, UseTimescale};
use tokio_postgres::error::SqlState;

/// The variable that names a server for the tests: `scripts/postgres with COMMAND` sets it.
pub(crate) const URL: &str = "STORAGE_TEST_POSTGRES_URL";

/// The server for tests, if there is one.
pub(crate) fn url() -> Option<String> {
    std::env::var(URL).ok().filter(|url| !url.is_empty())
}

/// Options for the schema `schema` on the server at `url`: few connections, as many tests run side
/// by side.
pub(crate) fn options(url: &str, schema: &str) -> PostgresOptions {
    let options = PostgresOptions::from_url(url).unwrap();
    options.schema(schema).unwrap().pool_size(3).partitions_ahead(1)
}

/// Midnight 30 days before the tests began: near enough to now for partitions of a day each.
pub(crate) fn start_ms() -> i64 {
    const DAY_MS: i64 = 86_400_000;
    static START_MS: OnceLock<i64> = OnceLock::new();
    *START_MS.get_or_init(|| {
        let now_ms = chrono::Utc::now().timestamp_millis();
        now_ms - now_ms.rem_euclid(DAY_MS) - 30 * DAY_MS
    })
}

/// Connects to the server without the library.
pub(crate) async fn raw(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Removes a schema with all its tables.
///
/// TimescaleDB looks at chunks of its catalog without locking them, and fails where a removal beside
/// it takes one of them away: that says nothing of the store, and the next attempt finds it gone.
pub(crate) async fn drop_schema(url: &str, schema: &str) {
    let sql = format!("SET lock_timeout = '20s'; DROP SCHEMA IF EXISTS \"{schema}\" CASCADE");
    let client = raw(url).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = client.batch_execute(&sql).await {
        let goes_on = is_failed_lookup(&error) && Instant::now() < deadline;
        assert!(goes_on, "{schema} cannot be removed: {error:?}");
    }
}

fn is_failed_lookup(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|error| {
        *error.code() == SqlState::INTERNAL_ERROR
            && error.message().starts_with("cache lookup failed for relation")
    })
}

/// Runs a future on a runtime of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

/// Polls until something is so, and fails if that takes longer than `patience`.
pub(crate) async fn eventually(
    patience: Duration,
    what: &str,
    mut is_so: impl AsyncFnMut() -> bool,
) {
    let deadline = Instant::now() + patience;
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        tokio::task::yield_now().await;
    }
}

/// Nothing is wrong with a store, and it takes writes.
pub(crate) async fn assert_sound(store: &dyn StorageBackend) {
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
    assert_eq!(store.health().await.status, HealthStatus::Healthy);
}

/// Stores for the suite, each location a schema.
pub(crate) struct Postgres {
    name: &'static str,
    variable: &'static str,
    /// What the store must use, so that no run proves less than it says.
    tier: Tier,
}

impl Postgres {
    pub(crate) fn plain(name: &'static str) -> Self {
        Self { name, variable: URL, tier: Tier::Plain }
    }

    pub(crate) fn timescale(name: &'static str, variable: &'static str, tier: Tier) -> Self {
        Self { name, variable, tier }
    }

    fn url(&self) -> String {
        std::env::var(self.variable).unwrap_or_default()
    }
}

#[async_trait]
impl Fixture for Postgres {
    fn name(&self) -> &str {
        self.name
    }

    async fn open(&self, location: &str) -> Result<Arc<dyn StorageBackend>> {
        Ok(Arc::clone(self.open_store(location).await?.metrics()))
    }

    async fn open_store(&self, location: &str) -> Result<Store> {
        let has_timescale = self.tier != Tier::Plain;
        let used = if has_timescale { UseTimescale::Auto } else { UseTimescale::Off };
        let options = options(&self.url(), location).use_timescale(used);
        let store = PostgresBackend::open(options).await?;
        assert_eq!(store.uses_timescale(), has_timescale);
        assert!(!has_timescale || store.tier() == self.tier, "{:?}", store.tier());
        Ok(store.into())
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        drop_schema(&self.url(), location).await;
        Ok(())
    }

    fn unavailable(&self) -> Option<String> {
        let missing = || format!("{} is not set; see scripts/postgres", self.variable);
        self.url().is_empty().then(missing)
    }
}
