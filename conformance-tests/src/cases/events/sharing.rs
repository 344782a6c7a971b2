//! Handles, tasks, drops and ends: what holds whatever the events.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::{join_all, try_join_all};
use serde_json::json;
use storage_core::{
    Error, ErrorKind, EventQuery, EventStore, EventStoreExt, LogExtent, Matcher, Outcome,
    ProjectionStep, StoredValue,
};

use super::{all, checkpoints, ev, numbers, of_stream, ramp, rows, sequences};
use crate::cases::cancel::{drop_at, moments};
use crate::data::{NOON, at, rec};
use crate::failure::{CaseResult, Failure, expect_kind};
use crate::harness::Ctx;

event_cases! { "events_sharing":
    a_fresh_location_holds_nothing,
    two_handles_see_each_others_events,
    two_handles_see_each_others_streams,
    two_locations_do_not_see_each_other,
    reopening_keeps_everything,
    dropping_a_handle_loses_nothing,
    sixteen_open_an_empty_location_and_append_at_once,
    sixty_four_callers_get_each_number_once,
    callers_keep_their_own_order,
    readers_see_whole_batches_and_no_gaps,
    readers_of_many_handles_miss_nothing,
    all_parts_are_stored_side_by_side,
    compact_changes_no_answer,
    a_filled_log_is_found_in_order,
    a_dropped_append_is_there_whole_or_not_at_all,
    a_dropped_append_comes_before_later_ones,
    dropped_questions_leave_the_handle_usable,
    a_closed_handle_refuses_every_call,
    other_handles_go_on_after_a_close,
    close_finishes_what_is_under_way,
    errors_name_backend_and_call,
    the_name_is_that_of_the_store,
}

/// A location that nothing was stored in holds no event, stream or projection.
async fn a_fresh_location_holds_nothing(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    ensure_eq!(all(events).await?, []);
    ensure_eq!(events.streams(&Matcher::any()).await?, []);
    ensure_eq!(checkpoints(&**events).await?, []);
    ensure_eq!(events.extent().await?, LogExtent { first: 1, last: 0 });
    Ok(())
}

/// What one appended, every other sees as soon as the call has returned; both ways.
async fn two_handles_see_each_others_events(ctx: &Ctx) -> CaseResult {
    let other = ctx.open_whole().await?;
    for round in 0..10 {
        let stored = ctx.events()?.append_all(&[ev("a", 2 * round)]).await?;
        let last = stored[0].sequence;
        ensure_eq!(other.events()?.read(&EventQuery::from(last)).await?, stored);
        let stored = other.events()?.append_all(&[ev("a", 2 * round + 1)]).await?;
        ensure_eq!((stored[0].sequence, stored[0].version), (last + 1, last + 1));
        ensure_eq!(ctx.events()?.read(&EventQuery::from(last + 1)).await?, stored);
        ensure_eq!(ctx.events()?.extent().await?.last, last + 1);
    }
    Ok(())
}

/// Also in streams that a handle has never heard of.
async fn two_handles_see_each_others_streams(ctx: &Ctx) -> CaseResult {
    let other = ctx.open_whole().await?;
    for round in 0..10 {
        let (one, two) = (format!("one-{round}"), format!("two-{round}"));
        ctx.events()?.append_all(&[ev(&one, 1)]).await?;
        ensure_eq!(numbers(&of_stream(other.events()?, &one).await?), [1]);
        other.events()?.append_all(&[ev(&two, 2), ev(&one, 3)]).await?;
        ensure_eq!(numbers(&of_stream(ctx.events()?, &two).await?), [2]);
        ensure_eq!(numbers(&of_stream(ctx.events()?, &one).await?), [1, 3]);
        ensure_eq!(ctx.events()?.streams(&Matcher::any()).await?.len(), 2 * round + 2);
    }
    Ok(())
}

/// Another location is another log.
async fn two_locations_do_not_see_each_other(ctx: &Ctx) -> CaseResult {
    let name = format!("{}_other", crate::harness::fresh_location());
    let elsewhere = ctx.fixture().open_store(&name).await?;
    elsewhere.events()?.append_all(&ramp("a", 3)).await?;
    let found = all(ctx.events()?).await?;
    elsewhere.close().await?;
    ctx.fixture().destroy(&name).await?;
    ensure_eq!(found, []);
    Ok(())
}

