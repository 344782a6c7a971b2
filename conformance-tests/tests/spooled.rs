//! The contract over `Spooled`: in front of a sound backend, and of one that often refuses a write,
//! so that batches take the way through the spool. (A write that is applied and not answered is
//! applied again, which the count of a prune beside it shows.)

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use conformance_tests::{Fixture, Store};
use storage_core::layers::{FaultPlan, Faulty, Operation, RetryPolicy};
use storage_core::pipeline::{Spool, SpoolLimits, Spooled};
use storage_core::{InMemory, Result};

/// In-memory stores; all handles to a location share a spool, as the contract of `Spooled` asks.
struct Fronted {
    name: &'static str,
    faults: fn() -> FaultPlan,
    opt_outs: &'static [(&'static str, &'static str)],
    spools: Mutex<HashMap<String, Spool>>,
}

impl Fronted {
    fn shared(
        name: &'static str,
        faults: fn() -> FaultPlan,
        opt_outs: &'static [(&'static str, &'static str)],
    ) -> Arc<dyn Fixture> {
        Arc::new(Self { name, faults, opt_outs, spools: Mutex::default() })
    }

    async fn spool(&self, location: &str) -> Result<Spool> {
        let spools = || self.spools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(spool) = spools().get(location) {
            return Ok(spool.clone());
        }
        let spool = Spool::open(Arc::new(InMemory::new()), SpoolLimits::default()).await?;
        // Another handle may have been faster.
        Ok(spools().entry(location.to_owned()).or_insert(spool).clone())
    }
}

#[async_trait]
impl Fixture for Fronted {
    fn name(&self) -> &str {
        self.name
    }

    async fn open(&self, location: &str) -> Result<Store> {
        let inner = Faulty::new(InMemory::open(location), (self.faults)());
        let retry = RetryPolicy::default()
            .with_delay_first(Duration::from_millis(1))
            .with_delay_max(Duration::from_millis(10));
        Ok(Arc::new(Spooled::with_retry(inner, self.spool(location).await?, retry)))
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        self.spools.lock().unwrap_or_else(PoisonError::into_inner).remove(location);
        InMemory::forget(location);
        Ok(())
    }

    fn opt_outs(&self) -> &[(&'static str, &'static str)] {
        self.opt_outs
    }
}

/// A batch in the spool is no error, and still to be told.
const OPT_OUTS: &[(&str, &str)] =
    &[("lifecycle::health_is_healthy_empty_and_filled", "batches wait in the spool")];

fn sound() -> FaultPlan {
    FaultPlan::new(1)
}

fn shaky() -> FaultPlan {
    static SEED: AtomicU64 = AtomicU64::new(0);
    FaultPlan::new(SEED.fetch_add(1, Ordering::Relaxed))
        .with_refused(0.3)
        .only(&[Operation::WriteBatch])
}

fn main() {
    conformance_tests::main_all(vec![
        Fronted::shared("spooled", sound, &[]),
        Fronted::shared("spooled-over-faulty", shaky, OPT_OUTS),
    ])
}
