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
}

impl Default for View {
    fn default() -> Self {
        Self { generation: 0, phase: Phase::Idle, cutoff_ms: MIN_MS, cold_end_ms: MIN_MS, moves: 0 }
    }
}

impl Published for View {
    const SERVER: &'static str = "tiers";

    fn generation(&self) -> u64 {
        self.generation
    }
}

impl View {
    /// The next view, in another phase.
    pub(super) fn turned(self, phase: Phase, cutoff_ms: i64) -> Self {
        let copies = phase == Phase::Copying;
        Self {
            generation: self.generation + 1,
            phase,
            cutoff_ms,
            cold_end_ms: if copies { self.cold_end_ms.max(cutoff_ms) } else { self.cold_end_ms },
            moves: self.moves + u64::from(phase == Phase::Moving),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_counts_and_moves_the_end_of_the_cold_tier() {
        let view = View::default().turned(Phase::Copying, 5).turned(Phase::Moving, 5);
        assert_eq!((view.generation, view.cold_end_ms, view.moves), (2, 5, 1));
        assert_eq!(view.turned(Phase::Copying, 3).cold_end_ms, 5);
    }
}
