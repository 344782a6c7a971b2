//! When a job runs: a cron expression that has been understood.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::limits::check_name;
use crate::metrics::time::{floor_ms, from_ms};

/// The most runs that are counted as missed: beyond that the number says "at least".
pub const MISSED_RUNS_MAX: u64 = 1000;

/// A cron expression, in UTC.
///
/// Five fields as in `crontab(5)` (minute, hour, day of the month, month, day of the week), six
/// with seconds in front, or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`. Names of
/// months and days, lists, ranges and steps work as everywhere; besides, `L` is the last, `W` the
/// nearest weekday, `#n` the n-th. If both days are restricted, either is enough. Two schedules
/// are equal if their texts are.
///
/// ```
/// use chrono::{TimeZone, Utc};
/// use storage_core::Schedule;
///
/// let nightly: Schedule = "0 2 * * *".parse()?;
/// let noon = Utc.with_ymd_and_hms(2026, 1, 1, 12, 0, 0).unwrap();
/// assert_eq!(nightly.after(noon), Utc.with_ymd_and_hms(2026, 1, 2, 2, 0, 0).single());
/// assert!("61 * * * *".parse::<Schedule>().is_err());
/// # Ok::<(), storage_core::Error>(())
/// ```
#[derive(Clone, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Schedule {
    text: Arc<str>,
    cron: Arc<Cron>,
}

impl Schedule {
    /// Understands an expression of at most 512 bytes.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field` (`cron`) if it is none, or if it names a day that
    /// never comes, such as 30 February.
    pub fn parse(text: &str) -> Result<Self> {
        check_name("cron", text)?;
        let refuse = |problem| Error::invalid(problem).with_context("field", "cron");
        let parser =
            CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = parser.parse(text).map_err(|error| {
            refuse("the text is no cron expression").with_context("cron", text).with_source(error)
        })?;
        if cron.find_next_occurrence(&DateTime::UNIX_EPOCH, false).is_err() {
            return Err(refuse("the cron expression names a time that never comes"));
        }
        Ok(Self { text: text.into(), cron: Arc::new(cron) })
    }

    /// The expression as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the first time of the schedule after `time`; none after the year 4999.
    pub fn after(&self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // Times of a schedule are whole seconds.
        let second = from_ms(floor_ms(time).div_euclid(1000) * 1000);
        self.cron.find_next_occurrence(&second, false).ok()
    }

    /// Counts the times of the schedule after `start` up to `end`, `end` included, at most
    /// `most` of them.
    pub fn count(&self, start: DateTime<Utc>, end: DateTime<Utc>, most: u64) -> u64 {
        let times = std::iter::successors(self.after(start), |time| self.after(*time));
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        times.take_while(|time| *time <= end).take(most).count() as u64
    }

