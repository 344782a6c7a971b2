//! `storage latest`: the newest samples.

use std::process::ExitCode;

use anyhow::Result;
use storage::StorageBackend;

use super::note_nothing;
use crate::args::Latest;
use crate::output::{Cell, Output};

pub(super) async fn run(
    store: &dyn StorageBackend,
    args: &Latest,
    output: &mut Output,
) -> Result<ExitCode> {
    let found = store.latest(&args.chosen.filter()?, args.number).await?;
    let is_empty = found.is_empty();
    let columns = ["server_id", "metric_type", "timestamp", "value", "metadata"];
    let mut rows = output.rows(&columns)?;
    for one in found {
        for sample in one.samples {
            rows.row(vec![
                Cell::text(&one.series.server_id),
                Cell::text(&one.series.metric_type),
                Cell::Time(sample.timestamp),
                Cell::Float(sample.value),
                Cell::or_empty(sample.metadata, Cell::Json),
            ])?;
        }
    }
    rows.finish()?;
    drop(rows);
    if is_empty {
        note_nothing(output, "samples of these series");
    }
    Ok(ExitCode::SUCCESS)
}
