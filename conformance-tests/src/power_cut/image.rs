//! An ext4 file system in a file, mounted through a loop device, whose power can be cut.
//!
//! The cut is the file system's own shutdown: from then on nothing reaches the image, not even
//! the file system's log. What was in the page cache only is gone after the next mount, as after
//! a power cut of an honest device. Torn sectors and caches that lie are not modelled.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::failure::{CaseResult, Failure};

/// How long a file system may stay busy after its processes were killed.
const UNMOUNT_TIME_MAX: Duration = Duration::from_secs(20);

/// Waits for a line, then shuts the file system down without flushing its log
/// (`EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`). In Python, as an ioctl is unsafe code.
const CUT: &str = "
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print('ready', flush=True)
sys.stdin.readline()
fcntl.ioctl(fd, 0x8004587d, struct.pack('I', 2))
print('cut', flush=True)
";

/// The file system. Dropped, it is unmounted and removed.
pub(super) struct Image {
    dir: Option<TempDir>,
    mounted: bool,
}

impl Image {
    /// Makes a file system of `mebibytes`, and mounts it.
    pub(super) fn create(mebibytes: u64) -> Result<Self, Failure> {
        let dir = tempfile::Builder::new().prefix("power_cut_").tempdir()?;
        std::fs::create_dir(dir.path().join("mount"))?;
        std::fs::File::create(dir.path().join("image"))?.set_len(mebibytes << 20)?;
        run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), &dir.path().join("image")])?;
        let mut image = Self { dir: Some(dir), mounted: false };
        image.mount()?;
        Ok(image)
    }

    /// Where the file system is mounted.
    pub(super) fn root(&self) -> PathBuf {
        self.path("mount")
    }

    pub(super) fn mount(&mut self) -> CaseResult {
        run("mount", &["-o".as_ref(), "loop".as_ref(), &self.path("image"), &self.root()])?;
        self.mounted = true;
        Ok(())
    }

    /// Unmounts, after whoever used it is gone.
    pub(super) fn unmount(&mut self) -> CaseResult {
        let deadline = Instant::now() + UNMOUNT_TIME_MAX;
        while let Err(failure) = run("umount", &[&self.root()]) {
            if Instant::now() > deadline {
                return Err(failure);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.mounted = false;
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.as_ref().map(|dir| dir.path().join(name)).unwrap_or_default()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.mounted && self.unmount().is_err() {
            let lazily = run("umount", &["-l".as_ref(), &self.root()]);
            if let (Err(_), Some(dir)) = (lazily, self.dir.take()) {
                // Better left behind than removed through the mount.
                let _ = dir.keep();
            }
        }
    }
}

/// A switch that cuts the power of a file system the moment it is told to.
pub(super) struct Switch {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<std::process::ChildStdout>,
}

impl Switch {
    /// Gets ready to cut.
    pub(super) fn arm(image: &Image) -> Result<Self, Failure> {
        let mut process = Command::new("python3")
            .args(["-c", CUT])
            .arg(image.root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = process.stdin.take();
        let Some(output) = process.stdout.take() else {
            return Err(Failure::new("python3 has no output"));
        };
        let mut switch = Self { process, input, output: BufReader::new(output) };
        switch.expect("ready")?;
        Ok(switch)
    }

    /// Cuts the power.
    pub(super) fn cut(mut self) -> CaseResult {
        let mut input = self.input.take().ok_or_else(|| Failure::new("python3 has no input"))?;
        writeln!(input)?;
        input.flush()?;
        self.expect("cut")
    }

    fn expect(&mut self, word: &str) -> CaseResult {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure_eq!(line.trim(), word, "the answer of the script that cuts the power");
        Ok(())
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // Its end of the pipe closes with it; a script that has done its work is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Does once, small, all that a power cut takes.
pub(super) fn rehearse() -> CaseResult {
    let mut image = Image::create(16)?;
    std::fs::write(image.root().join("unsynced"), "gone")?;
    Switch::arm(&image)?.cut()?;
    image.unmount()?;
    image.mount()?;
    ensure!(!image.root().join("unsynced").exists(), "the cut lost nothing");
    Ok(())
}

fn run(program: &str, arguments: &[&Path]) -> CaseResult {
    let failed = |why: String| Failure::new(format!("{program}: {why}"));
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}
