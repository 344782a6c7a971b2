//! Where samples come in by sockets, and what is asked of those who connect.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};
use storage_core::Result;

use super::{bad_value, config_error};

/// A socket that listens: `unix:/run/metrics.sock`, or an IP address and a port, `127.0.0.1:8094`.
///
/// ```
/// use storage::config::ListenAddress;
///
/// let local: ListenAddress = "unix:/run/metrics.sock".parse().unwrap();
/// assert!(local.is_local() && "[::1]:8094".parse::<ListenAddress>().unwrap().is_local());
/// let open: ListenAddress = "0.0.0.0:8094".parse().unwrap();
/// assert_eq!((open.is_local(), open.to_string()), (false, "0.0.0.0:8094".to_owned()));
/// assert!("metrics.example:8094".parse::<ListenAddress>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ListenAddress {
    /// A Unix socket at this path.
    Unix(PathBuf),
    /// A TCP port of one address of this machine, or of all.
    Tcp(SocketAddr),
}

/// A text is no [`ListenAddress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAnAddress;

impl fmt::Display for NotAnAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "it is neither an IP address with a port, such as 127.0.0.1:8094, nor unix:/path",
        )
    }
}

impl std::error::Error for NotAnAddress {}

impl ListenAddress {
    /// Whether nobody on another machine reaches it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
        }
    }
}

impl FromStr for ListenAddress {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        match text.strip_prefix("unix:") {
            Some("") => Err(NotAnAddress),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| NotAnAddress),
        }
    }
}

impl TryFrom<String> for ListenAddress {
    type Error = NotAnAddress;

    fn try_from(text: String) -> Result<Self, NotAnAddress> {
        text.parse()
    }
}

impl From<ListenAddress> for String {
    fn from(address: ListenAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// Sockets that samples come in by. Nobody who connects is asked who he is, and nothing is
/// encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListenConfig {
    /// Where to listen: a list of addresses, or one. Empty: nowhere.
    #[serde(deserialize_with = "one_or_many")]
    pub addresses: Vec<ListenAddress>,
    /// Whether an address may be one that other machines reach.
    pub allow_remote: bool,
    /// How many connections there may be at a time, over all addresses. Further ones are closed at once.
    pub connections_max: usize,
    /// The longest line that is read, its end included, in bytes.
    pub line_bytes_max: usize,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            allow_remote: false,
            connections_max: 64,
            line_bytes_max: 256 << 10,
        }
    }
}

const CONNECTIONS_MAX: usize = 4096;
const LINE_BYTES: std::ops::RangeInclusive<usize> = 1 << 10..=1 << 20;

impl ListenConfig {
    /// One in which nothing is left out.
    pub(super) fn example() -> Self {
        let addresses = ["127.0.0.1:8094", "unix:/run/metrics.sock"];
        let addresses = addresses.iter().filter_map(|address| address.parse().ok()).collect();
        Self { addresses, ..Self::default() }
    }

    pub(super) fn validate(&self) -> Result<()> {
        if !(1..=CONNECTIONS_MAX).contains(&self.connections_max) {
            return Err(bad_value("storage.listen.connections_max", "1 to 4,096"));
        }
        if !LINE_BYTES.contains(&self.line_bytes_max) {
            return Err(bad_value("storage.listen.line_bytes_max", "1,024 to 1,048,576"));
        }
        match self.addresses.iter().find(|address| !address.is_local() && !self.allow_remote) {
            Some(address) => Err(config_error(
                "other machines reach the address, and may write; allow it, or name a local one",
            )
            .with_context("key", "storage.listen.allow_remote")
            .with_context("address", address)),
            None => Ok(()),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(ListenAddress),
    Many(Vec<ListenAddress>),
}

fn one_or_many<'de, D: Deserializer<'de>>(text: D) -> Result<Vec<ListenAddress>, D::Error> {
    Ok(match OneOrMany::deserialize(text)? {
        OneOrMany::One(address) => vec![address],
        OneOrMany::Many(addresses) => addresses,
    })
}
