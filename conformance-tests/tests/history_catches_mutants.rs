//! What [`suite_catches_mutants`](../suite_catches_mutants.rs) is for metrics, for record history:
//! histories that are broken on purpose run against its cases.

mod history_mutants;
mod mutant_runner;

use std::sync::Arc;

use conformance_tests::cases::Need;
use history_mutants::{Bug, Mutants};
use mutant_runner::Mutation;

static HISTORY: Mutation<Bug> = Mutation {
    need: Need::History,
    none: Bug::None,
    bugs: Bug::ALL,
    fixture: |bug| Arc::new(Mutants::new(bug)),
};

fn main() {
    HISTORY.main()
}
