//! A day of operation in moments: the store refuses, lies, hangs, dawdles and goes away for hours;
//! every record is accounted for, and every one that was accepted is stored.

use std::sync::Arc;
use std::time::Duration;

use storage_core::layers::{FaultPlan, Faulty, Operation};
use storage_core::metrics::time::from_ms;
use storage_core::pipeline::{Source, Spool, SpoolLimits};
use storage_core::{HealthStatus, InMemory, MetricRecord, StorageBackend, TimeRange};
use tokio::sync::{broadcast, mpsc};
use tokio::time::sleep;

use crate::support::*;

const SECONDS: i64 = 24 * 3600;

/// Two series a second through each of two channels.
fn step(second: i64, server: &str) -> Vec<MetricRecord> {
    let of = |series: i64| {
        let (time, name) = (from_ms(second * 1000), format!("m{series}"));
        MetricRecord::new(server, time, name, (second * 2 + series) as f64)
    };
    (0..2).map(of).collect()
}

#[tokio::test(start_paused = true)]
async fn every_sample_of_a_day_is_accounted_for() {
    let seed = 20_260_101;
    let plan = FaultPlan::new(seed)
        .with_refused(0.1)
        .with_lost_request(0.05)
        .with_lost_reply(0.05)
        .with_hang_before(0.02)
        .with_hang_after(0.02)
        .with_slow(0.2, seconds(20))
        .only(&[Operation::WriteBatch, Operation::Flush]);
    let store = Arc::new(Faulty::new(
        Faulty::new(InMemory::new(), FaultPlan::new(1).with_refused(1.0)),
        plan,
    ));
    let outage = store.inner().control();
    outage.off();
    let spool_plan = FaultPlan::new(seed + 1).with_coins(0.97, 0.97);
    let spool_store = Arc::new(Faulty::new(InMemory::new(), spool_plan));
    spool_store.control().off();
    let spool = Spool::open(as_dyn(&spool_store), SpoolLimits::default()).await.unwrap();
    spool_store.control().on();

    let (one, receiver_one) = mpsc::channel(16);
    let (two, receiver_two) = broadcast::channel(1024);
    let actor = actor_on(&store)
        .source(Source::mpsc("one", receiver_one))
        .source(Source::broadcast("two", receiver_two))
        .spool(spool)
        .start()
        .unwrap();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut outage_left = 0;
    let mut was_down = false;
    for second in 0..SECONDS {
        one.send(step(second, "one")).await.unwrap();
        two.send(step(second, "two")).unwrap();
        sleep(Duration::from_secs(1)).await;
        // Some six outages a day, of up to two hours.
        if outage_left == 0 && random.u32(0..14_400) == 0 {
            outage_left = random.u32(10..7200);
            outage.on();
        } else if outage_left > 0 {
            outage_left -= 1;
            if outage_left == 0 {
                outage.off();
            }
        }
        if second % 600 == 0 {
            let counters = actor.counters();
            assert_adds_up(&counters);
            was_down |= actor.health().status != HealthStatus::Healthy;
        }
    }
    outage.off();
    drop((one, two));
    actor.drained().await;
    spool_store.control().off();
    let counters = end(&actor).await;
    assert!(was_down && counters.drained > 0 && counters.write_failures > 100, "{counters:?}");
    for source in &counters.sources {
        assert_eq!(source.received, SECONDS as u64 * 2, "{source:?}");
        assert_eq!((source.shed, source.lagged, source.invalid), (0, 0, 0), "{source:?}");
    }
    let inner = store.inner().inner();
    assert_eq!(inner.stats().await.unwrap().total_metrics, SECONDS as u64 * 4);
    for (server, series) in [("one", 0), ("one", 1), ("two", 0), ("two", 1)] {
        let name = format!("m{series}");
        let found = inner.query_range(server, &name, TimeRange::all()).await.unwrap();
        let right = |(second, record): (i64, &MetricRecord)| {
            record.value as i64 == second * 2 + series && record.timestamp == from_ms(second * 1000)
        };
        assert!((0..).zip(&found).all(right) && found.len() as i64 == SECONDS, "{server} {name}");
    }
}
