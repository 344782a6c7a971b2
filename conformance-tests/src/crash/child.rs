//! The child process that writes: the test binary, started again in another role.
//!
//! It talks in lines. To its parent: `ack N`, `stopped`, `failed REASON`. From its parent: `stop`;
//! the end of its input means that the parent is gone, and then it goes too.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::workload::Lane;
use super::{DirFixture, Part};
use crate::failure::{CaseResult, Failure};

const ROLE: &str = "CONFORMANCE_CRASH_CHILD";
const DIR: &str = "CONFORMANCE_CRASH_DIR";
const LANE: &str = "CONFORMANCE_CRASH_LANE";
const START: &str = "CONFORMANCE_CRASH_START";
const PART: &str = "CONFORMANCE_CRASH_PART";

/// The values of [`PART`].
const PARTS: [(Part, &str); 4] = [
    (Part::Metrics, "metrics"),
    (Part::History, "history"),
    (Part::Events, "events"),
    (Part::Jobs, "jobs"),
];

/// How long a child may take to say something that it must say.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// Plays the child if this process was started as one for `fixture`, and then never returns.
///
/// The `main` of a test target calls it first, once for each fixture that it uses.
pub fn child_entry(fixture: &dyn DirFixture) {
    let variable = |name| std::env::var(name).unwrap_or_default();
    if variable(ROLE) != fixture.name() {
        return;
    }
    let number = |name| variable(name).parse().unwrap_or_default();
    let stop = Arc::new(AtomicBool::new(false));
    listen(Arc::clone(&stop));
    let dir = variable(DIR);
    let named = PARTS.iter().find(|(_, name)| variable(PART) == *name);
    let part = named.map_or(Part::Metrics, |(part, _)| *part);
    let lane = Lane(number(LANE) as usize);
    let failure = match write(fixture, Path::new(&dir), part, lane, number(START), &stop) {
        Ok(()) => {
            say("stopped");
            // Still running, its files still open, until it is killed.
            loop {
                std::thread::park();
            }
        }
        Err(failure) => failure,
    };
    say(&format!("failed {}", failure.message().replace('\n', " ")));
    std::process::exit(1);
}

/// Whether this process is a child, which must not start children itself.
pub(super) fn is_child() -> bool {
    std::env::var_os(ROLE).is_some()
}

fn write(
    fixture: &dyn DirFixture,
    dir: &Path,
    part: Part,
    lane: Lane,
    start: u64,
    stop: &AtomicBool,
) -> CaseResult {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let store = fixture.open_store_in(dir).await?;
        let on_ack = |number| {
            say(&format!("ack {number}"));
            !stop.load(Ordering::Acquire)
        };
        let written = part.write_forever(&store, lane, start, on_ack).await;
        // Killed as it is: neither closed nor dropped.
        std::mem::forget(store);
        written
    })?;
    std::mem::forget(runtime);
    Ok(())
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(2);
    }
}

fn listen(stop: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            match line.as_deref() {
                Ok("stop") => stop.store(true, Ordering::Release),
                _ => break,
            }
        }
        std::process::exit(3);
    });
}

/// A child as its parent sees it. Dropped, it is killed.
pub(crate) struct Writer {
    pub(crate) lane: Lane,
    process: Child,
    input: Option<ChildStdin>,
    acked: Arc<AtomicU64>,
    events: Receiver<Event>,
    reader: Option<JoinHandle<()>>,
}

enum Event {
    FirstAck,
    Stopped,
    Failed(String),
}

impl Writer {
    /// Starts a child that writes batch `start` and all that follow.
    pub(crate) fn start(
        fixture: &dyn DirFixture,
        dir: &Path,
        part: Part,
        lane: Lane,
        start: u64,
    ) -> Result<Self, Failure> {
        ensure!(!is_child(), "no `child_entry` in `main` for the fixture {}", fixture.name());
        let mut process = Command::new(std::env::current_exe()?)
            .env(ROLE, fixture.name())
            .env(DIR, dir)
            .env(PART, PARTS.iter().find(|(of, _)| *of == part).map_or("metrics", |(_, name)| name))
            .env(LANE, lane.0.to_string())
            .env(START, start.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = process.stdin.take();
        let acked = Arc::new(AtomicU64::new(start - 1));
        let (sender, events) = channel();
        let reader = process.stdout.take().map(|output| {
            let acked = Arc::clone(&acked);
            std::thread::spawn(move || {
                let mut first = true;
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let event = match line.split_once(' ') {
                        Some(("ack", number)) => {
                            let Ok(number) = number.parse() else { continue };
                            acked.store(number, Ordering::Release);
                            if !std::mem::take(&mut first) {
                                continue;
                            }
                            Event::FirstAck
                        }
                        Some(("failed", reason)) => Event::Failed(reason.to_owned()),
                        _ if line == "stopped" => Event::Stopped,
                        _ => continue,
                    };
                    // Nobody listens any more to a child that is about to be killed.
                    let _ = sender.send(event);
                }
            })
        });
        Ok(Self { lane, process, input, acked, events, reader })
    }

    /// Waits until the first batch is acknowledged.
    pub(crate) fn wait_first_ack(&self) -> CaseResult {
        self.wait(|event| matches!(event, Event::FirstAck), "acknowledge a batch")
    }

    /// Lets the batch under way finish, and returns when no other will follow.
    pub(crate) fn quiesce(&mut self) -> CaseResult {
        let input = self.input.as_mut().ok_or_else(|| Failure::new("the child has no input"))?;
        writeln!(input, "stop")?;
        input.flush()?;
        self.wait(|event| matches!(event, Event::Stopped), "stop")
    }

    /// The last batch whose acknowledgement was read so far.
    pub(crate) fn acked(&self) -> u64 {
        self.acked.load(Ordering::Acquire)
    }

    /// Fails if the child has reported an error.
    pub(crate) fn check(&self) -> CaseResult {
        for event in self.events.try_iter() {
            if let Event::Failed(reason) = event {
                return Err(Failure::new(format!("the writer failed: {reason}")));
            }
        }
        Ok(())
    }

    /// Kills this child (SIGKILL), and returns the last batch that it acknowledged before.
    pub(crate) fn kill(&mut self) -> Result<u64, Failure> {
        self.process.kill()?;
        self.process.wait()?;
        // What it said before is still in the pipe.
        if let Some(Err(_)) = self.reader.take().map(JoinHandle::join) {
            return Err(Failure::new("the thread that reads the child's output panicked"));
        }
        Ok(self.acked())
    }

    fn wait(&self, is_it: impl Fn(&Event) -> bool, what: &str) -> CaseResult {
        loop {
            match self.events.recv_timeout(ANSWER_TIME_MAX) {
                Ok(Event::Failed(reason)) => {
                    return Err(Failure::new(format!("the writer failed: {reason}")));
                }
                Ok(event) if is_it(&event) => return Ok(()),
                Ok(_) => {}
                Err(_) => {
                    return Err(Failure::new(format!(
                        "the writer ended, or did not {what} in time"
                    )));
                }
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
