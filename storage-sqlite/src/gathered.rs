//! The rows of a question, read ahead of whoever takes them apart.

use futures_util::{Stream, TryStreamExt, stream};
use sqlx::sqlite::SqliteRow;
use storage_core::Result;

use crate::error::from_sqlx;

/// Enough that little is gained by more; a row takes about a kilobyte while it is held.
const ROWS: usize = 1024;

/// Hands rows on one by one, after so many or all of them are there.
///
/// Each value of a row is allocated by SQLite on the thread of the connection, and freed where the
/// row is dropped. Both take the one lock of SQLite's allocator: rows that are dropped while the
/// next ones are read cost three times what they do when they are gathered first.
pub(crate) fn gathered<'a>(
    rows: impl Stream<Item = sqlx::Result<SqliteRow>> + 'a,
) -> impl Stream<Item = Result<SqliteRow>> + 'a {
    let portions = rows.try_chunks(ROWS).map_err(|error| from_sqlx(error.1));
    portions.map_ok(|portion| stream::iter(portion.into_iter().map(Ok))).try_flatten()
}
