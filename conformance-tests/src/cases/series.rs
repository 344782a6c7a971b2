//! Which series there are: `series` and its filters.

use std::time::Duration;

use storage_core::{Matcher, SeriesFilter, SeriesInfo, TimeRange};

use crate::data::{METRIC, NOON, ODD_NAMES, SERVER, at, only, rec, rec_of};
use crate::failure::{CaseResult, Failure};
use crate::harness::Ctx;

cases! { "series":
    layouts every_series_is_listed_once needs Series,
    layouts series_are_ordered_byte_by_byte needs Series,
    layouts the_server_orders_before_the_metric needs Series,
    layouts names_are_not_run_together needs Series,
    layouts case_makes_another_series needs Series,
    layouts normal_forms_make_another_series needs Series,
    layouts an_exact_filter_chooses_one needs Series,
    layouts a_glob_chooses_by_server needs Series,
    layouts a_glob_chooses_by_metric needs Series,
    layouts both_names_must_match needs Series,
    layouts stars_match_any_run_of_characters needs Series,
    layouts an_exact_filter_takes_a_star_literally needs Series,
    layouts any_of_some_names_chooses_each needs Series,
    layouts only_the_star_is_special needs Series,
    layouts filters_mind_the_case needs Series,
    layouts count_and_extent_of_each_series needs Series,
    layouts overwritten_samples_count_once needs Series,
    layouts the_extent_follows_prunes_and_late_writes needs Series,
    once an_unknown_series_is_not_listed needs Series,
    once asking_makes_no_series needs Series,
    once a_refused_batch_makes_no_series needs Series,
    layouts odd_names_come_back needs Series,
    layouts the_longest_names_come_back needs Series,
    layouts pruned_series_are_not_listed needs Series,
    layouts two_thousand_series needs Series,
}

async fn listed(ctx: &Ctx, filter: &SeriesFilter) -> Result<Vec<(String, String)>, Failure> {
    let found = ctx.store().series(filter).await?;
    Ok(found.into_iter().map(|info| (info.series.server_id, info.series.metric_type)).collect())
}

/// Writes one sample of each series, in reverse so that nothing is in order by chance.
async fn write_series(ctx: &Ctx, names: &[(&str, &str)]) -> CaseResult {
    let records: Vec<_> =
        names.iter().rev().map(|(server, metric)| rec_of(server, metric, NOON, 1.0)).collect();
    Ok(ctx.write(&records).await?)
}

fn owned(names: &[(&str, &str)]) -> Vec<(String, String)> {
    names.iter().map(|(server, metric)| ((*server).to_owned(), (*metric).to_owned())).collect()
}

/// Checks which of `names` the filter of two patterns chooses.
async fn ensure_chosen(ctx: &Ctx, patterns: (&str, &str), names: &[(&str, &str)]) -> CaseResult {
    let filter = SeriesFilter::parse(patterns.0, patterns.1)?;
    ensure_eq!(listed(ctx, &filter).await?, owned(names), "{patterns:?}");
    Ok(())
}

/// Each series that holds samples appears once, however many it holds.
async fn every_series_is_listed_once(ctx: &Ctx) -> CaseResult {
    let names = [("a", "cpu"), ("a", "mem"), ("b", "cpu")];
    for time in 0..3 {
        let records: Vec<_> =
            names.iter().map(|(server, metric)| rec_of(server, metric, NOON + time, 1.0)).collect();
        ctx.write(&records).await?;
    }
    ensure_eq!(listed(ctx, &SeriesFilter::any()).await?, owned(&names));
    Ok(())
}

/// Ordered byte by byte, not as any language sorts.
async fn series_are_ordered_byte_by_byte(ctx: &Ctx) -> CaseResult {
    let servers = [
        " ",
        "-",
        "10",
        "9",
        "A",
        "B",
        "Z",
        "_",
        "a",
        "a ",
        "a-b",
        "aB",
        "aa",
        "ab",
        "b",
        "z",
        "\u{e4}",
        "\u{d7ff}",
        "\u{fffd}",
        "\u{1f600}",
    ];
    let names: Vec<_> = servers.iter().map(|server| (*server, METRIC)).collect();
    write_series(ctx, &names).await?;
    ensure_eq!(listed(ctx, &SeriesFilter::any()).await?, owned(&names));
    let names: Vec<_> = servers.iter().map(|metric| ("zz", *metric)).collect();
    write_series(ctx, &names).await?;
    let of_one = SeriesFilter::parse("zz", "*")?;
    ensure_eq!(listed(ctx, &of_one).await?, owned(&names));
    Ok(())
}

