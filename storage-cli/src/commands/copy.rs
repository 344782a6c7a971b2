//! `storage copy`: samples from one store into another, verified.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use storage::pipeline::{CopyOptions, CopyProgress, CopyReport, copy};
use storage::{ErrorKind, JobQuery, Matcher, Page, StorageBackend, Store};

use crate::args::Copy;
use crate::output::{Cell, Output, progress, text};
use crate::store;

pub(super) async fn run(args: &Copy, output: &mut Output) -> Result<ExitCode> {
    if args.source == args.destination {
        bail!("source and destination are the same store");
    }
    let mut options = CopyOptions::default()
        .with_filter(args.chosen.filter()?)
        .with_range(args.span.range()?)
        .with_window(args.window)
        .with_dry_run(args.dry_run || args.verify);
    if let Some(rate) = args.rate {
        options = options.with_samples_per_second(rate);
    }
    let source = store::open_existing(&args.source).await?;
    let destination = open_destination(args).await?;
    let started = Instant::now();
    let bar = progress::of_parts(output);
    let metrics = &**source.metrics();
    let result = copy(metrics, &*destination, &options, |at| show(&bar, at)).await;
    bar.finish_and_clear();
    let left = left_behind(&source).await;
    if !left.is_empty() {
        output.note(&format!("samples alone are copied, not: {}", left.join(", ")));
    }
    let closed = (source.close().await, destination.close().await);
    let report = result?;
    closed.0?;
    closed.1?;
    print(args, output, &report, started)?;
    let differs = report.samples_missing + report.samples_different > 0;
    Ok(if args.verify && differs { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What the source holds beside samples, as far as it tells.
async fn left_behind(source: &Store) -> Vec<&'static str> {
    let mut left = Vec::new();
    if let Ok(history) = source.history()
        && history.records(&Matcher::any()).await.is_ok_and(|records| !records.is_empty())
    {
        left.push("record history");
    }
    if let Ok(events) = source.events()
        && events.extent().await.is_ok_and(|log| log.last > 0)
    {
        left.push("events");
    }
    if let Ok(jobs) = source.jobs()
        && let first = JobQuery::default().page(Page::first(1))
        && jobs.jobs(&first).await.is_ok_and(|listed| !listed.items.is_empty())
    {
        left.push("jobs");
    }
    left
}

/// Opens the destination; only a copy that writes creates it.
async fn open_destination(args: &Copy) -> Result<Arc<dyn StorageBackend>> {
    if !args.dry_run && !args.verify {
        let whole = store::open(&args.destination, true).await?;
        return Ok(Arc::clone(whole.metrics()));
    }
    match storage::connect_existing(&args.destination).await {
        // Into nothing, everything would be copied.
        Err(error) if error.kind() == ErrorKind::NotFound && args.dry_run => {
            Ok(storage::connect("memory://").await?)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("there is no store at {}", store::shown(&args.destination))
        }
        store => Ok(store?),
    }
}

/// Shows how far a copy is: by samples where their number is known, else by time.
fn show(bar: &ProgressBar, at: &CopyProgress) {
    let ms = |span: chrono::TimeDelta| span.num_milliseconds().unsigned_abs();
    let (done, total) = match at.samples_total {
        Some(total) => (at.samples_done, total),
        None => {
            (ms(at.window.start() - at.extent.start()), ms(at.extent.end() - at.extent.start()))
        }
    };
    bar.set_length(total);
    bar.set_position(done);
    let samples = text::counted(at.samples_done, "sample");
    let rate = at.samples_done as f64 / bar.elapsed().as_secs_f64().max(1e-3);
    let day = at.window.start().format("%Y-%m-%d %H:%M");
    bar.set_message(format!("{day} {samples}, {rate:.0}/s"));
}

fn print(args: &Copy, output: &mut Output, report: &CopyReport, started: Instant) -> Result<()> {
    let seconds = (started.elapsed().as_secs_f64() * 1e3).round() / 1e3;
    let copied = if args.dry_run || args.verify { "samples_to_copy" } else { "samples_copied" };
    output.record(vec![
        ("windows", Cell::Count(report.windows)),
        ("windows_equal", Cell::Count(report.windows_equal)),
        ("samples", Cell::Count(report.source.samples)),
        (copied, Cell::Count(report.samples_copied)),
        ("missing", Cell::Count(report.samples_missing)),
        ("different", Cell::Count(report.samples_different)),
        ("extra", Cell::Count(report.samples_extra)),
        ("checksum", Cell::text(format!("{:032x}", report.source.checksum))),
        ("seconds", Cell::Derived(seconds)),
    ])?;
    Ok(())
}
