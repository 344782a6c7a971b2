//! Series cut into windows of time: `windows`.

use std::collections::BTreeMap;
use std::time::Duration;

use storage_core::metrics::time::{END_MS, MIN_MS, floor_ms};
use storage_core::{SeriesFilter, SeriesKey, TimeRange, Window};

use super::aggregate::compare;
use crate::data::{
    METRIC, NOON, SERVER, at, at_us, key, last_wins, only, points, ramp, range, rec, rec_of,
    scattered,
};
use crate::failure::{CaseResult, Failure, expect_refused};
use crate::harness::Ctx;

const MINUTE_MS: i64 = 60_000;

/// The widest window, 10,000 years of the calendar.
const WIDEST_MS: i64 = 3_652_425 * 86_400_000;

cases! { "windows":
    layouts start_at_multiples_of_the_width needs Series,
    layouts start_at_multiples_before_1970_too needs Series,
    layouts a_width_that_divides_nothing needs Series,
    layouts a_sample_on_an_edge_is_in_the_later_window needs Series,
    layouts only_samples_in_range_count needs Series,
    layouts edges_inside_many_samples needs Series,
    layouts windows_without_samples_do_not_appear needs Series,
    layouts series_without_windows_do_not_appear needs Series,
    layouts an_empty_range_has_no_windows needs Series,
    layouts one_millisecond_wide needs Series,
    layouts wider_than_everything needs Series,
    once widths_out_of_bounds_are_refused needs Series,
    layouts all_seven_of_each_window needs Series,
    layouts first_and_last_go_by_time needs Series,
    layouts series_come_in_order_of_bytes needs Series,
    layouts the_filter_chooses needs Series,
    layouts replaced_and_pruned_samples_do_not_count needs Series,
    layouts equal_what_query_range_gives needs Series,
    layouts add_up_to_the_aggregate needs Series,
    layouts huge_values_overflow_only_where_they_must needs Series,
}

fn ms(width_ms: i64) -> Duration {
    Duration::from_millis(width_ms.unsigned_abs())
}

/// The windows of the usual series alone.
async fn of_one(ctx: &Ctx, range: TimeRange, width_ms: i64) -> Result<Vec<Window>, Failure> {
    let found = ctx.store().windows(&only()?, range, ms(width_ms)).await?;
    ensure!(found.len() <= 1, "one series was asked for, found {found:?}");
    ensure!(found.iter().all(|one| one.series == key() && !one.windows.is_empty()), "{found:?}");
    Ok(found.into_iter().flat_map(|one| one.windows).collect())
}

/// Start and count of each window.
fn counts(windows: &[Window]) -> Vec<(i64, u64)> {
    windows.iter().map(|window| (floor_ms(window.start), window.aggregation.count)).collect()
}

/// Fails unless `windows` are those of the samples `points`, oldest first.
fn compare_windows(windows: &[Window], points: &[(i64, f64)], width_ms: i64) -> CaseResult {
    let mut expected: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
    for (ms, value) in points {
        expected.entry(ms.div_euclid(width_ms) * width_ms).or_default().push(*value);
    }
    let starts: Vec<_> = windows.iter().map(|window| window.start).collect();
    let expected_starts: Vec<_> = expected.keys().map(|ms| at(*ms)).collect();
    ensure_eq!(starts, expected_starts, "the starts of windows {width_ms} ms wide");
    for (window, values) in windows.iter().zip(expected.values()) {
        let what = format!("the window {width_ms} ms wide at {}", window.start);
        compare(&window.aggregation, values, &what)?;
    }
    Ok(())
}

/// A window starts at a multiple of its width since the Unix epoch, wherever the samples and the
/// range start.
async fn start_at_multiples_of_the_width(ctx: &Ctx) -> CaseResult {
    ctx.write(&[rec(NOON + 59_999, 1.0), rec(NOON + 60_000, 2.0), rec(NOON + 150_000, 3.0)])
        .await?;
    let minutes = [(NOON, 1), (NOON + MINUTE_MS, 1), (NOON + 2 * MINUTE_MS, 1)];
    for start in [0, NOON, NOON + 1, NOON + 59_999] {
        let found = of_one(ctx, range(start, NOON + 150_001), MINUTE_MS).await?;
        ensure_eq!(counts(&found), minutes, "a range from {start} on");
    }
    Ok(())
}