/// Ordered by server, then metric: not by the two run together.
async fn the_server_orders_before_the_metric(ctx: &Ctx) -> CaseResult {
    let names = [("a", "y"), ("a", "z"), ("a!", "b"), ("a\u{1}", "x"), ("aa", "a"), ("b", "a")];
    let mut expected = names;
    expected.sort_unstable();
    write_series(ctx, &names).await?;
    ensure_eq!(listed(ctx, &SeriesFilter::any()).await?, owned(&expected));
    Ok(())
}

/// A series is a pair of names: whatever stands between them is part of one or the other.
async fn names_are_not_run_together(ctx: &Ctx) -> CaseResult {
    let names = [
        ("a", "bc"),
        ("ab", "c"),
        ("a/b", "c"),
        ("a", "b/c"),
        ("a|b", "c"),
        ("a", "b|c"),
        ("a b", "c"),
        ("a", "b c"),
        ("a\u{1f}b", "c"),
        ("a", "b\u{1f}c"),
        ("a:b", "c"),
        ("a", "b:c"),
        ("a.b", "c"),
        ("a", "b.c"),
        ("a,b", "c"),
        ("a", "b,c"),
    ];
    let records: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(no, (server, metric))| rec_of(server, metric, NOON, no as f64))
        .collect();
    ctx.write(&records).await?;
    for (no, (server, metric)) in names.iter().enumerate() {
        let found = ctx.read_of(server, metric).await?;
        ensure_eq!(crate::data::points(&found), [(NOON, no as f64)], "{server:?} {metric:?}");
    }
    ensure_eq!(ctx.store().stats().await?.series, names.len() as u64);
    Ok(())
}

/// Names are compared byte by byte: case counts.
async fn case_makes_another_series(ctx: &Ctx) -> CaseResult {
    let names = [("WEB", "CPU"), ("WEB", "cpu"), ("web", "CPU"), ("web", "cpu")];
    write_series(ctx, &names).await?;
    ensure_eq!(listed(ctx, &SeriesFilter::any()).await?, owned(&names));
    Ok(())
}

/// Names are compared byte by byte: what only looks the same is not, nor is a space too many.
async fn normal_forms_make_another_series(ctx: &Ctx) -> CaseResult {
    let names = [
        ("cafe\u{301}", METRIC),
        ("caf\u{e9}", METRIC),
        (" web", METRIC),
        ("web", METRIC),
        ("web ", METRIC),
    ];
    let mut expected = names;
    expected.sort_unstable();
    write_series(ctx, &names).await?;
    ensure_eq!(listed(ctx, &SeriesFilter::any()).await?, owned(&expected));
    Ok(())
}

const FLEET: &[(&str, &str)] = &[
    ("Web-1", "cpu"),
    ("db-1", "cpu"),
    ("db-1", "mem"),
    ("web-1", "cpu"),
    ("web-1", "cpu_user"),
    ("web-1", "mem"),
    ("web-10", "cpu"),
    ("web-2", "cpu"),
];

/// An exact filter chooses the series of these names alone.
async fn an_exact_filter_chooses_one(ctx: &Ctx) -> CaseResult {
    write_series(ctx, FLEET).await?;
    ensure_chosen(ctx, ("web-1", "cpu"), &[("web-1", "cpu")]).await?;
    let exact = SeriesFilter::exact("db-1", "mem")?;
    ensure_eq!(listed(ctx, &exact).await?, owned(&[("db-1", "mem")]));
    Ok(())
}

/// A glob of the server chooses series of every server that matches.
async fn a_glob_chooses_by_server(ctx: &Ctx) -> CaseResult {
    write_series(ctx, FLEET).await?;
    ensure_chosen(ctx, ("web-*", "cpu"), &[("web-1", "cpu"), ("web-10", "cpu"), ("web-2", "cpu")])
        .await?;
    ensure_chosen(ctx, ("web-1*", "mem"), &[("web-1", "mem")]).await?;
    ensure_chosen(ctx, ("*", "*"), FLEET).await
}

