//! Giving up half way: the future of a call is dropped before it is done.
//!
//! A backend may finish in the background what was dropped, so that what a dropped call did may
//! show late: nothing here says when it is done, but at every moment it is all or none.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use storage_core::{Error, SeriesFilter, TimeRange};
use tokio::task::yield_now;

use crate::data::{METRIC, NOON, SERVER, at, points, rec, rec_no, rec_of, scan_all, server};
use crate::failure::{CaseResult, Failure};
use crate::harness::Ctx;

cases! { "cancel":
    once a_dropped_write_leaves_all_or_none,
    once a_dropped_large_write_leaves_all_or_none,
    once a_dropped_write_of_many_series_leaves_all_or_none,
    once a_dropped_overwrite_leaves_the_old_or_the_new,
    once a_dropped_write_leaves_the_handle_usable,
    once dropped_writes_do_not_disturb_other_writers,
    once a_write_that_was_never_polled_does_nothing,
    once a_write_may_be_repeated_after_it_was_dropped,
    once a_dropped_prune_can_be_repeated,
    once a_dropped_prune_removes_nothing_that_stays,
    once dropped_reads_leave_the_handle_usable,
    once dropped_series_calls_leave_the_handle_usable needs Series,
    once a_dropped_scan_leaves_the_handle_usable needs Series,
    once a_dropped_compaction_changes_no_answer,
    once a_dropped_flush_loses_nothing,
    once a_dropped_check_changes_no_answer needs Check,
    once a_dropped_close_can_be_repeated,
    once an_aborted_task_leaves_all_or_none,
}

/// Where calls are given up: after so many polls, and after so long.
pub(super) fn moments() -> impl Iterator<Item = (u32, Duration)> {
    let polls = [1, 2, 3, 4, 5, 6, 8, 10, 13, 17].into_iter().map(|polls| (polls, Duration::MAX));
    let micros = [0, 5, 10, 20, 40, 80, 150, 300, 600, 1200, 2500, 5000];
    polls.chain(micros.map(|us| (u32::MAX, Duration::from_micros(us))))
}

/// Polls a future until the moment has come, and drops it; returns what it gave before that.
pub(super) async fn drop_at<F: Future>(
    (polls, time): (u32, Duration),
    future: F,
) -> Option<F::Output> {
    let mut future = pin!(future);
    let started = Instant::now();
    for _ in 0..polls {
        let poll = std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        if let Poll::Ready(output) = poll {
            return Some(output);
        }
        if started.elapsed() >= time {
            break;
        }
        yield_now().await;
    }
    None
}

/// Checks again and again, for as long as something may still be going on, that a series holds
/// all of a batch or none of it.
async fn ensure_all_or_none(ctx: &Ctx, name: &str, whole: usize) -> Result<bool, Failure> {
    let mut len = 0;
    for _ in 0..5 {
        len = ctx.read_of(name, METRIC).await?.len();
        ensure!([0, whole].contains(&len), "{name}: {len} of {whole} samples");
        yield_now().await;
    }
    Ok(len == whole)
}

/// Dropping the future of a write leaves all of its effect or none.
async fn a_dropped_write_leaves_all_or_none(ctx: &Ctx) -> CaseResult {
    drop_writes(ctx, 40).await
}

/// The same for a batch that takes longer.
async fn a_dropped_large_write_leaves_all_or_none(ctx: &Ctx) -> CaseResult {
    drop_writes(ctx, 5_000).await
}

async fn drop_writes(ctx: &Ctx, samples: i64) -> CaseResult {
    let mut acknowledged = Vec::new();
    for (no, moment) in moments().enumerate() {
        let batch: Vec<_> = (0..samples).map(|ms| rec_no(no, NOON + ms, 1.0)).collect();
        let written = drop_at(moment, ctx.store().write_batch(&batch)).await;
        acknowledged.push(written.transpose()?.is_some());
        ensure_all_or_none(ctx, &server(no), samples as usize).await?;
    }
    for (no, acknowledged) in acknowledged.into_iter().enumerate() {
        let stored = ensure_all_or_none(ctx, &server(no), samples as usize).await?;
        ensure!(stored || !acknowledged, "{}: acknowledged and lost", server(no));
    }
    Ok(())
}

