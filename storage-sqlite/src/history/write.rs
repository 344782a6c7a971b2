//! Values into rows, within the transaction of a commit.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::Row;
use sqlx::sqlite::SqliteConnection;
use storage_core::metrics::time::floor_ms;
use storage_core::{Error, ErrorKind, Result, StoredValue};

use crate::error::from_sqlx;
use crate::insert;
use crate::list::json_list;
use crate::store::Store;

/// Bytes of JSON that cost as much as storing one sample.
const BYTES_PER_WEIGHT: usize = 256;

/// A value on its way into the table.
#[derive(Debug)]
pub(crate) struct ValueRow {
    name: Arc<str>,
    ms: i64,
    json: Arc<str>,
}

impl ValueRow {
    pub(crate) fn bytes(&self) -> u64 {
        self.json.len() as u64
    }

    /// What it costs, in samples.
    pub(crate) fn weight(&self) -> usize {
        1 + self.json.len() / BYTES_PER_WEIGHT
    }
}

/// Names with their ids that are to be remembered once the transaction is committed.
pub(crate) type Learned = Vec<(i64, Arc<str>)>;

/// Turns values that are valid into rows.
pub(crate) fn rows_of(values: &[StoredValue]) -> Result<Vec<ValueRow>> {
    let mut last: Option<Arc<str>> = None;
    let row = |value: &StoredValue| {
        // Values of one record mostly come together.
        let known = last.as_ref().filter(|name| ***name == *value.record_name).map(Arc::clone);
        let name = known.unwrap_or_else(|| value.record_name.as_str().into());
        last = Some(Arc::clone(&name));
        let json = serde_json::to_string(&value.value).map_err(|error| {
            Error::invalid("the value cannot be written as JSON").with_source(error)
        })?;
        Ok(ValueRow { name, ms: floor_ms(value.stored_at), json: json.into() })
    };
    values.iter().map(row).collect()
}

/// Whether [`insert`] runs a single statement for these rows.
pub(crate) fn is_one_statement(store: &Store, rows: &[ValueRow]) -> bool {
    let names = store.record_names();
    rows.len() <= insert::ROWS_MAX && rows.iter().all(|row| names.id(&row.name).is_some())
}

/// Inserts values in their order, and the names that are new; returns the names that it read.
pub(crate) async fn insert(
    store: &Store,
    connection: &mut SqliteConnection,
    rows: &[ValueRow],
) -> Result<Learned> {
    let mut new: Vec<&str> = {
        let names = store.record_names();
        let is_new = |row: &&ValueRow| names.id(&row.name).is_none();
        rows.iter().filter(is_new).map(|row| &*row.name).collect()
    };
    new.sort_unstable();
    new.dedup();
    let learned = match new.is_empty() {
        true => Vec::new(),
        false => add_names(store, connection, &new).await?,
    };
    let fresh: HashMap<&str, i64> = learned.iter().map(|(id, name)| (&**name, *id)).collect();
    let ids: Vec<i64> = {
        let names = store.record_names();
        let id = |row: &ValueRow| names.id(&row.name).or_else(|| fresh.get(&*row.name).copied());
        let missing = || Error::new(ErrorKind::Internal, "a name that was added is not there");
        rows.iter().map(|row| id(row).ok_or_else(missing)).collect::<Result<_>>()?
    };
    let rows: Vec<(&ValueRow, i64)> = rows.iter().zip(ids).collect();
    if learned.is_empty() && (1..=insert::ROWS_MAX).contains(&rows.len()) {
        // This statement may be the whole transaction, which taken apart it would not be.
        insert_some(connection, &rows).await?;
    } else {
        for rows in insert::parts(&rows) {
            insert_some(connection, rows).await?;
        }
    }
    Ok(learned)
}

/// Adds names, and reads all that are not known here, whoever added them.
async fn add_names(
    store: &Store,
    connection: &mut SqliteConnection,
    names: &[&str],
) -> Result<Learned> {
    sqlx::query(
        "INSERT INTO record_names (name) SELECT value FROM json_each(?) WHERE true
         ON CONFLICT DO NOTHING",
    )
    .bind(json_list(names)?)
    .execute(&mut *connection)
    .await
    .map_err(from_sqlx)?;
    read_names(store, connection).await
}

/// Reads the names that are not known here.
pub(super) async fn read_names(
    store: &Store,
    connection: &mut SqliteConnection,
) -> Result<Learned> {
    let known_id = store.record_names().last_id();
    let rows = sqlx::query("SELECT id, name FROM record_names WHERE id > ?")
        .bind(known_id)
        .fetch_all(connection)
        .await
        .map_err(from_sqlx)?;
    let name =
        |row: &sqlx::sqlite::SqliteRow| Ok((row.try_get(0)?, row.try_get::<&str, _>(1)?.into()));
    rows.iter().map(name).collect::<std::result::Result<_, sqlx::Error>>().map_err(from_sqlx)
}

async fn insert_some(connection: &mut SqliteConnection, rows: &[(&ValueRow, i64)]) -> Result<()> {
    let places = vec!["(?,?,?)"; rows.len()].join(",");
    let sql =
        format!("INSERT INTO record_history (record_id, stored_at, value_json) VALUES {places}");
    // The places alone vary. Kept prepared are the sizes that come again and again.
    let is_usual = rows.len().is_power_of_two();
    let mut statement = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(is_usual);
    for (row, id) in rows {
        statement = statement.bind(id).bind(row.ms).bind(Arc::clone(&row.json));
    }
    statement.execute(connection).await.map(drop).map_err(from_sqlx)
}
