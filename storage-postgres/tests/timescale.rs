//! PostgreSQL with TimescaleDB passes the suite: the Apache edition where `scripts/timescale` runs
//! it, the Community edition where `STORAGE_TEST_TIMESCALE_URL` names such a server.
//!
//! An edition that is not there is one ignored test, or a failed one where `CONFORMANCE_REQUIRE`
//! names it; `all` means the Apache edition, too, since that can be had by everybody.
#![allow(clippy::unwrap_used)]

#[path = "support/mod.rs"]
mod support;

use std::sync::Arc;

use conformance_tests::Fixture;
use libtest_mimic::{Arguments, Trial};
use support::Postgres;

const EDITIONS: [(&str, &str); 2] = [
    ("timescale_apache", "STORAGE_TEST_TIMESCALE_APACHE_URL"),
    ("timescale_community", support::server::COMMUNITY_URL),
];

fn main() {
    let is_there = |variable| std::env::var(variable).is_ok_and(|url: String| !url.is_empty());
    let mut fixtures: Vec<Arc<dyn Fixture>> = Vec::new();
    let mut absent = Vec::new();
    for (name, variable) in EDITIONS {
        match is_there(variable) {
            true => fixtures.push(Arc::new(Postgres::timescale(name, variable))),
            false => absent.push(trial_of_absent(name, variable)),
        }
    }
    // What is absent is shown by whoever runs nothing else; the suite runs what is there.
    if fixtures.is_empty() {
        libtest_mimic::run(&Arguments::from_args(), absent).exit();
    }
    conformance_tests::main_all(fixtures);
}

fn trial_of_absent(name: &str, variable: &str) -> Trial {
    let reason = format!("{variable} is not set");
    let required = std::env::var("CONFORMANCE_REQUIRE").unwrap_or_default();
    let by_all = name == EDITIONS[0].0;
    let is_required = required
        .split(',')
        .map(str::trim)
        .any(|word| word == name || by_all && ["all", "1"].contains(&word));
    let failure = reason.clone();
    let trial = Trial::test(format!("{name}::is_there"), move || Err(failure.into()));
    if is_required { trial } else { trial.with_ignored_flag(true).with_kind(reason) }
}
