//! `storage adopt`: Parquet files of others into the store.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use storage::{Error, ErrorKind, MetricRecord, StorageBackend};
use tokio::sync::mpsc;

use crate::args::Adopt;
use crate::output::{Cell, Output, progress, text};

/// Batches that are read ahead of the store.
const BATCHES_AHEAD: usize = 2;

pub(super) async fn run(
    store: &dyn StorageBackend,
    args: &Adopt,
    output: &mut Output,
) -> Result<ExitCode> {
    let mut files = Vec::new();
    for path in &args.paths {
        find_files(path, &mut files)?;
    }
    if files.is_empty() {
        bail!("there is no *.parquet file in {}", args.paths[0].display());
    }
    let count = files.len() as u64;
    let (sender, mut batches) = mpsc::channel(BATCHES_AHEAD);
    let batch_size = args.batch_size as usize;
    let reading = tokio::task::spawn_blocking(move || read_all(&files, batch_size, &sender));
    let progress = progress::of_events(output);
    let mut samples = 0;
    while let Some(batch) = batches.recv().await {
        store.write_batch(&batch).await?;
        samples += batch.len() as u64;
        progress.set_message(format!("{} adopted", text::counted(samples, "sample")));
    }
    progress.finish_and_clear();
    reading.await??;
    output.record(vec![("files", Cell::Count(count)), ("samples", Cell::Count(samples))])?;
    Ok(ExitCode::SUCCESS)
}

/// Collects files: those named, and those below directories that are named, in order.
fn find_files(path: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        found.push(path.to_owned());
        return Ok(());
    }
    let entries = std::fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>());
    let mut entries = entries.with_context(|| format!("cannot list {}", path.display()))?;
    entries.sort_unstable();
    for entry in entries {
        let is_file = entry.extension().is_some_and(|extension| extension == "parquet");
        if entry.is_dir() || is_file {
            find_files(&entry, found)?;
        }
    }
    Ok(())
}

fn read_all(
    files: &[PathBuf],
    batch_size: usize,
    sender: &mpsc::Sender<Vec<MetricRecord>>,
) -> Result<()> {
    let mut batch = Vec::new();
    let send = |batch: Vec<MetricRecord>| {
        let gone = |_| Error::new(ErrorKind::Closed, "the store failed");
        if batch.is_empty() { Ok(()) } else { sender.blocking_send(batch).map_err(gone) }
    };
    for file in files {
        storage_parquet::read_parquet_file(file, |records| {
            for record in records {
                batch.push(record);
                if batch.len() >= batch_size {
                    send(std::mem::take(&mut batch))?;
                }
            }
            Ok(())
        })?;
    }
    Ok(send(batch)?)
}
