//! What a backend offers, and that it refuses what it does not: `capabilities`, `check`.
//!
//! The cases that lack a capability are the twins of those that need it: they run on backends
//! without it, and prove that these refuse instead of making something up.

use std::time::Duration;

use storage_core::{Error, ErrorKind, Outcome, SeriesFilter, TimeRange};

use crate::data::{METRIC, NOON, SERVER, at, only, rec, rec_no, scan_all};
use crate::failure::{CaseResult, expect_kind};
use crate::harness::Ctx;

cases! { "capabilities":
    once capabilities_are_the_same_on_every_handle,
    once capabilities_stay_the_same,
    once series_is_refused lacks Series,
    once latest_is_refused lacks Series,
    once windows_is_refused lacks Series,
    once scan_is_refused lacks Series,
    once every_filter_is_refused_alike lacks Series,
    once check_is_refused lacks Check,
    once close_leaves_the_handle_open lacks Close,
    once close_does_nothing lacks Close,
    once series_calls_are_offered needs Series,
    once an_empty_store_checks_out needs Check,
    layouts a_healthy_store_has_no_problems needs Check,
    layouts a_check_counts_the_samples needs Check,
    layouts a_check_changes_no_answer needs Check,
    once checks_run_beside_writes needs Check,
}

/// What a backend offers does not depend on the handle, nor on the location.
async fn capabilities_are_the_same_on_every_handle(ctx: &Ctx) -> CaseResult {
    let expected = ctx.store().capabilities();
    for _ in 0..3 {
        ensure_eq!(ctx.open().await?.capabilities(), expected);
        ensure_eq!(ctx.open_elsewhere().await?.capabilities(), expected);
    }
    Ok(())
}

/// What a backend offers does not depend on the data, and is told also when closed.
async fn capabilities_stay_the_same(ctx: &Ctx) -> CaseResult {
    let store = ctx.store();
    let expected = store.capabilities();
    store.write_batch(&[rec(NOON, 1.0)]).await?;
    ensure_eq!(store.capabilities(), expected);
    store.compact().await?;
    store.prune_before(at(NOON + 1)).await?;
    ensure_eq!(store.capabilities(), expected);
    store.close().await?;
    ensure_eq!(store.capabilities(), expected);
    Ok(())
}

/// Without something to close, `close` does nothing and the handle goes on.
async fn close_does_nothing(ctx: &Ctx) -> CaseResult {
    let store = ctx.store();
    store.write_batch(&[rec(NOON, 1.0)]).await?;
    store.close().await?;
    store.write_batch(&[rec(NOON + 1, 2.0)]).await?;
    ensure_eq!(store.stats().await?.total_metrics, 2);
    Ok(())
}

/// Checks that a call is refused as unsupported: for good, and without having done anything.
fn ensure_refused<T>(result: Result<T, Error>, what: &str) -> CaseResult {
    let error = expect_kind(result, ErrorKind::Unsupported, what)?;
    ensure_eq!(error.outcome(), Outcome::NotApplied, "{what}");
    ensure!(!error.is_retryable(), "{what}: worth trying again, although never offered");
    Ok(())
}

/// Without `series` the call returns `Unsupported`.
async fn series_is_refused(ctx: &Ctx) -> CaseResult {
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    ensure_refused(ctx.store().series(&SeriesFilter::any()).await, "series")
}

/// Without `series`, `latest` returns `Unsupported`.
async fn latest_is_refused(ctx: &Ctx) -> CaseResult {
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    ensure_refused(ctx.store().latest(&only()?, 1).await, "latest")
}

/// Without `series`, `windows` returns `Unsupported`.
async fn windows_is_refused(ctx: &Ctx) -> CaseResult {
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    let width = Duration::from_secs(1);
    ensure_refused(ctx.store().windows(&only()?, TimeRange::all(), width).await, "windows")
}

/// Without `series`, a scan gives the one error `Unsupported`, and ends.
async fn scan_is_refused(ctx: &Ctx) -> CaseResult {
    use futures_util::StreamExt;
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    let filter = only()?;
    let mut scan = ctx.store().scan(&filter, TimeRange::all());
    match scan.next().await {
        Some(first) => ensure_refused(first, "scan")?,
        None => ensure!(false, "scan: ended without an error"),
    }
    ensure!(scan.next().await.is_none(), "the scan goes on after its error");
    Ok(())
}

/// The refusal does not depend on the filter, nor on there being data.
async fn every_filter_is_refused_alike(ctx: &Ctx) -> CaseResult {
    let filters = [SeriesFilter::any(), only()?, SeriesFilter::parse("web-*", METRIC)?];
    for filter in &filters {
        ensure_refused(ctx.store().series(filter).await, "series")?;
        ensure_refused(ctx.store().latest(filter, 0).await, "latest of none")?;
        ensure_refused(scan_all(ctx.store(), filter, TimeRange::all()).await, "scan")?;
    }
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    ensure_eq!(ctx.read_of(SERVER, METRIC).await?.len(), 1);
    Ok(())
}

