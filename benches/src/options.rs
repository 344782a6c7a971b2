//! The arguments that every bench takes.

use std::path::PathBuf;

use crate::machine;

/// The arguments of a bench.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// A tenth of the data and shorter measurements: to see that it works, not to quote.
    pub quick: bool,
    /// The file of results that the figures are added to.
    pub json: PathBuf,
    /// Whoever runs the bench has made each sync of the disk take as long as on a slow one.
    pub slow_disk: bool,
}

impl Options {
    /// Parses the arguments of this process.
    ///
    /// # Errors
    /// A sentence that names the argument that is unknown or incomplete.
    pub fn from_args() -> Result<Self, String> {
        Self::parse(std::env::args().skip(1))
    }

    fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let json = machine::bench_dir().join("results.json");
        let mut options = Self { quick: false, json, slow_disk: false };
        let mut rest = arguments.into_iter();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                // What cargo adds.
                "--bench" => {}
                "--quick" => options.quick = true,
                "--slow-disk" => options.slow_disk = true,
                "--json" => options.json = rest.next().ok_or("--json needs a file")?.into(),
                unknown => {
                    return Err(format!(
                        "{unknown}: known are --quick, --slow-disk and --json FILE"
                    ));
                }
            }
        }
        Ok(options)
    }

    /// `full`, or a part of it for a quick run.
    pub fn scaled(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn arguments_are_taken_or_named() {
        let options = parse("--quick --json a.json --bench").unwrap();
        let expected = Options { quick: true, json: "a.json".into(), slow_disk: false };
        assert_eq!(options, expected);
        assert!(parse("--slow-disk").unwrap().slow_disk);
        assert!(parse("--fast").unwrap_err().contains("--fast"));
        assert!(parse("--json").is_err());
    }
}
