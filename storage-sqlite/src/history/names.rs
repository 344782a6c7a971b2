//! The names of records and their ids, in memory.
//!
//! Ids are never given to another name and rows are never removed, so what is known stays true;
//! what other processes add is read with the next question.

use std::collections::BTreeMap;
use std::sync::Arc;

use storage_core::Matcher;

/// Every record that this handle knows, in the order of names.
#[derive(Debug, Default)]
pub(crate) struct RecordNames {
    by_name: BTreeMap<Arc<str>, i64>,
    last_id: i64,
}

impl RecordNames {
    /// Remembers names that are committed.
    pub(crate) fn learn(&mut self, names: impl IntoIterator<Item = (i64, Arc<str>)>) {
        for (id, name) in names {
            self.by_name.insert(name, id);
            self.last_id = self.last_id.max(id);
        }
    }

    pub(crate) fn id(&self, name: &str) -> Option<i64> {
        self.by_name.get(name).copied()
    }

    /// The largest id that is known; all below are known too.
    pub(crate) fn last_id(&self) -> i64 {
        self.last_id
    }

    /// The records that `matcher` matches, in the order of names.
    pub(crate) fn matching(&self, matcher: &Matcher) -> Vec<(i64, Arc<str>)> {
        let known = |(name, id): (&Arc<str>, &i64)| (*id, Arc::clone(name));
        if let Some(names) = matcher.names() {
            let found = names.iter().filter_map(|name| self.by_name.get_key_value(name.as_str()));
            return found.map(known).collect();
        }
        let prefix = matcher.literal_prefix();
        let from = (std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded);
        self.by_name
            .range::<str, _>(from)
            .take_while(|(name, _)| name.starts_with(prefix))
            .filter(|(name, _)| matcher.matches(name))
            .map(known)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_their_order() {
        let mut names = RecordNames::default();
        names.learn([(2, "b".into()), (1, "ab".into()), (4, "a*".into()), (3, "B".into())]);
        let ids = |pattern: Matcher| {
            names.matching(&pattern).into_iter().map(|(id, _)| id).collect::<Vec<_>>()
        };
        assert_eq!(ids(Matcher::any()), [3, 4, 1, 2]);
        assert_eq!(ids(Matcher::parse("a*").unwrap()), [4, 1]);
        assert_eq!(ids(Matcher::exact("a*").unwrap()), [4]);
        assert_eq!(ids(Matcher::parse("*b").unwrap()), [1, 2]);
        assert_eq!(ids(Matcher::any_of(["x", "b", "B"]).unwrap()), [3, 2]);
        assert_eq!((names.last_id(), names.id("ab"), names.id("x")), (4, Some(1), None));
    }
}