/// A window starts at a multiple of its width since the Unix epoch, also before 1970.
async fn start_at_multiples_before_1970_too(ctx: &Ctx) -> CaseResult {
    let times = [-120_001, -120_000, -60_001, -60_000, -1, 0, 59_999, 60_000];
    ctx.write(&times.map(|ms| rec(ms, 1.0))).await?;
    let found = of_one(ctx, TimeRange::all(), MINUTE_MS).await?;
    let expected = [(-180_000, 1), (-120_000, 2), (-60_000, 2), (0, 2), (60_000, 1)];
    ensure_eq!(counts(&found), expected);
    Ok(())
}

/// A window starts at a multiple of its width, also where the width divides no day and no range.
async fn a_width_that_divides_nothing(ctx: &Ctx) -> CaseResult {
    let batch = scattered(81, 1500, NOON - 40_000, NOON + 40_000);
    let early = scattered(82, 1500, -40_000, 40_000);
    ctx.write(&batch).await?;
    ctx.write(&early).await?;
    let all = last_wins(&[batch, early].concat());
    for width in [7, 997, 7919, 61_001, 86_399_999] {
        compare_windows(&of_one(ctx, TimeRange::all(), width).await?, &all, width)?;
    }
    Ok(())
}

/// A sample at the start of a window is in it, one at the start of the next is not.
async fn a_sample_on_an_edge_is_in_the_later_window(ctx: &Ctx) -> CaseResult {
    let batch: Vec<_> = (-300..300).map(|n| rec(n * 10, n as f64)).collect();
    ctx.write(&batch).await?;
    let found = of_one(ctx, TimeRange::all(), 100).await?;
    let expected: Vec<_> = (-30..30).map(|n| (n * 100, 10)).collect();
    ensure_eq!(counts(&found), expected);
    compare_windows(&found, &points(&batch), 100)
}

/// Only samples inside the range count, also in the first and the last window.
async fn only_samples_in_range_count(ctx: &Ctx) -> CaseResult {
    let all: Vec<_> = (0..360).map(|n| rec(NOON + n * 1000, n as f64)).collect();
    ctx.write(&all).await?;
    let all = points(&all);
    let starts = [NOON - 1, NOON, NOON + 1, NOON + 59_000, NOON + 59_001, NOON + 60_000];
    let ends = [NOON + 60_000, NOON + 60_001, NOON + 119_001, NOON + 120_000, NOON + 400_000];
    for start in starts {
        for end in ends {
            let found = of_one(ctx, range(start, end), MINUTE_MS).await?;
            let inside: Vec<_> =
                all.iter().filter(|(ms, _)| (start..end).contains(ms)).copied().collect();
            compare_windows(&found, &inside, MINUTE_MS)
                .map_err(|failure| failure.during(format!("[{start}, {end})")))?;
        }
    }
    // Bounds are floored to milliseconds.
    let floored = TimeRange::new(at_us(NOON * 1000 + 999), at_us(NOON * 1000 + 1_000_999))?;
    ensure_eq!(counts(&of_one(ctx, floored, MINUTE_MS).await?), [(NOON, 1)]);
    Ok(())
}

/// Only samples inside the range count, also where it starts and ends amid very many.
async fn edges_inside_many_samples(ctx: &Ctx) -> CaseResult {
    let batch = ramp(5000);
    ctx.write(&batch).await?;
    let all = points(&batch);
    for (from, to) in [(1, 4999), (499, 501), (500, 1500), (1001, 3333), (4095, 4097)] {
        for width in [1000, 7000, 300_000, 1_000_000, 10_000_000] {
            let asked = range(NOON + from * 1000, NOON + to * 1000);
            let inside = &all[from as usize..to as usize];
            compare_windows(&of_one(ctx, asked, width).await?, inside, width)?;
        }
    }
    Ok(())
}

