//! What a writer stores in a history until it is killed, and the proof that what it left is whole.
//!
//! Batch n of a lane stores the value n at n seconds in each of [`RECORDS`] records, and a second one
//! at the same time, so that ties have an order to lose. The number of the last batch decides every
//! single value, so a store that holds a part of a batch, or skips one, is equal to none of the
//! states that may be. Each batch also stores values of a long time ago, for the cleanups in between
//! to remove: a cleanup that is killed may leave some, and nothing else may go.

use chrono::{DateTime, Utc};
use serde_json::json;
use storage_core::{HistoryQuery, Matcher, Result, Store as WholeStore, StoredValue};

use super::workload::{Lane, Verified, time_of};
use crate::data::{NOON, at};
use crate::failure::Failure;

/// Values of one batch that stay.
pub(super) const RECORDS: u64 = 2 * NAMES;

const NAMES: u64 = 10;

/// Values of one batch that the next cleanup removes.
const OLD_VALUES: u64 = 30;

/// Every so many batches the writer removes what is old, and compacts.
const CLEANUP_EVERY: u64 = 37;
const COMPACT_EVERY: u64 = 128;

fn old_name(lane: Lane) -> String {
    format!("old-{}", lane.0)
}

fn old_values(lane: Lane, number: u64) -> impl Iterator<Item = StoredValue> {
    let value = move |nth| {
        let time = at(NOON - 1 - (number % 1000 * OLD_VALUES + nth) as i64);
        StoredValue::new(old_name(lane), time, json!(number))
    };
    (0..OLD_VALUES).map(value)
}

fn name(lane: Lane, record: u64) -> String {
    format!("lane-{}::{record}", lane.0)
}

fn batch(lane: Lane, number: u64) -> Vec<StoredValue> {
    let value = |nth: u64| {
        let value = json!({ "batch": number, "tie": nth / NAMES });
        StoredValue::new(name(lane, nth % NAMES), time_of(number), value)
    };
    (0..RECORDS).map(value).collect()
}

pub(super) async fn write_forever(
    store: &WholeStore,
    lane: Lane,
    start: u64,
    mut on_ack: impl FnMut(u64) -> bool,
) -> Result<(), Failure> {
    let history = store.history()?;
    let mut number = start.max(1);
    loop {
        let mut values = batch(lane, number);
        values.extend(old_values(lane, number));
        history.store_batch(&values).await?;
        if !on_ack(number) {
            return Ok(());
        }
        if number.is_multiple_of(CLEANUP_EVERY) {
            history.cleanup(at(NOON)).await?;
            let left = history.query(&HistoryQuery::parse(&old_name(lane))?).await?;
            ensure_eq!(left.len(), 0, "values left by a cleanup");
        }
        if number.is_multiple_of(COMPACT_EVERY) {
            store.metrics().compact().await?;
        }
        number += 1;
    }
}

/// Proves of each lane that it holds the batches `first..=n` and nothing else, whatever `n` is, that
/// every way of asking gives the same answer, and that nothing stored is damaged.
pub(super) async fn verify_whole(
    store: &WholeStore,
    first: u64,
    lanes: &[Lane],
) -> Result<Vec<Verified>, Failure> {
    // What a cleanup that was killed has left.
    store.history()?.cleanup(at(NOON)).await?;
    let mut verified = Vec::new();
    for lane in lanes {
        verified.push(survey(store, *lane, first).await?);
    }
    let values: u64 = verified.iter().map(|lane| lane.samples).sum();
    let records = store.history()?.records(&Matcher::any()).await?;
    ensure_eq!(records.iter().map(|record| record.count).sum::<u64>(), values, "values counted");
    if store.metrics().capabilities().check {
        let problems = store.metrics().check().await?.problems;
        ensure!(problems.is_empty(), "check finds {problems:?}");
    }
    Ok(verified)
}

async fn survey(store: &WholeStore, lane: Lane, first: u64) -> Result<Verified, Failure> {
    let history = store.history()?;
    let all = HistoryQuery::parse(&format!("lane-{}::*", lane.0))?;
    let found = history.query(&all).await?;
    let last = found.last().map_or(0, |value| number_of(value.stored_at));
    let mut expected = Vec::new();
    for record in 0..NAMES {
        let name = name(lane, record);
        for number in first..=last {
            let of_batch = batch(lane, number).into_iter();
            expected.extend(of_batch.filter(|value| value.record_name == name));
        }
    }
    // By name: there are as many as digits.
    ensure_eq!(found.len(), expected.len(), "values of {lane:?}, batches {first}..={last}");
    for (found, expected) in found.iter().zip(&expected) {
        ensure_eq!(found, expected, "a value of {lane:?}, batches {first}..={last}");
    }
    let newest = history.query(&all.newest(1)).await?;
    let right = |value: &StoredValue| value.value == json!({ "batch": last, "tie": 1 });
    ensure!(newest.iter().all(right), "the newest of {lane:?} are not of batch {last}");
    Ok(Verified { last, samples: expected.len() as u64 })
}

fn number_of(time: DateTime<Utc>) -> u64 {
    time.signed_duration_since(at(NOON)).num_seconds().unsigned_abs()
}

pub(super) async fn clean_up_to(store: &WholeStore, first: u64) -> Result<u64> {
    store.history()?.cleanup(time_of(first)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage_core::InMemory;

    async fn written(last: u64) -> WholeStore {
        let store = WholeStore::from(InMemory::new());
        write_forever(&store, Lane(0), 1, |number| number < last).await.unwrap();
        store
    }

    #[tokio::test]
    async fn whole_batches_are_accepted_and_nothing_else() {
        let store = written(50).await;
        let found = verify_whole(&store, 1, &[Lane(0)]).await.unwrap();
        assert_eq!(found, [Verified { last: 50, samples: 50 * RECORDS }]);
        assert_eq!(clean_up_to(&store, 11).await.unwrap(), 10 * RECORDS);
        assert!(verify_whole(&store, 11, &[Lane(0)]).await.is_ok());
        assert!(verify_whole(&store, 1, &[Lane(0)]).await.is_err());
        let part = &batch(Lane(0), 51)[..7];
        store.history().unwrap().store_batch(part).await.unwrap();
        assert!(verify_whole(&store, 11, &[Lane(0)]).await.is_err(), "a part of a batch");
        let store = written(20).await;
        let swapped: Vec<_> = batch(Lane(0), 21).into_iter().rev().collect();
        store.history().unwrap().store_batch(&swapped).await.unwrap();
        assert!(verify_whole(&store, 1, &[Lane(0)]).await.is_err(), "ties the wrong way round");
        let store = written(20).await;
        store.history().unwrap().store_batch(&batch(Lane(0), 22)).await.unwrap();
        assert!(verify_whole(&store, 1, &[Lane(0)]).await.is_err(), "a batch is missing");
    }
}
