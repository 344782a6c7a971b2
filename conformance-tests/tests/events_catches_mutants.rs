//! What [`suite_catches_mutants`](../suite_catches_mutants.rs) is for metrics, for the event store:
//! stores that are broken on purpose run against its cases.
//!
//! `sound::*`: without a bug the wrapper passes. `bug::*`: each bug is caught by the case that is
//! meant for it. `case::*`: each case catches one bug at least.

mod events_mutants;

use std::sync::Arc;
use std::time::Duration;

use conformance_tests::cases::Need;
use conformance_tests::harness::run_case;
use conformance_tests::{Case, Fixture, table};
use events_mutants::{Bug, Mutants};
use libtest_mimic::{Arguments, Failed, Trial};

/// Long enough for every case on memory; a mutant that takes longer hangs.
const TIME_MAX: Duration = Duration::from_secs(20);

fn main() {
    let cases: Vec<Case> = table().into_iter().filter(|case| case.needs == Need::Events).collect();
    let bugs = Bug::ALL
        .iter()
        .map(|(bug, case)| Trial::test(format!("bug::{bug:?}"), move || is_caught(*bug, case)));
    let caught = cases
        .iter()
        .copied()
        .map(|case| Trial::test(format!("case::{}", case.name), move || catches_one(&case)));
    let sound = cases.iter().copied().map(|case| {
        Trial::test(format!("sound::{}", case.name), move || Ok(run(&case, Bug::None)?))
    });
    let trials = sound.chain(bugs).chain(caught).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

fn run(case: &Case, bug: Bug) -> Result<(), String> {
    let fixture: Arc<dyn Fixture> = Arc::new(Mutants::new(bug));
    run_case(&fixture, case, TIME_MAX).map_err(|failure| failure.to_string())
}

fn is_caught(bug: Bug, case_name: &str) -> Result<(), Failed> {
    let case = table().into_iter().find(|case| case.name == case_name);
    let case = case.ok_or_else(|| format!("there is no case {case_name}"))?;
    match run(&case, bug) {
        Err(_) => Ok(()),
        Ok(()) => Err(format!("{case_name} passes in spite of {bug:?}").into()),
    }
}

/// Tries the bugs that are meant for the case, then the others.
fn catches_one(case: &Case) -> Result<(), Failed> {
    let mut bugs: Vec<_> = Bug::ALL.iter().collect();
    bugs.sort_by_key(|(_, meant)| *meant != case.name);
    match bugs.iter().any(|(bug, _)| run(case, *bug).is_err()) {
        true => Ok(()),
        false => Err(format!("{} passes whatever the bug, of {}", case.name, bugs.len()).into()),
    }
}
