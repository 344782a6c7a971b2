//! Expected versions, and batches that are appended again.

use std::sync::Arc;

use serde_json::json;
use storage_core::{
    ErrorKind, EventStore, EventStoreExt, ExpectedVersion, NewEvent, Outcome, Result, StoredEvent,
};
use tokio::sync::Barrier;

use super::{all, ev, ev_id, expect, ramp, sequences};
use crate::data::at;
use crate::failure::{CaseResult, Failure, expect_kind, expect_refused};
use crate::harness::Ctx;
use ExpectedVersion::{Any, Exact, NoStream};

event_cases! { "events_expect":
    any_expects_nothing,
    no_stream_expects_that_there_is_none,
    exact_expects_this_version,
    exact_zero_is_no_stream,
    expectations_hold_before_the_batch,
    every_stream_of_a_batch_can_be_expected,
    a_stream_that_the_batch_does_not_touch_can_be_expected,
    an_empty_batch_expects_nothing,
    bad_streams_cannot_be_expected,
    a_conflict_says_why_and_appends_nothing,
    one_conflict_does_not_touch_other_callers,
    of_concurrent_appends_one_succeeds,
    handles_compete_for_a_version,
    a_repeated_batch_gives_the_stored_events,
    a_repeated_batch_expects_nothing,
    a_repeated_batch_may_have_other_times,
    a_repeated_batch_answers_in_its_own_order,
    an_id_of_another_event_is_a_conflict,
    a_batch_that_is_stored_in_part_is_a_conflict,
    concurrent_repeats_append_once,
    ids_last_over_a_reopening,
}

async fn append(
    events: &dyn EventStore,
    stream: &str,
    version: ExpectedVersion,
) -> Result<Vec<StoredEvent>> {
    events.append(&[ev(stream, 0)], &[expect(stream, version)]).await
}

/// `Any` holds whatever there is.
async fn any_expects_nothing(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    for n in 1..=3 {
        ensure_eq!(append(events, "a", Any).await?[0].version, n);
    }
    Ok(())
}

/// `NoStream` holds once.
async fn no_stream_expects_that_there_is_none(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    append(events, "a", NoStream).await?;
    expect_kind(append(events, "a", NoStream).await, ErrorKind::Conflict, "a second time")?;
    append(events, "b", NoStream).await?;
    ensure_eq!(events.extent().await?.last, 2);
    Ok(())
}

/// `Exact` holds for the version of the last event, and neither for more nor for less.
async fn exact_expects_this_version(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 5)).await?;
    for other in [1, 4, 6, u64::MAX] {
        expect_kind(append(events, "a", Exact(other)).await, ErrorKind::Conflict, other)?;
    }
    ensure_eq!(append(events, "a", Exact(5)).await?[0].version, 6);
    ensure_eq!(append(events, "a", Exact(6)).await?[0].version, 7);
    Ok(())
}

/// Version 0 is that of a stream that is not there.
async fn exact_zero_is_no_stream(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    append(events, "a", Exact(0)).await?;
    expect_kind(append(events, "a", Exact(0)).await, ErrorKind::Conflict, "a second time")?;
    Ok(())
}

/// An expectation is about the time just before the batch, however many of its events the stream
/// gets.
async fn expectations_hold_before_the_batch(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append(&ramp("a", 3), &[expect("a", NoStream)]).await?;
    let stored = events.append(&ramp("a", 3), &[expect("a", Exact(3))]).await?;
    ensure_eq!(stored[2].version, 6);
    Ok(())
}

/// Several streams, several expectations; one that does not hold is enough.
async fn every_stream_of_a_batch_can_be_expected(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let batch = [ev("a", 0), ev("b", 0)];
    events.append(&batch, &[expect("a", NoStream), expect("b", NoStream)]).await?;
    for expected in [[Exact(1), NoStream], [Exact(7), Exact(1)]] {
        let expected = [expect("a", expected[0]), expect("b", expected[1])];
        expect_kind(events.append(&batch, &expected).await, ErrorKind::Conflict, "one of two")?;
    }
    events.append(&batch, &[expect("a", Exact(1)), expect("b", Exact(1))]).await?;
    ensure_eq!(events.extent().await?.last, 4);
    Ok(())
}

/// What one stream gets can depend on another.
async fn a_stream_that_the_batch_does_not_touch_can_be_expected(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append(&[ev("a", 0)], &[expect("other", NoStream)]).await?;
    let refused = events.append(&[ev("a", 1)], &[expect("other", Exact(1))]).await;
    expect_kind(refused, ErrorKind::Conflict, "of another stream")?;
    ensure_eq!(events.stream_version("other").await?, 0, "made by asking");
    Ok(())
}

