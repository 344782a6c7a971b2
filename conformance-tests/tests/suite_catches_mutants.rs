//! The suite is only worth what it catches: here backends that are broken on purpose run
//! against it.
//!
//! `sound::*`: without a bug the wrapper passes, so that it is the bug that a case catches.
//! `bug::*`: each bug is caught by the case that is meant for it.
//! `case::*`: each case catches one bug at least, in each of its layouts.

mod mutants;

use std::sync::Arc;
use std::time::Duration;

use conformance_tests::cases::{Capability, Need};
use conformance_tests::harness::run_case;
use conformance_tests::{Case, Fixture, table};
use libtest_mimic::{Arguments, Failed, Trial};
use mutants::{Bug, Mutants};

/// Long enough for every case on memory; a mutant that takes longer hangs.
const TIME_MAX: Duration = Duration::from_secs(20);

/// For the mutant that is to hang.
const HANG_TIME_MAX: Duration = Duration::from_secs(1);

fn main() {
    let bugs = Bug::ALL
        .iter()
        .map(|(bug, case)| Trial::test(format!("bug::{bug:?}"), move || is_caught(*bug, case)));
    let cases = table()
        .into_iter()
        .filter(|case| !has_own_mutants(case))
        .map(|case| Trial::test(format!("case::{}", case.name), move || catches_one(&case)));
    let sound = table().into_iter().filter(|case| fits(case, Bug::None)).map(|case| {
        Trial::test(format!("sound::{}", case.name), move || Ok(run(&case, Bug::None)?))
    });
    let trials = sound.chain(bugs).chain(cases).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

fn run(case: &Case, bug: Bug) -> Result<(), String> {
    let fixture: Arc<dyn Fixture> = Arc::new(Mutants::new(bug));
    let time_max = if bug == Bug::CompactHangs { HANG_TIME_MAX } else { TIME_MAX };
    run_case(&fixture, case, time_max).map_err(|failure| failure.to_string())
}

/// Whether the suite would run the case on a backend with this bug.
fn fits(case: &Case, bug: Bug) -> bool {
    let has = |capability: Capability| capability.of(bug.capabilities());
    match case.needs {
        Need::Nothing => true,
        Need::Has(capability) => has(capability),
        Need::Lacks(capability) => !has(capability),
        Need::History | Need::Events | Need::Jobs => false,
    }
}

/// Whether the case is about a part that has mutants of its own.
fn has_own_mutants(case: &Case) -> bool {
    matches!(case.needs, Need::History | Need::Events | Need::Jobs)
}

fn is_caught(bug: Bug, case_name: &str) -> Result<(), Failed> {
    let case = table().into_iter().find(|case| case.name == case_name);
    let case = case.ok_or_else(|| format!("there is no case {case_name}"))?;
    if !fits(&case, bug) {
        return Err(format!("{case_name} is not run on this mutant").into());
    }
    match run(&case, bug) {
        Err(_) => Ok(()),
        Ok(()) => Err(format!("{case_name} passes in spite of {bug:?}").into()),
    }
}

/// Tries the bugs that are meant for the case, then those of its theme, then the others.
fn catches_one(case: &Case) -> Result<(), Failed> {
    let base = base_of(case.name);
    let theme = |name: &str| name.split("::").next().unwrap_or_default().to_owned();
    let mut bugs: Vec<_> = Bug::ALL.iter().filter(|(bug, _)| fits(case, *bug)).collect();
    bugs.retain(|(bug, _)| *bug != Bug::CompactHangs);
    bugs.sort_by_key(|(_, meant)| match meant {
        meant if base_of(meant) == base => 0,
        meant if theme(meant) == theme(base) => 1,
        _ => 2,
    });
    match bugs.iter().any(|(bug, _)| run(case, *bug).is_err()) {
        true => Ok(()),
        false => Err(format!("{} passes whatever the bug, of {}", case.name, bugs.len()).into()),
    }
}

/// The name of a case without its layout.
fn base_of(name: &str) -> &str {
    name.trim_end_matches("::compacted").trim_end_matches("::half_compacted")
}
