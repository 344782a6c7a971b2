//! The machine: what a figure is quoted with, memory of this process, room for files.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

/// The machine as a result names it: nothing that tells one from another of its kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory in GiB.
    pub memory_gib: u64,
    /// Operating system and architecture.
    pub os: String,
}

impl Machine {
    /// Describes the machine this runs on.
    pub fn here() -> Self {
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: kib_of("/proc/meminfo", "MemTotal:").div_ceil(1 << 20),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

/// The largest resident memory of this process so far, in MiB. 0 where there is no `/proc`.
pub fn peak_memory_mib() -> f64 {
    kib_of("/proc/self/status", "VmHWM:") as f64 / 1024.0
}

/// The resident memory of this process, in MiB. 0 where there is no `/proc`.
pub fn memory_mib() -> f64 {
    kib_of("/proc/self/status", "VmRSS:") as f64 / 1024.0
}

/// Makes [`peak_memory_mib`] start again from what there is now, where Linux lets it.
pub fn reset_peak_memory() {
    // Where it does not, the peak of before stays, which is no less.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn kib_of(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

/// The folder that benches write into: `target/bench` of the workspace.
pub fn bench_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench")
}

/// A folder of its own on the disk that is measured, gone when dropped.
///
/// # Errors
/// Those of the file system.
pub fn scratch() -> std::io::Result<TempDir> {
    std::fs::create_dir_all(bench_dir())?;
    TempDir::new_in(bench_dir())
}

/// The bytes of all files below `dir`. What disappears meanwhile counts nothing.
pub fn disk_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    bytes.sum()
}
