//! Reading a series back: `query_range`.

use chrono::{DateTime, Utc};
use storage_core::TimeRange;
use storage_core::metrics::time::{END_MS, MIN_MS};

use crate::data::{
    METRIC, NOON, SERVER, at, at_us, last_wins, points, ramp, range, rec, rec_of, scattered,
};
use crate::failure::{CaseResult, Failure};
use crate::harness::Ctx;

cases! { "query":
    layouts starts_included_ends_excluded,
    layouts every_start_and_end_around_samples,
    layouts an_empty_range_holds_nothing,
    once an_empty_store_answers_empty,
    layouts an_unknown_series_answers_empty,
    layouts a_pruned_series_answers_empty,
    layouts ranges_beside_the_samples_hold_nothing,
    layouts oldest_first_across_the_epoch,
    layouts all_holds_everything,
    layouts bounds_are_floored,
    layouts bounds_outside_the_calendar_are_clamped,
    layouts records_carry_everything,
    layouts other_series_stay_out,
    layouts many_samples_in_exact_order,
    layouts random_ranges_of_random_samples,
    layouts reading_changes_nothing,
}

/// What `query_range` finds in `[start_ms, end_ms)` of the usual series.
async fn found(ctx: &Ctx, start_ms: i64, end_ms: i64) -> Result<Vec<(i64, f64)>, Failure> {
    let found = ctx.store().query_range(SERVER, METRIC, range(start_ms, end_ms)).await?;
    Ok(points(&found))
}

/// A range holds its start and not its end.
async fn starts_included_ends_excluded(ctx: &Ctx) -> CaseResult {
    ctx.write(&[rec(NOON - 1, 1.0), rec(NOON, 2.0), rec(NOON + 99, 3.0), rec(NOON + 100, 4.0)])
        .await?;
    ensure_eq!(found(ctx, NOON, NOON + 100).await?, [(NOON, 2.0), (NOON + 99, 3.0)]);
    Ok(())
}

/// A range holds its start and not its end, wherever both stand beside the samples.
async fn every_start_and_end_around_samples(ctx: &Ctx) -> CaseResult {
    let all = [99, 100, 101, 150, 199, 200, 201].map(|ms| (ms, ms as f64));
    ctx.write(&all.map(|(ms, value)| rec(ms, value))).await?;
    let edges = [98, 99, 100, 101, 102, 149, 150, 151, 198, 199, 200, 201, 202, 203];
    for (nth, start) in edges.into_iter().enumerate() {
        for &end in &edges[nth..] {
            let inside: Vec<_> =
                all.into_iter().filter(|(ms, _)| (start..end).contains(ms)).collect();
            ensure_eq!(found(ctx, start, end).await?, inside, "[{start}, {end})");
        }
    }
    Ok(())
}

/// Equal bounds make an empty range, also on a sample.
async fn an_empty_range_holds_nothing(ctx: &Ctx) -> CaseResult {
    ctx.write(&ramp(10)).await?;
    for ms in [NOON, NOON + 1, NOON + 9000, 0, MIN_MS, END_MS] {
        ensure_eq!(found(ctx, ms, ms).await?, [], "[{ms}, {ms})");
    }
    // Equal only after flooring.
    let range = TimeRange::new(at_us(NOON * 1000 + 1), at_us(NOON * 1000 + 999))?;
    ensure_eq!(ctx.store().query_range(SERVER, METRIC, range).await?, []);
    Ok(())
}

/// A series without samples gives an empty answer: in a store that holds nothing at all.
async fn an_empty_store_answers_empty(ctx: &Ctx) -> CaseResult {
    ensure_eq!(ctx.points().await?, []);
    ensure_eq!(found(ctx, NOON, NOON + 1).await?, []);
    ctx.store().compact().await?;
    ensure_eq!(ctx.points().await?, []);
    Ok(())
}

/// A series without samples gives an empty answer: one that nobody wrote, beside others.
async fn an_unknown_series_answers_empty(ctx: &Ctx) -> CaseResult {
    ctx.write(&[rec_of("a", "x", NOON, 1.0), rec_of("b", "y", NOON, 2.0)]).await?;
    for (server, metric) in
        [("a", "y"), ("b", "x"), ("c", "z"), ("x", "a"), ("ax", "x"), ("*", "*")]
    {
        ensure_eq!(ctx.read_of(server, metric).await?, [], "the series {server} {metric}");
    }
    Ok(())
}

