//! One series summed up: `aggregate`.

use storage_core::metrics::time::{END_MS, MIN_MS};
use storage_core::{MetricAggregation, TimeRange};

use crate::data::{
    METRIC, NOON, SERVER, any_finite, at, at_us, bits, points, ramp, range, rec, rec_of, scattered,
};
use crate::failure::{CaseResult, Failure};
use crate::harness::Ctx;

cases! { "aggregate":
    layouts all_seven_on_known_data,
    layouts no_samples_give_none,
    layouts a_single_sample_is_everything,
    layouts zeros_are_positive,
    layouts starts_included_ends_excluded,
    layouts edges_inside_many_samples,
    layouts bounds_are_floored,
    layouts first_and_last_go_by_time,
    layouts replaced_samples_count_once,
    layouts pruned_samples_do_not_count,
    layouts other_series_do_not_count,
    layouts equals_what_query_range_gives,
    layouts the_calendar_from_end_to_end,
    layouts small_values_beside_a_large_one_are_kept,
    layouts a_hundred_thousand_tenths,
    layouts what_cancels_out_leaves_the_rest,
    layouts a_sum_that_fits_is_finite,
    layouts a_sum_that_does_not_fit_is_infinite,
    layouts never_not_a_number,
    layouts the_smallest_values_add_up,
}

/// The aggregate of all samples of the usual series.
async fn whole(ctx: &Ctx) -> Result<MetricAggregation, Failure> {
    Ok(ctx.store().aggregate(SERVER, METRIC, TimeRange::all()).await?)
}

/// Writes `values` one a second from noon on, and returns their aggregate.
async fn whole_of(ctx: &Ctx, values: &[f64]) -> Result<MetricAggregation, Failure> {
    let batch: Vec<_> = (0..).zip(values).map(|(n, value)| rec(NOON + n * 1000, *value)).collect();
    ctx.write(&batch).await?;
    whole(ctx).await
}

/// Fails unless `found` is, as exactly as the contract wants it, what `values` add up to, which
/// come in order of time.
pub(super) fn compare(found: &MetricAggregation, values: &[f64], what: &str) -> CaseResult {
    let count = values.len() as u64;
    ensure_eq!(found.count, count, "{what}: count");
    let (Some(first), Some(last)) = (values.first(), values.last()) else {
        ensure_eq!(*found, MetricAggregation::default(), "{what}: the aggregate of nothing");
        return Ok(());
    };
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exact = [found.first, found.last, found.min, found.max];
    ensure_eq!(exact, [*first, *last, least, most].map(Some), "{what}: first, last, min, max");
    let found_sum = found.sum.unwrap_or(f64::NAN);
    let exact = ExactSum::of(values);
    let sides = crate::failure::sides(&found_sum, &exact.value());
    ensure!(exact.is_close_to(found_sum), "{what}: sum{sides}");
    ensure_eq!(found.avg, Some(found_sum / count as f64), "{what}: average of the sum {found_sum}");
    Ok(())
}

/// The exact sum of values, computed in another way than any backend does.
struct ExactSum {
    sum_scaled: f64,
    magnitude_scaled: f64,
    scale: f64,
}

impl ExactSum {
    fn of(values: &[f64]) -> Self {
        // Scaled down where a partial sum could overflow. What that loses of small values is far
        // below what an error of 1e-12 allows beside the huge one.
        let huge = values.iter().any(|value| value.abs() > 1e280);
        let scale = if huge { 2f64.powi(-64) } else { 1.0 };
        // Numbers whose bits do not overlap hold a sum without any error (Shewchuk 1997).
        let mut parts: Vec<f64> = Vec::new();
        for value in values {
            let mut total = value * scale;
            for part in std::mem::take(&mut parts) {
                let (large, small) =
                    if total.abs() < part.abs() { (part, total) } else { (total, part) };
                total = large + small;
                let lost = small - (total - large);
                if lost != 0.0 {
                    parts.push(lost);
                }
            }
            parts.push(total);
        }
        let magnitude_scaled = values.iter().map(|value| value.abs() * scale).sum();
        Self { sum_scaled: parts.iter().sum(), magnitude_scaled, scale }
    }

    /// The sum as an `f64`, infinite if it does not fit.
    fn value(&self) -> f64 {
        self.sum_scaled / self.scale
    }

    /// Whether the contract takes `found` for this sum.
    fn is_close_to(&self, found: f64) -> bool {
        let error = (found * self.scale - self.sum_scaled).abs();
        found == self.value() || error <= self.magnitude_scaled * 1e-12
    }
}

