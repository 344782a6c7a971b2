//! The section `storage`, and what is made of it: a store, a spool, the options of an actor.

use std::fmt::Display;
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use storage_core::compose::Tiered;
use storage_core::pipeline::{ActorOptions, Spool, SpoolLimits};
use storage_core::{Error, ErrorKind, Result, StorageBackend};

use super::age::Age;
use super::archive::ArchiveConfig;
use super::listen::ListenConfig;
use super::options::{
    BackendName, CollectConfig, ParquetConfig, PostgresConfig, SpoolConfig, SqliteConfig,
};
use super::retention::RetentionConfig;
use super::rollups::RollupsConfig;
use super::{Config, bad_value, without_secrets};
use crate::{TierUrls, connect};

/// What a record takes in memory, roughly and rather more.
const RECORD_BYTES: usize = 256;

/// Bytes that make a batch, records that are written at once, and bytes that a source may hold, however
/// small the batches are.
const FLUSH_BYTES_MIN: usize = 1 << 20;
const WRITE_RECORDS_MIN: usize = 10_000;
const MEMORY_BYTES_MIN: usize = 16 << 20;

/// Batches for which there is memory: one gathers, others are written or wait.
const BATCHES_HELD: usize = 4;

/// The section `storage`.
///
/// | key | default | |
/// |---|---|---|
/// | `backend` | `sqlite` | which of the sections below is used |
/// | `url` | | a URL as [`connect`] takes it, instead of `backend` |
/// | `path` | | the same as `sqlite.path` or `parquet.base_path` |
/// | `sqlite.path` | `metrics.db` | |
/// | `postgres.url`, `postgres.pool_size` | | |
/// | `parquet.base_path`, `parquet.batch_size` | `parquet`, 10,000 | |
/// | `buffer_size` | 1000 | records that make a batch; above 16,000 memory grows by a kibibyte for each |
/// | `flush_interval_secs` | 30 | how old a record gets before it is written |
/// | `shutdown_secs` | 30 | how long the end may take |
/// | `retention` | everything is kept | see [`RetentionConfig`] |
/// | `pruning_interval` | `1h` | how often old samples and rollups are removed |
/// | `rollups` | if any is given an age | which rollups are kept: see [`RollupsConfig`] |
/// | `rollup_interval` | `1m` | how often windows are rolled up |
/// | `rollup_delay` | `5m` | how long after its end a window is rolled up |
/// | `archive` | nothing is archived | see [`ArchiveConfig`] |
/// | `spool` | none | see [`SpoolConfig`] |
/// | `collect` | every second | see [`CollectConfig`] |
/// | `listen` | nowhere | see [`ListenConfig`] |
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StorageConfig {
    /// Which backend.
    pub backend: BackendName,
    /// A URL instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Where the file or the directory of the backend lies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// For `sqlite`.
    pub sqlite: SqliteConfig,
    /// For `postgres`.
    pub postgres: PostgresConfig,
    /// For `parquet`.
    pub parquet: ParquetConfig,
    /// How many records make a batch.
    pub buffer_size: usize,
    /// How old a record gets before it is written, in seconds.
    pub flush_interval_secs: u64,
    /// How long the end may take, in seconds.
    pub shutdown_secs: u64,
    /// How long what is kept.
    pub retention: RetentionConfig,
    /// How often old samples and rollups are removed.
    pub pruning_interval: Age,
    /// Which rollups are kept; without it those of 5 minutes, an hour and a day if one is given an age.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollups: Option<RollupsConfig>,
    /// How often windows are rolled up.
    pub rollup_interval: Age,
    /// How long after its end a window is rolled up.
    pub rollup_delay: Age,
    /// Which samples are moved to a cold store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveConfig>,
    /// Where records wait while the store is away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spool: Option<SpoolConfig>,
    /// What is measured of the machine itself.
    pub collect: CollectConfig,
    /// Where samples come in by sockets.
    pub listen: ListenConfig,
}

impl std::fmt::Debug for StorageConfig {
    /// Without what is in URLs: it may be a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Taken apart, so that none is forgotten.
        let Self {
            backend,
            url,
            path,
            sqlite,
            postgres,
            parquet,
            buffer_size,
            flush_interval_secs,
            shutdown_secs,
            retention,
            pruning_interval,
            rollups,
            rollup_interval,
            rollup_delay,
            archive,
            spool,
            collect,
            listen,
        } = self;
        f.debug_struct("StorageConfig")
            .field("backend", backend)
            .field("url", &url.as_deref().map(without_secrets))
            .field("path", &path.as_deref().map(without_secrets))
            .field("sqlite", sqlite)
            .field("postgres", postgres)
            .field("parquet", parquet)
            .field("buffer_size", buffer_size)
            .field("flush_interval_secs", flush_interval_secs)
            .field("shutdown_secs", shutdown_secs)
            .field("retention", retention)
            .field("pruning_interval", pruning_interval)
            .field("rollups", rollups)
            .field("rollup_interval", rollup_interval)
            .field("rollup_delay", rollup_delay)
            .field("archive", archive)
            .field("spool", spool)
            .field("collect", collect)
            .field("listen", listen)
            .finish()
    }
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            backend: BackendName::default(),
            url: None,
            path: None,
            sqlite: SqliteConfig::default(),
            postgres: PostgresConfig::default(),
            parquet: ParquetConfig::default(),
            buffer_size: 1000,
            flush_interval_secs: 30,
            shutdown_secs: 30,
            retention: RetentionConfig::default(),
            pruning_interval: Age(Duration::from_secs(3600)),
            rollups: None,
            rollup_interval: Age(Duration::from_secs(60)),
            rollup_delay: Age(Duration::from_secs(300)),
            archive: None,
            spool: None,
            collect: CollectConfig::default(),
            listen: ListenConfig::default(),
        }
    }
}

