//! Rollups against answers that are computed from all samples: late, replaced and pruned ones, by
//! random operations, with processes that die at every step, and beside writers.

mod crashes;
mod model;
mod mortal;
mod seams;
mod settle;
mod together;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

use self::mortal::{Life, Mortal};
use super::*;
use crate::InMemory;
use crate::metrics::{MetricRecord, SeriesFilter, SeriesKey, SeriesWindows, WindowBuilder};

/// Widths of the tiers in these tests, in seconds.
const WIDTHS_S: [u64; 3] = [2, 10, 60];
const MINUTE_MS: i64 = 60_000;

/// Stores in memory, a clock that stands until it is set, and how to open handles on them.
struct Place {
    raw: Arc<InMemory>,
    tiers: [Arc<InMemory>; 3],
    control: Arc<InMemory>,
    now_ms: Arc<AtomicI64>,
}

impl Place {
    fn new(now_ms: i64) -> Self {
        let store = || Arc::new(InMemory::new());
        let tiers = [store(), store(), store()];
        Self { raw: store(), tiers, control: store(), now_ms: Arc::new(AtomicI64::new(now_ms)) }
    }

    fn options(&self) -> RollupOptions {
        let now_ms = Arc::clone(&self.now_ms);
        RollupOptions::default()
            .with_delay(Duration::from_secs(3))
            .with_settle(Duration::ZERO)
            .with_lease(Duration::from_secs(2))
            .with_wait_max(Duration::from_secs(20))
            .with_clock(move || from_ms(now_ms.load(SeqCst)))
    }

    /// Lets the leases of the dead run out, which takes a while otherwise.
    async fn let_leases_run_out(&self) {
        let leases = SeriesFilter::parse("*", "lease-*").unwrap();
        for mut held in self.control.latest(&leases, 1).await.unwrap() {
            let mut last = held.samples.remove(0).into_record(&held.series);
            last.timestamp += chrono::TimeDelta::milliseconds(1);
            last.value = 0.0;
            self.control.write_batch(&[last]).await.unwrap();
        }
    }

    async fn open(&self) -> Rolled {
        self.open_with(&Life::immortal(), self.options()).await
    }

    /// Opens a handle of a process with the life `life`.
    async fn open_with(&self, life: &Arc<Life>, options: RollupOptions) -> Rolled {
        let mortal = |store: &Arc<InMemory>| -> Arc<dyn StorageBackend> {
            Arc::new(Mortal::new(Arc::clone(store), Arc::clone(life)))
        };
        let tiers = WIDTHS_S.iter().zip(&self.tiers);
        let tier =
            |(width, store): (&u64, _)| RollupTier::new(Duration::from_secs(*width), mortal(store));
        let (raw, control) = (mortal(&self.raw), mortal(&self.control));
        Rolled::open_with(raw, tiers.map(tier).collect(), control, options).await.unwrap()
    }
}

/// A sample, by its series' number.
type Point = (usize, i64, f64);

fn record((series, ms, value): Point) -> MetricRecord {
    MetricRecord::new(format!("web-{series}"), from_ms(ms), "cpu", value)
}

fn batch(points: &[Point]) -> Vec<MetricRecord> {
    points.iter().copied().map(record).collect()
}

/// All samples that ever were: those that are there, and those that were pruned.
#[derive(Debug, Clone, Default)]
struct Oracle {
    there: BTreeMap<(usize, i64), f64>,
    pruned: Vec<Point>,
}

impl Oracle {
    fn write(&mut self, points: &[Point]) {
        points.iter().for_each(|(series, ms, value)| {
            self.there.insert((*series, *ms), *value);
        });
    }

    fn prune(&mut self, cutoff_ms: i64) -> u64 {
        let before = self.there.len();
        let pruned = &mut self.pruned;
        self.there.retain(|(series, ms), value| {
            let stays = *ms >= cutoff_ms;
            if !stays {
                pruned.push((*series, *ms, *value));
            }
            stays
        });
        (before - self.there.len()) as u64
    }

    /// The windows of the samples in the parts of `ranges`.
    fn windows(&self, ranges: &[(i64, i64)], width_ms: i64) -> Vec<SeriesWindows> {
        let there = self.there.iter().map(|((series, ms), value)| (*series, *ms, *value));
        let mut all: Vec<_> = self.pruned.iter().copied().chain(there).collect();
        // Of two at one time the one that was there longest comes first.
        all.sort_by_key(|(series, ms, _)| (*series, *ms));
        let mut builders: BTreeMap<SeriesKey, WindowBuilder> = BTreeMap::new();
        for (series, ms, value) in all {
            if ranges.iter().any(|(start, end)| (*start..*end).contains(&ms)) {
                let key = SeriesKey::new(format!("web-{series}"), "cpu");
                let builder = builders.entry(key).or_insert_with(|| WindowBuilder::new(width_ms));
                builder.push(ms, value);
            }
        }
        let of = |(series, builder): (SeriesKey, WindowBuilder)| SeriesWindows {
            series,
            windows: builder.finish(),
        };
        builders.into_iter().map(of).collect()
    }
}

