//! Where values to persist come from: channels of Tokio and streams, behind one trait.

use std::future::Future;
use std::pin::Pin;

use futures_core::Stream;
use futures_util::StreamExt;
use tokio::sync::{broadcast, mpsc, watch};

/// What a source gives next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next<T> {
    /// A value.
    Value(T),
    /// So many values were lost, because the source could not keep them for so long.
    Lagged(u64),
    /// No value will follow.
    End,
}

/// Gives values one after the other.
pub trait Source: Send + 'static {
    /// The type of the values.
    type Item: Send + 'static;

    /// Waits for the next value. Dropped before it is done, it has taken none.
    fn next(&mut self) -> impl Future<Output = Next<Self::Item>> + Send;

    /// How many values it holds now, lost ones that it has not reported yet included; 0 where values
    /// are made when they are asked for.
    fn held(&self) -> usize {
        0
    }
}

impl<T: Clone + Send + 'static> Source for broadcast::Receiver<T> {
    type Item = T;

    async fn next(&mut self) -> Next<T> {
        match self.recv().await {
            Ok(value) => Next::Value(value),
            Err(broadcast::error::RecvError::Lagged(count)) => Next::Lagged(count),
            Err(broadcast::error::RecvError::Closed) => Next::End,
        }
    }

    fn held(&self) -> usize {
        self.len()
    }
}

/// A watch holds one value: what was replaced before it was seen leaves no trace to count. The
/// value that is there at the start counts as seen; `mark_changed` makes it a new one.
impl<T: Clone + Send + Sync + 'static> Source for watch::Receiver<T> {
    type Item = T;

    async fn next(&mut self) -> Next<T> {
        match self.changed().await {
            Ok(()) => Next::Value(self.borrow_and_update().clone()),
            Err(_) => Next::End,
        }
    }

    fn held(&self) -> usize {
        usize::from(self.has_changed().unwrap_or(false))
    }
}

impl<T: Send + 'static> Source for mpsc::Receiver<T> {
    type Item = T;

    async fn next(&mut self) -> Next<T> {
        self.recv().await.map_or(Next::End, Next::Value)
    }

    fn held(&self) -> usize {
        self.len()
    }
}

impl<T: Send + 'static> Source for mpsc::UnboundedReceiver<T> {
    type Item = T;

    async fn next(&mut self) -> Next<T> {
        self.recv().await.map_or(Next::End, Next::Value)
    }

    fn held(&self) -> usize {
        self.len()
    }
}

/// A stream as a source.
pub struct StreamSource<T>(Pin<Box<dyn Stream<Item = T> + Send>>);

impl<T> StreamSource<T> {
    pub(super) fn new(stream: impl Stream<Item = T> + Send + 'static) -> Self {
        // Fused, because it is asked again after its end.
        Self(Box::pin(stream.fuse()))
    }
}

impl<T> std::fmt::Debug for StreamSource<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StreamSource")
    }
}

impl<T: Send + 'static> Source for StreamSource<T> {
    type Item = T;

    async fn next(&mut self) -> Next<T> {
        self.0.next().await.map_or(Next::End, Next::Value)
    }
}
