//! Many at once: writers, readers, pruners and compactors on one location.
//!
//! A task that does not do its part ends the case: each has a number of steps or a deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use storage_core::{Error, SeriesFilter, TimeRange};
use tokio::sync::Barrier;
use tokio::task::{JoinHandle, yield_now};

use crate::data::{METRIC, NOON, SERVER, at, points, rec, rec_no, rec_of, scan_all, server};
use crate::failure::{CaseResult, Failure};
use crate::harness::{Ctx, Store};

cases! { "concurrency":
    once writers_of_different_series_do_not_disturb_each_other,
    once writers_of_the_same_keys_leave_one_of_the_values,
    once writers_on_two_handles_do_not_disturb_each_other,
    once each_task_reads_what_it_wrote,
    once each_task_reads_what_another_handle_wrote,
    once a_range_query_sees_no_part_of_a_batch,
    once an_aggregate_sees_no_part_of_a_batch,
    once stats_see_no_part_of_a_batch,
    once stats_see_no_part_of_a_large_batch,
    once the_series_list_sees_no_part_of_a_batch needs Series,
    once latest_never_goes_back_in_time needs Series,
    once windows_never_go_back_in_time needs Series,
    once replacing_never_shows_a_gap,
    once compaction_never_shows_a_gap,
    once reads_beside_prunes_see_no_hole,
    once everything_together_keeps_the_invariants,
    once many_new_series_at_once,
    once many_readers_at_once,
}

/// Runs `write` until every reader is done, and fails if any of them does.
async fn beside_writes<W, R>(mut write: impl FnMut(u64) -> W, readers: Vec<R>) -> CaseResult
where
    W: Future<Output = Result<(), Error>>,
    R: Future<Output = CaseResult> + Send + 'static,
{
    let tasks: Vec<JoinHandle<CaseResult>> = readers.into_iter().map(tokio::spawn).collect();
    let mut round = 0;
    while !tasks.iter().all(JoinHandle::is_finished) {
        write(round).await?;
        round += 1;
        yield_now().await;
    }
    for result in join_all(tasks).await {
        result??;
    }
    Ok(())
}

/// Repeats `read` for a while: long enough to meet writes, short enough for a test.
async fn again_and_again<F: Future<Output = CaseResult>>(
    mut read: impl FnMut() -> F,
) -> CaseResult {
    let deadline = Instant::now() + Duration::from_millis(300);
    while Instant::now() < deadline {
        read().await?;
        yield_now().await;
    }
    Ok(())
}

async fn finish(tasks: Vec<JoinHandle<CaseResult>>) -> CaseResult {
    for result in join_all(tasks).await {
        result??;
    }
    Ok(())
}

/// Eight writers, a series each: every sample of each is there.
async fn writers_of_different_series_do_not_disturb_each_other(ctx: &Ctx) -> CaseResult {
    let together = Arc::new(Barrier::new(8));
    let write = |no: usize| {
        let store = Arc::clone(ctx.store());
        let together = Arc::clone(&together);
        tokio::spawn(async move {
            together.wait().await;
            for step in 0..50_i64 {
                let batch: Vec<_> =
                    (0..10).map(|ms| rec_no(no, NOON + step * 10 + ms, no as f64)).collect();
                store.write_batch(&batch).await?;
            }
            Ok(())
        })
    };
    finish((0..8).map(write).collect()).await?;
    for no in 0..8 {
        let expected: Vec<_> = (0..500).map(|ms| (NOON + ms, no as f64)).collect();
        let found = points(&ctx.read_of(&server(no), METRIC).await?);
        ensure!(found == expected, "writer {no}: {} of 500 samples, or others", found.len());
    }
    ensure_eq!(ctx.store().stats().await?.total_metrics, 4000);
    Ok(())
}

