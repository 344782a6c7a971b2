//! Answers into text: the only place that writes to stdout and stderr.
//!
//! A verb hands over rows of [`Cell`]s; [`Format`] decides what becomes of them. Answers go to
//! stdout, everything else to stderr.

pub(crate) mod chart;
mod csv;
mod json;
#[cfg(feature = "parquet")]
mod parquet;
pub(crate) mod progress;
pub(crate) mod samples;
mod table;
pub(crate) mod text;

use std::io::{self, IsTerminal, Write};

use chrono::{DateTime, Utc};
use serde_json::Value;
use tracing_subscriber::EnvFilter;

use crate::args::{Format, Global};

/// A value of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cell {
    /// A name or words.
    Text(String),
    /// A time, shown in UTC with milliseconds.
    Time(DateTime<Utc>),
    /// A value as it is stored, every digit of it.
    Float(f64),
    /// A value about values: a table rounds it.
    Derived(f64),
    /// A number of things.
    Count(u64),
    /// A number of bytes: a table uses units.
    Bytes(u64),
    /// Metadata.
    Json(Value),
    /// Nothing.
    Empty,
}

impl Cell {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub(crate) fn or_empty<T>(value: Option<T>, cell: impl FnOnce(T) -> Self) -> Self {
        value.map_or(Self::Empty, cell)
    }
}

/// Takes the rows of an answer.
pub(crate) trait Rows {
    fn row(&mut self, cells: Vec<Cell>) -> io::Result<()>;
    /// Prints what is still to print.
    fn finish(&mut self) -> io::Result<()>;
}

/// Where answers go, and how they look.
pub(crate) struct Output {
    sink: Box<dyn Write>,
    format: Format,
    is_format_given: bool,
    is_quiet: bool,
    is_terminal: bool,
}

impl Output {
    /// Prints to stdout.
    pub(crate) fn stdout(global: &Global) -> Self {
        let is_terminal = io::stdout().is_terminal();
        let default = if is_terminal { Format::Table } else { Format::Csv };
        Self {
            sink: Box::new(io::BufWriter::with_capacity(64 << 10, io::stdout())),
            format: global.format.unwrap_or(default),
            is_format_given: global.format.is_some(),
            is_quiet: global.quiet,
            is_terminal,
        }
    }

    /// Prints into `sink`.
    #[cfg(test)]
    pub(crate) fn to(sink: impl Write + 'static, format: Format) -> Self {
        let sink = Box::new(sink);
        Self { sink, format, is_format_given: true, is_quiet: true, is_terminal: false }
    }

    /// The format that was asked for, if one was.
    pub(crate) fn given_format(&self) -> Option<Format> {
        self.is_format_given.then_some(self.format)
    }

    /// Whether progress and notes are unwanted.
    pub(crate) fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    /// Whether answers go to a terminal.
    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Begins an answer of any number of rows.
    pub(crate) fn rows<'a>(&'a mut self, columns: &'a [&'a str]) -> io::Result<Box<dyn Rows + 'a>> {
        Ok(match self.format {
            Format::Table => Box::new(table::TableRows::new(&mut self.sink, columns)),
            Format::Csv | Format::Parquet => Box::new(csv::CsvRows::new(&mut self.sink, columns)?),
            Format::Json => Box::new(json::JsonRows::new(&mut self.sink, columns)),
        })
    }

    /// Prints an answer that is one thing with named parts.
    pub(crate) fn record(&mut self, parts: Vec<(&str, Cell)>) -> io::Result<()> {
        match self.format {
            Format::Table => table::record(&mut self.sink, parts)?,
            Format::Csv | Format::Parquet => {
                let (names, cells): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
                csv::CsvRows::new(&mut self.sink, &names)?.row(cells)?;
            }
            Format::Json => json::record(&mut self.sink, parts)?,
        }
        self.sink.flush()
    }

    /// Prints `text` as it is.
    pub(crate) fn raw(&mut self, text: &[u8]) -> io::Result<()> {
        self.sink.write_all(text)?;
        self.sink.flush()
    }

    /// The place itself, for what is neither rows nor a record.
    pub(crate) fn sink(&mut self) -> &mut dyn Write {
        &mut self.sink
    }

    /// Says something that is good to know, on stderr, unless quiet.
    pub(crate) fn note(&self, text: &str) {
        if !self.is_quiet {
            complain_as("note", text);
        }
    }
}

/// Says on stderr what failed.
pub(crate) fn complain(text: &str) {
    complain_as("error", text);
}

/// Says on stderr what went wrong without making the verb fail.
pub(crate) fn warn(text: &str) {
    complain_as("warning", text);
}

/// Asks on stderr, and returns whether the answer on stdin is yes.
pub(crate) fn confirm(question: &str) -> io::Result<bool> {
    write!(io::stderr(), "{question} [y/N] ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Returns whether something may be removed: `yes` was said, or is now.
///
/// # Errors
/// Where nobody is there to ask.
pub(crate) fn ask_to_remove(what: &str, yes: bool, shown_url: &str) -> anyhow::Result<bool> {
    if yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        anyhow::bail!("nobody is there to confirm; say --yes to remove");
    }
    Ok(confirm(&format!("Remove {what} from {shown_url}?"))?)
}

fn complain_as(what: &str, text: &str) {
    // Nobody is left to hear that stderr is broken.
    let _ = writeln!(io::stderr(), "{what}: {text}");
}

/// Logs to stderr, the more the higher `verbose` is; `RUST_LOG` wins.
pub(crate) fn start_logs(verbose: u8) {
    let level = match verbose {
        0 => "off",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
}

/// Returns the width of the terminal, if there is one.
pub(crate) fn terminal_width() -> Option<u16> {
    terminal_size::terminal_size().map(|(width, _)| width.0)
}
