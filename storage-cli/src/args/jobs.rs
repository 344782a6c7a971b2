//! The verbs about jobs, pipelines and executions.

use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{Args as ClapArgs, Subcommand};
use storage::{ExecutionStatus, RunResult, Schedule};

use super::Prune;
use crate::input::time::parse_when;

/// What to do with jobs.
#[derive(Debug, Subcommand)]
pub(crate) enum Jobs {
    /// Add a job.
    Add(JobAdd),
    /// List jobs by id, with their next and last run.
    List(JobList),
    /// Print one job.
    Show {
        /// Which job.
        id: String,
    },
    /// Change a job; what is not said stays.
    Update(JobUpdate),
    /// Let a job run by its schedule again.
    Enable {
        /// Which job.
        id: String,
    },
    /// Keep a job from running by its schedule.
    Disable {
        /// Which job.
        id: String,
    },
    /// Remove a job with all its executions.
    Remove(Remove),
    /// Take a job that is due, for a worker; exit code 1 if none is.
    Claim(JobClaim),
    /// Say whether jobs are claimed and workers alive; exit code 1 if not.
    #[command(after_help = "Example:\n  storage jobs health -q || alert 'jobs are stuck'")]
    Health,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage jobs add daily-sync --cron '0 2 * * *' --pipeline sync.yaml --name 'Daily Data Sync'
  storage jobs add poll --cron '*/30 * * * * *' --pipeline poll.yaml

Cron expressions have five fields (minute, hour, day of the month, month, day of the week), six with
seconds in front, or are @hourly, @daily, @weekly, @monthly or @yearly; all in UTC.")]
pub(crate) struct JobAdd {
    /// An id that no other job has.
    pub(crate) id: String,
    /// When it runs.
    #[arg(long, value_name = "EXPR", value_parser = parse_schedule)]
    pub(crate) cron: Schedule,
    /// The pipeline that it runs, by name.
    #[arg(long, value_name = "NAME")]
    pub(crate) pipeline: String,
    /// What people call it [default: the id].
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Do not run it yet.
    #[arg(long)]
    pub(crate) disabled: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage jobs list
  storage jobs list --due --format json
  storage jobs list --pipeline sync.yaml --enabled")]
pub(crate) struct JobList {
    /// Only jobs that run this pipeline.
    #[arg(long, value_name = "NAME")]
    pub(crate) pipeline: Option<String>,
    /// Only jobs that run by their schedule.
    #[arg(long, conflicts_with = "disabled")]
    pub(crate) enabled: bool,
    /// Only jobs that do not.
    #[arg(long)]
    pub(crate) disabled: bool,
    /// Only jobs that could be claimed now.
    #[arg(long)]
    pub(crate) due: bool,
    #[command(flatten)]
    pub(crate) part: Part,
}

/// Which part of a list.
#[derive(Debug, ClapArgs)]
pub(crate) struct Part {
    /// Print at most N, and where to go on [default: all].
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    /// Go on after this place, as a list before has said it.
    #[arg(long, value_name = "PLACE", allow_hyphen_values = true)]
    pub(crate) after: Option<String>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage jobs update daily-sync --cron '0 3 * * *'
  storage jobs update daily-sync --next-run now
  storage jobs update daily-sync --pipeline sync2.yaml --expect-version 3")]
pub(crate) struct JobUpdate {
    /// Which job.
    pub(crate) id: String,
    /// What people call it.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The pipeline that it runs.
    #[arg(long, value_name = "NAME")]
    pub(crate) pipeline: Option<String>,
    /// When it runs; the next run is planned anew.
    #[arg(long, value_name = "EXPR", value_parser = parse_schedule)]
    pub(crate) cron: Option<Schedule>,
    /// The next run; those after it go by the schedule again.
    #[arg(long, value_name = "TIME", value_parser = parse_when, allow_hyphen_values = true)]
    pub(crate) next_run: Option<DateTime<Utc>>,
    /// Change nothing unless the job has this version.
    #[arg(long, value_name = "N")]
    pub(crate) expect_version: Option<u64>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Remove {
    /// Which one.
    pub(crate) id: String,
    /// Do not ask.
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage jobs claim --worker \"$(hostname)\" --lease 10m --format json
  storage jobs claim daily-sync --worker me        run it now, due or not

Nobody else gets the job until the lease is over or the execution has ended. Say `storage executions
extend ID` before that, and `storage executions end ID succeeded` when it is done.

If a connection breaks it may not be known whether there is an execution. Repeat the claim with --execution
and the id that the error names: it gives the same one, or claims now.")]
pub(crate) struct JobClaim {
    /// This job, due or not [default: the one that has been due longest].
    pub(crate) id: Option<String>,
    /// Who runs it.
    #[arg(long, value_name = "NAME")]
    pub(crate) worker: String,
    /// How long others keep off.
    #[arg(long, value_name = "SPAN", default_value = "5m", value_parser = humantime::parse_duration)]
    pub(crate) lease: Duration,
    /// The id of the execution [default: a random one].
    #[arg(long, value_name = "ID")]
    pub(crate) execution: Option<String>,
}

/// What to do with pipelines.
#[derive(Debug, Subcommand)]
pub(crate) enum Pipelines {
    /// Add a pipeline.
    #[command(after_help = "\
Examples:
  storage pipelines add sync.yaml '{\"steps\": []}' --description 'Fetches and stores'
  yq -o json sync.yaml | storage pipelines add sync.yaml -")]
    Add {
        /// A name that no other pipeline has.
        name: String,
        /// What it does, as JSON, or - for standard input.
        config: String,
        /// What it is for.
        #[arg(long, default_value = "")]
        description: String,
    },
    /// List pipelines by name.
    List(Part),
    /// Print one pipeline.
    Show {
        /// Which pipeline.
        name: String,
    },
    /// Change a pipeline; what is not said stays.
    Update {
        /// Which pipeline.
        name: String,
        /// What it does, as JSON, or - for standard input.
        #[arg(long, value_name = "JSON", allow_hyphen_values = true)]
        config: Option<String>,
        /// What it is for.
        #[arg(long)]
        description: Option<String>,
        /// Change nothing unless the pipeline has this version.
        #[arg(long, value_name = "N")]
        expect_version: Option<u64>,
    },
    /// Remove a pipeline; jobs that run it stay.
    Remove(Remove),
}

/// What to do with executions.
#[derive(Debug, Subcommand)]
pub(crate) enum Executions {
    /// List executions, the newest first.
    List(ExecutionList),
    /// Print one execution.
    Show {
        /// Which execution.
        id: String,
    },
    /// Add executions that were run without a claim.
    #[command(after_help = "\
Examples:
  storage executions add '{\"id\": \"r1\", \"job_id\": \"daily-sync\", \"pipeline\": \"sync.yaml\",
      \"started_at\": \"2026-01-31T08:00:00Z\", \"triggered_by\": \"manual\"}'
  storage executions add - < executions.jsonl

With - JSON lines are read from standard input, one execution each. If one is wrong none is added. Then
they are added one by one, up to the first whose id is taken or whose job is not there.")]
    Add {
        /// The execution as JSON, or - for standard input.
        execution: String,
    },
    /// Keep what an execution that is under way did so far.
    Update {
        /// Which execution.
        id: String,
        /// What it did, as JSON.
        #[arg(long, value_name = "JSON", allow_hyphen_values = true)]
        steps: Option<String>,
        /// What it works with, as JSON.
        #[arg(long, value_name = "JSON", allow_hyphen_values = true)]
        context: Option<String>,
    },
    /// Keep others off the job of an execution for longer.
    Extend {
        /// Which execution.
        id: String,
        /// How long from now on.
        #[arg(long, value_name = "SPAN", default_value = "5m")]
        #[arg(value_parser = humantime::parse_duration)]
        lease: Duration,
    },
    /// End an execution that is under way.
    #[command(after_help = "\
Examples:
  storage executions end 5f0c succeeded
  storage executions end 5f0c failed --error 'no network'")]
    End {
        /// Which execution.
        id: String,
        /// How it ended: succeeded, failed, cancelled or lost.
        #[arg(value_parser = parse_result)]
        result: RunResult,
        /// Why.
        #[arg(long, value_name = "TEXT")]
        error: Option<String>,
    },
    /// Remove executions that have ended and started before a time.
    #[command(after_help = "\
Examples:
  storage executions cleanup --before now-90d --dry-run
  storage executions cleanup --before now-90d --yes")]
    Cleanup(Prune),
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  storage executions list
  storage executions list daily-sync -n 10
  storage executions list --status failed --format json")]
pub(crate) struct ExecutionList {
    /// Only executions of this job.
    pub(crate) job: Option<String>,
    /// Only executions in this state: running, succeeded, failed, cancelled or lost.
    #[arg(long, value_parser = parse_status)]
    pub(crate) status: Option<ExecutionStatus>,
    #[command(flatten)]
    pub(crate) part: Part,
}

fn parse_schedule(text: &str) -> Result<Schedule, String> {
    text.parse().map_err(|error: storage::Error| error.message().to_owned())
}

fn parse_result(text: &str) -> Result<RunResult, String> {
    text.parse().map_err(|error: storage::Error| error.message().to_owned())
}

fn parse_status(text: &str) -> Result<ExecutionStatus, String> {
    text.parse().map_err(|error: storage::Error| error.message().to_owned())
}
