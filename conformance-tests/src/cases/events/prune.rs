//! Removing what every projection has seen: `prune_before`.

use std::sync::Arc;

use serde_json::json;
use storage_core::{
    ErrorKind, EventQuery, EventStoreExt, ExpectedVersion, LogExtent, Outcome, ProjectionStep,
    TimeRange,
};
use tokio::sync::Barrier;

use super::{
    all, all_of, checkpoints, ev, ev_id, expect, of_stream, ramp, rows, sequences, versions,
};
use crate::cases::cancel::{drop_at, moments};
use crate::data::{METRIC, NOON, SERVER, at, rec};
use crate::failure::{CaseResult, expect_kind};
use crate::harness::Ctx;

event_cases! { "events_prune":
    the_event_with_the_number_stays,
    nothing_before_the_beginning_goes,
    everything_can_go,
    numbers_and_versions_go_on,
    a_second_prune_removes_nothing,
    streams_outlive_their_events,
    versions_are_expected_as_before,
    ids_go_with_their_events,
    only_behind_every_projection,
    the_slowest_projection_is_named,
    a_projection_at_the_end_holds_nothing_back,
    a_forgotten_projection_holds_nothing_back,
    rows_outlive_events,
    a_large_log_is_cut_in_the_middle,
    concurrent_prunes_add_up,
    other_parts_are_left_alone,
    other_parts_leave_events_alone,
    a_dropped_prune_can_be_repeated,
}

/// Earlier ones go, the one with the number stays.
async fn the_event_with_the_number_stays(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 10)).await?;
    ensure_eq!(events.prune_before(4).await?, 3);
    ensure_eq!(sequences(&all(events).await?), (4..=10).collect::<Vec<_>>());
    ensure_eq!(events.extent().await?, LogExtent { first: 4, last: 10 });
    ensure_eq!(sequences(&of_stream(events, "a").await?).first(), Some(&4));
    Ok(())
}

/// Numbers up to 1 remove nothing, nor does anything in an empty log.
async fn nothing_before_the_beginning_goes(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    for sequence in [0, 1, 2, u64::MAX] {
        ensure_eq!(events.prune_before(sequence).await?, 0, "in an empty log");
    }
    events.append_all(&ramp("a", 3)).await?;
    for sequence in [0, 1] {
        ensure_eq!(events.prune_before(sequence).await?, 0);
    }
    ensure_eq!(events.extent().await?, LogExtent { first: 1, last: 3 });
    Ok(())
}

/// A number behind the end removes all.
async fn everything_can_go(ctx: &Ctx) -> CaseResult {
    for sequence in [11, 100, u64::MAX] {
        let events = ctx.events()?;
        let last = events.append_all(&ramp("a", 10)).await?[9].sequence;
        ensure_eq!(events.prune_before(sequence.max(last + 1)).await?, 10);
        ensure_eq!(all(events).await?, []);
        let extent = events.extent().await?;
        ensure_eq!(extent, LogExtent { first: last + 1, last });
        ensure_eq!(extent.count(), 0);
    }
    Ok(())
}

/// No number is given again, also where nothing is left, also after a reopening.
async fn numbers_and_versions_go_on(ctx: &Ctx) -> CaseResult {
    ctx.events()?.append_all(&ramp("a", 10)).await?;
    ctx.events()?.prune_before(11).await?;
    let whole = ctx.open_whole().await?;
    let stored = whole.events()?.append_all(&[ev("a", 0), ev("b", 0), ev("a", 0)]).await?;
    ensure_eq!(sequences(&stored), [11, 12, 13]);
    ensure_eq!(versions(&stored), [11, 1, 12]);
    Ok(())
}

/// What is gone is not counted again.
async fn a_second_prune_removes_nothing(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 10)).await?;
    ensure_eq!(events.prune_before(6).await?, 5);
    ensure_eq!(events.prune_before(6).await?, 0);
    ensure_eq!(events.prune_before(3).await?, 0);
    ensure_eq!(events.prune_before(8).await?, 2);
    Ok(())
}

