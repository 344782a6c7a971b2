//! `storage completions`: a script for the shell.

use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory;

use crate::args::{Args, Completions};
use crate::output::Output;

pub(super) fn run(args: &Completions, output: &mut Output) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "storage", &mut script);
    output.raw(&script)?;
    Ok(ExitCode::SUCCESS)
}
