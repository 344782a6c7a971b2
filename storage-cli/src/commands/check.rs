//! `storage check`: are the stored bytes what was written.

use std::process::ExitCode;

use anyhow::Result;
use storage::StorageBackend;

use crate::output::{Cell, Output, complain, text};

/// How many problems are spelt out.
const SHOWN_MAX: usize = 20;

pub(super) async fn run(store: &dyn StorageBackend, output: &mut Output) -> Result<ExitCode> {
    let report = store.check().await?;
    let problems = report.problems.len();
    output.record(vec![
        ("status", Cell::text(if problems == 0 { "ok" } else { "damaged" })),
        ("pieces", Cell::Count(report.pieces)),
        ("samples", Cell::Count(report.samples)),
        ("problems", Cell::Count(problems as u64)),
    ])?;
    for problem in report.problems.iter().take(SHOWN_MAX) {
        complain(problem);
    }
    if problems > SHOWN_MAX {
        complain(&format!("and {} more", text::counted((problems - SHOWN_MAX) as u64, "problem")));
    }
    Ok(if problems == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
