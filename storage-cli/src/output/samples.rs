//! Samples as text that `import` reads back (CSV, JSON lines, line protocol), or as Parquet.

use std::io::{self, Write};

use anyhow::{Result, anyhow};
use influxdb_line_protocol::parse_lines;
use serde_json::Value;
use storage::{Sample, SeriesKey, SeriesSamples};

use super::csv::into_io;
use super::text;
use crate::args::SampleFormat;

/// Writes batches of samples.
pub(crate) enum SampleWriter<'a> {
    Csv(Box<csv::Writer<&'a mut dyn Write>>),
    Jsonl(&'a mut dyn Write),
    Influx {
        sink: &'a mut dyn Write,
        without_metadata: u64,
    },
    #[cfg(feature = "parquet")]
    Parquet(Box<super::parquet::ParquetWriter<'a>>),
}

impl<'a> SampleWriter<'a> {
    /// Begins, with the header if the format has one.
    ///
    /// # Errors
    /// Those of writing; and a format that this build lacks.
    pub(crate) fn new(sink: &'a mut dyn Write, format: SampleFormat) -> Result<Self> {
        Ok(match format {
            SampleFormat::Csv => {
                let mut writer = csv::Writer::from_writer(sink);
                let header = ["server_id", "timestamp", "metric_type", "value", "metadata"];
                writer.write_record(header).map_err(into_io)?;
                Self::Csv(Box::new(writer))
            }
            SampleFormat::Jsonl => Self::Jsonl(sink),
            SampleFormat::Influx => Self::Influx { sink, without_metadata: 0 },
            #[cfg(feature = "parquet")]
            SampleFormat::Parquet => {
                Self::Parquet(Box::new(super::parquet::ParquetWriter::new(sink)))
            }
            #[cfg(not(feature = "parquet"))]
            SampleFormat::Parquet => {
                return Err(anyhow!(
                    "this build writes no Parquet; build with the feature parquet"
                ));
            }
        })
    }

    /// Writes the samples of `batch`.
    ///
    /// # Errors
    /// Those of writing; and what line protocol cannot express.
    pub(crate) fn write(&mut self, batch: &SeriesSamples) -> Result<()> {
        let SeriesSamples { series, samples } = batch;
        match self {
            Self::Csv(writer) => {
                for sample in samples {
                    write_csv(writer, series, sample)?;
                }
            }
            Self::Jsonl(sink) => {
                let server = Value::from(series.server_id.as_str());
                let metric = Value::from(series.metric_type.as_str());
                for sample in samples {
                    let time = text::time(sample.timestamp);
                    let value = Value::from(sample.value);
                    write!(sink, "{{\"server_id\":{server},\"timestamp\":\"{time}\",")?;
                    write!(sink, "\"metric_type\":{metric},\"value\":{value}")?;
                    if let Some(metadata) = &sample.metadata {
                        write!(sink, ",\"metadata\":{metadata}")?;
                    }
                    sink.write_all(b"}\n")?;
                }
            }
            Self::Influx { sink, without_metadata } => {
                let start = influx_start(series)?;
                for sample in samples {
                    write_influx(*sink, &start, series, sample, without_metadata)?;
                }
            }
            #[cfg(feature = "parquet")]
            Self::Parquet(writer) => writer.write(batch)?,
        }
        Ok(())
    }

    /// Writes out everything, and returns of how many samples the metadata was left out.
    pub(crate) fn finish(self) -> Result<u64> {
        let mut left_out = 0;
        match self {
            Self::Csv(mut writer) => writer.flush()?,
            Self::Jsonl(sink) => sink.flush()?,
            Self::Influx { sink, without_metadata } => {
                left_out = without_metadata;
                sink.flush()?;
            }
            #[cfg(feature = "parquet")]
            Self::Parquet(writer) => writer.finish()?,
        }
        Ok(left_out)
    }
}

fn write_csv(
    writer: &mut csv::Writer<&mut dyn Write>,
    series: &SeriesKey,
    sample: &Sample,
) -> io::Result<()> {
    let metadata = sample.metadata.as_ref().map(Value::to_string).unwrap_or_default();
    let fields = [
        series.server_id.as_str(),
        &text::time(sample.timestamp),
        &series.metric_type,
        &text::float(sample.value),
        &metadata,
    ];
    writer.write_record(fields).map_err(into_io)
}

/// Returns the measurement and the tag of the server.
fn influx_start(series: &SeriesKey) -> Result<String> {
    let metric = escaped(&series.metric_type, &[',', ' ']);
    let server = escaped(&series.server_id, &TAG_SPECIALS);
    let start = format!("{metric},server_id={server}");
    let line = format!("{start} value=1 0");
    // A backslash or a line break in a name cannot always be written: see what is read back.
    let mut lines = parse_lines(&line);
    if let (Some(Ok(read)), None) = (lines.next(), lines.next())
        && read.series.measurement.as_str() == series.metric_type
        && read.tag_value("server_id").is_some_and(|read| read.as_str() == series.server_id)
        && read.series.tag_set.as_ref().is_some_and(|tags| tags.len() == 1)
    {
        return Ok(start);
    }
    Err(anyhow!("line protocol cannot hold the name of the series `{series}`; use csv or jsonl"))
}

fn write_influx(
    sink: &mut dyn Write,
    start: &str,
    series: &SeriesKey,
    sample: &Sample,
    without_metadata: &mut u64,
) -> Result<()> {
    let ns = sample.timestamp.timestamp_nanos_opt().ok_or_else(|| {
        let time = text::time(sample.timestamp);
        anyhow!("line protocol cannot hold the time {time} of `{series}`; use csv or jsonl")
    })?;
    let tags = match sample.metadata.as_ref().map(tags_of) {
        Some(None) => {
            *without_metadata += 1;
            String::new()
        }
        Some(Some(tags)) => tags,
        None => String::new(),
    };
    writeln!(sink, "{start}{tags} value={} {ns}", text::float(sample.value))?;
    Ok(())
}

const TAG_SPECIALS: [char; 3] = [',', ' ', '='];

/// Returns metadata as tags, if they come back as the same metadata.
fn tags_of(metadata: &Value) -> Option<String> {
    let fields = metadata.as_object().filter(|fields| !fields.is_empty())?;
    let mut tags = String::new();
    for (name, value) in fields {
        let name = escaped(name, &TAG_SPECIALS);
        tags.push_str(&format!(",{name}={}", escaped(value.as_str()?, &TAG_SPECIALS)));
    }
    let line = format!("m{tags} value=1 0");
    let mut lines = parse_lines(&line);
    let (Some(Ok(read)), None) = (lines.next(), lines.next()) else {
        return None;
    };
    let read_tags = read.series.tag_set?;
    let same = read_tags.len() == fields.len()
        && read_tags.iter().all(|(name, value)| {
            name.as_str() != "server_id"
                && fields.get(name.as_str()).and_then(Value::as_str) == Some(value.as_str())
        });
    same.then_some(tags)
}

fn escaped(text: &str, specials: &[char]) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if specials.contains(&character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::DateTime;
    use serde_json::json;

    fn influx(server: &str, metric: &str, metadata: Option<Value>) -> Result<(String, u64)> {
        let mut text = Vec::new();
        let sample = Sample {
            timestamp: DateTime::from_timestamp_millis(1500).unwrap(),
            value: 0.1,
            metadata,
        };
        let series = SeriesKey::new(server, metric);
        let mut writer = SampleWriter::new(&mut text, SampleFormat::Influx)?;
        writer.write(&SeriesSamples { series, samples: vec![sample] })?;
        let left_out = writer.finish()?;
        Ok((String::from_utf8(text)?, left_out))
    }

    #[test]
    fn line_protocol_escapes() {
        let (line, left_out) = influx("a b", "c,d=e", Some(json!({"k 1": "v=2"}))).unwrap();
        assert_eq!(line, "c\\,d=e,server_id=a\\ b,k\\ 1=v\\=2 value=0.1 1500000000\n");
        assert_eq!(left_out, 0);
    }

    #[test]
    fn what_line_protocol_cannot_hold_is_refused_or_counted() {
        assert!(influx("a\nb", "m", None).is_err());
        assert!(influx("a\\", "m", None).is_err());
        assert!(influx("a", "#m", None).is_err());
        for metadata in [json!({"k": 1}), json!([1]), json!({}), json!({"server_id": "x"})] {
            assert_eq!(influx("a", "m", Some(metadata)).unwrap().1, 1);
        }
    }
}
