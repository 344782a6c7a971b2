//! What handles and processes that share stores tell each other: a view that one of them publishes,
//! and a lease that says which of them may.
//!
//! Both stand in a store of their own, by the contract alone, so that any backend will do. The
//! *view* is one sample: what whoever has the lease wrote last, with a number that grows with every
//! change. The *lease* is a series for each handle that wants it: it writes that it wants it, then
//! looks whether another does, and gives up if so. Of two that do this at once at least one sees
//! the other.

use std::marker::PhantomData;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::Utc;
use futures_util::future::{Either, select};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Instant, sleep, timeout_at};

use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::metrics::time::{END_MS, floor_ms, from_ms};
use crate::metrics::{MetricRecord, SeriesFilter, StorageBackend, TimeRange};

const VIEW: &str = "view";
/// What the names of leases start with; a random part follows.
const LEASE: &str = "lease-";

/// How long a turn that somebody else has is waited for between two looks, at least and at most.
const LOOK_AGAIN_MS: std::ops::Range<u64> = 1..15;

/// What is published in a control store.
pub(crate) trait Published: Serialize + DeserializeOwned + Default {
    /// The server under which everything of this kind of control store stands.
    const SERVER: &'static str;

    /// Grows with every change.
    fn generation(&self) -> u64;
}

/// A control store whose view is a `V`.
#[derive(Debug)]
pub(crate) struct Control<V> {
    leases: Leases,
    view: PhantomData<fn() -> V>,
}

impl<V: Published> Control<V> {
    pub(crate) fn new(store: Arc<dyn StorageBackend>, lease: Duration) -> Self {
        let name = format!("{LEASE}{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        let leases = Leases {
            store,
            server: V::SERVER,
            lease,
            name: name.into(),
            written_ms: Arc::new(AtomicI64::new(i64::MIN)),
            turn: Arc::default(),
        };
        Self { leases, view: PhantomData }
    }

    pub(crate) fn store(&self) -> &dyn StorageBackend {
        &*self.leases.store
    }

    /// Reads the view; the first one where nobody has published any yet.
    pub(crate) async fn view(&self) -> Result<V> {
        let found = self.store().query_range(V::SERVER, VIEW, TimeRange::all()).await?;
        let Some(record) = found.into_iter().next() else { return Ok(V::default()) };
        serde_json::from_value(record.metadata.unwrap_or_default()).map_err(|error| {
            Error::new(ErrorKind::Corrupt, "the control store is not one of this kind")
                .with_context("kind", V::SERVER)
                .with_source(error)
        })
    }

    /// Replaces the view that has the number before. Only who holds the lease does.
    ///
    /// # Errors
    /// `Busy` if another one stands there: who lost the lease without noticing must not undo what
    /// others did since.
    async fn publish(&self, view: &V) -> Result<()> {
        if self.view().await?.generation() + 1 != view.generation() {
            return Err(lost());
        }
        let (time, number) = (from_ms(END_MS - 1), view.generation() as f64);
        // At the end of time, so that old leases can be pruned and it cannot.
        let record = MetricRecord::new(V::SERVER, time, VIEW, number).with_metadata(
            serde_json::to_value(view).map_err(|error| {
                Error::new(ErrorKind::Internal, "the view does not serialise").with_source(error)
            })?,
        );
        self.store().write_batch(&[record]).await
    }

    /// Publishes `next` over `current`, which becomes what stands there then as far as it is known.
    ///
    /// # Errors
    /// As [`publish`](Self::publish), and those of the store.
    pub(crate) async fn advance(&self, current: &mut V, next: V) -> Result<()> {
        let published = self.publish(&next).await;
        match &published {
            Ok(()) => *current = next,
            // Nothing of it stands there, but maybe another's, which is not this turn's to change.
            Err(error) if error.outcome() == Outcome::NotApplied => {}
            // It may stand there all the same: the next one must not have the same number.
            Err(_) => *current = self.view().await?,
        }
        published
    }

