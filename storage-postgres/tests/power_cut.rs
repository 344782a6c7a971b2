//! The power is cut under the directory of a server's data: with `synchronous_commit=on`, the
//! default, nothing acknowledged is lost, of metrics, history, events and jobs; with `off` the same
//! test does see losses, so it would see them with `on`.
//!
//! `STORAGE_CUTS` raises the number of cuts, `CONFORMANCE_SEED` chooses other moments. Needs root:
//! see `conformance_tests::power_cut`.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use conformance_tests::crash::{DirFixture, Part, child_entry};
use conformance_tests::model_check::seed_from_env;
use conformance_tests::power_cut::{self, Losses, PowerCutPlan, PowerCutReport, cut_loop_on};
use conformance_tests::{CaseResult, Failure, Store};
use libtest_mimic::{Arguments, Trial};
use storage_core::metrics::stats::CheckReport;
use storage_core::{
    Capabilities, MetricAggregation, MetricRecord, Result, ScanStream, SeriesFilter, SeriesInfo,
    SeriesSamples, StorageBackend, StorageStats, TimeRange,
};
use storage_postgres::{PostgresBackend, PostgresOptions, SynchronousCommit};

#[path = "support/mod.rs"]
mod support;

/// A server in the directory, gone with whoever opened it.
struct Postgres(SynchronousCommit);

#[async_trait]
impl DirFixture for Postgres {
    fn name(&self) -> &str {
        match self.0 {
            SynchronousCommit::Off => "postgres_off",
            _ => "postgres_on",
        }
    }

    async fn open_in(&self, dir: &Path) -> Result<Store> {
        Ok(Arc::clone(self.open_store_in(dir).await?.metrics()))
    }

