//! A server of its own for a measurement: a child process on a free port, spoken to over HTTP.

use std::fmt::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use storage_benches::machine::disk_bytes;
use storage_core::MetricRecord;
use ureq::Agent;

use crate::engine::Result;

/// How long a server may take to start, or to tidy up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Files that did not grow or shrink this long are settled.
const QUIET: Duration = Duration::from_secs(4);

/// A running server; it ends when dropped.
pub(crate) struct Server {
    child: Child,
    agent: Agent,
    address: String,
    folder: PathBuf,
}

impl Server {
    /// Starts `command` and waits until it answers at `health`.
    pub(crate) fn start(
        mut command: Command,
        address: String,
        health: &str,
        folder: &Path,
    ) -> Result<Self> {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let config = Agent::config_builder().timeout_global(Some(PATIENCE)).build();
        let agent = Agent::new_with_config(config);
        let server = Self { child, agent, address, folder: folder.to_owned() };
        let started = Instant::now();
        while server.get(health, &[]).is_err() {
            if started.elapsed() > PATIENCE {
                return Err("the server does not answer".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Sends a body; the answer must say success.
    pub(crate) fn post(&self, path: &str, query: &[(&str, &str)], body: &str) -> Result<()> {
        let request = self.agent.post(format!("http://{}{path}", self.address));
        let request = request.query_pairs(query.iter().copied());
        request.content_type("text/plain").send(body)?.body_mut().read_to_vec()?;
        Ok(())
    }

    /// Asks; returns the body of the answer.
    pub(crate) fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<String> {
        let request = self.agent.get(format!("http://{}{path}", self.address));
        let mut answer = request.query_pairs(query.iter().copied()).call()?;
        // A large answer is what is measured, not a mistake.
        Ok(answer.body_mut().with_config().limit(u64::MAX).read_to_string()?)
    }

    /// Waits until the files stay as they are.
    pub(crate) fn wait_until_quiet(&self) {
        let started = Instant::now();
        let (mut size, mut since) = (disk_bytes(&self.folder), Instant::now());
        while since.elapsed() < QUIET && started.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(100));
            let now = disk_bytes(&self.folder);
            if now != size {
                (size, since) = (now, Instant::now());
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; the folder goes anyway.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a program of this name can be run.
pub(crate) fn is_installed(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|folder| folder.join(program).is_file())
}

/// The version of a Debian package.
pub(crate) fn package_version(package: &str) -> Option<String> {
    let arguments = ["-W", "-f", "${Version}", package];
    let output = Command::new("dpkg-query").args(arguments).output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    (!version.is_empty()).then_some(version)
}

/// An address that nobody listens at now.
pub(crate) fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// Records in InfluxDB's line protocol, a line per host and time, as the suite's loader does it.
pub(crate) fn lines(records: &[MetricRecord], nanoseconds: bool) -> String {
    let mut text = String::with_capacity(records.len() * 32);
    let same = |a: &MetricRecord, b: &MetricRecord| {
        a.server_id == b.server_id && a.timestamp == b.timestamp
    };
    for line in records.chunk_by(same) {
        let host = &line[0].server_id;
        // Writing to a string cannot fail.
        let _ = write!(text, "cpu,host={host} ");
        for (index, record) in line.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let _ = write!(text, "{comma}{}={}", record.metric_type, record.value);
        }
        let time_ms = line[0].timestamp.timestamp_millis();
        let zeros = if nanoseconds { "000000" } else { "" };
        let _ = writeln!(text, " {time_ms}{zeros}");
    }
    text
}
