//! Comforts over [`EventStore`], for every backend: typed events, replay and subscription as
//! streams, projections.

use std::collections::VecDeque;
use std::pin::Pin;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_core::Stream;
use futures_util::{StreamExt, stream};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::backend::EventStore;
use super::projection::{self, CaughtUp, Projection};
use super::value::{EventQuery, Expectation, ExpectedVersion, NewEvent, StoredEvent};
use crate::error::Result;
use crate::metrics::Matcher;

/// Events that are asked for at a time.
const PAGE_EVENTS: usize = 8192;

/// Events one after the other. It ends after an error.
pub type EventStream<'a> = Pin<Box<dyn Stream<Item = Result<StoredEvent>> + Send + 'a>>;

/// An event with its payload as a value of the program.
#[derive(Debug, Clone, PartialEq)]
pub struct ParsedEvent<T> {
    /// Its place in the log.
    pub sequence: u64,
    /// What it happened to.
    pub stream: String,
    /// Its place in its stream.
    pub version: u64,
    /// When.
    pub stored_at: DateTime<Utc>,
    /// What happened.
    pub event: T,
}

/// Shorthands for every [`EventStore`].
///
/// ```
/// use futures_util::TryStreamExt;
/// use serde::{Deserialize, Serialize};
/// use storage_core::{EventStore, EventStoreExt, ExpectedVersion, InMemory};
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize)]
/// enum OrchestrationEvent {
///     ProjectCreated { title: String },
///     ProjectDeleted,
/// }
/// use OrchestrationEvent::*;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let events = InMemory::new().events();
/// let happened = [ProjectCreated { title: "Atlas".into() }, ProjectDeleted];
/// events.append_to("project-1", ExpectedVersion::NoStream, &happened).await?;
///
/// let replayed: Vec<_> = events.replay_as::<OrchestrationEvent>(2).try_collect().await?;
/// assert_eq!((replayed[0].sequence, &replayed[0].event), (2, &ProjectDeleted));
/// # Ok(()) }
/// ```
#[async_trait]
pub trait EventStoreExt: EventStore {
    /// Appends events, whatever the versions of their streams.
    ///
    /// # Errors
    /// Those of [`EventStore::append`].
    async fn append_all(&self, events: &[NewEvent]) -> Result<Vec<StoredEvent>> {
        self.append(events, &[]).await
    }

    /// Appends values of an `enum` to one stream that has the expected version.
    ///
    /// # Errors
    /// Those of [`NewEvent::of`] and [`EventStore::append`].
    async fn append_to<T: Serialize + Sync>(
        &self,
        stream: &str,
        expected: ExpectedVersion,
        events: &[T],
    ) -> Result<Vec<StoredEvent>> {
        let events = events.iter().map(|event| NewEvent::of(stream, event));
        let events = events.collect::<Result<Vec<_>>>()?;
        self.append(&events, &[Expectation::new(stream, expected)]).await
    }

    /// Returns the version of a stream, 0 if there is none: what an append can expect.
    ///
    /// # Errors
    /// `InvalidArgument` if the name breaks the rules of a stream's; those of `streams`.
    async fn stream_version(&self, stream: &str) -> Result<u64> {
        let found = self.streams(&Matcher::exact(stream)?).await?;
        Ok(found.first().map_or(0, |info| info.version))
    }

    /// Streams every event, by sequence number. See [`replay`](Self::replay).
    fn replay_all(&self) -> EventStream<'_>
    where
        Self: Sized,
    {
        self.replay_from(1)
    }

    /// Streams every event from `sequence` on, itself included, by sequence number. See
    /// [`replay`](Self::replay).
    fn replay_from(&self, sequence: u64) -> EventStream<'_>
    where
        Self: Sized,
    {
        self.replay(EventQuery::from(sequence))
    }

    /// Streams the events that `query` chooses, by sequence number, page by page: memory stays
    /// bounded however long the log is, and no limit applies but that of the query. What is appended
    /// meanwhile comes too, unless the end was reached before; what is pruned before it was read
    /// does not come. Ends after the first error.
    fn replay(&self, query: EventQuery) -> EventStream<'_>
    where
        Self: Sized,
    {
        pages(self, query, false)
    }

    /// Streams the events from `sequence` on, itself included, as values of the program. An event
    /// that is of another type is an error of its own, `Corrupt` with the details `sequence` and
    /// `event_type`, and the stream goes on behind it.
    fn replay_as<T: DeserializeOwned>(
        &self,
        sequence: u64,
    ) -> Pin<Box<dyn Stream<Item = Result<ParsedEvent<T>>> + Send + '_>>
    where
        Self: Sized,
    {
        Box::pin(self.replay_from(sequence).map(|event| parsed(event?)))
    }

    /// Streams the events from `sequence` on, itself included, and goes on with those that are
    /// appended, as they are appended. Never ends, but after an error: `Closed` when the store is
    /// closed.
    fn subscribe(&self, sequence: u64) -> EventStream<'_>
    where
        Self: Sized,
    {
        pages(self, EventQuery::from(sequence), true)
    }

    /// Returns a row of a projection as a value of the program, if there is one.
    ///
    /// # Errors
    /// `InvalidArgument` for a key that no row can have; `Corrupt` if it is of another type; those
    /// of [`EventStore::rows`].
    async fn row<T: DeserializeOwned>(
        &self,
        projection: &str,
        table: &str,
        key: &str,
    ) -> Result<Option<T>> {
        let found = self.rows(projection, table, &Matcher::exact(key)?).await?;
        found.first().map(super::rows::Row::parse).transpose()
    }