/// Count, sum, minimum, maximum, average, first and last of a series.
async fn all_seven_on_known_data(ctx: &Ctx) -> CaseResult {
    let expected = MetricAggregation {
        count: 4,
        sum: Some(-4.5),
        min: Some(-12.0),
        max: Some(5.5),
        avg: Some(-1.125),
        first: Some(3.0),
        last: Some(-1.0),
    };
    ensure_eq!(whole_of(ctx, &[3.0, 5.5, -12.0, -1.0]).await?, expected);
    Ok(())
}

/// No samples give count 0 and `None`s: unknown series, empty range, range beside the samples.
async fn no_samples_give_none(ctx: &Ctx) -> CaseResult {
    let none = MetricAggregation::default();
    ensure_eq!(whole(ctx).await?, none, "an empty store");
    ctx.write(&ramp(700)).await?;
    for (start, end) in [(NOON, NOON), (NOON + 1, NOON + 1000), (0, NOON), (NOON + 699_001, END_MS)]
    {
        let found = ctx.store().aggregate(SERVER, METRIC, range(start, end)).await?;
        ensure_eq!(found, none, "[{start}, {end})");
    }
    for (server, metric) in [("unknown", METRIC), (SERVER, "unknown")] {
        let found = ctx.store().aggregate(server, metric, TimeRange::all()).await?;
        ensure_eq!(found, none, "the series {server} {metric}");
    }
    Ok(())
}

/// Of a single sample everything but the count is its value.
async fn a_single_sample_is_everything(ctx: &Ctx) -> CaseResult {
    for value in [0.1, -7.0, f64::MAX, f64::MIN, 5e-324, 0.0] {
        compare(&whole_of(ctx, &[value]).await?, &[value], &format!("{value:e}"))?;
    }
    Ok(())
}

/// A value -0.0 is stored as 0.0, and so are its minimum, maximum, first and last.
async fn zeros_are_positive(ctx: &Ctx) -> CaseResult {
    let found = whole_of(ctx, &[-0.0, 0.0, -0.0]).await?;
    let zeros = [found.min, found.max, found.first, found.last, found.sum, found.avg];
    ensure_eq!(bits(zeros.into_iter().flatten()), bits([0.0; 6]));
    Ok(())
}

/// A range holds its start and not its end.
async fn starts_included_ends_excluded(ctx: &Ctx) -> CaseResult {
    let all = [99, 100, 101, 150, 199, 200, 201];
    ctx.write(&all.map(|ms| rec(ms, ms as f64))).await?;
    let edges = [98, 99, 100, 101, 102, 150, 151, 199, 200, 201, 202];
    for (nth, start) in edges.into_iter().enumerate() {
        for &end in &edges[nth..] {
            let found = ctx.store().aggregate(SERVER, METRIC, range(start, end)).await?;
            let inside = all.into_iter().filter(|ms| (start..end).contains(ms));
            let inside: Vec<_> = inside.map(|ms| ms as f64).collect();
            compare(&found, &inside, &format!("[{start}, {end})"))?;
        }
    }
    Ok(())
}

/// A range holds its start and not its end, also amid very many samples.
async fn edges_inside_many_samples(ctx: &Ctx) -> CaseResult {
    let values: Vec<_> = (0..5000).map(|n| f64::from((n * 7919) % 5003) - 2500.0).collect();
    whole_of(ctx, &values).await?;
    for (start, end) in
        [(0, 5000), (1, 4999), (499, 501), (500, 1000), (999, 1001), (4096, 4097), (0, 512)]
    {
        let found = range(NOON + start * 1000, NOON + end * 1000);
        let found = ctx.store().aggregate(SERVER, METRIC, found).await?;
        compare(&found, &values[start as usize..end as usize], &format!("{start}..{end}"))?;
        let found = range(NOON + start * 1000 - 999, NOON + end * 1000 - 999);
        let found = ctx.store().aggregate(SERVER, METRIC, found).await?;
        compare(
            &found,
            &values[start as usize..end as usize],
            &format!("just before {start}..{end}"),
        )?;
    }
    Ok(())
}

/// Bounds of a range are floored to whole milliseconds, also before 1970.
async fn bounds_are_floored(ctx: &Ctx) -> CaseResult {
    ctx.write(&(-4..4).map(|ms| rec(ms, ms as f64)).collect::<Vec<_>>()).await?;
    for (start_us, end_us, count, first) in
        [(-500, 500, 1, -1.0), (-1001, 2999, 4, -2.0), (1999, 3001, 2, 1.0)]
    {
        let range = TimeRange::new(at_us(start_us), at_us(end_us))?;
        let found = ctx.store().aggregate(SERVER, METRIC, range).await?;
        ensure_eq!(
            (found.count, found.first),
            (count, Some(first)),
            "[{start_us} us, {end_us} us)"
        );
    }
    Ok(())
}

