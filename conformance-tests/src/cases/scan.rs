//! Streaming everything: `scan`.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use storage_core::metrics::backend::SCAN_BATCH_SAMPLES_MAX;
use storage_core::metrics::time::floor_ms;
use storage_core::{ErrorKind, SeriesFilter, SeriesKey, SeriesSamples, TimeRange};

use crate::data::{METRIC, NOON, at, only, range, rec, rec_no, rec_of, scan_all, server};
use crate::failure::{CaseResult, Failure};
use crate::harness::Ctx;

cases! { "scan":
    layouts series_come_in_order needs Series,
    layouts the_samples_of_a_series_come_in_order needs Series,
    layouts every_sample_comes_once needs Series,
    layouts replaced_samples_come_once_and_new needs Series,
    layouts batches_hold_one_series_and_are_never_empty needs Series,
    layouts batches_are_no_larger_than_allowed needs Series,
    layouts a_large_series_is_whole needs Series,
    layouts the_filter_is_respected needs Series,
    layouts the_range_is_half_open needs Series,
    layouts series_outside_the_range_do_not_appear needs Series,
    layouts metadata_comes_along needs Series,
    once an_empty_store_gives_no_batches needs Series,
    layouts empty_ranges_and_unknown_series_give_no_batches needs Series,
    layouts pruned_samples_do_not_come needs Series,
    layouts dropping_a_scan_leaves_the_handle_usable needs Series,
    once many_half_read_scans_at_once needs Series,
    once nothing_happens_before_the_first_poll needs Series,
    once a_finished_scan_stays_finished needs Series,
    once a_closed_handle_gives_one_error_and_ends needs Series,
    once writes_meanwhile_lose_and_double_nothing needs Series,
    once compactions_meanwhile_lose_and_double_nothing needs Series,
    once prunes_meanwhile_lose_and_double_nothing_else needs Series,
    layouts a_scan_equals_the_range_queries needs Series,
}

fn flat(batches: &[SeriesSamples]) -> Vec<(SeriesKey, i64, f64)> {
    let of_batch = |batch: &SeriesSamples| {
        let series = batch.series.clone();
        let point = |sample: &storage_core::Sample| (floor_ms(sample.timestamp), sample.value);
        let points: Vec<_> = batch.samples.iter().map(point).collect();
        points.into_iter().map(move |(ms, value)| (series.clone(), ms, value)).collect::<Vec<_>>()
    };
    batches.iter().flat_map(of_batch).collect()
}

/// Checks all that holds of every scan: the form of the batches, the order, and no doubles.
fn ensure_well_formed(batches: &[SeriesSamples]) -> CaseResult {
    for batch in batches {
        let samples = batch.samples.len();
        ensure!(samples > 0, "an empty batch of {}", batch.series);
        ensure!(samples <= SCAN_BATCH_SAMPLES_MAX, "a batch of {samples} samples");
    }
    let all = flat(batches);
    for pair in all.windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        ensure!((&before.0, before.1) < (&after.0, after.1), "{before:?} comes before {after:?}");
    }
    Ok(())
}

async fn all_of(ctx: &Ctx) -> Result<Vec<(SeriesKey, i64, f64)>, Failure> {
    let batches = scan_all(ctx.store(), &SeriesFilter::any(), TimeRange::all()).await?;
    ensure_well_formed(&batches)?;
    Ok(flat(&batches))
}

/// Ordered by series, as `series` orders them.
async fn series_come_in_order(ctx: &Ctx) -> CaseResult {
    let mut names = [("b", "x"), ("a", "y"), ("B", "y"), ("a!", "a"), ("a", "Y"), ("\u{e9}", "x")];
    let records: Vec<_> =
        names.iter().map(|(server, metric)| rec_of(server, metric, NOON, 1.0)).collect();
    ctx.write(&records).await?;
    names.sort_unstable();
    let found: Vec<_> = all_of(ctx).await?.into_iter().map(|(series, ..)| series).collect();
    let expected = names.map(|(server, metric)| SeriesKey::new(server, metric));
    ensure_eq!(found, expected);
    Ok(())
}

