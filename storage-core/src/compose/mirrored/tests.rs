//! Mirrors in memory: both policies, every fault of the secondary, writers that give up, order, repair.

use super::*;
use crate::layers::{Fault, FaultPlan, Faulty, Operation};
use crate::{ErrorKind, InMemory};

type Shaky = Arc<Faulty<InMemory>>;

fn shaky() -> Shaky {
    Arc::new(Faulty::new(InMemory::new(), FaultPlan::new(1)))
}

fn mirror(policy: MirrorPolicy) -> (Mirrored, Shaky, Shaky) {
    let (primary, secondary) = (shaky(), shaky());
    let store = Mirrored::new(Shaky::clone(&primary), Shaky::clone(&secondary), policy);
    (store, primary, secondary)
}

fn batch(value: f64) -> Vec<MetricRecord> {
    (0..5).map(|ms| MetricRecord::new("web-1", from_ms(ms * 1000), "cpu", value)).collect()
}

async fn verified(store: &Mirrored) -> Comparison {
    store.verify(&SeriesFilter::any(), TimeRange::all()).await.unwrap()
}

#[tokio::test]
async fn what_is_acknowledged_is_in_both() {
    let (store, primary, secondary) = mirror(MirrorPolicy::Require);
    store.write_batch(&batch(1.0)).await.unwrap();
    assert_eq!(store.prune_before(from_ms(1000)).await.unwrap(), 1);
    for side in [primary, secondary] {
        assert_eq!(side.inner().stats().await.unwrap().total_metrics, 4);
    }
    assert!(verified(&store).await.is_same() && store.divergence().is_none());
    assert_eq!(store.health().await.status, HealthStatus::Healthy);
}

#[tokio::test]
async fn with_degrade_a_failing_secondary_is_counted_and_repaired() {
    let (store, _, secondary) = mirror(MirrorPolicy::Degrade);
    store.write_batch(&batch(1.0)).await.unwrap();
    for fault in [Fault::Refused, Fault::LostRequest, Fault::LostReply] {
        secondary.control().inject(Operation::WriteBatch, fault);
        store.write_batch(&batch(2.0)).await.unwrap();
        let known = store.divergence();
        assert_eq!((known.batches_missed, known.samples_missed), (1, 5));
        assert_eq!(known.extent, Some((from_ms(0), from_ms(4000))));
        assert!(known.since.is_some() && known.last_error.is_some());
        assert_eq!(store.health().await.status, HealthStatus::Degraded);
        // A part of the time is not enough to forget.
        let part = TimeRange::new(from_ms(0), from_ms(4000)).unwrap();
        store.repair(&CopyOptions::default().with_range(part)).await.unwrap();
        assert!(!store.divergence().is_none());
        store.repair(&CopyOptions::default()).await.unwrap();
        assert!(store.divergence().is_none() && verified(&store).await.is_same());
        store.write_batch(&batch(1.0)).await.unwrap();
    }
}

#[tokio::test]
async fn with_require_a_failing_secondary_fails_the_write() {
    let (store, _, secondary) = mirror(MirrorPolicy::Require);
    secondary.control().inject(Operation::WriteBatch, Fault::Refused);
    let error = store.write_batch(&batch(1.0)).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::Unknown));
    assert_eq!(error.context("mirror"), Some("secondary"));
    // The primary has it, as `Unknown` allows; writing again mends it.
    assert_eq!(store.stats().await.unwrap().total_metrics, 5);
    assert_eq!(store.divergence().batches_missed, 1);
    store.write_batch(&batch(1.0)).await.unwrap();
    assert!(verified(&store).await.is_same());
    secondary.control().inject(Operation::PruneBefore, Fault::Refused);
    let error = store.prune_before(from_ms(2000)).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert_eq!(store.divergence().prunes_missed, 1);
}

