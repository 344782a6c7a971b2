//! Prepares batches of samples, stores them as rows of the journal, and hands them on to the head.
//!
//! A caller turns its records into frames and hands them to the task of `commit`, which writes those
//! of several callers as one journal row.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use rustc_hash::FxHashMap;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;
use storage_core::{Error, MetricRecord, Result, SeriesKey};

use crate::codec::corrupt;
use crate::codec::frame::{self, Entry};
use crate::commit::{Committer, Work};
use crate::convert::to_raw;
use crate::error::from_sqlx;
use crate::list::json_list;
use crate::maintenance;
use crate::store::Store;

/// The most samples that several batches have which are joined into one row.
const JOINED_SAMPLES_MAX: usize = 100_000;

/// A journal row stays below this many samples and bytes, so that no blob is too large for SQLite.
const ROW_SAMPLES_MAX: usize = 1_000_000;
const ROW_METADATA_BYTES_MAX: usize = 64 << 20;

/// Series that are added by one statement.
const NEW_SERIES_MAX: usize = 10_000;

/// Ingestion waits while this many times `seal_samples` are unsealed, so that memory and journal
/// stay bounded when sealing cannot keep up.
const UNSEALED_FACTOR_MAX: usize = 2;

/// How long it waits at most, in case sealing cannot make progress at all.
const SEAL_WAIT_MAX: Duration = Duration::from_secs(10);

const INSERT_ROW: &str = "INSERT INTO journal (id, min_ms, max_ms, rows, payload)
    SELECT 1 + max(sealed_id, coalesce((SELECT max(id) FROM journal), 0)), ?, ?, ?, ? FROM state";

/// What becomes a row of the journal, or a part of one.
#[derive(Debug)]
pub(crate) struct JournalRow {
    frame: Vec<u8>,
    entries: Vec<Entry>,
}

impl JournalRow {
    pub(crate) fn bytes(&self) -> u64 {
        self.frame.len() as u64
    }
}

/// Stores a batch.
pub(crate) async fn write(
    store: &Arc<Store>,
    committer: &Committer,
    records: &[MetricRecord],
) -> Result<()> {
    let mut known = try_resolve(store, records)?;
    store.check_writable()?;
    if records.is_empty() {
        return Ok(());
    }
    if is_behind(store) {
        // The wait is to bound memory: what waits is not held twice.
        drop(known);
        wait_for_sealing(store).await;
        known = try_resolve(store, records)?;
    }
    let entries = match known {
        Ok(entries) => entries,
        Err(missing) => resolve(store, records, missing).await?,
    };
    committer.commit(Work::Samples(rows_of(entries)), records.len()).await
}

/// Whether so much is unsealed that writers wait.
fn is_behind(store: &Store) -> bool {
    let most = store.options.seal_samples.saturating_mul(UNSEALED_FACTOR_MAX);
    store.head().samples() > most
}

