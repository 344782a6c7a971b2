//! Comforts over [`RecordHistory`], for every backend: single values, typed answers, re-seeding.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::backend::RecordHistory;
use super::query::HistoryQuery;
use super::value::StoredValue;
use crate::error::{Error, Result};
use crate::metrics::time::before;
use crate::metrics::{Matcher, TimeRange};

/// A value of the type that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct ParsedRow<T> {
    /// Which record.
    pub record_name: String,
    /// When.
    pub stored_at: DateTime<Utc>,
    /// The value.
    pub value: T,
}

/// A stored value that is not of the type that was asked for.
#[derive(Debug)]
pub struct UnparsedRow {
    /// The value as it is stored.
    pub stored: StoredValue,
    /// Why it does not parse.
    pub reason: serde_json::Error,
}

/// A typed answer: what parsed, and what did not.
#[derive(Debug)]
#[must_use = "rows that did not parse are in here, too"]
pub struct ParsedRows<T> {
    /// Values of the type, in the order of the answer.
    pub rows: Vec<ParsedRow<T>>,
    /// Values that are of another type, in the order of the answer.
    pub unparsed: Vec<UnparsedRow>,
}

impl<T: DeserializeOwned> ParsedRows<T> {
    fn of(found: Vec<StoredValue>) -> Self {
        let (mut rows, mut unparsed) = (Vec::with_capacity(found.len()), Vec::new());
        for stored in found {
            match T::deserialize(&stored.value) {
                Ok(value) => {
                    let StoredValue { record_name, stored_at, .. } = stored;
                    rows.push(ParsedRow { record_name, stored_at, value });
                }
                Err(reason) => unparsed.push(UnparsedRow { stored, reason }),
            }
        }
        Self { rows, unparsed }
    }
}

impl<T> ParsedRows<T> {
    /// Returns the values alone, if all parsed.
    ///
    /// # Errors
    /// `Corrupt` with the details `record_name`, `stored_at` (of the first that did not) and
    /// `unparsed` (how many did not).
    pub fn into_values(self) -> Result<Vec<T>> {
        let count = self.unparsed.len();
        if let Some(UnparsedRow { stored, reason }) = self.unparsed.into_iter().next() {
            return Err(Error::new(
                crate::ErrorKind::Corrupt,
                "a stored value is not of the type asked for",
            )
            .with_context("record_name", stored.record_name)
            .with_context("stored_at", stored.stored_at.to_rfc3339())
            .with_context("unparsed", count)
            .with_source(reason));
        }
        Ok(self.rows.into_iter().map(|row| row.value).collect())
    }
}

/// What [`RecordHistoryExt::reseed`] did.
#[derive(Debug)]
#[must_use = "values that did not parse are in here"]
pub struct Reseeded {
    /// Values that were handed over.
    pub values: usize,
    /// Values that were not, because they are of another type.
    pub unparsed: Vec<UnparsedRow>,
}

