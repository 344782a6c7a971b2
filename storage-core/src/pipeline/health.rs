//! How an actor is doing, in one word and a few numbers.

use std::time::Duration;

use serde::Serialize;

use super::spool::SpoolBacklog;
use crate::metrics::HealthStatus;

/// The state of an actor.
///
/// | status | the store | records |
/// |---|---|---|
/// | `Healthy` | takes what it is given | none wait but those that gather for the next flush |
/// | `Degraded` | fails, or a spool is being drained | wait in memory or in the spool |
/// | `Down` | fails | have nowhere to wait: their sources are made to wait |
/// | `Down` | fails or is too slow | are dropped, or were since it failed or within ten seconds |
///
/// An actor whose writing task has ended by a defect is `Down`, one with a source that did is `Degraded`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ActorHealth {
    /// The state in one word.
    pub status: HealthStatus,
    /// What fails, in words for an operator; empty while nothing does.
    pub message: String,
    /// How long the store has failed without a success.
    pub failing_for: Option<Duration>,
    /// Records in memory and in the spool that are not in the store yet.
    pub backlog_records: u64,
    /// Bytes that those in memory take.
    pub memory_bytes: u64,
    /// What waits in the spool.
    pub spool: Option<SpoolBacklog>,
    /// How long the oldest of all has waited.
    pub oldest_age: Option<Duration>,
}
