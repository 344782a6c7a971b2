//! The column of values in a block: as whole numbers over a power of ten where every value is
//! exactly that, which most gauges and counters are, else as they are.
//!
//! Whole numbers come out a quarter smaller than the same values as `f64`, and twice as fast.

use pco::{ChunkConfig, DeltaSpec};
use storage_core::Error;

use super::corrupt;
use super::pack::{put_pco, take_pco};
use super::varint::Reader;

const FLOATS: u8 = 0;
const WHOLE_32: u8 = 1;
const WHOLE_64: u8 = 2;

/// Numbers up to here have every whole number as an `f64`.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// The powers of ten that values are tried with; all are exact.
const SCALES: [f64; 7] = [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6];

/// Above the fastest levels each gains little; this one loses a hundredth of the size to the
/// default, which takes twice as long.
const LEVEL: usize = 6;

/// Fewer values than this are told how to be packed; pco itself packs them in every way that it knows
/// to find out, which takes most of the time of sealing many series.
const FEW: usize = 512;

/// Appends values; all are finite and none is -0.0.
pub(super) fn put_values(bytes: &mut Vec<u8>, values: &[f64]) -> Result<(), Error> {
    let config = ChunkConfig::default().with_compression_level(LEVEL);
    let Some((exponent, whole)) = as_whole(values) else {
        bytes.push(FLOATS);
        return put_pco(bytes, values, &config);
    };
    let config = match whole.len() < FEW {
        true => config.with_delta_spec(DeltaSpec::TryConsecutive(order_of(&whole))),
        false => config,
    };
    let small: Result<Vec<i32>, _> = whole.iter().map(|whole| i32::try_from(*whole)).collect();
    match small {
        Ok(small) => {
            bytes.extend_from_slice(&[WHOLE_32, exponent]);
            put_pco(bytes, &small, &config)
        }
        Err(_) => {
            bytes.extend_from_slice(&[WHOLE_64, exponent]);
            put_pco(bytes, &whole, &config)
        }
    }
}

/// Takes a column of `count` values and unpacks the first `wanted` of them.
pub(super) fn take_values(
    reader: &mut Reader<'_>,
    count: usize,
    wanted: usize,
) -> Result<Vec<f64>, Error> {
    match reader.u8()? {
        FLOATS => {
            let values: Vec<f64> = take_pco(reader, count, wanted)?;
            let finite = values.iter().all(|value| value.is_finite());
            finite.then_some(values).ok_or_else(|| corrupt("a value is not finite"))
        }
        WHOLE_32 => {
            let scale = take_scale(reader)?;
            Ok(scaled(take_pco::<i32>(reader, count, wanted)?, scale, f64::from))
        }
        WHOLE_64 => {
            let scale = take_scale(reader)?;
            Ok(scaled(take_pco::<i64>(reader, count, wanted)?, scale, |whole| whole as f64))
        }
        _ => Err(corrupt("the values have an unknown encoding")),
    }
}

/// Divides whole numbers by a power of ten; most are divided by one, which is nothing to do.
fn scaled<T>(whole: Vec<T>, scale: f64, to_float: impl Fn(T) -> f64) -> Vec<f64> {
    match scale {
        1.0 => whole.into_iter().map(to_float).collect(),
        _ => whole.into_iter().map(|whole| to_float(whole) / scale).collect(),
    }
}

fn take_scale(reader: &mut Reader<'_>) -> Result<f64, Error> {
    let exponent = usize::from(reader.u8()?);
    SCALES.get(exponent).copied().ok_or_else(|| corrupt("the values have an unknown scale"))
}

/// Returns the smallest exponent, and the whole numbers, that give exactly these values back.
fn as_whole(values: &[f64]) -> Option<(u8, Vec<i64>)> {
    let mut exponent = 0;
    for value in values {
        while !is_exact(*value, SCALES[exponent]) {
            exponent += 1;
            if exponent == SCALES.len() {
                return None;
            }
        }
    }
    let scale = SCALES[exponent];
    // Once more, because an early value was tried with a smaller scale alone.
    let exact = values.iter().all(|value| is_exact(*value, scale));
    let whole = values.iter().map(|value| nearest(value * scale));
    exact.then(|| (exponent as u8, whole.collect()))
}

/// Returns how often differences are to be taken, until taking more makes the numbers no smaller.
fn order_of(numbers: &[i64]) -> usize {
    const ORDER_MAX: usize = 2;
    let mut left = numbers.to_vec();
    let (mut order, mut bits) = (0, spread_bits(&left));
    while order < ORDER_MAX && left.len() > 1 {
        left = left.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
        let bits_after = spread_bits(&left);
        if bits_after >= bits {
            break;
        }
        (order, bits) = (order + 1, bits_after);
    }
    order
}

/// Returns how many bits the distances of numbers from their median have together.
fn spread_bits(numbers: &[i64]) -> u32 {
    let mut sorted = numbers.to_vec();
    let middle = sorted.len() / 2;
    let (_, median, _) = sorted.select_nth_unstable(middle);
    numbers.iter().map(|number| u64::BITS - number.abs_diff(*median).leading_zeros()).sum()
}

fn is_exact(value: f64, scale: f64) -> bool {
    let scaled = value * scale;
    scaled.abs() <= WHOLE_MAX && nearest(scaled) as f64 / scale == value
}

/// Rounds half away from zero; faster than `round`, which is a call on older processors.
fn nearest(scaled: f64) -> i64 {
    (scaled + 0.5f64.copysign(scaled)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(values: &[f64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_values(&mut bytes, values).unwrap();
        let decoded = take_values(&mut Reader(&bytes), values.len(), values.len()).unwrap();
        let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&decoded), bits(values));
        bytes
    }

    #[test]
    fn the_encoding_follows_the_values() {
        assert_eq!(encoded(&[1.0, -3.0, 0.0])[..2], [WHOLE_32, 0]);
        assert_eq!(encoded(&[1.0, 0.25])[..2], [WHOLE_32, 2]);
        assert_eq!(encoded(&[0.1, 99.99, 12.0])[..2], [WHOLE_32, 2]);
        assert_eq!(encoded(&[4e12])[..2], [WHOLE_64, 0]);
        assert_eq!(encoded(&[WHOLE_MAX, -WHOLE_MAX])[0], WHOLE_64);
        for value in [f64::MAX, 5e-324, 1.0 / 3.0, 1e-7, WHOLE_MAX * 2.0] {
            assert_eq!(encoded(&[value, 1.0])[0], FLOATS);
        }
        // Exact with one decimal, but out of bounds with the two that the other takes.
        assert_eq!(encoded(&[WHOLE_MAX / 16.0 + 0.5, 0.01])[0], FLOATS);
    }

    proptest! {
        #[test]
        fn decimals_round_trip(
            whole in proptest::collection::vec(any::<i32>(), 1..50),
            exponent in 0..9,
        ) {
            let scale = 10f64.powi(exponent);
            encoded(&whole.iter().map(|whole| f64::from(*whole) / scale).collect::<Vec<_>>());
        }
    }
}
