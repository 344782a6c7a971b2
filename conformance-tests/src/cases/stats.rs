//! What a store says about itself: `stats`.

use std::time::{Duration, Instant};

use storage_core::{MetricRecord, StorageBackend, StorageStats};

use crate::data::{METRIC, NOON, at, rec, rec_no, rec_of};
use crate::failure::{CaseResult, Failure};
use crate::harness::Ctx;

cases! { "stats":
    layouts samples_and_series_are_counted,
    layouts a_sample_written_twice_in_a_batch_counts_once,
    layouts a_sample_written_in_two_batches_counts_once,
    layouts a_sample_written_over_a_compacted_one_counts_once,
    layouts the_count_follows_writes_and_prunes,
    layouts the_extent_is_that_of_the_samples,
    layouts the_extent_is_in_whole_milliseconds,
    layouts late_samples_move_the_oldest,
    layouts the_extent_shrinks_with_a_prune,
    once the_extent_shrinks_though_the_number_stays,
    layouts the_newest_can_be_pruned_too,
    layouts the_extent_spans_all_series,
    layouts an_overwrite_leaves_the_extent,
    once samples_take_bytes,
    once bytes_do_not_grow_without_bound,
    layouts random_writes_are_counted_exactly,
    once a_refused_batch_is_not_counted,
}

async fn stats(ctx: &Ctx) -> Result<StorageStats, Failure> {
    Ok(ctx.store().stats().await?)
}

/// The exact number of samples and series.
async fn samples_and_series_are_counted(ctx: &Ctx) -> CaseResult {
    let records: Vec<_> = (0..100).map(|no| rec_no(no % 7, NOON + no as i64, 1.0)).collect();
    ctx.write(&records).await?;
    let found = stats(ctx).await?;
    ensure_eq!((found.total_metrics, found.series), (100, 7));
    Ok(())
}

/// A series holds at most one sample per millisecond: inside a batch.
async fn a_sample_written_twice_in_a_batch_counts_once(ctx: &Ctx) -> CaseResult {
    ctx.write(&[rec(NOON, 1.0), rec(NOON, 2.0), rec(NOON + 1, 1.0), rec(NOON + 1, 1.0)]).await?;
    ensure_eq!(stats(ctx).await?.total_metrics, 2);
    Ok(())
}

/// A series holds at most one sample per millisecond: over batches.
async fn a_sample_written_in_two_batches_counts_once(ctx: &Ctx) -> CaseResult {
    let batch: Vec<_> = (0..20).map(|no| rec(NOON + no, no as f64)).collect();
    for _ in 0..3 {
        ctx.write(&batch).await?;
        ensure_eq!(stats(ctx).await?.total_metrics, 20);
    }
    Ok(())
}

/// A series holds at most one sample per millisecond: whatever lies compacted below.
async fn a_sample_written_over_a_compacted_one_counts_once(ctx: &Ctx) -> CaseResult {
    ctx.write(&(0..100).map(|no| rec(NOON + no, 1.0)).collect::<Vec<_>>()).await?;
    ctx.store().compact().await?;
    ctx.write(&(90..120).map(|no| rec(NOON + no, 2.0)).collect::<Vec<_>>()).await?;
    let found = stats(ctx).await?;
    ensure_eq!((found.total_metrics, found.series), (120, 1));
    ctx.store().compact().await?;
    ensure_eq!(stats(ctx).await?.total_metrics, 120);
    Ok(())
}

/// The number is exact at every moment.
async fn the_count_follows_writes_and_prunes(ctx: &Ctx) -> CaseResult {
    ctx.write(&(0..50).map(|no| rec(NOON + no, 1.0)).collect::<Vec<_>>()).await?;
    ctx.prune(at(NOON + 20)).await?;
    ensure_eq!(stats(ctx).await?.total_metrics, 30);
    ctx.write(&(10..25).map(|no| rec(NOON + no, 2.0)).collect::<Vec<_>>()).await?;
    ensure_eq!(stats(ctx).await?.total_metrics, 40);
    ctx.prune(at(NOON + 100)).await?;
    let found = stats(ctx).await?;
    ensure_eq!((found.total_metrics, found.series), (0, 0));
    Ok(())
}

/// The times of the earliest and of the latest sample.
async fn the_extent_is_that_of_the_samples(ctx: &Ctx) -> CaseResult {
    ctx.write(&[rec(NOON + 5, 1.0), rec(NOON - 70_000, 2.0), rec(NOON, 3.0)]).await?;
    let found = stats(ctx).await?;
    ensure_eq!(found.oldest_metric, Some(at(NOON - 70_000)));
    ensure_eq!(found.newest_metric, Some(at(NOON + 5)));
    Ok(())
}

