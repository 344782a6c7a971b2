//! Aggregates of samples: count, sum, minimum, maximum, average, first and last.
//!
//! The sum is kept in twice the precision of an `f64` (Knuth's TwoSum), so that every backend
//! gives the same answer whatever way it splits the samples into blocks, rows or files.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::record::SeriesKey;
use super::time::window_start_ms;

/// What is known of the samples of a series in a range or window.
///
/// With no samples `count` is 0 and everything else `None`; no field is ever NaN.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct MetricAggregation {
    /// Number of samples.
    pub count: u64,
    /// Sum of the values; infinite if the exact sum does not fit into an `f64`.
    pub sum: Option<f64>,
    /// Smallest value.
    pub min: Option<f64>,
    /// Largest value.
    pub max: Option<f64>,
    /// `sum / count`.
    pub avg: Option<f64>,
    /// Value of the earliest sample.
    pub first: Option<f64>,
    /// Value of the latest sample.
    pub last: Option<f64>,
}

/// The aggregate of one window of time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Where the window starts: a multiple of its width since the epoch.
    pub start: DateTime<Utc>,
    /// What is known of its samples; never empty.
    #[serde(flatten)]
    pub aggregation: MetricAggregation,
}

/// The windows of one series, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeriesWindows {
    /// Whose windows.
    pub series: SeriesKey,
    /// The windows that hold at least one sample.
    pub windows: Vec<Window>,
}

/// Builds a [`MetricAggregation`] from samples, or from aggregates of samples, in order of time.
///
/// ```
/// use storage_core::metrics::Accumulator;
///
/// let mut early = Accumulator::default();
/// early.push(2.0);
/// let mut all = Accumulator::default();
/// all.push_aggregation(&early.finish());
/// all.push(4.0);
/// let aggregation = all.finish();
/// assert_eq!((aggregation.count, aggregation.avg), (2, Some(3.0)));
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Accumulator {
    count: u64,
    sum: Sum,
    min: f64,
    max: f64,
    first: f64,
    last: f64,
}

impl Accumulator {
    /// Adds a sample that is later than all before.
    #[inline]
    pub fn push(&mut self, value: f64) {
        if self.count == 0 {
            (self.min, self.max, self.first) = (value, value, value);
        }
        self.count += 1;
        self.sum.add(value);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.last = value;
    }

    /// Adds samples that are later than all before, in order of time.
    ///
    /// Several times as fast as [`push`](Self::push) one by one, which depend on each other.
    pub fn push_all(&mut self, values: &[f64]) {
        let (lanes, rest) = values.as_chunks::<LANES>();
        let [Some(first), Some(last)] = [lanes.first(), lanes.last()] else {
            return rest.iter().for_each(|value| self.push(*value));
        };
        let (mut min, mut max) = (*first, *first);
        for lane in lanes {
            for index in 0..LANES {
                min[index] = if lane[index] < min[index] { lane[index] } else { min[index] };
                max[index] = if lane[index] > max[index] { lane[index] } else { max[index] };
            }
        }
        let (min, max) =
            (min.into_iter().fold(min[0], f64::min), max.into_iter().fold(max[0], f64::max));
        if self.count == 0 {
            (self.min, self.max, self.first) = (min, max, first[0]);
        }
        self.count += (lanes.len() * LANES) as u64;
        self.min = self.min.min(min);
        self.max = self.max.max(max);
        self.last = last[LANES - 1];
        if let Some(sum) = whole_sum(lanes, max.max(-min)) {
            self.sum.add(sum);
        } else if min > -HUGE && max < HUGE {
            self.sum.add_lanes(lanes);
        } else {
            lanes.as_flattened().iter().for_each(|value| self.sum.add(*value));
        }
        rest.iter().for_each(|value| self.push(*value));
    }

    /// Adds the aggregate of samples that are all later than those before.
    ///
    /// An aggregate whose sum is infinite has lost what it would take to be added exactly: push
    /// its samples instead.
    pub fn push_aggregation(&mut self, later: &MetricAggregation) {
        let (Some(sum), Some(min), Some(max), Some(first), Some(last)) =
            (later.sum, later.min, later.max, later.first, later.last)
        else {
            return;
        };
        if self.count == 0 {
            (self.min, self.max, self.first) = (min, max, first);
        }
        self.count += later.count;
        self.sum.add(sum);
        self.min = self.min.min(min);
        self.max = self.max.max(max);
        self.last = last;
    }

    /// Number of samples so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the aggregate of everything pushed.
    pub fn finish(&self) -> MetricAggregation {
        if self.count == 0 {
            return MetricAggregation::default();
        }
        let sum = self.sum.value();
        MetricAggregation {
            count: self.count,
            sum: Some(sum),
            min: Some(self.min),
            max: Some(self.max),
            avg: Some(sum / self.count as f64),
            first: Some(self.first),
            last: Some(self.last),
        }
    }
}

