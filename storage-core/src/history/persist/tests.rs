//! Everything that a source gives is stored or counted, whatever the store does meanwhile.

use std::collections::VecDeque;
use std::sync::Mutex;

use async_trait::async_trait;
use futures_util::stream;
use serde_json::json;

use super::*;
use crate::history::RecordInfo;
use crate::{InMemory, InMemoryHistory};

/// What a store does with one attempt.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// It fails, and nothing is stored.
    Refused,
    /// It is stored, and the answer is lost.
    StoredInSilence,
    /// It is not stored, and the answer is lost.
    LostInSilence,
    /// It stores nothing ever again.
    Hangs,
}

/// A history whose first attempts have the fates given; the others succeed.
struct Shaky {
    inner: InMemoryHistory,
    fates: Mutex<VecDeque<Fate>>,
}

impl Shaky {
    fn of(fates: &[Fate]) -> (Arc<dyn RecordHistory>, InMemoryHistory) {
        let inner = InMemory::new().history();
        let fates = Mutex::new(fates.iter().copied().collect());
        (Arc::new(Self { inner: inner.clone(), fates }), inner)
    }
}

#[async_trait]
impl RecordHistory for Shaky {
    async fn store_batch(&self, values: &[StoredValue]) -> Result<()> {
        if values.iter().any(|value| value.value == json!("forbidden")) {
            return Err(Error::invalid("not here"));
        }
        let fate = self.fates.lock().unwrap().pop_front();
        let lost =
            || Err(Error::new(ErrorKind::Unavailable, "gone").with_outcome(Outcome::Unknown));
        match fate {
            None => self.inner.store_batch(values).await,
            Some(Fate::Refused) => Err(Error::new(ErrorKind::StorageFull, "full")),
            Some(Fate::StoredInSilence) => {
                self.inner.store_batch(values).await.and_then(|()| lost())
            }
            Some(Fate::LostInSilence) => lost(),
            Some(Fate::Hangs) => std::future::pending().await,
        }
    }

    async fn query(&self, query: &HistoryQuery) -> Result<Vec<StoredValue>> {
        self.inner.query(query).await
    }

    async fn records(&self, records: &Matcher) -> Result<Vec<RecordInfo>> {
        self.inner.records(records).await
    }

    async fn cleanup(&self, older_than: DateTime<Utc>) -> Result<u64> {
        self.inner.cleanup(older_than).await
    }
}

async fn stored(history: &InMemoryHistory) -> Vec<serde_json::Value> {
    let all = history.query(&HistoryQuery::parse("*").unwrap()).await.unwrap();
    all.into_iter().map(|value| value.value).collect()
}

fn numbers(count: i32) -> Vec<serde_json::Value> {
    (0..count).map(|n| json!(n)).collect()
}

/// Every value is in one of the counts.
fn adds_up(counts: &PersistCounts) -> bool {
    counts.received == counts.stored + counts.refused + counts.unstored + counts.waiting
}

#[tokio::test]
async fn every_kind_of_source_is_stored_to_its_end() {
    let (history, inner) = Shaky::of(&[]);
    let tasks = [
        {
            let (sender, receiver) = tokio::sync::broadcast::channel(100);
            (0..20).for_each(|n| assert!(sender.send(n).is_ok()));
            receiver.persist("broadcast").start(Arc::clone(&history)).unwrap()
        },
        {
            let (sender, receiver) = tokio::sync::mpsc::channel(100);
            (0..20).for_each(|n| sender.try_send(n).unwrap());
            receiver.persist("bounded").start(Arc::clone(&history)).unwrap()
        },
        {
            let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
            (0..20).for_each(|n| sender.send(n).unwrap());
            receiver.persist("unbounded").start(Arc::clone(&history)).unwrap()
        },
        stream::iter(0..20).persist("stream").start(Arc::clone(&history)).unwrap(),
    ];
    for task in tasks {
        let counts = task.finished().await;
        let expected = PersistCounts { received: 20, stored: 20, ..PersistCounts::default() };
        assert_eq!(counts, expected);
    }
    assert_eq!(stored(&inner).await, [numbers(20), numbers(20), numbers(20), numbers(20)].concat());
}

#[tokio::test]
async fn a_watch_stores_what_it_saw_and_its_last_value() {
    let (history, inner) = Shaky::of(&[]);
    let (sender, mut receiver) = tokio::sync::watch::channel(0);
    receiver.mark_changed();
    let task = receiver.persist("watch").start(history).unwrap();
    while task.counts().stored == 0 {
        tokio::task::yield_now().await;
    }
    sender.send(1).unwrap();
    sender.send(2).unwrap();
    drop(sender);
    assert_eq!(task.finished().await.stored, 2);
    assert_eq!(stored(&inner).await, [json!(0), json!(2)]);
}

