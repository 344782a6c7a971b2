//! JSON lines into records: an object per line.

use serde_json::{Map, Value};
use storage::MetricRecord;

use super::csv::parse_value;
use super::{Defaults, Field, NO_METRIC, Parsed, Parser};

/// How many names of unknown fields are remembered for the note.
const IGNORED_MAX: usize = 10;

/// Reads a record from each line.
pub(crate) struct JsonParser {
    defaults: Defaults,
    ignored: Vec<String>,
}

impl JsonParser {
    pub(crate) fn new(defaults: &Defaults) -> Self {
        Self { defaults: defaults.clone(), ignored: Vec::new() }
    }

    fn record(&mut self, object: Map<String, Value>) -> Result<MetricRecord, String> {
        let (mut server, mut metric, mut time, mut value) = (None, None, None, None);
        let mut metadata = None;
        for (name, field) in object {
            let place = match Field::of(&name) {
                Some(Field::Server) => &mut server,
                Some(Field::Metric) => &mut metric,
                Some(Field::Time) => &mut time,
                Some(Field::Value) => &mut value,
                Some(Field::Metadata) => &mut metadata,
                None => {
                    self.note_ignored(name);
                    continue;
                }
            };
            if place.replace(field).is_some() {
                return Err(format!("the field `{name}` is there twice, under two names"));
            }
        }
        let timestamp = match time {
            Some(Value::String(text)) => self.defaults.time_format.parse(&text)?,
            Some(Value::Number(number)) => self.defaults.time_format.parse(&number.to_string())?,
            Some(_) => return Err("the time is neither a text nor a number".into()),
            None => return Err("the field `timestamp` is missing".into()),
        };
        let value = match value {
            Some(Value::Number(number)) => number.as_f64().ok_or("the value is out of range")?,
            Some(Value::String(text)) => parse_value(&text)?,
            Some(_) => return Err("the value is not a number".into()),
            None => return Err("the field `value` is missing".into()),
        };
        let server = name_of("server", server)?.unwrap_or_else(|| self.defaults.server.clone());
        let metric = name_of("metric", metric)?.or_else(|| self.defaults.metric.clone());
        let mut record = MetricRecord::new(server, timestamp, metric.ok_or(NO_METRIC)?, value);
        record.metadata = metadata.filter(|metadata| !metadata.is_null());
        Ok(record)
    }

    fn note_ignored(&mut self, name: String) {
        if self.ignored.len() < IGNORED_MAX && !self.ignored.contains(&name) {
            self.ignored.push(name);
        }
    }
}

impl Parser for JsonParser {
    fn parse(&mut self, line: &[u8], records: &mut Vec<MetricRecord>) -> Parsed {
        let record = match serde_json::from_slice(line) {
            Ok(Value::Object(object)) => self.record(object),
            Ok(_) => Err("the line is no JSON object".into()),
            Err(error) => Err(format!("the line is no JSON: {error}")),
        };
        match record {
            Ok(record) => {
                records.push(record);
                Parsed::Done
            }
            Err(reason) => Parsed::Bad(reason),
        }
    }

    fn ignored(&self) -> &[String] {
        &self.ignored
    }
}

fn name_of(what: &str, value: Option<Value>) -> Result<Option<String>, String> {
    match value {
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
        None | Some(Value::Null | Value::String(_)) => Ok(None),
        Some(_) => Err(format!("the {what} is not a text")),
    }
}
