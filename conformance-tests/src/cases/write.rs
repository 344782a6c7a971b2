//! Storing batches: `write_batch`.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use storage_core::metrics::time::END_MS;
use storage_core::{MetricRecord, StorageStats, TimeRange};

use crate::data::{METRIC, NOON, SERVER, last_wins, points, ramp, rec, rec_of, scattered};
use crate::failure::{CaseResult, expect_refused};
use crate::harness::Ctx;

cases! { "write":
    once an_empty_batch_does_nothing,
    layouts one_record_round_trips,
    layouts written_twice_has_no_effect,
    layouts inside_a_batch_the_last_wins,
    layouts across_batches_the_last_wins,
    once compacted_samples_are_replaced,
    once the_last_of_very_many_writes_wins,
    layouts a_mixed_batch_adds_and_replaces,
    layouts seen_by_a_handle_opened_later,
    layouts one_time_in_many_series,
    layouts records_come_in_any_order_of_time,
    layouts backfill_before_everything_stored,
    once a_huge_batch_appears_at_once,
    once ten_thousand_series_in_one_batch,
    once a_batch_with_one_bad_record_stores_nothing,
    once the_first_bad_record_is_named,
}

async fn write_all(ctx: &Ctx, batches: &[&[MetricRecord]]) -> storage_core::Result<()> {
    for batch in batches {
        ctx.write(batch).await?;
    }
    Ok(())
}

fn counts(stats: &StorageStats) -> (u64, u64) {
    (stats.total_metrics, stats.series)
}

/// An empty batch is `Ok` and does nothing.
async fn an_empty_batch_does_nothing(ctx: &Ctx) -> CaseResult {
    ctx.store().write_batch(&[]).await?;
    ensure_eq!(counts(&ctx.store().stats().await?), (0, 0));
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    ctx.store().write_batch(&[]).await?;
    ensure_eq!(ctx.points().await?, [(NOON, 1.0)]);
    Ok(())
}

/// When it returns `Ok` the batch is visible: names, time, value and metadata as written.
async fn one_record_round_trips(ctx: &Ctx) -> CaseResult {
    let record = rec(NOON + 7, 12.5).with_metadata(json!({"core": 3}));
    ctx.write(std::slice::from_ref(&record)).await?;
    ensure_eq!(ctx.read_of(SERVER, METRIC).await?, [record]);
    Ok(())
}

/// A batch may be written again without effect.
async fn written_twice_has_no_effect(ctx: &Ctx) -> CaseResult {
    let mut batch = ramp(700);
    batch.extend((0..50).map(|n| rec(NOON + n, 0.5).with_metadata(json!(n))));
    ctx.write(&batch).await?;
    let first = ctx.read_of(SERVER, METRIC).await?;
    ctx.write(&batch).await?;
    ensure_eq!(ctx.read_of(SERVER, METRIC).await?, first);
    ensure_eq!(counts(&ctx.store().stats().await?), (749, 1));
    Ok(())
}

/// A series holds at most one sample per millisecond: inside a batch, the record that comes last.
async fn inside_a_batch_the_last_wins(ctx: &Ctx) -> CaseResult {
    let batch = [
        rec(NOON, 1.0),
        rec(NOON + 1, 5.0),
        rec(NOON, 3.0),
        rec(NOON, 2.0).with_metadata(json!(9)),
    ];
    ctx.write(&batch).await?;
    ensure_eq!(ctx.read_of(SERVER, METRIC).await?, [batch[3].clone(), batch[1].clone()]);
    ensure_eq!(counts(&ctx.store().stats().await?), (2, 1));
    Ok(())
}

/// A record of a series and millisecond that holds a sample replaces it: the write applied last
/// wins, also if its value is smaller.
async fn across_batches_the_last_wins(ctx: &Ctx) -> CaseResult {
    let first = [rec(NOON, 1.0), rec(NOON + 1, 2.0), rec(NOON + 2, 3.0)];
    write_all(ctx, &[&first, &[rec(NOON + 1, 9.0)], &[rec(NOON + 1, -4.0), rec(NOON, 7.0)]])
        .await?;
    ensure_eq!(ctx.points().await?, [(NOON, 7.0), (NOON + 1, -4.0), (NOON + 2, 3.0)]);
    ensure_eq!(counts(&ctx.store().stats().await?), (3, 1));
    Ok(())
}

