//! The contract over `Tiered`: with everything hot, with everything archived wherever a case compacts,
//! and with the older half archived, so that late samples lie over cold ones.

mod layered;

use std::sync::Arc;

use conformance_tests::Fixture;
use conformance_tests::composed::{Archives, Composed, Tiers};
use layered::memory;

fn main() {
    let of = |name, archives| -> Arc<dyn Fixture> {
        Composed::new(name, Tiers::new(archives), vec![memory(), memory(), memory()]).shared()
    };
    conformance_tests::main_all(vec![
        of("tiered", Archives::Nothing),
        of("tiered-archived", Archives::All),
        of("tiered-half-archived", Archives::OlderHalf),
    ])
}
