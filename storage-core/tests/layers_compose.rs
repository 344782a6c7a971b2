//! Layers on top of each other keep the contract when the backend below is unreliable.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use storage_core::layers::{
    Fault, FaultPlan, Faulty, Operation, Retry, RetryPolicy, Timeout, Timeouts, standard_stack_with,
};
use storage_core::{
    ErrorKind, InMemory, MetricRecord, Outcome, StorageBackend, StorageBackendExt, TimeRange,
};
use tokio::time::Instant;

const BATCHES: u32 = 1_000;
const BATCH_RECORDS: u32 = 5;

fn time(second: u32) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::seconds(i64::from(second))
}

fn batch(number: u32) -> Vec<MetricRecord> {
    let records = number * BATCH_RECORDS..(number + 1) * BATCH_RECORDS;
    records.map(|n| MetricRecord::new("web-1", time(n), "cpu", f64::from(n))).collect()
}

fn patient() -> RetryPolicy {
    RetryPolicy::default().with_attempts_max(u32::MAX).with_elapsed_max(Duration::from_secs(86_400))
}

#[tokio::test(start_paused = true)]
async fn a_thousand_batches_survive_that_every_second_reply_is_lost() {
    let faulty = Faulty::new(InMemory::new(), FaultPlan::new(1).with_lost_reply(0.5));
    let control = faulty.control();
    let store = Retry::new(faulty, patient());
    for number in 0..BATCHES {
        store.write_batch(&batch(number)).await.unwrap();
    }
    let lost = control.counts().lost_replies;
    assert!((800..1_200).contains(&lost), "{lost} replies lost");

    control.off();
    let found = store.query_range("web-1", "cpu", TimeRange::all()).await.unwrap();
    let expected: Vec<_> = (0..BATCHES).flat_map(batch).collect();
    assert_eq!(found, expected);
    let total = u64::from(BATCHES * BATCH_RECORDS);
    assert_eq!(store.stats().await.unwrap().total_metrics, total);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_batches_survive_every_fault_in_the_whole_stack() {
    let plan = FaultPlan::new(2)
        .with_coins(0.8, 0.8)
        .with_hang_before(0.05)
        .with_hang_after(0.05)
        .with_slow(0.1, Duration::from_secs(60));
    let faulty = Faulty::new(InMemory::new(), plan);
    let control = faulty.control();
    let store = standard_stack_with(faulty, Timeouts::default(), patient());
    for number in 0..BATCHES {
        store.write_batch(&batch(number)).await.unwrap();
    }
    let counts = control.counts();
    for count in
        [counts.refused, counts.lost_requests, counts.lost_replies, counts.hangs, counts.slow]
    {
        assert!(count > 30, "{counts:?}");
    }
    // Reads are repeated, too.
    let found = store.query_range("web-1", "cpu", TimeRange::all()).await.unwrap();
    assert_eq!(found, (0..BATCHES).flat_map(batch).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn definite_failures_leave_nothing_behind() {
    let faulty = Faulty::new(InMemory::new(), FaultPlan::new(3).with_refused(0.5));
    let control = faulty.control();
    let store = Retry::new(faulty, RetryPolicy::default().with_attempts_max(1));
    let mut written = Vec::new();
    for number in 0..BATCHES {
        match store.write_batch(&batch(number)).await {
            Ok(()) => written.extend(batch(number)),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable);
                assert_eq!(error.outcome(), Outcome::NotApplied);
            }
        }
    }
    control.off();
    assert!(written.len() < (BATCHES * BATCH_RECORDS) as usize);
    let found = store.query_range("web-1", "cpu", TimeRange::all()).await.unwrap();
    assert_eq!(found, written);
}

#[tokio::test(start_paused = true)]
async fn a_hang_ends_within_the_budget_and_nothing_goes_on() {
    let timeout = Duration::from_secs(2);
    let budget = Duration::from_secs(10);
    let faulty = Faulty::new(InMemory::new(), FaultPlan::new(4).with_hang_before(1.0));
    let control = faulty.control();
    let policy = RetryPolicy::default().with_attempts_max(99).with_elapsed_max(budget);
    let store = Retry::new(Timeout::new(faulty, Timeouts::default().with_write(timeout)), policy);

    let started = Instant::now();
    let error = store.write_batch(&batch(0)).await.unwrap_err();
    assert!(started.elapsed() <= budget + timeout);
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown));
    let attempts = error.context("attempts").unwrap().to_owned();
    assert_eq!(attempts, control.counts().hangs.to_string());

    control.off();
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!(store.stats().await.unwrap().total_metrics, 0);
}

/// The rule that the documentation of `Retry` states as "a late repetition".
#[tokio::test(start_paused = true)]
async fn a_late_repetition_puts_its_older_value_back() {
    let shared = InMemory::open("late-repetition");
    let faulty = Faulty::new(InMemory::open("late-repetition"), FaultPlan::new(5));
    faulty.control().inject(Operation::WriteBatch, Fault::LostReply);
    let store = Retry::new(faulty, RetryPolicy::default());
    let (late, other) = tokio::join!(store.write("a", "b", time(0), 1.0), async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        shared.write("a", "b", time(0), 2.0).await
    });
    assert!(late.is_ok() && other.is_ok());
    assert_eq!(shared.latest_one("a", "b").await.unwrap().unwrap().value, 1.0);
    InMemory::forget("late-repetition");
}
