//! The newest samples of each series: `latest`.

use serde_json::json;
use storage_core::metrics::time::{END_MS, MIN_MS};
use storage_core::{MetricRecord, Sample, SeriesFilter, SeriesKey, TimeRange};

use crate::data::{
    METRIC, NOON, SERVER, at, key, last_wins, only, points, ramp, rec, rec_of, scattered,
};
use crate::failure::{CaseResult, Failure};
use crate::harness::Ctx;

cases! { "latest":
    layouts newest_first needs Series,
    layouts with_n_zero_the_answer_is_empty needs Series,
    layouts fewer_than_asked_gives_all needs Series,
    layouts an_unknown_series_does_not_appear needs Series,
    layouts however_they_were_written needs Series,
    layouts late_samples_that_are_older_change_nothing needs Series,
    layouts a_replaced_sample_comes_once needs Series,
    layouts metadata_comes_along needs Series,
    layouts pruned_samples_do_not_come needs Series,
    layouts many_of_many needs Series,
    layouts times_may_lie_anywhere needs Series,
    layouts n_counts_for_each_series needs Series,
    layouts series_come_in_order_of_bytes needs Series,
    layouts the_filter_chooses needs Series,
    layouts equals_what_query_range_gives needs Series,
    once another_handle_sees_the_newest_at_once needs Series,
}

/// The newest `n` samples of the usual series alone.
async fn of_one(ctx: &Ctx, n: usize) -> Result<Vec<Sample>, Failure> {
    let found = ctx.store().latest(&only()?, n).await?;
    ensure!(found.len() <= 1, "one series was asked for, found {found:?}");
    ensure!(found.iter().all(|one| one.series == key() && !one.samples.is_empty()), "{found:?}");
    Ok(found.into_iter().flat_map(|one| one.samples).collect())
}

/// The newest `n` of `written`, which are in order of time, as `latest` is to give them.
fn newest(written: &[MetricRecord], n: usize) -> Vec<Sample> {
    written.iter().rev().take(n).map(MetricRecord::to_sample).collect()
}

/// The newest `n_per_series` samples come newest first.
async fn newest_first(ctx: &Ctx) -> CaseResult {
    let batch = ramp(20);
    ctx.write(&batch).await?;
    for n in [1, 2, 9, 10, 11, 19, 20] {
        ensure_eq!(of_one(ctx, n).await?, newest(&batch, n), "the newest {n}");
    }
    Ok(())
}

/// With `n_per_series` 0 the answer is empty: no samples, and no series either.
async fn with_n_zero_the_answer_is_empty(ctx: &Ctx) -> CaseResult {
    ensure_eq!(ctx.store().latest(&SeriesFilter::any(), 0).await?, []);
    ctx.write(&[rec(NOON, 1.0), rec_of("other", METRIC, NOON, 1.0)]).await?;
    ensure_eq!(ctx.store().latest(&SeriesFilter::any(), 0).await?, []);
    ensure_eq!(ctx.store().latest(&only()?, 0).await?, []);
    Ok(())
}

/// A series with fewer samples gives all it has.
async fn fewer_than_asked_gives_all(ctx: &Ctx) -> CaseResult {
    let batch = ramp(700);
    ctx.write(&batch).await?;
    for n in [700, 701, 100_000, usize::MAX - 1, usize::MAX] {
        ensure_eq!(of_one(ctx, n).await?, newest(&batch, 700), "the newest {n}");
    }
    Ok(())
}

/// A series that holds no samples does not appear: unknown, or all pruned.
async fn an_unknown_series_does_not_appear(ctx: &Ctx) -> CaseResult {
    ensure_eq!(ctx.store().latest(&SeriesFilter::any(), 5).await?, [], "an empty store");
    ctx.write(&[rec(NOON, 1.0), rec_of("late", METRIC, NOON + 10, 2.0)]).await?;
    for (server, metric) in [("unknown", METRIC), (SERVER, "unknown"), (METRIC, SERVER)] {
        let filter = SeriesFilter::exact(server, metric)?;
        ensure_eq!(ctx.store().latest(&filter, 5).await?, [], "{server} {metric}");
    }
    ctx.prune(at(NOON + 5)).await?;
    ensure_eq!(of_one(ctx, 5).await?, [], "a pruned series");
    let found = ctx.store().latest(&SeriesFilter::any(), 5).await?;
    ensure_eq!(found.len(), 1, "the series that is left");
    Ok(())
}