/// An empty batch is `Ok`, whatever is expected.
async fn an_empty_batch_expects_nothing(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    ensure_eq!(events.append(&[], &[expect("a", Exact(7))]).await?, []);
    Ok(())
}

/// No stream has such a name.
async fn bad_streams_cannot_be_expected(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    for name in ["", "a\0b", &"x".repeat(513)] {
        let refused = events.append(&[ev("a", 1)], &[expect(name, Any)]).await;
        expect_refused(refused, Some("stream"), format!("{name:.10}"))?;
    }
    ensure_eq!(all(events).await?, []);
    Ok(())
}

/// The error says what was expected and what there is; it is no use in trying again, and nothing
/// is stored.
async fn a_conflict_says_why_and_appends_nothing(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 2)).await?;
    let before = all(events).await?;
    for (expected, text) in [(NoStream, "none"), (Exact(1), "1"), (Exact(3), "3")] {
        let batch = [ev("b", 0), ev("a", 9)];
        let refused = events.append(&batch, &[expect("b", Any), expect("a", expected)]).await;
        let error = expect_kind(refused, ErrorKind::Conflict, text)?;
        ensure_eq!(error.context("stream"), Some("a"));
        ensure_eq!(error.context("expected"), Some(text));
        ensure_eq!(error.context("version"), Some("2"));
        ensure_eq!(error.outcome(), Outcome::NotApplied);
        ensure!(!error.is_retryable(), "said to be worth a retry");
        ensure_eq!(all(events).await?, before);
    }
    Ok(())
}

/// Callers that are served together fail or succeed each for itself.
async fn one_conflict_does_not_touch_other_callers(ctx: &Ctx) -> CaseResult {
    let events = Arc::clone(ctx.events()?);
    let caller = |n: i64| {
        let events = Arc::clone(&events);
        tokio::spawn(async move {
            let stream = format!("s{n}");
            for round in 0..10 {
                // Every third caller expects what is not there.
                let version = if n % 3 == 0 { round + 1 } else { round };
                let stored = append(&*events, &stream, Exact(version)).await;
                let is_conflict = stored.is_err_and(|error| error.kind() == ErrorKind::Conflict);
                ensure_eq!(is_conflict, n % 3 == 0, "caller {n}, round {round}");
            }
            Ok::<_, Failure>(())
        })
    };
    for task in (0..30).map(caller).collect::<Vec<_>>() {
        task.await??;
    }
    ensure_eq!(events.extent().await?.last, 200);
    ensure_eq!(events.streams(&storage_core::Matcher::any()).await?.len(), 20);
    Ok(())
}

/// Of many callers that expect one version of one stream, one is served.
async fn of_concurrent_appends_one_succeeds(ctx: &Ctx) -> CaseResult {
    compete(vec![Arc::clone(ctx.events()?)], 10).await
}

/// Also through several handles.
async fn handles_compete_for_a_version(ctx: &Ctx) -> CaseResult {
    let others = [ctx.open_whole().await?, ctx.open_whole().await?];
    let mut handles = vec![Arc::clone(ctx.events()?)];
    for other in &others {
        handles.push(Arc::clone(other.events()?));
    }
    compete(handles, 10).await
}

async fn compete(handles: Vec<Arc<dyn EventStore>>, rounds: u64) -> CaseResult {
    for round in 0..rounds {
        let barrier = Arc::new(Barrier::new(8));
        let mut tasks = Vec::new();
        for n in 0..8 {
            let events = Arc::clone(&handles[n % handles.len()]);
            let barrier = Arc::clone(&barrier);
            tasks.push(tokio::spawn(async move {
                barrier.wait().await;
                append(&*events, "a", Exact(round)).await
            }));
        }
        let mut winners = 0;
        for task in tasks {
            match task.await? {
                Ok(_) => winners += 1,
                Err(error) => ensure_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
            }
        }
        ensure_eq!(winners, 1, "round {round}");
    }
    ensure_eq!(handles[0].extent().await?.last, rounds);
    Ok(())
}

fn with_ids(count: i64) -> Vec<NewEvent> {
    (0..count).map(|n| ev_id(&format!("id-{n}"), &format!("s{}", n % 2), n)).collect()
}

