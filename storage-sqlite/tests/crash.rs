//! Writers are killed (SIGKILL) at random moments: nothing acknowledged is lost, nothing is torn.
//!
//! Blocks are sealed every few hundred samples, so that kills hit sealing, compacting and the
//! recovery of the last kill as well as writing. `STORAGE_KILLS` raises the number of kills,
//! `CONFORMANCE_SEED` chooses other moments.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use conformance_tests::crash::{DirFixture, KillPlan, Part, child_entry, kill_loop_on};
use conformance_tests::model_check::seed_from_env;
use conformance_tests::{CaseResult, Store};
use libtest_mimic::{Arguments, Failed, Trial};
use storage_core::Result;
use storage_sqlite::{SqliteBackend, SqliteOptions};

struct Sqlite;

#[async_trait]
impl DirFixture for Sqlite {
    fn name(&self) -> &str {
        "sqlite"
    }

    async fn open_in(&self, dir: &Path) -> Result<Store> {
        Ok(Arc::clone(self.open_store_in(dir).await?.metrics()))
    }

    async fn open_store_in(&self, dir: &Path) -> Result<storage_core::Store> {
        let options = SqliteOptions::new(dir.join("metrics.db"))
            .seal_samples(500)
            .seal_after(Duration::from_millis(100));
        Ok(SqliteBackend::open(options).await?.into())
    }
}

fn main() -> ExitCode {
    child_entry(&Sqlite);
    let arguments = Arguments::from_args();
    let trials = vec![
        trial("kill_9_random_points", Part::Metrics, 40, 1),
        // Each round kills both, one while the other still writes.
        trial("kill_9_two_writers", Part::Metrics, 10, 2),
        trial("kill_9_history", Part::History, 20, 1),
        trial("kill_9_history_two_writers", Part::History, 8, 2),
        trial("kill_9_history_four_writers", Part::History, 3, 4),
        trial("kill_9_events", Part::Events, 20, 1),
        trial("kill_9_events_two_writers", Part::Events, 8, 2),
        trial("kill_9_events_four_writers", Part::Events, 3, 4),
        trial("kill_9_jobs", Part::Jobs, 20, 1),
        trial("kill_9_jobs_two_workers", Part::Jobs, 8, 2),
        trial("kill_9_jobs_four_workers", Part::Jobs, 3, 4),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(name: &'static str, part: Part, rounds: u32, writers: usize) -> Trial {
    Trial::test(name, move || kill(name, part, rounds, writers))
}

fn kill(name: &str, part: Part, rounds: u32, writers: usize) -> Result<(), Failed> {
    let run = || -> CaseResult {
        let kills = std::env::var("STORAGE_KILLS").ok().and_then(|kills| kills.parse().ok());
        let seed = seed_from_env()?.unwrap_or(u64::from(rounds));
        let plan = KillPlan { kills: kills.unwrap_or(rounds), seed, writers };
        let report = kill_loop_on(Arc::new(Sqlite), part, plan)?;
        #[allow(clippy::print_stdout)] // what a run is worth
        {
            println!("{name}: {report}");
        }
        Ok(())
    };
    run().map_err(Failed::from)
}
