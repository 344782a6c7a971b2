//! Times as people and files write them.

use std::str::FromStr;

use chrono::format::{Item, StrftimeItems};
use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};

/// Reads a time of the command line: RFC 3339, `YYYY-MM-DD[ HH:MM[:SS]]` in UTC, milliseconds
/// since 1970, `now`, `now-1h`.
pub(crate) fn parse_when(text: &str) -> Result<DateTime<Utc>, String> {
    if let Some(rest) = text.strip_prefix("now") {
        return shifted(Utc::now(), rest.trim());
    }
    if let Ok(ms) = text.parse() {
        return DateTime::from_timestamp_millis(ms).ok_or_else(|| "out of range".to_owned());
    }
    parse_calendar(text).ok_or_else(|| {
        "write 2026-01-31T08:00:00Z, 2026-01-31, 2026-01-31 08:00, milliseconds since 1970, \
         now or now-1h"
            .to_owned()
    })
}

fn shifted(now: DateTime<Utc>, shift: &str) -> Result<DateTime<Utc>, String> {
    if shift.is_empty() {
        return Ok(now);
    }
    let (Some(back), length) = (match shift.as_bytes()[0] {
        b'-' => (Some(true), &shift[1..]),
        b'+' => (Some(false), &shift[1..]),
        _ => (None, shift),
    }) else {
        return Err("after now comes + or - and a duration, such as now-1h".into());
    };
    let length = humantime::parse_duration(length).map_err(|error| error.to_string())?;
    let length = chrono::Duration::from_std(length).map_err(|error| error.to_string())?;
    let time = if back { now.checked_sub_signed(length) } else { now.checked_add_signed(length) };
    time.ok_or_else(|| "out of range".to_owned())
}

/// Reads RFC 3339, or a date with or without a time of day, in UTC.
fn parse_calendar(text: &str) -> Option<DateTime<Utc>> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.to_utc());
    }
    for pattern in ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M"] {
        if let Ok(time) = NaiveDateTime::parse_from_str(text, pattern) {
            return Some(time.and_utc());
        }
    }
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    Some(date.and_time(NaiveTime::MIN).and_utc())
}

/// How the times of a file are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TimeFormat {
    /// Calendar times and, if they look like it, milliseconds since 1970.
    Auto,
    /// A number of units since 1970, of which so many make a second.
    Epoch(Unit),
    /// A strftime pattern; UTC unless it reads a zone.
    Pattern(String),
}

/// A unit of time since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Seconds.
    S,
    /// Milliseconds.
    Ms,
    /// Microseconds.
    Us,
    /// Nanoseconds.
    Ns,
}

impl Unit {
    fn per_second(self) -> i128 {
        match self {
            Self::S => 1,
            Self::Ms => 1_000,
            Self::Us => 1_000_000,
            Self::Ns => 1_000_000_000,
        }
    }
}

impl FromStr for TimeFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "auto" => Self::Auto,
            "s" => Self::Epoch(Unit::S),
            "ms" => Self::Epoch(Unit::Ms),
            "us" => Self::Epoch(Unit::Us),
            "ns" => Self::Epoch(Unit::Ns),
            pattern if pattern.contains('%') => {
                if StrftimeItems::new(pattern).any(|item| matches!(item, Item::Error)) {
                    return Err("the strftime pattern holds an unknown directive".into());
                }
                Self::Pattern(pattern.to_owned())
            }
            _ => return Err("say auto, s, ms, us, ns or a strftime pattern".into()),
        })
    }
}

/// As milliseconds, numbers below lie before 1973 and numbers above after 5138: another unit.
const LIKELY_MS: std::ops::Range<u128> = 100_000_000_000..100_000_000_000_000;

impl TimeFormat {
    /// Reads a time, or says why not.
    pub(crate) fn parse(&self, text: &str) -> Result<DateTime<Utc>, String> {
        let text = text.trim();
        let found = match self {
            Self::Auto => return parse_auto(text),
            Self::Epoch(unit) => parse_epoch(text, *unit),
            Self::Pattern(pattern) => parse_pattern(text, pattern),
        };
        found.ok_or_else(|| match self {
            Self::Pattern(pattern) => format!("the time `{text}` does not match `{pattern}`"),
            _ => format!("`{text}` is not a number of --time-format units since 1970"),
        })
    }
}

