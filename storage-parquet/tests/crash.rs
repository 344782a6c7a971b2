//! Writers are killed (SIGKILL) at random moments: nothing acknowledged is lost, nothing is torn.
//!
//! Rows are merged every few hundred samples, so that kills hit merging, publishing, clearing away
//! and the recovery of the last kill as well as writing. `STORAGE_KILLS` raises the number of kills,
//! `CONFORMANCE_SEED` chooses other moments.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use conformance_tests::crash::{DirFixture, KillPlan, child_entry, kill_loop};
use conformance_tests::model_check::seed_from_env;
use conformance_tests::{CaseResult, Store};
use libtest_mimic::{Arguments, Failed, Trial};
use storage_core::Result;
use storage_parquet::{ParquetBackend, ParquetOptions};

struct Parquet;

#[async_trait]
impl DirFixture for Parquet {
    fn name(&self) -> &str {
        "parquet"
    }

    async fn open_in(&self, dir: &Path) -> Result<Store> {
        let options = ParquetOptions::new(dir.join("archive"))
            .merge_samples(500)
            .merge_after(Duration::from_millis(100))
            .hour_samples(2_000);
        Ok(Arc::new(ParquetBackend::open(options).await?))
    }
}

fn main() -> ExitCode {
    child_entry(&Parquet);
    let arguments = Arguments::from_args();
    let trials = vec![
        Trial::test("kill_9_random_points", || kill("kill_9_random_points", 40, 1)),
        // Each round kills both, one while the other still writes.
        Trial::test("kill_9_two_writers", || kill("kill_9_two_writers", 10, 2)),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn kill(name: &str, rounds: u32, writers: usize) -> Result<(), Failed> {
    let run = || -> CaseResult {
        let kills = std::env::var("STORAGE_KILLS").ok().and_then(|kills| kills.parse().ok());
        let seed = seed_from_env()?.unwrap_or(u64::from(rounds));
        let plan = KillPlan { kills: kills.unwrap_or(rounds), seed, writers };
        let report = kill_loop(Arc::new(Parquet), plan)?;
        #[allow(clippy::print_stdout)] // what a run is worth
        {
            println!("{name}: {report}");
        }
        Ok(())
    };
    run().map_err(Failed::from)
}
