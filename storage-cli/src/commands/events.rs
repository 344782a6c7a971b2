//! `storage events`: the log of events and its projections.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt;
use serde_json::Value;
use storage::events::EventStream;
use storage::events::rows::check_prune;
use storage::{
    EventQuery, EventStore, EventStoreExt, Expectation, Matcher, NewEvent, Store, StoredEvent,
};

use super::collect::stop_signals;
use super::lines;
use crate::args::{Events, EventsAppend, EventsPrune, EventsReplay, EventsTail};
use crate::output::{Cell, Output, confirm, text};

/// The columns of events, the same as `append -` reads.
const COLUMNS: [&str; 7] =
    ["sequence", "stream", "version", "event_id", "event_type", "stored_at", "payload"];

/// What is to be appended, and what is expected.
pub(super) type Prepared = (Vec<NewEvent>, Vec<Expectation>);

/// Reads what `append` is to append, before the store is opened or made.
pub(super) fn prepare(args: &EventsAppend) -> Result<Prepared> {
    if args.stream == "-" {
        if args.event_type.is_some() || args.id.is_some() || args.at.is_some() {
            bail!("with - events come from standard input; leave out everything else");
        }
        let (input, words) = (io::stdin().lock(), ("event", "appended"));
        let events = lines::read_all(input, words, read_line, NewEvent::validate)?;
        return Ok((events, Vec::new()));
    }
    let Some(event_type) = &args.event_type else {
        bail!("say what happened and its payload as JSON, such as TurnStarted '{{\"turn\": 1}}'");
    };
    let payload = args.payload.as_deref().unwrap_or("null");
    let payload = serde_json::from_str(payload)
        .context("the payload is no JSON; a text needs quotes, such as '\"sunny\"'")?;
    let mut event = NewEvent::new(&*args.stream, &**event_type, payload);
    event.event_id.clone_from(&args.id);
    event.stored_at = args.at.unwrap_or(event.stored_at);
    event.validate()?;
    Ok((vec![event], vec![Expectation::new(&*args.stream, args.expect)]))
}

/// An event as `replay` prints it, but for its places, which it gets anew.
fn read_line(line: &str) -> Result<NewEvent> {
    let mut fields: serde_json::Map<String, Value> = serde_json::from_str(line)?;
    fields.remove("sequence");
    fields.remove("version");
    Ok(serde_json::from_value(Value::Object(fields))?)
}

pub(super) async fn run(
    store: &Store,
    args: &Events,
    prepared: Option<Prepared>,
    output: &mut Output,
    shown_url: &str,
) -> Result<ExitCode> {
    let events = store.events()?;
    match args {
        Events::Append(_) => {
            let (batch, expected) = prepared.unwrap_or_default();
            let stored = events.append(&batch, &expected).await?;
            let mut rows = output.rows(&COLUMNS[..5])?;
            for event in stored {
                rows.row(cells(event).drain(..5).collect())?;
            }
            rows.finish()?;
        }
        Events::Replay(args) => print(events.replay(query(args)), output).await?,
        Events::Stream(args) => {
            print(events.replay(query(&args.replay).stream(&*args.stream)), output).await?;
        }
        Events::Streams { pattern } => {
            let found = events.streams(&Matcher::parse(pattern)?).await?;
            let mut rows = output.rows(&["stream", "version"])?;
            for info in found {
                rows.row(vec![Cell::text(info.stream), Cell::Count(info.version)])?;
            }
            rows.finish()?;
        }
        Events::Tail(args) => tail(events, args, output).await?,
        Events::Extent => {
            let log = events.extent().await?;
            let first = Cell::or_empty((log.count() > 0).then_some(log.first), Cell::Count);
            let events = ("events", Cell::Count(log.count()));
            output.record(vec![events, ("first", first), ("last", Cell::Count(log.last))])?;
        }
        Events::Projections => projections(&**events, output).await?,
        Events::Rows { projection, table, keys } => {
            let found = events.rows(projection, table, &Matcher::parse(keys)?).await?;
            let mut rows = output.rows(&["key", "value"])?;
            for row in found {
                rows.row(vec![Cell::text(row.key), Cell::Json(row.value)])?;
            }
            rows.finish()?;
        }
        Events::Forget { projection, yes } => {
            return forget(&**events, projection, *yes, output).await;
        }
        Events::Prune(args) => return prune(&**events, args, output, shown_url).await,
    }
    Ok(ExitCode::SUCCESS)
}

