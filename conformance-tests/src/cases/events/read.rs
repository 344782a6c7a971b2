//! Reading: pages, streams, the extent of the log, waiting.

use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use serde_json::json;
use storage_core::events::value::PAYLOAD_BYTES_MAX;
use storage_core::{
    ErrorKind, EventQuery, EventStoreExt, LogExtent, Matcher, NewEvent, StreamInfo,
};
use tokio::task::JoinHandle;

use super::{all, all_of, ev, holding, numbers, of_stream, ramp, sequences};
use crate::data::{NOON, ODD_NAMES, at};
use crate::failure::{CaseResult, Failure, expect_kind, expect_refused};
use crate::harness::Ctx;

event_cases! { "events_read":
    the_start_is_included,
    zero_and_one_are_the_beginning,
    behind_the_end_there_is_nothing,
    a_limit_counts_events,
    a_limit_of_zero_gives_nothing,
    one_stream_alone,
    a_limit_counts_inside_the_stream,
    a_stream_is_no_pattern,
    an_unknown_stream_gives_nothing,
    bad_streams_are_refused,
    pages_together_are_everything,
    pages_of_large_events_are_bounded,
    a_page_behind_a_large_event_follows,
    a_replay_gives_everything_from_its_start,
    a_replay_takes_what_is_appended_meanwhile,
    a_subscription_goes_on_with_what_is_appended,
    an_empty_log_begins_at_one,
    streams_come_by_name_with_their_versions,
    streams_are_chosen_by_name,
    what_is_there_need_not_be_waited_for,
    waiting_ends_with_the_append,
    waiting_ends_with_the_append_of_another_handle,
    waiting_goes_on_until_the_number_is_there,
    waiting_ends_when_the_store_is_closed,
}

/// A start is the first event of the answer.
async fn the_start_is_included(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 20)).await?;
    for start in [1, 2, 19, 20] {
        let found = all_of(events, EventQuery::from(start)).await?;
        ensure_eq!(sequences(&found), (start..=20).collect::<Vec<_>>(), "from {start}");
    }
    Ok(())
}

/// There is no event 0; asking for it is asking for all.
async fn zero_and_one_are_the_beginning(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 3)).await?;
    for start in [0, 1] {
        ensure_eq!(events.read(&EventQuery::from(start)).await?.len(), 3, "from {start}");
    }
    Ok(())
}

/// Behind the end the answer is empty, however far.
async fn behind_the_end_there_is_nothing(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    ensure_eq!(events.read(&EventQuery::from(1)).await?, []);
    events.append_all(&ramp("a", 3)).await?;
    for start in [4, 5, i64::MAX as u64, u64::MAX] {
        ensure_eq!(events.read(&EventQuery::from(start)).await?, [], "from {start}");
        let of = EventQuery::from(start).stream("a");
        ensure_eq!(events.read(&of).await?, [], "of a stream, from {start}");
    }
    Ok(())
}

/// A limit is the number of events, from the start on.
async fn a_limit_counts_events(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 20)).await?;
    for (limit, last) in [(1, 5), (7, 11), (16, 20), (17, 20), (usize::MAX, 20)] {
        let found = events.read(&EventQuery::from(5).limit(limit)).await?;
        ensure_eq!(sequences(&found), (5..=last).collect::<Vec<_>>(), "limit {limit}");
    }
    Ok(())
}

/// None at most is none.
async fn a_limit_of_zero_gives_nothing(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 3)).await?;
    ensure_eq!(events.read(&EventQuery::from(1).limit(0)).await?, []);
    ensure_eq!(events.read(&EventQuery::from(1).stream("a").limit(0)).await?, []);
    Ok(())
}

/// The events of one stream, by number, from the start on.
async fn one_stream_alone(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let batch: Vec<_> = (0..30).map(|n| ev(["a", "b", "c"][n as usize % 3], n)).collect();
    events.append_all(&batch).await?;
    let found = of_stream(events, "b").await?;
    ensure_eq!(sequences(&found), (0..10).map(|n| 3 * n + 2).collect::<Vec<_>>());
    ensure!(found.iter().all(|event| event.stream == "b"), "of other streams");
    let found = all_of(events, EventQuery::from(6).stream("b")).await?;
    ensure_eq!(found.first().map(|event| event.sequence), Some(8));
    Ok(())
}

