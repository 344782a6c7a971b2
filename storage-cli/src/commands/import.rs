//! `storage import`: files into the store.
//!
//! One thread reads and parses, the other stores: batches go through a short channel, so that
//! memory stays bounded and both are busy.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::ProgressBar;
use storage::{MetricRecord, StorageBackend};
use tokio::sync::mpsc;

use crate::args::Import;
use crate::input::{self, Defaults, LineRules, Sink, Syntax};
use crate::output::{Cell, Output, progress, text, warn};

/// How many bad lines are spelt out.
const BAD_SHOWN_MAX: u64 = 10;

/// How many batches may wait for the store.
const BATCHES_WAITING_MAX: usize = 2;

/// What is to be imported, ready to be read.
pub(super) struct Prepared {
    sources: Vec<Source>,
    batch_size: usize,
    started: Instant,
}

/// Finds out what is wrong with the files before a store is opened, and so created.
pub(super) async fn prepare(args: &Import, output: &Output) -> Result<Prepared> {
    let started = Instant::now();
    let mut sources = open_all(args)?;
    if args.strict {
        let progress = progress::of_bytes(output, total_bytes(&sources));
        sources = tokio::task::spawn_blocking(move || check_all(sources, &progress)).await??;
    }
    Ok(Prepared { sources, batch_size: args.batch_size as usize, started })
}

pub(super) async fn run(
    store: &dyn StorageBackend,
    prepared: Prepared,
    output: &mut Output,
) -> Result<ExitCode> {
    let Prepared { sources, batch_size, started } = prepared;
    let before = store.stats().await?;
    let progress = progress::of_bytes(output, total_bytes(&sources));
    let (sender, mut batches) = mpsc::channel(BATCHES_WAITING_MAX);
    let reader = {
        let progress = progress.clone();
        tokio::task::spawn_blocking(move || read_all(sources, sender, batch_size, &progress))
    };
    let mut stored = 0;
    let mut failure = None;
    while let Some(batch) = batches.recv().await {
        if let Err(error) = store.write_batch(&batch).await {
            failure = Some(error);
            break;
        }
        stored += batch.len() as u64;
    }
    // Without a receiver the reader stops at its next batch.
    drop(batches);
    let read = reader.await?;
    progress.finish_and_clear();
    if let Some(error) = failure {
        let samples = text::counted(stored, "sample");
        return Err(anyhow!(error).context(format!(
            "{samples} were stored before this; importing again is safe, it replaces them"
        )));
    }
    let read = read?;
    store.flush().await?;
    let after = store.stats().await?;
    let grown = after.total_metrics.saturating_sub(before.total_metrics);
    print(output, &read, stored, grown, started)?;
    Ok(ExitCode::SUCCESS)
}

fn print(
    output: &mut Output,
    read: &Report,
    stored: u64,
    grown: u64,
    started: Instant,
) -> Result<()> {
    if !read.ignored.is_empty() {
        output.note(&format!("columns left out: {}", read.ignored.join(", ")));
    }
    // Another writer may have added more than this one.
    let new = grown.min(stored);
    let seconds = started.elapsed().as_secs_f64();
    output.record(vec![
        ("lines_read", Cell::Count(read.lines)),
        ("samples_stored", Cell::Count(stored)),
        ("new", Cell::Count(new)),
        ("replaced", Cell::Count(stored - new)),
        ("bad_lines", Cell::Count(read.bad)),
        ("seconds", Cell::Derived((seconds * 1e3).round() / 1e3)),
    ])?;
    if read.bad > 0 {
        let lines = text::counted(read.bad, "bad line");
        warn(&format!("{lines} left out; --strict would have stored nothing"));
    }
    Ok(())
}

/// A file or standard input, ready to be read.
struct Source {
    name: String,
    /// `None` is standard input.
    file: Option<File>,
    size: Option<u64>,
    syntax: Syntax,
}

/// Opens everything first: a typo in the last name must not come out after an hour.
fn open_all(args: &Import) -> Result<Vec<Source>> {
    storage::metrics::record::validate_names(&args.server, args.metric.as_deref().unwrap_or("m"))?;
    args.files.iter().map(|path| open(path, args)).collect()
}

fn open(path: &Path, args: &Import) -> Result<Source> {
    let is_stdin = path == Path::new("-");
    let name = if is_stdin { "stdin".to_owned() } else { path.display().to_string() };
    let mut file = None;
    let mut size = None;
    if !is_stdin {
        let opened = File::open(path).with_context(|| format!("cannot open {name}"))?;
        let found = opened.metadata()?;
        if found.is_dir() {
            bail!("{name} is a directory; name the files in it");
        }
        size = found.is_file().then_some(found.len());
        file = Some(opened);
    }
    let stem = path.file_stem().and_then(|stem| stem.to_str()).filter(|_| !is_stdin);
    let mut source = Source {
        name,
        file,
        size,
        syntax: Syntax {
            format: args.input_format.or_else(|| input::format_of(path)),
            defaults: Defaults {
                server: args.server.clone(),
                metric: args.metric.clone().or_else(|| stem.map(str::to_owned)),
                time_format: args.time_format.clone(),
            },
            lines: LineRules::default(),
        },
    };
    if args.strict && source.size.is_none() {
        source.spool()?;
    }
    Ok(source)
}

