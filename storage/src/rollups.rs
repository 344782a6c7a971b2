//! Rollups by URL: `rolled://?samples=URL`, and where their stores are.

use std::sync::Arc;
use std::time::Duration;

use storage_core::pipeline::{Rolled, RollupOptions, RollupTier};
use storage_core::{ErrorKind, Result, StorageBackend, Store};

use crate::beside::{beside, config, parameters};
use crate::mirrors::MirrorUrls;
use crate::registry::{metrics_of, open_one_or_composed};
use crate::tiers::TierUrls;

/// The URLs of a store of samples, of its rollups, and of their control store.
///
/// They have to be the same for all that use the samples. They stand beside the samples; beside the hot
/// tier of `tiered://`, or the primary of `mirrored://`:
///
/// | samples | rollups of an hour | control store |
/// |---|---|---|
/// | `sqlite://metrics.db` | `sqlite://metrics.db.rollup_1h` | `sqlite://metrics.db.rollups` |
/// | `postgres://db/app?schema=edge` | `postgres://db/app?schema=edge_rollup_1h` | `postgres://db/app?schema=edge_rollups` |
/// | `parquet://archive` | `parquet://archive.rollup_1h` | `parquet://archive.rollups` |
///
/// ```
/// use storage::RollupUrls;
/// use storage::pipeline::RollupTier;
///
/// let urls = RollupUrls::beside("sqlite://metrics.db", &RollupTier::DEFAULT_WIDTHS)?;
/// assert_eq!(urls.tiers[0].1, "sqlite://metrics.db.rollup_5m");
/// # Ok::<(), storage::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct RollupUrls {
    /// Where the samples are.
    pub samples: String,
    /// Where the rollups are, by the width of their windows.
    pub tiers: Vec<(Duration, String)>,
    /// Where it stands how far they are rolled up.
    pub control: String,
}

impl std::fmt::Debug for RollupUrls {
    /// Without the URLs: they may hold passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RollupUrls").finish_non_exhaustive()
    }
}

impl RollupUrls {
    /// Rollups of these widths beside the samples.
    ///
    /// # Errors
    /// `Config` if `samples` is no URL of a kind that is known here, or the widths do not fit
    /// [together](RollupTier::check_widths).
    pub fn beside(samples: &str, widths: &[Duration]) -> Result<Self> {
        RollupTier::check_widths(widths)?;
        let place = match samples.split_once("://") {
            Some(("tiered", _)) => TierUrls::parse(samples)?.hot,
            Some(("mirrored", _)) => MirrorUrls::parse(samples)?.primary,
            _ => samples.to_owned(),
        };
        let tier = |width: &Duration| {
            Ok((*width, beside(&place, &format!("rollup_{}", written(*width)))?))
        };
        Ok(Self {
            samples: samples.to_owned(),
            tiers: widths.iter().map(tier).collect::<Result<_>>()?,
            control: beside(&place, "rollups")?,
        })
    }

