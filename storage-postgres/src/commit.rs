//! One commit: a transaction that stores a batch by COPY.
//!
//! The usual case is a straight COPY into the table. If a sample is there already the server
//! refuses, and the batch is stored again by way of a temporary table, over what is there. Each
//! transaction also counts what it adds, in `days`, and adds the series that are new; so whatever
//! happens to the connection, samples, counts and names fit together.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{NaiveDate, Utc};
use futures_util::SinkExt;
use rustc_hash::{FxHashMap, FxHashSet};
use storage_core::{Error, ErrorKind, Outcome, Result, SeriesKey};
use tokio_postgres::types::ToSql;
use tokio_postgres::{CopyInSink, Row, SimpleQueryMessage, SimpleQueryRow, Statement};

use crate::connect::{Connection, is_unusable};
use crate::convert::{MetadataColumn, PgTime};
use crate::copy::{Entry, encode, pieces};
use crate::dictionary::Dictionary;
use crate::error::{
    NO_PARTITION, UNIQUE_VIOLATION, from_pg, is_disconnect, is_victim, of_commit, sqlstate,
};
use crate::events::append::{self as events, Append};
use crate::history::write::{self as history, ValueRow};
use crate::partitions::{self, DAY_MS, Partitions};
use crate::store::Store;

const COPY: &str = "COPY samples (series_id, ts, value, metadata) FROM STDIN (FORMAT binary)";
const COPY_PENDING: &str =
    "COPY pg_temp.storage_pending (series_id, ts, value, metadata) FROM STDIN (FORMAT binary)";
const COUNT_DAYS: &str = include_str!("sql/count_days.sql");
const COUNT_FRESH: &str = include_str!("sql/count_fresh.sql");
const STORE_PENDING: &str = include_str!("sql/store_pending.sql");

const ADD_SERIES: &str = "INSERT INTO series (server_id, metric_type)
    SELECT * FROM unnest($1::text[], $2::text[]) AS u (server_id, metric_type)
    WHERE NOT EXISTS (SELECT FROM series s
                      WHERE s.server_id = u.server_id AND s.metric_type = u.metric_type)
    ON CONFLICT DO NOTHING";
const FIND_SERIES: &str = "SELECT s.id, s.server_id, s.metric_type
    FROM unnest($1::text[], $2::text[]) AS u (server_id, metric_type)
    JOIN series s ON s.server_id = u.server_id AND s.metric_type = u.metric_type";

/// How often a commit is tried again for reasons that trying again removes.
const ATTEMPTS_MAX: usize = 8;

/// Slots of `days` that handles choose from.
const SLOTS: i16 = 16;

/// Samples to be stored together. A negative id refers to `unknown`: -1 to the first.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) entries: Vec<Entry>,
    unknown: Vec<SeriesKey>,
    /// Where the ids come from.
    series: Arc<Dictionary>,
    /// The ids that `unknown` got in the transaction under way.
    resolved: Vec<i64>,
}

impl Batch {
    pub(crate) fn new(
        entries: Vec<Entry>,
        unknown: Vec<SeriesKey>,
        series: Arc<Dictionary>,
    ) -> Self {
        Self { entries, unknown, series, resolved: Vec::new() }
    }

    /// Joins batches in the order in which they came.
    pub(crate) fn join(batches: Vec<Self>) -> Self {
        let mut batches = batches.into_iter();
        let mut all = batches.next().unwrap_or_default();
        for mut batch in batches {
            batch.rename(&all.series);
            let before = all.unknown.len() as i64;
            for entry in batch.entries.iter_mut().filter(|entry| entry.series_id < 0) {
                entry.series_id -= before;
            }
            all.entries.append(&mut batch.entries);
            all.unknown.append(&mut batch.unknown);
        }
        all
    }

