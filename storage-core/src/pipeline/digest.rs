//! Checksums of samples that do not depend on the backend, nor on the order in which they come.

use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::{Number, Value};
use twox_hash::XxHash3_128;

use crate::error::Result;
use crate::metrics::record::normal_value;
use crate::metrics::time::floor_ms;
use crate::metrics::{Sample, SeriesFilter, SeriesKey, StorageBackend, TimeRange};

/// Number and checksum of some samples.
///
/// The checksum covers series, time, the bits of the value and the metadata: two sets of samples
/// with the same digest are the same, whatever backend holds them. Metadata counts as JSON: the
/// order of names and the way a number is written (`1`, `1.0`, `1e0`) make no difference. It is the
/// sum of a 128-bit hash (XXH3) of each sample, so the order makes none either, and parts can be
/// added. It tells accidents, not an attacker.
///
/// ```
/// use storage_core::pipeline::{Digest, digest};
/// use storage_core::{InMemory, SeriesFilter, TimeRange};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let nothing = digest(&InMemory::new(), &SeriesFilter::any(), TimeRange::all()).await?;
/// assert_eq!(nothing, Digest::default());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Digest {
    /// Number of samples.
    pub samples: u64,
    /// Sum of their hashes.
    #[serde(serialize_with = "as_hex")]
    pub checksum: u128,
}

impl Digest {
    /// Adds a sample by its hash.
    pub(crate) fn push(&mut self, hash: u128) {
        self.samples += 1;
        self.checksum = self.checksum.wrapping_add(hash);
    }

    /// Adds the samples of `other`, which must be different ones.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            samples: self.samples + other.samples,
            checksum: self.checksum.wrapping_add(other.checksum),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:032x}", self.samples, self.checksum)
    }
}

fn as_hex<S: Serializer>(checksum: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{checksum:032x}"))
}

/// Returns the digest of the samples in `range` of the series that `filter` chooses.
///
/// # Errors
/// Those of [`scan`](StorageBackend::scan).
///
/// # Cost
/// One scan; memory for one batch of it.
pub async fn digest(
    store: &dyn StorageBackend,
    filter: &SeriesFilter,
    range: TimeRange,
) -> Result<Digest> {
    use futures_util::TryStreamExt;

    let mut batches = store.scan(filter, range);
    let mut digest = Digest::default();
    let mut hasher = Hasher::default();
    while let Some(batch) = batches.try_next().await? {
        let hash_of = hasher.of(&batch.series);
        batch.samples.iter().for_each(|sample| digest.push(hash_of(sample)));
    }
    Ok(digest)
}

/// Hashes samples, series by series.
#[derive(Debug, Default)]
pub(crate) struct Hasher {
    series: Option<(SeriesKey, u128)>,
}

impl Hasher {
    /// Returns what hashes the samples of `series`.
    pub(crate) fn of(&mut self, series: &SeriesKey) -> impl Fn(&Sample) -> u128 + use<> {
        let known = self.series.as_ref().filter(|(known, _)| known == series);
        let names = known.map(|(_, names)| *names).unwrap_or_else(|| {
            let names = hash_names(series);
            self.series = Some((series.clone(), names));
            names
        });
        move |sample| hash_sample(names, sample)
    }
}

fn hash_names(series: &SeriesKey) -> u128 {
    // No name holds a NUL, so that it separates them.
    XxHash3_128::oneshot(format!("{}\0{}", series.server_id, series.metric_type).as_bytes())
}

fn hash_sample(names: u128, sample: &Sample) -> u128 {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&names.to_le_bytes());
    bytes[16..24].copy_from_slice(&floor_ms(sample.timestamp).to_le_bytes());
    bytes[24..].copy_from_slice(&sample.value.to_bits().to_le_bytes());
    match &sample.metadata {
        None => XxHash3_128::oneshot(&bytes),
        Some(metadata) => {
            let mut bytes = bytes.to_vec();
            push_canonical(&mut bytes, metadata);
            XxHash3_128::oneshot(&bytes)
        }
    }
}

/// Appends `value` such that equal JSON gives equal bytes, and other JSON others: each part starts
/// with what it is, and with its length where that is not fixed.
fn push_canonical(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => bytes.push(b'n'),
        Value::Bool(false) => bytes.push(b'f'),
        Value::Bool(true) => bytes.push(b't'),
        Value::Number(number) => push_number(bytes, number),
        Value::String(text) => push_text(bytes, b's', text),
        Value::Array(items) => {
            push_length(bytes, b'a', items.len());
            items.iter().for_each(|item| push_canonical(bytes, item));
        }
        Value::Object(fields) => {
            push_length(bytes, b'o', fields.len());
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_unstable_by_key(|(name, _)| *name);
            for (name, field) in fields {
                push_text(bytes, b'k', name);
                push_canonical(bytes, field);
            }
        }
    }
}

