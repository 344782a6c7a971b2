//! Rows and checkpoints of projections, and the transactions that look at both these and the log.

use std::collections::BTreeMap;

use storage_core::events::Row;
use storage_core::{
    Error, ErrorKind, LogExtent, Matcher, Outcome, ProjectionInfo, ProjectionStep, Result,
};
use tokio::sync::oneshot;
use tokio_postgres::Row as PgRow;

use super::prune::remove_some;
use super::read::extent_of;
use crate::commit::gone;
use crate::connect::{Lease, is_unusable};
use crate::convert::{to_json, to_value};
use crate::error::{from_pg, is_disconnect, is_victim, of_commit};
use crate::filter::Condition;
use crate::store::{Parameter, Store};

const SET_ROWS: &str = "
    INSERT INTO projection_rows (projection_id, table_name, key, value)
    SELECT $1, u.table_name, u.key, u.value::jsonb
    FROM unnest($2::text[], $3::text[], $4::text[]) AS u (table_name, key, value)
    ON CONFLICT (projection_id, table_name, key) DO UPDATE SET value = excluded.value";

const REMOVE_ROWS: &str = "
    DELETE FROM projection_rows r USING unnest($2::text[], $3::text[]) AS u (table_name, key)
    WHERE r.projection_id = $1 AND r.table_name = u.table_name AND r.key = u.key";

/// How often a transaction is tried again that was chosen as the victim of a deadlock.
const ATTEMPTS_MAX: usize = 8;

/// A step with its rows as text.
#[derive(Debug)]
pub(super) struct Changes {
    /// Without its changes.
    step: ProjectionStep,
    /// Tables, keys and values of rows that are set.
    set: [Vec<String>; 3],
    /// Tables and keys of rows that go.
    removed: [Vec<String>; 2],
}

impl Changes {
    /// Takes a step that is valid. Of several changes of one key the last one stays.
    pub(super) fn of(step: &ProjectionStep) -> Result<Self> {
        let mut last = BTreeMap::new();
        for change in &step.changes {
            last.insert((&change.table, &change.key), change.value.as_ref());
        }
        let (mut set, mut removed) = (<[Vec<String>; 3]>::default(), <[Vec<String>; 2]>::default());
        for ((table, key), value) in last {
            let Some(value) = value else {
                removed[0].push(table.clone());
                removed[1].push(key.clone());
                continue;
            };
            let text = String::from_utf8(to_json(value)?.into_vec()).map_err(|error| {
                Error::new(ErrorKind::Internal, "JSON that is no UTF-8").with_source(error)
            })?;
            set[0].push(table.clone());
            set[1].push(key.clone());
            set[2].push(text);
        }
        let step = ProjectionStep {
            reset: step.reset,
            ..ProjectionStep::new(&*step.projection, step.from, step.to)
        };
        Ok(Self { step, set, removed })
    }
}

/// What a transaction does.
#[derive(Clone, Copy)]
pub(super) enum Work<'a> {
    /// Makes a step.
    Step(&'a Changes),
    /// Removes a projection with its rows; gives 1 if it was there, else 0.
    Forget(&'a str),
    /// Removes some events before a number, unless the caller is gone; gives how many.
    Prune(u64, &'a oneshot::Sender<()>),
}

impl Work<'_> {
    async fn run(self, lease: &Lease, log: LogExtent) -> Result<u64> {
        match self {
            Self::Step(changes) => make_step(lease, changes, log).await,
            Self::Forget(name) => forget(lease, name).await,
            Self::Prune(..) if self.is_given_up() => {
                Err(Error::new(ErrorKind::Closed, "the caller gave up"))
            }
            Self::Prune(sequence, _) => remove_some(lease, log, sequence).await,
        }
    }

    fn is_given_up(self) -> bool {
        matches!(self, Self::Prune(_, caller) if caller.is_closed())
    }
}

/// Does work in a transaction beside which nobody appends, prunes or moves a checkpoint.
pub(super) async fn transaction(store: &Store, work: Work<'_>) -> Result<u64> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        store.check_open()?;
        let lease = Lease::take(&store.pool).await?;
        let worked = async {
            let log = begin(&lease).await?;
            work.run(&lease, log).await
        };
        let error = match store.server.in_time(worked).await {
            Ok(done) => {
                let commit = async { Ok(lease.batch_execute("COMMIT").await) };
                let ended = store.server.in_time(commit).await;
                let ended = ended.map_err(|error| error.with_outcome(Outcome::Unknown))?;
                ended.map_err(|error| of_commit(from_pg(error)))?;
                lease.give_back();
                return Ok(done);
            }
            Err(error) => error,
        };
        // A connection that died while it lay in the pool: nothing was done on it.
        let is_stale = is_disconnect(&error) && lease.is_used();
        if !is_unusable(&error) {
            let rollback = async { lease.batch_execute("ROLLBACK").await.map_err(from_pg) };
            if store.server.in_time(rollback).await.is_ok() {
                lease.give_back();
            }
        }
        if !(is_stale || is_victim(&error)) || attempts == ATTEMPTS_MAX {
            return Err(error);
        }
    }
}

