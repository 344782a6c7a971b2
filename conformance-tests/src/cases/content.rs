//! What comes back of what was written: times, values and metadata.

use serde_json::{Value, json};
use storage_core::MetricRecord;
use storage_core::metrics::time::{END_MS, MIN_MS};

use crate::data::{
    METRIC, NOON, SERVER, any_finite, at, at_us, bits, points, ramp, rec, rec_of, scattered,
};
use crate::failure::CaseResult;
use crate::harness::Ctx;

cases! { "content":
    layouts times_equal_after_flooring_are_one_sample,
    layouts times_before_1970_are_floored_too,
    layouts first_and_last_times_of_the_calendar,
    layouts times_of_any_spacing,
    layouts values_come_back_bit_for_bit,
    layouts values_of_any_course,
    layouts negative_zero_comes_back_as_zero,
    layouts metadata_comes_back_equal,
    layouts metadata_null_is_none,
    layouts metadata_goes_with_the_sample_it_came_with,
    layouts a_fraction_replaces_the_whole_number_it_equals,
    layouts metadata_on_a_few_of_many_samples,
}

/// Every time is floored to whole milliseconds: records equal after that are the same sample.
async fn times_equal_after_flooring_are_one_sample(ctx: &Ctx) -> CaseResult {
    let us = NOON * 1000;
    let record = |us, value| MetricRecord { timestamp: at_us(us), ..rec(0, value) };
    ctx.write(&[record(us + 999, 1.0), record(us, 2.0), record(us + 1000, 3.0)]).await?;
    let found = ctx.read_of(SERVER, METRIC).await?;
    ensure_eq!(found, [rec(NOON, 2.0), rec(NOON + 1, 3.0)]);
    ctx.write(&[record(us + 500, 4.0)]).await?;
    ensure_eq!(ctx.points().await?, [(NOON, 4.0), (NOON + 1, 3.0)]);
    Ok(())
}

/// Every time is floored toward the past, also before 1970: half a millisecond before is -1 ms.
async fn times_before_1970_are_floored_too(ctx: &Ctx) -> CaseResult {
    let record = |us, value| MetricRecord { timestamp: at_us(us), ..rec(0, value) };
    let batch = [
        record(-500, 1.0),
        record(-1000, 2.0),
        record(-1001, 3.0),
        record(0, 4.0),
        record(999, 5.0),
    ];
    ctx.write(&batch).await?;
    ensure_eq!(ctx.points().await?, [(-2, 3.0), (-1, 2.0), (0, 5.0)]);
    ensure_eq!(ctx.read_of(SERVER, METRIC).await?[1].timestamp, at(-1));
    Ok(())
}

/// A sample can have any time of the years 0001 to 9999, the first and the last included.
async fn first_and_last_times_of_the_calendar(ctx: &Ctx) -> CaseResult {
    let last_ns = at(END_MS - 1) + chrono::Duration::nanoseconds(999_999);
    let last = MetricRecord { timestamp: last_ns, ..rec(0, 3.0) };
    ctx.write(&[rec(MIN_MS, 1.0), rec(MIN_MS + 1, 2.0), rec(END_MS - 2, 2.5), last]).await?;
    let expected = [(MIN_MS, 1.0), (MIN_MS + 1, 2.0), (END_MS - 2, 2.5), (END_MS - 1, 3.0)];
    ensure_eq!(ctx.points().await?, expected);
    ensure_eq!(ctx.store().stats().await?.newest_metric, Some(at(END_MS - 1)));
    Ok(())
}

/// Times come back as they were, whatever lies between them: nothing, seconds, or millennia.
async fn times_of_any_spacing(ctx: &Ctx) -> CaseResult {
    let mut random = fastrand::Rng::with_seed(21);
    let mut jittered = |n: i64| NOON + n * 10_000 + random.i64(-40..40);
    let mut batch = Vec::new();
    for n in 0..800 {
        batch.push(rec_of("every ms", "x", NOON + n, 1.0));
        batch.push(rec_of("jittered", "x", jittered(n), 1.0));
        batch.push(rec_of("squares", "x", n * n * n * 1000 - 300_000_000_000, 1.0));
        batch.push(rec_of("millennia", "x", MIN_MS + n * ((END_MS - MIN_MS) / 800), 1.0));
    }
    let mut scattered = scattered(22, 800, MIN_MS, END_MS);
    scattered.sort_by_key(|record| record.timestamp);
    let of = |server: &str| -> Vec<_> {
        batch.iter().filter(|record| record.server_id == server).cloned().collect()
    };
    let expected = ["every ms", "jittered", "squares", "millennia"].map(|s| (s, of(s)));
    ctx.write(&batch).await?;
    ctx.write(&scattered).await?;
    for (server, records) in expected {
        ensure_eq!(ctx.read_of(server, "x").await?, records, "times with {server} between them");
    }
    ensure_eq!(ctx.points().await?, points(&scattered), "scattered times");
    Ok(())
}

