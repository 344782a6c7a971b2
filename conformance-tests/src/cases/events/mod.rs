//! The contract of the event store, theme by theme, and what its cases share.

pub(super) mod append;
pub(super) mod expect;
pub(super) mod model;
pub(super) mod project;
pub(super) mod prune;
pub(super) mod read;
pub(super) mod sharing;

use serde_json::{Value, json};
use storage_core::{
    EventQuery, EventStore, Expectation, ExpectedVersion, Matcher, NewEvent, Result, StoredEvent,
};

use crate::data::{NOON, at};

/// An event of a stream that holds a number, and whose time tells it, too.
fn ev(stream: &str, n: i64) -> NewEvent {
    NewEvent::new(stream, "Counted", json!({ "n": n })).at(at(NOON + n))
}

/// The same with an id.
fn ev_id(id: &str, stream: &str, n: i64) -> NewEvent {
    ev(stream, n).with_id(id)
}

/// An event with this payload.
fn holding(payload: impl Into<Value>) -> NewEvent {
    NewEvent::new("s", "Held", payload.into()).at(at(NOON))
}

/// The events 0, 1, 2 and on of one stream.
fn ramp(stream: &str, count: i64) -> Vec<NewEvent> {
    (0..count).map(|n| ev(stream, n)).collect()
}

/// Every event there is, page by page, as the contract says.
async fn all(events: &dyn EventStore) -> Result<Vec<StoredEvent>> {
    all_of(events, EventQuery::from(1)).await
}

/// Every event that a query without a limit chooses.
async fn all_of(events: &dyn EventStore, query: EventQuery) -> Result<Vec<StoredEvent>> {
    let (mut query, mut found) = (query, Vec::new());
    loop {
        let page = events.read(&query).await?;
        let Some(last) = page.last() else { return Ok(found) };
        query.from = last.sequence + 1;
        found.extend(page);
    }
}

/// The events of one stream.
async fn of_stream(events: &dyn EventStore, stream: &str) -> Result<Vec<StoredEvent>> {
    all_of(events, EventQuery::from(1).stream(stream)).await
}

/// The numbers that events hold.
fn numbers(events: &[StoredEvent]) -> Vec<i64> {
    events.iter().filter_map(|event| event.payload["n"].as_i64()).collect()
}

/// Sequence numbers alone.
fn sequences(events: &[StoredEvent]) -> Vec<u64> {
    events.iter().map(|event| event.sequence).collect()
}

/// Versions alone.
fn versions(events: &[StoredEvent]) -> Vec<u64> {
    events.iter().map(|event| event.version).collect()
}

fn expect(stream: &str, version: ExpectedVersion) -> Expectation {
    Expectation::new(stream, version)
}

/// Keys and values of the rows of a table.
async fn rows(
    events: &dyn EventStore,
    projection: &str,
    table: &str,
) -> Result<Vec<(String, Value)>> {
    let found = events.rows(projection, table, &Matcher::any()).await?;
    Ok(found.into_iter().map(|row| (row.key, row.value)).collect())
}

/// Projections with their checkpoints.
async fn checkpoints(events: &dyn EventStore) -> Result<Vec<(String, u64)>> {
    let found = events.projections().await?;
    Ok(found.into_iter().map(|info| (info.projection, info.checkpoint)).collect())
}