#[tokio::test]
async fn a_batch_that_the_primary_refused_is_in_neither() {
    for policy in [MirrorPolicy::Require, MirrorPolicy::Degrade] {
        let (store, primary, secondary) = mirror(policy);
        primary.control().inject(Operation::WriteBatch, Fault::Refused);
        let error = store.write_batch(&batch(1.0)).await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotApplied);
        assert_eq!(secondary.inner().stats().await.unwrap().total_metrics, 0);
        assert!(store.divergence().is_none());
        // In doubt the primary may hold it, and the secondary does not.
        primary.control().inject(Operation::WriteBatch, Fault::LostReply);
        store.write_batch(&batch(1.0)).await.unwrap_err();
        assert_eq!(store.divergence().batches_missed, 1);
        assert_eq!(verified(&store).await.missing, 5);
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_given_up_half_way_is_counted() {
    let (store, _, secondary) = mirror(MirrorPolicy::Require);
    secondary.control().inject(Operation::WriteBatch, Fault::HangBefore);
    let records = batch(1.0);
    let given_up = tokio::time::timeout(Duration::from_secs(1), store.write_batch(&records));
    assert!(given_up.await.is_err());
    assert_eq!(store.divergence().samples_missed, 5);
    let report = store.repair(&CopyOptions::default()).await.unwrap();
    assert_eq!((report.windows_repaired, report.samples_repaired), (1, 5));
    assert!(verified(&store).await.is_same());
}

#[tokio::test]
async fn a_repair_prunes_what_was_missed_and_reports_what_it_cannot_remove() {
    let (store, _, secondary) = mirror(MirrorPolicy::Degrade);
    store.write_batch(&batch(1.0)).await.unwrap();
    secondary.control().inject(Operation::PruneBefore, Fault::Refused);
    assert_eq!(store.prune_before(from_ms(2000)).await.unwrap(), 2);
    assert_eq!(verified(&store).await.extra, 2);
    let extra = MetricRecord::new("web-2", from_ms(3000), "cpu", 1.0);
    secondary.write_batch(&[extra]).await.unwrap();
    let report = store.repair(&CopyOptions::default()).await.unwrap();
    assert_eq!((report.samples_pruned, report.samples_extra), (2, 1));
    assert!(store.divergence().is_none());
}

/// A prune that failed on the primary, and that may have removed nothing, is done again on the secondary only
/// by a repair that brings back what the primary kept.
#[tokio::test]
async fn a_repair_of_a_part_removes_nothing_that_the_primary_holds() {
    let (store, primary, secondary) = mirror(MirrorPolicy::Degrade);
    store.write_batch(&batch(1.0)).await.unwrap();
    primary.control().inject(Operation::PruneBefore, Fault::LostRequest);
    store.prune_before(from_ms(4000)).await.unwrap_err();
    let range = |start, end| TimeRange::new(from_ms(start), from_ms(end)).unwrap();
    let web_1 = SeriesFilter::exact("web-1", "cpu").unwrap();
    for part in [
        CopyOptions::default().with_range(range(4000, 5000)),
        CopyOptions::default().with_range(range(1, 5000)),
        CopyOptions::default().with_range(range(0, 3999)),
        CopyOptions::default().with_filter(web_1),
        CopyOptions::default().with_dry_run(true),
    ] {
        let report = store.repair(&part).await.unwrap();
        assert_eq!(report.samples_pruned, 0, "{part:?}");
        assert!(verified(&store).await.is_same() && store.divergence().prunes_missed == 1);
    }
    let report = store.repair(&CopyOptions::default().with_range(range(0, 4000))).await.unwrap();
    assert_eq!((report.samples_pruned, report.samples_repaired), (4, 4));
    assert!(verified(&store).await.is_same() && store.divergence().is_none());

    // Late samples in both, behind a prune that the secondary missed.
    secondary.control().inject(Operation::PruneBefore, Fault::Refused);
    store.prune_before(from_ms(2000)).await.unwrap();
    store.write_batch(&batch(2.0)[1..2]).await.unwrap();
    store.repair(&CopyOptions::default().with_range(range(2000, 5000))).await.unwrap();
    assert_eq!((verified(&store).await.missing, store.divergence().prunes_missed), (0, 1));
    store.repair(&CopyOptions::default().with_range(range(1000, 5000))).await.unwrap();
    assert!(verified(&store).await.is_same() && store.divergence().is_none());
}

#[tokio::test]
async fn a_dry_run_of_a_repair_changes_and_forgets_nothing() {
    let (store, _, secondary) = mirror(MirrorPolicy::Degrade);
    secondary.control().inject(Operation::WriteBatch, Fault::Refused);
    store.write_batch(&batch(1.0)).await.unwrap();
    let (known, found) = (store.divergence(), verified(&store).await);
    let report = store.repair(&CopyOptions::default().with_dry_run(true)).await.unwrap();
    assert_eq!((report.samples_repaired, found.missing), (5, 5));
    assert_eq!((store.divergence(), verified(&store).await), (known, found));
}

#[tokio::test]
async fn with_degrade_a_secondary_that_is_away_fails_neither_a_check_nor_the_end() {
    for policy in [MirrorPolicy::Degrade, MirrorPolicy::Require] {
        let (store, _, secondary) = mirror(policy);
        secondary.control().inject(Operation::Check, Fault::Refused);
        secondary.control().inject(Operation::Close, Fault::Refused);
        let (checked, closed) = (store.check().await, store.close().await);
        if policy == MirrorPolicy::Degrade {
            let problems = checked.unwrap().problems;
            assert!(problems.len() == 1 && problems[0].starts_with("secondary: "), "{problems:?}");
            closed.unwrap();
        } else {
            for error in [checked.unwrap_err(), closed.unwrap_err()] {
                assert_eq!(error.context("mirror"), Some("secondary"));
            }
        }
    }
}

/// Writes of the same samples by many tasks, on a primary and a secondary that dawdle each in its
/// own way: the last value is the same in both.
#[tokio::test(start_paused = true)]
async fn writes_of_a_series_reach_both_in_one_order() {
    let slow = |seed| {
        let plan = FaultPlan::new(seed).with_slow(1.0, Duration::from_millis(50));
        Arc::new(Faulty::new(InMemory::new(), plan.only(&[Operation::WriteBatch])))
    };
    for seed in 0..10 {
        let (primary, secondary) = (slow(2 * seed), slow(2 * seed + 1));
        let store = Arc::new(Mirrored::new(primary, secondary, MirrorPolicy::Require));
        let tasks: Vec<_> = (0..20)
            .map(|n| {
                let store = Arc::clone(&store);
                tokio::spawn(async move { store.write_batch(&batch(f64::from(n))).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert!(verified(&store).await.is_same(), "seed {seed}");
    }
}

/// A repair beside a writer never puts an older value back.
#[tokio::test(start_paused = true)]
async fn a_repair_beside_writes_leaves_both_the_same() {
    let slow = FaultPlan::new(3).with_slow(1.0, Duration::from_millis(20));
    let secondary = Arc::new(Faulty::new(InMemory::new(), slow));
    let primary = Arc::new(InMemory::new());
    primary.write_batch(&batch(-1.0)).await.unwrap();
    let store = Arc::new(Mirrored::new(primary, secondary, MirrorPolicy::Require));
    let writer = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for n in 0..50 {
                store.write_batch(&batch(f64::from(n))).await.unwrap();
            }
        })
    };
    while !writer.is_finished() {
        store.repair(&CopyOptions::default()).await.unwrap();
    }
    writer.await.unwrap();
    assert!(verified(&store).await.is_same());
}

/// The primary has the write before the prune, and the secondary is slow to take it.
#[tokio::test(start_paused = true)]
async fn prunes_and_writes_reach_both_in_one_order() {
    let (store, primary, secondary) = mirror(MirrorPolicy::Require);
    let second = Duration::from_secs(1);
    secondary.control().inject(Operation::WriteBatch, Fault::SlowBefore(second));
    let store = Arc::new(store);
    let writing = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.write_batch(&batch(1.0)).await }
    });
    while primary.inner().stats().await.unwrap().total_metrics == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(store.prune_before(from_ms(2000)).await.unwrap(), 2);
    writing.await.unwrap().unwrap();
    assert!(verified(&store).await.is_same());
    assert_eq!(secondary.inner().stats().await.unwrap().total_metrics, 3);
}

