//! Stores batches: encoded by their callers, committed by one task, several in one commit.
//!
//! A caller turns its records into frames, hands them over and waits. The task takes all that wait,
//! writes them as one journal row in one commit (one sync of the disk), applies them to the
//! head and answers each caller. Dropping a waiting caller changes nothing: what was handed over
//! is committed whole, what was not is not.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::TryStreamExt;
use rustc_hash::FxHashMap;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;
use storage_core::{Error, ErrorKind, MetricRecord, Outcome, Result, SeriesKey};
use tokio::sync::{mpsc, oneshot};

use crate::codec::frame::{self, Entry};
use crate::convert::to_raw;
use crate::error::{from_sqlx, of_commit};
use crate::maintenance;
use crate::schema::{begin, finish};
use crate::store::{Store, WriterGuard};

/// The most records that wait together for one commit.
const GROUP_RECORDS_MAX: usize = 100_000;

/// How often other tasks get a turn before a commit goes on without them: a fraction of what the
/// sync of a disk takes.
const GATHER_MOMENTS: usize = 32;

/// A journal row stays below this many samples and bytes, so that no blob is too large for SQLite.
const ROW_SAMPLES_MAX: usize = 1_000_000;
const ROW_METADATA_BYTES_MAX: usize = 64 << 20;

/// Series that are added by one statement.
const NEW_SERIES_MAX: usize = 10_000;

/// Callers that may wait in the queue before others wait in front of it.
const QUEUE_LENGTH: usize = 256;

/// Ingestion waits while this many times `seal_samples` are unsealed, so that memory and journal
/// stay bounded when sealing cannot keep up.
const UNSEALED_FACTOR_MAX: usize = 2;

/// How long it waits at most, in case sealing cannot make progress at all.
const SEAL_WAIT_MAX: Duration = Duration::from_secs(10);

const INSERT_ROW: &str = "INSERT INTO journal (id, min_ms, max_ms, rows, payload)
    SELECT 1 + max(sealed_id, coalesce((SELECT max(id) FROM journal), 0)), ?, ?, ?, ? FROM state";

/// A batch on its way to the journal.
struct Job {
    rows: Vec<JournalRow>,
    samples: usize,
    done: oneshot::Sender<Result<()>>,
}

/// What becomes a row of the journal, or a part of one.
struct JournalRow {
    frame: Vec<u8>,
    entries: Vec<Entry>,
}

/// The way to the task that commits.
#[derive(Debug, Clone)]
pub(crate) struct Committer(mpsc::Sender<Job>);

impl Committer {
    /// Starts the task; it ends when the last sender is gone.
    pub(crate) fn start(store: &Arc<Store>) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
        store.runtime.spawn(commit_all(Arc::downgrade(store), receiver));
        Self(sender)
    }

    /// Waits until everything that was handed over before is answered.
    pub(crate) async fn drain(&self) {
        let (done, drained) = oneshot::channel();
        let job = Job { rows: Vec::new(), samples: 0, done };
        // Where the task is gone, nothing waits.
        if self.0.send(job).await.is_ok() {
            let _ = drained.await;
        }
    }

    /// Stores a batch that is valid.
    pub(crate) async fn write(&self, store: &Arc<Store>, records: &[MetricRecord]) -> Result<()> {
        store.check_writable()?;
        if records.is_empty() {
            return Ok(());
        }
        wait_for_sealing(store).await;
        let entries = resolve(store, records).await?;
        let (done, committed) = oneshot::channel();
        let job = Job { rows: rows_of(entries), samples: records.len(), done };
        self.0.send(job).await.map_err(|_| gone(Outcome::NotApplied))?;
        committed.await.map_err(|_| gone(Outcome::Unknown))?
    }
}

fn gone(outcome: Outcome) -> Error {
    Error::new(ErrorKind::Closed, "the store was closed").with_outcome(outcome)
}

