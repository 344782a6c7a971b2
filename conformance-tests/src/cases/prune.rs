//! Removing what is old: `prune_before`.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use storage_core::{MetricRecord, SeriesFilter, TimeRange};
use tokio::sync::Barrier;

use crate::data::{
    METRIC, NOON, SERVER, at, at_us, only, points, rec, rec_no, rec_of, scan_all, server,
};
use crate::failure::CaseResult;
use crate::harness::Ctx;

cases! { "prune":
    layouts a_sample_at_the_cutoff_stays,
    layouts a_cutoff_before_everything_removes_nothing,
    layouts a_cutoff_after_everything_removes_all,
    layouts every_cutoff_inside_the_data_removes_what_is_older,
    layouts a_cutoff_is_floored_to_a_millisecond,
    layouts a_cutoff_is_floored_before_1970,
    once the_farthest_cutoffs_work,
    layouts cutoffs_before_1970,
    layouts a_second_prune_removes_nothing,
    layouts overwritten_samples_count_once,
    layouts samples_written_over_compacted_ones_count_once,
    layouts late_writes_are_accepted_and_visible,
    layouts what_came_late_is_pruned_like_the_rest,
    layouts several_series_lose_what_is_old,
    layouts the_number_is_the_difference_of_the_stats,
    layouts no_read_finds_what_was_pruned needs Series,
    layouts metadata_of_what_stays_stays,
    once concurrent_prunes_add_up,
    once concurrent_prunes_of_two_handles_add_up,
    once an_empty_store_has_nothing_to_prune,
    layouts a_large_store_is_cut_in_the_middle,
    layouts a_series_vanishes_with_its_last_sample needs Series,
    layouts a_vanished_series_comes_back needs Series,
    layouts prunes_step_by_step_remove_everything_once,
}

/// One sample every `step_ms`, valued by its number.
fn every(step_ms: i64, count: i64) -> Vec<MetricRecord> {
    (0..count).map(|no| rec(NOON + no * step_ms, no as f64)).collect()
}

/// A sample at the cutoff stays.
async fn a_sample_at_the_cutoff_stays(ctx: &Ctx) -> CaseResult {
    ctx.write(&[rec(NOON - 1, 1.0), rec(NOON, 2.0), rec(NOON + 1, 3.0)]).await?;
    ensure_eq!(ctx.prune(at(NOON)).await?, 1);
    ensure_eq!(ctx.points().await?, [(NOON, 2.0), (NOON + 1, 3.0)]);
    Ok(())
}

/// Only samples before the cutoff go: with none before it, nothing does.
async fn a_cutoff_before_everything_removes_nothing(ctx: &Ctx) -> CaseResult {
    ctx.write(&every(10, 20)).await?;
    ensure_eq!(ctx.prune(at(NOON - 1)).await?, 0);
    ensure_eq!(ctx.prune(at(NOON)).await?, 0);
    ensure_eq!(ctx.points().await?.len(), 20);
    ensure_eq!(ctx.store().stats().await?.total_metrics, 20);
    Ok(())
}

/// Every sample before the cutoff goes, and the store is as usable as when it was new.
async fn a_cutoff_after_everything_removes_all(ctx: &Ctx) -> CaseResult {
    ctx.write(&every(10, 20)).await?;
    ensure_eq!(ctx.prune(at(NOON + 191)).await?, 20);
    ensure_eq!(ctx.points().await?, []);
    let stats = ctx.store().stats().await?;
    ensure_eq!((stats.total_metrics, stats.series), (0, 0));
    ensure_eq!((stats.oldest_metric, stats.newest_metric), (None, None));
    ctx.write(&every(10, 3)).await?;
    ensure_eq!(ctx.points().await?.len(), 3);
    Ok(())
}

