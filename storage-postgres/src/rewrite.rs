//! Gives the space of pruned rows back to the file system: tables that are mostly empty are rewritten.
//!
//! `VACUUM` lets dead rows be used again, but frees pages at the end of a table alone, and what is pruned
//! stands at its beginning. Samples need none of this: their partitions are dropped.

use tokio_postgres::Client;

use storage_core::Result;

use crate::error::from_pg;

/// Tables that lose rows from their beginning.
const TABLES: [&str; 3] = ["events", "record_history", "job_executions"];

/// Smaller tables are left alone, in bytes.
const TABLE_BYTES_MIN: f64 = 8e6;

/// Nobody else gets at a table while it is rewritten, so no more than this is, in bytes.
const KEPT_BYTES_MAX: f64 = 256e6;

/// What a row takes beside its columns.
const ROW_BYTES: f64 = 28.0;

/// Returns the statements that rewrite the tables that are mostly empty. They do nothing where a table
/// is in use at that moment.
pub(crate) async fn due(client: &Client) -> Result<Vec<String>> {
    let mut due = Vec::new();
    for table in TABLES {
        // The name alone varies, and is one of ours. The number of rows is what `VACUUM` counted.
        let sizes = format!(
            "SELECT pg_table_size(oid)::float8, greatest(reltuples, 0)::float8,
                 coalesce((SELECT avg(pg_column_size(kept.*))
                     FROM (SELECT * FROM {table} LIMIT 1000) AS kept), 0)::float8
             FROM pg_class
             WHERE relname = $1 AND relkind = 'r' AND relnamespace = current_schema()::regnamespace"
        );
        let Some(row) = client.query_opt(&sizes, &[&table]).await.map_err(from_pg)? else {
            continue;
        };
        let number = |index| row.try_get::<_, f64>(index).map_err(from_pg);
        if is_mostly_empty(number(0)?, number(1)? * (number(2)? + ROW_BYTES)) {
            due.push(format!("VACUUM (FULL, SKIP_LOCKED) {table}"));
        }
    }
    Ok(due)
}

fn is_mostly_empty(table_bytes: f64, kept_bytes: f64) -> bool {
    table_bytes > TABLE_BYTES_MIN
        && kept_bytes < KEPT_BYTES_MAX
        && table_bytes - TABLE_BYTES_MIN > 4.0 * kept_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_tables_with_little_in_them_are_rewritten() {
        assert!(is_mostly_empty(100e6, 0.0) && is_mostly_empty(100e6, 20e6));
        assert!(!is_mostly_empty(100e6, 30e6), "too much is kept");
        assert!(!is_mostly_empty(8e6, 0.0), "it is small");
        assert!(!is_mostly_empty(1e12, 300e6), "it takes too long");
    }
}
