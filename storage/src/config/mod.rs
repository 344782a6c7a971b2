//! The configuration of a pipeline as a file: JSON, comments allowed, with overrides from the
//! environment.
//!
//! ```
//! use storage::config::Config;
//!
//! let text = r#"{ "storage": { "backend": "sqlite", "path": "metrics.db", // a comment
//!     "retention": { "raw_metrics": "7d" } } }"#;
//! let config = Config::from_json(text, &[("STORAGE__BUFFER_SIZE", "500")])?;
//! assert_eq!(config.url()?, "sqlite://metrics.db");
//! assert_eq!(config.storage.buffer_size, 500);
//! # Ok::<(), storage::Error>(())
//! ```
//!
//! Everything has a default, and every name that is not known is an error that says which one
//! was probably meant. `STORAGE__SQLITE__PATH` overrides `storage.sqlite.path`, and so on: what
//! stands in the environment goes before the file.

mod age;
mod archive;
mod listen;
mod merge;
mod options;
mod retention;
mod rollups;
mod storage;
mod upkeep;

use std::borrow::Cow;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use storage_core::{Error, ErrorKind, Result};

pub use self::age::Age;
pub use self::archive::ArchiveConfig;
pub use self::listen::{ListenAddress, ListenConfig, NotAnAddress};
pub use self::options::{
    BackendName, CollectConfig, ParquetConfig, PostgresConfig, SpoolConfig, SqliteConfig,
};
pub use self::retention::{Keep, RetentionConfig};
pub use self::rollups::{RollupConfig, RollupsConfig};
pub use self::storage::StorageConfig;
pub use self::upkeep::Upkeep;

/// What a variable of the environment starts with to override a value.
pub const ENVIRONMENT_PREFIX: &str = "STORAGE__";

/// A configuration, with all its defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The only section.
    pub storage: StorageConfig,
}

impl Config {
    /// Reads a file, and the overrides in the environment of the process.
    ///
    /// # Errors
    /// `NotFound` if there is no such file, `PermissionDenied` or `Io` if it cannot be read;
    /// otherwise as [`from_json`](Self::from_json).
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|error| {
            let kind = match error.kind() {
                std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                std::io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                _ => ErrorKind::Io,
            };
            Error::new(kind, "the configuration cannot be read")
                .with_operation("load_config")
                .with_context("path", path.display())
                .with_source(error)
        })?;
        let variables: Vec<_> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX))
            .map(|(name, value)| (name, value.to_string_lossy().into_owned()))
            .collect();
        Self::from_json(&text, &variables)
            .map_err(|error| error.with_context("path", path.display()))
    }

    /// Parses a text, with the variables of an environment as names and values; those that do not
    /// start with [`ENVIRONMENT_PREFIX`] are ignored.
    ///
    /// # Errors
    /// `Config` with the detail `key` if a key is unknown (then `did_you_mean` names the nearest
    /// known one), or a value is of another type or out of bounds; with `line` and `column` if the
    /// text is no JSON. No value is shown: it may be a secret.
    pub fn from_json(text: &str, variables: &[(impl AsRef<str>, impl AsRef<str>)]) -> Result<Self> {
        let mut text = text.to_owned();
        // What is no comment is as it was, so that lines and columns are right.
        json_strip_comments::strip(&mut text).map_err(|error| {
            config_error("a comment of the configuration has no end").with_source(error)
        })?;
        let mut value: Value = match text.trim() {
            "" => Value::Object(serde_json::Map::new()),
            _ => serde_json::from_str(&text).map_err(|error| {
                config_error("the configuration is no JSON")
                    .with_context("line", error.line())
                    .with_context("column", error.column())
            })?,
        };
        let known = known_keys()?;
        merge::refuse_unknown(&value, &known, "")?;
        merge::apply_environment(&mut value, &known, variables)?;
        let config: Self = serde_path_to_error::deserialize(&value).map_err(|error| {
            // The text of serde shows the value.
            let expected = merge::expected_of(&known, &error.path().to_string());
            config_error("a value of the configuration is of the wrong kind")
                .with_context("key", error.path())
                .with_context("expected", expected)
        })?;
        config.storage.validate()?;
        Ok(config)
    }

    /// The configuration as JSON, every default filled in. It holds secrets as they are.
    pub fn to_json(&self) -> Value {
        // Only maps with other keys than texts cannot be JSON.
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// A configuration in which every key has an example of its value.
fn known_keys() -> Result<Value> {
    let config = Config { storage: StorageConfig::example() };
    serde_json::to_value(config).map_err(|error| config_error("no example").with_source(error))
}

/// A path as it is, and of a URL its scheme alone.
fn without_secrets(place: &str) -> &str {
    place.split_once("://").map_or(place, |(scheme, _)| scheme)
}

fn config_error(message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Config, message).with_operation("load_config")
}

/// An error about the value of a key.
fn bad_value(key: &'static str, expected: &'static str) -> Error {
    config_error("a value of the configuration is out of bounds")
        .with_context("key", key)
        .with_context("expected", expected)
}
