//! What all parts of one handle share: connections, the dictionary, its condition.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use deadpool_postgres::Pool;
use futures_util::TryStreamExt;
use storage_core::{Error, ErrorKind, Result};
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::config::PostgresOptions;
use crate::connect::{Lease, Server, is_unusable};
use crate::dictionary::Dictionary;
use crate::error::{from_pg, is_disconnect};
use crate::jobs::JobOrder;
use crate::schema::{self, Locks, Opened};
use crate::windows::Densities;

/// The shared part of a handle.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) options: PostgresOptions,
    pub(crate) server: Server,
    pub(crate) opened: Opened,
    pub(crate) locks: Locks,
    pub(crate) pool: Pool,
    /// What the connection that writes has learned; another one with each connection.
    series: RwLock<Arc<Dictionary>>,
    /// Rung when this handle has appended events, and when it is closed.
    pub(crate) appended: Notify,
    pub(crate) densities: Densities,
    /// Held by a commit and by each step of a prune, so that what a caller gave up is either done
    /// before his next write or not at all.
    pub(crate) order: AsyncMutex<()>,
    /// The same for changes of jobs, which do not wait for commits of other parts.
    pub(crate) job_order: JobOrder,
    closed: AtomicBool,
    /// Where the tasks of the handle run, whoever calls it.
    pub(crate) runtime: Handle,
}

impl Store {
    pub(crate) async fn open(options: PostgresOptions) -> Result<Self> {
        let server = Server::new(&options)?;
        let opened = schema::open(&server, &options).await?;
        let pool = server.pool(&options)?;
        Ok(Self {
            locks: Locks::of(&options.schema),
            options,
            server,
            opened,
            pool,
            series: RwLock::default(),
            appended: Notify::new(),
            densities: Densities::default(),
            order: AsyncMutex::default(),
            job_order: JobOrder::default(),
            closed: AtomicBool::new(false),
            runtime: Handle::current(),
        })
    }

    /// The series that the connection which writes has met.
    pub(crate) fn series_met(&self) -> Arc<Dictionary> {
        Arc::clone(&self.series.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets them: there is another connection, and what it reaches may be another server.
    pub(crate) fn forget_series(&self) {
        *self.series.write().unwrap_or_else(PoisonError::into_inner) = Arc::default();
    }

    /// # Errors
    /// `Closed` after `close`.
    pub(crate) fn check_open(&self) -> Result<()> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(Error::new(ErrorKind::Closed, "the store was closed")),
            false => Ok(()),
        }
    }

    /// # Errors
    /// `Closed` after `close`; `PermissionDenied` where a store from before `version` could not be
    /// migrated.
    pub(crate) fn check_part(&self, version: i32) -> Result<()> {
        self.check_open()?;
        match self.opened.version >= version {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::PermissionDenied,
                "the store is of an older version, may not be migrated, and lacks this part",
            )
            .with_context("store_version", self.opened.version)),
        }
    }

    /// Why the server takes no writes, if it takes none.
    pub(crate) async fn check_takes_writes(&self) -> Result<Option<Error>> {
        let sql = "SELECT current_setting('transaction_read_only') = 'on'";
        let rows = self.rows(sql, &[]).await?;
        let read_only = rows.first().map(|row| row.try_get::<_, bool>(0)).transpose();
        let problem = "the server takes no writes: it is a standby or read-only";
        let error = || Error::new(ErrorKind::Unavailable, problem);
        Ok(read_only.map_err(from_pg)?.unwrap_or_default().then(error))
    }

    /// Refuses calls from now on.
    pub(crate) fn refuse_calls(&self) {
        self.closed.store(true, Ordering::Release);
        self.appended.notify_waiters();
    }

    /// Asks a question and returns all rows of the answer.
    pub(crate) async fn rows(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let visit = |row| {
            rows.push(row);
            Ok(true)
        };
        self.each_row(sql, parameters, visit).await?;
        Ok(rows)
    }

    /// Asks a question on a connection of the pool, and shows each row of the answer until told
    /// to stop, which costs the connection. One that died while it lay in the pool is replaced, and
    /// the question asked again, as long as no row was shown.
    pub(crate) async fn each_row(
        &self,
        sql: &str,
        parameters: &[Parameter<'_>],
        mut visit: impl FnMut(Row) -> Result<bool> + Send,
    ) -> Result<()> {
        loop {
            self.check_open()?;
            let lease = Lease::take(&self.pool).await?;
            let (mut shown, mut cut_short) = (false, false);
            let visit = |row| {
                shown = true;
                let goes_on = visit(row);
                cut_short = !matches!(goes_on, Ok(true));
                goes_on
            };
            match self.server.in_time(ask(&lease, sql, parameters, visit)).await {
                Err(error) if is_disconnect(&error) && lease.is_used() && !shown => {}
                Err(error) if is_unusable(&error) => return Err(error),
                // The next question would wait for the rest of this answer, however long it is.
                answer if cut_short => return answer,
                answer => {
                    lease.give_back();
                    return answer;
                }
            }
        }
    }
}

/// The value of a parameter.
pub(crate) type Parameter<'a> = &'a (dyn ToSql + Sync);

/// Runs a statement, prepared on the first time that a connection sees it.
async fn ask(
    lease: &Lease,
    sql: &str,
    parameters: &[Parameter<'_>],
    mut visit: impl FnMut(Row) -> Result<bool> + Send,
) -> Result<()> {
    let statement = lease.prepare_cached(sql).await.map_err(from_pg)?;
    let parameters = parameters.iter().copied();
    let rows = lease.query_raw(&statement, parameters).await.map_err(from_pg)?;
    let mut rows = std::pin::pin!(rows);
    while let Some(row) = rows.try_next().await.map_err(from_pg)? {
        if !visit(row)? {
            break;
        }
    }
    Ok(())
}
