//! What a configuration says of rollups and retention, and a store with both.

use std::sync::Arc;
use std::time::Duration;

use storage_core::compose::Tiered;
use storage_core::pipeline::{RetentionPolicy, Rolled, RollupOptions};
use storage_core::{Result, StorageBackend};

use super::bad_value;
use super::rollups::{Kept, kept};
use super::storage::StorageConfig;
use crate::RollupUrls;

/// How a store is kept up: what is rolled up and removed, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upkeep {
    /// How long what is kept.
    pub policy: RetentionPolicy,
    /// The widths of the rollups that are kept, from the narrowest; empty if there are none.
    pub widths: Vec<Duration>,
    /// How long after its end a window is rolled up.
    pub delay: Duration,
    /// How often windows are rolled up.
    pub refresh_interval: Duration,
    /// How often the policy is applied.
    pub retention_interval: Duration,
}

impl Upkeep {
    /// Whether there are rollups.
    pub fn has_rollups(&self) -> bool {
        !self.widths.is_empty()
    }
}

impl StorageConfig {
    /// How the store is kept up; `None` if nothing is rolled up and everything is kept.
    ///
    /// # Errors
    /// `Config` as [`RetentionConfig::keep`](super::RetentionConfig::keep); if widths of rollups do not
    /// fit [together](storage_core::pipeline::RollupTier::check_widths), or an age is given to rollups that are not kept.
    pub fn upkeep(&self) -> Result<Option<Upkeep>> {
        let kept = kept(self.rollups.as_ref(), &self.retention)?;
        let upkeep = Upkeep {
            policy: self.policy(&kept)?,
            widths: kept.iter().map(|tier| tier.width).collect(),
            delay: self.rollup_delay.0,
            refresh_interval: self.rollup_interval.0,
            retention_interval: self.pruning_interval.0,
        };
        let is_any = upkeep.has_rollups() || upkeep.policy != RetentionPolicy::default();
        Ok(is_any.then_some(upkeep))
    }

    /// How long what is kept.
    ///
    /// # Errors
    /// As [`upkeep`](Self::upkeep).
    pub fn retention_policy(&self) -> Result<RetentionPolicy> {
        self.policy(&kept(self.rollups.as_ref(), &self.retention)?)
    }

    fn policy(&self, kept: &[Kept]) -> Result<RetentionPolicy> {
        let mut policy = RetentionPolicy::default();
        if let Some(age) = self.retention.keep()?.raw {
            policy = policy.keep_samples(age)?;
        }
        if let Some(bytes_max) = self.retention.raw_metrics_bytes_max {
            policy = policy.samples_bytes_max(bytes_max);
        }
        for Kept { width, age, bytes_max } in kept {
            if let Some(age) = age {
                policy = policy.keep_rollups(*width, *age)?;
            }
            if let Some(bytes_max) = bytes_max {
                policy = policy.rollups_bytes_max(*width, *bytes_max);
            }
        }
        Ok(policy)
    }

    pub(super) fn check_rollups(&self) -> Result<()> {
        if self.retention.raw_metrics_bytes_max == Some(0) {
            return Err(bad_value("storage.retention.raw_metrics_bytes_max", "more than 0"));
        }
        self.upkeep().map(drop)
    }

    /// Opens the store with its rollups and what keeps several processes from removing at once,
    /// beside it; makes what does not exist. Without rollups it has no tiers of them. Where samples are archived
    /// it is over both tiers, and removes nothing that is not archived yet.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); `Config` if it is not known what is beside the store.
    pub async fn connect_rolled(&self, upkeep: &Upkeep) -> Result<Rolled> {
        match self.connect_tiered().await? {
            Some(tiers) => self.connect_rolled_over(tiers, upkeep).await,
            None => self.roll(self.connect().await?, RollupOptions::default(), upkeep).await,
        }
    }

    /// As [`connect_rolled`](Self::connect_rolled), over tiers that are open.
    ///
    /// # Errors
    /// As there.
    pub async fn connect_rolled_over(&self, tiers: Arc<Tiered>, upkeep: &Upkeep) -> Result<Rolled> {
        let options = RollupOptions::default().with_archived_first(Arc::clone(&tiers));
        self.roll(tiers, options, upkeep).await
    }

    async fn roll(
        &self,
        samples: Arc<dyn StorageBackend>,
        options: RollupOptions,
        upkeep: &Upkeep,
    ) -> Result<Rolled> {
        let urls = RollupUrls::beside(&self.url()?, &upkeep.widths)?;
        urls.open_beside(samples, options.with_delay(upkeep.delay)).await
    }
}
