//! Aggregates over windows of time: one statement gives the answer, up to three may run.
//!
//! Few samples are fetched and added up here: as arrays that takes the server no longer than
//! grouping them would. Many are grouped by the server. Its `sum` loses digits and depends on the order, so it
//! adds each value in two parts: multiples of 2^-20, whose sum is exact, and what is left, whose
//! sum is tiny. Where that cannot be exact enough (huge values, very many tiny ones) the samples
//! are fetched after all, in one stream.

use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;
use storage_core::metrics::Accumulator;
use storage_core::metrics::time::{MIN_MS, window_start_ms};
use storage_core::{MetricAggregation, Result, SeriesFilter, SeriesKey, TimeRange};
use tokio_postgres::Row;

use crate::convert::{Elements, PgTime};
use crate::error::{OVERFLOW, from_pg, sqlstate};
use crate::filter::{Condition, Shape};
use crate::read::{ARRAY_LEN_MAX, key};
use crate::store::{Parameter, Store};

/// Up to so many samples are fetched where that many are expected: of many servers, for which the
/// server reads its tables from end to end, and of few, for which it looks each series up.
const FETCHED_MAX: usize = 30_000;
const FETCHED_OF_FEW_MAX: usize = 500_000;

/// Up to so many of many servers, where nothing is known: what it costs to find out that there are
/// more. Of few it is `FETCHED_MAX`.
const TRIED_MAX: usize = 4_000;

/// Shapes of filters that are remembered, and the longest range that says something about them.
const SHAPES_MAX: usize = 256;
const SHAPE_RANGE_MS_MAX: i64 = 31 * 86_400_000;

/// The widest windows that the server can compute: they all start after its first year, -4713.
const SERVER_WIDTH_MS_MAX: i64 = 1000 * 366 * 86_400_000;

/// Added and taken away again, it leaves of a value below 2^31 the multiple of 2^-20 next to it.
const SPLITTER: &str = "6442450944"; // 1.5 * 2^32

/// What `SPLITTER` takes, and sums of its multiples that are exact.
const SPLIT_VALUE_MAX: f64 = 2_147_483_648.0; // 2^31
const SPLIT_SUM_MAX: f64 = 4_294_967_296.0; // 2^32

/// The largest part that a split leaves.
const SPLIT_REST_MAX: f64 = 1.0 / 2_097_152.0; // 2^-21

/// What one addition may lose, relative to its result.
const ROUNDING: f64 = f64::EPSILON / 2.0;

/// What a sum may lose, relative to the sum of the magnitudes: a tenth and half of what the
/// contract allows.
const LOSS_OF_SPLIT_MAX: f64 = 1e-13;
const LOSS_OF_PLAIN_MAX: f64 = 5e-13;

/// The windows of one series by their start.
pub(crate) type Windows = BTreeMap<i64, MetricAggregation>;

impl Store {
    /// Aggregates by series and window; without a width, all of the range is one window.
    pub(crate) async fn windows(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width_ms: Option<i64>,
    ) -> Result<BTreeMap<SeriesKey, Windows>> {
        let narrow = Condition::of(filter, 1).is_narrow();
        let fetched_max = if narrow { FETCHED_OF_FEW_MAX } else { FETCHED_MAX };
        let found = match self.densities.expected(filter, range) {
            Some(samples) if samples > fetched_max as f64 => None,
            Some(_) => self.windows_of_arrays(filter, range, width_ms, 2 * fetched_max).await?,
            None => {
                let tried_max = if narrow { FETCHED_MAX } else { TRIED_MAX };
                self.windows_of_samples(filter, range, width_ms, Some(tried_max)).await?
            }
        };
        if let Some(found) = found {
            self.densities.learn(filter, range, found.samples());
            return Ok(found.finish());
        }
        if width_ms.is_none_or(|width_ms| width_ms <= SERVER_WIDTH_MS_MAX)
            && let Some(found) = self.windows_of_server(filter, range, width_ms).await?
        {
            let windows = found.values().flat_map(Windows::values);
            self.densities.learn(filter, range, windows.map(|window| window.count).sum());
            return Ok(found);
        }
        let found = self.windows_of_samples(filter, range, width_ms, None).await?;
        Ok(found.unwrap_or_default().finish())
    }

