//! The command `storage`: parse, run, exit.
//!
//! | module | what lives there |
//! |---|---|
//! | [`args`] | every verb, option and help text |
//! | [`commands`] | one file per verb, and which verb runs what |
//! | [`input`] | text into records and times: CSV, JSON lines, line protocol |
//! | [`listen`] | samples by sockets |
//! | [`output`] | records and answers into text: tables, CSV, JSON, charts, progress |
//! | [`host`] | what `collect` measures on this machine |
//! | [`store`] | the store that `--url` names |
//! | [`error`] | one line on stderr that says what to do, and the exit code |

mod args;
mod commands;
mod error;
mod host;
mod input;
mod listen;
mod output;
mod store;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse();
    output::start_logs(args.global.verbose);
    let urls = args.urls();
    run(args).unwrap_or_else(|error| error::report(&error, &urls))
}

fn run(args: args::Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(commands::run(args))
}
