//! Handles, tasks, drops and ends: what holds whatever the values.

use std::sync::Arc;

use futures_util::future::{join_all, try_join_all};
use serde_json::Value;
use storage_core::history::PersistExt;
use storage_core::{Error, ErrorKind, HistoryQuery, Matcher, Outcome, RecordHistoryExt};

use super::{all, ask, ramp, rows, rows_of, val, values};
use crate::cases::cancel::{drop_at, moments};
use crate::data::{NOON, at, rec};
use crate::failure::{CaseResult, Failure, expect_kind};
use crate::harness::Ctx;

history_cases! { "history_sharing":
    a_fresh_location_holds_no_record,
    two_handles_see_each_others_values,
    two_handles_see_each_others_new_records,
    two_handles_see_each_others_cleanups,
    two_locations_do_not_see_each_other,
    reopening_keeps_everything,
    what_a_channel_gave_seeds_a_buffer_after_a_restart,
    dropping_a_handle_loses_nothing,
    sixteen_open_an_empty_location_and_store_at_once,
    sixty_four_callers_store_each_value_once,
    callers_keep_their_own_order,
    readers_see_whole_batches_alone,
    metrics_and_history_are_stored_side_by_side,
    compact_changes_no_answer,
    a_filled_history_is_found_in_order,
    a_dropped_batch_is_there_whole_or_not_at_all,
    a_dropped_batch_comes_before_later_ones,
    dropped_questions_leave_the_handle_usable,
    a_closed_handle_refuses_every_call,
    other_handles_go_on_after_a_close,
    close_finishes_what_is_under_way,
    errors_name_backend_and_call,
    the_name_is_that_of_the_store,
}

/// A location that nothing was stored in holds no record.
async fn a_fresh_location_holds_no_record(ctx: &Ctx) -> CaseResult {
    ensure_eq!(all(ctx.history()?).await?, []);
    ensure_eq!(ctx.history()?.records(&Matcher::any()).await?, []);
    Ok(())
}

/// What one stored, every other sees as soon as the call has returned; both ways.
async fn two_handles_see_each_others_values(ctx: &Ctx) -> CaseResult {
    let other = ctx.open_whole().await?;
    for round in 0..10 {
        ctx.history()?.store_batch(&[val("a", NOON, 2 * round)]).await?;
        let seen = values(&all(other.history()?).await?);
        ensure_eq!(seen.last(), Some(&Value::from(2 * round)), "round {round}, by the other");
        other.history()?.store_batch(&[val("a", NOON, 2 * round + 1)]).await?;
        let seen = values(&all(ctx.history()?).await?);
        ensure_eq!(seen.last(), Some(&Value::from(2 * round + 1)), "round {round}, by the first");
    }
    Ok(())
}

/// Also of records that a handle has never heard of.
async fn two_handles_see_each_others_new_records(ctx: &Ctx) -> CaseResult {
    let other = ctx.open_whole().await?;
    for round in 0..10 {
        let (one, two) = (format!("one::{round}"), format!("two::{round}"));
        ctx.history()?.store_batch(&[val(&one, NOON, round)]).await?;
        ensure_eq!(ask(other.history()?, &one).await?.len(), 1);
        other.history()?.store_batch(&[val(&two, NOON, round), val(&one, NOON, round)]).await?;
        ensure_eq!(ask(ctx.history()?, "two::*").await?.len(), round + 1);
        ensure_eq!(ask(ctx.history()?, &one).await?.len(), 2);
        ensure_eq!(other.history()?.records(&Matcher::any()).await?.len(), 2 * round + 2);
    }
    Ok(())
}

/// What one handle removed is gone for the other.
async fn two_handles_see_each_others_cleanups(ctx: &Ctx) -> CaseResult {
    let other = ctx.open_whole().await?;
    ctx.history()?.store_batch(&ramp("a", 20)).await?;
    ensure_eq!(all(other.history()?).await?.len(), 20);
    ensure_eq!(ctx.history()?.cleanup(at(NOON + 10_000)).await?, 10);
    ensure_eq!(all(other.history()?).await?, rows_of(&ramp("a", 20)[10..]));
    ensure_eq!(other.history()?.cleanup(at(NOON + 15_000)).await?, 5);
    ensure_eq!(all(ctx.history()?).await?.len(), 5);
    Ok(())
}

/// Another location is another history.
async fn two_locations_do_not_see_each_other(ctx: &Ctx) -> CaseResult {
    let name = format!("{}_other", crate::harness::fresh_location());
    let elsewhere = ctx.fixture().open_store(&name).await?;
    elsewhere.history()?.store_batch(&ramp("a", 3)).await?;
    let found = all(ctx.history()?).await?;
    elsewhere.close().await?;
    ctx.fixture().destroy(&name).await?;
    ensure_eq!(found, []);
    Ok(())
}

