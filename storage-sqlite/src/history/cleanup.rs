//! Removes what is old, in steps that writers need not wait long for.

use sqlx::sqlite::SqliteConnection;
use storage_core::{Error, ErrorKind, Result};
use tokio::sync::oneshot;

use crate::error::{from_sqlx, of_commit};
use crate::maintenance::partly;
use crate::store::Store;

/// Values that one step removes: some ten milliseconds of work.
const STEP_VALUES: i64 = 4096;

/// What removing a value writes to the log, roughly: a part of a page of the table and the index.
const VALUE_BYTES: u64 = 256;

impl Store {
    /// Removes every value before `cutoff_ms` and returns how many. Stops when `caller` is closed,
    /// because what is stored after that must stay.
    pub(crate) async fn clean_up(
        &self,
        cutoff_ms: i64,
        caller: oneshot::Sender<()>,
    ) -> Result<u64> {
        let mut removed = 0;
        loop {
            let step = self.clean_up_some(cutoff_ms, &caller).await;
            let count = step.map_err(|error| partly(error, removed))?;
            removed += count;
            if count < STEP_VALUES.cast_unsigned() {
                return Ok(removed);
            }
        }
    }

    async fn clean_up_some(&self, cutoff_ms: i64, caller: &oneshot::Sender<()>) -> Result<u64> {
        let mut writer = self.writer().await?;
        let connection = writer.connection()?;
        // Asked while nobody else can write: what the caller stored after it gave up stays.
        if caller.is_closed() {
            return Err(Error::new(ErrorKind::Closed, "the caller gave up"));
        }
        let removed = delete_some(connection, cutoff_ms).await.map_err(of_commit);
        let removed = removed.inspect_err(|error| self.note_write_error(error))?;
        self.checkpoint_if_due(connection, removed * VALUE_BYTES).await;
        Ok(removed)
    }
}

/// One statement, hence one transaction. Record by record, along the index.
async fn delete_some(connection: &mut SqliteConnection, cutoff_ms: i64) -> Result<u64> {
    let deleted = sqlx::query(
        "DELETE FROM record_history WHERE id IN (
             SELECT h.id FROM record_names AS n
             CROSS JOIN record_history AS h INDEXED BY record_history_by_time
                 ON h.record_id = n.id AND h.stored_at < ?1
             LIMIT ?2)",
    )
    .bind(cutoff_ms)
    .bind(STEP_VALUES)
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(deleted.rows_affected())
}
