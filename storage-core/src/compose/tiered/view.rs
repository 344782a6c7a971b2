//! What the processes that share two tiers tell each other: which move is under way.

use serde::{Deserialize, Serialize};

use crate::control::Published;
use crate::metrics::time::MIN_MS;

/// What is being done to the samples before a cutoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// Nothing.
    #[default]
    Idle,
    /// They are being copied to the cold tier, which may hold a part of them.
    Copying,
    /// As before; and nobody writes any more of them, so that the copy can be verified.
    Closing,
    /// The cold tier holds all of them; they are being removed from the hot one, and do not
    /// count there.
    Moving,
    /// They are being removed from both tiers, and do not count.
    Pruning,
}

/// The state of two tiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct View {
    /// Grows with every change.
    pub(super) generation: u64,
    pub(super) phase: Phase,
    /// Samples before this are meant by the phase.
    pub(super) cutoff_ms: i64,
    /// The cold tier holds nothing from here on.
    pub(super) cold_end_ms: i64,
    /// How many moves have come to the phase `Moving`.
    pub(super) moves: u64,
    /// The shortest that anybody who moved has waited for late writes; none while nobody has.
    pub(super) settle_ms: Option<u64>,
    /// When everything that was old enough had been archived; none while nobody archives again and again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) archived_ms: Option<i64>,
}

impl Default for View {
    fn default() -> Self {
        Self {
            generation: 0,
            phase: Phase::Idle,
            cutoff_ms: MIN_MS,
            cold_end_ms: MIN_MS,
            moves: 0,
            settle_ms: None,
            archived_ms: None,
        }
    }
}

impl Published for View {
    const SERVER: &'static str = "tiers";

    fn generation(&self) -> u64 {
        self.generation
    }
}

impl View {
    /// The next view, in another phase, by somebody who waits `settle_ms` for late writes.
    pub(super) fn turned(self, phase: Phase, cutoff_ms: i64, settle_ms: u64) -> Self {
        let copies = phase == Phase::Copying;
        Self {
            generation: self.generation + 1,
            phase,
            cutoff_ms,
            cold_end_ms: if copies { self.cold_end_ms.max(cutoff_ms) } else { self.cold_end_ms },
            moves: self.moves + u64::from(phase == Phase::Moving),
            settle_ms: Some(self.settle_ms.map_or(settle_ms, |before| before.min(settle_ms))),
            archived_ms: self.archived_ms,
        }
    }

    /// Whether a write that landed so long after its view was read is in every copy that a move
    /// closed since: who moves waits at least as long.
    pub(super) fn waited_for(&self, landed: std::time::Duration) -> bool {
        self.settle_ms.is_some_and(|settle_ms| landed.as_millis() < u128::from(settle_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_counts_and_moves_the_end_of_the_cold_tier() {
        let view = View::default().turned(Phase::Copying, 5, 9).turned(Phase::Moving, 5, 7);
        assert_eq!((view.generation, view.cold_end_ms, view.moves), (2, 5, 1));
        assert_eq!(view.turned(Phase::Copying, 3, 8).cold_end_ms, 5);
    }

    #[test]
    fn the_shortest_wait_of_all_counts() {
        let ms = std::time::Duration::from_millis;
        let view = View::default();
        assert!(!view.waited_for(ms(0)));
        let view = view.turned(Phase::Copying, 5, 7).turned(Phase::Closing, 5, 9);
        assert!(view.waited_for(ms(6)) && !view.waited_for(ms(7)));
    }
}