/// A history outlives its handles, order included.
async fn reopening_keeps_everything(ctx: &Ctx) -> CaseResult {
    let mut expected = Vec::new();
    for round in 0..4 {
        let whole = ctx.open_whole().await?;
        ensure_eq!(values(&all(whole.history()?).await?), expected, "round {round}");
        whole
            .history()?
            .store_batch(&[val("a", NOON, 2 * round), val("a", NOON, 2 * round + 1)])
            .await?;
        expected.extend([2 * round, 2 * round + 1].map(Value::from));
        whole.close().await?;
    }
    ensure_eq!(values(&all(ctx.history()?).await?), expected);
    Ok(())
}

/// A channel is persisted in its order, and its newest values fill a buffer in the next life.
async fn what_a_channel_gave_seeds_a_buffer_after_a_restart(ctx: &Ctx) -> CaseResult {
    const NAME: &str = "temperature::vienna";
    for life in 0..3 {
        let whole = ctx.open_whole().await?;
        let mut buffer: Vec<i64> = Vec::new();
        let seeded = whole.history()?.reseed(NAME, 40, |value| buffer.push(value)).await?;
        ensure_eq!((seeded.values, seeded.unparsed.len()), (if life == 0 { 0 } else { 40 }, 0));
        let end = life * 100;
        ensure!(buffer.iter().copied().eq((end - 40).max(0)..end), "life {life}: {buffer:?}");
        let (sender, receiver) = tokio::sync::broadcast::channel(128);
        let task = receiver.persist(NAME).start(Arc::clone(whole.history()?))?;
        for value in end..end + 100 {
            sender.send(value)?;
        }
        drop(sender);
        let counts = task.finished().await;
        ensure_eq!((counts.stored, counts.lagged, counts.unstored), (100, 0, 0), "life {life}");
        whole.close().await?;
    }
    let found = values(&ask(ctx.history()?, NAME).await?);
    ensure!(found.into_iter().eq((0..300).map(Value::from)), "all that was ever given");
    Ok(())
}

/// Nothing acknowledged is lost with a handle that is not closed.
async fn dropping_a_handle_loses_nothing(ctx: &Ctx) -> CaseResult {
    for round in 1..=5 {
        let whole = ctx.open_whole().await?;
        whole.history()?.store_batch(&ramp("a", 10)).await?;
        drop(whole);
        ensure_eq!(all(ctx.history()?).await?.len(), 10 * round);
    }
    Ok(())
}

/// Any number of handles may make and use one location at once.
async fn sixteen_open_an_empty_location_and_store_at_once(ctx: &Ctx) -> CaseResult {
    let name = crate::harness::fresh_location();
    let fixture = Arc::clone(ctx.fixture());
    let open_and_store = |number: i64| {
        let (fixture, name) = (Arc::clone(&fixture), name.clone());
        tokio::spawn(async move {
            let whole = fixture.open_store(&name).await?;
            let own = format!("own::{number}");
            whole
                .history()?
                .store_batch(&[val(&own, NOON, number), val("all", NOON, number)])
                .await?;
            whole.close().await
        })
    };
    let opened = join_all((0..16).map(open_and_store)).await;
    let whole = fixture.open_store(&name).await?;
    let found = all(whole.history()?).await;
    whole.close().await?;
    fixture.destroy(&name).await?;
    for result in opened {
        result??;
    }
    let mut shared: Vec<_> =
        found?.into_iter().filter(|row| row.0 == "all").filter_map(|row| row.2.as_i64()).collect();
    shared.sort_unstable();
    ensure!(shared.into_iter().eq(0..16), "each value once");
    Ok(())
}

/// Of many callers at once each value is stored once.
async fn sixty_four_callers_store_each_value_once(ctx: &Ctx) -> CaseResult {
    let caller = |caller: i64| {
        let history = ctx.history().cloned();
        async move {
            let history = history?;
            for n in 0..10 {
                let name = format!("r{}", n % 3);
                history.store_batch(&[val(&name, NOON + n, caller * 10 + n)]).await?;
            }
            Ok::<_, Error>(())
        }
    };
    try_join_all((0..64).map(caller)).await?;
    let mut found: Vec<_> =
        values(&all(ctx.history()?).await?).iter().filter_map(Value::as_i64).collect();
    found.sort_unstable();
    ensure!(found.into_iter().eq(0..640), "each value once");
    Ok(())
}

