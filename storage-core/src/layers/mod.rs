//! Wrappers that are backends themselves, one concern each.
//!
//! | layer | what it adds |
//! |---|---|
//! | [`Observe`] | a log line and counters for every call |
//! | [`Retry`] | repetition of what failed for a passing reason |
//! | [`Timeout`] | an end to every call |
//! | [`Deferred`] | a start while the store is away |
//! | [`Faulty`] | faults on purpose, for tests |
//!
//! # The one right order
//! From outside to inside: observe, retry, timeout, backend; [`standard_stack`] builds it.
//! - *Retry around timeout*: the other way round a single hanging attempt uses up the whole
//!   budget, and nothing is ever repeated.
//! - *Observe outermost*: it counts what the caller saw, once for each call, and its times
//!   include the delays. (`Retry` logs each repetition itself.)
//! - [`Deferred`] takes the place of the backend, innermost, and opens it.
//! - [`Faulty`], in a test, takes the place of the backend, innermost.
//!
//! Layers forward the name and the capabilities of what they wrap. They need the timer of a tokio
//! runtime.
//!
//! ```
//! use storage_core::{InMemory, StorageBackend, layers};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
//! let store = layers::standard_stack(InMemory::new());
//! store.write_batch(&[]).await?;
//! assert_eq!(store.counters().of(layers::Operation::WriteBatch).calls, 1);
//! # Ok(()) }
//! ```

mod deferred;
mod faulty;
mod observe;
mod operation;
mod retry;
mod timeout;

pub use deferred::Deferred;
pub use faulty::{Fault, FaultControl, FaultCounts, FaultPlan, Faulty};
pub use observe::{CountersSnapshot, Observe, OperationCounters};
pub use operation::Operation;
pub(crate) use retry::Delays;
pub use retry::{Retry, RetryPolicy};
pub use timeout::{Timeout, Timeouts};

use crate::metrics::StorageBackend;

/// What [`standard_stack`] builds.
pub type StandardStack<B> = Observe<Retry<Timeout<B>>>;

/// Wraps `backend` in every layer that production wants, in the right order, with the defaults of
/// [`Timeouts`], [`RetryPolicy`] and [`Observe`].
///
/// No call takes longer than [`RetryPolicy::elapsed_max`] plus the [`Timeouts`] of its operation:
/// 90 seconds for reads and writes, whatever the backend does. For a scan that holds for each batch.
pub fn standard_stack<B: StorageBackend>(backend: B) -> StandardStack<B> {
    standard_stack_with(backend, Timeouts::default(), RetryPolicy::default())
}

/// Like [`standard_stack`], with timeouts and a policy of one's own.
pub fn standard_stack_with<B: StorageBackend>(
    backend: B,
    timeouts: Timeouts,
    policy: RetryPolicy,
) -> StandardStack<B> {
    Observe::new(Retry::new(Timeout::new(backend, timeouts), policy))
}

/// What the tests of the layers share.
#[cfg(test)]
mod testing {
    use crate::metrics::time::from_ms;
    use crate::{MetricRecord, StorageBackend, TimeRange};

    /// A record of the series `index`, in the hour of [`hour`].
    pub(super) fn record(index: usize) -> MetricRecord {
        MetricRecord::new(format!("web-{index}"), from_ms(1_000), "cpu", 1.0)
    }

    /// Writes one sample to each of `series` series.
    pub(super) async fn fill(store: &impl StorageBackend, series: usize) {
        let batch: Vec<_> = (0..series).map(record).collect();
        store.write_batch(&batch).await.unwrap();
    }

    pub(super) fn hour() -> TimeRange {
        TimeRange::new(from_ms(0), from_ms(3_600_000)).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::record;
    use super::*;
    use crate::{Capabilities, ErrorKind, InMemory, Outcome};
    use std::time::Duration;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_hanging_backend_ends_within_the_budget() {
        let hanging = Faulty::new(InMemory::new(), FaultPlan::new(1).with_hang_before(1.0));
        let control = hanging.control();
        let store = standard_stack(hanging);
        let started = Instant::now();
        let error = store.write_batch(&[record(0)]).await.unwrap_err();
        assert!(started.elapsed() <= Duration::from_secs(90));
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown));
        assert_eq!(error.context("attempts"), Some("2"));
        control.off();
        assert_eq!(store.stats().await.unwrap().total_metrics, 0);
    }

    #[test]
    fn name_and_capabilities_shine_through() {
        let store = standard_stack(Faulty::new(InMemory::new(), FaultPlan::new(1)));
        assert_eq!(store.name(), "memory");
        assert_eq!(store.capabilities(), InMemory::new().capabilities());
        assert_ne!(store.capabilities(), Capabilities::default());
    }
}
