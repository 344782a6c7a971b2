//! Opening, sharing, closing: what holds of handles and locations whatever the data.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{join_all, try_join_all};
use storage_core::{
    Error, ErrorKind, HealthStatus, Outcome, SeriesFilter, StorageStats, TimeRange,
};

use crate::data::{METRIC, NOON, SERVER, at, points, rec, rec_of, scan_all};
use crate::failure::{CaseResult, Failure, expect_kind};
use crate::harness::{Ctx, Store};

cases! { "lifecycle":
    once a_fresh_location_is_empty,
    once a_fresh_location_has_no_series needs Series,
    layouts two_handles_see_each_others_writes,
    layouts two_handles_see_each_others_new_series needs Series,
    layouts two_handles_see_each_others_overwrites,
    layouts two_handles_see_each_others_prunes,
    once compaction_by_one_handle_changes_nothing_for_the_other,
    once two_locations_do_not_see_each_other,
    layouts reopening_keeps_everything,
    once sixteen_open_an_empty_location_at_once,
    layouts opening_again_changes_nothing,
    once a_closed_handle_refuses_the_required_calls needs Close,
    once a_closed_handle_refuses_the_series_calls needs Close,
    once a_closed_handle_refuses_a_check needs Close,
    once a_closed_handle_refuses_an_empty_batch needs Close,
    once a_closed_handle_is_not_healthy needs Close,
    once a_closed_handle_has_nothing_to_write_out,
    once a_second_close_does_nothing,
    once other_handles_go_on_after_a_close,
    once close_finishes_what_is_under_way needs Close,
    once dropping_a_handle_loses_nothing,
    once flush_and_compact_work_on_an_empty_store,
    layouts flush_changes_no_answer,
    layouts compact_changes_no_answer,
    once health_is_healthy_empty_and_filled,
    once the_name_is_the_same_on_every_handle,
}

/// Samples of a few series, enough to notice any loss, mix-up or change of order.
fn some_records() -> Vec<storage_core::MetricRecord> {
    let of = |no: i64| {
        let server = format!("web-{}", no % 3);
        let record = rec_of(&server, METRIC, NOON + no * 1000, no as f64 / 7.0);
        if no % 5 == 0 { record.with_metadata(serde_json::json!({ "no": no })) } else { record }
    };
    (0..60).map(of).collect()
}

/// Everything that reads can say about [`some_records`].
async fn answers(store: &Store) -> Result<(StorageStats, Vec<String>), Failure> {
    let mut answers = Vec::new();
    for server in ["web-0", "web-1", "web-2", "web-3"] {
        answers.push(format!("{:?}", store.query_range(server, METRIC, TimeRange::all()).await?));
        answers.push(format!("{:?}", store.aggregate(server, METRIC, TimeRange::all()).await?));
    }
    if store.capabilities().series {
        let any = SeriesFilter::any();
        let width = Duration::from_secs(7);
        answers.push(format!("{:?}", store.series(&any).await?));
        answers.push(format!("{:?}", store.latest(&any, 3).await?));
        answers.push(format!("{:?}", store.windows(&any, TimeRange::all(), width).await?));
        answers.push(format!("{:?}", scan_all(store, &any, TimeRange::all()).await?));
    }
    // How many bytes the samples take may change by all that leaves the samples alone.
    let stats = StorageStats { disk_usage_bytes: 0, ..store.stats().await? };
    Ok((stats, answers))
}

/// A location that nothing was written to holds no sample and has no extent in time.
async fn a_fresh_location_is_empty(ctx: &Ctx) -> CaseResult {
    let stats = ctx.store().stats().await?;
    ensure_eq!((stats.total_metrics, stats.series), (0, 0));
    ensure_eq!((stats.oldest_metric, stats.newest_metric), (None, None));
    ensure_eq!(ctx.points().await?, []);
    Ok(())
}

/// A series exists while it holds a sample: at first there is none.
async fn a_fresh_location_has_no_series(ctx: &Ctx) -> CaseResult {
    let any = SeriesFilter::any();
    ensure_eq!(ctx.store().series(&any).await?, []);
    ensure_eq!(ctx.store().latest(&any, 5).await?, []);
    ensure_eq!(scan_all(ctx.store(), &any, TimeRange::all()).await?, []);
    Ok(())
}

