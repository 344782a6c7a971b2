//! Appending: `append` without expectations and ids that are repeated.

use serde_json::{Value, json};
use storage_core::events::value::PAYLOAD_BYTES_MAX;
use storage_core::metrics::time::{END_MS, MIN_MS, floor_ms};
use storage_core::{EventStoreExt, LogExtent, NewEvent, StoredEvent};

use super::{all, ev, ev_id, holding, numbers, of_stream, ramp, sequences, versions};
use crate::data::{NOON, ODD_NAMES, at, at_us};
use crate::failure::{CaseResult, expect_refused};
use crate::harness::Ctx;

event_cases! { "events_append":
    an_event_comes_back_as_it_was_appended,
    the_answer_is_what_is_read,
    a_batch_gets_contiguous_numbers_in_its_order,
    numbers_go_on_from_batch_to_batch,
    versions_count_within_their_stream,
    equal_events_without_an_id_are_all_kept,
    any_json_comes_back_equal,
    whole_numbers_and_fractions_stay_apart,
    times_are_floored,
    times_order_nothing,
    first_and_last_times_of_the_calendar,
    odd_names_are_names_like_any_other,
    the_largest_event_is_accepted,
    an_empty_batch_does_nothing,
    a_large_batch_is_appended_whole,
    bad_names_are_refused,
    bad_times_are_refused,
    payloads_over_the_limit_are_refused,
    payloads_nested_too_deep_are_refused,
    payloads_with_nul_are_refused,
    an_id_twice_in_a_batch_is_refused,
    a_batch_with_one_bad_event_appends_nothing,
    the_first_bad_event_is_named,
    a_refusal_uses_no_number_up,
}

/// Stream, type, id, time and payload come back; the first event is number 1 of all and of its
/// stream.
async fn an_event_comes_back_as_it_was_appended(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&[ev_id("id-1", "thread-1", 7)]).await?;
    let expected = StoredEvent {
        sequence: 1,
        stream: "thread-1".to_owned(),
        version: 1,
        event_id: Some("id-1".to_owned()),
        event_type: "Counted".to_owned(),
        stored_at: at(NOON + 7),
        payload: json!({"n": 7}),
    };
    ensure_eq!(all(events).await?, [expected]);
    Ok(())
}

/// What an append returns is what is read later.
async fn the_answer_is_what_is_read(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let mut answers = Vec::new();
    for round in 0..4 {
        let batch = [ev("a", round), ev_id(&format!("id-{round}"), "b", round), ev("a", -round)];
        answers.extend(events.append_all(&batch).await?);
    }
    ensure_eq!(all(events).await?, answers);
    Ok(())
}

/// The events of a batch get the next numbers, without a gap, in their order.
async fn a_batch_gets_contiguous_numbers_in_its_order(ctx: &Ctx) -> CaseResult {
    let stored = ctx.events()?.append_all(&ramp("a", 300)).await?;
    ensure!(sequences(&stored).into_iter().eq(1..=300), "{:?}", sequences(&stored));
    ensure!(numbers(&stored).into_iter().eq(0..300), "their order");
    ensure!(numbers(&all(ctx.events()?).await?).into_iter().eq(0..300), "their order, read");
    Ok(())
}

/// Each batch goes on where the one before ended.
async fn numbers_go_on_from_batch_to_batch(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let mut next = 1;
    for size in [1, 3, 1, 200, 7] {
        let stored = events.append_all(&ramp("a", size)).await?;
        ensure_eq!(sequences(&stored), (next..next + size as u64).collect::<Vec<_>>());
        next += size as u64;
    }
    ensure_eq!(events.extent().await?, LogExtent { first: 1, last: next - 1 });
    Ok(())
}

