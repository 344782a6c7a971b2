//! The options of the Parquet backend: typed, by builder or by URL.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use storage_core::{Error, ErrorKind, Result};

use crate::schema::GROUP_ROWS_MAX;

/// Where a store lies.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// A directory.
    Local(PathBuf),
    /// A bucket and a prefix: the URL as `object_store` takes it, and its options, which may hold
    /// secrets.
    Cloud { url: String, options: BTreeMap<String, String> },
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => write!(f, "Local({path:?})"),
            Self::Cloud { url, options } => {
                let names: Vec<_> = options.keys().collect();
                write!(f, "Cloud({url:?}, options {names:?})")
            }
        }
    }
}

/// Options of [`ParquetBackend`](crate::ParquetBackend).
///
/// ```
/// use storage_parquet::ParquetOptions;
///
/// let options = ParquetOptions::new("archive").merge_samples(100_000);
/// let by_url = ParquetOptions::from_url("parquet://archive?merge_samples=100000")?;
/// assert_eq!(options, by_url);
/// # Ok::<(), storage_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParquetOptions {
    pub(crate) location: Location,
    pub(crate) create: bool,
    pub(crate) read_only: bool,
    pub(crate) merge_samples: u64,
    pub(crate) merge_files: usize,
    pub(crate) merge_after: Duration,
    pub(crate) hour_samples: u64,
    pub(crate) day_after: Duration,
    pub(crate) memory_bytes: usize,
    pub(crate) cache_bytes: usize,
    pub(crate) orphans_after: Duration,
    pub(crate) keep_replaced: Duration,
    pub(crate) byte_stream_split: bool,
}

/// Memory that a sample takes while it is merged or read, a copy included.
const SAMPLE_BYTES: usize = 48;

const PARAMETERS: &str = "create read_only merge_samples merge_files merge_after_ms hour_samples \
     day_after_ms memory_bytes cache_bytes orphans_after_ms keep_replaced_ms \
     byte_stream_split";

/// Half of it has to be long enough for a commit that is tried several times.
const ORPHANS_AFTER_MIN: Duration = Duration::from_secs(600);

const DAY: Duration = Duration::from_secs(86_400);
const LONG: u64 = 1000 * 365 * 86_400_000;

