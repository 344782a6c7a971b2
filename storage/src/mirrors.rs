//! Mirrors by URL: `mirrored://?primary=URL&secondary=URL`.

use std::sync::Arc;

use storage_core::compose::{MirrorPolicy, Mirrored};
use storage_core::layers::Deferred;
use storage_core::{Result, StorageBackend};

use crate::beside::{config, parameters};
use crate::registry::metrics_of;

/// The URLs of two stores that take the same writes.
///
/// ```
/// use storage::MirrorUrls;
/// use storage::compose::MirrorPolicy;
///
/// let urls = MirrorUrls::parse("mirrored://?primary=sqlite://a.db&secondary=sqlite:///backup/b.db")?;
/// assert_eq!(urls.primary, "sqlite://a.db");
/// assert_eq!(urls.policy, MirrorPolicy::Require);
/// # Ok::<(), storage::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct MirrorUrls {
    /// The store that answers.
    pub primary: String,
    /// The store that follows.
    pub secondary: String,
    /// What becomes of a write that the secondary does not take.
    pub policy: MirrorPolicy,
}

impl std::fmt::Debug for MirrorUrls {
    /// Without the URLs: they may hold passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MirrorUrls").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl MirrorUrls {
    /// Parses `mirrored://?primary=URL&secondary=URL&policy=require`. The policy is `require`, if it is
    /// not said, or `degrade`.
    ///
    /// In each URL `%` and two hexadecimal digits stand for a byte; `&` is written `%26`, and `%`
    /// itself `%25`.
    ///
    /// # Errors
    /// `Config` if a store is missing, both are the same, a name is unknown or given twice, or there
    /// is no such policy.
    pub fn parse(url: &str) -> Result<Self> {
        let wrong =
            "a URL of mirrors looks like mirrored://?primary=sqlite://a.db&secondary=sqlite://b.db";
        let query = url.strip_prefix("mirrored://?").ok_or_else(|| config(wrong))?;
        let [primary, secondary, policy] = parameters(query, ["primary", "secondary", "policy"])?;
        let (Some(primary), Some(secondary)) = (primary, secondary) else {
            return Err(config("mirrors need primary=URL and secondary=URL"));
        };
        // A nameless store in memory is a new one each time.
        if primary == secondary && primary != "memory://" {
            return Err(config("primary and secondary must be two different stores"));
        }
        let policy = match policy.as_deref() {
            None | Some("require") => MirrorPolicy::Require,
            Some("degrade") => MirrorPolicy::Degrade,
            Some(policy) => {
                return Err(config("the policy of mirrors is require or degrade")
                    .with_context("policy", policy));
            }
        };
        Ok(Self { primary, secondary, policy })
    }

    /// Opens both stores, and creates those that do not exist if `create` is set.
    ///
    /// With the policy `degrade` a secondary that is away for a passing reason is opened
    /// [later](Deferred), and writes until then are counted as missed.
    ///
    /// # Errors
    /// `NotFound` if a store does not exist; otherwise those of both.
    pub async fn open(&self, create: bool) -> Result<Mirrored> {
        let primary = metrics_of(&self.primary, create).await?;
        let secondary: Arc<dyn StorageBackend> = match self.policy {
            MirrorPolicy::Require => metrics_of(&self.secondary, create).await?,
            MirrorPolicy::Degrade => {
                let url = self.secondary.clone();
                let open = move || {
                    let url = url.clone();
                    async move { metrics_of(&url, create).await }
                };
                Arc::new(Deferred::open(open).await?)
            }
        };
        Ok(Mirrored::new(primary, secondary, self.policy))
    }
}

/// Opens mirrors by their URL.
pub(crate) async fn connect(url: &str, create: bool) -> Result<Arc<dyn StorageBackend>> {
    Ok(Arc::new(MirrorUrls::parse(url)?.open(create).await?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage_core::{ErrorKind, MetricRecord};

    #[test]
    fn stores_and_policy_are_read() {
        let read = MirrorUrls::parse;
        let urls = read(
            "mirrored://?policy=degrade&secondary=sqlite://b.db?readers=2%26synchronous=normal&primary=memory://a",
        )
        .unwrap();
        assert_eq!((&*urls.primary, urls.policy), ("memory://a", MirrorPolicy::Degrade));
        assert_eq!(urls.secondary, "sqlite://b.db?readers=2&synchronous=normal");
        assert!(read("mirrored://?primary=memory://&secondary=memory://").is_ok());
        for bad in [
            "mirrored://",
            "mirrored://?primary=memory://a",
            "mirrored://?secondary=memory://a",
            "mirrored://?primary=memory://a&secondary=memory://a",
            "mirrored://?primary=memory://a&secondary=memory://b&policy=maybe",
            "mirrored://?primary=memory://a&secondary=memory://b&third=memory://c",
            "mirrored://?primary=memory://a&primary=memory://b&secondary=memory://c",
        ] {
            assert_eq!(read(bad).unwrap_err().kind(), ErrorKind::Config, "{bad}");
        }
        let secret = "mirrored://?primary=postgres://a:hush@h/d&secondary=memory://b";
        assert!(!format!("{:?}", read(secret).unwrap()).contains("hush"));
    }

    #[tokio::test]
    async fn what_is_written_is_in_both() {
        let url = "mirrored://?primary=memory://mirror-a&secondary=memory://mirror-b";
        let store = crate::connect(url).await.unwrap();
        let record = MetricRecord::new("a", chrono::Utc::now(), "b", 1.0);
        store.write_batch(&[record]).await.unwrap();
        for side in ["memory://mirror-a", "memory://mirror-b", url] {
            let found = crate::connect_existing(side).await.unwrap();
            assert_eq!(found.stats().await.unwrap().total_metrics, 1, "{side}");
        }
        assert_eq!(store.name(), "memory");
        let nested = "mirrored://?primary=tiered://?hot=memory://&secondary=memory://b";
        assert_eq!(crate::connect(nested).await.err().unwrap().kind(), ErrorKind::Config);
    }

    #[cfg(feature = "sqlite")]
    #[tokio::test]
    async fn both_must_exist_where_nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| format!("sqlite://{}/{name}", dir.path().display());
        for policy in ["require", "degrade"] {
            crate::connect(&at("a.db")).await.unwrap();
            let url = format!(
                "mirrored://?primary={}&secondary={}&policy={policy}",
                at("a.db"),
                at(policy)
            );
            let missing = crate::connect_existing(&url).await.err().unwrap();
            assert_eq!(missing.kind(), ErrorKind::NotFound, "{policy}");
            assert!(!dir.path().join(policy).exists());
            crate::connect(&url).await.unwrap();
            crate::connect_existing(&url).await.unwrap();
        }
    }

    /// Nobody listens there: with `degrade` that is a secondary that fails, with `require` an error.
    #[cfg(feature = "postgres")]
    #[tokio::test]
    async fn a_secondary_that_is_away_is_waited_for_with_degrade() {
        let url = |policy: &str| {
            format!(
                "mirrored://?primary=memory://&secondary=postgres://me@127.0.0.1:1/db&policy={policy}"
            )
        };
        let error = crate::connect(&url("require")).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let store = MirrorUrls::parse(&url("degrade")).unwrap().open(true).await.unwrap();
        let record = MetricRecord::new("a", chrono::Utc::now(), "b", 1.0);
        store.write_batch(&[record]).await.unwrap();
        assert_eq!(store.divergence().samples_missed, 1);
        assert_eq!(store.health().await.status, storage_core::HealthStatus::Degraded);
    }
}
