//! Record history on PostgreSQL: each method checks, delegates to `write`, `read` or `cleanup`, and
//! names itself in the error.

mod cleanup;
mod read;
pub(crate) mod write;

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use storage_core::history::value::validate_values;
use storage_core::metrics::time::floor_ms;
use storage_core::{HistoryQuery, Matcher, RecordHistory, RecordInfo, Result, StoredValue};

use crate::backend::named;
use crate::maintenance::upkeep;
use crate::schema::HISTORY_VERSION;
use crate::store::Store;
use crate::write::Committer;

/// The record history in a schema of a PostgreSQL database; see
/// [`PostgresBackend::history`](crate::PostgresBackend::history).
#[derive(Debug, Clone)]
pub struct PostgresHistory {
    store: Arc<Store>,
    committer: Committer,
}

impl PostgresHistory {
    pub(crate) fn new(store: Arc<Store>, committer: Committer) -> Self {
        Self { store, committer }
    }
}

impl Store {
    /// # Errors
    /// `Closed` after `close`; `PermissionDenied` where an older store could not be migrated.
    fn check_history(&self) -> Result<()> {
        self.check_part(HISTORY_VERSION)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl RecordHistory for PostgresHistory {
    async fn store_batch(&self, values: &[StoredValue]) -> Result<()> {
        let store = async {
            self.store.check_history()?;
            validate_values(values)?;
            match values.is_empty() {
                true => Ok(()),
                false => self.committer.write_values(write::rows_of(values)?).await,
            }
        };
        store.await.map_err(|error| named(error, "store_batch"))
    }

    async fn query(&self, query: &HistoryQuery) -> Result<Vec<StoredValue>> {
        let found = async {
            self.store.check_history()?;
            match query.is_empty() {
                true => Ok(Vec::new()),
                false => self.store.values(query).await,
            }
        };
        found.await.map_err(|error| named(error, "query"))
    }

    async fn records(&self, records: &Matcher) -> Result<Vec<RecordInfo>> {
        let found = async {
            self.store.check_history()?;
            self.store.records(records).await
        };
        found.await.map_err(|error| named(error, "records"))
    }

    async fn cleanup(&self, older_than: DateTime<Utc>) -> Result<u64> {
        upkeep(&self.store, "cleanup", move |store, caller| async move {
            store.check_history()?;
            cleanup::run(&store, floor_ms(older_than), caller).await
        })
        .await
    }

    fn name(&self) -> &'static str {
        "postgres"
    }
}
