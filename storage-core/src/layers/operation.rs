//! The names of the operations of a backend, for everything that counts, logs or chooses by them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An operation of [`StorageBackend`](crate::StorageBackend).
///
/// The one vocabulary of counters, log fields, errors and injected faults.
///
/// ```
/// use storage_core::layers::Operation;
///
/// assert_eq!(Operation::WriteBatch.as_str(), "write_batch");
/// assert!(Operation::QueryRange.is_read() && !Operation::PruneBefore.is_read());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Operation {
    /// [`write_batch`](crate::StorageBackend::write_batch)
    WriteBatch,
    /// [`query_range`](crate::StorageBackend::query_range)
    QueryRange,
    /// [`aggregate`](crate::StorageBackend::aggregate)
    Aggregate,
    /// [`prune_before`](crate::StorageBackend::prune_before)
    PruneBefore,
    /// [`stats`](crate::StorageBackend::stats)
    Stats,
    /// [`series`](crate::StorageBackend::series)
    Series,
    /// [`latest`](crate::StorageBackend::latest)
    Latest,
    /// [`windows`](crate::StorageBackend::windows)
    Windows,
    /// [`scan`](crate::StorageBackend::scan)
    Scan,
    /// [`flush`](crate::StorageBackend::flush)
    Flush,
    /// [`compact`](crate::StorageBackend::compact)
    Compact,
    /// [`check`](crate::StorageBackend::check)
    Check,
    /// [`health`](crate::StorageBackend::health)
    Health,
    /// [`close`](crate::StorageBackend::close)
    Close,
}

impl Operation {
    /// Every operation, in the order of the trait.
    pub const ALL: [Self; 14] = [
        Self::WriteBatch,
        Self::QueryRange,
        Self::Aggregate,
        Self::PruneBefore,
        Self::Stats,
        Self::Series,
        Self::Latest,
        Self::Windows,
        Self::Scan,
        Self::Flush,
        Self::Compact,
        Self::Check,
        Self::Health,
        Self::Close,
    ];

    /// The name of the method.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WriteBatch => "write_batch",
            Self::QueryRange => "query_range",
            Self::Aggregate => "aggregate",
            Self::PruneBefore => "prune_before",
            Self::Stats => "stats",
            Self::Series => "series",
            Self::Latest => "latest",
            Self::Windows => "windows",
            Self::Scan => "scan",
            Self::Flush => "flush",
            Self::Compact => "compact",
            Self::Check => "check",
            Self::Health => "health",
            Self::Close => "close",
        }
    }

    /// Whether it leaves the store as it is, so that a failure is never in doubt.
    pub const fn is_read(self) -> bool {
        !matches!(
            self,
            Self::WriteBatch | Self::PruneBefore | Self::Flush | Self::Compact | Self::Close
        )
    }

    /// Where counters of this operation stand in a table over [`ALL`](Self::ALL).
    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_in_place_and_serialise_by_their_name() {
        for (index, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation.index(), index);
            assert_eq!(serde_json::to_value(operation).unwrap(), operation.as_str());
        }
    }
}
