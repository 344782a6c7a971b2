//! Questions: which records, which times, how many of each.

use serde_json::Value;
use storage_core::{HistoryQuery, Matcher, RecordInfo, TimeRange};

use super::{all, ask, ramp, rows, rows_of, times, val, values};
use crate::data::{NOON, at, range};
use crate::failure::CaseResult;
use crate::harness::Ctx;

history_cases! { "history_query":
    records_come_by_name_and_values_oldest_first,
    a_star_is_any_run_of_characters,
    everything_but_the_star_is_literal,
    case_matters,
    an_exact_name_with_a_star_is_itself,
    several_names_at_once,
    a_pattern_that_matches_nothing_answers_empty,
    an_unknown_record_answers_empty,
    newest_n_of_each_record,
    a_limit_cuts_ties_by_insertion,
    a_limit_larger_than_what_is_there,
    a_limit_of_zero_answers_empty,
    there_is_no_limit_of_its_own,
    a_range_holds_its_start_and_not_its_end,
    an_empty_range_holds_nothing,
    a_limit_counts_inside_the_range,
    ranges_before_1970,
    random_questions_of_random_values,
    asking_changes_nothing,
    records_have_number_and_extent,
    records_are_chosen_like_values,
    names_run_together_are_apart,
}

/// Records by name, byte by byte; of each its values, oldest first.
async fn records_come_by_name_and_values_oldest_first(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let batch = [
        val("b", NOON + 2, 1),
        val("a", NOON + 9, 2),
        val("B", NOON + 1, 3),
        val("é", NOON, 4),
        val("a", NOON + 3, 5),
        val("b", NOON, 6),
        val("ab", NOON, 7),
    ];
    history.store_batch(&batch).await?;
    let expected = [3, 5, 2, 7, 6, 1, 4].map(Value::from);
    ensure_eq!(values(&all(history).await?), expected);
    Ok(())
}

/// `*` stands for any run of characters, none included, also in the middle and more than once.
async fn a_star_is_any_run_of_characters(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let names =
        ["accuracy::", "accuracy::graz", "accuracy::vienna", "accuracy:x", "forecast::graz"];
    let batch: Vec<_> = names.iter().map(|name| val(name, NOON, *name)).collect();
    history.store_batch(&batch).await?;
    for (pattern, expected) in [
        ("accuracy::*", &[0, 1, 2][..]),
        ("*::graz", &[1, 4]),
        ("*", &[0, 1, 2, 3, 4]),
        ("a*z", &[1]),
        ("*c*::*a*", &[1, 2, 4]),
        ("**graz**", &[1, 4]),
        ("accuracy::graz*", &[1]),
        ("accuracy::graz", &[1]),
        ("accuracy", &[]),
    ] {
        let expected: Vec<Value> =
            expected.iter().map(|index: &usize| names[*index].into()).collect();
        ensure_eq!(values(&ask(history, pattern).await?), expected, "{pattern}");
    }
    Ok(())
}

/// Every other character stands for itself, whatever it means elsewhere.
async fn everything_but_the_star_is_literal(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let names = ["a%b", "a_b", "a?b", "a[x]b", "a\\b", "axb", "a.b", "a#b", "a'b", "a\"b", "a{x}b"];
    let batch: Vec<_> = names.iter().map(|name| val(name, NOON, *name)).collect();
    history.store_batch(&batch).await?;
    for name in names {
        let pattern = format!("{}*", &name[..name.len() - 1]);
        ensure_eq!(values(&ask(history, &pattern).await?), [Value::from(name)], "{pattern}");
    }
    Ok(())
}

/// Matching is case-sensitive, with and without a star.
async fn case_matters(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&[val("Sensors.temp", NOON, 1), val("sensors.temp", NOON, 2)]).await?;
    ensure_eq!(values(&ask(history, "sensors.*").await?), [Value::from(2)]);
    ensure_eq!(values(&ask(history, "Sensors.temp").await?), [Value::from(1)]);
    Ok(())
}

/// A matcher of exact names takes a star literally.
async fn an_exact_name_with_a_star_is_itself(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&[val("a*", NOON, 1), val("ab", NOON, 2)]).await?;
    let found = history.query(&HistoryQuery::new(Matcher::exact("a*")?)).await?;
    ensure_eq!(rows(found), rows_of(&[val("a*", NOON, 1)]));
    Ok(())
}

/// A matcher may list names; unknown ones are no error.
async fn several_names_at_once(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let batch = [val("a", NOON, 1), val("b", NOON, 2), val("c", NOON, 3)];
    history.store_batch(&batch).await?;
    let some = HistoryQuery::new(Matcher::any_of(["c", "x", "a"])?);
    ensure_eq!(values(&rows(history.query(&some).await?)), [1, 3].map(Value::from));
    let none = HistoryQuery::new(Matcher::any_of::<&str>([])?);
    ensure_eq!(rows(history.query(&none).await?), []);
    Ok(())
}