    /// Puts references to names in the place of ids, unless these come from `series`: from no other
    /// dictionary they may go into a table, see [`dictionary`](crate::dictionary).
    pub(crate) fn rename(&mut self, series: &Arc<Dictionary>) {
        if Arc::ptr_eq(&self.series, series) {
            return;
        }
        let older = std::mem::replace(&mut self.series, Arc::clone(series));
        let (known, mut references) = (older.known(), FxHashMap::default());
        for entry in self.entries.iter_mut().filter(|entry| entry.series_id >= 0) {
            let refer = || {
                let key = known.key(entry.series_id).expect("ids come from their dictionary");
                self.unknown.push(key.clone());
                -(self.unknown.len() as i64)
            };
            entry.series_id = *references.entry(entry.series_id).or_insert_with(refer);
        }
    }

    /// Puts ids in the place of references to names.
    fn put_ids(&mut self, found: &[(i64, SeriesKey)]) -> Result<()> {
        let ids: FxHashMap<&SeriesKey, i64> = found.iter().map(|(id, key)| (key, *id)).collect();
        let id = |key| {
            let missing = "a series that was added is not there";
            ids.get(key).copied().ok_or_else(|| Error::new(ErrorKind::Internal, missing))
        };
        self.resolved = self.unknown.iter().map(id).collect::<Result<_>>()?;
        for entry in self.entries.iter_mut().filter(|entry| entry.series_id < 0) {
            let index = usize::try_from(-1 - entry.series_id).unwrap_or(usize::MAX);
            entry.series_id = *self.resolved.get(index).ok_or_else(|| {
                Error::new(ErrorKind::Internal, "a sample refers to a name that is not there")
            })?;
        }
        Ok(())
    }

    /// Takes the ids back: the transaction that gave them may have failed, and they with it.
    fn forget_ids(&mut self) {
        let resolved = std::mem::take(&mut self.resolved);
        if resolved.is_empty() {
            return;
        }
        let references: FxHashMap<i64, i64> =
            resolved.into_iter().zip(1..).map(|(id, number)| (id, -number)).collect();
        for entry in &mut self.entries {
            entry.series_id = references.get(&entry.series_id).copied().unwrap_or(entry.series_id);
        }
    }
}

/// Series with their ids.
type Found = Vec<(i64, SeriesKey)>;

/// What stands between a try and the next one.
enum Trouble {
    /// The commit failed.
    Failed(Error),
    /// Something that was remembered no longer holds.
    Stale,
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A connection with what is prepared on it.
#[derive(Debug)]
struct Link {
    connection: Connection,
    tables: Tables,
    copy: Statement,
    count: Statement,
    pending: Option<Pending>,
    /// What storing values needs, once there were some.
    values: Option<history::Values>,
    /// What appending needs, once there were events.
    events: Option<events::Statements>,
    /// Nothing was committed on it yet: if it fails, another one would, too.
    is_new: bool,
}

/// Which tables a connection writes to, by the number of the table `state`. A backup that is played
/// back below a living connection makes others, and gives ids again as another server would.
#[derive(Debug)]
pub(crate) struct Tables(String);

impl Tables {
    async fn of(connection: &Connection) -> Result<Self> {
        let found = query(connection, "SELECT tableoid FROM state").await?;
        let oid = last_row(&found).and_then(|row| row.get(0)).ok_or_else(gone)?;
        Ok(Self(oid.to_owned()))
    }

    /// # Errors
    /// `Unavailable`, as of a connection that is lost, if `oid` is that of another table.
    pub(crate) fn check(&self, oid: Option<&str>) -> Result<()> {
        match oid == Some(&*self.0) {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Unavailable, "the tables were replaced by others")),
        }
    }
}

/// The last row of an answer.
pub(crate) fn last_row(answer: &[SimpleQueryMessage]) -> Option<&SimpleQueryRow> {
    answer.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}

/// What it takes to replace samples.
#[derive(Debug, Clone)]
struct Pending {
    copy: Statement,
    count: Statement,
    store: Statement,
}