/// A window without samples does not appear.
async fn windows_without_samples_do_not_appear(ctx: &Ctx) -> CaseResult {
    let times = [MIN_MS, 0, NOON, NOON + 3_600_000, END_MS - 1];
    ctx.write(&times.map(|ms| rec(ms, 1.0))).await?;
    let found = of_one(ctx, TimeRange::all(), MINUTE_MS).await?;
    let expected = times.map(|ms| (ms.div_euclid(MINUTE_MS) * MINUTE_MS, 1));
    ensure_eq!(counts(&found), expected);
    Ok(())
}

/// A series without windows does not appear.
async fn series_without_windows_do_not_appear(ctx: &Ctx) -> CaseResult {
    ensure_eq!(of_one(ctx, TimeRange::all(), 1000).await?, [], "an empty store");
    ctx.write(&[rec_of("a", "x", 0, 1.0), rec_of("b", "x", 5000, 1.0), rec_of("c", "x", 0, 1.0)])
        .await?;
    let found = ctx.store().windows(&SeriesFilter::any(), range(5000, 6000), ms(1000)).await?;
    let names: Vec<_> = found.iter().map(|one| one.series.server_id.as_str()).collect();
    ensure_eq!(names, ["b"]);
    ensure_eq!(of_one(ctx, TimeRange::all(), 1000).await?, [], "an unknown series");
    Ok(())
}

/// An empty range holds no samples, so there are no windows.
async fn an_empty_range_has_no_windows(ctx: &Ctx) -> CaseResult {
    ctx.write(&ramp(600)).await?;
    for start in [NOON, NOON + 1, NOON + 300_000, 0] {
        let found =
            ctx.store().windows(&SeriesFilter::any(), range(start, start), ms(1000)).await?;
        ensure_eq!(found, [], "the range [{start}, {start})");
    }
    Ok(())
}

/// A width may be 1 ms: every sample is a window.
async fn one_millisecond_wide(ctx: &Ctx) -> CaseResult {
    let mut batch: Vec<_> = (-700..700).map(|ms| rec(ms, ms as f64 / 4.0)).collect();
    batch.extend([rec(MIN_MS, 8.0), rec(END_MS - 1, 9.0)]);
    ctx.write(&batch).await?;
    compare_windows(&of_one(ctx, TimeRange::all(), 1).await?, &last_wins(&batch), 1)
}

/// A width may be up to 10,000 years: two windows, which meet in 1970, hold all that can be.
async fn wider_than_everything(ctx: &Ctx) -> CaseResult {
    let batch = [rec(MIN_MS, 1.0), rec(-1, 2.0), rec(0, 3.0), rec(NOON, 4.0), rec(END_MS - 1, 5.0)];
    ctx.write(&batch).await?;
    for width in [WIDEST_MS, WIDEST_MS - 1, END_MS] {
        let found = of_one(ctx, TimeRange::all(), width).await?;
        ensure_eq!(counts(&found), [(-width, 2), (0, 3)]);
        compare_windows(&found, &points(&batch), width)?;
    }
    // The last window ends where samples do, the first starts before they can.
    let found = of_one(ctx, TimeRange::all(), END_MS - 1).await?;
    ensure_eq!(counts(&found), [(1 - END_MS, 2), (0, 2), (END_MS - 1, 1)]);
    Ok(())
}

/// `InvalidArgument` if the width is not a whole number of milliseconds between 1 ms and 10,000
/// years, whatever the store holds.
async fn widths_out_of_bounds_are_refused(ctx: &Ctx) -> CaseResult {
    let widths = [
        Duration::ZERO,
        Duration::from_nanos(1),
        Duration::from_micros(999),
        Duration::from_micros(1500),
        Duration::from_nanos(1_000_000_001),
        ms(WIDEST_MS + 1),
        ms(i64::MAX),
        Duration::from_millis(u64::MAX),
        Duration::MAX,
    ];
    for filled in [false, true] {
        for width in widths {
            let result = ctx.store().windows(&SeriesFilter::any(), TimeRange::all(), width).await;
            expect_refused(result, None, format!("{width:?} wide"))?;
            let result = ctx.store().windows(&only()?, range(NOON, NOON), width).await;
            expect_refused(result, None, format!("{width:?} wide, empty range"))?;
        }
        if !filled {
            ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
        }
    }
    ensure_eq!(counts(&of_one(ctx, TimeRange::all(), 1000).await?), [(NOON, 1)]);
    Ok(())
}

