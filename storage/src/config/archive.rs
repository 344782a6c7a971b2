//! The section `archive`: which samples leave the store for a cold one, and how often.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use storage_core::Result;
use storage_core::pipeline::ArchivePolicy;

use super::age::Age;
use super::storage::StorageConfig;
use super::{bad_value, config_error, without_secrets};
use crate::TierUrls;

/// Which samples are moved to a cold store. All questions are answered from both, and an age in
/// [`RetentionConfig`](super::RetentionConfig) is about both: it has to be longer than `after`, and nothing is removed
/// that is not archived yet.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ArchiveConfig {
    /// The URL of the cold store; left out where `storage.url` is `tiered://`, which names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cold: Option<String>,
    /// How long ago windows ended that are archived.
    pub after: Age,
    /// How often they are.
    pub interval: Age,
    /// How much time is moved at once.
    pub window: Age,
    /// At most so many samples are copied a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples_per_second: Option<u64>,
}

impl std::fmt::Debug for ArchiveConfig {
    /// Without what is in the URL: it may be a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cold, after, interval, window, samples_per_second } = self;
        f.debug_struct("ArchiveConfig")
            .field("cold", &cold.as_deref().map(without_secrets))
            .field("after", after)
            .field("interval", interval)
            .field("window", window)
            .field("samples_per_second", samples_per_second)
            .finish()
    }
}

impl Default for ArchiveConfig {
    fn default() -> Self {
        Self {
            cold: None,
            after: Age::days(30),
            interval: Age(Duration::from_secs(3600)),
            window: Age::days(1),
            samples_per_second: None,
        }
    }
}

impl ArchiveConfig {
    /// One in which nothing is left out.
    pub(super) fn example() -> Self {
        Self {
            cold: Some("parquet://archive".to_owned()),
            samples_per_second: Some(100_000),
            ..Self::default()
        }
    }

    /// Which samples are archived.
    pub fn policy(&self) -> ArchivePolicy {
        let policy = ArchivePolicy::after(self.after.0).with_window(self.window.0);
        match self.samples_per_second {
            Some(samples_per_second) => policy.with_samples_per_second(samples_per_second),
            None => policy,
        }
    }

    /// The stores of which `own` takes the writes.
    pub(super) fn urls(&self, own: &str) -> Result<TierUrls> {
        let urls = match (own.starts_with("tiered://"), &self.cold) {
            (true, None) => TierUrls::parse(own)?,
            (true, Some(_)) => {
                return Err(bad_value("storage.archive.cold", "nothing: storage.url names it"));
            }
            (false, None) => return Err(bad_value("storage.archive.cold", "a URL of a store")),
            (false, Some(cold)) => TierUrls::new(own, cold).map_err(|error| {
                config_error(
                    "beside this store there is no place for what archiving has to remember",
                )
                .with_context("key", "storage.archive")
                .with_source(error)
            })?,
        };
        // What is wrong with them is said before anything is opened.
        TierUrls::parse(&urls.to_url())
    }

    /// Says what is out of bounds, by itself and beside what else is configured.
    pub(super) fn validate(&self, config: &StorageConfig) -> Result<()> {
        let second = Duration::from_secs(1);
        let table = [
            (self.interval.0 >= second, "storage.archive.interval", "a second or more"),
            (self.window.0 >= second, "storage.archive.window", "a second or more"),
            (
                self.samples_per_second != Some(0),
                "storage.archive.samples_per_second",
                "more than 0",
            ),
        ];
        if let Some((_, key, expected)) = table.into_iter().find(|(is_right, ..)| !is_right) {
            return Err(bad_value(key, expected));
        }
        match config.retention.keep()?.raw {
            Some(age) if age <= self.after.0 => {
                Err(config_error("samples would be removed before they are archived")
                    .with_context("key", "storage.archive.after")
                    .with_context("expected", "less than storage.retention.raw_metrics"))
            }
            _ => Ok(()),
        }
    }
}