/// Wherever the cutoff falls, older samples go and the others stay, as they were.
async fn every_cutoff_inside_the_data_removes_what_is_older(ctx: &Ctx) -> CaseResult {
    ctx.write(&every(10, 60)).await?;
    for cut in [1, 5, 10, 11, 299, 300, 301, 595] {
        ctx.prune(at(NOON + cut)).await?;
        let expected: Vec<_> =
            (0..60).filter(|no| no * 10 >= cut).map(|no| (NOON + no * 10, no as f64)).collect();
        ensure_eq!(ctx.points().await?, expected, "cut {cut} ms after the first sample");
    }
    Ok(())
}

/// The cutoff is floored to whole milliseconds toward the past.
async fn a_cutoff_is_floored_to_a_millisecond(ctx: &Ctx) -> CaseResult {
    ctx.write(&[rec(NOON, 1.0), rec(NOON + 1, 2.0)]).await?;
    ensure_eq!(ctx.prune(at_us(NOON * 1000 + 999)).await?, 0);
    ensure_eq!(ctx.points().await?.len(), 2);
    ensure_eq!(ctx.prune(at_us(NOON * 1000 + 1001)).await?, 1);
    ensure_eq!(ctx.points().await?, [(NOON + 1, 2.0)]);
    Ok(())
}

/// Toward the past also before 1970, where cutting off digits would go toward the future.
async fn a_cutoff_is_floored_before_1970(ctx: &Ctx) -> CaseResult {
    ctx.write(&[rec(-2, 1.0), rec(-1, 2.0), rec(0, 3.0)]).await?;
    ensure_eq!(ctx.prune(at_us(-1500)).await?, 0, "half a millisecond before -1");
    ensure_eq!(ctx.prune(at_us(-1)).await?, 1, "a microsecond before the epoch");
    ensure_eq!(ctx.points().await?, [(-1, 2.0), (0, 3.0)]);
    Ok(())
}

/// A cutoff may lie outside the years that samples can have.
async fn the_farthest_cutoffs_work(ctx: &Ctx) -> CaseResult {
    let (first, last) = (TimeRange::all().start(), at(TimeRange::all().end_ms() - 1));
    let record = |time: DateTime<Utc>| MetricRecord::new(SERVER, time, METRIC, 1.0);
    ctx.write(&[record(first), rec(NOON, 2.0), record(last)]).await?;
    ensure_eq!(ctx.prune(DateTime::<Utc>::MIN_UTC).await?, 0);
    ensure_eq!(ctx.prune(first).await?, 0);
    ensure_eq!(ctx.points().await?.len(), 3);
    ensure_eq!(ctx.prune(last).await?, 2);
    ensure_eq!(ctx.prune(DateTime::<Utc>::MAX_UTC).await?, 1);
    ensure_eq!(ctx.points().await?, []);
    Ok(())
}

/// Samples and cutoffs before 1970 are like any other.
async fn cutoffs_before_1970(ctx: &Ctx) -> CaseResult {
    let samples: Vec<_> = (-50..50).map(|no| rec(no * 1000, no as f64)).collect();
    ctx.write(&samples).await?;
    ensure_eq!(ctx.prune(at(-10_000)).await?, 40);
    ensure_eq!(ctx.points().await?.first(), Some(&(-10_000, -10.0)));
    ensure_eq!(ctx.prune(at(0)).await?, 10);
    ensure_eq!(ctx.points().await?.first(), Some(&(0, 0.0)));
    Ok(())
}

/// What is gone is not removed again.
async fn a_second_prune_removes_nothing(ctx: &Ctx) -> CaseResult {
    ctx.write(&every(10, 20)).await?;
    ensure_eq!(ctx.prune(at(NOON + 100)).await?, 10);
    for _ in 0..3 {
        ensure_eq!(ctx.prune(at(NOON + 100)).await?, 0);
    }
    ensure_eq!(ctx.prune(at(NOON + 50)).await?, 0);
    ensure_eq!(ctx.points().await?.len(), 10);
    Ok(())
}

