//! Answers questions about record history, each within one snapshot.

use std::sync::Arc;

use futures_util::TryStreamExt;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use storage_core::metrics::time::from_ms;
use storage_core::{Error, ErrorKind, HistoryQuery, Matcher, RecordInfo, Result, StoredValue};

use super::write::read_names;
use crate::error::from_sqlx;
use crate::gathered::gathered;
use crate::store::Store;

/// Records by their place in the answer, and the values of each in the range, by time and id.
const ALL_VALUES: &str = "
    SELECT chosen.key, h.stored_at, h.value_json
    FROM json_each(?1) AS chosen
    CROSS JOIN record_history AS h INDEXED BY record_history_by_time
        ON h.record_id = chosen.value AND h.stored_at >= ?2 AND h.stored_at < ?3
    ORDER BY chosen.key, h.stored_at, h.id";

/// The same, but of each record only the last ?4: their ids are looked up first.
const NEWEST_VALUES: &str = "
    SELECT chosen.key, h.stored_at, h.value_json
    FROM json_each(?1) AS chosen
    CROSS JOIN record_history AS h ON h.id IN (
        SELECT id FROM record_history INDEXED BY record_history_by_time
        WHERE record_id = chosen.value AND stored_at >= ?2 AND stored_at < ?3
        ORDER BY stored_at DESC, id DESC LIMIT ?4)
    ORDER BY chosen.key, h.stored_at, h.id";

const RECORDS: &str = "
    SELECT chosen.key, count(*), min(h.stored_at), max(h.stored_at)
    FROM json_each(?1) AS chosen
    CROSS JOIN record_history AS h INDEXED BY record_history_by_time
        ON h.record_id = chosen.value
    GROUP BY chosen.key ORDER BY chosen.key";

impl Store {
    /// The values that a query chooses; it is not empty.
    pub(crate) async fn values(&self, query: &HistoryQuery) -> Result<Vec<StoredValue>> {
        self.in_snapshot(&query.records, async |connection, ids, names| {
            let (sql, limit) = match query.limit_per_record {
                None => (ALL_VALUES, None),
                Some(limit) => (NEWEST_VALUES, Some(i64::try_from(limit).unwrap_or(i64::MAX))),
            };
            let statement =
                sqlx::query(sql).bind(ids).bind(query.range.start_ms()).bind(query.range.end_ms());
            let statement = match limit {
                None => statement,
                Some(limit) => statement.bind(limit),
            };
            let mut rows = gathered(statement.fetch(connection));
            let mut found = Vec::new();
            while let Some(row) = rows.try_next().await? {
                found.push(value_of(&row, name_of(&row, names)?)?);
            }
            Ok(found)
        })
        .await
    }

    /// The records that `records` matches and that hold values.
    pub(crate) async fn records(&self, records: &Matcher) -> Result<Vec<RecordInfo>> {
        self.in_snapshot(records, async |connection, ids, names| {
            let rows = sqlx::query(RECORDS).bind(ids).fetch_all(connection).await;
            let info = |row: &SqliteRow| {
                let number = |index| row.try_get::<i64, _>(index).map_err(from_sqlx);
                Ok(RecordInfo {
                    record_name: name_of(row, names)?.to_owned(),
                    count: number(1)?.cast_unsigned(),
                    oldest: from_ms(number(2)?),
                    newest: from_ms(number(3)?),
                })
            };
            rows.map_err(from_sqlx)?.iter().map(info).collect()
        })
        .await
    }

    /// Asks within one snapshot about the records that match: their ids as a JSON array, and their
    /// names in the same order. Where there are none the answer is empty.
    async fn in_snapshot<T>(
        &self,
        records: &Matcher,
        ask: impl AsyncFnOnce(&mut SqliteConnection, String, &[Arc<str>]) -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        let mut snapshot = self.readers.begin().await.map_err(from_sqlx)?;
        if !self.finds(&self.has_history, "record_history", &mut snapshot).await? {
            return Ok(Vec::new());
        }
        let learned = read_names(self, &mut snapshot).await?;
        let (ids, names): (Vec<i64>, Vec<Arc<str>>) = {
            let mut known = self.record_names_mut();
            known.learn(learned);
            known.matching(records).into_iter().unzip()
        };
        let answer = match ids.is_empty() {
            true => Ok(Vec::new()),
            false => ask(&mut snapshot, crate::read::json_of(&ids), &names).await,
        };
        snapshot.rollback().await.map_err(from_sqlx)?;
        answer
    }
}

fn name_of<'a>(row: &SqliteRow, names: &'a [Arc<str>]) -> Result<&'a str> {
    let place: i64 = row.try_get(0).map_err(from_sqlx)?;
    let name = usize::try_from(place).ok().and_then(|place| names.get(place));
    let missing = || Error::new(ErrorKind::Internal, "a value of a record that was not asked for");
    name.map(|name| &**name).ok_or_else(missing)
}

fn value_of(row: &SqliteRow, record_name: &str) -> Result<StoredValue> {
    let stored_at = from_ms(row.try_get(1).map_err(from_sqlx)?);
    let text: &str = row.try_get(2).map_err(from_sqlx)?;
    let value = serde_json::from_str(text).map_err(|error| {
        Error::new(ErrorKind::Corrupt, "a stored value is no JSON")
            .with_context("record_name", record_name)
            .with_context("stored_at", stored_at.to_rfc3339())
            .with_source(error)
    })?;
    Ok(StoredValue { record_name: record_name.to_owned(), stored_at, value })
}