/// What one caller stores one after the other stays in that order, whatever others do.
async fn callers_keep_their_own_order(ctx: &Ctx) -> CaseResult {
    let other = ctx.open_whole().await?;
    let caller = |caller: i64| {
        let history = if caller % 2 == 0 { ctx.history() } else { other.history() }.cloned();
        async move {
            let history = history?;
            for n in 0..25 {
                history.store_batch(&[val("a", NOON, caller * 100 + n)]).await?;
            }
            Ok::<_, Error>(())
        }
    };
    try_join_all((0..6).map(caller)).await?;
    let found = values(&all(ctx.history()?).await?);
    for caller in 0..6 {
        let own = found.iter().filter_map(Value::as_i64).filter(|value| value / 100 == caller);
        ensure!(own.eq((0..25).map(|n| caller * 100 + n)), "caller {caller}: {found:?}");
    }
    Ok(())
}

/// No call that reads ever sees a part of a batch, of old records and new.
async fn readers_see_whole_batches_alone(ctx: &Ctx) -> CaseResult {
    let (history, other) = (Arc::clone(ctx.history()?), ctx.open_whole().await?);
    let write = async {
        for n in 0..40 {
            let mut batch: Vec<_> = (0..50).map(|r| val(&format!("r{r}"), NOON + n, n)).collect();
            batch.push(val(&format!("new{n}"), NOON, n));
            history.store_batch(&batch).await?;
        }
        Ok::<_, Failure>(())
    };
    let read = |history: Arc<dyn storage_core::RecordHistory>| async move {
        loop {
            let found = rows(history.query(&HistoryQuery::parse("*")?).await?);
            ensure_eq!(found.len() % 51, 0, "values seen by a question");
            let newest = rows(history.query(&HistoryQuery::parse("r*")?.newest(1)).await?);
            ensure!(newest.windows(2).all(|two| two[0].2 == two[1].2), "newest of one batch");
            let counted: u64 =
                history.records(&Matcher::any()).await?.iter().map(|i| i.count).sum();
            ensure_eq!(counted % 51, 0, "values counted");
            if counted == 40 * 51 {
                return Ok(());
            }
        }
    };
    let readers =
        [Arc::clone(&history), Arc::clone(other.history()?)].map(|h| tokio::spawn(read(h)));
    write.await?;
    for reader in readers {
        reader.await??;
    }
    Ok(())
}

/// Callers of both parts at once: everything of each is there, and the store is sound.
async fn metrics_and_history_are_stored_side_by_side(ctx: &Ctx) -> CaseResult {
    let caller = |caller: i64| {
        let (store, history) = (Arc::clone(ctx.store()), ctx.history().cloned());
        async move {
            let history = history?;
            for n in 0..15 {
                let ms = NOON + caller * 1000 + n;
                let samples = [rec(ms, n as f64)];
                let values = [val("cpu_usage", ms, n)];
                let both = [store.write_batch(&samples), history.store_batch(&values)];
                try_join_all(both).await?;
            }
            Ok::<_, Error>(())
        }
    };
    try_join_all((0..8).map(caller)).await?;
    ensure_eq!(ctx.points().await?.len(), 120);
    ensure_eq!(all(ctx.history()?).await?.len(), 120);
    ensure_eq!(ctx.store().stats().await?.total_metrics, 120);
    if ctx.store().capabilities().check {
        ensure_eq!(ctx.store().check().await?.problems, Vec::<String>::new());
    }
    Ok(())
}

/// Upkeep of the location changes no answer.
async fn compact_changes_no_answer(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    for name in ["a", "b"] {
        history.store_batch(&ramp(name, 500)).await?;
    }
    history.cleanup(at(NOON + 100_000)).await?;
    let before = all(history).await?;
    ctx.store().compact().await?;
    ctx.store().flush().await?;
    ensure_eq!(all(history).await?, before);
    Ok(())
}

/// A check of the location finds a history that was used in order.
async fn a_filled_history_is_found_in_order(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&ramp("a", 500)).await?;
    history.cleanup(at(NOON + 250_000)).await?;
    if ctx.store().capabilities().check {
        ensure_eq!(ctx.store().check().await?.problems, Vec::<String>::new());
    }
    ensure_eq!(ctx.store().health().await.status, storage_core::HealthStatus::Healthy);
    Ok(())
}

/// Dropping the future of a call leaves all of its effect or none.
async fn a_dropped_batch_is_there_whole_or_not_at_all(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    for (round, moment) in (0_u64..).zip(moments()) {
        let name = format!("r{round:02}");
        let batch = ramp(&name, 200);
        drop_at(moment, history.store_batch(&batch)).await.transpose()?;
        // A later batch of the same handle comes after whatever the dropped one does.
        history.store_batch(&[val("later", NOON, round)]).await?;
        let found = ask(history, &name).await?.len();
        ensure!(found == 0 || found == 200, "{found} values of a dropped batch");
    }
    Ok(())
}

