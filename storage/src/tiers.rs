//! Tiers by URL: `tiered://?hot=URL&cold=URL`, and where their control store is.

use std::sync::Arc;

use storage_core::compose::Tiered;
use storage_core::{Result, Store};

use crate::beside::{beside, config, parameters};
use crate::registry::{metrics_of, open_one};

/// What is added to the name of the hot store for the control store beside it.
const SUFFIX: &str = "tiers";

/// The URLs of two tiers and their control store.
///
/// The control store has to be the same for all that use the tiers. Without one it stands beside
/// the hot store:
///
/// | hot store | control store |
/// |---|---|
/// | `sqlite://metrics.db` | `sqlite://metrics.db.tiers` |
/// | `postgres://db/app?schema=edge` | `postgres://db/app?schema=edge_tiers` |
/// | `parquet://archive` | `parquet://archive.tiers` |
/// | `memory://name` | `memory://name.tiers` |
///
/// ```
/// use storage::TierUrls;
///
/// let urls = TierUrls::parse("tiered://?hot=sqlite://metrics.db&cold=parquet://archive")?;
/// assert_eq!(urls, TierUrls::new("sqlite://metrics.db", "parquet://archive")?);
/// assert_eq!(urls.control, "sqlite://metrics.db.tiers");
/// # Ok::<(), storage::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct TierUrls {
    /// The tier that takes writes.
    pub hot: String,
    /// The tier that keeps what was archived.
    pub cold: String,
    /// Where it stands what is moved between them, and by whom.
    pub control: String,
}

impl std::fmt::Debug for TierUrls {
    /// Without the URLs: they may hold passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TierUrls").finish_non_exhaustive()
    }
}

impl TierUrls {
    /// Tiers whose control store stands beside the hot one.
    ///
    /// # Errors
    /// `Config` if `hot` is no URL of a kind that is known here.
    pub fn new(hot: &str, cold: &str) -> Result<Self> {
        Ok(Self { hot: hot.to_owned(), cold: cold.to_owned(), control: beside(hot, SUFFIX)? })
    }

    /// Uses another control store.
    #[must_use]
    pub fn with_control(mut self, control: &str) -> Self {
        control.clone_into(&mut self.control);
        self
    }

    /// Parses `tiered://?hot=URL&cold=URL&control=URL`, the last one optional.
    ///
    /// In each URL `%` and two hexadecimal digits stand for a byte; `&` is written `%26`, and `%`
    /// itself `%25`.
    ///
    /// # Errors
    /// `Config` if a tier is missing, a name unknown or given twice.
    pub fn parse(url: &str) -> Result<Self> {
        let query = url.strip_prefix("tiered://?").ok_or_else(|| {
            config("a URL of tiers looks like tiered://?hot=sqlite://metrics.db&cold=parquet://archive")
        })?;
        let [hot, cold, control] = parameters(query, ["hot", "cold", "control"])?;
        let (Some(hot), Some(cold)) = (hot, cold) else {
            return Err(config("tiers need hot=URL and cold=URL"));
        };
        let urls = match control {
            Some(control) => Self { hot, cold, control },
            None => Self::new(&hot, &cold)?,
        };
        // A nameless store in memory is a new one each time.
        let same = |one: &str, other: &str| one == other && one != "memory://";
        if same(&urls.hot, &urls.cold)
            || same(&urls.control, &urls.hot)
            || same(&urls.control, &urls.cold)
        {
            return Err(config("hot, cold and control must be three different stores"));
        }
        Ok(urls)
    }

    /// Writes what [`parse`](Self::parse) reads. It holds secrets as they are.
    ///
    /// ```
    /// use storage::TierUrls;
    ///
    /// let urls = TierUrls::new("sqlite://m.db?readers=2&synchronous=full", "parquet://archive")?;
    /// assert_eq!(TierUrls::parse(&urls.to_url())?, urls);
    /// # Ok::<(), storage::Error>(())
    /// ```
    pub fn to_url(&self) -> String {
        let written = |url: &str| url.replace('%', "%25").replace('&', "%26");
        let [hot, cold, control] = [&self.hot, &self.cold, &self.control].map(|url| written(url));
        format!("tiered://?hot={hot}&cold={cold}&control={control}")
    }

