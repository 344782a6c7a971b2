//! Values into rows: one COPY in one transaction, names that are new added in it.

use std::sync::Arc;

use bytes::Bytes;
use rustc_hash::FxHashMap;
use storage_core::metrics::time::floor_ms;
use storage_core::{Error, ErrorKind, Outcome, Result, StoredValue};
use tokio_postgres::{Row, SimpleQueryMessage, Statement};

use crate::commit::{Tables, gone, last_row, send};
use crate::connect::Connection;
use crate::convert::to_json;
use crate::copy::{ValueEntry, encode_values};
use crate::error::{from_pg, of_commit};
use crate::store::Store;

const COPY: &str = "COPY record_history (record_id, stored_at, value) FROM STDIN (FORMAT binary)";

/// Begins a transaction and says which tables are there.
const BEGIN: &str = "BEGIN; SELECT tableoid FROM state";

const ADD_NAMES: &str = "INSERT INTO record_names (name)
    SELECT u.name FROM unnest($1::text[]) AS u (name)
    WHERE NOT EXISTS (SELECT FROM record_names n WHERE n.name = u.name)
    ON CONFLICT DO NOTHING";

const FIND_NAMES: &str = "SELECT id, name FROM record_names WHERE name = ANY($1)";

/// Bytes of JSON that cost as much as storing one sample.
const BYTES_PER_WEIGHT: usize = 256;

/// A value on its way into the table.
#[derive(Debug)]
pub(crate) struct ValueRow {
    name: Arc<str>,
    ms: i64,
    json: Bytes,
}

impl ValueRow {
    /// What it costs, in samples.
    pub(crate) fn weight(&self) -> usize {
        1 + self.json.len() / BYTES_PER_WEIGHT
    }
}

/// Turns values that are valid into rows.
pub(crate) fn rows_of(values: &[StoredValue]) -> Result<Vec<ValueRow>> {
    let mut last: Option<Arc<str>> = None;
    let row = |value: &StoredValue| {
        // Values of one record mostly come together.
        let known = last.as_ref().filter(|name| ***name == *value.record_name).map(Arc::clone);
        let name = known.unwrap_or_else(|| value.record_name.as_str().into());
        last = Some(Arc::clone(&name));
        let json = to_json(&value.value)?.into_vec().into();
        Ok(ValueRow { name, ms: floor_ms(value.stored_at), json })
    };
    values.iter().map(row).collect()
}

/// What a connection needs to store values, and what it has learned.
#[derive(Debug)]
pub(crate) struct Values {
    copy: Statement,
    /// Ids of records that are known to be committed. They hold for this connection: see
    /// [`dictionary`](crate::dictionary).
    ids: FxHashMap<Arc<str>, i64>,
}

impl Values {
    pub(crate) async fn new(connection: &Connection) -> Result<Self> {
        let copy = connection.prepare(COPY).await.map_err(from_pg)?;
        Ok(Self { copy, ids: FxHashMap::default() })
    }
}

/// Stores values in their order, in one transaction.
pub(crate) async fn insert(
    store: &Store,
    connection: &Connection,
    tables: &Tables,
    values: &mut Values,
    rows: &[ValueRow],
) -> Result<()> {
    let Values { copy, ids } = values;
    let mut new: Vec<&str> = rows.iter().map(|row| &*row.name).collect();
    new.retain(|name| !ids.contains_key(*name));
    // In one order, so that two who add the same wait for each other in one direction only.
    new.sort_unstable();
    new.dedup();
    let (server, mut learned) = (&store.server, FxHashMap::default());
    let sink = if new.is_empty() {
        // Sent together: the server answers one after the other.
        let both =
            async { Ok(tokio::join!(connection.simple_query(BEGIN), connection.copy_in(copy))) };
        let (begun, sink) = server.in_time(both).await?;
        check_tables(tables, &begun.map_err(from_pg)?)?;
        sink.map_err(from_pg)?
    } else {
        learned = server.in_time(add_names(connection, tables, &new)).await?;
        let sink = async { connection.copy_in(copy).await.map_err(from_pg) };
        server.in_time(sink).await?
    };
    let missing = || Error::new(ErrorKind::Internal, "a name that was added is not there");
    let entry = |row: &ValueRow| {
        let record_id = ids.get(&row.name).or_else(|| learned.get(&row.name));
        let record_id = *record_id.ok_or_else(missing)?;
        Ok(ValueEntry { record_id, ms: row.ms, json: row.json.clone() })
    };
    let entries = rows.iter().map(entry).collect::<Result<Vec<_>>>()?;
    server.in_time(send(sink, encode_values(&entries))).await?;
    let commit = async { Ok(connection.batch_execute("COMMIT").await) };
    let ended = server.in_time(commit).await;
    let ended = ended.map_err(|error| error.with_outcome(Outcome::Unknown))?;
    ended.map_err(|error| of_commit(from_pg(error)))?;
    // Only now: ids of a transaction that fails are no ids.
    ids.extend(learned);
    Ok(())
}

fn check_tables(tables: &Tables, begun: &[SimpleQueryMessage]) -> Result<()> {
    tables.check(last_row(begun).ok_or_else(gone)?.get(0))
}

/// Begins a transaction, adds names and returns them with their ids, whoever added them.
async fn add_names(
    connection: &Connection,
    tables: &Tables,
    names: &[&str],
) -> Result<FxHashMap<Arc<str>, i64>> {
    check_tables(tables, &connection.simple_query(BEGIN).await.map_err(from_pg)?)?;
    connection.execute(ADD_NAMES, &[&names]).await.map_err(from_pg)?;
    let rows = connection.query(FIND_NAMES, &[&names]).await.map_err(from_pg)?;
    let name = |row: &Row| Ok((row.try_get::<_, &str>(1)?.into(), row.try_get(0)?));
    rows.iter().map(name).collect::<Result<_, _>>().map_err(from_pg)
}