#[tokio::test]
async fn a_repair_of_some_series_does_not_forget_the_others() {
    let (store, _, secondary) = mirror(MirrorPolicy::Degrade);
    secondary.control().inject(Operation::WriteBatch, Fault::Refused);
    store.write_batch(&batch(1.0)).await.unwrap();
    let other = CopyOptions::default().with_filter(SeriesFilter::exact("web-2", "cpu").unwrap());
    assert_eq!(store.repair(&other).await.unwrap().samples_repaired, 0);
    assert_eq!(store.divergence().batches_missed, 1);
    store.repair(&CopyOptions::default()).await.unwrap();
    assert!(store.divergence().is_none() && verified(&store).await.is_same());
}

/// The secondary has what it was thought to have missed, and misses another batch while that is
/// found out.
#[tokio::test(start_paused = true)]
async fn a_repair_does_not_forget_what_is_missed_meanwhile() {
    let (store, _, secondary) = mirror(MirrorPolicy::Degrade);
    secondary.control().inject(Operation::WriteBatch, Fault::LostReply);
    store.write_batch(&batch(1.0)).await.unwrap();
    let second = Duration::from_secs(1);
    secondary.control().inject(Operation::Scan, Fault::SlowAfter(second));
    secondary.control().inject(Operation::WriteBatch, Fault::Refused);
    let options = CopyOptions::default();
    let missing = async {
        tokio::time::sleep(second / 2).await;
        store.write_batch(&batch(2.0)).await
    };
    let (repaired, written) = futures_util::join!(store.repair(&options), missing);
    written.unwrap();
    assert_eq!(repaired.unwrap().windows, 1);
    assert_eq!(store.divergence().batches_missed, 2);
    store.repair(&options).await.unwrap();
    assert!(store.divergence().is_none() && verified(&store).await.is_same());
}
