//! Upkeep: sealing the journal into blocks, pruning, giving space back, verifying.
//!
//! Every step is one transaction that first checks that the blocks are still as they were read
//! (`state.version`); if another process changed them, the step is dropped and planned anew. So
//! any process may seal or prune at any time, and be killed anywhere.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;
use storage_core::{Error, ErrorKind, Outcome, Result, TimeRange};

use tokio::sync::{Notify, oneshot};

use crate::backend::named;
use crate::codec::{RawSample, block};
use crate::config::Synchronous;
use crate::error::from_sqlx;
use crate::list::json_list;
use crate::read::{State, json_of};
use crate::schema::{begin, finish, number, run};
use crate::seal::{self, Group, NewBlock, OldBlock};
use crate::store::Store;

/// Samples per series at which sealing pays, and the fewest samples to seal at all.
const SEAL_SAMPLES_PER_SERIES: usize = 1024;
const SEAL_SAMPLES_MIN: usize = 65_536;

/// What one step of a seal takes: bounded, because writers wait while it commits.
const STEP_SERIES_MAX: usize = 512;
const STEP_SAMPLES_MAX: usize = 131_072;

/// Rows that one statement inserts.
const INSERT_ROWS: usize = 32;

/// What one step of other upkeep takes.
const STEP_JOURNAL_ROWS: i64 = 256;
const STEP_BLOCKS: i64 = 512;
const STEP_PAGES: i64 = 1024;

/// What such a step writes to the log, roughly.
const STEP_BYTES: u64 = 1 << 20;

/// From this many pages on the log is emptied even if readers have to be waited for: 64 MiB.
const LOG_FRAMES_MAX: i64 = 16_384;

/// How often a step is planned anew because other processes were faster.
const ATTEMPTS_MAX: usize = 1000;

/// How often the age of unsealed samples is looked at.
const AGE_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Whether enough samples wait, or wait long enough, to be sealed.
pub(crate) fn is_seal_due(store: &Store) -> bool {
    let head = store.head();
    let enough = SEAL_SAMPLES_MIN.max(head.series() * SEAL_SAMPLES_PER_SERIES);
    let is_old = head.since().is_some_and(|since| since.elapsed() >= store.options.seal_after);
    head.samples() >= enough.min(store.options.seal_samples) || is_old
}

/// Starts sealing in the background; it ends with the handle.
pub(crate) fn start(store: &Arc<Store>) {
    store.runtime.spawn(seal_in_background(Arc::downgrade(store), Arc::clone(&store.seal_due)));
}

async fn seal_in_background(weak: Weak<Store>, due: Arc<Notify>) {
    loop {
        let Some(store) = weak.upgrade() else { return };
        if store.check_writable().is_err() {
            return;
        }
        store.apply_backlog();
        if is_seal_due(&store) {
            let result = store.seal().await;
            store.note_upkeep(&result);
            store.sealed.notify_waiters();
            if let Err(error) = result {
                tracing::warn!(target: "storage", %error, "sealing failed; it is tried again");
            }
        }
        let interval = AGE_CHECK_INTERVAL.min(store.options.seal_after);
        drop(store);
        // A time limit, because age passes without anybody ringing.
        let _ = tokio::time::timeout(interval, due.notified()).await;
    }
}

impl Store {
    /// Seals everything that is in the journal now. Nothing is lost or doubled wherever it stops.
    pub(crate) async fn seal(self: &Arc<Self>) -> Result<()> {
        let _alone = self.sealing.lock().await;
        for _ in 0..ATTEMPTS_MAX {
            let state = self.catch_up_tails().await?;
            let up_to = self.head().applied_id();
            let (target, next) = if state.sealing_id > state.sealed_id {
                (state.sealing_id, state.sealing_next)
            } else {
                (up_to, 0)
            };
            if target <= state.sealed_id {
                return self.drop_sealed_rows(state.sealed_id).await;
            }
            // Another process may be sealing too: whoever is late plans anew.
            let sealed = self.seal_up_to(state, target, next).await?;
            if let Some(state) = sealed {
                self.head_mut().trim(state.sealed_id);
                self.drop_sealed_rows(state.sealed_id).await?;
                if target >= up_to {
                    return Ok(());
                }
            }
        }
        Err(Error::new(ErrorKind::Busy, "other processes kept sealing"))
    }

