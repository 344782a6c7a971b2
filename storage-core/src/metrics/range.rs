//! A half-open range of time.

use chrono::{DateTime, Utc};

use super::time::{END_MS, MIN_MS, floor_ms, from_ms};
use crate::error::{Error, Result};

/// The time from `start`, included, to `end`, excluded.
///
/// Both bounds are floored to whole milliseconds, as every time is that crosses the contract,
/// and clamped to the years that samples can have. Equal bounds make an empty range.
///
/// ```
/// use chrono::{TimeZone, Utc};
/// use storage_core::TimeRange;
///
/// let noon = Utc.with_ymd_and_hms(2026, 1, 1, 12, 0, 0).unwrap();
/// let range = TimeRange::new(noon, noon + chrono::Duration::hours(1))?;
/// assert!(range.contains(noon) && !range.contains(range.end()));
/// assert!(TimeRange::new(range.end(), range.start()).is_err());
/// # Ok::<(), storage_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TimeRange {
    start_ms: i64,
    end_ms: i64,
}

impl TimeRange {
    /// Creates the range `[start, end)`.
    ///
    /// # Errors
    /// `InvalidArgument` if `start` is after `end`.
    pub fn new(start: DateTime<Utc>, end: DateTime<Utc>) -> Result<Self> {
        if start > end {
            return Err(Error::invalid("the range starts after it ends")
                .with_context("start", start.to_rfc3339())
                .with_context("end", end.to_rfc3339()));
        }
        Ok(Self {
            start_ms: floor_ms(start).clamp(MIN_MS, END_MS),
            end_ms: floor_ms(end).clamp(MIN_MS, END_MS),
        })
    }

    /// The range that holds every sample that can exist.
    pub const fn all() -> Self {
        Self { start_ms: MIN_MS, end_ms: END_MS }
    }

    /// The first instant inside.
    pub fn start(&self) -> DateTime<Utc> {
        from_ms(self.start_ms)
    }

    /// The first instant after.
    pub fn end(&self) -> DateTime<Utc> {
        from_ms(self.end_ms)
    }

    /// The first millisecond inside.
    pub fn start_ms(&self) -> i64 {
        self.start_ms
    }

    /// The first millisecond after.
    pub fn end_ms(&self) -> i64 {
        self.end_ms
    }

    /// Whether no sample can be inside.
    pub fn is_empty(&self) -> bool {
        self.start_ms == self.end_ms
    }

    /// Whether `time`, floored to a millisecond, is inside.
    pub fn contains(&self, time: DateTime<Utc>) -> bool {
        (self.start_ms..self.end_ms).contains(&floor_ms(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    #[test]
    fn a_range_that_ends_before_it_starts_is_refused() {
        for (start_us, end_us) in [(1000, 0), (1, 0), (0, -1)] {
            let time = |us| Utc.timestamp_micros(us).unwrap();
            let error = TimeRange::new(time(start_us), time(end_us)).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn bounds_are_clamped_to_the_years_of_samples() {
        let widest = TimeRange::new(DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC).unwrap();
        assert_eq!(widest, TimeRange::all());
    }
}