/// Versions count within their stream, over batches, without a gap.
async fn versions_count_within_their_stream(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let stored = events.append_all(&[ev("a", 0), ev("b", 1), ev("a", 2)]).await?;
    ensure_eq!(versions(&stored), [1, 1, 2]);
    let stored = events.append_all(&[ev("b", 3), ev("c", 4), ev("a", 5), ev("b", 6)]).await?;
    ensure_eq!(versions(&stored), [2, 1, 3, 3]);
    for (stream, count) in [("a", 3), ("b", 3), ("c", 1)] {
        let found = of_stream(events, stream).await?;
        ensure_eq!(versions(&found), (1..=count).collect::<Vec<_>>(), "{stream}");
    }
    Ok(())
}

/// Without an id nothing is the same: two equal events are two.
async fn equal_events_without_an_id_are_all_kept(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&[ev("a", 1), ev("a", 1)]).await?;
    events.append_all(&[ev("a", 1)]).await?;
    ensure_eq!(numbers(&all(events).await?), [1, 1, 1]);
    Ok(())
}

/// Payloads come back as equal JSON, whatever they are; `null` is one.
async fn any_json_comes_back_equal(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let json = [
        json!(null),
        json!(true),
        json!(0),
        json!(""),
        json!("  "),
        json!("null"),
        json!([]),
        json!({}),
        json!({"": null, "a": [1, [2, {"b": false}]], "é\"\\\n\u{1}": "\u{1f600}"}),
        json!(ODD_NAMES),
        json!("{\"not\": \"parsed\"}"),
        json!({"z": 1, "a": 2, "m": {"y": 1, "b": 2}}),
        json!(i64::MIN),
        json!(u64::MAX),
    ];
    events.append_all(&json.clone().map(holding)).await?;
    let found: Vec<Value> = all(events).await?.into_iter().map(|event| event.payload).collect();
    ensure_eq!(found, json);
    Ok(())
}

/// Numbers keep their kind and every digit.
async fn whole_numbers_and_fractions_stay_apart(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let json = [
        json!(1),
        json!(1.0),
        json!(1e16),
        json!(0.1),
        json!(-2.5e-300),
        json!(f64::MAX),
        json!(f64::MIN_POSITIVE),
        json!(9_007_199_254_740_993_u64),
        json!([0, 0.0, 1e300]),
    ];
    events.append_all(&json.clone().map(holding)).await?;
    let found: Vec<Value> = all(events).await?.into_iter().map(|event| event.payload).collect();
    for (found, expected) in found.iter().zip(&json) {
        ensure_eq!(found.to_string(), expected.to_string());
        ensure_eq!(found, expected);
    }
    Ok(())
}

/// Times are floored to whole milliseconds toward the past, also before 1970; in the answer, too.
async fn times_are_floored(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let times = [NOON * 1000 + 999, NOON * 1000 + 1000, -1, -1000, -1001];
    let batch: Vec<_> = times.iter().map(|us| ev("a", 0).at(at_us(*us))).collect();
    let stored = events.append_all(&batch).await?;
    let found = all(events).await?;
    for of in [stored, found] {
        let ms: Vec<_> = of.iter().map(|event| floor_ms(event.stored_at)).collect();
        ensure_eq!(ms, [NOON, NOON + 1, -1, -1, -2]);
        ensure!(of.iter().all(|event| event.stored_at.timestamp_subsec_micros() % 1000 == 0));
    }
    Ok(())
}

/// The order is that of the numbers, whatever the times.
async fn times_order_nothing(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    for n in [3, 1, 2] {
        events.append_all(&[ev("a", n), ev("a", n - 100)]).await?;
    }
    ensure_eq!(numbers(&all(events).await?), [3, -97, 1, -99, 2, -98]);
    Ok(())
}

/// The years 0001 to 9999, from end to end.
async fn first_and_last_times_of_the_calendar(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let times = [MIN_MS, END_MS - 1, 0, -1];
    events.append_all(&times.map(|ms| ev("a", 0).at(at(ms)))).await?;
    let found: Vec<_> = all(events).await?.iter().map(|e| floor_ms(e.stored_at)).collect();
    ensure_eq!(found, times);
    Ok(())
}

