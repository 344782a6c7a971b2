//! Between the steps of a move, a prune, a write and a read: what holds there, and who waits for
//! whom.

use futures_util::{FutureExt, StreamExt};

use super::*;
use crate::error::Result;
use crate::pipeline::CopyOptions;

/// Nobody gives up waiting before a lease runs out.
const LONG_LEASE: Duration = Duration::from_secs(60);

async fn open_long(place: &Place, settle: Duration) -> Tiered {
    place.open_with(TieredOptions::default().with_lease(LONG_LEASE).with_settle(settle)).await
}

/// Lets everybody else go on until nobody can without time passing.
async fn let_others_run() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Checks the reads that wait for nobody.
async fn assert_same_samples(store: &Tiered, plain: &InMemory) {
    let (any, all, day) = (SeriesFilter::any(), TimeRange::all(), Duration::from_secs(86_400));
    assert!(compare(plain, store, &any, all).await.unwrap().is_same());
    let windows = plain.windows(&any, all, day).await.unwrap();
    assert_eq!(store.windows(&any, all, day).await.unwrap(), windows);
    let records = plain.query_range("web-1", "cpu", all).await.unwrap();
    assert_eq!(store.query_range("web-1", "cpu", all).await.unwrap(), records);
    let aggregate = plain.aggregate("web-1", "cpu", all).await.unwrap();
    assert_eq!(store.aggregate("web-1", "cpu", all).await.unwrap(), aggregate);
}

#[tokio::test]
async fn bounds_of_windows_belong_to_one_tier() {
    let (place, plain) = (Place::new(), InMemory::new());
    let store = place.open().await;
    let around = |day: i64| [-1, 0, 1].map(|ms| record(1, day * DAY_MS + ms, ms as f64));
    write_both(&store, &plain, &[around(1), around(2), around(3)].concat()).await;
    let mut moving = store.begin_move().await.unwrap();
    for (day, left) in [(1, 8), (2, 5), (3, 2)] {
        moving.copy(day * DAY_MS, &CopyOptions::default(), |_| {}).await.unwrap();
        assert_same(&store, &plain).await;
        moving.close().await.unwrap();
        assert_same(&store, &plain).await;
        moving.publish().await.unwrap();
        assert_same(&store, &plain).await;
        moving.prune_hot().await.unwrap();
        assert_same(&store, &plain).await;
        assert_eq!(counts(&place).await, (left, 9 - left));
    }
    moving.end().await.unwrap();
    assert_same(&place.open().await, &plain).await;
}

/// The stretch that is read sample by sample begins and ends with samples of both tiers.
#[tokio::test]
async fn late_samples_over_both_ends_of_their_stretch_count_once() {
    let (_place, store, plain) = both_filled().await;
    archive(&store, &before(4), |_| {}).await.unwrap();
    let late = [2, 3, 5].map(|step| record(1, step * DAY_MS / 12, -1.0));
    write_both(&store, &plain, &late).await;
    assert_same(&store, &plain).await;
}

#[tokio::test]
async fn a_filled_cold_tier_is_read_to_its_end() {
    let (place, plain) = (Place::new(), InMemory::new());
    place.cold.write_batch(&records()).await.unwrap();
    plain.write_batch(&records()).await.unwrap();
    let store = place.open().await;
    assert_same(&store, &plain).await;
    write_both(&store, &plain, &[record(1, DAYS * DAY_MS, 1.0), record(1, 7, 1.0)]).await;
    assert_same(&store, &plain).await;
}

/// Nothing is removed yet, and nothing of it is answered.
#[tokio::test]
async fn what_is_being_pruned_shows_nowhere() {
    let (place, store, plain) = both_filled().await;
    archive(&store, &before(3), |_| {}).await.unwrap();
    write_both(&store, &plain, &[record(1, 5, -1.0)]).await;
    let cutoff = from_ms(4 * DAY_MS);
    place.cold.control().inject(Operation::PruneBefore, Fault::HangBefore);
    let pruning = tokio::spawn(async move { store.prune_before(cutoff).await });
    while place.cold.control().counts().hangs == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(counts(&place).await, (108 + 1, 108));
    plain.prune_before(cutoff).await.unwrap();
    let (next, any) = (place.open().await, SeriesFilter::any());
    assert_same_samples(&next, &plain).await;
    assert_eq!(next.latest(&any, 1000).await.unwrap(), plain.latest(&any, 1000).await.unwrap());
    pruning.abort();
}

