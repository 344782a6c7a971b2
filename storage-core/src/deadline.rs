//! Points in time that may be too far away to be one.

use std::time::Duration;

use tokio::time::Instant;

/// As good as never, and near enough to be reckoned with.
const FAR: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The time `delay` after `start`, also where that stands for never, as [`Duration::MAX`] does.
pub(crate) fn after(start: Instant, delay: Duration) -> Instant {
    start.checked_add(delay).unwrap_or_else(|| start + FAR)
}