/// A log outlives its handles, rows and checkpoints too.
async fn reopening_keeps_everything(ctx: &Ctx) -> CaseResult {
    let mut expected = Vec::new();
    for round in 0..4 {
        let whole = ctx.open_whole().await?;
        let events = whole.events()?;
        ensure_eq!(all(events).await?, expected, "round {round}");
        expected.extend(events.append_all(&[ev("a", round), ev("b", round)]).await?);
        let to = expected.len() as u64;
        let step = ProjectionStep::new("p", to - 2, to).put("t", "a", json!(round));
        events.project(&step).await?;
        whole.close().await?;
        ensure_eq!(rows(&**ctx.events()?, "p", "t").await?, [("a".to_owned(), json!(round))]);
    }
    ensure_eq!(all(ctx.events()?).await?, expected);
    Ok(())
}

/// Nothing acknowledged is lost with a handle that is not closed.
async fn dropping_a_handle_loses_nothing(ctx: &Ctx) -> CaseResult {
    for round in 1..=5 {
        let whole = ctx.open_whole().await?;
        whole.events()?.append_all(&ramp("a", 10)).await?;
        drop(whole);
        ensure_eq!(all(ctx.events()?).await?.len(), 10 * round);
    }
    Ok(())
}

/// Any number of handles may make and use one location at once.
async fn sixteen_open_an_empty_location_and_append_at_once(ctx: &Ctx) -> CaseResult {
    let name = crate::harness::fresh_location();
    let fixture = Arc::clone(ctx.fixture());
    let open_and_append = |number: i64| {
        let (fixture, name) = (Arc::clone(&fixture), name.clone());
        tokio::spawn(async move {
            let whole = fixture.open_store(&name).await?;
            let own = format!("own-{number}");
            whole.events()?.append_all(&[ev(&own, number), ev("all", number)]).await?;
            whole.close().await
        })
    };
    let opened = join_all((0..16).map(open_and_append)).await;
    let whole = fixture.open_store(&name).await?;
    let found = all(whole.events()?).await;
    whole.close().await?;
    fixture.destroy(&name).await?;
    for result in opened {
        result??;
    }
    let found = found?;
    ensure!(sequences(&found).into_iter().eq(1..=32), "{:?}", sequences(&found));
    let mut shared = Vec::new();
    for event in found.iter().filter(|event| event.stream == "all") {
        shared.push(event.version);
    }
    ensure!(shared.into_iter().eq(1..=16), "each version once");
    Ok(())
}

/// Of many callers at once each event gets a number of its own, and none is left out.
async fn sixty_four_callers_get_each_number_once(ctx: &Ctx) -> CaseResult {
    let caller = |caller: i64| {
        let events = ctx.events().cloned();
        async move {
            let (events, mut got) = (events?, Vec::new());
            for n in 0..10 {
                let batch = [ev(&format!("s{}", n % 3), caller), ev("all", caller)];
                got.extend(events.append_all(&batch).await?);
            }
            Ok::<_, Error>(got)
        }
    };
    let mut got: Vec<_> = try_join_all((0..64).map(caller)).await?.into_iter().flatten().collect();
    got.sort_by_key(|event| event.sequence);
    ensure!(sequences(&got).into_iter().eq(1..=1280), "each number once");
    ensure!(all(ctx.events()?).await? == got, "the answers are what is stored");
    Ok(())
}

/// What one caller appends one after the other stays in that order, whatever others do.
async fn callers_keep_their_own_order(ctx: &Ctx) -> CaseResult {
    let other = ctx.open_whole().await?;
    let caller = |caller: i64| {
        let events = if caller % 2 == 0 { ctx.events() } else { other.events() }.cloned();
        async move {
            let events = events?;
            for n in 0..25 {
                events.append_all(&[ev("a", caller * 100 + n)]).await?;
            }
            Ok::<_, Error>(())
        }
    };
    try_join_all((0..6).map(caller)).await?;
    let found = numbers(&all(ctx.events()?).await?);
    for caller in 0..6 {
        let own = found.iter().copied().filter(|n| n / 100 == caller);
        ensure!(own.eq((0..25).map(|n| caller * 100 + n)), "caller {caller}: {found:?}");
    }
    Ok(())
}

