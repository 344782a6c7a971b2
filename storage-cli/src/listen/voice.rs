//! Warnings about what comes from outside: whoever sends nonsense must not fill the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::output::{text, warn};

/// How many warnings there are in a while, and how long that is.
const WARNINGS_MAX: u64 = 100;
const WHILE: Duration = Duration::from_secs(60);

/// Warns on stderr, up to a number of times in a while; the rest is counted.
#[derive(Debug, Default)]
pub(super) struct Voice {
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    since: Option<Instant>,
    count: u64,
}

impl Voice {
    pub(super) fn say(&self, text: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        for line in said.lines(text, Instant::now()) {
            warn(&line);
        }
    }
}

impl Said {
    /// What is to be printed when somebody says `text`.
    fn lines(&mut self, text: &str, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        if self.since.is_none_or(|since| now.duration_since(since) >= WHILE) {
            let left_out = self.count.saturating_sub(WARNINGS_MAX);
            if left_out > 0 {
                lines.push(format!("{} left out", text::counted(left_out, "more warning")));
            }
            *self = Self { since: Some(now), count: 0 };
        }
        self.count += 1;
        if self.count <= WARNINGS_MAX {
            lines.push(text.to_owned());
        }
        if self.count == WARNINGS_MAX {
            lines.push(
                "further warnings about connections are only counted for a minute".to_owned(),
            );
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_in_a_while_and_the_rest_is_counted() {
        let (mut said, start) = (Said::default(), Instant::now());
        let lines: usize = (0..250).map(|_| said.lines("x", start).len()).sum();
        assert_eq!(lines as u64, WARNINGS_MAX + 1);
        assert_eq!(said.lines("y", start + WHILE), ["150 more warnings left out", "y"]);
        assert_eq!(said.lines("z", start + WHILE), ["z"]);
        assert_eq!(said.lines("later", start + WHILE * 3), ["later"]);
    }
}
