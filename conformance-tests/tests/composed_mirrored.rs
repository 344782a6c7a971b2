//! The contract over `Mirrored`: with a sound secondary, and with one that fails often while writes
//! go on.

mod layered;

use std::sync::Arc;

use conformance_tests::composed::{Composed, Mirror};
use conformance_tests::{Fixture, Store};
use layered::{Layered, memory};
use storage_core::InMemory;
use storage_core::compose::MirrorPolicy;
use storage_core::layers::{FaultPlan, Faulty, Operation};

fn shaky(secondary: InMemory) -> Store {
    // Not `health`, which tells of it; not `check` and `close`, which are asked of both.
    let failing =
        [Operation::WriteBatch, Operation::PruneBefore, Operation::Flush, Operation::Compact];
    let plan = FaultPlan::new(7).with_coins(0.8, 0.8).only(&failing);
    Arc::new(Faulty::new(secondary, plan))
}

fn main() {
    let of = |name, policy, secondary| -> Arc<dyn Fixture> {
        Composed::new(name, Mirror::new(policy), vec![memory(), secondary]).shared()
    };
    let failing = Layered { name: "failing", wrap: shaky }.shared();
    conformance_tests::main_all(vec![
        of("mirrored", MirrorPolicy::Require, memory()),
        of("mirrored-degraded", MirrorPolicy::Degrade, failing),
    ])
}