    /// Returns the first `count` times of the schedule after `time`.
    pub fn upcoming(&self, time: DateTime<Utc>, count: usize) -> Vec<DateTime<Utc>> {
        std::iter::successors(self.after(time), |time| self.after(*time)).take(count).collect()
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Schedule {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl From<Schedule> for String {
    fn from(schedule: Schedule) -> Self {
        schedule.text.as_ref().to_owned()
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Schedule {}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Schedule").field(&self.text).finish()
    }
}

/// The time `span` after `time`, at most the last one that can be stored.
pub(super) fn later(time: DateTime<Utc>, span: std::time::Duration) -> DateTime<Utc> {
    let last = from_ms(crate::metrics::time::END_MS - 1);
    let sum = TimeDelta::from_std(span).ok().and_then(|span| time.checked_add_signed(span));
    from_ms(floor_ms(sum.map_or(last, |sum| sum.min(last))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn common_expressions_are_understood() {
        let friday = "2026-01-30T12:34:56.789Z";
        for (cron, next) in [
            ("0 2 * * *", "2026-01-31T02:00:00Z"),
            ("*/5 * * * *", "2026-01-30T12:35:00Z"),
            ("*/10 * * * * *", "2026-01-30T12:35:00Z"),
            ("57 34 12 * * *", "2026-01-30T12:34:57Z"),
            ("0 9 * * MON-FRI", "2026-02-02T09:00:00Z"),
            ("0 0 L * *", "2026-01-31T00:00:00Z"),
            ("0 0 29 2 *", "2028-02-29T00:00:00Z"),
            ("0 0 13 * 7", "2026-02-01T00:00:00Z"),
            ("@hourly", "2026-01-30T13:00:00Z"),
            ("@daily", "2026-01-31T00:00:00Z"),
        ] {
            let schedule = Schedule::parse(cron).unwrap();
            assert_eq!(schedule.after(time(friday)), Some(time(next)), "{cron}");
            assert_eq!(schedule.to_string(), cron);
        }
    }

    #[test]
    fn a_time_of_the_schedule_is_not_after_itself() {
        let schedule = Schedule::parse("0 * * * *").unwrap();
        let (one, two) = (time("2026-01-01T01:00:00Z"), time("2026-01-01T02:00:00Z"));
        assert_eq!(schedule.after(one), Some(two));
        assert_eq!(schedule.after(one - TimeDelta::milliseconds(1)), Some(one));
    }

    #[test]
    fn what_is_no_expression_or_never_comes_is_refused() {
        let long = "0 2 * * *,".repeat(60);
        for cron in [
            "",
            " ",
            "daily",
            "@reboot",
            "* * * *",
            "60 * * * *",
            "0 24 * * *",
            "0 0 0 * *",
            "0 0 30 2 *",
            "*/0 * * * *",
            "0 0 1 1 1 * 2020",
            "0 2 * * *\0",
            "é * * * *",
            &long,
        ] {
            let error = Schedule::parse(cron).unwrap_err();
            let found = (error.kind(), error.context("field"));
            assert_eq!(found, (ErrorKind::InvalidArgument, Some("cron")), "{cron:?}");
        }
    }

    #[test]
    fn runs_are_counted_up_to_a_limit() {
        let schedule = Schedule::parse("*/10 * * * *").unwrap();
        let (start, end) = (time("2026-01-01T00:00:00Z"), time("2026-01-01T01:00:00Z"));
        assert_eq!(schedule.count(start, end, 100), 6);
        assert_eq!(schedule.count(start, end - TimeDelta::milliseconds(1), 100), 5);
        assert_eq!(schedule.count(start, end, 4), 4);
        assert_eq!(schedule.count(end, start, 100), 0);
        assert_eq!(schedule.upcoming(start, 2).len(), 2);
    }

    #[test]
    fn there_is_no_next_time_at_the_end_of_the_calendar() {
        let schedule = Schedule::parse("* * * * *").unwrap();
        assert_eq!(schedule.after(from_ms(i64::MAX)), None);
        assert!(schedule.after(from_ms(i64::MIN)).is_some());
    }

    #[test]
    fn no_text_makes_the_parser_panic() {
        let mut random = fastrand::Rng::with_seed(7);
        let alphabet: Vec<char> = "0123456789*/,-LW#? @MONJANdaily\té+".chars().collect();
        for _ in 0..20_000 {
            let length = random.usize(..24);
            let text: String =
                (0..length).map(|_| alphabet[random.usize(..alphabet.len())]).collect();
            let _ = Schedule::parse(&text);
        }
    }

    #[test]
    fn a_schedule_is_a_text_as_json() {
        let schedule = Schedule::parse("@daily").unwrap();
        assert_eq!(serde_json::to_string(&schedule).unwrap(), "\"@daily\"");
        assert_eq!(serde_json::from_str::<Schedule>("\"@daily\"").unwrap(), schedule);
        assert!(serde_json::from_str::<Schedule>("\"daily\"").is_err());
    }
}
