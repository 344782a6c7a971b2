//! Text into records: formats, how they are recognised, and the loop over the lines of a file.
//!
//! Memory is bounded whatever the text holds: a line has at most [`LineRules::bytes_max`] bytes, and a
//! quoted text that spans lines as many.

pub(crate) mod csv;
pub(crate) mod influx;
pub(crate) mod jsonl;
mod lines;
pub(crate) mod time;

use std::io::{self, BufRead};
use std::path::Path;

use anyhow::{Result, bail};
use storage::MetricRecord;

pub(crate) use self::lines::LineRules;
use self::lines::{Line, Lines};
use self::time::TimeFormat;
use crate::args::SampleFormat;
use crate::output::text;

/// The longest line of a file, or quoted text over several lines, that is read.
pub(crate) const LINE_BYTES_MAX: usize = 1 << 20;

/// How much is said about a bad line: it may quote what it is made of.
const REASON_CHARS_MAX: usize = 300;

/// How a text is to be read.
#[derive(Debug, Clone)]
pub(crate) struct Syntax {
    /// Its format; `None` goes by the first line.
    pub(crate) format: Option<SampleFormat>,
    /// What its lines do not say.
    pub(crate) defaults: Defaults,
    /// What a line may be.
    pub(crate) lines: LineRules,
}

/// What the lines of a file do not say themselves.
#[derive(Debug, Clone)]
pub(crate) struct Defaults {
    /// Server of lines that name none.
    pub(crate) server: String,
    /// Metric of lines that name none; `None` makes them bad.
    pub(crate) metric: Option<String>,
    /// How times are written.
    pub(crate) time_format: TimeFormat,
}

/// What a parser made of a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// Its records are complete.
    Done,
    /// It holds none, and need not: a comment.
    Skipped,
    /// The record goes on in the next line.
    More,
    /// It, or a part of it, cannot be stored, for this reason.
    Bad(String),
}

/// A format, line by line.
pub(crate) trait Parser {
    /// Parses a line, its end included, or what [`Parsed::More`] asked for; adds to `records`.
    fn parse(&mut self, line: &[u8], records: &mut Vec<MetricRecord>) -> Parsed;

    /// Forgets a record that was begun.
    fn reset(&mut self) {}

    /// Names of columns that are left out.
    fn ignored(&self) -> &[String];
}

/// What happens to the content of a file.
pub(crate) trait Sink {
    /// A line that is neither blank, a header nor a comment was read.
    fn line(&mut self) -> Result<()>;
    /// A record that keeps the rules of the contract.
    fn record(&mut self, record: MetricRecord) -> Result<()>;
    /// The line of this number, counted from 1, is bad.
    fn bad(&mut self, line: u64, reason: &str);
}

/// Reads all of `text` and returns the names of columns that were left out.
///
/// # Errors
/// Those of reading and of `sink`; and a CSV header that lacks what every record needs.
pub(crate) fn read(
    mut text: impl BufRead,
    syntax: &Syntax,
    sink: &mut dyn Sink,
) -> Result<Vec<String>> {
    let Syntax { format, defaults, lines: rules } = syntax;
    skip_byte_order_mark(&mut text)?;
    let mut lines = Lines::new(text, *rules);
    let Some(first) = lines.first_with_text()? else {
        return Ok(Vec::new());
    };
    let mut parser: Box<dyn Parser> = match format.unwrap_or_else(|| detect(&first.text)) {
        SampleFormat::Csv => Box::new(csv::CsvParser::new(&mut lines, first, defaults)?),
        SampleFormat::Jsonl => {
            lines.put_back(vec![first]);
            Box::new(jsonl::JsonParser::new(defaults))
        }
        SampleFormat::Influx => {
            lines.put_back(vec![first]);
            Box::new(influx::InfluxParser::new(defaults))
        }
        SampleFormat::Parquet => bail!("`storage adopt` reads Parquet files"),
    };
    read_lines(&mut lines, &mut *parser, sink)?;
    Ok(parser.ignored().to_vec())
}