/// Compares what is answered over `range` with the oracle, and returns what was used.
///
/// The values of these tests are whole numbers: their sums are exact.
async fn check(store: &Rolled, oracle: &Oracle, range: TimeRange, width_ms: i64) -> Vec<Stretch> {
    let width = Duration::from_millis(width_ms.unsigned_abs());
    let any = SeriesFilter::any();
    let found = store.rolled_windows(&any, range, width).await.unwrap();
    let mut at_ms = range.start_ms();
    let mut answered = Vec::new();
    for Stretch { range, source } in &found.stretches {
        assert_eq!(range.start_ms(), at_ms, "{:?}", found.stretches);
        at_ms = range.end_ms();
        if *source != WindowSource::Gone {
            answered.push((range.start_ms(), range.end_ms()));
        }
    }
    assert_eq!(at_ms, range.end_ms(), "{:?}", found.stretches);
    let expected = oracle.windows(&answered, width_ms);
    assert_eq!(found.series, expected, "{range:?} by {width_ms} ms: {:?}", found.stretches);
    // One series is read another way than several.
    let one = SeriesFilter::exact("web-0", "cpu").unwrap();
    let of_one = store.rolled_windows(&one, range, width).await.unwrap();
    let expected: Vec<_> =
        expected.into_iter().filter(|found| one.matches_key(&found.series)).collect();
    assert_eq!((of_one.series, &of_one.stretches), (expected, &found.stretches));
    found.stretches
}

/// Checks everything, which can be answered by windows of every tier's width.
async fn check_all(store: &Rolled, oracle: &Oracle) {
    for width_s in [2, 4, 10, 60, 120, 86_400] {
        let stretches = check(store, oracle, TimeRange::all(), width_s * 1000).await;
        let gone = stretches.iter().any(|stretch| stretch.source == WindowSource::Gone);
        assert!(!gone, "{stretches:?}");
    }
}

fn range_ms(start_ms: i64, end_ms: i64) -> TimeRange {
    TimeRange::new(from_ms(start_ms), from_ms(end_ms)).unwrap()
}

/// A sample each second of each of two series, up to `end_ms`.
fn points(end_ms: i64) -> Vec<Point> {
    (0..end_ms)
        .step_by(1000)
        .flat_map(|ms| [(0, ms, (ms / 1000) as f64), (1, ms + 7, 1.0)])
        .collect()
}

#[tokio::test]
async fn windows_come_from_rollups_where_they_can() {
    let place = Place::new(10 * MINUTE_MS);
    let (store, mut oracle) = (place.open().await, Oracle::default());
    store.write_batch(&batch(&points(10 * MINUTE_MS))).await.unwrap();
    oracle.write(&points(10 * MINUTE_MS));
    let sources = |stretches: Vec<Stretch>| {
        let one = |stretch: &Stretch| (stretch.range.start_ms(), stretch.source);
        stretches.iter().map(one).collect::<Vec<_>>()
    };
    let rollups = |width_s| WindowSource::Rollups(Duration::from_secs(width_s));
    let asked = range_ms(1000, 10 * MINUTE_MS);
    assert_eq!(
        sources(check(&store, &oracle, asked, MINUTE_MS).await),
        [(1000, WindowSource::Samples)]
    );
    let report = store.refresh().await.unwrap();
    assert_eq!(report.rollups_written, 2 * (298 + 59 + 9));
    assert_eq!(store.refresh().await.unwrap(), RefreshReport::default());
    // Samples up to a bound, then wider and wider rollups, then narrower ones, then what is new.
    assert_eq!(
        sources(check(&store, &oracle, asked, MINUTE_MS).await),
        [
            (1000, WindowSource::Samples),
            (2000, rollups(2)),
            (10_000, rollups(10)),
            (60_000, rollups(60)),
            (540_000, rollups(10)),
            (590_000, rollups(2)),
            (596_000, WindowSource::Samples),
        ]
    );
    // Ten seconds do not fit into fifteen.
    assert_eq!(
        sources(check(&store, &oracle, asked, 15_000).await),
        [(1000, WindowSource::Samples)]
    );
    assert_eq!(store.prune_before(from_ms(2 * MINUTE_MS)).await.unwrap(), 2 * 120);
    oracle.prune(2 * MINUTE_MS);
    check_all(&store, &oracle).await;
    assert_eq!(
        sources(check(&store, &oracle, asked, 15_000).await),
        [(1000, WindowSource::Gone), (2 * MINUTE_MS, WindowSource::Samples)]
    );
    let removed = range_ms(1000, 5000);
    assert_eq!(
        sources(check(&store, &oracle, removed, 2000).await),
        [(1000, WindowSource::Gone), (2000, rollups(2)), (4000, WindowSource::Gone)]
    );
}

