//! The verbs: which opens the store how, and what it runs.

#[cfg(feature = "parquet")]
mod adopt;
mod aggregate;
mod archive;
mod check;
mod collect;
mod compact;
mod completions;
mod config;
mod copy;
mod events;
mod executions;
mod export;
mod health;
mod history;
mod import;
mod jobs;
mod latest;
mod lines;
mod pipelines;
mod plot;
mod prune;
mod query;
mod repair;
mod run;
mod series;
mod stats;
mod upkeep;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, bail};
use chrono::{DateTime, Utc};
use storage::{SeriesFilter, TimeRange};

use crate::args::{Args, Chosen, Command, Events, Format, History, Jobs, Pipelines, Span};
use crate::output::Output;
use crate::store;

/// Runs the verb of `args`.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let Args { global, command } = args;
    if global.format == Some(Format::Parquet) && !matches!(command, Command::Export(_)) {
        bail!("only `export` writes Parquet; say --format table, csv or json");
    }
    let mut output = Output::stdout(&global);
    let output = &mut output;
    let shown_url = store::shown(&global.url);
    match &command {
        Command::Completions(args) => return completions::run(args, output),
        // Their store is named by a file.
        Command::Run(args) => return run::run(args, output).await,
        Command::Config(args) => return config::run(args, output),
        // They name their own.
        Command::Copy(args) => return copy::run(args, output).await,
        Command::Archive(args) => return archive::run(args, output).await,
        Command::Repair(args) => return repair::run(&global.url, args, output).await,
        Command::Rollup(args) => return upkeep::rollup(args, output).await,
        Command::Retention(args) => return upkeep::retention(args, output).await,
        // It opens what is beside the store too.
        Command::Aggregate(args) if args.rollups => {
            return aggregate::run_rolled(&global.url, args, output).await;
        }
        _ => {}
    }
    let (mut prepared, mut values, mut batch) = (None, None, None);
    let (mut pipeline, mut executions) = (None, None);
    match &command {
        Command::Collect(args) => collect::check(args)?,
        Command::Import(args) => prepared = Some(import::prepare(args, output).await?),
        Command::History(History::Store(args)) => values = Some(history::prepare(args)?),
        Command::Events(Events::Append(args)) => batch = Some(events::prepare(args)?),
        Command::Jobs(Jobs::Add(args)) => drop(jobs::prepare(args)?),
        Command::Pipelines(verb) => pipeline = pipelines::prepare(verb)?,
        Command::Executions(verb) => executions = executions::prepare(verb)?,
        _ => {}
    }
    let creates = command.creates();
    let whole = store::open(&global.url, creates).await?;
    let store = Arc::clone(whole.metrics());
    let code = match command {
        Command::Collect(args) => collect::run(&store, &args, output, &shown_url).await,
        Command::Import(_) => match prepared {
            Some(prepared) => import::run(&*store, prepared, output).await,
            None => Ok(ExitCode::SUCCESS),
        },
        Command::Query(args) => query::run(&*store, &args, output).await,
        Command::Aggregate(args) => aggregate::run(&*store, &args, output).await,
        Command::Series(args) => series::run(&*store, &args, output).await,
        Command::Latest(args) => latest::run(&*store, &args, output).await,
        Command::Plot(args) => plot::run(&*store, &args, output).await,
        Command::Export(args) => export::run(&*store, &args, output).await,
        #[cfg(feature = "parquet")]
        Command::Adopt(args) => adopt::run(&*store, &args, output).await,
        Command::Prune(args) => prune::run(&*store, &args, output, &shown_url).await,
        Command::History(args) => history::run(&whole, &args, values, output, &shown_url).await,
        Command::Events(args) => events::run(&whole, &args, batch, output, &shown_url).await,
        Command::Jobs(verb) => jobs::run(&whole, &verb, output, &shown_url).await,
        Command::Pipelines(verb) => {
            pipelines::run(&whole, &verb, pipeline, output, &shown_url).await
        }
        Command::Executions(verb) => {
            executions::run(&whole, &verb, executions, output, &shown_url).await
        }
        Command::Stats => stats::run(&*store, output, &shown_url).await,
        Command::Health => health::run(&*store, output).await,
        Command::Check => check::run(&*store, output).await,
        Command::Compact => compact::run(&*store, output).await,
        // Done above: they do not work on the store of --url.
        Command::Copy(_)
        | Command::Archive(_)
        | Command::Repair(_)
        | Command::Rollup(_)
        | Command::Retention(_)
        | Command::Completions(_)
        | Command::Run(_)
        | Command::Config(_) => Ok(ExitCode::SUCCESS),
    };
    if creates && store::is_mirrored(&global.url) {
        store::warn_if_degraded(&*store).await;
    }
    let closed = whole.close().await;
    let code = code?;
    closed?;
    Ok(code)
}

impl Command {
    /// Whether the verb makes a store where there is none.
    fn creates(&self) -> bool {
        match self {
            Self::Collect(_)
            | Self::Import(_)
            | Self::History(History::Store(_))
            | Self::Events(Events::Append(_))
            | Self::Jobs(Jobs::Add(_))
            | Self::Pipelines(Pipelines::Add { .. }) => true,
            #[cfg(feature = "parquet")]
            Self::Adopt(_) => true,
            _ => false,
        }
    }
}

impl Chosen {
    fn filter(&self) -> Result<SeriesFilter> {
        Ok(SeriesFilter::parse(&self.server, &self.metric)?)
    }
}

impl Span {
    fn range(self) -> Result<TimeRange> {
        let all = TimeRange::all();
        let start = self.start.unwrap_or_else(|| all.start());
        let end = self.end.unwrap_or_else(|| all.end());
        Ok(TimeRange::new(start, end)?)
    }
}

/// Returns the range of the samples before `time`.
fn range_before(time: DateTime<Utc>) -> Result<TimeRange> {
    Span { start: None, end: Some(time) }.range()
}

/// Says why an answer is empty.
fn note_nothing(output: &Output, what: &str) {
    output.note(&format!("no {what}; `storage series` lists what there is"));
}

#[cfg(test)]
mod tests;
