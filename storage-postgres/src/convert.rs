//! Model to column and back: the only file that knows both.
//!
//! PostgreSQL counts microseconds since 2000 and stores JSON numbers as decimals of any length.

use std::error::Error as StdError;

use bytes::{BufMut, BytesMut};
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};
use storage_core::metrics::record::{normal_metadata, normal_value};
use storage_core::metrics::time::{floor_ms, from_ms};
use storage_core::{Error, ErrorKind, MetricRecord, Result, Sample};
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use crate::error::from_pg;

type BoxError = Box<dyn StdError + Sync + Send>;

/// Milliseconds from the Unix epoch to that of PostgreSQL.
const EPOCH_MS: i64 = 946_684_800_000;

/// The version that leads every binary `jsonb`.
const JSONB_VERSION: u8 = 1;

/// What is stored of a record beside its series.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RawSample {
    pub(crate) ms: i64,
    pub(crate) value: f64,
    /// JSON as text.
    pub(crate) metadata: Option<Box<[u8]>>,
}

/// Returns what is stored of a record.
pub(crate) fn to_raw(record: &MetricRecord) -> Result<RawSample> {
    let metadata = normal_metadata(record.metadata.as_ref()).map(to_json).transpose()?;
    let (ms, value) = (floor_ms(record.timestamp), normal_value(record.value));
    Ok(RawSample { ms, value, metadata })
}

/// Returns the sample in the columns `first` (time), value and metadata of a row.
pub(crate) fn to_sample(row: &Row, first: usize) -> Result<Sample> {
    let PgTime(ms) = row.try_get(first).map_err(from_pg)?;
    let metadata: Option<Json<'_>> = row.try_get(first + 2).map_err(from_pg)?;
    let metadata = metadata.map(Json::parse);
    Ok(Sample {
        timestamp: from_ms(ms),
        value: row.try_get(first + 1).map_err(from_pg)?,
        metadata: metadata.transpose()?,
    })
}

/// A time in milliseconds since the Unix epoch, as a `timestamptz`. Read, it is floored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PgTime(pub(crate) i64);

impl PgTime {
    /// What a binary `timestamptz` holds: microseconds since 2000.
    pub(crate) fn to_micros(self) -> i64 {
        (self.0 - EPOCH_MS) * 1000
    }
}

impl<'a> FromSql<'a> for PgTime {
    fn from_sql(_type: &Type, raw: &'a [u8]) -> Result<Self, BoxError> {
        let micros = i64::from_be_bytes(raw.try_into()?);
        if micros == i64::MIN || micros == i64::MAX {
            return Err("a time is infinite".into());
        }
        Ok(Self(micros.div_euclid(1000) + EPOCH_MS))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }
}

impl ToSql for PgTime {
    fn to_sql(&self, _type: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        out.put_i64(self.to_micros());
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}

/// The elements of an array of `timestamptz`, `float8` or `jsonb`, none of them null, still as
/// bytes. An array takes the server and the driver far less than a row for each element.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Elements<'a> {
    /// Each with its length before it.
    bytes: &'a [u8],
    len: usize,
}

impl<'a> Elements<'a> {
    pub(crate) fn len(self) -> usize {
        self.len
    }

    /// The elements of an array of times, in milliseconds.
    pub(crate) fn times(self) -> impl Iterator<Item = Result<i64>> + 'a {
        self.eight_bytes().map(|bytes| {
            let time = PgTime::from_sql(&Type::TIMESTAMPTZ, &bytes?);
            time.map(|PgTime(ms)| ms).map_err(|_| damaged())
        })
    }

    /// The elements of an array of numbers.
    pub(crate) fn values(self) -> impl Iterator<Item = Result<f64>> + 'a {
        self.eight_bytes().map(|bytes| Ok(f64::from_be_bytes(bytes?)))
    }

    /// The elements of an array of JSON.
    pub(crate) fn json(self) -> impl Iterator<Item = Result<Value>> + 'a {
        let mut rest = self.bytes;
        (0..self.len).map(move |_| {
            let (length, tail) = rest.split_first_chunk().ok_or_else(damaged)?;
            let length = usize::try_from(i32::from_be_bytes(*length)).map_err(|_| damaged())?;
            let (element, tail) = tail.split_at_checked(length).ok_or_else(damaged)?;
            rest = tail;
            Json::from_sql(&Type::JSONB, element).map_err(|_| damaged())?.parse()
        })
    }

    fn eight_bytes(self) -> impl Iterator<Item = Result<[u8; 8]>> + 'a {
        let element = |chunk: &[u8]| match chunk.split_first_chunk::<4>() {
            Some(([0, 0, 0, 8], bytes)) => bytes.try_into().map_err(|_| damaged()),
            _ => Err(damaged()),
        };
        self.bytes.chunks(4 + 8).map(element)
    }
}