/// What one wrote, every other sees as soon as the writing call has returned; both ways.
async fn two_handles_see_each_others_writes(ctx: &Ctx) -> CaseResult {
    let other = ctx.open().await?;
    for round in 0..10 {
        let ms = NOON + 10 * round;
        ctx.write(&[rec(ms, 1.0), rec(ms + 1, 2.0)]).await?;
        let seen = other.query_range(SERVER, METRIC, TimeRange::all()).await?;
        ensure_eq!(points(&seen).last(), Some(&(ms + 1, 2.0)), "round {round}, seen by the other");
        other.write_batch(&[rec(ms + 2, 3.0)]).await?;
        ensure_eq!(
            ctx.points().await?.last(),
            Some(&(ms + 2, 3.0)),
            "round {round}, seen by the first"
        );
        ensure_eq!(other.stats().await?.total_metrics, 3 * (round as u64 + 1));
    }
    Ok(())
}

/// Also a series that the other handle has never heard of is seen at once, both ways.
async fn two_handles_see_each_others_new_series(ctx: &Ctx) -> CaseResult {
    let other = ctx.open().await?;
    for round in 0..5 {
        let (first, second) = (format!("first-{round}"), format!("second-{round}"));
        ctx.write(&[rec_of(&first, METRIC, NOON, 1.0), rec_of(&first, METRIC, NOON + 1, 2.0)])
            .await?;
        let seen = other.series(&SeriesFilter::exact(&first, METRIC)?).await?;
        ensure_eq!(seen.iter().map(|info| info.count).collect::<Vec<_>>(), [2], "{first}");
        other.write_batch(&[rec_of(&second, METRIC, NOON, 3.0)]).await?;
        let seen = ctx.store().latest(&SeriesFilter::exact(&second, METRIC)?, 1).await?;
        ensure_eq!(seen.len(), 1, "{second}");
    }
    ensure_eq!(other.series(&SeriesFilter::any()).await?.len(), 10);
    ensure_eq!(ctx.store().series(&SeriesFilter::any()).await?.len(), 10);
    Ok(())
}

/// A sample that another handle replaced is read with its new value.
async fn two_handles_see_each_others_overwrites(ctx: &Ctx) -> CaseResult {
    ctx.write(&[rec(NOON, 1.0), rec(NOON + 1, 1.0)]).await?;
    let other = ctx.open().await?;
    other.write_batch(&[rec(NOON, 2.0)]).await?;
    ensure_eq!(ctx.points().await?, [(NOON, 2.0), (NOON + 1, 1.0)]);
    ctx.store().write_batch(&[rec(NOON, 3.0)]).await?;
    let seen = other.query_range(SERVER, METRIC, TimeRange::all()).await?;
    ensure_eq!(points(&seen), [(NOON, 3.0), (NOON + 1, 1.0)]);
    Ok(())
}

/// What one handle pruned is gone for the other.
async fn two_handles_see_each_others_prunes(ctx: &Ctx) -> CaseResult {
    ctx.write(&(0..20).map(|no| rec(NOON + no, no as f64)).collect::<Vec<_>>()).await?;
    let other = ctx.open().await?;
    ensure_eq!(other.stats().await?.total_metrics, 20);
    ensure_eq!(ctx.prune(at(NOON + 10)).await?, 10);
    let seen = other.query_range(SERVER, METRIC, TimeRange::all()).await?;
    ensure_eq!(points(&seen).first(), Some(&(NOON + 10, 10.0)));
    ensure_eq!(other.prune_before(at(NOON + 15)).await?, 5);
    ensure_eq!(ctx.points().await?.len(), 5);
    ensure_eq!(ctx.store().stats().await?.oldest_metric, Some(at(NOON + 15)));
    Ok(())
}

/// No answer changes by `compact`, also on a handle that did not ask for it.
async fn compaction_by_one_handle_changes_nothing_for_the_other(ctx: &Ctx) -> CaseResult {
    let other = ctx.open().await?;
    ctx.store().write_batch(&some_records()).await?;
    let before = answers(&other).await?;
    ctx.store().compact().await?;
    ensure_eq!(answers(&other).await?, before);
    other.write_batch(&[rec_of("web-0", METRIC, NOON, 99.0)]).await?;
    other.compact().await?;
    let seen = ctx.read_of("web-0", METRIC).await?;
    ensure_eq!(points(&seen).first(), Some(&(NOON, 99.0)));
    ensure_eq!(ctx.store().stats().await?.total_metrics, 60);
    Ok(())
}

