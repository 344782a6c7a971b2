//! What the handles of a location share beside the samples: whatever a bug needs to remember.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use storage_core::metrics::time::floor_ms;
use storage_core::{MetricRecord, SeriesKey};

/// Shared by all handles of a location.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) handles: AtomicU64,
    pub(crate) open: AtomicI64,
    pub(crate) opening: AtomicBool,
    pub(crate) closed: AtomicBool,
    pub(crate) compactions: AtomicU64,
    pub(crate) writing: AtomicI64,
    pub(crate) pruning: AtomicI64,
    pub(crate) reading: AtomicI64,
    pub(crate) hidden: AtomicI64,
    pub(crate) scans: AtomicI64,
    pub(crate) errors: AtomicU64,
    pub(crate) broken: AtomicBool,
    log: Mutex<Log>,
}

/// A sample's place.
pub(crate) type Place = (SeriesKey, i64);

/// What was done so far.
#[derive(Default)]
pub(crate) struct Log {
    /// Samples that are stored, and whether an overwrite hit them since they were compacted.
    pub(crate) stored: BTreeMap<Place, Option<serde_json::Value>>,
    pub(crate) frozen: BTreeSet<Place>,
    pub(crate) repeated: BTreeSet<Place>,
    pub(crate) overwrites: u64,
    pub(crate) overwrites_by_series: HashMap<SeriesKey, u64>,
    pub(crate) frozen_overwrites: u64,
    pub(crate) bytes: u64,
    pub(crate) version: u64,
    pub(crate) metadata_lost: bool,
    pub(crate) oldest_ever: Option<i64>,
    pub(crate) newest_ever: Option<i64>,
    pub(crate) first_ever: Option<i64>,
    pub(crate) oldest_of: HashMap<SeriesKey, i64>,
    pub(crate) series_ever: BTreeSet<SeriesKey>,
    pub(crate) refused: BTreeSet<SeriesKey>,
    pub(crate) refused_count: u64,
    pub(crate) asked: BTreeSet<SeriesKey>,
    pub(crate) ended: BTreeSet<SeriesKey>,
    pub(crate) watermark: Option<i64>,
    pub(crate) last_prune: Option<(i64, u64)>,
    pub(crate) prune_mark: bool,
    pub(crate) pending: Vec<MetricRecord>,
}

pub(crate) fn key_of(record: &MetricRecord) -> SeriesKey {
    SeriesKey::new(&record.server_id, &record.metric_type)
}

pub(crate) fn place_of(record: &MetricRecord) -> Place {
    (key_of(record), floor_ms(record.timestamp))
}

impl Shared {
    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    pub(crate) fn note_write(&mut self, records: &[MetricRecord]) {
        for record in records {
            let place = place_of(record);
            let (key, ms) = place.clone();
            self.bytes += 40;
            self.oldest_ever = Some(self.oldest_ever.map_or(ms, |oldest| oldest.min(ms)));
            self.newest_ever = Some(self.newest_ever.map_or(ms, |newest| newest.max(ms)));
            self.first_ever.get_or_insert(ms);
            let oldest = self.oldest_of.entry(key.clone()).or_insert(ms);
            *oldest = ms.min(*oldest);
            self.series_ever.insert(key.clone());
            if self.frozen.contains(&place) {
                self.frozen_overwrites += 1;
            }
            if self.stored.insert(place.clone(), record.metadata.clone()).is_some() {
                self.overwrites += 1;
                *self.overwrites_by_series.entry(key).or_default() += 1;
                self.repeated.insert(place);
            }
        }
    }

    pub(crate) fn note_prune(&mut self, cutoff_ms: i64) {
        let alive = |places: &BTreeMap<Place, _>| -> BTreeSet<SeriesKey> {
            places.keys().map(|(key, _)| key.clone()).collect()
        };
        let before = alive(&self.stored);
        self.stored.retain(|(_, ms), _| *ms >= cutoff_ms);
        let after = alive(&self.stored);
        self.ended.extend(before.difference(&after).cloned());
        self.watermark = self.watermark.max(Some(cutoff_ms));
    }
}

/// Counts one up while it lives.
pub(crate) struct Held<'a>(&'a AtomicI64);

impl<'a> Held<'a> {
    pub(crate) fn new(count: &'a AtomicI64) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Breaks the store if it is dropped before it is told that all is done.
pub(crate) struct Unfinished<'a> {
    broken: &'a AtomicBool,
    done: bool,
}

impl<'a> Unfinished<'a> {
    pub(crate) fn new(broken: &'a AtomicBool) -> Self {
        Self { broken, done: false }
    }

    pub(crate) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.broken.store(true, Ordering::SeqCst);
        }
    }
}

/// Lets others run in the middle of something.
pub(crate) async fn pause() {
    for _ in 0..4 {
        tokio::task::yield_now().await;
    }
}
