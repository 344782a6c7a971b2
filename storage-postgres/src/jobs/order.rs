//! In which order the changes of one handle are made.
//!
//! What a caller gave up is made before his next change or not at all, so each change waits for those
//! under way. A removal of a job may take long; the signs of life of others do not wait for it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// The changes of a handle, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Order {
    /// Held by every change but those of one execution.
    long: Arc<AsyncMutex<()>>,
    /// Held by every change, and taken last; by a removal of a job only until it has locked the
    /// row of the job. From then on changes of the same job wait for the row.
    short: Arc<AsyncMutex<()>>,
}

/// Held while a change is made.
#[derive(Debug)]
pub(crate) struct Turn {
    short: Mutex<Option<OwnedMutexGuard<()>>>,
    _long: Option<OwnedMutexGuard<()>>,
}

impl Order {
    /// Waits for every change under way.
    pub(crate) async fn turn(&self) -> Turn {
        let long = Arc::clone(&self.long).lock_owned().await;
        Turn { short: self.short().await, _long: Some(long) }
    }

    /// Waits for every change under way but removals that have locked their job.
    pub(super) async fn turn_of_execution(&self) -> Turn {
        Turn { short: self.short().await, _long: None }
    }

    async fn short(&self) -> Mutex<Option<OwnedMutexGuard<()>>> {
        Mutex::new(Some(Arc::clone(&self.short).lock_owned().await))
    }
}

impl Turn {
    /// Lets changes of executions go on beside this one.
    pub(super) fn let_executions_go_on(&self) {
        self.short.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_removal_that_has_locked_its_job_holds_up_no_execution() {
        let order = Order::default();
        let removal = order.turn().now_or_never().unwrap();
        assert!(order.turn_of_execution().now_or_never().is_none());
        removal.let_executions_go_on();
        let execution = order.turn_of_execution().now_or_never().unwrap();
        assert!(order.turn_of_execution().now_or_never().is_none(), "one at a time");
        drop(execution);
        assert!(order.turn().now_or_never().is_none(), "other changes wait to the end");
        drop(removal);
        assert!(order.turn().now_or_never().is_some());
    }
}
