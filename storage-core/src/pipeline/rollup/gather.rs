//! Samples gathered by series and window.

use super::row::Rollup;
use crate::metrics::time::{floor_ms, window_start_ms};
use crate::metrics::{Accumulator, Sample, SeriesKey};

/// Gathers samples of one window, in order of time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gathering {
    pub(super) start_ms: i64,
    first_ms: i64,
    last_ms: i64,
    values: Accumulator,
}

impl Gathering {
    pub(super) fn new(start_ms: i64, first_ms: i64) -> Self {
        Self { start_ms, first_ms, last_ms: first_ms, values: Accumulator::default() }
    }

    pub(super) fn push(&mut self, ms: i64, value: f64) {
        self.last_ms = ms;
        self.values.push(value);
    }

    /// `None` if there was no sample.
    pub(super) fn finish(&self) -> Option<Rollup> {
        let all = self.values.finish();
        Some(Rollup {
            count: all.count,
            sum: all.sum?,
            min: all.min?,
            max: all.max?,
            first: all.first?,
            last: all.last?,
            first_ms: self.first_ms,
            last_ms: self.last_ms,
        })
    }
}

/// Cuts samples that come in order of series, then time, into windows.
#[derive(Debug)]
pub(super) struct Windowing {
    width_ms: i64,
    open: Option<(SeriesKey, Gathering)>,
}

impl Windowing {
    pub(super) fn new(width_ms: i64) -> Self {
        Self { width_ms, open: None }
    }

    /// Takes the next sample, and returns the window before if this one is of another.
    pub(super) fn push(
        &mut self,
        series: &SeriesKey,
        sample: &Sample,
    ) -> Option<(SeriesKey, Gathering)> {
        let ms = floor_ms(sample.timestamp);
        if let Some((open, gathering)) = &mut self.open {
            let is_in_time = ms - gathering.start_ms < self.width_ms && ms >= gathering.start_ms;
            if is_in_time && open == series {
                gathering.push(ms, sample.value);
                return None;
            }
        }
        let mut gathering = Gathering::new(window_start_ms(ms, self.width_ms), ms);
        gathering.push(ms, sample.value);
        self.open.replace((series.clone(), gathering))
    }

    /// Returns the last window.
    pub(super) fn finish(&mut self) -> Option<(SeriesKey, Gathering)> {
        self.open.take()
    }
}