/// What is stored beside samples.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Other<'a> {
    /// Values of records.
    Values(&'a [ValueRow]),
    /// Events of several callers.
    Events(&'a [Append]),
}

/// The state of the task that commits.
#[derive(Debug)]
pub(crate) struct Committing {
    link: Option<Link>,
    slot: i16,
    /// What the following hold for; none are known before the first commit.
    generation: Option<i64>,
    partitions: Partitions,
    /// Series whose mark says that they are empty.
    emptied: FxHashSet<i64>,
    /// The last batch met samples that were there: then the next one does, too, more often than
    /// not, and a refused COPY leaves dead rows behind.
    replaces: bool,
    /// The day for which partitions were made ahead.
    made_ahead: Option<NaiveDate>,
    closed: bool,
}

impl Committing {
    pub(crate) fn new(store: &Store) -> Self {
        // Any spread will do: the address of the handle differs from that of others.
        let spread = std::ptr::from_ref(store).addr() as u64 ^ u64::from(std::process::id()) << 20;
        let slot = (spread.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60) as i16 % SLOTS;
        Self {
            link: None,
            slot,
            generation: None,
            partitions: Partitions::default(),
            emptied: FxHashSet::default(),
            replaces: false,
            made_ahead: None,
            closed: false,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.link = None;
    }

    /// Stores what is no sample, all or nothing.
    pub(crate) async fn commit_other(&mut self, store: &Store, other: Other<'_>) -> Result<()> {
        // Held across the transaction on purpose: see the field.
        let _order = store.order.lock().await;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let Err(error) = self.attempt_other(store, other).await else { return Ok(()) };
            let go_on = self.settle(store, &error).await;
            if !go_on || attempts == ATTEMPTS_MAX {
                return Err(error);
            }
        }
    }

    async fn attempt_other(&mut self, store: &Store, other: Other<'_>) -> Result<()> {
        self.ensure_link(store).await?;
        match other {
            Other::Values(rows) => self.attempt_values(store, rows).await?,
            Other::Events(appends) => self.attempt_events(store, appends).await?,
        }
        if let Some(link) = &mut self.link {
            link.is_new = false;
        }
        Ok(())
    }

    async fn attempt_values(&mut self, store: &Store, rows: &[ValueRow]) -> Result<()> {
        let Link { connection, tables, values, .. } = self.link_mut()?;
        let values = match values {
            Some(values) => values,
            None => values.insert(store.server.in_time(history::Values::new(connection)).await?),
        };
        history::insert(store, connection, tables, values, rows).await
    }

    async fn attempt_events(&mut self, store: &Store, appends: &[Append]) -> Result<()> {
        let statements = match &self.link()?.events {
            Some(statements) => statements.clone(),
            None => {
                let prepare = events::Statements::prepare(&self.link()?.connection);
                store.server.in_time(prepare).await?
            }
        };
        events::insert(store, &self.link()?.connection, &statements, appends).await?;
        if let Some(link) = &mut self.link {
            link.events = Some(statements);
        }
        Ok(())
    }

    /// Stores a batch, all or nothing.
    pub(crate) async fn commit(&mut self, store: &Store, batch: Batch) -> Result<()> {
        let mut batch = batch;
        let order = store.order.lock().await;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let (error, is_stale) = match self.attempt(store, &mut batch).await {
                Ok(()) => break,
                Err(Trouble::Stale) => {
                    (Error::new(ErrorKind::Busy, "the tables change all the time"), true)
                }
                Err(Trouble::Failed(error)) => (error, false),
            };
            if is_stale {
                self.generation = None;
            }
            let go_on = self.settle(store, &error).await || is_stale;
            if !go_on || attempts == ATTEMPTS_MAX {
                return Err(error);
            }
        }
        drop(order);
        Ok(())
    }

    /// Leaves the connection as it should be after an error, and says whether to try again.
    async fn settle(&mut self, store: &Store, error: &Error) -> bool {
        let was_new = self.link.as_ref().is_none_or(|link| link.is_new);
        if !may_keep_connection(error) {
            self.link = None;
        } else if let Some(link) = &self.link
            && store.server.in_time(query(&link.connection, "ROLLBACK")).await.is_err()
        {
            self.link = None;
        }
        if error.outcome() == Outcome::Unknown {
            return false;
        }
        match sqlstate(error) {
            Some(UNIQUE_VIOLATION) => {
                let again = !self.replaces;
                self.replaces = true;
                again
            }
            // A partition was dropped by another hand.
            Some(NO_PARTITION) => {
                self.generation = None;
                true
            }
            _ if is_victim(error) => true,
            // It died while it lay there, or was killed: nothing of the batch is stored.
            _ => is_disconnect(error) && !was_new,
        }
    }

    async fn attempt(&mut self, store: &Store, batch: &mut Batch) -> Result<(), Trouble> {
        self.ensure_link(store).await?;
        store.server.in_time(self.refresh(store)).await?;
        batch.forget_ids();
        batch.rename(&store.series_met());
        if batch.unknown.is_empty() {
            keep_last(&mut batch.entries);
        }
        self.ensure_partitions(store, &batch.entries).await?;
        let found = match self.replaces {
            true => {
                let pending = self.pending(store).await?;
                self.replace(store, &pending, batch).await?
            }
            false => self.copy(store, batch).await?,
        };
        if let Some(link) = &mut self.link {
            link.is_new = false;
        }
        if !self.emptied.is_empty() {
            for entry in &batch.entries {
                self.emptied.remove(&entry.series_id);
            }
        }
        store.series_met().learn(found);
        Ok(())
    }

    /// Opens the connection that writes, unless it is there. Nothing that was learned on another one
    /// is taken for granted on it.
    async fn ensure_link(&mut self, store: &Store) -> Result<()> {
        if self.link.is_none() {
            store.forget_series();
            (self.generation, self.made_ahead) = (None, None);
            self.link = Some(link(store).await?);
        }
        Ok(())
    }

    fn link(&self) -> Result<&Link> {
        let missing = || Error::new(ErrorKind::Internal, "there is no connection to write on");
        self.link.as_ref().ok_or_else(missing)
    }

    fn link_mut(&mut self) -> Result<&mut Link> {
        let missing = || Error::new(ErrorKind::Internal, "there is no connection to write on");
        self.link.as_mut().ok_or_else(missing)
    }

    /// What it takes to replace samples, made when it is needed first.
    async fn pending(&mut self, store: &Store) -> Result<Pending> {
        if let Some(pending) = &self.link()?.pending {
            return Ok(pending.clone());
        }
        let made = store
            .server
            .in_time(prepare_pending(&self.link()?.connection, store.opened.metadata))
            .await?;
        if let Some(link) = &mut self.link {
            link.pending = Some(made.clone());
        }
        Ok(made)
    }

    /// Reads what is remembered, unless it is.
    async fn refresh(&mut self, store: &Store) -> Result<()> {
        if self.generation.is_some() {
            return Ok(());
        }
        let connection = &self.link()?.connection;
        // The generation first: what changes meanwhile gives another one.
        let found = query(connection, "SELECT generation FROM state").await?;
        let generation = last_row(&found).and_then(|row| row.get(0)?.parse().ok());
        let generation = generation.ok_or_else(gone)?;
        let emptied = async {
            let rows = connection.query("SELECT id FROM series WHERE emptied", &[]).await;
            let ids = rows.and_then(|rows| rows.iter().map(|row| row.try_get(0)).collect());
            ids.map_err(from_pg)
        };
        let partitions = async {
            match store.opened.hypertable {
                true => Ok(Partitions::default()),
                false => partitions::read(connection).await,
            }
        };
        (self.emptied, self.partitions) = tokio::try_join!(emptied, partitions)?;
        self.generation = Some(generation);
        Ok(())
    }

    async fn ensure_partitions(&mut self, store: &Store, entries: &[Entry]) -> Result<()> {
        if store.opened.hypertable {
            return Ok(());
        }
        let mut times: BTreeMap<i64, i64> = BTreeMap::new();
        let mut day = i64::MIN;
        for entry in entries {
            if entry.ms.div_euclid(DAY_MS) != day {
                day = entry.ms.div_euclid(DAY_MS);
                times.insert(day, entry.ms);
            }
        }
        let times: Vec<i64> = times.into_values().collect();
        if times.iter().all(|ms| self.partitions.contains(*ms)) {
            return Ok(());
        }
        let mut known = std::mem::take(&mut self.partitions);
        let connection = &self.link()?.connection;
        let made = partitions::ensure(connection, store.locks, &mut known, &times);
        let made = store.server.in_time(made).await;
        self.partitions = known;
        made
    }

    /// Makes the partitions of the coming days, once a day. What fails now is made when it is
    /// needed.
    pub(crate) async fn make_partitions_ahead(&mut self, store: &Store) {
        let now = Utc::now();
        if self.made_ahead == Some(now.date_naive()) || store.opened.hypertable {
            return;
        }
        let Some(link) = &self.link else { return };
        self.made_ahead = Some(now.date_naive());
        let times = partitions::ahead(now, store.options.partitions_ahead);
        let made = partitions::ensure(&link.connection, store.locks, &mut self.partitions, &times);
        if let Err(error) = store.server.in_time(made).await {
            tracing::warn!(target: "storage", %error, "cannot make partitions ahead");
            if is_unusable(&error) {
                self.link = None;
            }
        }
    }

    /// Stores a batch of which nothing is there yet.
    async fn copy(&self, store: &Store, batch: &mut Batch) -> Result<Found, Trouble> {
        let Link { connection, copy, count, .. } = self.link()?;
        let metadata = store.opened.metadata;
        let (server, begin) = (&store.server, store.locks.begin_shared());
        let (sink, found) = if batch.unknown.is_empty() && !self.touches_emptied(batch) {
            // Sent together: the server answers one after the other.
            let both = async {
                Ok(tokio::join!(connection.simple_query(&begin), connection.copy_in(copy)))
            };
            let (begun, sink) = server.in_time(both).await?;
            // Both before what may be tried again on this connection: see `may_keep_connection`.
            let (begun, sink) = (begun.map_err(from_pg)?, sink.map_err(from_pg)?);
            self.check_generation(&begun)?;
            (sink, Vec::new())
        } else {
            let begun = server.in_time(query(connection, &begin)).await?;
            self.check_generation(&begun)?;
            let found = server.in_time(self.name_series(connection, batch)).await?;
            let sink = async { connection.copy_in(copy).await.map_err(from_pg) };
            (server.in_time(sink).await?, found)
        };
        server.in_time(send(sink, encode(&batch.entries, metadata))).await?;
        let days = Days::of(&batch.entries);
        let counts: [&(dyn ToSql + Sync); 4] =
            [&self.slot, &days.samples, &days.oldest, &days.newest];
        finish(store, connection, connection.execute(count, &counts)).await?;
        Ok(found)
    }

    /// Stores a batch over what is there.
    async fn replace(
        &mut self,
        store: &Store,
        pending: &Pending,
        batch: &mut Batch,
    ) -> Result<Found, Trouble> {
        let Link { connection, .. } = self.link()?;
        let metadata = store.opened.metadata;
        let (server, begin) = (&store.server, store.locks.begin_alone());
        let begun = server.in_time(query(connection, &begin)).await?;
        self.check_generation(&begun)?;
        let found = server.in_time(self.name_series(connection, batch)).await?;
        let send = async {
            let sink = connection.copy_in(&pending.copy).await.map_err(from_pg)?;
            send(sink, encode(&batch.entries, metadata)).await
        };
        server.in_time(send).await?;
        let count = async {
            let row = connection.query_one(&pending.count, &[&self.slot]).await;
            row.and_then(|row| row.try_get::<_, i64>(0)).map_err(from_pg)
        };
        let fresh = server.in_time(count).await?;
        finish(store, connection, connection.execute(&pending.store, &[])).await?;
        self.replaces = usize::try_from(fresh).is_ok_and(|fresh| fresh < batch.entries.len());
        Ok(found)
    }

    fn check_generation(&self, begun: &[SimpleQueryMessage]) -> Result<(), Trouble> {
        let row = last_row(begun).ok_or_else(gone)?;
        self.link()?.tables.check(row.get(1))?;
        let generation: Option<i64> = row.get(0).and_then(|text| text.parse().ok());
        match generation {
            None => Err(gone().into()),
            same if same == self.generation => Ok(()),
            _ => Err(Trouble::Stale),
        }
    }

    fn touches_emptied(&self, batch: &Batch) -> bool {
        !self.emptied.is_empty()
            && batch.entries.iter().any(|entry| self.emptied.contains(&entry.series_id))
    }

    /// Adds the series that are new, puts ids in the place of their names, and takes the mark of
    /// an empty series away from those that are no longer.
    async fn name_series(&self, connection: &Connection, batch: &mut Batch) -> Result<Found> {
        let mut found = Vec::new();
        if !batch.unknown.is_empty() {
            found = add_series(connection, &batch.unknown).await?;
            batch.put_ids(&found)?;
            keep_last(&mut batch.entries);
        }
        let ids = batch.entries.iter().map(|entry| entry.series_id);
        let mut revived: Vec<i64> = ids.filter(|id| self.emptied.contains(id)).collect();
        revived.dedup();
        if !revived.is_empty() {
            let sql = "UPDATE series SET emptied = false WHERE id = ANY($1) AND emptied";
            connection.execute(sql, &[&revived]).await.map_err(from_pg)?;
        }
        Ok(found)
    }
}

