//! Removes events that every projection has seen, in steps that writers need not wait long for.

use sqlx::sqlite::SqliteConnection;
use storage_core::events::rows::check_prune;
use storage_core::{Error, ErrorKind, Result};
use tokio::sync::oneshot;

use super::project::checkpoints;
use super::read::extent;
use crate::error::{from_sqlx, of_commit};
use crate::maintenance::partly;
use crate::schema::{begin, finish};
use crate::store::Store;

/// Events that one step removes: some ten milliseconds of work.
const STEP_EVENTS: u64 = 4096;

/// What removing an event writes to the log, roughly: a part of a page of the table and two indexes.
const EVENT_BYTES: u64 = 256;

impl Store {
    /// Removes every event before `sequence`, the oldest first, and returns how many. Stops when
    /// `caller` is closed.
    pub(super) async fn prune_events(
        &self,
        sequence: u64,
        caller: oneshot::Sender<()>,
    ) -> Result<u64> {
        let mut removed = 0;
        loop {
            let step = self.prune_some(sequence, &caller).await;
            let count = step.map_err(|error| partly(error, removed))?;
            removed += count;
            if count < STEP_EVENTS {
                return Ok(removed);
            }
        }
    }

    async fn prune_some(&self, sequence: u64, caller: &oneshot::Sender<()>) -> Result<u64> {
        let mut writer = self.writer().await?;
        let connection = writer.connection()?;
        if caller.is_closed() {
            return Err(Error::new(ErrorKind::Closed, "the caller gave up"));
        }
        let mut transaction = begin(connection).await?;
        let removed = delete_some(&mut transaction, sequence).await;
        let removed = finish(transaction, removed).await.map_err(of_commit);
        let removed = removed.inspect_err(|error| self.note_write_error(error))?;
        self.checkpoint_if_due(connection, removed * EVENT_BYTES).await;
        Ok(removed)
    }
}

async fn delete_some(connection: &mut SqliteConnection, sequence: u64) -> Result<u64> {
    let log = extent(connection).await?;
    let projections = checkpoints(connection).await?;
    let seen = projections.iter().map(|of| (of.projection.as_str(), of.checkpoint));
    check_prune(seen, sequence, log)?;
    let before = sequence.min(log.last + 1).min(log.first.saturating_add(STEP_EVENTS));
    let deleted = sqlx::query("DELETE FROM events WHERE sequence < ?")
        .bind(before.cast_signed())
        .execute(connection)
        .await
        .map_err(from_sqlx)?;
    Ok(deleted.rows_affected())
}