/// Shorthands for every [`RecordHistory`].
///
/// ```
/// use chrono::Utc;
/// use serde::{Deserialize, Serialize};
/// use storage_core::{InMemory, RecordHistoryExt};
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize)]
/// struct Accuracy {
///     mae: f64,
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let history = InMemory::new().history();
/// history.store("accuracy::vienna", Utc::now(), &Accuracy { mae: 0.7 }).await?;
/// let by_city: Vec<Accuracy> = history.query_latest("accuracy::*", 1).await?.into_values()?;
/// assert_eq!(by_city, [Accuracy { mae: 0.7 }]);
/// # Ok(()) }
/// ```
#[async_trait]
pub trait RecordHistoryExt: RecordHistory {
    /// Stores one value. Concurrent callers share the cost of a commit; one caller with many
    /// values is many times faster with [`RecordHistory::store_batch`].
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field` if the value cannot be written as JSON; those of
    /// `store_batch`.
    async fn store<T: Serialize + Sync + ?Sized>(
        &self,
        record_name: &str,
        stored_at: DateTime<Utc>,
        value: &T,
    ) -> Result<()> {
        let value = serde_json::to_value(value).map_err(|error| {
            Error::invalid("the value cannot be written as JSON")
                .with_context("field", "value")
                .with_source(error)
        })?;
        self.store_batch(&[StoredValue::new(record_name, stored_at, value)]).await
    }

    /// Returns the newest `n` values of each record that `pattern` matches, as
    /// [`RecordHistory::query`] orders them.
    ///
    /// # Errors
    /// `InvalidArgument` by the rules of [`Matcher::parse`]; those of `query`.
    async fn query_latest<T: DeserializeOwned + Send>(
        &self,
        pattern: &str,
        n: usize,
    ) -> Result<ParsedRows<T>> {
        Ok(ParsedRows::of(self.query(&HistoryQuery::parse(pattern)?.newest(n)).await?))
    }

    /// Returns the values from `start`, included, to `end`, excluded, of each record that
    /// `pattern` matches, as [`RecordHistory::query`] orders them.
    ///
    /// # Errors
    /// `InvalidArgument` by the rules of [`Matcher::parse`], or if `start` is after `end`; those
    /// of `query`.
    async fn query_range<T: DeserializeOwned + Send>(
        &self,
        pattern: &str,
        start: DateTime<Utc>,
        end: DateTime<Utc>,
    ) -> Result<ParsedRows<T>> {
        let query = HistoryQuery::parse(pattern)?.range(TimeRange::new(start, end)?);
        Ok(ParsedRows::of(self.query(&query).await?))
    }

    /// Hands the newest `n` values of one record to `push`, oldest first: fills a buffer at start
    /// with what it held before.
    ///
    /// Do so before the buffer's receiver is persisted, or the values are stored once more.
    ///
    /// # Errors
    /// `InvalidArgument` if the name breaks the rules of a record's; those of `query`.
    async fn reseed<T: DeserializeOwned + Send>(
        &self,
        record_name: &str,
        n: usize,
        mut push: impl FnMut(T) + Send,
    ) -> Result<Reseeded> {
        let query = HistoryQuery::new(Matcher::exact(record_name)?).newest(n);
        let found = ParsedRows::<T>::of(self.query(&query).await?);
        let values = found.rows.len();
        found.rows.into_iter().for_each(|row| push(row.value));
        Ok(Reseeded { values, unparsed: found.unparsed })
    }

    /// Removes every value older than `age`, counted from now, and returns how many.
    ///
    /// # Errors
    /// Those of [`RecordHistory::cleanup`].
    async fn cleanup_older_than(&self, age: Duration) -> Result<u64> {
        self.cleanup(before(Utc::now(), age)).await
    }
}

impl<H: RecordHistory + ?Sized> RecordHistoryExt for H {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::time::from_ms;
    use crate::{ErrorKind, InMemory};
    use serde_json::json;

    #[tokio::test]
    async fn rows_of_another_type_are_reported() {
        let history = InMemory::new().history();
        for (ms, value) in [(1, json!(1)), (2, json!("two")), (3, json!(3))] {
            history.store("a", from_ms(ms), &value).await.unwrap();
        }
        let found = history.query_latest::<u32>("a", 9).await.unwrap();
        assert_eq!(found.rows.iter().map(|row| row.value).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(found.unparsed[0].stored.value, json!("two"));
        let error = found.into_values().unwrap_err();
        assert_eq!((error.kind(), error.context("unparsed")), (ErrorKind::Corrupt, Some("1")));
        let ranged = history.query_range::<u32>("a", from_ms(1), from_ms(2)).await.unwrap();
        assert_eq!(ranged.into_values().unwrap(), [1]);
    }

    #[tokio::test]
    async fn a_buffer_is_seeded_oldest_first() {
        let history = InMemory::new().history();
        for ms in 0..10 {
            history.store("a*", from_ms(ms), &ms).await.unwrap();
        }
        history.store("ab", from_ms(20), &20).await.unwrap();
        let mut buffer = Vec::new();
        let done = history.reseed("a*", 3, |value: i64| buffer.push(value)).await.unwrap();
        assert_eq!((done.values, buffer), (3, vec![7, 8, 9]));
    }
}
