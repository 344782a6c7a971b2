//! What the processes that share two tiers tell each other: which move is under way, and who is
//! allowed to make one.
//!
//! Both stand in a store of their own, by the contract alone, so that any backend will do. The
//! *view* is one sample: what whoever moves samples wrote last, with a number that grows with every
//! change. The *lease* is a series for each handle that wants it: it writes that it wants it, then
//! looks whether another does, and gives up if so. Of two that do this at once at least one sees
//! the other.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Instant, sleep, timeout_at};

use crate::error::{Error, ErrorKind, Result};
use crate::metrics::time::{END_MS, MIN_MS, floor_ms, from_ms};
use crate::metrics::{MetricRecord, SeriesFilter, StorageBackend, TimeRange};

/// The server under which everything of the control store stands.
const SERVER: &str = "tiers";
const VIEW: &str = "view";
/// What the names of leases start with; a random part follows.
const LEASE: &str = "lease-";

/// How long a turn that somebody else has is waited for between two looks, at least and at most.
const LOOK_AGAIN_MS: std::ops::Range<u64> = 1..15;

/// What is being done to the samples before a cutoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// Nothing.
    #[default]
    Idle,
    /// They are being copied to the cold tier, which may hold a part of them.
    Copying,
    /// As before; and nobody writes any more of them, so that the copy can be verified.
    Closing,
    /// The cold tier holds all of them; they are being removed from the hot one, and do not
    /// count there.
    Moving,
    /// They are being removed from both tiers, and do not count.
    Pruning,
}

/// The state of two tiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct View {
    /// Grows with every change.
    pub(super) generation: u64,
    pub(super) phase: Phase,
    /// Samples before this are meant by the phase.
    pub(super) cutoff_ms: i64,
    /// The cold tier holds nothing from here on.
    pub(super) cold_end_ms: i64,
    /// How many moves have come to the phase `Moving`.
    pub(super) moves: u64,
}

impl Default for View {
    fn default() -> Self {
        Self { generation: 0, phase: Phase::Idle, cutoff_ms: MIN_MS, cold_end_ms: MIN_MS, moves: 0 }
    }
}

impl View {
    /// The next view, in another phase.
    pub(super) fn turned(self, phase: Phase, cutoff_ms: i64) -> Self {
        let copies = phase == Phase::Copying;
        Self {
            generation: self.generation + 1,
            phase,
            cutoff_ms,
            cold_end_ms: if copies { self.cold_end_ms.max(cutoff_ms) } else { self.cold_end_ms },
            moves: self.moves + u64::from(phase == Phase::Moving),
        }
    }
}