/// Names of streams and types, and ids, are compared byte by byte; no character is special.
async fn odd_names_are_names_like_any_other(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let odd = |name: &&str| NewEvent::new(*name, *name, json!(name)).with_id(*name).at(at(NOON));
    let batch: Vec<_> = ODD_NAMES.iter().map(odd).collect();
    let stored = events.append_all(&batch).await?;
    ensure_eq!(versions(&stored), vec![1; ODD_NAMES.len()]);
    for (event, name) in stored.iter().zip(ODD_NAMES) {
        ensure_eq!(of_stream(events, name).await?, std::slice::from_ref(event), "{name:?}");
        ensure_eq!(events.stream_version(name).await?, 1, "{name:?}");
        let same = (&*event.stream, &*event.event_type, event.event_id.as_deref());
        ensure_eq!(same, (*name, *name, Some(*name)));
    }
    ensure_eq!(all(events).await?, stored);
    Ok(())
}

/// Names of 512 bytes, and a payload of 1 MiB nested 64 levels deep.
async fn the_largest_event_is_accepted(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let mut deep = json!("x".repeat(PAYLOAD_BYTES_MAX - 130));
    for _ in 0..64 {
        deep = json!([deep]);
    }
    let name = |c: &str| c.repeat(512);
    let batch = [
        NewEvent::new(name("s"), name("t"), deep).with_id(name("i")).at(at(NOON)),
        holding("x".repeat(PAYLOAD_BYTES_MAX - 2)),
    ];
    let stored = events.append_all(&batch).await?;
    let found = all(events).await?;
    ensure!(found == stored, "what is read is not what was stored");
    ensure!(batch.iter().zip(&found).all(|(event, found)| event.is_same(found)), "the payloads");
    Ok(())
}

/// An empty batch is `Ok` and does nothing.
async fn an_empty_batch_does_nothing(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    ensure_eq!(events.append_all(&[]).await?, []);
    ensure_eq!(all(events).await?, []);
    ensure_eq!(events.extent().await?, LogExtent { first: 1, last: 0 });
    Ok(())
}

/// A batch may have any size.
async fn a_large_batch_is_appended_whole(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let batch: Vec<_> = (0..20_001).map(|n| ev(&format!("s{:03}", n % 500), n)).collect();
    let stored = events.append_all(&batch).await?;
    ensure_eq!(stored.len(), batch.len());
    let found = all(events).await?;
    ensure!(found == stored, "what is read is not what was stored");
    ensure!(numbers(&found).into_iter().eq(0..20_001), "each event once, in order");
    ensure_eq!(events.stream_version("s007").await?, 40);
    Ok(())
}

/// Fails unless each bad event is refused with `field`, beside good ones, and nothing is stored.
async fn refuses(ctx: &Ctx, field: &str, bad: Vec<NewEvent>) -> CaseResult {
    let events = ctx.events()?;
    for bad in bad {
        let what = format!("{field} of {:.60}", bad.stream);
        let batch = [ev("good", 1), bad, ev("good", 2)];
        let error = expect_refused(events.append_all(&batch).await, Some(field), &what)?;
        ensure_eq!(error.context("event"), Some("1"), "{what}: the detail `event`");
        ensure_eq!(all(events).await?, [], "{what}: stored all the same");
    }
    Ok(())
}

/// Names are 1 to 512 bytes long and hold no NUL.
async fn bad_names_are_refused(ctx: &Ctx) -> CaseResult {
    let names = ["", "a\0b", &"x".repeat(513), &("\u{e9}".repeat(256) + "x")];
    refuses(ctx, "stream", names.map(|name| ev(name, 1)).into()).await?;
    let typed = |name: &str| NewEvent { event_type: name.to_owned(), ..ev("a", 1) };
    refuses(ctx, "event_type", names.map(typed).into()).await?;
    refuses(ctx, "event_id", names.map(|name| ev_id(name, "a", 1)).into()).await
}

