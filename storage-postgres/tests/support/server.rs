//! A server of a test's own, made by `scripts/postgres`; and what tests do when there is none.
#![allow(dead_code, clippy::unwrap_used)] // each target uses a part of it

use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::{Failed, Trial};

/// The variable that names a server with TimescaleDB's Community edition.
pub(crate) const COMMUNITY_URL: &str = "STORAGE_TEST_TIMESCALE_URL";

/// That server, if there is one.
pub(crate) fn community_url() -> Option<String> {
    std::env::var(COMMUNITY_URL).ok().filter(|url| !url.is_empty())
}

/// Runs SQL on the server at `url` with the command of PostgreSQL, and returns what it prints.
pub(crate) fn psql(url: &str, sql: &str) -> String {
    let output = Command::new(binaries().join("psql"))
        .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql, url])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Makes a test of `run`, which needs a server of its own (and, where it says so, root).
pub(crate) fn trial(name: &str, needs_root: bool, run: fn() -> Result<(), Failed>) -> Trial {
    gated(name, lack(needs_root), run)
}

/// Makes a test of `run`, which needs the shared server.
pub(crate) fn shared_trial(
    name: &str,
    run: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Trial {
    let missing = super::url().is_none();
    gated(name, missing.then(|| format!("{} is not set", super::URL)), run)
}

/// Makes a test of `run`, which needs TimescaleDB's Community edition.
pub(crate) fn community_trial(name: &str, run: fn() -> Result<(), Failed>) -> Trial {
    let lack = community_url().is_none();
    let lack = lack.then(|| format!("{COMMUNITY_URL} is not set"));
    gated_by(&["timescale_community"], name, lack, run)
}

pub(crate) fn gated(
    name: &str,
    lack: Option<String>,
    run: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Trial {
    gated_by(&["postgres", "faults", "all", "1"], name, lack, run)
}

pub(crate) fn gated_by(
    words: &[&str],
    name: &str,
    lack: Option<String>,
    run: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Trial {
    let required = std::env::var("CONFORMANCE_REQUIRE").unwrap_or_default();
    let is_required = required.split(',').any(|word| words.contains(&word.trim()));
    match lack {
        None => Trial::test(name, run),
        Some(reason) if is_required => Trial::test(name, move || Err(reason.into())),
        Some(reason) => Trial::test(name, run).with_ignored_flag(true).with_kind(reason),
    }
}

/// Says what a server of a test's own lacks on this machine.
pub(crate) fn lack(needs_root: bool) -> Option<String> {
    let id = Command::new("id").arg("-u").output().map(|output| output.stdout);
    if needs_root && id.ok().as_deref() != Some(b"0\n") {
        return Some("needs root".to_owned());
    }
    let found = script().arg("find").output();
    let found = found.is_ok_and(|output| output.status.success());
    (!found).then(|| "no PostgreSQL server is installed; see scripts/postgres".to_owned())
}

fn script() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/postgres"))
}

/// The directory of the server's binaries.
pub(crate) fn binaries() -> PathBuf {
    let output = script().arg("find").output().unwrap();
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// The user and group that may run the server, where this process may not.
pub(crate) fn user() -> Option<(String, String)> {
    let output = |arguments: &[&str]| {
        let output = Command::new("id").args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        output.status.success().then_some(text)
    };
    if output(&["-u"])? != "0" {
        return None;
    }
    let name = if output(&["-u", "postgres"]).is_some() { "postgres" } else { "nobody" };
    Some((output(&["-u", name])?, output(&["-g", name])?))
}

/// A server that is stopped and removed when it goes.
pub(crate) struct Server {
    dir: tempfile::TempDir,
    pub(crate) url: String,
    settings: Vec<String>,
}

impl Server {
    pub(crate) fn start(settings: &[&str]) -> Self {
        let mut server = Self::in_new_directory(settings);
        server.start_again();
        server
    }

    fn in_new_directory(settings: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The server runs as another user.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        Self { dir, url: String::new(), settings }
    }

    /// A standby of this one, which gets what is committed here as it comes.
    pub(crate) fn standby(&self, settings: &[&str]) -> Self {
        let mut standby = Self::in_new_directory(settings);
        let of = self.path().to_str().unwrap().to_owned();
        let arguments: Vec<String> = std::iter::once(of).chain(standby.settings.clone()).collect();
        standby.url = standby.run("standby", &arguments);
        standby
    }

    /// Makes a standby a server that takes writes.
    pub(crate) fn promote(&self) {
        self.run("promote", &[]);
    }

    /// Starts it again after a stop, on the same port.
    pub(crate) fn start_again(&mut self) {
        self.url = self.run("start", &self.settings);
    }

    /// Sets what the next start is told.
    pub(crate) fn settings(&mut self, settings: &[&str]) {
        self.settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
    }

    pub(crate) fn stop(&self, mode: &str) {
        self.run("stop", &[mode.to_owned()]);
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    fn run(&self, verb: &str, arguments: &[String]) -> String {
        let output = script().arg(verb).arg(self.dir.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that is stopped already, or never started, is fine.
        let _ = script().arg("stop").arg(self.dir.path()).arg("immediate").output();
    }
}
