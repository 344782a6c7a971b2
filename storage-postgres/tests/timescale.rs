//! PostgreSQL with TimescaleDB passes the suite: the Apache edition where `scripts/timescale` runs
//! it, the Community edition where `STORAGE_TEST_TIMESCALE_URL` names such a server.
//!
//! Each store is a hypertable of that edition. One that is not there is one ignored test, or a failed
//! one where `CONFORMANCE_REQUIRE` names it; `all` means the Apache edition, too, since that can be
//! had by everybody.
#![allow(clippy::unwrap_used)]

#[path = "support/mod.rs"]
mod support;

use std::sync::Arc;

use conformance_tests::Fixture;
use libtest_mimic::{Arguments, Trial};
use storage_postgres::Tier;
use support::Postgres;

const EDITIONS: [(&str, &str, Tier); 2] = [
    ("timescale_apache", "STORAGE_TEST_TIMESCALE_APACHE_URL", Tier::Apache),
    ("timescale_community", support::server::COMMUNITY_URL, Tier::Community),
];

fn main() {
    let is_there = |variable| std::env::var(variable).is_ok_and(|url: String| !url.is_empty());
    let mut fixtures: Vec<Arc<dyn Fixture>> = Vec::new();
    let mut absent = Vec::new();
    for (name, variable, tier) in EDITIONS {
        match is_there(variable) {
            true => fixtures.push(Arc::new(Postgres::timescale(name, variable, tier))),
            false => absent.push(trial_of_absent(name, variable)),
        }
    }
    // What is absent first, then the suite over what is there. A report has no place for the former.
    let is_report = std::env::args().any(|word| word.starts_with("--report"));
    if !is_report || fixtures.is_empty() {
        libtest_mimic::run(&Arguments::from_args(), absent).exit_if_failed();
    }
    if !fixtures.is_empty() {
        conformance_tests::main_all(fixtures);
    }
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
