//! Where records come from: channels and streams, each with what happens when they outrun the
//! store.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use futures_util::stream;
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};

use crate::metrics::MetricRecord;

/// How many items are taken from a source at once.
const ITEMS_MAX: usize = 256;

/// What can be turned into records: a record, several, or an event of one's own.
///
/// ```
/// use chrono::{DateTime, Utc};
/// use storage_core::MetricRecord;
/// use storage_core::pipeline::IntoRecords;
///
/// #[derive(Clone)]
/// struct Reading { server: String, at: DateTime<Utc>, cpu: f64, memory: f64 }
///
/// impl IntoRecords for Reading {
///     fn append_to(self, records: &mut Vec<MetricRecord>) {
///         records.push(MetricRecord::new(self.server.clone(), self.at, "cpu", self.cpu));
///         records.push(MetricRecord::new(self.server, self.at, "memory", self.memory));
///     }
/// }
/// ```
pub trait IntoRecords: Send + 'static {
    /// Adds what it holds at the end of `records`.
    fn append_to(self, records: &mut Vec<MetricRecord>);
}

impl IntoRecords for MetricRecord {
    fn append_to(self, records: &mut Vec<MetricRecord>) {
        records.push(self);
    }
}

impl IntoRecords for Vec<MetricRecord> {
    fn append_to(mut self, records: &mut Vec<MetricRecord>) {
        records.append(&mut self);
    }
}

impl IntoRecords for std::sync::Arc<[MetricRecord]> {
    fn append_to(self, records: &mut Vec<MetricRecord>) {
        records.extend_from_slice(&self);
    }
}

/// What happens to a source whose share of memory is full because the store is slow or down.
///
/// Whatever it is, the store never makes the actor stop, and every record that does not reach it
/// is counted.
///
/// | | the producer | records | counter |
/// |---|---|---|---|
/// | `Wait` | of an `mpsc` channel waits once the channel is full; of a `broadcast` is never held up, but the actor lags | none are dropped by the actor | `waits`, `lagged` |
/// | `ShedOldest` | never waits | the oldest in memory are dropped | `shed` |
/// | `Spool` | never waits | the oldest in memory move into the spool; if that is full too, they are dropped | `spooled`, `shed` |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Backpressure {
    /// Take nothing more from the source until there is room.
    Wait,
    /// Drop the oldest records of the source.
    ShedOldest,
    /// Move records into the spool as soon as half of the memory is full.
    Spool,
}

/// Where an actor takes records from.
///
/// A source ends when its channel or stream ends. Records are taken in the order in which they
/// come; between sources there is no order.
///
/// ```
/// use storage_core::MetricRecord;
/// use storage_core::pipeline::{Backpressure, Source};
/// use tokio::sync::{broadcast, mpsc};
///
/// let (_sender, receiver) = broadcast::channel::<MetricRecord>(1024);
/// let events = Source::broadcast("events", receiver);
/// let (_sender, receiver) = mpsc::channel::<Vec<MetricRecord>>(16);
/// let scraper = Source::mpsc("scraper", receiver).with_backpressure(Backpressure::Wait);
/// # let _ = (events, scraper);
/// ```
pub struct Source {
    pub(super) name: String,
    pub(super) backpressure: Option<Backpressure>,
    pub(super) receive: Box<dyn Receive>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, backpressure, .. } = self;
        f.debug_struct("Source")
            .field("name", name)
            .field("backpressure", backpressure)
            .finish_non_exhaustive()
    }
}

impl Source {
    /// Takes from a `tokio::sync::mpsc` channel. On shutdown the channel is closed and emptied:
    /// what was sent before is taken, and later senders get an error.
    pub fn mpsc<T: IntoRecords>(name: impl Into<String>, receiver: mpsc::Receiver<T>) -> Self {
        Self::new(name, MpscReceive { receiver, items: Vec::new() })
    }

    /// Takes from a `tokio::sync::broadcast` channel. What it lost because it was too slow is
    /// counted as `lagged`, in items of the channel.
    pub fn broadcast<T: IntoRecords + Clone>(
        name: impl Into<String>,
        receiver: broadcast::Receiver<T>,
    ) -> Self {
        let items = stream::unfold(receiver, |mut receiver| async move {
            let item = match receiver.recv().await {
                Ok(item) => Ok(item),
                Err(RecvError::Lagged(count)) => Err(count),
                Err(RecvError::Closed) => return None,
            };
            Some((item, receiver))
        });
        Self::new(name, StreamReceive { items: Some(Box::pin(items)) })
    }

