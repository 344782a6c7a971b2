//! The journal's format: what a commit of one or more batches wrote, in the order it was written.
//!
//! A payload is a version byte, one frame per batch, and a CRC-32. A frame is columnar: series
//! ids and times as deltas (in runs where equal ones follow each other), values as whole numbers
//! where all are, else as they are, then the metadata of the samples that have any. Made to be
//! written fast; blocks are the small form.

use std::sync::Arc;

use storage_core::{Error, metrics::time::is_sample_ms};

use super::varint::{Reader, put_i64, put_u64};
use super::{RawSample, append_crc, corrupt, strip_crc};

const VERSION: u8 = 2;
/// Until then deltas were always listed, and no byte said so.
const VERSION_WITHOUT_RUNS: u8 = 1;
const DELTAS_LISTED: u8 = 0;
const DELTAS_IN_RUNS: u8 = 1;
const VALUES_RAW: u8 = 0;
const VALUES_WHOLE: u8 = 1;

/// Numbers up to here have every whole number as an `f64`.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// A sample and the series that it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) series_id: i64,
    pub(crate) sample: RawSample,
}

/// Returns the frame of one batch.
pub(crate) fn encode_frame(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + entries.len() * 12);
    put_u64(&mut bytes, entries.len() as u64);
    put_deltas(&mut bytes, entries.iter().map(|entry| entry.series_id));
    put_deltas(&mut bytes, entries.iter().map(|entry| entry.sample.ms));
    put_values(&mut bytes, entries);
    put_metadata(&mut bytes, entries);
    bytes
}

/// Joins frames to the payload of a journal row.
pub(crate) fn seal_payload<'a>(frames: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    for frame in frames {
        bytes.extend_from_slice(frame);
    }
    append_crc(&mut bytes);
    bytes
}

/// Returns the entries of a payload, in the order they were written.
///
/// # Errors
/// `Corrupt` if the checksum or anything inside is wrong.
pub(crate) fn decode_payload(payload: &[u8]) -> Result<Vec<Entry>, Error> {
    let mut reader = Reader(strip_crc(payload)?);
    let take_column = match reader.u8()? {
        VERSION => take_deltas,
        VERSION_WITHOUT_RUNS => take_listed,
        _ => return Err(corrupt("the journal row has an unknown version")),
    };
    let mut entries = Vec::new();
    while !reader.0.is_empty() {
        decode_frame(&mut reader, take_column, &mut entries)?;
    }
    Ok(entries)
}

