//! SQLite passes the suite, with nothing ignored. Blocks are sealed early, so that sealed,
//! unsealed and half sealed data all occur.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use conformance_tests::Fixture;
use storage_core::{Result, StorageBackend, Store};
use storage_sqlite::{SqliteBackend, SqliteOptions};

struct Sqlite(PathBuf);

#[async_trait]
impl Fixture for Sqlite {
    fn name(&self) -> &str {
        "sqlite"
    }

    async fn open(&self, location: &str) -> Result<Arc<dyn StorageBackend>> {
        Ok(Arc::clone(self.open_store(location).await?.metrics()))
    }

    async fn open_store(&self, location: &str) -> Result<Store> {
        let options = SqliteOptions::new(self.0.join(location)).seal_samples(500);
        Ok(SqliteBackend::open(options).await?.into())
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        for suffix in ["", "-wal", "-shm"] {
            // What was never created need not be removed.
            let _ = std::fs::remove_file(self.0.join(format!("{location}{suffix}")));
        }
        Ok(())
    }
}

fn main() {
    conformance_tests::main(Sqlite(std::env::temp_dir()))
}
