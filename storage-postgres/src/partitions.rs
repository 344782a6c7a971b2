//! The partitions of `samples`: which range of time one holds, which are missing, making them.
//!
//! A partition holds a day around now, a month in farther years, a century beyond: backfilled
//! samples far away must not cost a table for each of their days. Bounds are midnights in UTC, so
//! that no day is split.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, Utc};
use storage_core::metrics::time::{END_MS, MIN_MS, from_ms};
use storage_core::{Error, ErrorKind, Result};

use crate::connect::Connection;
use crate::convert::PgTime;
use crate::error::from_pg;
use crate::schema::Locks;

pub(crate) const DAY_MS: i64 = 86_400_000;

/// Up to how far from now a partition holds a day, and up to how far a month.
const DAYS_WITHIN_MS: i64 = 3 * 366 * DAY_MS;
const MONTHS_WITHIN_MS: i64 = 30 * 366 * DAY_MS;

/// Partitions that one transaction makes: each takes a few locks, of which a server has some
/// thousand.
const MADE_AT_ONCE: usize = 64;

/// Half-open, in milliseconds.
pub(crate) type Bounds = (i64, i64);

/// The partitions that a handle knows of, by their lower bounds.
#[derive(Debug, Default)]
pub(crate) struct Partitions(BTreeMap<i64, i64>);

impl Partitions {
    fn insert(&mut self, (low, high): Bounds) {
        self.0.insert(low, high);
    }

    pub(crate) fn contains(&self, ms: i64) -> bool {
        self.0.range(..=ms).next_back().is_some_and(|(_, high)| ms < *high)
    }

    /// Returns the partition to make for a time that none holds: what fits its distance from now,
    /// less what others hold already.
    fn bounds_for(&self, ms: i64, now_ms: i64) -> Bounds {
        let (low, high) = usual_bounds(ms, now_ms);
        let before = self.0.range(..=ms).next_back().map_or(MIN_MS, |(_, high)| *high);
        let after = self.0.range(ms..).next().map_or(END_MS, |(low, _)| *low);
        (low.max(before), high.min(after))
    }

    /// Returns which partitions are missing for `times`.
    fn missing(&self, times: &[i64], now_ms: i64) -> Vec<Bounds> {
        let mut known = Self(self.0.clone());
        let mut missing = Vec::new();
        for ms in times {
            if !known.contains(*ms) {
                let bounds = known.bounds_for(*ms, now_ms);
                known.insert(bounds);
                missing.push(bounds);
            }
        }
        missing
    }
}

fn usual_bounds(ms: i64, now_ms: i64) -> Bounds {
    let date = from_ms(ms).date_naive();
    let distance = ms.abs_diff(now_ms);
    let (low, high) = if distance < DAYS_WITHIN_MS.unsigned_abs() {
        (Some(date), date.checked_add_days(Days::new(1)))
    } else if distance < MONTHS_WITHIN_MS.unsigned_abs() {
        let first = date.with_day(1);
        (first, first.and_then(|first| first.checked_add_months(Months::new(1))))
    } else {
        let year = date.year() - (date.year() - 1).rem_euclid(100);
        (NaiveDate::from_ymd_opt(year, 1, 1), NaiveDate::from_ymd_opt(year + 100, 1, 1))
    };
    (low.map_or(MIN_MS, midnight_ms), high.map_or(END_MS, midnight_ms).min(END_MS))
}

fn midnight_ms(date: NaiveDate) -> i64 {
    date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis()
}

/// The name of a partition: digits of its bounds.
fn name_of((low, high): Bounds) -> String {
    let digits = |ms| {
        let date = from_ms(ms).date_naive();
        format!("{:04}{:02}{:02}", date.year(), date.month(), date.day())
    };
    if high - low == DAY_MS {
        format!("samples_{}", digits(low))
    } else {
        format!("samples_{}_{}", digits(low), digits(high))
    }
}

/// A bound as SQL writes it; made of digits alone.
fn literal(ms: i64) -> String {
    let date = from_ms(ms).date_naive();
    format!("'{:04}-{:02}-{:02} 00:00:00+00'", date.year(), date.month(), date.day())
}

/// Reads which partitions there are.
pub(crate) async fn read(connection: &Connection) -> Result<Partitions> {
    let rows = connection.query("SELECT low, high FROM partitions", &[]).await.map_err(from_pg)?;
    let mut partitions = Partitions::default();
    for row in rows {
        let bound = |index| row.try_get(index).map(|PgTime(ms)| ms).map_err(from_pg);
        partitions.insert((bound(0)?, bound(1)?));
    }
    Ok(partitions)
}

