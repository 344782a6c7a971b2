//! Random operations, every answer compared with one that is computed from all samples.

use super::*;

/// What is known beside the stores.
struct Model {
    place: Place,
    store: Rolled,
    oracle: Oracle,
    random: fastrand::Rng,
}

impl Model {
    async fn new(seed: u64) -> Self {
        // Windows before the epoch are none other.
        let place = Place::new(-5 * MINUTE_MS);
        let store = place.open().await;
        let random = fastrand::Rng::with_seed(seed);
        Self { place, store, oracle: Oracle::default(), random }
    }

    fn now_ms(&self) -> i64 {
        self.place.now_ms.load(SeqCst)
    }

    /// A time in the last ten minutes, often on the bound of a window.
    fn time_ms(&mut self) -> i64 {
        let ms = self.now_ms() - self.random.i64(0..10 * MINUTE_MS);
        match self.random.u8(..3) {
            0 => ms - ms.rem_euclid(10_000),
            _ => ms,
        }
    }

    /// Points that are new, late, or replace what is there; none that was pruned.
    fn points(&mut self) -> Vec<Point> {
        let count = self.random.usize(1..30);
        let mut points = Vec::new();
        for _ in 0..count {
            let series = self.random.usize(..3);
            let value = f64::from(self.random.i8(..));
            let ms = match self.random.u8(..10) {
                0..5 => self.now_ms() - self.random.i64(0..2000),
                5..7 => self.time_ms(),
                _ if self.oracle.there.is_empty() => continue,
                _ => {
                    let nth = self.random.usize(..self.oracle.there.len());
                    self.oracle.there.keys().nth(nth).unwrap().1
                }
            };
            if !self.oracle.pruned.iter().any(|(s, m, _)| (*s, *m) == (series, ms)) {
                points.push((series, ms, value));
            }
        }
        points
    }

    async fn step(&mut self) -> String {
        match self.random.u8(..20) {
            0..9 => {
                let points = self.points();
                self.store.write_batch(&batch(&points)).await.unwrap();
                self.oracle.write(&points);
                format!("write {points:?}")
            }
            9..12 => {
                let later = self.random.i64(0..30_000);
                self.place.now_ms.fetch_add(later, SeqCst);
                format!("later by {later}")
            }
            12..15 => {
                self.store.refresh().await.unwrap();
                "refresh".to_owned()
            }
            15..18 => {
                let cutoff_ms = self.time_ms();
                let removed = self.store.prune_before(from_ms(cutoff_ms)).await.unwrap();
                assert_eq!(removed, self.oracle.prune(cutoff_ms));
                format!("prune {cutoff_ms}")
            }
            _ => {
                self.store = self.place.open().await;
                "reopen".to_owned()
            }
        }
    }

    async fn check(&mut self) {
        check_all(&self.store, &self.oracle).await;
        let there = self.store.stats().await.unwrap().total_metrics;
        assert_eq!(there, self.oracle.there.len() as u64);
        for _ in 0..3 {
            let (one, other) = (self.time_ms(), self.time_ms());
            let asked = range_ms(one.min(other), one.max(other));
            let width_ms = [1000, 2000, 3000, 10_000, 30_000, MINUTE_MS][self.random.usize(..6)];
            check(&self.store, &self.oracle, asked, width_ms).await;
        }
    }
}

#[tokio::test]
async fn every_answer_is_that_of_all_samples() {
    for seed in 0..40 {
        let mut model = Model::new(seed).await;
        for _ in 0..60 {
            let step = model.step().await;
            let at = std::panic::AssertUnwindSafe(model.check());
            if let Err(panic) = futures_util::FutureExt::catch_unwind(at).await {
                eprintln!("seed {seed}, after {step}");
                std::panic::resume_unwind(panic);
            }
        }
    }
}