/// Newest goes by the time of the sample, not by the order of writing.
async fn however_they_were_written(ctx: &Ctx) -> CaseResult {
    let mut batch = ramp(1500);
    fastrand::Rng::with_seed(91).shuffle(&mut batch);
    for chunk in batch.chunks(500) {
        ctx.write(chunk).await?;
    }
    for n in [1, 3, 499, 1000, 1500] {
        ensure_eq!(of_one(ctx, n).await?, newest(&ramp(1500), n), "the newest {n}");
    }
    Ok(())
}

/// Newest goes by the time of the sample: older ones that arrive late come after.
async fn late_samples_that_are_older_change_nothing(ctx: &Ctx) -> CaseResult {
    ctx.write(&ramp(600)).await?;
    ctx.write(&[rec(NOON - 1, 50.0), rec(NOON + 599_000 - 1, 51.0), rec(-1, 52.0)]).await?;
    ensure_eq!(of_one(ctx, 1).await?, newest(&[rec(NOON + 599_000, 599.0)], 1));
    let expected =
        [rec(NOON + 598_000, 598.0), rec(NOON + 598_999, 51.0), rec(NOON + 599_000, 599.0)];
    ensure_eq!(of_one(ctx, 3).await?, newest(&expected, 3));
    ensure_eq!(of_one(ctx, 1000).await?.len(), 603);
    Ok(())
}

/// A sample that was replaced comes once, with the value written last.
async fn a_replaced_sample_comes_once(ctx: &Ctx) -> CaseResult {
    let mut batch = ramp(1200);
    ctx.write(&batch).await?;
    for n in [1199, 1198, 600, 0] {
        batch[n].value = -1.0 - n as f64;
        ctx.write(&batch[n..=n]).await?;
    }
    for n in [1, 2, 3, 650, 1200, 1300] {
        ensure_eq!(of_one(ctx, n).await?, newest(&batch, n), "the newest {n}");
    }
    Ok(())
}

/// A sample comes with its own metadata, or with none.
async fn metadata_comes_along(ctx: &Ctx) -> CaseResult {
    let mut batch = ramp(1000);
    batch.iter_mut().step_by(4).for_each(|record| {
        record.metadata = Some(json!({"at": record.value, "tags": ["a", null]}));
    });
    batch[999].metadata = Some(json!("newest"));
    ctx.write(&batch).await?;
    for n in [1, 10, 1000] {
        ensure_eq!(of_one(ctx, n).await?, newest(&batch, n), "the newest {n}");
    }
    Ok(())
}

/// A sample that was pruned does not come, whatever is asked for.
async fn pruned_samples_do_not_come(ctx: &Ctx) -> CaseResult {
    let batch = ramp(2000);
    ctx.write(&batch).await?;
    for kept_from in [1, 700, 1500, 1999] {
        ctx.prune(at(NOON + kept_from * 1000)).await?;
        let kept = &batch[kept_from as usize..];
        for n in [1, 400, 2000] {
            ensure_eq!(of_one(ctx, n).await?, newest(kept, n), "{n} after {kept_from}");
        }
    }
    Ok(())
}

/// As many as were asked for come, also where they are a part of very many.
async fn many_of_many(ctx: &Ctx) -> CaseResult {
    let batch = ramp(5000);
    ctx.write(&batch).await?;
    for n in [500, 1000, 3000, 4999] {
        ensure_eq!(of_one(ctx, n).await?, newest(&batch, n), "the newest {n}");
    }
    Ok(())
}

/// Samples of all the years that there can be come, also those before 1970.
async fn times_may_lie_anywhere(ctx: &Ctx) -> CaseResult {
    let batch = [MIN_MS, -2, -1, 0, 1, NOON, END_MS - 1].map(|ms| rec(ms, ms as f64));
    let old = [rec_of("old", METRIC, MIN_MS, 1.0), rec_of("old", METRIC, -7, 2.0)];
    ctx.write(&[&batch[..], &old].concat()).await?;
    for n in 1..=batch.len() {
        ensure_eq!(of_one(ctx, n).await?, newest(&batch, n), "the newest {n}");
    }
    let found = ctx.store().latest(&SeriesFilter::exact("old", METRIC)?, 1).await?;
    ensure_eq!(found.into_iter().flat_map(|one| one.samples).collect::<Vec<_>>(), newest(&old, 1));
    Ok(())
}

