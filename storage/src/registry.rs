//! Which URL opens which backend: one line per scheme.

use std::sync::Arc;

use storage_core::{Error, ErrorKind, InMemory, Result, StorageBackend, Store};

use crate::{mirrors, rollups, tiers};

/// A URL scheme that the library knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheme {
    /// What the URL starts with, without `://`.
    pub name: &'static str,
    /// The Cargo feature that builds it in, if it takes one.
    pub feature: Option<&'static str>,
    /// Whether this build has it.
    pub built_in: bool,
}

const SCHEMES: &[Scheme] = &[
    scheme("memory", None, true),
    scheme("sqlite", Some("sqlite"), cfg!(feature = "sqlite")),
    scheme("postgres", Some("postgres"), cfg!(feature = "postgres")),
    scheme("postgresql", Some("postgres"), cfg!(feature = "postgres")),
    scheme("parquet", Some("parquet"), cfg!(feature = "parquet")),
    scheme("parquet+s3", Some("parquet-cloud"), cfg!(feature = "parquet-cloud")),
    scheme("parquet+gs", Some("parquet-cloud"), cfg!(feature = "parquet-cloud")),
    scheme("parquet+az", Some("parquet-cloud"), cfg!(feature = "parquet-cloud")),
    scheme("tiered", None, true),
    scheme("mirrored", None, true),
    scheme("rolled", None, true),
];

const fn scheme(name: &'static str, feature: Option<&'static str>, built_in: bool) -> Scheme {
    Scheme { name, feature, built_in }
}

/// Returns every scheme, built in or not.
pub fn schemes() -> &'static [Scheme] {
    SCHEMES
}

/// Opens the store at `url`, and creates it if it does not exist.
///
/// | URL | store |
/// |---|---|
/// | `memory://` | a new one in memory |
/// | `memory://NAME` | the one of that name in this process |
/// | `sqlite://metrics.db`, `sqlite:///var/lib/metrics.db?synchronous=normal` | a SQLite file |
/// | `postgres://user:password@host:5432/database?schema=storage` | a schema of a PostgreSQL database |
/// | `parquet://archive`, `parquet:///var/lib/archive?merge_samples=100000` | Parquet files in a directory |
/// | `parquet+s3://bucket/prefix`, `parquet+gs://...`, `parquet+az://...` | Parquet files in an object store |
/// | `tiered://?hot=URL&cold=URL` | two of them as one: see [`TierUrls`](crate::TierUrls) |
/// | `mirrored://?primary=URL&secondary=URL` | two of them with the same writes: see [`MirrorUrls`](crate::MirrorUrls) |
/// | `rolled://?samples=URL&widths=5m,1h,1d` | one of these with rollups beside it: see [`RollupUrls`](crate::RollupUrls) |
///
/// # Errors
/// `Config` if the scheme is unknown, its feature is not built in, or a parameter is unknown or
/// out of bounds; otherwise what the backend says when it opens the store.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage::Result<()> {
/// let store = storage::connect("memory://").await?;
/// assert_eq!(store.stats().await?.total_metrics, 0);
/// # Ok(()) }
/// ```
pub async fn connect(url: &str) -> Result<Arc<dyn StorageBackend>> {
    Ok(Arc::clone(open(url).await?.metrics()))
}

/// Opens the store at `url`, which must exist. Stores in memory always do.
///
/// # Errors
/// `NotFound` if there is none; otherwise as [`connect`].
pub async fn connect_existing(url: &str) -> Result<Arc<dyn StorageBackend>> {
    Ok(Arc::clone(open_existing(url).await?.metrics()))
}

/// Opens the store at `url` with everything that it holds: metrics, and record history, events and
/// jobs where the backend keeps them (memory, SQLite, PostgreSQL). Of `tiered://` they are those of the
/// hot tier, of `rolled://` those beside the samples; `mirrored://` has none, because metrics alone are
/// mirrored. Creates the store if it does not exist. The URLs are those of [`connect`].
///
/// # Errors
/// As [`connect`].
///
/// ```
/// use storage::RecordHistoryExt;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage::Result<()> {
/// let store = storage::open("memory://").await?;
/// let history = store.history()?;
/// history.store("accuracy::vienna", chrono::Utc::now(), &0.7).await?;
/// let newest = history.query_latest::<f64>("accuracy::*", 1).await?.into_values()?;
/// assert_eq!(newest, [0.7]);
/// store.close().await
/// # }
/// ```
pub async fn open(url: &str) -> Result<Store> {
    open_or_create(url, true).await
}