async fn wait_for_sealing(store: &Store) {
    let sealed = async {
        loop {
            let rung = store.sealed.notified();
            if !is_behind(store) || store.upkeep_error().is_some() {
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

/// Adds the series of a batch that are missing, and returns its entries.
async fn resolve(
    store: &Arc<Store>,
    records: &[MetricRecord],
    mut missing: Vec<[String; 2]>,
) -> Result<Vec<Entry>> {
    loop {
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
        missing = match try_resolve(store, records)? {
            Ok(entries) => return Ok(entries),
            Err(missing) => missing,
        };
    }
}

/// Checks a batch, and returns the entries, or the names of all series whose ids are not known. Names
/// that are known are valid.
///
/// # Errors
/// As `validate_batch`.
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
        let in_batch = |error: Error| error.with_context("record", index);
        match server.and_then(|(_, metrics)| metrics.get(record.metric_type.as_str()).copied()) {
            Some(series_id) => {
                record.validate_sample().map_err(in_batch)?;
                let sample = to_raw(record).map_err(in_batch)?;
                entries.push(Entry { series_id, sample });
            }
            None => {
                record.validate().map_err(in_batch)?;
                missing.push([record.server_id.clone(), record.metric_type.clone()]);
            }
        }
    }
    missing.sort_unstable();
    missing.dedup();
    Ok(if missing.is_empty() { Ok(entries) } else { Err(missing) })
}

/// Adds series to the dictionary. A series without samples does not show, so this may be done
/// before, and apart from, the batch that needs it.
async fn add_series(store: &Store, names: &[[String; 2]]) -> Result<()> {
    let json = json_list(names)?;
    let mut writer = store.writer().await?;
    // Not earlier: what others added while this waited is known by now.
    let known_id = store.dictionary().last_id();
    let connection = writer.connection()?;
    sqlx::query(
        "INSERT INTO series (server_id, metric_type)
         SELECT value ->> 0, value ->> 1 FROM json_each(?) WHERE true ON CONFLICT DO NOTHING",
    )
    .bind(json)
    .execute(&mut *connection)
    .await
    .map_err(from_sqlx)
    .inspect_err(|error| store.note_write_error(error))?;
    store.learn(series_after(connection, known_id).await?);
    Ok(())
}

/// Reads the series with larger ids. They come as one row: each row changes threads, which takes
/// longer than to read it.
async fn series_after(
    connection: &mut SqliteConnection,
    known_id: i64,
) -> Result<Vec<(i64, SeriesKey)>> {
    let json: String = sqlx::query_scalar(
        "SELECT json_group_array(json_array(id, server_id, metric_type)) FROM series WHERE id > ?",
    )
    .bind(known_id)
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)?;
    let series: Vec<(i64, String, String)> = serde_json::from_str(&json)
        .map_err(|error| corrupt("the names of series cannot be read").with_source(error))?;
    let key = |(id, server_id, metric_type)| (id, SeriesKey { server_id, metric_type });
    Ok(series.into_iter().map(key).collect())
}

/// Makes journal rows of a batch; all but the largest batches are one.
fn rows_of(entries: Vec<Entry>) -> Vec<JournalRow> {
    let encode = |entries: Vec<Entry>| JournalRow { frame: frame::encode_frame(&entries), entries };
    let is_small = entries.len() <= ROW_SAMPLES_MAX
        && entries.iter().map(metadata_bytes).sum::<usize>() <= ROW_METADATA_BYTES_MAX;
    if is_small { vec![encode(entries)] } else { split(entries).into_iter().map(encode).collect() }
}

fn split(entries: Vec<Entry>) -> Vec<Vec<Entry>> {
    let (mut rows, mut current, mut bytes) = (Vec::new(), Vec::new(), 0);
    for entry in entries {
        bytes += metadata_bytes(&entry);
        current.push(entry);
        if current.len() == ROW_SAMPLES_MAX || bytes > ROW_METADATA_BYTES_MAX {
            bytes = 0;
            rows.push(std::mem::take(&mut current));
        }
    }
    if !current.is_empty() {
        rows.push(current);
    }
    rows
}

fn metadata_bytes(entry: &Entry) -> usize {
    entry.sample.metadata.as_ref().map_or(0, |metadata| metadata.len())
}

/// Joins the frames of several batches into one row, as long as it stays small.
pub(crate) fn join_small(rows: Vec<JournalRow>) -> Vec<JournalRow> {
    let mut joined: Vec<JournalRow> = Vec::new();
    for row in rows {
        match joined.last_mut() {
            Some(last)
                if last.entries.len() + row.entries.len() <= JOINED_SAMPLES_MAX
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

/// Inserts a row and returns the id that it got.
pub(crate) async fn insert_row(connection: &mut SqliteConnection, row: &JournalRow) -> Result<i64> {
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

/// Sees to it that the head gets committed rows; if other processes committed before them, with theirs.
pub(crate) async fn follow(
    store: &Arc<Store>,
    connection: &mut SqliteConnection,
    ids: Vec<i64>,
    rows: Vec<JournalRow>,
) {
    let rows = ids.into_iter().zip(rows).map(|(id, row)| (id, row.entries)).collect();
    if store.put_off(rows) {
        return;
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