/// First is the earliest sample and last the latest, in whatever order they were written.
async fn first_and_last_go_by_time(ctx: &Ctx) -> CaseResult {
    let mut batch = ramp(1500);
    fastrand::Rng::with_seed(71).shuffle(&mut batch);
    for chunk in batch.chunks(500) {
        ctx.write(chunk).await?;
    }
    let found = whole(ctx).await?;
    ensure_eq!((found.first, found.last), (Some(0.0), Some(1499.0)));
    ctx.write(&[rec(NOON - 1, 50.0), rec(NOON + 700, 51.0)]).await?;
    let found = whole(ctx).await?;
    ensure_eq!((found.first, found.last, found.count), (Some(50.0), Some(1499.0), 1502));
    Ok(())
}

/// A sample that was replaced is not counted, wherever the one before it lies.
async fn replaced_samples_count_once(ctx: &Ctx) -> CaseResult {
    whole_of(ctx, &[1e6; 1200]).await?;
    let values: Vec<_> = (0..1200).map(f64::from).collect();
    compare(&whole_of(ctx, &values).await?, &values, "all replaced")?;
    ctx.write(&[rec(NOON, -5.0), rec(NOON + 1_199_000, -6.0), rec(NOON + 600_000, -7.0)]).await?;
    let mut values = values;
    (values[0], values[1199], values[600]) = (-5.0, -6.0, -7.0);
    compare(&whole(ctx).await?, &values, "first, last and one between replaced")
}

/// A sample that was pruned is not counted.
async fn pruned_samples_do_not_count(ctx: &Ctx) -> CaseResult {
    let values: Vec<_> = (0..2000).map(|n| f64::from(n % 613) / 7.0).collect();
    whole_of(ctx, &values).await?;
    for kept_from in [1, 500, 777, 1999] {
        ctx.prune(at(NOON + kept_from * 1000)).await?;
        let values = &values[kept_from as usize..];
        compare(&whole(ctx).await?, values, &format!("pruned up to {kept_from}"))?;
    }
    ctx.prune(at(END_MS)).await?;
    compare(&whole(ctx).await?, &[], "all pruned")
}

/// Only samples of the series that was asked for count.
async fn other_series_do_not_count(ctx: &Ctx) -> CaseResult {
    let names = ["a", "b", "ab", "A", "a b"];
    let mut batch = Vec::new();
    for n in 0..2000_usize {
        batch.push(rec_of(names[n % 5], names[n / 5 % 5], NOON + n as i64 / 3, n as f64));
    }
    ctx.write(&batch).await?;
    for server in names {
        for metric in names {
            let own = batch.iter().filter(|r| r.server_id == server && r.metric_type == metric);
            let values: Vec<_> = own.map(|record| record.value).collect();
            let found = ctx.store().aggregate(server, metric, TimeRange::all()).await?;
            compare(&found, &values, &format!("the series {server} {metric}"))?;
        }
    }
    Ok(())
}

/// It equals what one computes from `query_range`.
async fn equals_what_query_range_gives(ctx: &Ctx) -> CaseResult {
    let (start, end) = (-50_000, 50_000);
    ctx.write(&scattered(72, 4000, start, end)).await?;
    ctx.write(&scattered(73, 900, start, end)).await?;
    let mut random = fastrand::Rng::with_seed(74);
    for round in 0..60 {
        let (a, b) = (random.i64(start - 10..end + 10), random.i64(start - 10..end + 10));
        let range = if round == 0 { TimeRange::all() } else { range(a.min(b), a.max(b)) };
        let values = points(&ctx.store().query_range(SERVER, METRIC, range).await?);
        let values: Vec<_> = values.into_iter().map(|(_, value)| value).collect();
        let found = ctx.store().aggregate(SERVER, METRIC, range).await?;
        compare(&found, &values, &format!("{range:?}"))?;
    }
    Ok(())
}

/// A range may span all the years that samples can have.
async fn the_calendar_from_end_to_end(ctx: &Ctx) -> CaseResult {
    let times = [MIN_MS, MIN_MS + 1, -1, 0, NOON, END_MS - 1];
    let batch: Vec<_> = times.iter().zip(1..).map(|(ms, n)| rec(*ms, f64::from(n))).collect();
    ctx.write(&batch).await?;
    compare(&whole(ctx).await?, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "all")?;
    let found = ctx.store().aggregate(SERVER, METRIC, range(MIN_MS + 1, END_MS - 1)).await?;
    compare(&found, &[2.0, 3.0, 4.0, 5.0], "all but the outermost")
}

