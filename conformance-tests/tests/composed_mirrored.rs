//! The contract over `Mirrored`: with a sound secondary, and with one that fails often while writes
//! go on.

use std::sync::Arc;

use async_trait::async_trait;
use conformance_tests::{Fixture, Store};
use storage_core::compose::{MirrorPolicy, Mirrored};
use storage_core::layers::{FaultPlan, Faulty, Operation};
use storage_core::{InMemory, Result};

struct Mirrors {
    name: &'static str,
    wrap: fn(InMemory, InMemory) -> Mirrored,
}

#[async_trait]
impl Fixture for Mirrors {
    fn name(&self) -> &str {
        self.name
    }

    async fn open(&self, location: &str) -> Result<Store> {
        let secondary = InMemory::open(&format!("{location}_secondary"));
        Ok(Arc::new((self.wrap)(InMemory::open(location), secondary)))
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        InMemory::forget(location);
        InMemory::forget(&format!("{location}_secondary"));
        Ok(())
    }
}

fn sound(primary: InMemory, secondary: InMemory) -> Mirrored {
    Mirrored::new(Arc::new(primary), Arc::new(secondary), MirrorPolicy::Require)
}

fn shaky(primary: InMemory, secondary: InMemory) -> Mirrored {
    // Not `health`, which tells of it; not `check` and `close`, which are asked of both.
    let failing =
        [Operation::WriteBatch, Operation::PruneBefore, Operation::Flush, Operation::Compact];
    let plan = FaultPlan::new(7).with_coins(0.8, 0.8).only(&failing);
    let secondary = Faulty::new(secondary, plan);
    Mirrored::new(Arc::new(primary), Arc::new(secondary), MirrorPolicy::Degrade)
}

fn main() {
    let of = |name, wrap| -> Arc<dyn Fixture> { Arc::new(Mirrors { name, wrap }) };
    conformance_tests::main_all(vec![of("mirrored", sound), of("mirrored-degraded", shaky)])
}
