//! What keeps the rows of a projection in step with the log.

use async_trait::async_trait;

use super::backend::EventStore;
use super::rows::{ProjectionStep, Rows};
use super::value::{EventQuery, StoredEvent};
use crate::error::{Error, ErrorKind, Result};

/// Events that one step of a projection takes at most.
const STEP_EVENTS: usize = 1000;

/// What a program derives from events: rows that are read at once, instead of the whole log.
///
/// Rows and checkpoint move together, so each event counts once, however the program ends; several
/// processes may run the same projection. See [`EventStoreExt`](super::EventStoreExt) for
/// `catch_up`, `keep_up` and `rebuild`.
///
/// ```
/// use async_trait::async_trait;
/// use serde_json::json;
/// use storage_core::events::Rows;
/// use storage_core::{EventStore, EventStoreExt, InMemory, NewEvent, Projection, StoredEvent};
///
/// struct PerStream;
///
/// #[async_trait]
/// impl Projection for PerStream {
///     fn name(&self) -> &str {
///         "per_stream"
///     }
///     async fn apply(&self, event: &StoredEvent, rows: &mut Rows<'_>) -> storage_core::Result<()> {
///         let count: u64 = rows.get("counts", &event.stream).await?.unwrap_or(0);
///         rows.put("counts", &event.stream, &(count + 1))
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
/// let events = InMemory::new().events();
/// let turn = |thread: &str| NewEvent::new(thread, "TurnStarted", json!({}));
/// events.append_all(&[turn("a"), turn("b"), turn("a")]).await?;
/// assert_eq!(events.catch_up(&PerStream).await?.to, 3);
/// let count: Option<u64> = events.row("per_stream", "counts", "a").await?;
/// assert_eq!(count, Some(2));
/// # Ok(()) }
/// ```
#[async_trait]
pub trait Projection: Send + Sync {
    /// The name under which its checkpoint and its rows are kept.
    fn name(&self) -> &str;

    /// Changes the rows as the event demands. It is called once for each event, in their order;
    /// again only if the step that it was part of was not made.
    ///
    /// # Errors
    /// Its own: the projection stays where it is then.
    async fn apply(&self, event: &StoredEvent, rows: &mut Rows<'_>) -> Result<()>;
}

/// What catching up did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaughtUp {
    /// The last event that the projection had seen before.
    pub from: u64,
    /// The last event that it has seen now.
    pub to: u64,
}

impl CaughtUp {
    /// How many events it took.
    pub fn events(&self) -> u64 {
        self.to.saturating_sub(self.from)
    }
}

/// Takes a projection to the end of the log.
pub(super) async fn catch_up(
    events: &dyn EventStore,
    projection: &dyn Projection,
) -> Result<CaughtUp> {
    let from = checkpoint(events, projection.name()).await?;
    let mut at = from.unwrap_or(0);
    if from.is_none() {
        // From now on nothing is pruned that it has not seen.
        register(events, projection.name()).await?;
    }
    loop {
        match step(events, projection, at).await {
            Ok(to) if to == at => return Ok(CaughtUp { from: from.unwrap_or(0), to }),
            Ok(to) => at = to,
            Err(error) if error.kind() == ErrorKind::Conflict => {
                let now = checkpoint(events, projection.name()).await?.unwrap_or(0);
                if now == at {
                    return Err(error);
                }
                // Another process runs the same projection, and was faster.
                at = now;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Throws away what the projection holds, and takes it through the whole log.
pub(super) async fn rebuild(
    events: &dyn EventStore,
    projection: &dyn Projection,
) -> Result<CaughtUp> {
    loop {
        let at = checkpoint(events, projection.name()).await?.unwrap_or(0);
        match events.project(&ProjectionStep::reset(projection.name(), at)).await {
            Ok(()) => break,
            Err(error) if error.kind() == ErrorKind::Conflict => {
                if checkpoint(events, projection.name()).await?.unwrap_or(0) == at {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
    catch_up(events, projection).await
}

async fn register(events: &dyn EventStore, name: &str) -> Result<()> {
    match events.project(&ProjectionStep::new(name, 0, 0)).await {
        Err(error) if error.kind() == ErrorKind::Conflict => {
            // Another process may have done so, and gone on.
            checkpoint(events, name).await?.map(drop).ok_or(error)
        }
        registered => registered,
    }
}

/// Where the projection stands; none if it does not exist.
async fn checkpoint(events: &dyn EventStore, name: &str) -> Result<Option<u64>> {
    let all = events.projections().await?;
    Ok(all.into_iter().find(|info| info.projection == name).map(|info| info.checkpoint))
}

/// Takes the projection over some events behind `at`, and returns where it stands then.
async fn step(events: &dyn EventStore, projection: &dyn Projection, at: u64) -> Result<u64> {
    let page = events.read(&EventQuery::from(at + 1).limit(STEP_EVENTS)).await?;
    let (Some(first), Some(last)) = (page.first(), page.last()) else { return Ok(at) };
    if first.sequence != at + 1 {
        return Err(Error::new(ErrorKind::Conflict, "events behind the checkpoint were pruned")
            .with_context("projection", projection.name())
            .with_context("checkpoint", at)
            .with_context("first", first.sequence));
    }
    let mut rows = Rows::new(events, projection.name());
    for event in &page {
        projection.apply(event, &mut rows).await?;
    }
    let changes = rows.into_changes();
    let step =
        ProjectionStep { changes, ..ProjectionStep::new(projection.name(), at, last.sequence) };
    events.project(&step).await?;
    Ok(last.sequence)
}

#[cfg(test)]
mod tests;