    /// Runs the steps of one seal. `None` if another process changed the blocks in between.
    async fn seal_up_to(
        self: &Arc<Self>,
        mut state: State,
        target: i64,
        next: i64,
    ) -> Result<Option<State>> {
        let mut ids = self.head().ids();
        ids.retain(|id| *id >= next);
        let (ids, mut at) = (Arc::<[i64]>::from(ids), 0);
        while at < ids.len() {
            #[cfg(test)]
            tests::pass_gate(self).await;
            let (step, taken) = self.take_step(state, target, &ids, at).await?;
            let done = &ids[at..at + taken];
            at += taken;
            let (dropped, made) = match self.build(step).await {
                Err(error) if is_changed(&error) => return Ok(None),
                built => built?,
            };
            let after = State {
                sealing_id: target,
                sealing_next: done[taken - 1] + 1,
                version: state.version + 1,
                ..state
            };
            if !self.replace(state, after, &dropped, made).await? {
                return Ok(None);
            }
            self.head_mut().trim_below(after.sealing_next, done, target);
            self.sealed.notify_waiters();
            state = after;
        }
        let after = State {
            sealed_id: target,
            sealing_id: target,
            sealing_next: 0,
            version: state.version + 1,
        };
        Ok(self.replace(state, after, &[], Vec::new()).await?.then_some(after))
    }

    /// Takes what one step seals out of the head, off the async threads, because it takes milliseconds.
    /// Returns how many series that are, too.
    async fn take_step(
        self: &Arc<Self>,
        state: State,
        target: i64,
        ids: &Arc<[i64]>,
        at: usize,
    ) -> Result<(Vec<(i64, Vec<RawSample>)>, usize)> {
        let (store, ids) = (Arc::clone(self), Arc::clone(ids));
        let taken =
            tokio::task::spawn_blocking(move || take_step(&store, &state, target, &ids[at..]));
        taken.await.map_err(panicked)
    }

    /// Reads the blocks that new samples touch and builds what replaces them.
    async fn build(
        &self,
        step: Vec<(i64, Vec<RawSample>)>,
    ) -> Result<(Vec<OldBlock>, Vec<NewBlock>)> {
        let mut around = self.blocks_around(&step).await?;
        let groups: Vec<Group> = step
            .into_iter()
            .flat_map(|(id, new)| seal::plan(id, new, &around.remove(&id).unwrap_or_default()))
            .collect();
        let touched: Vec<OldBlock> = groups.iter().filter_map(|group| group.old.clone()).collect();
        let payloads = self.payloads(&touched).await?;
        let built = tokio::task::spawn_blocking(move || {
            let (mut dropped, mut made) = (Vec::new(), Vec::new());
            let mut pace = Pace::start();
            for group in groups {
                let payload = match &group.old {
                    Some(old) => Some(payloads.get(&old.payload_id).ok_or_else(changed)?),
                    None => None,
                };
                let (replaced, blocks) = seal::encode(group, payload.map(Vec::as_slice))?;
                dropped.extend(replaced);
                made.extend(blocks);
                pace.give_way();
            }
            Ok::<_, Error>((dropped, made))
        });
        built.await.map_err(panicked)?
    }

    async fn blocks_around(
        &self,
        step: &[(i64, Vec<RawSample>)],
    ) -> Result<FxHashMap<i64, Vec<OldBlock>>> {
        let extents: Vec<[i64; 3]> = step
            .iter()
            .filter_map(|(id, new)| Some([*id, new.first()?.ms, new.last()?.ms]))
            .collect();
        let json = json_list(&extents)?;
        let rows = sqlx::query(include_str!("sql/blocks_around.sql"))
            .bind(json)
            .fetch_all(&self.readers)
            .await
            .map_err(from_sqlx)?;
        let mut around: FxHashMap<i64, Vec<OldBlock>> = FxHashMap::default();
        for row in rows {
            let old = old_block(&row).map_err(from_sqlx)?;
            around.entry(old.series_id).or_default().push(old);
        }
        Ok(around)
    }

    async fn payloads(&self, blocks: &[OldBlock]) -> Result<FxHashMap<i64, Vec<u8>>> {
        if blocks.is_empty() {
            return Ok(FxHashMap::default());
        }
        let ids: Vec<i64> = blocks.iter().map(|block| block.payload_id).collect();
        let rows = sqlx::query(
            "SELECT id, bytes FROM payloads WHERE id IN (SELECT value FROM json_each(?))",
        )
        .bind(json_of(&ids))
        .fetch_all(&self.readers)
        .await
        .map_err(from_sqlx)?;
        rows.iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect::<std::result::Result<_, sqlx::Error>>()
            .map_err(from_sqlx)
    }