/// A pattern that matches no record answers empty, also in an empty store.
async fn a_pattern_that_matches_nothing_answers_empty(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    ensure_eq!(ask(history, "a*").await?, []);
    history.store_batch(&ramp("b", 3)).await?;
    ensure_eq!(ask(history, "a*").await?, []);
    Ok(())
}

/// A record that does not exist answers empty, with and without a limit.
async fn an_unknown_record_answers_empty(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&ramp("b", 3)).await?;
    ensure_eq!(ask(history, "a").await?, []);
    ensure_eq!(rows(history.query(&HistoryQuery::parse("a")?.newest(1)).await?), []);
    Ok(())
}

/// The newest n of each record, still oldest first.
async fn newest_n_of_each_record(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    for name in ["a::1", "a::2", "b"] {
        history.store_batch(&ramp(name, 20)).await?;
    }
    for n in [1, 2, 7, 19] {
        let found = rows(history.query(&HistoryQuery::parse("a::*")?.newest(n)).await?);
        let newest = |name: &str| rows_of(&ramp(name, 20)[20 - n..]);
        ensure_eq!(found, [newest("a::1"), newest("a::2")].concat(), "newest {n}");
    }
    Ok(())
}

/// Of values of one time the newest are those that were stored last.
async fn a_limit_cuts_ties_by_insertion(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    for n in 0..10 {
        history.store_batch(&[val("a", NOON, n), val("a", NOON - 1, 100 + n)]).await?;
    }
    for (n, expected) in [(1, vec![9]), (3, vec![7, 8, 9]), (11, (109..110).chain(0..10).collect())]
    {
        let found = rows(history.query(&HistoryQuery::parse("a")?.newest(n)).await?);
        let expected: Vec<Value> = expected.into_iter().map(Value::from).collect();
        ensure_eq!(values(&found), expected, "newest {n}");
    }
    Ok(())
}

/// A record with fewer values gives all it has.
async fn a_limit_larger_than_what_is_there(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&ramp("a", 3)).await?;
    for n in [3, 4, 1000, usize::MAX] {
        let found = rows(history.query(&HistoryQuery::parse("*")?.newest(n)).await?);
        ensure_eq!(found, rows_of(&ramp("a", 3)), "newest {n}");
    }
    Ok(())
}

/// With a limit of 0 the answer is empty.
async fn a_limit_of_zero_answers_empty(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&ramp("a", 3)).await?;
    ensure_eq!(rows(history.query(&HistoryQuery::parse("*")?.newest(0)).await?), []);
    Ok(())
}

/// There is no limit but that of the query.
async fn there_is_no_limit_of_its_own(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&ramp("a", 12_000)).await?;
    ensure_eq!(all(history).await?.len(), 12_000);
    Ok(())
}

/// A range holds its start and not its end.
async fn a_range_holds_its_start_and_not_its_end(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&(0..10).map(|n| val("a", NOON + n, n)).collect::<Vec<_>>()).await?;
    for start in -1..=11 {
        for end in start..=11 {
            let query = HistoryQuery::parse("*")?.range(range(NOON + start, NOON + end));
            let expected: Vec<_> =
                (0..10).filter(|n| (start..end).contains(n)).map(|n| NOON + n).collect();
            let found = rows(history.query(&query).await?);
            ensure_eq!(times(&found), expected, "[{start}, {end})");
        }
    }
    Ok(())
}

/// An empty range holds nothing, not even what stands at it.
async fn an_empty_range_holds_nothing(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&[val("a", NOON, 1)]).await?;
    let query = HistoryQuery::parse("*")?.range(TimeRange::new(at(NOON), at(NOON))?);
    ensure_eq!(rows(history.query(&query).await?), []);
    ensure_eq!(rows(history.query(&query.newest(1)).await?), []);
    Ok(())
}

/// The newest n are those inside the range.
async fn a_limit_counts_inside_the_range(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&(0..20).map(|n| val("a", NOON + n, n)).collect::<Vec<_>>()).await?;
    let query = HistoryQuery::parse("a")?.range(range(NOON + 3, NOON + 9)).newest(2);
    ensure_eq!(values(&rows(history.query(&query).await?)), [7, 8].map(Value::from));
    Ok(())
}

