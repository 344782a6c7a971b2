//! `storage stats`: size and extent.

use std::process::ExitCode;

use anyhow::Result;
use storage::StorageBackend;

use crate::output::{Cell, Output};

pub(super) async fn run(
    store: &dyn StorageBackend,
    output: &mut Output,
    shown_url: &str,
) -> Result<ExitCode> {
    let stats = store.stats().await?;
    let per_sample = stats.disk_usage_bytes as f64 / stats.total_metrics as f64;
    let per_sample = Some(per_sample).filter(|ratio| ratio.is_finite());
    output.record(vec![
        ("url", Cell::text(shown_url)),
        ("backend", Cell::text(store.name())),
        ("samples", Cell::Count(stats.total_metrics)),
        ("series", Cell::Count(stats.series)),
        ("disk_usage_bytes", Cell::Bytes(stats.disk_usage_bytes)),
        ("bytes_per_sample", Cell::or_empty(per_sample, Cell::Derived)),
        ("oldest", Cell::or_empty(stats.oldest_metric, Cell::Time)),
        ("newest", Cell::or_empty(stats.newest_metric, Cell::Time)),
    ])?;
    Ok(ExitCode::SUCCESS)
}
