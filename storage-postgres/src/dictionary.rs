//! The names of series and their ids, in memory.
//!
//! Ids are never given to another series and rows are never removed, so what is known stays true.
//! What is not known is asked for.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use storage_core::SeriesKey;

/// Series that this handle has met.
#[derive(Debug, Default)]
pub(crate) struct Dictionary {
    by_name: FxHashMap<Box<str>, FxHashMap<Box<str>, i64>>,
    by_id: FxHashMap<i64, Arc<SeriesKey>>,
}

impl Dictionary {
    pub(crate) fn insert(&mut self, id: i64, key: SeriesKey) {
        let metrics = self.by_name.entry(key.server_id.as_str().into()).or_default();
        metrics.insert(key.metric_type.as_str().into(), id);
        self.by_id.insert(id, Arc::new(key));
    }

    pub(crate) fn id(&self, server_id: &str, metric_type: &str) -> Option<i64> {
        self.by_name.get(server_id)?.get(metric_type).copied()
    }

    pub(crate) fn key(&self, id: i64) -> Option<&Arc<SeriesKey>> {
        self.by_id.get(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_pairs() {
        let mut dictionary = Dictionary::default();
        dictionary.insert(1, SeriesKey::new("a", "bc"));
        dictionary.insert(2, SeriesKey::new("ab", "c"));
        assert_eq!((dictionary.id("a", "bc"), dictionary.id("ab", "c")), (Some(1), Some(2)));
        assert_eq!(dictionary.id("a", "c"), None);
        assert_eq!(**dictionary.key(2).unwrap(), SeriesKey::new("ab", "c"));
        assert!(dictionary.key(3).is_none());
    }
}
