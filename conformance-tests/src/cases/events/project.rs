//! Projections: steps, rows, checkpoints.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};
use storage_core::events::rows::ROW_BYTES_MAX;
use storage_core::events::{EventStore, Rows};
use storage_core::{
    ErrorKind, EventStoreExt, Matcher, Outcome, Projection, ProjectionStep, Result, StoredEvent,
};
use tokio::sync::Barrier;

use super::{checkpoints, ev, ramp, rows};
use crate::cases::cancel::{drop_at, moments};
use crate::data::ODD_NAMES;
use crate::failure::{CaseResult, Failure, expect_kind, expect_refused};
use crate::harness::Ctx;

event_cases! { "events_project":
    a_step_changes_rows_and_checkpoint,
    a_projection_exists_from_its_first_step,
    the_last_change_of_a_key_stays,
    what_is_not_there_can_be_removed,
    a_reset_removes_every_row,
    tables_and_projections_are_apart,
    odd_names_are_names_like_any_other,
    rows_come_by_key,
    rows_are_chosen_by_key,
    any_json_is_a_row,
    what_does_not_exist_has_no_rows,
    bad_names_have_no_rows,
    a_large_step_is_made_whole,
    a_step_from_elsewhere_is_a_conflict,
    a_step_behind_the_end_is_a_conflict,
    a_step_before_pruned_events_is_a_conflict,
    a_step_back_needs_a_reset,
    bad_steps_are_refused,
    of_concurrent_steps_one_succeeds,
    rows_and_checkpoint_move_together,
    projections_come_by_name,
    a_forgotten_projection_is_gone,
    two_handles_see_each_others_rows,
    a_dropped_step_is_made_whole_or_not_at_all,
    a_projection_follows_and_is_rebuilt,
}

fn step(from: u64, to: u64) -> ProjectionStep {
    ProjectionStep::new("p", from, to)
}

async fn table(ctx: &Ctx, table: &str) -> Result<Vec<(String, Value)>> {
    rows(&**ctx.events()?, "p", table).await
}

fn row(key: &str, value: impl Into<Value>) -> (String, Value) {
    (key.to_owned(), value.into())
}

/// Rows are set, replaced and removed, and the checkpoint moves.
async fn a_step_changes_rows_and_checkpoint(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 10)).await?;
    let first = step(0, 4).put("t", "a", json!({"n": 1})).put("t", "b", json!(2));
    events.project(&first).await?;
    ensure_eq!(table(ctx, "t").await?, [row("a", json!({"n": 1})), row("b", 2)]);
    ensure_eq!(checkpoints(&**events).await?, [("p".to_owned(), 4)]);
    let second = step(4, 10).put("t", "b", json!(3)).remove("t", "a").put("t", "c", json!(4));
    events.project(&second).await?;
    ensure_eq!(table(ctx, "t").await?, [row("b", 3), row("c", 4)]);
    ensure_eq!(checkpoints(&**events).await?, [("p".to_owned(), 10)]);
    Ok(())
}

/// Also if that leads nowhere and changes nothing; it may go on from where it is.
async fn a_projection_exists_from_its_first_step(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    ensure_eq!(checkpoints(&**events).await?, []);
    events.project(&step(0, 0)).await?;
    ensure_eq!(checkpoints(&**events).await?, [("p".to_owned(), 0)]);
    events.project(&step(0, 0).put("t", "a", json!(1))).await?;
    ensure_eq!(table(ctx, "t").await?, [row("a", 1)]);
    Ok(())
}

/// The changes of a step are made in their order.
async fn the_last_change_of_a_key_stays(ctx: &Ctx) -> CaseResult {
    let changes = step(0, 0)
        .put("t", "a", json!(1))
        .put("t", "b", json!(1))
        .remove("t", "a")
        .put("t", "b", json!(2))
        .put("t", "c", json!(1))
        .remove("t", "c")
        .put("t", "c", json!(3))
        .remove("t", "d");
    ctx.events()?.project(&changes).await?;
    ensure_eq!(table(ctx, "t").await?, [row("b", 2), row("c", 3)]);
    Ok(())
}

