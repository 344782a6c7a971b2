//! What is stored comes back: `store_batch`.

use serde_json::{Value, json};
use storage_core::history::value::VALUE_BYTES_MAX;
use storage_core::metrics::time::{END_MS, MIN_MS};
use storage_core::{HistoryQuery, Matcher, StoredValue};

use super::{all, ask, ramp, rows_of, times, val, values};
use crate::data::{NOON, ODD_NAMES, at, at_us};
use crate::failure::{CaseResult, expect_refused};
use crate::harness::Ctx;

history_cases! { "history_write":
    a_value_comes_back_with_name_and_time,
    a_batch_of_many_records_comes_back,
    equal_values_of_one_time_are_all_kept,
    what_is_stored_twice_is_there_twice,
    inside_a_batch_ties_go_by_position,
    across_batches_ties_go_by_insertion,
    values_come_in_any_order_of_time,
    times_are_floored,
    times_are_floored_before_1970,
    first_and_last_times_of_the_calendar,
    any_json_comes_back_equal,
    whole_numbers_and_fractions_stay_apart,
    null_is_a_value,
    odd_names_are_names_like_any_other,
    the_largest_name_and_value_are_accepted,
    an_empty_batch_does_nothing,
    a_large_batch_is_stored_whole,
    bad_names_are_refused,
    bad_times_are_refused,
    values_over_the_limit_are_refused,
    values_nested_too_deep_are_refused,
    values_with_nul_are_refused,
    a_batch_with_one_bad_value_stores_nothing,
    the_first_bad_value_is_named,
}

/// A value comes back as equal JSON, with its record and its time.
async fn a_value_comes_back_with_name_and_time(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let stored = [val("accuracy::vienna", NOON + 7, json!({"mae": 0.7, "n": 12}))];
    history.store_batch(&stored).await?;
    ensure_eq!(all(history).await?, rows_of(&stored));
    Ok(())
}

/// A batch may hold values of any number of records.
async fn a_batch_of_many_records_comes_back(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let mut stored: Vec<_> =
        (0..300).map(|n| val(&format!("r{:02}", n % 30), NOON + n, n)).collect();
    history.store_batch(&stored).await?;
    stored.sort_by(|a, b| (&a.record_name, a.stored_at).cmp(&(&b.record_name, b.stored_at)));
    ensure_eq!(all(history).await?, rows_of(&stored));
    Ok(())
}

/// A history keeps what happened: equal values of one time are several.
async fn equal_values_of_one_time_are_all_kept(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let same = vec![val("a", NOON, "x"); 3];
    history.store_batch(&same).await?;
    ensure_eq!(all(history).await?, rows_of(&same));
    ensure_eq!(history.records(&Matcher::any()).await?[0].count, 3);
    Ok(())
}

/// A batch that is stored twice is there twice.
async fn what_is_stored_twice_is_there_twice(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let batch = ramp("a", 4);
    history.store_batch(&batch).await?;
    history.store_batch(&batch).await?;
    ensure_eq!(values(&all(history).await?), [0, 0, 1, 1, 2, 2, 3, 3].map(Value::from));
    Ok(())
}

/// Values of one time come by their position in the batch.
async fn inside_a_batch_ties_go_by_position(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let batch: Vec<_> = (0..500).map(|n| val("a", NOON, (n * 7919) % 500)).collect();
    history.store_batch(&batch).await?;
    ensure_eq!(all(history).await?, rows_of(&batch));
    Ok(())
}

/// Values of one time come in the order of the calls that stored them, whichever handle it was.
async fn across_batches_ties_go_by_insertion(ctx: &Ctx) -> CaseResult {
    let other = ctx.open_whole().await?;
    let handles = [ctx.history()?, other.history()?];
    let mut expected = Vec::new();
    for n in 0..40 {
        let batch = [val("a", NOON, 2 * n), val("b", NOON, 0), val("a", NOON, 2 * n + 1)];
        handles[n % 2].store_batch(&batch).await?;
        expected.extend([json!(2 * n), json!(2 * n + 1)]);
    }
    ensure_eq!(values(&ask(ctx.history()?, "a").await?), expected);
    Ok(())
}

/// Values may come in any order of time and are read by time.
async fn values_come_in_any_order_of_time(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    for batch in [[5, 1, 9], [3, 1, 0], [12, 4, 2]] {
        let batch = batch.map(|offset| val("a", NOON + offset, offset));
        history.store_batch(&batch).await?;
    }
    let expected = [0, 1, 1, 2, 3, 4, 5, 9, 12].map(|offset| NOON + offset);
    ensure_eq!(times(&all(history).await?), expected);
    Ok(())
}

