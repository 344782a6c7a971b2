//! Removing what is old: `cleanup`.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::Value;
use storage_core::{HistoryQuery, Matcher, TimeRange};
use tokio::sync::Barrier;

use super::{all, ask, ramp, rows, rows_of, times, val, values};
use crate::cases::cancel::{drop_at, moments};
use crate::data::{METRIC, NOON, SERVER, at, at_us, rec};
use crate::failure::CaseResult;
use crate::harness::Ctx;

history_cases! { "history_cleanup":
    a_value_at_the_cutoff_stays,
    a_cutoff_before_everything_removes_nothing,
    a_cutoff_after_everything_removes_all,
    every_cutoff_inside_removes_what_is_older,
    a_cutoff_is_floored,
    cutoffs_before_1970,
    the_farthest_cutoffs_work,
    a_second_cleanup_removes_nothing,
    several_records_lose_what_is_old,
    values_of_one_time_go_together,
    a_record_vanishes_with_its_last_value,
    a_vanished_record_comes_back,
    late_values_are_accepted_and_visible,
    what_stays_keeps_its_order,
    a_large_history_is_cut_in_the_middle,
    concurrent_cleanups_add_up,
    a_cleanup_leaves_metrics_alone,
    a_prune_of_metrics_leaves_history_alone,
    a_dropped_cleanup_can_be_repeated,
}

/// Strictly older values go, one at the cutoff stays.
async fn a_value_at_the_cutoff_stays(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&[val("a", NOON - 1, 1), val("a", NOON, 2), val("a", NOON + 1, 3)]).await?;
    ensure_eq!(history.cleanup(at(NOON)).await?, 1);
    ensure_eq!(times(&all(history).await?), [NOON, NOON + 1]);
    Ok(())
}

/// With nothing before the cutoff, nothing goes.
async fn a_cutoff_before_everything_removes_nothing(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    ensure_eq!(history.cleanup(at(NOON)).await?, 0, "in an empty store");
    history.store_batch(&ramp("a", 20)).await?;
    ensure_eq!(history.cleanup(at(NOON)).await?, 0);
    ensure_eq!(all(history).await?, rows_of(&ramp("a", 20)));
    Ok(())
}

/// Everything goes, and the store is as usable as when it was new.
async fn a_cutoff_after_everything_removes_all(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&ramp("a", 20)).await?;
    ensure_eq!(history.cleanup(at(NOON + 19_001)).await?, 20);
    ensure_eq!(all(history).await?, []);
    history.store_batch(&ramp("a", 3)).await?;
    ensure_eq!(all(history).await?, rows_of(&ramp("a", 3)));
    Ok(())
}

/// The number is exact at every cutoff.
async fn every_cutoff_inside_removes_what_is_older(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&(0..30).map(|n| val("a", NOON + n, n)).collect::<Vec<_>>()).await?;
    let mut left = 30;
    for cutoff in [1, 2, 2, 7, 8, 20, 29, 30] {
        let expected = (left - (30 - cutoff)).max(0);
        ensure_eq!(history.cleanup(at(NOON + cutoff)).await?, expected as u64, "cutoff {cutoff}");
        left -= expected;
        ensure_eq!(all(history).await?.len() as i64, left, "left after {cutoff}");
    }
    Ok(())
}

/// The cutoff is floored to a millisecond, as every time is.
async fn a_cutoff_is_floored(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&[val("a", NOON - 1, 1), val("a", NOON, 2)]).await?;
    ensure_eq!(history.cleanup(at_us(NOON * 1000 + 999)).await?, 1);
    ensure_eq!(times(&all(history).await?), [NOON]);
    Ok(())
}

/// Also before 1970.
async fn cutoffs_before_1970(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&(-5..5).map(|ms| val("a", ms, ms)).collect::<Vec<_>>()).await?;
    ensure_eq!(history.cleanup(at_us(-2001)).await?, 2, "floored to -3 ms");
    ensure_eq!(times(&all(history).await?), (-3..5).collect::<Vec<_>>());
    Ok(())
}