    /// Takes from any stream. On shutdown what is ready is taken, then the stream is dropped.
    pub fn stream<S>(name: impl Into<String>, stream: S) -> Self
    where
        S: Stream + Send + 'static,
        S::Item: IntoRecords,
    {
        let items = futures_util::StreamExt::map(stream, Ok);
        Self::new(name, StreamReceive { items: Some(Box::pin(items)) })
    }

    /// Sets what happens when its share of memory is full. Default: [`Backpressure::Spool`] if the
    /// actor has a spool, else [`Backpressure::ShedOldest`]: neither makes a producer wait.
    #[must_use]
    pub fn with_backpressure(mut self, backpressure: Backpressure) -> Self {
        self.backpressure = Some(backpressure);
        self
    }

    fn new(name: impl Into<String>, receive: impl Receive + 'static) -> Self {
        Self { name: name.into(), backpressure: None, receive: Box::new(receive) }
    }
}

/// What was taken from a source besides the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Taken {
    /// Items that the source lost.
    pub(super) lagged: u64,
}

/// Takes items out of a channel or a stream.
pub(super) trait Receive: Send {
    /// Adds the records of some items to `records`; `None` at the end.
    fn poll_take(
        &mut self,
        context: &mut Context<'_>,
        records: &mut Vec<MetricRecord>,
    ) -> Poll<Option<Taken>>;

    /// Accepts nothing new; what is there can still be taken. Returns whether there will be an end.
    fn close(&mut self) -> bool {
        false
    }
}

/// Waits for the next items. Dropped half way, it has taken nothing.
pub(super) async fn take(
    receive: &mut dyn Receive,
    records: &mut Vec<MetricRecord>,
) -> Option<Taken> {
    poll_fn(|context| receive.poll_take(context, records)).await
}

/// Takes what is there already; `None` if nothing is, or at the end.
pub(super) async fn take_ready(
    receive: &mut dyn Receive,
    records: &mut Vec<MetricRecord>,
) -> Option<Taken> {
    let ready = poll_fn(|context| match receive.poll_take(context, records) {
        Poll::Ready(taken) => Poll::Ready(taken),
        Poll::Pending => Poll::Ready(None),
    });
    // A task that has used up its share of time would find nothing ready.
    tokio::task::unconstrained(ready).await
}

struct MpscReceive<T> {
    receiver: mpsc::Receiver<T>,
    items: Vec<T>,
}

impl<T: IntoRecords> Receive for MpscReceive<T> {
    fn poll_take(
        &mut self,
        context: &mut Context<'_>,
        records: &mut Vec<MetricRecord>,
    ) -> Poll<Option<Taken>> {
        let count = ready!(self.receiver.poll_recv_many(context, &mut self.items, ITEMS_MAX));
        for item in self.items.drain(..) {
            item.append_to(records);
        }
        Poll::Ready((count > 0).then(Taken::default))
    }

    fn close(&mut self) -> bool {
        self.receiver.close();
        true
    }
}

/// Items, and numbers of those that were lost.
type Items<T> = Pin<Box<dyn Stream<Item = Result<T, u64>> + Send>>;

struct StreamReceive<T> {
    /// None after its end: it must not be polled again.
    items: Option<Items<T>>,
}

impl<T: IntoRecords> Receive for StreamReceive<T> {
    fn poll_take(
        &mut self,
        context: &mut Context<'_>,
        records: &mut Vec<MetricRecord>,
    ) -> Poll<Option<Taken>> {
        let Some(items) = &mut self.items else { return Poll::Ready(None) };
        let mut taken = Taken::default();
        for count in 0..ITEMS_MAX {
            match items.as_mut().poll_next(context) {
                Poll::Ready(Some(Ok(item))) => item.append_to(records),
                Poll::Ready(Some(Err(lagged))) => taken.lagged += lagged,
                Poll::Ready(None) => {
                    self.items = None;
                    return Poll::Ready((count > 0).then_some(taken));
                }
                Poll::Pending if count == 0 => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Some(taken))
    }
}