/// A stream exists also when its events were pruned.
async fn streams_outlive_their_events(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&[ev("a", 0), ev("a", 1), ev("b", 2)]).await?;
    events.prune_before(3).await?;
    ensure_eq!(events.stream_version("a").await?, 2);
    ensure_eq!(of_stream(events, "a").await?, []);
    Ok(())
}

/// Expectations are about what was ever appended.
async fn versions_are_expected_as_before(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 4)).await?;
    events.prune_before(5).await?;
    let none = events.append(&[ev("a", 4)], &[expect("a", ExpectedVersion::NoStream)]).await;
    expect_kind(none, ErrorKind::Conflict, "no stream")?;
    events.append(&[ev("a", 4)], &[expect("a", ExpectedVersion::Exact(4))]).await?;
    Ok(())
}

/// An id is known as long as its event is there.
async fn ids_go_with_their_events(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&[ev_id("x", "a", 0), ev_id("y", "a", 1)]).await?;
    events.prune_before(2).await?;
    ensure_eq!(sequences(&events.append_all(&[ev_id("y", "a", 1)]).await?), [2]);
    ensure_eq!(sequences(&events.append_all(&[ev_id("x", "b", 7)]).await?), [3]);
    Ok(())
}

/// What one projection has not seen stays, all of it.
async fn only_behind_every_projection(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 10)).await?;
    events.project(&ProjectionStep::new("fast", 0, 10)).await?;
    events.project(&ProjectionStep::new("slow", 0, 4)).await?;
    for sequence in [6, 11, u64::MAX] {
        let refused = events.prune_before(sequence).await;
        let error = expect_kind(refused, ErrorKind::Conflict, sequence)?;
        ensure_eq!(error.outcome(), Outcome::NotApplied);
        ensure_eq!(all(events).await?.len(), 10, "some are gone");
    }
    ensure_eq!(events.prune_before(5).await?, 4);
    events.project(&ProjectionStep::new("new", 0, 4)).await?;
    expect_kind(events.prune_before(6).await, ErrorKind::Conflict, "the new one")?;
    ensure_eq!(events.prune_before(5).await?, 0);
    Ok(())
}

/// The error names one that has seen fewest events, and how many.
async fn the_slowest_projection_is_named(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 10)).await?;
    for (name, to) in [("c", 3), ("a", 9), ("d", 2), ("b", 5)] {
        events.project(&ProjectionStep::new(name, 0, to)).await?;
    }
    let error = expect_kind(events.prune_before(9).await, ErrorKind::Conflict, "the slowest")?;
    ensure_eq!(error.context("projection"), Some("d"));
    ensure_eq!(error.context("checkpoint"), Some("2"));
    Ok(())
}

/// Who has seen everything holds nothing back, however far the number.
async fn a_projection_at_the_end_holds_nothing_back(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.project(&ProjectionStep::new("p", 0, 0)).await?;
    ensure_eq!(events.prune_before(u64::MAX).await?, 0, "nothing to remove");
    events.append_all(&ramp("a", 10)).await?;
    events.project(&ProjectionStep::new("p", 0, 10)).await?;
    ensure_eq!(events.prune_before(u64::MAX).await?, 10);
    Ok(())
}

/// Nor does who is forgotten.
async fn a_forgotten_projection_holds_nothing_back(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 10)).await?;
    events.project(&ProjectionStep::new("p", 0, 0)).await?;
    expect_kind(events.prune_before(2).await, ErrorKind::Conflict, "held back")?;
    events.forget_projection("p").await?;
    ensure_eq!(events.prune_before(2).await?, 1);
    Ok(())
}

/// Rows and checkpoints are not touched.
async fn rows_outlive_events(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 10)).await?;
    events.project(&ProjectionStep::new("p", 0, 10).put("t", "a", json!(1))).await?;
    events.prune_before(11).await?;
    ensure_eq!(rows(&**events, "p", "t").await?, [("a".to_owned(), json!(1))]);
    ensure_eq!(checkpoints(&**events).await?, [("p".to_owned(), 10)]);
    Ok(())
}