const SECONDS_MAX: u64 = 86_400;
const BATCH_MAX: usize = 1_000_000;

impl StorageConfig {
    /// One in which nothing is left out.
    pub(super) fn example() -> Self {
        Self {
            url: Some("sqlite://metrics.db".to_owned()),
            path: Some("metrics.db".to_owned()),
            postgres: PostgresConfig {
                url: "postgres://user@host/database".to_owned(),
                pool_size: Some(4),
            },
            retention: RetentionConfig::example(),
            rollups: Some(RollupsConfig::example()),
            archive: Some(ArchiveConfig::example()),
            spool: Some(SpoolConfig::default()),
            collect: CollectConfig { server: Some("web-1".to_owned()), ..Default::default() },
            listen: ListenConfig::example(),
            ..Self::default()
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        let batch = |size: usize| (1..=BATCH_MAX).contains(&size);
        let seconds = |seconds: u64| (1..=SECONDS_MAX).contains(&seconds);
        let table = [
            (batch(self.buffer_size), "storage.buffer_size", "1 to 1,000,000"),
            (batch(self.parquet.batch_size), "storage.parquet.batch_size", "1 to 1,000,000"),
            (seconds(self.flush_interval_secs), "storage.flush_interval_secs", "1 to 86,400"),
            (seconds(self.shutdown_secs), "storage.shutdown_secs", "1 to 86,400"),
            (
                self.pruning_interval.0 >= Duration::from_secs(1),
                "storage.pruning_interval",
                "a second or more",
            ),
            (
                self.rollup_interval.0 >= Duration::from_secs(1),
                "storage.rollup_interval",
                "a second or more",
            ),
            (
                self.collect.interval.0 >= Duration::from_millis(200),
                "storage.collect.interval",
                "200ms or more",
            ),
            (
                self.spool
                    .as_ref()
                    .is_none_or(|spool| spool.records_max > 0 && spool.bytes_max > 0),
                "storage.spool",
                "bounds above 0",
            ),
        ];
        if let Some((_, key, expected)) = table.into_iter().find(|(is_right, ..)| !is_right) {
            return Err(bad_value(key, expected));
        }
        self.listen.validate()?;
        self.check_rollups()?;
        if let Some(archive) = &self.archive {
            archive.validate(self)?;
        }
        self.url().map(drop)
    }

    /// The URL of the store, as [`connect`] takes it: that of both tiers where samples are archived. It holds
    /// secrets as they are.
    ///
    /// # Errors
    /// As [`hot_url`](Self::hot_url); `Config` if it is not known where samples are to be archived, or what
    /// archiving has to remember cannot stand beside the store.
    pub fn url(&self) -> Result<String> {
        match self.tier_urls()? {
            Some(urls) => Ok(urls.to_url()),
            None => self.own_url(),
        }
    }

    /// The URL of the store that takes the writes: that of the hot tier where samples are archived.
    ///
    /// # Errors
    /// `Config` if `backend` is `postgres` and its URL is missing or none, or `path` is given for
    /// a backend without one; if samples are archived, as [`url`](Self::url).
    pub fn hot_url(&self) -> Result<String> {
        match self.tier_urls()? {
            Some(urls) => Ok(urls.hot),
            None => self.own_url(),
        }
    }

    /// The tiers; `None` where nothing is archived.
    fn tier_urls(&self) -> Result<Option<TierUrls>> {
        self.archive.as_ref().map(|archive| archive.urls(&self.own_url()?)).transpose()
    }

    /// The URL that is configured, whatever is beside that store.
    fn own_url(&self) -> Result<String> {
        if let Some(url) = &self.url {
            return Ok(url.clone());
        }
        let path = self.path.as_deref();
        Ok(match self.backend {
            BackendName::Sqlite => {
                format!("sqlite://{}", escaped(path.unwrap_or(&self.sqlite.path)))
            }
            BackendName::Parquet => {
                let base = path.unwrap_or(&self.parquet.base_path);
                match base.split_once("://") {
                    Some(_) if base.starts_with("parquet") => base.to_owned(),
                    Some(_) => format!("parquet+{base}"),
                    None => format!("parquet://{}", escaped(base)),
                }
            }
            BackendName::Postgres if path.is_some() => {
                return Err(bad_value("storage.path", "nothing: a server has no path"));
            }
            BackendName::Postgres => self.postgres_url()?,
            BackendName::Memory => "memory://".to_owned(),
        })
    }

    fn postgres_url(&self) -> Result<String> {
        let PostgresConfig { url, pool_size } = &self.postgres;
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(bad_value("storage.postgres.url", "postgres://user@host/database"));
        }
        let Some(pool_size) = pool_size.filter(|_| !url.contains("pool_size=")) else {
            return Ok(url.clone());
        };
        let separator = if url.contains('?') { '&' } else { '?' };
        Ok(format!("{url}{separator}pool_size={pool_size}"))
    }

