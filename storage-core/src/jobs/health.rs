//! How the jobs of a store are doing.

use std::time::Duration;

use serde::Serialize;

use crate::error::Error;
use crate::metrics::HealthStatus;

/// A job that has been due for so long without being claimed says that no worker is at work.
pub const OVERDUE_AFTER: Duration = Duration::from_secs(60);

/// How many jobs there are, and in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct JobCounts {
    /// All jobs.
    pub jobs: u64,
    /// Jobs with a lease in force.
    pub running: u64,
    /// Jobs with a lease that is over: their workers are lost, or too slow to say so.
    pub stalled: u64,
    /// Jobs without a lease that are enabled and have been due for a minute or longer.
    pub overdue: u64,
}

/// The state of a store of jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobHealth {
    /// The state in one word.
    pub status: HealthStatus,
    /// Why, in words for an operator; empty when healthy.
    pub message: String,
    /// What there is; zeros if the store is down.
    pub counts: JobCounts,
}

impl JobHealth {
    /// Nothing works, because of `error`.
    pub fn down(error: &Error) -> Self {
        let (status, message) = (HealthStatus::Down, error.to_string());
        Self { status, message, counts: JobCounts::default() }
    }

    /// The state of a store that can be read; `unwritable` is why it cannot be written.
    pub fn of(counts: JobCounts, unwritable: Option<&Error>) -> Self {
        let mut problems = Vec::from_iter(unwritable.map(Error::to_string));
        let JobCounts { stalled, overdue, .. } = counts;
        if stalled > 0 {
            problems.push(format!("{stalled} jobs with an expired lease"));
        }
        if overdue > 0 {
            problems.push(format!("{overdue} jobs overdue: no worker claims them"));
        }
        let status = match problems.is_empty() {
            true => HealthStatus::Healthy,
            false => HealthStatus::Degraded,
        };
        Self { status, message: problems.join("; "), counts }
    }
}
