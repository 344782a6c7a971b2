//! JSON for programs.

use std::io::{self, Write};

use serde_json::Value;

use super::{Cell, Rows, text};

/// Prints an array with an object for each row, a row per line.
pub(super) struct JsonRows<'a> {
    sink: &'a mut dyn Write,
    columns: &'a [&'a str],
    is_first: bool,
}

impl<'a> JsonRows<'a> {
    pub(super) fn new(sink: &'a mut dyn Write, columns: &'a [&'a str]) -> Self {
        Self { sink, columns, is_first: true }
    }
}

impl Rows for JsonRows<'_> {
    fn row(&mut self, cells: Vec<Cell>) -> io::Result<()> {
        self.sink.write_all(if self.is_first { b"[\n" } else { b",\n" })?;
        self.is_first = false;
        object(self.sink, self.columns.iter().copied().zip(cells))
    }

    fn finish(&mut self) -> io::Result<()> {
        self.sink.write_all(if self.is_first { b"[]\n" } else { b"\n]\n" })?;
        self.sink.flush()
    }
}

/// Prints one thing as an object.
pub(super) fn record(sink: &mut dyn Write, parts: Vec<(&str, Cell)>) -> io::Result<()> {
    object(sink, parts.into_iter())?;
    sink.write_all(b"\n")
}

/// Prints the fields in the order given, which a map would not keep.
fn object<'a>(
    sink: &mut dyn Write,
    fields: impl Iterator<Item = (&'a str, Cell)>,
) -> io::Result<()> {
    let mut separator = "{";
    for (name, cell) in fields {
        write!(sink, "{separator}{}:{}", Value::from(name), plain(cell))?;
        separator = ",";
    }
    sink.write_all(b"}")
}

fn plain(cell: Cell) -> Value {
    match cell {
        Cell::Text(text) => text.into(),
        Cell::Time(time) => text::time(time).into(),
        // An infinite sum has no number in JSON; `from` makes it null.
        Cell::Float(value) | Cell::Derived(value) => value.into(),
        Cell::Count(number) | Cell::Bytes(number) => number.into(),
        Cell::Json(value) => value,
        Cell::Empty => Value::Null,
    }
}