/// Within a series ordered by time, however they were written.
async fn the_samples_of_a_series_come_in_order(ctx: &Ctx) -> CaseResult {
    let records: Vec<_> =
        (0..100).map(|no| rec(NOON + no * 37 % 100 - 50, (no * 37 % 100) as f64)).collect();
    ctx.write(&records).await?;
    let found: Vec<_> = all_of(ctx).await?.into_iter().map(|(_, ms, value)| (ms, value)).collect();
    ensure_eq!(found, (0..100).map(|no| (NOON + no - 50, no as f64)).collect::<Vec<_>>());
    Ok(())
}

/// Every sample comes, and comes once.
async fn every_sample_comes_once(ctx: &Ctx) -> CaseResult {
    let records: Vec<_> = (0..3000).map(|no| rec_no(no % 7, NOON + no as i64, no as f64)).collect();
    ctx.write(&records).await?;
    let mut values: Vec<_> =
        all_of(ctx).await?.into_iter().map(|(.., value)| value as u64).collect();
    values.sort_unstable();
    ensure!(values == (0..3000).collect::<Vec<_>>(), "{} of 3000 samples", values.len());
    Ok(())
}

/// A sample that was replaced comes once, with what it was replaced with.
async fn replaced_samples_come_once_and_new(ctx: &Ctx) -> CaseResult {
    ctx.write(&(0..10).map(|no| rec(NOON + no, 1.0)).collect::<Vec<_>>()).await?;
    ctx.write(&[rec(NOON + 3, 2.0), rec(NOON + 7, 2.0)]).await?;
    let values: Vec<_> = all_of(ctx).await?.into_iter().map(|(.., value)| value).collect();
    ensure_eq!(values, [1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0]);
    Ok(())
}

/// In batches of one series; no batch is empty.
async fn batches_hold_one_series_and_are_never_empty(ctx: &Ctx) -> CaseResult {
    let records: Vec<_> = (0..90).map(|no| rec_no(no % 30, NOON + no as i64, no as f64)).collect();
    ctx.write(&records).await?;
    let batches = scan_all(ctx.store(), &SeriesFilter::any(), range(NOON + 40, NOON + 80)).await?;
    ensure_well_formed(&batches)?;
    for batch in &batches {
        for sample in &batch.samples {
            let number = sample.value as usize % 30;
            ensure_eq!(batch.series.server_id, server(number), "the sample {}", sample.value);
        }
    }
    ensure_eq!(flat(&batches).len(), 40);
    Ok(())
}

/// A batch holds at most `SCAN_BATCH_SAMPLES_MAX` samples; what is left over follows.
async fn batches_are_no_larger_than_allowed(ctx: &Ctx) -> CaseResult {
    for (no, extra) in [(0, -1), (1, 0), (2, 1)] {
        let count = SCAN_BATCH_SAMPLES_MAX as i64 + extra;
        let records: Vec<_> = (0..count).map(|ms| rec_no(no, NOON + ms, ms as f64)).collect();
        ctx.write(&records).await?;
        let filter = SeriesFilter::exact(&server(no), METRIC)?;
        let batches = scan_all(ctx.store(), &filter, TimeRange::all()).await?;
        ensure_well_formed(&batches)?;
        ensure_eq!(flat(&batches).len() as i64, count);
    }
    Ok(())
}

/// A series of many batches is whole, in order and without doubles where batches meet.
async fn a_large_series_is_whole(ctx: &Ctx) -> CaseResult {
    let records: Vec<_> = (0..20_000).map(|no| rec(NOON + no * 5, no as f64)).collect();
    ctx.write(&records).await?;
    let found: Vec<_> = all_of(ctx).await?.into_iter().map(|(_, ms, value)| (ms, value)).collect();
    let expected: Vec<_> = (0..20_000).map(|no| (NOON + no * 5, no as f64)).collect();
    ensure!(found == expected, "{} of 20,000 samples, or others", found.len());
    Ok(())
}

/// Of the series that the filter chooses, and of no other.
async fn the_filter_is_respected(ctx: &Ctx) -> CaseResult {
    let names = [("db-1", "cpu"), ("web-1", "cpu"), ("web-1", "mem"), ("web-2", "cpu")];
    ctx.write(&names.map(|(server, metric)| rec_of(server, metric, NOON, 1.0))).await?;
    let table = [
        (SeriesFilter::any(), &names[..]),
        (SeriesFilter::parse("web-*", "cpu")?, &[names[1], names[3]]),
        (SeriesFilter::parse("*", "mem")?, &[names[2]]),
        (SeriesFilter::exact("db-1", "cpu")?, &[names[0]]),
        (SeriesFilter::exact("web-*", "cpu")?, &[]),
    ];
    for (filter, expected) in table {
        let batches = scan_all(ctx.store(), &filter, TimeRange::all()).await?;
        let found: Vec<_> = batches.into_iter().map(|batch| batch.series).collect();
        let expected: Vec<_> = expected.iter().map(|name| SeriesKey::new(name.0, name.1)).collect();
        ensure_eq!(found, expected, "{filter:?}");
    }
    Ok(())
}

