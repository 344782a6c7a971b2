//! Record history on SQLite: each method checks, delegates to `write`, `read` or `cleanup`, and names
//! itself in the error.
//!
//! Plain rows: a value is stored and read whole, so there is nothing to gain from blocks.

mod cleanup;
pub(crate) mod names;
mod read;
pub(crate) mod write;

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use storage_core::history::value::validate_values;
use storage_core::metrics::time::floor_ms;
use storage_core::{HistoryQuery, Matcher, RecordHistory, RecordInfo, Result, StoredValue};

use crate::backend::named;
use crate::commit::{Committer, Work};
use crate::maintenance::upkeep;
use crate::store::Store;

/// The record history in a SQLite file; see
/// [`SqliteBackend::history`](crate::SqliteBackend::history).
///
/// ```
/// use storage_core::RecordHistoryExt;
/// use storage_sqlite::{SqliteBackend, SqliteOptions};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("store.db");
/// let store = SqliteBackend::open(SqliteOptions::new(&path)).await?;
/// let history = store.history();
/// history.store("accuracy::vienna", chrono::Utc::now(), &0.7).await?;
/// let newest = history.query_latest::<f64>("accuracy::*", 1).await?.into_values()?;
/// assert_eq!(newest, [0.7]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct SqliteHistory {
    store: Arc<Store>,
    committer: Committer,
}

impl SqliteHistory {
    pub(crate) fn new(store: Arc<Store>, committer: Committer) -> Self {
        Self { store, committer }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl RecordHistory for SqliteHistory {
    async fn store_batch(&self, values: &[StoredValue]) -> Result<()> {
        let store = async {
            self.store.check_open()?;
            validate_values(values)?;
            self.store.check_writable()?;
            if values.is_empty() {
                return Ok(());
            }
            let rows = write::rows_of(values)?;
            let weight = rows.iter().map(write::ValueRow::weight).sum();
            self.committer.commit(Work::Values(rows), weight).await
        };
        store.await.map_err(|error| named(error, "store_batch"))
    }

    async fn query(&self, query: &HistoryQuery) -> Result<Vec<StoredValue>> {
        let found = async {
            self.store.check_open()?;
            match query.is_empty() {
                true => Ok(Vec::new()),
                false => self.store.values(query).await,
            }
        };
        found.await.map_err(|error| named(error, "query"))
    }

    async fn records(&self, records: &Matcher) -> Result<Vec<RecordInfo>> {
        let found = async {
            self.store.check_open()?;
            self.store.records(records).await
        };
        found.await.map_err(|error| named(error, "records"))
    }

    async fn cleanup(&self, older_than: DateTime<Utc>) -> Result<u64> {
        upkeep(&self.store, "cleanup", move |store, caller| async move {
            let removed = store.clean_up(floor_ms(older_than), caller).await?;
            if removed > 0
                && let Err(error) = store.give_space_back().await
            {
                // The values are gone; space that cannot be given back now is used again.
                tracing::warn!(target: "storage", %error, "cannot give space back");
            }
            Ok(removed)
        })
        .await
    }

    fn name(&self) -> &'static str {
        "sqlite"
    }
}
