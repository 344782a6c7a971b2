//! The contract over `Rolled`: with nothing rolled up, and with everything rolled up wherever a case
//! compacts, so that later samples are late.

mod layered;

use std::sync::Arc;

use conformance_tests::Fixture;
use conformance_tests::composed::{Composed, Refreshes, Rollups};
use layered::memory;
use storage_core::pipeline::RollupTier;

fn main() {
    let of = |name, refreshes| -> Arc<dyn Fixture> {
        let rollups = Rollups::new(refreshes, &RollupTier::DEFAULT_WIDTHS);
        Composed::new(name, rollups, (0..5).map(|_| memory()).collect()).shared()
    };
    conformance_tests::main_all(vec![
        of("rolled", Refreshes::Never),
        of("rolled-refreshed", Refreshes::Always),
    ])
}
