//! What [`suite_catches_mutants`](../suite_catches_mutants.rs) is for metrics, for the event store:
//! stores that are broken on purpose run against its cases.

mod events_mutants;
mod mutant_runner;

use std::sync::Arc;

use conformance_tests::cases::Need;
use events_mutants::{Bug, Mutants};
use mutant_runner::Mutation;

static EVENTS: Mutation<Bug> = Mutation {
    need: Need::Events,
    none: Bug::None,
    bugs: Bug::ALL,
    fixture: |bug| Arc::new(Mutants::new(bug)),
};

fn main() {
    EVENTS.main()
}