/// Eight writers of the same keys: each key holds a value that one of them wrote, once.
async fn writers_of_the_same_keys_leave_one_of_the_values(ctx: &Ctx) -> CaseResult {
    let together = Arc::new(Barrier::new(8));
    let write = |no: usize| {
        let store = Arc::clone(ctx.store());
        let together = Arc::clone(&together);
        tokio::spawn(async move {
            together.wait().await;
            for step in 0..20 {
                let value = (no * 100 + step) as f64;
                let batch: Vec<_> = (0..30)
                    .map(|ms| rec(NOON + ms, value).with_metadata(serde_json::json!(value)))
                    .collect();
                store.write_batch(&batch).await?;
            }
            Ok(())
        })
    };
    finish((0..8).map(write).collect()).await?;
    let found = ctx.read_of(SERVER, METRIC).await?;
    ensure_eq!(found.len(), 30);
    for record in &found {
        // The last batch of one of the writers, and the same one for the whole of the keys.
        ensure!(record.value % 100.0 == 19.0, "{} is nobody's last value", record.value);
        ensure_eq!(record.value, found[0].value);
        ensure_eq!(record.metadata, Some(serde_json::json!(record.value)));
    }
    ensure_eq!(ctx.store().stats().await?.total_metrics, 30);
    Ok(())
}

/// Any number of handles may write at once: also the same series, also compacting meanwhile.
async fn writers_on_two_handles_do_not_disturb_each_other(ctx: &Ctx) -> CaseResult {
    let handles = [Arc::clone(ctx.store()), ctx.open().await?];
    let together = Arc::new(Barrier::new(4));
    let write = |no: i64| {
        let store = Arc::clone(&handles[no as usize % 2]);
        let together = Arc::clone(&together);
        tokio::spawn(async move {
            together.wait().await;
            for step in 0..100 {
                store.write_batch(&[rec(NOON + step * 4 + no, no as f64)]).await?;
                if no == 3 && step % 25 == 0 {
                    store.compact().await?;
                }
            }
            Ok(())
        })
    };
    finish((0..4).map(write).collect()).await?;
    let expected: Vec<_> = (0..400).map(|ms| (NOON + ms, (ms % 4) as f64)).collect();
    for handle in &handles {
        let found = points(&handle.query_range(SERVER, METRIC, TimeRange::all()).await?);
        ensure!(found == expected, "{} of 400 samples, or others", found.len());
    }
    Ok(())
}

/// When a write returns it is visible: each of eight tasks finds what it wrote, at once.
async fn each_task_reads_what_it_wrote(ctx: &Ctx) -> CaseResult {
    let store = Arc::clone(ctx.store());
    read_your_writes(&store, &store).await
}

/// Visible to every reader: also to one on another handle.
async fn each_task_reads_what_another_handle_wrote(ctx: &Ctx) -> CaseResult {
    read_your_writes(ctx.store(), &ctx.open().await?).await
}

async fn read_your_writes(writing: &Store, reading: &Store) -> CaseResult {
    let task = |no: usize| {
        let (writing, reading) = (Arc::clone(writing), Arc::clone(reading));
        tokio::spawn(async move {
            for step in 0..40 {
                writing.write_batch(&[rec_no(no, NOON + step, step as f64)]).await?;
                let found = reading.query_range(&server(no), METRIC, TimeRange::all()).await?;
                ensure_eq!(points(&found).last(), Some(&(NOON + step, step as f64)), "task {no}");
                ensure_eq!(found.len() as i64, step + 1, "task {no}");
                let total = reading.stats().await?.total_metrics;
                ensure!(total > step as u64, "task {no}: {total} samples after step {step}");
            }
            Ok(())
        })
    };
    finish((0..8).map(task).collect()).await
}

/// No reader sees a part of a batch: many samples of one series, replaced all at once.
async fn a_range_query_sees_no_part_of_a_batch(ctx: &Ctx) -> CaseResult {
    let reader = |store: Store| {
        again_and_again(move || {
            let store = Arc::clone(&store);
            async move {
                let found = store.query_range(SERVER, METRIC, TimeRange::all()).await?;
                ensure!(matches!(found.len(), 0 | 200), "{} of 200 samples", found.len());
                let values: BTreeSet<_> = found.iter().map(|record| record.value as u64).collect();
                ensure!(values.len() <= 1, "of several batches: {values:?}");
                Ok(())
            }
        })
    };
    let readers = vec![reader(Arc::clone(ctx.store())), reader(ctx.open().await?)];
    let batch = |round: u64| (0..200).map(|ms| rec(NOON + ms, round as f64)).collect::<Vec<_>>();
    beside_writes(|round| async move { ctx.store().write_batch(&batch(round)).await }, readers)
        .await
}