    /// Replaces blocks and moves the state on, in one transaction. `false`, and nothing done, if
    /// the state is not `before` any more.
    async fn replace(
        &self,
        before: State,
        after: State,
        dropped: &[OldBlock],
        made: Vec<NewBlock>,
    ) -> Result<bool> {
        let mut writer = self.writer().await?;
        let connection = writer.connection()?;
        self.set_sync(connection, false).await?;
        let replaced = replace_once(connection, before, after, dropped, &made).await;
        self.set_sync(connection, true).await?;
        let result = match replaced {
            Err(error) if is_changed(&error) => return Ok(false),
            result => result.map(|()| true),
        };
        if result.is_ok() {
            self.tails_mut().follow(before, after, dropped, &made);
        }
        let bytes = made.iter().map(|block| block.payload.len() as u64).sum();
        self.checkpoint_if_due(connection, bytes).await;
        result.inspect_err(|error| self.note_write_error(error))
    }

    /// Says whether commits of the connection that writes wait for the disk, as the options have it.
    ///
    /// Those of a seal need not: what a power cut takes of it is in the journal still, because the
    /// log keeps the order of commits. The next commit of a batch syncs them too.
    async fn set_sync(&self, connection: &mut SqliteConnection, on: bool) -> Result<()> {
        if self.options.synchronous != Synchronous::Full {
            return Ok(());
        }
        let sql = if on { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" };
        let set = run(connection, sql).await;
        // Without it an acknowledged batch might not be on disk.
        set.inspect_err(|_| self.distrust())
    }

    /// Deletes journal rows that are sealed, in steps.
    async fn drop_sealed_rows(&self, sealed_id: i64) -> Result<()> {
        loop {
            let mut writer = self.writer().await?;
            let connection = writer.connection()?;
            self.set_sync(connection, false).await?;
            let deleted = delete_journal_rows(connection, sealed_id).await;
            self.set_sync(connection, true).await?;
            let deleted = deleted.inspect_err(|error| self.note_write_error(error))?;
            self.checkpoint_if_due(connection, STEP_BYTES).await;
            if deleted == 0 {
                return Ok(());
            }
        }
    }

    /// Removes everything before `cutoff_ms` and returns how many samples that were. Stops when
    /// `caller` is closed, because what is written after that must stay.
    pub(crate) async fn prune(
        self: &Arc<Self>,
        cutoff_ms: i64,
        caller: oneshot::Sender<()>,
    ) -> Result<u64> {
        let (mut removed, mut seals) = (0, 0);
        let mut cursor = START;
        loop {
            let step = self.prune_step(cutoff_ms, cursor, &caller).await;
            match step.map_err(|error| partly(error, removed))? {
                PruneStep::Done => return Ok(removed),
                PruneStep::Removed(count, next) => {
                    removed += count;
                    cursor = next;
                }
                PruneStep::SealFirst if seals < ATTEMPTS_MAX => {
                    self.seal().await.map_err(|error| partly(error, removed))?;
                    seals += 1;
                    cursor = START;
                }
                PruneStep::SealFirst => {
                    let error = Error::new(ErrorKind::Busy, "others kept writing old samples");
                    return Err(partly(error, removed));
                }
            }
        }
    }

    async fn prune_step(
        &self,
        cutoff_ms: i64,
        cursor: BlockKey,
        caller: &oneshot::Sender<()>,
    ) -> Result<PruneStep> {
        let mut writer = self.writer().await?;
        let connection = writer.connection()?;
        // Asked while nobody else can write: what the caller wrote after it gave up stays.
        if caller.is_closed() {
            return Err(Error::new(ErrorKind::Closed, "the caller gave up"));
        }
        let mut transaction = begin(connection).await?;
        let step = prune_in_transaction(&mut transaction, cutoff_ms, cursor).await;
        let step = finish(transaction, step).await;
        self.checkpoint_if_due(connection, STEP_BYTES).await;
        step.inspect_err(|error| self.note_write_error(error))
    }

    /// Gives free pages back to the file system and empties the write-ahead log.
    pub(crate) async fn give_space_back(&self) -> Result<()> {
        let mut free_before = i64::MAX;
        loop {
            let mut writer = self.writer().await?;
            let connection = writer.connection()?;
            let free = number(connection, "PRAGMA freelist_count").await?;
            // A file that another program has rebuilt may not be able to shrink.
            if free == 0 || free >= free_before {
                break;
            }
            free_before = free;
            // Stepped to its end: a single step frees a single page.
            sqlx::query("PRAGMA incremental_vacuum(1024)")
                .fetch_all(connection)
                .await
                .map_err(from_sqlx)
                .inspect_err(|error| self.note_write_error(error))?;
            if free <= STEP_PAGES {
                break;
            }
        }
        let mut writer = self.writer().await?;
        self.empty_log(writer.connection()?).await
    }

    /// Copies the write-ahead log into the database when enough was written since the last time.
    ///
    /// SQLite would do so by itself, but keeps it secret when the sync that belongs to it fails.
    pub(crate) async fn checkpoint_if_due(&self, connection: &mut SqliteConnection, bytes: u64) {
        if !self.is_checkpoint_due(bytes) {
            return;
        }
        let checkpoint = sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(&mut *connection);
        let frames = checkpoint.await.and_then(|row| row.try_get::<i64, _>(1)).map_err(from_sqlx);
        let result = match frames {
            // Readers that overlap without end keep the log from starting over.
            Ok(frames) if frames > LOG_FRAMES_MAX => self.empty_log(connection).await,
            result => result.map(drop),
        };
        if let Err(error) = result {
            self.note_write_error(&error);
            tracing::warn!(target: "storage", %error, "the write-ahead log cannot be copied back");
        }
    }

    /// Empties the log, waiting a moment for readers; if they need it for longer, another time.
    async fn empty_log(&self, connection: &mut SqliteConnection) -> Result<()> {
        run(connection, "PRAGMA busy_timeout = 100").await?;
        let emptied = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
            .fetch_all(&mut *connection)
            .await
            .map(drop)
            .map_err(from_sqlx)
            .inspect_err(|error| self.note_write_error(error));
        let busy_timeout_ms = self.options.busy_timeout.as_millis();
        sqlx::query(sqlx::AssertSqlSafe(format!("PRAGMA busy_timeout = {busy_timeout_ms}")))
            .execute(connection)
            .await
            .map_err(from_sqlx)?;
        match emptied {
            Err(error) if error.kind() == ErrorKind::Busy => Ok(()),
            emptied => emptied,
        }
    }
}

/// Deletes some of the journal rows that are sealed, the oldest first; returns how many.
async fn delete_journal_rows(connection: &mut SqliteConnection, sealed_id: i64) -> Result<u64> {
    let deleted = sqlx::query(
        "DELETE FROM journal WHERE id <= ?1 AND id < (SELECT min(id) FROM journal) + ?2",
    )
    .bind(sealed_id)
    .bind(STEP_JOURNAL_ROWS)
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(deleted.rows_affected())
}

/// Takes series until a step is full; returns their unsealed samples and how many series they are.
///
/// Series by series out of the head as it is then: were it held for long, writers would have to wait,
/// or copy it. If another process seals meanwhile, the step is planned anew.
fn take_step(
    store: &Store,
    state: &State,
    target: i64,
    ids: &[i64],
) -> (Vec<(i64, Vec<RawSample>)>, usize) {
    let (mut step, mut taken, mut samples) = (Vec::new(), 0, 0);
    let mut pace = Pace::start();
    for &id in ids {
        if step.len() == STEP_SERIES_MAX || samples >= STEP_SAMPLES_MAX {
            break;
        }
        taken += 1;
        let new = store.head().unsealed(id).map_or_else(Vec::new, |unsealed| {
            unsealed.samples(state.sealed_through(id), target, TimeRange::all())
        });
        samples += new.len();
        pace.give_way();
        if !new.is_empty() {
            step.push((id, new));
        }
    }
    (step, taken)
}

/// Lets others have the processor between pieces of long work.
///
/// A commit that is woken on it would else be held up for milliseconds, several times what it takes.
/// Not after each piece, because a kernel may let who gives way wait as long: on a busy machine sealing
/// would not keep up with what is written.
struct Pace {
    since: Instant,
}

impl Pace {
    const WORK: Duration = Duration::from_micros(500);