/// Opens the store at `url`, which must exist, with everything that it holds.
///
/// # Errors
/// `NotFound` if there is none; otherwise as [`connect`].
pub async fn open_existing(url: &str) -> Result<Store> {
    open_or_create(url, false).await
}

async fn open_or_create(url: &str, create: bool) -> Result<Store> {
    if url.starts_with("rolled:") {
        return rollups::open(url, create).await;
    }
    open_one_or_composed(url, create).await
}

/// Opens a store that may be made of two others.
pub(crate) async fn open_one_or_composed(url: &str, create: bool) -> Result<Store> {
    if url.starts_with("tiered:") {
        return tiers::open(url, create).await;
    }
    if url.starts_with("mirrored:") {
        // Only metrics are mirrored: what else there is would be in one of the two alone.
        return Ok(Store::of_metrics(mirrors::connect(url, create).await?));
    }
    open_one(url, create).await
}

/// Opens a store that is not made of others: of what lies there, the metrics.
pub(crate) async fn metrics_of(url: &str, create: bool) -> Result<Arc<dyn StorageBackend>> {
    Ok(Arc::clone(open_one(url, create).await?.metrics()))
}

/// Opens a store that is not made of others.
#[cfg_attr(
    not(any(feature = "sqlite", feature = "postgres", feature = "parquet")),
    expect(unused_variables, reason = "memory is always there")
)]
pub(crate) async fn open_one(url: &str, create: bool) -> Result<Store> {
    let Some((name, rest)) = url.split_once("://") else {
        return Err(config("a store URL looks like sqlite://metrics.db"));
    };
    match (name, find(name)?) {
        ("memory", _) => open_memory(rest),
        #[cfg(feature = "sqlite")]
        ("sqlite", _) => {
            let options = storage_sqlite::SqliteOptions::from_url(url)?;
            let options = if create { options } else { options.create(false) };
            Ok(storage_sqlite::SqliteBackend::open(options).await?.into())
        }
        #[cfg(feature = "postgres")]
        ("postgres" | "postgresql", _) => {
            let options = storage_postgres::PostgresOptions::from_url(url)?;
            let options = if create { options } else { options.create(false) };
            Ok(storage_postgres::PostgresBackend::open(options).await?.into())
        }
        #[cfg(feature = "parquet")]
        ("parquet" | "parquet+s3" | "parquet+gs" | "parquet+az", scheme) if scheme.built_in => {
            let options = storage_parquet::ParquetOptions::from_url(url)?;
            let options = if create { options } else { options.create(false) };
            let backend = storage_parquet::ParquetBackend::open(options).await?;
            Ok(Store::of_metrics(Arc::new(backend)))
        }
        ("tiered" | "mirrored" | "rolled", _) => {
            Err(config("this store cannot be a part of another"))
        }
        (_, scheme) => Err(not_built_in(scheme)),
    }
}

fn open_memory(name: &str) -> Result<Store> {
    if name.contains('?') {
        return Err(config("memory:// takes no parameters"));
    }
    Ok(if name.is_empty() { InMemory::new() } else { InMemory::open(name) }.into())
}

fn find(name: &str) -> Result<&'static Scheme> {
    schemes().iter().find(|scheme| scheme.name == name).ok_or_else(|| {
        let known: Vec<_> = schemes().iter().map(|scheme| scheme.name).collect();
        config("unknown URL scheme")
            .with_context("scheme", name)
            .with_context("known", known.join(" "))
    })
}

fn not_built_in(scheme: &Scheme) -> Error {
    config("this build has no backend for the URL; build with the feature")
        .with_context("scheme", scheme.name)
        .with_context("feature", scheme.feature.unwrap_or("none"))
}

