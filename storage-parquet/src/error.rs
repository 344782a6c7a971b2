//! Errors of files, of the Parquet decoder and of object stores as errors of the contract: one
//! table each.
//!
//! Whether a failed write may have been applied is decided by `log`, which knows what was under way:
//! here everything says `NotApplied`.

use std::io;

use parquet::errors::ParquetError;
use storage_core::{Error, ErrorKind};

/// The detail that names the file in an error.
pub(crate) const FILE: &str = "file";

/// The detail that marks a failed write-out to disk, after which nobody knows what is on it.
const SYNC: &str = "sync";

/// Returns the contract's error for an error of the file system about `path`.
pub(crate) fn from_io(error: io::Error, path: &str) -> Error {
    let (kind, message) = match error.kind() {
        io::ErrorKind::NotFound => (ErrorKind::NotFound, "the file is not there"),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            (ErrorKind::PermissionDenied, "the file system does not permit it")
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            (ErrorKind::StorageFull, "no space left")
        }
        io::ErrorKind::UnexpectedEof => (ErrorKind::Corrupt, "the file is shorter than it says"),
        io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
            (ErrorKind::Config, "the path is not what it should be, a file or a directory")
        }
        io::ErrorKind::InvalidData => (ErrorKind::Corrupt, "the bytes of the file are damaged"),
        io::ErrorKind::TimedOut => (ErrorKind::Timeout, "the file system does not answer"),
        _ => (ErrorKind::Io, "the file system failed"),
    };
    Error::new(kind, message).with_context(FILE, path).with_source(error)
}

/// Returns the error of a sync that failed.
pub(crate) fn from_sync(error: io::Error, path: &str) -> Error {
    let kind = from_io(io::Error::from(error.kind()), path).kind();
    let kind = if kind == ErrorKind::StorageFull { kind } else { ErrorKind::Io };
    Error::new(kind, "a sync to disk failed")
        .with_context(FILE, path)
        .with_context(SYNC, "failed")
        .with_source(error)
}

/// Whether the error is that of a failed sync.
pub(crate) fn is_failed_sync(error: &Error) -> bool {
    error.context(SYNC).is_some() && error.kind() == ErrorKind::Io
}

/// Returns the contract's error for an error of the Parquet library about the file at `path`.
pub(crate) fn from_parquet(error: ParquetError, path: &str) -> Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<io::Error>() {
            Ok(error) => from_carried(*error, path),
            Err(inner) => {
                corrupt(path, "the file cannot be decoded").with_source(inner.to_string())
            }
        },
        error => corrupt(path, "the file cannot be decoded").with_source(error),
    }
}

/// What a [`crate::files::Source`] failed with, carried through a reader as an `io::Error`.
fn from_carried(error: io::Error, path: &str) -> Error {
    if error.get_ref().is_some_and(|inner| inner.is::<Error>()) {
        let inner = error.into_inner().and_then(|inner| inner.downcast::<Error>().ok());
        return inner.map_or_else(|| corrupt(path, "the file cannot be read"), |inner| *inner);
    }
    from_io(error, path)
}

/// The error for bytes of the file at `path` that are not as they were written.
pub(crate) fn corrupt(path: &str, problem: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Corrupt, problem).with_context(FILE, path)
}

/// Whether the error says that a file is gone: usually because a compaction replaced it.
pub(crate) fn is_gone(error: &Error) -> bool {
    error.kind() == ErrorKind::NotFound && error.context(FILE).is_some()
}

/// The error for a file that the manifest names and that is not there, whatever the state.
pub(crate) fn missing(gone: &Error) -> Error {
    corrupt(gone.context(FILE).unwrap_or_default(), "a file of the manifest is missing")
}

/// Returns the same error for one more caller; the source goes with its text alone.
pub(crate) fn copy_of(error: &Error) -> Error {
    let mut copy = Error::new(error.kind(), error.message().to_owned())
        .with_outcome(error.outcome())
        .with_retryable(error.is_retryable());
    if let Some(file) = error.context(FILE) {
        copy = copy.with_context(FILE, file);
    }
    match std::error::Error::source(error) {
        Some(source) => copy.with_source(source.to_string()),
        None => copy,
    }
}

#[cfg(feature = "cloud")]
pub(crate) use cloud::{from_object_store, is_maybe_applied};

#[cfg(feature = "cloud")]
mod cloud {
    use object_store::Error as StoreError;
    use storage_core::{Error, ErrorKind};

    use super::FILE;

    /// What the services say when there is no such bucket, for which `object_store` has no error.
    const NO_BUCKET: [&str; 3] =
        ["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"];