fn read_lines(
    lines: &mut Lines<impl BufRead>,
    parser: &mut dyn Parser,
    sink: &mut dyn Sink,
) -> Result<()> {
    let mut records = Vec::new();
    while let Some(first) = lines.next()? {
        if first.is_blank() {
            continue;
        }
        if let Some(fault) = first.fault {
            sink.line()?;
            sink.bad(first.number, &fault.to_string());
            continue;
        }
        let (parsed, rest) = parse_one(lines, parser, &first.text, &mut records)?;
        if parsed == Parsed::Skipped {
            continue;
        }
        sink.line()?;
        let mut reason = None;
        for record in records.drain(..) {
            match record.validate() {
                Ok(()) => sink.record(record)?,
                Err(error) => reason = Some(error.message().to_owned()),
            }
        }
        if let Parsed::Bad(why) = parsed {
            reason = Some(why);
        }
        if let Some(reason) = reason {
            sink.bad(first.number, &text::printable(&reason, REASON_CHARS_MAX));
            // A stray quote must not swallow the good lines after it.
            lines.put_back(rest);
        }
    }
    Ok(())
}

/// Parses the record that begins with `first`, and returns the further lines it took.
fn parse_one(
    lines: &mut Lines<impl BufRead>,
    parser: &mut dyn Parser,
    first: &[u8],
    records: &mut Vec<MetricRecord>,
) -> io::Result<(Parsed, Vec<Line>)> {
    let mut rest: Vec<Line> = Vec::new();
    let mut bytes = first.len();
    let mut parsed = parser.parse(first, records);
    while parsed == Parsed::More {
        parsed = match lines.next()? {
            Some(next) if bytes + next.text.len() <= lines.bytes_max() && next.fault.is_none() => {
                bytes += next.text.len();
                let parsed = parser.parse(&next.text, records);
                rest.push(next);
                parsed
            }
            other => {
                rest.extend(other);
                Parsed::Bad("a quote is opened and not closed".into())
            }
        };
    }
    if matches!(parsed, Parsed::Bad(_)) {
        parser.reset();
    }
    Ok((parsed, rest))
}

/// Returns the format that the extension of `path` stands for.
pub(crate) fn format_of(path: &Path) -> Option<SampleFormat> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "csv" => Some(SampleFormat::Csv),
        "jsonl" | "ndjson" | "json" => Some(SampleFormat::Jsonl),
        "lp" | "influx" | "line" => Some(SampleFormat::Influx),
        "parquet" => Some(SampleFormat::Parquet),
        _ => None,
    }
}

fn detect(first: &[u8]) -> SampleFormat {
    if first.trim_ascii_start().starts_with(b"{") {
        SampleFormat::Jsonl
    } else if csv::is_header(first) {
        SampleFormat::Csv
    } else {
        SampleFormat::Influx
    }
}

fn skip_byte_order_mark(text: &mut impl BufRead) -> io::Result<()> {
    if text.fill_buf()?.starts_with(b"\xEF\xBB\xBF") {
        text.consume(3);
    }
    Ok(())
}

/// Fields of a record by the names that files use for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Server,
    Time,
    Metric,
    Value,
    Metadata,
}

impl Field {
    fn of(name: &str) -> Option<Self> {
        Some(match name.trim().to_ascii_lowercase().as_str() {
            "server_id" | "server" | "host" => Self::Server,
            "timestamp" | "time" | "ts" => Self::Time,
            "metric_type" | "metric" | "name" => Self::Metric,
            "value" => Self::Value,
            "metadata" => Self::Metadata,
            _ => return None,
        })
    }
}

