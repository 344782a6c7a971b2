//! The contract for record history: what every backend promises, word for word.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::query::HistoryQuery;
use super::value::{RecordInfo, StoredValue};
use crate::error::Result;
use crate::metrics::Matcher;

/// JSON values by record name and time.
///
/// This documentation is the contract; the crate `conformance-tests` checks a backend against
/// every sentence of it. A history is a part of a [`Store`](crate::Store) and shares its location,
/// its handles and its end with the other parts.
///
/// # Model
/// A *record* is a name, compared byte by byte. It holds any number of values, each with a time,
/// also several of one time and equal ones: a history keeps what happened and replaces nothing. A
/// value that breaks a rule of [`StoredValue`] is refused. Every time that crosses the contract
/// is floored to whole milliseconds toward the past, also before 1970. A record exists while it
/// holds a value.
///
/// # Order
/// Values of one record are ordered by time, and those of one time by insertion: what a call
/// stored that had returned before another began comes before what that one stored; inside a
/// batch, by position. This order never changes.
///
/// # Sharing
/// Any number of tasks, handles and, where the location is a file or a server, processes may use
/// one location at once. What one stored, every other sees as soon as the call has returned.
///
/// # Cancellation
/// Dropping the future of a call leaves all of its effect or none (of a cleanup: a part), and the
/// handle usable. A batch that is still stored after its future was dropped is stored before any
/// later batch of the same handle.
///
/// # Errors
/// Every method may return, besides the kinds that it lists, `Unavailable`, `Busy`, `Timeout`,
/// `Corrupt`, `Io` and, after the store was closed, `Closed`. Reads say the outcome `NotApplied`.
#[async_trait]
pub trait RecordHistory: Send + Sync {
    /// Stores a batch of values, all or nothing.
    ///
    /// When it returns `Ok` the whole batch is visible to every reader and survives a crash of
    /// the process and a power cut, unless the backend was told to relax durability. When it
    /// returns an error with the outcome `NotApplied`, nothing of the batch is stored, now or
    /// later; with `Unknown`, all of it or nothing is: look before storing it again, because a
    /// batch that is stored twice is there twice. No call that reads ever sees a part of a batch.
    ///
    /// Values may come in any order of time and of any number of records. They come back as equal
    /// JSON; whole numbers and fractions stay apart, as do `null` and an absent field. An empty
    /// batch is `Ok` and does nothing. A batch may have any size.
    ///
    /// # Errors
    /// `InvalidArgument` if a value breaks a rule of [`StoredValue`], with the details `record`
    /// (index of the first bad one) and `field`; nothing is stored. `StorageFull` and
    /// `PermissionDenied` as the location has it; nothing is stored, reads go on.
    ///
    /// # Example
    /// ```
    /// use chrono::Utc;
    /// use storage_core::{HistoryQuery, InMemory, RecordHistory, StoredValue};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
    /// let history = InMemory::new().history();
    /// let of = |city, mae| StoredValue::new(format!("accuracy::{city}"), Utc::now(), mae);
    /// history.store_batch(&[of("vienna", 0.7.into()), of("graz", 0.4.into())]).await?;
    ///
    /// let newest = history.query(&HistoryQuery::parse("accuracy::*")?.newest(1)).await?;
    /// assert_eq!(newest[0].record_name, "accuracy::graz");
    /// # Ok(()) }
    /// ```
    async fn store_batch(&self, values: &[StoredValue]) -> Result<()>;

    /// Returns the values that `query` chooses: records by name, byte by byte, and of each the
    /// values in their order, oldest first.
    ///
    /// With a limit these are the last of the order above that lie in the range, still oldest
    /// first. A record that does not exist, an empty range and a limit of 0 give an empty answer.
    /// There is no limit but that of the query.
    ///
    /// # Errors
    /// `Corrupt` with the details `record_name` and `stored_at` if a stored value is no JSON: it
    /// is never left out, nor taken for `null`.
    ///
    /// # Cost
    /// For each record O(log n + k), n its values and k those returned, and O(r) for a pattern, r
    /// the records that there ever were. The answer is held in memory.
    async fn query(&self, query: &HistoryQuery) -> Result<Vec<StoredValue>>;

    /// Returns the records that `records` matches, by name, byte by byte, with the number and
    /// the extent of their values.
    ///
    /// # Cost
    /// O(n) for n values of these records.
    async fn records(&self, records: &Matcher) -> Result<Vec<RecordInfo>>;

    /// Removes every value whose time is before `older_than`, and returns how many.
    ///
    /// A value at the cutoff stays. The number is exact, the sum of two concurrent cleanups too.
    /// Values before the cutoff that are stored later are accepted and visible. A cleanup that
    /// fails or is dropped may have removed a part; repeating it removes the rest. The space is
    /// used again or given back, as the backend has it; other parts of the store are not touched.
    ///
    /// # Errors
    /// `PermissionDenied` if the store is read-only. The outcome is `Unknown` if a part may have
    /// been removed.
    async fn cleanup(&self, older_than: DateTime<Utc>) -> Result<u64>;

    /// The name of the backend, as errors and logs show it.
    fn name(&self) -> &'static str {
        std::any::type_name::<Self>()
    }
}

macro_rules! forward_to_inner {
    ($($wrapper:ty),+) => {$(
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<H: RecordHistory + ?Sized> RecordHistory for $wrapper {
            async fn store_batch(&self, values: &[StoredValue]) -> Result<()> {
                (**self).store_batch(values).await
            }
            async fn query(&self, query: &HistoryQuery) -> Result<Vec<StoredValue>> {
                (**self).query(query).await
            }
            async fn records(&self, records: &Matcher) -> Result<Vec<RecordInfo>> {
                (**self).records(records).await
            }
            async fn cleanup(&self, older_than: DateTime<Utc>) -> Result<u64> {
                (**self).cleanup(older_than).await
            }
            fn name(&self) -> &'static str {
                (**self).name()
            }
        }
    )+};
}

forward_to_inner!(Arc<H>, Box<H>, &H);
