//! `storage archive`: old samples from a hot store to a cold one.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use indicatif::ProgressBar;
use storage::compose::Tiered;
use storage::pipeline::{ArchiveOptions, ArchiveProgress, ArchiveReport, ArchiveStep, archive};
use storage::{StorageBackend, TierUrls};

use crate::args::Archive;
use crate::output::{Cell, Output, progress, text};
use crate::store;

pub(super) async fn run(args: &Archive, output: &mut Output) -> Result<ExitCode> {
    let started = Instant::now();
    let age = TimeDelta::from_std(args.older_than).unwrap_or(TimeDelta::MAX);
    let cutoff = Utc::now().checked_sub_signed(age).unwrap_or(DateTime::<Utc>::MIN_UTC);
    let mut options =
        ArchiveOptions::before(cutoff).with_window(args.window).with_dry_run(args.dry_run);
    if let Some(rate) = args.rate {
        options = options.with_samples_per_second(rate);
    }
    let tiers = open(args).await?;
    let bar = progress::of_parts(output);
    let result = archive(&tiers, &options, |at| show(&bar, at)).await;
    bar.finish_and_clear();
    let closed = tiers.close().await;
    let report = result?;
    closed?;
    print(args, output, &report, cutoff, started)?;
    Ok(ExitCode::SUCCESS)
}

async fn open(args: &Archive) -> Result<Tiered> {
    // A typo must not come out as an empty store with nothing to archive.
    let hot = store::open_existing(&args.hot).await?;
    if args.dry_run {
        // What would be moved depends on the hot tier alone.
        let nothing = || storage::connect("memory://");
        let hot = Arc::clone(hot.metrics());
        return Ok(Tiered::open(hot, nothing().await?, nothing().await?).await?);
    }
    hot.close().await?;
    let urls = match &args.control {
        Some(control) => {
            TierUrls { hot: args.hot.clone(), cold: args.cold.clone(), control: control.clone() }
        }
        None => TierUrls::new(&args.hot, &args.cold)?,
    };
    Ok(urls.open(true).await?)
}

fn show(bar: &ProgressBar, at: &ArchiveProgress) {
    let ms = |span: TimeDelta| span.num_milliseconds().unsigned_abs();
    let is_done = at.step == ArchiveStep::Pruned;
    let reached = if is_done { at.window.end() } else { at.window.start() };
    bar.set_length(ms(at.extent.end() - at.extent.start()));
    bar.set_position(ms(reached - at.extent.start()));
    let step = match at.step {
        ArchiveStep::Copying => "copying",
        ArchiveStep::Copied => "verifying",
        ArchiveStep::Verified | ArchiveStep::Published => "removing",
        _ => "done",
    };
    let samples = text::counted(at.samples_copied, "sample");
    let rate = at.samples_copied as f64 / bar.elapsed().as_secs_f64().max(1e-3);
    let day = at.window.start().format("%Y-%m-%d %H:%M");
    bar.set_message(format!("{day} {step}, {samples}, {rate:.0}/s"));
}

fn print(
    args: &Archive,
    output: &mut Output,
    report: &ArchiveReport,
    cutoff: DateTime<Utc>,
    started: Instant,
) -> Result<()> {
    let seconds = (started.elapsed().as_secs_f64() * 1e3).round() / 1e3;
    let moved = if args.dry_run { "would_move" } else { "moved" };
    output.record(vec![
        ("before", Cell::Time(cutoff)),
        ("windows", Cell::Count(report.windows)),
        (moved, Cell::Count(report.samples)),
        ("seconds", Cell::Derived(seconds)),
    ])?;
    Ok(())
}