/// Removing nothing is no error.
async fn what_is_not_there_can_be_removed(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.project(&step(0, 0).remove("t", "a")).await?;
    events.project(&step(0, 0).put("t", "a", json!(1))).await?;
    events.project(&step(0, 0).remove("t", "a").remove("u", "a")).await?;
    events.project(&step(0, 0).remove("t", "a")).await?;
    ensure_eq!(table(ctx, "t").await?, []);
    Ok(())
}

/// Every row of every table of this projection goes, before the changes; the checkpoint may move
/// back.
async fn a_reset_removes_every_row(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 10)).await?;
    events.project(&step(0, 10).put("t", "a", json!(1)).put("u", "b", json!(2))).await?;
    let other = ProjectionStep::new("q", 0, 10).put("t", "a", json!(3));
    events.project(&other).await?;
    let reset = ProjectionStep { reset: true, ..step(10, 4).put("t", "c", json!(4)) };
    events.project(&reset).await?;
    ensure_eq!(table(ctx, "t").await?, [row("c", 4)]);
    ensure_eq!(table(ctx, "u").await?, []);
    ensure_eq!(rows(&**events, "q", "t").await?, [row("a", 3)]);
    ensure_eq!(checkpoints(&**events).await?, [("p".to_owned(), 4), ("q".to_owned(), 10)]);
    events.project(&ProjectionStep::reset("p", 4)).await?;
    ensure_eq!(table(ctx, "t").await?, []);
    ensure_eq!(checkpoints(&**events).await?[0].1, 0);
    Ok(())
}

/// A key means something within one table of one projection.
async fn tables_and_projections_are_apart(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    for (n, projection) in ["p", "q", "P"].into_iter().enumerate() {
        let step = ProjectionStep::new(projection, 0, 0)
            .put("t", "a", json!(n))
            .put("T", "a", json!(n + 10))
            .put("ta", "a", json!(n + 20));
        events.project(&step).await?;
    }
    for (n, projection) in ["p", "q", "P"].into_iter().enumerate() {
        for (more, name) in [(0, "t"), (10, "T"), (20, "ta")] {
            let found = rows(&**events, projection, name).await?;
            ensure_eq!(found, [row("a", n + more)], "{projection} {name}");
        }
    }
    events.project(&step(0, 0).remove("t", "a")).await?;
    ensure_eq!(rows(&**events, "q", "t").await?.len(), 1);
    Ok(())
}

/// Names of projections, tables and keys are compared byte by byte; no character is special.
async fn odd_names_are_names_like_any_other(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let mut one = step(0, 0);
    for name in ODD_NAMES {
        one = one.put(*name, *name, json!(name));
        let of = ProjectionStep::new(*name, 0, 0).put("t", "k", json!(name));
        events.project(&of).await?;
    }
    events.project(&one).await?;
    for name in ODD_NAMES {
        ensure_eq!(table(ctx, name).await?, [row(name, *name)], "{name:?}");
        ensure_eq!(rows(&**events, name, "t").await?, [row("k", *name)], "{name:?}");
    }
    ensure_eq!(checkpoints(&**events).await?.len(), ODD_NAMES.len() + 1);
    Ok(())
}

/// By key, byte by byte.
async fn rows_come_by_key(ctx: &Ctx) -> CaseResult {
    let all = step(0, 0);
    let all = ODD_NAMES.iter().fold(all, |step, name| step.put("t", *name, json!(1)));
    ctx.events()?.project(&all).await?;
    let mut expected = ODD_NAMES.to_vec();
    expected.sort_by_key(|name| name.as_bytes());
    let found: Vec<_> = table(ctx, "t").await?.into_iter().map(|row| row.0).collect();
    ensure_eq!(found, expected);
    Ok(())
}