/// A batch that is still stored after its future was dropped comes before later ones.
async fn a_dropped_batch_comes_before_later_ones(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    for (round, moment) in (0_u64..).zip(moments()) {
        let name = format!("r{round:02}");
        let first = vec![val(&name, NOON, 1)];
        drop_at(moment, history.store_batch(&first)).await.transpose()?;
        history.store_batch(&[val(&name, NOON, 2)]).await?;
        let at_once = ask(history, &name).await?;
        ensure_eq!(values(&at_once).last(), Some(&Value::from(2)), "round {round}");
        history.store_batch(&[val("later", NOON, round)]).await?;
        ensure_eq!(ask(history, &name).await?, at_once, "round {round}, later");
    }
    Ok(())
}

/// Questions that nobody waits for leave the handle usable.
async fn dropped_questions_leave_the_handle_usable(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&ramp("a", 3000)).await?;
    for moment in moments() {
        let query = HistoryQuery::parse("*")?;
        drop_at(moment, history.query(&query)).await.transpose()?;
    }
    ensure_eq!(all(history).await?.len(), 3000);
    history.store_batch(&ramp("b", 3)).await?;
    ensure_eq!(all(history).await?.len(), 3003);
    Ok(())
}

/// After the store was closed, every call says so, and nothing is stored.
async fn a_closed_handle_refuses_every_call(ctx: &Ctx) -> CaseResult {
    let whole = ctx.open_whole().await?;
    whole.close().await?;
    let history = whole.history()?;
    let closed = ErrorKind::Closed;
    let error = expect_kind(history.store_batch(&ramp("a", 3)).await, closed, "store_batch")?;
    ensure_eq!(error.outcome(), Outcome::NotApplied);
    expect_kind(history.store_batch(&[]).await, closed, "an empty batch")?;
    expect_kind(history.query(&HistoryQuery::parse("*")?).await, closed, "query")?;
    expect_kind(
        history.query(&HistoryQuery::parse("*")?.newest(0)).await,
        closed,
        "query of none",
    )?;
    expect_kind(history.records(&Matcher::any()).await, closed, "records")?;
    expect_kind(history.cleanup(at(NOON)).await, closed, "cleanup")?;
    ensure_eq!(all(ctx.history()?).await?, []);
    Ok(())
}

/// Closing one handle leaves the others alone.
async fn other_handles_go_on_after_a_close(ctx: &Ctx) -> CaseResult {
    let whole = ctx.open_whole().await?;
    whole.history()?.store_batch(&ramp("a", 3)).await?;
    whole.close().await?;
    ctx.history()?.store_batch(&ramp("b", 3)).await?;
    ensure_eq!(all(ctx.history()?).await?.len(), 6);
    Ok(())
}

/// Close finishes what is under way: what was acknowledged is there, what was refused is not.
async fn close_finishes_what_is_under_way(ctx: &Ctx) -> CaseResult {
    let whole = ctx.open_whole().await?;
    let store = |n: i64| {
        let history = whole.history().cloned();
        tokio::spawn(async move { history?.store_batch(&[val("a", NOON, n)]).await })
    };
    let tasks: Vec<_> = (0..50).map(store).collect();
    tokio::task::yield_now().await;
    whole.close().await?;
    let mut acknowledged = Vec::new();
    for (n, task) in tasks.into_iter().enumerate() {
        match task.await? {
            Ok(()) => acknowledged.push(Value::from(n)),
            Err(error) => {
                ensure_eq!(
                    (error.kind(), error.outcome()),
                    (ErrorKind::Closed, Outcome::NotApplied)
                );
            }
        }
    }
    let mut found = values(&all(ctx.history()?).await?);
    found.sort_by_key(Value::as_i64);
    ensure_eq!(found, acknowledged);
    Ok(())
}

/// Errors name the backend and the call, in one line.
async fn errors_name_backend_and_call(ctx: &Ctx) -> CaseResult {
    let refused = ctx.history()?.store_batch(&[val("", NOON, 1)]).await;
    let whole = ctx.open_whole().await?;
    whole.close().await?;
    let history = whole.history()?;
    let errors = [
        ("store_batch", refused.err()),
        ("query", history.query(&HistoryQuery::parse("*")?).await.err()),
        ("records", history.records(&Matcher::any()).await.err()),
        ("cleanup", history.cleanup(at(NOON)).await.err()),
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
    ensure_eq!(ctx.history()?.name(), ctx.store().name());
    Ok(())
}
