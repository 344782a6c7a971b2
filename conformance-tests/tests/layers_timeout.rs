//! The contract over `Timeout`.

mod layered;

use std::sync::Arc;

use layered::Layered;
use storage_core::layers::{Timeout, Timeouts};

fn main() {
    conformance_tests::main(Layered {
        name: "timeout",
        wrap: |memory| Arc::new(Timeout::new(memory, Timeouts::default())),
    })
}
