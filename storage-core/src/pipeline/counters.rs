//! What an actor counts: every record that came in is in exactly one of these numbers.

use serde::Serialize;

use super::source::Backpressure;
use crate::error::Error;
use crate::metrics::MetricRecord;

/// The numbers of one source, in records but for `lagged` and `waits`.
///
/// At every moment `received = invalid + shed + stored + spooled + held`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceCounters {
    /// The name of the source.
    pub name: String,
    /// What happens when its share of memory is full.
    pub backpressure: Backpressure,
    /// Records that were taken from the source.
    pub received: u64,
    /// Set aside because they break a rule of [`MetricRecord`], or the store refused them for good.
    pub invalid: u64,
    /// Dropped because memory was full; these are lost.
    pub shed: u64,
    /// Written to the store straight from memory.
    pub stored: u64,
    /// Moved into the spool.
    pub spooled: u64,
    /// In memory now: buffered, on their way into the store, or waiting for room.
    pub held: u64,
    /// Items that a broadcast channel dropped before they were taken; these are lost.
    pub lagged: u64,
    /// How often the source had to wait for room.
    pub waits: u64,
    /// Whether the source has ended.
    pub ended: bool,
}

/// The numbers of an actor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ActorCounters {
    /// The sources, in the order in which they were added.
    pub sources: Vec<SourceCounters>,
    /// Writes to the store that worked.
    pub writes: u64,
    /// Writes to the store that failed; what they carried was written again.
    pub write_failures: u64,
    /// Records written from the spool to the store, those of former processes too.
    pub drained: u64,
    /// Records from the spool that the store refused for good, and that were set aside.
    pub drained_invalid: u64,
}

impl ActorCounters {
    /// The sum of a number over all sources.
    ///
    /// ```
    /// # use storage_core::pipeline::ActorCounters;
    /// fn lost(counters: &ActorCounters) -> u64 {
    ///     counters.sum(|source| source.shed + source.lagged)
    /// }
    /// ```
    pub fn sum(&self, number: impl Fn(&SourceCounters) -> u64) -> u64 {
        self.sources.iter().map(number).sum()
    }
}

/// A record that was set aside, and why.
#[derive(Debug)]
pub struct SetAside {
    /// Where it came from; `None` if it came out of the spool.
    pub source: Option<String>,
    /// The record.
    pub record: MetricRecord,
    /// What is wrong with it.
    pub reason: Error,
}