/// No call that reads ever sees a part of a batch, nor a gap before what it sees.
async fn readers_see_whole_batches_and_no_gaps(ctx: &Ctx) -> CaseResult {
    const BATCHES: u64 = 40;
    const SIZE: u64 = 50;
    let (events, other) = (Arc::clone(ctx.events()?), ctx.open_whole().await?);
    let write = async {
        for n in 0..BATCHES {
            let mut batch: Vec<_> = (1..SIZE).map(|s| ev(&format!("s{s}"), n as i64)).collect();
            batch.push(ev(&format!("new-{n}"), n as i64));
            events.append_all(&batch).await?;
        }
        Ok::<_, Failure>(())
    };
    let read = |events: Arc<dyn EventStore>| async move {
        loop {
            let page = events.read(&EventQuery::from(1)).await?;
            ensure!(sequences(&page).into_iter().eq(1..=page.len() as u64), "a gap");
            ensure_eq!(page.len() as u64 % SIZE, 0, "a part of a batch");
            let last = events.extent().await?.last;
            ensure_eq!(last % SIZE, 0, "the end inside a batch");
            ensure!(last >= page.len() as u64, "the end before what was read");
            let total: u64 =
                events.streams(&Matcher::any()).await?.iter().map(|info| info.version).sum();
            ensure_eq!(total % SIZE, 0, "versions inside a batch");
            if last == BATCHES * SIZE {
                return Ok(());
            }
        }
    };
    let readers = [Arc::clone(&events), Arc::clone(other.events()?)].map(|e| tokio::spawn(read(e)));
    write.await?;
    for reader in readers {
        reader.await??;
    }
    Ok(())
}

/// Who follows the log from number to number sees each event, however many handles append: none
/// appears below another that was seen.
async fn readers_of_many_handles_miss_nothing(ctx: &Ctx) -> CaseResult {
    const EACH: u64 = 40;
    let mut wholes = Vec::new();
    for _ in 0..4 {
        wholes.push(ctx.open_whole().await?);
    }
    let follow = {
        let events = Arc::clone(ctx.events()?);
        tokio::spawn(async move {
            let mut seen = BTreeMap::new();
            let mut next = 1;
            while seen.len() as u64 != 4 * EACH {
                events.wait_for(next).await?;
                for event in events.read(&EventQuery::from(next)).await? {
                    ensure_eq!(event.sequence, next, "the next number");
                    ensure!(seen.insert(event.payload["n"].as_i64(), ()).is_none(), "twice");
                    next += 1;
                }
            }
            Ok::<_, Failure>(())
        })
    };
    let append = |(number, whole): (usize, &storage_core::Store)| {
        let events = whole.events().cloned();
        tokio::spawn(async move {
            let events = events?;
            for n in 0..EACH {
                let n = number as u64 * EACH + n;
                events.append_all(&[ev(&format!("s{}", n % 5), n as i64)]).await?;
            }
            Ok::<_, Error>(())
        })
    };
    let appending: Vec<_> = wholes.iter().enumerate().map(append).collect();
    for task in appending {
        task.await??;
    }
    follow.await??;
    Ok(())
}