/// The number is exact: a sample that was replaced is one sample.
async fn overwritten_samples_count_once(ctx: &Ctx) -> CaseResult {
    ctx.write(&[rec(NOON, 1.0), rec(NOON, 2.0), rec(NOON + 1, 1.0), rec(NOON, 3.0)]).await?;
    ctx.write(&[rec(NOON + 1, 2.0), rec(NOON + 2, 2.0)]).await?;
    ensure_eq!(ctx.prune(at(NOON + 2)).await?, 2);
    ensure_eq!(ctx.points().await?, [(NOON + 2, 2.0)]);
    Ok(())
}

/// The same where the old sample is compacted and the new one is not.
async fn samples_written_over_compacted_ones_count_once(ctx: &Ctx) -> CaseResult {
    ctx.write(&every(10, 100)).await?;
    ctx.store().compact().await?;
    let again: Vec<_> = (20..40).map(|no| rec(NOON + no * 10, -1.0)).collect();
    ctx.write(&again).await?;
    ensure_eq!(ctx.prune(at(NOON + 300)).await?, 30);
    let found = ctx.points().await?;
    ensure_eq!(found.len(), 70);
    ensure_eq!(
        (found[0], found[9], found[10]),
        ((NOON + 300, -1.0), (NOON + 390, -1.0), (NOON + 400, 40.0))
    );
    ensure_eq!(ctx.prune(at(NOON + 1000)).await?, 70);
    Ok(())
}

/// Later writes before the cutoff are accepted and visible.
async fn late_writes_are_accepted_and_visible(ctx: &Ctx) -> CaseResult {
    ctx.write(&every(10, 20)).await?;
    ensure_eq!(ctx.prune(at(NOON + 100)).await?, 10);
    ctx.write(&[rec(NOON + 5, 55.0), rec(NOON + 50, 50.0)]).await?;
    let found = ctx.points().await?;
    ensure_eq!(&found[..3], &[(NOON + 5, 55.0), (NOON + 50, 50.0), (NOON + 100, 10.0)]);
    let stats = ctx.store().stats().await?;
    ensure_eq!((stats.total_metrics, stats.oldest_metric), (12, Some(at(NOON + 5))));
    Ok(())
}

/// Each prune removes what is there when it is called, however it came there.
async fn what_came_late_is_pruned_like_the_rest(ctx: &Ctx) -> CaseResult {
    ctx.write(&every(10, 20)).await?;
    ensure_eq!(ctx.prune(at(NOON + 100)).await?, 10);
    ctx.write(&every(10, 5)).await?;
    ensure_eq!(ctx.points().await?.len(), 15);
    ensure_eq!(ctx.prune(at(NOON + 100)).await?, 5);
    ensure_eq!(ctx.points().await?.first(), Some(&(NOON + 100, 10.0)));
    ensure_eq!(ctx.prune(at(NOON + 110)).await?, 1);
    Ok(())
}

/// Every sample before the cutoff goes, of whatever series.
async fn several_series_lose_what_is_old(ctx: &Ctx) -> CaseResult {
    // Series number n starts n seconds after noon and has a sample a second.
    let sample = |no: usize, step: usize| rec_no(no, NOON + (no + step) as i64 * 1000, step as f64);
    let records: Vec<_> = (0..10).flat_map(|step| (0..8).map(move |no| sample(no, step))).collect();
    ctx.write(&records).await?;
    let expected: u64 = (0..8).map(|no| 5_usize.saturating_sub(no) as u64).sum();
    ensure_eq!(ctx.prune(at(NOON + 5000)).await?, expected);
    for no in 0..8 {
        let found = points(&ctx.read_of(&server(no), METRIC).await?);
        let left: Vec<_> = (5_usize.saturating_sub(no)..10)
            .map(|step| (NOON + (no + step) as i64 * 1000, step as f64))
            .collect();
        ensure_eq!(found, left, "series {no}");
    }
    Ok(())
}

