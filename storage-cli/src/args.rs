//! Every verb and option of the command line, with its help.

mod events;
mod jobs;
mod upkeep;

use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand, ValueEnum};
use storage::config::ListenAddress;

pub(crate) use self::events::{Events, EventsAppend, EventsPrune, EventsReplay, EventsTail};
pub(crate) use self::jobs::{
    ExecutionList, Executions, JobAdd, JobClaim, JobList, JobUpdate, Jobs, Part, Pipelines, Remove,
};
pub(crate) use self::upkeep::{Repair, Retention, Rollup};
use crate::input::time::{TimeFormat, parse_when};

/// Collects, imports, asks, draws and exports metrics.
#[derive(Debug, Parser)]
#[command(name = "storage", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = EXAMPLES, after_long_help = LONG_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  storage collect --duration 1m                        measure this host for a minute
  storage plot \"$(hostname)\" cpu_usage_percent         see it
  storage import --server web-1 cpu.csv                read a file, metric = cpu
  storage query web-1 cpu --start now-1h               the samples of the last hour
  storage aggregate 'web-*' --window 1h --format json  hourly numbers for a program

`storage help VERB` tells more about a verb; --help instead of -h more about everything.";

const LONG_HELP: &str = "\
Examples:
  storage collect --duration 1m                        measure this host for a minute
  storage plot \"$(hostname)\" cpu_usage_percent         see it
  storage import --server web-1 cpu.csv                read a file, metric = cpu
  storage query web-1 cpu --start now-1h               the samples of the last hour
  storage aggregate 'web-*' --window 1h --format json  hourly numbers for a program

Stores:
  sqlite://metrics.db            a file in the current directory
  sqlite:///var/lib/metrics.db   a file by its full path

Times (--start, --end, --before):
  2026-01-31T08:00:00Z   RFC 3339
  2026-01-31             also 2026-01-31 08:00 and 2026-01-31 08:00:30, in UTC
  1769846400000          milliseconds since 1970
  now, now-1h, now-7d12h
A range holds its start and not its end; without either it is the whole store.

Names (SERVER, METRIC) take globs where several series make sense: * is any run of characters.

Exit codes: 0 done, 1 failed, 2 wrong usage.";

/// Options of every verb.
#[derive(Debug, ClapArgs)]
pub(crate) struct Global {
    /// The store.
    #[arg(long, global = true, env = "STORAGE_URL", hide_env_values = true)]
    #[arg(default_value = "sqlite://metrics.db", value_name = "URL")]
    pub(crate) url: String,

    /// How answers are printed [default: table on a terminal, csv otherwise].
    ///
    /// CSV and JSON carry every digit, so that a value read back is the same; tables group
    /// digits, use units for bytes and round aggregates to 7 digits.
    #[arg(long, global = true, value_enum)]
    pub(crate) format: Option<Format>,

    /// Show no progress and no notes; warnings and errors stay.
    #[arg(long, short, global = true, visible_alias = "no-progress")]
    pub(crate) quiet: bool,