impl ParquetOptions {
    /// Options with their defaults for the directory at `path`, which is created if it does not
    /// exist.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self::at(Location::Local(path.as_ref().to_owned()))
    }

    fn at(location: Location) -> Self {
        Self {
            location,
            create: true,
            read_only: false,
            merge_samples: 1_000_000,
            merge_files: 256,
            merge_after: Duration::from_secs(600),
            hour_samples: 100_000,
            day_after: 2 * DAY,
            memory_bytes: 256 << 20,
            cache_bytes: 64 << 20,
            orphans_after: Duration::from_secs(3600),
            keep_replaced: Duration::ZERO,
            byte_stream_split: true,
        }
    }

    /// Parses `parquet://DIRECTORY?name=value&...` (a path that starts with `/` is absolute; `%` and
    /// two hexadecimal digits stand for a byte), or `parquet+s3://BUCKET/PREFIX?...`, `parquet+gs://`
    /// and `parquet+az://` in the same way. What an object store needs beyond its environment
    /// (`AWS_REGION` ...) can be given as parameters by the names that `object_store` has for it,
    /// such as `aws_endpoint`, in small letters.
    ///
    /// # Errors
    /// `Config` if the scheme is another, the path empty, a parameter unknown (it is named) or its
    /// value out of bounds.
    pub fn from_url(url: &str) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if path.is_empty() {
            return Err(config("the URL names no directory"));
        }
        let location = match scheme {
            "parquet" => Location::Local(PathBuf::from(percent_decoded(path)?)),
            "parquet+s3" | "parquet+gs" | "parquet+az" => Location::Cloud {
                url: format!("{}://{path}", scheme.trim_start_matches("parquet+")),
                options: BTreeMap::new(),
            },
            _ => {
                return Err(config(
                    "a Parquet URL looks like parquet:///var/lib/archive or \
                     parquet+s3://bucket/prefix",
                ));
            }
        };
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        pairs.into_iter().try_fold(Self::at(location), Self::with_parameter)
    }

    /// Makes the store if there is none. Default: on.
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Opens an existing store for reading alone. Default: off.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// How many samples may wait to be merged into files by day and hour, 1 to 100 million. They
    /// are held in memory, some 16 bytes each, but for batches that alone are larger. Default: a
    /// million.
    #[must_use]
    pub fn merge_samples(mut self, merge_samples: u64) -> Self {
        self.merge_samples = merge_samples.clamp(1, 100_000_000);
        self
    }

    /// How many commits may wait to be merged, 1 to 100,000: each is a small file. Default: 256.
    #[must_use]
    pub fn merge_files(mut self, merge_files: usize) -> Self {
        self.merge_files = merge_files.clamp(1, 100_000);
        self
    }

    /// How long samples may wait to be merged, 1 ms to a day. Default: 10 min.
    #[must_use]
    pub fn merge_after(mut self, merge_after: Duration) -> Self {
        self.merge_after = merge_after.clamp(Duration::from_millis(1), DAY);
        self
    }

    /// From how many samples on a day is split into a file for each hour. Default: 100,000.
    #[must_use]
    pub fn hour_samples(mut self, hour_samples: u64) -> Self {
        self.hour_samples = hour_samples.max(1);
        self
    }

    /// How long after its end a day's hours are merged into one file, by the clock and by the newest
    /// sample. Default: two days.
    #[must_use]
    pub fn day_after(mut self, day_after: Duration) -> Self {
        self.day_after = day_after.min(Duration::from_millis(LONG));
        self
    }

    /// How much memory a question or a merge may take for samples, 16 MiB to 1 TiB; what a single
    /// answer itself takes comes on top. Default: 256 MiB.
    #[must_use]
    pub fn memory_bytes(mut self, memory_bytes: usize) -> Self {
        self.memory_bytes = memory_bytes.clamp(16 << 20, 1 << 40);
        self
    }

    /// How much memory the footers of files may take that were read before, 1 MiB to 1 TiB. Default:
    /// 64 MiB.
    #[must_use]
    pub fn cache_bytes(mut self, cache_bytes: usize) -> Self {
        self.cache_bytes = cache_bytes.clamp(1 << 20, 1 << 40);
        self
    }

    /// How long a file that belongs to nobody is left alone once a handle has seen it, because it may
    /// belong to a merge that is under way in another process; a merge gives up after half of that.
    /// Ten minutes at least, and the same for all that merge in one location; or 0, for a location in
    /// which this handle alone does: they go at once, and a merge may take any time. Default: an hour.
    #[must_use]
    pub fn orphans_after(mut self, orphans_after: Duration) -> Self {
        let is_at_once = orphans_after.is_zero();
        self.orphans_after =
            if is_at_once { orphans_after } else { orphans_after.max(ORPHANS_AFTER_MIN) };
        self
    }

    /// How long files that were replaced by merged ones stay at least, for readers that do not follow
    /// the manifest; while they do, such readers see their rows twice. Default: 0, gone at once.
    #[must_use]
    pub fn keep_replaced(mut self, keep_replaced: Duration) -> Self {
        self.keep_replaced = keep_replaced;
        self
    }

    /// Lets values be encoded byte by byte where that makes merged files smaller. Off, files are larger
    /// by up to a third, and readers can open them that do not know `BYTE_STREAM_SPLIT`, such as the
    /// vectorized one of Spark. Files that are merged already stay as they are. Default: on.
    #[must_use]
    pub fn byte_stream_split(mut self, byte_stream_split: bool) -> Self {
        self.byte_stream_split = byte_stream_split;
        self
    }

    /// Samples that fit into the memory of a question or a merge.
    pub(crate) fn rows_max(&self) -> u64 {
        (self.memory_bytes / SAMPLE_BYTES) as u64
    }

    /// Samples of a file that are decoded at once.
    pub(crate) fn step_rows(&self) -> u64 {
        (self.rows_max() / 8).clamp(20_000, 1_000_000)
    }

    /// Samples of a row group of a merged file.
    pub(crate) fn group_rows(&self) -> usize {
        (self.rows_max() as usize / 2).clamp(100_000, GROUP_ROWS_MAX)
    }

    /// The size from which on a day or hour goes on in another file: files are made in memory.
    pub(crate) fn file_bytes_max(&self) -> usize {
        (self.memory_bytes / 4).min(64 << 20)
    }

    fn with_parameter(self, pair: &str) -> Result<Self> {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let ms = |most: u64| number(name, value, 0..=most).map(Duration::from_millis);
        Ok(match name {
            "create" => self.create(boolean(name, value)?),
            "read_only" => self.read_only(boolean(name, value)?),
            "merge_samples" => self.merge_samples(number(name, value, 1..=100_000_000)?),
            "merge_files" => self.merge_files(number(name, value, 1..=100_000)? as usize),
            "merge_after_ms" => {
                self.merge_after(Duration::from_millis(number(name, value, 1..=86_400_000)?))
            }
            "hour_samples" => self.hour_samples(number(name, value, 1..=u64::MAX)?),
            "day_after_ms" => self.day_after(ms(LONG)?),
            "memory_bytes" => self.memory_bytes(number(name, value, 16 << 20..=1 << 40)? as usize),
            "cache_bytes" => self.cache_bytes(number(name, value, 1 << 20..=1 << 40)? as usize),
            "orphans_after_ms" => self.orphans_after(ms(LONG)?),
            "byte_stream_split" => self.byte_stream_split(boolean(name, value)?),
            "keep_replaced_ms" => self.keep_replaced(ms(LONG)?),
            other => return self.with_cloud_parameter(other, value),
        })
    }

    /// Keeps what looks like an option of an object store; whether there is one of that name is
    /// found out when the store is opened.
    fn with_cloud_parameter(mut self, name: &str, value: &str) -> Result<Self> {
        let known = ["aws_", "google_", "azure_", "allow_http", "timeout", "connect_timeout"];
        match &mut self.location {
            Location::Cloud { options, .. }
                if known.iter().any(|start| name.starts_with(start)) =>
            {
                options.insert(name.to_owned(), percent_decoded(value)?);
                Ok(self)
            }
            _ => Err(config("unknown URL parameter")
                .with_context("parameter", name)
                .with_context("known", PARAMETERS)),
        }
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

pub(crate) fn config(message: &'static str) -> Error {
    Error::new(ErrorKind::Config, message).with_backend("parquet").with_operation("connect")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<ParquetOptions> {
        ParquetOptions::from_url(url)
    }

    #[test]
    fn paths_may_be_relative_absolute_or_escaped() {
        for (url, path) in
            [("parquet://a", "a"), ("parquet:///a/b", "/a/b"), ("parquet://a%20b%3F", "a b?")]
        {
            assert_eq!(parse(url).unwrap().location, Location::Local(PathBuf::from(path)));
        }
    }

    #[test]
    fn whatever_is_wrong_is_named() {
        for (url, parameter) in [
            ("parquet://a?merge_sample=1", "merge_sample"),
            ("parquet://a?merge_samples=0", "merge_samples"),
            ("parquet://a?read_only=perhaps", "read_only"),
            ("parquet://a?memory_bytes=1", "memory_bytes"),
            ("parquet://a?aws_region=x", "aws_region"),
            ("parquet+s3://b/p?endpoint=x", "endpoint"),
        ] {
            let error = parse(url).unwrap_err();
            assert_eq!(
                (error.kind(), error.context("parameter")),
                (ErrorKind::Config, Some(parameter))
            );
        }
        for url in ["parquet://", "s3://bucket/a", "parquet:a", "parquet://a%2", "parquet+gs://"] {
            assert_eq!(parse(url).unwrap_err().kind(), ErrorKind::Config, "{url}");
        }
    }

    #[test]
    fn the_object_stores_differ_in_the_scheme_alone() {
        for (url, expected) in [
            ("parquet+s3://b/p/q?aws_region=x", "s3://b/p/q"),
            ("parquet+gs://b/p/q?google_service_account=x", "gs://b/p/q"),
            ("parquet+az://b/p/q?azure_storage_account_name=x&merge_files=3", "az://b/p/q"),
        ] {
            let Location::Cloud { url, options } = parse(url).unwrap().location else {
                panic!("no cloud")
            };
            assert_eq!((url.as_str(), options.len()), (expected, 1));
        }
    }

    #[test]
    fn secrets_do_not_show() {
        let options = parse("parquet+s3://b/p?aws_secret_access_key=hush%26hush").unwrap();
        assert!(!format!("{options:?}").contains("hush"));
        let Location::Cloud { url, options } = options.location else { panic!("no cloud") };
        assert_eq!(url, "s3://b/p");
        assert_eq!(options["aws_secret_access_key"], "hush&hush");
    }
}
