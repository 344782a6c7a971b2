//! What a writer writes until it is killed, and the proof that what it left is whole.
//!
//! Batch n of a lane writes the value n at n seconds into each of [`SERIES`] series, and replaces
//! one earlier sample by the value n + 0.5 with metadata that names n. So the number of the last
//! batch decides every single sample, and a store that holds a part of a batch, or skips one, is
//! equal to none of the states that may be. Each batch also writes a sample of a long time ago, for
//! the prunes in between to remove: a prune that is killed may leave some, and nothing else may go.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use chrono::Duration;
use futures_util::TryStreamExt;
use serde_json::json;
use storage_core::metrics::Accumulator;
use storage_core::{MetricRecord, Result, Sample, SeriesFilter, StorageBackend, TimeRange};

use crate::data::{NOON, at, range};
use crate::failure::Failure;

/// Series that each batch writes to.
pub const SERIES: u64 = 20;

/// How far back a batch reaches to replace a sample. Batches older than that, counted from the
/// last one, are never touched again and may be pruned.
pub const REACH: u64 = 500;

/// Every so many batches the writer compacts, and every so many it prunes what is old.
const COMPACT_EVERY: u64 = 64;
const PRUNE_EVERY: u64 = 37;

/// The metric of what prunes remove, and the seconds that it is spread over.
const OLD: &str = "old";
const OLD_SECONDS: u64 = 50_000;

/// One writer's part of the store; every lane has a server of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane(pub usize);

impl Lane {
    fn server(self) -> String {
        format!("lane-{}", self.0)
    }

    /// The server of what prunes remove.
    fn old_server(self) -> String {
        format!("old-{}", self.0)
    }
}

/// Writes batch `start` and all that follow, until `on_ack` says no or an error comes.
///
/// `on_ack` is called with the number of each batch as soon as it is acknowledged.
///
/// # Errors
/// Those of the backend; a prune that leaves something.
pub async fn write_forever(
    store: &dyn StorageBackend,
    lane: Lane,
    start: u64,
    mut on_ack: impl FnMut(u64) -> bool,
) -> Result<(), Failure> {
    let mut number = start.max(1);
    loop {
        store.write_batch(&batch(lane, number)).await?;
        if !on_ack(number) {
            return Ok(());
        }
        if number.is_multiple_of(COMPACT_EVERY) {
            store.compact().await?;
        }
        if number.is_multiple_of(PRUNE_EVERY) {
            store.prune_before(at(NOON)).await?;
            let left = store.query_range(&lane.old_server(), OLD, TimeRange::all()).await?;
            ensure_eq!(left.len(), 0, "samples left by a prune");
        }
        number += 1;
    }
}

/// What a lane turned out to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// The last batch that is there; all before it, from the first that was not pruned, are too.
    /// 0 if there is none.
    pub last: u64,
    /// Samples of the lane.
    pub samples: u64,
}

/// Reads a lane whole and proves that it holds the batches `first..=n` and nothing else, whatever
/// `n` is; that every way of asking gives the same answer; and which `n` it is.
///
/// # Errors
/// A description of what is not as it should be.
pub async fn survey(
    store: &dyn StorageBackend,
    lane: Lane,
    first: u64,
) -> Result<Verified, Failure> {
    let server = lane.server();
    let newest = store.query_range(&server, &metric(0), TimeRange::all()).await?;
    // Batch n is the only one that writes at n seconds for the first time.
    let last = newest.last().map_or(0, |record| {
        record.timestamp.signed_duration_since(at(NOON)).num_seconds().unsigned_abs()
    });
    let expected = expected(lane, first, last);
    let mut samples = 0;
    for (name, expected) in &expected {
        let found = store.query_range(&server, name, TimeRange::all()).await?;
        same_samples(&found, expected).map_err(|failure| {
            failure.during(format!("{server} {name}, batches {first}..={last}"))
        })?;
        let found = store.aggregate(&server, name, TimeRange::all()).await?;
        let values = expected.iter().map(|sample| &sample.value);
        // Sums of halves are exact.
        let aggregated = values.collect::<Accumulator>().finish();
        ensure_eq!(found, aggregated, "aggregate of {server} {name}");
        samples += expected.len() as u64;
    }
    if store.capabilities().series {
        survey_lists(store, &server, &expected).await?;
    }
    Ok(Verified { last, samples })
}

/// Proves that of each lane, whose first batch is `first`, the last one lies within the bounds
/// given for it: from the last acknowledged to the one that was under way. And that nothing else
/// is stored, and nothing stored is damaged.
///
/// # Errors
/// A description of what is not as it should be.
pub async fn verify(
    store: &dyn StorageBackend,
    first: u64,
    bounds: &[(Lane, RangeInclusive<u64>)],
) -> Result<Vec<Verified>, Failure> {
    let lanes: Vec<_> = bounds.iter().map(|(lane, _)| *lane).collect();
    let found = verify_whole(store, first, &lanes).await?;
    within_bounds(&found, bounds)?;
    Ok(found)
}

/// Fails unless the last batch of each lane lies within the bounds given for it.
pub(super) fn within_bounds(
    found: &[Verified],
    bounds: &[(Lane, RangeInclusive<u64>)],
) -> Result<(), Failure> {
    for ((lane, bounds), verified) in bounds.iter().zip(found) {
        let (acked, last) = (bounds.start(), verified.last);
        ensure!(last >= *acked, "{lane:?}: batch {acked} was acknowledged, but {last} is the last");
        ensure!(bounds.contains(&last), "{lane:?}: batch {last} is there, expected {bounds:?}");
    }
    Ok(())
}

