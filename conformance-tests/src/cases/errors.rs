//! What an error says: its kind, its outcome, its advice, its words.

use std::error::Error as _;

use storage_core::{
    Error, ErrorKind, MetricRecord, Outcome, SeriesFilter, StorageBackend, TimeRange,
};

use crate::data::{METRIC, NOON, SERVER, at, points, rec, rec_of, scan_all};
use crate::failure::{CaseResult, Failure, expect_kind};
use crate::harness::Ctx;

cases! { "errors":
    once refused_input_is_not_applied,
    once refused_input_is_not_worth_trying_again,
    once errors_name_the_backend,
    once errors_name_the_operation,
    once errors_of_the_series_call_name_it needs Series,
    once closed_is_final_and_named needs Close,
    once display_is_one_line,
    once a_refused_batch_names_the_first_bad_record,
    once a_refused_batch_names_the_field,
    once one_bad_record_at_the_end_refuses_the_batch,
    once a_refused_name_of_a_query_is_named,
    once the_chain_of_sources_ends,
    once errors_cross_tasks,
    once the_store_works_after_errors,
    once refused_batches_leave_what_they_would_replace,
    once many_errors_exhaust_nothing,
}

/// Provokes an error of every required call that checks its arguments, and names the call.
async fn refused(store: &dyn StorageBackend) -> Result<Vec<(&'static str, Error)>, Failure> {
    let (all, kind) = (TimeRange::all(), ErrorKind::InvalidArgument);
    let long = "x".repeat(513);
    let mut errors = Vec::new();
    for bad in bad_records() {
        errors.push(("write_batch", store.write_batch(&[bad]).await.err()));
    }
    for name in ["", "a\0b", &long] {
        errors.push(("query_range", store.query_range(name, METRIC, all).await.err()));
        errors.push(("query_range", store.query_range(SERVER, name, all).await.err()));
        errors.push(("aggregate", store.aggregate(name, METRIC, all).await.err()));
        errors.push(("aggregate", store.aggregate(SERVER, name, all).await.err()));
    }
    let expect = |(call, error): (&'static str, Option<Error>)| {
        Ok((call, expect_kind(error.map_or(Ok(()), Err), kind, call)?))
    };
    errors.into_iter().map(expect).collect()
}

fn bad_records() -> Vec<MetricRecord> {
    vec![
        rec(NOON, f64::NAN),
        rec(NOON, f64::INFINITY),
        rec_of("", METRIC, NOON, 1.0),
        rec_of(SERVER, "nul\0", NOON, 1.0),
        rec_of(&"x".repeat(513), METRIC, NOON, 1.0),
        rec(TimeRange::all().end_ms(), 1.0),
        rec(NOON, 1.0).with_metadata(serde_json::json!("x".repeat(70_000))),
    ]
}

/// All errors that can be had without breaking anything: refusals, then those of a closed handle.
async fn provoked(ctx: &Ctx) -> Result<Vec<(&'static str, Error)>, Failure> {
    let mut errors = refused(ctx.store()).await?;
    let (store, all, kind) = (ctx.store(), TimeRange::all(), ErrorKind::Closed);
    store.close().await?;
    let written = store.write_batch(&[rec(NOON, 1.0)]).await;
    errors.push(("write_batch", expect_kind(written, kind, "write_batch")?));
    let found = store.query_range(SERVER, METRIC, all).await;
    errors.push(("query_range", expect_kind(found, kind, "query_range")?));
    let found = store.aggregate(SERVER, METRIC, all).await;
    errors.push(("aggregate", expect_kind(found, kind, "aggregate")?));
    errors.push((
        "prune_before",
        expect_kind(store.prune_before(at(0)).await, kind, "prune_before")?,
    ));
    errors.push(("stats", expect_kind(store.stats().await, kind, "stats")?));
    Ok(errors)
}

/// An argument that is refused has no effect, and the error says so.
async fn refused_input_is_not_applied(ctx: &Ctx) -> CaseResult {
    for (call, error) in refused(ctx.store()).await? {
        ensure_eq!(error.outcome(), Outcome::NotApplied, "{call}: {error}");
    }
    ensure_eq!(ctx.store().stats().await?.total_metrics, 0);
    Ok(())
}

/// The same call would be refused again.
async fn refused_input_is_not_worth_trying_again(ctx: &Ctx) -> CaseResult {
    for (call, error) in refused(ctx.store()).await? {
        ensure!(!error.is_retryable(), "{call}: retryable: {error}");
    }
    Ok(())
}