/// Cutoffs may lie outside the times that values can have.
async fn the_farthest_cutoffs_work(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&ramp("a", 5)).await?;
    ensure_eq!(history.cleanup(DateTime::<Utc>::MIN_UTC).await?, 0);
    ensure_eq!(history.cleanup(DateTime::<Utc>::MAX_UTC).await?, 5);
    Ok(())
}

/// What is gone is not counted again.
async fn a_second_cleanup_removes_nothing(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&ramp("a", 20)).await?;
    ensure_eq!(history.cleanup(at(NOON + 5000)).await?, 5);
    ensure_eq!(history.cleanup(at(NOON + 5000)).await?, 0);
    Ok(())
}

/// The cutoff holds for every record.
async fn several_records_lose_what_is_old(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    for name in ["a", "b", "c*"] {
        history.store_batch(&ramp(name, 10)).await?;
    }
    history.store_batch(&[val("old", NOON - 1, 1), val("new", NOON + 60_000, 1)]).await?;
    ensure_eq!(history.cleanup(at(NOON + 4000)).await?, 13);
    for name in ["a", "b"] {
        ensure_eq!(ask(history, name).await?, rows_of(&ramp(name, 10)[4..]), "{name}");
    }
    ensure_eq!(all(history).await?.len(), 19);
    Ok(())
}

/// Each of several values of one time counts.
async fn values_of_one_time_go_together(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    for n in 0..7 {
        history.store_batch(&[val("a", NOON, n), val("a", NOON + 1, n)]).await?;
    }
    ensure_eq!(history.cleanup(at(NOON + 1)).await?, 7);
    ensure_eq!(values(&all(history).await?), (0..7).map(Value::from).collect::<Vec<_>>());
    Ok(())
}

/// A record exists while it holds a value.
async fn a_record_vanishes_with_its_last_value(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&[val("old", NOON, 1), val("new", NOON + 1, 1)]).await?;
    history.cleanup(at(NOON + 1)).await?;
    let found = history.records(&Matcher::any()).await?;
    ensure_eq!(found.iter().map(|info| &*info.record_name).collect::<Vec<_>>(), ["new"]);
    ensure_eq!(history.records(&Matcher::exact("old")?).await?, []);
    Ok(())
}

/// And comes back with its next one.
async fn a_vanished_record_comes_back(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let other = ctx.open_whole().await?;
    for round in 0..3 {
        history.store_batch(&[val("a", NOON + round, round)]).await?;
        other.history()?.store_batch(&[val("a", NOON + round, 10 + round)]).await?;
        let found = values(&ask(other.history()?, "a").await?);
        ensure_eq!(found, [round, 10 + round].map(Value::from), "round {round}");
        ensure_eq!(other.history()?.cleanup(at(NOON + 10)).await?, 2);
    }
    Ok(())
}

/// Values before the cutoff that are stored later are accepted and visible.
async fn late_values_are_accepted_and_visible(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&ramp("a", 5)).await?;
    history.cleanup(at(NOON + 5000)).await?;
    history.store_batch(&[val("a", NOON, 7), val("b", NOON - 1, 8)]).await?;
    ensure_eq!(values(&all(history).await?), [7, 8].map(Value::from));
    ensure_eq!(history.cleanup(at(NOON + 5000)).await?, 2);
    Ok(())
}

/// The order never changes.
async fn what_stays_keeps_its_order(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let batch: Vec<_> = (0..200).map(|n| val("a", NOON + (n * 37) % 10, n)).collect();
    history.store_batch(&batch).await?;
    let before = all(history).await?;
    let removed = history.cleanup(at(NOON + 4)).await? as usize;
    history.store_batch(&[val("a", NOON + 4, 1000)]).await?;
    let found = all(history).await?;
    let last = found.iter().rposition(|(_, ms, _)| *ms == NOON + 4);
    ensure_eq!(last.map(|last| found[last].2.clone()), Some(1000.into()), "the newest tie");
    let kept: Vec<_> = found.into_iter().filter(|(_, _, value)| *value != 1000).collect();
    ensure_eq!(kept, before[removed..].to_vec());
    Ok(())
}

