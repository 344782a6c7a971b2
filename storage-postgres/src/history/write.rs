//! Values into rows: one COPY in one transaction, names that are new added in it.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use storage_core::metrics::time::floor_ms;
use storage_core::{Error, ErrorKind, Outcome, Result, StoredValue};
use tokio_postgres::{Row, Statement};

use crate::commit::send;
use crate::connect::Connection;
use crate::convert::to_json;
use crate::copy::{ValueEntry, encode_values};
use crate::error::{from_pg, of_commit};
use crate::store::Store;

const COPY: &str = "COPY record_history (record_id, stored_at, value) FROM STDIN (FORMAT binary)";

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

/// Prepares what [`insert`] needs.
pub(crate) async fn prepare(connection: &Connection) -> Result<Statement> {
    connection.prepare(COPY).await.map_err(from_pg)
}

/// Stores values in their order, in one transaction.
pub(crate) async fn insert(
    store: &Store,
    connection: &Connection,
    copy: &Statement,
    rows: &[ValueRow],
) -> Result<()> {
    let mut ids: FxHashMap<Arc<str>, i64> = {
        let known = store.record_ids.read().unwrap_or_else(PoisonError::into_inner);
        let known = |row: &ValueRow| Some((Arc::clone(&row.name), *known.get(&row.name)?));
        rows.iter().filter_map(known).collect()
    };
    let mut new: Vec<&str> = rows.iter().map(|row| &*row.name).collect();
    new.retain(|name| !ids.contains_key(*name));
    // In one order, so that two who add the same wait for each other in one direction only.
    new.sort_unstable();
    new.dedup();
    let (server, mut learned) = (&store.server, Vec::new());
    let sink = if new.is_empty() {
        // Sent together: the server answers one after the other.
        let both =
            async { Ok(tokio::join!(connection.batch_execute("BEGIN"), connection.copy_in(copy))) };
        let (begun, sink) = server.in_time(both).await?;
        begun.map_err(from_pg)?;
        sink.map_err(from_pg)?
    } else {
        learned = server.in_time(add_names(connection, &new)).await?;
        ids.extend(learned.iter().cloned());
        let sink = async { connection.copy_in(copy).await.map_err(from_pg) };
        server.in_time(sink).await?
    };
    let missing = || Error::new(ErrorKind::Internal, "a name that was added is not there");
    let entry = |row: &ValueRow| {
        let record_id = *ids.get(&row.name).ok_or_else(missing)?;
        Ok(ValueEntry { record_id, ms: row.ms, json: row.json.clone() })
    };
    let entries = rows.iter().map(entry).collect::<Result<Vec<_>>>()?;
    server.in_time(send(sink, encode_values(&entries))).await?;
    let commit = async { Ok(connection.batch_execute("COMMIT").await) };
    let ended = server.in_time(commit).await;
    let ended = ended.map_err(|error| error.with_outcome(Outcome::Unknown))?;
    ended.map_err(|error| of_commit(from_pg(error)))?;
    // Only now: ids of a transaction that fails are no ids.
    store.record_ids.write().unwrap_or_else(PoisonError::into_inner).extend(learned);
    Ok(())
}

/// Begins a transaction, adds names and returns them with their ids, whoever added them.
async fn add_names(connection: &Connection, names: &[&str]) -> Result<Vec<(Arc<str>, i64)>> {
    connection.batch_execute("BEGIN").await.map_err(from_pg)?;
    connection.execute(ADD_NAMES, &[&names]).await.map_err(from_pg)?;
    let rows = connection.query(FIND_NAMES, &[&names]).await.map_err(from_pg)?;
    let name = |row: &Row| Ok((row.try_get::<_, &str>(1)?.into(), row.try_get(0)?));
    rows.iter().map(name).collect::<Result<_, _>>().map_err(from_pg)
}