/// A glob of the metric chooses every metric that matches.
async fn a_glob_chooses_by_metric(ctx: &Ctx) -> CaseResult {
    write_series(ctx, FLEET).await?;
    ensure_chosen(ctx, ("web-1", "cpu*"), &[("web-1", "cpu"), ("web-1", "cpu_user")]).await?;
    ensure_chosen(ctx, ("db-1", "*"), &[("db-1", "cpu"), ("db-1", "mem")]).await?;
    ensure_chosen(ctx, ("*", "*em"), &[("db-1", "mem"), ("web-1", "mem")]).await
}

/// Both names must match.
async fn both_names_must_match(ctx: &Ctx) -> CaseResult {
    write_series(ctx, FLEET).await?;
    ensure_chosen(ctx, ("db-*", "cpu_user"), &[]).await?;
    ensure_chosen(ctx, ("web-2", "mem"), &[]).await?;
    ensure_chosen(ctx, ("*-1", "m*"), &[("db-1", "mem"), ("web-1", "mem")]).await
}

/// A star stands for any run of characters, none included.
async fn stars_match_any_run_of_characters(ctx: &Ctx) -> CaseResult {
    let names =
        [("aa", METRIC), ("aba", METRIC), ("abba", METRIC), ("a\u{e9}a", METRIC), ("b", METRIC)];
    write_series(ctx, &names).await?;
    let all_a = [("aa", METRIC), ("aba", METRIC), ("abba", METRIC), ("a\u{e9}a", METRIC)];
    ensure_chosen(ctx, ("a*a", "*"), &all_a).await?;
    ensure_chosen(ctx, ("*b*", "*"), &[("aba", METRIC), ("abba", METRIC), ("b", METRIC)]).await?;
    ensure_chosen(ctx, ("a*b*a", "*"), &[("aba", METRIC), ("abba", METRIC)]).await?;
    ensure_chosen(ctx, ("**", "*"), &[&all_a[..], &[("b", METRIC)]].concat()).await?;
    ensure_chosen(ctx, ("a*a*a", "*"), &[]).await
}

/// `Matcher::exact` matches its text alone, also where it holds a star.
async fn an_exact_filter_takes_a_star_literally(ctx: &Ctx) -> CaseResult {
    write_series(
        ctx,
        &[("*", METRIC), ("a*", METRIC), ("a*b", METRIC), ("ab", METRIC), ("axb", METRIC)],
    )
    .await?;
    for server in ["*", "a*", "a*b"] {
        let filter =
            SeriesFilter { server_id: Matcher::exact(server)?, metric_type: Matcher::any() };
        ensure_eq!(listed(ctx, &filter).await?, owned(&[(server, METRIC)]), "exactly {server}");
    }
    ensure_chosen(ctx, ("a*b", "*"), &[("a*b", METRIC), ("ab", METRIC), ("axb", METRIC)]).await
}

/// `Matcher::any_of` matches each of its texts alone, also where they hold a star; none matches
/// nothing.
async fn any_of_some_names_chooses_each(ctx: &Ctx) -> CaseResult {
    let names = ["a", "a*", "ab", "b", "b*", "c"];
    let names = names.map(|server| [(server, METRIC), (server, "other")]).concat();
    write_series(ctx, &names).await?;
    let (one, two) = (Matcher::any_of(["c", "a*", "d", "c"])?, Matcher::any_of([METRIC, "x"])?);
    let filter = SeriesFilter { server_id: one, metric_type: two };
    let chosen = [("a*", METRIC), ("c", METRIC)];
    ensure_eq!(listed(ctx, &filter).await?, owned(&chosen), "{filter:?}");
    let windows = ctx.store().windows(&filter, TimeRange::all(), Duration::from_secs(60)).await?;
    let found: Vec<_> = windows.iter().map(|found| found.series.server_id.as_str()).collect();
    ensure_eq!(found, ["a*", "c"]);
    let latest = ctx.store().latest(&filter, 1).await?;
    let found: Vec<_> = latest.iter().map(|found| found.series.server_id.as_str()).collect();
    ensure_eq!(found, ["a*", "c"]);
    let none = SeriesFilter { server_id: Matcher::any_of::<&str>([])?, ..SeriesFilter::any() };
    ensure_eq!(listed(ctx, &none).await?, owned(&[]), "no name at all");
    Ok(())
}

