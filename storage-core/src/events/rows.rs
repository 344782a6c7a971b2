//! Rows of projections: what a step changes, and what a projection sees while it makes one.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::backend::EventStore;
use super::value::LogExtent;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{check_json, check_name};
use crate::metrics::Matcher;

/// The largest row, in bytes of compact JSON.
pub const ROW_BYTES_MAX: usize = 1024 * 1024;

/// A row of a projection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Which, within its table.
    pub key: String,
    /// What it holds.
    pub value: Value,
}

impl Row {
    /// Reads the row as a value of the program.
    ///
    /// # Errors
    /// `Corrupt` with the detail `key` if it is of another type.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        parse(&self.key, &self.value)
    }
}

fn parse<T: DeserializeOwned>(key: &str, value: &Value) -> Result<T> {
    T::deserialize(value).map_err(|error| {
        Error::new(ErrorKind::Corrupt, "a row is not of the type asked for")
            .with_context("key", key)
            .with_source(error)
    })
}

/// A change of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct RowChange {
    /// In which table: 1 to 512 bytes, no NUL.
    pub table: String,
    /// Which row: 1 to 512 bytes, no NUL.
    pub key: String,
    /// What it holds from now on: any JSON with the limits of a payload. Without one it is removed.
    pub value: Option<Value>,
}

/// A step of a projection, from one checkpoint to another.
#[derive(Debug, Clone, PartialEq)]
pub struct ProjectionStep {
    /// Which projection: 1 to 512 bytes, no NUL.
    pub projection: String,
    /// The last event that it had seen; 0 if none, or if it does not exist.
    pub from: u64,
    /// The last event that it has seen then; not before `from`, unless it is reset.
    pub to: u64,
    /// Whether all its rows go first.
    pub reset: bool,
    /// What changes.
    pub changes: Vec<RowChange>,
}

impl ProjectionStep {
    /// A step that changes no row.
    pub fn new(projection: impl Into<String>, from: u64, to: u64) -> Self {
        Self { projection: projection.into(), from, to, reset: false, changes: Vec::new() }
    }

    /// A step back to the beginning, without rows.
    pub fn reset(projection: impl Into<String>, from: u64) -> Self {
        Self { reset: true, ..Self::new(projection, from, 0) }
    }

    /// Sets a row.
    #[must_use]
    pub fn put(self, table: impl Into<String>, key: impl Into<String>, value: Value) -> Self {
        self.change(table.into(), key.into(), Some(value))
    }

    /// Removes a row.
    #[must_use]
    pub fn remove(self, table: impl Into<String>, key: impl Into<String>) -> Self {
        self.change(table.into(), key.into(), None)
    }

    fn change(mut self, table: String, key: String, value: Option<Value>) -> Self {
        self.changes.push(RowChange { table, key, value });
        self
    }

    /// Checks the step against the contract, apart from what is stored.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field` and, where it is one, `change`.
    pub fn validate(&self) -> Result<()> {
        check_name("projection", &self.projection)?;
        if self.to < self.from && !self.reset {
            return Err(Error::invalid("a projection goes back only when it is reset")
                .with_context("field", "to"));
        }
        for (index, change) in self.changes.iter().enumerate() {
            let checked = check_name("table", &change.table)
                .and_then(|()| check_name("key", &change.key))
                .and_then(|()| match &change.value {
                    Some(value) => check_json("value", value, ROW_BYTES_MAX),
                    None => Ok(()),
                });
            checked.map_err(|error| error.with_context("change", index))?;
        }
        Ok(())
    }

    /// Compares the step with what is stored: where the projection stands, and what the log holds.
    ///
    /// # Errors
    /// `Conflict` as [`EventStore::project`] says.
    pub fn check(&self, checkpoint: u64, log: LogExtent) -> Result<()> {
        if checkpoint != self.from {
            return Err(Error::new(ErrorKind::Conflict, "the projection stands elsewhere")
                .with_context("projection", &self.projection)
                .with_context("expected", self.from)
                .with_context("checkpoint", checkpoint));
        }
        let problem = if self.to > log.last {
            "the checkpoint lies behind the end of the log"
        } else if self.to + 1 < log.first {
            "events behind the checkpoint were pruned"
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Conflict, problem)
            .with_context("projection", &self.projection)
            .with_context("first", log.first)
            .with_context("last", log.last))
    }
}