    async fn open_store_in(&self, dir: &Path) -> Result<storage_core::Store> {
        let server = Running::start(dir);
        let socket = dir.to_string_lossy().replace('/', "%2F");
        let url = format!("postgres://tester@{socket}:5432/postgres");
        let options = PostgresOptions::from_url(&url)?.synchronous_commit(self.0).pool_size(2);
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match PostgresBackend::open(options.clone()).await {
                Ok(backend) => {
                    let store = storage_core::Store::from(backend);
                    let inner = Arc::clone(store.metrics());
                    let owned = Owned { inner, server: Mutex::new(Some(server)) };
                    return Ok(store.with_metrics(Arc::new(owned)));
                }
                // It recovers.
                Err(error) if error.is_retryable() && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn main() -> ExitCode {
    child_entry(&Postgres(SynchronousCommit::On));
    child_entry(&Postgres(SynchronousCommit::Off));
    let trials = vec![
        trial("on_loses_nothing", |name| on_loses_nothing(name, Part::Metrics)),
        trial("on_loses_no_history", |name| on_loses_nothing(name, Part::History)),
        trial("on_loses_no_events", |name| on_loses_nothing(name, Part::Events)),
        trial("on_loses_no_jobs", |name| on_loses_nothing(name, Part::Jobs)),
        trial("off_loses_what_was_not_synced", off_loses_what_was_not_synced),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A test that shows as those of other servers do where there are no binaries, else as those of other
/// power cuts.
fn trial(name: &'static str, run: fn(&str) -> CaseResult) -> Trial {
    match support::server::lack(false) {
        None => power_cut::trial(name, move || run(name)),
        Some(reason) => {
            let words = ["postgres", "power_cut", "all", "1"];
            support::server::gated_by(
                &words,
                name,
                Some(reason.clone()),
                move || Err(reason.into()),
            )
        }
    }
}

fn on_loses_nothing(name: &str, part: Part) -> CaseResult {
    let cuts = std::env::var("STORAGE_CUTS").ok().and_then(|cuts| cuts.parse().ok());
    let report = cut(name, part, SynchronousCommit::On, Losses::Fail, cuts.unwrap_or(8))?;
    match report.lost {
        0 => Ok(()),
        lost => Err(Failure::new(format!("{lost} batches lost"))),
    }
}

/// The negative control: a test that cannot fail proves nothing.
fn off_loses_what_was_not_synced(name: &str) -> CaseResult {
    let report = cut(name, Part::Metrics, SynchronousCommit::Off, Losses::Stop, 20)?;
    match report.lost {
        0 => Err(Failure::new(format!("nothing lost in {} cuts", report.cuts))),
        _ => Ok(()),
    }
}

fn cut(
    name: &str,
    part: Part,
    mode: SynchronousCommit,
    losses: Losses,
    cuts: u32,
) -> Result<PowerCutReport, Failure> {
    let seed = seed_from_env()?.unwrap_or(1);
    let plan = PowerCutPlan { cuts, seed, quiesce_every_second: true, losses };
    let report = cut_loop_on(Arc::new(Postgres(mode)), part, plan)?;
    #[allow(clippy::print_stdout)] // what a run is worth
    {
        println!("{name}: {report}");
    }
    Ok(report)
}

/// A server that is killed with the process that started it, as a power cut would.
struct Running(Child);

impl Running {
    fn start(dir: &Path) -> Self {
        let data = dir.join("data");
        if !data.join("PG_VERSION").exists() {
            make_cluster(dir, &data);
        }
        // What a server that was killed leaves behind.
        let _ = std::fs::remove_file(data.join("postmaster.pid"));
        let _ = std::fs::remove_file(dir.join(".s.PGSQL.5432"));
        let _ = std::fs::remove_file(dir.join(".s.PGSQL.5432.lock"));
        let mut command = as_user(&support::server::binaries().join("postgres"), true);
        command.arg("-D").arg(&data).args(["-c", "listen_addresses="]);
        command.arg("-c").arg(format!("unix_socket_directories={}", dir.display()));
        for setting in ["max_wal_size=32MB", "min_wal_size=32MB", "wal_recycle=off"] {
            command.args(["-c", setting]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(start_on_a_thread_that_stays(command))
    }

    fn stop(mut self) {
        let interrupt = ["-INT".to_owned(), self.0.id().to_string()];
        let told = Command::new("kill").args(interrupt).status();
        assert!(told.is_ok_and(|status| status.success()));
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Where it has been stopped already, nothing is left to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The signal for the death of a parent comes when the thread ends that started the child.
fn start_on_a_thread_that_stays(mut command: Command) -> Child {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = sender.send(command.spawn());
        loop {
            std::thread::park();
        }
    });
    receiver.recv().unwrap().unwrap()
}

fn make_cluster(dir: &Path, data: &Path) {
    if let Some((user, group)) = support::server::user() {
        let owner = format!("{user}:{group}");
        assert!(Command::new("chown").arg(owner).arg(dir).status().unwrap().success());
    }
    // What a cut left of one that was not ready.
    let _ = std::fs::remove_dir_all(data);
    let mut command = as_user(&support::server::binaries().join("initdb"), false);
    command.arg("-D").arg(data).args(["-U", "tester", "--auth=trust", "--encoding=UTF8"]);
    command.args(["--locale=C", "--wal-segsize=4"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The directories above are not the server's to sync.
    assert!(Command::new("sync").arg("-f").arg(dir).status().unwrap().success());
}

fn as_user(program: &Path, dies_with_parent: bool) -> Command {
    let mut command = Command::new("setpriv");
    if let Some((user, group)) = support::server::user() {
        command.args(["--reuid", &user, "--regid", &group, "--clear-groups"]);
    }
    if dies_with_parent {
        command.args(["--pdeathsig", "KILL"]);
    }
    command.arg(program).current_dir("/");
    command
}

/// A store with the server that it is on, which is stopped with it.
struct Owned {
    inner: Arc<dyn StorageBackend>,
    server: Mutex<Option<Running>>,
}

#[async_trait]
impl StorageBackend for Owned {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        self.inner.write_batch(records).await
    }
    async fn query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        self.inner.query_range(server_id, metric_type, range).await
    }
    async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<MetricAggregation> {
        self.inner.aggregate(server_id, metric_type, range).await
    }
    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        self.inner.prune_before(cutoff).await
    }
    async fn stats(&self) -> Result<StorageStats> {
        self.inner.stats().await
    }
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        self.inner.series(filter).await
    }
    async fn latest(&self, filter: &SeriesFilter, n: usize) -> Result<Vec<SeriesSamples>> {
        self.inner.latest(filter, n).await
    }
    fn scan(&self, filter: &SeriesFilter, range: TimeRange) -> ScanStream<'_> {
        self.inner.scan(filter, range)
    }
    async fn compact(&self) -> Result<()> {
        self.inner.compact().await
    }
    async fn check(&self) -> Result<CheckReport> {
        self.inner.check().await
    }
    async fn close(&self) -> Result<()> {
        self.inner.close().await?;
        let server = self.server.lock().unwrap().take();
        if let Some(server) = server {
            tokio::task::spawn_blocking(move || server.stop()).await.unwrap();
        }
        Ok(())
    }
}
