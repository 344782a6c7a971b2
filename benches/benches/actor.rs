//! The actor between a producer and a SQLite file: how much goes through, what it takes in memory,
//! and what a producer notices of a store that hangs.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use storage_benches::machine::{peak_memory_mib, scratch};
use storage_benches::options::Options;
use storage_benches::report::{OURS, Report};
use storage_benches::timing::{Latencies, median};
use storage_benches::tsbs::{Fleet, Values};
use storage_core::layers::{FaultPlan, Faulty, Operation};
use storage_core::pipeline::{ActorOptions, Backpressure, Source, StorageActor, StorageHandle};
use storage_core::{InMemory, MetricRecord, StorageBackend};
use storage_sqlite::{SqliteBackend, SqliteOptions};
use tokio::sync::mpsc;

const REPETITIONS: usize = 3;

/// Records in one send.
const SEND: usize = 100;

type Sender = mpsc::Sender<Vec<MetricRecord>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    let mut report = Report::new("actor", &options);
    // First, while the process has no other peak.
    report.progress("a store that hangs");
    hanging(&mut report, &options).await?;
    for (what, write_records_max) in [("1000 full", 10_000), ("1000 full, never joined", 1000)] {
        report.progress(what);
        let mut rates = Vec::new();
        for _ in 0..REPETITIONS {
            let samples = options.scaled(6_000_000, 600_000);
            rates.push(end_to_end(samples, write_records_max).await?);
        }
        report.add(what, OURS, "end to end", median(rates), "samples/s");
    }
    println!("{}", report.finish()?);
    Ok(())
}

fn start(
    store: Arc<dyn StorageBackend>,
    options: ActorOptions,
    backpressure: Backpressure,
) -> Result<(Sender, StorageHandle), Box<dyn Error>> {
    let (sender, receiver) = mpsc::channel(64);
    let source = Source::mpsc("fleet", receiver).with_backpressure(backpressure);
    Ok((sender, StorageActor::new(store).source(source).options(options).start()?))
}

fn fleet() -> Fleet {
    Fleet::new(100, chrono::Duration::seconds(10), Values::Integers, 123).in_batches_of(SEND)
}

/// Samples a second from the first send until everything is stored durably.
async fn end_to_end(samples: usize, write_records_max: usize) -> Result<f64, Box<dyn Error>> {
    let dir = scratch()?;
    let sqlite = SqliteOptions::new(dir.path().join("bench.db"));
    let store = Arc::new(SqliteBackend::open(sqlite).await?);
    let options = ActorOptions::default().with_write_records_max(write_records_max);
    let (sender, actor) = start(Arc::<SqliteBackend>::clone(&store), options, Backpressure::Wait)?;
    let started = Instant::now();
    let producer = tokio::spawn(async move {
        let mut fleet = fleet();
        for _ in 0..samples / SEND {
            sender.send(fleet.batch().to_vec()).await.map_err(|error| error.to_string())?;
        }
        Ok::<_, String>(())
    });
    producer.await??;
    let report = actor.shutdown(Duration::from_secs(600)).await;
    let rate = samples as f64 / started.elapsed().as_secs_f64();
    let stored = store.stats().await?.total_metrics;
    if !report.is_complete() || stored != samples as u64 {
        return Err(format!("{stored} of {samples} samples are stored").into());
    }
    store.close().await?;
    Ok(rate)
}

/// What a producer of 100,000 records a second notices, and what the actor takes in memory, when
/// the store works and when it hangs.
async fn hanging(report: &mut Report, options: &Options) -> Result<(), Box<dyn Error>> {
    let time = Duration::from_millis(options.scaled(10_000, 1000) as u64);
    for (what, share) in [("store works", 0.0), ("store hangs", 1.0)] {
        let plan = FaultPlan::new(1).with_hang_before(share).only(&[Operation::WriteBatch]);
        let store: Arc<dyn StorageBackend> = match what {
            // Nothing that grows, so that the memory is the actor's.
            "store hangs" => Arc::new(Faulty::new(InMemory::new(), plan)),
            _ => Arc::new(Nowhere(InMemory::new())),
        };
        let (sender, actor) = start(store, ActorOptions::default(), Backpressure::ShedOldest)?;
        let before = peak_memory_mib();
        let sends = tokio::spawn(produce(sender, time)).await?;
        report.add(what, OURS, "own memory", peak_memory_mib() - before, "MiB");
        report.add(what, OURS, "send p50", sends.quantile_ms(0.5), "ms");
        report.add(what, OURS, "send p99", sends.quantile_ms(0.99), "ms");
        report.add(what, OURS, "send max", sends.quantile_ms(1.0), "ms");
        let held = actor.health().memory_bytes as f64;
        report.add(what, OURS, "records held", held / f64::from(1 << 20), "MiB");
        drop(actor.shutdown(Duration::ZERO).await);
    }
    Ok(())
}

async fn produce(sender: Sender, time: Duration) -> Latencies {
    let (mut fleet, mut sends) = (fleet(), Latencies::default());
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    let started = Instant::now();
    while started.elapsed() < time {
        ticks.tick().await;
        let records = fleet.batch().to_vec();
        let before = Instant::now();
        if sender.send(records).await.is_err() {
            break;
        }
        sends.push(before.elapsed());
    }
    sends
}

/// Takes everything and keeps nothing.
struct Nowhere(InMemory);

#[async_trait::async_trait]
impl StorageBackend for Nowhere {
    async fn write_batch(&self, _: &[MetricRecord]) -> storage_core::Result<()> {
        Ok(())
    }
    async fn query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: storage_core::TimeRange,
    ) -> storage_core::Result<Vec<MetricRecord>> {
        self.0.query_range(server_id, metric_type, range).await
    }
    async fn aggregate(
        &self,
        server_id: &str,
        metric_type: &str,
        range: storage_core::TimeRange,
    ) -> storage_core::Result<storage_core::MetricAggregation> {
        self.0.aggregate(server_id, metric_type, range).await
    }
    async fn prune_before(
        &self,
        cutoff: chrono::DateTime<chrono::Utc>,
    ) -> storage_core::Result<u64> {
        self.0.prune_before(cutoff).await
    }
    async fn stats(&self) -> storage_core::Result<storage_core::StorageStats> {
        self.0.stats().await
    }
}