/// Handles share a location, and nothing beyond it.
async fn two_locations_do_not_see_each_other(ctx: &Ctx) -> CaseResult {
    let elsewhere = ctx.open_elsewhere().await?;
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    ensure_eq!(elsewhere.stats().await?.total_metrics, 0);
    elsewhere.write_batch(&[rec(NOON, 2.0), rec(NOON + 1, 2.0)]).await?;
    ensure_eq!(ctx.points().await?, [(NOON, 1.0)]);
    ensure_eq!(elsewhere.prune_before(at(NOON + 5)).await?, 2);
    ensure_eq!(ctx.store().stats().await?.total_metrics, 1);
    Ok(elsewhere.close().await?)
}

/// Nothing acknowledged is lost when a store is closed and opened again.
async fn reopening_keeps_everything(ctx: &Ctx) -> CaseResult {
    ctx.write(&some_records()).await?;
    let before = answers(ctx.store()).await?;
    ctx.store().close().await?;
    let again = ctx.open().await?;
    ensure_eq!(answers(&again).await?, before);
    again.write_batch(&[rec_of("web-3", METRIC, NOON, 1.0)]).await?;
    again.close().await?;
    let third = ctx.open().await?;
    ensure_eq!(third.stats().await?.total_metrics, 61);
    ensure_eq!(third.prune_before(at(NOON + 1)).await?, 2);
    Ok(third.close().await?)
}

/// Any number of handles may come into being at once, also where there was nothing before.
async fn sixteen_open_an_empty_location_at_once(ctx: &Ctx) -> CaseResult {
    let location = crate::harness::fresh_location();
    let result = open_sixteen(ctx, &location).await;
    ctx.fixture().destroy(&location).await?;
    result
}

async fn open_sixteen(ctx: &Ctx, location: &str) -> CaseResult {
    let open_and_write = |no: i64| {
        let (fixture, location) = (Arc::clone(ctx.fixture()), location.to_owned());
        tokio::spawn(async move {
            let store = fixture.open(&location).await?;
            store.write_batch(&[rec(NOON + no, no as f64)]).await?;
            Ok::<_, Error>(store)
        })
    };
    let tasks: Vec<_> = (0..16).map(open_and_write).collect();
    let mut stores = Vec::new();
    for task in join_all(tasks).await {
        stores.push(task??);
    }
    for store in &stores {
        let seen = store.query_range(SERVER, METRIC, TimeRange::all()).await?;
        let expected: Vec<_> = (0..16).map(|no| (NOON + no, no as f64)).collect();
        ensure_eq!(points(&seen), expected);
    }
    try_join_all(stores.iter().map(|store| store.close())).await?;
    Ok(())
}

/// Opening a location that holds data changes no answer, however often it is done.
async fn opening_again_changes_nothing(ctx: &Ctx) -> CaseResult {
    ctx.write(&some_records()).await?;
    let before = answers(ctx.store()).await?;
    for time in 0..5 {
        let again = ctx.open().await?;
        ensure_eq!(answers(&again).await?, before, "opened time {time}");
        again.close().await?;
    }
    ensure_eq!(answers(ctx.store()).await?, before);
    Ok(())
}

/// Later calls on a closed handle return `Closed`: the five required ones.
async fn a_closed_handle_refuses_the_required_calls(ctx: &Ctx) -> CaseResult {
    let store = ctx.store();
    store.write_batch(&[rec(NOON, 1.0)]).await?;
    store.close().await?;
    let all = TimeRange::all();
    let written = store.write_batch(&[rec(NOON + 1, 2.0)]).await;
    let error = expect_kind(written, ErrorKind::Closed, "write_batch")?;
    ensure_eq!(error.outcome(), Outcome::NotApplied);
    expect_kind(store.query_range(SERVER, METRIC, all).await, ErrorKind::Closed, "query_range")?;
    expect_kind(store.aggregate(SERVER, METRIC, all).await, ErrorKind::Closed, "aggregate")?;
    expect_kind(store.prune_before(at(NOON + 1)).await, ErrorKind::Closed, "prune_before")?;
    expect_kind(store.stats().await, ErrorKind::Closed, "stats")?;
    let again = ctx.open().await?;
    ensure_eq!(points(&again.query_range(SERVER, METRIC, all).await?), [(NOON, 1.0)]);
    Ok(again.close().await?)
}

