//! What standard input brings, one item a line, for the verbs that store all of it or nothing.

use std::io::BufRead;

use anyhow::{Context, Result};

/// Reads every line but blank ones, before anything is stored. `item` says what a line is to be, and
/// `done` what was done with none of them where one is not.
pub(super) fn read_all<T>(
    input: impl BufRead,
    (item, done): (&str, &str),
    parse: impl Fn(&str) -> Result<T>,
    validate: impl Fn(&T) -> storage::Result<()>,
) -> Result<Vec<T>> {
    let mut items = Vec::new();
    for (number, line) in (1..).zip(input.lines()) {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let one = parse(&line)
            .with_context(|| format!("line {number} is no {item}; nothing was {done}"))?;
        validate(&one).with_context(|| format!("line {number}; nothing was {done}"))?;
        items.push(one);
    }
    Ok(items)
}