/// Callers of all parts at once: everything of each is there, and the store is sound.
async fn all_parts_are_stored_side_by_side(ctx: &Ctx) -> CaseResult {
    let caller = |caller: i64| {
        let (store, events) = (Arc::clone(ctx.store()), ctx.events().cloned());
        let history = ctx.history().ok().cloned();
        async move {
            let events = events?;
            for n in 0..15 {
                let ms = NOON + caller * 1000 + n;
                let (samples, batch) = ([rec(ms, n as f64)], [ev("a", n), ev("b", n)]);
                let value = [StoredValue::new("cpu_usage", at(ms), json!(n))];
                let history = async {
                    match &history {
                        Some(history) => history.store_batch(&value).await,
                        None => Ok(()),
                    }
                };
                let both =
                    tokio::join!(store.write_batch(&samples), events.append_all(&batch), history);
                both.0?;
                both.1?;
                both.2?;
            }
            Ok::<_, Error>(())
        }
    };
    try_join_all((0..8).map(caller)).await?;
    ensure_eq!(ctx.points().await?.len(), 120);
    ensure!(sequences(&all(ctx.events()?).await?).into_iter().eq(1..=240), "each number once");
    ensure_eq!(ctx.store().stats().await?.total_metrics, 120);
    if let Ok(history) = ctx.history() {
        let found = history.query(&storage_core::HistoryQuery::parse("*")?).await?;
        ensure_eq!(found.len(), 120);
    }
    if ctx.store().capabilities().check {
        ensure_eq!(ctx.store().check().await?.problems, Vec::<String>::new());
    }
    Ok(())
}

/// Upkeep of the location changes no answer.
async fn compact_changes_no_answer(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 500)).await?;
    events.append_all(&ramp("b", 500)).await?;
    events.prune_before(101).await?;
    let before = all(events).await?;
    ctx.store().compact().await?;
    ctx.store().flush().await?;
    ensure_eq!(all(events).await?, before);
    Ok(())
}

/// A check of the location finds a log that was used in order.
async fn a_filled_log_is_found_in_order(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 500)).await?;
    events.project(&ProjectionStep::new("p", 0, 400).put("t", "a", json!(1))).await?;
    events.prune_before(251).await?;
    if ctx.store().capabilities().check {
        ensure_eq!(ctx.store().check().await?.problems, Vec::<String>::new());
    }
    ensure_eq!(ctx.store().health().await.status, storage_core::HealthStatus::Healthy);
    Ok(())
}

/// Dropping the future of a call leaves all of its effect or none.
async fn a_dropped_append_is_there_whole_or_not_at_all(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    for (round, moment) in (0_i64..).zip(moments()) {
        let name = format!("s{round:02}");
        let batch = ramp(&name, 200);
        drop_at(moment, events.append_all(&batch)).await.transpose()?;
        // A later one of the same handle comes after whatever the dropped one does.
        events.append_all(&[ev("later", round)]).await?;
        let found = of_stream(events, &name).await?.len();
        ensure!(found == 0 || found == 200, "{found} events of a dropped batch");
    }
    let found = sequences(&all(events).await?);
    ensure!(found.iter().copied().eq(1..=found.len() as u64), "a gap");
    Ok(())
}

/// A batch that is still stored after its future was dropped comes before later ones.
async fn a_dropped_append_comes_before_later_ones(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    for (round, moment) in (0_i64..).zip(moments()) {
        let name = format!("s{round:02}");
        let first = [ev(&name, 1)];
        drop_at(moment, events.append_all(&first)).await.transpose()?;
        events.append_all(&[ev(&name, 2)]).await?;
        let at_once = of_stream(events, &name).await?;
        ensure_eq!(numbers(&at_once).last(), Some(&2), "round {round}");
        events.append_all(&[ev("later", round)]).await?;
        ensure_eq!(of_stream(events, &name).await?, at_once, "round {round}, later");
    }
    Ok(())
}

/// Questions that nobody waits for leave the handle usable.
async fn dropped_questions_leave_the_handle_usable(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 3000)).await?;
    for moment in moments() {
        let query = EventQuery::from(1);
        drop_at(moment, events.read(&query)).await.transpose()?;
        drop_at(moment, events.wait_for(u64::MAX)).await.transpose()?;
        drop_at(moment, events.streams(&Matcher::any())).await.transpose()?;
    }
    ensure_eq!(all(events).await?.len(), 3000);
    events.append_all(&ramp("b", 3)).await?;
    ensure_eq!(all(events).await?.len(), 3003);
    Ok(())
}