async fn wait_for_sealing(store: &Store) {
    let most = store.options.seal_samples.saturating_mul(UNSEALED_FACTOR_MAX);
    let is_over = || store.head().samples() > most;
    if !is_over() {
        return;
    }
    let sealed = async {
        loop {
            let rung = store.sealed.notified();
            if !is_over() || store.upkeep_error().is_some() {
                return;
            }
            store.seal_due.notify_one();
            rung.await;
        }
    };
    if tokio::time::timeout(SEAL_WAIT_MAX, sealed).await.is_err() {
        tracing::warn!(target: "storage", "sealing does not keep up with writing");
    }
}

/// Finds the ids of the series of a batch, and adds the series that are new.
async fn resolve(store: &Arc<Store>, records: &[MetricRecord]) -> Result<Vec<Entry>> {
    loop {
        let missing = match try_resolve(store, records)? {
            Ok(entries) => return Ok(entries),
            Err(missing) => missing,
        };
        // In a task of its own: what it finds out about the disk must not be lost with a caller
        // that gives up.
        let (adding, chunk) = (Arc::clone(store), missing);
        let added = store.runtime.spawn(async move {
            for names in chunk.chunks(NEW_SERIES_MAX) {
                add_series(&adding, names).await?;
            }
            Ok::<_, Error>(())
        });
        added.await.map_err(maintenance::panicked)??;
    }
}

/// Returns the entries, or the names of all series whose ids are not known.
fn try_resolve(
    store: &Store,
    records: &[MetricRecord],
) -> Result<std::result::Result<Vec<Entry>, Vec<[String; 2]>>> {
    let dictionary = store.dictionary();
    let mut entries = Vec::with_capacity(records.len());
    let mut missing = Vec::new();
    // Records of one server mostly come together.
    let mut server: Option<(&str, &FxHashMap<Box<str>, i64>)> = None;
    for (index, record) in records.iter().enumerate() {
        if server.is_none_or(|(server_id, _)| server_id != record.server_id) {
            let metrics = dictionary.metrics(&record.server_id);
            server = metrics.map(|metrics| (record.server_id.as_str(), metrics));
        }
        match server.and_then(|(_, metrics)| metrics.get(record.metric_type.as_str()).copied()) {
            Some(series_id) => {
                let sample = to_raw(record).map_err(|error| error.with_context("record", index))?;
                entries.push(Entry { series_id, sample });
            }
            None => missing.push([record.server_id.clone(), record.metric_type.clone()]),
        }
    }
    missing.sort_unstable();
    missing.dedup();
    Ok(if missing.is_empty() { Ok(entries) } else { Err(missing) })
}

/// Adds series to the dictionary. A series without samples does not show, so this may be done
/// before, and apart from, the batch that needs it.
async fn add_series(store: &Store, names: &[[String; 2]]) -> Result<()> {
    let json = serde_json::to_string(names).map_err(|error| {
        Error::new(ErrorKind::Internal, "cannot list new series").with_source(error)
    })?;
    let known_id = store.dictionary().last_id();
    let mut writer = store.writer().await?;
    let connection = writer.connection()?;
    sqlx::query(
        "INSERT INTO series (server_id, metric_type)
         SELECT value ->> 0, value ->> 1 FROM json_each(?) WHERE true ON CONFLICT DO NOTHING",
    )
    .bind(json)
    .execute(&mut *connection)
    .await
    .map_err(|error| noted(store, from_sqlx(error)))?;
    let series = sqlx::query("SELECT id, server_id, metric_type FROM series WHERE id > ?")
        .bind(known_id)
        .fetch_all(connection)
        .await
        .and_then(|rows| {
            let parse = |row: &sqlx::sqlite::SqliteRow| {
                let key = SeriesKey { server_id: row.try_get(1)?, metric_type: row.try_get(2)? };
                Ok((row.try_get(0)?, key))
            };
            rows.iter().map(parse).collect::<std::result::Result<Vec<_>, sqlx::Error>>()
        })
        .map_err(from_sqlx)?;
    store.learn(series);
    Ok(())
}