impl<'a> FromSql<'a> for Elements<'a> {
    fn from_sql(_type: &Type, raw: &'a [u8]) -> Result<Self, BoxError> {
        // Dimensions, whether there are nulls, the type; of each dimension length and first index.
        let number = |index: usize| -> Result<i32, BoxError> {
            let bytes = raw.get(4 * index..4 * index + 4).ok_or("an array is cut short")?;
            Ok(i32::from_be_bytes(bytes.try_into()?))
        };
        match (number(0)?, number(1)?) {
            (0, _) => Ok(Self { bytes: &[], len: 0 }),
            (1, 0) => {
                let bytes = raw.get(20..).ok_or("an array is cut short")?;
                Ok(Self { bytes, len: usize::try_from(number(3)?)? })
            }
            _ => Err("an array has nulls or several dimensions".into()),
        }
    }

    fn accepts(kind: &Type) -> bool {
        [Type::TIMESTAMPTZ_ARRAY, Type::FLOAT8_ARRAY, Type::JSONB_ARRAY].contains(kind)
    }
}

fn damaged() -> Error {
    Error::new(ErrorKind::Corrupt, "an array has an element that no sample can have")
}

/// The text of a `jsonb`.
#[derive(Debug)]
struct Json<'a>(&'a [u8]);

impl Json<'_> {
    fn parse(self) -> Result<Value> {
        serde_json::from_slice(self.0).map_err(|error| {
            Error::new(ErrorKind::Corrupt, "what is stored is no JSON").with_source(error)
        })
    }
}

/// Returns the JSON in a column of a row.
pub(crate) fn to_value(row: &Row, index: usize) -> Result<Value> {
    row.try_get::<_, Json<'_>>(index).map_err(from_pg)?.parse()
}

/// Returns the JSON in a column of a row, if there is some.
pub(crate) fn to_optional_value(row: &Row, index: usize) -> Result<Option<Value>> {
    let json: Option<Json<'_>> = row.try_get(index).map_err(from_pg)?;
    json.map(Json::parse).transpose()
}

/// The text that [`to_json`] makes, as a parameter.
#[derive(Debug)]
pub(crate) struct JsonText(pub(crate) Box<[u8]>);

impl ToSql for JsonText {
    fn to_sql(&self, _type: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        out.put_u8(JSONB_VERSION);
        out.put_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::JSONB
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Json<'a> {
    fn from_sql(_type: &Type, raw: &'a [u8]) -> Result<Self, BoxError> {
        match raw.split_first() {
            Some((&JSONB_VERSION, text)) => Ok(Self(text)),
            _ => Err("a jsonb of an unknown version".into()),
        }
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::JSONB
    }
}

/// How the metadata of samples is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetadataColumn {
    Jsonb,
    /// In hypertables; see their SQL.
    Text,
}

impl MetadataColumn {
    pub(crate) const fn sql_type(self) -> &'static str {
        match self {
            Self::Jsonb => "jsonb",
            Self::Text => "text COLLATE \"C\"",
        }
    }
}

/// Writes a binary `jsonb` with its length.
pub(crate) fn put_json(out: &mut BytesMut, text: &[u8]) {
    // The contract keeps metadata far below what a length can say.
    out.put_i32(i32::try_from(text.len() + 1).unwrap_or(i32::MAX));
    out.put_u8(JSONB_VERSION);
    out.put_slice(text);
}

/// Returns JSON that comes back equal out of a `jsonb`.
pub(crate) fn to_json(value: &Value) -> Result<Box<[u8]>> {
    let mut text = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut text, Decimals);
    value.serialize(&mut serializer).map_err(|error| {
        Error::invalid("the value cannot be written as JSON").with_source(error)
    })?;
    Ok(text.into_boxed_slice())
}

/// Writes fractions without an exponent: PostgreSQL would turn 1e16 into the whole number
/// 10000000000000000, which is another value than the fraction 1e16; 10000000000000000.0 stays.
struct Decimals;

