//! Time as the contract sees it: whole milliseconds since the Unix epoch, years 0001 to 9999.
//!
//! The only place where a bare `i64` stands for a time; backends use it in their `convert` files.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::error::{Error, Result};

/// 0001-01-01T00:00:00Z, the first millisecond that a sample can have.
pub const MIN_MS: i64 = -62_135_596_800_000;

/// 10000-01-01T00:00:00Z, the first millisecond past the last one that a sample can have.
pub const END_MS: i64 = 253_402_300_800_000;

/// The longest window, 10,000 Gregorian years.
const WIDTH_MS_MAX: i64 = 3_652_425 * 86_400_000;

/// Returns `time` in whole milliseconds, finer digits floored toward the past.
///
/// ```
/// use chrono::{TimeZone, Utc};
/// use storage_core::metrics::time::floor_ms;
///
/// let half_before_epoch = Utc.timestamp_nanos(-500_000);
/// assert_eq!(floor_ms(half_before_epoch), -1);
/// ```
pub fn floor_ms(time: DateTime<Utc>) -> i64 {
    time.timestamp_millis()
}

/// Returns the time `ms` milliseconds after the epoch, clamped to the years 0001 to 9999 (and
/// the first instant of 10000, which ends the last range).
pub fn from_ms(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(ms.clamp(MIN_MS, END_MS)).unwrap_or(DateTime::UNIX_EPOCH)
}

/// Returns the time `age` before `now`, the first there is if that is too early.
pub(crate) fn before(now: DateTime<Utc>, age: Duration) -> DateTime<Utc> {
    now.checked_sub_signed(span(age)).unwrap_or(DateTime::<Utc>::MIN_UTC)
}

/// Returns a duration as times are compared with it, the longest there is if it is too long.
pub(crate) fn span(duration: Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}

/// Returns whether a sample can stand at `ms`.
pub fn is_sample_ms(ms: i64) -> bool {
    (MIN_MS..END_MS).contains(&ms)
}

/// Returns the start of the window of `width_ms` that holds `ms`, counted from the epoch and
/// floored, also before 1970.
///
/// `width_ms` must be positive.
pub fn window_start_ms(ms: i64, width_ms: i64) -> i64 {
    ms - ms.rem_euclid(width_ms)
}

/// Returns the width of a window in milliseconds.
///
/// # Errors
/// `InvalidArgument` if `width` is not a whole, positive number of milliseconds or is longer
/// than 10,000 years.
pub fn width_ms(width: Duration) -> Result<i64> {
    let ms = i64::try_from(width.as_millis()).unwrap_or(i64::MAX);
    let whole = width.subsec_nanos().is_multiple_of(1_000_000);
    if whole && (1..=WIDTH_MS_MAX).contains(&ms) {
        return Ok(ms);
    }
    Err(Error::invalid("a window is 1 ms to 10000 years wide, in whole milliseconds")
        .with_context("width", format!("{width:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    #[test]
    fn an_age_without_end_is_the_beginning() {
        assert_eq!(before(from_ms(10), Duration::from_millis(3)), from_ms(7));
        assert_eq!(before(from_ms(10), Duration::MAX), DateTime::<Utc>::MIN_UTC);
    }

    #[test]
    fn limits_are_the_calendar_s() {
        let first = Utc.with_ymd_and_hms(1, 1, 1, 0, 0, 0).unwrap();
        let past_last = Utc.with_ymd_and_hms(10_000, 1, 1, 0, 0, 0).unwrap();
        assert_eq!((floor_ms(first), floor_ms(past_last)), (MIN_MS, END_MS));
        assert_eq!((from_ms(i64::MIN), from_ms(i64::MAX)), (first, past_last));
    }

    #[test]
    fn windows_floor_before_the_epoch() {
        assert_eq!(window_start_ms(-1, 60_000), -60_000);
        assert_eq!(window_start_ms(-60_000, 60_000), -60_000);
        assert_eq!(window_start_ms(59_999, 60_000), 0);
    }

    #[test]
    fn odd_widths_are_refused() {
        for width in [Duration::ZERO, Duration::from_micros(1500), Duration::MAX] {
            assert!(width_ms(width).is_err(), "{width:?}");
        }
        assert_eq!(width_ms(Duration::from_secs(300)).unwrap(), 300_000);
    }
}