/// Opens the connection that writes.
async fn link(store: &Store) -> Result<Link> {
    // It has a time of its own, in which every host has its turn.
    let connection = store.server.connect().await?;
    let prepare = async |sql| connection.prepare(sql).await.map_err(from_pg);
    // Sent together: the server answers one after the other.
    let prepared =
        async { tokio::try_join!(Tables::of(&connection), prepare(COPY), prepare(COUNT_DAYS)) };
    let (tables, copy, count) = store.server.in_time(prepared).await?;
    Ok(Link {
        connection,
        tables,
        copy,
        count,
        pending: None,
        values: None,
        events: None,
        is_new: true,
    })
}

/// Whether a connection is as it should be after this error and a `ROLLBACK`: where rows that were
/// sent were refused, and where nothing was wrong but what we knew.
///
/// After a COPY that could not even begin (a lock that was not had, a transaction that had failed) it
/// is not: the driver ends such a COPY once more than the server expects, takes the answer to that
/// for the answer to the next statement, and so on.
fn may_keep_connection(error: &Error) -> bool {
    let state = sqlstate(error);
    matches!(state, Some(UNIQUE_VIOLATION | NO_PARTITION)) || state.is_none() && is_ours(error)
}

/// Whether it was not the server or the way to it that failed.
fn is_ours(error: &Error) -> bool {
    std::error::Error::source(error).is_none()
        && !is_unusable(error)
        && error.outcome() == Outcome::NotApplied
}

