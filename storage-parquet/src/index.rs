//! Where each series lies in a file, and the checksums of its pages: texts in the file's footer.
//!
//! With the index a question about one series decodes no names and reads no page of another. Both
//! texts are base64 of bytes that end in a CRC-32; nothing read here is trusted.

use std::ops::Range;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use storage_core::metrics::record::validate_names;
use storage_core::metrics::time::is_sample_ms;
use storage_core::{Error, ErrorKind, Result, SeriesKey};

use crate::rows::Names;

const VERSION: u8 = 1;

/// The largest index that is decoded: more than a million series with the longest names.
const INDEX_BYTES_MAX: usize = 1 << 30;

/// The rows of one series in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub(crate) key: Arc<SeriesKey>,
    /// The first row.
    pub(crate) start: u64,
    /// The row past the last one.
    pub(crate) end: u64,
    /// The earliest time.
    pub(crate) min_ms: i64,
    /// The latest time.
    pub(crate) max_ms: i64,
}

impl IndexEntry {
    pub(crate) fn rows(&self) -> Range<u64> {
        self.start..self.end
    }

    pub(crate) fn count(&self) -> u64 {
        self.end - self.start
    }
}

/// Returns the text of an index, whose entries are in order and follow each other.
pub(crate) fn encode_index(entries: &[IndexEntry]) -> Result<String> {
    let mut bytes = Vec::with_capacity(entries.len() * 16);
    put_u64(&mut bytes, entries.len() as u64);
    let mut before: Option<&IndexEntry> = None;
    for entry in entries {
        let (server, metric, ms) =
            before.map_or(("", "", 0), |b| (&b.key.server_id, &b.key.metric_type, b.min_ms));
        put_name(&mut bytes, server, &entry.key.server_id);
        put_name(&mut bytes, metric, &entry.key.metric_type);
        put_u64(&mut bytes, entry.count());
        put_i64(&mut bytes, entry.min_ms.wrapping_sub(ms));
        put_i64(&mut bytes, entry.max_ms.wrapping_sub(entry.min_ms));
        before = Some(entry);
    }
    let packed = zstd::bulk::compress(&bytes, 3).map_err(|error| {
        Error::new(ErrorKind::Internal, "an index cannot be compressed").with_source(error)
    })?;
    let mut sealed = vec![VERSION];
    put_u64(&mut sealed, bytes.len() as u64);
    sealed.extend_from_slice(&packed);
    Ok(seal(sealed))
}

/// Returns the entries of an index.
///
/// # Errors
/// `Corrupt` if the checksum or anything inside is wrong; the file is not named.
pub(crate) fn decode_index(text: &str, names: &mut Names) -> Result<Vec<IndexEntry>> {
    let sealed = unseal(text)?;
    let mut reader = Reader(&sealed);
    if reader.u8()? != VERSION {
        return Err(Error::new(ErrorKind::VersionMismatch, "the index has a newer version"));
    }
    let length = reader.length()?;
    if length > INDEX_BYTES_MAX {
        return Err(corrupt("the index is too large"));
    }
    let bytes = zstd::bulk::decompress(reader.0, length)
        .map_err(|error| corrupt("the index cannot be unpacked").with_source(error))?;
    decode_entries(&bytes, names)
}

fn decode_entries(bytes: &[u8], names: &mut Names) -> Result<Vec<IndexEntry>> {
    let mut reader = Reader(bytes);
    let count = reader.length()?;
    // Each entry takes five bytes at least.
    let mut entries: Vec<IndexEntry> = Vec::with_capacity(count.min(bytes.len() / 5));
    let (mut server, mut metric, mut row, mut ms) = (Vec::new(), Vec::new(), 0u64, 0i64);
    for _ in 0..count {
        reader.name(&mut server)?;
        reader.name(&mut metric)?;
        let end = row.checked_add(reader.u64()?).ok_or_else(|| corrupt("too many rows"))?;
        let min_ms = ms.wrapping_add(reader.i64()?);
        let max_ms = min_ms.wrapping_add(reader.i64()?);
        let (server_id, metric_type) = (text(&server)?, text(&metric)?);
        validate_names(server_id, metric_type)
            .map_err(|_| corrupt("the index has a name that no series has"))?;
        let key = names.intern(server_id, metric_type);
        let ordered = entries.last().is_none_or(|before| before.key < key);
        if !ordered
            || end == row
            || min_ms > max_ms
            || !is_sample_ms(min_ms)
            || !is_sample_ms(max_ms)
        {
            return Err(corrupt("the index contradicts itself"));
        }
        entries.push(IndexEntry { key, start: row, end, min_ms, max_ms });
        (row, ms) = (end, min_ms);
    }
    if !reader.0.is_empty() {
        return Err(corrupt("the index is longer than it says"));
    }
    Ok(entries)
}

/// Returns the text of the checksums of pages.
pub(crate) fn encode_pages(checksums: &[u32]) -> String {
    let mut bytes = vec![VERSION];
    checksums.iter().for_each(|checksum| bytes.extend_from_slice(&checksum.to_le_bytes()));
    seal(bytes)
}