    /// Log to stderr; twice for more. RUST_LOG chooses in detail.
    #[arg(long, short, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For spreadsheets and shells; with a header.
    Csv,
    /// For programs: an array of objects, or one object.
    Json,
    /// A Parquet file: `export` alone.
    Parquet,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measure this host and store what is found, until Ctrl-C.
    Collect(Collect),
    /// Read samples from CSV, JSON lines or InfluxDB line protocol.
    Import(Import),
    /// Run the pipeline of a configuration: collect or read, buffer, store, roll up, archive, prune.
    Run(Run),
    /// Look at a configuration.
    Config(ConfigArgs),
    /// Print the samples of one series, oldest first.
    Query(Query),
    /// Print count, minimum, maximum, average, sum, first and last.
    Aggregate(Aggregate),
    /// List series with their number of samples and extent in time.
    Series(SeriesArgs),
    /// Print the newest samples of series, newest first.
    Latest(Latest),
    /// Draw series in the terminal.
    Plot(Plot),
    /// Write samples as CSV, JSON lines, InfluxDB line protocol or Parquet.
    Export(Export),
    /// Take in Parquet files that pandas, DuckDB, Spark or `export` wrote.
    #[cfg(feature = "parquet")]
    Adopt(Adopt),
    /// Copy samples from one store to another, verified.
    Copy(Copy),
    /// Move old samples from a hot store to a cold one.
    Archive(Archive),
    /// Make the second store of a mirror hold what the first one holds.
    Repair(Repair),
    /// Remove all samples before a time.
    Prune(Prune),
    /// Roll up now what is due, or everything anew.
    Rollup(Rollup),
    /// Remove what a configuration does not keep, or say what that is.
    #[command(subcommand)]
    Retention(Retention),
    /// Store and ask for values of records: JSON by name and time.
    #[command(subcommand)]
    History(History),
    /// Append to the log of events, replay it, look at its projections.
    #[command(subcommand)]
    Events(Events),
    /// Add, claim and look at jobs that run by a schedule.
    #[command(subcommand)]
    Jobs(Jobs),
    /// Keep what jobs run.
    #[command(subcommand)]
    Pipelines(Pipelines),
    /// Look at runs of jobs, and end them.
    #[command(subcommand)]
    Executions(Executions),
    /// Print size and extent of the store.
    #[command(after_help = "Example:\n  storage stats --format json")]
    Stats,
    /// Say whether the store works; exit code 1 if it does not.
    #[command(after_help = "Example:\n  storage health -q || systemctl restart collector")]
    Health,
    /// Verify the stored bytes; exit code 1 if something is wrong.
    #[command(after_help = "Example:\n  storage check --url sqlite:///backup/metrics.db")]
    Check,
    /// Do the upkeep now that makes the store as small as it gets.
    #[command(after_help = "Example:\n  storage prune --before now-90d --yes && storage compact")]
    Compact,
    /// Print a script that completes verbs and options in your shell.
    #[command(after_help = "Example:\n  storage completions bash > \
        ~/.local/share/bash-completion/completions/storage")]
    Completions(Completions),
}

/// A range of time.
#[derive(Debug, Clone, Copy, Default, ClapArgs)]
pub(crate) struct Span {
    /// First moment [default: the beginning].
    #[arg(long, value_name = "TIME", value_parser = parse_when, allow_hyphen_values = true)]
    pub(crate) start: Option<DateTime<Utc>>,
    /// First moment after the range [default: the end].
    #[arg(long, value_name = "TIME", value_parser = parse_when, allow_hyphen_values = true)]
    pub(crate) end: Option<DateTime<Utc>>,
}

/// Which series.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Chosen {
    /// Server by name or glob.
    #[arg(default_value = "*")]
    pub(crate) server: String,
    /// Metric by name or glob.
    #[arg(default_value = "*")]
    pub(crate) metric: String,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage collect                               every second until Ctrl-C
  storage collect --interval 15s --server db-1
  storage collect --duration 1m --url sqlite:///tmp/try.db")]
#[command(after_long_help = "\
Metrics (the server is the host name, unless --server says otherwise):
  cpu_usage_percent                          all cores together, 0 to 100
  cpu_core_N_usage_percent                   each core, from 0
  load_average_1m, _5m, _15m                 waiting and running tasks
  memory_total_bytes, _used_, _available_    and memory_used_percent
  swap_total_bytes, swap_used_bytes          and swap_used_percent, if there is swap
  disk_M_total_bytes, _available_            of the file system mounted at M; / is root,
                                             /var/lib is var_lib
  disk_M_used_percent
  disk_M_read_bytes_total, _written_         since boot
  disk_M_read_bytes_per_second, _written_    since the sample before
  network_I_received_bytes_total             of interface I since boot, _transmitted_ too
  network_I_received_bytes_per_second        since the sample before, _transmitted_ too
  temperature_S_celsius                      of each sensor S
  uptime_seconds

Samples are taken at multiples of the interval and carry that time. If the store does not take
them they are kept and tried again with the next ones, up to 100,000; then the oldest are given
up, counted and reported. Ctrl-C and SIGTERM write out what is left.