#[tokio::test]
async fn late_and_replaced_samples_reopen_their_windows() {
    let place = Place::new(10 * MINUTE_MS);
    let (store, mut oracle) = (place.open().await, Oracle::default());
    let mut write = async |points: &[Point]| {
        store.write_batch(&batch(points)).await.unwrap();
        oracle.write(points);
        oracle.clone()
    };
    write(&points(10 * MINUTE_MS)).await;
    store.refresh().await.unwrap();
    // One is new, one replaces another and is less than all.
    let oracle = write(&[(0, 61_500, 1000.0), (1, 7, -5.0), (2, 9 * MINUTE_MS, 1.0)]).await;
    check_all(&store, &oracle).await;
    let report = store.refresh().await.unwrap();
    // Of three windows, in three tiers, and not in the widest for the last.
    assert_eq!(report.rollups_written, 3 + 3 + 2, "{report:?}");
    check_all(&store, &oracle).await;
    let minute = Duration::from_secs(60);
    let range = range_ms(0, 9 * MINUTE_MS);
    let found = store.rolled_windows(&SeriesFilter::any(), range, minute).await.unwrap();
    assert_eq!(found.stretches.len(), 1);
}

#[tokio::test]
async fn what_comes_after_a_prune_is_added() {
    let place = Place::new(10 * MINUTE_MS);
    let (store, mut oracle) = (place.open().await, Oracle::default());
    let step = 2 * MINUTE_MS + 3500;
    for (round, cutoff_ms) in (0..).zip([0, step, 2 * step, step, 3 * step, 4 * step]) {
        // All seconds at first, then some of them, a little later each time.
        let late = points(10 * MINUTE_MS).into_iter().map(|(s, ms, value)| (s, ms + round, value));
        let late: Vec<_> = late.filter(|(_, ms, _)| ms / 1000 % (7 * round + 1) == 0).collect();
        store.write_batch(&batch(&late)).await.unwrap();
        oracle.write(&late);
        check_all(&store, &oracle).await;
        assert_eq!(store.prune_before(from_ms(cutoff_ms)).await.unwrap(), oracle.prune(cutoff_ms));
        check_all(&store, &oracle).await;
        let there = store.stats().await.unwrap().total_metrics;
        assert_eq!(there, oracle.there.len() as u64);
    }
}

#[tokio::test]
async fn what_was_written_by_another_way_is_in_no_rollup_until_it_is_looked_for() {
    let place = Place::new(10 * MINUTE_MS);
    let (store, mut oracle) = (place.open().await, Oracle::default());
    store.write_batch(&batch(&points(10 * MINUTE_MS))).await.unwrap();
    oracle.write(&points(10 * MINUTE_MS));
    store.refresh().await.unwrap();
    let late = [(0, 5, 1.0), (0, 3 * MINUTE_MS + 5, 1.0)];
    place.raw.write_batch(&batch(&late)).await.unwrap();
    oracle.write(&late);
    store.refresh().await.unwrap();
    // A prune looks at every sample that it removes.
    store.prune_before(from_ms(MINUTE_MS)).await.unwrap();
    oracle.prune(MINUTE_MS);
    check(&store, &oracle, range_ms(0, 2 * MINUTE_MS), MINUTE_MS).await;
    assert_eq!(store.rebuild(TimeRange::all()).await.unwrap().rollups_written, 3);
    check_all(&store, &oracle).await;
    // What is pruned by another way keeps its rollups, also where samples come late.
    place.raw.prune_before(from_ms(4 * MINUTE_MS)).await.unwrap();
    store.write_batch(&batch(&[(0, 3 * MINUTE_MS, 0.0)])).await.unwrap();
    store.refresh().await.unwrap();
    check(&store, &oracle, range_ms(MINUTE_MS, 9 * MINUTE_MS), MINUTE_MS).await;
}

