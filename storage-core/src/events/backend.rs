//! The contract for the event store: what every backend promises, word for word.

use std::sync::Arc;

use async_trait::async_trait;

use super::rows::{ProjectionInfo, ProjectionStep, Row};
use super::value::{EventQuery, Expectation, LogExtent, NewEvent, StoredEvent, StreamInfo};
use crate::error::Result;
use crate::metrics::Matcher;

/// A log of events, and projections of it.
///
/// This documentation is the contract; the crate `conformance-tests` checks a backend against
/// every sentence of it. An event store is a part of a [`Store`](crate::Store) and shares its
/// location, its handles and its end with the other parts.
///
/// # Model
/// The log is one sequence of events, numbered 1, 2, 3 and on without a gap. An event belongs to
/// a *stream*, a name that is compared byte by byte, and has a *version* there: 1, 2, 3 and on
/// without a gap. An event never changes. An event that breaks a rule of [`NewEvent`] is refused.
/// Its time is floored to whole milliseconds toward the past, also before 1970, and orders nothing.
///
/// A *projection* is a name with a *checkpoint*, the last event that it has seen, and rows: JSON
/// values by table and key. It exists from its first step on until it is forgotten.
///
/// # Sharing
/// Any number of tasks, handles and, where the location is a file or a server, processes may use
/// one location at once. What one appended, every other sees as soon as the call has returned. Who
/// has seen an event has seen, or can read, every event before it: none ever appears below
/// another that was visible already, whoever commits first.
///
/// # Cancellation
/// Dropping the future of a call leaves all of its effect or none (of a prune: a part, the oldest),
/// and the handle usable. An append that is still stored after its future was dropped is stored
/// before any later one of the same handle.
///
/// # Errors
/// Every method may return, besides the kinds that it lists, `Unavailable`, `Busy`, `Timeout`,
/// `Corrupt`, `Io` and, after the store was closed, `Closed`. Reads say the outcome `NotApplied`.
#[async_trait]
pub trait EventStore: Send + Sync {
    /// Appends events, all or nothing, and returns them as they are stored.
    ///
    /// They get the next sequence numbers, contiguous and in their order, and in each stream the
    /// next versions. When it returns `Ok` the whole batch is visible to every reader and survives
    /// a crash of the process and a power cut, unless the backend was told to relax durability.
    /// When it returns an error with the outcome `NotApplied`, nothing of it is stored, now or
    /// later, and no number is used up; with `Unknown`, all of it or nothing is. No call that
    /// reads ever sees a part of a batch. Payloads come back as equal JSON; whole numbers and
    /// fractions stay apart. An empty batch is `Ok` and does nothing, whatever is expected. A batch
    /// may have any size.
    ///
    /// Each of `expected` must hold for its stream just before the batch, also for one that the
    /// batch does not touch. Of concurrent appends that expect the same version one succeeds.
    ///
    /// Appending is idempotent by id: if every event of the batch has an id, and all are stored
    /// already with the same stream, type and payload, the stored ones are returned, in the order
    /// of the batch, and nothing is appended, whatever is expected. Ids are known as long as
    /// their events are not pruned.
    ///
    /// # Errors
    /// `InvalidArgument` if an event breaks a rule of [`NewEvent`] or an id comes twice in the
    /// batch, with the details `event` (index of the first bad one) and `field`; or if an
    /// expectation names a stream that no stream can have. `Conflict` if an expectation does not
    /// hold, with the details `stream`, `expected` and `version` (the one that it has); or if an id
    /// is stored already, but not as the same event or not all of the batch, with the details
    /// `event_id` and `sequence`. `StorageFull` and `PermissionDenied` as the location has it; reads
    /// go on. With each of these nothing is stored.
    ///
    /// # Example
    /// ```
    /// use serde_json::json;
    /// use storage_core::{ErrorKind, EventStore, Expectation, ExpectedVersion, InMemory, NewEvent};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
    /// let events = InMemory::new().events();
    /// let new = Expectation::new("thread-1", ExpectedVersion::NoStream);
    /// let batch = [
    ///     NewEvent::new("thread-1", "ThreadCreated", json!({"title": "Maps"})),
    ///     NewEvent::new("thread-1", "TurnStarted", json!({"turn": 1})),
    /// ];
    /// let stored = events.append(&batch, &[new.clone()]).await?;
    /// assert_eq!((stored[1].sequence, stored[1].version), (2, 2));
    ///
    /// let refused = events.append(&batch, &[new]).await.unwrap_err();
    /// assert_eq!((refused.kind(), refused.context("version")), (ErrorKind::Conflict, Some("2")));
    /// # Ok(()) }
    /// ```
    async fn append(
        &self,
        events: &[NewEvent],
        expected: &[Expectation],
    ) -> Result<Vec<StoredEvent>>;

    /// Returns a page of the events that `query` chooses, by sequence number.
    ///
    /// The start is included. Fewer than the limit may come although there are more, because a
    /// page is bounded in bytes, too; but none come only if there are none, or the limit is 0. So
    /// who reads on behind the last event of each page, until a page is empty, has read everything.
    /// Events that were pruned are left out; a stream that does not exist gives an empty page.
    ///
    /// # Errors
    /// `InvalidArgument` if the stream breaks the rules of a name. `Corrupt` with the detail
    /// `sequence` if a stored payload is no JSON: it is never left out, nor taken for `null`.
    ///
    /// # Cost
    /// O(log n + k) for n events and k returned. A page takes some megabytes of memory, or as much
    /// as its one event.
    async fn read(&self, query: &EventQuery) -> Result<Vec<StoredEvent>>;