/// No reader sees a part of a batch: not in an aggregate either.
async fn an_aggregate_sees_no_part_of_a_batch(ctx: &Ctx) -> CaseResult {
    let store = ctx.open().await?;
    let reader = again_and_again(move || {
        let store = Arc::clone(&store);
        async move {
            let found = store.aggregate(SERVER, METRIC, TimeRange::all()).await?;
            ensure!(matches!(found.count, 0 | 200), "{} of 200 samples", found.count);
            ensure_eq!(found.min, found.max, "of several batches");
            Ok(())
        }
    });
    let batch = |round: u64| (0..200).map(|ms| rec(NOON + ms, round as f64)).collect::<Vec<_>>();
    beside_writes(|round| async move { ctx.store().write_batch(&batch(round)).await }, vec![reader])
        .await
}

/// No reader sees a part of a batch: many series, counted in one call.
async fn stats_see_no_part_of_a_batch(ctx: &Ctx) -> CaseResult {
    counted_in_whole_batches(ctx, 20, 20).await
}

/// A batch may have any size, and none is seen in part.
async fn stats_see_no_part_of_a_large_batch(ctx: &Ctx) -> CaseResult {
    counted_in_whole_batches(ctx, 20, 2000).await
}

/// Writes batches of `samples` over `series`, each of times of its own.
async fn counted_in_whole_batches(ctx: &Ctx, series: usize, samples: usize) -> CaseResult {
    let reader = |store: Store| {
        again_and_again(move || {
            let store = Arc::clone(&store);
            async move {
                let found = store.stats().await?;
                let rest = found.total_metrics % samples as u64;
                ensure_eq!(rest, 0, "{} samples", found.total_metrics);
                ensure!([0, series as u64].contains(&found.series), "{} series", found.series);
                Ok(())
            }
        })
    };
    let readers = vec![reader(Arc::clone(ctx.store())), reader(ctx.open().await?)];
    let batch = |round: u64| {
        let ms = NOON + round as i64 * samples as i64;
        (0..samples).map(|no| rec_no(no % series, ms + no as i64, 1.0)).collect::<Vec<_>>()
    };
    beside_writes(|round| async move { ctx.store().write_batch(&batch(round)).await }, readers)
        .await
}

/// No reader sees a part of a batch: every series of it has grown, or none.
async fn the_series_list_sees_no_part_of_a_batch(ctx: &Ctx) -> CaseResult {
    let store = ctx.open().await?;
    let reader = again_and_again(move || {
        let store = Arc::clone(&store);
        async move {
            let found = store.series(&SeriesFilter::any()).await?;
            ensure!(matches!(found.len(), 0 | 20), "{} of 20 series", found.len());
            let counts: BTreeSet<_> = found.iter().map(|info| info.count).collect();
            ensure!(counts.len() <= 1, "some have more than others: {counts:?}");
            Ok(())
        }
    });
    let batch = |round| (0..20).map(|no| rec_no(no, NOON + round as i64, 1.0)).collect::<Vec<_>>();
    beside_writes(
        |round: u64| async move { ctx.store().write_batch(&batch(round)).await },
        vec![reader],
    )
    .await
}

/// A series that comes later in an answer is never older than one that comes earlier: then a
/// part of a batch would have been seen. (It may be newer where the answer is made of one read
/// per series, as the default implementations are.)
fn ensure_not_older(values: &[f64]) -> CaseResult {
    ensure!(matches!(values.len(), 0 | 20), "{} of 20 series", values.len());
    ensure!(values.is_sorted(), "a part of a batch: {values:?}");
    Ok(())
}

/// No reader sees a part of a batch: `latest` over all its series.
async fn latest_never_goes_back_in_time(ctx: &Ctx) -> CaseResult {
    let store = ctx.open().await?;
    let reader = again_and_again(move || {
        let store = Arc::clone(&store);
        async move {
            let found = store.latest(&SeriesFilter::any(), 1).await?;
            ensure_not_older(&found.iter().map(|one| one.samples[0].value).collect::<Vec<_>>())
        }
    });
    let batch = |round| (0..20).map(|no| rec_no(no, NOON, round as f64)).collect::<Vec<_>>();
    beside_writes(
        |round: u64| async move { ctx.store().write_batch(&batch(round)).await },
        vec![reader],
    )
    .await
}

