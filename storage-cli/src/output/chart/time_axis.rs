//! The horizontal axis: where its labels stand and what they say.

use chrono::{DateTime, Datelike, Timelike, Utc};
use storage::TimeRange;
use storage::metrics::time::{floor_ms, from_ms};

/// The distance between two labels of the time axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimeStep {
    Ms(i64),
    Months(u32),
}

const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

impl TimeStep {
    /// Returns the smallest step whose labels fit side by side.
    pub(super) fn for_range(range: TimeRange, width: usize) -> Self {
        const FIXED: [i64; 31] = [
            1,
            2,
            5,
            10,
            20,
            50,
            100,
            200,
            500,
            SECOND,
            2 * SECOND,
            5 * SECOND,
            10 * SECOND,
            15 * SECOND,
            30 * SECOND,
            MINUTE,
            2 * MINUTE,
            5 * MINUTE,
            10 * MINUTE,
            15 * MINUTE,
            30 * MINUTE,
            HOUR,
            2 * HOUR,
            3 * HOUR,
            6 * HOUR,
            12 * HOUR,
            DAY,
            2 * DAY,
            4 * DAY,
            7 * DAY,
            14 * DAY,
        ];
        const MONTHS: [u32; 12] = [1, 2, 3, 6, 12, 24, 60, 120, 240, 600, 1200, 12_000];
        let span_ms = range.end_ms() - range.start_ms();
        let fits = |step_ms: i64, label: usize| {
            span_ms / step_ms.max(1) * (label as i64 + 3) <= width as i64
        };
        let fixed = FIXED.into_iter().map(Self::Ms);
        let months = MONTHS.into_iter().map(Self::Months);
        let found = fixed.chain(months).find(|step| match step {
            Self::Ms(ms) => fits(*ms, step.label(DateTime::UNIX_EPOCH).len()),
            Self::Months(months) => fits(i64::from(*months) * 30 * DAY, 7),
        });
        found.unwrap_or(Self::Months(12_000))
    }

    pub(super) fn has_time_of_day(self) -> bool {
        matches!(self, Self::Ms(ms) if ms < DAY)
    }

    pub(super) fn label(self, time: DateTime<Utc>) -> String {
        let pattern = match self {
            Self::Ms(ms) if ms < SECOND => "%H:%M:%S%.3f",
            Self::Ms(ms) if ms < MINUTE => "%H:%M:%S",
            Self::Ms(ms) if ms < DAY => "%H:%M",
            Self::Ms(_) => "%Y-%m-%d",
            Self::Months(months) if months < 12 => "%Y-%m",
            Self::Months(_) => "%Y",
        };
        time.format(pattern).to_string()
    }

    pub(super) fn ticks(self, range: TimeRange) -> Vec<DateTime<Utc>> {
        let mut ticks = Vec::new();
        let mut next = Some(self.at_or_before(range.start()));
        while let Some(tick) = next.filter(|tick| *tick < range.end()) {
            if tick >= range.start() {
                ticks.push(tick);
            }
            next = match self {
                Self::Ms(ms) => tick.checked_add_signed(chrono::Duration::milliseconds(ms)),
                Self::Months(months) => tick.checked_add_months(chrono::Months::new(months)),
            };
        }
        ticks
    }

    pub(super) fn at_or_before(self, time: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::Ms(step_ms) => {
                let ms = floor_ms(time);
                from_ms(ms - ms.rem_euclid(step_ms))
            }
            Self::Months(months) => {
                let years = (months / 12).max(1) as i32;
                let year = time.year() - time.year().rem_euclid(years);
                let first = time.with_day(1).and_then(|time| time.with_month(1));
                let first = first.and_then(|time| time.with_year(year));
                let midnight = first.and_then(|time| time.with_hour(0)?.with_minute(0));
                midnight.and_then(|time| time.with_second(0)?.with_nanosecond(0)).unwrap_or(time)
            }
        }
    }
}