/// However much goes, the number is exact and what stays is whole.
async fn a_large_log_is_cut_in_the_middle(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let batch: Vec<_> =
        (0..18_000).map(|n| ev_id(&format!("{n:06}"), &format!("s{}", n % 3), n)).collect();
    let stored = events.append_all(&batch).await?;
    ensure_eq!(events.prune_before(13_501).await?, 13_500);
    ensure!(all(events).await? == stored[13_500..], "what stays");
    ensure_eq!(of_stream(events, "s1").await?.len(), 1500);
    ensure_eq!(events.extent().await?, LogExtent { first: 13_501, last: 18_000 });
    Ok(())
}

/// The sum of concurrent prunes is what was there.
async fn concurrent_prunes_add_up(ctx: &Ctx) -> CaseResult {
    for round in 1..=4 {
        ctx.events()?.append_all(&ramp("a", 3000)).await?;
        let barrier = Arc::new(Barrier::new(4));
        let mut tasks = Vec::new();
        for _ in 0..4 {
            let (whole, barrier) = (ctx.open_whole().await?, Arc::clone(&barrier));
            tasks.push(tokio::spawn(async move {
                barrier.wait().await;
                whole.events()?.prune_before(round * 3000 - 499).await
            }));
        }
        let mut removed = 0;
        for task in tasks {
            removed += task.await??;
        }
        ensure_eq!(removed, if round == 1 { 2500 } else { 3000 }, "round {round}");
    }
    ensure_eq!(all(ctx.events()?).await?.len(), 500);
    Ok(())
}

/// Metrics and history are not touched.
async fn other_parts_are_left_alone(ctx: &Ctx) -> CaseResult {
    let samples: Vec<_> = (0..20).map(|n| rec(NOON + n, n as f64)).collect();
    ctx.store().write_batch(&samples).await?;
    if let Ok(history) = ctx.history() {
        let value = storage_core::StoredValue::new("a", at(NOON), json!(1));
        history.store_batch(&[value]).await?;
    }
    ctx.events()?.append_all(&ramp("a", 20)).await?;
    ensure_eq!(ctx.events()?.prune_before(21).await?, 20);
    ensure_eq!(ctx.store().query_range(SERVER, METRIC, TimeRange::all()).await?, samples);
    if let Ok(history) = ctx.history() {
        let found = history.query(&storage_core::HistoryQuery::parse("*")?).await?;
        ensure_eq!(found.len(), 1);
    }
    Ok(())
}

/// Nor does what is done to other parts touch events.
async fn other_parts_leave_events_alone(ctx: &Ctx) -> CaseResult {
    let stored = ctx.events()?.append_all(&ramp("a", 20)).await?;
    ctx.store().write_batch(&[rec(NOON, 1.0), rec(NOON + 1, 2.0)]).await?;
    ensure_eq!(ctx.store().prune_before(at(NOON + 60_000)).await?, 2);
    if let Ok(history) = ctx.history() {
        history.cleanup(at(NOON + 60_000)).await?;
    }
    ctx.store().compact().await?;
    ensure_eq!(all(ctx.events()?).await?, stored);
    Ok(())
}

/// A prune that is dropped leaves the handle usable, the youngest events whole, and repeating it
/// removes the rest.
async fn a_dropped_prune_can_be_repeated(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    for (round, moment) in moments().step_by(3).enumerate() {
        let last = events.append_all(&ramp("a", 5000)).await?[4999].sequence;
        drop_at(moment, events.prune_before(last - 999)).await.transpose()?;
        // What is read at once has no gap, and what must stay is there, while the rest goes.
        let page = sequences(&events.read(&EventQuery::from(1)).await?);
        ensure!(page.windows(2).all(|two| two[1] == two[0] + 1), "round {round}: a gap");
        let kept = all_of(events, EventQuery::from(last - 999)).await?;
        ensure!(sequences(&kept).into_iter().eq(last - 999..=last), "round {round}: too much");
        events.prune_before(last - 999).await?;
        ensure_eq!(events.extent().await?, LogExtent { first: last - 999, last });
        ensure_eq!(events.prune_before(last + 1).await?, 1000, "round {round}");
    }
    Ok(())
}
