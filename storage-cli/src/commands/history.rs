//! `storage history`: values of records.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use chrono::Utc;
use storage::{HistoryQuery, Matcher, RecordHistory, Store, StoredValue};

use super::{lines, range_before};
use crate::args::{History, HistoryStore, Prune};
use crate::output::{Cell, Output, confirm, text};

/// The columns of values, the same as `store -` reads.
const COLUMNS: [&str; 3] = ["record_name", "stored_at", "value"];

/// Reads what `store` is to store, before the store is opened or made.
pub(super) fn prepare(args: &HistoryStore) -> Result<Vec<StoredValue>> {
    let values = match (&*args.record, &args.value) {
        ("-", None) if args.at.is_some() => {
            bail!("with - each line has its own time; leave out --at")
        }
        ("-", None) => lines::read_all(
            io::stdin().lock(),
            ("value", "stored"),
            |line| Ok(serde_json::from_str(line)?),
            StoredValue::validate,
        )?,
        ("-", Some(_)) => bail!("with - values come from standard input; leave out the value"),
        (_, None) => bail!("say the value as JSON, such as 0.7 or '{{\"mae\": 0.7}}'"),
        (record, Some(value)) => {
            let value = serde_json::from_str(value)
                .context("the value is no JSON; a text needs quotes, such as '\"sunny\"'")?;
            let value = StoredValue::new(record, args.at.unwrap_or_else(Utc::now), value);
            value.validate()?;
            vec![value]
        }
    };
    Ok(values)
}

pub(super) async fn run(
    store: &Store,
    args: &History,
    prepared: Option<Vec<StoredValue>>,
    output: &mut Output,
    shown_url: &str,
) -> Result<ExitCode> {
    let history = &**store.history()?;
    match args {
        History::Store(_) => {
            let values = prepared.unwrap_or_default();
            history.store_batch(&values).await?;
            output.record(vec![("values_stored", Cell::Count(values.len() as u64))])?;
        }
        History::Query(args) => {
            let mut query = HistoryQuery::parse(&args.pattern)?.range(args.span.range()?);
            query.limit_per_record = args.limit;
            print(history, &query, output).await?;
        }
        History::Latest(args) => {
            let query = HistoryQuery::parse(&args.pattern)?.newest(args.number);
            print(history, &query, output).await?;
        }
        History::List { pattern } => list(history, &Matcher::parse(pattern)?, output).await?,
        History::Cleanup(args) => return clean_up(history, args, output, shown_url).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn print(
    history: &dyn RecordHistory,
    query: &HistoryQuery,
    output: &mut Output,
) -> Result<()> {
    let found = history.query(query).await?;
    let is_empty = found.is_empty();
    let mut rows = output.rows(&COLUMNS)?;
    for StoredValue { record_name, stored_at, value } in found {
        rows.row(vec![Cell::text(record_name), Cell::Time(stored_at), Cell::Json(value)])?;
    }
    rows.finish()?;
    drop(rows);
    if is_empty {
        output.note("no values of such records; `storage history list` lists what there is");
    }
    Ok(())
}

async fn list(history: &dyn RecordHistory, records: &Matcher, output: &mut Output) -> Result<()> {
    let found = history.records(records).await?;
    let mut rows = output.rows(&["record_name", "values", "oldest", "newest"])?;
    for record in found {
        rows.row(vec![
            Cell::text(record.record_name),
            Cell::Count(record.count),
            Cell::Time(record.oldest),
            Cell::Time(record.newest),
        ])?;
    }
    Ok(rows.finish()?)
}

async fn clean_up(
    history: &dyn RecordHistory,
    args: &Prune,
    output: &mut Output,
    shown_url: &str,
) -> Result<ExitCode> {
    if !args.dry_run && !args.yes && !io::stdin().is_terminal() {
        bail!("nobody is there to confirm; say --yes to remove, or --dry-run to count");
    }
    let before = ("before", Cell::Time(args.before));
    if args.dry_run || !args.yes {
        let old = HistoryQuery::new(Matcher::any()).range(range_before(args.before)?);
        let count = history.query(&old).await?.len() as u64;
        if args.dry_run {
            output.record(vec![before, ("would_remove", Cell::Count(count))])?;
            return Ok(ExitCode::SUCCESS);
        }
        let values = text::counted(count, "value");
        let question =
            format!("Remove {values} before {} from {shown_url}?", text::time(args.before));
        if count > 0 && !confirm(&question)? {
            output.note("nothing was removed");
            return Ok(ExitCode::FAILURE);
        }
    }
    let removed = history.cleanup(args.before).await?;
    output.record(vec![before, ("removed", Cell::Count(removed))])?;
    Ok(ExitCode::SUCCESS)
}