/// Later calls on a closed handle return `Closed`: those that take a filter.
async fn a_closed_handle_refuses_the_series_calls(ctx: &Ctx) -> CaseResult {
    if !ctx.store().capabilities().series {
        // Then its twin has shown that these calls refuse anyway.
        return Ok(());
    }
    let store = ctx.store();
    store.write_batch(&[rec(NOON, 1.0)]).await?;
    store.close().await?;
    let (any, all) = (SeriesFilter::any(), TimeRange::all());
    let width = Duration::from_secs(1);
    expect_kind(store.series(&any).await, ErrorKind::Closed, "series")?;
    expect_kind(store.latest(&any, 1).await, ErrorKind::Closed, "latest")?;
    expect_kind(store.windows(&any, all, width).await, ErrorKind::Closed, "windows")?;
    expect_kind(scan_all(store, &any, all).await, ErrorKind::Closed, "scan")?;
    Ok(())
}

/// Later calls on a closed handle return `Closed`: `check`.
async fn a_closed_handle_refuses_a_check(ctx: &Ctx) -> CaseResult {
    if !ctx.store().capabilities().check {
        // Then its twin has shown that the call refuses anyway.
        return Ok(());
    }
    ctx.store().close().await?;
    expect_kind(ctx.store().check().await, ErrorKind::Closed, "check")?;
    Ok(())
}

/// Later calls return `Closed`: also a batch that would do nothing.
async fn a_closed_handle_refuses_an_empty_batch(ctx: &Ctx) -> CaseResult {
    ctx.store().close().await?;
    expect_kind(ctx.store().write_batch(&[]).await, ErrorKind::Closed, "an empty write_batch")?;
    Ok(())
}

/// `health` never fails: of a closed handle it says that reads and writes do not work, and why.
async fn a_closed_handle_is_not_healthy(ctx: &Ctx) -> CaseResult {
    ctx.store().close().await?;
    let health = ctx.store().health().await;
    ensure!(health.status != HealthStatus::Healthy, "closed, yet {:?}", health.status);
    ensure!(!health.message.is_empty(), "an error without words");
    Ok(())
}

/// After `close`, `flush` and `compact` say `Closed`; a backend for which they never do anything
/// may go on doing nothing.
async fn a_closed_handle_has_nothing_to_write_out(ctx: &Ctx) -> CaseResult {
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    ctx.store().close().await?;
    for result in [ctx.store().flush().await, ctx.store().compact().await] {
        if let Err(error) = result {
            ensure_eq!(error.kind(), ErrorKind::Closed, "{error:#}");
        }
    }
    let again = ctx.open().await?;
    ensure_eq!(again.stats().await?.total_metrics, 1);
    Ok(again.close().await?)
}

/// A second `close` does nothing, nor do many at once.
async fn a_second_close_does_nothing(ctx: &Ctx) -> CaseResult {
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    try_join_all((0..4).map(|_| ctx.store().close())).await?;
    ctx.store().close().await?;
    let again = ctx.open().await?;
    ensure_eq!(again.stats().await?.total_metrics, 1);
    again.close().await?;
    Ok(again.close().await?)
}

/// After a `close` other handles go on: they read, write and prune as before.
async fn other_handles_go_on_after_a_close(ctx: &Ctx) -> CaseResult {
    let other = ctx.open().await?;
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    ctx.store().close().await?;
    other.write_batch(&[rec(NOON + 1, 2.0)]).await?;
    let seen = other.query_range(SERVER, METRIC, TimeRange::all()).await?;
    ensure_eq!(points(&seen), [(NOON, 1.0), (NOON + 1, 2.0)]);
    ensure_eq!(other.prune_before(at(NOON + 1)).await?, 1);
    other.compact().await?;
    ensure_eq!(other.stats().await?.total_metrics, 1);
    Ok(other.close().await?)
}

