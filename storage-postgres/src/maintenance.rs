//! What takes samples away or tidies up: prune, compact.
//!
//! A prune is a row of transactions, each with the lock of the writers held alone but not for
//! long: whole partitions dropped a few at a time, the one that straddles the cutoff cleared piece
//! by piece, then extents and marks of empty series looked up again. The row of `state` says when
//! that is still due, so that it can be killed anywhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use storage_core::metrics::time::{END_MS, MIN_MS};
use storage_core::{Error, ErrorKind, Outcome, Result};
use tokio::sync::oneshot;
use tokio_postgres::types::ToSql;

use crate::backend::named;
use crate::connect::{Connection, is_unusable};
use crate::convert::PgTime;
use crate::error::{NO_TABLE, from_pg, is_victim, of_commit, sqlstate};
use crate::partitions::DAY_MS;
use crate::rewrite;
use crate::store::Store;
use crate::timescale::Extension;

/// Partitions that one transaction drops.
const DROPPED_AT_ONCE: i64 = 32;

/// Pages that one transaction clears: some ten milliseconds of work.
const PAGES_AT_ONCE: i64 = 1024;

/// How long a prune waits in front of readers at a time: whoever comes after it waits too.
const TABLE_LOCK_WAIT: Duration = Duration::from_millis(200);

/// Adds deleted samples up by day, takes them off the days, and says how many they are.
const UNCOUNT: &str = "
    by_day AS (SELECT (ts AT TIME ZONE 'UTC')::date AS day, count(*) AS samples FROM gone GROUP BY 1),
    counted AS (UPDATE days d SET samples = d.samples - b.samples FROM by_day b
        WHERE d.day = b.day AND d.slot = (SELECT min(slot) FROM days e WHERE e.day = b.day)),
    pending AS (UPDATE state SET prune_pending = true WHERE EXISTS (SELECT FROM gone))
    SELECT coalesce(sum(samples), 0)::bigint FROM by_day";

/// After a step that removed samples: the days they came from.
const MARK_STALE: &str = "UPDATE days SET stale = true WHERE NOT stale AND oldest < $1";

/// Looks up what a prune has made inexact. The look-up of a series stops at its first sample.
const FINISH: &str = "
    WITH gone AS (DELETE FROM days WHERE day IN (SELECT day FROM days WHERE stale)
            RETURNING day, samples, newest)
    INSERT INTO days (day, slot, samples, oldest, newest)
    SELECT day, -1, sum(samples),
        (SELECT min(ts) FROM samples WHERE ts >= day::timestamp AT TIME ZONE 'UTC'
            AND ts < (day + 1)::timestamp AT TIME ZONE 'UTC'), max(newest)
    FROM gone GROUP BY day HAVING sum(samples) > 0;
    UPDATE series s SET emptied = true
        WHERE NOT emptied
        AND (SELECT true FROM samples p WHERE p.series_id = s.id LIMIT 1) IS NULL;
    UPDATE state SET generation = generation + 1, prune_pending = false;";

/// A prune under way.
pub(crate) struct Prune<'a> {
    store: &'a Store,
    connection: Connection,
    cutoff: PgTime,
    caller: oneshot::Sender<()>,
    removed: u64,
}

impl<'a> Prune<'a> {
    /// Removes everything before the cutoff and returns how much that was. Stops between two steps
    /// when the caller is gone.
    pub(crate) async fn run(
        store: &'a Store,
        cutoff_ms: i64,
        caller: oneshot::Sender<()>,
    ) -> Result<u64> {
        store.check_open()?;
        let connection = store.server.connect().await?;
        let cutoff = PgTime(cutoff_ms.clamp(MIN_MS, END_MS));
        let mut prune = Self { store, connection, cutoff, caller, removed: 0 };
        let done = match &store.opened.extension {
            Some(extension) if store.opened.hypertable => {
                prune.step(&Step::Chunks(extension)).await.map(drop)
            }
            _ => prune.partitions().await,
        };
        let done = match done {
            Ok(()) => prune.finish().await,
            error => error,
        };
        match done {
            Ok(()) => Ok(prune.removed),
            Err(error) if prune.removed > 0 => Err(error.with_outcome(Outcome::Unknown)),
            Err(error) => Err(error),
        }
    }

