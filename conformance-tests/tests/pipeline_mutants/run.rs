//! Runs one test of the copy in a process of its own.

use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::build::Built;
use super::{Mutant, Test};

/// Long enough for each of the tests on a busy machine.
const TIME_MAX: Duration = Duration::from_secs(60);

/// How a test ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Passed,
    Failed,
    /// It never ended, which is not what catches a bug.
    Hangs,
}

pub(crate) fn run(built: &Built, test: Test, mutant: Option<&Mutant>) -> Result<Ended, String> {
    let mut command = Command::new(built.program_of(test));
    command.args(["--exact", test.name()]).stdout(Stdio::piped()).stderr(Stdio::null());
    match mutant {
        Some(mutant) => command.env("STORAGE_MUTANT", mutant.name),
        None => command.env_remove("STORAGE_MUTANT"),
    };
    let text = |error: std::io::Error| error.to_string();
    let mut child = command.spawn().map_err(text)?;
    let stdout = child.stdout.take();
    // Beside the waiting: what nobody reads fills the pipe, and holds up who writes.
    let reading = thread::spawn(move || {
        let mut told = String::new();
        let read = stdout.map_or(Ok(0), |mut stdout| stdout.read_to_string(&mut told));
        read.map(|_| told)
    });
    let deadline = Instant::now() + TIME_MAX;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(text)? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill().and_then(|()| child.wait()).map_err(text)?;
            return Ok(Ended::Hangs);
        }
        thread::sleep(Duration::from_millis(5));
    };
    let told = reading.join().map_err(|_| "the output was not read")?.map_err(text)?;
    // A test that is not there passes, too.
    if told.contains("1 passed; 0 failed") && status.success() {
        return Ok(Ended::Passed);
    }
    if told.contains("0 passed; 1 failed") {
        return Ok(Ended::Failed);
    }
    Err(format!("{} did not run, or did not end as tests do ({status}): {told}", test.name()))
}