    /// Takes a projection to the end of the log, in steps that each move rows and checkpoint
    /// together. With a current checkpoint that reads nothing.
    ///
    /// # Errors
    /// `Conflict` with the detail `first` if events that it has not seen were pruned; what
    /// [`Projection::apply`] returned; those of [`EventStore::project`].
    async fn catch_up(&self, projection: &dyn Projection) -> Result<CaughtUp>
    where
        Self: Sized,
    {
        projection::catch_up(self, projection).await
    }

    /// Takes a projection to the end of the log and further, as events are appended. Never returns
    /// but with an error.
    ///
    /// # Errors
    /// Those of [`catch_up`](Self::catch_up); `Closed` when the store is closed.
    async fn keep_up(&self, projection: &dyn Projection) -> Result<std::convert::Infallible>
    where
        Self: Sized,
    {
        loop {
            let CaughtUp { to, .. } = self.catch_up(projection).await?;
            self.wait_for(to + 1).await?;
        }
    }

    /// Builds the rows of a projection anew from the log: removes all of them, and takes it from
    /// the first event to the last. Who reads meanwhile sees rows as of its checkpoint; stopped half
    /// way, `catch_up` does the rest.
    ///
    /// # Errors
    /// `Conflict` if events were pruned, and nothing is changed; those of `catch_up`.
    async fn rebuild(&self, projection: &dyn Projection) -> Result<CaughtUp>
    where
        Self: Sized,
    {
        projection::rebuild(self, projection).await
    }
}

impl<E: EventStore + ?Sized> EventStoreExt for E {}

/// Where a stream of events stands.
struct Position {
    query: EventQuery,
    left: usize,
    page: VecDeque<StoredEvent>,
    is_over: bool,
}

/// Streams what `query` chooses, page by page; behind the end it is over, or waits for more.
fn pages(events: &dyn EventStore, query: EventQuery, waits: bool) -> EventStream<'_> {
    let left = query.limit;
    let start = Position { query, left, page: VecDeque::new(), is_over: false };
    Box::pin(stream::unfold(start, move |mut position| async move {
        if position.page.is_empty() {
            if position.is_over || position.left == 0 {
                return None;
            }
            match next_page(events, &position, waits).await {
                Ok(page) => position.page = page.into(),
                Err(error) => {
                    position.is_over = true;
                    return Some((Err(error), position));
                }
            }
        }
        let event = position.page.pop_front()?;
        position.query.from = event.sequence + 1;
        position.left -= 1;
        Some((Ok(event), position))
    }))
}

async fn next_page(
    events: &dyn EventStore,
    position: &Position,
    waits: bool,
) -> Result<Vec<StoredEvent>> {
    let query = position.query.clone().limit(position.left.min(PAGE_EVENTS));
    loop {
        let page = events.read(&query).await?;
        if !page.is_empty() || !waits {
            return Ok(page);
        }
        events.wait_for(query.from).await?;
    }
}

fn parsed<T: DeserializeOwned>(event: StoredEvent) -> Result<ParsedEvent<T>> {
    let happened = event.parse()?;
    let StoredEvent { sequence, stream, version, stored_at, .. } = event;
    Ok(ParsedEvent { sequence, stream, version, stored_at, event: happened })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, InMemory};
    use futures_util::TryStreamExt;
    use serde_json::json;

    fn event(n: u64) -> NewEvent {
        NewEvent::new(format!("s{}", n % 3), "Counted", json!({ "n": n }))
    }

    #[tokio::test]
    async fn replay_passes_the_borders_of_pages() {
        let events = InMemory::new().events();
        let all: Vec<_> = (0..2 * PAGE_EVENTS as u64 + 7).map(event).collect();
        events.append_all(&all).await.unwrap();
        let replayed: Vec<_> = events.replay_all().try_collect().await.unwrap();
        assert!(replayed.iter().map(|event| event.sequence).eq(1..=all.len() as u64));
        let some = EventQuery::from(5000).stream("s1").limit(1500);
        let replayed: Vec<_> = events.replay(some).try_collect().await.unwrap();
        assert_eq!(replayed.len(), (all.len() - 5000).div_ceil(3).min(1500));
        assert!(replayed.iter().all(|event| event.stream == "s1" && event.sequence >= 5000));
    }

    #[tokio::test]
    async fn events_of_another_type_are_reported_and_passed() {
        let events = InMemory::new().events();
        let other = NewEvent::new("s", "Other", json!("text"));
        events.append_all(&[event(1), other, event(2)]).await.unwrap();
        let replayed: Vec<Result<ParsedEvent<std::collections::BTreeMap<String, u64>>>> =
            events.replay_as(1).collect().await;
        assert_eq!(replayed.len(), 3);
        let error = replayed[1].as_ref().unwrap_err();
        assert_eq!((error.kind(), error.context("sequence")), (ErrorKind::Corrupt, Some("2")));
        assert_eq!(replayed[2].as_ref().unwrap().event["n"], 2);
    }

    #[tokio::test]
    async fn a_subscription_goes_on_and_ends_with_the_store() {
        let store = InMemory::new();
        let events = store.events();
        events.append_all(&[event(1)]).await.unwrap();
        let mut live = events.subscribe(1);
        assert_eq!(live.try_next().await.unwrap().unwrap().sequence, 1);
        let append = async { events.append_all(&[event(2), event(3)]).await };
        let (next, appended) = tokio::join!(live.try_next(), append);
        assert_eq!((next.unwrap().unwrap().sequence, appended.unwrap().len()), (2, 2));
        assert_eq!(live.try_next().await.unwrap().unwrap().sequence, 3);
        let close = async { crate::StorageBackend::close(&store).await };
        let (ended, _) = tokio::join!(live.try_next(), close);
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Closed);
        assert!(live.try_next().await.unwrap().is_none());
    }
}
