//! What a backend supplies, and how the cases are run over it.
//!
//! Each case runs on a fresh location of its own, on a runtime of its own, within a time limit,
//! so that cases run side by side, leave nothing behind and cannot hang.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use libtest_mimic::{Arguments, Failed, Trial};
use storage_core::{
    Capabilities, Error, ErrorKind, EventStore, JobStore, MetricRecord, RecordHistory, Result,
    StorageBackend, Store as WholeStore, TimeRange,
};

use crate::cases::{self, Case, Layout, Need};
use crate::data::{METRIC, SERVER, points};
use crate::failure::{CaseResult, Failure};
use crate::report;

/// A handle to a store, whatever the backend.
pub type Store = Arc<dyn StorageBackend>;

/// How long a case may take before it counts as hung, unless the fixture says otherwise.
pub const CASE_TIME_MAX: Duration = Duration::from_secs(60);

/// How long closing may take afterwards: an object store that is slow has many files to write.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(30);

/// What a backend supplies: how to open a named location, and how to destroy it.
///
/// A location's name consists of lower-case letters, digits and underscores, starts with a
/// letter, and is at most 48 bytes long: fit for a file, a directory or a schema.
#[async_trait]
pub trait Fixture: Send + Sync + 'static {
    /// The name of the backend as tests, `CONFORMANCE_REQUIRE` and the report show it.
    fn name(&self) -> &str;

    /// Opens `location`, or creates it where there is none; opened again, it gives another handle
    /// to the same data.
    ///
    /// # Errors
    /// Those of the backend.
    async fn open(&self, location: &str) -> Result<Store>;

    /// Opens `location` as [`open`](Self::open) does, with everything that it holds beside metrics.
    /// A fixture that leaves this as it is has metrics alone.
    ///
    /// # Errors
    /// Those of the backend.
    async fn open_store(&self, location: &str) -> Result<WholeStore> {
        Ok(WholeStore::of_metrics(self.open(location).await?))
    }

    /// Removes `location` with all its data. There may be none; open handles may remain.
    ///
    /// # Errors
    /// Those of the backend.
    async fn destroy(&self, location: &str) -> Result<()>;

    /// Says why the backend cannot be had here, such as a server that is not set up. The cases
    /// are then ignored, unless `CONFORMANCE_REQUIRE` names the fixture.
    fn unavailable(&self) -> Option<String> {
        None
    }

    /// How long a case may take before it counts as hung. Some make a thousand commits: a server
    /// that takes tens of milliseconds for each needs more time than there is by default.
    fn case_time_max(&self) -> Duration {
        CASE_TIME_MAX
    }

    /// Cases that this backend does not pass by decision: the name of the case, and the reason.
    /// They show as ignored. A name that no case has is an error.
    fn opt_outs(&self) -> &[(&'static str, &'static str)] {
        &[]
    }

    /// Whether a case is run over this; others do not show. For what is made of stores that pass the suite by
    /// themselves: see [`Composed::only`](crate::composed::Composed::only). A backend leaves it as it is, and
    /// runs every case.
    fn runs(&self, _case: &Case) -> bool {
        true
    }
}

/// What a case works on: a fresh location, one open handle, and the layout of the data.
pub struct Ctx {
    fixture: Arc<dyn Fixture>,
    location: String,
    layout: Layout,
    store: Store,
    whole: WholeStore,
    locations_used: AtomicUsize,
}

impl std::fmt::Debug for Ctx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { location, layout, .. } = self;
        f.debug_struct("Ctx").field("location", location).field("layout", layout).finish()
    }
}

impl Ctx {
    async fn new(fixture: Arc<dyn Fixture>, location: String, layout: Layout) -> Result<Self> {
        let whole = fixture.open_store(&location).await?;
        let store = Arc::clone(whole.metrics());
        Ok(Self { fixture, location, layout, store, whole, locations_used: AtomicUsize::new(0) })
    }

    /// The handle that is open from the start.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The record history of the handle that is open from the start.
    ///
    /// # Errors
    /// `Unsupported` if the backend keeps none.
    pub fn history(&self) -> Result<&Arc<dyn RecordHistory>> {
        self.whole.history()
    }