/// Finer digits than milliseconds are floored.
async fn times_are_floored(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let of = |us, n: i32| StoredValue::new("a", at_us(NOON * 1000 + us), n.into());
    history.store_batch(&[of(999, 1), of(0, 2), of(1001, 3)]).await?;
    let found = all(history).await?;
    ensure_eq!(times(&found), [NOON, NOON, NOON + 1]);
    ensure_eq!(values(&found), [1, 2, 3].map(Value::from), "one time after flooring: by insertion");
    Ok(())
}

/// Toward the past, also before 1970.
async fn times_are_floored_before_1970(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let of = |us| StoredValue::new("a", at_us(us), us.into());
    history.store_batch(&[of(-1), of(-1000), of(-1001), of(0)]).await?;
    ensure_eq!(times(&all(history).await?), [-2, -1, -1, 0]);
    Ok(())
}

/// Years 0001 to 9999.
async fn first_and_last_times_of_the_calendar(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&[val("a", END_MS - 1, 2), val("a", MIN_MS, 1)]).await?;
    ensure_eq!(times(&all(history).await?), [MIN_MS, END_MS - 1]);
    Ok(())
}

/// Any JSON comes back as equal JSON.
async fn any_json_comes_back_equal(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let odd: String = ODD_NAMES.concat();
    let json = [
        json!(true),
        json!(""),
        json!("  "),
        json!([]),
        json!({}),
        json!({"": null, "a": [1, [2, {"b": false}]], "é\"\\\n": "\u{1f600}"}),
        json!(odd),
        json!([null, null]),
        json!("{\"not\": \"parsed\"}"),
        json!({"z": 1, "a": 2, "m": {"y": 1, "b": 2}}),
        json!(i64::MIN),
        json!(u64::MAX),
    ];
    let batch: Vec<_> = json.into_iter().zip(NOON..).map(|(json, ms)| val("a", ms, json)).collect();
    history.store_batch(&batch).await?;
    ensure_eq!(all(history).await?, rows_of(&batch));
    Ok(())
}

/// Numbers keep their kind and every digit.
async fn whole_numbers_and_fractions_stay_apart(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let json = [
        json!(1),
        json!(1.0),
        json!(1e16),
        json!(0.1),
        json!(-2.5e-300),
        json!(f64::MAX),
        json!(f64::MIN_POSITIVE),
        json!(9_007_199_254_740_993_u64),
        json!([0, 0.0, 1e300]),
    ];
    let batch: Vec<_> = json.into_iter().zip(NOON..).map(|(json, ms)| val("a", ms, json)).collect();
    history.store_batch(&batch).await?;
    ensure_eq!(all(history).await?, rows_of(&batch));
    Ok(())
}

/// `null` is stored like any value.
async fn null_is_a_value(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let batch = [val("a", NOON, Value::Null), val("a", NOON + 1, json!({"b": null}))];
    history.store_batch(&batch).await?;
    ensure_eq!(all(history).await?, rows_of(&batch));
    Ok(())
}

/// Names are compared byte by byte; no character is special in an exact name.
async fn odd_names_are_names_like_any_other(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let batch: Vec<_> = ODD_NAMES.iter().map(|name| val(name, NOON, *name)).collect();
    history.store_batch(&batch).await?;
    for name in ODD_NAMES {
        let found = history.query(&HistoryQuery::new(Matcher::exact(name)?)).await?;
        ensure_eq!(found, [val(name, NOON, *name)], "{name:?}");
    }
    let mut sorted = batch;
    sorted.sort_by(|a, b| a.record_name.as_bytes().cmp(b.record_name.as_bytes()));
    ensure_eq!(all(history).await?, rows_of(&sorted));
    Ok(())
}

/// A name of 512 bytes, and a value of 1 MiB nested 64 levels deep.
async fn the_largest_name_and_value_are_accepted(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let mut deep = json!("x".repeat(VALUE_BYTES_MAX - 130));
    for _ in 0..64 {
        deep = json!([deep]);
    }
    let batch =
        [val(&"n".repeat(512), NOON, deep), val("a", NOON, "x".repeat(VALUE_BYTES_MAX - 2))];
    history.store_batch(&batch).await?;
    let found = all(history).await?;
    ensure!(found.len() == 2 && found[1] == rows_of(&batch)[0], "the longest name");
    ensure!(found[0] == rows_of(&batch)[1], "the largest value");
    Ok(())
}

