//! Opening a schema: what it must be, creating and migrating the tables.
//!
//! The row of `state` says that a schema is ours, and which version. Nothing is changed in a
//! schema before both are known to be right. Whoever creates or migrates holds a lock, because
//! `CREATE TABLE IF NOT EXISTS` alone races.

use storage_core::{Error, ErrorKind, Result};

use crate::commit::gone;
use crate::config::{PostgresOptions, UseTimescale, config};
use crate::connect::{Connection, Server};
use crate::convert::MetadataColumn;
use crate::error::{READ_ONLY, from_pg, sqlstate};
use crate::timescale::{self, Extension};

/// The version of the tables that this library writes.
pub(crate) const VERSION: i32 = 4;

/// The version that brought record history.
pub(crate) const HISTORY_VERSION: i32 = 2;

/// The version that brought events.
pub(crate) const EVENTS_VERSION: i32 = 3;

/// The version that brought jobs.
pub(crate) const JOBS_VERSION: i32 = 4;

/// The oldest server that has every function which is called, such as `date_bin`.
const SERVER_VERSION_MIN: i32 = 140_000;

const TABLES: &str = include_str!("sql/schema_v1.sql");
const SAMPLES: &str = include_str!("sql/samples_plain.sql");
const VIEWS: &str = include_str!("sql/views.sql");

/// What makes each version out of the one before, from the second on.
const STEPS: [&str; VERSION as usize - 1] = [
    include_str!("sql/schema_v2.sql"),
    include_str!("sql/schema_v3.sql"),
    include_str!("sql/schema_v4.sql"),
];

/// Advisory locks: one number says what for, the other which schema.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Locks(i32);

/// Shared by who writes, held alone by who prunes or replaces.
const WRITERS: i32 = 0x5354_4f57;
/// Held by who changes tables: migrates, adds or drops partitions. Always taken after that of the
/// writers.
const TABLES_LOCK: i32 = 0x5354_4f54;

impl Locks {
    /// The same for every process and version: FNV-1a of the schema's name.
    pub(crate) fn of(schema: &str) -> Self {
        let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        Self(schema.bytes().fold(0x811c_9dc5, step).cast_signed())
    }

    /// Begins a transaction that writes beside others; gives the generation and which table that
    /// comes from.
    pub(crate) fn begin_shared(self) -> String {
        self.begin("pg_advisory_xact_lock_shared")
    }

    /// Begins a transaction beside which nobody writes; gives the same.
    pub(crate) fn begin_alone(self) -> String {
        self.begin("pg_advisory_xact_lock")
    }

    fn begin(self, lock: &str) -> String {
        format!(
            "BEGIN; SELECT {lock}({WRITERS}, {}); SELECT generation, tableoid FROM state",
            self.0
        )
    }

    /// Keeps others from changing tables until the end of the transaction.
    pub(crate) fn tables(self) -> String {
        format!("SELECT pg_advisory_xact_lock({TABLES_LOCK}, {})", self.0)
    }
}

/// What a schema turned out to be.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Whether TimescaleDB keeps the samples.
    pub(crate) hypertable: bool,
    pub(crate) metadata: MetadataColumn,
    /// TimescaleDB, where it is there.
    pub(crate) extension: Option<Extension>,
    pub(crate) server_version: i32,
    /// The version of the tables: a store of an older version that may not be written keeps it, and
    /// lacks what came later.
    pub(crate) version: i32,
}

/// Connects, looks at the schema, and creates or migrates it where that is due.
pub(crate) async fn open(server: &Server, options: &PostgresOptions) -> Result<Opened> {
    let connection = server.connect().await?;
    let opened = server.in_time(open_on(&connection, options)).await;
    opened.map_err(|error| error.with_context("schema", &options.schema))
}

