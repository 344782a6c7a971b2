//! `storage compact`: upkeep now.

use std::process::ExitCode;

use anyhow::Result;
use storage::StorageBackend;

use crate::output::{Cell, Output, progress};

pub(super) async fn run(store: &dyn StorageBackend, output: &mut Output) -> Result<ExitCode> {
    let before = store.stats().await?;
    let progress = progress::of_events(output);
    progress.set_message("compacting");
    let result = store.compact().await;
    progress.finish_and_clear();
    result?;
    let after = store.stats().await?;
    output.record(vec![
        ("samples", Cell::Count(after.total_metrics)),
        ("bytes_before", Cell::Bytes(before.disk_usage_bytes)),
        ("bytes_after", Cell::Bytes(after.disk_usage_bytes)),
    ])?;
    Ok(ExitCode::SUCCESS)
}