impl<'a> FromIterator<&'a f64> for Accumulator {
    fn from_iter<I: IntoIterator<Item = &'a f64>>(values: I) -> Self {
        let mut accumulator = Self::default();
        values.into_iter().for_each(|value| accumulator.push(*value));
        accumulator
    }
}

/// Builds the windows of one series from samples, or aggregates, that come in order of time.
///
/// For backends: the shared part of [`StorageBackend::windows`](crate::StorageBackend::windows).
///
/// ```
/// use storage_core::metrics::WindowBuilder;
///
/// let mut builder = WindowBuilder::new(60_000);
/// builder.push(-1, 1.0);
/// builder.push(0, 2.0);
/// builder.push(59_999, 3.0);
/// let counts: Vec<_> = builder.finish().iter().map(|window| window.aggregation.count).collect();
/// assert_eq!(counts, [1, 2]);
/// ```
#[derive(Debug, Clone)]
pub struct WindowBuilder {
    width_ms: i64,
    done: Vec<Window>,
    open_ms: i64,
    open: Accumulator,
}

impl WindowBuilder {
    /// Starts with no windows; `width_ms` must be positive, see
    /// [`width_ms`](super::time::width_ms).
    pub fn new(width_ms: i64) -> Self {
        Self { width_ms, done: Vec::new(), open_ms: i64::MIN, open: Accumulator::default() }
    }

    /// Adds a sample that is later than all before.
    #[inline]
    pub fn push(&mut self, ms: i64, value: f64) {
        self.turn_to(ms);
        self.open.push(value);
    }

    /// Adds samples in order of time, later than all before, that lie in the window of `ms`.
    pub fn push_all(&mut self, ms: i64, values: &[f64]) {
        if !values.is_empty() {
            self.turn_to(ms);
            self.open.push_all(values);
        }
    }

    /// Adds the aggregate of samples that are later than all before and lie in the window of `ms`.
    pub fn push_aggregation(&mut self, ms: i64, later: &MetricAggregation) {
        self.turn_to(ms);
        self.open.push_aggregation(later);
    }

    /// Returns the windows that hold at least one sample, oldest first.
    pub fn finish(mut self) -> Vec<Window> {
        self.close();
        self.done
    }

    /// Makes the window of `ms` the open one.
    #[inline]
    fn turn_to(&mut self, ms: i64) {
        if self.open.count == 0 || ms - self.open_ms >= self.width_ms {
            self.close();
            self.open_ms = window_start_ms(ms, self.width_ms);
        }
    }

    fn close(&mut self) {
        if self.open.count == 0 {
            return;
        }
        // The very first window may start before year 1, where no sample is: its start is exact.
        let start = DateTime::from_timestamp_millis(self.open_ms).unwrap_or(DateTime::UNIX_EPOCH);
        self.done.push(Window { start, aggregation: self.open.finish() });
        self.open = Accumulator::default();
    }
}

/// So many values are added at once: independent sums keep the processor busy.
const LANES: usize = 8;

/// Up to here sums of whole numbers are exact, and [`ROUNDING`] works.
const WHOLE_SUM_MAX: f64 = (1u64 << 51) as f64;

/// Added to a number and taken away again, it rounds it to a whole one.
const ROUNDING: f64 = (3u64 << 51) as f64;

/// From here on values are summed apart, scaled down, so that no partial sum overflows.
const HUGE: f64 = f64::from_bits((1023 + 960) << 52); // 2^960
const SCALE: f64 = f64::from_bits((1023 - 128) << 52); // 2^-128

/// A sum in double-double arithmetic that cannot overflow before it is asked for its value.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    normal: (f64, f64),
    huge_scaled: (f64, f64),
}

impl Sum {
    #[inline]
    fn add(&mut self, value: f64) {
        if value.abs() < HUGE {
            add_exactly(&mut self.normal, value);
        } else {
            add_exactly(&mut self.huge_scaled, value * SCALE);
        }
    }

    /// Adds values that are all below [`HUGE`].
    fn add_lanes(&mut self, lanes: &[[f64; LANES]]) {
        let (mut sums, mut lost) = ([0.0; LANES], [0.0; LANES]);
        for lane in lanes {
            for index in 0..LANES {
                let mut sum = (sums[index], lost[index]);
                add_exactly(&mut sum, lane[index]);
                (sums[index], lost[index]) = sum;
            }
        }
        for index in 0..LANES {
            self.add(sums[index]);
            self.normal.1 += lost[index];
        }
    }

    fn value(&self) -> f64 {
        let normal = self.normal.0 + self.normal.1;
        if self.huge_scaled == (0.0, 0.0) {
            return normal;
        }
        if !(self.huge_scaled.0 + self.huge_scaled.1).is_finite() {
            return self.huge_scaled.0;
        }
        let mut total = self.huge_scaled;
        add_exactly(&mut total, self.normal.0 * SCALE);
        add_exactly(&mut total, self.normal.1 * SCALE);
        (total.0 + total.1) / SCALE
    }
}

