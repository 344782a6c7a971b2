//! `storage series`: what there is.

use std::process::ExitCode;

use anyhow::Result;
use storage::StorageBackend;

use crate::args::SeriesArgs;
use crate::output::{Cell, Output};

pub(super) async fn run(
    store: &dyn StorageBackend,
    args: &SeriesArgs,
    output: &mut Output,
) -> Result<ExitCode> {
    let found = store.series(&args.chosen.filter()?).await?;
    let is_empty = found.is_empty();
    let mut rows = output.rows(&["server_id", "metric_type", "count", "oldest", "newest"])?;
    for info in found {
        rows.row(vec![
            Cell::Text(info.series.server_id),
            Cell::Text(info.series.metric_type),
            Cell::Count(info.count),
            Cell::Time(info.oldest),
            Cell::Time(info.newest),
        ])?;
    }
    rows.finish()?;
    drop(rows);
    if is_empty {
        output.note("no series match");
    }
    Ok(ExitCode::SUCCESS)
}