/// Events of other streams do not count.
async fn a_limit_counts_inside_the_stream(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let batch: Vec<_> = (0..30).map(|n| ev(["a", "b", "c"][n as usize % 3], n)).collect();
    events.append_all(&batch).await?;
    let found = events.read(&EventQuery::from(6).stream("b").limit(3)).await?;
    ensure_eq!(sequences(&found), [8, 11, 14]);
    Ok(())
}

/// Names are compared byte by byte.
async fn a_stream_is_no_pattern(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&[ev("a", 0), ev("A", 1), ev("a*", 2), ev("ab", 3), ev("a ", 4)]).await?;
    for (stream, n) in [("a", 0), ("A", 1), ("a*", 2), ("a ", 4)] {
        ensure_eq!(numbers(&of_stream(events, stream).await?), [n], "{stream:?}");
    }
    Ok(())
}

/// A stream that does not exist has no events.
async fn an_unknown_stream_gives_nothing(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    ensure_eq!(of_stream(events, "a").await?, []);
    events.append_all(&ramp("a", 3)).await?;
    ensure_eq!(of_stream(events, "b").await?, []);
    ensure_eq!(events.streams(&Matcher::any()).await?.len(), 1, "asking makes none");
    Ok(())
}

/// No stream has such a name.
async fn bad_streams_are_refused(ctx: &Ctx) -> CaseResult {
    for name in ["", "a\0b", &"x".repeat(513)] {
        let refused = ctx.events()?.read(&EventQuery::from(1).stream(name)).await;
        expect_refused(refused, Some("stream"), format!("{name:.10}"))?;
    }
    Ok(())
}

/// No limit applies that nobody asked for: page by page everything comes, each event once.
async fn pages_together_are_everything(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let count: i64 = 25_000;
    for first in (0..count).step_by(5000) {
        let batch: Vec<_> = (first..first + 5000).map(|n| ev(&format!("s{}", n % 3), n)).collect();
        events.append_all(&batch).await?;
    }
    ensure!(numbers(&all(events).await?).into_iter().eq(0..count), "all of the log");
    let found = numbers(&of_stream(events, "s1").await?);
    ensure!(found.into_iter().eq((1..count).step_by(3)), "all of a stream");
    let found = all_of(events, EventQuery::from(20_001).limit(1000)).await?;
    ensure!(numbers(&found).into_iter().eq(20_000..count), "in pages of 1000");
    Ok(())
}

/// Pages of the largest events are smaller, never empty, and leave nothing out.
async fn pages_of_large_events_are_bounded(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let large = "x".repeat(PAYLOAD_BYTES_MAX - 20);
    for n in 0..12 {
        events.append_all(&[holding(json!([n, large])), ev("small", n)]).await?;
    }
    let found = all(events).await?;
    ensure!(sequences(&found).into_iter().eq(1..=24), "{:?}", sequences(&found));
    ensure!((0..12).all(|n| found[2 * n].payload[0] == json!(n)), "the payloads");
    let found = of_stream(events, "s").await?;
    ensure!(sequences(&found).into_iter().eq((1..24).step_by(2)), "{:?}", sequences(&found));
    Ok(())
}

/// One event alone, however large, is a page; small ones follow.
async fn a_page_behind_a_large_event_follows(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&[holding("x".repeat(PAYLOAD_BYTES_MAX - 2)), ev("a", 1)]).await?;
    ensure_eq!(sequences(&events.read(&EventQuery::from(1).limit(1)).await?), [1]);
    ensure_eq!(sequences(&events.read(&EventQuery::from(2)).await?), [2]);
    Ok(())
}

