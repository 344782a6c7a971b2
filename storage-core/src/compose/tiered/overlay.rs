//! One answer out of two: what the hot tier holds lies over what the cold one holds.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::metrics::time::floor_ms;
use crate::metrics::{
    Accumulator, MetricAggregation, MetricRecord, Sample, SeriesKey, SeriesSamples,
};

/// Merges records of one series, both oldest first; where both have one the hot one counts.
pub(super) fn records(cold: Vec<MetricRecord>, hot: Vec<MetricRecord>) -> Vec<MetricRecord> {
    merged(cold, hot, |cold, hot| cold.timestamp.cmp(&hot.timestamp))
}

/// Merges the newest samples of series, newest first, and keeps `n` of each.
pub(super) fn latest(
    cold: Vec<SeriesSamples>,
    hot: Vec<SeriesSamples>,
    n: usize,
) -> Vec<SeriesSamples> {
    let mut all: BTreeMap<SeriesKey, [Vec<Sample>; 2]> = BTreeMap::new();
    for (tier, found) in [cold, hot].into_iter().enumerate() {
        for SeriesSamples { series, samples } in found {
            all.entry(series).or_default()[tier] = samples;
        }
    }
    let of = |(series, [cold, hot]): (SeriesKey, [Vec<Sample>; 2])| {
        let mut samples = merged(cold, hot, |cold, hot| hot.timestamp.cmp(&cold.timestamp));
        samples.truncate(n);
        SeriesSamples { series, samples }
    };
    all.into_iter().map(of).filter(|found| !found.samples.is_empty()).collect()
}

/// Merges two ordered lists; of two that are equal the second counts.
fn merged<T>(cold: Vec<T>, hot: Vec<T>, order: impl Fn(&T, &T) -> Ordering) -> Vec<T> {
    if cold.is_empty() {
        return hot;
    }
    if hot.is_empty() {
        return cold;
    }
    let mut out = Vec::with_capacity(cold.len() + hot.len());
    let mut hot = hot.into_iter().peekable();
    for under in cold {
        while let Some(over) = hot.next_if(|over| order(&under, over) == Ordering::Greater) {
            out.push(over);
        }
        if hot.peek().is_none_or(|over| order(&under, over) != Ordering::Equal) {
            out.push(under);
        }
    }
    out.extend(hot);
    out
}

/// Adds the aggregate of earlier samples and that of later ones; `None` if a sum is infinite: then
/// only the samples tell.
pub(super) fn added(
    earlier: &MetricAggregation,
    later: &MetricAggregation,
) -> Option<MetricAggregation> {
    let finite = |one: &MetricAggregation| one.sum.is_none_or(f64::is_finite);
    if earlier.count == 0 || later.count == 0 {
        return Some(if later.count == 0 { *earlier } else { *later });
    }
    let mut all = Accumulator::default();
    all.push_aggregation(earlier);
    all.push_aggregation(later);
    (finite(earlier) && finite(later)).then(|| all.finish())
}

/// Returns the aggregate of records of one series, oldest first.
pub(super) fn aggregate(records: &[MetricRecord]) -> MetricAggregation {
    records.iter().map(|record| &record.value).collect::<Accumulator>().finish()
}

/// Whether two aggregates are of the same samples: sums that were formed in different ways may
/// differ in their last digits.
pub(super) fn alike(one: &MetricAggregation, other: &MetricAggregation) -> bool {
    let exact = |of: &MetricAggregation| (of.count, of.min, of.max, of.first, of.last);
    let (Some(sum), Some(other_sum)) = (one.sum, other.sum) else {
        return one.count == other.count;
    };
    let magnitude = one.min.unwrap_or_default().abs().max(one.max.unwrap_or_default().abs());
    let tolerance = 1e-11 * magnitude * one.count as f64;
    exact(one) == exact(other) && (sum == other_sum || (sum - other_sum).abs() <= tolerance)
}

/// The first and the last millisecond of records that are oldest first.
pub(super) fn span_ms(records: &[MetricRecord]) -> Option<(i64, i64)> {
    let ms = |record: &MetricRecord| floor_ms(record.timestamp);
    Some((ms(records.first()?), ms(records.last()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::time::from_ms;

    fn record(ms: i64, value: f64) -> MetricRecord {
        MetricRecord::new("a", from_ms(ms), "b", value)
    }

    fn points(records: &[MetricRecord]) -> Vec<(i64, f64)> {
        records.iter().map(|one| (floor_ms(one.timestamp), one.value)).collect()
    }

    #[test]
    fn the_hot_record_counts_where_both_have_one() {
        let cold = vec![record(1, 1.0), record(3, 1.0), record(5, 1.0)];
        let hot = vec![record(0, 2.0), record(3, 2.0), record(4, 2.0), record(9, 2.0)];
        let expected = [(0, 2.0), (1, 1.0), (3, 2.0), (4, 2.0), (5, 1.0), (9, 2.0)];
        assert_eq!(points(&records(cold.clone(), hot.clone())), expected);
        assert_eq!(records(cold.clone(), Vec::new()), cold);
        assert_eq!(records(Vec::new(), hot.clone()), hot);
    }

    #[test]
    fn the_newest_of_both_are_the_newest() {
        let of = |server: &str, times: &[i64], value: f64| SeriesSamples {
            series: SeriesKey::new(server, "b"),
            samples: times.iter().map(|ms| record(*ms, value).to_sample()).collect(),
        };
        let found = latest(
            vec![of("a", &[5, 3, 1], 1.0), of("c", &[1], 1.0)],
            vec![of("a", &[5, 4], 2.0), of("b", &[7], 2.0)],
            3,
        );
        let expected = [of("a", &[5, 4, 3], 2.0), of("b", &[7], 2.0), of("c", &[1], 1.0)];
        let times = |all: &[SeriesSamples]| {
            all.iter()
                .map(|one| one.samples.iter().map(|s| floor_ms(s.timestamp)).collect::<Vec<_>>())
                .collect::<Vec<_>>()
        };
        assert_eq!(times(&found), times(&expected));
        assert_eq!((found[0].samples[0].value, found[0].samples[2].value), (2.0, 1.0));
    }

    #[test]
    fn aggregates_add_unless_a_sum_is_lost() {
        let (small, large) = (aggregate(&[record(0, 1.0)]), aggregate(&[record(1, f64::MAX)]));
        assert_eq!(added(&small, &small).unwrap().count, 2);
        let none = MetricAggregation::default();
        assert_eq!((added(&none, &small), added(&small, &none)), (Some(small), Some(small)));
        let infinite = aggregate(&[record(0, f64::MAX), record(1, f64::MAX)]);
        assert_eq!(added(&infinite, &large), None);
        assert!(alike(&none, &none) && alike(&small, &small) && !alike(&small, &large));
        assert!(!alike(&small, &none));
    }
}
