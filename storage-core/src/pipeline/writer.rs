//! The task that stores: batches in order, straight from memory or by way of the spool.
//!
//! Older batches are always nearer to the store: what is in the spool is older than what is in
//! memory. So everything goes through the spool from the first batch that went there until it is
//! empty again.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::buffer::Batch;
use super::spool::Spool;
use super::state::{Refused, Shared};
use crate::deadline::after;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::layers::Delays;
use crate::metrics::{MetricRecord, StorageBackend};

pub(super) struct Writer {
    shared: Arc<Shared>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(super) async fn run(self) {
        let _end = End(Arc::clone(&self.shared));
        while !self.shared.is_finished() {
            let left = match self.shared.spool.as_ref().filter(|spool| !spool.is_empty()) {
                Some(spool) => self.write_through(spool).await,
                None => self.shared.take(usize::MAX),
            };
            match left {
                Some(batch) => self.write(batch).await,
                None if self.has_work() => {}
                None => self.shared.work.notified().await,
            }
        }
        // A store may hold back what it acknowledged under relaxed options; there is nobody to
        // tell if that fails, and the records are stored as far as the store promised.
        let flush = timeout(self.shared.options.write_timeout, self.shared.store.flush());
        if let Err(error) = flush.await.unwrap_or_else(|_| Err(timed_out())) {
            tracing::warn!(target: "storage", %error, "the last flush of the store failed");
        }
    }

    /// Whether the spool was filled meanwhile, or the end was reached.
    fn has_work(&self) -> bool {
        let spool = self.shared.spool.as_ref();
        spool.is_some_and(|spool| !spool.is_empty()) || self.shared.is_finished()
    }

    /// Stores a batch, however long it takes; or moves it into the spool.
    async fn write(&self, batch: Batch) {
        let mut delays = self.delays();
        let spool_at = after(Instant::now(), self.shared.options.spool_after);
        let mut spool_refuses_until = None;
        // What rang while everything went through the spool anyway is answered.
        let _ = self.shared.overflow.notified().now_or_never();
        loop {
            let attempt = async {
                match self.write_valid(&batch.records).await {
                    Ok(refused) => Some(refused),
                    Err(error) => {
                        self.shared.failed(&error);
                        sleep(next(&mut delays)).await;
                        None
                    }
                }
            };
            let (stored, must_spool) = tokio::select! {
                biased;
                stored = attempt => (stored, Instant::now() >= spool_at),
                // A spool that has refused is no reason to break off what may work, but for the last
                // chance to keep it.
                () = self.must_spool(spool_at), if spool_refuses_until.is_none() => (None, true),
                () = self.last_moment_after(spool_refuses_until) => (None, true),
            };
            if let Some(refused) = stored {
                return self.shared.stored(&batch.parts, refused);
            }
            if Instant::now() >= spool_at && !self.shared.is_failing() {
                // Given up half way, and not because there was no room.
                self.shared.failed(&timed_out());
            }
            let must_spool = must_spool || self.shared.stop.borrow().is_some();
            let refuses = spool_refuses_until.is_some_and(|until| Instant::now() < until);
            let spool = self.shared.spool.as_ref().filter(|_| must_spool && !refuses);
            let Some(spool) = spool else { continue };
            if self.spool_one(spool, &batch).await.is_ok() {
                return;
            }
            spool_refuses_until = Some(Instant::now() + SPOOL_PAUSE);
        }
    }

    /// Waits for the time when a batch shall go to the spool, `at` at the latest; for ever if there
    /// is no spool.
    async fn must_spool(&self, at: Instant) {
        if self.shared.spool.is_none() {
            std::future::pending::<()>().await;
        }
        tokio::select! {
            () = sleep_until(at) => {}
            () = self.shared.overflow.notified() => {}
            () = self.last_moment() => {}
        }
    }