/// What a late write has left in the hot tier that was not compared any more: it is not acknowledged,
/// and goes away with the rest.
#[tokio::test]
async fn what_a_move_takes_away_does_not_show() {
    let (place, store, plain) = both_filled().await;
    let archiver = place.open().await;
    // One that is in the hot tier alone, and one of which late samples lie over the cold tier.
    write_both(&store, &plain, &[record(8, 4 * DAY_MS, 1.0), record(2, 5 * DAY_MS, -7.0)]).await;
    archive(&archiver, &before(1), |_| {}).await.unwrap();
    let mut moving = archiver.begin_move().await.unwrap();
    moving.copy(3 * DAY_MS, &CopyOptions::default(), |_| {}).await.unwrap();
    moving.close().await.unwrap();
    moving.publish().await.unwrap();
    let late = [
        record(1, 5, -1.0),
        record(1, DAY_MS, -1.0),
        record(1, 3 * DAY_MS - 1, -1.0),
        record(8, 5, -1.0),
        record(9, 5, -1.0),
    ];
    place.hot.write_batch(&late).await.unwrap();
    assert_same(&store, &plain).await;
    assert_same(&place.open().await, &plain).await;
    assert_eq!(moving.prune_hot().await.unwrap(), 72 + 4);
    assert_same(&store, &plain).await;
    moving.end().await.unwrap();
}

/// Each kind of read has the answer of the cold tier, and waits for that of the hot one, when the
/// samples go from one to the other.
#[tokio::test(start_paused = true)]
async fn a_read_that_a_move_met_is_asked_again() {
    let (any, all, day) = (SeriesFilter::any(), TimeRange::all(), Duration::from_secs(86_400));
    for operation in [
        Operation::QueryRange,
        Operation::Aggregate,
        Operation::Latest,
        Operation::Windows,
        Operation::Series,
        Operation::Stats,
    ] {
        let (place, _, plain) = both_filled().await;
        let open = async || open_long(&place, Duration::ZERO).await;
        let (store, archiver) = (open().await, open().await);
        archive(&archiver, &before(1), |_| {}).await.unwrap();
        place.hot.control().inject(operation, Fault::SlowBefore(Duration::from_secs(10)));
        let reading = async {
            match operation {
                Operation::QueryRange => {
                    let found = store.query_range("web-1", "cpu", all).await.unwrap();
                    assert_eq!(found, plain.query_range("web-1", "cpu", all).await.unwrap());
                }
                Operation::Aggregate => {
                    let found = store.aggregate("web-1", "cpu", all).await.unwrap();
                    assert_eq!(found, plain.aggregate("web-1", "cpu", all).await.unwrap());
                }
                Operation::Latest => {
                    let found = store.latest(&any, 1000).await.unwrap();
                    assert_eq!(found, plain.latest(&any, 1000).await.unwrap());
                }
                Operation::Windows => {
                    let found = store.windows(&any, all, day).await.unwrap();
                    assert_eq!(found, plain.windows(&any, all, day).await.unwrap());
                }
                Operation::Series => {
                    let found = store.series(&any).await.unwrap();
                    assert_eq!(found, plain.series(&any).await.unwrap());
                }
                _ => assert_eq!(store.stats().await.unwrap().total_metrics, 216),
            }
        };
        let moving = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            // Of its own calls none is held up.
            let mut moving = archiver.begin_move().await.unwrap();
            moving.copy(4 * DAY_MS, &CopyOptions::default(), |_| {}).await.unwrap();
            moving.close().await.unwrap();
            moving.publish().await.unwrap();
            moving.prune_hot().await.unwrap();
            moving.end().await.unwrap();
        };
        futures_util::join!(reading, moving);
        assert_eq!(counts(&place).await, (72, 144), "{operation:?}");
    }
}