/// All or none, also over the series of the batch.
async fn a_dropped_write_of_many_series_leaves_all_or_none(ctx: &Ctx) -> CaseResult {
    for (no, moment) in (0..).zip(moments()) {
        let batch: Vec<_> = (0..30).map(|series| rec_no(series, NOON + no, 1.0)).collect();
        if let Some(written) = drop_at(moment, ctx.store().write_batch(&batch)).await {
            written?;
        }
        for _ in 0..3 {
            let stats = ctx.store().stats().await?;
            ensure_eq!(stats.total_metrics % 30, 0, "{} samples", stats.total_metrics);
            yield_now().await;
        }
    }
    Ok(())
}

/// All or none, also of a replacement: no sample is missing, and none differs from the others.
async fn a_dropped_overwrite_leaves_the_old_or_the_new(ctx: &Ctx) -> CaseResult {
    let batch = |value: f64| (0..50).map(|ms| rec(NOON + ms, value)).collect::<Vec<_>>();
    ctx.store().write_batch(&batch(0.0)).await?;
    for (no, moment) in moments().enumerate() {
        let replacement = batch(1.0 + no as f64);
        if let Some(written) = drop_at(moment, ctx.store().write_batch(&replacement)).await {
            written?;
        }
        for _ in 0..3 {
            let found = ctx.points().await?;
            ensure_eq!(found.len(), 50);
            ensure!(found.iter().all(|(_, value)| *value == found[0].1), "mixed: {found:?}");
        }
    }
    Ok(())
}

/// The handle stays usable: the next write works, and is seen.
async fn a_dropped_write_leaves_the_handle_usable(ctx: &Ctx) -> CaseResult {
    for (no, moment) in (0..).zip(moments()) {
        let dropped: Vec<_> =
            (0..200).map(|ms| rec_of("dropped", METRIC, NOON + ms, 1.0)).collect();
        drop_at(moment, ctx.store().write_batch(&dropped)).await.transpose()?;
        ctx.store().write_batch(&[rec(NOON + no, no as f64)]).await?;
        ensure_eq!(ctx.points().await?.last(), Some(&(NOON + no, no as f64)));
    }
    ensure_eq!(ctx.points().await?.len(), moments().count());
    Ok(())
}

/// One that gives up takes nobody with it: the writes of others, at the same time, are stored.
async fn dropped_writes_do_not_disturb_other_writers(ctx: &Ctx) -> CaseResult {
    let others: Vec<_> = (0..4)
        .map(|no| {
            let store = Arc::clone(ctx.store());
            tokio::spawn(async move {
                for step in 0..50 {
                    store.write_batch(&[rec_no(no, NOON + step, 1.0)]).await?;
                }
                Ok::<_, Error>(())
            })
        })
        .collect();
    for moment in moments() {
        let dropped: Vec<_> = (0..30).map(|ms| rec_of("dropped", METRIC, NOON + ms, 1.0)).collect();
        drop_at(moment, ctx.store().write_batch(&dropped)).await.transpose()?;
    }
    for other in others {
        other.await??;
    }
    for no in 0..4 {
        ensure_eq!(ctx.read_of(&server(no), METRIC).await?.len(), 50, "writer {no}");
    }
    Ok(())
}

/// A future that nobody polls does nothing.
async fn a_write_that_was_never_polled_does_nothing(ctx: &Ctx) -> CaseResult {
    let batch = [rec(NOON, 1.0)];
    drop(ctx.store().write_batch(&batch));
    drop(ctx.store().prune_before(at(NOON + 1)));
    ctx.store().write_batch(&[rec(NOON + 1, 2.0)]).await?;
    drop(ctx.store().prune_before(at(NOON + 5)));
    drop(ctx.store().close());
    ensure_eq!(ctx.points().await?, [(NOON + 1, 2.0)]);
    Ok(())
}

/// A batch may be written again without effect: so one repeats a write that was given up.
async fn a_write_may_be_repeated_after_it_was_dropped(ctx: &Ctx) -> CaseResult {
    let batch: Vec<_> = (0..100).map(|ms| rec(NOON + ms, ms as f64)).collect();
    for moment in moments() {
        drop_at(moment, ctx.store().write_batch(&batch)).await.transpose()?;
        ctx.store().write_batch(&batch).await?;
        ensure_eq!(ctx.points().await?, points(&batch));
        ensure_eq!(ctx.store().stats().await?.total_metrics, 100);
    }
    Ok(())
}