/// Values come back bit for bit: the extremes, the tiniest, and any other.
async fn values_come_back_bit_for_bit(ctx: &Ctx) -> CaseResult {
    let mut random = fastrand::Rng::with_seed(31);
    let mut values = vec![
        f64::MAX,
        f64::MIN,
        f64::MIN_POSITIVE,
        -f64::MIN_POSITIVE,
        5e-324,
        -5e-324,
        0.0,
        1.0,
        -1.0,
        0.1,
        1.0 / 3.0,
        f64::EPSILON,
        1e16,
        9_007_199_254_740_993.0,
        1e300,
        1e-300,
        f64::from_bits(0x000f_ffff_ffff_ffff),
        f64::from_bits(0x7fef_ffff_ffff_fffe),
    ];
    values.extend((0..2000).map(|_| any_finite(&mut random)));
    let batch: Vec<_> = (0..).zip(&values).map(|(n, value)| rec(NOON + n, *value)).collect();
    ctx.write(&batch).await?;
    let found = ctx.read_of(SERVER, METRIC).await?;
    ensure_eq!(bits(found.iter().map(|record| record.value)), bits(values));
    Ok(())
}

/// Values come back bit for bit whatever course a series takes: flat, counting, decimal, waves,
/// rare changes, all at once.
async fn values_of_any_course(ctx: &Ctx) -> CaseResult {
    type Course = fn(u32, &mut fastrand::Rng) -> f64;
    let courses: [(&str, Course); 8] = [
        ("flat", |_, _| 42.0),
        ("zero", |_, _| 0.0),
        ("counter", |n, _| 1e9 + 13.0 * f64::from(n)),
        ("beyond 2^53", |n, _| 9_007_199_254_740_992.0 + 2.0 * f64::from(n)),
        ("decimal", |n, random| f64::from(n) / 10.0 + f64::from(random.i32(-50..50)) / 100.0),
        ("wave", |n, _| (f64::from(n) / 30.0).sin()),
        ("steps", |n, _| f64::from(n / 250)),
        ("all", |n, random| if n.is_multiple_of(2) { 1.0 } else { any_finite(random) }),
    ];
    let mut random = fastrand::Rng::with_seed(32);
    let mut batch = Vec::new();
    for n in 0..1100 {
        for (name, course) in &courses {
            batch.push(rec_of(SERVER, name, NOON + i64::from(n) * 1000, course(n, &mut random)));
        }
    }
    ctx.write(&batch).await?;
    for (name, _) in courses {
        let written = batch.iter().filter(|record| record.metric_type == name);
        let found = ctx.read_of(SERVER, name).await?;
        let found = bits(found.iter().map(|record| record.value));
        ensure_eq!(found, bits(written.map(|record| record.value)), "the course {name}");
    }
    Ok(())
}

/// -0.0 comes back as 0.0.
async fn negative_zero_comes_back_as_zero(ctx: &Ctx) -> CaseResult {
    ctx.write(&[rec(NOON, -0.0), rec(NOON + 1, 0.0), rec(NOON + 2, -1.0)]).await?;
    let found = ctx.read_of(SERVER, METRIC).await?;
    ensure_eq!(bits(found.iter().map(|record| record.value)), bits([0.0, 0.0, -1.0]));
    Ok(())
}

