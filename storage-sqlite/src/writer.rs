//! The connection that writes: who has it, and who waits for it.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use futures_util::future::{BoxFuture, Either, FusedFuture, FutureExt, Shared, WeakShared, select};
use futures_util::poll;
use sqlx::sqlite::SqliteConnection;
use storage_core::{Error, ErrorKind, Result};
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, oneshot};

type Commit = Shared<BoxFuture<'static, ()>>;

/// The one connection that writes; none if the store is read-only or closed.
#[derive(Debug)]
pub(crate) struct Writer {
    connection: Arc<AsyncMutex<Option<SqliteConnection>>>,
    /// The last commit that a caller carries out itself.
    flight: Mutex<Option<WeakShared<BoxFuture<'static, ()>>>>,
}

impl Writer {
    pub(crate) fn new(connection: Option<SqliteConnection>) -> Self {
        Self { connection: Arc::new(AsyncMutex::new(connection)), flight: Mutex::default() }
    }

    /// Waits for the connection, and meanwhile carries on the commit of a caller that has it.
    pub(crate) async fn take(&self) -> WriterGuard {
        let mut taking = pin!(Arc::clone(&self.connection).lock_owned());
        if let Poll::Ready(guard) = poll!(&mut taking) {
            return WriterGuard(guard);
        }
        // Asked for when this waits already: no other commit can take off until it had its turn.
        let guard = match self.flight() {
            None => taking.await,
            Some(flight) => match select(taking, flight).await {
                Either::Left((guard, _)) => guard,
                Either::Right(((), taking)) => taking.await,
            },
        };
        WriterGuard(guard)
    }

    /// Hands the connection and `job` to a commit that its caller carries out, or the job back if
    /// the connection is not free.
    pub(crate) fn take_off<J, F>(
        &self,
        runtime: &Handle,
        job: J,
        commit: impl FnOnce(WriterGuard, J) -> F,
    ) -> std::result::Result<Flight, J>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // Locked before the connection: whoever finds that taken finds the flight, too.
        let mut flight = self.flight.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(guard) = Arc::clone(&self.connection).try_lock_owned() else { return Err(job) };
        // A panic ends it as the end does: whoever waits goes on, and nobody has the answer.
        let commit = AssertUnwindSafe(commit(WriterGuard(guard), job)).catch_unwind().map(drop);
        let commit = commit.boxed().shared();
        *flight = commit.downgrade();
        Ok(Flight { commit, runtime: runtime.clone() })
    }

    fn flight(&self) -> Option<Commit> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.upgrade()
    }
}

/// The connection that writes, held alone.
pub(crate) struct WriterGuard(OwnedMutexGuard<Option<SqliteConnection>>);

impl WriterGuard {
    /// The connection.
    ///
    /// # Errors
    /// `Closed` if the store was.
    pub(crate) fn connection(&mut self) -> Result<&mut SqliteConnection> {
        self.0.as_mut().ok_or_else(|| Error::new(ErrorKind::Closed, "the store was closed"))
    }

    /// Takes the connection away for good.
    pub(crate) fn remove(&mut self) -> Option<SqliteConnection> {
        self.0.take()
    }
}

/// A commit that its caller carries out.
///
/// Others depend on it as soon as they wait for the connection. So they carry it on, too, and a caller
/// that exists but is not polled holds up nobody; the runtime does when the caller is dropped.
pub(crate) struct Flight {
    commit: Commit,
    runtime: Handle,
}

impl Flight {
    /// Carries the commit on until the answer is there; what is to be done then is left to the
    /// runtime.
    pub(crate) async fn answer<T>(mut self, answer: oneshot::Receiver<T>) -> Option<T> {
        match select(&mut self.commit, answer).await {
            Either::Left(((), answer)) => answer.await.ok(),
            Either::Right((answer, _)) => answer.ok(),
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.commit.is_terminated() && self.commit.peek().is_none() {
            self.runtime.spawn(self.commit.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    /// A commit that goes on when the gate opens, and tells when it is over.
    fn take_off(writer: &Writer) -> (Flight, oneshot::Sender<()>, oneshot::Receiver<()>) {
        let (gate, opened) = oneshot::channel();
        let (done, over) = oneshot::channel();
        let flight = writer.take_off(&Handle::current(), done, |guard, done| async move {
            opened.await.expect("the test opens it");
            drop(guard);
            done.send(()).expect("the test waits");
        });
        (flight.map_err(drop).expect("the connection is free"), gate, over)
    }

    #[tokio::test]
    async fn whoever_waits_carries_a_commit_on_that_nobody_polls() {
        let writer = Writer::new(None);
        let (mut flight, gate, mut over) = take_off(&writer);
        assert!(poll!(&mut flight.commit).is_pending());
        gate.send(()).expect("the commit waits");
        let take = async { drop(writer.take().await) };
        timeout(LONG, take).await.expect("the connection comes back");
        assert_eq!(over.try_recv(), Ok(()));
        drop(flight);
        drop(writer.take().await);
    }

    #[tokio::test]
    async fn a_commit_whose_caller_is_gone_ends() {
        let writer = Writer::new(None);
        let (mut flight, gate, over) = take_off(&writer);
        assert!(poll!(&mut flight.commit).is_pending());
        drop(flight);
        gate.send(()).expect("the commit goes on");
        timeout(LONG, over).await.expect("it ends").expect("it is not dropped");
    }

    #[tokio::test]
    async fn a_commit_that_panics_gives_the_connection_back() {
        let writer = Writer::new(None);
        let (done, over) = oneshot::channel::<()>();
        let flight = writer.take_off(&Handle::current(), done, |_guard, _done| async move {
            tokio::task::yield_now().await;
            panic!("on purpose");
        });
        let mut flight = flight.map_err(drop).expect("the connection is free");
        assert!(poll!(&mut flight.commit).is_pending());
        drop(timeout(LONG, writer.take()).await.expect("the connection comes back"));
        assert_eq!(timeout(LONG, flight.answer(over)).await.expect("it is over"), None);
    }

    #[tokio::test]
    async fn nobody_takes_off_with_a_connection_that_is_held() {
        let writer = Writer::new(None);
        let guard = writer.take().await;
        let refused = writer.take_off(&Handle::current(), 7, |_, _| std::future::ready(()));
        assert_eq!(refused.map(drop), Err(7));
        drop(guard);
        let (flight, gate, over) = take_off(&writer);
        gate.send(()).expect("the commit waits");
        assert_eq!(flight.answer(over).await, Some(()));
    }
}
