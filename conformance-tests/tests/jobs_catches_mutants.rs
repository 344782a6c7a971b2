//! What [`suite_catches_mutants`](../suite_catches_mutants.rs) is for metrics, for jobs: stores of
//! jobs that are broken on purpose run against their cases.

mod job_mutants;
mod mutant_runner;

use std::sync::Arc;

use conformance_tests::cases::Need;
use job_mutants::{Bug, Mutants};
use mutant_runner::Mutation;

static JOBS: Mutation<Bug> = Mutation {
    need: Need::Jobs,
    none: Bug::None,
    bugs: Bug::ALL,
    fixture: |bug| Arc::new(Mutants::new(bug)),
};

fn main() {
    JOBS.main()
}