/// A replay is all of the log, or of a stream, from where it starts, whatever the pages are.
async fn a_replay_gives_everything_from_its_start(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let count: i64 = 9_000;
    for first in (0..count).step_by(3000) {
        let batch: Vec<_> = (first..first + 3000).map(|n| ev(&format!("s{}", n % 3), n)).collect();
        events.append_all(&batch).await?;
    }
    let found: Vec<_> = events.replay_all().try_collect().await?;
    ensure!(sequences(&found).into_iter().eq(1..=count.unsigned_abs()), "all of the log");
    ensure!(numbers(&found).into_iter().eq(0..count), "what it holds");
    let found: Vec<_> = events.replay_from(8_000).try_collect().await?;
    ensure!(numbers(&found).into_iter().eq(7_999..count), "the end of the log");
    let of_one = EventQuery::from(1).stream("s1").limit(2_500);
    let found: Vec<_> = events.replay(of_one).try_collect().await?;
    ensure!(numbers(&found).into_iter().eq((1..count).step_by(3).take(2_500)), "a stream");
    Ok(())
}

/// What is appended before the end was reached comes too: the log is longer than the page that is
/// taken and the one that is read ahead.
async fn a_replay_takes_what_is_appended_meanwhile(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 17_000)).await?;
    let mut replay = events.replay_all();
    let first = replay.try_next().await?;
    ensure_eq!(first.map(|event| event.sequence), Some(1));
    ctx.open_whole().await?.events()?.append_all(&ramp("b", 500)).await?;
    let rest: Vec<_> = replay.try_collect().await?;
    ensure!(sequences(&rest).into_iter().eq(2..=17_500), "{} events", rest.len());
    Ok(())
}

/// A subscription gives what is there, then what is appended, by whichever handle, each event once.
async fn a_subscription_goes_on_with_what_is_appended(ctx: &Ctx) -> CaseResult {
    let (events, other) = (ctx.events()?, ctx.open_whole().await?);
    events.append_all(&ramp("a", 3)).await?;
    let mut subscription = events.subscribe(2);
    let mut next = async || {
        let next = tokio::time::timeout(Duration::from_secs(5), subscription.try_next()).await;
        Ok::<_, Failure>(next??.map(|event| (event.sequence, event.stream)))
    };
    let is = |sequence, stream: &str| Some((sequence, stream.to_owned()));
    ensure_eq!(next().await?, is(2, "a"));
    ensure_eq!(next().await?, is(3, "a"));
    for round in 0..5 {
        events.append_all(&ramp("b", 1)).await?;
        ensure_eq!(next().await?, is(4 + 3 * round, "b"));
        other.events()?.append_all(&ramp("c", 2)).await?;
        ensure_eq!(next().await?, is(5 + 3 * round, "c"));
        ensure_eq!(next().await?, is(6 + 3 * round, "c"));
    }
    Ok(())
}

/// Nothing was appended: the first event will be number 1.
async fn an_empty_log_begins_at_one(ctx: &Ctx) -> CaseResult {
    let extent = ctx.events()?.extent().await?;
    ensure_eq!(extent, LogExtent { first: 1, last: 0 });
    ensure_eq!(extent.count(), 0);
    Ok(())
}

/// Streams come by name, byte by byte, each with the version of its last event.
async fn streams_come_by_name_with_their_versions(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let odd = |name: &&str| NewEvent::new(*name, "T", json!(1)).at(at(NOON));
    events.append_all(&ODD_NAMES.iter().map(odd).collect::<Vec<_>>()).await?;
    events.append_all(&ramp("strasse", 4)).await?;
    let mut expected: Vec<_> = ODD_NAMES
        .iter()
        .map(|name| StreamInfo {
            stream: (*name).to_owned(),
            version: if *name == "strasse" { 5 } else { 1 },
        })
        .collect();
    expected.sort_by(|a, b| a.stream.as_bytes().cmp(b.stream.as_bytes()));
    ensure_eq!(events.streams(&Matcher::any()).await?, expected);
    Ok(())
}