/// Splits a batch into journal rows; all but the largest batches are one.
fn rows_of(entries: Vec<Entry>) -> Vec<JournalRow> {
    let mut rows = Vec::new();
    let mut current = Vec::new();
    let mut metadata_bytes = 0;
    for entry in entries {
        metadata_bytes += entry.sample.metadata.as_ref().map_or(0, |metadata| metadata.len());
        current.push(entry);
        if current.len() == ROW_SAMPLES_MAX || metadata_bytes > ROW_METADATA_BYTES_MAX {
            metadata_bytes = 0;
            rows.push(std::mem::take(&mut current));
        }
    }
    if !current.is_empty() {
        rows.push(current);
    }
    let encode = |entries: Vec<Entry>| JournalRow { frame: frame::encode_frame(&entries), entries };
    rows.into_iter().map(encode).collect()
}

async fn commit_all(store: Weak<Store>, mut jobs: mpsc::Receiver<Job>) {
    let mut callers = 1;
    while let Some(first) = jobs.recv().await {
        let group = gather(first, &mut jobs, callers).await;
        callers = group.len();
        let Some(store) = store.upgrade() else { return };
        commit_group(&store, group).await;
        if maintenance::is_seal_due(&store) {
            store.seal_due.notify_one();
        }
    }
}

/// Takes what waits for the next commit.
///
/// Callers that were answered together come back one by one: where there were several, they get a
/// moment to do so, else each commit would take the few that were quickest.
async fn gather(first: Job, jobs: &mut mpsc::Receiver<Job>, callers_before: usize) -> Vec<Job> {
    let mut samples = first.samples;
    let mut group = vec![first];
    let mut moments = if callers_before > 1 { GATHER_MOMENTS } else { 0 };
    while samples < GROUP_RECORDS_MAX {
        match jobs.try_recv() {
            Ok(job) => {
                samples += job.samples;
                group.push(job);
            }
            Err(_) if moments == 0 || group.len() >= callers_before => break,
            Err(_) => {
                moments -= 1;
                tokio::task::yield_now().await;
            }
        }
    }
    group
}

/// Commits jobs together; if that fails, nothing of any of them is stored.
async fn commit_group(store: &Store, group: Vec<Job>) {
    let (mut rows, mut callers) = (Vec::new(), Vec::new());
    for job in group {
        rows.extend(job.rows);
        callers.push(job.done);
    }
    let answer = |result: Result<()>| {
        for done in callers {
            // A caller that is gone does not want the answer.
            let _ = done.send(result.as_ref().map_err(copy_of).copied());
        }
    };
    if rows.is_empty() {
        return answer(Ok(()));
    }
    let rows = join_small(rows);
    match commit(store, &rows).await {
        Ok((mut writer, ids)) => {
            // Before the head has the rows: whoever asks meanwhile finds them in the journal, and
            // the callers make their next batches.
            answer(Ok(()));
            settle(store, &mut writer, ids, rows).await;
        }
        Err(error) => answer(Err(error)),
    }
}

/// Joins the frames of several batches into one row, as long as it stays small.
fn join_small(rows: Vec<JournalRow>) -> Vec<JournalRow> {
    let mut joined: Vec<JournalRow> = Vec::new();
    for row in rows {
        match joined.last_mut() {
            Some(last)
                if last.entries.len() + row.entries.len() <= GROUP_RECORDS_MAX
                    && last.frame.len() + row.frame.len() <= ROW_METADATA_BYTES_MAX =>
            {
                last.frame.extend_from_slice(&row.frame);
                last.entries.extend(row.entries);
            }
            _ => joined.push(row),
        }
    }
    joined
}