async fn prepare_pending(connection: &Connection, metadata: MetadataColumn) -> Result<Pending> {
    let create = format!(
        "CREATE TEMP TABLE IF NOT EXISTS storage_pending (series_id bigint, ts timestamptz,
             value double precision, metadata {}) ON COMMIT DELETE ROWS",
        metadata.sql_type()
    );
    connection.batch_execute(&create).await.map_err(from_pg)?;
    Ok(Pending {
        copy: connection.prepare(COPY_PENDING).await.map_err(from_pg)?,
        count: connection.prepare(COUNT_FRESH).await.map_err(from_pg)?,
        store: connection.prepare(STORE_PENDING).await.map_err(from_pg)?,
    })
}

async fn query(connection: &Connection, sql: &str) -> Result<Vec<SimpleQueryMessage>> {
    connection.simple_query(sql).await.map_err(from_pg)
}

/// Adds series, ordered so that two who add the same wait for each other in one direction only,
/// and returns them with their ids, whoever added them.
async fn add_series(connection: &Connection, names: &[SeriesKey]) -> Result<Found> {
    let mut names: Vec<&SeriesKey> = names.iter().collect();
    names.sort_unstable();
    names.dedup();
    let servers: Vec<&str> = names.iter().map(|key| key.server_id.as_str()).collect();
    let metrics: Vec<&str> = names.iter().map(|key| key.metric_type.as_str()).collect();
    connection.execute(ADD_SERIES, &[&servers, &metrics]).await.map_err(from_pg)?;
    let rows = connection.query(FIND_SERIES, &[&servers, &metrics]).await.map_err(from_pg)?;
    let series = |row: &Row| {
        Ok((
            row.try_get(0)?,
            SeriesKey { server_id: row.try_get(1)?, metric_type: row.try_get(2)? },
        ))
    };
    rows.iter().map(series).collect::<Result<_, _>>().map_err(from_pg)
}

