//! The contract over `Spooled`: in front of a sound backend, and of one that often refuses a write,
//! so that batches take the way through the spool. (A write that is applied and not answered is
//! applied again, which the count of a prune beside it shows.)

mod layered;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use conformance_tests::composed::{Composed, Spools};
use conformance_tests::{Fixture, Store};
use layered::{Layered, memory};
use storage_core::InMemory;
use storage_core::layers::{FaultPlan, Faulty, Operation};

fn shaky(behind: InMemory) -> Store {
    static SEED: AtomicU64 = AtomicU64::new(0);
    let plan = FaultPlan::new(SEED.fetch_add(1, Ordering::Relaxed))
        .with_refused(0.3)
        .only(&[Operation::WriteBatch]);
    Arc::new(Faulty::new(behind, plan))
}

fn main() {
    let of = |name, spools, behind| -> Arc<dyn Fixture> {
        Composed::new(name, spools, vec![behind, memory()]).shared()
    };
    let refusing = Layered { name: "refusing", wrap: shaky }.shared();
    conformance_tests::main_all(vec![
        of("spooled", Spools::default(), memory()),
        of("spooled-over-faulty", Spools::default().behind_refuses(), refusing),
    ])
}