Examples:
  storage collect                               every second until Ctrl-C
  storage collect --interval 15s --server db-1
  storage collect --duration 1m --url sqlite:///tmp/try.db")]
pub(crate) struct Collect {
    /// Time between two samples, at least 200ms.
    #[arg(long, short, default_value = "1s", value_parser = parse_interval)]
    pub(crate) interval: Duration,
    /// How long; without it until Ctrl-C.
    #[arg(long, short, value_parser = humantime::parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// Name to store the samples under [default: the host name].
    #[arg(long, short, value_name = "NAME")]
    pub(crate) server: Option<String>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage import --server web-1 cpu.csv         timestamp,value; metric = cpu
  storage export | ssh there storage import -   from store to store
  storage import --strict --time-format s old.csv")]
#[command(after_long_help = "\
CSV has a header; columns may come in any order, others are left out with a note:
  timestamp (or time, ts), value                               needed
  server_id (or server, host), metric_type (or metric, name)   or from --server, --metric
  metadata                                                     JSON
JSON lines are objects with the same names. In line protocol a measurement and a field make the
metric `measurement_field`, or `measurement` if the field is `value`; the tag server_id, server or
host names the server, other tags become metadata; numbers and booleans (0, 1) are taken, strings
are not.

A bad line is reported with its number and left out; the exit code stays 0, unless --strict.
Samples of a series and millisecond that are there already are replaced, so that importing a file
again changes nothing. Batches are stored in one piece each. If a second program writes at the same
time, `new` and `replaced` of the summary count its samples too.

Examples:
  storage import --server web-1 cpu.csv         timestamp,value; metric = cpu
  storage export | ssh there storage import -   from store to store
  storage import --strict --time-format s old.csv")]
pub(crate) struct Import {
    /// Files to read; - is standard input.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Format of all files [default: by name, else by the first line].
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) input_format: Option<SampleFormat>,
    /// Server of lines that name none.
    #[arg(long, default_value = "import", value_name = "NAME")]
    pub(crate) server: String,
    /// Metric of lines that name none [default: the file name without its extension].
    #[arg(long, value_name = "NAME")]
    pub(crate) metric: Option<String>,
    /// How times are written: auto, s, ms, us, ns or a strftime pattern.
    ///
    /// auto takes RFC 3339, `YYYY-MM-DD HH:MM:SS[.fff]` in UTC and milliseconds since 1970, and
    /// refuses numbers that look like another unit; in line protocol it is ns. A pattern without
    /// a zone is read as UTC, such as '%d.%m.%Y %H:%M'.
    #[arg(long, default_value = "auto", value_name = "FORMAT")]
    pub(crate) time_format: TimeFormat,
    /// Store nothing at all if any line is bad, and exit with 1.
    ///
    /// Reads everything twice, standard input by way of a temporary file.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Samples that are stored at once, all or nothing.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) batch_size: u32,
}

