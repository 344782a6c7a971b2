//! Comforts over [`EventStore`], for every backend: typed events, replay and subscription as
//! streams, projections.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_core::Stream;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::backend::EventStore;
use super::projection::{self, CaughtUp, Projection};
use super::value::{EventQuery, Expectation, ExpectedVersion, NewEvent, StoredEvent};
use crate::error::Result;
use crate::metrics::Matcher;

/// Events that are asked for at a time.
const PAGE_EVENTS: usize = 8192;

/// So many events of a page make it likely that there is another one, which may be read ahead.
const AHEAD_EVENTS: usize = 256;

/// A page that is read ahead is looked at once in so many events.
const LOOK_EVERY: usize = 64;

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
    /// bounded however long the log is, to two pages where a backend reads the next one while the
    /// events of one are taken ([`EventStore::reads_ahead`]), else to one; no limit applies but
    /// that of the query. What is appended meanwhile comes too, unless the end was reached before;
    /// what is pruned before it was read does not come. Ends after the first error.
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

/// Streams what `query` chooses, page by page; behind the end it is over, or waits for more.
fn pages(events: &dyn EventStore, query: EventQuery, waits: bool) -> EventStream<'_> {
    let page = Vec::new().into_iter();
    Box::pin(Pages { events, query, waits, page, next: Next::Nothing })
}

/// Events of a page, and the next page, where a backend reads it ahead.
struct Pages<'a> {
    events: &'a dyn EventStore,
    /// What comes behind this page, with what is left of the limit.
    query: EventQuery,
    waits: bool,
    page: std::vec::IntoIter<StoredEvent>,
    next: Next<'a>,
}

type Page = Result<Vec<StoredEvent>>;

/// The next page.
enum Next<'a> {
    /// Nobody has asked for it.
    Nothing,
    /// Asked for because this page is at its end.
    Due(BoxFuture<'a, Page>),
    /// Asked for ahead: that it is empty does not say that it will be when it is due.
    Ahead(BoxFuture<'a, Page>),
    /// Read ahead.
    Read(Page),
    /// The end, or an error, was returned.
    Over,
}

impl Pages<'_> {
    /// Lets a page that is asked for ahead come in.
    fn look_ahead(&mut self, context: &mut Context<'_>) {
        if let Next::Ahead(reading) = &mut self.next
            && let Poll::Ready(page) = reading.as_mut().poll(context)
        {
            self.next = Next::Read(page);
        }
    }

    /// Takes a page, and has the next one read ahead if this one is not the last for certain.
    fn take(&mut self, page: Vec<StoredEvent>, context: &mut Context<'_>) {
        self.query.from = page.last().map_or(self.query.from, |last| last.sequence + 1);
        self.query.limit = self.query.limit.saturating_sub(page.len());
        let query = page_of(&self.query);
        if page.len() >= AHEAD_EVENTS && query.limit > 0 && self.events.reads_ahead(&query) {
            let events = self.events;
            self.next = Next::Ahead(Box::pin(async move { events.read(&query).await }));
            self.look_ahead(context);
        }
        self.page = page.into_iter();
    }

    /// Waits for the next page; nothing if there is none.
    fn poll_page(&mut self, context: &mut Context<'_>) -> Poll<Option<Page>> {
        loop {
            match std::mem::replace(&mut self.next, Next::Over) {
                Next::Over => return Poll::Ready(None),
                Next::Nothing if self.query.limit == 0 => return Poll::Ready(None),
                Next::Nothing => {
                    let (events, query, waits) = (self.events, page_of(&self.query), self.waits);
                    let reading = async move { next_page(events, &query, waits).await };
                    self.next = Next::Due(Box::pin(reading));
                }
                Next::Read(Ok(page)) if page.is_empty() => self.next = Next::Nothing,
                Next::Read(page) => return Poll::Ready(Some(page)),
                Next::Ahead(mut reading) => match reading.as_mut().poll(context) {
                    Poll::Ready(page) => self.next = Next::Read(page),
                    Poll::Pending => {
                        self.next = Next::Ahead(reading);
                        return Poll::Pending;
                    }
                },
                Next::Due(mut reading) => match reading.as_mut().poll(context) {
                    Poll::Ready(Ok(page)) if page.is_empty() => return Poll::Ready(None),
                    Poll::Ready(page) => return Poll::Ready(Some(page)),
                    Poll::Pending => {
                        self.next = Next::Due(reading);
                        return Poll::Pending;
                    }
                },
            }
        }
    }
}

impl Stream for Pages<'_> {
    type Item = Result<StoredEvent>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(event) = this.page.next() {
                if this.page.len().is_multiple_of(LOOK_EVERY) {
                    this.look_ahead(context);
                }
                return Poll::Ready(Some(Ok(event)));
            }
            match ready!(this.poll_page(context)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(page)) => {
                    this.next = Next::Nothing;
                    this.take(page, context);
                }
            }
        }
    }
}