    /// Takes the lease, waiting for others until `deadline`, and then says `Busy`.
    pub(crate) async fn acquire(&self, deadline: Instant) -> Result<Lease> {
        self.leases.acquire(deadline).await
    }

    /// Removes leases that ran out long ago, and whatever else stands before them; nothing from
    /// `keep_from_ms` on.
    pub(crate) async fn clear_up(&self, keep_from_ms: i64) -> Result<()> {
        let age_ms = 10 * self.leases.lease.as_millis() as i64;
        let cutoff_ms = keep_from_ms.min(floor_ms(Utc::now()) - age_ms);
        self.store().prune_before(from_ms(cutoff_ms)).await.map(drop)
    }
}

/// The leases of a control store.
#[derive(Clone)]
struct Leases {
    store: Arc<dyn StorageBackend>,
    server: &'static str,
    lease: Duration,
    /// The series of this handle's leases.
    name: Arc<str>,
    /// The time of the last sample in it. Each is later, whatever the clock says, because the last
    /// one counts.
    written_ms: Arc<AtomicI64>,
    /// Held with the lease: callers of one handle wait for each other here.
    turn: Arc<Mutex<()>>,
}

impl std::fmt::Debug for Leases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leases").field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl Leases {
    async fn acquire(&self, deadline: Instant) -> Result<Lease> {
        let waited = timeout_at(deadline, Arc::clone(&self.turn).lock_owned()).await;
        let turn = waited.map_err(|_| busy())?;
        let mut lease = Lease { leases: self.clone(), renewed: Instant::now(), _turn: turn };
        loop {
            if !self.is_held_elsewhere().await? {
                lease.renew().await?;
                // Looked at again after it was written: of two, one at least sees the other.
                match self.is_held_elsewhere().await {
                    Ok(false) => return Ok(lease),
                    Ok(true) => lease.write(0.0).await?,
                    Err(error) => {
                        // If that fails too it runs out.
                        let _ = lease.write(0.0).await;
                        return Err(error);
                    }
                }
            }
            if Instant::now() >= deadline {
                return Err(busy());
            }
            look_again().await;
        }
    }

    /// Whether another handle holds the lease, or wants it.
    async fn is_held_elsewhere(&self) -> Result<bool> {
        let filter = SeriesFilter::parse(self.server, &format!("{LEASE}*"))?;
        let oldest_ms = floor_ms(Utc::now()).saturating_sub(self.lease.as_millis() as i64);
        let holders = self.store.latest(&filter, 1).await?;
        let mut others = holders.iter().filter(|holder| holder.series.metric_type != *self.name);
        Ok(others.any(|other| {
            other
                .samples
                .iter()
                .any(|last| last.value != 0.0 && floor_ms(last.timestamp) >= oldest_ms)
        }))
    }
}

/// Waits a moment, of random length so that two do not keep meeting.
pub(crate) async fn look_again() {
    sleep(Duration::from_millis(fastrand::u64(LOOK_AGAIN_MS))).await;
}

fn lost() -> Error {
    Error::new(ErrorKind::Busy, "the turn at these stores has run out")
}

fn busy() -> Error {
    Error::new(ErrorKind::Busy, "another process moves or prunes the samples of these stores")
}

/// The right to move samples, until it is released or runs out.
#[derive(Debug)]
pub(crate) struct Lease {
    leases: Leases,
    renewed: Instant,
    _turn: OwnedMutexGuard<()>,
}

impl Lease {
    /// Renews it if a good part of its time is over; fails if all of it may be, or somebody else has
    /// taken it: the time of a process that was suspended may stand still.
    pub(crate) async fn keep(&mut self) -> Result<()> {
        if self.renewed.elapsed() >= self.leases.lease / 8 {
            self.check_age()?;
            self.renew().await?;
            if self.leases.is_held_elsewhere().await? {
                return Err(lost());
            }
        }
        // Also after a renewal, which may have taken as long.
        self.check_age()
    }

    fn check_age(&self) -> Result<()> {
        if self.renewed.elapsed() >= self.leases.lease / 2 { Err(lost()) } else { Ok(()) }
    }