    /// Fetches the samples, a row for each series, and adds them up; `None` if there are more than
    /// `samples_max`, or too many of one series.
    async fn windows_of_arrays(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width_ms: Option<i64>,
        samples_max: usize,
    ) -> Result<Option<Open>> {
        let condition = Condition::of(filter, 3);
        let sql = format!(
            "SELECT s.id, p.times, p.samples, s.server_id, s.metric_type
             FROM series s CROSS JOIN LATERAL (
                SELECT array_agg(ts) AS times, array_agg(value) AS samples
                FROM (SELECT ts, value FROM samples
                      WHERE series_id = s.id AND ts >= $1 AND ts < $2 LIMIT {}) q) p
             WHERE p.times IS NOT NULL AND NOT s.emptied AND {}",
            ARRAY_LEN_MAX + 1,
            condition.sql
        );
        let (start, end) = (PgTime(range.start_ms()), PgTime(range.end_ms()));
        let mut parameters: Vec<Parameter<'_>> = vec![&start, &end];
        parameters.extend(condition.parameters());
        let window_of = |ms| width_ms.map_or(range.start_ms(), |width| window_start_ms(ms, width));
        let (mut open, mut left) = (Open::default(), samples_max);
        let mut complete = true;
        let visit = |row: Row| {
            let id: i64 = row.try_get(0).map_err(from_pg)?;
            let times: Elements<'_> = row.try_get(1).map_err(from_pg)?;
            let values: Elements<'_> = row.try_get(2).map_err(from_pg)?;
            complete &= times.len() <= ARRAY_LEN_MAX.min(left);
            left = left.saturating_sub(times.len());
            if !complete {
                // To stop costs the connection: of one long series nothing else may come.
                return Ok(left > 0);
            }
            open.names.insert(id, key(&row, 3)?);
            // Neighbours in time fall into one window more often than not.
            let mut current: Option<(i64, &mut OpenWindow)> = None;
            for (ms, value) in times.times().zip(values.values()) {
                let (ms, value) = (ms?, value?);
                let start_ms = window_of(ms);
                match &mut current {
                    Some((same, window)) if *same == start_ms => window.push(ms, value),
                    _ => {
                        let window = open.windows.entry((id, start_ms)).or_default();
                        window.push(ms, value);
                        current = Some((start_ms, window));
                    }
                }
            }
            Ok(true)
        };
        self.each_row(&sql, &parameters, visit).await?;
        Ok(complete.then_some(open))
    }

    /// Fetches the samples and adds them up; `None` if there are more than `samples_max`.
    async fn windows_of_samples(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width_ms: Option<i64>,
        samples_max: Option<usize>,
    ) -> Result<Option<Open>> {
        let condition = Condition::of(filter, 3);
        let limit = samples_max.map(|most| format!("LIMIT {}", most + 1)).unwrap_or_default();
        let exact = filter.as_exact().map(|(server, metric)| SeriesKey::new(server, metric));
        let (names, series) = match exact {
            Some(_) => ("", ""),
            None => (", s.server_id, s.metric_type", "JOIN series s ON s.id = p.series_id"),
        };
        let sql = format!(
            "SELECT p.series_id, p.ts, p.value {names}
             FROM (SELECT series_id, ts, value FROM samples
                   WHERE {} ts >= $1 AND ts < $2 {limit}) p {series}",
            of_series(filter, &condition)
        );
        let (start, end) = (PgTime(range.start_ms()), PgTime(range.end_ms()));
        let mut parameters: Vec<Parameter<'_>> = vec![&start, &end];
        parameters.extend(condition.parameters());
        let window_of = |ms| width_ms.map_or(range.start_ms(), |width| window_start_ms(ms, width));
        let (mut open, mut left) = (Open::default(), samples_max.unwrap_or(usize::MAX));
        let mut complete = true;
        let visit = |row: Row| {
            if left == 0 {
                // It is the last one.
                complete = false;
                return Ok(true);
            }
            left -= 1;
            let PgTime(ms) = row.try_get(1).map_err(from_pg)?;
            let id: i64 = row.try_get(0).map_err(from_pg)?;
            let value = row.try_get(2).map_err(from_pg)?;
            if let Entry::Vacant(name) = open.names.entry(id) {
                name.insert(exact.clone().map_or_else(|| key(&row, 3), Ok)?);
            }
            open.windows.entry((id, window_of(ms))).or_default().push(ms, value);
            Ok(true)
        };
        self.each_row(&sql, &parameters, visit).await?;
        Ok(complete.then_some(open))
    }

