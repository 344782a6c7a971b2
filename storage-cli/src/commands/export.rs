//! `storage export`: samples into a file or a pipe.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt;
use storage::StorageBackend;

use super::note_nothing;
use crate::args::{Export, Format, SampleFormat};
use crate::input::format_of;
use crate::output::samples::SampleWriter;
use crate::output::{Output, progress, text, warn};

pub(super) async fn run(
    store: &dyn StorageBackend,
    args: &Export,
    output: &mut Output,
) -> Result<ExitCode> {
    let format = format_for(args, output)?;
    let exported = match &args.output {
        Some(path) => {
            let (exported, partial) = to_file(store, args, format, output, path).await?;
            if let Some(partial) = partial {
                fs::rename(&partial, path)
                    .with_context(|| format!("cannot rename the export to {}", path.display()))?;
            }
            exported
        }
        None => {
            // Progress would write over samples that are shown.
            let hidden = output.is_terminal();
            let progress = if hidden { None } else { Some(progress::of_events(output)) };
            write_all(store, args, format, output.sink(), progress).await?
        }
    };
    if exported.samples == 0 {
        note_nothing(output, "samples of these series in that range");
    } else if let Some(path) = &args.output {
        let samples = text::counted(exported.samples, "sample");
        output.note(&format!("{samples} written to {}", path.display()));
    }
    if exported.without_metadata > 0 {
        let samples = text::counted(exported.without_metadata, "sample");
        warn(&format!(
            "the metadata of {samples} does not fit into line protocol and was left out"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

struct Exported {
    samples: u64,
    without_metadata: u64,
}

async fn write_all(
    store: &dyn StorageBackend,
    args: &Export,
    format: SampleFormat,
    sink: &mut dyn Write,
    progress: Option<indicatif::ProgressBar>,
) -> Result<Exported> {
    let mut batches = store.scan(&args.chosen.filter()?, args.span.range()?);
    let mut writer = SampleWriter::new(sink, format)?;
    let mut samples = 0;
    while let Some(batch) = batches.try_next().await? {
        writer.write(&batch)?;
        samples += batch.samples.len() as u64;
        if let Some(progress) = &progress {
            progress.set_message(format!("{} exported", text::counted(samples, "sample")));
        }
    }
    if let Some(progress) = progress {
        progress.finish_and_clear();
    }
    Ok(Exported { samples, without_metadata: writer.finish()? })
}

/// Writes to `path`, by way of a file beside it that the caller renames: an export that breaks
/// off must not look like a whole one. What is no ordinary file, such as a pipe, is written as is.
async fn to_file(
    store: &dyn StorageBackend,
    args: &Export,
    format: SampleFormat,
    output: &Output,
    path: &Path,
) -> Result<(Exported, Option<PathBuf>)> {
    let is_special = fs::metadata(path).is_ok_and(|found| !found.is_file());
    let partial = (!is_special).then(|| partial_path(path));
    let target = partial.as_deref().unwrap_or(path);
    let file = File::create(target).with_context(|| format!("cannot write {}", path.display()))?;
    let mut sink = BufWriter::with_capacity(64 << 10, file);
    let progress = Some(progress::of_events(output));
    let result = write_all(store, args, format, &mut sink, progress).await;
    if result.is_err()
        && let Some(partial) = &partial
    {
        // The error that counts is the one before.
        let _ = fs::remove_file(partial);
    }
    let exported = result.with_context(|| format!("cannot export to {}", path.display()))?;
    if partial.is_some() {
        sink.get_ref().sync_all()?;
    }
    Ok((exported, partial))
}

fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().map_or_else(|| OsString::from("export"), OsString::from);
    name.push(".partial");
    path.with_file_name(name)
}

fn format_for(args: &Export, output: &Output) -> Result<SampleFormat> {
    if let Some(format) = args.output_format {
        return Ok(format);
    }
    match output.given_format() {
        Some(Format::Csv) => Ok(SampleFormat::Csv),
        Some(Format::Json) => Ok(SampleFormat::Jsonl),
        Some(Format::Parquet) => Ok(SampleFormat::Parquet),
        Some(Format::Table) => {
            bail!("export writes no tables; say --output-format csv, jsonl, influx or parquet")
        }
        None => {
            let by_name = args.output.as_deref().and_then(format_of);
            Ok(by_name.unwrap_or(SampleFormat::Csv))
        }
    }
}
