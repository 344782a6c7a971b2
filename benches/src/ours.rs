//! Our backend in a folder of its own, as the benches write to it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use storage_core::{MetricRecord, Result, StorageBackend};
use storage_sqlite::{SqliteBackend, SqliteOptions, Synchronous};
use tempfile::TempDir;

use crate::machine::scratch;
use crate::timing::Writes;

/// The modes of durability with their names in the results.
pub const MODES: [(&str, Synchronous); 2] =
    [("full", Synchronous::Full), ("normal", Synchronous::Normal)];

/// A store of ours; the files are gone when it is dropped.
#[derive(Debug)]
pub struct Ours {
    /// The backend.
    pub store: SqliteBackend,
    /// What was written through [`write`](Self::write).
    pub writes: Writes,
    dir: TempDir,
}

impl Ours {
    /// Opens an empty store with the default options but for `synchronous`.
    ///
    /// # Errors
    /// Those of the file system and of the backend.
    pub async fn open(
        synchronous: Synchronous,
    ) -> std::result::Result<Self, Box<dyn std::error::Error>> {
        let dir = scratch()?;
        let options = SqliteOptions::new(dir.path().join("bench.db")).synchronous(synchronous);
        let store = SqliteBackend::open(options).await?;
        Ok(Self { store, writes: Writes::default(), dir })
    }

    /// Writes a batch and takes the time.
    ///
    /// # Errors
    /// Those of the backend.
    pub async fn write(&mut self, records: &[MetricRecord]) -> Result<()> {
        let before = Instant::now();
        self.store.write_batch(records).await?;
        self.writes.acknowledged(before, records.len());
        Ok(())
    }

    /// Bytes on disk for each sample that is stored.
    ///
    /// # Errors
    /// Those of the backend.
    pub async fn bytes_per_sample(&self) -> Result<f64> {
        let stats = self.store.stats().await?;
        Ok(stats.disk_usage_bytes as f64 / stats.total_metrics as f64)
    }

    /// The file of the database.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("bench.db")
    }

    /// The folder that everything lies in.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }
}