/// Makes the partitions that `times` (one of each day is enough) need, in transactions of their
/// own: an empty partition changes no answer.
pub(crate) async fn ensure(
    connection: &Connection,
    locks: Locks,
    known: &mut Partitions,
    times: &[i64],
) -> Result<()> {
    let now_ms = Utc::now().timestamp_millis();
    while !known.missing(times, now_ms).is_empty() {
        let begin = format!("BEGIN; {}", locks.tables());
        let made = match connection.batch_execute(&begin).await.map_err(from_pg) {
            Ok(()) => make_some(connection, times, now_ms).await,
            // The lock was not had, and the transaction has begun.
            Err(error) => Err(error),
        };
        let end = if made.is_ok() { "COMMIT" } else { "ROLLBACK" };
        let ended = connection.batch_execute(end).await.map_err(from_pg);
        match made {
            Ok(found) => *known = found,
            // First that it could not be rolled back: then the connection must not be used again.
            Err(error) => return ended.and(Err(error)),
        }
        ended?;
    }
    Ok(())
}

/// Makes what is missing in truth, now that nobody else makes any.
async fn make_some(connection: &Connection, times: &[i64], now_ms: i64) -> Result<Partitions> {
    let mut known = read(connection).await?;
    let mut sql = String::new();
    for bounds in known.missing(times, now_ms).into_iter().take(MADE_AT_ONCE) {
        if bounds.0 >= bounds.1 {
            return Err(Error::new(ErrorKind::Internal, "a partition would be empty"));
        }
        let (name, low, high) = (name_of(bounds), literal(bounds.0), literal(bounds.1));
        // Attached, not created in place: that would lock out every reader and writer.
        let _ = write!(
            sql,
            "CREATE TABLE {name} (LIKE samples INCLUDING ALL); \
             ALTER TABLE samples ATTACH PARTITION {name} FOR VALUES FROM ({low}) TO ({high}); \
             INSERT INTO partitions VALUES ('{name}', {low}, {high}); "
        );
        known.insert(bounds);
    }
    connection.batch_execute(&sql).await.map_err(from_pg)?;
    Ok(known)
}

/// The times that partitions are made ahead for: today and the days after.
pub(crate) fn ahead(now: DateTime<Utc>, days: u32) -> Vec<i64> {
    let today_ms = midnight_ms(now.date_naive());
    (0..=i64::from(days)).map(|day| today_ms + day * DAY_MS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_790_000_000_000; // 2026-09-21

    #[test]
    fn partitions_are_days_months_and_centuries() {
        let day = usual_bounds(NOW_MS, NOW_MS);
        assert_eq!(name_of(day), "samples_20260921");
        let month = usual_bounds(NOW_MS - 10 * 366 * DAY_MS, NOW_MS);
        assert_eq!(name_of(month), "samples_20160901_20161001");
        assert_eq!(name_of(usual_bounds(0, NOW_MS)), "samples_19010101_20010101");
        assert_eq!(name_of(usual_bounds(MIN_MS, NOW_MS)), "samples_00010101_01010101");
        let last = usual_bounds(END_MS - 1, NOW_MS);
        assert_eq!(name_of(last), "samples_99010101_100000101");
        assert_eq!(literal(last.1), "'10000-01-01 00:00:00+00'");
    }

    #[test]
    fn partitions_never_overlap() {
        let times: Vec<i64> = (0..2000).map(|step| NOW_MS - step * 17 * DAY_MS / 3).collect();
        let mut known = Partitions::default();
        // As time goes by, what was made as a day is surrounded by months.
        for now_ms in [NOW_MS, NOW_MS + 4 * 366 * DAY_MS, NOW_MS + 40 * 366 * DAY_MS] {
            for bounds in known.missing(&times, now_ms) {
                known.insert(bounds);
            }
            let mut end = MIN_MS;
            for (low, high) in &known.0 {
                assert!(end <= *low && low < high, "{low} {high}");
                assert_eq!((low.rem_euclid(DAY_MS), high.rem_euclid(DAY_MS)), (0, 0));
                end = *high;
            }
            assert!(times.iter().all(|ms| known.contains(*ms)));
            known.0.retain(|low, _| low % 2 == 0 && (low / DAY_MS) % 3 != 0);
        }
    }
}