/// The number that a prune returns is what the store has less than before.
async fn the_number_is_the_difference_of_the_stats(ctx: &Ctx) -> CaseResult {
    let mut random = fastrand::Rng::with_seed(11);
    for round in 0..6 {
        let records: Vec<_> = (0..200)
            .map(|_| rec_no(random.usize(..4), NOON + random.i64(0..300), random.f64()))
            .collect();
        ctx.write(&records).await?;
        let before = ctx.store().stats().await?.total_metrics;
        let removed = ctx.prune(at(NOON + random.i64(0..250))).await?;
        let after = ctx.store().stats().await?.total_metrics;
        ensure_eq!(removed, before - after, "round {round}");
    }
    Ok(())
}

/// No kind of read finds what was pruned.
async fn no_read_finds_what_was_pruned(ctx: &Ctx) -> CaseResult {
    ctx.write(&every(10, 20)).await?;
    ctx.prune(at(NOON + 150)).await?;
    let (store, all, only) = (ctx.store(), TimeRange::all(), only()?);
    let aggregation = store.aggregate(SERVER, METRIC, all).await?;
    ensure_eq!((aggregation.count, aggregation.first), (5, Some(15.0)));
    ensure_eq!(store.series(&only).await?[0].count, 5);
    ensure_eq!(store.latest(&only, 100).await?[0].samples.len(), 5);
    let windows = store.windows(&only, all, Duration::from_millis(10)).await?;
    ensure_eq!(windows[0].windows.len(), 5);
    let scanned = scan_all(store, &only, all).await?;
    ensure_eq!(scanned.iter().map(|batch| batch.samples.len()).sum::<usize>(), 5);
    Ok(())
}

/// What stays keeps its metadata.
async fn metadata_of_what_stays_stays(ctx: &Ctx) -> CaseResult {
    let marked = |no: i64| rec(NOON + no, no as f64).with_metadata(serde_json::json!({"no": no}));
    ctx.write(&(0..10).map(marked).collect::<Vec<_>>()).await?;
    ensure_eq!(ctx.prune(at(NOON + 7)).await?, 7);
    ensure_eq!(ctx.read_of(SERVER, METRIC).await?, (7..10).map(marked).collect::<Vec<_>>());
    Ok(())
}

/// The number is exact, the sum of concurrent prunes too.
async fn concurrent_prunes_add_up(ctx: &Ctx) -> CaseResult {
    for round in 0..5 {
        let start = NOON + round * 10_000;
        let records: Vec<_> = (0..2000).map(|no| rec_no(no % 4, start + no as i64, 1.0)).collect();
        ctx.store().write_batch(&records).await?;
        let before = ctx.store().stats().await?.total_metrics;
        let together = Arc::new(Barrier::new(8));
        let prune = |no: i64| {
            let (store, together) = (Arc::clone(ctx.store()), Arc::clone(&together));
            tokio::spawn(async move {
                together.wait().await;
                store.prune_before(at(start + 1000 + no)).await
            })
        };
        let mut removed = 0;
        for result in join_all((0..8).map(prune).collect::<Vec<_>>()).await {
            removed += result??;
        }
        ensure_eq!(removed, before - 993, "round {round}");
        ensure_eq!(ctx.store().stats().await?.total_metrics, 993, "round {round}");
    }
    Ok(())
}

/// The same where each prune has a handle of its own, and compactions come in between.
async fn concurrent_prunes_of_two_handles_add_up(ctx: &Ctx) -> CaseResult {
    let handles = [ctx.open().await?, ctx.open().await?];
    let mut expected = 0;
    for round in 0..5 {
        let start = NOON + round * 1000;
        let records: Vec<_> = (0..500).map(|no| rec_no(no % 3, start + no as i64, 1.0)).collect();
        ctx.store().write_batch(&records).await?;
        let (one, two, compacted) = tokio::join!(
            handles[0].prune_before(at(start + 300)),
            handles[1].prune_before(at(start + 300)),
            ctx.store().compact(),
        );
        compacted?;
        ensure_eq!(one? + two?, expected + 300, "round {round}");
        expected = 200;
    }
    Ok(())
}