    /// Lets the server group; `None` if its sums may not be exact enough.
    async fn windows_of_server(
        &self,
        filter: &SeriesFilter,
        range: TimeRange,
        width_ms: Option<i64>,
    ) -> Result<Option<BTreeMap<SeriesKey, Windows>>> {
        let first = if width_ms.is_some() { 5 } else { 3 };
        let condition = Condition::of(filter, first);
        let sql = grouping(&of_series(filter, &condition), width_ms.is_some());
        let (start, end) = (PgTime(range.start_ms()), PgTime(range.end_ms()));
        let width_s = width_ms.unwrap_or_default() as f64 / 1e3;
        // A boundary before every sample: the server counts windows from there.
        let origin = PgTime(width_ms.map_or(0, |width_ms| window_start_ms(MIN_MS, width_ms)));
        let mut parameters: Vec<Parameter<'_>> = vec![&start, &end];
        if width_ms.is_some() {
            parameters.extend([&width_s as Parameter<'_>, &origin]);
        }
        parameters.extend(condition.parameters());
        let rows = match self.rows(&sql, &parameters).await {
            Err(error) if sqlstate(&error) == Some(OVERFLOW) => return Ok(None),
            rows => rows?,
        };
        let mut found: BTreeMap<SeriesKey, Windows> = BTreeMap::new();
        for row in &rows {
            let Some((key, start_ms, aggregation)) = grouped(row)? else { return Ok(None) };
            found.entry(key).or_default().insert(start_ms, aggregation);
        }
        Ok(Some(found))
    }
}

/// Says in SQL whose samples are meant.
fn of_series(filter: &SeriesFilter, condition: &Condition) -> String {
    let sql = &condition.sql;
    if filter.as_exact().is_some() {
        format!("series_id = (SELECT s.id FROM series s WHERE {sql}) AND")
    } else if condition.parameters().is_empty() {
        String::new()
    } else {
        format!("series_id IN (SELECT s.id FROM series s WHERE {sql}) AND")
    }
}

fn grouping(of_series: &str, by_window: bool) -> String {
    let (window, groups) = match by_window {
        true => ("date_bin(make_interval(secs => $3::float8), ts, $4::timestamptz)", "1, 2"),
        false => ("$1::timestamptz", "1"),
    };
    let high = format!("((value + {SPLITTER}) - {SPLITTER})");
    let value_at = |time: &str| {
        format!(
            "(SELECT p.value FROM samples p WHERE p.series_id = w.series_id AND p.ts = w.{time} \
             AND p.ts >= $1 AND p.ts < $2)"
        )
    };
    format!(
        "WITH w AS MATERIALIZED (
            SELECT series_id, {window} AS start, count(*) AS samples, sum(value) AS plain,
                sum({high}) AS high, sum(value - {high}) AS low,
                min(value) AS smallest, max(value) AS largest,
                min(ts) AS first_ts, max(ts) AS last_ts
            FROM samples WHERE {of_series} ts >= $1 AND ts < $2 GROUP BY {groups})
         SELECT s.server_id, s.metric_type, w.start, w.samples, w.plain, w.high, w.low,
            w.smallest, w.largest, {}, {}
         FROM w JOIN series s ON s.id = w.series_id",
        value_at("first_ts"),
        value_at("last_ts")
    )
}

/// Reads one group; `None` if its sum may not be exact enough.
fn grouped(row: &Row) -> Result<Option<(SeriesKey, i64, MetricAggregation)>> {
    let name = |index| row.try_get::<_, String>(index).map_err(from_pg);
    let number = |index| row.try_get::<_, f64>(index).map_err(from_pg);
    let PgTime(start_ms) = row.try_get(2).map_err(from_pg)?;
    let samples: i64 = row.try_get(3).map_err(from_pg)?;
    let sums = Sums {
        samples: samples as f64,
        plain: number(4)?,
        high: number(5)?,
        low: number(6)?,
        largest: number(7)?.abs().max(number(8)?.abs()),
    };
    let Some(sum) = sums.exact() else { return Ok(None) };
    let aggregation = MetricAggregation {
        count: u64::try_from(samples).unwrap_or_default(),
        sum: Some(sum),
        min: Some(number(7)?),
        max: Some(number(8)?),
        avg: Some(sum / samples as f64),
        first: Some(number(9)?),
        last: Some(number(10)?),
    };
    let key = SeriesKey { server_id: name(0)?, metric_type: name(1)? };
    Ok(Some((key, start_ms, aggregation)))
}

/// What the server summed of one group.
struct Sums {
    samples: f64,
    plain: f64,
    high: f64,
    low: f64,
    /// The largest magnitude of a value.
    largest: f64,
}

impl Sums {
    /// The sum, if it is as exact as the contract asks.
    fn exact(&self) -> Option<f64> {
        let Self { samples, plain, high, low, largest } = *self;
        if largest < SPLIT_VALUE_MAX && samples * largest < SPLIT_SUM_MAX {
            // The sum of the magnitudes is at least this.
            let magnitudes = (high + low).abs().max(largest);
            let loss = samples * samples * ROUNDING * SPLIT_REST_MAX.min(largest);
            if loss <= magnitudes * LOSS_OF_SPLIT_MAX {
                return Some(high + low);
            }
        }
        (samples * ROUNDING <= LOSS_OF_PLAIN_MAX).then_some(plain)
    }
}

/// How many samples a millisecond holds, by the shape of the filter: decides between ways of
/// getting the same answer.
#[derive(Debug, Default)]
pub(crate) struct Densities(Mutex<FxHashMap<Shape, f64>>);

impl Densities {
    fn shapes(&self) -> MutexGuard<'_, FxHashMap<Shape, f64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expected(&self, filter: &SeriesFilter, range: TimeRange) -> Option<f64> {
        let per_ms = *self.shapes().get(&Shape::of(filter))?;
        Some(per_ms * (range.end_ms() - range.start_ms()) as f64)
    }