impl Formatter for Decimals {
    fn write_f64<W: std::io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        value: f64,
    ) -> std::io::Result<()> {
        let text = format!("{value}");
        writer.write_all(text.as_bytes())?;
        if text.contains('.') { Ok(()) } else { writer.write_all(b".0") }
    }

    fn write_f32<W: std::io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        value: f32,
    ) -> std::io::Result<()> {
        CompactFormatter.write_f32(writer, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn records_come_in_their_normal_form() {
        let time = from_ms(-1) + chrono::Duration::microseconds(999);
        let record = MetricRecord::new("web-1", time, "cpu", -0.0).with_metadata(Value::Null);
        let raw = to_raw(&record).unwrap();
        assert_eq!((raw.ms, raw.value.to_bits(), raw.metadata), (-1, 0, None));
    }

    #[test]
    fn times_are_counted_from_2000_and_floored() {
        assert_eq!(PgTime(EPOCH_MS).to_micros(), 0);
        assert_eq!(PgTime(EPOCH_MS - 1).to_micros(), -1000);
        for (micros, ms) in [(-1_i64, EPOCH_MS - 1), (999, EPOCH_MS), (1000, EPOCH_MS + 1)] {
            let read = PgTime::from_sql(&Type::TIMESTAMPTZ, &micros.to_be_bytes()).unwrap();
            assert_eq!(read, PgTime(ms));
        }
        for infinite in [i64::MIN, i64::MAX] {
            assert!(PgTime::from_sql(&Type::TIMESTAMPTZ, &infinite.to_be_bytes()).is_err());
        }
    }

    #[test]
    fn fractions_keep_their_point() {
        for (value, text) in [
            (json!(1e16), "10000000000000000.0"),
            (json!(-2.0), "-2.0"),
            (json!(0.1), "0.1"),
            (json!(1e-7), "0.0000001"),
            (json!({"a": [1, "x"]}), r#"{"a":[1,"x"]}"#),
        ] {
            let written = to_json(&value).unwrap();
            assert_eq!(std::str::from_utf8(&written).unwrap(), text);
            assert_eq!(serde_json::from_slice::<Value>(&written).unwrap(), value);
        }
    }

    /// A binary array of one dimension.
    fn array(elements: &[&[u8]]) -> Vec<u8> {
        let mut raw = Vec::new();
        for number in [1, 0, 701, elements.len() as i32, 1] {
            raw.extend(number.to_be_bytes());
        }
        for element in elements {
            raw.extend((element.len() as i32).to_be_bytes());
            raw.extend(*element);
        }
        raw
    }

    fn elements(raw: &[u8]) -> Elements<'_> {
        Elements::from_sql(&Type::FLOAT8_ARRAY, raw).unwrap()
    }

    #[test]
    fn arrays_are_read_element_by_element() {
        let raw = array(&[&1.5_f64.to_be_bytes(), &(-2.0_f64).to_be_bytes()]);
        assert_eq!(elements(&raw).len(), 2);
        assert_eq!(elements(&raw).values().collect::<Result<Vec<_>>>().unwrap(), [1.5, -2.0]);
        let raw = array(&[&(-1_i64).to_be_bytes(), &1000_i64.to_be_bytes()]);
        let times: Vec<_> = elements(&raw).times().collect::<Result<_>>().unwrap();
        assert_eq!(times, [EPOCH_MS - 1, EPOCH_MS + 1]);
        let raw = array(&[b"\x01{}", b"\x01[1.0]"]);
        let json: Vec<_> = elements(&raw).json().collect::<Result<_>>().unwrap();
        assert_eq!(json, [json!({}), json!([1.0])]);
        assert_eq!(elements(&[0; 12]).len(), 0);
    }

    #[test]
    fn arrays_that_are_damaged_are_refused() {
        let raw = array(&[&1.5_f64.to_be_bytes(), &[0; 7]]);
        assert!(elements(&raw).values().any(|value| value.is_err()));
        assert!(elements(&array(&[b"\x02{}"])).json().next().unwrap().is_err());
        assert!(elements(&array(&[b"\x01{"])).json().next().unwrap().is_err());
        assert!(elements(&raw[..30]).json().any(|value| value.is_err()));
        assert!(elements(&array(&[&i64::MAX.to_be_bytes()])).times().any(|time| time.is_err()));
        for raw in [&raw[..18], &[0, 0, 0, 2, 0, 0, 0, 0], &[0, 0, 0, 1, 0, 0, 0, 1], &[]] {
            assert!(Elements::from_sql(&Type::FLOAT8_ARRAY, raw).is_err());
        }
    }

    #[test]
    fn json_of_another_version_is_refused() {
        assert!(Json::from_sql(&Type::JSONB, b"\x02{}").is_err());
        assert!(Json::from_sql(&Type::JSONB, b"").is_err());
    }
}
