//! What a writer appends until it is killed, and the proof that what it left is whole.
//!
//! Batch n of a lane appends [`EVENTS`] events to the two streams of the lane, expecting their exact
//! versions; now and then a projection of the lane is taken to its end, or forgotten, and what lies far
//! behind is pruned. Lanes share the log: whatever prunes have removed is its beginning.

use serde_json::json;
use storage_core::{
    EventQuery, EventStore, EventStoreExt, Expectation, ExpectedVersion, NewEvent, ProjectionStep,
    Result, Store as WholeStore, StoredEvent,
};

use super::workload::{Lane, Verified, time_of};
use crate::failure::{CaseResult, Failure};

/// Events of one batch.
pub(super) const EVENTS: u64 = STREAMS * PER_STREAM;

const STREAMS: u64 = 2;
const PER_STREAM: u64 = 10;

/// Every so many batches the projection follows, or is forgotten, the log is pruned, and the store is
/// compacted.
const PROJECT_EVERY: u64 = 3;
const FORGET_EVERY: u64 = 53;
const PRUNE_EVERY: u64 = 37;
const COMPACT_EVERY: u64 = 128;

/// Events at the end of the log that no prune removes: enough for a lane to find its last batch there,
/// however late it starts.
const KEPT: u64 = 10_000;

fn stream(lane: Lane, number: u64) -> String {
    format!("lane-{}-{number}", lane.0)
}

fn projection(lane: Lane) -> String {
    format!("lane-{}", lane.0)
}

fn event(lane: Lane, batch: u64, nth: u64) -> NewEvent {
    let stream = stream(lane, nth % STREAMS);
    NewEvent::new(stream, "Written", json!({ "batch": batch, "nth": nth }))
        .with_id(format!("{batch:010}-{nth:02}-{}", lane.0))
        .at(time_of(batch))
}

fn batch(lane: Lane, number: u64) -> Vec<NewEvent> {
    (0..EVENTS).map(|nth| event(lane, number, nth)).collect()
}

fn expected(lane: Lane, number: u64) -> Vec<Expectation> {
    let version = ExpectedVersion::Exact((number - 1) * PER_STREAM);
    (0..STREAMS).map(|of| Expectation::new(stream(lane, of), version)).collect()
}

pub(super) async fn write_forever(
    store: &WholeStore,
    lane: Lane,
    start: u64,
    mut on_ack: impl FnMut(u64) -> bool,
) -> Result<(), Failure> {
    let events = store.events()?;
    let mut number = start.max(1);
    if number > 1 {
        // Who was killed does not know whether its last batch is there, and says it again.
        let again = events.append(&batch(lane, number - 1), &expected(lane, number - 1)).await?;
        ensure_eq!(again.len() as u64, EVENTS, "the batch that was repeated");
    }
    loop {
        let stored = events.append(&batch(lane, number), &expected(lane, number)).await?;
        if !on_ack(number) {
            return Ok(());
        }
        if number.is_multiple_of(PROJECT_EVERY) {
            follow(&**events, lane, number, &stored).await?;
        }
        if number.is_multiple_of(FORGET_EVERY) {
            events.forget_projection(&projection(lane)).await?;
        }
        if number.is_multiple_of(PRUNE_EVERY) {
            prune(&**events, stored.last().map_or(0, |event| event.sequence)).await?;
        }
        if number.is_multiple_of(COMPACT_EVERY) {
            store.metrics().compact().await?;
        }
        number += 1;
    }
}

/// Takes the projection of a lane to the end of a batch; its row says which batch that is.
async fn follow(
    events: &dyn EventStore,
    lane: Lane,
    number: u64,
    stored: &[StoredEvent],
) -> CaseResult {
    let to = stored.last().map_or(0, |event| event.sequence);
    let from = checkpoint(events, lane).await?;
    let step = ProjectionStep::new(projection(lane), from, to);
    events.project(&step.put("batches", "last", json!(number))).await?;
    Ok(())
}

/// Removes what lies far behind `last`, as far as every projection has seen it.
async fn prune(events: &dyn EventStore, last: u64) -> CaseResult {
    let seen = events.projections().await?.into_iter().map(|info| info.checkpoint).min();
    let cutoff = last.saturating_sub(KEPT).min(seen.unwrap_or(0));
    events.prune_before(cutoff).await?;
    let first = events.extent().await?.first;
    ensure!(first >= cutoff, "a prune before {cutoff} left {first}");
    Ok(())
}

async fn checkpoint(events: &dyn EventStore, lane: Lane) -> Result<u64> {
    let all = events.projections().await?;
    let own = all.into_iter().find(|info| info.projection == projection(lane));
    Ok(own.map_or(0, |info| info.checkpoint))
}