/// The number counts for each series by itself, however many samples the others hold.
async fn n_counts_for_each_series(ctx: &Ctx) -> CaseResult {
    let counts = [("a", 1), ("b", 700), ("c", 3), ("d", 4), ("e", 5), ("f", 1300)];
    let of = |server, count| {
        (0..count).map(|n| rec_of(server, METRIC, NOON + n, n as f64)).collect::<Vec<_>>()
    };
    let mut batch: Vec<_> = counts.iter().flat_map(|(server, count)| of(*server, *count)).collect();
    fastrand::Rng::with_seed(92).shuffle(&mut batch);
    ctx.write(&batch).await?;
    for n in [1, 4, 650] {
        let found = ctx.store().latest(&SeriesFilter::any(), n).await?;
        ensure_eq!(found.len(), counts.len());
        for (one, (server, count)) in found.iter().zip(counts) {
            ensure_eq!(one.series, SeriesKey::new(server, METRIC));
            ensure_eq!(one.samples, newest(&of(server, count), n), "{n} of {server}");
        }
    }
    Ok(())
}

/// Series are ordered by server, then metric, byte by byte.
async fn series_come_in_order_of_bytes(ctx: &Ctx) -> CaseResult {
    let names = [
        "b",
        "B",
        "a",
        "A",
        "_",
        "\u{e9}",
        "\u{10ffff}",
        "a b",
        "a\u{1}",
        "ab",
        "10",
        "2",
        "\u{ffff}",
    ];
    let mut keys: Vec<_> =
        names.iter().flat_map(|s| names.iter().map(move |m| SeriesKey::new(*s, *m))).collect();
    let batch: Vec<_> = (0..)
        .zip(&keys)
        .map(|(n, key)| rec_of(&key.server_id, &key.metric_type, NOON - n, n as f64))
        .collect();
    ctx.write(&batch).await?;
    let found = ctx.store().latest(&SeriesFilter::any(), 1).await?;
    keys.sort_by_key(|key| {
        [&key.server_id, &key.metric_type].map(|name| name.clone().into_bytes())
    });
    ensure_eq!(found.into_iter().map(|one| one.series).collect::<Vec<_>>(), keys);
    Ok(())
}

/// The series that the filter chooses come, and no others.
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
        (SeriesFilter::parse("WEB-1", "cpu")?, vec![]),
    ];
    for (filter, expected) in table {
        let found = ctx.store().latest(&filter, 3).await?;
        let found: Vec<_> = found.into_iter().map(|one| one.series).collect();
        let expected: Vec<_> =
            expected.into_iter().map(|n: usize| SeriesKey::new(names[n].0, names[n].1)).collect();
        ensure_eq!(found, expected, "{filter:?}");
    }
    Ok(())
}

/// It is the end of what `query_range` gives, newest first.
async fn equals_what_query_range_gives(ctx: &Ctx) -> CaseResult {
    let (first, second) = (scattered(93, 3000, -9000, 9000), scattered(94, 800, -9000, 9000));
    ctx.write(&first).await?;
    ctx.write(&second).await?;
    let all = ctx.read_of(SERVER, METRIC).await?;
    ensure_eq!(points(&all), last_wins(&[first, second].concat()));
    for n in [1, 2, 33, 499, 500, 501, 1777, all.len() - 1, all.len()] {
        ensure_eq!(of_one(ctx, n).await?, newest(&all, n), "the newest {n}");
    }
    Ok(())
}

/// What one handle wrote, every other sees as soon as the write has returned.
async fn another_handle_sees_the_newest_at_once(ctx: &Ctx) -> CaseResult {
    let other = ctx.open().await?;
    for n in 0..30 {
        let record = rec(NOON + n, n as f64);
        ctx.store().write_batch(std::slice::from_ref(&record)).await?;
        let found = other.latest(&only()?, 1).await?;
        let found: Vec<_> = found.into_iter().flat_map(|one| one.samples).collect();
        ensure_eq!(found, newest(&[record], 1));
    }
    ensure_eq!(other.query_range(SERVER, METRIC, TimeRange::all()).await?.len(), 30);
    Ok(other.close().await?)
}