/// The same events with the same ids: what is stored comes back, and nothing is appended.
async fn a_repeated_batch_gives_the_stored_events(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("s0", 3)).await?;
    let stored = events.append_all(&with_ids(50)).await?;
    events.append_all(&ramp("s1", 3)).await?;
    for _ in 0..3 {
        ensure_eq!(events.append_all(&with_ids(50)).await?, stored);
    }
    ensure_eq!(events.append_all(&with_ids(1)).await?, stored[..1].to_vec());
    ensure_eq!(events.extent().await?.last, 56);
    ensure_eq!(events.append_all(&ramp("s0", 1)).await?[0].version, 29);
    Ok(())
}

/// What was expected the first time need not hold any more.
async fn a_repeated_batch_expects_nothing(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let (batch, expected) = (with_ids(4), [expect("s0", NoStream)]);
    let stored = events.append(&batch, &expected).await?;
    ensure_eq!(events.append(&batch, &expected).await?, stored);
    ensure_eq!(events.append(&batch, &[expect("s1", Exact(77))]).await?, stored);
    Ok(())
}

/// Who repeats may have made the event anew; the first time stays.
async fn a_repeated_batch_may_have_other_times(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let stored = events.append_all(&with_ids(2)).await?;
    let later: Vec<_> = with_ids(2).into_iter().map(|event| event.at(at(0))).collect();
    ensure_eq!(events.append_all(&later).await?, stored);
    Ok(())
}

/// The stored events come in the order of the batch that asks.
async fn a_repeated_batch_answers_in_its_own_order(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&with_ids(6)).await?;
    let mut batch = with_ids(6);
    batch.reverse();
    ensure_eq!(sequences(&events.append_all(&batch).await?), [6, 5, 4, 3, 2, 1]);
    Ok(())
}

/// Another stream, type or payload under the same id is another event: it is refused, and named.
async fn an_id_of_another_event_is_a_conflict(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&[ev("a", 0), ev_id("x", "a", 1)]).await?;
    let before = all(events).await?;
    let typed = NewEvent { event_type: "Other".to_owned(), ..ev_id("x", "a", 1) };
    let others = [
        ev_id("x", "b", 1),
        ev_id("x", "a", 2),
        typed,
        NewEvent { payload: json!({"n": 1.0}), ..ev_id("x", "a", 1) },
    ];
    for other in others {
        let refused = events.append_all(&[other]).await;
        let error = expect_kind(refused, ErrorKind::Conflict, "another event")?;
        ensure_eq!(error.context("event_id"), Some("x"));
        ensure_eq!(error.context("sequence"), Some("2"));
        ensure_eq!(all(events).await?, before);
    }
    Ok(())
}

/// A batch of which a part is stored is neither repeated nor new.
async fn a_batch_that_is_stored_in_part_is_a_conflict(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&with_ids(2)).await?;
    let batches = [with_ids(3), vec![ev("a", 7), with_ids(1).remove(0)], with_ids(9)[1..].to_vec()];
    for batch in batches {
        let refused = events.append_all(&batch).await;
        let error = expect_kind(refused, ErrorKind::Conflict, format!("{} events", batch.len()))?;
        ensure!(error.context("event_id").is_some_and(|id| id.starts_with("id-")), "{error}");
        ensure_eq!(events.extent().await?.last, 2);
    }
    Ok(())
}

/// However many say it at once, and through whichever handle, it is appended once.
async fn concurrent_repeats_append_once(ctx: &Ctx) -> CaseResult {
    let other = ctx.open_whole().await?;
    for round in 0..5 {
        let batch: Vec<_> = (0..3).map(|n| ev_id(&format!("{round}-{n}"), "a", n)).collect();
        let mut tasks = Vec::new();
        for n in 0..8 {
            let events = if n % 2 == 0 { ctx.events()? } else { other.events()? };
            let (events, batch) = (Arc::clone(events), batch.clone());
            tasks.push(tokio::spawn(async move { events.append_all(&batch).await }));
        }
        for task in tasks {
            let expected: Vec<_> = (round * 3 + 1..=round * 3 + 3).collect();
            ensure_eq!(sequences(&task.await??), expected, "round {round}");
        }
    }
    ensure_eq!(ctx.events()?.extent().await?.last, 15);
    Ok(())
}

/// What another handle appended in an earlier life is known.
async fn ids_last_over_a_reopening(ctx: &Ctx) -> CaseResult {
    let whole = ctx.open_whole().await?;
    let stored = whole.events()?.append_all(&with_ids(5)).await?;
    whole.close().await?;
    let whole = ctx.open_whole().await?;
    ensure_eq!(whole.events()?.append_all(&with_ids(5)).await?, stored);
    let refused = whole.events()?.append_all(&[ev_id("id-1", "s9", 1)]).await;
    expect_kind(refused, ErrorKind::Conflict, "another event")?;
    Ok(())
}