/// Proves of each lane that it holds the batches up to n and nothing else, whatever `n` is, that the
/// log has no gap, that rows and checkpoints fit together, and that nothing stored is damaged.
pub(super) async fn verify_whole(
    store: &WholeStore,
    lanes: &[Lane],
) -> Result<Vec<Verified>, Failure> {
    let events = store.events()?;
    let log = read_all(&**events, EventQuery::from(1)).await?;
    let (first, last) =
        log.first().zip(log.last()).map_or((1, 0), |(a, b)| (a.sequence, b.sequence));
    ensure!(log.iter().map(|event| event.sequence).eq(first..=last), "a gap in the log");
    ensure!(log.len() as u64 >= last.min(KEPT), "pruned up to {first}, with {last} the last");
    let mut verified = Vec::new();
    for lane in lanes {
        verified.push(survey(&**events, &log, *lane).await?);
    }
    let found: u64 = verified.iter().map(|lane| lane.samples).sum();
    ensure_eq!(log.len() as u64, found, "events of these lanes");
    let appended: u64 = verified.iter().map(|lane| lane.last * EVENTS).sum();
    ensure_eq!(last, appended, "events that these lanes have appended");
    if store.metrics().capabilities().check {
        let problems = store.metrics().check().await?.problems;
        ensure!(problems.is_empty(), "check finds {problems:?}");
    }
    Ok(verified)
}

async fn survey(
    events: &dyn EventStore,
    log: &[StoredEvent],
    lane: Lane,
) -> Result<Verified, Failure> {
    let own = log.iter().filter(|event| event.stream.starts_with(&format!("lane-{}-", lane.0)));
    let own: Vec<_> = own.collect();
    let last = own.last().and_then(|event| event.payload["batch"].as_u64()).unwrap_or(0);
    let places = (1..=last).flat_map(|number| (0..EVENTS).map(move |nth| (number, nth)));
    let pruned = (last * EVENTS).checked_sub(own.len() as u64);
    let pruned = pruned.ok_or_else(|| Failure::new(format!("too many events of {lane:?}")))?;
    for (found, (number, nth)) in own.iter().zip(places.skip(pruned as usize)) {
        let version = (number - 1) * PER_STREAM + nth / STREAMS + 1;
        let expected = event(lane, number, nth).into_stored(found.sequence, version);
        ensure_eq!(**found, expected, "an event of {lane:?}, batch {number}");
    }
    for of in 0..STREAMS {
        let stream = stream(lane, of);
        let alone = read_all(events, EventQuery::from(1).stream(&*stream)).await?;
        let expected = own.iter().filter(|event| event.stream == stream);
        ensure!(alone.iter().eq(expected.copied()), "the stream {stream} read alone");
    }
    let row: Option<u64> = events.row(&projection(lane), "batches", "last").await?;
    let seen = match row {
        None => 0,
        Some(number) => {
            let index = (number * EVENTS).checked_sub(pruned + 1).map(|index| index as usize);
            let event = index.and_then(|index| own.get(index));
            event.ok_or_else(|| Failure::new(format!("no batch {number} of {lane:?}")))?.sequence
        }
    };
    ensure_eq!(checkpoint(events, lane).await?, seen, "the checkpoint of {lane:?}, row {row:?}");
    Ok(Verified { last, samples: own.len() as u64 })
}

async fn read_all(events: &dyn EventStore, query: EventQuery) -> Result<Vec<StoredEvent>> {
    let (mut query, mut found) = (query, Vec::new());
    loop {
        let page = events.read(&query).await?;
        let Some(last) = page.last() else { return Ok(found) };
        query.from = last.sequence + 1;
        found.extend(page);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage_core::InMemory;

    async fn written(last: u64) -> WholeStore {
        let store = WholeStore::from(InMemory::new());
        write_forever(&store, Lane(0), 1, |number| number < last).await.unwrap();
        store
    }

    #[tokio::test]
    async fn whole_batches_are_accepted_and_nothing_else() {
        let store = written(50).await;
        let found = verify_whole(&store, &[Lane(0)]).await.unwrap();
        assert_eq!(found, [Verified { last: 50, samples: 50 * EVENTS }]);
        let events = store.events().unwrap();
        let wrong = ProjectionStep::new("lane-0", 48 * EVENTS, 49 * EVENTS);
        events.project(&wrong).await.unwrap();
        assert!(verify_whole(&store, &[Lane(0)]).await.is_err(), "a checkpoint without its row");
        let store = written(20).await;
        store.events().unwrap().append_all(&batch(Lane(0), 21)[..7]).await.unwrap();
        assert!(verify_whole(&store, &[Lane(0)]).await.is_err(), "a part of a batch");
        let store = written(20).await;
        store.events().unwrap().append_all(&batch(Lane(0), 22)).await.unwrap();
        assert!(verify_whole(&store, &[Lane(0)]).await.is_err(), "a batch is missing");
    }

    #[tokio::test]
    async fn the_beginning_of_the_log_may_be_gone_and_no_more() {
        let batches = KEPT / EVENTS + 4 * PRUNE_EVERY;
        let store = written(batches).await;
        let found = verify_whole(&store, &[Lane(0)]).await.unwrap();
        assert_eq!(found[0].last, batches);
        assert!((KEPT..batches * EVENTS).contains(&found[0].samples), "{found:?}");
        let events = store.events().unwrap();
        events.forget_projection(&projection(Lane(0))).await.unwrap();
        events.prune_before((batches - 2) * EVENTS).await.unwrap();
        assert!(verify_whole(&store, &[Lane(0)]).await.is_err(), "more is gone");
    }

    #[tokio::test]
    async fn a_writer_goes_on_where_another_ended() {
        let store = written(20).await;
        write_forever(&store, Lane(0), 21, |number| number < 30).await.unwrap();
        write_forever(&store, Lane(1), 1, |number| number < 5).await.unwrap();
        let found = verify_whole(&store, &[Lane(0), Lane(1)]).await.unwrap();
        assert_eq!((found[0].last, found[1].last), (30, 5));
    }
}