/// Commits rows, and returns the connection that did with the ids they got.
async fn commit<'a>(store: &'a Store, rows: &[JournalRow]) -> Result<(WriterGuard<'a>, Vec<i64>)> {
    let mut writer = store.writer_of_commit().await?;
    let inserted = insert(writer.connection()?, rows).await;
    let ids = inserted.map_err(|error| noted(store, of_commit(error)))?;
    Ok((writer, ids))
}

/// Does what is due after a commit.
async fn settle(store: &Store, writer: &mut WriterGuard<'_>, ids: Vec<i64>, rows: Vec<JournalRow>) {
    // It is there: this is the guard that has just committed.
    let Ok(connection) = writer.connection() else { return };
    let bytes = rows.iter().map(|row| row.frame.len() as u64).sum();
    apply(store, connection, ids, rows).await;
    store.checkpoint_if_due(connection, bytes).await;
}

/// Inserts the rows in one transaction and returns the ids they got. One row needs no more than its
/// statement, which is a transaction of its own.
async fn insert(connection: &mut SqliteConnection, rows: &[JournalRow]) -> Result<Vec<i64>> {
    match rows {
        [row] => Ok(vec![insert_row(connection, row).await?]),
        rows => {
            let mut transaction = begin(connection).await?;
            let inserted = insert_rows(&mut transaction, rows).await;
            finish(transaction, inserted).await
        }
    }
}

async fn insert_rows(connection: &mut SqliteConnection, rows: &[JournalRow]) -> Result<Vec<i64>> {
    let mut ids = Vec::with_capacity(rows.len());
    for row in rows {
        ids.push(insert_row(connection, row).await?);
    }
    Ok(ids)
}

async fn insert_row(connection: &mut SqliteConnection, row: &JournalRow) -> Result<i64> {
    let times = || row.entries.iter().map(|entry| entry.sample.ms);
    let inserted = sqlx::query(INSERT_ROW)
        .bind(times().min())
        .bind(times().max())
        .bind(row.entries.len() as i64)
        .bind(frame::seal_payload([row.frame.as_slice()]))
        .execute(connection)
        .await
        .map_err(from_sqlx)?;
    Ok(inserted.last_insert_rowid())
}

/// Applies committed rows to the head; if other processes committed before them, theirs first.
async fn apply(
    store: &Store,
    connection: &mut SqliteConnection,
    ids: Vec<i64>,
    rows: Vec<JournalRow>,
) {
    {
        let mut head = store.head_mut();
        if ids.first().is_some_and(|first| head.applied_id() + 1 >= *first) {
            ids.into_iter().zip(rows).for_each(|(id, row)| head.apply(id, row.entries));
            return;
        }
    }
    // Readers find the rows in the journal themselves, so an error here loses nothing.
    if let Err(error) = apply_journal(store, connection).await {
        tracing::warn!(target: "storage", %error, "cannot read what other processes wrote");
    }
}

async fn apply_journal(store: &Store, connection: &mut SqliteConnection) -> Result<()> {
    let applied_id = store.head().applied_id();
    // The state first: rows up to sealed_id may be gone, and are in blocks.
    let sealed_id: i64 = sqlx::query("SELECT sealed_id FROM state")
        .fetch_one(&mut *connection)
        .await
        .and_then(|row| row.try_get(0))
        .map_err(from_sqlx)?;
    let mut found = Vec::new();
    {
        let mut rows = sqlx::query("SELECT id, payload FROM journal WHERE id > ? ORDER BY id")
            .bind(applied_id)
            .fetch(connection);
        while let Some(row) = rows.try_next().await.map_err(from_sqlx)? {
            let payload: &[u8] = row.try_get(1).map_err(from_sqlx)?;
            found.push((row.try_get(0).map_err(from_sqlx)?, frame::decode_payload(payload)?));
        }
    }
    let mut head = store.head_mut();
    found.into_iter().for_each(|(id, entries)| head.apply(id, entries));
    head.trim(sealed_id);
    Ok(())
}

fn noted(store: &Store, error: Error) -> Error {
    store.note_write_error(&error);
    error
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