/// An error names the backend that made it: the same one whatever the call.
async fn errors_name_the_backend(ctx: &Ctx) -> CaseResult {
    let errors = refused(ctx.store()).await?;
    let expected = errors[0].1.backend();
    ensure!(expected.is_some_and(|name| !name.is_empty()), "an error without a backend");
    for (call, error) in errors {
        ensure_eq!(error.backend(), expected, "{call}: {error}");
    }
    let other = refused(&ctx.open().await?).await?;
    ensure_eq!(other[0].1.backend(), expected, "on another handle");
    Ok(())
}

/// An error names the operation that failed, as the method is called.
async fn errors_name_the_operation(ctx: &Ctx) -> CaseResult {
    for (call, error) in refused(ctx.store()).await? {
        ensure_eq!(error.operation(), Some(call), "{error}");
    }
    Ok(())
}

/// So does an error of `series`. Those of the other calls that take a filter may name a call
/// that they are made of.
async fn errors_of_the_series_call_name_it(ctx: &Ctx) -> CaseResult {
    if !ctx.store().capabilities().close {
        // Then nothing makes the call fail.
        return Ok(());
    }
    ctx.store().close().await?;
    let (any, all) = (SeriesFilter::any(), TimeRange::all());
    let error = expect_kind(ctx.store().series(&any).await, ErrorKind::Closed, "series")?;
    ensure_eq!(error.operation(), Some("series"));
    let error = expect_kind(ctx.store().latest(&any, 1).await, ErrorKind::Closed, "latest")?;
    ensure!(matches!(error.operation(), Some("latest" | "series")), "latest: {error}");
    let error = expect_kind(scan_all(ctx.store(), &any, all).await, ErrorKind::Closed, "scan")?;
    ensure!(matches!(error.operation(), Some("scan" | "series")), "scan: {error}");
    Ok(())
}

/// `Closed` is final: nothing was applied, nor is it worth trying again; backend and operation
/// are named.
async fn closed_is_final_and_named(ctx: &Ctx) -> CaseResult {
    let errors = provoked(ctx).await?;
    let backend = errors[0].1.backend();
    let closed = errors.iter().filter(|(_, error)| error.kind() == ErrorKind::Closed);
    for (call, error) in closed {
        ensure_eq!(error.outcome(), Outcome::NotApplied, "{call}: {error}");
        ensure!(!error.is_retryable(), "{call}: retryable: {error}");
        ensure_eq!(error.operation(), Some(*call), "{error}");
        ensure_eq!(error.backend(), backend, "{call}: {error}");
    }
    Ok(())
}

/// `Display` is one line, without a full stop at its end and without what caused it.
async fn display_is_one_line(ctx: &Ctx) -> CaseResult {
    for (call, error) in refused(ctx.store()).await? {
        let text = error.to_string();
        ensure!(!text.contains(['\n', '\r']), "{call}: several lines: {text:?}");
        ensure!(!text.ends_with('.'), "{call}: ends with a full stop: {text}");
        ensure!(text.len() < 1000, "{call}: {} bytes", text.len());
        ensure!(!error.message().is_empty(), "{call}: no message");
        ensure!(
            error.message().starts_with(|first: char| !first.is_uppercase()),
            "{call}: {}",
            error.message()
        );
    }
    Ok(())
}

/// The detail `record` is the index of the first bad one.
async fn a_refused_batch_names_the_first_bad_record(ctx: &Ctx) -> CaseResult {
    for (bad_at, expected) in
        [(vec![0], "0"), (vec![7, 3, 9], "3"), (vec![9], "9"), (vec![4, 5], "4")]
    {
        let value = |no: i64| if bad_at.contains(&no) { f64::NAN } else { 1.0 };
        let records: Vec<_> = (0..10).map(|no| rec(NOON + no, value(no))).collect();
        let written = ctx.store().write_batch(&records).await;
        let error = expect_kind(written, ErrorKind::InvalidArgument, "write_batch")?;
        ensure_eq!(error.context("record"), Some(expected), "bad at {bad_at:?}");
    }
    Ok(())
}

/// The detail `field` names what is wrong with the record.
async fn a_refused_batch_names_the_field(ctx: &Ctx) -> CaseResult {
    let fields =
        ["value", "value", "server_id", "metric_type", "server_id", "timestamp", "metadata"];
    for (bad, field) in bad_records().into_iter().zip(fields) {
        let written = ctx.store().write_batch(&[rec(NOON, 1.0), bad]).await;
        let error = expect_kind(written, ErrorKind::InvalidArgument, field)?;
        ensure_eq!(error.context("field"), Some(field));
        ensure_eq!(error.context("record"), Some("1"), "{field}");
    }
    Ok(())
}