/// After the store was closed, every call says so, and nothing is stored.
async fn a_closed_handle_refuses_every_call(ctx: &Ctx) -> CaseResult {
    let whole = ctx.open_whole().await?;
    whole.close().await?;
    let (events, closed) = (whole.events()?, ErrorKind::Closed);
    let error = expect_kind(events.append_all(&ramp("a", 3)).await, closed, "append")?;
    ensure_eq!(error.outcome(), Outcome::NotApplied);
    expect_kind(events.append_all(&[]).await, closed, "an empty batch")?;
    expect_kind(events.read(&EventQuery::from(1)).await, closed, "read")?;
    expect_kind(events.read(&EventQuery::from(1).limit(0)).await, closed, "read of none")?;
    expect_kind(events.extent().await, closed, "extent")?;
    expect_kind(events.streams(&Matcher::any()).await, closed, "streams")?;
    expect_kind(events.wait_for(0).await, closed, "wait_for")?;
    expect_kind(events.project(&ProjectionStep::new("p", 0, 0)).await, closed, "project")?;
    expect_kind(events.projections().await, closed, "projections")?;
    expect_kind(events.rows("p", "t", &Matcher::any()).await, closed, "rows")?;
    expect_kind(events.forget_projection("p").await, closed, "forget_projection")?;
    expect_kind(events.prune_before(9).await, closed, "prune_before")?;
    ensure_eq!(all(ctx.events()?).await?, []);
    ensure_eq!(checkpoints(&**ctx.events()?).await?, []);
    Ok(())
}

/// Closing one handle leaves the others alone.
async fn other_handles_go_on_after_a_close(ctx: &Ctx) -> CaseResult {
    let whole = ctx.open_whole().await?;
    whole.events()?.append_all(&ramp("a", 3)).await?;
    whole.close().await?;
    ctx.events()?.append_all(&ramp("b", 3)).await?;
    ensure_eq!(all(ctx.events()?).await?.len(), 6);
    Ok(())
}

/// Close finishes what is under way: what was acknowledged is there, what was refused is not.
async fn close_finishes_what_is_under_way(ctx: &Ctx) -> CaseResult {
    let whole = ctx.open_whole().await?;
    let append = |n: i64| {
        let events = whole.events().cloned();
        tokio::spawn(async move { events?.append_all(&[ev("a", n)]).await })
    };
    let tasks: Vec<_> = (0..50).map(append).collect();
    tokio::task::yield_now().await;
    whole.close().await?;
    let mut acknowledged = Vec::new();
    for task in tasks {
        match task.await? {
            Ok(stored) => acknowledged.extend(stored),
            Err(error) => ensure_eq!(
                (error.kind(), error.outcome()),
                (ErrorKind::Closed, Outcome::NotApplied)
            ),
        }
    }
    acknowledged.sort_by_key(|event| event.sequence);
    ensure_eq!(all(ctx.events()?).await?, acknowledged);
    Ok(())
}

/// Errors name the backend and the call, in one line.
async fn errors_name_backend_and_call(ctx: &Ctx) -> CaseResult {
    let refused = ctx.events()?.append_all(&[ev("", 1)]).await;
    let whole = ctx.open_whole().await?;
    whole.close().await?;
    let events = whole.events()?;
    let errors = [
        ("append", refused.err()),
        ("read", events.read(&EventQuery::from(1)).await.err()),
        ("extent", events.extent().await.err()),
        ("streams", events.streams(&Matcher::any()).await.err()),
        ("wait_for", events.wait_for(1).await.err()),
        ("project", events.project(&ProjectionStep::new("p", 0, 0)).await.err()),
        ("projections", events.projections().await.err()),
        ("rows", events.rows("p", "t", &Matcher::any()).await.err()),
        ("forget_projection", events.forget_projection("p").await.err()),
        ("prune_before", events.prune_before(2).await.err()),
    ];
    for (operation, error) in errors {
        let Some(error) = error else { return Err(Failure::new(format!("{operation} succeeded"))) };
        ensure_eq!(error.operation(), Some(operation));
        ensure_eq!(error.backend(), Some(ctx.store().name()), "{operation}");
        ensure!(!error.to_string().contains('\n'), "{operation}: more than one line");
    }
    Ok(())
}

/// The parts of a store have one name.
async fn the_name_is_that_of_the_store(ctx: &Ctx) -> CaseResult {
    ensure_eq!(ctx.events()?.name(), ctx.store().name());
    Ok(())
}
