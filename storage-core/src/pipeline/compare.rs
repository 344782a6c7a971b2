//! Whether one store holds what another holds.

use std::cmp::Ordering;

use serde::Serialize;

use super::cursor::Pair;
use super::digest::{Digest, Hasher};
use crate::error::Result;
use crate::metrics::{SeriesFilter, StorageBackend, TimeRange};

/// How the samples of a destination differ from those of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Comparison {
    /// What the source holds.
    pub source: Digest,
    /// Samples of the source that the destination does not hold.
    pub missing: u64,
    /// Samples of the source that have another value or other metadata in the destination.
    pub different: u64,
    /// Samples that only the destination holds.
    pub extra: u64,
}

impl Comparison {
    /// Whether the destination holds all of the source, with the same values and metadata.
    pub fn holds_source(&self) -> bool {
        self.missing == 0 && self.different == 0
    }

    /// Whether both hold the same.
    pub fn is_same(&self) -> bool {
        self.holds_source() && self.extra == 0
    }

    /// Adds the comparison of other samples.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            source: self.source.and(other.source),
            missing: self.missing + other.missing,
            different: self.different + other.different,
            extra: self.extra + other.extra,
        }
    }
}

/// Compares two stores sample by sample, in `range`, for the series that `filter` chooses.
///
/// What is written meanwhile may or may not be seen, in either of them.
///
/// # Errors
/// Those of [`scan`](StorageBackend::scan) of both.
///
/// # Cost
/// A scan of each, side by side; memory for a batch of each.
///
/// ```
/// use storage_core::pipeline::compare;
/// use storage_core::{InMemory, SeriesFilter, StorageBackendExt, TimeRange};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let (one, other) = (InMemory::new(), InMemory::new());
/// one.write("web-1", "cpu", chrono::Utc::now(), 1.0).await?;
/// let found = compare(&one, &other, &SeriesFilter::any(), TimeRange::all()).await?;
/// assert_eq!((found.source.samples, found.missing), (1, 1));
/// # Ok(()) }
/// ```
pub async fn compare(
    source: &dyn StorageBackend,
    destination: &dyn StorageBackend,
    filter: &SeriesFilter,
    range: TimeRange,
) -> Result<Comparison> {
    let mut pair = Pair::new(source.scan(filter, range), destination.scan(filter, range));
    let mut found = Comparison::default();
    let mut hasher = Hasher::default();
    while let Some(which) = pair.next().await? {
        if let (Ordering::Less | Ordering::Equal, Some((series, sample))) =
            (which, pair.left.head())
        {
            let hash_of = hasher.of(series);
            let hash = hash_of(sample);
            found.source.push(hash);
            match pair.right.head().filter(|_| which == Ordering::Equal) {
                None => found.missing += 1,
                Some((_, other)) => found.different += u64::from(hash_of(other) != hash),
            }
        } else {
            found.extra += 1;
        }
        pair.advance(which);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::time::from_ms;
    use crate::{InMemory, MetricRecord};

    async fn store(records: &[(&str, i64, f64)]) -> InMemory {
        let store = InMemory::new();
        let record = |(server, ms, value): &(&str, i64, f64)| {
            MetricRecord::new(*server, from_ms(*ms), "cpu", *value)
        };
        store.write_batch(&records.iter().map(record).collect::<Vec<_>>()).await.unwrap();
        store
    }

    #[tokio::test]
    async fn missing_different_and_extra_are_told_apart() {
        let source = store(&[("a", 1, 1.0), ("a", 2, 1.0), ("b", 1, 1.0), ("d", 1, 1.0)]).await;
        let other = store(&[("a", 0, 1.0), ("a", 2, 2.0), ("b", 1, 1.0), ("c", 1, 1.0)]).await;
        let found = compare(&source, &other, &SeriesFilter::any(), TimeRange::all()).await.unwrap();
        assert_eq!((found.source.samples, found.missing), (4, 2));
        assert_eq!((found.different, found.extra), (1, 2));
        assert!(!found.holds_source());
        let same = compare(&other, &other, &SeriesFilter::any(), TimeRange::all()).await.unwrap();
        assert!(same.is_same());
        assert_eq!(same.and(found).source.samples, 8);
    }

    #[tokio::test]
    async fn long_series_are_compared_across_the_batches_of_the_scans() {
        let all: Vec<_> = (0..10_000).map(|ms| ("a", ms, 1.0)).collect();
        let source = store(&all).await;
        let other = store(&all[5_000..]).await;
        let found = compare(&source, &other, &SeriesFilter::any(), TimeRange::all()).await.unwrap();
        assert_eq!((found.source.samples, found.missing), (10_000, 5_000));
        assert_eq!((found.different, found.extra), (0, 0));
    }
}
