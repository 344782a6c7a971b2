//! What tasks share that do something again and again: counts that others look at, when the next time is
//! due, and an end. What they do lives beside what they keep up.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::error::{Error, ErrorKind};
use crate::metrics::time::span;

/// Counts of a task, which hold its failures, too.
pub(crate) trait Counted: Clone + Default + Send + 'static {
    /// How often it failed, and why it did the last time.
    fn failures(&mut self) -> (&mut u64, &mut Option<String>);
}

/// Counts that a task shares with whoever looks at them.
#[derive(Debug)]
pub(crate) struct Counts<C>(Arc<Mutex<C>>);

impl<C: Counted> Counts<C> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, C> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts and logs a failure of `what`; whether it is one to end with.
    pub(crate) fn note_failure(&self, what: &str, error: &Error) -> bool {
        tracing::warn!(target: "storage", %error, "{what} failed; it is tried again");
        let mut counts = self.lock();
        let (failures, last_error) = counts.failures();
        *failures += 1;
        *last_error = Some(error.to_string());
        error.kind() == ErrorKind::Closed
    }
}

/// Says to a task when it is to end.
#[derive(Debug)]
pub(crate) struct Stop(watch::Receiver<()>);

impl Stop {
    /// Waits until it is to end.
    pub(crate) async fn wait(&mut self) {
        // Nothing is ever sent: what ends it is that the sender is gone.
        while self.0.changed().await.is_ok() {}
    }

    /// Whether it is to end.
    pub(crate) fn is_said(&self) -> bool {
        self.0.has_changed().is_err()
    }
}

/// A task with its counts. Dropping this tells it to end.
#[derive(Debug)]
pub(crate) struct Repeated<C> {
    counts: Counts<C>,
    stop: watch::Sender<()>,
    task: JoinHandle<()>,
}

impl<C: Counted> Repeated<C> {
    /// Starts what `work` makes on the current Tokio runtime.
    pub(crate) fn start<F>(work: impl FnOnce(Counts<C>, Stop) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let counts = Arc::<Mutex<C>>::default();
        let (stop, stopped) = watch::channel(());
        let task = tokio::spawn(work(Counts(Arc::clone(&counts)), Stop(stopped)));
        Self { counts: Counts(counts), stop, task }
    }

    /// What it did so far.
    pub(crate) fn counts(&self) -> C {
        self.counts.lock().clone()
    }

    /// Whether it has ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Tells it to end, waits for so long, then breaks it off.
    pub(crate) async fn stop_within(mut self, time_max: Duration) -> C {
        drop(self.stop);
        let ended = match timeout(time_max, &mut self.task).await {
            Ok(ended) => ended,
            Err(_) => {
                self.task.abort();
                self.task.await
            }
        };
        let mut counts = self.counts.lock().clone();
        if let Err(error) = ended {
            *counts.failures().1 = Some(error.to_string());
        }
        counts
    }
}

/// Whether what was done at `last` is due again at `now`.
pub(crate) fn is_due(last: DateTime<Utc>, now: DateTime<Utc>, interval: Duration) -> bool {
    // A little early is due: clocks and timers are not exact. So is what lies in the future.
    now - last >= span(interval - interval / 10) || now < last
}
