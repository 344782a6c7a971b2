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

impl Values {
    fn of(self, walk: f64) -> f64 {
        match self {
            Self::Integers => walk.trunc(),
            Self::TwoDecimals => (walk * 100.0).round() / 100.0,
            Self::FullPrecision => walk,
        }
    }
}

/// A fleet of hosts that report at fixed steps; made as it is asked for, never held as a whole.
///
/// ```
/// use storage_benches::tsbs::{Fleet, Values};
///
/// let mut fleet = Fleet::new(100, chrono::Duration::seconds(10), Values::Integers, 123);
/// assert_eq!(fleet.batch().len(), 1000);
/// let value = fleet.batch()[0].value;
/// assert!(value.fract() == 0.0 && (0.0..=100.0).contains(&value));
///
/// let mut fleet = fleet.in_batches_of(10_000);
/// assert_eq!(fleet.batch().len(), 10_000);
/// ```
#[derive(Debug)]
pub struct Fleet {
    /// The records of one or more whole steps, of which the first `taken` were handed out.
    records: Vec<MetricRecord>,
    taken: usize,
    batch: usize,
    walks: Vec<f64>,
    next: DateTime<Utc>,
    step: Duration,
    values: Values,
    random: fastrand::Rng,
}

impl Fleet {
    /// Starts at 2016-01-01, as the suite does, with a step to a batch. The same seed gives the
    /// same data, whatever the batches.
    pub fn new(hosts: usize, step: Duration, values: Values, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let start = first_time();
        let names = (0..hosts).flat_map(|host| FIELDS.map(|field| (host, field)));
        let record = |(host, field)| MetricRecord::new(format!("host_{host}"), start, field, 0.0);
        let records: Vec<_> = names.map(record).collect();
        let walks: Vec<_> = records.iter().map(|_| random.f64() * 100.0).collect();
        let series = records.len();
        Self { records, taken: series, batch: series, walks, next: start, step, values, random }
    }

    /// From the next step on, hands out batches of `samples`: parts of a step, or several steps.
    #[must_use]
    pub fn in_batches_of(mut self, samples: usize) -> Self {
        let series = self.walks.len();
        let one_step: Vec<_> = self.records.drain(..).take(series).collect();
        self.records = std::iter::repeat_n(one_step, (samples / series).max(1)).flatten().collect();
        self.taken = self.records.len();
        self.batch = samples.max(1);
        self
    }

    /// Puts the number of a group before the names of the hosts, so that several fleets differ.
    #[must_use]
    pub fn renamed(mut self, group: u64) -> Self {
        for record in &mut self.records {
            record.server_id = format!("group_{group}_{}", record.server_id);
        }
        self
    }

    /// Returns the next batch, in order of time.
    pub fn batch(&mut self) -> &[MetricRecord] {
        if self.taken == self.records.len() {
            self.fill();
        }
        let from = self.taken;
        self.taken = (from + self.batch).min(self.records.len());
        &self.records[from..self.taken]
    }

    /// How many batches `steps` steps are.
    pub fn batches_in(&self, steps: usize) -> usize {
        (steps * self.walks.len()).div_ceil(self.batch)
    }

    /// How many series report.
    pub fn series(&self) -> usize {
        self.walks.len()
    }

    /// The time of the next step.
    pub fn next_time(&self) -> DateTime<Utc> {
        self.next
    }

    fn fill(&mut self) {
        for step in self.records.chunks_mut(self.walks.len()) {
            for (record, walk) in step.iter_mut().zip(&mut self.walks) {
                *walk = (*walk + normal(&mut self.random)).clamp(0.0, 100.0);
                record.timestamp = self.next;
                record.value = self.values.of(*walk);
            }
            self.next += self.step;
        }
        self.taken = 0;
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
