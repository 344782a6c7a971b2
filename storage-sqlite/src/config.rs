//! The options of the SQLite backend: typed, by builder or by URL.

use std::path::{Path, PathBuf};
use std::time::Duration;

use storage_core::{Error, ErrorKind, Result};

/// What an acknowledged batch survives.
///
/// | mode | crash of the process | power cut | cost |
/// |---|---|---|---|
/// | `Full` | yes | yes | one sync of the disk per commit, shared by concurrent callers |
/// | `Normal` | yes | the last moments before the cut may be lost; older batches and the file stay whole | syncs only at checkpoints |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Synchronous {
    /// Sync the disk before a batch is acknowledged: the default, as the contract asks.
    #[default]
    Full,
    /// Leave the sync to the next checkpoint.
    Normal,
}

/// Options of [`SqliteBackend`](crate::SqliteBackend).
///
/// ```
/// use storage_sqlite::{SqliteOptions, Synchronous};
///
/// let options = SqliteOptions::new("metrics.db").synchronous(Synchronous::Normal).readers(2);
/// let by_url = SqliteOptions::from_url("sqlite://metrics.db?synchronous=normal&readers=2")?;
/// assert_eq!(options, by_url);
/// # Ok::<(), storage_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteOptions {
    pub(crate) path: PathBuf,
    pub(crate) synchronous: Synchronous,
    pub(crate) busy_timeout: Duration,
    pub(crate) readers: u32,
    pub(crate) create: bool,
    pub(crate) read_only: bool,
    /// Found out when the file is opened: nothing beside it can be written either.
    pub(crate) immutable: bool,
    pub(crate) seal_samples: usize,
    pub(crate) seal_after: Duration,
}

const BUSY_TIMEOUT_MAX: Duration = Duration::from_secs(3600);
const SEAL_AFTER_MIN: Duration = Duration::from_millis(1);
const SEAL_AFTER_MAX: Duration = Duration::from_secs(86_400);

const PARAMETERS: &str =
    "synchronous busy_timeout_ms readers create read_only seal_samples seal_after_ms";

impl SqliteOptions {
    /// Options with their defaults for the file at `path`, which is created if it does not exist.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            synchronous: Synchronous::default(),
            busy_timeout: Duration::from_secs(30),
            readers: 4,
            create: true,
            read_only: false,
            immutable: false,
            seal_samples: 2_000_000,
            seal_after: Duration::from_secs(600),
        }
    }

    /// Parses `sqlite://PATH?name=value&...`; a path that starts with `/` is absolute. `%` and two
    /// hexadecimal digits stand for a byte.
    ///
    /// # Errors
    /// `Config` if the scheme is another, the path empty, a parameter unknown (it is named) or
    /// its value out of bounds.
    pub fn from_url(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("sqlite://").ok_or_else(|| {
            config("a SQLite URL looks like sqlite://metrics.db or sqlite:///var/lib/metrics.db")
        })?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = percent_decoded(path)?;
        if path.is_empty() {
            return Err(config("the URL names no file"));
        }
        if path == ":memory:" {
            return Err(config("a SQLite store is a file; for a store in memory use memory://"));
        }
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        pairs.into_iter().try_fold(Self::new(path), Self::with_parameter)
    }

    /// How safe an acknowledged batch is; see [`Synchronous`]. Default: `Full`.
    #[must_use]
    pub fn synchronous(mut self, synchronous: Synchronous) -> Self {
        self.synchronous = synchronous;
        self
    }

    /// How long to wait for another process that holds the database, at most an hour. Default:
    /// 30 s: a disk that is busy with other things can hold all up for seconds.
    #[must_use]
    pub fn busy_timeout(mut self, busy_timeout: Duration) -> Self {
        self.busy_timeout = busy_timeout.min(BUSY_TIMEOUT_MAX);
        self
    }

    /// How many questions can be answered at once, 1 to 64. Default: 4.
    #[must_use]
    pub fn readers(mut self, readers: u32) -> Self {
        self.readers = readers.clamp(1, 64);
        self
    }

    /// Creates the file if it does not exist. Default: on.
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Opens an existing file for reading alone. Default: off.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// How many samples may wait unsealed before they are sealed, 1 to 16 million. Default: two
    /// million, some 50 MB of memory; fewer are enough where there are fewer series.
    #[must_use]
    pub fn seal_samples(mut self, seal_samples: usize) -> Self {
        self.seal_samples = seal_samples.clamp(1, 16_000_000);
        self
    }

    /// How long samples may wait unsealed, 1 ms to a day. Default: 10 min.
    #[must_use]
    pub fn seal_after(mut self, seal_after: Duration) -> Self {
        self.seal_after = seal_after.clamp(SEAL_AFTER_MIN, SEAL_AFTER_MAX);
        self
    }

    fn with_parameter(self, pair: &str) -> Result<Self> {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok(match name {
            "synchronous" => self.synchronous(match value {
                "full" => Synchronous::Full,
                "normal" => Synchronous::Normal,
                _ => return Err(bad_value(name, value, "full or normal")),
            }),
            "busy_timeout_ms" => {
                self.busy_timeout(Duration::from_millis(number(name, value, 0..=3_600_000)?))
            }
            "readers" => self.readers(number(name, value, 1..=64)? as u32),
            "create" => self.create(boolean(name, value)?),
            "read_only" => self.read_only(boolean(name, value)?),
            "seal_samples" => self.seal_samples(number(name, value, 1..=16_000_000)? as usize),
            "seal_after_ms" => {
                self.seal_after(Duration::from_millis(number(name, value, 1..=86_400_000)?))
            }
            unknown => {
                return Err(config("unknown URL parameter")
                    .with_context("parameter", unknown)
                    .with_context("known", PARAMETERS));
            }
        })
    }
}

