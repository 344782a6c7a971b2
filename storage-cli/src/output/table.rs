//! Tables for people.

use std::io::{self, Write};

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table};

use super::{Cell, Rows, text};

/// Collects rows and prints them at the end, when the widths are known.
pub(super) struct TableRows<'a> {
    sink: &'a mut dyn Write,
    table: Table,
    are_numbers: Vec<bool>,
}

impl<'a> TableRows<'a> {
    pub(super) fn new(sink: &'a mut dyn Write, columns: &[&str]) -> Self {
        let mut table = empty();
        table.set_header(columns);
        Self { sink, table, are_numbers: vec![false; columns.len()] }
    }
}

impl Rows for TableRows<'_> {
    fn row(&mut self, cells: Vec<Cell>) -> io::Result<()> {
        let are_numbers = cells.iter().map(|cell| is_number(cell) || matches!(cell, Cell::Time(_)));
        for (known, is_number) in self.are_numbers.iter_mut().zip(are_numbers) {
            *known |= is_number;
        }
        self.table.add_row(cells.iter().map(shown));
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        // A number or a time over two lines cannot be read: only names and metadata give way.
        for (column, is_number) in self.table.column_iter_mut().zip(&self.are_numbers) {
            if *is_number {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        if self.table.row_count() > 0 {
            for line in self.table.lines() {
                writeln!(self.sink, "{line}")?;
            }
        }
        self.sink.flush()
    }
}

/// Prints one thing, a line for each of its parts.
pub(super) fn record(sink: &mut dyn Write, parts: Vec<(&str, Cell)>) -> io::Result<()> {
    let mut table = empty();
    for (name, cell) in parts {
        table.add_row([comfy_table::Cell::new(name.replace('_', " ")), shown(&cell)]);
    }
    for line in table.lines() {
        writeln!(sink, "{line}")?;
    }
    Ok(())
}

fn empty() -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table
}

fn shown(cell: &Cell) -> comfy_table::Cell {
    let text = match cell {
        Cell::Text(text) => visible(text),
        Cell::Time(time) => text::time(*time),
        Cell::Float(value) => text::float(*value),
        Cell::Derived(value) => text::rounded(*value),
        Cell::Count(count) => text::count(*count),
        Cell::Bytes(bytes) => text::bytes(*bytes),
        Cell::Json(value) => visible(&value.to_string()),
        Cell::Empty => String::new(),
    };
    let alignment = if is_number(cell) { CellAlignment::Right } else { CellAlignment::Left };
    comfy_table::Cell::new(text).set_alignment(alignment)
}

fn is_number(cell: &Cell) -> bool {
    matches!(cell, Cell::Float(_) | Cell::Derived(_) | Cell::Count(_) | Cell::Bytes(_))
}

/// Shows control characters instead of sending them: names come from anywhere.
fn visible(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    let escaped = text.chars().map(|character| match character {
        control if control.is_control() => control.escape_default().to_string(),
        other => other.to_string(),
    });
    escaped.collect()
}
