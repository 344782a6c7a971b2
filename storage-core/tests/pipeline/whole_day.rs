//! A day of the whole pipeline in moments: an actor with a spool over rollups over tiers, archiving and
//! retention in the background, late samples, a restart, and every store failing now and then.
//! What was accepted is in the rollups of its hour, once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use storage_core::compose::{Tiered, TieredOptions};
use storage_core::layers::{FaultPlan, Faulty, Operation};
use storage_core::metrics::time::from_ms;
use storage_core::pipeline::{
    ArchivePolicy, ArchiveTask, RetentionPolicy, RetentionTask, Rolled, RollupOptions, RollupTier,
    Source, Spool, SpoolLimits, StorageHandle, WindowSource,
};
use storage_core::{InMemory, MetricRecord, SeriesFilter, SeriesKey, TimeRange};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::support::*;

/// 2026-01-01.
const START_MS: i64 = 1_767_225_600_000;
const STEPS: i64 = 24 * 360;
const STEP: Duration = Duration::from_secs(10);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const SERIES: i64 = 4;

type Flaky = Arc<Faulty<Faulty<InMemory>>>;

/// A store that fails now and then. Its inner control switches it off altogether.
fn flaky(seed: u64, plan: impl FnOnce(FaultPlan) -> FaultPlan) -> Flaky {
    let off = Faulty::new(InMemory::new(), FaultPlan::new(1).with_refused(1.0));
    off.control().off();
    let plan = plan(FaultPlan::new(seed).with_refused(0.002).with_lost_request(0.001));
    let store = Faulty::new(off, plan.with_lost_reply(0.001).with_slow(0.01, seconds(3)));
    store.control().off();
    Arc::new(store)
}

/// All stores of the pipeline.
struct Place {
    hot: Flaky,
    spool: Flaky,
    /// The cold tier, rollups of five minutes and an hour, and what two of them have to remember.
    others: [Flaky; 5],
}

impl Place {
    fn new() -> Self {
        // Calls of the actor may be given up; what the others call would be waited for.
        let hangs = |plan: FaultPlan| plan.with_hang_before(0.01).only(&[Operation::WriteBatch]);
        Self {
            hot: flaky(11, hangs),
            spool: flaky(12, |plan| plan.with_coins(0.97, 0.97)),
            others: [13, 14, 15, 16, 17].map(|seed| flaky(seed, |plan| plan)),
        }
    }

    fn fail(&self, is_on: bool) {
        for store in self.others.iter().chain([&self.hot, &self.spool]) {
            if is_on { store.control().on() } else { store.control().off() }
        }
    }

    /// The tiers, and rollups over them. Their clock is that of the test.
    async fn open(&self) -> (Arc<Tiered>, Arc<Rolled>) {
        let started = Instant::now();
        let clock = move || from_ms(START_MS + started.elapsed().as_millis() as i64);
        let [cold, five_minutes, hour, tiers, rollups] = self.others.each_ref().map(as_dyn);
        let options = TieredOptions::default().with_clock(clock);
        let tiered = Tiered::open_with(as_dyn(&self.hot), cold, tiers, options).await.unwrap();
        let tiered = Arc::new(tiered);
        let options = RollupOptions::default().with_clock(clock);
        let options = options.with_archived_first(Arc::clone(&tiered));
        let widths = vec![RollupTier::new(5 * MINUTE, five_minutes), RollupTier::new(HOUR, hour)];
        let rolled = Rolled::open_with(as_dyn(&tiered), widths, rollups, options).await.unwrap();
        (tiered, Arc::new(rolled))
    }

    async fn start(&self, store: &Arc<Rolled>) -> (mpsc::Sender<Vec<MetricRecord>>, StorageHandle) {
        let spool = Spool::open(as_dyn(&self.spool), SpoolLimits::default()).await.unwrap();
        let (sender, receiver) = mpsc::channel(16);
        let actor = actor_on(store).source(Source::mpsc("load", receiver)).spool(spool);
        (sender, actor.start().unwrap())
    }
}

/// What there is of one window.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Window {
    count: u64,
    sum: f64,
}

/// What was sent.
#[derive(Default)]
struct Sent {
    records: u64,
    hours: BTreeMap<(SeriesKey, i64), Window>,
}