    /// The event store of the handle that is open from the start.
    ///
    /// # Errors
    /// `Unsupported` if the backend keeps none.
    pub fn events(&self) -> Result<&Arc<dyn EventStore>> {
        self.whole.events()
    }

    /// The jobs of the handle that is open from the start.
    ///
    /// # Errors
    /// `Unsupported` if the backend keeps none.
    pub fn jobs(&self) -> Result<&Arc<dyn JobStore>> {
        self.whole.jobs()
    }

    /// Opens another handle to the same location, with everything that it holds.
    ///
    /// # Errors
    /// Those of the fixture.
    pub async fn open_whole(&self) -> Result<WholeStore> {
        self.fixture.open_store(&self.location).await
    }

    /// The fixture, for cases that need locations of their own.
    pub fn fixture(&self) -> &Arc<dyn Fixture> {
        &self.fixture
    }

    /// Opens another handle to the same location.
    ///
    /// # Errors
    /// Those of the fixture.
    pub async fn open(&self) -> Result<Store> {
        self.fixture.open(&self.location).await
    }

    /// Opens a fresh second location, destroyed after the case like the first.
    ///
    /// # Errors
    /// Those of the fixture.
    pub async fn open_elsewhere(&self) -> Result<Store> {
        let number = self.locations_used.fetch_add(1, Ordering::Relaxed);
        self.fixture.open(&elsewhere(&self.location, number)).await
    }

    /// Writes records on the first handle, and leaves them in the layout that the case runs in:
    /// as written, all compacted, or the first half compacted.
    ///
    /// # Errors
    /// Those of the backend.
    pub async fn write(&self, records: &[MetricRecord]) -> Result<()> {
        match self.layout {
            Layout::AsWritten => self.store.write_batch(records).await,
            Layout::Compacted => {
                self.store.write_batch(records).await?;
                self.store.compact().await
            }
            Layout::HalfCompacted => {
                let (early, late) = records.split_at(records.len() / 2);
                self.store.write_batch(early).await?;
                self.store.compact().await?;
                self.store.write_batch(late).await
            }
        }
    }

    /// Prunes on the first handle, and compacts afterwards if the case runs compacted.
    ///
    /// # Errors
    /// Those of the backend.
    pub async fn prune(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        let removed = self.store.prune_before(cutoff).await?;
        if self.layout == Layout::Compacted {
            self.store.compact().await?;
        }
        Ok(removed)
    }

    /// All records of a series, read on the first handle.
    ///
    /// # Errors
    /// Those of the backend.
    pub async fn read_of(&self, server_id: &str, metric_type: &str) -> Result<Vec<MetricRecord>> {
        self.store.query_range(server_id, metric_type, TimeRange::all()).await
    }

    /// Time and value of all samples of the series that most cases use.
    pub(crate) async fn points(&self) -> Result<Vec<(i64, f64)>> {
        Ok(points(&self.read_of(SERVER, METRIC).await?))
    }

    async fn destroy(fixture: &dyn Fixture, location: &str, elsewhere_count: usize) -> Result<()> {
        for number in 0..elsewhere_count {
            fixture.destroy(&elsewhere(location, number)).await?;
        }
        fixture.destroy(location).await
    }
}

fn elsewhere(location: &str, number: usize) -> String {
    format!("{location}_{number}")
}

/// Returns the name of a location that nothing has used before.
pub fn fresh_location() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // The random part keeps apart what other runs left behind under the same process id.
    format!("conf_{}_{number}_{:08x}", std::process::id(), fastrand::u32(..))
}

/// Runs every case over `fixture`, as the `main` of a test target with `harness = false`.
///
/// Understands what `cargo test` and `cargo nextest` pass, and `--report FILE`.
pub fn main(fixture: impl Fixture) -> ! {
    main_all(vec![Arc::new(fixture)])
}