/// Metadata comes back as equal JSON.
async fn metadata_comes_back_equal(ctx: &Ctx) -> CaseResult {
    let values = [
        json!({}),
        json!([]),
        json!(""),
        json!("null"),
        json!("text"),
        json!(true),
        json!(false),
        json!(0),
        json!(-1),
        json!(1),
        json!(1.0),
        json!(0.1),
        json!(1.5e-7),
        json!(i64::MIN),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(1e300),
        json!(-2.5e-300),
        json!(f64::MAX),
        json!(5e-324),
        json!(9_007_199_254_740_993_i64),
        json!([null]),
        json!({"a": null}),
        json!({"": ""}),
        json!({"a": {"b": [1, {"c": [[], {}, null, "d"]}]}, "e": [1, 1.0, "1"]}),
        json!({"b": 1, "a": 2, "B": 3, "\u{e9}": 4, "e\u{301}": 5, " ": 6, "a.b": 7, "$x": 8}),
        json!("tab\t line\n return\r quote\" back\\ slash/ bell\u{7} del\u{7f} \u{2028}\u{feff}"),
        json!({"caf\u{e9}": "\u{1f600}\u{10ffff}\u{fffd}"}),
        json!([1, "two", [3], {"four": 4}]),
    ];
    let batch: Vec<_> =
        (0..).zip(&values).map(|(n, v)| rec(NOON + n, 1.0).with_metadata(v.clone())).collect();
    ctx.write(&batch).await?;
    let found = ctx.read_of(SERVER, METRIC).await?;
    ensure_eq!(found.len(), values.len());
    for (found, written) in found.iter().zip(&values) {
        ensure_eq!(found.metadata.as_ref(), Some(written));
    }
    Ok(())
}

/// Metadata `null` comes back as none.
async fn metadata_null_is_none(ctx: &Ctx) -> CaseResult {
    ctx.write(&[rec(NOON, 1.0).with_metadata(Value::Null), rec(NOON + 1, 2.0)]).await?;
    ensure_eq!(ctx.read_of(SERVER, METRIC).await?, [rec(NOON, 1.0), rec(NOON + 1, 2.0)]);
    Ok(())
}

/// A record replaces a sample, metadata included: it is replaced, removed and added with it.
async fn metadata_goes_with_the_sample_it_came_with(ctx: &Ctx) -> CaseResult {
    let (old, new) = (json!({"core": 1, "old": true}), json!({"core": 2}));
    let before = [
        rec(NOON, 1.0).with_metadata(old.clone()),
        rec(NOON + 1, 1.0).with_metadata(old.clone()),
        rec(NOON + 2, 1.0),
        rec(NOON + 3, 1.0).with_metadata(old.clone()),
        rec(NOON + 4, 1.0).with_metadata(old),
    ];
    let after = [
        rec(NOON, 1.0).with_metadata(new.clone()),
        rec(NOON + 1, 1.0),
        rec(NOON + 2, 1.0).with_metadata(new),
        rec(NOON + 3, 1.0).with_metadata(Value::Null),
    ];
    ctx.write(&before).await?;
    ctx.write(&after).await?;
    let mut expected = after.to_vec();
    expected[3].metadata = None;
    expected.push(before[4].clone());
    ensure_eq!(ctx.read_of(SERVER, METRIC).await?, expected);
    Ok(())
}

/// A record replaces a sample also where only metadata differs, and there by as little as 1 and 1.0,
/// which are not equal JSON.
async fn a_fraction_replaces_the_whole_number_it_equals(ctx: &Ctx) -> CaseResult {
    let record = |metadata: Value| rec(NOON, 1.0).with_metadata(json!({"core": [metadata]}));
    for metadata in [json!(1), json!(1.0), json!(1), json!(1.5)] {
        ctx.write(&[record(metadata.clone())]).await?;
        ensure_eq!(ctx.read_of(SERVER, METRIC).await?, [record(metadata)]);
    }
    Ok(())
}

/// Each sample keeps its own metadata, also where few of many have some, and many the same.
async fn metadata_on_a_few_of_many_samples(ctx: &Ctx) -> CaseResult {
    let mut batch = ramp(2000);
    for (n, record) in batch.iter_mut().enumerate() {
        record.metadata = match n {
            0 | 999 | 1999 => Some(json!({"mark": n})),
            _ if n % 97 == 0 => Some(json!({"host": "rack-1", "zone": "b"})),
            _ => None,
        };
    }
    ctx.write(&batch).await?;
    ensure_eq!(ctx.read_of(SERVER, METRIC).await?, batch);
    Ok(())
}