async fn open_on(connection: &Connection, options: &PostgresOptions) -> Result<Opened> {
    let row = connection
        .query_one(
            "SELECT current_setting('server_encoding'),
                    current_setting('server_version_num')::integer",
            &[],
        )
        .await
        .map_err(from_pg)?;
    let server_version = row.try_get(1).map_err(from_pg)?;
    check_server(server_version)?;
    let encoding: String = row.try_get(0).map_err(from_pg)?;
    if encoding != "UTF8" {
        return Err(
            config("the database must have the encoding UTF8").with_context("encoding", encoding)
        );
    }
    let extension = timescale::probe(connection).await?;
    let mut found_version = VERSION;
    let hypertable = match inspect(connection, options).await? {
        Found::Ours { hypertable, version: VERSION } => hypertable,
        Found::Ours { hypertable, version } => {
            match migrate(connection, options).await {
                // What it holds can be read all the same.
                Err(error) if may_not_write(&error) => {
                    tracing::warn!(target: "storage", %error, "an older store cannot be migrated");
                    found_version = version;
                }
                migrated => migrated?,
            }
            hypertable
        }
        Found::Nothing if !options.create => {
            return Err(Error::new(ErrorKind::NotFound, "there is no store in the schema"));
        }
        Found::Nothing => create(connection, options, extension.as_ref()).await?,
    };
    if hypertable && extension.is_none() {
        return Err(config("the store needs TimescaleDB, which the database no longer has"));
    }
    let metadata = match hypertable {
        true => metadata_column(connection, options).await?,
        false => MetadataColumn::Jsonb,
    };
    Ok(Opened { hypertable, metadata, extension, server_version, version: found_version })
}

/// # Errors
/// `Config` for a server that is too old: questions would fail late, one by one.
fn check_server(version: i32) -> Result<()> {
    match version >= SERVER_VERSION_MIN {
        true => Ok(()),
        false => Err(config("the server is too old: PostgreSQL 14 or later is needed")
            .with_context("server_version", version)),
    }
}

/// Hypertables of earlier builds keep metadata as `jsonb`.
async fn metadata_column(
    connection: &Connection,
    options: &PostgresOptions,
) -> Result<MetadataColumn> {
    let sql = "SELECT a.atttypid = 'jsonb'::regtype FROM pg_attribute a
        JOIN pg_class c ON c.oid = a.attrelid AND c.relname = 'samples'
        WHERE c.relnamespace = to_regnamespace($1) AND a.attname = 'metadata'";
    let row = connection.query_opt(sql, &[&options.schema]).await.map_err(from_pg)?;
    match row.ok_or_else(gone)?.try_get(0).map_err(from_pg)? {
        true => Ok(MetadataColumn::Jsonb),
        false => Ok(MetadataColumn::Text),
    }
}

enum Found {
    Nothing,
    Ours { hypertable: bool, version: i32 },
}

async fn inspect(connection: &Connection, options: &PostgresOptions) -> Result<Found> {
    let row = connection
        .query_one(
            "SELECT count(*) FILTER (WHERE relname = 'state'), count(*)
             FROM pg_class WHERE relnamespace = to_regnamespace($1)",
            &[&options.schema],
        )
        .await
        .map_err(from_pg)?;
    let count = |index| row.try_get::<_, i64>(index).map_err(from_pg);
    match (count(0)?, count(1)?) {
        (0, 0) => return Ok(Found::Nothing),
        (0, _) => return Err(config("the schema holds tables of another program")),
        _ => {}
    }
    // With the schema, or whoever may not use it would find that there is no such table.
    let sql = format!("SELECT version, hypertable FROM \"{}\".state", options.schema);
    let state = connection.query_opt(&sql, &[]).await;
    let row = match state.map_err(from_pg) {
        // Another program has a table of that name, too.
        Err(error) if matches!(sqlstate(&error), Some("42703" | "42883")) => None,
        row => row?,
    };
    let row = row.ok_or_else(|| config("the schema holds tables of another program"))?;
    let version: i32 = row.try_get(0).map_err(from_pg)?;
    if !(1..=VERSION).contains(&version) {
        return Err(other_version(version));
    }
    Ok(Found::Ours { hypertable: row.try_get(1).map_err(from_pg)?, version })
}