/// In a glob every other character than the star stands for itself.
async fn only_the_star_is_special(ctx: &Ctx) -> CaseResult {
    let names = [
        ("a%b", METRIC),
        ("a?b", METRIC),
        ("a[bc]", METRIC),
        ("a\\b", METRIC),
        ("a_b", METRIC),
        ("ab", METRIC),
        ("acb", METRIC),
        ("a{b}", METRIC),
    ];
    write_series(ctx, &names).await?;
    for pattern in ["a?*", "a%*", "a_*", "a[bc]*", "a\\*", "a{b}*", "*?b", "*%b", "*_b", "*\\b"] {
        let prefix = pattern.trim_matches('*');
        let fits = |name: &str| match pattern.starts_with('*') {
            true => name.ends_with(prefix),
            false => name.starts_with(prefix),
        };
        let expected: Vec<_> = names.iter().copied().filter(|(server, _)| fits(server)).collect();
        ensure_chosen(ctx, (pattern, "*"), &expected).await?;
    }
    Ok(())
}

/// Filters mind the case, exact ones and globs.
async fn filters_mind_the_case(ctx: &Ctx) -> CaseResult {
    write_series(ctx, FLEET).await?;
    ensure_chosen(ctx, ("Web-*", "*"), &[("Web-1", "cpu")]).await?;
    ensure_chosen(ctx, ("Web-1", "cpu"), &[("Web-1", "cpu")]).await?;
    ensure_chosen(ctx, ("WEB-1", "cpu"), &[]).await?;
    ensure_chosen(ctx, ("web-1", "C*"), &[]).await
}

fn info(server: &str, count: u64, oldest_ms: i64, newest_ms: i64) -> SeriesInfo {
    SeriesInfo {
        series: storage_core::SeriesKey::new(server, METRIC),
        count,
        oldest: at(oldest_ms),
        newest: at(newest_ms),
    }
}

/// Number and extent of the samples of each series.
async fn count_and_extent_of_each_series(ctx: &Ctx) -> CaseResult {
    let mut records: Vec<_> = (0..10).map(|no| rec_of("a", METRIC, NOON + no, 1.0)).collect();
    records.push(rec_of("b", METRIC, -5, 1.0));
    records.extend((0..20).map(|no| rec_of("c", METRIC, NOON - no * 1000, 1.0)));
    ctx.write(&records).await?;
    let expected =
        [info("a", 10, NOON, NOON + 9), info("b", 1, -5, -5), info("c", 20, NOON - 19_000, NOON)];
    ensure_eq!(ctx.store().series(&SeriesFilter::any()).await?, expected);
    ensure_eq!(
        ctx.store().series(&SeriesFilter::exact("b", METRIC)?).await?,
        [info("b", 1, -5, -5)]
    );
    Ok(())
}

/// A sample that was replaced counts once, wherever the old one lies.
async fn overwritten_samples_count_once(ctx: &Ctx) -> CaseResult {
    ctx.write(&(0..10).map(|no| rec(NOON + no, 1.0)).collect::<Vec<_>>()).await?;
    ctx.write(&(5..15).map(|no| rec(NOON + no, 2.0)).collect::<Vec<_>>()).await?;
    ctx.write(&[rec(NOON + 14, 3.0), rec(NOON + 14, 4.0)]).await?;
    ensure_eq!(ctx.store().series(&only()?).await?, [info(SERVER, 15, NOON, NOON + 14)]);
    Ok(())
}

/// Extent and count are those of the samples that are there now.
async fn the_extent_follows_prunes_and_late_writes(ctx: &Ctx) -> CaseResult {
    ctx.write(&(0..10).map(|no| rec(NOON + no, 1.0)).collect::<Vec<_>>()).await?;
    ctx.prune(at(NOON + 4)).await?;
    ensure_eq!(ctx.store().series(&only()?).await?, [info(SERVER, 6, NOON + 4, NOON + 9)]);
    ctx.write(&[rec(NOON - 100, 1.0), rec(NOON + 50, 1.0)]).await?;
    ensure_eq!(ctx.store().series(&only()?).await?, [info(SERVER, 8, NOON - 100, NOON + 50)]);
    Ok(())
}

/// A filter that nothing matches gives an empty answer, not an error.
async fn an_unknown_series_is_not_listed(ctx: &Ctx) -> CaseResult {
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    ensure_chosen(ctx, ("nobody", "*"), &[]).await?;
    ensure_chosen(ctx, (SERVER, "nothing"), &[]).await?;
    ensure_chosen(ctx, ("web-1x*", "*"), &[]).await
}

