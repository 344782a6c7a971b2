//! The power is cut under a writer, at random moments and after it has stopped: nothing that was
//! acknowledged is lost.
//!
//! `STORAGE_CUTS` raises the number of cuts, `CONFORMANCE_SEED` chooses other moments. Needs root:
//! see `conformance_tests::power_cut`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use conformance_tests::crash::{DirFixture, child_entry};
use conformance_tests::model_check::seed_from_env;
use conformance_tests::power_cut::{Losses, PowerCutPlan, cut_loop, trial};
use conformance_tests::{CaseResult, Failure, Store};
use libtest_mimic::Arguments;
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
    let trials = vec![trial("power_cuts_lose_nothing", power_cuts_lose_nothing)];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn power_cuts_lose_nothing() -> CaseResult {
    let cuts = std::env::var("STORAGE_CUTS").ok().and_then(|cuts| cuts.parse().ok()).unwrap_or(20);
    let seed = seed_from_env()?.unwrap_or(1);
    let plan = PowerCutPlan { cuts, seed, quiesce_every_second: true, losses: Losses::Fail };
    let report = cut_loop(Arc::new(Parquet), plan)?;
    #[allow(clippy::print_stdout)] // what a run is worth
    {
        println!("power_cuts_lose_nothing: {report}");
    }
    match report.lost {
        0 => Ok(()),
        lost => Err(Failure::new(format!("{lost} batches lost"))),
    }
}
