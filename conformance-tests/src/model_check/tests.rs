//! The model check finds what is broken, shrinks it, and accepts what is not.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use storage_core::{
    InMemory, MetricAggregation, MetricRecord, Result, StorageBackend, StorageStats, TimeRange,
};

use super::*;
use crate::harness::Store;

/// The in-memory backend; with `wrong`, one that prunes a millisecond too much.
struct Memory {
    wrong: bool,
}

#[async_trait]
impl Fixture for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    async fn open(&self, location: &str) -> Result<Store> {
        let store = InMemory::open(location);
        Ok(if self.wrong { Arc::new(PrunesTooMuch(store)) } else { Arc::new(store) })
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        InMemory::forget(location);
        Ok(())
    }
}

struct PrunesTooMuch(InMemory);

#[async_trait]
impl StorageBackend for PrunesTooMuch {
    async fn write_batch(&self, records: &[MetricRecord]) -> Result<()> {
        self.0.write_batch(records).await
    }

    async fn query_range(&self, s: &str, m: &str, range: TimeRange) -> Result<Vec<MetricRecord>> {
        self.0.query_range(s, m, range).await
    }

    async fn aggregate(&self, s: &str, m: &str, range: TimeRange) -> Result<MetricAggregation> {
        self.0.aggregate(s, m, range).await
    }

    async fn prune_before(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        self.0.prune_before(cutoff + chrono::Duration::milliseconds(1)).await
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.0.stats().await
    }

    async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}

#[tokio::test]
async fn the_model_agrees_with_itself() {
    for seed in 0..40 {
        run(&Memory { wrong: false }, Methods::All, seed, 150).await.unwrap();
    }
}

#[tokio::test]
async fn a_difference_is_found_and_shrunk() {
    let failure = run(&Memory { wrong: true }, Methods::Required, 1, 200).await.unwrap_err();
    let message = failure.message();
    assert!(message.contains("CONFORMANCE_SEED=1"), "{message}");
    // A write of one record, and the prune that removes it.
    let list = message.split_once("shortest sequence that fails:\n").unwrap().1;
    assert!(list.contains("1. handle") && list.contains("2. handle"), "{message}");
    assert!(!list.contains("3. handle") && list.contains("write 1 records"), "{message}");
}

#[test]
fn a_seed_gives_the_same_sequence_again() {
    let sequence = |seed| {
        let steps = Generator::new(seed, false).steps(100);
        steps.iter().map(Step::to_string).collect::<Vec<_>>()
    };
    assert_eq!(sequence(7), sequence(7));
    assert_ne!(sequence(7), sequence(8));
}
