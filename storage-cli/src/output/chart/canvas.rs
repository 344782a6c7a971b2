//! Dots, eight to a braille character, each character of one colour.

use super::coloured;

/// Dots, eight to a character.
pub(super) struct Canvas {
    width: usize,
    height: usize,
    cells: Vec<(u8, usize)>,
}

impl Canvas {
    pub(super) fn new(width: usize, height: usize) -> Self {
        Self { width, height, cells: vec![(0, 0); width * height] }
    }

    pub(super) fn dot_rows(&self) -> usize {
        self.height * 4
    }

    /// Sets the dot `x` from the left and `y` from the bottom.
    pub(super) fn set(&mut self, x: usize, y: usize, colour: usize) {
        const BITS: [[u8; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];
        let from_top = self.dot_rows() - 1 - y;
        let (row, column) = (from_top / 4, x / 2);
        if let Some(cell) = self.cells.get_mut(row * self.width + column) {
            *cell = (cell.0 | BITS[from_top % 4][x % 2], colour);
        }
    }

    /// Sets the dots between two, both included.
    pub(super) fn join(&mut self, from: (usize, usize), to: (usize, usize), colour: usize) {
        let steps = from.0.abs_diff(to.0).max(from.1.abs_diff(to.1)).max(1);
        let between = |a: usize, b: usize, step: usize| {
            let part = step as f64 / steps as f64;
            (a as f64 + (b as f64 - a as f64) * part).round() as usize
        };
        for step in 0..=steps {
            self.set(between(from.0, to.0, step), between(from.1, to.1, step), colour);
        }
    }

    pub(super) fn row(&self, row: usize, is_coloured: bool) -> String {
        let mut line = String::new();
        for (bits, colour) in &self.cells[row * self.width..(row + 1) * self.width] {
            let character = char::from_u32(0x2800 + u32::from(*bits)).filter(|_| *bits > 0);
            let character = character.unwrap_or(' ').to_string();
            let colour = Some(*colour).filter(|_| is_coloured && *bits > 0);
            line.push_str(&coloured(&character, colour));
        }
        line
    }
}