    fn learn(&self, filter: &SeriesFilter, range: TimeRange, samples: u64) {
        let range_ms = range.end_ms() - range.start_ms();
        // A range that holds nothing, or all that there is, says little about others.
        if samples == 0 || range_ms > SHAPE_RANGE_MS_MAX {
            return;
        }
        let mut shapes = self.shapes();
        if shapes.len() == SHAPES_MAX {
            shapes.clear();
        }
        shapes.insert(Shape::of(filter), samples as f64 / range_ms as f64);
    }
}

/// Windows that samples are added to, in any order, by series and start; and the names of the
/// series, from the same statement.
#[derive(Debug, Default)]
struct Open {
    windows: FxHashMap<(i64, i64), OpenWindow>,
    names: FxHashMap<i64, SeriesKey>,
}

impl Open {
    fn samples(&self) -> u64 {
        self.windows.values().map(OpenWindow::count).sum()
    }

    /// Puts names in the place of ids.
    fn finish(self) -> BTreeMap<SeriesKey, Windows> {
        let mut by_id: FxHashMap<i64, Windows> = FxHashMap::default();
        for ((id, start_ms), window) in self.windows {
            by_id.entry(id).or_default().insert(start_ms, window.finish());
        }
        let named = |(id, name)| Some((name, by_id.remove(&id)?));
        self.names.into_iter().filter_map(named).collect()
    }
}