/// Times are floored to whole milliseconds, also in what a store says about itself.
async fn the_extent_is_in_whole_milliseconds(ctx: &Ctx) -> CaseResult {
    let record = |us| MetricRecord::new("a", crate::data::at_us(us), METRIC, 1.0);
    ctx.write(&[record(-1500), record(NOON * 1000 + 999)]).await?;
    let found = stats(ctx).await?;
    ensure_eq!((found.oldest_metric, found.newest_metric), (Some(at(-2)), Some(at(NOON))));
    Ok(())
}

/// A sample older than all others is the oldest, whenever it came.
async fn late_samples_move_the_oldest(ctx: &Ctx) -> CaseResult {
    for step in 0..5 {
        ctx.write(&[rec(NOON - step * 1000, 1.0), rec(NOON - step * 1000 + 1, 1.0)]).await?;
        let found = stats(ctx).await?;
        ensure_eq!(found.oldest_metric, Some(at(NOON - step * 1000)));
        ensure_eq!(found.newest_metric, Some(at(NOON + 1)));
    }
    Ok(())
}

/// After a prune the oldest sample is the oldest of those that stay.
async fn the_extent_shrinks_with_a_prune(ctx: &Ctx) -> CaseResult {
    ctx.write(&(0..10).map(|no| rec(NOON + no * 100, 1.0)).collect::<Vec<_>>()).await?;
    for (cutoff, oldest) in [(1, 100), (100, 100), (450, 500), (900, 900)] {
        ctx.prune(at(NOON + cutoff)).await?;
        let found = stats(ctx).await?;
        ensure_eq!(found.oldest_metric, Some(at(NOON + oldest)), "cut at {cutoff}");
        ensure_eq!(found.newest_metric, Some(at(NOON + 900)), "cut at {cutoff}");
    }
    Ok(())
}

/// Also where as many samples came late as a prune removes.
async fn the_extent_shrinks_though_the_number_stays(ctx: &Ctx) -> CaseResult {
    ctx.write(&[rec(NOON, 1.0), rec(NOON + 10, 1.0)]).await?;
    ctx.store().compact().await?;
    ctx.write(&[rec(NOON + 5, 1.0)]).await?;
    ensure_eq!(ctx.prune(at(NOON + 1)).await?, 1);
    let found = stats(ctx).await?;
    ensure_eq!((found.total_metrics, found.oldest_metric), (2, Some(at(NOON + 5))));
    Ok(())
}

/// Without samples there is no extent; the next sample starts it anew.
async fn the_newest_can_be_pruned_too(ctx: &Ctx) -> CaseResult {
    ctx.write(&[rec(NOON, 1.0), rec(NOON + 10, 1.0)]).await?;
    ctx.prune(at(NOON + 11)).await?;
    let found = stats(ctx).await?;
    ensure_eq!((found.oldest_metric, found.newest_metric), (None, None));
    ctx.write(&[rec(NOON - 20, 1.0), rec(NOON - 10, 1.0)]).await?;
    let found = stats(ctx).await?;
    ensure_eq!(found.oldest_metric, Some(at(NOON - 20)));
    ensure_eq!(found.newest_metric, Some(at(NOON - 10)));
    Ok(())
}

/// The extent is that of all series together.
async fn the_extent_spans_all_series(ctx: &Ctx) -> CaseResult {
    let early = [rec_of("a", METRIC, NOON, 1.0), rec_of("a", "memory", NOON - 5, 1.0)];
    let late = [rec_of("b", METRIC, NOON + 5, 1.0), rec_of("c", METRIC, NOON + 1, 1.0)];
    ctx.write(&[early, late].concat()).await?;
    let found = stats(ctx).await?;
    ensure_eq!((found.total_metrics, found.series), (4, 4));
    ensure_eq!(found.oldest_metric, Some(at(NOON - 5)));
    ensure_eq!(found.newest_metric, Some(at(NOON + 5)));
    ctx.prune(at(NOON + 5)).await?;
    let found = stats(ctx).await?;
    ensure_eq!((found.total_metrics, found.series), (1, 1));
    ensure_eq!(found.oldest_metric, Some(at(NOON + 5)));
    Ok(())
}

