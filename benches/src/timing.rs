//! Numbers out of repeated runs: the machines are noisy, so medians and percentiles, not means.

use std::time::Duration;

/// Returns the median.
pub fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Durations of single calls.
#[derive(Debug, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// Adds one call.
    pub fn push(&mut self, duration: Duration) {
        self.0.push(duration);
    }

    /// Returns the duration that the fraction `quantile` of the calls did not exceed, in
    /// milliseconds.
    pub fn quantile_ms(&mut self, quantile: f64) -> f64 {
        self.0.sort_unstable();
        let index = ((self.0.len() as f64 - 1.0) * quantile).round().max(0.0) as usize;
        self.0.get(index).map_or(f64::NAN, |duration| duration.as_secs_f64() * 1e3)
    }
}
