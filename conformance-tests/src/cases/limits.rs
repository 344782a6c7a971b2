//! What is refused and what is just accepted: names, times, values, metadata.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use storage_core::metrics::record::{METADATA_BYTES_MAX, METADATA_DEPTH_MAX, NAME_BYTES_MAX};
use storage_core::metrics::time::{END_MS, MIN_MS};
use storage_core::{MetricRecord, TimeRange};

use crate::data::{METRIC, NOON, ODD_NAMES, SERVER, at, at_us, points, rec, rec_of};
use crate::failure::{CaseResult, expect_refused};
use crate::harness::Ctx;

cases! { "limits":
    once bad_server_names_are_refused,
    once bad_metric_names_are_refused,
    once bad_names_in_queries_are_refused,
    once bad_names_in_aggregates_are_refused,
    layouts names_of_512_bytes_are_accepted,
    layouts odd_names_are_names_like_any_other,
    layouts names_are_compared_byte_by_byte,
    layouts names_that_concatenate_alike_stay_apart,
    once not_a_number_is_refused,
    once infinities_are_refused,
    once times_outside_the_calendar_are_refused,
    once metadata_over_64_kib_is_refused,
    layouts metadata_of_64_kib_is_accepted,
    once metadata_nested_too_deep_is_refused,
    layouts metadata_nested_64_deep_is_accepted,
    once metadata_with_nul_is_refused,
}

/// Writes a good record and the bad one, and fails unless both are refused because of `field`,
/// the store holds what it held, and goes on working.
async fn check_refused(ctx: &Ctx, bad: MetricRecord, field: &str, what: &str) -> CaseResult {
    let before = rec_of("kept", METRIC, NOON, 5.0);
    ctx.store().write_batch(std::slice::from_ref(&before)).await?;
    let result = ctx.store().write_batch(&[rec(NOON, 1.0), bad]).await;
    let error = expect_refused(result, Some(field), what)?;
    ensure_eq!(error.context("record"), Some("1"), "{what}: the detail `record`");
    ensure_eq!(ctx.points().await?, [], "{what}: what the refused batch left");
    ensure_eq!(ctx.read_of("kept", METRIC).await?, [before], "{what}: what was stored before");
    ensure_eq!(ctx.store().stats().await?.total_metrics, 1, "{what}: samples");
    Ok(())
}

/// Names that are empty, hold a NUL or are longer than 512 bytes.
fn bad_names() -> [String; 7] {
    [
        String::new(),
        "\0".to_owned(),
        "a\0".to_owned(),
        "\0a".to_owned(),
        "a\0b".to_owned(),
        "x".repeat(NAME_BYTES_MAX + 1),
        "\u{e9}".repeat(NAME_BYTES_MAX / 2) + "x",
    ]
}

/// A server's name has 1 to 512 bytes and no NUL.
async fn bad_server_names_are_refused(ctx: &Ctx) -> CaseResult {
    for name in bad_names() {
        check_refused(ctx, rec_of(&name, METRIC, NOON, 1.0), "server_id", &format!("{name:?}"))
            .await?;
    }
    Ok(())
}

/// A metric's name has 1 to 512 bytes and no NUL.
async fn bad_metric_names_are_refused(ctx: &Ctx) -> CaseResult {
    for name in bad_names() {
        check_refused(ctx, rec_of(SERVER, &name, NOON, 1.0), "metric_type", &format!("{name:?}"))
            .await?;
    }
    Ok(())
}

/// `query_range`: `InvalidArgument` if a name breaks the rules of a record's.
async fn bad_names_in_queries_are_refused(ctx: &Ctx) -> CaseResult {
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    for name in bad_names() {
        let result = ctx.store().query_range(&name, METRIC, TimeRange::all()).await;
        expect_refused(result, Some("server_id"), format!("server {name:?}"))?;
        let result = ctx.store().query_range(SERVER, &name, TimeRange::all()).await;
        expect_refused(result, Some("metric_type"), format!("metric {name:?}"))?;
    }
    ensure_eq!(ctx.points().await?, [(NOON, 1.0)]);
    Ok(())
}

/// `aggregate`: `InvalidArgument` as `query_range`, also over an empty range.
async fn bad_names_in_aggregates_are_refused(ctx: &Ctx) -> CaseResult {
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    let empty = TimeRange::new(at(NOON), at(NOON))?;
    for name in bad_names() {
        for range in [TimeRange::all(), empty] {
            let result = ctx.store().aggregate(&name, METRIC, range).await;
            expect_refused(result, Some("server_id"), format!("server {name:?}"))?;
            let result = ctx.store().aggregate(SERVER, &name, range).await;
            expect_refused(result, Some("metric_type"), format!("metric {name:?}"))?;
        }
    }
    ensure_eq!(ctx.store().aggregate(SERVER, METRIC, TimeRange::all()).await?.count, 1);
    Ok(())
}