    /// Rollups beside the samples, of the widths that are kept there already; where none were made yet,
    /// of five minutes, an hour and a day.
    ///
    /// # Errors
    /// As [`beside`](Self::beside); otherwise those of the control store.
    pub async fn find(samples: &str) -> Result<Self> {
        let control = Self::beside(samples, &[])?.control;
        let widths = match metrics_of(&control, false).await {
            Ok(control) => {
                let widths = Rolled::kept_widths(Arc::clone(&control)).await;
                control.close().await?;
                widths?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Self::beside(samples, widths.as_deref().unwrap_or(&RollupTier::DEFAULT_WIDTHS))
    }

    /// Reads `rolled://?samples=URL&widths=1m,1h,1d`, where widths are numbers of seconds, minutes, hours or
    /// days (`90s`, `5m`, `1h`, `1d`). Without them it [looks](Self::find) which are kept.
    ///
    /// In the URL `%` and two hexadecimal digits stand for a byte; `&` is written `%26`, and `%`
    /// itself `%25`.
    ///
    /// # Errors
    /// `Config` if there are no samples, a name is unknown or given twice, or the widths do not fit
    /// [together](RollupTier::check_widths); otherwise as [`find`](Self::find).
    pub async fn from_url(url: &str) -> Result<Self> {
        let wrong =
            "a URL of rollups looks like rolled://?samples=sqlite://metrics.db&widths=5m,1h,1d";
        let query = url.strip_prefix("rolled://?").ok_or_else(|| config(wrong))?;
        let [samples, widths] = parameters(query, ["samples", "widths"])?;
        let samples = samples.ok_or_else(|| config(wrong))?;
        match widths {
            Some(widths) => Self::beside(&samples, &widths_of(&widths)?),
            None => Self::find(&samples).await,
        }
    }

    /// Opens the samples, and creates them if they do not exist and `create` is set; the other
    /// stores are created in any case.
    ///
    /// # Errors
    /// `NotFound` if the samples do not exist; otherwise those of the stores.
    pub async fn open(&self, create: bool, options: RollupOptions) -> Result<Rolled> {
        Ok(self.open_with_samples(create, options).await?.0)
    }

    /// Opens the stores, with everything that the one of the samples holds.
    async fn open_with_samples(
        &self,
        create: bool,
        options: RollupOptions,
    ) -> Result<(Rolled, Store)> {
        let samples = open_one_or_composed(&self.samples, create).await?;
        let rolled = self.open_beside(Arc::clone(samples.metrics()), options).await?;
        Ok((rolled, samples))
    }

    /// Opens the other stores beside samples that are open.
    ///
    /// # Errors
    /// Those of the stores.
    pub async fn open_beside(
        &self,
        samples: Arc<dyn StorageBackend>,
        options: RollupOptions,
    ) -> Result<Rolled> {
        let mut tiers = Vec::new();
        for (width, url) in &self.tiers {
            tiers.push(RollupTier::new(*width, metrics_of(url, true).await?));
        }
        let control = metrics_of(&self.control, true).await?;
        Rolled::open_with(samples, tiers, control, options).await
    }
}

/// Opens samples with their rollups by their URL. What is no metric stays beside the samples.
pub(crate) async fn open(url: &str, create: bool) -> Result<Store> {
    let urls = RollupUrls::from_url(url).await?;
    let (rolled, samples) = urls.open_with_samples(create, RollupOptions::default()).await?;
    Ok(samples.with_metrics(Arc::new(rolled)))
}

/// Reads widths as they stand in a URL.
fn widths_of(text: &str) -> Result<Vec<Duration>> {
    let widths: Option<Vec<_>> = text.split(',').map(width_of).collect();
    let widths = widths.ok_or_else(|| {
        config("a width is a number with s, m, h or d, as in widths=5m,1h,1d")
            .with_context("parameter", "widths")
            .with_context("widths", text)
    })?;
    RollupTier::check_widths(&widths).map_err(|error| error.with_context("parameter", "widths"))?;
    Ok(widths)
}

fn width_of(text: &str) -> Option<Duration> {
    let (_, unit) = UNITS.iter().find(|(name, _)| text.ends_with(name))?;
    let number: u64 = text[..text.len() - 1].parse().ok()?;
    number.checked_mul(*unit).map(Duration::from_secs)
}

/// Units from the longest on, in seconds; each name is one byte.
const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];

/// A width as it stands in a name: in the longest unit that fits without a rest.
fn written(width: Duration) -> String {
    let seconds = width.as_secs();
    let unit = UNITS.iter().find(|(_, unit)| seconds.is_multiple_of(*unit));
    let (name, unit) = unit.unwrap_or(&("s", 1));
    format!("{}{name}", seconds / unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage_core::{MetricRecord, TimeRange};

    #[test]
    fn the_stores_stand_beside_the_samples() {
        let widths = [90, 900, 7200, 604_800].map(Duration::from_secs);
        let urls = RollupUrls::beside("postgres://me@h/db?schema=edge", &widths).unwrap();
        let names: Vec<_> = urls.tiers.iter().map(|(_, url)| url.rsplit('=').next()).collect();
        let expected = ["edge_rollup_90s", "edge_rollup_15m", "edge_rollup_2h", "edge_rollup_7d"];
        assert_eq!(names, expected.map(Some));
        assert_eq!(urls.control, "postgres://me@h/db?schema=edge_rollups");
        let tiered = "tiered://?hot=sqlite://m.db&cold=parquet://a";
        let urls = RollupUrls::beside(tiered, &widths).unwrap();
        assert_eq!((&*urls.samples, &*urls.control), (tiered, "sqlite://m.db.rollups"));
        let mirrored = "mirrored://?primary=sqlite://m.db&secondary=memory://a";
        let urls = RollupUrls::beside(mirrored, &widths).unwrap();
        assert_eq!((&*urls.samples, &*urls.control), (mirrored, "sqlite://m.db.rollups"));
    }

    #[tokio::test]
    async fn a_url_names_samples_and_widths() {
        let read = RollupUrls::from_url;
        let nested = read("rolled://?samples=tiered://?hot=memory://a%26cold=memory://b").await;
        assert_eq!(nested.unwrap().tiers[1].1, "memory://a.rollup_1h");
        let chosen = read("rolled://?widths=1m,15m,1d&samples=memory://a").await.unwrap();
        let expected = [(60, "1m"), (900, "15m"), (86_400, "1d")].map(|(seconds, name)| {
            (Duration::from_secs(seconds), format!("memory://a.rollup_{name}"))
        });
        assert_eq!(chosen.tiers, expected);
        for bad in [
            "rolled://",
            "rolled://?",
            "rolled://?samples=x",
            "rolled://?sample=memory://a",
            "rolled://?widths=5m",
            "rolled://?samples=memory://a&widths=",
            "rolled://?samples=memory://a&widths=5",
            "rolled://?samples=memory://a&widths=5x",
            "rolled://?samples=memory://a&widths=-5m",
            "rolled://?samples=memory://a&widths=0s",
            "rolled://?samples=memory://a&widths=5m,7m",
            "rolled://?samples=memory://a&widths=5m,5m",
            "rolled://?samples=memory://a&widths=1000000000000000000d",
        ] {
            assert_eq!(read(bad).await.unwrap_err().kind(), ErrorKind::Config, "{bad}");
        }
        let error = read("rolled://?samples=memory://a&widths=5m,7m").await.unwrap_err();
        assert_eq!(
            (error.context("parameter"), error.context("width")),
            (Some("widths"), Some("420s"))
        );
    }

    /// Whoever does not say which widths there are must not take away those that are there.
    #[tokio::test]
    async fn widths_that_are_kept_are_found_again() {
        let samples = "memory://rolled-found";
        let names =
            |urls: RollupUrls| urls.tiers.into_iter().map(|tier| tier.1).collect::<Vec<_>>();
        assert_eq!(names(RollupUrls::find(samples).await.unwrap()).len(), 3);
        let widths = [60, 900].map(Duration::from_secs);
        let urls = RollupUrls::beside(samples, &widths).unwrap();
        let store = urls.open(true, RollupOptions::default()).await.unwrap();
        let record = MetricRecord::new("a", chrono::Utc::now() - widths[1] * 4, "b", 1.0);
        store.write_batch(&[record]).await.unwrap();
        store.refresh().await.unwrap();
        let found = RollupUrls::from_url(&format!("rolled://?samples={samples}")).await.unwrap();
        assert_eq!(found.tiers, urls.tiers);
    }

    #[tokio::test]
    async fn rollups_are_connected_by_url() {
        let url = "rolled://?samples=memory://rolled";
        let (store, other) =
            (crate::connect(url).await.unwrap(), crate::connect_existing(url).await.unwrap());
        let record = MetricRecord::new("a", chrono::Utc::now(), "b", 1.0);
        store.write_batch(&[record]).await.unwrap();
        assert_eq!(other.query_range("a", "b", TimeRange::all()).await.unwrap().len(), 1);
        assert_eq!(store.name(), "memory");
    }
}