/// Where a projection stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProjectionInfo {
    /// Which.
    pub projection: String,
    /// The last event that it has seen; 0 if none.
    pub checkpoint: u64,
}

/// Returns the error of a prune that would remove what a projection has not seen, of the one that
/// has seen fewest.
///
/// # Errors
/// `Conflict`, if there is one among `projections`, which are names with checkpoints.
pub fn check_prune<'a>(
    projections: impl IntoIterator<Item = (&'a str, u64)>,
    sequence: u64,
    log: LogExtent,
) -> Result<()> {
    let last_removed = log.last.min(sequence.saturating_sub(1));
    let removes_any = last_removed >= log.first;
    let slowest = projections.into_iter().min_by_key(|(_, checkpoint)| *checkpoint);
    match slowest {
        Some((projection, checkpoint)) if removes_any && checkpoint < last_removed => {
            Err(Error::new(ErrorKind::Conflict, "a projection has not seen these events yet")
                .with_context("projection", projection)
                .with_context("checkpoint", checkpoint))
        }
        _ => Ok(()),
    }
}

/// The rows of a projection while it makes a step: as they are stored, with the changes so far.
pub struct Rows<'a> {
    events: &'a dyn EventStore,
    projection: &'a str,
    /// By table and key; what was read is kept, so that a row is read once in a step.
    changed: BTreeMap<(String, String), Option<Value>>,
    read: BTreeMap<(String, String), Option<Value>>,
}

impl std::fmt::Debug for Rows<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").field("projection", &self.projection).finish_non_exhaustive()
    }
}

impl<'a> Rows<'a> {
    pub(super) fn new(events: &'a dyn EventStore, projection: &'a str) -> Self {
        Self { events, projection, changed: BTreeMap::new(), read: BTreeMap::new() }
    }

    /// Returns a row, if there is one.
    ///
    /// # Errors
    /// `Corrupt` if it is of another type; `InvalidArgument` for a name that no table or row can
    /// have; those of [`EventStore::rows`].
    pub async fn get<T: DeserializeOwned>(&mut self, table: &str, key: &str) -> Result<Option<T>> {
        let place = (table.to_owned(), key.to_owned());
        if let Some(known) = self.changed.get(&place).or_else(|| self.read.get(&place)) {
            return known.as_ref().map(|value| parse(key, value)).transpose();
        }
        let found = self.events.rows(self.projection, table, &Matcher::exact(key)?).await?;
        let value = found.into_iter().next().map(|row| row.value);
        let parsed = value.as_ref().map(|value| parse(key, value)).transpose();
        self.read.insert(place, value);
        parsed
    }

    /// Sets a row.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field` if the value cannot be written as JSON. Names and
    /// limits are checked when the step is made.
    pub fn put<T: Serialize + ?Sized>(&mut self, table: &str, key: &str, value: &T) -> Result<()> {
        let value = serde_json::to_value(value).map_err(|error| {
            Error::invalid("the row cannot be written as JSON")
                .with_context("field", "value")
                .with_source(error)
        })?;
        self.changed.insert((table.to_owned(), key.to_owned()), Some(value));
        Ok(())
    }

    /// Removes a row; there may be none.
    pub fn remove(&mut self, table: &str, key: &str) {
        self.changed.insert((table.to_owned(), key.to_owned()), None);
    }

    /// Returns the rows whose keys `keys` matches, by key.
    ///
    /// # Errors
    /// Those of [`EventStore::rows`].
    pub async fn find(&self, table: &str, keys: &Matcher) -> Result<Vec<Row>> {
        let stored = self.events.rows(self.projection, table, keys).await?;
        let mut found: BTreeMap<String, Value> =
            stored.into_iter().map(|row| (row.key, row.value)).collect();
        for ((of, key), value) in &self.changed {
            if of != table || !keys.matches(key) {
                continue;
            }
            match value {
                Some(value) => found.insert(key.clone(), value.clone()),
                None => found.remove(key),
            };
        }
        Ok(found.into_iter().map(|(key, value)| Row { key, value }).collect())
    }

    pub(super) fn into_changes(self) -> Vec<RowChange> {
        let change = |((table, key), value)| RowChange { table, key, value };
        self.changed.into_iter().map(change).collect()
    }
}