/// The part of a query that one page answers.
fn page_of(query: &EventQuery) -> EventQuery {
    query.clone().limit(query.limit.min(PAGE_EVENTS))
}

async fn next_page(events: &dyn EventStore, query: &EventQuery, waits: bool) -> Page {
    loop {
        let page = events.read(query).await?;
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
    use crate::events::{ProjectionInfo, ProjectionStep, Row};
    use crate::memory::InMemoryEvents;
    use crate::{ErrorKind, InMemory, LogExtent, StreamInfo};
    use futures_util::TryStreamExt;
    use serde_json::json;
    use std::sync::atomic::{AtomicUsize, Ordering};

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

    /// A store that reads ahead, and counts how often it is asked.
    struct Ahead(InMemoryEvents, AtomicUsize);

    impl Ahead {
        async fn filled(store: &InMemory, count: u64) -> Self {
            let all: Vec<_> = (1..=count).map(event).collect();
            store.events().append_all(&all).await.unwrap();
            Self(store.events(), AtomicUsize::new(0))
        }
    }

    #[async_trait]
    impl EventStore for Ahead {
        async fn append(
            &self,
            events: &[NewEvent],
            expected: &[Expectation],
        ) -> Result<Vec<StoredEvent>> {
            self.0.append(events, expected).await
        }
        async fn read(&self, query: &EventQuery) -> Result<Vec<StoredEvent>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.read(query).await
        }
        fn reads_ahead(&self, query: &EventQuery) -> bool {
            query.limit >= 10
        }
        async fn extent(&self) -> Result<LogExtent> {
            self.0.extent().await
        }
        async fn streams(&self, streams: &Matcher) -> Result<Vec<StreamInfo>> {
            self.0.streams(streams).await
        }
        async fn wait_for(&self, sequence: u64) -> Result<()> {
            self.0.wait_for(sequence).await
        }
        async fn project(&self, step: &ProjectionStep) -> Result<()> {
            self.0.project(step).await
        }
        async fn projections(&self) -> Result<Vec<ProjectionInfo>> {
            self.0.projections().await
        }
        async fn rows(&self, projection: &str, table: &str, keys: &Matcher) -> Result<Vec<Row>> {
            self.0.rows(projection, table, keys).await
        }
        async fn forget_projection(&self, projection: &str) -> Result<bool> {
            self.0.forget_projection(projection).await
        }
        async fn prune_before(&self, sequence: u64) -> Result<u64> {
            self.0.prune_before(sequence).await
        }
    }

    #[tokio::test]
    async fn one_page_is_read_ahead_and_an_empty_one_is_read_again() {
        let page = PAGE_EVENTS as u64;
        let store = InMemory::new();
        let (events, ahead) = (store.events(), Ahead::filled(&store, 2 * page).await);
        let reads = || ahead.1.load(Ordering::Relaxed);
        let mut log = ahead.replay_all();
        for sequence in 1..=page {
            assert_eq!(log.try_next().await.unwrap().unwrap().sequence, sequence);
            assert_eq!(reads(), 2, "one more than is taken, not two");
        }
        for sequence in page + 1..=2 * page {
            assert_eq!(log.try_next().await.unwrap().unwrap().sequence, sequence);
        }
        assert_eq!(reads(), 3, "there was nothing");
        events.append_all(&[event(0)]).await.unwrap();
        let last = log.try_next().await.unwrap().unwrap();
        assert_eq!(last.sequence, 2 * page + 1, "appended before the end was reached");
        assert!(log.try_next().await.unwrap().is_none() && log.try_next().await.unwrap().is_none());
        let some: Vec<_> =
            ahead.replay(EventQuery::from(3).limit(page as usize + 5)).collect().await;
        assert_eq!(some.len() as u64, page + 5, "the limit holds over pages");
        let mut live = ahead.subscribe(page);
        for sequence in page..=2 * page + 1 {
            assert_eq!(live.try_next().await.unwrap().unwrap().sequence, sequence);
        }
        let append = async { events.append_all(&[event(0)]).await };
        let (next, _) = tokio::join!(live.try_next(), append);
        assert_eq!(next.unwrap().unwrap().sequence, 2 * page + 2);
    }

    #[tokio::test]
    async fn what_was_read_ahead_comes_before_an_error() {
        let (store, all) = (InMemory::new(), PAGE_EVENTS as u64 + 10);
        let ahead = Ahead::filled(&store, all).await;
        let mut log = ahead.replay_all();
        assert_eq!(log.try_next().await.unwrap().unwrap().sequence, 1);
        crate::StorageBackend::close(&store).await.unwrap();
        for sequence in 2..=all {
            assert_eq!(log.try_next().await.unwrap().unwrap().sequence, sequence);
        }
        assert_eq!(log.try_next().await.unwrap_err().kind(), ErrorKind::Closed);
        assert!(log.try_next().await.unwrap().is_none());
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
