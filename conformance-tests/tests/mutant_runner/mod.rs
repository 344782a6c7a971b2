//! Runs the cases of one part of a store against stores that are broken on purpose.
//!
//! `sound::*`: without a bug the wrapper passes. `bug::*`: each bug is caught by the case that is
//! meant for it. `case::*`: each case catches one bug at least.

pub(crate) mod locations;
pub(crate) mod moment;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use conformance_tests::cases::Need;
use conformance_tests::harness::run_case;
use conformance_tests::{Case, Fixture, table};
use libtest_mimic::{Arguments, Failed, Trial};

/// Long enough for every case on memory; a mutant that takes longer hangs.
const TIME_MAX: Duration = Duration::from_secs(20);

/// The bugs of a part, and how to make a store that has one.
pub(crate) struct Mutation<B: 'static> {
    /// Of which part the cases are.
    pub(crate) need: Need,
    /// No bug at all: the wrapper alone.
    pub(crate) none: B,
    /// Every bug, with the case that is there to catch it.
    pub(crate) bugs: &'static [(B, &'static str)],
    pub(crate) fixture: fn(B) -> Arc<dyn Fixture>,
}

impl<B: Copy + Debug + Send + Sync> Mutation<B> {
    pub(crate) fn main(&'static self) -> ! {
        let cases = || table().into_iter().filter(|case| case.needs == self.need);
        let sound = cases().map(|case| {
            let name = format!("sound::{}", case.name);
            Trial::test(name, move || Ok(self.run(&case, self.none)?))
        });
        let bugs = self.bugs.iter().map(|(bug, case)| {
            Trial::test(format!("bug::{bug:?}"), move || self.is_caught(*bug, case))
        });
        let caught = cases().map(|case| {
            Trial::test(format!("case::{}", case.name), move || self.catches_one(&case))
        });
        let trials = sound.chain(bugs).chain(caught).collect();
        libtest_mimic::run(&Arguments::from_args(), trials).exit()
    }

    fn run(&self, case: &Case, bug: B) -> Result<(), String> {
        let fixture = (self.fixture)(bug);
        run_case(&fixture, case, TIME_MAX).map_err(|failure| failure.to_string())
    }

    fn is_caught(&self, bug: B, case_name: &str) -> Result<(), Failed> {
        let case = table().into_iter().find(|case| case.name == case_name);
        let case = case.ok_or_else(|| format!("there is no case {case_name}"))?;
        match self.run(&case, bug) {
            Err(_) => Ok(()),
            Ok(()) => Err(format!("{case_name} passes in spite of {bug:?}").into()),
        }
    }

    /// Tries the bugs that are meant for the case, then the others.
    fn catches_one(&self, case: &Case) -> Result<(), Failed> {
        let mut bugs: Vec<_> = self.bugs.iter().collect();
        bugs.sort_by_key(|(_, meant)| *meant != case.name);
        match bugs.iter().any(|(bug, _)| self.run(case, *bug).is_err()) {
            true => Ok(()),
            false => {
                Err(format!("{} passes whatever the bug, of {}", case.name, bugs.len()).into())
            }
        }
    }
}