/// By exact keys, also where they hold a star, or by pattern, case included.
async fn rows_are_chosen_by_key(ctx: &Ctx) -> CaseResult {
    let keys = ["thread-1", "thread-10", "thread_1", "Thread-1", "a*", "a%"];
    let all = keys.iter().fold(step(0, 0), |step, key| step.put("t", *key, json!(1)));
    ctx.events()?.project(&all).await?;
    let chosen = async |keys: Matcher| {
        let found = ctx.events()?.rows("p", "t", &keys).await?;
        Ok::<_, Failure>(found.into_iter().map(|row| row.key).collect::<Vec<_>>())
    };
    ensure_eq!(chosen(Matcher::parse("thread-*")?).await?, ["thread-1", "thread-10"]);
    ensure_eq!(chosen(Matcher::parse("*1")?).await?.len(), 3);
    ensure_eq!(chosen(Matcher::exact("a*")?).await?, ["a*"]);
    ensure_eq!(chosen(Matcher::parse("a%*")?).await?, ["a%"]);
    ensure_eq!(chosen(Matcher::any_of(["x", "thread_1", "a%"])?).await?, ["a%", "thread_1"]);
    ensure_eq!(chosen(Matcher::any()).await?.len(), 6);
    Ok(())
}

/// A row is any JSON up to 1 MiB, and comes back equal.
async fn any_json_is_a_row(ctx: &Ctx) -> CaseResult {
    let json = [
        json!(null),
        json!({"a": [1, 1.0, null, {"b": "\u{1f600}\u{1}"}]}),
        json!("text"),
        json!(u64::MAX),
        json!("x".repeat(ROW_BYTES_MAX - 2)),
    ];
    let mut all = step(0, 0);
    for (n, value) in json.iter().enumerate() {
        all = all.put("t", n.to_string(), value.clone());
    }
    ctx.events()?.project(&all).await?;
    let found: Vec<_> = table(ctx, "t").await?.into_iter().map(|row| row.1).collect();
    ensure!(found == json, "they come back otherwise");
    Ok(())
}

/// Unknown projections, tables and keys give an empty answer.
async fn what_does_not_exist_has_no_rows(ctx: &Ctx) -> CaseResult {
    ensure_eq!(table(ctx, "t").await?, []);
    ctx.events()?.project(&step(0, 0).put("t", "a", json!(1))).await?;
    ensure_eq!(table(ctx, "u").await?, []);
    ensure_eq!(rows(&**ctx.events()?, "q", "t").await?, []);
    ensure_eq!(ctx.events()?.rows("p", "t", &Matcher::exact("b")?).await?, []);
    ensure_eq!(ctx.events()?.row::<Value>("p", "t", "b").await?, None);
    ensure_eq!(checkpoints(&**ctx.events()?).await?.len(), 1, "asking makes none");
    Ok(())
}

/// Names are 1 to 512 bytes long and hold no NUL.
async fn bad_names_have_no_rows(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    for name in ["", "a\0b", &"x".repeat(513)] {
        let what = format!("{name:.10}");
        let refused = events.rows(name, "t", &Matcher::any()).await;
        expect_refused(refused, Some("projection"), &what)?;
        expect_refused(events.rows("p", name, &Matcher::any()).await, Some("table"), &what)?;
        expect_refused(events.forget_projection(name).await, Some("projection"), &what)?;
    }
    Ok(())
}

/// A step may have any size.
async fn a_large_step_is_made_whole(ctx: &Ctx) -> CaseResult {
    let mut large = step(0, 0);
    for n in 0..5000 {
        large = large.put(format!("t{}", n % 3), format!("{n:05}"), json!({ "n": n }));
    }
    ctx.events()?.project(&large).await?;
    for t in 0..3 {
        let found = table(ctx, &format!("t{t}")).await?;
        let expected = (0..5000).filter(|n| n % 3 == t).map(|n| json!({ "n": n }));
        ensure!(found.into_iter().map(|row| row.1).eq(expected), "table {t}");
    }
    Ok(())
}