/// Each window has count, sum, minimum, maximum, average, first and last of its samples.
async fn all_seven_of_each_window(ctx: &Ctx) -> CaseResult {
    let values = [3.0, 5.5, -12.0, -1.0, 8.0, 0.25];
    let times = [0, 10, 500, 999, 1000, 1999];
    let batch: Vec<_> = times.iter().zip(values).map(|(ms, value)| rec(*ms, value)).collect();
    ctx.write(&batch).await?;
    let expected =
        [(0, 4, -4.5, -12.0, 5.5, -1.125, 3.0, -1.0), (1000, 2, 8.25, 0.25, 8.0, 4.125, 8.0, 0.25)];
    let expected = expected.map(|(start, count, sum, min, max, avg, first, last)| {
        let [sum, min, max, avg, first, last] = [sum, min, max, avg, first, last].map(Some);
        let aggregation =
            storage_core::MetricAggregation { count, sum, min, max, avg, first, last };
        Window { start: at(start), aggregation }
    });
    ensure_eq!(of_one(ctx, TimeRange::all(), 1000).await?, expected);
    Ok(())
}

/// In each window first is the earliest sample and last the latest, however they were written.
async fn first_and_last_go_by_time(ctx: &Ctx) -> CaseResult {
    let mut batch = ramp(1500);
    fastrand::Rng::with_seed(83).shuffle(&mut batch);
    for chunk in batch.chunks(300) {
        ctx.write(chunk).await?;
    }
    let found = of_one(ctx, TimeRange::all(), 100_000).await?;
    ensure_eq!(found.len(), 15);
    for (window, n) in found.iter().zip(0..) {
        let (first, last) = (f64::from(n * 100), f64::from(n * 100 + 99));
        let aggregation = window.aggregation;
        ensure_eq!((aggregation.first, aggregation.last), (Some(first), Some(last)));
    }
    Ok(())
}

/// Windows of several series are ordered by server, then metric, byte by byte.
async fn series_come_in_order_of_bytes(ctx: &Ctx) -> CaseResult {
    let names =
        ["b", "B", "a", "A", "_", "\u{e9}", "e\u{301}", "~", "a b", "a\u{1}", "ab", "1", "10", "2"];
    let mut keys: Vec<_> =
        names.iter().flat_map(|s| names.iter().map(move |m| SeriesKey::new(*s, *m))).collect();
    let batch: Vec<_> =
        keys.iter().map(|key| rec_of(&key.server_id, &key.metric_type, NOON, 1.0)).collect();
    ctx.write(&batch).await?;
    let found = ctx.store().windows(&SeriesFilter::any(), TimeRange::all(), ms(1000)).await?;
    keys.sort_by(|a, b| {
        let bytes = |key: &SeriesKey| {
            [key.server_id.clone(), key.metric_type.clone()].map(String::into_bytes)
        };
        bytes(a).cmp(&bytes(b))
    });
    ensure_eq!(found.into_iter().map(|one| one.series).collect::<Vec<_>>(), keys);
    Ok(())
}

/// Windows come of the series that the filter chooses, and of no others.
async fn the_filter_chooses(ctx: &Ctx) -> CaseResult {
    let names =
        [("db-1", "cpu"), ("web-*", "cpu"), ("web-1", "cpu"), ("web-1", "mem"), ("web-2", "cpu")];
    ctx.write(&names.map(|(server, metric)| rec_of(server, metric, NOON, 1.0))).await?;
    let table = [
        (SeriesFilter::any(), vec![0, 1, 2, 3, 4]),
        (SeriesFilter::parse("web-*", "cpu")?, vec![1, 2, 4]),
        (SeriesFilter::exact("web-*", "cpu")?, vec![1]),
        (SeriesFilter::parse("*-1", "*")?, vec![0, 2, 3]),
        (SeriesFilter::exact("web-1", "mem")?, vec![3]),
        (SeriesFilter::parse("*", "disk")?, vec![]),
    ];
    for (filter, expected) in table {
        let found = ctx.store().windows(&filter, TimeRange::all(), ms(MINUTE_MS)).await?;
        let found: Vec<_> = found.into_iter().map(|one| one.series).collect();
        let expected: Vec<_> =
            expected.into_iter().map(|n: usize| SeriesKey::new(names[n].0, names[n].1)).collect();
        ensure_eq!(found, expected, "{filter:?}");
    }
    Ok(())
}