    fn start() -> Self {
        Self { since: Instant::now() }
    }

    fn give_way(&mut self) {
        if self.since.elapsed() >= Self::WORK {
            std::thread::yield_now();
            self.since = Instant::now();
        }
    }
}

async fn replace_once(
    connection: &mut SqliteConnection,
    before: State,
    after: State,
    dropped: &[OldBlock],
    made: &[NewBlock],
) -> Result<()> {
    let mut transaction = begin(connection).await?;
    let replaced = replace_in_transaction(&mut transaction, before, after, dropped, made).await;
    finish(transaction, replaced).await
}

async fn replace_in_transaction(
    connection: &mut SqliteConnection,
    before: State,
    after: State,
    dropped: &[OldBlock],
    made: &[NewBlock],
) -> Result<()> {
    let moved = sqlx::query(
        "UPDATE state SET sealed_id = ?, sealing_id = ?, sealing_next = ?, version = ?
         WHERE version = ? AND sealed_id = ?",
    )
    .bind(after.sealed_id)
    .bind(after.sealing_id)
    .bind(after.sealing_next)
    .bind(after.version)
    .bind(before.version)
    .bind(before.sealed_id)
    .execute(&mut *connection)
    .await
    .map_err(from_sqlx)?;
    if moved.rows_affected() == 0 {
        return Err(changed());
    }
    delete_blocks(connection, dropped).await?;
    insert_blocks(connection, made).await
}

/// Deletes blocks with their payloads: a statement each, however many they are.
async fn delete_blocks(connection: &mut SqliteConnection, old: &[OldBlock]) -> Result<()> {
    if old.is_empty() {
        return Ok(());
    }
    let keys: Vec<[i64; 2]> = old.iter().map(|block| [block.series_id, block.start_ms]).collect();
    sqlx::query(
        "DELETE FROM blocks WHERE (series_id, start_ms) IN
         (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))",
    )
    .bind(json_list(&keys)?)
    .execute(&mut *connection)
    .await
    .map_err(from_sqlx)?;
    let payload_ids: Vec<i64> = old.iter().map(|block| block.payload_id).collect();
    sqlx::query("DELETE FROM payloads WHERE id IN (SELECT value FROM json_each(?))")
        .bind(json_of(&payload_ids))
        .execute(connection)
        .await
        .map(drop)
        .map_err(from_sqlx)
}

