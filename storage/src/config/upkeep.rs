//! What a configuration says of rollups and retention, and a store with both.

use std::sync::Arc;
use std::time::Duration;

use storage_core::pipeline::{RetentionPolicy, Rolled, RollupOptions, RollupTier};
use storage_core::{Result, StorageBackend};

use super::storage::StorageConfig;
use super::{bad_value, config_error};
use crate::RollupUrls;

/// How a store is kept up: what is rolled up and removed, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upkeep {
    /// How long what is kept.
    pub policy: RetentionPolicy,
    /// Whether there are rollups.
    pub has_rollups: bool,
    /// How long after its end a window is rolled up.
    pub delay: Duration,
    /// How often windows are rolled up.
    pub refresh_interval: Duration,
    /// How often the policy is applied.
    pub retention_interval: Duration,
}

impl StorageConfig {
    /// How the store is kept up; `None` if nothing is rolled up and everything is kept.
    ///
    /// # Errors
    /// `Config` as [`RetentionConfig::keep`](super::RetentionConfig::keep).
    pub fn upkeep(&self) -> Result<Option<Upkeep>> {
        let (policy, has_rollups) = (self.retention_policy()?, self.has_rollups()?);
        let upkeep = Upkeep {
            policy,
            has_rollups,
            delay: self.rollup_delay.0,
            refresh_interval: self.rollup_interval.0,
            retention_interval: self.pruning_interval.0,
        };
        Ok((has_rollups || upkeep.policy != RetentionPolicy::default()).then_some(upkeep))
    }

    /// How long what is kept.
    ///
    /// # Errors
    /// As [`upkeep`](Self::upkeep).
    pub fn retention_policy(&self) -> Result<RetentionPolicy> {
        let keep = self.retention.keep()?;
        let mut policy = RetentionPolicy::default();
        if let Some(age) = keep.raw {
            policy = policy.keep_samples(age)?;
        }
        if let Some(bytes_max) = self.retention.raw_metrics_bytes_max {
            policy = policy.samples_bytes_max(bytes_max);
        }
        let ages = [keep.five_minutes, keep.hour, keep.day];
        for (width, age) in RollupTier::DEFAULT_WIDTHS.into_iter().zip(ages) {
            if let Some(age) = age {
                policy = policy.keep_rollups(width, age)?;
            }
        }
        Ok(policy)
    }

    fn has_rollups(&self) -> Result<bool> {
        let keep = self.retention.keep()?;
        let is_any_kept = [keep.five_minutes, keep.hour, keep.day].iter().any(Option::is_some);
        match self.rollups {
            Some(false) if is_any_kept => {
                Err(config_error("rollups are given an age and are not to be made")
                    .with_context("key", "storage.rollups"))
            }
            rollups => Ok(rollups.unwrap_or(is_any_kept)),
        }
    }

    pub(super) fn check_rollups(&self) -> Result<()> {
        if self.retention.raw_metrics_bytes_max == Some(0) {
            return Err(bad_value("storage.retention.raw_metrics_bytes_max", "more than 0"));
        }
        self.upkeep().map(drop)
    }

    /// Opens the store with its rollups and what keeps several processes from removing at once,
    /// beside it; makes what does not exist. Without rollups it has no tiers.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); `Config` if it is not known what is beside the store.
    pub async fn connect_rolled(&self, upkeep: &Upkeep) -> Result<Rolled> {
        let widths: &[Duration] =
            if upkeep.has_rollups { &RollupTier::DEFAULT_WIDTHS } else { &[] };
        let urls = RollupUrls::beside(&self.url()?, widths)?;
        let samples: Arc<dyn StorageBackend> = self.connect().await?;
        urls.open_beside(samples, RollupOptions::default().with_delay(upkeep.delay)).await
    }
}
