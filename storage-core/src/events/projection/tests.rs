//! Catching up, keeping up, rebuilding; several that run the same projection; what was pruned.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::events::{EventStoreExt, NewEvent, ProjectionInfo};
use crate::{InMemory, Matcher};
use serde_json::json;

/// Counts events by stream, and remembers how often it was asked to.
#[derive(Default)]
struct Counts {
    applied: AtomicU64,
    fails_at: u64,
}

#[async_trait]
impl Projection for Counts {
    fn name(&self) -> &str {
        "counts"
    }

    async fn apply(&self, event: &StoredEvent, rows: &mut Rows<'_>) -> Result<()> {
        self.applied.fetch_add(1, Ordering::SeqCst);
        if event.sequence == self.fails_at {
            return Err(Error::invalid("not this one"));
        }
        let count: u64 = rows.get("streams", &event.stream).await?.unwrap_or(0);
        rows.put("streams", &event.stream, &(count + 1))?;
        let all: u64 = rows.find("streams", &Matcher::any()).await?.len() as u64;
        rows.put("all", "streams", &all)
    }
}

fn events_of(count: u64) -> Vec<NewEvent> {
    (0..count).map(|n| NewEvent::new(format!("s{}", n % 7), "Counted", json!(n))).collect()
}

async fn counted(events: &dyn EventStore) -> Vec<u64> {
    let rows = events.rows("counts", "streams", &Matcher::any()).await.unwrap();
    rows.iter().map(|row| row.parse().unwrap()).collect()
}

#[tokio::test]
async fn catching_up_applies_each_event_once() {
    let events = InMemory::new().events();
    events.append_all(&events_of(2500)).await.unwrap();
    let projection = Counts::default();
    let done = events.catch_up(&projection).await.unwrap();
    assert_eq!((done.from, done.to, done.events()), (0, 2500, 2500));
    assert_eq!(counted(&events).await.iter().sum::<u64>(), 2500);
    assert_eq!(events.row::<u64>("counts", "all", "streams").await.unwrap(), Some(7));
    let done = events.catch_up(&projection).await.unwrap();
    assert_eq!((done.events(), projection.applied.load(Ordering::SeqCst)), (0, 2500));
}

#[tokio::test]
async fn a_projection_that_fails_stays_where_it_is() {
    let events = InMemory::new().events();
    events.append_all(&events_of(1500)).await.unwrap();
    let projection = Counts { fails_at: 1400, ..Counts::default() };
    assert_eq!(events.catch_up(&projection).await.unwrap_err().message(), "not this one");
    let info = ProjectionInfo { projection: "counts".to_owned(), checkpoint: 1000 };
    assert_eq!(events.projections().await.unwrap(), [info]);
    assert_eq!(counted(&events).await.iter().sum::<u64>(), 1000);
}

#[tokio::test]
async fn rebuilding_starts_from_nothing() {
    let events = InMemory::new().events();
    events.append_all(&events_of(1500)).await.unwrap();
    events.catch_up(&Counts::default()).await.unwrap();
    let spoil = ProjectionStep::new("counts", 1500, 1500).put("streams", "stray", json!(77));
    events.project(&spoil).await.unwrap();
    assert_eq!(events.rebuild(&Counts::default()).await.unwrap().events(), 1500);
    assert_eq!(counted(&events).await.iter().sum::<u64>(), 1500);
}

#[tokio::test]
async fn what_was_pruned_cannot_be_projected() {
    let events = InMemory::new().events();
    events.append_all(&events_of(100)).await.unwrap();
    events.catch_up(&Counts::default()).await.unwrap();
    events.prune_before(51).await.unwrap();
    let error = events.rebuild(&Counts::default()).await.unwrap_err();
    assert_eq!((error.kind(), error.context("first")), (ErrorKind::Conflict, Some("51")));
    assert_eq!(counted(&events).await.iter().sum::<u64>(), 100, "nothing is changed");
    events.forget_projection("counts").await.unwrap();
    for sequence in [51, 101] {
        events.prune_before(sequence).await.unwrap();
        let error = events.catch_up(&Counts::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }
}

#[tokio::test]
async fn several_run_the_same_projection() {
    let events = InMemory::new().events();
    let projections: Vec<Counts> = (0..3).map(|_| Counts::default()).collect();
    for _ in 0..5 {
        events.append_all(&events_of(2100)).await.unwrap();
        let all = projections.iter().map(|projection| events.catch_up(projection));
        for done in futures_util::future::join_all(all).await {
            done.unwrap();
        }
    }
    assert_eq!(counted(&events).await.iter().sum::<u64>(), 5 * 2100);
}

#[tokio::test]
async fn keeping_up_follows_the_log() {
    let store = InMemory::new();
    let events = store.events();
    let task = tokio::spawn({
        let events = events.clone();
        async move { events.keep_up(&Counts::default()).await.unwrap_err() }
    });
    for round in 1..=3 {
        events.append_all(&events_of(7)).await.unwrap();
        while counted(&events).await.iter().sum::<u64>() < 7 * round {
            tokio::task::yield_now().await;
        }
    }
    crate::StorageBackend::close(&store).await.unwrap();
    assert_eq!(task.await.unwrap().kind(), ErrorKind::Closed);
}
