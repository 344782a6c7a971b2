//! CSV for spreadsheets and shells.

use std::io::{self, Write};

use super::{Cell, Rows, text};

/// Prints each row at once.
pub(super) struct CsvRows<'a> {
    writer: csv::Writer<&'a mut dyn Write>,
}

impl<'a> CsvRows<'a> {
    pub(super) fn new(sink: &'a mut dyn Write, columns: &[&str]) -> io::Result<Self> {
        let mut writer = csv::Writer::from_writer(sink);
        writer.write_record(columns).map_err(into_io)?;
        Ok(Self { writer })
    }
}

impl Rows for CsvRows<'_> {
    fn row(&mut self, cells: Vec<Cell>) -> io::Result<()> {
        for cell in cells {
            self.writer.write_field(plain(cell)).map_err(into_io)?;
        }
        self.writer.write_record(None::<&[u8]>).map_err(into_io)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Returns the I/O error itself, so that a broken pipe stays one.
pub(super) fn into_io(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

fn plain(cell: Cell) -> String {
    match cell {
        Cell::Text(text) => text,
        Cell::Time(time) => text::time(time),
        Cell::Float(value) | Cell::Derived(value) => text::float(value),
        Cell::Count(number) | Cell::Bytes(number) => number.to_string(),
        Cell::Json(value) => value.to_string(),
        Cell::Empty => String::new(),
    }
}
