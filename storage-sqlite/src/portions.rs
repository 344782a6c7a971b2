//! The rows of a question, many at a time.

use futures_util::{Stream, TryStreamExt};
use sqlx::sqlite::SqliteRow;
use storage_core::Result;

use crate::error::from_sqlx;

/// Enough that little is gained by more; a row takes about a kilobyte while it is held.
const ROWS: usize = 1024;

/// Hands rows on in portions.
///
/// Each value of a row is allocated by SQLite on the thread of the connection, and freed where the
/// row is dropped. Both take the one lock of SQLite's allocator: rows that are dropped while the
/// next ones are read cost three times what they do when they are gathered first.
pub(crate) fn portions<'a>(
    rows: impl Stream<Item = sqlx::Result<SqliteRow>> + 'a,
) -> impl Stream<Item = Result<Vec<SqliteRow>>> + 'a {
    rows.try_chunks(ROWS).map_err(|error| from_sqlx(error.1))
}
