//! The task of a source: takes what comes, closes batches that are old enough. Never waits for the
//! store, unless the source shall wait.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep_until};

use super::source::{Receive, take, take_ready};
use super::state::Shared;
use crate::deadline::after;
use crate::metrics::MetricRecord;

/// How long a flush takes from a source that always has something, at least.
const READY_TIME_MIN: Duration = Duration::from_secs(1);

/// Takes from a source until it ends or the actor stops.
pub(super) async fn run(shared: Arc<Shared>, lane: usize, mut source: Box<dyn Receive>) {
    // Also when the source panics, or its task is ended: whoever waits for its end must not wait
    // for ever.
    let mut end = End { shared: Arc::clone(&shared), lane, is_whole: false };
    let mut records = Vec::new();
    let taking = take_until_stopped(&shared, lane, &mut *source, &mut records);
    let has_ended = match AssertUnwindSafe(taking).catch_unwind().await {
        Ok(has_ended) => has_ended,
        Err(panic) => {
            // What it gave before is whole.
            shared.received(lane, &mut records, 0);
            shared.push(lane, &mut records).await;
            resume_unwind(panic);
        }
    };
    if !has_ended {
        let will_end = source.close();
        while let Some(taken) = match will_end {
            true => take(&mut *source, &mut records).await,
            false => take_ready(&mut *source, &mut records).await,
        } {
            shared.received(lane, &mut records, taken.lagged);
            shared.push(lane, &mut records).await;
            // A source that always has something must not keep others from running, nor its task
            // from being ended.
            consume_budget().await;
        }
    }
    end.is_whole = true;
}

/// Returns whether the source has ended by itself.
async fn take_until_stopped(
    shared: &Shared,
    lane: usize,
    source: &mut dyn Receive,
    records: &mut Vec<MetricRecord>,
) -> bool {
    let (mut stop, mut sync) = (shared.stop.subscribe(), shared.sync.subscribe());
    // What was asked for before this task ran for the first time.
    if *sync.borrow() > 0 {
        sync.mark_changed();
    }
    if stop.borrow_and_update().is_some() {
        return false;
    }
    // One timer that is moved: one for each record would cost more than the record.
    let far = after(Instant::now(), shared.options.flush_interval);
    let timer = sleep_until(far);
    tokio::pin!(timer);
    loop {
        let due = shared.due(lane);
        if let Some(due) = due.filter(|due| *due != timer.deadline()) {
            timer.as_mut().reset(due);
        }
        tokio::select! {
            // What asks first, so that a source that always has something does not starve it.
            biased;
            _ = stop.changed() => return false,
            _ = sync.changed() => {
                let number = *sync.borrow_and_update();
                take_all_ready(shared, lane, source, records).await;
                shared.synced(lane, number);
            }
            () = &mut timer, if due.is_some() => shared.close(lane),
            taken = take(source, records) => {
                let Some(taken) = taken else { return true };
                shared.received(lane, records, taken.lagged);
                shared.push(lane, records).await;
            }
        }
    }
}

async fn take_all_ready(
    shared: &Shared,
    lane: usize,
    source: &mut dyn Receive,
    records: &mut Vec<MetricRecord>,
) {
    // Bounded: a source that never runs dry would never be done. Waiting for room does not count.
    let mut until = after(Instant::now(), shared.options.flush_interval.max(READY_TIME_MIN));
    while let Some(taken) = take_ready(source, records).await {
        shared.received(lane, records, taken.lagged);
        let before = Instant::now();
        shared.push(lane, records).await;
        until += before.elapsed();
        if Instant::now() >= until {
            return;
        }
        consume_budget().await;
    }
}

struct End {
    shared: Arc<Shared>,
    lane: usize,
    is_whole: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(target: "storage", lane = self.lane, "a source panicked and has ended");
        }
        self.shared.ended(self.lane, self.is_whole);
    }
}
