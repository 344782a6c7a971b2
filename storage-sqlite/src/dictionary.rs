//! The names of series and their ids, in memory.
//!
//! Ids are never given to another series and rows are never removed, so what is known stays true;
//! what other processes add is read with the next question (ids above [`Dictionary::last_id`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use storage_core::{SeriesFilter, SeriesKey};

/// Every series that this handle knows.
#[derive(Debug, Default)]
pub(crate) struct Dictionary {
    by_name: FxHashMap<Box<str>, FxHashMap<Box<str>, i64>>,
    by_id: FxHashMap<i64, Arc<SeriesKey>>,
    /// By the order of the contract: server, then metric, byte by byte.
    in_order: BTreeMap<Arc<SeriesKey>, i64>,
    last_id: i64,
}

impl Dictionary {
    pub(crate) fn insert(&mut self, id: i64, key: SeriesKey) {
        let metrics = self.by_name.entry(key.server_id.as_str().into()).or_default();
        metrics.insert(key.metric_type.as_str().into(), id);
        let key = Arc::new(key);
        self.by_id.insert(id, Arc::clone(&key));
        self.in_order.insert(key, id);
        self.last_id = self.last_id.max(id);
    }

    /// The largest id that is known; all below are known too.
    pub(crate) fn last_id(&self) -> i64 {
        self.last_id
    }

    pub(crate) fn id(&self, server_id: &str, metric_type: &str) -> Option<i64> {
        self.by_name.get(server_id)?.get(metric_type).copied()
    }

    /// The ids of a server's series by metric.
    pub(crate) fn metrics(&self, server_id: &str) -> Option<&FxHashMap<Box<str>, i64>> {
        self.by_name.get(server_id)
    }

    pub(crate) fn key(&self, id: i64) -> Option<&Arc<SeriesKey>> {
        self.by_id.get(&id)
    }

    /// Returns the ids of the series that `filter` chooses, in the order of their names.
    pub(crate) fn matching(&self, filter: &SeriesFilter) -> Vec<i64> {
        if let Some((server_id, metric_type)) = filter.as_exact() {
            return self.id(server_id, metric_type).into_iter().collect();
        }
        self.chosen(filter).map(|(_, id)| id).collect()
    }

    /// The names and ids of the series that `filter` chooses, in the order of their names.
    pub(crate) fn chosen<'a>(
        &'a self,
        filter: &'a SeriesFilter,
    ) -> impl Iterator<Item = (&'a SeriesKey, i64)> {
        // Servers that are named are looked up; any other filter is tried on every series.
        let named = filter.server_id.names().map(|names| names.iter().map(String::as_str));
        let of_named = named.into_iter().flatten().flat_map(|name| self.of_server(name));
        let all = filter.server_id.names().is_none().then(|| self.in_order.iter());
        let all = all.into_iter().flatten().map(|(key, id)| (key.as_ref(), *id));
        of_named.chain(all).filter(|(key, _)| filter.matches_key(key))
    }

    fn of_server(&self, server_id: &str) -> impl Iterator<Item = (&SeriesKey, i64)> {
        let from = self.in_order.range::<SeriesKey, _>(&SeriesKey::new(server_id, "")..);
        let from = from.map(|(key, id)| (key.as_ref(), *id));
        let server_id = server_id.to_owned();
        from.take_while(move |(key, _)| key.server_id == server_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_come_in_the_order_of_names() {
        let mut dictionary = Dictionary::default();
        for (id, server, metric) in [(1, "b", "x"), (2, "a", "y"), (3, "a", "x"), (4, "B", "x")] {
            dictionary.insert(id, SeriesKey::new(server, metric));
        }
        let matching =
            |server, metric| dictionary.matching(&SeriesFilter::parse(server, metric).unwrap());
        assert_eq!(matching("*", "*"), [4, 3, 2, 1]);
        assert_eq!(matching("*", "x"), [4, 3, 1]);
        assert_eq!(matching("a", "y"), [2]);
        assert_eq!(matching("a", "*"), [3, 2]);
        assert_eq!(matching("b", "*x*"), [1]);
        assert!(matching("a", "z").is_empty());
        assert_eq!((dictionary.last_id(), dictionary.id("a", "x")), (4, Some(3)));
    }
}
