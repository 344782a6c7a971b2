//! Why a case failed, and the macros that say so.

use std::fmt::{self, Debug, Display};

use storage_core::{Error, ErrorKind, Result};

/// What a case returns.
pub type CaseResult = std::result::Result<(), Failure>;

/// Why a case failed, in words.
pub struct Failure(String);

impl Failure {
    /// Creates a failure from its description.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// Says in front of the description what was being done.
    #[must_use]
    pub fn during(self, what: impl Display) -> Self {
        Self(format!("{what}: {}", self.0))
    }

    /// The description.
    pub fn message(&self) -> &str {
        &self.0
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(format!("{error:#}"))
    }
}

/// Fails the case unless the condition holds.
macro_rules! ensure {
    ($condition:expr $(,)?) => {
        ensure!($condition, "{}", stringify!($condition))
    };
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            let place = format!("{}:{}", file!(), line!());
            return Err($crate::Failure::new(format!($($message)+)).during(place));
        }
    };
}

/// Fails the case unless both sides are equal, and shows both.
macro_rules! ensure_eq {
    ($left:expr, $right:expr $(,)?) => {
        ensure_eq!($left, $right, "{}", stringify!($left))
    };
    ($left:expr, $right:expr, $($message:tt)+) => {
        match (&$left, &$right) {
            (left, right) => {
                if *left != *right {
                    let place = format!("{}:{}", file!(), line!());
                    let sides = $crate::failure::sides(left, right);
                    return Err($crate::Failure::new(format!($($message)+) + &sides).during(place));
                }
            }
        }
    };
}

/// Shows what was found and what was expected, cut to a readable length.
pub(crate) fn sides(found: &dyn Debug, expected: &dyn Debug) -> String {
    format!("\n     found: {}\n  expected: {}", cut(found), cut(expected))
}

fn cut(value: &dyn Debug) -> String {
    const CHARS_MAX: usize = 1500;
    let text = format!("{value:?}");
    match text.char_indices().nth(CHARS_MAX) {
        Some((at, _)) => format!("{}... ({} bytes)", &text[..at], text.len()),
        None => text,
    }
}

/// Returns the error of `result` if it is of `kind`, and fails otherwise.
pub(crate) fn expect_kind<T>(
    result: Result<T>,
    kind: ErrorKind,
    what: impl Display,
) -> std::result::Result<Error, Failure> {
    match result {
        Ok(_) => Err(Failure::new(format!("{what}: succeeded, expected the error {kind:?}"))),
        Err(error) if error.kind() == kind => Ok(error),
        Err(error) => Err(Failure::new(format!(
            "{what}: expected the error {kind:?}, found {:?}: {error:#}",
            error.kind()
        ))),
    }
}

/// Fails unless `result` is the refusal of a wrong argument: nothing applied, no use in trying
/// again, and `field` (where one is given) named.
pub(crate) fn expect_refused<T>(
    result: Result<T>,
    field: Option<&str>,
    what: impl Display,
) -> std::result::Result<Error, Failure> {
    let error = expect_kind(result, ErrorKind::InvalidArgument, &what)?;
    ensure_eq!(error.outcome(), storage_core::Outcome::NotApplied, "{what}: the outcome");
    ensure!(!error.is_retryable(), "{what}: said to be worth a retry");
    if field.is_some() {
        ensure_eq!(error.context("field"), field, "{what}: the detail `field`");
    }
    Ok(error)
}
