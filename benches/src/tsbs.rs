//! Data of the Time Series Benchmark Suite, use case `cpu-only`, after its published definition:
//! every host reports ten fields at every step, each a random walk between 0 and 100.

use chrono::{DateTime, Duration, TimeZone, Utc};
use storage_core::MetricRecord;

/// The fields of a host, in the order of the suite.
pub const FIELDS: [&str; 10] = [
    "usage_user",
    "usage_system",
    "usage_idle",
    "usage_nice",
    "usage_iowait",
    "usage_irq",
    "usage_softirq",
    "usage_steal",
    "usage_guest",
    "usage_guest_nice",
];

/// How values are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// Whole numbers, as the suite writes them.
    Integers,
    /// Rounded to two decimals, as most gauges are.
    TwoDecimals,
    /// As the walk has them.
    FullPrecision,
}

/// A fleet of hosts that report at fixed steps.
///
/// ```
/// use storage_benches::tsbs::{Fleet, Values};
///
/// let mut fleet = Fleet::new(100, chrono::Duration::seconds(10), Values::Integers, 123);
/// assert_eq!(fleet.tick().len(), 1000);
/// let value = fleet.tick()[0].value;
/// assert!(value.fract() == 0.0 && (0.0..=100.0).contains(&value));
/// ```
#[derive(Debug)]
pub struct Fleet {
    records: Vec<MetricRecord>,
    walks: Vec<f64>,
    next: DateTime<Utc>,
    step: Duration,
    values: Values,
    random: fastrand::Rng,
}

impl Fleet {
    /// Starts at 2016-01-01, as the suite does. The same seed gives the same data.
    pub fn new(hosts: usize, step: Duration, values: Values, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let start = first_time();
        let names = (0..hosts).flat_map(|host| FIELDS.map(|field| (host, field)));
        let record = |(host, field)| MetricRecord::new(format!("host_{host}"), start, field, 0.0);
        let records: Vec<_> = names.map(record).collect();
        let walks = records.iter().map(|_| random.f64() * 100.0).collect();
        Self { records, walks, next: start, step, values, random }
    }

    /// Returns the records of the next step: every field of every host at one time.
    pub fn tick(&mut self) -> &[MetricRecord] {
        for (record, walk) in self.records.iter_mut().zip(&mut self.walks) {
            *walk = (*walk + normal(&mut self.random)).clamp(0.0, 100.0);
            record.timestamp = self.next;
            record.value = match self.values {
                Values::Integers => walk.trunc(),
                Values::TwoDecimals => (*walk * 100.0).round() / 100.0,
                Values::FullPrecision => *walk,
            };
        }
        self.next += self.step;
        &self.records
    }

    /// The time of the next step.
    pub fn next_time(&self) -> DateTime<Utc> {
        self.next
    }

    /// Returns at least `count` records as one batch, in order of time.
    pub fn batch(&mut self, count: usize) -> Vec<MetricRecord> {
        let mut batch = Vec::with_capacity(count + self.records.len());
        while batch.len() < count {
            batch.extend_from_slice(self.tick());
        }
        batch
    }
}

/// The time of the first step.
pub fn first_time() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2016, 1, 1, 0, 0, 0).earliest().unwrap_or_default()
}

/// A draw from the standard normal distribution (Box and Muller 1958).
fn normal(random: &mut fastrand::Rng) -> f64 {
    let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.f64()).cos()
}