/// Who is not where it thinks it is changes nothing, and is told where it is.
async fn a_step_from_elsewhere_is_a_conflict(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 10)).await?;
    events.project(&step(0, 5).put("t", "a", json!(1))).await?;
    for from in [0, 4, 6] {
        let wrong = ProjectionStep { reset: from == 6, ..step(from, 7).put("t", "a", json!(2)) };
        let error = expect_kind(events.project(&wrong).await, ErrorKind::Conflict, from)?;
        ensure_eq!(error.context("projection"), Some("p"));
        ensure_eq!(error.context("expected"), Some(&*from.to_string()));
        ensure_eq!(error.context("checkpoint"), Some("5"));
        ensure_eq!(error.outcome(), Outcome::NotApplied);
    }
    ensure_eq!(table(ctx, "t").await?, [row("a", 1)]);
    let other = ProjectionStep::new("q", 5, 7);
    expect_kind(events.project(&other).await, ErrorKind::Conflict, "one that is not there")?;
    ensure_eq!(checkpoints(&**events).await?, [("p".to_owned(), 5)]);
    Ok(())
}

/// Nobody has seen what is not there.
async fn a_step_behind_the_end_is_a_conflict(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 3)).await?;
    for to in [4, u64::MAX] {
        let refused = events.project(&step(0, to).put("t", "a", json!(1))).await;
        let error = expect_kind(refused, ErrorKind::Conflict, to)?;
        ensure_eq!((error.context("first"), error.context("last")), (Some("1"), Some("3")));
    }
    ensure_eq!(table(ctx, "t").await?, []);
    events.project(&step(0, 3)).await?;
    Ok(())
}

/// Where events are missing no projection can stand: it would never see them.
async fn a_step_before_pruned_events_is_a_conflict(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 10)).await?;
    events.project(&step(0, 8)).await?;
    events.prune_before(5).await?;
    let refused = events.project(&ProjectionStep::reset("p", 8)).await;
    let error = expect_kind(refused, ErrorKind::Conflict, "back to the beginning")?;
    ensure_eq!((error.context("first"), error.context("last")), (Some("5"), Some("10")));
    let new = ProjectionStep::new("q", 0, 3);
    expect_kind(events.project(&new).await, ErrorKind::Conflict, "a new one")?;
    events.project(&ProjectionStep { to: 4, ..new }).await?;
    events.project(&ProjectionStep { reset: true, ..step(8, 4) }).await?;
    Ok(())
}

/// A checkpoint moves back only with a reset.
async fn a_step_back_needs_a_reset(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 10)).await?;
    events.project(&step(0, 8)).await?;
    expect_refused(events.project(&step(8, 7)).await, Some("to"), "back")?;
    events.project(&step(8, 8)).await?;
    Ok(())
}

/// Every name and value is checked; the first bad change is named, and nothing is changed.
async fn bad_steps_are_refused(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 3)).await?;
    let long = "x".repeat(513);
    for name in ["", "a\0b", &long] {
        let unnamed = ProjectionStep::new(name, 0, 0);
        expect_refused(events.project(&unnamed).await, Some("projection"), "projection")?;
        let good = || step(0, 3).put("t", "a", json!(1));
        for (bad, field) in
            [(good().put(name, "b", json!(1)), "table"), (good().remove("t", name), "key")]
        {
            let error = expect_refused(events.project(&bad).await, Some(field), field)?;
            ensure_eq!(error.context("change"), Some("1"));
        }
    }
    let mut deep = json!(1);
    for _ in 0..65 {
        deep = json!([deep]);
    }
    for value in [json!("x".repeat(ROW_BYTES_MAX - 1)), json!("\0"), deep] {
        let bad = step(0, 3).put("t", "a", json!(1)).put("t", "b", value).put("", "", json!(1));
        let error = expect_refused(events.project(&bad).await, Some("value"), "value")?;
        ensure_eq!(error.context("change"), Some("1"));
    }
    ensure_eq!(table(ctx, "t").await?, []);
    ensure_eq!(checkpoints(&**events).await?, []);
    Ok(())
}

