//! The one error type of every backend and layer.
//!
//! Three questions are kept apart: what went wrong ([`ErrorKind`]: what the caller should do),
//! whether the operation may have taken effect ([`Outcome`]), and whether the same call may
//! succeed later ([`Error::is_retryable`]).

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// Result with the [`Error`] of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn StdError + Send + Sync + 'static>;

/// What went wrong, one kind for each thing that a caller would do differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The call is wrong (a NaN, an empty name, a range that ends before it starts): change it.
    InvalidArgument,
    /// A URL, option or file of the configuration is wrong: change it.
    Config,
    /// There is no store at the location, or nothing with that id: correct it, or create it.
    NotFound,
    /// What is stored is not what the call expects (an id that is taken, a version that another
    /// writer was faster with): look again, then decide.
    Conflict,
    /// This backend does not offer the operation; see [`Capabilities`](crate::Capabilities).
    Unsupported,
    /// The store cannot be reached at the moment.
    Unavailable,
    /// Somebody else holds what the operation needs, for longer than the configured wait.
    Busy,
    /// The operation took longer than its budget.
    Timeout,
    /// No space left, or a quota reached.
    StorageFull,
    /// The store may not be written, or not be read, with these rights.
    PermissionDenied,
    /// Stored bytes do not decode, or a checksum does not match.
    Corrupt,
    /// The store was written by a newer version of this library.
    VersionMismatch,
    /// The handle was closed before.
    Closed,
    /// An I/O error that none of the others names. After a failed write-out to disk the handle
    /// refuses further writes until it is opened again.
    Io,
    /// A defect of this library or of a driver: please report it.
    Internal,
}

impl ErrorKind {
    /// The kind in words, as `Display` of [`Error`] uses it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid argument",
            Self::Config => "invalid configuration",
            Self::NotFound => "not found",
            Self::Conflict => "conflict",
            Self::Unsupported => "unsupported",
            Self::Unavailable => "unavailable",
            Self::Busy => "busy",
            Self::Timeout => "timed out",
            Self::StorageFull => "storage full",
            Self::PermissionDenied => "permission denied",
            Self::Corrupt => "corrupt data",
            Self::VersionMismatch => "version mismatch",
            Self::Closed => "closed",
            Self::Io => "i/o error",
            Self::Internal => "internal error",
        }
    }

    /// Whether an error of this kind is worth trying again, unless the error itself says more.
    const fn retryable_by_default(self) -> bool {
        matches!(self, Self::Unavailable | Self::Busy | Self::Timeout)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether an operation that failed may have taken effect all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Certainly not applied: nothing of it is stored.
    NotApplied,
    /// It may have been applied as a whole (a connection lost after COMMIT was sent).
    Unknown,
}

/// The error of every operation.
///
/// `Display` is one line, lower case, without the source and without secrets; `{:#}` adds the
/// chain of sources.
///
/// ```
/// use storage_core::{Error, ErrorKind, Outcome};
///
/// let error = Error::new(ErrorKind::InvalidArgument, "value is NaN")
///     .with_backend("memory")
///     .with_operation("write_batch")
///     .with_context("record", 3);
/// assert_eq!(error.to_string(), "memory write_batch: invalid argument: value is NaN (record=3)");
/// assert_eq!(error.outcome(), Outcome::NotApplied);
/// assert!(!error.is_retryable());
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    outcome: Outcome,
    retryable: bool,
    backend: Option<&'static str>,
    operation: Option<&'static str>,
    message: Cow<'static, str>,
    context: Vec<(&'static str, String)>,
    source: Option<Source>,
}