/// Without `check` the call returns `Unsupported`.
async fn check_is_refused(ctx: &Ctx) -> CaseResult {
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    let result = ctx.store().check().await;
    ensure_eq!(result.as_ref().err().and_then(Error::operation), Some("check"));
    ensure_refused(result, "check")
}

/// Without `close` there is nothing to close: the call does nothing, and the handle goes on.
async fn close_leaves_the_handle_open(ctx: &Ctx) -> CaseResult {
    let store = ctx.store();
    store.write_batch(&[rec(NOON, 1.0)]).await?;
    for _ in 0..2 {
        store.close().await?;
        store.write_batch(&[rec(NOON + 1, 2.0)]).await?;
        ensure_eq!(ctx.points().await?, [(NOON, 1.0), (NOON + 1, 2.0)]);
        ensure_eq!(store.aggregate(SERVER, METRIC, TimeRange::all()).await?.count, 2);
        ensure_eq!(store.stats().await?.total_metrics, 2);
    }
    ensure_eq!(store.prune_before(at(NOON + 1)).await?, 1);
    Ok(())
}

/// With `series` all four calls that take a filter answer.
async fn series_calls_are_offered(ctx: &Ctx) -> CaseResult {
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    let (store, only, all) = (ctx.store(), only()?, TimeRange::all());
    ensure_eq!(store.series(&only).await?.len(), 1);
    ensure_eq!(store.latest(&only, 1).await?.len(), 1);
    ensure_eq!(store.windows(&only, all, Duration::from_secs(1)).await?.len(), 1);
    ensure_eq!(scan_all(store, &only, all).await?.len(), 1);
    Ok(())
}

/// In an empty store there is nothing wrong, and no sample to verify.
async fn an_empty_store_checks_out(ctx: &Ctx) -> CaseResult {
    let report = ctx.store().check().await?;
    ensure_eq!((report.samples, report.problems), (0, Vec::new()));
    Ok(())
}

/// A list of what is wrong: empty if nothing is.
async fn a_healthy_store_has_no_problems(ctx: &Ctx) -> CaseResult {
    let marked =
        |no: usize| rec_no(no % 5, NOON + no as i64, 0.5).with_metadata(serde_json::json!([no]));
    ctx.write(&(0..500).map(marked).collect::<Vec<_>>()).await?;
    ctx.write(&(300..600).map(|no| rec_no(no % 5, NOON + no as i64, 1.5)).collect::<Vec<_>>())
        .await?;
    ensure_eq!(ctx.store().check().await?.problems, Vec::<String>::new());
    ctx.prune(at(NOON + 200)).await?;
    ensure_eq!(ctx.store().check().await?.problems, Vec::<String>::new());
    Ok(())
}

/// Every sample was verified: none is left out. What is replaced and not cleared away yet may be
/// verified too.
async fn a_check_counts_the_samples(ctx: &Ctx) -> CaseResult {
    ctx.write(&(0..700).map(|no| rec_no(no % 5, NOON + no as i64, 0.5)).collect::<Vec<_>>())
        .await?;
    let report = ctx.store().check().await?;
    ensure_eq!(report.samples, 700);
    ensure!(report.pieces > 0, "700 samples in no piece");
    ctx.prune(at(NOON + 300)).await?;
    ctx.store().compact().await?;
    ensure_eq!(ctx.store().check().await?.samples, 400);
    Ok(())
}

/// A check reads, and changes nothing.
async fn a_check_changes_no_answer(ctx: &Ctx) -> CaseResult {
    let records: Vec<_> = (0..50).map(|no| rec(NOON + no, no as f64)).collect();
    ctx.write(&records).await?;
    for _ in 0..3 {
        ctx.store().check().await?;
        ensure_eq!(ctx.points().await?, crate::data::points(&records));
    }
    Ok(())
}

/// A check of a store that others write to finds nothing wrong with it.
async fn checks_run_beside_writes(ctx: &Ctx) -> CaseResult {
    let other = ctx.open().await?;
    let write = async {
        for no in 0..200 {
            other.write_batch(&[rec_no(no % 5, NOON + no as i64, 1.0)]).await?;
            if no % 50 == 49 {
                other.compact().await?;
            }
            tokio::task::yield_now().await;
        }
        Ok::<_, Error>(())
    };
    let check = async {
        let mut problems = Vec::new();
        for _ in 0..20 {
            problems.extend(ctx.store().check().await?.problems);
            tokio::task::yield_now().await;
        }
        Ok::<_, Error>(problems)
    };
    let (written, problems) = tokio::join!(write, check);
    written?;
    ensure_eq!(problems?, Vec::<String>::new());
    Ok(())
}