    async fn partitions(&mut self) -> Result<()> {
        while self.drop_some().await? {}
        // Another prune may drop it meanwhile, at any time: it counts what was left.
        let straddling = "SELECT name::text, coalesce(pg_relation_size(to_regclass(name::text)), 0)
                / current_setting('block_size')::bigint
            FROM partitions WHERE low < $1 AND high > $1";
        let parameters: [&(dyn ToSql + Sync); 1] = [&self.cutoff];
        let asked = self.connection.query(straddling, &parameters);
        let rows = self.store.server.in_time(async { asked.await.map_err(from_pg) }).await?;
        for row in rows {
            let name: String = row.try_get(0).map_err(from_pg)?;
            let pages: i64 = row.try_get(1).map_err(from_pg)?;
            for first in (0..pages).step_by(PAGES_AT_ONCE as usize) {
                match self.step(&Step::ClearPages { name: &name, first }).await {
                    Err(error) if sqlstate(&error) == Some(NO_TABLE) => break,
                    cleared => drop(cleared?),
                }
            }
        }
        Ok(())
    }

    /// Drops some of the partitions that lie before the cutoff; says whether there were any.
    async fn drop_some(&mut self) -> Result<bool> {
        let deadline = Instant::now() + self.store.options.lock_timeout;
        loop {
            match self.step(&Step::Drop).await {
                // Locked out by a long question: step aside, so that others are not locked out too.
                Err(error) if sqlstate(&error) == Some("55P03") && Instant::now() < deadline => {
                    self.await_vacuum(deadline).await?;
                    tokio::time::sleep(TABLE_LOCK_WAIT / 4).await;
                }
                dropped => return dropped,
            }
        }
    }

    /// Waits for who tidies or analyzes partitions that are due. An autovacuum lets go of a table for
    /// one who has waited as long as the `deadlock_timeout` of the server: longer than a drop may wait
    /// in front of readers. This waits beside them and writers.
    async fn await_vacuum(&self, deadline: Instant) -> Result<()> {
        let (server, connection) = (&self.store.server, &self.connection);
        let names = server.in_time(self.due()).await?;
        if names.is_empty() {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now()).max(TABLE_LOCK_WAIT);
        let wait = format!(
            "BEGIN; SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {};
             LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE",
            left.as_millis(),
            self.store.options.upkeep_timeout().as_millis(),
            names.join(", ")
        );
        let waited = async { connection.batch_execute(&wait).await.map_err(from_pg) };
        match server.in_time_for_upkeep(waited).await {
            Err(error) if is_unusable(&error) => return Err(error),
            // In vain, or another prune dropped them: what comes next finds out.
            _ => {}
        }
        let end = async { connection.batch_execute("ROLLBACK").await.map_err(from_pg) };
        server.in_time(end).await
    }

    /// Some of the partitions that lie before the cutoff, by their names, which are those of the table:
    /// digits of dates.
    async fn due(&self) -> Result<Vec<String>> {
        let due = "SELECT name::text FROM partitions WHERE high <= $1 ORDER BY low LIMIT $2";
        let parameters: [&(dyn ToSql + Sync); 2] = [&self.cutoff, &DROPPED_AT_ONCE];
        let rows = self.connection.query(due, &parameters).await.map_err(from_pg)?;
        rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(from_pg)
    }

    /// Looks up again what the prune, or one before it that was killed, has made inexact.
    async fn finish(&mut self) -> Result<()> {
        let pending = "SELECT count(*) FROM state WHERE prune_pending";
        if self.store.server.in_time(self.number(pending, &[])).await? > 0 {
            self.step(&Step::Run(FINISH)).await?;
        }
        Ok(())
    }