/// Returns the sum of values of magnitude `magnitude_max` at most if all are whole numbers and few
/// and small enough that every sum of some of them is exact: the common case, at a quarter of the cost.
fn whole_sum(lanes: &[[f64; LANES]], magnitude_max: f64) -> Option<f64> {
    let is_whole = |value: f64| value + ROUNDING - ROUNDING == value;
    let fits = magnitude_max * (lanes.len() * LANES) as f64 <= WHOLE_SUM_MAX;
    if !fits || !lanes[0].into_iter().all(is_whole) {
        return None;
    }
    let (mut sums, mut unlike) = ([0.0; LANES], [0; LANES]);
    for lane in lanes {
        for index in 0..LANES {
            let rounded = lane[index] + ROUNDING - ROUNDING;
            sums[index] += lane[index];
            unlike[index] |= rounded.to_bits() ^ lane[index].to_bits();
        }
    }
    (unlike == [0; LANES]).then(|| sums.into_iter().sum())
}

/// Adds `value` to `sum.0` and what rounding loses to `sum.1`.
#[inline]
fn add_exactly(sum: &mut (f64, f64), value: f64) {
    let total = sum.0 + value;
    let part = total - sum.0;
    sum.1 += (sum.0 - (total - part)) + (value - part);
    sum.0 = total;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum_of(values: &[f64]) -> f64 {
        values.iter().collect::<Accumulator>().finish().sum.unwrap()
    }

    #[test]
    fn nothing_is_none() {
        assert_eq!(Accumulator::default().finish(), MetricAggregation::default());
    }

    #[test]
    fn small_values_beside_large_ones_are_kept() {
        assert_eq!(sum_of(&[1e16, 1.0, -1e16]), 1.0);
        let tenths = vec![0.1; 10_000_000];
        assert_eq!(sum_of(&tenths), 1_000_000.0);
    }

    #[test]
    fn a_sum_that_fits_survives_a_partial_sum_that_does_not() {
        assert_eq!(sum_of(&[1e308, 1e308, -1e308]), 1e308);
        assert_eq!(sum_of(&[f64::MAX, f64::MAX]), f64::INFINITY);
        assert_eq!(sum_of(&[-f64::MAX, -f64::MAX]), f64::NEG_INFINITY);
        assert_eq!(sum_of(&[f64::MAX, 1.5, -f64::MAX]), 1.5);
        assert_eq!(sum_of(&[5e-324, 5e-324]), 1e-323);
    }

    #[test]
    fn many_at_once_are_as_one_by_one() {
        let mut random = 1u64;
        let mut next = || {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            f64::from((random >> 40) as i32) * 0.1 - 500_000.0
        };
        for length in (0..40).chain([1000, 4096]) {
            let mut values: Vec<f64> = (0..length).map(|_| next()).collect();
            for huge in [None, Some(f64::MAX)] {
                if let (Some(huge), Some(value)) = (huge, values.get_mut(3)) {
                    *value = huge;
                }
                let (mut at_once, mut one_by_one) =
                    (Accumulator::default(), Accumulator::default());
                at_once.push(7.5);
                one_by_one.push(7.5);
                at_once.push_all(&values);
                values.iter().for_each(|value| one_by_one.push(*value));
                assert_eq!(at_once.finish(), one_by_one.finish(), "{length} values");
            }
        }
        // Whole numbers, one of them perhaps not, small and too large to be added as such.
        for odd in [1.0, 0.5, -0.0, 1e14, 1e16, 0.1] {
            for at in [0, 8, 17, 31] {
                let mut values: Vec<f64> = (0..37).map(|n| f64::from(n * n) - 400.0).collect();
                values[at] = odd;
                let mut at_once = Accumulator::default();
                at_once.push_all(&values);
                let one_by_one: Accumulator = values.iter().collect();
                assert_eq!(at_once.finish(), one_by_one.finish(), "{odd} at {at}");
            }
        }
        let mut builder = WindowBuilder::new(10);
        builder.push_all(25, &[1.0, 2.0]);
        builder.push_all(31, &[]);
        builder.push_all(39, &[4.0]);
        let windows = builder.finish();
        let of = |window: &Window| (window.start.timestamp_millis(), window.aggregation.count);
        assert_eq!(windows.iter().map(of).collect::<Vec<_>>(), [(20, 2), (30, 1)]);
    }

    #[test]
    fn aggregates_add_up_like_samples() {
        let values = [3.5, -1.0, 7.25, 0.5];
        let whole = values.iter().collect::<Accumulator>().finish();
        let mut parts = Accumulator::default();
        for half in values.chunks(2) {
            parts.push_aggregation(&half.iter().collect::<Accumulator>().finish());
        }
        assert_eq!(parts.finish(), whole);
        parts.push_aggregation(&MetricAggregation::default());
        assert_eq!(parts.finish(), whole);
    }
}