/// A series without samples gives an empty answer: one that held some.
async fn a_pruned_series_answers_empty(ctx: &Ctx) -> CaseResult {
    ctx.write(&ramp(700)).await?;
    ctx.prune(at(END_MS)).await?;
    ensure_eq!(ctx.points().await?, []);
    ctx.write(&[rec(NOON + 5, 1.0)]).await?;
    ensure_eq!(ctx.points().await?, [(NOON + 5, 1.0)]);
    Ok(())
}

/// A range wholly before, after or between the samples holds nothing.
async fn ranges_beside_the_samples_hold_nothing(ctx: &Ctx) -> CaseResult {
    let mut batch = ramp(600);
    batch.extend((0..600).map(|n| rec(NOON + 86_400_000 + n, 1.0)));
    ctx.write(&batch).await?;
    let beside = [
        (MIN_MS, NOON),
        (NOON - 10, NOON),
        (NOON + 1, NOON + 1000),
        (NOON + 599_001, NOON + 86_400_000),
        (NOON + 86_400_600, NOON + 86_400_601),
        (NOON + 86_400_600, END_MS),
    ];
    for (start, end) in beside {
        ensure_eq!(found(ctx, start, end).await?, [], "[{start}, {end})");
    }
    Ok(())
}

/// Oldest first, also where times before and after 1970 meet.
async fn oldest_first_across_the_epoch(ctx: &Ctx) -> CaseResult {
    let expected: Vec<_> = (-500..500).map(|n| (n * 7, n as f64)).collect();
    let batch: Vec<_> = expected.iter().rev().map(|(ms, value)| rec(*ms, *value)).collect();
    ctx.write(&batch).await?;
    ensure_eq!(ctx.points().await?, expected);
    ensure_eq!(found(ctx, -7, 8).await?, [(-7, -1.0), (0, 0.0), (7, 1.0)]);
    ensure_eq!(found(ctx, -14, 0).await?, [(-14, -2.0), (-7, -1.0)]);
    Ok(())
}

/// The range of everything holds the first and the last millisecond that a sample can have.
async fn all_holds_everything(ctx: &Ctx) -> CaseResult {
    let expected = [(MIN_MS, 1.0), (-1, 2.0), (0, 3.0), (NOON, 4.0), (END_MS - 1, 5.0)];
    ctx.write(&expected.map(|(ms, value)| rec(ms, value))).await?;
    ensure_eq!(ctx.points().await?, expected);
    ensure_eq!(found(ctx, MIN_MS, END_MS).await?, expected);
    ensure_eq!(found(ctx, MIN_MS + 1, END_MS - 1).await?, expected[1..4].to_vec());
    Ok(())
}

/// Bounds of a range are floored to whole milliseconds toward the past, also before 1970.
async fn bounds_are_floored(ctx: &Ctx) -> CaseResult {
    let batch: Vec<_> = (-4..4).map(|ms| rec(ms, ms as f64)).collect();
    ctx.write(&batch).await?;
    // Bounds in microseconds, and the milliseconds that are to be inside.
    let table = [
        (1999, 3000, 1..3),
        (1000, 2999, 1..2),
        (-500, 500, -1..0),
        (-1000, 1, -1..0),
        (-1001, -999, -2..-1),
        (-3999, 1999, -4..1),
        (-1, 1000, -1..1),
    ];
    for (start_us, end_us, inside) in table {
        let range = TimeRange::new(at_us(start_us), at_us(end_us))?;
        let found = points(&ctx.store().query_range(SERVER, METRIC, range).await?);
        let inside: Vec<_> = inside.map(|ms| (ms, ms as f64)).collect();
        ensure_eq!(found, inside, "[{start_us} us, {end_us} us)");
    }
    Ok(())
}

/// Bounds outside the years that samples can have are clamped: such a range is no error.
async fn bounds_outside_the_calendar_are_clamped(ctx: &Ctx) -> CaseResult {
    let (first, last) = (rec(MIN_MS, 1.0), rec(END_MS - 1, 2.0));
    ctx.write(&[first.clone(), last.clone()]).await?;
    let (before, after) = (DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC);
    let table = [
        (before, after, vec![first.clone(), last.clone()]),
        (before, at(0), vec![first]),
        (at(0), after, vec![last]),
        (before, at(MIN_MS), vec![]),
        (at(END_MS), after, vec![]),
        (before, before, vec![]),
        (after, after, vec![]),
    ];
    for (start, end, expected) in table {
        let range = TimeRange::new(start, end)?;
        let found = ctx.store().query_range(SERVER, METRIC, range).await?;
        ensure_eq!(found, expected, "[{start}, {end})");
    }
    Ok(())
}

