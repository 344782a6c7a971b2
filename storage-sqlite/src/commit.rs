//! Commits what callers have prepared, that of several in one transaction (one sync of the disk).
//!
//! A task takes all that waits, whatever kind it is, writes it and answers each caller. A caller that
//! is alone does without the task and commits itself. Dropping a waiting caller changes nothing: what
//! was handed over is committed whole, what was not is not.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use sqlx::sqlite::SqliteConnection;
use storage_core::{Error, ErrorKind, Outcome, Result};
use tokio::sync::{mpsc, oneshot};

use crate::error::of_commit;
use crate::events::append::{self as events, Append};
use crate::history::write::{self as history, Learned, ValueRow};
use crate::maintenance;
use crate::schema::{begin, finish};
use crate::store::Store;
use crate::write::{self, JournalRow};
use crate::writer::{Flight, WriterGuard};

/// The most that waits together for one commit, in samples or what costs as much.
const GROUP_WEIGHT_MAX: usize = 100_000;

/// How often other tasks get a turn before a commit goes on without them: a fraction of what the
/// sync of a disk takes.
const GATHER_MOMENTS: usize = 32;

/// Callers that may wait in the queue before others wait in front of it.
const QUEUE_LENGTH: usize = 256;

/// What a caller wants stored.
#[derive(Debug)]
pub(crate) enum Work {
    /// Samples, as rows of the journal.
    Samples(Vec<JournalRow>),
    /// Values of records.
    Values(Vec<ValueRow>),
    /// Events, and where to say what became of them.
    Events(Append),
    /// Nothing but an answer after everything before.
    Drain,
}

impl Work {
    /// Whether it takes one statement, which is a transaction of its own.
    fn is_one_statement(&self, store: &Store) -> bool {
        match self {
            Self::Samples(rows) => rows.len() == 1,
            Self::Values(values) => history::is_one_statement(store, values),
            Self::Events(_) | Self::Drain => false,
        }
    }
}

/// Work with the way back to its caller.
#[derive(Debug)]
struct Job {
    work: Work,
    weight: usize,
    done: oneshot::Sender<Result<()>>,
    /// None if it commits itself.
    ticket: Option<Ticket>,
}

/// Counts a job from before it is handed over until its commit has the connection: nobody who comes
/// later may commit earlier.
#[derive(Debug)]
struct Ticket(Arc<AtomicUsize>);

impl Ticket {
    fn draw(waiting: &Arc<AtomicUsize>) -> Self {
        waiting.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(waiting))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The way to the task that commits, or past it.
#[derive(Debug, Clone)]
pub(crate) struct Committer {
    jobs: mpsc::Sender<Job>,
    store: Arc<Store>,
    /// Jobs that are handed over and not being committed yet.
    waiting: Arc<AtomicUsize>,
    /// Whether the last commit of the task had one caller.
    is_alone: Arc<AtomicBool>,
}

impl Committer {
    /// Starts the task; it ends when the last sender is gone.
    pub(crate) fn start(store: &Arc<Store>) -> Self {
        let (jobs, receiver) = mpsc::channel(QUEUE_LENGTH);
        let is_alone = Arc::new(AtomicBool::new(true));
        store.runtime.spawn(commit_all(Arc::downgrade(store), receiver, Arc::clone(&is_alone)));
        Self { jobs, store: Arc::clone(store), waiting: Arc::default(), is_alone }
    }

    /// Waits until everything that was handed over before is answered.
    pub(crate) async fn drain(&self) {
        // Where the task is gone, nothing waits.
        let _ = self.commit(Work::Drain, 0).await;
    }

    /// Hands work over and waits until it is committed; `weight` is what it costs, in samples.
    pub(crate) async fn commit(&self, work: Work, weight: usize) -> Result<()> {
        let (done, committed) = oneshot::channel();
        let answer = match self.take_off(Job { work, weight, done, ticket: None }) {
            Ok(flight) => flight.answer(committed).await,
            Err(job) => {
                let job = Job { ticket: Some(Ticket::draw(&self.waiting)), ..job };
                self.jobs.send(job).await.map_err(|_| gone(Outcome::NotApplied))?;
                committed.await.ok()
            }
        };
        answer.ok_or_else(|| gone(Outcome::Unknown))?
    }

