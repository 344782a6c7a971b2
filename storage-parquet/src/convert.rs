//! Records to what is stored and back: the only file that knows both.

use std::sync::Arc;

use storage_core::metrics::record::{normal_metadata, normal_value};
use storage_core::metrics::time::{floor_ms, from_ms};
use storage_core::{Error, ErrorKind, MetricRecord, Result, Sample, SeriesKey};

use crate::rows::Slice;

/// Returns what is stored of a record beside its names: time, value, metadata.
pub(crate) fn to_stored(record: &MetricRecord) -> Result<(i64, f64, Option<Arc<str>>)> {
    let metadata = to_text(record.metadata.as_ref())?;
    Ok((floor_ms(record.timestamp), normal_value(record.value), metadata))
}

/// Returns what is stored of a sample.
pub(crate) fn to_stored_sample(sample: &Sample) -> Result<(i64, f64, Option<Arc<str>>)> {
    let metadata = to_text(sample.metadata.as_ref())?;
    Ok((floor_ms(sample.timestamp), normal_value(sample.value), metadata))
}

fn to_text(metadata: Option<&serde_json::Value>) -> Result<Option<Arc<str>>> {
    let text = normal_metadata(metadata).map(|metadata| {
        serde_json::to_string(metadata).map(Arc::from).map_err(|error| {
            Error::invalid("the metadata cannot be written as JSON").with_source(error)
        })
    });
    text.transpose()
}

/// Returns the samples of a slice.
pub(crate) fn to_samples(slice: Slice<'_>) -> Result<Vec<Sample>> {
    (0..slice.len()).map(|index| to_sample(slice, index)).collect()
}

/// Returns the records of a slice of one series.
pub(crate) fn to_records(key: &SeriesKey, slice: Slice<'_>) -> Result<Vec<MetricRecord>> {
    (0..slice.len()).map(|index| Ok(to_sample(slice, index)?.into_record(key))).collect()
}

fn to_sample(slice: Slice<'_>, index: usize) -> Result<Sample> {
    let metadata = slice.metadata(index).map(|text| {
        serde_json::from_str(text).map_err(|error| {
            Error::new(ErrorKind::Corrupt, "stored metadata is no JSON").with_source(error)
        })
    });
    Ok(Sample {
        timestamp: from_ms(slice.ms[index]),
        value: slice.values[index],
        metadata: metadata.transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Samples;
    use serde_json::{Value, json};

    #[test]
    fn records_round_trip_in_their_normal_form() {
        let time = from_ms(-1) + chrono::Duration::microseconds(999);
        for (metadata, kept) in [
            (json!({"a": [1, 2.5, "é"], "b": {"c": null}}), true),
            (json!(0.1), true),
            (Value::Null, false),
        ] {
            let record = MetricRecord::new("web-1", time, "cpu", -0.0).with_metadata(metadata);
            let (ms, value, text) = to_stored(&record).unwrap();
            assert_eq!((ms, value.to_bits()), (-1, 0));
            let mut samples = Samples::default();
            samples.push(ms, value, text);
            let back = to_records(&SeriesKey::new("web-1", "cpu"), samples.as_slice()).unwrap();
            assert_eq!(back[0].timestamp, from_ms(-1));
            assert_eq!(back[0].metadata, record.metadata.filter(|_| kept));
        }
    }

    #[test]
    fn metadata_that_is_no_json_is_corrupt() {
        let mut samples = Samples::default();
        samples.push(0, 0.0, Some(Arc::from("{")));
        assert_eq!(to_samples(samples.as_slice()).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
