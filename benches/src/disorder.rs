//! The data of the fleet with a part of it late: what was held back comes among what is on time.

use std::collections::BTreeMap;

use storage_core::MetricRecord;

use crate::tsbs::Fleet;

/// What fraction is late: one in this many.
const ONE_IN: usize = 10;

/// A fleet of which a tenth of the samples arrive up to `delay_steps` steps late, each as likely
/// as the other. Every sample arrives once.
#[derive(Debug)]
pub struct LateFleet {
    fleet: Fleet,
    random: fastrand::Rng,
    delay_steps: usize,
    steps_left: usize,
    step: usize,
    held: BTreeMap<usize, Vec<MetricRecord>>,
}

impl LateFleet {
    /// Takes `steps` steps of `fleet`, which must hand out a step to a batch.
    pub fn new(fleet: Fleet, steps: usize, delay_steps: usize, seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        let delay_steps = delay_steps.max(1);
        Self { fleet, random, delay_steps, steps_left: steps, step: 0, held: BTreeMap::new() }
    }

    /// Returns what arrives at the next step, `None` when everything has arrived.
    pub fn batch(&mut self) -> Option<Vec<MetricRecord>> {
        if self.steps_left == 0 {
            return self.rest();
        }
        let mut arrived = self.held.remove(&self.step).unwrap_or_default();
        for record in self.fleet.batch() {
            if self.random.usize(..ONE_IN) > 0 {
                arrived.push(record.clone());
            } else {
                let due = self.step + 1 + self.random.usize(..self.delay_steps);
                self.held.entry(due).or_default().push(record.clone());
            }
        }
        self.steps_left -= 1;
        self.step += 1;
        Some(arrived)
    }

    /// What is still held when nothing is on time any more, as many samples as a step has.
    fn rest(&mut self) -> Option<Vec<MetricRecord>> {
        let mut arrived = self.held.pop_first()?.1;
        while arrived.len() < self.fleet.series() {
            let Some((_, next)) = self.held.pop_first() else { break };
            arrived.extend(next);
        }
        Some(arrived)
    }
}

#[cfg(test)]
mod tests {
    use chrono::Duration;

    use super::*;
    use crate::tsbs::Values;

    #[test]
    fn everything_arrives_once_and_some_of_it_late() {
        let fleet = Fleet::new(2, Duration::seconds(10), Values::Integers, 1);
        let mut late = LateFleet::new(fleet, 100, 50, 2);
        let mut seen = std::collections::HashSet::new();
        let (mut newest, mut behind) = (i64::MIN, 0);
        while let Some(batch) = late.batch() {
            for record in batch {
                let ms = record.timestamp.timestamp_millis();
                behind += usize::from(ms < newest);
                newest = newest.max(ms);
                assert!(seen.insert((record.server_id, record.metric_type, ms)));
            }
        }
        assert_eq!(seen.len(), 2000);
        assert!((100..400).contains(&behind), "{behind} late");
    }
}
