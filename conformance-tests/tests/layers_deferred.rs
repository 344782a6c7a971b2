//! The contract over `Deferred`: a store that is there, and one that was away when it was to be opened.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use conformance_tests::{Fixture, Store};
use storage_core::layers::{Deferred, RetryPolicy};
use storage_core::{Error, ErrorKind, InMemory, Result};

struct Late {
    name: &'static str,
    /// How many attempts fail.
    failures: u32,
}

#[async_trait]
impl Fixture for Late {
    fn name(&self) -> &str {
        self.name
    }

    async fn open(&self, location: &str) -> Result<Store> {
        let (location, failures) = (location.to_owned(), self.failures);
        let attempts = AtomicU32::new(0);
        let opener = move || {
            let is_away = attempts.fetch_add(1, Ordering::Relaxed) < failures;
            let location = location.clone();
            async move {
                if is_away {
                    return Err(Error::new(ErrorKind::Unavailable, "not there yet"));
                }
                Ok(InMemory::open(&location))
            }
        };
        let retry = RetryPolicy::default().with_delay_first(Duration::from_millis(1));
        let store = Deferred::open_with(opener, retry, Duration::from_secs(5)).await?;
        store.opened().await?;
        Ok(Arc::new(store))
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        InMemory::forget(location);
        Ok(())
    }
}

fn main() {
    let of = |name, failures| -> Arc<dyn Fixture> { Arc::new(Late { name, failures }) };
    conformance_tests::main_all(vec![of("deferred", 0), of("deferred-late", 2)])
}
