//! The column of times in a block: a start and a step where they are regular, else a list.

use pco::ChunkConfig;
use storage_core::{Error, metrics::time::is_sample_ms};

use super::corrupt;
use super::pack::{put_pco, take_pco};
use super::varint::{Reader, put_i64};

const REGULAR: u8 = 0;
const LISTED: u8 = 1;

/// Times in strict order; there is at least one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Times {
    Regular { start_ms: i64, step_ms: i64, count: usize },
    Listed(Vec<i64>),
}

impl Times {
    /// Number of times.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Regular { count, .. } => *count,
            Self::Listed(times) => times.len(),
        }
    }

    /// The time at `index`, which must be below [`len`](Self::len).
    pub(crate) fn at(&self, index: usize) -> i64 {
        match self {
            Self::Regular { start_ms, step_ms, .. } => start_ms + step_ms * index as i64,
            Self::Listed(times) => times[index],
        }
    }

    /// How many of the times are before `ms`.
    pub(crate) fn before(&self, ms: i64) -> usize {
        match self {
            Self::Listed(times) => times.partition_point(|time| *time < ms),
            Self::Regular { start_ms, .. } if ms <= *start_ms => 0,
            Self::Regular { start_ms, step_ms, count } => {
                let steps = ms.saturating_sub(*start_ms).saturating_add(step_ms - 1) / step_ms;
                usize::try_from(steps).map_or(*count, |steps| steps.min(*count))
            }
        }
    }

    /// Whether `ms` is one of the times.
    pub(crate) fn contains(&self, ms: i64) -> bool {
        let index = self.before(ms);
        index < self.len() && self.at(index) == ms
    }
}

/// Appends times in strict order; there is at least one.
pub(super) fn put_times(bytes: &mut Vec<u8>, times: &[i64]) -> Result<(), Error> {
    let start_ms = times.first().copied().unwrap_or_default();
    let step_ms = times.get(1).map_or(1, |second| second - start_ms);
    let regular = times.iter().zip(0..).all(|(ms, index)| *ms == start_ms + step_ms * index);
    if !regular {
        bytes.push(LISTED);
        return put_pco(bytes, times, &ChunkConfig::default());
    }
    bytes.push(REGULAR);
    put_i64(bytes, start_ms);
    put_i64(bytes, step_ms);
    Ok(())
}

/// Takes `count` times, at least one.
pub(super) fn take_times(reader: &mut Reader<'_>, count: usize) -> Result<Times, Error> {
    let out_of_bounds = || corrupt("the times are out of order or of bounds");
    match reader.u8()? {
        LISTED => {
            let times: Vec<i64> = take_pco(reader, count, count)?;
            let inside = is_sample_ms(times[0]) && is_sample_ms(times[count - 1]);
            if !inside || !times.is_sorted_by(|a, b| a < b) {
                return Err(out_of_bounds());
            }
            Ok(Times::Listed(times))
        }
        REGULAR => {
            let (start_ms, step_ms) = (reader.i64()?, reader.i64()?);
            let span_ms = step_ms.checked_mul(count as i64 - 1);
            let end_ms = span_ms.and_then(|span_ms| start_ms.checked_add(span_ms));
            let inside = is_sample_ms(start_ms) && end_ms.is_some_and(is_sample_ms);
            if !inside || step_ms <= 0 {
                return Err(out_of_bounds());
            }
            Ok(Times::Regular { start_ms, step_ms, count })
        }
        _ => Err(corrupt("the times have an unknown encoding")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(times: &[i64]) -> Times {
        let mut bytes = Vec::new();
        put_times(&mut bytes, times).unwrap();
        take_times(&mut Reader(&bytes), times.len()).unwrap()
    }

    #[test]
    fn regular_or_listed_times_answer_alike() {
        let cases: [&[i64]; 4] = [&[-7], &[-20, -10, 0, 10], &[5, 6, 9], &[0, 1, 2, 3, 4]];
        for times in cases {
            let column = round_trip(times);
            assert_eq!(column.len(), times.len());
            for (index, ms) in times.iter().enumerate() {
                assert_eq!(column.at(index), *ms);
            }
            for ms in (-30..30).chain([i64::MIN, i64::MAX]) {
                assert_eq!(column.before(ms), times.iter().filter(|time| **time < ms).count());
                assert_eq!(column.contains(ms), times.contains(&ms));
            }
        }
    }

    #[test]
    fn steps_that_go_nowhere_or_too_far_are_refused() {
        for (start_ms, step_ms) in [(0, 0), (0, -1), (0, i64::MAX), (i64::MAX, 1)] {
            let mut bytes = vec![REGULAR];
            put_i64(&mut bytes, start_ms);
            put_i64(&mut bytes, step_ms);
            assert!(take_times(&mut Reader(&bytes), 3).is_err());
        }
    }
}