/// The write applied last wins, also over compacted samples, and stays the last when compacted.
async fn compacted_samples_are_replaced(ctx: &Ctx) -> CaseResult {
    let mut written = ramp(3000);
    ctx.store().write_batch(&written).await?;
    ctx.store().compact().await?;
    let over: Vec<_> = (0..3000).step_by(7).map(|n| rec(NOON + n * 1000, -1.0)).collect();
    ctx.store().write_batch(&over).await?;
    written.extend(over);
    let expected = last_wins(&written);
    ensure_eq!(ctx.points().await?, expected, "before the second compaction");
    ctx.store().compact().await?;
    ensure_eq!(ctx.points().await?, expected, "after the second compaction");
    ensure_eq!(counts(&ctx.store().stats().await?), (3000, 1));
    Ok(())
}

/// The write applied last wins, however often the sample was replaced before.
async fn the_last_of_very_many_writes_wins(ctx: &Ctx) -> CaseResult {
    for n in 0..300 {
        ctx.store().write_batch(&[rec(NOON, f64::from(n)), rec(NOON + 1, 0.5)]).await?;
    }
    ensure_eq!(ctx.points().await?, [(NOON, 299.0), (NOON + 1, 0.5)]);
    let batch: Vec<_> = (0..5000).map(|n| rec(NOON, f64::from(n))).collect();
    ctx.store().write_batch(&batch).await?;
    ensure_eq!(ctx.points().await?, [(NOON, 4999.0), (NOON + 1, 0.5)]);
    ensure_eq!(counts(&ctx.store().stats().await?), (2, 1));
    Ok(())
}

/// One batch may add, replace and repeat samples of several series.
async fn a_mixed_batch_adds_and_replaces(ctx: &Ctx) -> CaseResult {
    let first: Vec<_> = scattered(11, 900, NOON, NOON + 2000);
    let second: Vec<_> = scattered(12, 900, NOON + 500, NOON + 3000);
    let other =
        [rec_of(SERVER, "other", NOON + 500, 4.0), rec_of("other", METRIC, NOON + 500, 5.0)];
    let mixed: Vec<_> = second.iter().chain(&other).cloned().collect();
    write_all(ctx, &[&first, &mixed]).await?;
    let expected = last_wins(&[first, second].concat());
    ensure_eq!(ctx.points().await?, expected);
    ensure_eq!(ctx.read_of(SERVER, "other").await?, other[..1].to_vec());
    ensure_eq!(ctx.read_of("other", METRIC).await?, other[1..].to_vec());
    ensure_eq!(counts(&ctx.store().stats().await?), (expected.len() as u64 + 2, 3));
    Ok(())
}

/// What was written is visible to every reader: to a handle opened later, also when the writing
/// one is closed.
async fn seen_by_a_handle_opened_later(ctx: &Ctx) -> CaseResult {
    let batch = ramp(1200);
    ctx.write(&batch).await?;
    let second = ctx.open().await?;
    ensure_eq!(second.query_range(SERVER, METRIC, TimeRange::all()).await?, batch);
    ctx.store().close().await?;
    let third = ctx.open().await?;
    ensure_eq!(third.query_range(SERVER, METRIC, TimeRange::all()).await?, batch);
    second.close().await?;
    Ok(third.close().await?)
}

/// Samples of one millisecond replace each other only within a series.
async fn one_time_in_many_series(ctx: &Ctx) -> CaseResult {
    let names = ["a", "b", "c", "d"];
    let pairs: Vec<_> = names.iter().flat_map(|s| names.iter().map(move |m| (*s, *m))).collect();
    let batch: Vec<_> =
        pairs.iter().enumerate().map(|(n, (s, m))| rec_of(s, m, NOON, n as f64)).collect();
    ctx.write(&batch).await?;
    for (n, (server, metric)) in pairs.iter().enumerate() {
        ensure_eq!(points(&ctx.read_of(server, metric).await?), [(NOON, n as f64)]);
    }
    Ok(())
}

/// Records may come in any order of time.
async fn records_come_in_any_order_of_time(ctx: &Ctx) -> CaseResult {
    let mut batch = ramp(20_000);
    fastrand::Rng::with_seed(41).shuffle(&mut batch);
    ctx.write(&batch).await?;
    ensure_eq!(ctx.read_of(SERVER, METRIC).await?, ramp(20_000));
    Ok(())
}

