//! Runs the binary over a store in a directory of its own.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A directory with a store, both gone at the end.
pub(crate) struct Fixture {
    directory: TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn url(&self) -> String {
        format!("sqlite://{}", self.path("metrics.db").display())
    }

    /// Writes a file into the directory and returns its path.
    pub(crate) fn file(&self, name: &str, content: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_storage"));
        command
            .args(args)
            .env("STORAGE_URL", self.url())
            .env_remove("RUST_LOG")
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Run {
        Run::of(self.command(args).output().unwrap())
    }

    pub(crate) fn run_with_input(&self, args: &[&str], input: &str) -> Run {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        Run::of(child.wait_with_output().unwrap())
    }

    /// Runs what must succeed, and returns what it printed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let run = self.run(args);
        assert_eq!(run.code, 0, "{args:?}: {}", run.stderr);
        run.stdout
    }

    /// Runs what must succeed and print JSON.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let mut all = vec!["--format", "json"];
        all.extend(args);
        serde_json::from_str(&self.ok(&all)).unwrap()
    }

    /// Runs what must fail with one line on stderr, and returns the line.
    pub(crate) fn refused(&self, args: &[&str]) -> String {
        let run = self.run(args);
        assert_eq!(run.code, 1, "{args:?}: {run:?}");
        let lines: Vec<_> = run.stderr.lines().collect();
        assert_eq!(lines.len(), 1, "{args:?}: {run:?}");
        assert!(lines[0].starts_with("error: "), "{run:?}");
        lines[0].to_owned()
    }

    /// How many samples there are at `url`; none where nothing can be asked.
    pub(crate) fn samples_at(&self, url: &str) -> u64 {
        let run = self.run(&["--format", "json", "stats", "--url", url]);
        if run.code == 0 { run.json()["samples"].as_u64().unwrap() } else { 0 }
    }

    /// Returns how many samples there are, none where there is no store.
    pub(crate) fn samples(&self) -> u64 {
        if !self.path("metrics.db").exists() {
            return 0;
        }
        self.json(&["stats"])["samples"].as_u64().unwrap()
    }
}

/// What a run left behind.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

/// What a process says on standard error, while it runs.
pub(crate) struct Told(Arc<Mutex<String>>);

impl Told {
    pub(crate) fn of(child: &mut Child) -> Self {
        let (text, stderr) = (Arc::<Mutex<String>>::default(), child.stderr.take().unwrap());
        let told = Self(Arc::clone(&text));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines() {
                let mut text = text.lock().unwrap();
                text.push_str(&line.unwrap());
                text.push('\n');
            }
        });
        told
    }

    pub(crate) fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }
}

/// Polls until something is so, and fails if that takes longer than `patience`.
pub(crate) fn until(patience: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Waits for a while for a child to end.
pub(crate) fn ended_within(child: &mut Child, time: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + time;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::yield_now();
    }
}

/// Asks a child to end, as an init system does.
pub(crate) fn terminate(child: &Child) {
    let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

/// The directory of the real measurements that come with these tests.
pub(crate) fn nab_aws() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nab-aws")
}