/// The samples come as records: with the names of the series, and each with its metadata.
async fn records_carry_everything(ctx: &Ctx) -> CaseResult {
    let record = |server, metric, n: i64| {
        let plain = rec_of(server, metric, NOON + n, n as f64 / 8.0);
        let metadata = serde_json::json!({"n": n, "of": [server, metric]});
        if n % 3 == 0 { plain.with_metadata(metadata) } else { plain }
    };
    let series = [("a", "x"), ("a", "y"), ("b", "x")];
    let of = |(server, metric)| (0..400).map(|n| record(server, metric, n)).collect::<Vec<_>>();
    ctx.write(&series.map(of).concat()).await?;
    for (server, metric) in series {
        let found = ctx.store().query_range(server, metric, range(NOON + 10, NOON + 390)).await?;
        ensure_eq!(found, of((server, metric))[10..390].to_vec());
    }
    Ok(())
}

/// Only samples of the series that was asked for come, however the others lie between them.
async fn other_series_stay_out(ctx: &Ctx) -> CaseResult {
    let names: Vec<_> = (0..60).map(|n| format!("m{n}")).collect();
    let batch: Vec<_> = (0..1800)
        .map(|n: usize| rec_of(SERVER, &names[n % 60], NOON + n as i64 / 7, n as f64))
        .collect();
    ctx.write(&batch).await?;
    for name in &names {
        let own: Vec<_> =
            batch.iter().filter(|record| record.metric_type == *name).cloned().collect();
        ensure_eq!(ctx.read_of(SERVER, name).await?, own);
    }
    Ok(())
}

/// All samples come, however many, each at its place.
async fn many_samples_in_exact_order(ctx: &Ctx) -> CaseResult {
    let batch: Vec<_> = (0..10_000).map(|n| rec(NOON + n * n, (n as f64).sqrt())).collect();
    ctx.write(&batch).await?;
    ensure_eq!(ctx.points().await?, points(&batch));
    let (start, end) = (NOON + 4000 * 4000, NOON + 4010 * 4010);
    ensure_eq!(found(ctx, start, end).await?, points(&batch[4000..4010]));
    Ok(())
}

/// Any range of any samples holds exactly those between its bounds, oldest first.
async fn random_ranges_of_random_samples(ctx: &Ctx) -> CaseResult {
    let (start, end) = (-40_000, 40_000);
    let mut batch = scattered(61, 3000, start, end);
    ctx.write(&batch).await?;
    let late = scattered(62, 700, start, end);
    ctx.write(&late).await?;
    batch.extend(late);
    let all = last_wins(&batch);
    let mut random = fastrand::Rng::with_seed(63);
    for _ in 0..60 {
        let (a, b) = (random.i64(start - 10..end + 10), random.i64(start - 10..end + 10));
        let (a, b) = (a.min(b), a.max(b));
        let inside: Vec<_> = all.iter().filter(|(ms, _)| (a..b).contains(ms)).copied().collect();
        ensure_eq!(found(ctx, a, b).await?, inside, "[{a}, {b})");
    }
    Ok(())
}

/// Reading changes nothing: a question asked again, on whatever handle, gets the same answer.
async fn reading_changes_nothing(ctx: &Ctx) -> CaseResult {
    ctx.write(&scattered(64, 1500, NOON, NOON + 100_000)).await?;
    let first = found(ctx, NOON + 100, NOON + 90_000).await?;
    let stats = ctx.store().stats().await?;
    let other = ctx.open().await?;
    for _ in 0..3 {
        ctx.points().await?;
        ensure_eq!(found(ctx, NOON + 100, NOON + 90_000).await?, first);
        let range = range(NOON + 100, NOON + 90_000);
        ensure_eq!(points(&other.query_range(SERVER, METRIC, range).await?), first);
    }
    let after = ctx.store().stats().await?;
    ensure_eq!((after.total_metrics, after.series), (stats.total_metrics, stats.series));
    Ok(other.close().await?)
}
