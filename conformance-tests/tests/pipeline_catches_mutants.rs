//! What [`suite_catches_mutants`](../suite_catches_mutants.rs) is for backends, for what is made of
//! them: tiers, mirrors, rollups, copies, spools and the actor, each broken in one way, run against
//! the tests of `storage-core`.
//!
//! Such bugs lie between two steps of a move or between two tasks, where no wrapper gets in. So they
//! are woven into a copy of `storage-core`, all of them at once and each behind a switch; the copy is
//! built once, with its own tests, and a switch is thrown by the environment.
//!
//! `sound::*`: with no switch thrown a test passes, so that it is the bug that it catches.
//! `bug::*`: each bug makes the test fail that is meant for it.

mod pipeline_mutants;

use std::collections::BTreeSet;

use libtest_mimic::{Arguments, Trial};
use pipeline_mutants::build::built;
use pipeline_mutants::run::{Ended, run};
use pipeline_mutants::{Mutant, Test, all};

fn main() {
    let tests: BTreeSet<_> = all().map(|mutant| mutant.caught_by).collect();
    let sound = tests
        .into_iter()
        .map(|test| Trial::test(format!("sound::{}", test.name()), move || Ok(is_sound(test)?)));
    let bugs = all()
        .map(|mutant| Trial::test(format!("bug::{}", mutant.name), move || Ok(is_caught(mutant)?)));
    libtest_mimic::run(&Arguments::from_args(), sound.chain(bugs).collect()).exit()
}

fn is_sound(test: Test) -> Result<(), String> {
    match run(built()?, test, None)? {
        Ended::Passed => Ok(()),
        ended => Err(format!("{} without any bug: {ended:?}", test.name())),
    }
}

fn is_caught(mutant: &Mutant) -> Result<(), String> {
    match run(built()?, mutant.caught_by, Some(mutant))? {
        Ended::Failed => Ok(()),
        ended => Err(format!("{} in spite of the bug: {ended:?}", mutant.caught_by.name())),
    }
}
