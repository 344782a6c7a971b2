//! How long samples and rollups are kept: by age, by size, once or again and again.

mod plan;
mod task;

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::rollup::Rolled;
use crate::error::{Error, Result};

pub use self::task::{RetentionCounts, RetentionTask};

/// How long what is kept; what is not named is kept for ever.
///
/// ```
/// use std::time::Duration;
/// use storage_core::pipeline::RetentionPolicy;
///
/// let days = |days: u64| Duration::from_secs(days * 86_400);
/// let policy = RetentionPolicy::default()
///     .keep_samples(days(7))?
///     .keep_rollups(Duration::from_secs(300), days(30))?
///     .keep_rollups(Duration::from_secs(3600), days(365))?
///     .samples_bytes_max(10 << 30);
/// # Ok::<(), storage_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RetentionPolicy {
    samples: Rule,
    rollups: BTreeMap<Duration, Rule>,
}

/// How long one thing is kept, and how large it may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Rule {
    age: Option<Duration>,
    bytes_max: Option<u64>,
}

impl RetentionPolicy {
    /// Keeps samples for `age`.
    ///
    /// # Errors
    /// `InvalidArgument` if it is zero: that would remove everything.
    pub fn keep_samples(mut self, age: Duration) -> Result<Self> {
        self.samples.age = Some(checked(age)?);
        Ok(self)
    }

    /// Keeps rollups of windows `width` wide for `age`.
    ///
    /// # Errors
    /// As [`keep_samples`](Self::keep_samples).
    pub fn keep_rollups(mut self, width: Duration, age: Duration) -> Result<Self> {
        self.rollups.entry(width).or_default().age = Some(checked(age)?);
        Ok(self)
    }

    /// Removes the oldest samples when their store takes more than so many bytes on disk. What is not
    /// rolled up yet stays in any case.
    ///
    /// All that the store holds counts, also events and jobs in the same file or schema. Where it does not
    /// become smaller although what is too much was removed, as beside a reader that needs the old pages,
    /// that is a warning, and the next time goes on.
    #[must_use]
    pub fn samples_bytes_max(mut self, bytes_max: u64) -> Self {
        self.samples.bytes_max = Some(bytes_max);
        self
    }

    /// Removes the oldest rollups of windows `width` wide when their store takes more than so many
    /// bytes on disk.
    #[must_use]
    pub fn rollups_bytes_max(mut self, width: Duration, bytes_max: u64) -> Self {
        self.rollups.entry(width).or_default().bytes_max = Some(bytes_max);
        self
    }

    /// Refuses a width that is not among `kept`: its rollups are not there, and would seem to be kept.
    fn check(&self, kept: impl Iterator<Item = Duration>) -> Result<()> {
        let kept: Vec<_> = kept.collect();
        match self.rollups.keys().find(|width| !kept.contains(width)) {
            Some(width) => Err(Error::invalid("there are no rollups of this width")
                .with_context("width", format!("{width:?}"))
                .with_context("kept", format!("{kept:?}"))),
            None => Ok(()),
        }
    }

    fn rule(&self, tier: Option<Duration>) -> Rule {
        match tier {
            None => self.samples,
            Some(width) => self.rollups.get(&width).copied().unwrap_or_default(),
        }
    }
}

fn checked(age: Duration) -> Result<Duration> {
    if age.is_zero() {
        return Err(Error::invalid("samples must be kept for some time").with_context("age", "0s"));
    }
    Ok(age)
}

/// What retention did to the samples, or to the rollups of one width, or would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RetentionEntry {
    /// The width of the rollups; `None` for samples.
    pub width: Option<Duration>,
    /// What is before this is not kept; `None` if everything is.
    pub before: Option<DateTime<Utc>>,
    /// Samples, or rollups, that were there.
    pub rows: u64,
    /// How many of them were removed; in a plan, would be.
    pub rows_removed: u64,
    /// Bytes on disk before.
    pub bytes: u64,
    /// By how many bytes the store is smaller; in a plan, an estimate by the share of rows. A backend may give
    /// space back later.
    pub bytes_freed: u64,
}

/// What retention did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct RetentionReport {
    /// Samples first, then rollups from the narrowest to the widest.
    pub entries: Vec<RetentionEntry>,
}

impl RetentionReport {
    /// Samples and rollups that were removed, or would be.
    pub fn rows_removed(&self) -> u64 {
        self.entries.iter().map(|entry| entry.rows_removed).sum()
    }

    /// Bytes that were given back, or would be.
    pub fn bytes_freed(&self) -> u64 {
        self.entries.iter().map(|entry| entry.bytes_freed).sum()
    }
}

impl Rolled {
    /// Removes what `policy` does not keep: samples behind their rollups, and old rollups.
    ///
    /// Cutoffs are moved back to a bound of the widest rollups, or of those that are removed: whole
    /// windows go. One process at a time does it; others wait.
    ///
    /// # Errors
    /// `InvalidArgument` if the policy names a width that no tier has; `Busy` if another process had its
    /// turn for longer than a call waits; otherwise those of the stores. Done again it goes on where it
    /// broke off.
    ///
    /// # Cost
    /// Samples are read once more before they are removed.
    pub async fn retain(&self, policy: &RetentionPolicy) -> Result<RetentionReport> {
        plan::apply(self, policy, None).await.map(Option::unwrap_or_default)
    }

    /// As [`retain`](Self::retain), unless anybody did it within the last `interval`: then `None`.
    ///
    /// # Errors
    /// As [`retain`](Self::retain).
    pub async fn retain_if_due(
        &self,
        policy: &RetentionPolicy,
        interval: Duration,
    ) -> Result<Option<RetentionReport>> {
        plan::apply(self, policy, Some(interval)).await
    }

    /// Says what [`retain`](Self::retain) would remove now, and removes nothing.
    ///
    /// # Errors
    /// `InvalidArgument` as [`retain`](Self::retain); otherwise those of the stores.
    ///
    /// # Cost
    /// What would be removed is counted by a scan of it.
    pub async fn plan_retention(&self, policy: &RetentionPolicy) -> Result<RetentionReport> {
        plan::plan(self, policy).await
    }
}

#[cfg(test)]
mod tests;