    /// Returns the contract's error for an error of the object store about `path`.
    pub(crate) fn from_object_store(error: StoreError, path: &str) -> Error {
        let text = error.to_string();
        if NO_BUCKET.iter().any(|sign| text.contains(sign)) {
            // Without naming the file: it is not the file that is gone.
            return Error::new(ErrorKind::NotFound, "there is no such bucket or container")
                .with_source(error);
        }
        let (kind, message) = match &error {
            StoreError::NotFound { .. } => (ErrorKind::NotFound, "the object is not there"),
            StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => {
                (ErrorKind::PermissionDenied, "the object store refuses access")
            }
            StoreError::NotSupported { .. } | StoreError::NotImplemented { .. } => {
                (ErrorKind::Unsupported, "the object store cannot do it")
            }
            StoreError::UnknownConfigurationKey { .. } | StoreError::InvalidPath { .. } => {
                (ErrorKind::Config, "the object store is configured wrongly")
            }
            StoreError::AlreadyExists { .. } | StoreError::Precondition { .. } => {
                (ErrorKind::Busy, "another process was faster")
            }
            _ => (ErrorKind::Unavailable, "the object store cannot be reached"),
        };
        Error::new(kind, message).with_context(FILE, path).with_source(error)
    }

    /// Whether a write that failed so may have been applied, or may still be.
    pub(crate) fn is_maybe_applied(error: &Error) -> bool {
        error.kind() == ErrorKind::Unavailable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_s_errors() {
        for (io, kind) in [
            (io::ErrorKind::NotFound, ErrorKind::NotFound),
            (io::ErrorKind::PermissionDenied, ErrorKind::PermissionDenied),
            (io::ErrorKind::ReadOnlyFilesystem, ErrorKind::PermissionDenied),
            (io::ErrorKind::StorageFull, ErrorKind::StorageFull),
            (io::ErrorKind::QuotaExceeded, ErrorKind::StorageFull),
            (io::ErrorKind::FileTooLarge, ErrorKind::StorageFull),
            (io::ErrorKind::UnexpectedEof, ErrorKind::Corrupt),
            (io::ErrorKind::InvalidData, ErrorKind::Corrupt),
            (io::ErrorKind::NotADirectory, ErrorKind::Config),
            (io::ErrorKind::IsADirectory, ErrorKind::Config),
            (io::ErrorKind::TimedOut, ErrorKind::Timeout),
            (io::ErrorKind::Other, ErrorKind::Io),
        ] {
            let error = from_io(io.into(), "a");
            assert_eq!((error.kind(), error.context(FILE)), (kind, Some("a")), "{io:?}");
            assert_eq!(error.outcome(), storage_core::Outcome::NotApplied);
        }
    }

    #[test]
    fn a_failed_sync_is_told_from_a_full_disk() {
        let failed = from_sync(io::ErrorKind::Other.into(), "a");
        assert_eq!((failed.kind(), is_failed_sync(&failed)), (ErrorKind::Io, true));
        let full = from_sync(io::ErrorKind::StorageFull.into(), "a");
        assert_eq!((full.kind(), is_failed_sync(&full)), (ErrorKind::StorageFull, false));
    }

    #[test]
    fn what_a_source_says_survives_the_decoder() {
        let inner = Error::new(ErrorKind::Unavailable, "gone for now");
        let carried = ParquetError::External(Box::new(io::Error::other(inner)));
        assert_eq!(from_parquet(carried, "a").kind(), ErrorKind::Unavailable);
        let decoder = ParquetError::General("no".to_owned());
        assert_eq!(from_parquet(decoder, "a").kind(), ErrorKind::Corrupt);
        let missing = ParquetError::External(Box::new(io::Error::from(io::ErrorKind::NotFound)));
        assert!(is_gone(&from_parquet(missing, "a")));
    }

    #[cfg(feature = "cloud")]
    #[test]
    fn the_object_store_s_errors() {
        use object_store::Error as StoreError;
        let source = || Box::new(io::Error::other("x"));
        let path = || "a".to_owned();
        for (error, kind) in [
            (StoreError::NotFound { path: path(), source: source() }, ErrorKind::NotFound),
            (
                StoreError::PermissionDenied { path: path(), source: source() },
                ErrorKind::PermissionDenied,
            ),
            (
                StoreError::Unauthenticated { path: path(), source: source() },
                ErrorKind::PermissionDenied,
            ),
            (StoreError::NotSupported { source: source() }, ErrorKind::Unsupported),
            (StoreError::AlreadyExists { path: path(), source: source() }, ErrorKind::Busy),
            (StoreError::Precondition { path: path(), source: source() }, ErrorKind::Busy),
            (StoreError::Generic { store: "S3", source: source() }, ErrorKind::Unavailable),
            (StoreError::UnknownConfigurationKey { key: path(), store: "S3" }, ErrorKind::Config),
        ] {
            let mapped = from_object_store(error, "a");
            assert_eq!(mapped.kind(), kind);
            assert_eq!(is_maybe_applied(&mapped), kind == ErrorKind::Unavailable);
        }
        let source = Box::new(io::Error::other("404: <Code>NoSuchBucket</Code>"));
        let mapped = from_object_store(StoreError::Generic { store: "S3", source }, "a");
        assert_eq!((mapped.kind(), is_gone(&mapped)), (ErrorKind::NotFound, false));
    }
}