/// No reader sees a part of a batch: `windows` over all its series.
async fn windows_never_go_back_in_time(ctx: &Ctx) -> CaseResult {
    let store = ctx.open().await?;
    let width = Duration::from_secs(60);
    let reader = again_and_again(move || {
        let store = Arc::clone(&store);
        async move {
            let found = store.windows(&SeriesFilter::any(), TimeRange::all(), width).await?;
            let lasts = found.iter().map(|one| one.windows[0].aggregation.last.unwrap_or_default());
            ensure_not_older(&lasts.collect::<Vec<_>>())
        }
    });
    let batch = |round| (0..20).map(|no| rec_no(no, NOON, round as f64)).collect::<Vec<_>>();
    beside_writes(
        |round: u64| async move { ctx.store().write_batch(&batch(round)).await },
        vec![reader],
    )
    .await
}

/// Replacing a sample leaves no moment without one.
async fn replacing_never_shows_a_gap(ctx: &Ctx) -> CaseResult {
    let batch = |round: u64| (0..50).map(|ms| rec(NOON + ms, round as f64)).collect::<Vec<_>>();
    ctx.store().write_batch(&batch(0)).await?;
    let store = ctx.open().await?;
    let reader = again_and_again(move || {
        let store = Arc::clone(&store);
        async move {
            let found = store.query_range(SERVER, METRIC, TimeRange::all()).await?;
            ensure_eq!(found.len(), 50);
            ensure_eq!(store.stats().await?.total_metrics, 50);
            Ok(())
        }
    });
    beside_writes(|round| async move { ctx.store().write_batch(&batch(round)).await }, vec![reader])
        .await
}

/// No answer changes by `compact`, nor while it runs.
async fn compaction_never_shows_a_gap(ctx: &Ctx) -> CaseResult {
    let reader = |store: Store| {
        let counted = AtomicBool::new(false);
        again_and_again(move || {
            let (store, first) = (Arc::clone(&store), !counted.swap(true, Ordering::Relaxed));
            async move {
                let found = points(&store.query_range(SERVER, METRIC, TimeRange::all()).await?);
                let whole =
                    (0..found.len() as i64).map(|ms| (NOON + ms, ms as f64)).collect::<Vec<_>>();
                ensure!(found == whole, "a hole or a double among {} samples", found.len());
                ensure!(first || found.len() >= 500, "{} of 500 samples", found.len());
                Ok(())
            }
        })
    };
    let first: Vec<_> = (0..500).map(|ms| rec(NOON + ms, ms as f64)).collect();
    ctx.store().write_batch(&first).await?;
    let readers = vec![reader(Arc::clone(ctx.store())), reader(ctx.open().await?)];
    let write = |round: u64| async move {
        let start = 500 + round as i64 * 10;
        let batch: Vec<_> = (start..start + 10).map(|ms| rec(NOON + ms, ms as f64)).collect();
        ctx.store().write_batch(&batch).await?;
        ctx.store().compact().await
    };
    beside_writes(write, readers).await
}

/// What a prune takes away is the oldest: nothing is missing between what is left.
async fn reads_beside_prunes_see_no_hole(ctx: &Ctx) -> CaseResult {
    let store = ctx.open().await?;
    let reader = again_and_again(move || {
        let store = Arc::clone(&store);
        async move {
            let found = points(&store.query_range(SERVER, METRIC, TimeRange::all()).await?);
            let steady = found.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1);
            ensure!(steady, "a hole among {} samples", found.len());
            Ok(())
        }
    });
    let write = |round: u64| async move {
        let start = NOON + round as i64 * 20;
        ctx.store()
            .write_batch(&(start..start + 20).map(|ms| rec(ms, 1.0)).collect::<Vec<_>>())
            .await?;
        ctx.store().prune_before(at(start - 50)).await.map(drop)
    };
    beside_writes(write, vec![reader]).await
}