/// Runs every case over several fixtures; the name of the fixture leads the names of the tests.
pub fn main_all(fixtures: Vec<Arc<dyn Fixture>>) -> ! {
    let mut arguments: Vec<String> = std::env::args().collect();
    let report_file = report::take_file(&mut arguments);
    let arguments = Arguments::from_iter(arguments);
    if let (Some(file), false) = (report_file, arguments.list) {
        report::write_and_exit(&file, &fixtures);
    }
    let prefixed = fixtures.len() > 1;
    let asked = fixtures.iter().filter(|fixture| !prefixed || is_asked(&***fixture, &arguments));
    let trials = asked.flat_map(|fixture| trials_of(fixture, prefixed)).collect();
    libtest_mimic::run(&arguments, trials).exit()
}

/// Whether a case over this fixture can be among those that are asked for. Who runs each test in a process of its own
/// names it exactly, and every fixture that is opened in vain takes its time.
fn is_asked(fixture: &dyn Fixture, arguments: &Arguments) -> bool {
    match &arguments.filter {
        Some(name) if arguments.exact => name.starts_with(&format!("{}::", fixture.name())),
        _ => true,
    }
}

fn trials_of(fixture: &Arc<dyn Fixture>, prefixed: bool) -> Vec<Trial> {
    let plan = Plan::of(fixture);
    let trial = |(case, verdict): (Case, Verdict)| {
        let name = match prefixed {
            true => format!("{}::{}", fixture.name(), case.name),
            false => case.name.to_owned(),
        };
        let fixture = Arc::clone(fixture);
        match verdict {
            Verdict::Run => Trial::test(name, move || {
                run_case(&fixture, &case, fixture.case_time_max()).map_err(Failed::from)
            }),
            Verdict::Skip(reason) => {
                let failure = reason.clone();
                Trial::test(name, move || Err(Failed::from(failure)))
                    .with_ignored_flag(true)
                    .with_kind(format!("{}: {reason}", plan.fixture_name))
            }
            Verdict::Fail(reason) => Trial::test(name, move || Err(Failed::from(reason))),
        }
    };
    plan.verdicts.iter().cloned().map(trial).collect()
}

/// What to do with a case.
#[derive(Debug, Clone)]
pub(crate) enum Verdict {
    /// Run it.
    Run,
    /// Show it as ignored, for this reason.
    Skip(String),
    /// Show it as failed, for this reason.
    Fail(String),
}

/// What to do with each case over one fixture.
pub(crate) struct Plan {
    fixture_name: String,
    /// What the backend says it can do; `None` if it could not be opened.
    pub(crate) capabilities: Option<Capabilities>,
    /// Every case of the table, in its order.
    pub(crate) verdicts: Vec<(Case, Verdict)>,
}

impl Plan {
    /// Opens the fixture once to see what it can do, and decides.
    pub(crate) fn of(fixture: &Arc<dyn Fixture>) -> Self {
        let name = fixture.name().to_owned();
        let known = cases::table();
        let table: Vec<_> = known.iter().copied().filter(|case| fixture.runs(case)).collect();
        let all = |verdict: Verdict| Self {
            fixture_name: name.clone(),
            capabilities: None,
            verdicts: table.iter().map(|case| (*case, verdict.clone())).collect(),
        };
        if let Some(reason) = fixture.unavailable() {
            return match is_required(&name) {
                true => all(Verdict::Fail(format!("required, but not available: {reason}"))),
                false => all(Verdict::Skip(reason)),
            };
        }
        let unknown =
            fixture.opt_outs().iter().find(|(opt, _)| !known.iter().any(|c| c.name == *opt));
        if let Some((unknown, _)) = unknown {
            return all(Verdict::Fail(format!("opts out of {unknown}, which no case is called")));
        }
        match probe(fixture) {
            Err(failure) => all(Verdict::Fail(format!("cannot be opened: {failure}"))),
            Ok(offer) => Self {
                fixture_name: name.clone(),
                capabilities: Some(offer.capabilities),
                verdicts: table
                    .iter()
                    // A twin is for backends that lack what it refuses; elsewhere it means nothing.
                    .filter(
                        |case| !matches!(case.needs, Need::Lacks(c) if c.of(offer.capabilities)),
                    )
                    .map(|case| (*case, judge(fixture, case, offer)))
                    .collect(),
            },
        }
    }
}