/// Records may come in any order of time, also older than everything stored, in many writes.
async fn backfill_before_everything_stored(ctx: &Ctx) -> CaseResult {
    let all = ramp(1200);
    for chunk in all.chunks(100).rev() {
        ctx.write(chunk).await?;
    }
    ensure_eq!(ctx.points().await?, points(&all));
    ctx.write(&[rec(-5, 1.0), rec(NOON - 1, 2.0), rec(NOON + 1, 3.0)]).await?;
    let found = ctx.points().await?;
    ensure_eq!(found[..4].to_vec(), [(-5, 1.0), (NOON - 1, 2.0), (NOON, 0.0), (NOON + 1, 3.0)]);
    ensure_eq!(found.len(), 1203);
    Ok(())
}

/// A batch may have any size, and no reader ever sees a part of it.
async fn a_huge_batch_appears_at_once(ctx: &Ctx) -> CaseResult {
    const COUNT: u64 = 100_001;
    let reader = ctx.open().await?;
    let mut batch = ramp(COUNT as i64);
    batch.iter_mut().step_by(2).for_each(|record| record.server_id = "even".to_owned());
    let writing = tokio::spawn({
        let store = Arc::clone(ctx.store());
        async move { store.write_batch(&batch).await }
    });
    loop {
        let finished = writing.is_finished();
        let count = reader.stats().await?.total_metrics;
        ensure!(count == 0 || count == COUNT, "a reader saw {count} of {COUNT} samples");
        if finished {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    writing.await??;
    let expected = points(&ramp(COUNT as i64));
    let (even, odd) = (ctx.read_of("even", METRIC).await?, ctx.points().await?);
    ensure_eq!((even.len(), odd.len()), (50_001, 50_000));
    ensure!(points(&even).iter().eq(expected.iter().step_by(2)), "even samples differ");
    ensure!(odd.iter().eq(expected.iter().skip(1).step_by(2)), "odd samples differ");
    Ok(reader.close().await?)
}

/// A batch may have any size: a sample each of ten thousand series.
async fn ten_thousand_series_in_one_batch(ctx: &Ctx) -> CaseResult {
    let name = |n: u32| (format!("server-{}", n % 100), format!("metric-{}", n / 100));
    let record = |n: u32| rec_of(&name(n).0, &name(n).1, NOON + i64::from(n % 7), f64::from(n));
    let batch: Vec<_> = (0..10_000).map(record).collect();
    ctx.store().write_batch(&batch).await?;
    ensure_eq!(counts(&ctx.store().stats().await?), (10_000, 10_000));
    for n in (0..10_000).step_by(83) {
        let (server, metric) = name(n);
        ensure_eq!(ctx.read_of(&server, &metric).await?, [record(n)]);
    }
    Ok(())
}

/// `InvalidArgument` if a record breaks a rule, with the details `record` and `field`; nothing is
/// stored, also if the bad one is the last of very many.
async fn a_batch_with_one_bad_record_stores_nothing(ctx: &Ctx) -> CaseResult {
    ctx.store().write_batch(&[rec(NOON, 77.0)]).await?;
    let mut batch = ramp(20_000);
    batch.iter_mut().step_by(3).for_each(|record| record.server_id = "new".to_owned());
    batch.push(rec(NOON + 1, f64::NAN));
    let result = ctx.store().write_batch(&batch).await;
    let error = expect_refused(result, Some("value"), "a batch that ends in NaN")?;
    ensure_eq!(error.context("record"), Some("20000"));
    ensure_eq!(ctx.points().await?, [(NOON, 77.0)]);
    ensure_eq!(ctx.read_of("new", METRIC).await?, []);
    ensure_eq!(counts(&ctx.store().stats().await?), (1, 1));
    ctx.store().write_batch(&batch[..20_000]).await?;
    ensure_eq!(ctx.store().stats().await?.total_metrics, 20_001);
    Ok(())
}

/// The detail `record` is the index of the first bad one.
async fn the_first_bad_record_is_named(ctx: &Ctx) -> CaseResult {
    let batch = [
        rec(NOON, 1.0),
        rec(NOON, 2.0),
        rec(END_MS, 3.0),
        rec(NOON, f64::NAN),
        rec_of("", "", 0, 1.0),
    ];
    let error =
        expect_refused(ctx.store().write_batch(&batch).await, Some("timestamp"), "three bad")?;
    ensure_eq!(error.context("record"), Some("2"));
    let error =
        expect_refused(ctx.store().write_batch(&batch[4..]).await, Some("server_id"), "the last")?;
    ensure_eq!(error.context("record"), Some("0"));
    Ok(())
}
