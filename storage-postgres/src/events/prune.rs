//! Removes events that every projection has seen, in transactions that who appends need not wait
//! long for.

use storage_core::events::rows::check_prune;
use storage_core::{LogExtent, Outcome, Result};
use tokio::sync::oneshot;

use super::project::{CHECKPOINTS, Work, info_of, transaction};
use crate::connect::Lease;
use crate::error::from_pg;
use crate::store::Store;

/// Events that one step removes.
const STEP_EVENTS: u64 = 10_000;

/// Removes every event before `sequence`, the oldest first, and returns how many. Stops when
/// `caller` is closed.
pub(super) async fn run(store: &Store, sequence: u64, caller: oneshot::Sender<()>) -> Result<u64> {
    let mut removed = 0;
    loop {
        match transaction(store, Work::Prune(sequence, &caller)).await {
            Ok(count) => {
                removed += count;
                if count < STEP_EVENTS {
                    return Ok(removed);
                }
            }
            Err(error) if removed > 0 => return Err(error.with_outcome(Outcome::Unknown)),
            Err(error) => return Err(error),
        }
    }
}

/// Removes some events, the oldest first, and returns how many.
pub(super) async fn remove_some(lease: &Lease, log: LogExtent, sequence: u64) -> Result<u64> {
    let statement = lease.prepare_cached(CHECKPOINTS).await.map_err(from_pg)?;
    let rows = lease.query(&statement, &[]).await.map_err(from_pg)?;
    let projections = rows.iter().map(info_of).collect::<Result<Vec<_>>>()?;
    let seen = projections.iter().map(|of| (of.projection.as_str(), of.checkpoint));
    check_prune(seen, sequence, log)?;
    let before = sequence.min(log.last + 1).min(log.first.saturating_add(STEP_EVENTS));
    if before <= log.first {
        return Ok(0);
    }
    let before = before.cast_signed();
    let delete = lease.prepare_cached("DELETE FROM events WHERE sequence < $1").await;
    let removed = lease.execute(&delete.map_err(from_pg)?, &[&before]).await.map_err(from_pg)?;
    let move_on = lease.prepare_cached("UPDATE event_state SET first = $1").await;
    lease.execute(&move_on.map_err(from_pg)?, &[&before]).await.map_err(from_pg)?;
    Ok(removed)
}
