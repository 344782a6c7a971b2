//! `storage prune`: old samples away.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use anyhow::{Result, bail};
use storage::{SeriesFilter, StorageBackend, StorageBackendExt};

use super::range_before;
use crate::args::Prune;
use crate::output::{Cell, Output, confirm, text};

pub(super) async fn run(
    store: &dyn StorageBackend,
    args: &Prune,
    output: &mut Output,
    shown_url: &str,
) -> Result<ExitCode> {
    let may_ask = io::stdin().is_terminal();
    if !args.dry_run && !args.yes && !may_ask {
        bail!("nobody is there to confirm; say --yes to prune, or --dry-run to count");
    }
    if args.dry_run || !args.yes {
        let count = store.count(&SeriesFilter::any(), range_before(args.before)?).await?;
        if args.dry_run {
            return print(output, args, "would_remove", count);
        }
        let samples = text::counted(count, "sample");
        let before = text::time(args.before);
        let question = format!("Remove {samples} before {before} from {shown_url}?");
        if count > 0 && !confirm(&question)? {
            output.note("nothing was removed");
            return Ok(ExitCode::FAILURE);
        }
    }
    let removed = store.prune_before(args.before).await?;
    print(output, args, "removed", removed)
}

fn print(output: &mut Output, args: &Prune, name: &str, count: u64) -> Result<ExitCode> {
    output.record(vec![("before", Cell::Time(args.before)), (name, Cell::Count(count))])?;
    Ok(ExitCode::SUCCESS)
}