/// Replacing a sample neither adds one nor moves the extent.
async fn an_overwrite_leaves_the_extent(ctx: &Ctx) -> CaseResult {
    ctx.write(&[rec(NOON, 1.0), rec(NOON + 9, 1.0)]).await?;
    let before = stats(ctx).await?;
    ctx.write(&[rec(NOON, 2.0), rec(NOON + 9, 2.0)]).await?;
    let after = StorageStats { disk_usage_bytes: before.disk_usage_bytes, ..stats(ctx).await? };
    ensure_eq!(after, before);
    Ok(())
}

/// Samples take space, and are included in what is counted.
async fn samples_take_bytes(ctx: &Ctx) -> CaseResult {
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    ensure!(stats(ctx).await?.disk_usage_bytes > 0, "a sample without a byte");
    let mut random = fastrand::Rng::with_seed(3);
    // Random bits do not compress: 8 bytes of value each, whatever the encoding.
    let records: Vec<_> =
        (0..20_000).map(|no| rec(NOON + no, crate::data::any_finite(&mut random))).collect();
    ctx.store().write_batch(&records).await?;
    for _ in 0..2 {
        let bytes = stats(ctx).await?.disk_usage_bytes;
        ensure!(bytes > 100_000, "20,000 random values in {bytes} bytes");
        ctx.store().compact().await?;
    }
    Ok(())
}

/// Space that prunes free is given back or used again.
///
/// Where others on the same server may still look at what was pruned, its space is not free yet.
/// So it is tried again on another location until it holds: what grows without bound does so on
/// each.
async fn bytes_do_not_grow_without_bound(ctx: &Ctx) -> CaseResult {
    let deadline = Instant::now() + Duration::from_secs(45);
    let mut after_cycle = Vec::new();
    for _ in 0..15 {
        let store = ctx.open_elsewhere().await?;
        after_cycle = bytes_after_cycles(&*store).await?;
        store.close().await?;
        if after_cycle[9] <= after_cycle[2] * 2 {
            return Ok(());
        }
        if Instant::now() > deadline {
            break;
        }
    }
    Err(Failure::new(format!("bytes after each cycle: {after_cycle:?}")))
}

/// The bytes of a store after each of ten rounds of writing, pruning what was there, compacting.
async fn bytes_after_cycles(store: &dyn StorageBackend) -> Result<Vec<u64>, Failure> {
    let mut random = fastrand::Rng::with_seed(4);
    let mut after_cycle = Vec::new();
    for cycle in 0..10 {
        let start = NOON + cycle * 100_000;
        let records: Vec<_> =
            (0..5_000).map(|no| rec_no(no % 5, start + no as i64, random.f64())).collect();
        store.write_batch(&records).await?;
        ensure_eq!(store.prune_before(at(start)).await?, if cycle == 0 { 0 } else { 5_000 });
        store.compact().await?;
        after_cycle.push(store.stats().await?.disk_usage_bytes);
    }
    Ok(after_cycle)
}

/// Exact, not estimated: whatever is written in whatever order.
async fn random_writes_are_counted_exactly(ctx: &Ctx) -> CaseResult {
    let mut random = fastrand::Rng::with_seed(5);
    let mut keys = std::collections::BTreeSet::new();
    for _ in 0..8 {
        let batch: Vec<_> = (0..100).map(|_| (random.usize(..5), random.i64(0..400))).collect();
        keys.extend(&batch);
        let records: Vec<_> = batch.iter().map(|(no, ms)| rec_no(*no, NOON + ms, 1.0)).collect();
        ctx.write(&records).await?;
        let found = stats(ctx).await?;
        let series: std::collections::BTreeSet<_> = keys.iter().map(|(no, _)| no).collect();
        let times = || keys.iter().map(|(_, ms)| at(NOON + ms));
        ensure_eq!(found.total_metrics, keys.len() as u64);
        ensure_eq!(found.series, series.len() as u64);
        ensure_eq!((found.oldest_metric, found.newest_metric), (times().min(), times().max()));
    }
    Ok(())
}

/// What was refused is not there, neither as a sample nor as a series.
async fn a_refused_batch_is_not_counted(ctx: &Ctx) -> CaseResult {
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    let before = stats(ctx).await?;
    let bad = [rec_of("other", METRIC, NOON + 5, 1.0), rec(NOON + 6, f64::NAN)];
    ensure!(ctx.store().write_batch(&bad).await.is_err(), "a NaN was accepted");
    let after = StorageStats { disk_usage_bytes: before.disk_usage_bytes, ..stats(ctx).await? };
    ensure_eq!(after, before);
    Ok(())
}