#[tokio::test]
async fn percentiles_are_of_samples_or_refused() {
    let place = Place::new(10 * MINUTE_MS);
    let store = place.open().await;
    store.write_batch(&batch(&points(10 * MINUTE_MS))).await.unwrap();
    store.refresh().await.unwrap();
    let (any, minute) = (SeriesFilter::any(), Duration::from_secs(60));
    let found = store.percentiles(&any, TimeRange::all(), minute, 0.99).await.unwrap();
    assert_eq!((found.len(), found[0].windows.len()), (2, 10));
    assert_eq!((found[0].windows[1].value, found[0].windows[1].count), (119.0, 60));
    let one = store.percentiles(&any, range_ms(0, 4000), minute, 0.5).await.unwrap();
    assert_eq!(one[0].windows[0].value, 1.0);
    store.prune_before(from_ms(90_000)).await.unwrap();
    let error = store.percentiles(&any, TimeRange::all(), minute, 0.99).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.context("samples_from"), Some("1970-01-01T00:01:30+00:00"));
    let later = range_ms(90_000, 10 * MINUTE_MS);
    assert_eq!(store.percentiles(&any, later, minute, 1.0).await.unwrap()[0].windows.len(), 9);
    for share in [0.0, -0.5, 1.1, f64::NAN] {
        let error = store.percentiles(&any, later, minute, share).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}

#[tokio::test]
async fn tiers_that_do_not_fit_are_refused() {
    let memory = || Arc::new(InMemory::new());
    for widths_ms in [&[1500][..], &[500], &[0], &[5000, 2000], &[2000, 2000]] {
        let tier = |ms: &u64| RollupTier::new(Duration::from_millis(*ms), memory());
        let opened = Rolled::open(memory(), widths_ms.iter().map(tier).collect(), memory()).await;
        assert_eq!(opened.unwrap_err().kind(), ErrorKind::Config, "{widths_ms:?}");
    }
}

/// A tier that is added later knows what is new, and does not pretend to know more.
#[tokio::test]
async fn a_new_tier_begins_where_samples_begin() {
    let place = Place::new(10 * MINUTE_MS);
    let open = async |count: usize| {
        let tiers = WIDTHS_S.iter().zip(&place.tiers).take(count);
        let tier = |(width, store): (&u64, &Arc<InMemory>)| {
            let store: Arc<dyn StorageBackend> = Arc::<InMemory>::clone(store);
            RollupTier::new(Duration::from_secs(*width), store)
        };
        let (raw, control) = (Arc::clone(&place.raw), Arc::clone(&place.control));
        Rolled::open_with(raw, tiers.map(tier).collect(), control, place.options()).await.unwrap()
    };
    let (store, mut oracle) = (open(2).await, Oracle::default());
    store.write_batch(&batch(&points(10 * MINUTE_MS))).await.unwrap();
    oracle.write(&points(10 * MINUTE_MS));
    store.prune_before(from_ms(90_000)).await.unwrap();
    oracle.prune(90_000);
    let kept = || Rolled::kept_widths(Arc::<InMemory>::clone(&place.control));
    assert_eq!(kept().await.unwrap().unwrap(), [2, 10].map(Duration::from_secs));
    let store = open(3).await;
    store.refresh().await.unwrap();
    assert_eq!(kept().await.unwrap().unwrap(), WIDTHS_S.map(Duration::from_secs));
    let new = Rolled::kept_widths(Arc::new(InMemory::new()));
    assert_eq!(new.await.unwrap(), None);
    let stretches = check(&store, &oracle, range_ms(0, 9 * MINUTE_MS), MINUTE_MS).await;
    let widths: Vec<_> = stretches.iter().map(|stretch| stretch.source).collect();
    let rollups = |width_s| WindowSource::Rollups(Duration::from_secs(width_s));
    assert_eq!(widths, [rollups(10), rollups(60)]);
}

/// Each step keeps late writers out for as long as it settles.
#[tokio::test(start_paused = true)]
async fn a_prune_behind_narrow_rollups_takes_long_steps() {
    let place = Place::new(5 * MINUTE_MS);
    let memory = |store: &Arc<InMemory>| Arc::<InMemory>::clone(store);
    let tier = RollupTier::new(Duration::from_secs(2), memory(&place.tiers[0]));
    let options = place.options().with_settle(Duration::from_secs(1));
    let options = options.with_lease(Duration::from_secs(30));
    let (raw, control) = (memory(&place.raw), memory(&place.control));
    let store = Rolled::open_with(raw, vec![tier], control, options).await.unwrap();
    store.write_batch(&batch(&points(5 * MINUTE_MS))).await.unwrap();
    let before = Instant::now();
    let removed = store.prune_before(from_ms(4 * MINUTE_MS)).await.unwrap();
    assert!(removed > 0 && before.elapsed() < Duration::from_secs(20), "{:?}", before.elapsed());
}
