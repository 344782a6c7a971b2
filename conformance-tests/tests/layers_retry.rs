//! The contract over `Retry`: around a sound backend, and around one that often refuses or dawdles.

mod layered;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use conformance_tests::Store;
use layered::Layered;
use storage_core::InMemory;
use storage_core::layers::{FaultPlan, Faulty, Operation, Retry, RetryPolicy};

fn sound(memory: InMemory) -> Store {
    Arc::new(Retry::new(memory, RetryPolicy::default()))
}

fn shaky(memory: InMemory) -> Store {
    static SEED: AtomicU64 = AtomicU64::new(0);
    // Not `health`: it tells how things are now, so `Retry` leaves it alone.
    let mut repeated = Operation::ALL.to_vec();
    repeated.retain(|operation| *operation != Operation::Health);
    let plan = FaultPlan::new(SEED.fetch_add(1, Ordering::Relaxed))
        .with_refused(0.05)
        .with_slow(0.05, Duration::from_millis(2))
        .only(&repeated);
    let policy = RetryPolicy::default()
        .with_attempts_max(u32::MAX)
        .with_delay_first(Duration::from_millis(1))
        .with_delay_max(Duration::from_millis(10));
    Arc::new(Retry::new(Faulty::new(memory, plan), policy))
}

fn main() {
    conformance_tests::main_all(vec![
        Layered { name: "retry", wrap: sound }.shared(),
        Layered { name: "retry-over-faulty", wrap: shaky }.shared(),
    ])
}