fn boolean(name: &str, value: &str) -> Result<bool> {
    value.parse().map_err(|_| bad_value(name, value, "true or false"))
}

fn number(name: &str, value: &str, bounds: std::ops::RangeInclusive<u64>) -> Result<u64> {
    let parsed = value.parse().ok().filter(|number| bounds.contains(number));
    parsed.ok_or_else(|| {
        bad_value(name, value, &format!("a number from {} to {}", bounds.start(), bounds.end()))
    })
}

fn bad_value(name: &str, value: &str, expected: &str) -> Error {
    config("a URL parameter has a value that it cannot have")
        .with_context("parameter", name)
        .with_context("value", value)
        .with_context("expected", expected)
}

fn percent_decoded(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = rest.split_at_checked(2).and_then(|(digits, tail)| {
            rest = tail;
            u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        });
        bytes.push(digits.ok_or_else(|| config("a % in the URL is not followed by two digits"))?);
    }
    String::from_utf8(bytes).map_err(|error| config("the path is not UTF-8").with_source(error))
}

fn config(message: &'static str) -> Error {
    Error::new(ErrorKind::Config, message).with_backend("sqlite").with_operation("connect")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<SqliteOptions> {
        SqliteOptions::from_url(url)
    }

    #[test]
    fn paths_may_be_relative_absolute_or_escaped() {
        assert_eq!(parse("sqlite://a.db").unwrap().path, Path::new("a.db"));
        assert_eq!(parse("sqlite:///a/b.db").unwrap().path, Path::new("/a/b.db"));
        assert_eq!(parse("sqlite://a%20b%3F.db").unwrap().path, Path::new("a b?.db"));
    }

    #[test]
    fn whatever_is_wrong_is_named() {
        for (url, parameter) in [
            ("sqlite://a.db?synchronus=full", "synchronus"),
            ("sqlite://a.db?synchronous=off", "synchronous"),
            ("sqlite://a.db?readers=0", "readers"),
            ("sqlite://a.db?busy_timeout_ms=soon", "busy_timeout_ms"),
        ] {
            let error = parse(url).unwrap_err();
            assert_eq!(
                (error.kind(), error.context("parameter")),
                (ErrorKind::Config, Some(parameter))
            );
        }
        for url in ["sqlite://", "sqlite://:memory:", "sqlite:a.db", "sqlite://a%2.db"] {
            assert_eq!(parse(url).unwrap_err().kind(), ErrorKind::Config, "{url}");
        }
    }
}
