//! The contract over the stack of layers that production uses.

mod layered;

use std::sync::Arc;

use layered::Layered;
use storage_core::layers::standard_stack;

fn main() {
    conformance_tests::main(Layered {
        name: "standard",
        wrap: |memory| Arc::new(standard_stack(memory)),
    })
}