/// Times lie in the years 0001 to 9999.
async fn bad_times_are_refused(ctx: &Ctx) -> CaseResult {
    let (early, late) = (at_us(MIN_MS * 1000 - 1), at(END_MS));
    refuses(ctx, "stored_at", vec![ev("a", 1).at(early), ev("a", 1).at(late)]).await
}

/// Payloads are at most 1 MiB of compact JSON.
async fn payloads_over_the_limit_are_refused(ctx: &Ctx) -> CaseResult {
    let text = holding("x".repeat(PAYLOAD_BYTES_MAX - 1));
    let list = holding(json!(vec![1; PAYLOAD_BYTES_MAX / 2 + 1]));
    refuses(ctx, "payload", vec![text, list]).await
}

/// Payloads are nested at most 64 levels deep.
async fn payloads_nested_too_deep_are_refused(ctx: &Ctx) -> CaseResult {
    let mut bad = Vec::new();
    for depth in [65, 1000] {
        let (mut lists, mut objects) = (json!(1), json!(1));
        for _ in 0..depth {
            (lists, objects) = (json!([lists]), json!({ "a": objects }));
        }
        bad.extend([holding(lists), holding(objects)]);
    }
    refuses(ctx, "payload", bad).await
}

/// Texts and names inside a payload hold no NUL.
async fn payloads_with_nul_are_refused(ctx: &Ctx) -> CaseResult {
    let bad = [json!("\0"), json!({"a": ["x\0y"]}), json!({"a\0": 1})];
    refuses(ctx, "payload", bad.map(holding).into()).await
}

/// No two events have one id, not even equal ones of one batch.
async fn an_id_twice_in_a_batch_is_refused(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    for batch in [
        vec![ev_id("x", "a", 1), ev("a", 2), ev_id("x", "a", 1)],
        vec![ev("a", 1), ev_id("x", "a", 2), ev_id("x", "b", 3)],
    ] {
        let error = expect_refused(events.append_all(&batch).await, Some("event_id"), "twice")?;
        ensure_eq!(error.context("event"), Some("2"));
        ensure_eq!(all(events).await?, []);
    }
    Ok(())
}

/// All or nothing: one bad event keeps the whole batch out, and the next batch is stored.
async fn a_batch_with_one_bad_event_appends_nothing(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    for place in [0, 1, 500, 999] {
        let mut batch = ramp("a", 1000);
        batch[place].stream.clear();
        let refused = events.append_all(&batch).await;
        expect_refused(refused, Some("stream"), format!("bad at {place}"))?;
        ensure_eq!(all(events).await?, [], "bad at {place}");
    }
    events.append_all(&ramp("a", 10)).await?;
    ensure_eq!(numbers(&all(events).await?).len(), 10);
    Ok(())
}

/// The error names the first bad event of a batch and its field.
async fn the_first_bad_event_is_named(ctx: &Ctx) -> CaseResult {
    let mut batch = ramp("a", 10);
    batch[3].payload = json!("\0");
    batch[7].stream.clear();
    let refused = ctx.events()?.append_all(&batch).await;
    let error = expect_refused(refused, Some("payload"), "two bad ones")?;
    ensure_eq!(error.context("event"), Some("3"));
    Ok(())
}

/// What is refused leaves no gap.
async fn a_refusal_uses_no_number_up(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&[ev_id("x", "a", 0)]).await?;
    let bad = [vec![ev("a", 1), ev("", 2)], vec![ev("a", 1), ev_id("x", "a", 99)]];
    for batch in bad {
        ensure!(events.append_all(&batch).await.is_err(), "accepted");
        let stored = events.append_all(&[ev("a", 3)]).await?;
        let extent = events.extent().await?;
        ensure_eq!(extent.last, stored[0].sequence);
        ensure_eq!(stored[0].version, extent.last);
        ensure_eq!(extent.count(), all(events).await?.len() as u64);
    }
    ensure_eq!(sequences(&all(events).await?), [1, 2, 3]);
    Ok(())
}