/// However much goes, the number is exact and what stays is whole.
async fn a_large_history_is_cut_in_the_middle(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    for name in ["a", "b", "c"] {
        history.store_batch(&ramp(name, 6000)).await?;
    }
    ensure_eq!(history.cleanup(at(NOON + 4_500_000)).await?, 3 * 4500);
    for name in ["a", "b", "c"] {
        ensure_eq!(ask(history, name).await?, rows_of(&ramp(name, 6000)[4500..]), "{name}");
    }
    ensure_eq!(history.records(&Matcher::any()).await?.len(), 3);
    Ok(())
}

/// The sum of concurrent cleanups is what was there.
async fn concurrent_cleanups_add_up(ctx: &Ctx) -> CaseResult {
    for round in 0..5 {
        ctx.history()?.store_batch(&ramp("a", 3000)).await?;
        let barrier = Arc::new(Barrier::new(4));
        let mut tasks = Vec::new();
        for _ in 0..4 {
            let (whole, barrier) = (ctx.open_whole().await?, Arc::clone(&barrier));
            tasks.push(tokio::spawn(async move {
                barrier.wait().await;
                whole.history()?.cleanup(at(NOON + 2_000_000)).await
            }));
        }
        let mut removed = 0;
        for task in tasks {
            removed += task.await??;
        }
        ensure_eq!(removed, 2000, "round {round}");
        ensure_eq!(ctx.history()?.cleanup(at(NOON + 9_000_000)).await?, 1000, "round {round}");
    }
    Ok(())
}

/// Other parts of the store are not touched.
async fn a_cleanup_leaves_metrics_alone(ctx: &Ctx) -> CaseResult {
    let samples: Vec<_> = (0..20).map(|n| rec(NOON + n, n as f64)).collect();
    ctx.store().write_batch(&samples).await?;
    ctx.history()?.store_batch(&[val(SERVER, NOON, 1), val(METRIC, NOON, 2)]).await?;
    ensure_eq!(ctx.history()?.cleanup(at(NOON + 1000)).await?, 2);
    ensure_eq!(ctx.read_of(SERVER, METRIC).await?, samples);
    ensure_eq!(ctx.store().stats().await?.total_metrics, 20);
    Ok(())
}

/// Nor does what is done to other parts touch a history.
async fn a_prune_of_metrics_leaves_history_alone(ctx: &Ctx) -> CaseResult {
    ctx.history()?.store_batch(&ramp("a", 20)).await?;
    ctx.store().write_batch(&[rec(NOON, 1.0), rec(NOON + 1, 2.0)]).await?;
    ensure_eq!(ctx.store().prune_before(at(NOON + 60_000)).await?, 2);
    ctx.store().compact().await?;
    ensure_eq!(all(ctx.history()?).await?, rows_of(&ramp("a", 20)));
    Ok(())
}

/// A cleanup that is dropped leaves the handle usable, and repeating it removes the rest.
async fn a_dropped_cleanup_can_be_repeated(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    for (round, moment) in (0_u64..).zip(moments().step_by(3)) {
        history.store_batch(&ramp("a", 5000)).await?;
        drop_at(moment, history.cleanup(at(NOON + 4_000_000))).await.transpose()?;
        // What is stored after that stays.
        history.store_batch(&[val("late", NOON, round)]).await?;
        ensure_eq!(ask(history, "late").await?.len(), 1, "round {round}");
        history.cleanup(at(NOON + 4_000_000)).await?;
        let range = TimeRange::new(at(NOON), at(NOON + 4_000_000))?;
        let found = rows(history.query(&HistoryQuery::parse("*")?.range(range)).await?);
        ensure_eq!(found, [], "round {round}");
        ensure_eq!(ask(history, "a").await?, rows_of(&ramp("a", 5000)[4000..]), "round {round}");
        ensure_eq!(history.cleanup(at(NOON + 9_000_000)).await?, 1000, "round {round}");
    }
    Ok(())
}
