//! `storage collect`: this host into the store, tick by tick.
//!
//! Measuring never waits for storing: what is measured goes into a queue, and one write at a time
//! is under way beside the ticks.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use chrono::{DateTime, Utc};
use indicatif::ProgressBar;
use storage::metrics::record::validate_names;
use storage::{MetricRecord, StorageBackend};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::args::Collect;
use crate::host::{self, Host};
use crate::output::{Cell, Output, progress, text, warn};

/// How many samples wait at most for a store that does not take them.
const WAITING_MAX: usize = 100_000;

/// How often, and how far apart, what is left at the end is tried.
const LAST_TRIES: u32 = 3;
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Finds out what is wrong with `args` before a store is opened, and so created.
pub(super) fn check(args: &Collect) -> Result<()> {
    if args.duration.is_some_and(|duration| duration < args.interval) {
        bail!("the duration is shorter than the interval; nothing would be measured");
    }
    Ok(validate_names(&server_of(args)?, "cpu_usage_percent")?)
}

fn server_of(args: &Collect) -> Result<String> {
    args.server.clone().map_or_else(host::name, Ok)
}

pub(super) async fn run(
    store: &Arc<dyn StorageBackend>,
    args: &Collect,
    output: &mut Output,
    shown_url: &str,
) -> Result<ExitCode> {
    let server = server_of(args)?;
    let mut stop = stop_signals()?;
    let mut host = tokio::task::spawn_blocking(Host::new).await??;
    output.note(&format!(
        "collecting {server} into {shown_url} every {}, Ctrl-C ends",
        humantime::format_duration(args.interval)
    ));
    let mut ticks = Ticks::new(args.interval, args.duration, Utc::now());
    let progress = match ticks.total() {
        Some(total) => progress::of_ticks(output, total),
        None => progress::of_events(output),
    };
    let mut queue = Queue::new(Arc::clone(store), progress.clone());
    let mut tick_count = 0;
    while let Some((timestamp, pause)) = ticks.next(Utc::now()) {
        let tick = tokio::time::sleep(pause);
        tokio::pin!(tick);
        let go_on = loop {
            tokio::select! {
                () = &mut tick => break true,
                _ = stop.recv() => break false,
                () = queue.progress() => {}
            }
        };
        if !go_on {
            break;
        }
        let mut reading = host.read(&server, timestamp);
        tick_count += 1;
        queue.push(std::mem::take(&mut reading.records));
        progress.set_position(tick_count);
        progress.set_message(format!(
            "{} stored{}  cpu {:.1}%  memory {} ({:.0}%)",
            text::counted(queue.stored, "sample"),
            queue.trouble(),
            reading.cpu_percent,
            text::bytes(reading.memory_used_bytes),
            reading.memory_percent,
        ));
    }
    let finished = tokio::select! {
        () = queue.finish() => true,
        // Who asks twice does not want to wait.
        _ = stop.recv() => false,
    };
    progress.finish_and_clear();
    if finished {
        store.flush().await?;
    }
    summarise(output, &server, tick_count, ticks.missed, &queue)
}

