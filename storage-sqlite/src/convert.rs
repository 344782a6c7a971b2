//! Records to stored samples and back: the only file that knows both.

use std::sync::Arc;

use serde_json::Value;
use storage_core::metrics::record::{normal_metadata, normal_value};
use storage_core::metrics::time::{floor_ms, from_ms};
use storage_core::{Error, ErrorKind, MetricRecord, Result, Sample, SeriesKey};

use crate::codec::RawSample;

/// Returns what is stored of a record beside its series.
pub(crate) fn to_raw(record: &MetricRecord) -> Result<RawSample> {
    let metadata = normal_metadata(record.metadata.as_ref()).map(|metadata| {
        serde_json::to_string(metadata).map(Arc::from).map_err(|error| {
            Error::invalid("the metadata cannot be written as JSON").with_source(error)
        })
    });
    Ok(RawSample {
        ms: floor_ms(record.timestamp),
        value: normal_value(record.value),
        metadata: metadata.transpose()?,
    })
}

/// Returns the sample that `raw` stands for.
#[inline]
pub(crate) fn to_sample(raw: &RawSample) -> Result<Sample> {
    let metadata = match &raw.metadata {
        None => None,
        Some(text) => Some(parsed(text)?),
    };
    Ok(Sample { timestamp: from_ms(raw.ms), value: raw.value, metadata })
}

fn parsed(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| {
        Error::new(ErrorKind::Corrupt, "stored metadata is no JSON").with_source(error)
    })
}

/// Returns the record that `raw` stands for.
pub(crate) fn to_record(key: &SeriesKey, raw: &RawSample) -> Result<MetricRecord> {
    Ok(to_sample(raw)?.into_record(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn records_round_trip_in_their_normal_form() {
        let time = from_ms(-1) + chrono::Duration::microseconds(999);
        for (metadata, kept) in [
            (json!({"a": [1, 2.5, "é"], "b": {"c": null}}), true),
            (json!(0.1), true),
            (Value::Null, false),
        ] {
            let record = MetricRecord::new("web-1", time, "cpu", -0.0).with_metadata(metadata);
            let raw = to_raw(&record).unwrap();
            assert_eq!((raw.ms, raw.value.to_bits()), (-1, 0));
            let back = to_record(&SeriesKey::new("web-1", "cpu"), &raw).unwrap();
            assert_eq!(back.timestamp, from_ms(-1));
            assert_eq!(back.metadata, record.metadata.filter(|_| kept));
        }
    }

    #[test]
    fn metadata_that_is_no_json_is_corrupt() {
        let raw = RawSample { ms: 0, value: 0.0, metadata: Some(Arc::from("{")) };
        assert_eq!(to_sample(&raw).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
