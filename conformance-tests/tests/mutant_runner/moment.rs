//! What bugs do in the middle of a call.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Lets others run in the middle of something.
pub(crate) async fn pause() {
    for _ in 0..4 {
        tokio::task::yield_now().await;
    }
}

/// Brings two callers together in the middle of what each of them does, however busy the machine.
#[derive(Default)]
pub(crate) struct Pair {
    arrived: AtomicU64,
}

impl Pair {
    /// Waits for another caller; who stays alone for a second goes on.
    pub(crate) async fn meet(&self) {
        let before = self.arrived.fetch_add(1, Ordering::SeqCst);
        let patience = Instant::now() + Duration::from_secs(1);
        let is_first = before.is_multiple_of(2);
        let is_alone = || self.arrived.load(Ordering::SeqCst) == before + 1;
        while is_first && is_alone() && Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Does something if it is dropped before it is told that all is done.
pub(crate) struct Unless<F: FnMut()> {
    undone: F,
    done: bool,
}

impl<F: FnMut()> Unless<F> {
    pub(crate) fn done_or(undone: F) -> Self {
        Self { undone, done: false }
    }

    pub(crate) fn done(mut self) {
        self.done = true;
    }
}

impl<F: FnMut()> Drop for Unless<F> {
    fn drop(&mut self) {
        if !self.done {
            (self.undone)();
        }
    }
}
