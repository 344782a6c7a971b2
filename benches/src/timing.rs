//! Numbers out of repeated runs: the machines are noisy, so medians and percentiles, not means.

use std::time::{Duration, Instant};

/// Returns the median.
pub fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Returns the median of the ratios of neighbours in time.
pub fn median_ratio(of: &[f64], to: &[f64]) -> f64 {
    median(of.iter().zip(to).map(|(of, to)| of / to).collect())
}

/// Durations of single calls.
#[derive(Debug, Default, Clone)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// Adds one call.
    pub fn push(&mut self, duration: Duration) {
        self.0.push(duration);
    }

    /// Adds the calls of another run.
    pub fn extend(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    /// How many calls there were.
    pub fn calls(&self) -> usize {
        self.0.len()
    }

    /// What all calls took together.
    pub fn total(&self) -> Duration {
        self.0.iter().sum()
    }

    /// Returns the duration that the fraction `quantile` of the calls did not exceed, in
    /// milliseconds.
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let index = ((sorted.len() as f64 - 1.0) * quantile).round().max(0.0) as usize;
        sorted.get(index).map_or(f64::NAN, |duration| duration.as_secs_f64() * 1e3)
    }
}

/// Calls that write, and how many samples they wrote.
#[derive(Debug, Default, Clone)]
pub struct Writes {
    /// Each call.
    pub latencies: Latencies,
    /// Samples acknowledged.
    pub samples: usize,
}

impl Writes {
    /// Adds a call that began at `before` and has just been acknowledged.
    pub fn acknowledged(&mut self, before: Instant, samples: usize) {
        self.latencies.push(before.elapsed());
        self.samples += samples;
    }

    /// Samples a second while a call was under way.
    pub fn rate(&self) -> f64 {
        self.samples as f64 / self.latencies.total().as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_calls_that_happened() {
        let mut latencies = Latencies::default();
        for ms in (1..=100).rev() {
            latencies.push(Duration::from_millis(ms));
        }
        assert_eq!(latencies.quantile_ms(0.0), 1.0);
        assert_eq!(latencies.quantile_ms(0.99), 99.0);
        assert_eq!(latencies.quantile_ms(1.0), 100.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
