//! The smaller sections: one for each backend, the spool, and what is collected.

use serde::{Deserialize, Serialize};

use super::age::Age;
use super::without_secrets;

/// The backends by the names that the configuration has for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendName {
    /// A SQLite file.
    #[default]
    Sqlite,
    /// A PostgreSQL server.
    Postgres,
    /// Parquet files in a directory or an object store.
    Parquet,
    /// Nothing that lasts: to try things out.
    Memory,
}

/// Where the SQLite file lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SqliteConfig {
    /// Its path. Directories that are missing are made.
    pub path: String,
}

impl Default for SqliteConfig {
    fn default() -> Self {
        Self { path: "metrics.db".to_owned() }
    }
}

/// How the PostgreSQL server is reached.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PostgresConfig {
    /// `postgres://user:password@host:port/database?...`
    pub url: String,
    /// How many connections questions use at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_size: Option<u32>,
}

impl std::fmt::Debug for PostgresConfig {
    /// Without the URL: it may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("PostgresConfig");
        shown.field("pool_size", &self.pool_size).finish_non_exhaustive()
    }
}

/// Where Parquet files lie.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ParquetConfig {
    /// A directory, or `s3://bucket/prefix` (also `gs://`, `az://`).
    pub base_path: String,
    /// How many records make a batch, and so a new file; it takes the place of `buffer_size`.
    pub batch_size: usize,
}

impl std::fmt::Debug for ParquetConfig {
    /// Without what is in a URL: it may be a key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParquetConfig")
            .field("base_path", &without_secrets(&self.base_path))
            .field("batch_size", &self.batch_size)
            .finish()
    }
}

impl Default for ParquetConfig {
    fn default() -> Self {
        Self { base_path: "parquet".to_owned(), batch_size: 10_000 }
    }
}

/// Where records wait while the store is away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SpoolConfig {
    /// A SQLite file of its own. Directories that are missing are made.
    pub path: String,
    /// The most records.
    pub records_max: u64,
    /// The most bytes.
    pub bytes_max: u64,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        let limits = storage_core::pipeline::SpoolLimits::default();
        Self {
            path: "spool.db".to_owned(),
            records_max: limits.records_max(),
            bytes_max: limits.bytes_max(),
        }
    }
}

/// What is measured of the machine itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CollectConfig {
    /// Time between two samples.
    pub interval: Age,
    /// Name to store them under; the host name if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
}

impl Default for CollectConfig {
    fn default() -> Self {
        Self { interval: Age(std::time::Duration::from_secs(1)), server: None }
    }
}