/// Inserts blocks with their payloads, many rows a statement: each statement costs as much as a
/// dozen rows.
async fn insert_blocks(connection: &mut SqliteConnection, blocks: &[NewBlock]) -> Result<()> {
    if blocks.is_empty() {
        return Ok(());
    }
    let mut payload_id = number(connection, "SELECT coalesce(max(id), 0) FROM payloads").await?;
    for blocks in blocks.chunks(INSERT_ROWS) {
        let mut payloads = sqlx::query(insert_sql("payloads", 2, blocks.len()));
        let mut rows = sqlx::query(insert_sql("blocks", 11, blocks.len()));
        for block in blocks {
            payload_id += 1;
            payloads = payloads.bind(payload_id).bind(block.payload.as_slice());
            rows = bind_block(rows, block, payload_id);
        }
        payloads.execute(&mut *connection).await.map_err(from_sqlx)?;
        rows.execute(&mut *connection).await.map_err(from_sqlx)?;
    }
    Ok(())
}

type Statement<'q> = sqlx::query::Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

fn bind_block<'q>(rows: Statement<'q>, block: &NewBlock, payload_id: i64) -> Statement<'q> {
    let summary = &block.summary;
    rows.bind(block.series_id)
        .bind(block.start_ms)
        .bind(block.end_ms)
        .bind(summary.count as i64)
        .bind(summary.min)
        .bind(summary.max)
        .bind(summary.sum)
        .bind(summary.first)
        .bind(summary.last)
        .bind(block.has_metadata)
        .bind(payload_id)
}

/// Returns the statement that inserts `rows` rows of `columns` parameters.
fn insert_sql(table: &str, columns: usize, rows: usize) -> sqlx::AssertSqlSafe<String> {
    let row = format!("({})", vec!["?"; columns].join(","));
    sqlx::AssertSqlSafe(format!("INSERT INTO {table} VALUES {}", vec![row; rows].join(",")))
}

/// Series and start of a block.
type BlockKey = (i64, i64);

/// Before every block.
const START: BlockKey = (i64::MIN, i64::MIN);

enum PruneStep {
    /// Nothing is left to remove.
    Done,
    /// This many samples were removed; the next step goes on after this block.
    Removed(u64, BlockKey),
    /// The journal holds samples before the cutoff, or a seal is under way.
    SealFirst,
}

