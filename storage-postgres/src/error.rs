//! Driver error to contract error: one table by SQLSTATE.
//!
//! Everything says `NotApplied` here. Whether a failed write may have been applied is decided by
//! who knows how far it had got: see [`of_commit`].

use std::error::Error as _;

use storage_core::{Error, ErrorKind, Outcome};
use tokio_postgres::error::Severity;

/// What the whole server ends with.
const PANIC: &str = "PANIC";

/// SQLSTATEs that the writer tells apart.
pub(crate) const UNIQUE_VIOLATION: &str = "23505";
pub(crate) const NO_PARTITION: &str = "23514";
pub(crate) const OVERFLOW: &str = "22003";
pub(crate) const READ_ONLY: &str = "25006";
pub(crate) const NO_TABLE: &str = "42P01";

/// Returns the contract's error for an error of the driver.
pub(crate) fn from_pg(error: tokio_postgres::Error) -> Error {
    let Some(db) = error.as_db_error() else {
        return without_code(error);
    };
    let code = db.code().code().to_owned();
    let (kind, message) = from_code(&code);
    let severity = db.parsed_severity();
    let found = Error::new(kind, message).with_context("sqlstate", code).with_source(error);
    match severity {
        Some(Severity::Panic) => found.with_context("severity", PANIC),
        _ => found,
    }
}

/// Returns the error of a commit that was sent: unless the server says that it refused, it may
/// have been applied. A server that panics as it commits finds out when it starts again.
pub(crate) fn of_commit(error: Error) -> Error {
    match sqlstate(&error) {
        Some(code) if !is_goodbye(code) && error.context("severity") != Some(PANIC) => error,
        _ => error.with_outcome(Outcome::Unknown),
    }
}

/// The SQLSTATE that an error carries.
pub(crate) fn sqlstate(error: &Error) -> Option<&str> {
    error.context("sqlstate")
}

/// Whether another connection is needed: this one is gone, about to go, or leads to a server that
/// takes no writes, while another one may do so by now.
pub(crate) fn is_disconnect(error: &Error) -> bool {
    match sqlstate(error) {
        Some(code) => is_goodbye(code) || code == READ_ONLY,
        None => error.kind() == ErrorKind::Unavailable,
    }
}

/// Whether the same transaction may succeed at once: it was chosen as the victim of a deadlock.
pub(crate) fn is_victim(error: &Error) -> bool {
    matches!(sqlstate(error), Some("40P01" | "40001"))
}