/// A name may have 512 bytes of UTF-8, of whatever characters; every byte of it counts.
async fn names_of_512_bytes_are_accepted(ctx: &Ctx) -> CaseResult {
    let longest = [
        "x".repeat(512),
        "x".repeat(511) + "y",
        "\u{e9}".repeat(256),
        "\u{1f600}".repeat(128),
        "\u{1f600}".repeat(127) + "abcd",
    ];
    let pairs: Vec<_> = longest.iter().flat_map(|s| longest.iter().map(move |m| (s, m))).collect();
    let batch: Vec<_> = (0..).zip(&pairs).map(|(n, (s, m))| rec_of(s, m, NOON + n, 1.0)).collect();
    ctx.write(&batch).await?;
    for (record, (server, metric)) in batch.iter().zip(pairs) {
        ensure_eq!(ctx.read_of(server, metric).await?, std::slice::from_ref(record));
    }
    Ok(())
}

/// A name may hold every character but NUL: none is special, none is changed.
async fn odd_names_are_names_like_any_other(ctx: &Ctx) -> CaseResult {
    let count = ODD_NAMES.len();
    let pairs = |n: usize| [(n, n), (n, (n * 7 + 3) % count), ((n * 5 + 1) % count, n)];
    let mut batch: Vec<MetricRecord> = Vec::new();
    for (server, metric) in (0..count).flat_map(pairs) {
        let (server, metric) = (ODD_NAMES[server], ODD_NAMES[metric]);
        if !batch.iter().any(|r| r.server_id == server && r.metric_type == metric) {
            batch.push(rec_of(server, metric, NOON, batch.len() as f64));
        }
    }
    ctx.write(&batch).await?;
    for record in &batch {
        let found = ctx.read_of(&record.server_id, &record.metric_type).await?;
        ensure_eq!(found, std::slice::from_ref(record));
    }
    let stats = ctx.store().stats().await?;
    ensure_eq!((stats.total_metrics, stats.series), (batch.len() as u64, batch.len() as u64));
    Ok(())
}

/// Names are compared byte by byte: case, accents in whatever form, spaces and zeros count.
async fn names_are_compared_byte_by_byte(ctx: &Ctx) -> CaseResult {
    let names = [
        "cpu",
        "CPU",
        "Cpu",
        "cpu ",
        " cpu",
        "cpu\t",
        "caf\u{e9}",
        "cafe\u{301}",
        "cafe",
        "1",
        "01",
        "1.0",
        "+1",
        "stra\u{df}e",
        "strasse",
        "\u{fb01}",
        "fi",
        "a\u{200b}",
        "a",
        "aa",
    ];
    let batch: Vec<_> = (0..).zip(names).map(|(n, name)| rec_of(name, name, n, 1.0)).collect();
    ctx.write(&batch).await?;
    for (n, name) in (0..).zip(names) {
        ensure_eq!(points(&ctx.read_of(name, name).await?), [(n, 1.0)], "the series {name:?}");
    }
    ensure_eq!(ctx.read_of("cPU", "cPU").await?, []);
    ensure_eq!(ctx.read_of("cpu", "CPU").await?, []);
    Ok(())
}

/// A series is a pair of names, not their concatenation, whatever stands between them.
async fn names_that_concatenate_alike_stay_apart(ctx: &Ctx) -> CaseResult {
    let mut batch = Vec::new();
    for between in ["", "/", "|", ":", ",", " ", "\u{1}", "\u{1f}", "\n", "\t", "\u{ff}", "\\"] {
        let (left, right) = (format!("a{between}b"), format!("b{between}c"));
        for (server, metric) in [("a", right.as_str()), (left.as_str(), "c"), ("c", "a")] {
            batch.push(rec_of(server, metric, NOON + batch.len() as i64, batch.len() as f64));
        }
    }
    ctx.write(&batch).await?;
    for record in &batch {
        let found = ctx.read_of(&record.server_id, &record.metric_type).await?;
        ensure!(found.contains(record), "{record:?} is not in its series");
        let alone = record.server_id != "c";
        ensure!(!alone || found.len() == 1, "{record:?} shares its series with others: {found:?}");
    }
    Ok(())
}

/// A value is finite: no NaN, whatever its sign and payload.
async fn not_a_number_is_refused(ctx: &Ctx) -> CaseResult {
    let signalling = f64::from_bits(0x7ff0_0000_0000_0001);
    for value in [f64::NAN, -f64::NAN, signalling, f64::from_bits(u64::MAX)] {
        check_refused(ctx, rec(NOON + 1, value), "value", &format!("{:x}", value.to_bits()))
            .await?;
    }
    Ok(())
}

/// A value is finite: no infinity.
async fn infinities_are_refused(ctx: &Ctx) -> CaseResult {
    check_refused(ctx, rec(NOON + 1, f64::INFINITY), "value", "inf").await?;
    check_refused(ctx, rec(NOON + 1, f64::NEG_INFINITY), "value", "-inf").await
}

