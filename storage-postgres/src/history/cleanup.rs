//! Removes what is old, in transactions that lock few rows at a time.

use storage_core::metrics::time::{END_MS, MIN_MS};
use storage_core::{Error, ErrorKind, Outcome, Result};
use tokio::sync::oneshot;

use crate::connect::Connection;
use crate::convert::PgTime;
use crate::error::{from_pg, is_victim, of_commit};
use crate::store::Store;

/// Values that one step removes.
const STEP_VALUES: i64 = 10_000;

/// Says how many values it chose and how many of these it removed: another cleanup may have been
/// faster.
const STEP: &str = "
    WITH chosen AS MATERIALIZED (
        SELECT h.place FROM record_names n
        CROSS JOIN LATERAL (SELECT ctid AS place FROM record_history
            WHERE record_id = n.id AND stored_at < $1 ORDER BY stored_at, id LIMIT $2) h
        LIMIT $2),
    gone AS (DELETE FROM record_history
        WHERE ctid = ANY(ARRAY(SELECT place FROM chosen)) RETURNING id)
    SELECT (SELECT count(*) FROM chosen), (SELECT count(*) FROM gone)";

/// Removes every value before `cutoff_ms` and returns how many. Stops when `caller` is closed,
/// because what is stored after that must stay.
pub(crate) async fn run(store: &Store, cutoff_ms: i64, caller: oneshot::Sender<()>) -> Result<u64> {
    let connection = store.server.connect().await?;
    let cutoff = PgTime(cutoff_ms.clamp(MIN_MS, END_MS));
    let mut removed = 0;
    loop {
        match step(store, &connection, cutoff, &caller).await {
            Ok((chosen, gone)) => {
                removed += gone.cast_unsigned();
                if chosen < STEP_VALUES {
                    return Ok(removed);
                }
            }
            Err(error) if error.outcome() == Outcome::NotApplied && is_victim(&error) => {}
            Err(error) if removed > 0 => return Err(error.with_outcome(Outcome::Unknown)),
            Err(error) => return Err(error),
        }
    }
}

async fn step(
    store: &Store,
    connection: &Connection,
    cutoff: PgTime,
    caller: &oneshot::Sender<()>,
) -> Result<(i64, i64)> {
    // Held across the statement on purpose: what is stored later by this handle comes later.
    let _order = store.order.lock().await;
    store.check_open()?;
    if caller.is_closed() {
        return Err(Error::new(ErrorKind::Closed, "the caller gave up"));
    }
    let done = async { Ok(connection.query_one(STEP, &[&cutoff, &STEP_VALUES]).await) };
    let done = store.server.in_time(done).await;
    // A statement of its own commits by itself.
    let row = done.map_err(|error| error.with_outcome(Outcome::Unknown))?;
    let row = row.map_err(|error| of_commit(from_pg(error)))?;
    Ok((row.try_get(0).map_err(from_pg)?, row.try_get(1).map_err(from_pg)?))
}