/// The range holds its start and not its end.
async fn the_range_is_half_open(ctx: &Ctx) -> CaseResult {
    ctx.write(&(0..20).map(|no| rec(NOON + no * 10, no as f64)).collect::<Vec<_>>()).await?;
    for (start, end) in [(50, 100), (51, 100), (50, 101), (0, 1), (-5, 5), (185, 400), (190, 191)] {
        let asked = range(NOON + start, NOON + end);
        let batches = scan_all(ctx.store(), &only()?, asked).await?;
        let found: Vec<_> = flat(&batches).into_iter().map(|(_, ms, _)| ms - NOON).collect();
        let expected: Vec<_> =
            (0..20).map(|no| no * 10).filter(|ms| (start..end).contains(ms)).collect();
        ensure_eq!(found, expected, "from {start} to {end}");
    }
    Ok(())
}

/// A series without samples in the range gives no batch.
async fn series_outside_the_range_do_not_appear(ctx: &Ctx) -> CaseResult {
    let records = [("a", 0), ("b", 100), ("c", 50), ("d", 200), ("a", 300)];
    ctx.write(&records.map(|(server, ms)| rec_of(server, METRIC, NOON + ms, 1.0))).await?;
    let batches = scan_all(ctx.store(), &SeriesFilter::any(), range(NOON + 50, NOON + 200)).await?;
    let found: Vec<_> = batches.iter().map(|batch| &*batch.series.server_id).collect();
    ensure_eq!(found, ["b", "c"]);
    Ok(())
}

/// Samples come with their metadata.
async fn metadata_comes_along(ctx: &Ctx) -> CaseResult {
    let records: Vec<_> = (0..10)
        .map(|no| match no % 2 {
            0 => rec(NOON + no, 1.0).with_metadata(serde_json::json!({ "no": [no, null, "x"] })),
            _ => rec(NOON + no, 1.0),
        })
        .collect();
    ctx.write(&records).await?;
    let batches = scan_all(ctx.store(), &only()?, TimeRange::all()).await?;
    let found: Vec<_> = batches.into_iter().flat_map(|batch| batch.samples).collect();
    ensure_eq!(found, records.iter().map(|record| record.to_sample()).collect::<Vec<_>>());
    Ok(())
}

/// Nothing stored, nothing streamed.
async fn an_empty_store_gives_no_batches(ctx: &Ctx) -> CaseResult {
    ensure_eq!(scan_all(ctx.store(), &SeriesFilter::any(), TimeRange::all()).await?, []);
    ensure_eq!(scan_all(ctx.store(), &only()?, range(NOON, NOON + 1)).await?, []);
    Ok(())
}

/// An empty range, a range beside the data and an unknown series give an empty stream.
async fn empty_ranges_and_unknown_series_give_no_batches(ctx: &Ctx) -> CaseResult {
    ctx.write(&[rec(NOON, 1.0), rec(NOON + 1, 2.0)]).await?;
    let any = SeriesFilter::any();
    for (start, end) in [(0, 0), (1, 1), (-100, 0), (2, 100)] {
        let asked = range(NOON + start, NOON + end);
        ensure_eq!(scan_all(ctx.store(), &any, asked).await?, [], "from {start} to {end}");
    }
    let unknown = SeriesFilter::exact("nobody", METRIC)?;
    ensure_eq!(scan_all(ctx.store(), &unknown, TimeRange::all()).await?, []);
    Ok(())
}

/// What was pruned does not come.
async fn pruned_samples_do_not_come(ctx: &Ctx) -> CaseResult {
    let records: Vec<_> = (0..100).map(|no| rec_no(no % 2, NOON + no as i64, no as f64)).collect();
    ctx.write(&records).await?;
    ctx.prune(at(NOON + 90)).await?;
    let mut values: Vec<_> =
        all_of(ctx).await?.into_iter().map(|(.., value)| value as i64).collect();
    values.sort_unstable();
    ensure_eq!(values, (90..100).collect::<Vec<_>>());
    Ok(())
}

