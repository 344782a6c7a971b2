//! Rival engines and ours in one run: how fast batches are acknowledged, how much room a day
//! takes, how fast the questions of the suite are answered. Every answer is compared with the
//! in-memory backend's. Takes the arguments of a bench, see `scripts/bench`.

mod duck;
mod engine;
mod influx;
mod ingest;
mod ours;
mod questions;
mod rows;
mod server;
mod sql;
mod tsink;
mod victoria;

use storage_benches::options::Options;
use storage_benches::report::Report;

fn main() -> engine::Result<()> {
    let options = Options::from_args()?;
    let mut report = Report::new("rivals", &options);
    for kind in &engine::KINDS {
        if let Some(version) = (kind.version)() {
            report.version(kind.name, version);
        }
    }
    ingest::run(&mut report, &options)?;
    questions::run(&mut report, &options)?;
    println!("{}", report.finish()?);
    Ok(())
}

/// The version of a dependency in this build.
fn locked(name: &str) -> String {
    let lines = include_str!("../Cargo.lock").lines();
    let mut rest = lines.skip_while(|line| *line != format!("name = \"{name}\""));
    let version = rest.nth(1).and_then(|line| line.split('"').nth(1));
    version.unwrap_or("unknown").to_owned()
}
