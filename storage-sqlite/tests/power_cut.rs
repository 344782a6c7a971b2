//! The power is cut under a writer: with `Synchronous::Full`, the default, nothing acknowledged is
//! lost; with `Normal` the same test does see losses, so it would see them with `Full`.
//!
//! `STORAGE_CUTS` raises the number of cuts, `CONFORMANCE_SEED` chooses other moments. Needs root:
//! see `conformance_tests::power_cut`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use conformance_tests::crash::{DirFixture, Part, child_entry};
use conformance_tests::model_check::seed_from_env;
use conformance_tests::power_cut::{Losses, PowerCutPlan, PowerCutReport, cut_loop_on, trial};
use conformance_tests::{CaseResult, Failure, Store};
use libtest_mimic::Arguments;
use storage_core::Result;
use storage_sqlite::{SqliteBackend, SqliteOptions, Synchronous};

struct Sqlite(Synchronous);

#[async_trait]
impl DirFixture for Sqlite {
    fn name(&self) -> &str {
        match self.0 {
            Synchronous::Full => "sqlite_full",
            Synchronous::Normal => "sqlite_normal",
        }
    }

    async fn open_in(&self, dir: &Path) -> Result<Store> {
        Ok(Arc::clone(self.open_store_in(dir).await?.metrics()))
    }

    async fn open_store_in(&self, dir: &Path) -> Result<storage_core::Store> {
        let options = SqliteOptions::new(dir.join("metrics.db"))
            .synchronous(self.0)
            .seal_samples(500)
            .seal_after(Duration::from_millis(100));
        Ok(SqliteBackend::open(options).await?.into())
    }
}

fn main() -> ExitCode {
    child_entry(&Sqlite(Synchronous::Full));
    child_entry(&Sqlite(Synchronous::Normal));
    let arguments = Arguments::from_args();
    let trials = vec![
        trial("full_loses_nothing", || full_loses_nothing("full_loses_nothing", Part::Metrics)),
        trial("full_loses_no_history", || {
            full_loses_nothing("full_loses_no_history", Part::History)
        }),
        trial("full_loses_no_events", || full_loses_nothing("full_loses_no_events", Part::Events)),
        trial("full_loses_no_jobs", || full_loses_nothing("full_loses_no_jobs", Part::Jobs)),
        trial("normal_loses_what_was_not_synced", || {
            normal_loses("normal_loses_what_was_not_synced", Part::Metrics)
        }),
        trial("normal_loses_events", || normal_loses("normal_loses_events", Part::Events)),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn full_loses_nothing(name: &str, part: Part) -> CaseResult {
    let cuts = std::env::var("STORAGE_CUTS").ok().and_then(|cuts| cuts.parse().ok());
    let report = cut(name, part, Synchronous::Full, Losses::Fail, cuts.unwrap_or(20))?;
    match report.lost {
        0 => Ok(()),
        lost => Err(Failure::new(format!("{lost} batches lost"))),
    }
}

/// The negative control: a test that cannot fail proves nothing.
fn normal_loses(name: &str, part: Part) -> CaseResult {
    let report = cut(name, part, Synchronous::Normal, Losses::Stop, 30)?;
    match report.lost {
        0 => Err(Failure::new(format!("nothing lost in {} cuts", report.cuts))),
        _ => Ok(()),
    }
}

fn cut(
    name: &str,
    part: Part,
    synchronous: Synchronous,
    losses: Losses,
    cuts: u32,
) -> Result<PowerCutReport, Failure> {
    let seed = seed_from_env()?.unwrap_or(1);
    let plan = PowerCutPlan { cuts, seed, quiesce_every_second: true, losses };
    let report = cut_loop_on(Arc::new(Sqlite(synchronous)), part, plan)?;
    #[allow(clippy::print_stdout)] // what a run is worth
    {
        println!("{name}: {report}");
    }
    Ok(report)
}