/// Writers, readers, a pruner and a compactor together: every write is whole, reads are in
/// order and without doubles, each removed sample is counted once.
async fn everything_together_keeps_the_invariants(ctx: &Ctx) -> CaseResult {
    const WRITERS: usize = 3;
    let handles = [Arc::clone(ctx.store()), ctx.open().await?];
    let over = Arc::new(AtomicBool::new(false));
    let write = |no: usize| {
        let (store, over) = (Arc::clone(&handles[no % 2]), Arc::clone(&over));
        tokio::spawn(async move {
            let mut written = 0;
            while !over.load(Ordering::Relaxed) {
                let batch: Vec<_> =
                    (0..5).map(|ms| rec_no(no, NOON + written + ms, no as f64)).collect();
                store.write_batch(&batch).await?;
                written += 5;
                yield_now().await;
            }
            Ok::<_, Failure>(written as u64)
        })
    };
    let writers: Vec<_> = (0..WRITERS).map(write).collect();
    let prune = {
        let (store, over) = (Arc::clone(&handles[1]), Arc::clone(&over));
        tokio::spawn(async move {
            let (mut removed, mut cutoff) = (0, NOON);
            while !over.load(Ordering::Relaxed) {
                cutoff += 7;
                removed += store.prune_before(at(cutoff)).await?;
                tokio::task::yield_now().await;
            }
            Ok::<_, Failure>(removed)
        })
    };
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut round = 0;
    while Instant::now() < deadline {
        let store = &handles[round % 2];
        for no in 0..WRITERS {
            let found = points(&store.query_range(&server(no), METRIC, TimeRange::all()).await?);
            let ordered = found.windows(2).all(|pair| pair[0].0 < pair[1].0);
            ensure!(ordered, "writer {no}: out of order, or doubles");
            ensure!(found.iter().all(|(_, value)| *value == no as f64), "writer {no}: mixed up");
            let aggregation = store.aggregate(&server(no), METRIC, TimeRange::all()).await?;
            let of_one = aggregation.count == 0 || aggregation.avg == Some(no as f64);
            ensure!(of_one, "writer {no}: {aggregation:?}");
        }
        if round % 10 == 0 {
            store.compact().await?;
        }
        round += 1;
        yield_now().await;
    }
    over.store(true, Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        written += writer.await??;
    }
    let removed = prune.await??;
    ensure_eq!(ctx.store().stats().await?.total_metrics, written - removed, "{written} written");
    Ok(())
}

/// Series that come into being at once, some by several writers, are each one series.
async fn many_new_series_at_once(ctx: &Ctx) -> CaseResult {
    let handles = [Arc::clone(ctx.store()), ctx.open().await?];
    let together = Arc::new(Barrier::new(8));
    let write = |no: usize| {
        let store = Arc::clone(&handles[no % 2]);
        let together = Arc::clone(&together);
        tokio::spawn(async move {
            together.wait().await;
            for step in 0..20 {
                // Each series is written to by all, beginning at the same time.
                let name = format!("new-{step}");
                store.write_batch(&[rec_of(&name, METRIC, NOON + no as i64, no as f64)]).await?;
            }
            Ok(())
        })
    };
    finish((0..8).map(write).collect()).await?;
    let expected: Vec<_> = (0..8).map(|no| (NOON + no, no as f64)).collect();
    for step in 0..20 {
        for handle in &handles {
            let found =
                handle.query_range(&format!("new-{step}"), METRIC, TimeRange::all()).await?;
            ensure_eq!(points(&found), expected, "series {step}");
        }
    }
    let stats = ctx.store().stats().await?;
    ensure_eq!((stats.series, stats.total_metrics), (20, 160));
    Ok(())
}

/// Any number of tasks may read at once, and all find the same.
async fn many_readers_at_once(ctx: &Ctx) -> CaseResult {
    let records: Vec<_> = (0..1000).map(|no| rec_no(no % 4, NOON + no as i64, no as f64)).collect();
    ctx.store().write_batch(&records).await?;
    let read = |no: usize| {
        let store = Arc::clone(ctx.store());
        tokio::spawn(async move {
            for _ in 0..5 {
                let found = store.query_range(&server(no % 4), METRIC, TimeRange::all()).await?;
                ensure_eq!(found.len(), 250);
                let aggregation =
                    store.aggregate(&server(no % 4), METRIC, TimeRange::all()).await?;
                ensure_eq!(aggregation.first, Some((no % 4) as f64));
                if store.capabilities().series {
                    let all = scan_all(&store, &SeriesFilter::any(), TimeRange::all()).await?;
                    let mut by_series = BTreeMap::new();
                    for batch in all {
                        *by_series.entry(batch.series).or_insert(0) += batch.samples.len();
                    }
                    ensure!(by_series.values().eq(&[250; 4]), "{by_series:?}");
                }
            }
            Ok(())
        })
    };
    finish((0..64).map(read).collect()).await
}
