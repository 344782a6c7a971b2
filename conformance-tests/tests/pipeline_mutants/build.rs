//! Builds the copy of `storage-core` with the bugs in it, once for all processes of a run.

use std::error::Error;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use super::weave::{SWITCH, weave};
use super::{Mutant, Test, all};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The root of the crate, where the switch goes.
const LIB: &str = "storage-core/src/lib.rs";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The tests of the copy, ready to run.
#[derive(Debug)]
pub(crate) struct Built {
    unit: PathBuf,
    pipeline: PathBuf,
}

impl Built {
    pub(crate) fn program_of(&self, test: Test) -> &Path {
        match test {
            Test::Unit(_) => &self.unit,
            Test::Pipeline(_) => &self.pipeline,
        }
    }
}

/// Returns what is built; the first of the processes that ask builds it.
pub(crate) fn built() -> std::result::Result<&'static Built, String> {
    static BUILT: OnceLock<std::result::Result<Built, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pipeline_mutants");
        build(&dir).map_err(|error| error.to_string())
    });
    built.as_ref().map_err(Clone::clone)
}

fn build(dir: &Path) -> Result<Built> {
    fs::create_dir_all(dir)?;
    let lock = fs::File::create(dir.join("lock"))?;
    lock.lock()?;
    let sources = sources()?;
    let mut hasher = DefaultHasher::new();
    (dir, &sources, all().collect::<Vec<_>>()).hash(&mut hasher);
    let stamp = format!("{:016x}", hasher.finish());
    // One line each: what it was built from, and the two programs.
    let note = dir.join("built");
    let known = fs::read_to_string(&note).unwrap_or_default();
    if let [before, unit, pipeline] = known.lines().collect::<Vec<_>>()[..]
        && before == stamp
        && Path::new(unit).exists()
        && Path::new(pipeline).exists()
    {
        return Ok(Built { unit: unit.into(), pipeline: pipeline.into() });
    }
    for (path, text) in with_bugs(sources)? {
        write(&dir.join(path), &text)?;
    }
    let built = compile(dir)?;
    let (unit, pipeline) = (built.unit.display(), built.pipeline.display());
    fs::write(note, format!("{stamp}\n{unit}\n{pipeline}\n"))?;
    Ok(built)
}

/// All files of the copy as they are: a workspace of one crate.
fn sources() -> Result<Vec<(PathBuf, String)>> {
    let root = Path::new(ROOT);
    let mut sources = vec![("Cargo.toml".into(), manifest(root)?)];
    let mut paths = vec![root.join("Cargo.lock"), root.join("storage-core/Cargo.toml")];
    for folder in ["src", "tests/pipeline"] {
        list(&root.join("storage-core").join(folder), &mut paths)?;
    }
    for path in paths {
        sources.push((path.strip_prefix(root)?.to_owned(), fs::read_to_string(&path)?));
    }
    sources.sort();
    Ok(sources)
}

/// Lints and versions of the workspace; members and profiles of its own.
fn manifest(root: &Path) -> Result<String> {
    let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
    let shared = manifest.split("[profile.").next().unwrap_or_default().lines();
    let shared = shared.filter(|line| !line.starts_with("members") && !line.starts_with("exclude"));
    let of = |line| match line {
        "[workspace]" => "[workspace]\nmembers = [\"storage-core\"]\n".to_owned(),
        line => format!("{line}\n"),
    };
    Ok(shared.map(of).collect())
}

fn with_bugs(mut sources: Vec<(PathBuf, String)>) -> Result<Vec<(PathBuf, String)>> {
    let mut woven = 0;
    for (path, text) in &mut sources {
        let is_here = |mutant: &&Mutant| *path == Path::new("storage-core/src").join(mutant.file);
        let here: Vec<_> = all().filter(is_here).collect();
        woven += here.len();
        *text = weave(text, here)?;
        if path == Path::new(LIB) {
            text.push_str(SWITCH);
        }
    }
    if woven < all().count() {
        return Err("a bug names a file that is not there".into());
    }
    Ok(sources)
}

fn list(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

/// Leaves a file alone that is the same, so that it is not compiled again.
fn write(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|before| before == text) {
        return Ok(());
    }
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    Ok(fs::write(path, text)?)
}

fn compile(dir: &Path) -> Result<Built> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // All that it takes was there for this test already.
    let output = Command::new(cargo)
        .args(["test", "--offline", "--no-run", "--lib", "--test", "pipeline"])
        .args(["--message-format", "json"])
        .current_dir(dir)
        .env("CARGO_TARGET_DIR", dir.join("target"))
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("RUSTFLAGS", "--cap-lints allow")
        .output()?;
    let (mut unit, mut pipeline) = (None, None);
    let mut problems = String::from_utf8_lossy(&output.stderr).into_owned();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        if let Some(problem) = message["message"]["rendered"].as_str() {
            problems.push_str(problem);
        }
        if let Some(program) = message["executable"].as_str() {
            let is_pipeline = message["target"]["name"] == "pipeline";
            *(if is_pipeline { &mut pipeline } else { &mut unit }) = Some(program.into());
        }
    }
    match (unit, pipeline) {
        (Some(unit), Some(pipeline)) if output.status.success() => Ok(Built { unit, pipeline }),
        _ => Err(format!("the copy with the bugs does not build:\n{problems}").into()),
    }
}
