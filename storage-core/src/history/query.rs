//! What a question to a history is about.

use crate::error::Result;
use crate::metrics::{Matcher, TimeRange};

/// Chooses values by record, by time, and by how many of each record.
///
/// ```
/// use storage_core::HistoryQuery;
///
/// let query = HistoryQuery::parse("accuracy::*")?.newest(10);
/// assert!(query.records.matches("accuracy::vienna"));
/// assert_eq!(query.limit_per_record, Some(10));
/// # Ok::<(), storage_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HistoryQuery {
    /// Which records: in a pattern `*` stands for any run of characters, none included, and every
    /// other character for itself, case included.
    pub records: Matcher,
    /// Only values in this range; it holds its start and not its end.
    pub range: TimeRange,
    /// At most so many values of each record, the newest of those in the range; none without
    /// limit.
    pub limit_per_record: Option<usize>,
}

impl HistoryQuery {
    /// Asks for every value of the records that `records` matches.
    pub fn new(records: Matcher) -> Self {
        Self { records, range: TimeRange::all(), limit_per_record: None }
    }

    /// Asks for every value of the records that `pattern` matches, a name or a name with `*`.
    ///
    /// # Errors
    /// `InvalidArgument` by the rules of [`Matcher::parse`].
    pub fn parse(pattern: &str) -> Result<Self> {
        Ok(Self::new(Matcher::parse(pattern)?))
    }

    /// Asks for the newest `n` of each record alone.
    #[must_use]
    pub fn newest(mut self, n: usize) -> Self {
        self.limit_per_record = Some(n);
        self
    }

    /// Asks for values in `range` alone.
    #[must_use]
    pub fn range(mut self, range: TimeRange) -> Self {
        self.range = range;
        self
    }

    /// Whether no value can be chosen: an empty range, or none of each record.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty() || self.limit_per_record == Some(0)
    }
}
