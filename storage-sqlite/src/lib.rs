//! SQLite backend.
use storage_core::{Result, Error};
/// Placeholder while the engine is written.
pub struct SqliteBackend;