fn parse_auto(text: &str) -> Result<DateTime<Utc>, String> {
    if let Some(time) = parse_calendar(text) {
        return Ok(time);
    }
    match text.parse::<i128>() {
        Ok(number) if LIKELY_MS.contains(&number.unsigned_abs()) => {
            parse_epoch(text, Unit::Ms).ok_or_else(|| format!("the time `{text}` is out of range"))
        }
        Ok(_) => {
            Err(format!("the time `{text}` has no clear unit: say --time-format s, ms, us or ns"))
        }
        Err(_) if text.is_empty() => Err("the time is empty".into()),
        Err(_) => Err(format!("`{text}` is not a time: say --time-format if it is")),
    }
}

/// Reads a decimal number of `unit`s; digits finer than a nanosecond are cut off.
fn parse_epoch(text: &str, unit: Unit) -> Option<DateTime<Utc>> {
    let ns_per_unit = 1_000_000_000 / unit.per_second();
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let mut ns = whole.parse::<i128>().ok()?.checked_mul(ns_per_unit)?;
    let mut digit_ns = ns_per_unit;
    for digit in fraction.bytes() {
        if !digit.is_ascii_digit() {
            return None;
        }
        digit_ns /= 10;
        ns += i128::from(digit - b'0') * digit_ns;
    }
    let ns = if is_negative { -ns } else { ns };
    let seconds = i64::try_from(ns.div_euclid(1_000_000_000)).ok()?;
    DateTime::from_timestamp(seconds, u32::try_from(ns.rem_euclid(1_000_000_000)).ok()?)
}

fn parse_pattern(text: &str, pattern: &str) -> Option<DateTime<Utc>> {
    if let Ok(time) = DateTime::parse_from_str(text, pattern) {
        return Some(time.to_utc());
    }
    if let Ok(time) = NaiveDateTime::parse_from_str(text, pattern) {
        return Some(time.and_utc());
    }
    let date = NaiveDate::parse_from_str(text, pattern).ok()?;
    Some(date.and_time(NaiveTime::MIN).and_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(time: DateTime<Utc>) -> i64 {
        time.timestamp_millis()
    }

    #[test]
    fn command_line_times() {
        let noon = 1_767_268_800_000;
        for text in [
            "2026-01-01T12:00:00Z",
            "2026-01-01T13:00:00+01:00",
            "2026-01-01 12:00",
            "2026-01-01 12:00:00",
            "1767268800000",
        ] {
            assert_eq!(ms(parse_when(text).unwrap()), noon, "{text}");
        }
        assert_eq!(ms(parse_when("2026-01-01").unwrap()), noon - 12 * 3_600_000);
        assert_eq!(ms(parse_when("-1").unwrap()), -1);
    }

    #[test]
    fn times_from_now() {
        let now = Utc::now();
        let week = chrono::Duration::hours(7 * 24 + 12);
        let error = (now - week) - parse_when("now-7d12h").unwrap();
        assert!(error.num_seconds().abs() < 60);
        assert!(parse_when("now + 1h").unwrap() > now);
        for bad in ["now1h", "now-", "now-1x", "nowhere", "yesterday", "", "2026-13-01"] {
            assert!(parse_when(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn file_times() {
        let auto = TimeFormat::Auto;
        assert_eq!(ms(auto.parse("2014-02-14 14:30:00.250").unwrap()), 1_392_388_200_250);
        assert_eq!(ms(auto.parse("1392388200250").unwrap()), 1_392_388_200_250);
        for (format, text, expected) in [
            ("s", "1392388200", 1_392_388_200_000),
            ("s", "1392388200.2509", 1_392_388_200_250),
            ("s", "-0.001", -1),
            ("ms", "5", 5),
            ("us", "1392388200250999", 1_392_388_200_250),
            ("ns", "-1", -1),
            ("%d.%m.%Y %H:%M", "14.02.2014 14:30", 1_392_388_200_000),
            ("%Y-%m-%dT%H:%M%z", "2014-02-14T15:30+0100", 1_392_388_200_000),
            ("%Y%m%d", "20140214", 1_392_336_000_000),
        ] {
            let format: TimeFormat = format.parse().unwrap();
            assert_eq!(ms(format.parse(text).unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn numbers_of_an_unclear_unit_are_refused() {
        for text in ["1392388200", "1392388200250999", "5", ""] {
            assert!(TimeFormat::Auto.parse(text).is_err(), "{text}");
        }
        for text in ["1.2.3", "1e9", ".5", "x", "", "99999999999999999999999"] {
            assert!(TimeFormat::Epoch(Unit::S).parse(text).is_err(), "{text}");
        }
        assert!("seconds".parse::<TimeFormat>().is_err());
        assert!("%Q".parse::<TimeFormat>().is_err());
    }
}
