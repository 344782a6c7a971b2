//! The verbs that keep a store up: rollups and retention as a configuration has them, mirrors.

use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};

use super::{Chosen, ConfigFile, Span};

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
`storage run` does this by itself. Samples that were imported into the store by its own URL are rolled up
if they are new; if they are older than what is rolled up already, say --rebuild. Import them by
rolled://?samples=URL instead, and they are seen.

Examples:
  storage rollup --config storage.json
  storage rollup --rebuild --start now-7d")]
pub(crate) struct Rollup {
    #[command(flatten)]
    pub(crate) file: ConfigFile,
    /// Roll up anew whatever has its samples, in the range if one is given.
    #[arg(long)]
    pub(crate) rebuild: bool,
    #[command(flatten)]
    pub(crate) span: Span,
}

/// What to do with what is too old.
#[derive(Debug, Subcommand)]
pub(crate) enum Retention {
    /// Remove it: samples behind their rollups, and old rollups.
    #[command(after_help = "\
Whole windows of the widest rollups go. One process at a time removes; `storage run` does this by itself.

Example:
  storage retention run --config storage.json")]
    Run(ConfigFile),
    /// Say what would be removed, and remove nothing.
    #[command(after_help = "Example:\n  storage retention plan --config storage.json")]
    Plan(ConfigFile),
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
A mirror is written as mirrored://?primary=URL&secondary=URL. Its second store may lack what was written while it
was away, or while a process was killed. Window by window both are compared, and what differs is copied. Samples that
only the second store holds are counted, and stay.

Examples:
  storage repair --verify --url 'mirrored://?primary=sqlite://metrics.db&secondary=sqlite:///backup/metrics.db'
  storage repair --url 'mirrored://?primary=sqlite://metrics.db&secondary=sqlite:///backup/metrics.db'")]
pub(crate) struct Repair {
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    #[command(flatten)]
    pub(crate) span: Span,
    /// Write nothing, and compare; exit code 1 if the second store lacks something or has it otherwise.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Write at most N samples a second.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: Option<u64>,
    /// How much time is compared and copied at once.
    #[arg(long, value_name = "WIDTH", default_value = "1d", value_parser = humantime::parse_duration)]
    pub(crate) window: Duration,
}
