//! Writers are killed (SIGKILL) at random moments: nothing acknowledged is lost, nothing is torn.
//! The server lives on. `STORAGE_KILLS` raises the number of kills, `CONFORMANCE_SEED` chooses
//! other moments.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use conformance_tests::crash::{DirFixture, KillPlan, Part, child_entry, kill_loop_on};
use conformance_tests::model_check::seed_from_env;
use conformance_tests::{CaseResult, Store};
use libtest_mimic::{Arguments, Failed, Trial};
use storage_core::Result;
use storage_postgres::PostgresBackend;

#[path = "support/mod.rs"]
mod support;

use support::server::shared_trial;

struct Postgres;

/// The schema that stands for a directory.
fn schema_of(dir: &Path) -> String {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let fit = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    format!("crash{}", name.chars().map(fit).collect::<String>())
}

#[async_trait]
impl DirFixture for Postgres {
    fn name(&self) -> &str {
        "postgres"
    }

    async fn open_in(&self, dir: &Path) -> Result<Store> {
        Ok(Arc::clone(self.open_store_in(dir).await?.metrics()))
    }

    async fn open_store_in(&self, dir: &Path) -> Result<storage_core::Store> {
        let url = support::url().unwrap_or_default();
        Ok(PostgresBackend::open(support::options(&url, &schema_of(dir))).await?.into())
    }
}

fn main() -> ExitCode {
    child_entry(&Postgres);
    let trials = vec![
        trial("kill_9_random_points", Part::Metrics, 30, 1),
        // Each round kills both, one while the other still writes.
        trial("kill_9_two_writers", Part::Metrics, 8, 2),
        trial("kill_9_history", Part::History, 15, 1),
        trial("kill_9_history_two_writers", Part::History, 6, 2),
        trial("kill_9_events", Part::Events, 15, 1),
        trial("kill_9_events_two_writers", Part::Events, 6, 2),
        trial("kill_9_events_four_writers", Part::Events, 2, 4),
        trial("kill_9_jobs", Part::Jobs, 15, 1),
        trial("kill_9_jobs_two_workers", Part::Jobs, 6, 2),
        trial("kill_9_jobs_four_workers", Part::Jobs, 2, 4),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(name: &'static str, part: Part, rounds: u32, writers: usize) -> Trial {
    shared_trial(name, move || kill(name, part, rounds, writers))
}

fn kill(name: &str, part: Part, rounds: u32, writers: usize) -> Result<(), Failed> {
    let run = || -> CaseResult {
        let kills = std::env::var("STORAGE_KILLS").ok().and_then(|kills| kills.parse().ok());
        let seed = seed_from_env()?.unwrap_or(u64::from(rounds));
        let plan = KillPlan { kills: kills.unwrap_or(rounds), seed, writers };
        let report = kill_loop_on(Arc::new(Postgres), part, plan)?;
        #[allow(clippy::print_stdout)] // what a run is worth
        {
            println!("{name}: {report}");
        }
        Ok(())
    };
    run().map_err(Failed::from)
}