#[tokio::test]
async fn a_scan_goes_on_where_a_move_met_it() {
    for batches_before in 0..4 {
        let (place, store, plain) = both_filled().await;
        let (any, all) = (SeriesFilter::any(), TimeRange::all());
        let expected: Vec<_> = plain.scan(&any, all).try_collect().await.unwrap();
        assert_eq!(expected.len(), 3);
        let mut scan = store.scan(&any, all);
        let mut found = Vec::new();
        for _ in 0..batches_before {
            found.extend(scan.next().await.transpose().unwrap());
        }
        archive(&place.open().await, &before(3), |_| {}).await.unwrap();
        found.extend(scan.try_collect::<Vec<_>>().await.unwrap());
        assert_eq!(found, expected, "after {batches_before} batches");
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_write_waits_while_its_window_is_closed() {
    let (place, _, plain) = both_filled().await;
    let (store, archiver) = (Arc::new(place.open().await), place.open().await);
    let mut moving = archiver.begin_move().await.unwrap();
    moving.copy(3 * DAY_MS, &CopyOptions::default(), |_| {}).await.unwrap();
    moving.close().await.unwrap();
    let late = [record(1, 5, -1.0), record(1, 5 * DAY_MS, -1.0)];
    plain.write_batch(&late).await.unwrap();
    let writing = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.write_batch(&late).await }
    });
    let_others_run().await;
    assert_eq!(counts(&place).await, (216, 108), "not a part of it is written");
    // What is new goes in meanwhile.
    write_both(&store, &plain, &[record(2, 3 * DAY_MS + 1, -1.0)]).await;
    moving.publish().await.unwrap();
    let_others_run().await;
    assert!(!writing.is_finished());
    moving.prune_hot().await.unwrap();
    writing.await.unwrap().unwrap();
    moving.end().await.unwrap();
    assert_same(&store, &plain).await;
}

/// It never sees that the window was closed: all is over when it looks.
#[tokio::test(start_paused = true)]
async fn a_late_write_that_looks_when_all_is_over_is_written_again() {
    let (place, _, plain) = both_filled().await;
    let trusting = TieredOptions::default().with_settle(Duration::from_secs(1_000_000));
    let (store, archiver) = (place.open_with(trusting).await, place.open().await);
    let late = [record(1, 5, -1.0)];
    plain.write_batch(&late).await.unwrap();
    let mut moving = archiver.begin_move().await.unwrap();
    moving.copy(3 * DAY_MS, &CopyOptions::default(), |_| {}).await.unwrap();
    moving.close().await.unwrap();
    let look_slowly = Fault::SlowBefore(Duration::from_secs(10));
    place.control.control().inject(Operation::QueryRange, look_slowly);
    let writing = tokio::spawn(async move { store.write_batch(&late).await });
    let_others_run().await;
    assert_eq!(counts(&place).await, (217, 108));
    moving.publish().await.unwrap();
    assert_eq!(moving.prune_hot().await.unwrap(), 109);
    moving.end().await.unwrap();
    writing.await.unwrap().unwrap();
    assert_same(&place.open().await, &plain).await;
}

#[tokio::test]
async fn a_write_that_cannot_look_afterwards_is_in_doubt() {
    let (place, store, plain) = both_filled().await;
    // The first look, before the write, passes.
    for (passing, outcome) in [(0, Outcome::NotApplied), (1, Outcome::Unknown)] {
        inject(&place.control, Operation::QueryRange, passing, Fault::Refused);
        let late = [record(1, 5, passing as f64)];
        let error = store.write_batch(&late).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, outcome));
        if outcome == Outcome::Unknown {
            plain.write_batch(&late).await.unwrap();
        }
        assert_same(&store, &plain).await;
    }
}

