//! Questions: those of TSBS against SQL by hand, an hour of one series, `stats`, a dashboard.

use std::time::{Duration, Instant};

use storage_benches::options::Options;
use storage_benches::queries::{Draw, QUESTIONS, Question, Row, ask, difference};
use storage_benches::report::{OURS_POSTGRES, Report};
use storage_benches::timing::Latencies;
use storage_benches::tsbs::{FIELDS, Fleet, Values, first_time};
use storage_core::{SeriesFilter, StorageBackend, TimeRange};
use storage_postgres::PostgresBackend;

use crate::by_hand::ByHand;
use crate::{HOSTS, Outcome, Server};

const SCHEMA: &str = "bench_tsbs";

/// Steps of 10 s: a thousand samples each, ten million in all.
const STEPS: usize = 10_000;

/// Half a day, which the questions need, and a little more.
const QUICK_STEPS: usize = 4400;

/// A million samples.
const DASHBOARD_STEP: usize = 1000;

/// Calls before those that count: they prepare statements, and learn how dense the series are.
const WARM_UP: usize = 3;

pub(crate) async fn run(report: &mut Report, server: &Server, options: &Options) -> Outcome<()> {
    let store = server.open(SCHEMA).await?;
    report.progress("loading");
    let data = load(report, &store, options.scaled(STEPS, QUICK_STEPS)).await?;
    let setting = format!(
        "SET search_path = {SCHEMA}; VACUUM ANALYZE samples; VACUUM ANALYZE series;
         SET plan_cache_mode = force_custom_plan; SET jit = off"
    );
    for sql in setting.split(';') {
        server.raw.batch_execute(sql).await?;
    }
    let mut by_hand = ByHand::new(&server.raw);
    for (name, question) in QUESTIONS {
        report.progress(name);
        let calls = match question {
            Question::DoubleGroupby { .. } | Question::Lastpoint => options.scaled(9, 3),
            _ => options.scaled(60, 10),
        };
        tsbs(report, &store, &mut by_hand, data, (name, *question), calls).await?;
    }
    report.progress("one series");
    one_series(report, &store, data, options.scaled(200, 30)).await?;
    store.close().await?;
    server.remove(SCHEMA).await
}

/// Loads the fleet, and asks what a dashboard asks when a million samples are there.
async fn load(report: &mut Report, store: &PostgresBackend, steps: usize) -> Outcome<TimeRange> {
    let step = chrono::Duration::seconds(10);
    let mut fleet = Fleet::new(HOSTS, step, Values::Integers, 123).in_batches_of(50_000);
    let mut loading = Latencies::default();
    for written in (0..steps).step_by(50) {
        if written == DASHBOARD_STEP {
            let data = TimeRange::new(first_time(), fleet.next_time())?;
            let p50 = dashboard(store, data).await?.quantile_ms(0.5);
            let what = "target: dashboards under 100 ms at a million samples";
            report.add(what, OURS_POSTGRES, "p50", p50, "ms");
        }
        let before = Instant::now();
        store.write_batch(fleet.batch()).await?;
        loading.push(before.elapsed());
    }
    let stats = store.stats().await?;
    let rate = stats.total_metrics as f64 / loading.total().as_secs_f64();
    report.add("load 50000", OURS_POSTGRES, "acknowledged", rate, "samples/s");
    let bytes = stats.disk_usage_bytes as f64 / stats.total_metrics as f64;
    report.add("load 50000", OURS_POSTGRES, "on disk", bytes, "B/sample");
    Ok(TimeRange::new(first_time(), fleet.next_time())?)
}

/// What a dashboard asks: the newest of everything, an hour of one host by the minute, the totals.
async fn dashboard(store: &PostgresBackend, data: TimeRange) -> Outcome<Latencies> {
    let mut latencies = Latencies::default();
    for host in 0..40 {
        let before = Instant::now();
        store.latest(&SeriesFilter::any(), 1).await?;
        let filter = SeriesFilter::parse(&format!("host_{host}"), "*")?;
        let hour = TimeRange::new(data.end() - chrono::Duration::hours(1), data.end())?;
        store.windows(&filter, hour, Duration::from_secs(60)).await?;
        store.stats().await?;
        latencies.push(before.elapsed());
    }
    Ok(latencies)
}

/// One kind of question many times, each time of other hosts and times, of both in turn.
async fn tsbs(
    report: &mut Report,
    store: &PostgresBackend,
    by_hand: &mut ByHand<'_>,
    data: TimeRange,
    (name, question): (&str, Question),
    calls: usize,
) -> Outcome<()> {
    let mut random = fastrand::Rng::with_seed(7);
    let (mut ours, mut theirs) = (Latencies::default(), Latencies::default());
    for call in 0..calls + WARM_UP {
        let draw = Draw::of(question, HOSTS, data, &mut random);
        let before = Instant::now();
        let answer = ask(store, question, &draw).await?;
        let backend = before.elapsed();
        let before = Instant::now();
        let expected = by_hand.ask(question, &draw).await?;
        let program = before.elapsed();
        if let Some(difference) = difference(&sorted(answer), &sorted(expected)) {
            return Err(format!("{name}: {difference}").into());
        }
        if call >= WARM_UP {
            ours.push(backend);
            theirs.push(program);
        }
    }
    let (ours, theirs) = (ours.quantile_ms(0.5), theirs.quantile_ms(0.5));
    report.add(name, OURS_POSTGRES, "p50", ours, "ms");
    report.add(name, OURS_POSTGRES, "times SQL by hand", ours / theirs, "");
    report.add(name, "SQL by hand", "p50", theirs, "ms");
    Ok(())
}

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    rows
}

async fn one_series(
    report: &mut Report,
    store: &PostgresBackend,
    data: TimeRange,
    calls: usize,
) -> Outcome<()> {
    let mut random = fastrand::Rng::with_seed(7);
    let span_s = (data.end() - data.start()).num_seconds() - 3600;
    let (mut hour, mut stats) = (Latencies::default(), Latencies::default());
    for _ in 0..calls {
        let (host, field) = (format!("host_{}", random.usize(..HOSTS)), FIELDS[random.usize(..10)]);
        let start = data.start() + chrono::Duration::seconds(random.i64(0..span_s.max(1)));
        let range = TimeRange::new(start, start + chrono::Duration::hours(1))?;
        let before = Instant::now();
        assert_eq!(store.query_range(&host, field, range).await?.len(), 360);
        hour.push(before.elapsed());
        let before = Instant::now();
        store.stats().await?;
        stats.push(before.elapsed());
    }
    for (what, latencies) in [("query_range, an hour of a series", hour), ("stats", stats)] {
        report.add(what, OURS_POSTGRES, "p50", latencies.quantile_ms(0.5), "ms");
        report.add(what, OURS_POSTGRES, "p99", latencies.quantile_ms(0.99), "ms");
    }
    Ok(())
}
