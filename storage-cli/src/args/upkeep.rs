//! The verbs that keep a store up as a configuration has it: rollups and retention.

use clap::{Args as ClapArgs, Subcommand};

use super::{ConfigFile, Span};

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
