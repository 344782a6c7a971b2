//! Opening at once, later and never; what calls say until then; an end while it is under way.

use std::error::Error as _;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::TryStreamExt;

use super::*;
use crate::layers::testing::{fill, hour, record};
use crate::layers::{Observe, Operation};
use crate::{InMemory, Outcome};

/// Counts attempts, and answers each by its number, from 1.
fn counted<F>(answer: fn(u32) -> F) -> (Arc<AtomicU32>, impl Fn() -> F + Send + Sync + 'static)
where
    F: Future<Output = Result<InMemory>> + Send + 'static,
{
    let attempts = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&attempts);
    (attempts, move || answer(counter.fetch_add(1, Ordering::Relaxed) + 1))
}

fn away() -> Error {
    Error::new(ErrorKind::Unavailable, "nobody listens")
}

async fn third_time(attempt: u32) -> Result<InMemory> {
    if attempt < 3 { Err(away()) } else { Ok(InMemory::new()) }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_there_is_opened_at_once() {
    let (attempts, opener) = counted(|_| async { Ok(InMemory::new()) });
    let store = Deferred::open(opener).await.unwrap();
    assert!(store.get().is_some());
    assert_eq!((store.name(), attempts.load(Ordering::Relaxed)), ("memory", 1));
    assert_eq!(store.capabilities(), InMemory::new().capabilities());
    fill(&store, 2).await;
    assert_eq!(store.stats().await.unwrap().total_metrics, 2);
}

#[tokio::test(start_paused = true)]
async fn every_call_says_why_until_the_store_is_there() {
    let (attempts, opener) = counted(third_time);
    let store = Deferred::open(opener).await.unwrap();
    assert!(store.get().is_none());
    let any = SeriesFilter::any();
    let refused = [
        store.write_batch(&[record(0)]).await.unwrap_err(),
        store.query_range("a", "m", hour()).await.unwrap_err(),
        store.aggregate("a", "m", hour()).await.unwrap_err(),
        store.prune_before(hour().end()).await.unwrap_err(),
        store.stats().await.unwrap_err(),
        store.series(&any).await.unwrap_err(),
        store.latest(&any, 1).await.unwrap_err(),
        store.windows(&any, hour(), Duration::from_secs(1)).await.unwrap_err(),
        store.scan(&any, hour()).try_next().await.unwrap_err(),
        store.flush().await.unwrap_err(),
        store.compact().await.unwrap_err(),
        store.check().await.unwrap_err(),
    ];
    for error in refused {
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
        assert!(error.is_retryable() && error.operation().is_some());
        assert!(error.source().unwrap().to_string().contains("nobody listens"));
    }
    let health = store.health().await;
    assert!(health.status == HealthStatus::Down && health.message.contains("nobody listens"));
    let all = Capabilities { series: true, check: true, close: true };
    assert_eq!((store.name(), store.capabilities()), ("deferred", all));

    let opened = store.opened().await.unwrap();
    assert_eq!((opened.name(), attempts.load(Ordering::Relaxed)), ("memory", 3));
    fill(&store, 1).await;
    assert_eq!(store.stats().await.unwrap().total_metrics, 1);
    assert_eq!(store.health().await.status, HealthStatus::Healthy);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_pass_is_said_at_once() {
    for kind in [ErrorKind::Config, ErrorKind::PermissionDenied, ErrorKind::VersionMismatch] {
        let attempts = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&attempts);
        let refused = Deferred::<InMemory>::open(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            async move { Err(Error::new(kind, "never")) }
        });
        let error = refused.await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (kind, false));
        assert_eq!(attempts.load(Ordering::Relaxed), 1);
    }
    let error = Deferred::<InMemory>::open(|| async { panic!("on purpose") }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_pass_and_is_found_later_ends_the_trying() {
    let (attempts, opener) = counted(|attempt| async move {
        Err(if attempt < 3 { away() } else { Error::new(ErrorKind::VersionMismatch, "newer") })
    });
    let store = Deferred::open(opener).await.unwrap();
    let error = store.opened().await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::VersionMismatch, false));
    assert!(error.source().unwrap().to_string().contains("newer"));
    let error = store.write_batch(&[record(0)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::VersionMismatch);
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(attempts.load(Ordering::Relaxed), 3);
    store.close().await.unwrap();
    assert_eq!(store.stats().await.unwrap_err().kind(), ErrorKind::Closed);
}

/// Whoever writes would set its records aside.
#[tokio::test(start_paused = true)]
async fn an_opening_that_failed_is_never_the_fault_of_records() {
    let (_, opener) = counted(|attempt| async move {
        Err(if attempt == 1 { away() } else { Error::invalid("an option") })
    });
    let store = Deferred::open(opener).await.unwrap();
    assert_eq!(store.opened().await.unwrap_err().kind(), ErrorKind::Config);
    let error = store.write_batch(&[record(0)]).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Config, false));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_takes_long_goes_on_behind() {
    let (attempts, opener) = counted(|_| async {
        sleep(Duration::from_secs(60)).await;
        Ok(InMemory::new())
    });
    let started = tokio::time::Instant::now();
    let store = Deferred::open(opener).await.unwrap();
    assert_eq!(started.elapsed(), PATIENCE);
    assert_eq!(store.stats().await.unwrap_err().kind(), ErrorKind::Unavailable);
    store.opened().await.unwrap();
    assert_eq!((started.elapsed().as_secs(), attempts.load(Ordering::Relaxed)), (60, 1));
}

#[tokio::test(start_paused = true)]
async fn attempts_get_rarer_and_have_no_end() {
    let (attempts, opener) = counted(|_| async { Err(away()) });
    let retry = RetryPolicy::default().with_jitter(false);
    let store = Deferred::open_with(opener, retry, PATIENCE).await.unwrap();
    sleep(Duration::from_secs(3600)).await;
    let tried = attempts.load(Ordering::Relaxed);
    assert!((700..=730).contains(&tried), "every 5 s, and sooner at first: {tried}");
    drop(store);
}

#[tokio::test(start_paused = true)]
async fn an_end_ends_the_trying() {
    let (attempts, opener) = counted(|_| async { Err(away()) });
    let store = Deferred::open(opener).await.unwrap();
    store.close().await.unwrap();
    store.close().await.unwrap();
    assert_eq!(store.stats().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(store.opened().await.unwrap_err().kind(), ErrorKind::Closed);
    let tried = attempts.load(Ordering::Relaxed);
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(attempts.load(Ordering::Relaxed), tried);

    let (attempts, opener) = counted(|_| async { Err(away()) });
    drop(Deferred::open(opener).await.unwrap());
    sleep(Duration::from_secs(3600)).await;
    // What it held is let go of.
    assert_eq!(Arc::strong_count(&attempts), 1);
}

/// An attempt that ends in the same moment as the handle is closed.
#[tokio::test]
async fn a_store_that_nobody_wants_any_more_is_closed() {
    let store = Arc::new(Observe::new(InMemory::new()));
    let shared = Shared::<Arc<Observe<InMemory>>> {
        store: OnceLock::new(),
        state: watch::Sender::new(State::Opening(None)),
    };
    shared.give_up();
    shared.hold(Arc::clone(&store)).await;
    assert!(shared.store.get().is_none());
    assert_eq!(store.counters().of(Operation::Close).calls, 1);
}
