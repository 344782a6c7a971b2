//! What bugs do in the middle of a call.

/// Lets others run in the middle of something.
pub(crate) async fn pause() {
    for _ in 0..4 {
        tokio::task::yield_now().await;
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
