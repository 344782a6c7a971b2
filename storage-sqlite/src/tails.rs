//! What is sealed of each series, in short: number, extent, newest value. Kept in memory for one
//! version of the blocks, so that `stats`, `series` and the newest samples need no blocks.
//!
//! Own seals carry it along; whatever else changes blocks makes it stale, and it is read anew with
//! the next question that needs it.

use rustc_hash::FxHashMap;

use crate::read::State;
use crate::seal::{NewBlock, OldBlock};

/// The sealed samples of one series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Tail {
    pub(crate) count: u64,
    pub(crate) oldest_ms: i64,
    pub(crate) newest_ms: i64,
    /// The value of the newest sample.
    pub(crate) last: f64,
    /// Whether the block of the newest sample has metadata.
    pub(crate) has_metadata: bool,
}

/// The tails of all series, as of one state of the blocks.
#[derive(Debug, Default)]
pub(crate) struct Tails {
    state: Option<State>,
    by_series: FxHashMap<i64, Tail>,
}

impl Tails {
    /// Takes what was read of a state, unless a later one is here already.
    pub(crate) fn load(&mut self, state: State, tails: impl IntoIterator<Item = (i64, Tail)>) {
        if self.state.is_none_or(|known| known.version < state.version) {
            self.state = Some(state);
            self.by_series = tails.into_iter().collect();
        }
    }

    /// Returns the tails, if they are those of `version`.
    pub(crate) fn of(&self, version: i64) -> Option<&FxHashMap<i64, Tail>> {
        self.state.is_some_and(|state| state.version == version).then_some(&self.by_series)
    }

    /// The state that the tails are those of, once there is one.
    pub(crate) fn state(&self) -> Option<State> {
        self.state
    }

    /// The tail of a series that has blocks.
    pub(crate) fn get(&self, series_id: i64) -> Option<&Tail> {
        self.by_series.get(&series_id)
    }

    /// Follows a step of a seal, which moves samples into blocks and never takes any out.
    pub(crate) fn follow(
        &mut self,
        before: State,
        after: State,
        dropped: &[OldBlock],
        made: &[NewBlock],
    ) {
        if self.state.is_none_or(|state| state.version != before.version) {
            return;
        }
        self.state = Some(after);
        for old in dropped {
            if let Some(tail) = self.by_series.get_mut(&old.series_id) {
                tail.count -= old.count as u64;
            }
        }
        for block in made {
            let new = Tail {
                count: 0,
                oldest_ms: block.start_ms,
                newest_ms: i64::MIN,
                last: 0.0,
                has_metadata: false,
            };
            let tail = self.by_series.entry(block.series_id).or_insert(new);
            tail.count += block.summary.count;
            tail.oldest_ms = tail.oldest_ms.min(block.start_ms);
            if block.end_ms >= tail.newest_ms {
                tail.newest_ms = block.end_ms;
                tail.last = block.summary.last.unwrap_or_default();
                tail.has_metadata = block.has_metadata;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::RawSample;
    use crate::seal::new_block;

    fn state(version: i64) -> State {
        State { sealed_id: 0, sealing_id: 0, sealing_next: 0, version }
    }

    fn block(times: std::ops::Range<i64>) -> NewBlock {
        let samples: Vec<_> =
            times.map(|ms| RawSample { ms, value: ms as f64, metadata: None }).collect();
        new_block(1, &samples).unwrap()
    }

    #[test]
    fn tails_follow_seals_and_know_when_they_are_stale() {
        let mut tails = Tails::default();
        assert!(tails.of(0).is_none());
        tails.load(state(0), []);
        tails.follow(state(0), state(1), &[], &[block(10..20)]);
        let old = OldBlock {
            series_id: 1,
            start_ms: 10,
            end_ms: 19,
            count: 10,
            payload_id: 1,
            payload_bytes: 0,
        };
        tails.follow(state(1), state(2), &[old], &[block(10..25), block(5..8)]);
        let tail = tails.of(2).unwrap()[&1];
        assert_eq!((tail.count, tail.oldest_ms, tail.newest_ms, tail.last), (18, 5, 24, 24.0));
        tails.follow(state(7), state(8), &[], &[block(90..99)]);
        assert!(tails.of(8).is_none() && tails.of(2).is_some());
        tails.load(state(1), []);
        assert!(tails.of(2).is_some_and(|tails| tails.len() == 1), "read before, loaded after");
    }
}