    /// Commits past the task, which saves two changes of threads, where nobody else wants to.
    ///
    /// A single statement alone: while a transaction is open and nobody polls, other processes wait.
    fn take_off(&self, job: Job) -> std::result::Result<Flight, Job> {
        let nobody_waits = self.waiting.load(Ordering::Acquire) == 0;
        let is_alone = nobody_waits && self.is_alone.load(Ordering::Relaxed);
        // Without the task nothing seals either: its runtime is gone.
        if !is_alone || self.jobs.is_closed() || !job.work.is_one_statement(&self.store) {
            return Err(job);
        }
        let store = Arc::clone(&self.store);
        self.store.writer.take_off(&self.store.runtime, job, |writer, job| async move {
            commit_alone(&store, writer, job).await;
        })
    }
}

fn gone(outcome: Outcome) -> Error {
    Error::new(ErrorKind::Closed, "the store was closed").with_outcome(outcome)
}

async fn commit_alone(store: &Arc<Store>, writer: WriterGuard, job: Job) {
    if let Some(committed) = commit_group(store, writer, vec![job]).await {
        settle(store, committed).await;
    }
}

async fn commit_all(store: Weak<Store>, mut queue: mpsc::Receiver<Job>, is_alone: Arc<AtomicBool>) {
    let mut callers = 1;
    while let Some(first) = queue.recv().await {
        let mut gathered = Gathered { weight: first.weight, jobs: vec![first] };
        gathered.wait(&mut queue, callers).await;
        let Some(store) = store.upgrade() else { return };
        let writer = store.writer.take().await;
        gathered.take_waiting(&mut queue);
        callers = gathered.jobs.len();
        is_alone.store(callers == 1, Ordering::Relaxed);
        if let Some(committed) = commit_group(&store, writer, gathered.jobs).await {
            settle(&store, committed).await;
        }
    }
}

/// What goes into the next commit.
struct Gathered {
    jobs: Vec<Job>,
    weight: usize,
}

impl Gathered {
    /// Takes what waits, and gives those a moment who were answered together.
    ///
    /// They come back one by one: else each commit would take the few that were quickest.
    async fn wait(&mut self, queue: &mut mpsc::Receiver<Job>, callers_before: usize) {
        self.take_waiting(queue);
        for _ in 0..GATHER_MOMENTS {
            if self.jobs.len() >= callers_before || self.weight >= GROUP_WEIGHT_MAX {
                return;
            }
            tokio::task::yield_now().await;
            self.take_waiting(queue);
        }
    }

    fn take_waiting(&mut self, queue: &mut mpsc::Receiver<Job>) {
        while self.weight < GROUP_WEIGHT_MAX
            && let Ok(job) = queue.try_recv()
        {
            self.weight += job.weight;
            self.jobs.push(job);
        }
    }
}

/// What one transaction stores.
#[derive(Default)]
struct Group {
    rows: Vec<JournalRow>,
    values: Vec<ValueRow>,
    appends: Vec<Append>,
}

impl Group {
    fn add(&mut self, work: Work) {
        match work {
            Work::Samples(more) => self.rows.extend(more),
            Work::Values(more) => self.values.extend(more),
            Work::Events(append) => self.appends.push(append),
            Work::Drain => {}
        }
    }

    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.values.is_empty() && self.appends.is_empty()
    }

    /// What it writes beside the rows of the journal, in bytes, roughly.
    fn other_bytes(&self) -> u64 {
        let values = self.values.iter().map(ValueRow::bytes);
        values.chain(self.appends.iter().map(Append::bytes)).sum()
    }
}

/// What was committed: the rows of the journal with their ids, and the connection that did it.
struct Committed {
    writer: WriterGuard,
    group: Group,
    ids: Vec<i64>,
}

/// Commits jobs together and answers them; if that fails, nothing of any of them is stored.
async fn commit_group(store: &Store, writer: WriterGuard, jobs: Vec<Job>) -> Option<Committed> {
    let (mut group, mut callers) = (Group::default(), Vec::new());
    for job in jobs {
        group.add(job.work);
        callers.push(job.done);
        // From here on the connection keeps others from going first.
        drop(job.ticket);
    }
    group.rows = write::join_small(group.rows);
    let committed = match group.is_empty() {
        true => Ok(None),
        false => commit(store, writer, group).await.map(Some),
    };
    for done in callers {
        // A caller that is gone does not want the answer.
        let _ = done.send(committed.as_ref().map_err(copy_of).map(drop));
    }
    committed.ok().flatten()
}

