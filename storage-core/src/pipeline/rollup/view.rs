//! What all handles on a store with rollups must know: how far what is rolled up, and what is being
//! pruned.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ranges::align_up;
use crate::control::Published;
use crate::metrics::time::MIN_MS;

/// What is being done to the samples before a cutoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// Nothing.
    #[default]
    Idle,
    /// Nobody writes any more of them, so that their rollups can be made for good.
    Closing,
    /// Their rollups count instead of them; some still have to be put together.
    Folding,
    /// Their rollups count instead of them, and they are being removed.
    Pruning,
}

/// How far a tier reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reach {
    /// Windows that end here or before are rolled up, unless they are marked.
    pub(super) rolled_ms: i64,
    /// Windows that begin before this are not kept any more, or never were.
    pub(super) floor_ms: i64,
}

/// The state of a store with rollups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct View {
    /// Grows with every change.
    pub(super) generation: u64,
    pub(super) phase: Phase,
    /// Samples before this are meant by the phase.
    pub(super) cutoff_ms: i64,
    /// No sample that the phase is about is before this.
    pub(super) from_ms: i64,
    /// The number of the prune that is under way, or was last.
    pub(super) turn: u64,
    /// How many prunes have come to the phase in which rollups count instead of samples.
    pub(super) prunes: u64,
    /// Samples before this were removed: there rollups count, and samples that came since, added.
    pub(super) frozen_ms: i64,
    /// How many refreshes have begun.
    pub(super) epoch: u64,
    /// Marks that were made in this epoch, or before, are done with.
    pub(super) done_epoch: u64,
    /// A sample before this may belong to a window that is rolled up, or is about to be.
    pub(super) announced_ms: i64,
    /// By the width of its windows.
    pub(super) tiers: BTreeMap<i64, Reach>,
    /// When retention was applied last.
    pub(super) retained_ms: i64,
    /// The shortest that anybody who rolled up or pruned has waited for writes; none while nobody has.
    pub(super) settle_ms: Option<u64>,
}

impl Default for View {
    fn default() -> Self {
        Self {
            generation: 0,
            phase: Phase::Idle,
            cutoff_ms: MIN_MS,
            from_ms: MIN_MS,
            turn: 0,
            prunes: 0,
            frozen_ms: MIN_MS,
            epoch: 0,
            done_epoch: 0,
            announced_ms: MIN_MS,
            tiers: BTreeMap::new(),
            retained_ms: MIN_MS,
            settle_ms: None,
        }
    }
}

impl Published for View {
    const SERVER: &'static str = "rollups";

    fn generation(&self) -> u64 {
        self.generation
    }
}

impl View {
    /// How far a tier reaches; one that is new knows nothing of what was removed before.
    pub(super) fn reach(&self, width_ms: i64) -> Reach {
        let unknown = Reach { rolled_ms: MIN_MS, floor_ms: self.frozen_end(width_ms) };
        self.tiers.get(&width_ms).copied().unwrap_or(unknown)
    }

    /// The widths of the tiers, from the narrowest.
    pub(super) fn widths(&self) -> impl Iterator<Item = Duration> {
        self.tiers.keys().map(|width_ms| Duration::from_millis(width_ms.unsigned_abs()))
    }

    /// Keeps tiers of these widths from here on, and no other.
    pub(super) fn keep_tiers(&mut self, widths_ms: impl Iterator<Item = i64>) {
        self.tiers = widths_ms.map(|width_ms| (width_ms, self.reach(width_ms))).collect();
    }

    /// The end of the last window of which samples were removed.
    pub(super) fn frozen_end(&self, width_ms: i64) -> i64 {
        match self.frozen_ms {
            MIN_MS => MIN_MS,
            frozen_ms => align_up(frozen_ms, width_ms),
        }
    }

    /// Notes that it is changed by somebody who waits `settle` for writes.
    pub(super) fn note_settle(&mut self, settle: Duration) {
        let settle_ms = u64::try_from(settle.as_millis()).unwrap_or(u64::MAX);
        self.settle_ms = Some(self.settle_ms.map_or(settle_ms, |before| before.min(settle_ms)));
    }

    /// The shortest that anybody has waited for writes, if anybody has.
    pub(super) fn settle(&self) -> Option<Duration> {
        self.settle_ms.map(Duration::from_millis)
    }

    /// Whether a write that landed so long after its view was read is in the rollups of a prune that
    /// began since: who prunes waits at least as long.
    pub(super) fn waited_for(&self, landed: Duration) -> bool {
        self.settle().is_some_and(|settle| landed < settle)
    }

    /// Whether a sample at `ms` may not be written at the moment.
    pub(super) fn keeps_out(&self, ms: i64) -> bool {
        self.phase != Phase::Idle && ms < self.cutoff_ms
    }

    /// Whether a sample at `ms` re-opens a window.
    ///
    /// Where samples were removed nothing is to be opened: what is there is always added.
    pub(super) fn is_late(&self, ms: i64) -> bool {
        (self.frozen_ms..self.announced_ms).contains(&ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_wait_of_all_counts() {
        let ms = Duration::from_millis;
        let mut view = View::default();
        assert!(!view.waited_for(ms(0)));
        view.note_settle(ms(7));
        view.note_settle(ms(9));
        assert!(view.waited_for(ms(6)) && !view.waited_for(ms(7)));
        // One of before this was noted.
        let mut stored = serde_json::to_value(&view).unwrap();
        stored.as_object_mut().unwrap().remove("settle_ms");
        assert_eq!(serde_json::from_value::<View>(stored).unwrap().settle_ms, None);
    }
}