    /// Whether such a [`read`](Self::read), once polled, goes on by itself, and holds nothing that
    /// other calls wait for while nobody polls it. Streams of events then read one page ahead.
    fn reads_ahead(&self, _query: &EventQuery) -> bool {
        false
    }

    /// Returns where the log begins and ends.
    ///
    /// # Cost
    /// O(log n) for n events.
    async fn extent(&self) -> Result<LogExtent>;

    /// Returns the streams that `streams` matches, by name, byte by byte, with their versions.
    ///
    /// A stream exists from its first event on, also when its events were pruned.
    ///
    /// # Cost
    /// O(log s) for one of s streams by its name, O(s) for a pattern.
    async fn streams(&self, streams: &Matcher) -> Result<Vec<StreamInfo>>;

    /// Waits until the log has an event with this sequence number, and returns at once if it has
    /// or had.
    ///
    /// What other handles and processes append is noticed within a second. Ends with `Closed` when
    /// the store is closed.
    async fn wait_for(&self, sequence: u64) -> Result<()>;

    /// Takes a projection one step further: changes its rows and moves its checkpoint, all or
    /// nothing.
    ///
    /// Rows and checkpoint are visible together, and survive what an append survives. The changes
    /// are made in their order, the last one of a key stays; a row that is not there can be
    /// removed. With `reset` every row of the projection goes first, and the checkpoint may move
    /// back. Of concurrent steps from one checkpoint one succeeds.
    ///
    /// # Errors
    /// `InvalidArgument` if the step breaks a rule of [`ProjectionStep`], with the detail `field`
    /// and, where it is one, `change` (index of the first bad change). `Conflict` if the projection
    /// does not stand at `step.from`, with the details `projection`, `expected` and `checkpoint`;
    /// or, with `first` and `last` of the log, if `step.to` lies behind its end or before events
    /// that were pruned. `StorageFull` and `PermissionDenied` as the location has it. With each of
    /// these nothing is changed.
    async fn project(&self, step: &ProjectionStep) -> Result<()>;

    /// Returns every projection by name, byte by byte, with its checkpoint.
    ///
    /// # Cost
    /// O(p) for p projections, whatever they hold.
    async fn projections(&self) -> Result<Vec<ProjectionInfo>>;

    /// Returns the rows of a table of a projection whose keys `keys` matches, by key, byte by byte.
    ///
    /// What does not exist has no rows. All rows are of one step.
    ///
    /// # Errors
    /// `InvalidArgument` if `projection` or `table` breaks the rules of a name. `Corrupt` with the
    /// details `projection`, `table` and `key` if a stored row is no JSON.
    ///
    /// # Cost
    /// O(log r + k) for r rows and k returned, keys that begin like a pattern counted too.
    async fn rows(&self, projection: &str, table: &str, keys: &Matcher) -> Result<Vec<Row>>;

    /// Removes a projection with all its rows, and says whether it was there.
    ///
    /// # Errors
    /// `InvalidArgument` if `projection` breaks the rules of a name. `PermissionDenied` if the store
    /// is read-only.
    async fn forget_projection(&self, projection: &str) -> Result<bool>;

    /// Removes every event before `sequence`, and returns how many.
    ///
    /// The event with this number stays. Numbers and versions go on where they were. The number is
    /// exact, the sum of two concurrent prunes too. A prune that fails or is dropped may have
    /// removed a part, the oldest; repeating it removes the rest. The space is used again or given
    /// back, as the backend has it; rows of projections and other parts of the store are not
    /// touched.
    ///
    /// # Errors
    /// `Conflict` if a projection has not seen all of these events, with the details `projection`
    /// and `checkpoint` of one that has seen fewest; nothing is removed. `PermissionDenied` if the
    /// store is read-only. The outcome is `Unknown` if a part may have been removed.
    async fn prune_before(&self, sequence: u64) -> Result<u64>;

    /// The name of the backend, as errors and logs show it.
    fn name(&self) -> &'static str {
        std::any::type_name::<Self>()
    }
}

macro_rules! forward_to_inner {
    ($($wrapper:ty),+) => {$(
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<E: EventStore + ?Sized> EventStore for $wrapper {
            async fn append(
                &self,
                events: &[NewEvent],
                expected: &[Expectation],
            ) -> Result<Vec<StoredEvent>> {
                (**self).append(events, expected).await
            }
            async fn read(&self, query: &EventQuery) -> Result<Vec<StoredEvent>> {
                (**self).read(query).await
            }
            fn reads_ahead(&self, query: &EventQuery) -> bool {
                (**self).reads_ahead(query)
            }
            async fn extent(&self) -> Result<LogExtent> {
                (**self).extent().await
            }
            async fn streams(&self, streams: &Matcher) -> Result<Vec<StreamInfo>> {
                (**self).streams(streams).await
            }
            async fn wait_for(&self, sequence: u64) -> Result<()> {
                (**self).wait_for(sequence).await
            }
            async fn project(&self, step: &ProjectionStep) -> Result<()> {
                (**self).project(step).await
            }
            async fn projections(&self) -> Result<Vec<ProjectionInfo>> {
                (**self).projections().await
            }
            async fn rows(
                &self,
                projection: &str,
                table: &str,
                keys: &Matcher,
            ) -> Result<Vec<Row>> {
                (**self).rows(projection, table, keys).await
            }
            async fn forget_projection(&self, projection: &str) -> Result<bool> {
                (**self).forget_projection(projection).await
            }
            async fn prune_before(&self, sequence: u64) -> Result<u64> {
                (**self).prune_before(sequence).await
            }
            fn name(&self) -> &'static str {
                (**self).name()
            }
        }
    )+};
}

forward_to_inner!(Arc<E>, Box<E>, &E);