/// Reads a column of whole numbers.
type TakeColumn = fn(&mut Reader<'_>, usize) -> Result<Vec<i64>, Error>;

fn decode_frame(
    reader: &mut Reader<'_>,
    take_column: TakeColumn,
    entries: &mut Vec<Entry>,
) -> Result<(), Error> {
    let count = reader.count()?;
    let series_ids = take_column(reader, count)?;
    let times = take_column(reader, count)?;
    let values = take_values(reader, count)?;
    let first = entries.len();
    entries.reserve(count);
    for ((series_id, ms), value) in series_ids.into_iter().zip(times).zip(values) {
        if !is_sample_ms(ms) || !value.is_finite() {
            return Err(corrupt("a sample is out of bounds"));
        }
        entries.push(Entry { series_id, sample: RawSample { ms, value, metadata: None } });
    }
    take_metadata(reader, &mut entries[first..])
}

fn put_deltas(bytes: &mut Vec<u8>, numbers: impl ExactSizeIterator<Item = i64> + Clone) {
    let count = numbers.len();
    let runs = Runs::of(numbers.clone());
    // A run takes a number more than a delta does.
    if runs.clone().take(count / 2 + 1).count() <= count / 2 {
        bytes.push(DELTAS_IN_RUNS);
        for (delta, length) in runs {
            put_i64(bytes, delta);
            put_u64(bytes, length);
        }
    } else {
        bytes.push(DELTAS_LISTED);
        let mut previous = 0i64;
        for number in numbers {
            put_i64(bytes, number.wrapping_sub(previous));
            previous = number;
        }
    }
}

/// Equal deltas that follow each other: the delta and how often it comes.
#[derive(Clone)]
struct Runs<I: Iterator<Item = i64>> {
    numbers: std::iter::Peekable<I>,
    previous: i64,
}

impl<I: Iterator<Item = i64>> Runs<I> {
    fn of(numbers: I) -> Self {
        Self { numbers: numbers.peekable(), previous: 0 }
    }
}

impl<I: Iterator<Item = i64>> Iterator for Runs<I> {
    type Item = (i64, u64);

    fn next(&mut self) -> Option<(i64, u64)> {
        let first = self.numbers.next()?;
        let delta = first.wrapping_sub(self.previous);
        self.previous = first;
        let mut length = 1;
        while self.numbers.next_if(|next| next.wrapping_sub(self.previous) == delta).is_some() {
            self.previous = self.previous.wrapping_add(delta);
            length += 1;
        }
        Some((delta, length))
    }
}

fn take_deltas(reader: &mut Reader<'_>, count: usize) -> Result<Vec<i64>, Error> {
    match reader.u8()? {
        DELTAS_LISTED => take_listed(reader, count),
        DELTAS_IN_RUNS => take_runs(reader, count),
        _ => Err(corrupt("the numbers have an unknown encoding")),
    }
}

fn take_listed(reader: &mut Reader<'_>, count: usize) -> Result<Vec<i64>, Error> {
    let mut previous = 0i64;
    (0..count)
        .map(|_| {
            previous = previous.wrapping_add(reader.i64()?);
            Ok(previous)
        })
        .collect()
}

fn take_runs(reader: &mut Reader<'_>, count: usize) -> Result<Vec<i64>, Error> {
    let mut previous = 0i64;
    let mut numbers = Vec::with_capacity(count);
    while numbers.len() < count {
        let delta = reader.i64()?;
        let length = usize::try_from(reader.u64()?).unwrap_or(usize::MAX);
        if length == 0 || length > count - numbers.len() {
            return Err(corrupt("a run is empty or too long"));
        }
        for _ in 0..length {
            previous = previous.wrapping_add(delta);
            numbers.push(previous);
        }
    }
    Ok(numbers)
}

fn put_values(bytes: &mut Vec<u8>, entries: &[Entry]) {
    let is_whole = |value: f64| value.abs() <= WHOLE_MAX && (value as i64) as f64 == value;
    if entries.iter().all(|entry| is_whole(entry.sample.value)) {
        bytes.push(VALUES_WHOLE);
        entries.iter().for_each(|entry| put_i64(bytes, entry.sample.value as i64));
    } else {
        bytes.push(VALUES_RAW);
        entries.iter().for_each(|entry| bytes.extend_from_slice(&entry.sample.value.to_le_bytes()));
    }
}

fn take_values(reader: &mut Reader<'_>, count: usize) -> Result<Vec<f64>, Error> {
    match reader.u8()? {
        VALUES_WHOLE => (0..count).map(|_| Ok(reader.i64()? as f64)).collect(),
        VALUES_RAW => {
            let raw = reader.bytes(count.saturating_mul(8))?;
            Ok(raw.as_chunks().0.iter().map(|chunk| f64::from_le_bytes(*chunk)).collect())
        }
        _ => Err(corrupt("the values have an unknown encoding")),
    }
}

fn put_metadata(bytes: &mut Vec<u8>, entries: &[Entry]) {
    let with = || {
        let pairs = entries.iter().enumerate();
        pairs.filter_map(|(index, entry)| Some((index, entry.sample.metadata.as_ref()?)))
    };
    put_u64(bytes, with().count() as u64);
    for (index, metadata) in with() {
        put_u64(bytes, index as u64);
        put_u64(bytes, metadata.len() as u64);
        bytes.extend_from_slice(metadata.as_bytes());
    }
}

fn take_metadata(reader: &mut Reader<'_>, entries: &mut [Entry]) -> Result<(), Error> {
    for _ in 0..reader.count()? {
        let index = usize::try_from(reader.u64()?).unwrap_or(usize::MAX);
        let metadata = Arc::from(reader.text()?);
        let entry = entries.get_mut(index).ok_or_else(|| corrupt("metadata of no sample"))?;
        entry.sample.metadata = Some(metadata);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use storage_core::ErrorKind;
    use storage_core::metrics::time::{END_MS, MIN_MS};

    fn entry() -> impl Strategy<Value = Entry> {
        let value = prop_oneof![
            any::<i32>().prop_map(f64::from),
            any::<f64>().prop_filter("finite", |value| value.is_finite()),
        ];
        let metadata = proptest::option::weighted(0.2, ".{0,20}".prop_map(Arc::from));
        // Some in a row, as most come, and some anywhere.
        let series_id = prop_oneof![any::<i64>(), 0..3i64];
        let ms = prop_oneof![MIN_MS..END_MS, 0..2i64];
        (series_id, ms, value, metadata).prop_map(|(series_id, ms, value, metadata)| Entry {
            series_id,
            sample: RawSample { ms, value, metadata },
        })
    }

    proptest! {
        #[test]
        fn round_trips(batches in proptest::collection::vec(proptest::collection::vec(entry(), 0..50), 0..4)) {
            let frames: Vec<_> = batches.iter().map(|batch| encode_frame(batch)).collect();
            let payload = seal_payload(frames.iter().map(Vec::as_slice));
            let decoded = decode_payload(&payload).unwrap();
            prop_assert_eq!(decoded, batches.concat());
        }

        #[test]
        fn bytes_from_outside_are_refused_or_decoded_but_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), version in VERSION_WITHOUT_RUNS..=VERSION) {
            bytes.insert(0, version);
            append_crc(&mut bytes);
            let _ = decode_payload(&bytes);
        }
    }

    fn plain(series_id: i64, ms: i64, value: f64) -> Entry {
        Entry { series_id, sample: RawSample { ms, value, metadata: None } }
    }

    #[test]
    fn a_step_of_many_series_is_little_but_its_values() {
        let entries: Vec<_> = (0..1000).map(|id| plain(id, 1_700_000_000_000, 50.0)).collect();
        let payload = seal_payload([encode_frame(&entries).as_slice()]);
        assert!(payload.len() < 1050, "{} bytes", payload.len());
        assert_eq!(decode_payload(&payload).unwrap(), entries);
    }

    #[test]
    fn numbers_as_far_apart_as_can_be_make_a_run() {
        let ids = [i64::MAX, -2, i64::MAX - 2, -4];
        let entries = ids.map(|id| plain(id, 0, 1.0));
        let payload = seal_payload([encode_frame(&entries).as_slice()]);
        assert_eq!(decode_payload(&payload).unwrap(), entries);
    }

    #[test]
    fn runs_that_are_empty_or_too_long_are_refused() {
        for length in [0, 3, u64::MAX] {
            let mut bytes = vec![VERSION, 2, DELTAS_IN_RUNS, 2];
            put_u64(&mut bytes, length);
            bytes.extend([0; 8]);
            append_crc(&mut bytes);
            assert_eq!(decode_payload(&bytes).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn rows_of_the_first_version_are_read() {
        // Two samples of series 1 and 2 at 5 ms: 3 and 4.
        let mut bytes = vec![VERSION_WITHOUT_RUNS, 2, 2, 2, 10, 0, VALUES_WHOLE, 6, 8, 0];
        append_crc(&mut bytes);
        assert_eq!(decode_payload(&bytes).unwrap(), [plain(1, 5, 3.0), plain(2, 5, 4.0)]);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let sample = RawSample { ms: 1, value: 1.5, metadata: Some(Arc::from("{}")) };
        let payload = seal_payload([encode_frame(&[Entry { series_id: 1, sample }]).as_slice()]);
        for bit in 0..payload.len() * 8 {
            let mut broken = payload.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_payload(&broken).is_err(), "bit {bit}");
        }
    }
}