/// What a server says as it ends a connection.
fn is_goodbye(code: &str) -> bool {
    code.starts_with("08")
        || matches!(code, "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "25P04")
}

fn from_code(code: &str) -> (ErrorKind, &'static str) {
    match code {
        "57014" => (ErrorKind::Timeout, "the statement took longer than its timeout"),
        "25P03" | "57P05" => (ErrorKind::Unavailable, "the server ended an idle connection"),
        "25P04" => (ErrorKind::Unavailable, "the server ended a transaction that took too long"),
        "57P01" | "57P02" => (ErrorKind::Unavailable, "the server ended the connection"),
        "57P03" => (ErrorKind::Unavailable, "the server does not take connections yet"),
        "57P04" | "3D000" => (ErrorKind::NotFound, "the database does not exist"),
        "55P03" => (ErrorKind::Busy, "somebody else holds a lock for longer than the timeout"),
        "40001" | "40P01" => (ErrorKind::Busy, "another transaction was in the way"),
        "53300" => (ErrorKind::Busy, "the server has no connection left"),
        "53100" => (ErrorKind::StorageFull, "no space left for the database"),
        READ_ONLY => (ErrorKind::Unavailable, "the server takes no writes at the moment"),
        "42501" => (ErrorKind::PermissionDenied, "the role lacks a privilege"),
        "58030" => (ErrorKind::Io, "the server cannot read or write a file"),
        "3F000" | NO_TABLE => (ErrorKind::NotFound, "the tables of the store are gone"),
        "XX001" | "XX002" => (ErrorKind::Corrupt, "the server found damaged data"),
        _ => from_class(code),
    }
}

fn from_class(code: &str) -> (ErrorKind, &'static str) {
    match code.get(..2).unwrap_or_default() {
        "08" => (ErrorKind::Unavailable, "the connection failed"),
        "28" => (ErrorKind::PermissionDenied, "the server refuses the role or its password"),
        "53" => (ErrorKind::Unavailable, "the server lacks resources"),
        "54" => (ErrorKind::InvalidArgument, "more than the server can take"),
        "58" => (ErrorKind::Io, "the server's system failed"),
        _ => (ErrorKind::Internal, "the server refused a statement"),
    }
}

/// What the driver itself says: trouble with the connection, with TLS or with a value.
fn without_code(error: tokio_postgres::Error) -> Error {
    let io = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    let is_tls = io
        .and_then(std::io::Error::get_ref)
        .is_some_and(|inner| inner.downcast_ref::<rustls::Error>().is_some());
    let (kind, message) = if is_tls {
        (ErrorKind::Config, "the server's certificate or TLS is not accepted")
    } else if io.is_some_and(is_other_role) {
        (ErrorKind::Unavailable, "no host is what target_session_attrs asks for")
    } else if io.is_some() || error.is_closed() {
        (ErrorKind::Unavailable, "the connection failed")
    } else {
        from_words(&error)
    };
    Error::new(kind, message).with_source(error)
}

/// What the driver makes up where a host is reached, but is a standby and should be none, or the
/// other way round. What the system says has a number.
fn is_other_role(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::PermissionDenied && error.raw_os_error().is_none()
}

/// The driver keeps its own kinds to itself; what remains is told apart by its first words.
fn from_words(error: &tokio_postgres::Error) -> (ErrorKind, &'static str) {
    let text = error.to_string();
    let starts = |start| text.starts_with(start);
    if starts("error connecting") || starts("timeout") {
        (ErrorKind::Unavailable, "the server cannot be reached")
    } else if starts("error performing TLS") {
        (ErrorKind::Config, "the server does not offer TLS")
    } else if starts("authentication error") || starts("invalid configuration") {
        (ErrorKind::Config, "the URL lacks what the server asks for")
    } else if starts("error deserializing") {
        (ErrorKind::Corrupt, "a row has a value that no sample can have")
    } else {
        (ErrorKind::Internal, "the driver failed")
    }
}

/// Returns the error of asking the pool for a connection.
pub(crate) fn from_pool(error: deadpool_postgres::PoolError) -> Error {
    use deadpool_postgres::{PoolError, TimeoutType};
    match error {
        PoolError::Backend(error) => from_pg(error),
        PoolError::Timeout(TimeoutType::Wait) => {
            Error::new(ErrorKind::Busy, "every connection was busy for longer than the timeout")
        }
        PoolError::Timeout(_) => {
            Error::new(ErrorKind::Unavailable, "the server cannot be reached in time")
        }
        PoolError::Closed => Error::new(ErrorKind::Closed, "the store was closed"),
        other => Error::new(ErrorKind::Internal, "the pool failed").with_source(other),
    }
}

/// Returns the same error for one more caller; the source goes with its text alone.
pub(crate) fn copy_of(error: &Error) -> Error {
    let mut copy = Error::new(error.kind(), error.message().to_owned())
        .with_outcome(error.outcome())
        .with_retryable(error.is_retryable());
    if let Some(code) = sqlstate(error) {
        copy = copy.with_context("sqlstate", code);
    }
    match error.source() {
        Some(source) => copy.with_source(source.to_string()),
        None => copy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_kind() {
        let table = [
            ("08006", ErrorKind::Unavailable),
            ("25006", ErrorKind::Unavailable),
            ("28P01", ErrorKind::PermissionDenied),
            ("3D000", ErrorKind::NotFound),
            ("3F000", ErrorKind::NotFound),
            ("40001", ErrorKind::Busy),
            ("40P01", ErrorKind::Busy),
            ("42501", ErrorKind::PermissionDenied),
            ("42P01", ErrorKind::NotFound),
            ("53100", ErrorKind::StorageFull),
            ("53200", ErrorKind::Unavailable),
            ("53300", ErrorKind::Busy),
            ("54000", ErrorKind::InvalidArgument),
            ("55P03", ErrorKind::Busy),
            ("57014", ErrorKind::Timeout),
            ("57P01", ErrorKind::Unavailable),
            ("57P02", ErrorKind::Unavailable),
            ("57P03", ErrorKind::Unavailable),
            ("57P05", ErrorKind::Unavailable),
            ("25P03", ErrorKind::Unavailable),
            ("58030", ErrorKind::Io),
            ("58P01", ErrorKind::Io),
            ("XX001", ErrorKind::Corrupt),
            ("XX000", ErrorKind::Internal),
            ("42601", ErrorKind::Internal),
            ("", ErrorKind::Internal),
        ];
        for (code, kind) in table {
            assert_eq!(from_code(code).0, kind, "{code}");
        }
    }

    #[test]
    fn a_commit_is_refused_or_nobody_knows() {
        let error = |code: &str| Error::new(from_code(code).0, "x").with_context("sqlstate", code);
        for (code, outcome) in [
            ("40001", Outcome::NotApplied),
            ("53100", Outcome::NotApplied),
            ("25006", Outcome::NotApplied),
            ("57P01", Outcome::Unknown),
            ("57P02", Outcome::Unknown),
            ("25P04", Outcome::Unknown),
            ("08006", Outcome::Unknown),
        ] {
            assert_eq!(of_commit(error(code)).outcome(), outcome, "{code}");
        }
        let panic = error("53100").with_context("severity", PANIC);
        assert_eq!(of_commit(panic).outcome(), Outcome::Unknown);
        let lost = Error::new(ErrorKind::Unavailable, "the connection failed");
        assert!(is_disconnect(&lost));
        assert_eq!(of_commit(lost).outcome(), Outcome::Unknown);
        assert!(is_disconnect(&error("57P01")) && !is_disconnect(&error("53200")));
        assert!(is_disconnect(&error("25006")));
    }

    #[test]
    fn copies_say_the_same() {
        let error = Error::new(ErrorKind::Busy, "held")
            .with_context("sqlstate", "55P03")
            .with_outcome(Outcome::Unknown)
            .with_source("why");
        let copy = copy_of(&error);
        assert_eq!((copy.kind(), copy.outcome()), (ErrorKind::Busy, Outcome::Unknown));
        assert_eq!((sqlstate(&copy), copy.is_retryable()), (Some("55P03"), true));
        assert_eq!(copy.source().unwrap().to_string(), "why");
    }
}