#[tokio::test]
async fn what_comes_while_a_window_is_copied_is_archived_with_it() {
    let (place, store, plain) = both_filled().await;
    let archiver = place.open().await;
    let replaced = record(1, DAY_MS / 12, -1.0);
    let marked = record(2, DAY_MS / 12, 1.0).with_metadata(serde_json::json!({"late": true}));
    // One that is missing in the copy, or one that is different there.
    for late in [vec![record(1, 5, -1.0)], vec![replaced, marked]] {
        let mut moving = archiver.begin_move().await.unwrap();
        moving.copy(3 * DAY_MS, &CopyOptions::default(), |_| {}).await.unwrap();
        write_both(&store, &plain, &late).await;
        moving.close().await.unwrap();
        moving.publish().await.unwrap();
        moving.prune_hot().await.unwrap();
        moving.end().await.unwrap();
        assert_same(&store, &plain).await;
        assert_eq!(counts(&place).await, (108, 109));
    }
}

/// A late write takes a while to reach the hot tier, and lands there before what was archived is
/// removed.
#[tokio::test(start_paused = true)]
async fn a_move_waits_for_writes_under_way() {
    let (place, _, plain) = both_filled().await;
    let settle = Duration::from_millis(400);
    let (store, archiver) = (open_long(&place, settle).await, open_long(&place, settle).await);
    let late = [record(1, 5, -1.0)];
    plain.write_batch(&late).await.unwrap();
    place
        .hot
        .control()
        .inject(Operation::WriteBatch, Fault::SlowBefore(Duration::from_millis(300)));
    place
        .hot
        .control()
        .inject(Operation::PruneBefore, Fault::SlowBefore(Duration::from_millis(500)));
    let (options, writing) = (before(3), store.write_batch(&late));
    let archiving = archive(&archiver, &options, |_| {});
    let (written, archived) = futures_util::join!(writing, archiving);
    written.unwrap();
    assert_eq!(archived.unwrap().samples, 109);
    assert_same(&store, &plain).await;
}

#[test]
fn a_prune_that_died_is_finished_before_another_move() {
    for fault in [Fault::HangBefore, Fault::HangAfter] {
        let (place, store, plain) = wait_for(both_filled());
        wait_for(archive_at_last(&store, &before(2)));
        wait_for(write_both(&store, &plain, &[record(1, 5, -1.0)]));
        place.cold.control().inject(Operation::PruneBefore, fault);
        let cutoff = from_ms(3 * DAY_MS);
        assert!(killed(&place.cold, async move {
            store.prune_before(cutoff).await.unwrap();
        }));
        place.cold.control().off();
        wait_for(async {
            plain.prune_before(cutoff).await.unwrap();
            let next = place.open().await;
            archive_at_last(&next, &before(4)).await;
            assert_same(&next, &plain).await;
        });
    }
}

/// Whichever tier refuses: what it did not remove is answered again at once, nothing older comes up
/// from under what was removed, and the next one need not wait.
#[tokio::test(start_paused = true)]
async fn a_prune_that_fails_shows_what_is_left() {
    let (place, _, plain) = both_filled().await;
    let open = async || open_long(&place, Duration::ZERO).await;
    let (store, other) = (open().await, open().await);
    archive(&store, &before(2), |_| {}).await.unwrap();
    write_both(&store, &plain, &[record(1, 0, -1.0), record(1, 5, -2.0)]).await;
    let cutoff = from_ms(DAY_MS);
    place.cold.control().inject(Operation::PruneBefore, Fault::Refused);
    let error = store.prune_before(cutoff).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::Unknown));
    assert_same(&other, &plain).await;
    place.hot.control().inject(Operation::PruneBefore, Fault::Refused);
    store.prune_before(cutoff).await.unwrap_err();
    let left = other.query_range("web-1", "cpu", TimeRange::new(from_ms(0), cutoff).unwrap());
    let left: Vec<_> = left.await.unwrap().iter().map(|one| one.value).collect();
    assert_eq!(left, [-1.0, -2.0]);
    assert_eq!(other.prune_before(cutoff).await.unwrap(), 2);
    plain.prune_before(cutoff).await.unwrap();
    assert_same(&store, &plain).await;
}