/// The file that says what to run.
#[derive(Debug, ClapArgs)]
pub(crate) struct ConfigFile {
    /// The configuration; variables such as STORAGE__SQLITE__PATH go before it.
    #[arg(long, short, default_value = "storage.json", value_name = "FILE")]
    pub(crate) config: PathBuf,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage run --config storage.json
  tail -f metrics.jsonl | storage run --stdin
  storage run --listen 127.0.0.1:8094
  STORAGE__BACKEND=postgres storage run")]
#[command(after_long_help = "\
The configuration is JSON, comments allowed; `storage config check` prints every key with its
default. It names the store: --url is not used.

Records are written in batches of `buffer_size`, or when they are `flush_interval_secs` old. While
the store is away, also at the start, they are kept in memory and, with a `spool`, on disk, and are written in order when it is back.
Samples older than `retention.raw_metrics` are removed every `pruning_interval`. If `retention` names an
age for rollups too (`aggregated_5min`, `aggregated_1hour`, `aggregated_1day`), samples are rolled up every `rollup_interval`,
and no sample is removed before that. Rollups stand beside the store; `storage aggregate --rollups` answers from them.
With `archive`, samples older than `archive.after` are moved to the store `archive.cold` every `archive.interval`, and no sample
is removed before that. Questions about both are asked at the URL that `storage config check` prints.

With --listen, or `listen.addresses`, samples come in by sockets: whoever connects sends lines, in any format that `import` reads.
Connections that are too many are closed at once, lines that are too long or end without a newline are left out and
reported. While the pipeline is full the peer has to wait. Nothing is answered: what was sent may still be on its way
when a connection or this program breaks off. There is no password: by TCP at 127.0.0.1 every user of this machine may write.

Ctrl-C and SIGTERM store what is left, within `shutdown_secs`; what the store does not take by then
goes to the spool. Asked twice it ends within seconds. The exit code is 1 if anything was lost.

Examples:
  storage run --config storage.json
  tail -f metrics.jsonl | storage run --stdin
  storage run --listen unix:/run/metrics.sock --listen 127.0.0.1:8094
  STORAGE__BACKEND=postgres storage run")]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) file: ConfigFile,
    /// Read samples from standard input until its end instead of measuring this host.
    #[arg(long)]
    pub(crate) stdin: bool,
    /// Read samples from whoever connects to this socket, instead of what `listen.addresses` says;
    /// may be given several times. Port 0 is one that is free.
    #[arg(long, value_name = "IP:PORT|unix:PATH", conflicts_with = "stdin")]
    pub(crate) listen: Vec<ListenAddress>,
    /// Listen also at an address that other machines reach.
    #[arg(long)]
    pub(crate) allow_remote: bool,
    /// Format of what is read [default: by the first line, of each connection].
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) input_format: Option<SampleFormat>,
    /// Metric of lines that name none.
    #[arg(long, value_name = "NAME")]
    pub(crate) metric: Option<String>,
    /// How times are written; see `storage help import`.
    #[arg(long, default_value = "auto", value_name = "FORMAT")]
    pub(crate) time_format: TimeFormat,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

/// What to do with a configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say what is wrong with it, or print it with every default filled in and secrets hidden.
    #[command(after_help = "Example:\n  storage config check --config storage.json")]
    Check(ConfigFile),
}

/// How samples are written in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SampleFormat {
    /// Comma-separated values with a header.
    Csv,
    /// One JSON object per line.
    Jsonl,
    /// InfluxDB line protocol.
    Influx,
    /// A Parquet file; `import` does not read it, `adopt` does.
    Parquet,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage query web-1 cpu_usage_percent --start now-15m
  storage query web-1 cpu_usage_percent --start 2026-01-31 --end 2026-02-01 --format csv")]