/// From here on, JSON is written with exponents, which backends that keep it as decimals turn into
/// whole numbers.
const EXPONENTS_MIN: f64 = 1e16;

/// Appends a number. Whole numbers and fractions stay apart, as `1` and `1.0` do, but for those
/// that are too large for that.
fn push_number(bytes: &mut Vec<u8>, number: &Number) {
    let whole = number.as_i128().or_else(|| {
        let value = number.as_f64().filter(|value| value.fract() == 0.0)?;
        // Beyond that the conversion saturates.
        (EXPONENTS_MIN..1e38).contains(&value.abs()).then_some(value as i128)
    });
    match (whole, number.as_f64()) {
        (Some(whole), _) => {
            bytes.push(b'i');
            bytes.extend(whole.to_le_bytes());
        }
        (None, Some(value)) => {
            bytes.push(b'd');
            bytes.extend(normal_value(value).to_bits().to_le_bytes());
        }
        (None, None) => push_text(bytes, b'x', &number.to_string()),
    }
}

fn push_text(bytes: &mut Vec<u8>, kind: u8, text: &str) {
    push_length(bytes, kind, text.len());
    bytes.extend(text.as_bytes());
}

fn push_length(bytes: &mut Vec<u8>, kind: u8, length: usize) {
    bytes.push(kind);
    bytes.extend((length as u64).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::time::from_ms;
    use serde_json::json;

    fn hash(server: &str, metric: &str, ms: i64, value: f64, metadata: Option<Value>) -> u128 {
        let sample = Sample { timestamp: from_ms(ms), value, metadata };
        Hasher::default().of(&SeriesKey::new(server, metric))(&sample)
    }

    #[test]
    fn every_part_of_a_sample_counts() {
        let all = [
            hash("a", "b", 1, 1.0, None),
            hash("ab", "", 1, 1.0, None),
            hash("b", "a", 1, 1.0, None),
            hash("a", "b", 2, 1.0, None),
            hash("a", "b", 1, 1.0 + f64::EPSILON, None),
            hash("a", "b", 1, 1.0, Some(json!({}))),
            hash("a", "b", 1, 1.0, Some(json!([]))),
            hash("a", "b", 1, 1.0, Some(json!(""))),
            hash("a", "b", 1, 1.0, Some(json!(false))),
            hash("a", "b", 1, 1.0, Some(json!(["a", "b"]))),
            hash("a", "b", 1, 1.0, Some(json!(["ab"]))),
            hash("a", "b", 1, 1.0, Some(json!(["a", ["b"]]))),
            hash("a", "b", 1, 1.0, Some(json!([1]))),
            hash("a", "b", 1, 1.0, Some(json!(["1"]))),
            hash("a", "b", 1, 1.0, Some(json!([1.5]))),
        ];
        for (index, hash) in all.iter().enumerate() {
            assert_eq!(all.iter().position(|other| other == hash), Some(index));
        }
    }

    #[test]
    fn equal_json_is_equal_however_it_is_written() {
        let of = |text: &str| hash("a", "b", 0, 0.0, serde_json::from_str(text).unwrap());
        assert_eq!(of(r#"{"a":1.0,"b":[2]}"#), of(r#"{ "b": [2], "a": 1e0 }"#));
        assert_ne!(of("[2]"), of("[2.0]"));
        assert_eq!(of("1e16"), of("10000000000000000"));
        assert_eq!(of("-0.0"), of("0.0"));
        assert_eq!(of("1e20"), of("100000000000000000000"));
        assert_eq!(of("1e300"), of(&format!("1{}", "0".repeat(300))));
        assert_ne!(of("18446744073709551615"), of("18446744073709551614"));
        assert_ne!(of("0.1"), of("0.10000000000000001e1"));
    }

    #[test]
    fn parts_add_up_in_any_order() {
        let hashes = [3u128, u128::MAX, 7];
        let of = |hashes: &[u128]| {
            let mut digest = Digest::default();
            hashes.iter().for_each(|hash| digest.push(*hash));
            digest
        };
        assert_eq!(of(&hashes), of(&[7, 3, u128::MAX]));
        assert_eq!(of(&hashes), of(&hashes[..1]).and(of(&hashes[1..])));
        assert_eq!(of(&[16]).to_string(), format!("1 {:032x}", 16));
    }
}