/// Dropping a scan half way leaves the handle usable, however often.
async fn dropping_a_scan_leaves_the_handle_usable(ctx: &Ctx) -> CaseResult {
    let records: Vec<_> = (0..9000).map(|no| rec_no(no % 3, NOON + no as i64, 1.0)).collect();
    ctx.write(&records).await?;
    for round in 0..40 {
        let mut scan = ctx.store().scan(&SeriesFilter::any(), TimeRange::all());
        for _ in 0..round % 4 {
            ensure!(scan.try_next().await?.is_some(), "the scan ended early");
        }
        drop(scan);
    }
    ctx.store().write_batch(&[rec_no(0, NOON - 1, 2.0)]).await?;
    ensure_eq!(all_of(ctx).await?.len(), 9001);
    ensure_eq!(ctx.prune(at(NOON)).await?, 1);
    Ok(())
}

/// Scans that wait half way hold nothing up: not each other, not writes, prunes and upkeep.
async fn many_half_read_scans_at_once(ctx: &Ctx) -> CaseResult {
    let records: Vec<_> = (0..200).map(|no| rec_no(no % 10, NOON + no as i64, 1.0)).collect();
    ctx.store().write_batch(&records).await?;
    let mut scans = Vec::new();
    for _ in 0..20 {
        let mut scan = ctx.store().scan(&SeriesFilter::any(), TimeRange::all());
        let first = scan.try_next().await?;
        ensure_eq!(first.map(|batch| batch.series.server_id), Some(server(0)));
        scans.push(scan);
    }
    ctx.store().write_batch(&[rec_no(10, NOON - 5, 1.0)]).await?;
    ctx.store().compact().await?;
    ensure_eq!(ctx.store().prune_before(at(NOON)).await?, 1);
    for scan in scans {
        let rest: Vec<_> = scan.try_collect().await?;
        ensure_well_formed(&rest)?;
        let stored = flat(&rest).into_iter().filter(|(_, ms, _)| *ms >= NOON).count();
        ensure!(stored >= 180, "{stored} of at least 180 samples after the first batch");
    }
    Ok(())
}

/// What counts is what was stored before the first poll, not before the call.
async fn nothing_happens_before_the_first_poll(ctx: &Ctx) -> CaseResult {
    let scan = ctx.store().scan(&SeriesFilter::any(), TimeRange::all());
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    let batches: Vec<_> = scan.try_collect().await?;
    ensure_eq!(flat(&batches).len(), 1);
    Ok(())
}

/// A stream that ended without an error has nothing more to give, and did give everything.
async fn a_finished_scan_stays_finished(ctx: &Ctx) -> CaseResult {
    ctx.store().write_batch(&[rec(NOON, 1.0), rec(NOON + 1, 1.0)]).await?;
    let any = SeriesFilter::any();
    let mut scan = ctx.store().scan(&any, TimeRange::all()).fuse();
    let mut found = 0;
    while let Some(batch) = scan.try_next().await? {
        found += batch.samples.len();
    }
    ensure_eq!(found, 2);
    ensure!(scan.next().await.is_none(), "a batch after the end");
    Ok(())
}

/// After an error the stream ends.
async fn a_closed_handle_gives_one_error_and_ends(ctx: &Ctx) -> CaseResult {
    if !ctx.store().capabilities().close {
        // Then nothing makes the call fail.
        return Ok(());
    }
    ctx.store().write_batch(&[rec(NOON, 1.0)]).await?;
    ctx.store().close().await?;
    let mut scan = ctx.store().scan(&SeriesFilter::any(), TimeRange::all());
    let first = scan.next().await;
    let kind = first.map(|result| result.map_err(|error| error.kind()));
    ensure_eq!(kind, Some(Err(ErrorKind::Closed)));
    ensure!(scan.next().await.is_none(), "the stream goes on after an error");
    Ok(())
}

/// How many samples the cases below start from, and of how many series.
const BEFORE: usize = 30_000;
const SERIES: usize = 6;