/// Sends rows and waits until the server has them.
pub(crate) async fn send(sink: CopyInSink<Bytes>, rows: Bytes) -> Result<()> {
    let mut sink = std::pin::pin!(sink);
    for piece in pieces(rows) {
        sink.send(piece).await.map_err(from_pg)?;
    }
    sink.finish().await.map(drop).map_err(from_pg)
}

/// Ends a transaction: its last statement and the commit are sent together. If the statement
/// fails the server does not commit.
pub(crate) async fn finish<T>(
    store: &Store,
    connection: &Connection,
    last: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<()> {
    let both = async { Ok(tokio::join!(last, connection.batch_execute("COMMIT"))) };
    let ended = store.server.in_time(both).await;
    match ended.map_err(|error| error.with_outcome(Outcome::Unknown))? {
        (Ok(_), Ok(())) => Ok(()),
        (Err(error), _) | (Ok(_), Err(error)) => Err(of_commit(from_pg(error))),
    }
}

pub(crate) fn gone() -> Error {
    Error::new(ErrorKind::NotFound, "the tables of the store are gone")
}

/// Sorts by series and time, and of those with the same keeps the last: the order in which every
/// process writes, so that two never wait for each other in a circle.
fn keep_last(entries: &mut Vec<Entry>) {
    let key = |entry: &Entry| (entry.series_id, entry.ms);
    if entries.is_sorted_by(|a, b| key(a) < key(b)) {
        return;
    }
    entries.sort_by_key(key);
    entries.reverse();
    entries.dedup_by_key(|entry| key(entry));
    entries.reverse();
}

/// How many samples fall on each day, and their extent: a column each.
#[derive(Debug, Default, PartialEq)]
struct Days {
    samples: Vec<i64>,
    oldest: Vec<PgTime>,
    newest: Vec<PgTime>,
}

impl Days {
    fn of(entries: &[Entry]) -> Self {
        let mut by_day: BTreeMap<i64, (i64, i64, i64)> = BTreeMap::new();
        for run in entries.chunk_by(|a, b| a.ms.div_euclid(DAY_MS) == b.ms.div_euclid(DAY_MS)) {
            let (mut low, mut high) = (run[0].ms, run[0].ms);
            for entry in run {
                (low, high) = (low.min(entry.ms), high.max(entry.ms));
            }
            let day = by_day.entry(low.div_euclid(DAY_MS)).or_insert((0, low, high));
            *day = (day.0 + run.len() as i64, day.1.min(low), day.2.max(high));
        }
        let mut days = Self::default();
        for (samples, oldest, newest) in by_day.into_values() {
            days.samples.push(samples);
            days.oldest.push(PgTime(oldest));
            days.newest.push(PgTime(newest));
        }
        days
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(series_id: i64, ms: i64, value: f64) -> Entry {
        Entry { series_id, ms, value, metadata: None }
    }

    #[test]
    fn the_last_of_each_series_and_time_is_kept() {
        let mut entries =
            vec![entry(2, 1, 0.0), entry(1, 5, 1.0), entry(2, 1, 2.0), entry(1, 5, 3.0)];
        keep_last(&mut entries);
        assert_eq!(entries, [entry(1, 5, 3.0), entry(2, 1, 2.0)]);
    }

    #[test]
    fn samples_are_counted_by_day() {
        let entries = [entry(1, -1, 0.0), entry(1, 0, 0.0), entry(2, -5, 0.0), entry(2, 7, 0.0)];
        let days = Days::of(&entries);
        assert_eq!(days.samples, [2, 2]);
        assert_eq!(days.oldest, [PgTime(-5), PgTime(0)]);
        assert_eq!(days.newest, [PgTime(-1), PgTime(7)]);
        assert_eq!(Days::of(&[]), Days::default());
    }

    #[test]
    fn joined_batches_refer_to_their_own_names_and_ids_can_be_taken_back() {
        let series = Arc::default();
        let batch = |name: &str, value| Batch {
            entries: vec![entry(-1, 0, value), entry(7, 0, value)],
            unknown: vec![SeriesKey::new(name, "m")],
            series: Arc::clone(&series),
            resolved: Vec::new(),
        };
        let mut all = Batch::join(vec![batch("a", 1.0), batch("b", 2.0)]);
        let ids = |batch: &Batch| batch.entries.iter().map(|e| e.series_id).collect::<Vec<_>>();
        assert_eq!(ids(&all), [-1, 7, -2, 7]);
        let found = [(30, SeriesKey::new("a", "m")), (40, SeriesKey::new("b", "m"))];
        all.put_ids(&found).unwrap();
        assert_eq!(ids(&all), [30, 7, 40, 7]);
        all.forget_ids();
        assert_eq!(ids(&all), [-1, 7, -2, 7]);
        assert_eq!(all.put_ids(&found[..1]).unwrap_err().kind(), ErrorKind::Internal);
    }

    #[test]
    fn ids_of_another_dictionary_become_names() {
        let ids = |batch: &Batch| batch.entries.iter().map(|e| e.series_id).collect::<Vec<_>>();
        let (old, new) = (Arc::<Dictionary>::default(), Arc::<Dictionary>::default());
        old.learn([(7, SeriesKey::new("a", "m")), (8, SeriesKey::new("b", "m"))]);
        let batch = |numbers: &[i64], series: &Arc<Dictionary>| {
            let entries = numbers.iter().map(|id| entry(*id, 0, 0.0)).collect();
            Batch::new(entries, vec![SeriesKey::new("new", "m")], Arc::clone(series))
        };
        let mut all = Batch::join(vec![batch(&[7, -1], &new), batch(&[8, 7, -1, 7, 8], &old)]);
        assert_eq!(ids(&all), [7, -1, -3, -4, -2, -4, -3]);
        let names: Vec<&str> = all.unknown.iter().map(|key| key.server_id.as_str()).collect();
        assert_eq!(names, ["new", "new", "b", "a"]);
        all.rename(&new);
        assert_eq!(ids(&all)[0], 7, "what the dictionary itself says stays");
    }
}
