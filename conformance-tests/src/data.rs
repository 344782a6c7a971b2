//! Times, records and answers in the short forms that cases use.

use chrono::{DateTime, Utc};
use storage_core::metrics::time::floor_ms;
use storage_core::{MetricRecord, SeriesFilter, SeriesKey, TimeRange};

use crate::failure::Failure;

/// A whole day, hour and minute somewhere in 2026, in milliseconds: where most samples stand.
pub(crate) const NOON: i64 = 1_767_268_800_000;

/// The time `ms` milliseconds after the epoch.
pub(crate) fn at(ms: i64) -> DateTime<Utc> {
    at_us(ms * 1000)
}

/// The time `us` microseconds after the epoch.
pub(crate) fn at_us(us: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(us).unwrap_or(DateTime::UNIX_EPOCH)
}

/// The range of whole milliseconds `[start, end)`.
pub(crate) fn range(start_ms: i64, end_ms: i64) -> TimeRange {
    TimeRange::new(at(start_ms), at(end_ms)).unwrap_or(TimeRange::all())
}

/// A record of any series.
pub(crate) fn rec_of(server: &str, metric: &str, ms: i64, value: f64) -> MetricRecord {
    MetricRecord::new(server, at(ms), metric, value)
}

/// A record of the series that cases use which need only one.
pub(crate) fn rec(ms: i64, value: f64) -> MetricRecord {
    rec_of(SERVER, METRIC, ms, value)
}

/// The server of [`rec`].
pub(crate) const SERVER: &str = "web-1";

/// The metric of [`rec`].
pub(crate) const METRIC: &str = "cpu_usage";

/// The series of [`rec`].
pub(crate) fn key() -> SeriesKey {
    SeriesKey::new(SERVER, METRIC)
}

/// The filter that chooses the series of [`rec`] alone.
pub(crate) fn only() -> Result<SeriesFilter, Failure> {
    Ok(SeriesFilter::exact(SERVER, METRIC)?)
}

/// The time in milliseconds and the value of each record.
pub(crate) fn points(records: &[MetricRecord]) -> Vec<(i64, f64)> {
    records.iter().map(|record| (floor_ms(record.timestamp), record.value)).collect()
}

/// The same values, bit by bit, so that 0.0 and -0.0 differ.
pub(crate) fn bits(values: impl IntoIterator<Item = f64>) -> Vec<u64> {
    values.into_iter().map(f64::to_bits).collect()
}

/// A finite value out of all that an `f64` can hold.
pub(crate) fn any_finite(random: &mut fastrand::Rng) -> f64 {
    loop {
        let value = f64::from_bits(random.u64(..));
        if value.is_finite() && value != 0.0 {
            return value;
        }
    }
}

/// Names that trip up quoting, globs, escaping, collation and normalisation.
pub(crate) const ODD_NAMES: &[&str] = &[
    "tab\there",
    "new\nline",
    "return\r",
    "quote'single",
    "quote\"double",
    "tick`",
    "back\\slash",
    "\\.",
    "\\N",
    "percent%",
    "under_score",
    "star*",
    "question?",
    "[bracket]",
    "[a-z]",
    "{brace}",
    "semi;--",
    "'; DROP TABLE samples; --",
    "$1",
    "?1",
    ":name",
    "@p1",
    "#hash",
    "a/b",
    "../up",
    ".",
    "..",
    " ",
    "  ",
    " lead",
    "trail ",
    "NULL",
    "null",
    "true",
    "0",
    "-1",
    "1e5",
    "NaN",
    "caf\u{e9}",
    "cafe\u{301}",
    "\u{1f600}",
    "\u{5e9}\u{5dc}\u{5d5}\u{5dd}",
    "\u{feff}bom",
    "\u{200b}",
    "\u{7f}",
    "\u{1}",
    "\u{1f}",
    "\u{fffd}",
    "\u{10ffff}",
    "stra\u{df}e",
    "STRASSE",
    "strasse",
    "\u{131}",
    "I",
    "i",
    "comma,",
    "equals=",
    "192.168.1.100:3000",
    "a|b",
    "a\u{1f}b",
];

/// The series `s000`, `s001` and so on of [`METRIC`], in their order.
pub(crate) fn server(number: usize) -> String {
    format!("s{number:03}")
}

/// A record with `sample` of the series number `number`.
pub(crate) fn rec_no(number: usize, ms: i64, value: f64) -> storage_core::MetricRecord {
    rec_of(&server(number), METRIC, ms, value)
}

/// All batches of a scan.
pub(crate) async fn scan_all(
    store: &dyn storage_core::StorageBackend,
    filter: &SeriesFilter,
    range: TimeRange,
) -> storage_core::Result<Vec<storage_core::SeriesSamples>> {
    futures_util::TryStreamExt::try_collect(store.scan(filter, range)).await
}

/// Records of the series of [`rec`], one a second from noon on, with the values 0, 1, 2 and on.
pub(crate) fn ramp(count: i64) -> Vec<MetricRecord> {
    (0..count).map(|n| rec(NOON + n * 1000, n as f64)).collect()
}

/// Records of the series of [`rec`] at random times of `[start_ms, end_ms)`, in no order, some
/// times more than once, with values of many magnitudes.
pub(crate) fn scattered(seed: u64, count: usize, start_ms: i64, end_ms: i64) -> Vec<MetricRecord> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut one = || {
        let value = (random.f64() - 0.5) * 10f64.powi(random.i32(-6..9));
        rec(random.i64(start_ms..end_ms), value)
    };
    (0..count).map(|_| one()).collect()
}

/// What is to be read after writing `records` of one series in this order: oldest first, and of
/// each millisecond the record that came last.
pub(crate) fn last_wins(records: &[MetricRecord]) -> Vec<(i64, f64)> {
    let by_time: std::collections::BTreeMap<_, _> = points(records).into_iter().collect();
    by_time.into_iter().collect()
}