async fn prune_in_transaction(
    connection: &mut SqliteConnection,
    cutoff_ms: i64,
    cursor: BlockKey,
) -> Result<PruneStep> {
    let unsealed: bool = sqlx::query(
        "SELECT EXISTS (SELECT 1 FROM journal, state WHERE id > sealed_id AND min_ms < ?)
             OR (SELECT sealing_id > sealed_id FROM state)",
    )
    .bind(cutoff_ms)
    .fetch_one(&mut *connection)
    .await
    .and_then(|row| row.try_get(0))
    .map_err(from_sqlx)?;
    if unsealed {
        return Ok(PruneStep::SealFirst);
    }
    let rows = sqlx::query(
        "SELECT series_id, start_ms, end_ms, count, payload_id, 0 FROM blocks
         WHERE (series_id, start_ms) > (?, ?) AND start_ms < ?
         ORDER BY series_id, start_ms LIMIT ?",
    )
    .bind(cursor.0)
    .bind(cursor.1)
    .bind(cutoff_ms)
    .bind(STEP_BLOCKS)
    .fetch_all(&mut *connection)
    .await
    .map_err(from_sqlx)?;
    let blocks = rows.iter().map(old_block).collect::<std::result::Result<Vec<_>, _>>();
    let blocks = blocks.map_err(from_sqlx)?;
    let (whole, straddling): (Vec<_>, Vec<_>) =
        blocks.iter().cloned().partition(|block| block.end_ms < cutoff_ms);
    delete_blocks(connection, &whole).await?;
    let mut removed = whole.iter().map(|block| block.count as u64).sum();
    for old in &straddling {
        removed += cut_block(connection, old, cutoff_ms).await?;
    }
    let Some(last) = blocks.last() else { return Ok(PruneStep::Done) };
    run(connection, "UPDATE state SET version = version + 1").await?;
    Ok(PruneStep::Removed(removed, (last.series_id, last.start_ms)))
}

/// Rewrites a block without what is before the cutoff, and returns how many samples that was.
async fn cut_block(
    connection: &mut SqliteConnection,
    old: &OldBlock,
    cutoff_ms: i64,
) -> Result<u64> {
    let payload: Vec<u8> = sqlx::query("SELECT bytes FROM payloads WHERE id = ?")
        .bind(old.payload_id)
        .fetch_one(&mut *connection)
        .await
        .and_then(|row| row.try_get(0))
        .map_err(from_sqlx)?;
    let samples = block::decode(&payload)?;
    let kept_from = samples.partition_point(|sample| sample.ms < cutoff_ms);
    let kept = &samples[kept_from..];
    delete_blocks(connection, std::slice::from_ref(old)).await?;
    if !kept.is_empty() {
        insert_blocks(connection, &[seal::new_block(old.series_id, kept)?]).await?;
    }
    Ok(kept_from as u64)
}

fn old_block(row: &sqlx::sqlite::SqliteRow) -> std::result::Result<OldBlock, sqlx::Error> {
    Ok(OldBlock {
        series_id: row.try_get(0)?,
        start_ms: row.try_get(1)?,
        end_ms: row.try_get(2)?,
        count: row.try_get::<i64, _>(3)? as usize,
        payload_id: row.try_get(4)?,
        payload_bytes: row.try_get::<i64, _>(5)? as usize,
    })
}

/// The error of a step that was planned on blocks that have changed since.
fn changed() -> Error {
    Error::new(ErrorKind::Busy, "another process changed the blocks").with_context("changed", true)
}

fn is_changed(error: &Error) -> bool {
    error.context("changed").is_some()
}

/// After a part was removed, a prune that fails has had an effect.
pub(crate) fn partly(error: Error, removed: u64) -> Error {
    if removed == 0 { error } else { error.with_outcome(Outcome::Unknown) }
}

/// Runs upkeep in a task of its own, so that dropping the caller never stops a step half way. The
/// task is given what closes when its caller is gone.
pub(crate) async fn upkeep<T: Send + 'static, W: Future<Output = Result<T>> + Send + 'static>(
    store: &Arc<Store>,
    operation: &'static str,
    work: impl FnOnce(Arc<Store>, oneshot::Sender<()>) -> W,
) -> Result<T> {
    let (caller, _alive) = oneshot::channel();
    let done = store.runtime.spawn(work(Arc::clone(store), caller)).await;
    done.map_err(panicked).flatten().map_err(|error| named(error, operation))
}

pub(crate) fn panicked(error: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Internal, "a task of the store ended early")
        .with_outcome(Outcome::Unknown)
        .with_source(error)
}

#[cfg(test)]
mod tests;