    /// Does `work`, and renews the lease meanwhile.
    pub(crate) async fn keeping<T>(
        &mut self,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        self.keep().await?;
        let renewal = self.leases.lease / 8;
        let renewing = async {
            loop {
                sleep(renewal).await;
                if let Err(error) = self.keep().await {
                    return error;
                }
            }
        };
        match select(pin!(work), pin!(renewing)).await {
            Either::Left((result, _)) => result,
            Either::Right((error, _)) => Err(error),
        }
    }

    /// Gives it back.
    pub(crate) async fn release(self) -> Result<()> {
        self.write(0.0).await
    }

    async fn renew(&mut self) -> Result<()> {
        let now = Instant::now();
        self.write(1.0).await?;
        self.renewed = now;
        Ok(())
    }

    async fn write(&self, held: f64) -> Result<()> {
        let Leases { server, name, store, written_ms, .. } = &self.leases;
        // Who has the turn of the handle writes alone.
        let (now_ms, before_ms) = (floor_ms(Utc::now()), written_ms.load(Ordering::Relaxed));
        let ms = now_ms.max(before_ms.saturating_add(1));
        written_ms.store(ms, Ordering::Relaxed);
        store.write_batch(&[MetricRecord::new(*server, from_ms(ms), &**name, held)]).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InMemory;
    use crate::layers::{Fault, FaultPlan, Faulty, Operation};
    use crate::metrics::time::MIN_MS;
    use serde::Deserialize;
    use std::sync::atomic::AtomicU32;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Number(u64);

    impl Published for Number {
        const SERVER: &'static str = "numbers";

        fn generation(&self) -> u64 {
            self.0
        }
    }

    fn control(store: &Arc<dyn StorageBackend>, lease: Duration) -> Control<Number> {
        Control::new(Arc::clone(store), lease)
    }

    fn store() -> Arc<dyn StorageBackend> {
        Arc::new(InMemory::new())
    }

    #[tokio::test]
    async fn a_view_is_read_as_it_was_published() {
        let store = store();
        let control = control(&store, Duration::from_secs(30));
        assert_eq!(control.view().await.unwrap(), Number(0));
        control.publish(&Number(1)).await.unwrap();
        control.publish(&Number(2)).await.unwrap();
        control.clear_up(END_MS).await.unwrap();
        assert_eq!(control.view().await.unwrap(), Number(2));
        // By somebody who has not seen what was published since.
        assert_eq!(control.publish(&Number(2)).await.unwrap_err().kind(), ErrorKind::Busy);
        let alien = MetricRecord::new("numbers", from_ms(END_MS - 1), VIEW, 1.0);
        store.write_batch(&[alien]).await.unwrap();
        assert_eq!(control.view().await.unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[tokio::test]
    async fn what_is_to_be_kept_is_not_cleared_away() {
        let store = store();
        let old = MetricRecord::new("numbers", from_ms(5), "other", 1.0);
        store.write_batch(&[old]).await.unwrap();
        let control = control(&store, Duration::from_secs(30));
        control.clear_up(MIN_MS).await.unwrap();
        control.clear_up(5).await.unwrap();
        assert_eq!(store.stats().await.unwrap().total_metrics, 1);
        control.clear_up(6).await.unwrap();
        assert_eq!(store.stats().await.unwrap().total_metrics, 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_at_a_time_holds_the_lease() {
        let store = store();
        let holders = Arc::new(AtomicU32::new(0));
        let deadline = Instant::now() + Duration::from_secs(20);
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let control = control(&store, Duration::from_secs(30));
                let holders = Arc::clone(&holders);
                tokio::spawn(async move {
                    for _ in 0..10 {
                        let lease = control.acquire(deadline).await.unwrap();
                        assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                        tokio::task::yield_now().await;
                        assert_eq!(holders.fetch_sub(1, Ordering::SeqCst), 1);
                        lease.release().await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_lease_of_the_dead_runs_out() {
        let store = store();
        let control = || control(&store, Duration::from_millis(100));
        let mut dead = control().acquire(Instant::now()).await.unwrap();
        let error = control().acquire(Instant::now()).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Busy, true));
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut lease = control().acquire(deadline).await.unwrap();
        lease.keep().await.unwrap();
        assert_eq!(dead.keep().await.unwrap_err().kind(), ErrorKind::Busy);
    }

    /// Work that takes longer than a lease, and a lease that is as good as new afterwards.
    #[tokio::test(start_paused = true)]
    async fn long_work_keeps_its_lease() {
        let store = store();
        let time = Duration::from_secs(30);
        let mut lease = control(&store, time).acquire(Instant::now()).await.unwrap();
        for _ in 0..3 {
            let work = async {
                sleep(10 * time).await;
                Ok(7)
            };
            assert_eq!(lease.keeping(work).await.unwrap(), 7);
            lease.keep().await.unwrap();
        }
        lease.release().await.unwrap();
    }

    /// Both have looked before either wrote.
    #[tokio::test(start_paused = true)]
    async fn of_two_that_want_the_lease_at_once_one_gets_it() {
        let faulty = Arc::new(Faulty::new(InMemory::new(), FaultPlan::new(1)));
        for _ in 0..2 {
            let slow = Fault::SlowBefore(Duration::from_secs(1));
            faulty.control().inject(Operation::WriteBatch, slow);
        }
        let store: Arc<dyn StorageBackend> = faulty;
        let open = || control(&store, Duration::from_secs(30));
        let (one, other) = (open(), open());
        let deadline = Instant::now() + Duration::from_secs(10);
        let (one, other) = futures_util::join!(one.acquire(deadline), other.acquire(deadline));
        assert_eq!(one.is_ok() as u32 + other.is_ok() as u32, 1);
        let refused = one.err().or(other.err());
        assert_eq!(refused.map(|error| error.kind()), Some(ErrorKind::Busy));
    }

    /// The newest sample of the handle is in the future.
    #[tokio::test]
    async fn a_clock_that_is_set_back_hides_no_lease() {
        let store = store();
        let open = || control(&store, Duration::from_secs(30));
        let (one, other) = (open(), open());
        let ahead_ms = floor_ms(Utc::now()) + 60_000;
        let released = MetricRecord::new("numbers", from_ms(ahead_ms), &*one.leases.name, 0.0);
        store.write_batch(&[released]).await.unwrap();
        one.leases.written_ms.store(ahead_ms, Ordering::Relaxed);
        let lease = one.acquire(Instant::now()).await.unwrap();
        assert_eq!(other.acquire(Instant::now()).await.unwrap_err().kind(), ErrorKind::Busy);
        lease.release().await.unwrap();
        other.acquire(Instant::now()).await.unwrap();
    }

    /// As after a suspend, in which the time of the process stands still.
    #[tokio::test(start_paused = true)]
    async fn a_lease_that_another_has_is_not_kept() {
        let store = store();
        let open = || control(&store, Duration::from_secs(30));
        let mut suspended = open().acquire(Instant::now()).await.unwrap();
        let after = from_ms(floor_ms(Utc::now()) + 1000);
        assert_eq!(store.prune_before(after).await.unwrap(), 1);
        open().acquire(Instant::now()).await.unwrap();
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(suspended.keep().await.unwrap_err().kind(), ErrorKind::Busy);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_takes_too_long_is_none() {
        let faulty = Arc::new(Faulty::new(InMemory::new(), FaultPlan::new(1)));
        let store: Arc<dyn StorageBackend> = Arc::clone(&faulty) as _;
        let mut lease =
            control(&store, Duration::from_secs(30)).acquire(Instant::now()).await.unwrap();
        tokio::time::advance(Duration::from_secs(4)).await;
        let slow = Fault::SlowBefore(Duration::from_secs(20));
        faulty.control().inject(Operation::WriteBatch, slow);
        assert_eq!(lease.keep().await.unwrap_err().kind(), ErrorKind::Busy);
    }
}
