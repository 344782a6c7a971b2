//! The contract over `Observe`.

mod layered;

use std::sync::Arc;

use layered::Layered;
use storage_core::layers::Observe;

fn main() {
    conformance_tests::main(Layered {
        name: "observe",
        wrap: |memory| Arc::new(Observe::new(memory)),
    })
}