    /// The options of a [`StorageActor`](storage_core::pipeline::StorageActor).
    pub fn actor_options(&self) -> ActorOptions {
        let is_parquet = match &self.url {
            Some(url) => url.starts_with("parquet"),
            None => self.backend == BackendName::Parquet,
        };
        let batch = if is_parquet { self.parquet.batch_size } else { self.buffer_size };
        let flush_bytes = (batch * RECORD_BYTES).max(FLUSH_BYTES_MIN);
        ActorOptions::default()
            .with_flush_records(batch)
            .with_flush_bytes(flush_bytes)
            .with_write_records_max(batch.max(WRITE_RECORDS_MIN))
            .with_memory_bytes_max((flush_bytes * BATCHES_HELD).max(MEMORY_BYTES_MIN))
            .with_flush_interval(Duration::from_secs(self.flush_interval_secs))
    }

    /// Opens the store, and makes it and its directory if they do not exist.
    ///
    /// # Errors
    /// As [`connect`]; `Io` or `PermissionDenied` if the directory cannot be made.
    pub async fn connect(&self) -> Result<Arc<dyn StorageBackend>> {
        self.make_directory()?;
        connect(&self.url()?).await
    }

    /// Opens both tiers, and makes what does not exist; `None` where nothing is archived.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_tiered(&self) -> Result<Option<Arc<Tiered>>> {
        let Some(urls) = self.tier_urls()? else { return Ok(None) };
        self.make_directory()?;
        Ok(Some(Arc::new(urls.open(true).await?)))
    }

    fn make_directory(&self) -> Result<()> {
        if self.url.is_none() && self.backend == BackendName::Sqlite {
            make_directory_of(self.path.as_deref().unwrap_or(&self.sqlite.path))?;
        }
        Ok(())
    }

    /// Opens the spool if there is to be one.
    ///
    /// # Errors
    /// As [`connect`](Self::connect) and [`Spool::open`]; `Config` if this build has no SQLite; `Busy`
    /// if another process uses the spool, which the locked file `<path>.lock` beside it tells.
    pub async fn open_spool(&self) -> Result<Option<Spool>> {
        let Some(spool) = &self.spool else { return Ok(None) };
        make_directory_of(&spool.path)?;
        let lock = lock_spool(&spool.path)?;
        let store = connect(&format!("sqlite://{}", escaped(&spool.path))).await?;
        let limits = SpoolLimits::default()
            .with_records_max(spool.records_max)
            .with_bytes_max(spool.bytes_max);
        Spool::open_guarded(store, limits, lock).await.map(Some)
    }
}

impl Config {
    /// The URL of the store; see [`StorageConfig::url`].
    ///
    /// # Errors
    /// As there.
    pub fn url(&self) -> Result<String> {
        self.storage.url()
    }
}

/// Keeps other processes from the spool: two that write into one would replace each other's batches.
fn lock_spool(path: &str) -> Result<File> {
    let lock = format!("{path}.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&lock);
    let file =
        file.map_err(|error| at_path(error, "the lock of the spool cannot be made", &lock))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::new(ErrorKind::Busy, "another process uses the spool; give each its own")
                .with_context("path", path))
        }
        Err(TryLockError::Error(error)) => Err(at_path(error, "the spool cannot be locked", &lock)),
    }
}

/// What has a meaning in a URL stands for itself in a path.
fn escaped(path: &str) -> String {
    path.replace('%', "%25").replace('?', "%3F")
}

fn make_directory_of(path: &str) -> Result<()> {
    let Some(directory) = Path::new(path).parent() else { return Ok(()) };
    std::fs::create_dir_all(directory)
        .map_err(|error| at_path(error, "a directory cannot be made", &directory.display()))
}

fn at_path(error: std::io::Error, problem: &'static str, path: &dyn Display) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        _ => ErrorKind::Io,
    };
    Error::new(kind, problem)
        .with_operation("connect")
        .with_context("path", path)
        .with_source(error)
}
