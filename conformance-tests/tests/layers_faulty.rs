//! The contract over `Faulty` while its faults are off: all of them planned, none happens.

mod layered;

use std::sync::Arc;

use layered::Layered;
use storage_core::layers::{FaultPlan, Faulty};

fn main() {
    conformance_tests::main(Layered {
        name: "faulty",
        wrap: |memory| {
            let store = Faulty::new(memory, FaultPlan::new(1).with_coins(0.5, 0.5));
            store.control().off();
            Arc::new(store)
        },
    })
}