/// A prune that is dropped may have removed a part; repeating it removes the rest.
async fn a_dropped_prune_can_be_repeated(ctx: &Ctx) -> CaseResult {
    for moment in moments() {
        let records: Vec<_> = (0..900).map(|no| rec_no(no % 3, NOON + no as i64, 1.0)).collect();
        ctx.store().write_batch(&records).await?;
        let cutoff = at(NOON + 600);
        drop_at(moment, ctx.store().prune_before(cutoff)).await.transpose()?;
        let removed = ctx.store().prune_before(cutoff).await?;
        ensure!(removed <= 600, "{removed} removed, of 600 that are old");
        let stats = ctx.store().stats().await?;
        ensure_eq!((stats.total_metrics, stats.oldest_metric), (300, Some(cutoff)));
    }
    Ok(())
}

/// What a prune that is dropped did not get to is as it was, and so is what it is to leave.
async fn a_dropped_prune_removes_nothing_that_stays(ctx: &Ctx) -> CaseResult {
    let marked = |no: i64| rec(NOON + no, no as f64).with_metadata(serde_json::json!(no));
    for (no, moment) in (0..).zip(moments()) {
        ctx.store().write_batch(&(0..300).map(marked).collect::<Vec<_>>()).await?;
        let cutoff = at(NOON + 100 + no);
        drop_at(moment, ctx.store().prune_before(cutoff)).await.transpose()?;
        let found = ctx.read_of(SERVER, METRIC).await?;
        let late = found.iter().filter(|record| record.timestamp >= cutoff).cloned();
        ensure_eq!(late.collect::<Vec<_>>(), (100 + no..300).map(marked).collect::<Vec<_>>());
        ctx.store().prune_before(cutoff).await?;
    }
    Ok(())
}

/// Reads that are given up leave the handle usable.
async fn dropped_reads_leave_the_handle_usable(ctx: &Ctx) -> CaseResult {
    let records: Vec<_> = (0..3000).map(|ms| rec(NOON + ms, 1.0)).collect();
    ctx.store().write_batch(&records).await?;
    let (store, all) = (ctx.store(), TimeRange::all());
    for (no, moment) in moments().enumerate() {
        drop_at(moment, store.query_range(SERVER, METRIC, all)).await.transpose()?;
        drop_at(moment, store.aggregate(SERVER, METRIC, all)).await.transpose()?;
        drop_at(moment, store.stats()).await.transpose()?;
        drop_at(moment, store.health()).await;
        store.write_batch(&[rec_of("after", METRIC, NOON + no as i64, 1.0)]).await?;
        ensure_eq!(store.aggregate(SERVER, METRIC, all).await?.count, 3000);
        ensure_eq!(store.stats().await?.total_metrics, 3001 + no as u64);
    }
    Ok(())
}

/// The same for the calls that take a filter.
async fn dropped_series_calls_leave_the_handle_usable(ctx: &Ctx) -> CaseResult {
    let records: Vec<_> = (0..2000).map(|no| rec_no(no % 20, NOON + no as i64, 1.0)).collect();
    ctx.store().write_batch(&records).await?;
    let (store, any, all) = (ctx.store(), SeriesFilter::any(), TimeRange::all());
    for moment in moments() {
        drop_at(moment, store.series(&any)).await.transpose()?;
        drop_at(moment, store.latest(&any, 10)).await.transpose()?;
        drop_at(moment, store.windows(&any, all, Duration::from_millis(50))).await.transpose()?;
        ensure_eq!(store.series(&any).await?.len(), 20);
        store.write_batch(&records[..10]).await?;
    }
    ensure_eq!(store.stats().await?.total_metrics, 2000);
    Ok(())
}