    /// Waits until the actor is to stop and the store cannot be waited for any longer.
    async fn last_moment(&self) {
        let mut stop = self.shared.stop.subscribe();
        // The sender lives in `shared`, so there is no error.
        let deadline = stop.wait_for(Option::is_some).await.ok().and_then(|deadline| *deadline);
        if let Some(deadline) = deadline.filter(|_| !self.shared.is_failing()) {
            // A quarter of the time is for the spool.
            let left = deadline.saturating_duration_since(Instant::now());
            sleep(left / 4 * 3).await;
        }
    }

    /// The last moment for a spool that has refused, and is left alone until then; never if it has not.
    async fn last_moment_after(&self, refuses_until: Option<Instant>) {
        match refuses_until {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
        self.last_moment().await;
    }

    /// Moves a batch into the spool. One that hangs is one that fails: the store may be back. What it
    /// stores after all is drained once more, which changes nothing unless a sample was replaced since.
    async fn spool_one(&self, spool: &Spool, batch: &Batch) -> Result<(), ()> {
        let push = spool.push_aged(&batch.records, batch.since.elapsed());
        let pushed = timeout(self.shared.options.write_timeout, push).await;
        match pushed.unwrap_or_else(|_| Err(spool_hangs())) {
            Ok(()) => {
                self.shared.spooled(&batch.parts);
                Ok(())
            }
            Err(error) => {
                self.shared.spool_failed(&error);
                Err(())
            }
        }
    }

    /// Moves what is in memory into the spool, and drains the spool into the store, both at once,
    /// until the spool is empty, or the actor stops and memory is empty. Returns a batch that the
    /// spool does not take although nothing waits in it.
    async fn write_through(&self, spool: &Spool) -> Option<Batch> {
        let is_feeding = AtomicBool::new(false);
        tokio::select! {
            left = self.feed(spool, &is_feeding) => left,
            () = self.drain(spool, &is_feeding) => None,
        }
    }

    /// Moves batches into the spool. Returns when the actor stops and there are no more.
    async fn feed(&self, spool: &Spool, is_feeding: &AtomicBool) -> Option<Batch> {
        while !self.shared.is_finished() {
            // Behind a full spool batches stay in memory, which goes by the source's backpressure.
            let batch = if spool.is_full() { None } else { self.shared.take(spool.room()) };
            let Some(batch) = batch else {
                tokio::select! {
                    () = spool.popped() => {}
                    () = self.shared.work.notified() => {}
                }
                continue;
            };
            is_feeding.store(true, Ordering::Relaxed);
            let mut delays = self.delays();
            while self.spool_one(spool, &batch).await.is_err() {
                // A spool that cannot even remove what was drained must not keep the store from what
                // comes. What is left there may be drained once more after a crash.
                if spool.is_drained() {
                    return Some(batch);
                }
                sleep(next(&mut delays)).await;
            }
            is_feeding.store(false, Ordering::Relaxed);
        }
        None
    }

    /// Drains the spool. Returns when it is empty and nothing is being put into it.
    async fn drain(&self, spool: &Spool, is_feeding: &AtomicBool) {
        let mut delays = self.delays();
        loop {
            // Before the look, which a push must not pass.
            let pushed = spool.pushed();
            if spool.is_empty() {
                if !is_feeding.load(Ordering::Relaxed) {
                    return;
                }
                pushed.await;
                continue;
            }
            match self.drain_step(spool).await {
                Ok(()) => delays = self.delays(),
                Err(()) => sleep(next(&mut delays)).await,
            }
        }
    }

    async fn drain_step(&self, spool: &Spool) -> Result<(), ()> {
        let store_failed = AtomicBool::new(false);
        let write = async |records: Vec<MetricRecord>| match self.write_valid(&records).await {
            Ok(refused) => {
                self.shared.drained(records.len() as u64, refused);
                Ok(())
            }
            Err(error) => {
                self.shared.failed(&error);
                store_failed.store(true, Ordering::Relaxed);
                Err(error)
            }
        };
        let step = spool.drain_step(self.shared.options.write_records_max, write);
        let step = AssertUnwindSafe(step).catch_unwind().await.unwrap_or_else(|_panic| {
            Err(Error::new(ErrorKind::Internal, "the spool panicked").with_operation("drain_step"))
        });
        if let Err(error) = step.as_ref()
            && !store_failed.load(Ordering::Relaxed)
        {
            self.shared.spool_failed(error);
        }
        // Only now is it gone from the spool, and somebody may wait for that.
        self.shared.bump();
        step.map(drop).map_err(drop)
    }

    /// Writes records; those that the store refuses for good are returned, and the rest is stored.
    async fn write_valid(&self, records: &[MetricRecord]) -> Result<Vec<Refused>> {
        match self.attempt(records).await {
            Ok(()) => Ok(Vec::new()),
            Err(error) if error.kind() == ErrorKind::InvalidArgument && !records.is_empty() => {
                self.write_around(records, error).await
            }
            Err(error) => Err(error),
        }
    }

    /// Takes out what the store refuses: the record that the error names, or else by halves.
    async fn write_around(&self, all: &[MetricRecord], first: Error) -> Result<Vec<Refused>> {
        let mut refused = Vec::new();
        let indexes: Vec<_> = (0..all.len()).collect();
        let mut parts = VecDeque::from([(indexes, all.to_vec(), Some(first))]);
        while let Some((mut indexes, mut part, error)) = parts.pop_front() {
            let error = match error {
                Some(error) => error,
                None => match self.attempt(&part).await {
                    Ok(()) => continue,
                    Err(error) if error.kind() == ErrorKind::InvalidArgument => error,
                    Err(error) => return Err(error),
                },
            };
            let named = error.context("record").and_then(|index| index.parse().ok());
            match named.filter(|at| *at < part.len()) {
                None if part.len() > 1 => {
                    let half = part.len() / 2;
                    parts.push_front((indexes.split_off(half), part.split_off(half), None));
                    parts.push_front((indexes, part, None));
                }
                named => {
                    let at = named.unwrap_or(0);
                    let (index, record) = (indexes.remove(at), part.remove(at));
                    refused.push(Refused { index, record, reason: error });
                    if !part.is_empty() {
                        parts.push_front((indexes, part, None));
                    }
                }
            }
        }
        Ok(refused)
    }

    /// Writes once. A store that hangs or panics is one that fails.
    async fn attempt(&self, records: &[MetricRecord]) -> Result<()> {
        let write = write_caught(&*self.shared.store, records);
        match timeout(self.shared.options.write_timeout, write).await {
            Ok(written) => written,
            Err(_) => Err(timed_out()),
        }
    }

    fn delays(&self) -> Delays {
        self.shared.options.retry.with_attempts_max(u32::MAX).delays()
    }
}

/// Writes once. A store that panics is one that fails: the task that writes must go on.
pub(super) async fn write_caught(
    store: &dyn StorageBackend,
    records: &[MetricRecord],
) -> Result<()> {
    let written = AssertUnwindSafe(store.write_batch(records)).catch_unwind().await;
    written.unwrap_or_else(|_panic| {
        Err(Error::new(ErrorKind::Internal, "the store panicked")
            .with_outcome(Outcome::Unknown)
            .with_operation("write_batch"))
    })
}

/// How long a spool that refused is left alone.
const SPOOL_PAUSE: Duration = Duration::from_secs(1);

/// The next delay; there is always one.
fn next(delays: &mut Delays) -> Duration {
    delays.next().unwrap_or(Duration::from_secs(5))
}

fn timed_out() -> Error {
    Error::new(ErrorKind::Timeout, "the store took too long")
        .with_outcome(Outcome::Unknown)
        .with_operation("write_batch")
}

fn spool_hangs() -> Error {
    Error::new(ErrorKind::Timeout, "the spool took too long")
        .with_outcome(Outcome::Unknown)
        .with_operation("push")
}

/// Also after a panic: whoever waits for the writer must not wait for ever.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.writer_ended();
    }
}