/// `close` finishes what is under way: a write beside it is stored if it says so, and not
/// otherwise.
async fn close_finishes_what_is_under_way(ctx: &Ctx) -> CaseResult {
    let mut expected = 0;
    // Often, because what is under way at that moment is a matter of luck.
    for round in 0..20 {
        let closing = ctx.open().await?;
        let write = |no: i64| {
            let start = NOON + (round * 4 + no) * 1_000_000;
            tokio::spawn(write_until_closed(Arc::clone(&closing), start))
        };
        let writers: Vec<_> = (0..4).map(write).collect();
        let deadline = Instant::now() + Duration::from_secs(10);
        while ctx.store().stats().await?.total_metrics < expected + 8 {
            ensure!(Instant::now() < deadline, "nothing is written, or nothing of it visible");
            tokio::task::yield_now().await;
        }
        closing.close().await?;
        for written in join_all(writers).await {
            expected += written??;
        }
        ensure_eq!(ctx.store().stats().await?.total_metrics, expected, "round {round}");
    }
    Ok(())
}

/// Writes one sample after the other until the handle is closed, and returns how many.
async fn write_until_closed(store: Store, start_ms: i64) -> Result<u64, Failure> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut written = 0;
    while Instant::now() < deadline {
        if let Err(error) = store.write_batch(&[rec(start_ms + written as i64, 1.0)]).await {
            ensure_eq!(error.kind(), ErrorKind::Closed, "{error:#}");
            ensure_eq!(error.outcome(), Outcome::NotApplied, "{error:#}");
            return Ok(written);
        }
        written += 1;
        tokio::task::yield_now().await;
    }
    Err(Failure::new("writes go on long after the handle was closed"))
}

/// Nothing acknowledged is lost without a `close`.
async fn dropping_a_handle_loses_nothing(ctx: &Ctx) -> CaseResult {
    ctx.store().close().await?;
    for round in 0..10 {
        let store = ctx.open().await?;
        ensure_eq!(store.stats().await?.total_metrics, round, "before round {round}");
        store.write_batch(&[rec(NOON + round as i64, round as f64)]).await?;
        drop(store);
    }
    let last = ctx.open().await?;
    let seen = last.query_range(SERVER, METRIC, TimeRange::all()).await?;
    ensure_eq!(points(&seen), (0..10).map(|no| (NOON + no, no as f64)).collect::<Vec<_>>());
    Ok(())
}

/// Where there is nothing to do, `flush` and `compact` do nothing.
async fn flush_and_compact_work_on_an_empty_store(ctx: &Ctx) -> CaseResult {
    for _ in 0..2 {
        ctx.store().flush().await?;
        ctx.store().compact().await?;
    }
    ensure_eq!(ctx.store().stats().await?.total_metrics, 0);
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    ensure_eq!(ctx.points().await?, [(NOON, 1.0)]);
    Ok(())
}

/// `flush` writes out; no answer changes by it.
async fn flush_changes_no_answer(ctx: &Ctx) -> CaseResult {
    ctx.write(&some_records()).await?;
    let before = answers(ctx.store()).await?;
    for _ in 0..3 {
        ctx.store().flush().await?;
        ensure_eq!(answers(ctx.store()).await?, before);
    }
    Ok(())
}

/// No answer changes by `compact`, however often and on whatever lies there.
async fn compact_changes_no_answer(ctx: &Ctx) -> CaseResult {
    ctx.write(&some_records()).await?;
    ctx.write(&[rec_of("web-0", METRIC, NOON, 5.0), rec_of("web-3", METRIC, NOON - 1, 6.0)])
        .await?;
    let before = answers(ctx.store()).await?;
    for _ in 0..3 {
        ctx.store().compact().await?;
        ensure_eq!(answers(ctx.store()).await?, before);
    }
    Ok(())
}

/// `health` of a store that works is `Healthy`, without a message.
async fn health_is_healthy_empty_and_filled(ctx: &Ctx) -> CaseResult {
    for _ in 0..2 {
        let health = ctx.store().health().await;
        ensure_eq!(health.status, HealthStatus::Healthy, "{}", health.message);
        ensure_eq!(health.message, "");
        ctx.store().write_batch(&some_records()).await?;
    }
    Ok(())
}

/// The name of the backend is one lower-case word or so, the same wherever one asks.
async fn the_name_is_the_same_on_every_handle(ctx: &Ctx) -> CaseResult {
    let (other, elsewhere) = (ctx.open().await?, ctx.open_elsewhere().await?);
    let name = ctx.store().name();
    ensure!(!name.trim().is_empty(), "no name");
    ensure!(!name.contains(['\n', '\r']), "a name of several lines");
    ensure_eq!(other.name(), name);
    ensure_eq!(elsewhere.name(), name);
    ctx.store().close().await?;
    ensure_eq!(ctx.store().name(), name);
    Ok(())
}