/// The same for a scan, given up while it waits for a batch or between two.
async fn a_dropped_scan_leaves_the_handle_usable(ctx: &Ctx) -> CaseResult {
    let records: Vec<_> = (0..9000).map(|no| rec_no(no % 2, NOON + no as i64, 1.0)).collect();
    ctx.store().write_batch(&records).await?;
    let (any, all) = (SeriesFilter::any(), TimeRange::all());
    for (no, moment) in moments().enumerate() {
        let mut scan = ctx.store().scan(&any, all);
        for _ in 0..no % 3 {
            scan.next().await.transpose()?;
        }
        drop_at(moment, scan.next()).await.flatten().transpose()?;
        drop(scan);
        ctx.store().write_batch(&records[..10]).await?;
    }
    let found = scan_all(ctx.store(), &any, all).await?;
    ensure_eq!(found.iter().map(|batch| batch.samples.len()).sum::<usize>(), 9000);
    Ok(())
}

/// No answer changes by `compact`, whether it is finished or not; the next one finishes it.
async fn a_dropped_compaction_changes_no_answer(ctx: &Ctx) -> CaseResult {
    let mut expected = Vec::new();
    for (no, moment) in (0..).zip(moments()) {
        let batch: Vec<_> =
            (0..200).map(|ms| rec(NOON + no * 150 + ms, (no + ms) as f64)).collect();
        ctx.store().write_batch(&batch).await?;
        expected.truncate(no as usize * 150);
        expected.extend(points(&batch));
        drop_at(moment, ctx.store().compact()).await.transpose()?;
        ensure_eq!(ctx.points().await?, expected);
        ensure_eq!(ctx.store().stats().await?.total_metrics, expected.len() as u64);
    }
    ctx.store().compact().await?;
    ensure_eq!(ctx.points().await?, expected);
    Ok(())
}

/// A `flush` that is given up holds nothing back: the next one finishes it.
async fn a_dropped_flush_loses_nothing(ctx: &Ctx) -> CaseResult {
    for (no, moment) in (0..).zip(moments()) {
        ctx.store().write_batch(&[rec(NOON + no, no as f64)]).await?;
        drop_at(moment, ctx.store().flush()).await.transpose()?;
        ctx.store().flush().await?;
        ensure_eq!(ctx.points().await?.len() as i64, no + 1);
    }
    Ok(())
}

/// A `check` that is given up leaves the store as it was, and as healthy.
async fn a_dropped_check_changes_no_answer(ctx: &Ctx) -> CaseResult {
    let records: Vec<_> = (0..2000).map(|no| rec_no(no % 4, NOON + no as i64, 1.0)).collect();
    ctx.store().write_batch(&records).await?;
    for moment in moments() {
        drop_at(moment, ctx.store().check()).await.transpose()?;
        ensure_eq!(ctx.store().stats().await?.total_metrics, 2000);
    }
    let report = ctx.store().check().await?;
    ensure_eq!((report.samples, report.problems), (2000, Vec::new()));
    Ok(())
}

/// A `close` that is given up loses nothing, and the next one finishes it.
async fn a_dropped_close_can_be_repeated(ctx: &Ctx) -> CaseResult {
    for (no, moment) in (0..).zip(moments()) {
        let store = ctx.open().await?;
        store.write_batch(&[rec(NOON + no, no as f64)]).await?;
        drop_at(moment, store.close()).await.transpose()?;
        store.close().await?;
        ensure_eq!(ctx.points().await?.len() as i64, no + 1);
    }
    Ok(())
}

/// Aborting the task that writes drops the future of the call: all of it or none.
async fn an_aborted_task_leaves_all_or_none(ctx: &Ctx) -> CaseResult {
    for no in 0..20 {
        let store = Arc::clone(ctx.store());
        let task = tokio::spawn(async move {
            let batch: Vec<_> = (0..500).map(|ms| rec_no(no, NOON + ms, 1.0)).collect();
            store.write_batch(&batch).await
        });
        for _ in 0..no {
            yield_now().await;
        }
        task.abort();
        if let Ok(written) = task.await {
            written?;
            ensure!(ensure_all_or_none(ctx, &server(no), 500).await?, "acknowledged and lost");
        }
        ensure_all_or_none(ctx, &server(no), 500).await?;
        ctx.store().write_batch(&[rec(NOON + no as i64, 1.0)]).await?;
    }
    ensure_eq!(ctx.points().await?.len(), 20);
    Ok(())
}