fn summarise(
    output: &mut Output,
    server: &str,
    ticks: u64,
    missed: u64,
    queue: &Queue,
) -> Result<ExitCode> {
    let lost = queue.lost + queue.waiting.len() as u64 + queue.under_way_len();
    output.record(vec![
        ("server", Cell::text(server)),
        ("ticks", Cell::Count(ticks)),
        ("ticks_missed", Cell::Count(missed)),
        ("samples_stored", Cell::Count(queue.stored)),
        ("samples_lost", Cell::Count(lost)),
        ("writes_failed", Cell::Count(queue.failed)),
    ])?;
    if lost > 0 {
        bail!("{} could not be stored; see that the store works", text::counted(lost, "sample"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The times at which samples are taken: multiples of the interval since 1970.
#[derive(Debug)]
pub(super) struct Ticks {
    interval_ms: i64,
    start_ms: i64,
    last_ms: i64,
    end_ms: Option<i64>,
    /// How many were passed over because the machine or the terminal was busy or asleep.
    missed: u64,
}

impl Ticks {
    pub(super) fn new(interval: Duration, duration: Option<Duration>, now: DateTime<Utc>) -> Self {
        let ms = |length: Duration| i64::try_from(length.as_millis()).unwrap_or(i64::MAX);
        let (interval_ms, start_ms) = (ms(interval), now.timestamp_millis());
        let end_ms = duration.map(|duration| start_ms.saturating_add(ms(duration)));
        let last_ms = start_ms - start_ms.rem_euclid(interval_ms);
        Self { interval_ms, start_ms, last_ms, end_ms, missed: 0 }
    }

    /// Returns how many ticks there will be, if they end.
    fn total(&self) -> Option<u64> {
        let ticks =
            self.end_ms?.div_euclid(self.interval_ms) - self.start_ms.div_euclid(self.interval_ms);
        u64::try_from(ticks).ok()
    }

    /// Returns the next tick and how long it is until then.
    pub(super) fn next(&mut self, now: DateTime<Utc>) -> Option<(DateTime<Utc>, Duration)> {
        let now_ms = now.timestamp_millis();
        let tick_ms = now_ms - now_ms.rem_euclid(self.interval_ms) + self.interval_ms;
        // A clock that was put back makes the same tick come again, or an earlier one.
        let passed = (tick_ms - self.last_ms) / self.interval_ms - 1;
        self.missed += u64::try_from(passed).unwrap_or_default();
        self.last_ms = tick_ms;
        if self.end_ms.is_some_and(|end_ms| tick_ms > end_ms) {
            return None;
        }
        let tick = DateTime::from_timestamp_millis(tick_ms)?;
        Some((tick, (tick - now).to_std().unwrap_or_default()))
    }
}

type Written = (Vec<MetricRecord>, storage::Result<()>);

/// Samples on their way into the store.
struct Queue {
    store: Arc<dyn StorageBackend>,
    progress: ProgressBar,
    waiting: Vec<MetricRecord>,
    under_way: Option<(usize, JoinHandle<Written>)>,
    stored: u64,
    lost: u64,
    failed: u64,
    last_trouble: Option<String>,
}

impl Queue {
    fn new(store: Arc<dyn StorageBackend>, progress: ProgressBar) -> Self {
        Self {
            store,
            progress,
            waiting: Vec::new(),
            under_way: None,
            stored: 0,
            lost: 0,
            failed: 0,
            last_trouble: None,
        }
    }

    /// Adds samples, and begins to write all that wait unless a write is under way.
    fn push(&mut self, records: Vec<MetricRecord>) {
        self.waiting.extend(records);
        self.drop_oldest();
        self.begin();
    }

    fn begin(&mut self) {
        if self.under_way.is_some() || self.waiting.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.waiting);
        let store = Arc::clone(&self.store);
        let len = batch.len();
        let write = async move {
            let result = store.write_batch(&batch).await;
            (batch, result)
        };
        self.under_way = Some((len, tokio::spawn(write)));
    }

    /// Waits for the write that is under way, for ever if there is none.
    async fn progress(&mut self) {
        let Some((_, write)) = &mut self.under_way else {
            return std::future::pending().await;
        };
        let written = write.await;
        let len = self.under_way.take().map_or(0, |(len, _)| len);
        match written {
            Ok((batch, Ok(()))) => {
                self.stored += batch.len() as u64;
                if self.last_trouble.take().is_some() {
                    self.warn("the store takes samples again");
                }
            }
            // Whether it was applied or not: the same samples again do no harm.
            Ok((mut batch, Err(error))) => {
                self.failed += 1;
                batch.append(&mut self.waiting);
                self.waiting = batch;
                self.drop_oldest();
                self.note_trouble(&error);
            }
            Err(panic) => {
                self.lost += len as u64;
                self.warn(&format!("a write broke off: {panic}"));
            }
        }
    }

    /// Writes what is left, and gives up after a few tries.
    async fn finish(&mut self) {
        for left in (0..LAST_TRIES).rev() {
            while self.under_way.is_some() {
                self.progress().await;
            }
            let failed_before = self.failed;
            self.begin();
            if self.under_way.is_some() {
                self.progress().await;
            }
            if self.waiting.is_empty() {
                return;
            }
            if left > 0 && self.failed > failed_before {
                tokio::time::sleep(LAST_PAUSE).await;
            }
        }
    }

    fn drop_oldest(&mut self) {
        let excess = self.waiting.len().saturating_sub(WAITING_MAX);
        self.waiting.drain(..excess);
        self.lost += excess as u64;
    }

    fn under_way_len(&self) -> u64 {
        self.under_way.as_ref().map_or(0, |(len, _)| *len as u64)
    }

    /// Reports an error once, not every second again.
    fn note_trouble(&mut self, error: &storage::Error) {
        let trouble = format!("{error:#}");
        if self.last_trouble.as_deref() != Some(&trouble) {
            self.warn(&format!("{trouble}; the samples are kept and tried again"));
            self.last_trouble = Some(trouble);
        }
    }

    fn warn(&self, text: &str) {
        self.progress.suspend(|| warn(text));
    }

    /// Returns what the progress says about samples that wait or are lost.
    fn trouble(&self) -> String {
        let mut trouble = String::new();
        if self.last_trouble.is_some() {
            trouble.push_str(&format!(", {} waiting", text::count(self.waiting.len() as u64)));
        }
        if self.lost > 0 {
            trouble.push_str(&format!(", {} lost", text::count(self.lost)));
        }
        trouble
    }
}

/// Returns what yields a value whenever the program is asked to end.
pub(super) fn stop_signals() -> Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::channel(2);
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while terminate.recv().await.is_some() && sender.send(()).await.is_ok() {}
        });
    }
    tokio::spawn(async move {
        while tokio::signal::ctrl_c().await.is_ok() && sender.send(()).await.is_ok() {}
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;
    use storage::{Error, ErrorKind, InMemory, MetricAggregation, StorageStats, TimeRange};

    use super::*;

    /// Refuses the first writes.
    struct Shy {
        inner: InMemory,
        refusals_left: AtomicU32,
    }

    #[async_trait]
    impl StorageBackend for Shy {
        async fn write_batch(&self, records: &[MetricRecord]) -> storage::Result<()> {
            let count_down = |left: u32| left.checked_sub(1);
            let order = Ordering::SeqCst;
            match self.refusals_left.fetch_update(order, order, count_down) {
                Ok(_) => Err(Error::new(ErrorKind::Busy, "not now")),
                Err(_) => self.inner.write_batch(records).await,
            }
        }
        async fn query_range(
            &self,
            server_id: &str,
            metric_type: &str,
            range: TimeRange,
        ) -> storage::Result<Vec<MetricRecord>> {
            self.inner.query_range(server_id, metric_type, range).await
        }
        async fn aggregate(
            &self,
            server_id: &str,
            metric_type: &str,
            range: TimeRange,
        ) -> storage::Result<MetricAggregation> {
            self.inner.aggregate(server_id, metric_type, range).await
        }
        async fn prune_before(&self, cutoff: DateTime<Utc>) -> storage::Result<u64> {
            self.inner.prune_before(cutoff).await
        }
        async fn stats(&self) -> storage::Result<StorageStats> {
            self.inner.stats().await
        }
    }

    fn queue(refusals: u32) -> (Arc<Shy>, Queue) {
        let inner = InMemory::new();
        let store = Arc::new(Shy { inner, refusals_left: AtomicU32::new(refusals) });
        let shared: Arc<dyn StorageBackend> = Arc::<Shy>::clone(&store);
        (store, Queue::new(shared, ProgressBar::hidden()))
    }

    fn record(ms: i64) -> MetricRecord {
        MetricRecord::new("s", at(ms), "m", 1.0)
    }

    fn at(ms: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(ms).unwrap()
    }

    #[tokio::test]
    async fn refused_samples_are_written_with_the_next_ones() {
        let (store, mut queue) = queue(2);
        for ms in 0..4 {
            queue.push(vec![record(ms)]);
            queue.progress().await;
        }
        queue.finish().await;
        assert_eq!((queue.stored, queue.failed, queue.lost), (4, 2, 0));
        assert_eq!(store.stats().await.unwrap().total_metrics, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_at_the_end_is_tried_a_few_times_and_then_counted() {
        let (_, mut queue) = queue(2);
        queue.push(vec![record(0)]);
        queue.finish().await;
        assert_eq!((queue.stored, queue.waiting.len()), (1, 0));
        let (_, mut queue) = super::tests::queue(u32::MAX);
        queue.push(vec![record(0)]);
        queue.finish().await;
        assert_eq!((queue.stored, queue.waiting.len()), (0, 1));
    }

    #[tokio::test]
    async fn the_oldest_are_given_up_when_too_many_wait() {
        let (_, mut queue) = queue(1);
        queue.push((0..WAITING_MAX as i64 + 5).map(record).collect());
        assert_eq!(queue.lost, 5);
        queue.progress().await;
        queue.push(vec![record(-1)]);
        assert_eq!(queue.lost, 6);
        queue.finish().await;
        assert_eq!(queue.stored, WAITING_MAX as u64);
    }

    #[test]
    fn ticks_do_not_drift_and_count_what_they_pass_over() {
        let seconds = Duration::from_secs;
        let mut ticks = Ticks::new(seconds(1), Some(seconds(5)), at(10_300));
        assert_eq!(ticks.total(), Some(5));
        assert_eq!(ticks.next(at(10_300)), Some((at(11_000), Duration::from_millis(700))));
        assert_eq!(ticks.next(at(11_020)), Some((at(12_000), Duration::from_millis(980))));
        assert_eq!(ticks.next(at(14_999)), Some((at(15_000), Duration::from_millis(1))));
        assert_eq!(ticks.missed, 2);
        assert_eq!(ticks.next(at(15_001)), None);
        assert_eq!(ticks.missed, 2);
    }

    #[test]
    fn a_clock_that_is_put_back_misses_nothing() {
        let mut ticks = Ticks::new(Duration::from_secs(1), None, at(10_300));
        ticks.next(at(10_300));
        ticks.next(at(5_000));
        assert_eq!(ticks.next(at(6_500)).map(|(tick, _)| tick), Some(at(7_000)));
        assert_eq!(ticks.missed, 0);
    }
}