/// The sum is exact up to 1e-12 of the magnitudes: many small values beside a large one count.
async fn small_values_beside_a_large_one_are_kept(ctx: &Ctx) -> CaseResult {
    let mut values = vec![9e-7; 30_000];
    values[0] = 1e10;
    compare(&whole_of(ctx, &values).await?, &values, "1e10 and 29,999 times 9e-7")?;
    values[0] = -1e10;
    compare(&whole_of(ctx, &values).await?, &values, "-1e10 and 29,999 times 9e-7")
}

/// The sum is exact up to 1e-12 of the magnitudes: rounding does not pile up.
async fn a_hundred_thousand_tenths(ctx: &Ctx) -> CaseResult {
    let values = vec![0.1; 100_000];
    compare(&whole_of(ctx, &values).await?, &values, "100,000 times 0.1")
}

/// The sum is exact up to 1e-12 of the magnitudes, also where large values cancel out.
async fn what_cancels_out_leaves_the_rest(ctx: &Ctx) -> CaseResult {
    for values in
        [vec![1e16, 1.0, -1e16], vec![1.0, 1e100, 1.0, -1e100], vec![0.1, -0.1, 0.3, -0.3]]
    {
        ctx.prune(at(END_MS)).await?;
        compare(&whole_of(ctx, &values).await?, &values, &format!("{values:?}"))?;
    }
    let values: Vec<_> = (0..3000).map(|n| if n % 2 == 0 { 1e9 } else { -1e9 } + 0.1).collect();
    compare(&whole_of(ctx, &values).await?, &values, "a billion to and fro")
}

/// The sum is infinite only if the exact sum does not fit into an `f64`: not because a part of
/// it does not.
async fn a_sum_that_fits_is_finite(ctx: &Ctx) -> CaseResult {
    const MAX: f64 = f64::MAX;
    let many: Vec<_> = (0..2000).map(|n| if n < 1000 { 1.5e308 } else { -1.5e308 }).collect();
    let table: [&[f64]; 6] = [
        &[1e308, 1e308, -1e308],
        &[MAX, MAX, -MAX, -MAX],
        &[-MAX, -MAX, 1.0, MAX, MAX],
        &[MAX, MAX, MAX, -MAX, -MAX, -MAX, 1e300],
        &[MAX / 2.0, MAX / 2.0],
        &many,
    ];
    for values in table {
        ctx.prune(at(END_MS)).await?;
        let found = whole_of(ctx, values).await?;
        ensure!(found.sum.is_some_and(f64::is_finite), "{found:?} of {} values", values.len());
        compare(&found, values, &format!("{} values from {:e} on", values.len(), values[0]))?;
    }
    Ok(())
}

/// The sum is infinite if the exact sum does not fit into an `f64`.
async fn a_sum_that_does_not_fit_is_infinite(ctx: &Ctx) -> CaseResult {
    for (sign, inf) in [(1.0, f64::INFINITY), (-1.0, f64::NEG_INFINITY)] {
        let found = whole_of(ctx, &[f64::MAX * sign; 3]).await?;
        let bound = Some(f64::MAX * sign);
        let expected = MetricAggregation {
            count: 3,
            sum: Some(inf),
            avg: Some(inf),
            min: bound,
            max: bound,
            first: bound,
            last: bound,
        };
        ensure_eq!(found, expected);
    }
    Ok(())
}

/// No field is ever NaN, whatever the values.
async fn never_not_a_number(ctx: &Ctx) -> CaseResult {
    let mut random = fastrand::Rng::with_seed(75);
    let huge =
        |random: &mut fastrand::Rng| f64::MAX.copysign(if random.bool() { 1.0 } else { -1.0 });
    let values: Vec<_> = (0..3000)
        .map(|n| if n % 3 == 0 { huge(&mut random) } else { any_finite(&mut random) })
        .collect();
    whole_of(ctx, &values).await?;
    for _ in 0..40 {
        let (a, b) = (random.usize(0..3000), random.usize(0..3000));
        let (a, b) = (a.min(b), a.max(b));
        let asked = range(NOON + a as i64 * 1000, NOON + b as i64 * 1000);
        let found = ctx.store().aggregate(SERVER, METRIC, asked).await?;
        let fields = [found.sum, found.avg, found.min, found.max, found.first, found.last];
        ensure!(!fields.into_iter().flatten().any(f64::is_nan), "{found:?}");
        compare(&found, &values[a..b], &format!("{a}..{b}"))?;
    }
    Ok(())
}

/// Values below the smallest normal number add up like any others.
async fn the_smallest_values_add_up(ctx: &Ctx) -> CaseResult {
    let found = whole_of(ctx, &[5e-324; 1000]).await?;
    ensure_eq!(
        (found.sum, found.min, found.max),
        (Some(5e-324 * 1000.0), Some(5e-324), Some(5e-324))
    );
    Ok(())
}
