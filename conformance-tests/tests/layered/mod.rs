//! In-memory stores inside layers, for the test targets of the layers.

use std::sync::Arc;

use async_trait::async_trait;
use conformance_tests::{Fixture, Store};
use storage_core::{InMemory, Result};

/// The in-memory backend, each handle wrapped by `wrap`.
pub(crate) struct Layered {
    pub(crate) name: &'static str,
    pub(crate) wrap: fn(InMemory) -> Store,
}

/// The in-memory backend as it is.
#[allow(dead_code, reason = "each test target compiles this module; not all are made of stores")]
pub(crate) fn memory() -> Arc<dyn Fixture> {
    Layered { name: "memory", wrap: |store| Arc::new(store) }.shared()
}

impl Layered {
    /// For [`conformance_tests::main_all`].
    #[allow(dead_code, reason = "each test target compiles this module; not all run two fixtures")]
    pub(crate) fn shared(self) -> Arc<dyn Fixture> {
        Arc::new(self)
    }
}

#[async_trait]
impl Fixture for Layered {
    fn name(&self) -> &str {
        self.name
    }

    async fn open(&self, location: &str) -> Result<Store> {
        Ok((self.wrap)(InMemory::open(location)))
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        InMemory::forget(location);
        Ok(())
    }
}