/// What a fixture turned out to have.
#[derive(Debug, Clone, Copy)]
struct Offer {
    capabilities: Capabilities,
    history: bool,
    events: bool,
    jobs: bool,
}

fn judge(fixture: &Arc<dyn Fixture>, case: &Case, offer: Offer) -> Verdict {
    if let Some((_, reason)) = fixture.opt_outs().iter().find(|(name, _)| *name == case.name) {
        return Verdict::Skip((*reason).to_owned());
    }
    match case.needs {
        Need::History if !offer.history => Verdict::Skip("keeps no record history".to_owned()),
        Need::Events if !offer.events => Verdict::Skip("keeps no events".to_owned()),
        Need::Jobs if !offer.jobs => Verdict::Skip("keeps no jobs".to_owned()),
        Need::Has(capability) if !capability.of(offer.capabilities) => {
            Verdict::Skip(format!("no capability `{}`", capability.as_str()))
        }
        _ => Verdict::Run,
    }
}

fn is_required(name: &str) -> bool {
    let required = std::env::var("CONFORMANCE_REQUIRE").unwrap_or_default();
    required.split(',').map(str::trim).any(|word| word == name || word == "1" || word == "all")
}

fn probe(fixture: &Arc<dyn Fixture>) -> std::result::Result<Offer, Failure> {
    let fixture = Arc::clone(fixture);
    within(CASE_TIME_MAX, async move {
        let location = fresh_location();
        let store = fixture.open_store(&location).await?;
        let capabilities = store.metrics().capabilities();
        let (history, events) = (store.history().is_ok(), store.events().is_ok());
        let jobs = store.jobs().is_ok();
        store.close().await?;
        drop(store);
        fixture.destroy(&location).await?;
        Ok(Offer { capabilities, history, events, jobs })
    })
}

/// Runs one case on a fresh location and destroys it afterwards, whatever happened.
///
/// # Errors
/// Why the case failed: an unmet expectation, a panic, or more than `time_max`.
pub fn run_case(fixture: &Arc<dyn Fixture>, case: &Case, time_max: Duration) -> CaseResult {
    let (fixture, case) = (Arc::clone(fixture), *case);
    within(time_max + 2 * CLOSE_TIME_MAX, async move {
        let location = fresh_location();
        let ctx = Ctx::new(Arc::clone(&fixture), location.clone(), case.layout).await?;
        let ctx = Arc::new(ctx);
        // In a task of its own, so that a panic does not keep the location from being destroyed.
        let running = tokio::spawn({
            let ctx = Arc::clone(&ctx);
            async move { (case.run)(&ctx).await }
        });
        let abort = running.abort_handle();
        let result = match tokio::time::timeout(time_max, running).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(Failure::new(describe_panic(panic))),
            Err(_) => {
                abort.abort();
                Err(Failure::new(format!("hung: not done after {time_max:?}")))
            }
        };
        let elsewhere_count = ctx.locations_used.load(Ordering::Relaxed);
        let closed = tokio::time::timeout(CLOSE_TIME_MAX, ctx.store.close()).await;
        drop(ctx);
        let destroyed = Ctx::destroy(&*fixture, &location, elsewhere_count).await;
        result?;
        closed.unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, "close hung")))?;
        Ok(destroyed?)
    })
}

fn describe_panic(error: tokio::task::JoinError) -> String {
    let Ok(payload) = error.try_into_panic() else {
        return "the case was aborted".to_owned();
    };
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_else(|| "no message".to_owned()))
}

/// Runs a future on a runtime of its own, and gives up after `time_max` even if it blocks.
pub(crate) fn within<T: Send + 'static>(
    time_max: Duration,
    work: impl Future<Output = std::result::Result<T, Failure>> + Send + 'static,
) -> std::result::Result<T, Failure> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build()?;
    let result = runtime.block_on(async {
        // Spawned, so that the time limit is kept by another thread than the one that may block.
        match tokio::time::timeout(time_max, tokio::spawn(work)).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(Failure::new(describe_panic(panic))),
            Err(_) => Err(Failure::new(format!("hung: not done after {time_max:?}"))),
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}