impl Source {
    /// Copies what can be read only once into a temporary file.
    fn spool(&mut self) -> Result<()> {
        let mut copy = tempfile::tempfile().context("cannot create a temporary file")?;
        let size = io::copy(&mut self.reader(), &mut copy)
            .with_context(|| format!("cannot copy {} to a temporary file", self.name))?;
        copy.rewind()?;
        (self.file, self.size) = (Some(copy), Some(size));
        Ok(())
    }

    fn reader(&self) -> Box<dyn Read + '_> {
        match &self.file {
            Some(file) => Box::new(file),
            None => Box::new(io::stdin()),
        }
    }

    fn read(&self, progress: &ProgressBar, sink: &mut dyn Sink) -> Result<Vec<String>> {
        progress.set_message(self.name.clone());
        let text = BufReader::with_capacity(256 << 10, progress.wrap_read(self.reader()));
        input::read(text, &self.syntax, sink).with_context(|| format!("cannot read {}", self.name))
    }
}

fn total_bytes(sources: &[Source]) -> Option<u64> {
    sources.iter().map(|source| source.size).sum()
}

/// What was read.
#[derive(Debug, Default)]
struct Report {
    lines: u64,
    bad: u64,
    ignored: Vec<String>,
}

impl Report {
    fn bad(&mut self, source: &str, line: u64, reason: &str, progress: &ProgressBar) {
        self.bad += 1;
        match self.bad {
            ..=BAD_SHOWN_MAX => progress.suspend(|| warn(&format!("{source}:{line}: {reason}"))),
            more if more == BAD_SHOWN_MAX + 1 => {
                progress.suspend(|| warn("further bad lines are only counted"));
            }
            _ => {}
        }
    }
}

/// Reads everything once, and gives the sources back if no line is bad.
fn check_all(mut sources: Vec<Source>, progress: &ProgressBar) -> Result<Vec<Source>> {
    let mut report = Report::default();
    for source in &mut sources {
        let mut sink = Checking { source: &source.name, report: &mut report, progress };
        source.read(progress, &mut sink)?;
        // A source that can be read only once was copied when it was opened.
        source.file.iter_mut().try_for_each(Seek::rewind)?;
    }
    progress.finish_and_clear();
    if report.bad > 0 {
        let bad = text::counted(report.bad, "bad line");
        bail!("{bad} of {} and --strict: nothing was stored", text::count(report.lines));
    }
    Ok(sources)
}

struct Checking<'a> {
    source: &'a str,
    report: &'a mut Report,
    progress: &'a ProgressBar,
}

impl Sink for Checking<'_> {
    fn line(&mut self) -> Result<()> {
        self.report.lines += 1;
        Ok(())
    }

    fn record(&mut self, _: MetricRecord) -> Result<()> {
        Ok(())
    }

    fn bad(&mut self, line: u64, reason: &str) {
        self.report.bad(self.source, line, reason, self.progress);
    }
}

/// Reads everything and sends it on in batches.
fn read_all(
    sources: Vec<Source>,
    sender: mpsc::Sender<Vec<MetricRecord>>,
    batch_size: usize,
    progress: &ProgressBar,
) -> Result<Report> {
    let mut sink = Sending {
        sender,
        batch: Vec::new(),
        batch_size,
        source: String::new(),
        report: Report::default(),
        progress,
    };
    for source in &sources {
        sink.source.clone_from(&source.name);
        for name in source.read(progress, &mut sink)? {
            if !sink.report.ignored.contains(&name) {
                sink.report.ignored.push(name);
            }
        }
    }
    sink.send()?;
    Ok(sink.report)
}

struct Sending<'a> {
    sender: mpsc::Sender<Vec<MetricRecord>>,
    batch: Vec<MetricRecord>,
    batch_size: usize,
    source: String,
    report: Report,
    progress: &'a ProgressBar,
}

impl Sending<'_> {
    fn send(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.sender.blocking_send(batch).map_err(|_| anyhow!("the store failed"))
    }
}

impl Sink for Sending<'_> {
    fn line(&mut self) -> Result<()> {
        self.report.lines += 1;
        Ok(())
    }

    fn record(&mut self, record: MetricRecord) -> Result<()> {
        self.batch.push(record);
        if self.batch.len() >= self.batch_size { self.send() } else { Ok(()) }
    }

    fn bad(&mut self, line: u64, reason: &str) {
        self.report.bad(&self.source, line, reason, self.progress);
    }
}
