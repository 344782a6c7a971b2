//! The contract over `Tiered`: with everything hot, with everything archived wherever a case compacts,
//! and with the older half archived, so that late samples lie over cold ones.

mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use conformance_tests::{Fixture, Store};
use storage_core::compose::{Tiered, TieredOptions};
use storage_core::metrics::time::{floor_ms, from_ms};
use storage_core::pipeline::{ArchiveOptions, archive};
use storage_core::{InMemory, Result, StorageBackend};
use upkeep::{Kept, Upkeep};

/// How much of the hot tier `compact` archives.
#[derive(Clone, Copy, PartialEq)]
enum Archives {
    Nothing,
    All,
    OlderHalf,
}

struct Tiers {
    name: &'static str,
    archives: Archives,
}

const TIERS: [&str; 3] = ["hot", "cold", "control"];

#[async_trait]
impl Fixture for Tiers {
    fn name(&self) -> &str {
        self.name
    }

    async fn open(&self, location: &str) -> Result<Store> {
        let tier = |name: &str| Arc::new(InMemory::open(&format!("{location}_{name}")));
        let [hot, cold, control] = TIERS.map(tier);
        // Cases compact often, and have a minute.
        let options = TieredOptions::default().with_settle(Duration::from_millis(60));
        let store = Tiered::open_with(hot, cold, control, options).await?;
        Ok(Arc::new(Kept { store, upkeep: self.archives }))
    }

    /// `compact` archives here, and the sum of two sums may differ in its last digit from the sum
    /// over all, as the contract allows; the case compares every digit.
    fn opt_outs(&self) -> &[(&'static str, &'static str)] {
        const REASON: &str = "the sum of an aggregate over both tiers differs in its last digit";
        const CASES: [(&str, &str); 3] = [
            ("lifecycle::compact_changes_no_answer", REASON),
            ("lifecycle::compact_changes_no_answer::compacted", REASON),
            ("lifecycle::compact_changes_no_answer::half_compacted", REASON),
        ];
        if self.archives == Archives::OlderHalf { &CASES } else { &[] }
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        TIERS.iter().for_each(|name| InMemory::forget(&format!("{location}_{name}")));
        Ok(())
    }
}

#[async_trait]
impl Upkeep<Tiered> for Archives {
    async fn after_compact(&self, store: &Tiered) -> Result<()> {
        let stats = store.hot().stats().await?;
        let (Some(oldest), Some(newest)) = (stats.oldest_metric, stats.newest_metric) else {
            return Ok(());
        };
        let (oldest, newest) = (floor_ms(oldest), floor_ms(newest));
        let span = (newest - oldest).max(1);
        let (cutoff, width) = match self {
            Self::Nothing => return Ok(()),
            // Two windows or three, which end after the newest.
            Self::All => (newest + span + 1, span),
            Self::OlderHalf => (oldest + span / 2, (span / 5).max(1)),
        };
        // A window of any width is fine, as long as it is not wider than time.
        let width = Duration::from_millis(width.unsigned_abs().min(300_000_000_000_000));
        let options = ArchiveOptions::before(from_ms(cutoff)).with_window(width);
        archive(store, &options, |_| {}).await.map(drop)
    }
}

fn main() {
    let of = |name, archives| -> Arc<dyn Fixture> { Arc::new(Tiers { name, archives }) };
    conformance_tests::main_all(vec![
        of("tiered", Archives::Nothing),
        of("tiered-archived", Archives::All),
        of("tiered-half-archived", Archives::OlderHalf),
    ])
}