#[tokio::test]
async fn an_archive_tells_what_holds_at_each_step() {
    let (place, store, _) = both_filled().await;
    // Stores in memory answer at once.
    let phase = || {
        let view = place.control.inner().query_range("tiers", "view", TimeRange::all());
        let view = view.now_or_never().unwrap().unwrap().remove(0);
        view.metadata.unwrap()["phase"].as_str().unwrap().to_owned()
    };
    let mut told: Vec<(ArchiveStep, String, (u64, u64))> = Vec::new();
    let options = before(1);
    let report = archive(&store, &options, |at| {
        let held = counts(&place).now_or_never().unwrap();
        if told.last().is_none_or(|(step, ..)| *step != at.step) {
            told.push((at.step, phase(), held));
        }
    });
    assert_eq!(report.await.unwrap().samples, 36);
    let expected = [
        (ArchiveStep::Copying, "copying", (216, 36)),
        (ArchiveStep::Copied, "copying", (216, 36)),
        (ArchiveStep::Verified, "closing", (216, 36)),
        (ArchiveStep::Published, "moving", (216, 36)),
        (ArchiveStep::Pruned, "idle", (180, 36)),
    ];
    assert_eq!(told, expected.map(|(step, phase, held)| (step, phase.to_owned(), held)));
}

#[tokio::test(start_paused = true)]
async fn an_archive_that_fails_gives_its_turn_back() {
    let (place, _, plain) = both_filled().await;
    let open = async || open_long(&place, Duration::ZERO).await;
    let (store, other) = (open().await, open().await);
    let failing: [(&Shared, Operation); 3] = [
        (&place.cold, Operation::WriteBatch),
        (&place.cold, Operation::Scan),
        (&place.hot, Operation::PruneBefore),
    ];
    for (of, operation) in failing {
        of.control().inject(operation, Fault::Refused);
        let failed: Result<_> = archive(&store, &before(2), |_| {}).await;
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_same(&other, &plain).await;
    }
    archive(&other, &before(2), |_| {}).await.unwrap();
    assert_eq!(counts(&place).await, (144, 72));
    assert_same(&store, &plain).await;
}

/// How often a store was called.
fn calls(store: &Shared) -> u64 {
    store.control().counts().calls
}

#[tokio::test]
async fn the_newest_ask_the_cold_tier_for_series_that_stopped_alone() {
    let (place, store, plain) = both_filled().await;
    archive(&store, &before(4), |_| {}).await.unwrap();
    let any = SeriesFilter::any();
    let one = SeriesFilter::exact("web-1", "cpu").unwrap();
    // From here on it is known what the cold tier holds.
    store.latest(&any, 1).await.unwrap();
    let known = calls(&place.cold);
    for (filter, n) in [(&any, 1), (&one, 1), (&one, 24)] {
        assert_eq!(store.latest(filter, n).await.unwrap(), plain.latest(filter, n).await.unwrap());
        assert_eq!(calls(&place.cold), known, "{n}");
    }
    // The hot tier holds a sample of each two hours of two days.
    assert_eq!(store.latest(&one, 25).await.unwrap(), plain.latest(&one, 25).await.unwrap());
    assert_eq!(calls(&place.cold), known + 1);
    write_both(&store, &plain, &[record(7, 1, 7.0)]).await;
    archive(&store, &before(4), |_| {}).await.unwrap();
    assert_same(&store, &plain).await;
    let stopped = calls(&place.cold);
    assert_eq!(store.latest(&any, 1).await.unwrap(), plain.latest(&any, 1).await.unwrap());
    assert_eq!(calls(&place.cold), stopped + 1);
}

#[tokio::test]
async fn what_the_cold_tier_holds_is_read_anew_after_moves_and_prunes_of_others() {
    let (place, store, plain) = both_filled().await;
    let other = place.open().await;
    archive(&store, &before(2), |_| {}).await.unwrap();
    assert_same(&store, &plain).await;
    // A series that the cold tier alone will hold.
    write_both(&other, &plain, &[record(7, 3 * DAY_MS, 7.0)]).await;
    archive(&other, &before(4), |_| {}).await.unwrap();
    assert_same(&store, &plain).await;
    let cutoff = from_ms(3 * DAY_MS + 1);
    assert_eq!(
        other.prune_before(cutoff).await.unwrap(),
        plain.prune_before(cutoff).await.unwrap()
    );
    assert_same(&store, &plain).await;
}