/// By exact names or by pattern, case included.
async fn streams_are_chosen_by_name(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let names = ["thread-1", "thread-10", "thread_1", "Thread-1", "project-1", "a*"];
    events.append_all(&names.map(|name| ev(name, 0))).await?;
    let chosen = async |streams: Matcher| {
        let found = events.streams(&streams).await?;
        Ok::<_, Failure>(found.into_iter().map(|info| info.stream).collect::<Vec<_>>())
    };
    ensure_eq!(chosen(Matcher::parse("thread-*")?).await?, ["thread-1", "thread-10"]);
    ensure_eq!(chosen(Matcher::parse("*1")?).await?.len(), 4);
    ensure_eq!(chosen(Matcher::exact("a*")?).await?, ["a*"]);
    ensure_eq!(chosen(Matcher::any_of(["x", "thread_1", "a*"])?).await?, ["a*", "thread_1"]);
    ensure_eq!(chosen(Matcher::parse("thread?1")?).await?, Vec::<String>::new());
    Ok(())
}

/// What is there, or was and is pruned, is waited for no longer.
async fn what_is_there_need_not_be_waited_for(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.wait_for(0).await?;
    events.append_all(&ramp("a", 3)).await?;
    for sequence in [0, 1, 3] {
        events.wait_for(sequence).await?;
    }
    events.prune_before(4).await?;
    events.wait_for(3).await?;
    Ok(())
}

/// Starts to wait for event 3, and returns once it waits.
async fn start_to_wait(ctx: &Ctx) -> Result<JoinHandle<storage_core::Result<()>>, Failure> {
    let events = std::sync::Arc::clone(ctx.events()?);
    let waiting = tokio::spawn(async move { events.wait_for(3).await });
    still_waits(&waiting).await?;
    Ok(waiting)
}

/// Fails if a wait ends before it should: it gets more than enough turns to do so.
async fn still_waits(waiting: &JoinHandle<storage_core::Result<()>>) -> CaseResult {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    ensure!(!waiting.is_finished(), "it did not wait");
    Ok(())
}

/// Fails unless a wait ends within a second and a half.
async fn ends_soon(waiting: JoinHandle<storage_core::Result<()>>) -> CaseResult {
    let appended = Instant::now();
    tokio::time::timeout(Duration::from_secs(10), waiting).await???;
    let took = appended.elapsed();
    ensure!(took < Duration::from_millis(1500), "it waited for {took:?} too long");
    Ok(())
}

/// A wait ends as the event is appended.
async fn waiting_ends_with_the_append(ctx: &Ctx) -> CaseResult {
    let waiting = start_to_wait(ctx).await?;
    ctx.events()?.append_all(&ramp("a", 3)).await?;
    ends_soon(waiting).await
}

/// Also where another handle appends, within a second.
async fn waiting_ends_with_the_append_of_another_handle(ctx: &Ctx) -> CaseResult {
    let other = ctx.open_whole().await?;
    let waiting = start_to_wait(ctx).await?;
    other.events()?.append_all(&ramp("a", 3)).await?;
    ends_soon(waiting).await
}

/// Earlier events do not end it.
async fn waiting_goes_on_until_the_number_is_there(ctx: &Ctx) -> CaseResult {
    ctx.events()?.append_all(&ramp("a", 1)).await?;
    let waiting = start_to_wait(ctx).await?;
    ctx.events()?.append_all(&ramp("a", 1)).await?;
    still_waits(&waiting).await?;
    ctx.events()?.append_all(&ramp("a", 1)).await?;
    ends_soon(waiting).await
}

/// Nobody waits for a store that is closed.
async fn waiting_ends_when_the_store_is_closed(ctx: &Ctx) -> CaseResult {
    let whole = ctx.open_whole().await?;
    let events = std::sync::Arc::clone(whole.events()?);
    let waiting = tokio::spawn(async move { events.wait_for(1).await });
    tokio::task::yield_now().await;
    whole.close().await?;
    let ended = tokio::time::timeout(Duration::from_secs(10), waiting).await??;
    expect_kind(ended, ErrorKind::Closed, "the wait")?;
    Ok(())
}