/// In an empty store there is nothing to remove.
async fn an_empty_store_has_nothing_to_prune(ctx: &Ctx) -> CaseResult {
    ensure_eq!(ctx.prune(at(NOON)).await?, 0);
    ensure_eq!(ctx.prune(DateTime::<Utc>::MAX_UTC).await?, 0);
    ctx.write(&[rec(NOON - 1, 1.0), rec(NOON, 2.0)]).await?;
    ensure_eq!(ctx.points().await?.len(), 2);
    Ok(())
}

/// The number is exact however much is removed, and what stays is whole.
async fn a_large_store_is_cut_in_the_middle(ctx: &Ctx) -> CaseResult {
    let records: Vec<_> =
        (0..50_000).map(|no| rec_no(no % 5, NOON + no as i64 * 10, no as f64)).collect();
    ctx.write(&records).await?;
    // Between two samples.
    ensure_eq!(ctx.prune(at(NOON + 250_003)).await?, 25_001);
    ensure_eq!(ctx.store().stats().await?.total_metrics, 24_999);
    for no in 0..5 {
        let found = points(&ctx.read_of(&server(no), METRIC).await?);
        let left: Vec<_> = (25_001..50_000)
            .filter(|at| at % 5 == no)
            .map(|at| (NOON + at as i64 * 10, at as f64))
            .collect();
        ensure!(found == left, "series {no}: {} samples, expected {}", found.len(), left.len());
    }
    Ok(())
}

/// A series exists while it holds a sample.
async fn a_series_vanishes_with_its_last_sample(ctx: &Ctx) -> CaseResult {
    ctx.write(&[rec_of("old", METRIC, NOON, 1.0), rec_of("new", METRIC, NOON + 100, 1.0)]).await?;
    ensure_eq!(ctx.prune(at(NOON + 50)).await?, 1);
    let left = ctx.store().series(&SeriesFilter::any()).await?;
    ensure_eq!(left.iter().map(|info| &*info.series.server_id).collect::<Vec<_>>(), ["new"]);
    ensure_eq!(ctx.store().stats().await?.series, 1);
    ensure_eq!(ctx.read_of("old", METRIC).await?, []);
    Ok(())
}

/// A series that vanished comes back with the next write, with nothing of its past.
async fn a_vanished_series_comes_back(ctx: &Ctx) -> CaseResult {
    for round in 0..3 {
        let ms = NOON + round * 1000;
        let marked = rec(ms, 1.0).with_metadata(serde_json::json!(round));
        ctx.write(&[marked, rec(ms + 1, 2.0)]).await?;
        let found = ctx.store().series(&only()?).await?;
        ensure_eq!(found.len(), 1);
        ensure_eq!((found[0].count, found[0].oldest, found[0].newest), (2, at(ms), at(ms + 1)));
        ensure_eq!(ctx.prune(at(ms + 2)).await?, 2);
        ensure_eq!(ctx.store().series(&only()?).await?, []);
    }
    Ok(())
}

/// Many small prunes remove each sample once.
async fn prunes_step_by_step_remove_everything_once(ctx: &Ctx) -> CaseResult {
    let records: Vec<_> = (0..500).map(|no| rec_no(no % 3, NOON + no as i64, no as f64)).collect();
    ctx.write(&records).await?;
    for step in 1..=50 {
        ensure_eq!(ctx.prune(at(NOON + step * 10)).await?, 10, "step {step}");
        ensure_eq!(ctx.store().stats().await?.total_metrics, 500 - 10 * step as u64);
    }
    ensure_eq!(ctx.prune(DateTime::<Utc>::MAX_UTC).await?, 0);
    Ok(())
}