/// A series exists while it holds a sample: being asked for does not make one.
async fn asking_makes_no_series(ctx: &Ctx) -> CaseResult {
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    let all = storage_core::TimeRange::all();
    ctx.store().query_range("asked", METRIC, all).await?;
    ctx.store().aggregate("asked", METRIC, all).await?;
    ctx.store().latest(&SeriesFilter::exact("asked", METRIC)?, 1).await?;
    ensure_eq!(listed(ctx, &SeriesFilter::any()).await?, owned(&[(SERVER, METRIC)]));
    ensure_eq!(ctx.store().stats().await?.series, 1);
    Ok(())
}

/// Nothing of a refused batch is stored, so the names in it are no series.
async fn a_refused_batch_makes_no_series(ctx: &Ctx) -> CaseResult {
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    let bad = [rec_of("refused", METRIC, NOON, 1.0), rec(NOON, f64::INFINITY)];
    ensure!(ctx.store().write_batch(&bad).await.is_err(), "an infinite value was accepted");
    ensure_eq!(listed(ctx, &SeriesFilter::any()).await?, owned(&[(SERVER, METRIC)]));
    Ok(())
}

/// Names come back byte for byte, whatever they are made of, and choose exactly one series.
async fn odd_names_come_back(ctx: &Ctx) -> CaseResult {
    let mut names: Vec<_> = ODD_NAMES.iter().map(|name| (*name, *name)).collect();
    write_series(ctx, &names).await?;
    names.sort_unstable();
    ensure_eq!(listed(ctx, &SeriesFilter::any()).await?, owned(&names));
    for name in ODD_NAMES {
        let filter = SeriesFilter::exact(name, name)?;
        ensure_eq!(listed(ctx, &filter).await?, owned(&[(*name, *name)]), "exactly {name:?}");
    }
    Ok(())
}

/// Names have up to 512 bytes, and all of them count.
async fn the_longest_names_come_back(ctx: &Ctx) -> CaseResult {
    let (one, two) = ("x".repeat(511) + "1", "x".repeat(511) + "2");
    let names = [(&*one, &*one), (&*one, &*two), (&*two, &*one)];
    write_series(ctx, &names).await?;
    ensure_eq!(listed(ctx, &SeriesFilter::any()).await?, owned(&names));
    let filter = SeriesFilter::exact(&one, &two)?;
    ensure_eq!(listed(ctx, &filter).await?, owned(&names[1..2]));
    Ok(())
}

/// A series that lost its last sample is gone; those that did not lose all stay.
async fn pruned_series_are_not_listed(ctx: &Ctx) -> CaseResult {
    let records: Vec<_> =
        (0..10).map(|no| rec_of(&format!("s{no}"), METRIC, NOON + no * 10, 1.0)).collect();
    ctx.write(&records).await?;
    ctx.prune(at(NOON + 45)).await?;
    let expected: Vec<_> = (5..10).map(|no| (format!("s{no}"), METRIC.to_owned())).collect();
    ensure_eq!(listed(ctx, &SeriesFilter::any()).await?, expected);
    ensure_eq!(ctx.store().series(&SeriesFilter::exact("s3", METRIC)?).await?, []);
    ensure_eq!(ctx.store().stats().await?.series, 5);
    Ok(())
}

/// There may be many series; each keeps its own samples.
async fn two_thousand_series(ctx: &Ctx) -> CaseResult {
    let name = |no: i64| format!("host-{:02}", no / 100);
    let metric = |no: i64| format!("metric-{:02}", no % 100);
    let of = |no| rec_of(&name(no), &metric(no), NOON + no, no as f64);
    // 1237 and 2000 have no common divisor: every series once, in a mixed order.
    ctx.write(&(0..2000).map(|no| of(no * 1237 % 2000)).collect::<Vec<_>>()).await?;
    let found = ctx.store().series(&SeriesFilter::any()).await?;
    ensure_eq!(found.len(), 2000);
    for (no, info) in (0..).zip(&found) {
        let expected = storage_core::SeriesKey::new(name(no), metric(no));
        ensure_eq!((&info.series, info.count), (&expected, 1));
        ensure_eq!((info.oldest, info.newest), (at(NOON + no), at(NOON + no)));
    }
    ensure_eq!(listed(ctx, &SeriesFilter::parse("host-07", "*")?).await?.len(), 100);
    ensure_eq!(listed(ctx, &SeriesFilter::parse("*", "metric-*3")?).await?.len(), 200);
    Ok(())
}