async fn commit(store: &Store, mut writer: WriterGuard, group: Group) -> Result<Committed> {
    store.check_trusted()?;
    let inserted = insert(store, writer.connection()?, &group).await;
    let (ids, learned) = inserted.map_err(of_commit).inspect_err(|e| store.note_write_error(e))?;
    store.record_names_mut().learn(learned);
    Ok(Committed { writer, group, ids })
}

/// Does what is due after a commit.
async fn settle(store: &Arc<Store>, committed: Committed) {
    let Committed { mut writer, group, ids } = committed;
    // It is there: this is the guard that has just committed.
    let Ok(connection) = writer.connection() else { return };
    let bytes = group.rows.iter().map(JournalRow::bytes).sum::<u64>() + group.other_bytes();
    if !group.rows.is_empty() {
        write::follow(store, connection, ids, group.rows).await;
    }
    store.checkpoint_if_due(connection, bytes).await;
    if maintenance::is_seal_due(store) {
        store.seal_due.notify_one();
    }
}

/// Inserts everything in one transaction; returns the ids that journal rows got, and the names of
/// records that were read. What is one statement needs no more, being a transaction of its own.
async fn insert(
    store: &Store,
    connection: &mut SqliteConnection,
    group: &Group,
) -> Result<(Vec<i64>, Learned)> {
    match (&*group.rows, &*group.values, &*group.appends) {
        ([row], [], []) => {
            // What the last commit left is done while this one waits for the disk.
            let left = async { store.apply_backlog() };
            let (id, ()) = tokio::join!(biased; write::insert_row(connection, row), left);
            Ok((vec![id?], Vec::new()))
        }
        ([], values, []) if history::is_one_statement(store, values) => {
            Ok((Vec::new(), history::insert(store, connection, values).await?))
        }
        _ => {
            // Before, because other processes wait for a transaction that is open.
            store.apply_backlog();
            let mut transaction = begin(connection).await?;
            let inserted = insert_all(store, &mut transaction, group).await;
            finish(transaction, inserted).await
        }
    }
}

async fn insert_all(
    store: &Store,
    connection: &mut SqliteConnection,
    group: &Group,
) -> Result<(Vec<i64>, Learned)> {
    let mut ids = Vec::with_capacity(group.rows.len());
    for row in &group.rows {
        ids.push(write::insert_row(connection, row).await?);
    }
    if !group.appends.is_empty() {
        events::insert(connection, &group.appends).await?;
    }
    Ok((ids, history::insert(store, connection, &group.values).await?))
}