/// Of many that go on from one checkpoint, through whichever handle, one does.
async fn of_concurrent_steps_one_succeeds(ctx: &Ctx) -> CaseResult {
    let other = ctx.open_whole().await?;
    ctx.events()?.append_all(&ramp("a", 20)).await?;
    for round in 0..8 {
        let barrier = Arc::new(Barrier::new(6));
        let mut tasks = Vec::new();
        for n in 0..6 {
            let events = Arc::clone(if n % 2 == 0 { ctx.events()? } else { other.events()? });
            let barrier = Arc::clone(&barrier);
            tasks.push(tokio::spawn(async move {
                barrier.wait().await;
                let own = step(round, round + 1).put("t", round.to_string(), json!(n));
                (n, events.project(&own).await)
            }));
        }
        let mut winners = Vec::new();
        for task in tasks {
            match task.await? {
                (n, Ok(())) => winners.push(n),
                (_, Err(error)) => ensure_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
            }
        }
        ensure_eq!(winners.len(), 1, "round {round}");
        let stored: Option<usize> = ctx.events()?.row("p", "t", &round.to_string()).await?;
        ensure_eq!(stored, winners.pop(), "the row of the one that went on");
    }
    Ok(())
}

/// Who reads sees the rows of one step alone, and never a checkpoint without its rows.
async fn rows_and_checkpoint_move_together(ctx: &Ctx) -> CaseResult {
    const LAST: u64 = 30;
    let (events, other) = (Arc::clone(ctx.events()?), ctx.open_whole().await?);
    events.append_all(&ramp("a", LAST as i64)).await?;
    let write = async {
        for at in 0..LAST {
            let all = (0..60).fold(step(at, at + 1), |step, key| {
                step.put("t", format!("{key:02}"), json!(at + 1))
            });
            events.project(&all).await?;
        }
        Ok::<_, Failure>(())
    };
    let read = |events: Arc<dyn EventStore>| async move {
        loop {
            let before = checkpoints(&*events).await?.first().map_or(0, |of| of.1);
            let found = rows(&*events, "p", "t").await?;
            ensure!(found.windows(2).all(|two| two[0].1 == two[1].1), "rows of two steps");
            let at = found.first().and_then(|row| row.1.as_u64()).unwrap_or(0);
            ensure!(at >= before, "rows of step {at} behind the checkpoint {before}");
            let after = checkpoints(&*events).await?.first().map_or(0, |of| of.1);
            ensure!(after >= at, "the checkpoint {after} behind rows of step {at}");
            if after == LAST {
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

/// By name, byte by byte.
async fn projections_come_by_name(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 9)).await?;
    for (to, name) in ["b", "A", "a", "\u{e9}", "_"].into_iter().enumerate() {
        events.project(&ProjectionStep::new(name, 0, to as u64)).await?;
    }
    let expected = [("A", 1), ("_", 4), ("a", 2), ("b", 0), ("\u{e9}", 3)];
    ensure_eq!(checkpoints(&**events).await?, expected.map(|(name, at)| (name.to_owned(), at)));
    Ok(())
}

/// With its rows; its name can be used again, from the beginning.
async fn a_forgotten_projection_is_gone(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 3)).await?;
    ensure!(!events.forget_projection("p").await?, "it never was");
    events.project(&step(0, 3).put("t", "a", json!(1))).await?;
    events.project(&ProjectionStep::new("q", 0, 1).put("t", "a", json!(2))).await?;
    ensure!(events.forget_projection("p").await?, "it was there");
    ensure!(!events.forget_projection("p").await?, "it was there again");
    ensure_eq!(table(ctx, "t").await?, []);
    ensure_eq!(checkpoints(&**events).await?, [("q".to_owned(), 1)]);
    ensure_eq!(rows(&**events, "q", "t").await?, [row("a", 2)]);
    events.project(&step(0, 2)).await?;
    ensure_eq!(table(ctx, "t").await?, []);
    Ok(())
}

