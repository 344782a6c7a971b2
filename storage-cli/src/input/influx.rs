//! InfluxDB line protocol into records: one for each field of a line.

use influxdb_line_protocol::{FieldValue, ParsedLine, parse_lines};
use serde_json::{Map, Value};
use storage::MetricRecord;

use super::time::{TimeFormat, Unit};
use super::{Defaults, Parsed, Parser};

/// Tags that name the server, the first of them that a line has.
const SERVER_TAGS: [&str; 3] = ["server_id", "server", "host"];

/// Reads the fields of each line.
pub(crate) struct InfluxParser {
    server: String,
    time_format: TimeFormat,
}

impl InfluxParser {
    pub(crate) fn new(defaults: &Defaults) -> Self {
        let time_format = match &defaults.time_format {
            TimeFormat::Auto => TimeFormat::Epoch(Unit::Ns),
            given => given.clone(),
        };
        Self { server: defaults.server.clone(), time_format }
    }

    fn records(&self, line: &ParsedLine<'_>, records: &mut Vec<MetricRecord>) -> Parsed {
        let Some(timestamp) = line.timestamp else {
            return Parsed::Bad("the line has no timestamp".into());
        };
        let timestamp = match self.time_format.parse(&timestamp.to_string()) {
            Ok(timestamp) => timestamp,
            Err(reason) => return Parsed::Bad(reason),
        };
        let server_tag = SERVER_TAGS.iter().find(|tag| line.tag_value(tag).is_some());
        let server = match server_tag.and_then(|tag| line.tag_value(tag)) {
            Some(server) => server.as_str(),
            None => &self.server,
        };
        let metadata = metadata_of(line, server_tag.copied());
        let mut strings = Vec::new();
        for (field, value) in &line.field_set {
            let Some(value) = number_of(value) else {
                strings.push(field.as_str());
                continue;
            };
            let metric = match field.as_str() {
                "value" => line.series.measurement.to_string(),
                field => format!("{}_{field}", line.series.measurement),
            };
            let mut record = MetricRecord::new(server, timestamp, metric, value);
            record.metadata.clone_from(&metadata);
            records.push(record);
        }
        match strings[..] {
            [] => Parsed::Done,
            _ => Parsed::Bad(format!("text instead of a number in `{}`", strings.join("`, `"))),
        }
    }
}

impl Parser for InfluxParser {
    fn parse(&mut self, line: &[u8], records: &mut Vec<MetricRecord>) -> Parsed {
        let Ok(text) = std::str::from_utf8(line) else {
            return Parsed::Bad("the line is not UTF-8 text".into());
        };
        let mut lines = parse_lines(text.trim_end_matches(['\r', '\n']));
        match lines.next() {
            None => Parsed::Skipped,
            Some(Ok(line)) => self.records(&line, records),
            Some(Err(error)) => Parsed::Bad(format!("the line is no line protocol: {error}")),
        }
    }

    fn ignored(&self) -> &[String] {
        &[]
    }
}

fn metadata_of(line: &ParsedLine<'_>, server_tag: Option<&str>) -> Option<Value> {
    let tags = line.series.tag_set.as_ref()?.iter();
    let others = tags.filter(|(name, _)| Some(name.as_str()) != server_tag);
    let metadata: Map<_, _> =
        others.map(|(name, value)| (name.to_string(), Value::from(value.as_str()))).collect();
    (!metadata.is_empty()).then_some(Value::Object(metadata))
}

fn number_of(value: &FieldValue<'_>) -> Option<f64> {
    match value {
        FieldValue::F64(number) => Some(*number),
        FieldValue::I64(number) => Some(*number as f64),
        FieldValue::U64(number) => Some(*number as f64),
        FieldValue::Boolean(truth) => Some(f64::from(u8::from(*truth))),
        FieldValue::String(_) => None,
    }
}