const NO_METRIC: &str = "no metric is named: say --metric";

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Collected {
        lines: u64,
        records: Vec<MetricRecord>,
        bad: Vec<(u64, String)>,
    }

    impl Sink for Collected {
        fn line(&mut self) -> Result<()> {
            self.lines += 1;
            Ok(())
        }
        fn record(&mut self, record: MetricRecord) -> Result<()> {
            self.records.push(record);
            Ok(())
        }
        fn bad(&mut self, line: u64, reason: &str) {
            self.bad.push((line, reason.to_owned()));
        }
    }

    fn syntax(format: Option<SampleFormat>) -> Syntax {
        let defaults = Defaults {
            server: "import".into(),
            metric: Some("m".into()),
            time_format: TimeFormat::Auto,
        };
        Syntax { format, defaults, lines: LineRules::default() }
    }

    fn collect(text: &str) -> Collected {
        collect_as(text.as_bytes(), &syntax(None))
    }

    fn collect_as(text: &[u8], syntax: &Syntax) -> Collected {
        let mut found = Collected::default();
        read(text, syntax, &mut found).unwrap();
        found
    }

    fn bad_lines(found: &Collected) -> Vec<u64> {
        found.bad.iter().map(|(line, _)| *line).collect()
    }

    #[test]
    fn csv_of_two_columns() {
        let found = collect(
            "\u{feff}timestamp,value\r\n2014-02-14 14:30:00,0.5\r\n\r\n2014-02-14 14:35:00,1e-3",
        );
        assert_eq!((found.lines, found.bad.len()), (2, 0), "{:?}", found.bad);
        let values: Vec<_> = found.records.iter().map(|record| record.value).collect();
        assert_eq!(values, [0.5, 0.001]);
        assert_eq!(found.records[0].server_id, "import");
        assert_eq!(found.records[0].metric_type, "m");
    }

    #[test]
    fn csv_of_all_columns_in_any_order_with_quotes_over_lines() {
        let found = collect(
            "value,Host,metadata,name,time\n\
             1,\"a\nb\"\" c\",\"{\"\"k\"\":[1,\n2]}\",cpu,2014-02-14T14:30:00Z\n\
             2,,,,2014-02-14T14:30:00Z\n",
        );
        assert_eq!(found.bad, []);
        assert_eq!(found.records[0].server_id, "a\nb\" c");
        assert_eq!(found.records[0].metadata, Some(serde_json::json!({"k": [1, 2]})));
        assert_eq!(found.records[1].server_id, "import");
        assert_eq!(found.lines, 2);
    }

    #[test]
    fn a_stray_quote_costs_its_own_line_only() {
        let found = collect(
            "server,time,value\na,2014-02-14,1\n\"b,2014-02-14,2\nc,2014-02-14,3\nd,2014-02-14,4\n",
        );
        assert_eq!(bad_lines(&found), [3]);
        assert_eq!(found.records.len(), 3);
        let found = collect(
            "server,time,value\n\"b,2014-02-14,2\nc,2014-02-14,3\n\"d,2014-02-14,4\ne,2014-02-14,5\n",
        );
        assert_eq!(bad_lines(&found), [2, 4]);
        assert_eq!(found.records.len(), 2);
    }

    #[test]
    fn csv_lines_that_are_bad() {
        let found = collect(
            "time,value,metadata\n2014-02-14,x,\n2014-02-14,NaN,\n2014-02-14,inf,\nlately,1,\n\
             2014-02-14\n2014-02-14,1,{\n2014-02-14,1,,5\n2014-02-14,7,\n2014-02-14,,\n",
        );
        assert_eq!(bad_lines(&found), [2, 3, 4, 5, 6, 7, 8, 10]);
        assert_eq!((found.lines, found.records.len()), (9, 1));
    }

    #[test]
    fn a_header_without_time_or_value_is_an_error() {
        for header in ["time,count\n1,2", "value\n1", "time,value,ts\n"] {
            let syntax = syntax(Some(SampleFormat::Csv));
            assert!(read(header.as_bytes(), &syntax, &mut Collected::default()).is_err());
        }
    }

    #[test]
    fn json_lines() {
        let found = collect(
            "{\"server_id\":\"a\",\"timestamp\":\"2014-02-14T14:30:00Z\",\"metric_type\":\"cpu\",\
             \"value\":1,\"metadata\":{\"k\":1}}\n\
             {\"ts\":1392388200000,\"value\":0.1,\"metadata\":null}\n{\"ts\":5,\"value\":1}\nnope\n\
             {\"value\":1}\n{\"ts\":1392388200000,\"value\":\"2.5\"}\n[1]\n",
        );
        assert_eq!(bad_lines(&found), [3, 4, 5, 7]);
        assert_eq!(found.records.len(), 3);
        assert_eq!(found.records[0].metadata, Some(serde_json::json!({"k": 1})));
        assert_eq!((found.records[1].value, found.records[2].value), (0.1, 2.5));
    }

    #[test]
    fn line_protocol() {
        let found = collect(
            "# comment\ncpu,host=web-1,core=0 usage=12.5,ok=true,n=3i 1392388200000000000\n\
             load value=0.25 1392388200000000000\nx s=\"text\",v=1u 1392388200000000000\n\
             x v=1\nbroken\n",
        );
        assert_eq!(bad_lines(&found), [4, 5, 6]);
        let names: Vec<_> = found.records.iter().map(|r| r.metric_type.as_str()).collect();
        assert_eq!(names, ["cpu_usage", "cpu_ok", "cpu_n", "load", "x_v"]);
        assert_eq!(found.records[0].server_id, "web-1");
        assert_eq!(found.records[0].metadata, Some(serde_json::json!({"core": "0"})));
        assert_eq!(found.records[3].server_id, "import");
        assert_eq!((found.lines, found.records[1].value), (5, 1.0));
    }

    #[test]
    fn bytes_that_are_no_text_and_endless_lines_are_bad_lines() {
        let mut text = b"time,value\n2014-02-14,\xff\n".to_vec();
        text.extend(vec![b'9'; 3 << 20]);
        text.extend(b"\n2014-02-14,1\n");
        let found = collect_as(&text, &syntax(None));
        assert_eq!(bad_lines(&found), [2, 3]);
        assert_eq!(found.records.len(), 1);
    }

    #[test]
    fn a_header_that_never_ends_is_an_error_and_not_held() {
        for header in [format!("\"{}", "a\n".repeat(2 << 20)), "a".repeat(3 << 20)] {
            let syntax = syntax(Some(SampleFormat::Csv));
            let error = read(header.as_bytes(), &syntax, &mut Collected::default()).unwrap_err();
            assert!(error.to_string().len() < 500, "{error}");
        }
    }

    #[test]
    fn a_text_that_breaks_off_gives_no_half_line_where_lines_need_an_end() {
        let lines = LineRules { bytes_max: 64, needs_end: true };
        let strict = Syntax { lines, ..syntax(None) };
        let text = "cpu value=1 1392388200000000000\ncpu value=12 13923882000000";
        let found = collect_as(text.as_bytes(), &strict);
        assert_eq!((found.records.len(), bad_lines(&found)), (1, vec![2]));
        let found = collect_as(format!("{text}00000\n").as_bytes(), &strict);
        assert_eq!((found.records.len(), found.bad.len()), (2, 0));
        // Of exactly the length that is allowed, end included, and one more.
        for (spaces, bad) in [(63 - 31, 0), (64 - 31, 1)] {
            let padded = format!("{}cpu value=1 1392388200000000000\n", " ".repeat(spaces));
            let found = collect_as(padded.as_bytes(), &strict);
            assert_eq!(found.bad.len(), bad, "{spaces}: {:?}", found.bad);
        }
        // A quoted text is bounded as a whole.
        let csv = format!("time,value,server\n2014-02-14,1,\"{}\"\n", "ab\n".repeat(20));
        assert_eq!(collect_as(csv.as_bytes(), &strict).records.len(), 0);
        assert_eq!(collect_as(csv.as_bytes(), &syntax(None)).records.len(), 1);
    }

    #[test]
    fn what_is_said_of_a_bad_line_can_be_printed() {
        let found = collect(&format!("time,value\n2014-02-14,\u{1b}[2J{}\n", "x".repeat(1000)));
        let (_, reason) = &found.bad[0];
        assert!(reason.chars().count() <= REASON_CHARS_MAX + 1, "{reason}");
        assert!(!reason.contains(char::is_control), "{reason:?}");
    }
}
