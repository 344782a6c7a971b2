//! The names of series and their ids, in memory: what one connection has learned.
//!
//! A server never gives an id to another series. But behind a URL may stand another server than
//! before: a standby that was promoted without the last transactions, or a backup. It gives the ids
//! of those that were lost again, and what was remembered of them would send samples to the wrong
//! series. No number tells servers apart for certain: a snapshot of the disk has the same system
//! identifier and timeline, and a standby shows its new timeline only after its next checkpoint.
//! A connection does: it ends when its server stops, and a server that goes on has lost nothing.
//! So ids hold for the connection that learned them. Each new one starts with an empty dictionary,
//! and batches that were prepared with an older one are named anew: see
//! [`Batch::rename`](crate::commit::Batch::rename). Questions remember no ids at all: those that
//! need names ask for them in the same statement.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use rustc_hash::FxHashMap;
use storage_core::SeriesKey;

/// Series that the connection which writes has met.
#[derive(Debug, Default)]
pub(crate) struct Dictionary(RwLock<Known>);

/// What is known.
#[derive(Debug, Default)]
pub(crate) struct Known {
    by_name: FxHashMap<Box<str>, FxHashMap<Box<str>, i64>>,
    by_id: FxHashMap<i64, SeriesKey>,
}

impl Dictionary {
    /// Remembers series that are known to be committed.
    pub(crate) fn learn(&self, series: impl IntoIterator<Item = (i64, SeriesKey)>) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        series.into_iter().for_each(|(id, key)| known.insert(id, key));
    }

    /// What is known at the moment; nothing is learned while it is held.
    pub(crate) fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn insert(&mut self, id: i64, key: SeriesKey) {
        let metrics = self.by_name.entry(key.server_id.as_str().into()).or_default();
        metrics.insert(key.metric_type.as_str().into(), id);
        self.by_id.insert(id, key);
    }

    pub(crate) fn id(&self, server_id: &str, metric_type: &str) -> Option<i64> {
        self.by_name.get(server_id)?.get(metric_type).copied()
    }

    pub(crate) fn key(&self, id: i64) -> Option<&SeriesKey> {
        self.by_id.get(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_pairs() {
        let dictionary = Dictionary::default();
        dictionary.learn([(1, SeriesKey::new("a", "bc")), (2, SeriesKey::new("ab", "c"))]);
        let known = dictionary.known();
        assert_eq!((known.id("a", "bc"), known.id("ab", "c")), (Some(1), Some(2)));
        assert_eq!(known.id("a", "c"), None);
        assert_eq!(known.key(2), Some(&SeriesKey::new("ab", "c")));
        assert!(known.key(3).is_none());
    }
}