/// An empty batch is `Ok` and does nothing.
async fn an_empty_batch_does_nothing(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&[]).await?;
    ensure_eq!(all(history).await?, []);
    ensure_eq!(history.records(&Matcher::any()).await?, []);
    Ok(())
}

/// A batch may have any size.
async fn a_large_batch_is_stored_whole(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let batch: Vec<_> =
        (0..20_001).map(|n| val(&format!("r{:04}", n % 1000), NOON + n / 1000, n)).collect();
    history.store_batch(&batch).await?;
    let found = all(history).await?;
    ensure_eq!(found.len(), batch.len());
    let mut seen: Vec<_> = values(&found).iter().filter_map(Value::as_i64).collect();
    seen.sort_unstable();
    ensure!(seen.into_iter().eq(0..20_001), "each value is there once");
    Ok(())
}

/// Fails unless each bad value is refused with `field`, alone and beside good ones, and nothing is
/// stored.
async fn refuses(ctx: &Ctx, field: &str, bad: Vec<StoredValue>) -> CaseResult {
    let history = ctx.history()?;
    for bad in bad {
        let what = format!("{field} of {:.60}", bad.record_name);
        let batch = [val("good", NOON, 1), bad, val("good", NOON, 2)];
        let error = expect_refused(history.store_batch(&batch).await, Some(field), &what)?;
        ensure_eq!(error.context("record"), Some("1"), "{what}: the detail `record`");
        ensure_eq!(all(history).await?, [], "{what}: stored all the same");
    }
    Ok(())
}

/// Names are 1 to 512 bytes long and hold no NUL.
async fn bad_names_are_refused(ctx: &Ctx) -> CaseResult {
    let names = ["", "a\0b", &"x".repeat(513), &("\u{e9}".repeat(256) + "x")];
    refuses(ctx, "record_name", names.map(|name| val(name, NOON, 1)).into()).await
}

/// Times lie in the years 0001 to 9999.
async fn bad_times_are_refused(ctx: &Ctx) -> CaseResult {
    let early = StoredValue::new("a", at_us(MIN_MS * 1000 - 1), 1.into());
    let late = StoredValue::new("a", at(END_MS), 1.into());
    refuses(ctx, "stored_at", vec![early, late]).await
}

/// Values are at most 1 MiB of compact JSON.
async fn values_over_the_limit_are_refused(ctx: &Ctx) -> CaseResult {
    let text = val("a", NOON, "x".repeat(VALUE_BYTES_MAX - 1));
    let list = val("a", NOON, json!(vec![1; VALUE_BYTES_MAX / 2 + 1]));
    refuses(ctx, "value", vec![text, list]).await
}

/// Values are nested at most 64 levels deep.
async fn values_nested_too_deep_are_refused(ctx: &Ctx) -> CaseResult {
    let mut bad = Vec::new();
    for depth in [65, 1000] {
        let (mut lists, mut objects) = (json!(1), json!(1));
        for _ in 0..depth {
            (lists, objects) = (json!([lists]), json!({ "a": objects }));
        }
        bad.extend([val("a", NOON, lists), val("a", NOON, objects)]);
    }
    refuses(ctx, "value", bad).await
}

/// Texts and names inside a value hold no NUL.
async fn values_with_nul_are_refused(ctx: &Ctx) -> CaseResult {
    let bad = [json!("\0"), json!({"a": ["x\0y"]}), json!({"a\0": 1})];
    refuses(ctx, "value", bad.map(|json| val("a", NOON, json)).into()).await
}

/// All or nothing: one bad value keeps the whole batch out, and the next batch is stored.
async fn a_batch_with_one_bad_value_stores_nothing(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    for place in [0, 1, 500, 999] {
        let mut batch = ramp("a", 1000);
        batch[place].record_name.clear();
        let refused = history.store_batch(&batch).await;
        expect_refused(refused, Some("record_name"), format!("bad at {place}"))?;
        ensure_eq!(all(history).await?, [], "bad at {place}");
    }
    history.store_batch(&ramp("a", 10)).await?;
    ensure_eq!(all(history).await?, rows_of(&ramp("a", 10)));
    Ok(())
}

/// The error names the first bad value of a batch and its field.
async fn the_first_bad_value_is_named(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let mut batch = ramp("a", 10);
    batch[3].value = json!("\0");
    batch[7].record_name.clear();
    let error = expect_refused(history.store_batch(&batch).await, Some("value"), "two bad ones")?;
    ensure_eq!(error.context("record"), Some("3"));
    Ok(())
}
