//! Lines with their numbers, of bounded length, which can be put back.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};

use super::LINE_BYTES_MAX;
use crate::output::text;

/// What a text may ask of its reader.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LineRules {
    /// The longest line, or quoted text over several lines, that is read.
    pub(crate) bytes_max: usize,
    /// Whether the last line needs an end too: what comes by a connection may break off within a
    /// number, and half a number is another number.
    pub(crate) needs_end: bool,
}

impl Default for LineRules {
    fn default() -> Self {
        Self { bytes_max: LINE_BYTES_MAX, needs_end: false }
    }
}

/// A line, its end included.
#[derive(Debug)]
pub(crate) struct Line {
    /// Counted from 1.
    pub(crate) number: u64,
    /// At most [`LineRules::bytes_max`] bytes.
    pub(crate) text: Vec<u8>,
    /// Why nothing can be made of it.
    pub(crate) fault: Option<Fault>,
}

/// What is wrong with a line as such.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It was longer than this, and its rest is thrown away.
    TooLong { bytes_max: usize },
    /// The text ended within it.
    Unended,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLong { bytes_max } => {
                write!(f, "the line is longer than {}", text::bytes(*bytes_max as u64))
            }
            Self::Unended => f.write_str("the input ended within the line"),
        }
    }
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
    rules: LineRules,
    last_number: u64,
    put_back: VecDeque<Line>,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(text: R, rules: LineRules) -> Self {
        Self { text, rules, last_number: 0, put_back: VecDeque::new() }
    }

    pub(crate) fn bytes_max(&self) -> usize {
        self.rules.bytes_max
    }

    /// Returns the next line, or `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Line>> {
        if let Some(line) = self.put_back.pop_front() {
            return Ok(Some(line));
        }
        let LineRules { bytes_max, needs_end } = self.rules;
        let mut text = Vec::with_capacity(80);
        (&mut self.text).take(bytes_max as u64).read_until(b'\n', &mut text)?;
        if text.is_empty() {
            return Ok(None);
        }
        self.last_number += 1;
        let fault = match text.ends_with(b"\n") {
            true => None,
            false if text.len() == bytes_max => {
                self.text.skip_until(b'\n')?;
                Some(Fault::TooLong { bytes_max })
            }
            false => needs_end.then_some(Fault::Unended),
        };
        Ok(Some(Line { number: self.last_number, text, fault }))
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