pub(crate) struct Query {
    /// Server by its exact name.
    pub(crate) server: String,
    /// Metric by its exact name.
    pub(crate) metric: String,
    #[command(flatten)]
    pub(crate) span: Span,
    /// Print the first N samples only.
    #[arg(long, short = 'n', value_name = "N")]
    pub(crate) limit: Option<u64>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage aggregate                                    every series, all of its time
  storage aggregate 'web-*' 'cpu_*' --start now-1d
  storage aggregate web-1 cpu_usage_percent --window 1h
  storage aggregate web-1 cpu_usage_percent --window 1d --start now-365d --rollups")]
pub(crate) struct Aggregate {
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    #[command(flatten)]
    pub(crate) span: Span,
    /// One row for each window of this width, such as 5m; windows start at multiples of it.
    #[arg(long, short, value_name = "WIDTH", value_parser = humantime::parse_duration)]
    pub(crate) window: Option<Duration>,
    /// Answer from the rollups beside the store too, also where samples were pruned.
    #[arg(long, requires = "window")]
    pub(crate) rollups: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  storage series\n  storage series 'web-*' 'disk_*'")]
pub(crate) struct SeriesArgs {
    #[command(flatten)]
    pub(crate) chosen: Chosen,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  storage latest\n  storage latest web-1 'cpu_*' -n 5")]
pub(crate) struct Latest {
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    /// Samples of each series.
    #[arg(short, long, default_value_t = 1, value_name = "N")]
    pub(crate) number: usize,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage plot web-1 cpu_usage_percent --start now-1h
  storage plot web-1 'cpu_core_*' --height 30
  storage plot 'web-*' load_average_1m --zero

A column of dots spans from the smallest to the largest value of its time: no peak is lost.")]
pub(crate) struct Plot {
    /// Server by name or glob.
    pub(crate) server: String,
    /// Metric by name or glob; up to 8 series are drawn, in colours.
    pub(crate) metric: String,
    #[command(flatten)]
    pub(crate) span: Span,
    /// Width in characters [default: that of the terminal, or 100].
    #[arg(long, value_parser = clap::value_parser!(u16).range(40..=1000))]
    pub(crate) width: Option<u16>,
    /// Height in lines without labels and legend.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(3..=500))]
    pub(crate) height: u16,
    /// Let the vertical axis include zero.
    #[arg(long)]
    pub(crate) zero: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage export > all.csv
  storage export web-1 --start now-1d --output day.jsonl
  storage export --output-format influx | gzip > metrics.lp.gz

`storage import` reads all three formats back. Line protocol cannot express everything: metadata
other than an object of texts is left out and counted; what else does not fit is an error.")]
pub(crate) struct Export {
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    #[command(flatten)]
    pub(crate) span: Span,
    /// File to write, complete or not at all [default: standard output].
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Format of the samples [default: by the name of the file, else csv].
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) output_format: Option<SampleFormat>,
}

#[cfg(feature = "parquet")]
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Files have the columns server_id, timestamp, metric_type, value and, perhaps, metadata.

Examples:
  storage adopt january.parquet february.parquet
  storage adopt --url parquet:///var/lib/archive lake/")]
pub(crate) struct Adopt {
    /// Files to read, or directories whose *.parquet files are read.
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// Samples that are stored at once, all or nothing.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) batch_size: u32,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Each window is verified by number and checksum. A copy that was interrupted goes on where it was when
the command is given again; one that is done finds nothing to do.

Examples:
  storage copy sqlite://metrics.db postgres://me@db/metrics
  storage copy sqlite://metrics.db parquet:///archive 'web-*' --start 2026-01-01 --rate 50000
  storage copy sqlite://metrics.db postgres://me@db/metrics --verify")]
pub(crate) struct Copy {
    /// The store to read; --url has no effect.
    #[arg(value_name = "SRC")]
    pub(crate) source: String,
    /// The store to write, created if there is none.
    #[arg(value_name = "DST")]
    pub(crate) destination: String,
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    #[command(flatten)]
    pub(crate) span: Span,
    /// Write nothing, and say what would be written.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Write nothing, and compare; exit code 1 if DST lacks something of SRC or has it otherwise.
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) verify: bool,
    /// Write at most N samples a second.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: Option<u64>,
    /// How much time is copied and verified at once.
    #[arg(long, value_name = "WIDTH", default_value = "1d", value_parser = humantime::parse_duration)]
    pub(crate) window: Duration,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage prune --before now-30d --dry-run
  storage prune --before 2026-01-01 --yes")]
pub(crate) struct Prune {
    /// What is before this time goes; what is at the very time stays.
    #[arg(long, value_name = "TIME", value_parser = parse_when, allow_hyphen_values = true)]
    pub(crate) before: DateTime<Utc>,
    /// Count them only.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub(crate) yes: bool,
}

/// What to do with record history.
#[derive(Debug, Subcommand)]
pub(crate) enum History {
    /// Store values.
    Store(HistoryStore),
    /// Print values: by record, oldest first.
    Query(HistoryQueryArgs),
    /// Print the newest values of each record, oldest first.
    Latest(HistoryLatest),
    /// List records with their number of values and extent in time.
    #[command(
        after_help = "Examples:\n  storage history list\n  storage history list 'accuracy::*'"
    )]
    List {
        /// Record by name or pattern.
        #[arg(default_value = "*")]
        pattern: String,
    },
    /// Remove all values before a time.
    #[command(after_help = "\
Examples:
  storage history cleanup --before now-7d --dry-run
  storage history cleanup --before 2026-01-01 --yes")]
    Cleanup(Prune),
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage history store accuracy::vienna '{\"mae\": 0.7}'
  storage history store accuracy::vienna 0.7 --at 2026-01-31T08:00:00Z
  storage history query --format json '*' | jq -c '.[]' | storage history store - --url sqlite://b.db

With - values are read from standard input: JSON lines, objects with record_name, stored_at and value.
They are stored in one piece: a bad line is named, and nothing is stored.")]
pub(crate) struct HistoryStore {
    /// Record by its exact name, or - for standard input.
    pub(crate) record: String,
    /// The value as JSON.
    #[arg(allow_hyphen_values = true)]
    pub(crate) value: Option<String>,
    /// When [default: now].
    #[arg(long, value_name = "TIME", value_parser = parse_when, allow_hyphen_values = true)]
    pub(crate) at: Option<DateTime<Utc>>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage history query accuracy::vienna --start now-1d
  storage history query 'accuracy::*' -n 10 --format json

In a pattern * is any run of characters, everything else stands for itself, case included.")]
pub(crate) struct HistoryQueryArgs {
    /// Record by name or pattern.
    pub(crate) pattern: String,
    #[command(flatten)]
    pub(crate) span: Span,
    /// Print the newest N values of each record only.
    #[arg(long, short = 'n', value_name = "N")]
    pub(crate) limit: Option<usize>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage history latest
  storage history latest 'accuracy::*' -n 10")]
pub(crate) struct HistoryLatest {
    /// Record by name or pattern.
    #[arg(default_value = "*")]
    pub(crate) pattern: String,
    /// Values of each record.
    #[arg(short, long, default_value_t = 1, value_name = "N")]
    pub(crate) number: usize,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Completions {
    /// Which shell.
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Whole windows are copied, verified sample by sample, and only then removed from HOT. Killed anywhere it
neither loses nor doubles a sample; given again it goes on. Programs that use both at once open
tiered://?hot=HOT&cold=COLD, and get the same answers before, after and meanwhile; while they run,
HOT must be written by that URL alone.

Examples:
  storage archive sqlite://metrics.db parquet://archive --older-than 30d --dry-run
  storage archive sqlite://metrics.db parquet://archive --older-than 30d
  storage plot --url 'tiered://?hot=sqlite://metrics.db&cold=parquet://archive' web-1 cpu")]
pub(crate) struct Archive {
    /// The store to move samples out of; --url has no effect.
    #[arg(value_name = "HOT")]
    pub(crate) hot: String,
    /// The store to move them to, created if there is none.
    #[arg(value_name = "COLD")]
    pub(crate) cold: String,
    /// Move windows that ended so long ago, such as 30d.
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    pub(crate) older_than: Duration,
    /// How much time is moved at once; windows start at multiples of it.
    #[arg(long, value_name = "WIDTH", default_value = "1d", value_parser = humantime::parse_duration)]
    pub(crate) window: Duration,
    /// Count what would be moved.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Copy at most N samples a second.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: Option<u64>,
    /// Where it stands what is moved, and by whom [default: beside HOT].
    #[arg(long, value_name = "URL")]
    pub(crate) control: Option<String>,
}

impl Args {
    /// Every URL of the command line: none of their passwords may be shown.
    pub(crate) fn urls(&self) -> Vec<String> {
        let mut urls = vec![self.global.url.clone()];
        match &self.command {
            Command::Copy(copy) => urls.extend([copy.source.clone(), copy.destination.clone()]),
            Command::Archive(archive) => {
                urls.extend([archive.hot.clone(), archive.cold.clone()]);
                urls.extend(archive.control.clone());
            }
            _ => {}
        }
        urls
    }
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if interval < Duration::from_millis(200) {
        return Err("the processor cannot be measured more often than every 200ms".into());
    }
    if !interval.subsec_nanos().is_multiple_of(1_000_000) {
        return Err("it must be a whole number of milliseconds".into());
    }
    Ok(interval)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_holds_together() {
        Args::command().debug_assert();
    }
}
