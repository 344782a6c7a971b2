//! The verbs of the event store, with their help.

use chrono::{DateTime, Utc};
use clap::{Args as ClapArgs, Subcommand};
use storage::ExpectedVersion;

use crate::input::time::parse_when;

/// What to do with events.
#[derive(Debug, Subcommand)]
pub(crate) enum Events {
    /// Append events, all or nothing, and print them with their numbers.
    Append(EventsAppend),
    /// Print events in the order of the log.
    Replay(EventsReplay),
    /// Print the events of one stream in their order.
    Stream(EventsStream),
    /// List streams with the versions of their last events.
    #[command(
        after_help = "Examples:\n  storage events streams\n  storage events streams 'thread-*'"
    )]
    Streams {
        /// Stream by name or pattern.
        #[arg(default_value = "*")]
        pattern: String,
    },
    /// Print the last events; with --follow also those to come, as JSON lines, until Ctrl-C.
    Tail(EventsTail),
    /// Print where the log begins and ends.
    #[command(after_help = "Example:\n  storage events extent --format json")]
    Extent,
    /// List projections with the last event that each has seen, and how far behind it is.
    #[command(after_help = "Example:\n  storage events projections")]
    Projections,
    /// Print the rows of a table of a projection.
    #[command(after_help = "\
Examples:
  storage events rows orchestration projection_threads
  storage events rows orchestration projection_threads 'thread-1*' --format json")]
    Rows {
        /// Projection by its exact name.
        projection: String,
        /// Table by its exact name.
        table: String,
        /// Key by name or pattern.
        #[arg(default_value = "*")]
        keys: String,
    },
    /// Remove a projection with all its rows, so that it holds no events back.
    #[command(after_help = "Example:\n  storage events forget old_projection --yes")]
    Forget {
        /// Projection by its exact name.
        projection: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Remove events that every projection has seen.
    Prune(EventsPrune),
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage events append thread-1 TurnStarted '{\"turn\": 1}'
  storage events append thread-1 TurnStarted '{\"turn\": 2}' --expect 1 --id command-7
  storage events replay --format json | jq -c '.[]' | storage events append - --url sqlite://b.db

With - events are read from standard input: JSON lines, objects with stream, event_type, payload and,
where there are any, event_id and stored_at; sequence and version are given anew. They are appended in
one piece: a bad line is named, and nothing is appended. An event whose id is stored already is not
appended again.")]
pub(crate) struct EventsAppend {
    /// Stream by its exact name, or - for standard input.
    pub(crate) stream: String,
    /// What happened.
    #[arg(value_name = "TYPE")]
    pub(crate) event_type: Option<String>,
    /// The payload as JSON.
    #[arg(allow_hyphen_values = true)]
    pub(crate) payload: Option<String>,
    /// What makes a repeated append harmless.
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
    /// The version that the stream must have: any, none (it must not exist) or a number.
    #[arg(long, value_name = "VERSION", default_value = "any", value_parser = parse_expected)]
    pub(crate) expect: ExpectedVersion,
    /// When [default: now].
    #[arg(long, value_name = "TIME", value_parser = parse_when, allow_hyphen_values = true)]
    pub(crate) at: Option<DateTime<Utc>>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage events replay
  storage events replay --from 1001 -n 100 --format json")]
pub(crate) struct EventsReplay {
    /// The first sequence number, included.
    #[arg(long, value_name = "SEQUENCE", default_value_t = 1)]
    pub(crate) from: u64,
    /// Print N events at most.
    #[arg(long, short = 'n', value_name = "N")]
    pub(crate) limit: Option<usize>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage events stream thread-1
  storage events stream thread-1 --from 1001 -n 10")]
pub(crate) struct EventsStream {
    /// Stream by its exact name.
    pub(crate) stream: String,
    #[command(flatten)]
    pub(crate) replay: EventsReplay,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage events tail
  storage events tail -n 0 --follow")]
pub(crate) struct EventsTail {
    /// Print the last N events.
    #[arg(short, long, default_value_t = 10, value_name = "N")]
    pub(crate) number: u64,
    /// Go on with events as they are appended, by whichever process.
    #[arg(long, short)]
    pub(crate) follow: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage events prune --before 1000001 --dry-run
  storage events prune --before 1000001 --yes

Where a projection has not seen all of these events, nothing is removed; `storage events projections`
says how far each is.")]
pub(crate) struct EventsPrune {
    /// What is before this sequence number goes; the event with the number stays.
    #[arg(long, value_name = "SEQUENCE")]
    pub(crate) before: u64,
    /// Count them only.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub(crate) yes: bool,
}

fn parse_expected(text: &str) -> Result<ExpectedVersion, String> {
    match text {
        "any" => Ok(ExpectedVersion::Any),
        "none" => Ok(ExpectedVersion::NoStream),
        number => number
            .parse()
            .map(ExpectedVersion::Exact)
            .map_err(|_| "it must be any, none or a whole number".to_owned()),
    }
}
