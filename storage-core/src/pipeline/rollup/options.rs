//! Which rollups are kept, and how.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::compose::Tiered;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::StorageBackend;
use crate::metrics::time::width_ms;

/// How long whoever rolls up or prunes waits for writes, if nobody says otherwise.
pub(super) const SETTLE: Duration = Duration::from_millis(200);

/// Rollups of one width, and the store in which they are kept, which holds nothing else.
#[derive(Clone)]
pub struct RollupTier {
    pub(super) width: Duration,
    pub(super) store: Arc<dyn StorageBackend>,
}

impl RollupTier {
    /// Five minutes, an hour and a day.
    pub const DEFAULT_WIDTHS: [Duration; 3] =
        [Duration::from_secs(300), Duration::from_secs(3600), Duration::from_secs(86_400)];

    /// Says whether rollups of these widths, in any order, can be kept together: each is whole
    /// seconds, and a multiple of the next narrower one.
    ///
    /// # Errors
    /// `Config` if not, with the detail `width`, and `narrower` where two do not fit.
    ///
    /// ```
    /// use std::time::Duration;
    /// use storage_core::pipeline::RollupTier;
    ///
    /// RollupTier::check_widths(&RollupTier::DEFAULT_WIDTHS)?;
    /// let [hour, ninety_minutes] = [3600, 5400].map(Duration::from_secs);
    /// assert!(RollupTier::check_widths(&[ninety_minutes, hour]).is_err());
    /// # Ok::<(), storage_core::Error>(())
    /// ```
    pub fn check_widths(widths: &[Duration]) -> Result<()> {
        let mut widths = widths.to_vec();
        widths.sort_unstable();
        for width in &widths {
            width_ms(*width).map_err(|error| {
                wrong("rollups cannot have this width", *width).with_source(error)
            })?;
            if width.subsec_nanos() != 0 {
                return Err(wrong("rollups are whole seconds wide", *width));
            }
        }
        for pair in widths.windows(2) {
            let (narrower, width) = (pair[0], pair[1]);
            if width == narrower {
                return Err(wrong("rollups of one width are kept once", width));
            }
            if width.as_secs() % narrower.as_secs() != 0 {
                let problem = "each width of rollups is a multiple of the next narrower one";
                return Err(wrong(problem, width).with_context("narrower", format!("{narrower:?}")));
            }
        }
        Ok(())
    }

    /// Keeps rollups of windows `width` wide in `store`.
    pub fn new(width: Duration, store: Arc<dyn StorageBackend>) -> Self {
        Self { width, store }
    }

    /// How wide its windows are.
    pub const fn width(&self) -> Duration {
        self.width
    }

    /// Where they are kept.
    pub fn store(&self) -> &Arc<dyn StorageBackend> {
        &self.store
    }
}

fn wrong(problem: &'static str, width: Duration) -> Error {
    Error::new(ErrorKind::Config, problem)
        .with_operation("open")
        .with_context("width", format!("{width:?}"))
}

impl std::fmt::Debug for RollupTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RollupTier")
            .field("width", &self.width)
            .field("store", &self.store.name())
            .finish()
    }
}

/// Options of [`Rolled`](super::Rolled).
#[derive(Clone)]
pub struct RollupOptions {
    pub(super) delay: Duration,
    pub(super) lease: Duration,
    pub(super) settle: Duration,
    pub(super) wait_max: Duration,
    pub(super) clock: Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>,
    pub(super) archived: Option<Arc<Tiered>>,
}

impl std::fmt::Debug for RollupOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { delay, lease, settle, wait_max, clock: _, archived } = self;
        f.debug_struct("RollupOptions")
            .field("delay", delay)
            .field("lease", lease)
            .field("settle", settle)
            .field("wait_max", wait_max)
            .field("archived", archived)
            .finish()
    }
}

impl Default for RollupOptions {
    fn default() -> Self {
        Self {
            delay: Duration::from_secs(300),
            lease: Duration::from_secs(30),
            settle: SETTLE,
            wait_max: Duration::from_secs(90),
            clock: Arc::new(Utc::now),
            archived: None,
        }
    }
}

impl RollupOptions {
    /// How long after its end a window is rolled up. Samples that come later cost a write more.
    /// Default: 5 minutes.
    #[must_use]
    pub const fn with_delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// How long a process that rolls up or prunes and says nothing any more is waited for, 10 ms at
    /// least. The clocks of the machines must agree to half of it. Default: 30 s.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Duration::from_millis(10));
        self
    }

    /// How long whoever rolls up or prunes waits for writes that were under way when it began. Handles
    /// need not agree: the shortest of all that ever rolled up or pruned is what writers count on.
    /// Default: 200 ms.
    #[must_use]
    pub const fn with_settle(mut self, settle: Duration) -> Self {
        self.settle = settle;
        self
    }

    /// How long a call waits for another process before it says `Busy`; longer than the lease, or
    /// what somebody left behind is not cleared up. Default: 90 s.
    #[must_use]
    pub const fn with_wait_max(mut self, wait_max: Duration) -> Self {
        self.wait_max = wait_max;
        self
    }

    /// Says what time it is, for `delay` and for ages. Default: the clock of the machine.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Fn() -> DateTime<Utc> + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Lets [retention](super::Rolled::retain) remove no sample that is not archived yet: `tiers` is what the samples
    /// are in, and what is from its [`Tiered::archived_before`] on stays, however old or large it is. A
    /// prune by name removes what it is told. Default: nothing is archived, and ages and sizes alone
    /// decide.
    #[must_use]
    pub fn with_archived_first(mut self, tiers: Arc<Tiered>) -> Self {
        self.archived = Some(tiers);
        self
    }
}