#[tokio::test]
async fn what_lagged_is_counted() {
    let (history, inner) = Shaky::of(&[]);
    let (sender, receiver) = tokio::sync::broadcast::channel(16);
    (0..50).for_each(|n| assert!(sender.send(n).is_ok()));
    let task = receiver.persist("a").start(history).unwrap();
    drop(sender);
    let counts = task.finished().await;
    assert_eq!((counts.lagged, counts.received, counts.stored), (34, 16, 16));
    assert_eq!(stored(&inner).await, &numbers(50)[34..]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_or_doubled_whatever_an_attempt_comes_to() {
    use Fate::{LostInSilence, Refused, StoredInSilence};
    let fates = [StoredInSilence, LostInSilence, Refused, StoredInSilence, LostInSilence];
    for from in 0..fates.len() {
        let (history, inner) = Shaky::of(&fates[from..]);
        // All at one time, so that batches share a millisecond.
        let task = stream::iter(0..50).persist("a").batch_values_max(7).clock(|| from_ms(5));
        let counts = task.start(history).unwrap().finished().await;
        assert_eq!(stored(&inner).await, numbers(50), "{:?}", &fates[from..]);
        assert_eq!((counts.stored, counts.failures), (50, (fates.len() - from) as u64));
        assert!(adds_up(&counts) && counts.last_error.is_some());
    }
}

#[tokio::test]
async fn what_cannot_be_stored_is_set_aside_alone() {
    let (history, inner) = Shaky::of(&[]);
    let values = [json!(1), json!("a\0"), json!("forbidden"), json!("x".repeat(2 << 20)), json!(2)];
    let counts = stream::iter(values).persist("a").start(history).unwrap().finished().await;
    assert_eq!((counts.received, counts.stored, counts.refused), (5, 2, 3));
    assert_eq!(stored(&inner).await, [json!(1), json!(2)]);
}

#[tokio::test(start_paused = true)]
async fn stop_takes_what_is_there_and_ends() {
    let (history, inner) = Shaky::of(&[Fate::Refused]);
    let (sender, receiver) = tokio::sync::mpsc::channel(100);
    let task = receiver.persist("a").start(history).unwrap();
    for n in 0..30 {
        sender.send(n).await.unwrap();
    }
    let counts = task.stop().await;
    assert_eq!((counts.stored, counts.unstored), (30, 0));
    assert_eq!(stored(&inner).await, numbers(30));
    assert!(sender.send(30).await.is_err(), "the receiver is gone");
}

#[tokio::test(start_paused = true)]
async fn what_stop_leaves_in_a_channel_is_counted() {
    let (history, _) = Shaky::of(&[]);
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let left = 500;
    (0..STOP_VALUES_MAX + left).for_each(|n| sender.send(n).unwrap());
    let counts = receiver.persist("a").start(history).unwrap().stop().await;
    assert_eq!((counts.stored, counts.unstored), (STOP_VALUES_MAX as u64, left as u64));
    assert!(adds_up(&counts), "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stays_away_costs_a_bounded_time_and_every_loss_is_counted() {
    let (history, _) = Shaky::of(&[Fate::Refused; 1000]);
    let task = stream::iter(0..100).persist("a").queue_values_max(10).batch_values_max(4);
    let task = task.drain_time_max(Duration::from_secs(3)).start(history).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let waiting = task.counts();
    assert!(waiting.waiting <= 15 && adds_up(&waiting), "{waiting:?}");
    let before = Instant::now();
    let counts = task.stop().await;
    assert!(before.elapsed() <= Duration::from_secs(10), "{:?}", before.elapsed());
    assert_eq!(counts.stored, 0);
    assert!(counts.unstored == counts.received && adds_up(&counts), "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn an_endless_source_can_be_stopped() {
    let (history, inner) = Shaky::of(&[]);
    let task = stream::iter(0..).persist("a").queue_values_max(64).start(history).unwrap();
    while task.counts().stored < 200 {
        tokio::task::yield_now().await;
    }
    let counts = task.stop().await;
    assert!(counts.unstored == 0 && adds_up(&counts), "{counts:?}");
    assert_eq!(stored(&inner).await, numbers(counts.stored as i32));
}

#[tokio::test]
async fn a_closed_store_ends_the_task() {
    let store = InMemory::new();
    crate::StorageBackend::close(&store).await.unwrap();
    let history: Arc<dyn RecordHistory> = Arc::new(store.history());
    let counts = stream::iter(0..5).persist("a").start(history).unwrap().finished().await;
    assert_eq!((counts.received, counts.stored, counts.unstored), (5, 0, 5));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_leaves_the_producer_alone() {
    let (history, _) = Shaky::of(&[Fate::Hangs]);
    let (sender, receiver) = tokio::sync::broadcast::channel(8);
    let task = receiver.persist("a").queue_values_max(4).start(history).unwrap();
    for n in 0..100 {
        sender.send(n).unwrap();
        tokio::task::yield_now().await;
    }
    let counts = task.counts();
    assert!(counts.waiting <= 6 && adds_up(&counts), "{counts:?}");
    drop(sender);
    let before = Instant::now();
    let counts = task.stop().await;
    assert!(before.elapsed() <= Duration::from_secs(31), "{:?}", before.elapsed());
    assert_eq!((counts.unstored, counts.waiting), (counts.received, 0));
    assert_eq!(counts.received + counts.lagged, 100, "{counts:?}");
}

#[tokio::test]
async fn times_never_decrease() {
    let (history, inner) = Shaky::of(&[]);
    let clock_ms = std::sync::atomic::AtomicI64::new(1000);
    let backwards = move || from_ms(clock_ms.fetch_sub(7, std::sync::atomic::Ordering::SeqCst));
    let task = stream::iter(0..10).persist("a").clock(backwards).start(history).unwrap();
    assert_eq!(task.finished().await.stored, 10);
    assert_eq!(stored(&inner).await, numbers(10));
}

#[tokio::test]
async fn a_bad_name_is_refused_at_the_start() {
    let (history, _) = Shaky::of(&[]);
    let error = stream::iter(0..1).persist("").start(history).unwrap_err();
    assert_eq!(error.context("field"), Some("record_name"));
}
