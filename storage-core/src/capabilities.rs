//! What may differ between backends, as data.
//!
//! Few fields on purpose: everything else is the contract and the same everywhere. The default
//! is the least capable backend, so that a new field never claims anything for an old backend.

/// States which optional parts of the contract a backend offers.
///
/// A wrapper reports the capabilities of what it wraps.
///
/// ```
/// use storage_core::{Capabilities, InMemory, StorageBackend};
///
/// assert!(InMemory::new().capabilities().series);
/// assert!(!Capabilities::default().series);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// The backend can list its series, and with that answer everything that takes a
    /// [`SeriesFilter`](crate::SeriesFilter): `series`, `latest`, `windows` and `scan`. Without
    /// it these calls return [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported).
    pub series: bool,
    /// The backend can verify its own files with `check`. Without it the call returns
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported).
    pub check: bool,
    /// The backend has something to close: after `close` the handle refuses every call with
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed). Without it `close` does nothing and the
    /// handle goes on.
    pub close: bool,
}