fn config(message: &'static str) -> Error {
    Error::new(ErrorKind::Config, message).with_operation("connect")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refused(url: &str) -> Error {
        connect(url).await.err().expect("the URL must be refused")
    }

    #[tokio::test]
    async fn unknown_schemes_and_missing_features_are_named() {
        let error = refused("mysql://host/db").await;
        assert_eq!((error.kind(), error.context("scheme")), (ErrorKind::Config, Some("mysql")));
        #[cfg(not(feature = "postgres"))]
        {
            let error = refused("postgres://host/db").await;
            assert_eq!(error.context("feature"), Some("postgres"));
        }
        #[cfg(not(feature = "parquet-cloud"))]
        {
            let error = refused("parquet+s3://bucket/archive").await;
            assert_eq!(error.context("feature"), Some("parquet-cloud"));
        }
        assert_eq!(refused("metrics.db").await.kind(), ErrorKind::Config);
        assert_eq!(refused("memory://a?b=c").await.kind(), ErrorKind::Config);
    }

    #[tokio::test]
    async fn a_password_in_a_refused_url_is_not_shown() {
        let error = refused("postgres://user:secret@host.invalid/db").await;
        assert!(!format!("{error:#} {error:?}").contains("secret"));
    }

    #[cfg(feature = "sqlite")]
    #[tokio::test]
    async fn a_sqlite_url_makes_a_file_unless_it_must_exist() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/metrics.db", dir.path().display());
        let missing = connect_existing(&url).await.err().expect("there is no file yet");
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        assert_eq!(connect(&url).await.unwrap().name(), "sqlite");
        connect_existing(&url).await.unwrap();
        let store = open_existing(&url).await.unwrap();
        assert_eq!(store.history().unwrap().name(), "sqlite");
        assert_eq!(store.events().unwrap().name(), "sqlite");
        assert_eq!(store.jobs().unwrap().name(), "sqlite");
        let error = refused(&format!("{url}?synchronus=full")).await;
        assert_eq!(error.context("parameter"), Some("synchronus"));
    }

    #[cfg(feature = "parquet")]
    #[tokio::test]
    async fn a_parquet_url_makes_a_directory_unless_it_must_exist() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("parquet://{}/archive", dir.path().display());
        let missing = connect_existing(&url).await.err().expect("there is no store yet");
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        assert!(!dir.path().join("archive").exists());
        let no_history = open(&url).await.unwrap().history().err().unwrap();
        assert_eq!(no_history.kind(), ErrorKind::Unsupported);
        assert_eq!(connect(&url).await.unwrap().name(), "parquet");
        connect_existing(&url).await.unwrap();
        let error = refused(&format!("{url}?merge_sample=1")).await;
        assert_eq!(error.context("parameter"), Some("merge_sample"));
    }

    #[tokio::test]
    async fn what_is_no_metric_stays_in_the_store_below() {
        use storage_core::metrics::time::from_ms;
        use storage_core::{EventStoreExt, HistoryQuery, NewEvent, RecordHistoryExt};
        for url in [
            "tiered://?hot=memory://parts-a&cold=memory://parts-b",
            "rolled://?samples=memory://parts-a",
            "rolled://?samples=tiered://?hot=memory://parts-a%26cold=memory://parts-b",
        ] {
            let (store, below) =
                (open(url).await.unwrap(), open("memory://parts-a").await.unwrap());
            store.history().unwrap().store("a", from_ms(0), &url).await.unwrap();
            let found = below.history().unwrap().query(&HistoryQuery::parse("a").unwrap()).await;
            assert_eq!(found.unwrap().last().unwrap().value, url);
            let event = NewEvent::new("s", "Opened", url.into());
            store.events().unwrap().append_all(&[event]).await.unwrap();
            let last = below.events().unwrap().extent().await.unwrap().last;
            assert_eq!(last, store.events().unwrap().extent().await.unwrap().last);
            assert!(store.jobs().is_ok());
            store.close().await.unwrap();
            let closed = store.history().unwrap().store("a", from_ms(0), &1).await.unwrap_err();
            assert_eq!(closed.kind(), ErrorKind::Closed);
        }
        let mirrored = "mirrored://?primary=memory://parts-c&secondary=memory://parts-d";
        let error = open(mirrored).await.unwrap().history().err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