#[derive(Debug, Default)]
struct OpenWindow {
    /// All but first and last, for which samples would have to come in order.
    sums: Accumulator,
    first: Option<(i64, f64)>,
    last: Option<(i64, f64)>,
}

impl OpenWindow {
    fn push(&mut self, ms: i64, value: f64) {
        self.sums.push(value);
        if self.first.is_none_or(|(first_ms, _)| ms < first_ms) {
            self.first = Some((ms, value));
        }
        if self.last.is_none_or(|(last_ms, _)| ms > last_ms) {
            self.last = Some((ms, value));
        }
    }

    fn count(&self) -> u64 {
        self.sums.count()
    }

    fn finish(&self) -> MetricAggregation {
        MetricAggregation {
            first: self.first.map(|(_, value)| value),
            last: self.last.map(|(_, value)| value),
            ..self.sums.finish()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums as the server does.
    fn sums(values: &[f64]) -> Sums {
        let splitter: f64 = SPLITTER.parse().unwrap();
        let high = |value: f64| (value + splitter) - splitter;
        Sums {
            samples: values.len() as f64,
            plain: values.iter().sum(),
            high: values.iter().map(|value| high(*value)).sum(),
            low: values.iter().map(|value| value - high(*value)).sum(),
            largest: values.iter().fold(0.0, |largest: f64, value| largest.max(value.abs())),
        }
    }

    fn exact(values: &[f64]) -> f64 {
        values.iter().collect::<Accumulator>().finish().sum.unwrap()
    }

    #[test]
    fn sums_of_the_server_are_the_exact_sums() {
        let mut random = fastrand::Rng::with_seed(7);
        for scale in [1e-3, 1.0, 100.0, 1e4] {
            for count in [1, 10, 360, 8640, 100_000] {
                let values: Vec<f64> = (0..count).map(|_| (random.f64() - 0.3) * scale).collect();
                assert_eq!(sums(&values).exact(), Some(exact(&values)), "{count} of {scale}");
            }
        }
        let tenths = vec![0.1; 1_000_000];
        assert_eq!(sums(&tenths).exact(), Some(100_000.0));
    }

    #[test]
    fn whole_numbers_of_any_size_are_summed_exactly_in_usual_windows() {
        let bytes: Vec<f64> = (0..4000).map(|n| 1e12 + f64::from(n)).collect();
        assert_eq!(sums(&bytes).exact(), Some(exact(&bytes)));
    }

    #[test]
    fn sums_that_may_lose_digits_are_not_taken() {
        assert_eq!(sums(&vec![1e12 + 0.1; 10_000]).exact(), None);
        assert_eq!(sums(&vec![1e-9; 10_000]).exact(), None);
    }

    #[test]
    fn filters_of_one_shape_are_expected_to_hold_as_much() {
        let range = |ms| {
            let at = storage_core::metrics::time::from_ms;
            TimeRange::new(at(0), at(ms)).unwrap()
        };
        let filter = |server| SeriesFilter::exact(server, "cpu").unwrap();
        let densities = Densities::default();
        assert_eq!(densities.expected(&filter("a"), range(1000)), None);
        densities.learn(&filter("a"), range(1000), 10);
        densities.learn(&filter("a"), range(1000), 0);
        densities.learn(&filter("a"), TimeRange::all(), 1_000_000);
        assert_eq!(densities.expected(&filter("b"), range(2000)), Some(20.0));
        assert_eq!(densities.expected(&SeriesFilter::any(), range(2000)), None);
    }

    #[test]
    fn samples_may_come_in_any_order() {
        let mut window = OpenWindow::default();
        for (ms, value) in [(5, 1.0), (1, 2.0), (9, 3.0), (7, -4.0)] {
            window.push(ms, value);
        }
        let found = window.finish();
        assert_eq!((found.count, found.sum), (4, Some(2.0)));
        assert_eq!((found.min, found.max), (Some(-4.0), Some(3.0)));
        assert_eq!((found.first, found.last), (Some(2.0), Some(3.0)));
    }
}
