//! Our backend, measured as its rivals are.

use std::path::Path;

use storage_benches::queries::{self, Draw, Question, Row};
use storage_benches::report::OURS;
use storage_core::{MetricRecord, StorageBackend};
use storage_sqlite::{SqliteBackend, SqliteOptions, Synchronous};
use tokio::runtime::Runtime;

use crate::engine::{Engine, Kind, Mode, Opened, Result};

pub(crate) const KIND: Kind = Kind { name: OURS, open, version: || None };

struct Ours {
    runtime: Runtime,
    store: SqliteBackend,
}

fn open(folder: &Path, mode: Mode) -> Opened {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let options = SqliteOptions::new(folder.join("ours.db")).synchronous(match mode {
        Mode::Durable => Synchronous::Full,
        Mode::Periodic => Synchronous::Normal,
    });
    let store = runtime.block_on(SqliteBackend::open(options))?;
    Ok(Ok(Box::new(Ours { runtime, store })))
}

impl Engine for Ours {
    fn write(&mut self, records: &[MetricRecord]) -> Result<()> {
        Ok(self.runtime.block_on(self.store.write_batch(records))?)
    }

    fn settle(&mut self) -> Result<()> {
        Ok(self.runtime.block_on(self.store.compact())?)
    }

    fn ask(&mut self, question: Question, draw: &Draw) -> Result<Option<Vec<Row>>> {
        Ok(Some(self.runtime.block_on(queries::ask(&self.store, question, draw))?))
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        // Nothing that was acknowledged depends on it.
        let _ = self.runtime.block_on(self.store.close());
    }
}
