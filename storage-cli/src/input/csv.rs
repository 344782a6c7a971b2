//! CSV with a header into records.

use std::io::BufRead;

use anyhow::{Result, bail};
use storage::MetricRecord;

use super::lines::{Fault, Line, Lines};
use super::{Defaults, Field, NO_METRIC, Parsed, Parser};
use crate::output::text;

/// How much of a header is shown that lacks a column.
const HEADER_CHARS_MAX: usize = 200;

/// Reads a record from each line, by the columns of the header.
pub(crate) struct CsvParser {
    defaults: Defaults,
    columns: Vec<Option<Field>>,
    ignored: Vec<String>,
    splitter: Splitter,
}

impl CsvParser {
    /// Reads the header that begins with `first`.
    pub(crate) fn new(
        lines: &mut Lines<impl BufRead>,
        first: Line,
        defaults: &Defaults,
    ) -> Result<Self> {
        let splitter = header(lines, &first)?;
        let Ok(names) = splitter.fields().collect::<Result<Vec<_>, _>>() else {
            bail!("line {}: the CSV header is not UTF-8 text", first.number);
        };
        let columns: Vec<_> = names.iter().map(|name| Field::of(name)).collect();
        for (field, called) in [(Field::Time, "timestamp"), (Field::Value, "value")] {
            if !columns.contains(&Some(field)) {
                bail!(
                    "line {}: the CSV header `{}` has no column `{called}`; \
                     add a header, or say --input-format",
                    first.number,
                    text::printable(&names.join(","), HEADER_CHARS_MAX)
                );
            }
        }
        for (index, column) in columns.iter().enumerate() {
            if column.is_some() && columns[..index].contains(column) {
                let name = text::printable(names[index], HEADER_CHARS_MAX);
                bail!("line {}: the CSV header names `{name}` twice", first.number);
            }
        }
        let unknown = names.iter().zip(&columns).filter(|(_, column)| column.is_none());
        let ignored = unknown.map(|(name, _)| (*name).to_owned()).collect();
        Ok(Self { defaults: defaults.clone(), columns, ignored, splitter: Splitter::default() })
    }

    fn record(&self) -> Result<MetricRecord, String> {
        let (mut server, mut metric, mut time, mut value, mut metadata) = ("", "", "", "", "");
        let found = self.splitter.fields().count();
        if found != self.columns.len() {
            return Err(format!("{found} columns where the header has {}", self.columns.len()));
        }
        for (column, text) in self.columns.iter().zip(self.splitter.fields()) {
            let text = text.map_err(|_| "the line is not UTF-8 text")?;
            match column {
                Some(Field::Server) => server = text,
                Some(Field::Metric) => metric = text,
                Some(Field::Time) => time = text,
                Some(Field::Value) => value = text,
                Some(Field::Metadata) => metadata = text,
                None => {}
            }
        }
        if server.is_empty() {
            server = &self.defaults.server;
        }
        if metric.is_empty() {
            metric = self.defaults.metric.as_deref().ok_or(NO_METRIC)?;
        }
        let timestamp = self.defaults.time_format.parse(time)?;
        let mut record = MetricRecord::new(server, timestamp, metric, parse_value(value)?);
        if !metadata.trim().is_empty() {
            let parsed = serde_json::from_str(metadata);
            record.metadata =
                Some(parsed.map_err(|error| format!("the metadata is no JSON: {error}"))?);
        }
        Ok(record)
    }
}

impl Parser for CsvParser {
    fn parse(&mut self, line: &[u8], records: &mut Vec<MetricRecord>) -> Parsed {
        let parsed = match self.splitter.push(line) {
            Split::More => return Parsed::More,
            Split::Broken => Parsed::Bad("a quoted text goes on after its closing quote".into()),
            Split::Done => match self.record() {
                Ok(record) => {
                    records.push(record);
                    Parsed::Done
                }
                Err(reason) => Parsed::Bad(reason),
            },
        };
        self.reset();
        parsed
    }

    fn reset(&mut self) {
        self.splitter.reset();
    }

    fn ignored(&self) -> &[String] {
        &self.ignored
    }
}

/// Splits the header that begins with `first`.
fn header(lines: &mut Lines<impl BufRead>, first: &Line) -> Result<Splitter> {
    let mut splitter = Splitter::default();
    let mut bytes = first.text.len();
    let mut fault = first.fault;
    let mut state = splitter.push(&first.text);
    while state == Split::More && fault.is_none() {
        let Some(next) = lines.next()? else { break };
        bytes += next.text.len();
        let bytes_max = lines.bytes_max();
        fault = next.fault.or((bytes > bytes_max).then_some(Fault::TooLong { bytes_max }));
        state = splitter.push(&next.text);
    }
    match fault {
        Some(fault) => bail!("line {}: the CSV header cannot be read: {fault}", first.number),
        None => Ok(splitter),
    }
}

/// Reads a number, or says why not.
pub(super) fn parse_value(text: &str) -> Result<f64, String> {
    match text.trim() {
        "" => Err("the value is empty".into()),
        text => text.parse().map_err(|_| format!("the value `{text}` is not a number")),
    }
}

/// Whether `line` names a column for the time and one for the value.
pub(super) fn is_header(line: &[u8]) -> bool {
    let mut splitter = Splitter::default();
    splitter.push(line);
    let fields: Vec<_> = splitter.fields().flatten().filter_map(Field::of).collect();
    fields.contains(&Field::Time) && fields.contains(&Field::Value)
}

#[derive(Debug, PartialEq, Eq)]
enum Split {
    Done,
    More,
    Broken,
}

/// Cuts lines into fields and undoes the quoting.
///
/// Unlike most readers it refuses text after a closing quote: a stray quote would pair with the
/// next one and turn all lines between them into a name.
#[derive(Default)]
struct Splitter {
    text: Vec<u8>,
    ends: Vec<usize>,
    is_quoted: bool,
}

impl Splitter {
    /// Takes a line with its end, or the next line of a record that is not complete.
    fn push(&mut self, line: &[u8]) -> Split {
        let body = line.strip_suffix(b"\n").unwrap_or(line);
        let mut rest = body.strip_suffix(b"\r").unwrap_or(body);
        let line_end = &line[rest.len()..];
        loop {
            if let Some(quoted) = rest.strip_prefix(b"\"").filter(|_| !self.is_quoted) {
                self.is_quoted = true;
                rest = quoted;
            }
            if !self.is_quoted {
                let len = position(rest, b',').unwrap_or(rest.len());
                self.text.extend_from_slice(&rest[..len]);
                rest = &rest[len..];
            } else if let Some(len) = position(rest, b'"') {
                self.text.extend_from_slice(&rest[..len]);
                rest = &rest[len + 1..];
                if let Some(after) = rest.strip_prefix(b"\"") {
                    self.text.push(b'"');
                    rest = after;
                    continue;
                }
                self.is_quoted = false;
            } else {
                self.text.extend_from_slice(rest);
                self.text.extend_from_slice(line_end);
                return Split::More;
            }
            self.ends.push(self.text.len());
            match rest.split_first() {
                None => return Split::Done,
                Some((b',', after)) => rest = after,
                Some(_) => return Split::Broken,
            }
        }
    }

    fn fields(&self) -> impl Iterator<Item = Result<&str, std::str::Utf8Error>> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(start, end)| std::str::from_utf8(&self.text[*start..*end]))
    }

    fn reset(&mut self) {
        self.text.clear();
        self.ends.clear();
        self.is_quoted = false;
    }
}

fn position(bytes: &[u8], wanted: u8) -> Option<usize> {
    bytes.iter().position(|byte| *byte == wanted)
}