/// Returns the checksums of pages.
///
/// # Errors
/// `Corrupt` if they do not decode; the file is not named.
pub(crate) fn decode_pages(text: &str) -> Result<Vec<u32>> {
    let bytes = unseal(text)?;
    let (version, rest) = bytes.split_first().ok_or_else(|| corrupt("no checksums"))?;
    let (checksums, odd) = rest.as_chunks::<4>();
    if *version != VERSION || !odd.is_empty() {
        return Err(corrupt("the checksums of the pages do not decode"));
    }
    Ok(checksums.iter().map(|checksum| u32::from_le_bytes(*checksum)).collect())
}

fn seal(mut bytes: Vec<u8>) -> String {
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    STANDARD.encode(bytes)
}

fn unseal(text: &str) -> Result<Vec<u8>> {
    let mut bytes = STANDARD
        .decode(text)
        .map_err(|error| corrupt("an entry of the footer is no base64").with_source(error))?;
    let (body, checksum) =
        bytes.split_last_chunk::<4>().ok_or_else(|| corrupt("an entry of the footer is cut"))?;
    if crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
        return Err(corrupt("the checksum of an entry of the footer does not match"));
    }
    bytes.truncate(bytes.len() - 4);
    Ok(bytes)
}

fn corrupt(problem: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, problem)
}

fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| corrupt("the index has a name that is no text"))
}

fn put_u64(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn put_i64(bytes: &mut Vec<u8>, number: i64) {
    put_u64(bytes, ((number << 1) ^ (number >> 63)) as u64);
}

/// A name: how much it shares with the one before, and the rest.
fn put_name(bytes: &mut Vec<u8>, before: &str, name: &str) {
    let pairs = before.bytes().zip(name.bytes());
    let shared = pairs.take_while(|(one, other)| one == other).count();
    put_u64(bytes, shared as u64);
    put_u64(bytes, (name.len() - shared) as u64);
    bytes.extend_from_slice(&name.as_bytes()[shared..]);
}

/// What is left to decode.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn u8(&mut self) -> Result<u8> {
        let (first, rest) = self.0.split_first().ok_or_else(|| corrupt("the index is cut"))?;
        self.0 = rest;
        Ok(*first)
    }

    fn u64(&mut self) -> Result<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(corrupt("the index has a number that is too large"))
    }

    fn i64(&mut self) -> Result<i64> {
        let number = self.u64()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    fn length(&mut self) -> Result<usize> {
        usize::try_from(self.u64()?).map_err(|_| corrupt("the index has a number too large"))
    }

    /// Turns the name before into the next one.
    fn name(&mut self, name: &mut Vec<u8>) -> Result<()> {
        let (shared, rest) = (self.length()?, self.length()?);
        let (bytes, left) =
            self.0.split_at_checked(rest).ok_or_else(|| corrupt("the index is cut"))?;
        if shared > name.len() {
            return Err(corrupt("the index contradicts itself"));
        }
        name.truncate(shared);
        name.extend_from_slice(bytes);
        self.0 = left;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entries() -> impl Strategy<Value = Vec<IndexEntry>> {
        let series = proptest::collection::btree_map(
            ("[a-cé]{1,6}", "[xy]{1,3}"),
            (1u64..1000, -1_000_000i64..1_000_000, 0i64..1_000_000),
            0..40,
        );
        series.prop_map(|series| {
            let mut row = 0;
            let entry = |((server, metric), (count, min_ms, width)): ((String, String), _)| {
                let start = row;
                row += count;
                let key = Arc::new(SeriesKey::new(server, metric));
                IndexEntry { key, start, end: row, min_ms, max_ms: min_ms + width }
            };
            series.into_iter().map(entry).collect()
        })
    }

    proptest! {
        #[test]
        fn an_index_round_trips(entries in entries()) {
            let text = encode_index(&entries).unwrap();
            prop_assert_eq!(decode_index(&text, &mut Names::default()).unwrap(), entries);
        }

        #[test]
        fn bytes_from_outside_are_refused_or_decoded_but_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let _ = decode_entries(&bytes, &mut Names::default());
            let mut sealed = vec![VERSION];
            sealed.extend(bytes);
            let _ = decode_index(&seal(sealed.clone()), &mut Names::default());
            let _ = decode_pages(&seal(sealed));
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let key = Arc::new(SeriesKey::new("web-1", "cpu"));
        let entry = IndexEntry { key, start: 0, end: 5, min_ms: 1, max_ms: 9 };
        let texts = [encode_index(&[entry]).unwrap(), encode_pages(&[1, 2])];
        for (place, text) in texts.iter().enumerate() {
            let sealed = STANDARD.decode(text).unwrap();
            for bit in 0..sealed.len() * 8 {
                let mut broken = sealed.clone();
                broken[bit / 8] ^= 1 << (bit % 8);
                let broken = STANDARD.encode(broken);
                let is_refused = match place {
                    0 => decode_index(&broken, &mut Names::default()).is_err(),
                    _ => decode_pages(&broken).is_err(),
                };
                assert!(is_refused, "bit {bit}");
            }
        }
    }
}
