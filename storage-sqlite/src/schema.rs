//! Opening a database file: what it must be, creating and migrating the tables.
//!
//! `PRAGMA application_id` says that a file is ours, `PRAGMA user_version` which version. Nothing
//! is changed in a file before both are known to be right.

use std::path::Path;
use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row, Sqlite, Transaction};
use storage_core::{Error, ErrorKind, Result};

use crate::config::{SqliteOptions, Synchronous};
use crate::error::from_sqlx;

/// The version of the tables that this library writes.
pub(crate) const VERSION: i64 = 5;

/// The version that brought record history.
pub(crate) const HISTORY_VERSION: i64 = 2;

/// The version that brought events as they are now.
pub(crate) const EVENTS_VERSION: i64 = 5;

/// The version that brought jobs.
pub(crate) const JOBS_VERSION: i64 = 4;

/// "MStr", in the header of every file of ours.
const APPLICATION_ID: i64 = 0x4d53_7472;

/// What the write-ahead log may keep of its largest size: more than it has in the usual course.
const WAL_BYTES_KEPT: &str = "67108864";

/// What makes each version out of the one before, the first out of nothing.
const STEPS: [&str; VERSION as usize] = [
    include_str!("sql/schema.sql"),
    include_str!("sql/schema_v2.sql"),
    include_str!("sql/schema_v3.sql"),
    include_str!("sql/schema_v4.sql"),
    include_str!("sql/schema_v5.sql"),
];

/// Between attempts to open a file that another process is just creating or recovering.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// Returns how every connection of a handle is opened.
pub(crate) fn connect_options(options: &SqliteOptions) -> SqliteConnectOptions {
    let connect = SqliteConnectOptions::new()
        .filename(&options.path)
        .busy_timeout(options.busy_timeout)
        .disable_statement_logging();
    if options.read_only {
        return connect.read_only(true).immutable(options.immutable);
    }
    connect
        .create_if_missing(options.create)
        .pragma("journal_size_limit", WAL_BYTES_KEPT)
        .pragma("wal_autocheckpoint", "0")
        .synchronous(match options.synchronous {
            Synchronous::Full => SqliteSynchronous::Full,
            Synchronous::Normal => SqliteSynchronous::Normal,
        })
}

/// Opens the first connection to the file; creates or migrates the tables where that is due. Returns
/// the version of the tables, too: a file that is open for reading alone keeps an older one.
///
/// Switching to write-ahead logging takes a lock that SQLite does not wait for, so a busy file is
/// tried again until the busy timeout is over.
pub(crate) async fn open(options: &mut SqliteOptions) -> Result<(SqliteConnection, i64)> {
    check_path(options)?;
    let deadline = Instant::now() + options.busy_timeout;
    loop {
        match try_open(options).await {
            Err(error) if error.kind() == ErrorKind::Busy && Instant::now() < deadline => {
                tokio::time::sleep(RETRY_DELAY).await;
            }
            // Where nothing may be written, not even shared memory can be made beside the file:
            // then nobody else writes it either, and it can be read as it is.
            Err(error)
                if options.read_only
                    && !options.immutable
                    && is_unwritable(&error)
                    && has_no_log(&options.path) =>
            {
                options.immutable = true;
            }
            result => return result.map_err(|error| name_path(advise(error, options), options)),
        }
    }
}

/// Whether everything committed is in the file itself, and nothing in a log beside it.
fn has_no_log(path: &Path) -> bool {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(log).map_or(true, |metadata| metadata.len() == 0)
}

fn is_unwritable(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::PermissionDenied)
}

/// Says what to do about a file that is there but cannot be opened for writing.
fn advise(error: Error, options: &SqliteOptions) -> Error {
    if !is_unwritable(&error) || options.read_only || !options.path.exists() {
        return error;
    }
    let advice = "the file cannot be written; with read_only=true it can be read";
    Error::new(ErrorKind::PermissionDenied, advice).with_source(error)
}

async fn try_open(options: &SqliteOptions) -> Result<(SqliteConnection, i64)> {
    let mut connect = connect_options(options);
    if is_fresh(&options.path) && !options.read_only {
        // Only here: on a file that has tables, setting this is a write of its own.
        connect = connect.page_size(4096).auto_vacuum(SqliteAutoVacuum::Incremental);
    }
    let mut connection = connect.connect().await.map_err(from_sqlx)?;
    let version = match inspect(&mut connection).await? {
        Found::Ours(version) if !(1..=VERSION).contains(&version) => {
            return Err(other_version(version));
        }
        Found::Ours(version) if version == VERSION || options.read_only => version,
        Found::Foreign => {
            return Err(config("the file is the database of another program"));
        }
        Found::Empty if options.read_only => {
            return Err(config("the file holds no store and may not be written"));
        }
        Found::Ours(_) | Found::Empty => {
            migrate(&mut connection).await?;
            VERSION
        }
    };
    if !options.read_only {
        use_wal(&mut connection).await?;
    }
    Ok((connection, version))
}

/// Whether there is no file yet, or an empty one.
fn is_fresh(path: &Path) -> bool {
    std::fs::metadata(path).map_or(true, |metadata| metadata.len() == 0)
}

