//! Runs the conformance suite over every backend that this build has and prints the table of
//! capabilities and results: what `docs/guide/report.md` is made of, see `scripts/report`.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use async_trait::async_trait;
use conformance_tests::{Fixture, Store};
use storage::sqlite::{SqliteBackend, SqliteOptions};
use storage::{InMemory, Result};

struct Memory;

#[async_trait]
impl Fixture for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    async fn open(&self, location: &str) -> Result<Store> {
        Ok(Arc::new(InMemory::open(location)))
    }

    async fn open_store(&self, location: &str) -> Result<storage::Store> {
        Ok(InMemory::open(location).into())
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        InMemory::forget(location);
        Ok(())
    }
}

struct Sqlite(tempfile::TempDir);

#[async_trait]
impl Fixture for Sqlite {
    fn name(&self) -> &str {
        "sqlite"
    }

    async fn open(&self, location: &str) -> Result<Store> {
        Ok(Arc::clone(self.open_store(location).await?.metrics()))
    }

    async fn open_store(&self, location: &str) -> Result<storage::Store> {
        let options = SqliteOptions::new(self.0.path().join(location));
        Ok(SqliteBackend::open(options).await?.into())
    }

    async fn destroy(&self, _location: &str) -> Result<()> {
        // The directory goes as a whole.
        Ok(())
    }
}

fn main() -> std::io::Result<()> {
    let fixtures: Vec<Arc<dyn Fixture>> =
        vec![Arc::new(Memory), Arc::new(Sqlite(tempfile::tempdir()?))];
    print!("{}", conformance_tests::report::report(&fixtures));
    Ok(())
}