async fn begin(lease: &Lease) -> Result<LogExtent> {
    let sql = "SELECT first, last FROM event_state FOR UPDATE";
    let statement = lease.prepare_cached(sql).await.map_err(from_pg)?;
    let (begun, row) = tokio::join!(lease.batch_execute("BEGIN"), lease.query_opt(&statement, &[]));
    begun.map_err(from_pg)?;
    extent_of(&row.map_err(from_pg)?.ok_or_else(gone)?)
}

async fn make_step(lease: &Lease, changes: &Changes, log: LogExtent) -> Result<u64> {
    let Changes { step, set, removed } = changes;
    let find = "SELECT checkpoint FROM projections WHERE name = $1";
    let find = lease.prepare_cached(find).await.map_err(from_pg)?;
    let found = lease.query_opt(&find, &[&step.projection]).await.map_err(from_pg)?;
    let checkpoint = found.map(|row| row.try_get::<_, i64>(0)).transpose().map_err(from_pg)?;
    step.check(checkpoint.unwrap_or(0).cast_unsigned(), log)?;
    let write = "INSERT INTO projections (name, checkpoint) VALUES ($1, $2)
         ON CONFLICT (name) DO UPDATE SET checkpoint = excluded.checkpoint RETURNING id";
    let write = lease.prepare_cached(write).await.map_err(from_pg)?;
    let row = lease.query_one(&write, &[&step.projection, &step.to.cast_signed()]).await;
    let id: i64 = row.and_then(|row| row.try_get(0)).map_err(from_pg)?;
    if step.reset {
        delete_rows(lease, id).await?;
    }
    if !set[0].is_empty() {
        let statement = lease.prepare_cached(SET_ROWS).await.map_err(from_pg)?;
        let rows: [Parameter<'_>; 4] = [&id, &set[0], &set[1], &set[2]];
        lease.execute(&statement, &rows).await.map_err(from_pg)?;
    }
    if !removed[0].is_empty() {
        let statement = lease.prepare_cached(REMOVE_ROWS).await.map_err(from_pg)?;
        let rows: [Parameter<'_>; 3] = [&id, &removed[0], &removed[1]];
        lease.execute(&statement, &rows).await.map_err(from_pg)?;
    }
    Ok(0)
}

async fn forget(lease: &Lease, name: &str) -> Result<u64> {
    let sql = "DELETE FROM projections WHERE name = $1 RETURNING id";
    let statement = lease.prepare_cached(sql).await.map_err(from_pg)?;
    let found = lease.query_opt(&statement, &[&name]).await.map_err(from_pg)?;
    let Some(row) = found else { return Ok(0) };
    delete_rows(lease, row.try_get(0).map_err(from_pg)?).await?;
    Ok(1)
}

async fn delete_rows(lease: &Lease, id: i64) -> Result<()> {
    let sql = "DELETE FROM projection_rows WHERE projection_id = $1";
    let statement = lease.prepare_cached(sql).await.map_err(from_pg)?;
    lease.execute(&statement, &[&id]).await.map(drop).map_err(from_pg)
}

impl Store {
    /// Every projection by name, with its checkpoint.
    pub(super) async fn projections(&self) -> Result<Vec<ProjectionInfo>> {
        let rows = self.rows(CHECKPOINTS, &[]).await?;
        rows.iter().map(info_of).collect()
    }

    /// The rows of a table whose keys match, by key.
    pub(super) async fn projected_rows(
        &self,
        projection: &str,
        table: &str,
        keys: &Matcher,
    ) -> Result<Vec<Row>> {
        let condition = Condition::on("r.key", keys, 3);
        let sql = format!(
            "SELECT r.key, r.value FROM projection_rows r
             WHERE r.projection_id = (SELECT id FROM projections WHERE name = $1)
                 AND r.table_name = $2 AND {} ORDER BY r.key",
            condition.sql
        );
        let mut parameters: Vec<Parameter<'_>> = vec![&projection, &table];
        parameters.extend(condition.parameters());
        let row = |row: &PgRow| {
            let key: String = row.try_get(0).map_err(from_pg)?;
            let value = to_value(row, 1).map_err(|error| {
                error
                    .with_context("projection", projection)
                    .with_context("table", table)
                    .with_context("key", &key)
            })?;
            Ok(Row { key, value })
        };
        self.rows(&sql, &parameters).await?.iter().map(row).collect()
    }
}

pub(super) const CHECKPOINTS: &str = "SELECT name, checkpoint FROM projections ORDER BY name";

pub(super) fn info_of(row: &PgRow) -> Result<ProjectionInfo> {
    let checkpoint: i64 = row.try_get(1).map_err(from_pg)?;
    let projection = row.try_get(0).map_err(from_pg)?;
    Ok(ProjectionInfo { projection, checkpoint: checkpoint.cast_unsigned() })
}