/// Ranges across the epoch and before it.
async fn ranges_before_1970(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&(-5..5).map(|ms| val("a", ms, ms)).collect::<Vec<_>>()).await?;
    for (start, end) in [(-5, -1), (-2, 2), (-100, 0), (0, 100)] {
        let query = HistoryQuery::parse("a")?.range(range(start, end));
        let expected: Vec<_> = (-5..5).filter(|ms| (start..end).contains(ms)).collect();
        ensure_eq!(times(&rows(history.query(&query).await?)), expected, "[{start}, {end})");
    }
    Ok(())
}

/// Whatever is asked, the answer is what one picks by hand out of everything.
async fn random_questions_of_random_values(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let mut random = fastrand::Rng::with_seed(7);
    let mut stored = Vec::new();
    for batch in 0..20 {
        let values: Vec<_> = (0..random.i64(1..60))
            .map(|n| {
                let name = format!("r{}", random.u8(..5));
                val(&name, NOON + random.i64(0..50), batch * 100 + n)
            })
            .collect();
        history.store_batch(&values).await?;
        stored.extend(values);
    }
    stored.sort_by(|a, b| (&a.record_name, a.stored_at).cmp(&(&b.record_name, b.stored_at)));
    for _ in 0..60 {
        let pattern = ["*", "r1", "r*", "*3"][random.usize(..4)];
        let (one, other) = (NOON + random.i64(-2..52), NOON + random.i64(-2..52));
        let mut query = HistoryQuery::parse(pattern)?.range(range(one.min(other), one.max(other)));
        query.limit_per_record = [None, Some(1), Some(5), Some(40)][random.usize(..4)];
        let chosen: Vec<_> = stored
            .iter()
            .filter(|value| query.records.matches(&value.record_name))
            .filter(|value| query.range.contains(value.stored_at))
            .cloned()
            .collect();
        let by_record = chosen.chunk_by(|a, b| a.record_name == b.record_name);
        let limit = query.limit_per_record.unwrap_or(usize::MAX);
        let expected: Vec<_> = by_record
            .flat_map(|values| &values[values.len().saturating_sub(limit)..])
            .cloned()
            .collect();
        ensure_eq!(history.query(&query).await?, expected, "{query:?}");
    }
    Ok(())
}

/// Asking again gives the same answer.
async fn asking_changes_nothing(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&ramp("a", 50)).await?;
    for _ in 0..5 {
        ensure_eq!(all(history).await?, rows_of(&ramp("a", 50)));
        let newest = history.query(&HistoryQuery::parse("*")?.newest(1)).await?;
        ensure_eq!(rows(newest), rows_of(&ramp("a", 50)[49..]));
    }
    Ok(())
}

/// Each record with the number and the extent of its values.
async fn records_have_number_and_extent(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    history.store_batch(&[val("b", NOON + 5, 1), val("a", -3, 2), val("b", NOON - 5, 3)]).await?;
    let info = |name: &str, count, oldest, newest| RecordInfo {
        record_name: name.to_owned(),
        count,
        oldest: at(oldest),
        newest: at(newest),
    };
    let expected = [info("a", 1, -3, -3), info("b", 2, NOON - 5, NOON + 5)];
    ensure_eq!(history.records(&Matcher::any()).await?, expected);
    Ok(())
}

/// Records are chosen by the same patterns, in the order of their names.
async fn records_are_chosen_like_values(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    let names = ["a*", "a::1", "a::2", "A::1", "b%", "b_"];
    let batch: Vec<_> = names.iter().map(|name| val(name, NOON, 1)).collect();
    history.store_batch(&batch).await?;
    for (matcher, expected) in [
        (Matcher::any(), &["A::1", "a*", "a::1", "a::2", "b%", "b_"][..]),
        (Matcher::parse("a::*")?, &["a::1", "a::2"]),
        (Matcher::exact("a*")?, &["a*"]),
        (Matcher::parse("b%*")?, &["b%"]),
        (Matcher::any_of(["b_", "a::2", "x"])?, &["a::2", "b_"]),
        (Matcher::parse("x*")?, &[]),
    ] {
        let found = history.records(&matcher).await?;
        let found: Vec<_> = found.iter().map(|info| &*info.record_name).collect();
        ensure_eq!(found, expected, "{matcher}");
    }
    Ok(())
}

/// Records whose names begin alike do not mix.
async fn names_run_together_are_apart(ctx: &Ctx) -> CaseResult {
    let history = ctx.history()?;
    for name in ["a", "a ", "aa", "a:", "a::"] {
        history.store_batch(&ramp(name, 3)).await?;
    }
    for name in ["a", "a ", "aa", "a:", "a::"] {
        ensure_eq!(ask(history, name).await?, rows_of(&ramp(name, 3)), "{name:?}");
    }
    Ok(())
}