fn query(args: &EventsReplay) -> EventQuery {
    EventQuery::from(args.from).limit(args.limit.unwrap_or(usize::MAX))
}

fn cells(event: StoredEvent) -> Vec<Cell> {
    vec![
        Cell::Count(event.sequence),
        Cell::text(event.stream),
        Cell::Count(event.version),
        Cell::or_empty(event.event_id, Cell::text),
        Cell::text(event.event_type),
        Cell::Time(event.stored_at),
        Cell::Json(event.payload),
    ]
}

/// Prints events page by page.
async fn print(mut events: EventStream<'_>, output: &mut Output) -> Result<()> {
    let mut is_empty = true;
    let mut rows = output.rows(&COLUMNS)?;
    while let Some(event) = events.try_next().await? {
        is_empty = false;
        rows.row(cells(event))?;
    }
    rows.finish()?;
    drop(rows);
    if is_empty {
        output.note("no such events; `storage events streams` lists what there is");
    }
    Ok(())
}

async fn tail(events: &Arc<dyn EventStore>, args: &EventsTail, output: &mut Output) -> Result<()> {
    let log = events.extent().await?;
    let from = (log.last + 1).saturating_sub(args.number).max(log.first);
    if !args.follow {
        return print(events.replay_from(from), output).await;
    }
    let mut stop = stop_signals()?;
    let mut live = events.subscribe(from);
    loop {
        let event = tokio::select! {
            event = live.try_next() => event?,
            _ = stop.recv() => return Ok(()),
        };
        let Some(event) = event else { return Ok(()) };
        // A line for each as it comes, whatever the format: nobody waits for the end of this.
        let line = serde_json::to_string(&event)?;
        writeln!(output.sink(), "{line}")?;
        output.sink().flush()?;
    }
}

async fn projections(events: &dyn EventStore, output: &mut Output) -> Result<()> {
    let (found, log) = (events.projections().await?, events.extent().await?);
    let mut rows = output.rows(&["projection", "checkpoint", "behind"])?;
    for info in found {
        let behind = log.last.saturating_sub(info.checkpoint);
        let checkpoint = Cell::Count(info.checkpoint);
        rows.row(vec![Cell::text(info.projection), checkpoint, Cell::Count(behind)])?;
    }
    Ok(rows.finish()?)
}

async fn forget(
    events: &dyn EventStore,
    projection: &str,
    yes: bool,
    output: &mut Output,
) -> Result<ExitCode> {
    if !yes && !io::stdin().is_terminal() {
        bail!("nobody is there to confirm; say --yes to remove");
    }
    if !yes && !confirm(&format!("Remove the projection {projection} with all its rows?"))? {
        output.note("nothing was removed");
        return Ok(ExitCode::FAILURE);
    }
    if !events.forget_projection(projection).await? {
        bail!("there is no projection {projection}");
    }
    output.record(vec![("forgotten", Cell::text(projection))])?;
    Ok(ExitCode::SUCCESS)
}

async fn prune(
    events: &dyn EventStore,
    args: &EventsPrune,
    output: &mut Output,
    shown_url: &str,
) -> Result<ExitCode> {
    if !args.dry_run && !args.yes && !io::stdin().is_terminal() {
        bail!("nobody is there to confirm; say --yes to remove, or --dry-run to count");
    }
    let before = ("before", Cell::Count(args.before));
    if args.dry_run || !args.yes {
        let log = events.extent().await?;
        let projections = events.projections().await?;
        let seen = projections.iter().map(|of| (of.projection.as_str(), of.checkpoint));
        check_prune(seen, args.before, log)?;
        let count = args.before.min(log.last + 1).saturating_sub(log.first);
        if args.dry_run {
            output.record(vec![before, ("would_remove", Cell::Count(count))])?;
            return Ok(ExitCode::SUCCESS);
        }
        let question = format!("Remove {} from {shown_url}?", text::counted(count, "event"));
        if count > 0 && !confirm(&question)? {
            output.note("nothing was removed");
            return Ok(ExitCode::FAILURE);
        }
    }
    let removed = events.prune_before(args.before).await?;
    output.record(vec![before, ("removed", Cell::Count(removed))])?;
    Ok(ExitCode::SUCCESS)
}
