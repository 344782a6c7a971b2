//! `storage query`: the samples of one series.

use std::process::ExitCode;

use anyhow::Result;
use futures_util::TryStreamExt;
use storage::{SeriesFilter, StorageBackend};

use super::note_nothing;
use crate::args::Query;
use crate::output::{Cell, Output};

pub(super) async fn run(
    store: &dyn StorageBackend,
    args: &Query,
    output: &mut Output,
) -> Result<ExitCode> {
    let filter = SeriesFilter::exact(&args.server, &args.metric)?;
    let mut batches = store.scan(&filter, args.span.range()?);
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut is_empty = true;
    let mut rows = output.rows(&["timestamp", "value", "metadata"])?;
    // A scan, because the answer may be larger than memory, or cut short by the limit.
    while left > 0 {
        let Some(batch) = batches.try_next().await? else {
            break;
        };
        let wanted = usize::try_from(left).unwrap_or(usize::MAX);
        for sample in batch.samples.into_iter().take(wanted) {
            left -= 1;
            is_empty = false;
            rows.row(vec![
                Cell::Time(sample.timestamp),
                Cell::Float(sample.value),
                Cell::or_empty(sample.metadata, Cell::Json),
            ])?;
        }
    }
    rows.finish()?;
    drop(rows);
    if is_empty {
        note_nothing(output, &format!("samples of {} {} in that range", args.server, args.metric));
    }
    Ok(ExitCode::SUCCESS)
}