/// Returns the same error for one more caller; the source goes with its text alone.
fn copy_of(error: &Error) -> Error {
    let copy = Error::new(error.kind(), error.message().to_owned())
        .with_outcome(error.outcome())
        .with_retryable(error.is_retryable());
    match std::error::Error::source(error) {
        Some(source) => copy.with_source(source.to_string()),
        None => copy,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Poll;
    use std::time::Duration;

    use futures_util::poll;
    use serde_json::json;
    use storage_core::metrics::time::from_ms;
    use storage_core::{
        ErrorKind, MetricRecord, Outcome, RecordHistory, StorageBackend, StoredValue, TimeRange,
    };
    use tokio::time::timeout;

    use crate::{SqliteBackend, SqliteOptions};

    const LONG: Duration = Duration::from_secs(10);

    fn sample(ms: i64) -> [MetricRecord; 1] {
        [MetricRecord::new("server", from_ms(ms), "m", 1.0)]
    }

    async fn open(dir: &tempfile::TempDir) -> SqliteBackend {
        let options = SqliteOptions::new(dir.path().join("commit.db"));
        SqliteBackend::open(options).await.expect("the store opens")
    }

    /// A store that knows the series of [`sample`].
    async fn filled() -> storage_core::Result<(tempfile::TempDir, SqliteBackend)> {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let store = open(&dir).await;
        store.write_batch(&sample(0)).await?;
        Ok((dir, store))
    }

    /// Waits for the rest of what was polled once, if that was not all.
    async fn finish<T>(polled: Poll<T>, rest: impl Future<Output = T>) -> T {
        match polled {
            Poll::Ready(answer) => answer,
            Poll::Pending => rest.await,
        }
    }

    #[tokio::test]
    async fn a_caller_that_is_not_polled_holds_up_nobody() -> storage_core::Result<()> {
        let (_dir, store) = filled().await?;
        for round in 1..=20 {
            let (one, other) = (sample(round), sample(-round));
            let mut waiting = store.write_batch(&one);
            let polled = poll!(&mut waiting);
            let history = store.history();
            let value = [StoredValue::new("record", from_ms(round), json!(1))];
            timeout(LONG, store.write_batch(&other)).await.expect("it need not wait")?;
            timeout(LONG, history.store_batch(&value)).await.expect("it need not wait")?;
            timeout(LONG, store.compact()).await.expect("it need not wait")?;
            finish(polled, waiting).await?;
        }
        assert_eq!(store.stats().await?.total_metrics, 41);
        store.close().await
    }

    #[tokio::test]
    async fn what_was_begun_is_committed_though_its_caller_is_gone() -> storage_core::Result<()> {
        let (dir, store) = filled().await?;
        for round in 1..=20 {
            let records = sample(round);
            let _ = poll!(store.write_batch(&records));
            if round % 2 == 0 {
                store.write_batch(&sample(-round)).await?;
            }
        }
        let head = async {
            while store.store.head().samples() < 31 {
                store.store.apply_backlog();
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, head).await.expect("the runtime does the rest");
        store.close().await?;
        assert_eq!(open(&dir).await.stats().await?.total_metrics, 31);
        Ok(())
    }

    #[tokio::test]
    async fn closing_waits_for_a_caller_that_is_not_polled() -> storage_core::Result<()> {
        let (dir, store) = filled().await?;
        let records = sample(1);
        let mut waiting = store.write_batch(&records);
        let polled = poll!(&mut waiting);
        timeout(LONG, store.close()).await.expect("it need not wait")?;
        finish(polled, waiting).await?;
        assert_eq!(open(&dir).await.stats().await?.total_metrics, 2);
        Ok(())
    }

    #[tokio::test]
    async fn nobody_overtakes_what_is_handed_over() -> storage_core::Result<()> {
        let (dir, store) = filled().await?;
        let (mut first, mut later) = (sample(0), sample(0));
        (first[0].value, later[0].value) = (2.0, 3.0);
        let under_way = store.store.writer.take().await;
        assert!(poll!(store.write_batch(&first)).is_pending());
        // The connection is free before the task had a turn.
        drop(under_way);
        store.write_batch(&later).await?;
        store.close().await?;
        let found = open(&dir).await.query_range("server", "m", TimeRange::all()).await?;
        assert_eq!(found[0].value, 3.0);
        Ok(())
    }

    /// Also if the first is handed over while another commit is under way, and given up.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_writes_later_is_committed_later() -> storage_core::Result<()> {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let store = Arc::new(open(&dir).await);
        let of = |server: &str, value| [MetricRecord::new(server, from_ms(0), "m", value)];
        store.write_batch(&of("other", 0.0)).await?;
        store.write_batch(&of("server", 0.0)).await?;
        for round in 0..200 {
            let (under_way, other) = (Arc::clone(&store), of("other", f64::from(round)));
            let under_way = tokio::spawn(async move { under_way.write_batch(&other).await });
            if round % 2 == 0 {
                tokio::task::yield_now().await;
            }
            let (first, later) = (of("server", -1.0), of("server", f64::from(round)));
            let _ = poll!(store.write_batch(&first));
            store.write_batch(&later).await?;
            under_way.await.expect("it does not panic")?;
            let found = store.query_range("server", "m", TimeRange::all()).await?;
            assert_eq!(found[0].value, f64::from(round), "in round {round}");
        }
        store.close().await
    }

    #[test]
    fn a_store_whose_runtime_is_gone_writes_nothing() {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let runtime = || tokio::runtime::Runtime::new().expect("a runtime can be made");
        let (gone, other) = (runtime(), runtime());
        let store = gone.block_on(async {
            let store = open(&dir).await;
            store.write_batch(&sample(0)).await.expect("it writes");
            store
        });
        drop(gone);
        let error = other.block_on(store.write_batch(&sample(1))).expect_err("it is refused");
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Closed, Outcome::NotApplied));
    }
}