    /// Opens the tiers, and creates those that do not exist if `create` is set; the control store
    /// is created in any case.
    ///
    /// # Errors
    /// `NotFound` if a tier does not exist; otherwise those of the three stores.
    pub async fn open(&self, create: bool) -> Result<Tiered> {
        Ok(self.open_with_hot(create).await?.0)
    }

    /// Opens the tiers, with everything that the hot one holds.
    async fn open_with_hot(&self, create: bool) -> Result<(Tiered, Store)> {
        let hot = open_one(&self.hot, create).await?;
        let cold = metrics_of(&self.cold, create).await?;
        let control = metrics_of(&self.control, true).await?;
        let tiered = Tiered::open(Arc::clone(hot.metrics()), cold, control).await?;
        Ok((tiered, hot))
    }
}

/// Opens tiers by their URL. What is no metric stays in the hot one.
pub(crate) async fn open(url: &str, create: bool) -> Result<Store> {
    let (tiered, hot) = TierUrls::parse(url)?.open_with_hot(create).await?;
    Ok(hot.with_metrics(Arc::new(tiered)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage_core::{ErrorKind, MetricRecord, TimeRange};

    #[test]
    fn the_control_store_stands_beside_the_hot_one() {
        for (hot, expected) in [
            ("sqlite:///var/m.db?readers=2", "sqlite:///var/m.db.tiers"),
            ("postgres://me:pw@db/app", "postgres://me:pw@db/app?schema=storage_tiers"),
            (
                "postgres://db/app?schema=edge&sslmode=require",
                "postgres://db/app?sslmode=require&schema=edge_tiers",
            ),
            ("parquet:///var/lake/?merge_samples=5", "parquet:///var/lake.tiers"),
            ("parquet+s3://b/p?aws_region=x", "parquet+s3://b/p.tiers?aws_region=x"),
            ("memory://a", "memory://a.tiers"),
        ] {
            assert_eq!(TierUrls::new(hot, "memory://").unwrap().control, expected);
        }
        assert!(TierUrls::new("tiered://?hot=a", "b").is_err() && TierUrls::new("a", "b").is_err());
    }

    #[test]
    fn urls_within_the_url_are_decoded() {
        let urls = TierUrls::parse(
            "tiered://?cold=parquet://a%2525b&hot=sqlite://m.db?readers=2%26synchronous=normal&control=memory://x",
        )
        .unwrap();
        assert_eq!(urls.hot, "sqlite://m.db?readers=2&synchronous=normal");
        assert_eq!((&*urls.cold, &*urls.control), ("parquet://a%25b", "memory://x"));
        for bad in [
            "tiered://",
            "tiered://?hot=memory://a",
            "tiered://?hot=memory://a&cold=memory://a",
            "tiered://?hot=memory://a&cold=memory://b&control=memory://b",
            "tiered://?hot=memory://a&hot=memory://b&cold=memory://c",
            "tiered://?hot=sqlite://m.db?readers=2&synchronous=full&cold=memory://b",
            "tiered://?hot=memory://%ff&cold=memory://b",
        ] {
            assert_eq!(TierUrls::parse(bad).unwrap_err().kind(), ErrorKind::Config, "{bad}");
        }
    }

    #[tokio::test]
    async fn tiers_are_connected_by_url() {
        let url = "tiered://?hot=memory://tiers-hot&cold=memory://tiers-cold";
        let (store, other) =
            (crate::connect(url).await.unwrap(), crate::connect_existing(url).await.unwrap());
        let record = MetricRecord::new("a", chrono::Utc::now(), "b", 1.0);
        store.write_batch(&[record]).await.unwrap();
        assert_eq!(other.query_range("a", "b", TimeRange::all()).await.unwrap().len(), 1);
        assert_eq!(store.name(), "memory");
    }
}
