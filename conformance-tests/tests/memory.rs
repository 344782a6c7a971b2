//! The in-memory backend passes the suite, with nothing ignored but twins.

use std::sync::Arc;

use async_trait::async_trait;
use conformance_tests::Fixture;
use storage_core::{InMemory, Result, StorageBackend, Store};

struct Memory;

#[async_trait]
impl Fixture for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    async fn open(&self, location: &str) -> Result<Arc<dyn StorageBackend>> {
        Ok(Arc::new(InMemory::open(location)))
    }

    async fn open_store(&self, location: &str) -> Result<Store> {
        Ok(InMemory::open(location).into())
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        InMemory::forget(location);
        Ok(())
    }
}

fn main() {
    conformance_tests::main(Memory)
}