/// As [`verify`], but for a store that may have lost batches: some last one, whichever.
///
/// # Errors
/// A description of what is not as it should be.
pub async fn verify_whole(
    store: &dyn StorageBackend,
    first: u64,
    lanes: &[Lane],
) -> Result<Vec<Verified>, Failure> {
    // What a prune that was killed has left.
    store.prune_before(at(NOON)).await?;
    let mut found = Vec::new();
    for lane in lanes {
        found.push(survey(store, *lane, first).await?);
    }
    let samples = found.iter().map(|lane| lane.samples).sum::<u64>();
    let lanes_filled = found.iter().filter(|lane| lane.samples > 0).count() as u64;
    let stats = store.stats().await?;
    ensure_eq!((stats.total_metrics, stats.series), (samples, lanes_filled * SERIES), "stats");
    if store.capabilities().check {
        let problems = store.check().await?.problems;
        ensure!(problems.is_empty(), "check finds {problems:?}");
    }
    Ok(found)
}

/// Removes the batches before `first`, and returns how many samples those were.
pub(crate) async fn prune_to(store: &dyn StorageBackend, first: u64) -> Result<u64> {
    store.prune_before(time_of(first)).await
}

fn batch(lane: Lane, number: u64) -> Vec<MetricRecord> {
    let server = lane.server();
    let record = |series, place, value| {
        MetricRecord::new(server.clone(), time_of(place), metric(series), value)
    };
    let mut records: Vec<_> =
        (0..SERIES).map(|series| record(series, number, number as f64)).collect();
    if let Some((series, place)) = replaced_by(number) {
        let metadata = json!({ "batch": number });
        records.push(record(series, place, number as f64 + 0.5).with_metadata(metadata));
    }
    let before_ms = 1000 * (1 + number % OLD_SECONDS);
    let time = at(NOON) - Duration::milliseconds(i64::try_from(before_ms).unwrap_or(1));
    records.push(MetricRecord::new(lane.old_server(), time, OLD, number as f64));
    records
}

/// The series and the batch whose sample there batch `number` replaces.
fn replaced_by(number: u64) -> Option<(u64, u64)> {
    let reach = REACH.min(number.checked_sub(1)?);
    // Any scattering does; it only has to be the same for the writer and for the one who checks.
    let scattered = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
    (reach > 0).then(|| (scattered % SERIES, number - 1 - scattered / SERIES % reach))
}

/// What each series holds after the batches up to `last`, those before `first` pruned.
fn expected(lane: Lane, first: u64, last: u64) -> BTreeMap<String, Vec<Sample>> {
    let mut all: BTreeMap<_, Vec<Sample>> = (0..SERIES).map(|s| (metric(s), Vec::new())).collect();
    for number in first..=last {
        for record in batch(lane, number) {
            let Some(samples) = all.get_mut(&record.metric_type) else { continue };
            let sample = record.to_sample();
            let place = samples.partition_point(|before| before.timestamp < sample.timestamp);
            match samples.get_mut(place) {
                Some(before) if before.timestamp == sample.timestamp => *before = sample,
                // One that a prune removed: it was replaced before that.
                _ if sample.timestamp < time_of(first) => {}
                _ => samples.push(sample),
            }
        }
    }
    all
}

fn same_samples(found: &[MetricRecord], expected: &[Sample]) -> Result<(), Failure> {
    for (found, expected) in found.iter().zip(expected) {
        let found = found.to_sample();
        ensure_eq!(&found, expected, "sample");
    }
    ensure_eq!(found.len(), expected.len(), "number of samples");
    Ok(())
}

/// Proves that listing and scanning agree with the series one by one.
async fn survey_lists(
    store: &dyn StorageBackend,
    server: &str,
    expected: &BTreeMap<String, Vec<Sample>>,
) -> Result<(), Failure> {
    let filter = SeriesFilter::parse(server, "*")?;
    let found: Vec<_> = store
        .series(&filter)
        .await?
        .into_iter()
        .map(|info| (info.series.metric_type, info.count, info.oldest, info.newest))
        .collect();
    let listed: Vec<_> = expected
        .iter()
        .filter_map(|(name, samples)| {
            let (oldest, newest) = (samples.first()?.timestamp, samples.last()?.timestamp);
            Some((name.clone(), samples.len() as u64, oldest, newest))
        })
        .collect();
    ensure_eq!(found, listed, "series of {server}");
    let mut scanned: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    let mut batches = store.scan(&filter, TimeRange::all());
    while let Some(batch) = batches.try_next().await? {
        scanned.entry(batch.series.metric_type).or_default().extend(batch.samples);
    }
    let filled = expected.iter().filter(|(_, samples)| !samples.is_empty());
    ensure!(filled.eq(scanned.iter()), "the scan of {server} differs from its series");
    // A window over a part of the batches, so that blocks are cut.
    let some = range(NOON + 10_500, NOON + 100_000_500);
    let windows = store.windows(&filter, some, std::time::Duration::from_secs(60)).await?;
    let counted: u64 =
        windows.iter().flat_map(|of| &of.windows).map(|window| window.aggregation.count).sum();
    let inside = |sample: &&Sample| some.contains(sample.timestamp);
    let expected = expected.values().flatten().filter(inside).count() as u64;
    ensure_eq!(counted, expected, "samples in windows of {server}");
    Ok(())
}

fn metric(series: u64) -> String {
    format!("metric_{series:02}")
}

pub(super) fn time_of(number: u64) -> chrono::DateTime<chrono::Utc> {
    at(NOON) + Duration::seconds(i64::try_from(number).unwrap_or(i64::MAX / 1000))
}