async fn write_before(ctx: &Ctx) -> CaseResult {
    let of = |no: usize| rec_no(no % SERIES, NOON + no as i64 * 10, no as f64);
    for start in (0..BEFORE).step_by(5_000) {
        let batch: Vec<_> = (start..start + 5_000).map(of).collect();
        ctx.store().write_batch(&batch).await?;
    }
    Ok(())
}

/// Scans while `disturb` runs, a turn of it before each batch, and returns what was found.
async fn scan_while<F>(
    ctx: &Ctx,
    mut disturb: impl FnMut(usize) -> F,
) -> Result<Vec<(SeriesKey, i64, f64)>, Failure>
where
    F: Future<Output = Result<(), storage_core::Error>>,
{
    let mut batches = Vec::new();
    let mut scan = ctx.store().scan(&SeriesFilter::any(), TimeRange::all());
    while let Some(batch) = scan.try_next().await? {
        disturb(batches.len()).await?;
        batches.push(batch);
    }
    ensure_well_formed(&batches)?;
    Ok(flat(&batches))
}

/// Samples stored before the first poll are all returned, and none twice, while others are
/// written between them and after them.
async fn writes_meanwhile_lose_and_double_nothing(ctx: &Ctx) -> CaseResult {
    write_before(ctx).await?;
    let other = ctx.open().await?;
    let found = scan_while(ctx, |turn| {
        let other = Arc::clone(&other);
        // Not for ever, lest a scan that runs after the writes never ends.
        let count = if turn < 50 { 300 } else { 0 };
        // 1 ms after samples of every series, spread over the whole of the time.
        let beside =
            move |no: usize| rec_no(no % SERIES, NOON + (no * 97 + turn) as i64 * 10 + 1, -1.0);
        async move { other.write_batch(&(0..count).map(beside).collect::<Vec<_>>()).await }
    })
    .await?;
    let stored: BTreeSet<_> =
        found.iter().filter(|(.., value)| *value >= 0.0).map(|(.., value)| *value as u64).collect();
    ensure_eq!(stored.len(), BEFORE);
    Ok(())
}

/// No answer changes by `compact`, in the middle of a scan neither.
async fn compactions_meanwhile_lose_and_double_nothing(ctx: &Ctx) -> CaseResult {
    write_before(ctx).await?;
    let other = ctx.open().await?;
    let found = scan_while(ctx, |_| other.compact()).await?;
    ensure_eq!(found.len(), BEFORE);
    Ok(())
}

/// Samples that are not pruned meanwhile are all returned, and none twice.
async fn prunes_meanwhile_lose_and_double_nothing_else(ctx: &Ctx) -> CaseResult {
    write_before(ctx).await?;
    let other = ctx.open().await?;
    let found = scan_while(ctx, |turn| {
        let other = Arc::clone(&other);
        let cutoff = at(NOON + (turn.min(20) * BEFORE / 40) as i64 * 10);
        async move { other.prune_before(cutoff).await.map(drop) }
    })
    .await?;
    let late = found.iter().filter(|(.., value)| *value as usize >= BEFORE / 2).count();
    ensure_eq!(late, BEFORE / 2);
    Ok(())
}

/// A scan gives what `query_range` gives, series by series.
async fn a_scan_equals_the_range_queries(ctx: &Ctx) -> CaseResult {
    let mut random = fastrand::Rng::with_seed(21);
    for _ in 0..3 {
        let records: Vec<_> = (0..1500)
            .map(|no| {
                let record = rec_no(random.usize(..9), NOON + random.i64(0..2000), random.f64());
                if no % 11 == 0 { record.with_metadata(serde_json::json!(no)) } else { record }
            })
            .collect();
        ctx.write(&records).await?;
        let start = NOON + random.i64(0..1000);
        let asked = range(start, start + random.i64(0..1500));
        let batches = scan_all(ctx.store(), &SeriesFilter::any(), asked).await?;
        ensure_well_formed(&batches)?;
        let into_records = |batch: SeriesSamples| {
            let SeriesSamples { series, samples } = batch;
            samples.into_iter().map(move |sample| sample.into_record(&series))
        };
        let found: Vec<_> = batches.into_iter().flat_map(into_records).collect();
        let mut expected = Vec::new();
        for no in 0..9 {
            expected.extend(ctx.store().query_range(&server(no), METRIC, asked).await?);
        }
        ensure_eq!(found, expected);
    }
    Ok(())
}
