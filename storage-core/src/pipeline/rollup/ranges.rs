//! Sets of time: disjoint ranges of milliseconds, and how windows lie in them.

use serde::{Deserialize, Serialize};

use crate::metrics::time::window_start_ms;

/// Half-open ranges of milliseconds, in order; none is empty, no two touch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Ranges(Vec<(i64, i64)>);

impl Ranges {
    /// The ranges in any order, joined where they touch.
    pub(super) fn of(ranges: impl IntoIterator<Item = (i64, i64)>) -> Self {
        let mut all: Vec<_> = ranges.into_iter().filter(|(start, end)| start < end).collect();
        all.sort_unstable();
        let mut joined: Vec<(i64, i64)> = Vec::with_capacity(all.len());
        for (start, end) in all {
            match joined.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => joined.push((start, end)),
            }
        }
        Self(joined)
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (i64, i64)> + '_ {
        self.0.iter().copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, ms: i64) -> bool {
        let after = self.0.partition_point(|(start, _)| *start <= ms);
        after > 0 && ms < self.0[after - 1].1
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        Self::of(self.iter().chain(other.iter()))
    }

    /// What lies in `[start_ms, end_ms)`.
    pub(super) fn cut(&self, start_ms: i64, end_ms: i64) -> Self {
        Self::of(self.iter().map(|(start, end)| (start.max(start_ms), end.min(end_ms))))
    }

    /// The windows of `width_ms` that this touches.
    pub(super) fn widened(&self, width_ms: i64) -> Self {
        let outward = |(start, end)| (window_start_ms(start, width_ms), align_up(end, width_ms));
        Self::of(self.iter().map(outward))
    }

    /// The same with the smallest gaps filled, so that at most `count` ranges are left.
    pub(super) fn at_most(&self, count: usize) -> Self {
        let mut gaps: Vec<_> = self.0.windows(2).map(|two| (two[0].1, two[1].0)).collect();
        let fills = (gaps.len() + 1).saturating_sub(count.max(1));
        gaps.sort_unstable_by_key(|(start, end)| end - start);
        Self::of(self.iter().chain(gaps.into_iter().take(fills)))
    }
}

/// The start of the first window of `width_ms` that begins at `ms` or later.
pub(super) fn align_up(ms: i64, width_ms: i64) -> i64 {
    let start = window_start_ms(ms, width_ms);
    if start == ms { ms } else { start + width_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ranges: &[(i64, i64)]) -> Ranges {
        Ranges::of(ranges.iter().copied())
    }

    #[test]
    fn ranges_are_joined_and_found() {
        let ranges = of(&[(5, 7), (1, 3), (3, 4), (9, 9), (6, 8)]);
        assert_eq!(ranges, Ranges(vec![(1, 4), (5, 8)]));
        let inside: Vec<_> = (0..9).filter(|ms| ranges.contains(*ms)).collect();
        assert_eq!(inside, [1, 2, 3, 5, 6, 7]);
        assert!(!Ranges::default().contains(0) && Ranges::default().is_empty());
    }

    #[test]
    fn sets_are_cut_and_joined() {
        let (one, other) = (of(&[(0, 10), (20, 30)]), of(&[(2, 4), (8, 22), (40, 50)]));
        assert_eq!(one.union(&other), of(&[(0, 30), (40, 50)]));
        assert_eq!(one.cut(5, 25), of(&[(5, 10), (20, 25)]));
    }

    #[test]
    fn windows_go_outward_also_before_the_epoch() {
        assert_eq!(of(&[(-1, 1), (15, 16)]).widened(10), of(&[(-10, 20)]));
        assert_eq!((align_up(-1, 10), align_up(0, 10), align_up(1, 10)), (0, 0, 10));
    }

    #[test]
    fn the_smallest_gaps_are_filled() {
        let ranges = of(&[(0, 1), (2, 3), (10, 11), (13, 14)]);
        assert_eq!(ranges.at_most(2), of(&[(0, 3), (10, 14)]));
        assert_eq!((ranges.at_most(9), ranges.at_most(0)), (ranges.clone(), of(&[(0, 14)])));
    }
}