impl Error {
    /// Creates an error that says `NotApplied` and takes its retry advice from `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            outcome: Outcome::NotApplied,
            retryable: kind.retryable_by_default(),
            backend: None,
            operation: None,
            message: message.into(),
            context: Vec::new(),
            source: None,
        }))
    }

    /// Shorthand for an error of kind [`ErrorKind::InvalidArgument`].
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// Shorthand for an error of kind [`ErrorKind::Unsupported`] about `operation`.
    pub fn unsupported(operation: &'static str) -> Self {
        Self::new(ErrorKind::Unsupported, "this backend does not offer it")
            .with_operation(operation)
    }

    /// Sets the outcome; when unsure, say [`Outcome::Unknown`].
    #[must_use]
    pub fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.0.outcome = outcome;
        self
    }

    /// Overrides the retry advice of the kind.
    #[must_use]
    pub fn with_retryable(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    /// Names the backend, unless one is named already.
    #[must_use]
    pub fn with_backend(mut self, backend: &'static str) -> Self {
        self.0.backend.get_or_insert(backend);
        self
    }

    /// Names the operation, unless one is named already.
    #[must_use]
    pub fn with_operation(mut self, operation: &'static str) -> Self {
        self.0.operation.get_or_insert(operation);
        self
    }

    /// Adds a detail, shown as `key=value`. Never pass a secret.
    #[must_use]
    pub fn with_context(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.push((key, value.to_string()));
        self
    }

    /// Keeps the error that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the operation may have taken effect.
    pub fn outcome(&self) -> Outcome {
        self.0.outcome
    }

    /// Whether the same call may succeed later without anybody changing anything.
    ///
    /// It says nothing about safety: with [`Outcome::Unknown`] a repeated `write_batch` is safe
    /// because batches are idempotent, a repeated `prune_before` may report a smaller number.
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    /// The backend or layer that made the error, such as `sqlite`.
    pub fn backend(&self) -> Option<&'static str> {
        self.0.backend
    }

    /// The operation that failed, such as `write_batch`.
    pub fn operation(&self) -> Option<&'static str> {
        self.0.operation
    }

    /// The message alone, without kind, operation and details.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The value of the detail `key`, if there is one.
    pub fn context(&self, key: &str) -> Option<&str> {
        let found = self.0.context.iter().find(|(name, _)| *name == key)?;
        Some(&found.1)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        match (inner.backend, inner.operation) {
            (Some(backend), Some(operation)) => write!(f, "{backend} {operation}: ")?,
            (Some(only), None) | (None, Some(only)) => write!(f, "{only}: ")?,
            (None, None) => {}
        }
        write!(f, "{}: {}", inner.kind, inner.message)?;
        let mut separator = " (";
        for (key, value) in &inner.context {
            write!(f, "{separator}{key}={value}")?;
            separator = ", ";
        }
        if !inner.context.is_empty() {
            f.write_str(")")?;
        }
        if f.alternate() {
            let mut source = self.source();
            while let Some(cause) = source {
                write!(f, ": {cause}")?;
                source = cause.source();
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        f.debug_struct("Error")
            .field("kind", &inner.kind)
            .field("outcome", &inner.outcome)
            .field("retryable", &inner.retryable)
            .field("backend", &inner.backend)
            .field("operation", &inner.operation)
            .field("message", &inner.message)
            .field("context", &inner.context)
            .field("source", &inner.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let source = self.0.source.as_deref()?;
        Some(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_one_line_and_alternate_prints_the_chain() {
        let cause = std::io::Error::other("device gone");
        let error = Error::new(ErrorKind::Io, "cannot sync").with_source(cause);
        assert_eq!(error.to_string(), "i/o error: cannot sync");
        assert_eq!(format!("{error:#}"), "i/o error: cannot sync: device gone");
    }

    #[test]
    fn the_innermost_backend_and_operation_stay() {
        let error = Error::unsupported("scan").with_operation("copy").with_backend("memory");
        assert_eq!(error.operation(), Some("scan"));
        assert_eq!(error.with_backend("retry").backend(), Some("memory"));
    }

    #[test]
    fn only_passing_troubles_are_retryable_by_default() {
        assert!(Error::new(ErrorKind::Busy, "locked").is_retryable());
        assert!(!Error::new(ErrorKind::Corrupt, "bad block").is_retryable());
        assert!(Error::new(ErrorKind::Io, "reset").with_retryable(true).is_retryable());
    }
}
