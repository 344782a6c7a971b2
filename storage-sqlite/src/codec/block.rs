//! The format of sealed blocks: the samples of one series over a stretch of time, as small as
//! they get.
//!
//! A column of times, a column of values, see [`times`](super::times) and
//! [`values`](super::values). Metadata is one zstd column at the end that costs nothing when absent.
//! A CRC-32 ends the block.

use std::sync::Arc;

use storage_core::Error;

use super::times::{Times, put_times, take_times};
use super::values::{put_values, take_values};
use super::varint::{Reader, put_u64};
use super::{RawSample, append_crc, corrupt, strip_crc};

const VERSION: u8 = 2;
const ZSTD_LEVEL: i32 = 3;

/// The most samples that a block may hold; also what a reader accepts.
pub(crate) const SAMPLES_MAX: usize = 4096;

/// The most bytes that a block's metadata may have: every sample with the largest metadata.
const METADATA_BYTES_MAX: usize =
    SAMPLES_MAX * (storage_core::metrics::record::METADATA_BYTES_MAX + 16);

/// Returns the bytes of a block of at most [`SAMPLES_MAX`] samples in strict order of time.
pub(crate) fn encode(samples: &[RawSample]) -> Result<Vec<u8>, Error> {
    let times: Vec<i64> = samples.iter().map(|sample| sample.ms).collect();
    let values: Vec<f64> = samples.iter().map(|sample| sample.value).collect();
    let mut bytes = vec![VERSION];
    put_u64(&mut bytes, samples.len() as u64);
    put_times(&mut bytes, &times)?;
    put_values(&mut bytes, &values)?;
    put_metadata(&mut bytes, samples)?;
    append_crc(&mut bytes);
    Ok(bytes)
}

/// Returns the samples of a block in order of time.
///
/// # Errors
/// `Corrupt` if the checksum or anything inside is wrong.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<RawSample>, Error> {
    let (times, values, mut reader) = decode_columns(bytes, i64::MAX)?;
    let pairs = values.into_iter().enumerate();
    let mut samples: Vec<_> = pairs
        .map(|(index, value)| RawSample { ms: times.at(index), value, metadata: None })
        .collect();
    take_metadata(&mut reader, &mut samples)?;
    Ok(samples)
}

/// Returns all times of a block, with the values of those before `end_ms` and no metadata: enough
/// for aggregates.
pub(crate) fn decode_values(bytes: &[u8], end_ms: i64) -> Result<(Times, Vec<f64>), Error> {
    let (times, values, _) = decode_columns(bytes, end_ms)?;
    Ok((times, values))
}

fn decode_columns(bytes: &[u8], end_ms: i64) -> Result<(Times, Vec<f64>, Reader<'_>), Error> {
    let mut reader = Reader(strip_crc(bytes)?);
    if reader.u8()? != VERSION {
        return Err(corrupt("the block has an unknown version"));
    }
    let count = usize::try_from(reader.u64()?).unwrap_or(usize::MAX);
    if count == 0 || count > SAMPLES_MAX {
        return Err(corrupt("the block holds an impossible number of samples"));
    }
    let times = take_times(&mut reader, count)?;
    let values = take_values(&mut reader, count, times.before(end_ms))?;
    Ok((times, values, reader))
}

fn put_metadata(bytes: &mut Vec<u8>, samples: &[RawSample]) -> Result<(), Error> {
    if samples.iter().all(|sample| sample.metadata.is_none()) {
        return Ok(());
    }
    let mut column = Vec::new();
    for (index, sample) in samples.iter().enumerate() {
        if let Some(metadata) = &sample.metadata {
            put_u64(&mut column, index as u64);
            put_u64(&mut column, metadata.len() as u64);
            column.extend_from_slice(metadata.as_bytes());
        }
    }
    let packed = zstd::bulk::compress(&column, ZSTD_LEVEL)
        .map_err(|error| internal("cannot compress metadata", error))?;
    put_u64(bytes, column.len() as u64);
    bytes.extend_from_slice(&packed);
    Ok(())
}

fn take_metadata(reader: &mut Reader<'_>, samples: &mut [RawSample]) -> Result<(), Error> {
    if reader.0.is_empty() {
        return Ok(());
    }
    let length = usize::try_from(reader.u64()?).unwrap_or(usize::MAX);
    if length > METADATA_BYTES_MAX {
        return Err(corrupt("the metadata is impossibly large"));
    }
    let column = zstd::bulk::decompress(reader.0, length)
        .map_err(|error| corrupt("the metadata does not decompress").with_source(error))?;
    let mut column = Reader(&column);
    while !column.0.is_empty() {
        let index = usize::try_from(column.u64()?).unwrap_or(usize::MAX);
        let metadata = Arc::from(column.text()?);
        let sample = samples.get_mut(index).ok_or_else(|| corrupt("metadata of no sample"))?;
        sample.metadata = Some(metadata);
    }
    Ok(())
}

fn internal(problem: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(storage_core::ErrorKind::Internal, problem).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use storage_core::metrics::time::{END_MS, MIN_MS};

    fn samples() -> impl Strategy<Value = Vec<RawSample>> {
        let value = any::<f64>().prop_filter("finite", |value| value.is_finite());
        let metadata = proptest::option::weighted(0.1, ".{0,20}".prop_map(Arc::from));
        let sample = (MIN_MS..END_MS, value, metadata);
        proptest::collection::btree_map(MIN_MS..END_MS, sample, 1..300).prop_map(|map| {
            let entries = map.into_iter();
            entries.map(|(ms, (_, value, metadata))| RawSample { ms, value, metadata }).collect()
        })
    }

    proptest! {
        #[test]
        fn round_trips(samples in samples()) {
            let decoded = decode(&encode(&samples).unwrap()).unwrap();
            prop_assert_eq!(decoded, samples);
        }

        #[test]
        fn bytes_from_outside_are_refused_or_decoded_but_never_panic(
            samples in samples(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = encode(&samples).unwrap();
            bytes.truncate(bytes.len() - 4);
            let index = at.index(bytes.len());
            bytes[index] = byte;
            bytes.truncate(cut.index(bytes.len()) + 1);
            append_crc(&mut bytes);
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn regular_times_and_round_values_are_small() {
        let samples: Vec<_> = (0..1024)
            .map(|index| RawSample {
                ms: index * 10_000,
                value: (index % 7) as f64,
                metadata: None,
            })
            .collect();
        assert!(encode(&samples).unwrap().len() < 700);
    }
}