/// Samples that were replaced or pruned are in no window.
async fn replaced_and_pruned_samples_do_not_count(ctx: &Ctx) -> CaseResult {
    let mut batch = ramp(2000);
    ctx.write(&batch).await?;
    let over: Vec<_> = (0..2000).step_by(3).map(|n| rec(NOON + n * 1000, -1.0)).collect();
    ctx.write(&over).await?;
    batch.extend(over);
    let all = last_wins(&batch);
    compare_windows(&of_one(ctx, TimeRange::all(), 7000).await?, &all, 7000)?;
    for kept_from in [1_usize, 700, 1234] {
        ctx.prune(at(NOON + kept_from as i64 * 1000)).await?;
        let found = of_one(ctx, TimeRange::all(), 60_000).await?;
        compare_windows(&found, &all[kept_from..], 60_000)?;
    }
    Ok(())
}

/// Each window is what one computes from `query_range`, for any range and any width.
async fn equal_what_query_range_gives(ctx: &Ctx) -> CaseResult {
    let (start, end) = (-60_000, 60_000);
    ctx.write(&scattered(84, 4000, start, end)).await?;
    ctx.write(&scattered(85, 900, start, end)).await?;
    let mut random = fastrand::Rng::with_seed(86);
    for _ in 0..40 {
        let (a, b) = (random.i64(start - 10..end + 10), random.i64(start - 10..end + 10));
        let asked = range(a.min(b), a.max(b));
        let width = 10f64.powf(random.f64() * 6.0) as i64;
        let inside = points(&ctx.store().query_range(SERVER, METRIC, asked).await?);
        compare_windows(&of_one(ctx, asked, width).await?, &inside, width)
            .map_err(|failure| failure.during(format!("{asked:?}")))?;
    }
    Ok(())
}

/// The windows of a range add up to its aggregate, each as exact.
async fn add_up_to_the_aggregate(ctx: &Ctx) -> CaseResult {
    let batch: Vec<_> = (0..9000).map(|n| rec(NOON + n * 100, 0.1)).collect();
    ctx.write(&batch).await?;
    let whole = ctx.store().aggregate(SERVER, METRIC, TimeRange::all()).await?;
    for width in [1000, 9000, 123_457, 10_000_000] {
        let found = of_one(ctx, TimeRange::all(), width).await?;
        let count: u64 = found.iter().map(|window| window.aggregation.count).sum();
        ensure_eq!(count, whole.count, "{width} ms wide");
        let sum: f64 = found.iter().filter_map(|window| window.aggregation.sum).sum();
        let error = (sum - whole.sum.unwrap_or(f64::NAN)).abs();
        let close = error <= 900.0 * 1e-11;
        ensure!(close, "{width} ms wide: off by {error:e}");
        compare_windows(&found, &points(&batch), width)?;
    }
    Ok(())
}

/// Each aggregate is as exact as `aggregate`: infinite only where the sum of its window is.
async fn huge_values_overflow_only_where_they_must(ctx: &Ctx) -> CaseResult {
    let signs = [1.0, 1.0, -1.0, -1.0, 1.0, 1.0, 1.0, -1.0];
    let batch: Vec<_> =
        (0..1600).map(|n| rec(NOON + n, f64::MAX * signs[n as usize % 8])).collect();
    ctx.write(&batch).await?;
    for width in [1, 2, 4, 8, 40, 1000, 100_000] {
        let found = of_one(ctx, TimeRange::all(), width).await?;
        ensure!(!found.iter().any(|w| w.aggregation.sum.is_none_or(f64::is_nan)), "{found:?}");
        compare_windows(&found, &points(&batch), width)?;
    }
    Ok(())
}