/// What one handle did, every other sees.
async fn two_handles_see_each_others_rows(ctx: &Ctx) -> CaseResult {
    let other = ctx.open_whole().await?;
    ctx.events()?.append_all(&ramp("a", 20)).await?;
    for round in 0..5 {
        let one = step(2 * round, 2 * round + 1).put("t", "a", json!(2 * round));
        ctx.events()?.project(&one).await?;
        ensure_eq!(rows(&**other.events()?, "p", "t").await?, [row("a", 2 * round)]);
        let two = step(2 * round + 1, 2 * round + 2).put("t", "a", json!(2 * round + 1));
        other.events()?.project(&two).await?;
        ensure_eq!(table(ctx, "t").await?, [row("a", 2 * round + 1)]);
    }
    ensure!(other.events()?.forget_projection("p").await?, "it was there");
    ensure_eq!(table(ctx, "t").await?, []);
    Ok(())
}

/// Dropping the future of a step leaves all of its effect or none.
async fn a_dropped_step_is_made_whole_or_not_at_all(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    events.append_all(&ramp("a", 3)).await?;
    for (round, moment) in moments().enumerate() {
        let name = format!("p{round:02}");
        let large = (0..200).fold(ProjectionStep::new(&*name, 0, 2), |step, n| {
            step.put("t", n.to_string(), json!(n))
        });
        drop_at(moment, events.project(&large)).await.transpose()?;
        // Who goes on from the same place, or from there, is served.
        let mut from = 0;
        let next = loop {
            let last = ProjectionStep::new(&*name, from, 3).put("t", "last", json!(1));
            match events.project(&last).await {
                Err(error) if error.kind() == ErrorKind::Conflict && from == 0 => from = 2,
                made => break made,
            }
        };
        next?;
        let expected = if from == 2 { 201 } else { 1 };
        ensure_eq!(rows(&**events, &name, "t").await?.len(), expected, "round {round}");
    }
    Ok(())
}

/// Counts the events of each stream.
struct Counts;

#[async_trait]
impl Projection for Counts {
    fn name(&self) -> &str {
        "counts"
    }

    async fn apply(&self, event: &StoredEvent, rows: &mut Rows<'_>) -> Result<()> {
        let count: u64 = rows.get("streams", &event.stream).await?.unwrap_or(0);
        rows.put("streams", &event.stream, &(count + 1))
    }
}

/// A projection of a program takes each event once, follows the log, and is built anew by one
/// call.
async fn a_projection_follows_and_is_rebuilt(ctx: &Ctx) -> CaseResult {
    let events = ctx.events()?;
    let batch: Vec<_> = (0..2500).map(|n| ev(&format!("s{}", n % 4), n)).collect();
    events.append_all(&batch).await?;
    ensure_eq!(events.catch_up(&Counts).await?.events(), 2500);
    ensure_eq!(events.catch_up(&Counts).await?.events(), 0);
    events.append_all(&batch[..10]).await?;
    ensure_eq!(events.catch_up(&Counts).await?.events(), 10);
    let counted = rows(&**events, "counts", "streams").await?;
    ensure_eq!(counted, [row("s0", 628), row("s1", 628), row("s2", 627), row("s3", 627)]);
    let spoil = ProjectionStep::new("counts", 2510, 2510).put("streams", "s9", json!(9));
    events.project(&spoil).await?;
    ensure_eq!(events.rebuild(&Counts).await?.events(), 2510);
    ensure_eq!(rows(&**events, "counts", "streams").await?, counted);
    Ok(())
}