/// The control store of two tiers.
#[derive(Clone)]
pub(super) struct Control {
    store: Arc<dyn StorageBackend>,
    lease: Duration,
    /// The series of this handle's leases.
    name: Arc<str>,
    /// Held with the lease: callers of one handle wait for each other here.
    turn: Arc<Mutex<()>>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl Control {
    pub(super) fn new(store: Arc<dyn StorageBackend>, lease: Duration) -> Self {
        let name = format!("{LEASE}{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        Self { store, lease, name: name.into(), turn: Arc::default() }
    }

    pub(super) fn store(&self) -> &dyn StorageBackend {
        &*self.store
    }

    /// Reads the view; the first one where nobody has moved anything yet.
    pub(super) async fn view(&self) -> Result<View> {
        let found = self.store.query_range(SERVER, VIEW, TimeRange::all()).await?;
        let Some(record) = found.into_iter().next() else { return Ok(View::default()) };
        serde_json::from_value(record.metadata.unwrap_or_default()).map_err(|error| {
            Error::new(ErrorKind::Corrupt, "the control store of the tiers is not one")
                .with_source(error)
        })
    }

    /// Replaces the view. Only who holds the lease does.
    pub(super) async fn publish(&self, view: View) -> Result<()> {
        // At the end of time, so that old leases can be pruned and it cannot.
        let record = MetricRecord::new(SERVER, from_ms(END_MS - 1), VIEW, view.generation as f64)
            .with_metadata(serde_json::to_value(view).map_err(|error| {
                Error::new(ErrorKind::Internal, "the view does not serialise").with_source(error)
            })?);
        self.store.write_batch(&[record]).await
    }

    /// Takes the lease, waiting for others until `deadline`, and then says `Busy`.
    pub(super) async fn acquire(&self, deadline: Instant) -> Result<Lease> {
        let waited = timeout_at(deadline, Arc::clone(&self.turn).lock_owned()).await;
        let turn = waited.map_err(|_| busy())?;
        let mut lease = Lease { control: self.clone(), renewed: Instant::now(), _turn: turn };
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
        let filter = SeriesFilter::parse(SERVER, &format!("{LEASE}*"))?;
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

    /// Removes leases that ran out long ago.
    pub(super) async fn clear_up(&self) -> Result<()> {
        let age_ms = 10 * self.lease.as_millis() as i64;
        self.store.prune_before(from_ms(floor_ms(Utc::now()) - age_ms)).await.map(drop)
    }
}

/// Waits a moment, of random length so that two do not keep meeting.
pub(super) async fn look_again() {
    sleep(Duration::from_millis(fastrand::u64(LOOK_AGAIN_MS))).await;
}

fn busy() -> Error {
    Error::new(ErrorKind::Busy, "another process moves or prunes the samples of these tiers")
}

/// The right to move samples, until it is released or runs out.
#[derive(Debug)]
pub(super) struct Lease {
    control: Control,
    renewed: Instant,
    _turn: OwnedMutexGuard<()>,
}

impl Lease {
    /// Renews it if a good part of its time is over; fails if all of it may be.
    pub(super) async fn keep(&mut self) -> Result<()> {
        let age = self.renewed.elapsed();
        if age >= self.control.lease / 2 {
            return Err(Error::new(ErrorKind::Busy, "the turn at these tiers has run out"));
        }
        if age >= self.control.lease / 8 { self.renew().await } else { Ok(()) }
    }

    /// How long until [`keep`](Self::keep) has something to do.
    pub(super) fn renewal(&self) -> Duration {
        self.control.lease / 8
    }

    /// Gives it back.
    pub(super) async fn release(self) -> Result<()> {
        self.write(0.0).await
    }

    async fn renew(&mut self) -> Result<()> {
        let now = Instant::now();
        self.write(1.0).await?;
        self.renewed = now;
        Ok(())
    }

    async fn write(&self, held: f64) -> Result<()> {
        let record = MetricRecord::new(SERVER, Utc::now(), &*self.control.name, held);
        self.control.store.write_batch(&[record]).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InMemory;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn control(lease: Duration) -> Control {
        Control::new(Arc::new(InMemory::new()), lease)
    }

    #[tokio::test]
    async fn a_view_is_read_as_it_was_published() {
        let control = control(Duration::from_secs(30));
        assert_eq!(control.view().await.unwrap(), View::default());
        let view = View::default().turned(Phase::Copying, 5).turned(Phase::Moving, 5);
        control.publish(view).await.unwrap();
        control.clear_up().await.unwrap();
        let read = control.view().await.unwrap();
        assert_eq!((read, read.generation, read.cold_end_ms, read.moves), (view, 2, 5, 1));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_at_a_time_holds_the_lease() {
        let store: Arc<dyn StorageBackend> = Arc::new(InMemory::new());
        let holders = Arc::new(AtomicU32::new(0));
        let deadline = Instant::now() + Duration::from_secs(20);
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let control = Control::new(Arc::clone(&store), Duration::from_secs(30));
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
        let store: Arc<dyn StorageBackend> = Arc::new(InMemory::new());
        let control = || Control::new(Arc::clone(&store), Duration::from_millis(100));
        let mut dead = control().acquire(Instant::now()).await.unwrap();
        let error = control().acquire(Instant::now()).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Busy, true));
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut lease = control().acquire(deadline).await.unwrap();
        lease.keep().await.unwrap();
        assert_eq!(dead.keep().await.unwrap_err().kind(), ErrorKind::Busy);
    }
}