enum Found {
    Empty,
    Ours(i64),
    Foreign,
}

async fn inspect(connection: &mut SqliteConnection) -> Result<Found> {
    let row = sqlx::query(
        "SELECT (SELECT application_id FROM pragma_application_id),
                (SELECT user_version FROM pragma_user_version),
                (SELECT count(*) FROM sqlite_schema)",
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)?;
    let number = |index: usize| row.try_get::<i64, _>(index).map_err(from_sqlx);
    Ok(match (number(0)?, number(1)?, number(2)?) {
        (0, 0, 0) => Found::Empty,
        (APPLICATION_ID, version, _) => Found::Ours(version),
        _ => Found::Foreign,
    })
}

/// Creates the tables or brings them up to this version, unless somebody else has just done so.
async fn migrate(connection: &mut SqliteConnection) -> Result<()> {
    use_wal(connection).await?;
    let mut transaction = begin(connection).await?;
    let migrated = migrate_in_transaction(&mut transaction).await;
    finish(transaction, migrated).await
}

async fn migrate_in_transaction(connection: &mut SqliteConnection) -> Result<()> {
    let version = match inspect(connection).await? {
        Found::Ours(version) if !(1..=VERSION).contains(&version) => {
            return Err(other_version(version));
        }
        Found::Ours(version) => version,
        Found::Foreign => return Err(config("the file is the database of another program")),
        Found::Empty => 0,
    };
    for step in STEPS.iter().skip(version as usize) {
        sqlx::raw_sql(*step).execute(&mut *connection).await.map_err(from_sqlx)?;
    }
    let stamp =
        format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};");
    sqlx::raw_sql(sqlx::AssertSqlSafe(stamp)).execute(connection).await.map_err(from_sqlx)?;
    Ok(())
}

async fn use_wal(connection: &mut SqliteConnection) -> Result<()> {
    let row = sqlx::query("PRAGMA journal_mode = WAL").fetch_one(connection).await;
    let mode: String = row.and_then(|row| row.try_get(0)).map_err(from_sqlx)?;
    if mode != "wal" {
        return Err(config("the file system cannot share memory, which write-ahead logging needs")
            .with_context("journal_mode", mode));
    }
    Ok(())
}

/// Begins a transaction that may write. Dropped, it is rolled back before anything else runs on
/// the connection, so that a task that ends early leaves nothing open.
pub(crate) async fn begin(connection: &mut SqliteConnection) -> Result<Transaction<'_, Sqlite>> {
    connection.begin_with("BEGIN IMMEDIATE").await.map_err(from_sqlx)
}

/// Commits if `result` is `Ok`, else rolls back and returns the error.
///
/// SQLite ends a transaction by itself when the disk is full or fails. The driver does not notice
/// and would begin no other one, so each end is made the same way: whatever is left of ours, or
/// an empty transaction that changes nothing, is rolled back through the driver.
pub(crate) async fn finish<T>(
    mut transaction: Transaction<'_, Sqlite>,
    result: Result<T>,
) -> Result<T> {
    let result = match result {
        Ok(value) => run(&mut transaction, "COMMIT").await.map(|()| value),
        Err(error) => Err(error),
    };
    // Refused while ours is still open: then that is rolled back.
    let _ = run(&mut transaction, "BEGIN").await;
    if let Err(error) = transaction.rollback().await {
        tracing::warn!(target: "storage", %error, "a transaction cannot be rolled back");
    }
    result
}

/// Returns the one number that a statement without parameters gives.
pub(crate) async fn number(connection: &mut SqliteConnection, sql: &'static str) -> Result<i64> {
    let row = sqlx::query(sql).fetch_one(connection).await;
    row.and_then(|row| row.try_get(0)).map_err(from_sqlx)
}

/// Runs a statement without parameters and rows.
pub(crate) async fn run(connection: &mut SqliteConnection, sql: &'static str) -> Result<()> {
    sqlx::query(sql).execute(connection).await.map(drop).map_err(from_sqlx)
}

fn check_path(options: &SqliteOptions) -> Result<()> {
    let path = &options.path;
    let must_exist = options.read_only || !options.create;
    let problem = if path.is_dir() {
        "a directory stands where the database file should be"
    } else if must_exist && !path.exists() {
        let error = Error::new(ErrorKind::NotFound, "the database file does not exist");
        return Err(name_path(error, options));
    } else if path.parent().is_some_and(|dir| !dir.as_os_str().is_empty() && !dir.is_dir()) {
        "the directory of the database file does not exist"
    } else {
        return Ok(());
    };
    Err(name_path(config(problem), options))
}

fn other_version(version: i64) -> Error {
    let problem = if version > VERSION {
        "the file was written by a newer version of this library; upgrade to open it"
    } else {
        "the file has a version that this library does not know"
    };
    Error::new(ErrorKind::VersionMismatch, problem)
        .with_context("file_version", version)
        .with_context("supported_version", VERSION)
}

fn name_path(error: Error, options: &SqliteOptions) -> Error {
    error.with_context("path", options.path.display())
}

fn config(message: &'static str) -> Error {
    Error::new(ErrorKind::Config, message)
}