/// Nothing of a refused batch is stored, however large it is and wherever it is wrong.
async fn one_bad_record_at_the_end_refuses_the_batch(ctx: &Ctx) -> CaseResult {
    let mut records: Vec<_> = (0..10_000).map(|no| rec(NOON + no, 1.0)).collect();
    records.push(rec(NOON + 10_000, f64::NEG_INFINITY));
    let written = ctx.store().write_batch(&records).await;
    let error = expect_kind(written, ErrorKind::InvalidArgument, "write_batch")?;
    ensure_eq!(error.context("record"), Some("10000"));
    ensure_eq!(ctx.store().stats().await?.total_metrics, 0);
    records.pop();
    ctx.store().write_batch(&records).await?;
    ensure_eq!(ctx.store().stats().await?.total_metrics, 10_000);
    Ok(())
}

/// A read with a name that no series has by the rules is refused, and the name is named.
async fn a_refused_name_of_a_query_is_named(ctx: &Ctx) -> CaseResult {
    let (store, all, kind) = (ctx.store(), TimeRange::all(), ErrorKind::InvalidArgument);
    let error = expect_kind(store.query_range("", METRIC, all).await, kind, "query_range")?;
    ensure_eq!(error.context("field"), Some("server_id"));
    let error = expect_kind(store.query_range(SERVER, "a\0", all).await, kind, "query_range")?;
    ensure_eq!(error.context("field"), Some("metric_type"));
    let error = expect_kind(store.aggregate(SERVER, "", all).await, kind, "aggregate")?;
    ensure_eq!(error.context("field"), Some("metric_type"));
    Ok(())
}

/// The causes of an error form a chain that can be followed to its end and printed with `{:#}`.
async fn the_chain_of_sources_ends(ctx: &Ctx) -> CaseResult {
    for (call, error) in refused(ctx.store()).await? {
        let mut links = 0;
        let mut source = error.source();
        while let Some(cause) = source {
            links += 1;
            ensure!(links < 20, "{call}: a chain without end");
            ensure!(!cause.to_string().is_empty(), "{call}: a cause without words");
            source = cause.source();
        }
        ensure!(format!("{error:#}").starts_with(&error.to_string()), "{call}: {error:#}");
    }
    Ok(())
}

/// An error can be sent to another task and boxed as any other.
async fn errors_cross_tasks(ctx: &Ctx) -> CaseResult {
    let store = std::sync::Arc::clone(ctx.store());
    let task = tokio::spawn(async move { store.write_batch(&[rec(NOON, f64::NAN)]).await });
    let error = expect_kind(task.await?, ErrorKind::InvalidArgument, "write_batch")?;
    let boxed: Box<dyn std::error::Error + Send + Sync> = Box::new(error);
    let error = boxed.downcast::<Error>().map_err(|_| Failure::new("another type of error"))?;
    ensure_eq!(error.operation(), Some("write_batch"));
    Ok(())
}

/// An error leaves the handle usable: what is right works afterwards.
async fn the_store_works_after_errors(ctx: &Ctx) -> CaseResult {
    for round in 0..3 {
        refused(ctx.store()).await?;
        ctx.store().write_batch(&[rec(NOON + round, round as f64)]).await?;
        ensure_eq!(ctx.points().await?.len() as i64, round + 1);
    }
    refused(ctx.store()).await?;
    ensure_eq!(ctx.store().prune_before(at(NOON + 2)).await?, 2);
    ensure_eq!(ctx.points().await?, [(NOON + 2, 2.0)]);
    Ok(())
}

/// Nothing of a refused batch is stored: also where it would replace a sample.
async fn refused_batches_leave_what_they_would_replace(ctx: &Ctx) -> CaseResult {
    let before = [rec(NOON, 1.0).with_metadata(serde_json::json!("kept")), rec(NOON + 1, 2.0)];
    ctx.store().write_batch(&before).await?;
    for bad in bad_records() {
        let batch = [rec(NOON, 9.0), bad, rec(NOON + 1, 9.0), rec(NOON + 2, 9.0)];
        let written = ctx.store().write_batch(&batch).await;
        expect_kind(written, ErrorKind::InvalidArgument, "write_batch")?;
        ensure_eq!(ctx.read_of(SERVER, METRIC).await?, before);
    }
    Ok(())
}

/// Errors hold nothing back that runs out: connections, locks, memory.
async fn many_errors_exhaust_nothing(ctx: &Ctx) -> CaseResult {
    for _ in 0..300 {
        let batch = [rec(NOON, 1.0), rec(NOON + 1, f64::NAN)];
        let written = ctx.store().write_batch(&batch).await;
        expect_kind(written, ErrorKind::InvalidArgument, "write_batch")?;
        let found = ctx.store().query_range("", METRIC, TimeRange::all()).await;
        expect_kind(found, ErrorKind::InvalidArgument, "query_range")?;
    }
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    ensure_eq!(points(&ctx.read_of(SERVER, METRIC).await?), [(NOON, 1.0)]);
    Ok(())
}