impl Sent {
    fn note(&mut self, batch: &[MetricRecord]) {
        for record in batch {
            let key = SeriesKey::new(&record.server_id, &record.metric_type);
            let hour = record.timestamp.timestamp_millis().div_euclid(3_600_000);
            let window = self.hours.entry((key, hour)).or_default();
            window.count += 1;
            window.sum += record.value;
            self.records += 1;
        }
    }
}

/// A record of each series, and now and then one that comes up to a day late; each has a time of its own.
fn step(number: i64, random: &mut fastrand::Rng) -> Vec<MetricRecord> {
    let of = |series: i64, ms: i64, value: i64| {
        MetricRecord::new("web", from_ms(START_MS + ms), format!("m{series}"), value as f64)
    };
    let now_ms = number * STEP.as_millis() as i64;
    let mut batch: Vec<_> = (0..SERIES).map(|series| of(series, now_ms, number)).collect();
    if random.u32(0..20) == 0 {
        let steps = random.i64(0..22 * 360).min(number);
        batch.push(of(
            random.i64(0..SERIES),
            now_ms - steps * STEP.as_millis() as i64 + 1 + number,
            number,
        ));
    }
    batch
}

/// The hours of the day out of rollups, of which none is gone.
async fn hours_of(store: &Rolled) -> BTreeMap<(SeriesKey, i64), Window> {
    let end = from_ms(START_MS + 25 * 3_600_000);
    let range = TimeRange::new(from_ms(START_MS), end).unwrap();
    let found = store.rolled_windows(&SeriesFilter::any(), range, HOUR).await.unwrap();
    assert!(found.stretches.iter().all(|stretch| stretch.source != WindowSource::Gone));
    let mut hours = BTreeMap::new();
    for one in &found.series {
        for window in &one.windows {
            let hour = window.start.timestamp_millis().div_euclid(3_600_000);
            let (count, sum) = (window.aggregation.count, window.aggregation.sum.unwrap());
            hours.insert((one.series.clone(), hour), Window { count, sum });
        }
    }
    hours
}

#[tokio::test(start_paused = true)]
async fn every_sample_of_a_day_is_in_the_rollups_of_its_hour() {
    let place = Place::new();
    let (tiered, rolled) = place.open().await;
    let policy = RetentionPolicy::default().keep_samples(14 * HOUR).unwrap();
    let retention = RetentionTask::start(&rolled, policy.clone(), MINUTE, 10 * MINUTE);
    let archive = ArchivePolicy::after(2 * HOUR).with_window(HOUR);
    let archiving = ArchiveTask::start(&tiered, archive, 10 * MINUTE);
    let (mut sender, mut actor) = place.start(&rolled).await;
    place.fail(true);
    let (mut random, mut sent) = (fastrand::Rng::with_seed(1), Sent::default());
    let (mut outage_left, mut outages) = (0, 0);
    for number in 0..STEPS {
        let batch = step(number, &mut random);
        sent.note(&batch);
        sender.send(batch).await.unwrap();
        sleep(STEP).await;
        // Some six outages a day, of up to two hours.
        if outage_left == 0 && random.u32(0..1440) == 0 {
            outage_left = random.u32(1..720);
            outages += 1;
            place.hot.inner().control().on();
        } else if outage_left > 0 {
            outage_left -= 1;
            if outage_left == 0 {
                place.hot.inner().control().off();
            }
        }
        if number == STEPS / 2 {
            drop(sender);
            let report = actor.shutdown(MINUTE).await;
            assert!(report.is_complete(), "{report:?}");
            drop(actor);
            // Whoever starts it waits until the spool can be opened.
            place.spool.control().off();
            (sender, actor) = place.start(&rolled).await;
            place.spool.control().on();
        }
    }
    place.hot.inner().control().off();
    place.fail(false);
    drop(sender);
    actor.drained().await;
    end(&actor).await;
    let (retained, archived) = (retention.stop().await, archiving.stop().await);
    assert!(outages > 2 && retained.failures > 10 && archived.failures > 0, "{archived:?}");
    assert!(archived.samples > 10_000, "{archived:?}");
    assert!(retained.samples_removed > 1000, "{retained:?}");

    rolled.refresh().await.unwrap();
    rolled.retain(&policy).await.unwrap();
    let hours = hours_of(&rolled).await;
    assert_eq!(hours, sent.hours);
    let counted: u64 = hours.values().map(|window| window.count).sum();
    assert_eq!(counted, sent.records);
}