/// Creates the tables, unless somebody else has just done so.
async fn create(
    connection: &Connection,
    options: &PostgresOptions,
    extension: Option<&Extension>,
) -> Result<bool> {
    begin(connection, options).await?;
    let created = create_in_transaction(connection, options, extension).await;
    end(connection, created).await
}

/// Begins a transaction beside which nobody changes tables.
async fn begin(connection: &Connection, options: &PostgresOptions) -> Result<()> {
    let begin = format!("BEGIN; {}", Locks::of(&options.schema).tables());
    connection.batch_execute(&begin).await.map_err(from_pg)
}

async fn end<T>(connection: &Connection, done: Result<T>) -> Result<T> {
    let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
    let ended = connection.batch_execute(end).await.map_err(from_pg);
    done.and_then(|value| ended.map(|()| value))
}

/// Brings the tables up to this version, unless somebody else has just done so.
async fn migrate(connection: &Connection, options: &PostgresOptions) -> Result<()> {
    begin(connection, options).await?;
    let migrated = migrate_in_transaction(connection, options).await;
    end(connection, migrated).await
}

async fn migrate_in_transaction(connection: &Connection, options: &PostgresOptions) -> Result<()> {
    let Found::Ours { version, .. } = inspect(connection, options).await? else {
        return Err(Error::new(ErrorKind::NotFound, "the tables of the store are gone"));
    };
    let steps = STEPS.iter().skip(usize::try_from(version - 1).unwrap_or_default());
    for step in steps {
        connection.batch_execute(step).await.map_err(from_pg)?;
    }
    let set = format!("UPDATE state SET version = {VERSION}");
    connection.batch_execute(&set).await.map_err(from_pg)
}

async fn create_in_transaction(
    connection: &Connection,
    options: &PostgresOptions,
    extension: Option<&Extension>,
) -> Result<bool> {
    if let Found::Ours { hypertable, .. } = inspect(connection, options).await? {
        return Ok(hypertable);
    }
    let extension = extension.filter(|_| options.use_timescale == UseTimescale::Auto);
    let samples = match extension {
        Some(extension) => extension.create_samples(),
        None => SAMPLES.to_owned(),
    };
    // One who may not create schemas may still fill one that was made for him.
    let exists = connection
        .query_one("SELECT to_regnamespace($1) IS NOT NULL", &[&options.schema])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(from_pg)?;
    let schema = match exists {
        true => String::new(),
        false => format!("CREATE SCHEMA \"{}\";", options.schema),
    };
    let hypertable = extension.is_some();
    let state = format!("INSERT INTO state (version, hypertable) VALUES ({VERSION}, {hypertable})");
    connection
        .batch_execute(&format!("{schema}{TABLES}{samples}{VIEWS}{}{state}", STEPS.concat()))
        .await
        .map_err(from_pg)?;
    Ok(hypertable)
}

/// Whether it is for the role or the server that nothing can be changed.
fn may_not_write(error: &Error) -> bool {
    error.kind() == ErrorKind::PermissionDenied || sqlstate(error) == Some(READ_ONLY)
}

fn other_version(version: i32) -> Error {
    let problem = if version > VERSION {
        "the store was written by a newer version of this library; upgrade to open it"
    } else {
        "the store has a version that this library does not know"
    };
    Error::new(ErrorKind::VersionMismatch, problem)
        .with_context("store_version", version)
        .with_context("supported_version", VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_the_same_in_every_process_and_differ_by_schema() {
        assert_eq!(Locks::of("").0, 0x811c_9dc5_u32.cast_signed());
        assert_eq!(Locks::of("a").0, 0xe40c_292c_u32.cast_signed());
        assert_ne!(Locks::of("storage").0, Locks::of("storage2").0);
    }

    #[test]
    fn servers_that_lack_functions_are_refused() {
        for version in [140_000, 150_012, 170_002] {
            check_server(version).unwrap();
        }
        let error = check_server(130_022).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert_eq!(error.context("server_version"), Some("130022"));
    }
}
