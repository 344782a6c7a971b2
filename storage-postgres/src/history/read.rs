//! Answers questions about record history: each is one statement, hence one snapshot.

use storage_core::metrics::time::from_ms;
use storage_core::{HistoryQuery, Matcher, RecordInfo, Result, StoredValue};
use tokio_postgres::Row;

use crate::convert::{PgTime, to_value};
use crate::error::from_pg;
use crate::filter::Condition;
use crate::store::{Parameter, Store};

impl Store {
    /// The values that a query chooses; it is not empty.
    pub(crate) async fn values(&self, query: &HistoryQuery) -> Result<Vec<StoredValue>> {
        let (start, end) = (PgTime(query.range.start_ms()), PgTime(query.range.end_ms()));
        let limit = query.limit_per_record.map(|limit| i64::try_from(limit).unwrap_or(i64::MAX));
        let condition =
            Condition::on("n.name", &query.records, if limit.is_some() { 4 } else { 3 });
        let newest = match limit {
            None => "",
            Some(_) => "ORDER BY stored_at DESC, id DESC LIMIT $3",
        };
        let sql = format!(
            "SELECT n.name, h.stored_at, h.value FROM record_names n
             CROSS JOIN LATERAL (SELECT stored_at, id, value FROM record_history
                 WHERE record_id = n.id AND stored_at >= $1 AND stored_at < $2 {newest}) h
             WHERE {} ORDER BY n.name, h.stored_at, h.id",
            condition.sql
        );
        let mut parameters: Vec<Parameter<'_>> = vec![&start, &end];
        if let Some(limit) = &limit {
            parameters.push(limit);
        }
        parameters.extend(condition.parameters());
        let mut found = Vec::new();
        let visit = |row: Row| {
            found.push(value_of(&row)?);
            Ok(true)
        };
        self.each_row(&sql, &parameters, visit).await?;
        Ok(found)
    }

    /// The records that `records` matches and that hold values.
    pub(crate) async fn records(&self, records: &Matcher) -> Result<Vec<RecordInfo>> {
        let condition = Condition::on("n.name", records, 1);
        let sql = format!(
            "SELECT n.name, count(*), min(h.stored_at), max(h.stored_at)
             FROM record_names n JOIN record_history h ON h.record_id = n.id
             WHERE {} GROUP BY n.name ORDER BY n.name",
            condition.sql
        );
        let info = |row: &Row| {
            Ok(RecordInfo {
                record_name: row.try_get(0)?,
                count: row.try_get::<_, i64>(1)?.cast_unsigned(),
                oldest: from_ms(row.try_get::<_, PgTime>(2)?.0),
                newest: from_ms(row.try_get::<_, PgTime>(3)?.0),
            })
        };
        let rows = self.rows(&sql, &condition.parameters()).await?;
        rows.iter().map(info).collect::<Result<_, _>>().map_err(from_pg)
    }
}

fn value_of(row: &Row) -> Result<StoredValue> {
    let record_name: String = row.try_get(0).map_err(from_pg)?;
    let PgTime(ms) = row.try_get(1).map_err(from_pg)?;
    let stored_at = from_ms(ms);
    let value = to_value(row, 2).map_err(|error| {
        error
            .with_context("record_name", &record_name)
            .with_context("stored_at", stored_at.to_rfc3339())
    })?;
    Ok(StoredValue { record_name, stored_at, value })
}
