//! Which rollups are kept, and for how long.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use storage_core::Result;
use storage_core::pipeline::RollupTier;

use super::age::Age;
use super::retention::RetentionConfig;
use super::{bad_value, config_error};

const KEY: &str = "storage.rollups";

/// Which rollups are kept: `true` for those of 5 minutes, an hour and a day, `false` for none, or a list
/// of widths of one's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RollupsConfig {
    /// Those of 5 minutes, an hour and a day, or none.
    Usual(bool),
    /// Those of these widths.
    Tiers(Vec<RollupConfig>),
}

/// Rollups of one width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollupConfig {
    /// How wide their windows are: whole seconds, and a multiple of the next narrower ones.
    pub width: Age,
    /// How long they are kept; for ever if it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Age>,
    /// The oldest of them go when their store takes more than so many bytes on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_max: Option<u64>,
}

impl RollupsConfig {
    /// One in which nothing is left out.
    pub(super) fn example() -> Self {
        let tier = |width, days| RollupConfig {
            width: Age(Duration::from_secs(width)),
            keep: Some(Age::days(days)),
            bytes_max: Some(1 << 30),
        };
        Self::Tiers(vec![tier(300, 30), tier(3600, 365)])
    }
}

/// Rollups of one width that are kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    pub(super) width: Duration,
    /// For how long; `None` is for ever.
    pub(super) age: Option<Duration>,
    pub(super) bytes_max: Option<u64>,
}

/// Puts together what is said of rollups and of ages, from the narrowest width on.
pub(super) fn kept(
    rollups: Option<&RollupsConfig>,
    retention: &RetentionConfig,
) -> Result<Vec<Kept>> {
    let ages = retention.rollup_ages()?;
    let is_any_kept = ages.iter().any(|(_, age)| age.is_some());
    let usual = || {
        let of = |(width, (_, age)): (_, &(_, _))| Kept { width, age: *age, bytes_max: None };
        RollupTier::DEFAULT_WIDTHS.into_iter().zip(&ages).map(of).collect()
    };
    match rollups {
        None if !is_any_kept => Ok(Vec::new()),
        None | Some(RollupsConfig::Usual(true)) => Ok(usual()),
        Some(RollupsConfig::Usual(false)) if is_any_kept => {
            Err(config_error("rollups are given an age and are not to be made")
                .with_context("key", KEY))
        }
        Some(RollupsConfig::Usual(false)) => Ok(Vec::new()),
        Some(RollupsConfig::Tiers(tiers)) => of_list(tiers, &ages),
    }
}

fn of_list(
    tiers: &[RollupConfig],
    ages: &[(&'static str, Option<Duration>); 3],
) -> Result<Vec<Kept>> {
    let widths: Vec<_> = tiers.iter().map(|tier| tier.width.0).collect();
    RollupTier::check_widths(&widths).map_err(|error| {
        config_error(error.message().to_owned()).with_context("key", KEY).with_source(error)
    })?;
    if tiers.iter().any(|tier| tier.keep == Some(Age(Duration::ZERO))) {
        return Err(bad_value(KEY, "to keep them for more than no time"));
    }
    if tiers.iter().any(|tier| tier.bytes_max == Some(0)) {
        return Err(bad_value(KEY, "a bytes_max of more than 0"));
    }
    let of = |tier: &RollupConfig| Kept {
        width: tier.width.0,
        age: tier.keep.map(|age| age.0),
        bytes_max: tier.bytes_max,
    };
    let mut kept: Vec<_> = tiers.iter().map(of).collect();
    kept.sort_unstable_by_key(|tier| tier.width);
    for (width, (key, age)) in RollupTier::DEFAULT_WIDTHS.into_iter().zip(ages) {
        let Some(age) = age else { continue };
        let problem = match kept.iter_mut().find(|tier| tier.width == width) {
            Some(Kept { age: none @ None, .. }) => {
                *none = Some(*age);
                continue;
            }
            Some(_) => "rollups are given two ages; leave one of them",
            None => {
                "rollups of this width are given an age and not made; add the width to storage.rollups"
            }
        };
        return Err(config_error(problem)
            .with_context("key", *key)
            .with_context("width", Age(width)));
    }
    Ok(kept)
}
