//! `storage repair`: makes the second store of a mirror hold what the first one holds.

use std::process::ExitCode;

use anyhow::{Result, bail};
use storage::compose::Mirrored;
use storage::pipeline::CopyOptions;
use storage::{ErrorKind, MirrorUrls, StorageBackend};

use crate::args::Repair;
use crate::output::{Cell, Output, text};
use crate::store::shown;

pub(super) async fn run(url: &str, args: &Repair, output: &mut Output) -> Result<ExitCode> {
    let mut options = CopyOptions::default()
        .with_filter(args.chosen.filter()?)
        .with_range(args.span.range()?)
        .with_window(args.window);
    if let Some(rate) = args.rate {
        options = options.with_samples_per_second(rate);
    }
    let mirrored = open(url).await?;
    let done = match args.verify {
        true => verify(&mirrored, &options, output).await,
        false => repair(&mirrored, &options, output).await,
    };
    let closed = mirrored.close().await;
    let code = done?;
    closed?;
    Ok(code)
}

/// Opens both stores, which must exist: a typo must not come out as one that lacks everything.
async fn open(url: &str) -> Result<Mirrored> {
    if !url.starts_with("mirrored://") {
        bail!("only mirrors are repaired; say --url 'mirrored://?primary=URL&secondary=URL'");
    }
    match MirrorUrls::parse(url)?.open(false).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("there is no store at {}", error.context("path").unwrap_or(&shown(url)))
        }
        mirrored => Ok(mirrored?),
    }
}

async fn verify(
    mirrored: &Mirrored,
    options: &CopyOptions,
    output: &mut Output,
) -> Result<ExitCode> {
    let found = mirrored.verify(options.filter(), options.range()).await?;
    output.record(vec![
        ("samples", Cell::Count(found.source.samples)),
        ("missing", Cell::Count(found.missing)),
        ("different", Cell::Count(found.different)),
        ("extra", Cell::Count(found.extra)),
    ])?;
    note_extra(output, found.extra);
    Ok(if found.holds_source() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn repair(
    mirrored: &Mirrored,
    options: &CopyOptions,
    output: &mut Output,
) -> Result<ExitCode> {
    let report = mirrored.repair(options).await?;
    output.record(vec![
        ("windows", Cell::Count(report.windows)),
        ("windows_repaired", Cell::Count(report.windows_repaired)),
        ("samples_repaired", Cell::Count(report.samples_repaired)),
        ("extra", Cell::Count(report.samples_extra)),
    ])?;
    note_extra(output, report.samples_extra);
    Ok(ExitCode::SUCCESS)
}

/// Says what is left to be done by hand.
fn note_extra(output: &Output, extra: u64) {
    if extra > 0 {
        let extra = text::counted(extra, "sample");
        output.note(&format!(
            "only the secondary holds {extra}; if the primary was pruned, prune it too: \
             storage prune --url SECONDARY --before TIME"
        ));
    }
}
