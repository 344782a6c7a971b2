//! The contract over `Rolled`: with nothing rolled up, and with everything rolled up wherever a case
//! compacts, so that later samples are late.

mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use conformance_tests::{Fixture, Store};
use storage_core::pipeline::{Rolled, RollupOptions, RollupTier};
use storage_core::{InMemory, Result, StorageBackend};
use upkeep::{Kept, Upkeep};

/// Whether everything is rolled up after a store was compacted.
#[derive(Clone, Copy)]
enum Refreshes {
    Never,
    Always,
}

struct Rollups {
    name: &'static str,
    refreshes: Refreshes,
}

/// A store for the samples, one for each tier, and the control store.
const STORES: [&str; 5] = ["raw", "5m", "1h", "1d", "control"];

#[async_trait]
impl Fixture for Rollups {
    fn name(&self) -> &str {
        self.name
    }

    async fn open(&self, location: &str) -> Result<Store> {
        let store = |name: &str| -> Arc<dyn StorageBackend> {
            Arc::new(InMemory::open(&format!("{location}_{name}")))
        };
        let [raw, five_minutes, hour, day, control] = STORES.map(store);
        let stores = [five_minutes, hour, day];
        let tiers = RollupTier::DEFAULT_WIDTHS.into_iter().zip(stores);
        let tiers = tiers.map(|(width, store)| RollupTier::new(width, store)).collect();
        // Cases prune often, and have a minute; less would take a busy machine for writers that are
        // too slow for a prune. All times are over, also those to come.
        let options = RollupOptions::default()
            .with_settle(Duration::from_millis(100))
            .with_clock(|| DateTime::<Utc>::MAX_UTC);
        let store = Rolled::open_with(raw, tiers, control, options).await?;
        Ok(Arc::new(Kept { store, upkeep: self.refreshes }))
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        STORES.iter().for_each(|name| InMemory::forget(&format!("{location}_{name}")));
        Ok(())
    }
}

#[async_trait]
impl Upkeep<Rolled> for Refreshes {
    async fn after_compact(&self, store: &Rolled) -> Result<()> {
        match self {
            Self::Never => Ok(()),
            Self::Always => store.refresh().await.map(drop),
        }
    }
}

fn main() {
    let of = |name, refreshes| -> Arc<dyn Fixture> { Arc::new(Rollups { name, refreshes }) };
    conformance_tests::main_all(vec![
        of("rolled", Refreshes::Never),
        of("rolled-refreshed", Refreshes::Always),
    ])
}