/// A time lies in the years 0001 to 9999.
async fn times_outside_the_calendar_are_refused(ctx: &Ctx) -> CaseResult {
    let far = 1_000_000_000_000_000;
    let outside = [
        at(MIN_MS - 1),
        at_us(MIN_MS * 1000 - 1),
        at(END_MS),
        at(MIN_MS - far),
        at(END_MS + far),
        DateTime::<Utc>::MIN_UTC,
        DateTime::<Utc>::MAX_UTC,
    ];
    for timestamp in outside {
        let bad = MetricRecord { timestamp, ..rec(0, 1.0) };
        check_refused(ctx, bad, "timestamp", &timestamp.to_string()).await?;
    }
    Ok(())
}

/// Metadata that takes exactly `bytes` as compact JSON, in three forms.
fn metadata_of(bytes: usize) -> [Value; 3] {
    let mut random = fastrand::Rng::with_seed(51);
    let noise: String = (0..bytes - 8).map(|_| random.alphanumeric()).collect();
    let accents = "\u{e9}".repeat(bytes / 2 - 4) + &"x".repeat(bytes % 2 + 6);
    let mut ones = vec![1; (bytes - 1) / 2];
    ones[0] += 9 * (1 - bytes % 2);
    [json!({"k": noise}), json!(accents), json!(ones)]
}

/// Metadata is at most 64 KiB of JSON: one byte more is refused.
async fn metadata_over_64_kib_is_refused(ctx: &Ctx) -> CaseResult {
    for metadata in metadata_of(METADATA_BYTES_MAX + 1) {
        ensure_eq!(metadata.to_string().len(), METADATA_BYTES_MAX + 1);
        check_refused(ctx, rec(NOON + 1, 1.0).with_metadata(metadata), "metadata", "64 KiB + 1")
            .await?;
    }
    let escaped = json!("\u{1}".repeat(METADATA_BYTES_MAX / 6 + 1));
    check_refused(ctx, rec(NOON + 1, 1.0).with_metadata(escaped), "metadata", "escapes count")
        .await?;
    let huge = json!(["x".repeat(5 << 20)]);
    check_refused(ctx, rec(NOON + 1, 1.0).with_metadata(huge), "metadata", "5 MiB").await
}

/// Metadata may take exactly 64 KiB of JSON, and comes back equal.
async fn metadata_of_64_kib_is_accepted(ctx: &Ctx) -> CaseResult {
    let values = metadata_of(METADATA_BYTES_MAX);
    ensure!(values.iter().all(|value| value.to_string().len() == METADATA_BYTES_MAX));
    let batch: Vec<_> =
        (0..).zip(values).map(|(n, v)| rec(NOON + n, 1.0).with_metadata(v)).collect();
    ctx.write(&batch).await?;
    let found = ctx.read_of(SERVER, METRIC).await?;
    ensure!(found == batch, "metadata of 64 KiB comes back changed");
    Ok(())
}

/// `leaf` inside `depth` arrays and objects.
fn nested(depth: usize, leaf: Value) -> [Value; 3] {
    let nest = |level: fn(usize, Value) -> Value| {
        (0..depth).fold(leaf.clone(), |inner, n| level(n, inner))
    };
    let alternating = |n: usize, inner| {
        if n.is_multiple_of(2) { json!([inner, 1]) } else { json!({"a": 0, "k": inner}) }
    };
    [nest(|_, inner| json!([inner])), nest(|_, inner| json!({"k": inner})), nest(alternating)]
}

/// Metadata is nested at most 64 levels deep: 65 are refused, and a thousand do no harm.
async fn metadata_nested_too_deep_is_refused(ctx: &Ctx) -> CaseResult {
    for depth in [METADATA_DEPTH_MAX + 1, 1000] {
        for metadata in nested(depth, json!(1)) {
            let bad = rec(NOON + 1, 1.0).with_metadata(metadata);
            check_refused(ctx, bad, "metadata", &format!("{depth} levels")).await?;
        }
    }
    for metadata in nested(METADATA_DEPTH_MAX, json!({})) {
        let bad = rec(NOON + 1, 1.0).with_metadata(metadata);
        check_refused(ctx, bad, "metadata", "an empty object in 64 levels").await?;
    }
    Ok(())
}

/// Metadata may be nested 64 levels deep, and comes back equal.
async fn metadata_nested_64_deep_is_accepted(ctx: &Ctx) -> CaseResult {
    let values = nested(METADATA_DEPTH_MAX, json!("leaf"));
    let batch: Vec<_> =
        (0..).zip(values).map(|(n, v)| rec(NOON + n, 1.0).with_metadata(v)).collect();
    ctx.write(&batch).await?;
    ensure_eq!(ctx.read_of(SERVER, METRIC).await?, batch);
    Ok(())
}

/// Metadata holds no NUL, neither in a key nor in a text, at no depth.
async fn metadata_with_nul_is_refused(ctx: &Ctx) -> CaseResult {
    let values = [
        json!("\0"),
        json!("a\0b"),
        json!({"\0": 1}),
        json!({"a": "b\0"}),
        json!(["ok", ["x\0"]]),
        json!({"a": [{"b": {"c\0": null}}]}),
        json!([[[[["\0a"]]]]]),
    ];
    for metadata in values {
        let what = metadata.to_string();
        check_refused(ctx, rec(NOON + 1, 1.0).with_metadata(metadata), "metadata", &what).await?;
    }
    Ok(())
}
