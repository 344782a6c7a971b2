//! Driver error to contract error: one table by SQLite's result code.
//!
//! SQLite reports extended codes; the low byte is the class. Whether a failed write may have been
//! applied is decided by the caller, who knows which statement failed: here everything says
//! `NotApplied`, except a failed sync, after which nobody knows.

use storage_core::{Error, ErrorKind, Outcome};

const PERM: i32 = 3;
const PROTOCOL: i32 = 15;
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const NOMEM: i32 = 7;
const READONLY: i32 = 8;
const IOERR: i32 = 10;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;
const TOOBIG: i32 = 18;
const AUTH: i32 = 23;
const NOTADB: i32 = 26;

/// Extended I/O errors after which it is unknown what is on disk: failed syncs.
const SYNC_ERRORS: [i32; 2] = [IOERR | (4 << 8), IOERR | (5 << 8)];

/// Returns the contract's error for an error of the driver.
pub(crate) fn from_sqlx(error: sqlx::Error) -> Error {
    let code = code_of(&error);
    let (kind, message) = match (&error, code.map(|code| code & 0xff)) {
        (_, Some(class)) => from_class(class),
        (sqlx::Error::PoolTimedOut, _) => {
            (ErrorKind::Busy, "every reader was busy for longer than the timeout")
        }
        (sqlx::Error::PoolClosed, _) => (ErrorKind::Closed, "the store was closed"),
        (sqlx::Error::Io(_), _) => (ErrorKind::Io, "the file system refused"),
        (sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_), _) => {
            (ErrorKind::Corrupt, "a row has a value of another type")
        }
        _ => (ErrorKind::Internal, "the driver failed"),
    };
    let outcome = match code {
        Some(code) if SYNC_ERRORS.contains(&code) => Outcome::Unknown,
        _ => Outcome::NotApplied,
    };
    let mapped = Error::new(kind, message).with_outcome(outcome);
    match code {
        Some(code) => mapped.with_context("sqlite_code", code).with_source(error),
        None => mapped.with_source(error),
    }
}

/// Returns the error of a statement that should have committed: whatever SQLite does not refuse
/// outright may be in the log already when it fails.
pub(crate) fn of_commit(error: Error) -> Error {
    let refused = matches!(
        error.kind(),
        ErrorKind::Busy
            | ErrorKind::StorageFull
            | ErrorKind::PermissionDenied
            | ErrorKind::InvalidArgument
            | ErrorKind::Conflict
            | ErrorKind::Closed
    );
    if refused { error } else { error.with_outcome(Outcome::Unknown) }
}

/// Whether a sync failed, after which nobody knows what is on disk.
pub(crate) fn is_failed_sync(error: &Error) -> bool {
    let code = error.context("sqlite_code").and_then(|code| code.parse().ok());
    code.is_some_and(|code| SYNC_ERRORS.contains(&code))
}

/// Returns SQLite's extended result code, if the error comes from SQLite.
fn code_of(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

fn from_class(class: i32) -> (ErrorKind, &'static str) {
    match class {
        BUSY | LOCKED | PROTOCOL => (ErrorKind::Busy, "another process holds the database"),
        FULL => (ErrorKind::StorageFull, "no space left for the database"),
        READONLY | PERM | AUTH => (ErrorKind::PermissionDenied, "the database may not be written"),
        CORRUPT => (ErrorKind::Corrupt, "the database file is damaged"),
        NOTADB => (ErrorKind::Corrupt, "the file is no SQLite database"),
        CANTOPEN => (ErrorKind::Unavailable, "the database cannot be opened"),
        IOERR => (ErrorKind::Io, "reading or writing the database failed"),
        NOMEM => (ErrorKind::Unavailable, "out of memory"),
        TOOBIG => (ErrorKind::InvalidArgument, "a blob is larger than SQLite allows"),
        _ => (ErrorKind::Internal, "SQLite refused a statement"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_a_kind() {
        let table = [
            (5, ErrorKind::Busy),
            (6, ErrorKind::Busy),
            (8, ErrorKind::PermissionDenied),
            (10, ErrorKind::Io),
            (11, ErrorKind::Corrupt),
            (13, ErrorKind::StorageFull),
            (14, ErrorKind::Unavailable),
            (26, ErrorKind::Corrupt),
            (1, ErrorKind::Internal),
        ];
        for (class, kind) in table {
            assert_eq!(from_class(class).0, kind, "class {class}");
        }
    }

    #[test]
    fn extended_codes_fall_into_their_class() {
        for extended in [5, 261, 517, 773] {
            assert_eq!(from_class(extended & 0xff).0, ErrorKind::Busy, "code {extended}");
        }
    }
}