    /// Runs one transaction beside which nobody writes, and again if it is in the way of another.
    /// Says whether there was something to do.
    async fn step(&mut self, step: &Step<'_>) -> Result<bool> {
        loop {
            // Held across the transaction on purpose: see the field.
            let order = self.store.order.lock().await;
            self.check_wanted()?;
            let result = self.transaction(step).await;
            drop(order);
            match result {
                Ok((removed, done)) => {
                    self.removed += u64::try_from(removed).unwrap_or_default();
                    return Ok(done);
                }
                Err(error) if error.outcome() == Outcome::NotApplied && is_victim(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// # Errors
    /// `Closed` if the handle was closed or the caller gave up.
    fn check_wanted(&self) -> Result<()> {
        self.store.check_open()?;
        match self.caller.is_closed() {
            true => Err(Error::new(ErrorKind::Closed, "the caller gave up")),
            false => Ok(()),
        }
    }

    /// Returns how many samples it removed, and whether there was something to do.
    async fn transaction(&self, step: &Step<'_>) -> Result<(i64, bool)> {
        let (server, begin) = (&self.store.server, self.store.locks.begin_alone());
        let timeout_ms = self.store.options.upkeep_timeout().as_millis();
        let begin = format!("{begin}; SET LOCAL statement_timeout = {timeout_ms}");
        let work = async {
            self.connection.batch_execute(&begin).await.map_err(from_pg)?;
            self.work(step).await
        };
        match server.in_time_for_upkeep(work).await {
            Ok(done) => self.commit().await.map(|()| done),
            Err(error) => {
                if !is_unusable(&error) {
                    let rollback = self.connection.batch_execute("ROLLBACK");
                    // A connection that is gone has rolled back already.
                    let _ = server.in_time(async { rollback.await.map_err(from_pg) }).await;
                }
                Err(error)
            }
        }
    }

    async fn work(&self, step: &Step<'_>) -> Result<(i64, bool)> {
        match step {
            Step::Drop => self.drop_partitions().await,
            Step::ClearPages { name, first } => self.clear_pages(name, *first).await,
            Step::Chunks(extension) => self.drop_chunks(extension).await,
            Step::Run(sql) => {
                self.connection.batch_execute(sql).await.map_err(from_pg)?;
                Ok((0, true))
            }
        }
    }

    async fn drop_partitions(&self) -> Result<(i64, bool)> {
        let connection = &self.connection;
        let lock = format!(
            "SET LOCAL lock_timeout = {}; {}",
            TABLE_LOCK_WAIT.as_millis(),
            self.store.locks.tables()
        );
        connection.batch_execute(&lock).await.map_err(from_pg)?;
        let names = self.due().await?;
        if names.is_empty() {
            return Ok((0, false));
        }
        // ONLY: the others stay usable.
        let drop = format!(
            "LOCK TABLE ONLY samples IN ACCESS EXCLUSIVE MODE; DROP TABLE {}",
            names.join(", ")
        );
        connection.batch_execute(&drop).await.map_err(from_pg)?;
        let uncount = "WITH dropped AS (DELETE FROM partitions WHERE name::text = ANY($1)
                RETURNING (low AT TIME ZONE 'UTC')::date AS low, (high AT TIME ZONE 'UTC')::date AS high),
            gone AS (DELETE FROM days d USING dropped p WHERE d.day >= p.low AND d.day < p.high
                RETURNING d.samples)
            SELECT coalesce(sum(samples), 0)::bigint FROM gone";
        let removed = self.number(uncount, &[&names]).await?;
        // Other handles must not take the partitions for granted, also where they were empty.
        let marked = "UPDATE state SET generation = generation + 1,
            prune_pending = prune_pending OR $1";
        connection.execute(marked, &[&(removed > 0)]).await.map_err(from_pg)?;
        Ok((removed, true))
    }

    async fn clear_pages(&self, name: &str, first: i64) -> Result<(i64, bool)> {
        let sql = format!(
            "WITH gone AS (DELETE FROM {name} WHERE ctid >= '({first},0)'::tid
                AND ctid < '({},0)'::tid AND ts < $1 RETURNING ts), {UNCOUNT}",
            first + PAGES_AT_ONCE
        );
        let removed = self.number(&sql, &[&self.cutoff]).await?;
        if removed > 0 {
            self.connection.execute(MARK_STALE, &[&self.cutoff]).await.map_err(from_pg)?;
        }
        Ok((removed, true))
    }

    /// Chunks of a hypertable are dropped whole, what is left before the cutoff is deleted. How
    /// much the chunks held is what the days say of whole days.
    async fn drop_chunks(&self, extension: &Extension) -> Result<(i64, bool)> {
        let before = self.number(TOTAL, &[]).await?;
        let midnight = PgTime(self.cutoff.0 - self.cutoff.0.rem_euclid(DAY_MS));
        self.number(&extension.drop_chunks(), &[&self.cutoff]).await?;
        let rest = "WITH gone AS (DELETE FROM samples WHERE ts < $1 RETURNING ts)
            SELECT count(*) FILTER (WHERE ts >= $2) FROM gone";
        let of_last_day = self.number(rest, &[&self.cutoff, &midnight]).await?;
        let uncount = "WITH last AS (SELECT ($1::timestamptz AT TIME ZONE 'UTC')::date AS day),
            whole AS (DELETE FROM days d USING last l WHERE d.day < l.day RETURNING d.day),
            part AS (UPDATE days d SET stale = true, samples = d.samples -
                CASE d.slot WHEN (SELECT min(e.slot) FROM days e WHERE e.day = l.day)
                    THEN $2::bigint ELSE 0 END
                FROM last l WHERE d.day = l.day AND $2::bigint > 0 RETURNING d.day)
            UPDATE state SET prune_pending = true
            WHERE EXISTS (SELECT FROM whole) OR EXISTS (SELECT FROM part)";
        let counts: [&(dyn ToSql + Sync); 2] = [&midnight, &of_last_day];
        self.connection.execute(uncount, &counts).await.map_err(from_pg)?;
        let after = self.number(TOTAL, &[]).await?;
        Ok((before - after, true))
    }

    async fn commit(&self) -> Result<()> {
        let commit = self.connection.batch_execute("COMMIT");
        let committed = async { commit.await.map_err(from_pg) };
        self.store.server.in_time(committed).await.map_err(of_commit)
    }

    async fn number(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<i64> {
        let row = self.connection.query_one(sql, parameters).await;
        row.and_then(|row| row.try_get(0)).map_err(from_pg)
    }
}

const TOTAL: &str = "SELECT coalesce(sum(samples), 0)::bigint FROM days";

/// What one transaction does.
enum Step<'a> {
    /// Drops some of the partitions that lie before the cutoff.
    Drop,
    /// Deletes what is before the cutoff from some pages of a partition.
    ClearPages { name: &'a str, first: i64 },
    /// Drops chunks of a hypertable, and deletes what is left before the cutoff.
    Chunks(&'a Extension),
    /// Runs SQL that removes no sample.
    Run(&'static str),
}

/// Runs upkeep in a task of its own, so that dropping the caller never stops a step half way. The
/// task is given what closes when its caller is gone.
pub(crate) async fn upkeep<T: Send + 'static, W: Future<Output = Result<T>> + Send + 'static>(
    store: &Arc<Store>,
    operation: &'static str,
    work: impl FnOnce(Arc<Store>, oneshot::Sender<()>) -> W,
) -> Result<T> {
    let (caller, _alive) = oneshot::channel();
    let done = store.runtime.spawn(work(Arc::clone(store), caller)).await;
    done.map_err(panicked).flatten().map_err(|error| named(error, operation))
}

/// How far it had got is not known.
fn panicked(error: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Internal, "a task of the store ended early")
        .with_outcome(Outcome::Unknown)
        .with_source(error)
}

/// Ends what a killed prune left, adds up the slots of each day, compresses the chunks that are due,
/// lets the server reuse the space of dead rows, and rewrites tables that are mostly empty.
pub(crate) async fn compact(store: &Store, caller: oneshot::Sender<()>) -> Result<()> {
    store.check_open()?;
    let connection = store.server.connect().await?;
    let cutoff = PgTime(MIN_MS);
    let mut prune = Prune { store, connection, cutoff, caller, removed: 0 };
    prune.finish().await?;
    prune.step(&Step::Run(JOIN_SLOTS)).await?;
    prune.connection.batch_execute("SET statement_timeout = 0").await.map_err(from_pg)?;
    let mut due = Vec::new();
    if let Some(extension) = store.opened.extension.as_ref().filter(|_| store.opened.hypertable) {
        due.extend(extension.compress(&prune.connection).await?);
    }
    for row in prune.connection.query(VACUUMED, &[]).await.map_err(from_pg)? {
        due.push(format!("VACUUM (SKIP_LOCKED) {}", row.try_get::<_, &str>(0).map_err(from_pg)?));
    }
    run_each(&prune, due).await?;
    let due = rewrite::due(&prune.connection).await?;
    run_each(&prune, due).await
}

/// Runs statements of which each tidies a table.
async fn run_each(prune: &Prune<'_>, statements: Vec<String>) -> Result<()> {
    for statement in statements {
        prune.check_wanted()?;
        match prune.connection.batch_execute(&statement).await.map_err(from_pg) {
            // Dropped meanwhile, or not ours to tidy.
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {}
            Err(error) if matches!(sqlstate(&error), Some(COMPRESSED_NOTHING | RAISED)) => {
                tracing::warn!(target: "storage", %error, "chunks are compressed later");
            }
            done => done?,
        }
    }
    Ok(())
}

/// What TimescaleDB says, now and up to 2.19, where it compressed none of the chunks that were due:
/// somebody else uses or compresses them. Its policy comes again.
const COMPRESSED_NOTHING: &str = "22000";
const RAISED: &str = "P0001";

/// Every table of the schema; a hypertable stands for its chunks, compressed or not. Not by what the
/// server counted of dead rows: that comes a second late or more. A table without any costs a
/// millisecond.
const VACUUMED: &str = "SELECT oid::regclass::text FROM pg_class
    WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace";

const JOIN_SLOTS: &str = "
    WITH gone AS (DELETE FROM days d
            WHERE EXISTS (SELECT FROM days e WHERE e.day = d.day AND e.slot <> d.slot)
            RETURNING day, samples, oldest, newest, stale)
    INSERT INTO days (day, slot, samples, oldest, newest, stale)
    SELECT day, -1, sum(samples), min(oldest), max(newest), bool_or(stale) FROM gone GROUP BY day";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_task_that_ended_early_had_done_is_not_known() {
        let task = tokio::spawn(std::future::pending::<()>());
        task.abort();
        let error = panicked(task.await.unwrap_err());
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Internal, Outcome::Unknown));
    }
}
