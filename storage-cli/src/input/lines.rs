//! Lines with their numbers, of bounded length, which can be put back.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};

use super::LINE_BYTES_MAX;

/// A line, its end included.
#[derive(Debug)]
pub(crate) struct Line {
    /// Counted from 1.
    pub(crate) number: u64,
    /// At most [`LINE_BYTES_MAX`] bytes.
    pub(crate) text: Vec<u8>,
    /// Whether the line was longer, and its rest thrown away.
    pub(crate) is_cut: bool,
}

impl Line {
    pub(crate) fn is_blank(&self) -> bool {
        self.text.trim_ascii().is_empty()
    }
}

/// The lines of a text.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    text: R,
    last_number: u64,
    put_back: VecDeque<Line>,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(text: R) -> Self {
        Self { text, last_number: 0, put_back: VecDeque::new() }
    }

    /// Returns the next line, or `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Line>> {
        if let Some(line) = self.put_back.pop_front() {
            return Ok(Some(line));
        }
        let mut text = Vec::with_capacity(80);
        (&mut self.text).take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut text)?;
        if text.is_empty() {
            return Ok(None);
        }
        self.last_number += 1;
        let is_cut = text.len() == LINE_BYTES_MAX && !text.ends_with(b"\n");
        if is_cut {
            self.text.skip_until(b'\n')?;
        }
        Ok(Some(Line { number: self.last_number, text, is_cut }))
    }

    /// Returns the next line that is not blank.
    pub(crate) fn first_with_text(&mut self) -> io::Result<Option<Line>> {
        while let Some(line) = self.next()? {
            if !line.is_blank() {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }

    /// Lets `lines` come again, before all others.
    pub(crate) fn put_back(&mut self, lines: Vec<Line>) {
        for line in lines.into_iter().rev() {
            self.put_back.push_front(line);
        }
    }
}
