//! The options of the PostgreSQL backend: typed, by builder or by URL.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use storage_core::{Error, ErrorKind, Result};
use tokio_postgres::config::{Config, TargetSessionAttrs};

/// What an acknowledged batch survives.
///
/// | mode | crash of the client | crash or power cut of the server | loss of the server |
/// |---|---|---|---|
/// | `On` | yes | yes | as far as `synchronous_standby_names` of the server says |
/// | `Local` | yes | yes | what no standby has yet is lost |
/// | `Off` | yes | the last moments before it may be lost; older batches stay whole | what no standby has yet is lost |
///
/// It is set for every connection that writes, whatever the server's own default is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SynchronousCommit {
    /// Acknowledge when the write-ahead log is on disk: the default, as the contract asks.
    #[default]
    On,
    /// The same, without waiting for standbys.
    Local,
    /// Acknowledge before the log is on disk.
    Off,
}

impl SynchronousCommit {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Local => "local",
            Self::Off => "off",
        }
    }
}

/// Whether the connection is encrypted, and what is verified of the server.
///
/// | mode | encrypted | certificate issued by a trusted root | for this host |
/// |---|---|---|---|
/// | `Disable` | no | | |
/// | `Prefer` | if the server offers it | no | no |
/// | `Require` | yes | only if a root certificate is given | no |
/// | `VerifyCa` | yes | yes | no |
/// | `VerifyFull` | yes | yes | yes |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SslMode {
    /// Never encrypt.
    Disable,
    /// Encrypt where the server offers it: the default, as of other clients. Protects against
    /// listeners, not against somebody in between.
    #[default]
    Prefer,
    /// Encrypt, or do not connect.
    Require,
    /// Encrypt, and verify who issued the certificate.
    VerifyCa,
    /// Encrypt, and verify that the server is the one that the URL names. Use it across networks.
    VerifyFull,
}

/// Whether a store that is created uses TimescaleDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UseTimescale {
    /// Where the extension is installed in the database: the default.
    #[default]
    Auto,
    /// Never: plain partitions.
    Off,
}

/// Options of [`PostgresBackend`](crate::PostgresBackend).
///
/// ```
/// use std::time::Duration;
/// use storage_postgres::PostgresOptions;
///
/// let by_url = PostgresOptions::from_url("postgres://me:secret@db/app?schema=edge&pool_size=2")?;
/// let options = PostgresOptions::from_url("postgres://me:secret@db/app")?;
/// assert_eq!(options.schema("edge")?.pool_size(2), by_url);
/// assert!(!format!("{by_url:?}").contains("secret"));
/// # Ok::<(), storage_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresOptions {
    pub(crate) server: Config,
    pub(crate) schema: String,
    pub(crate) ssl_mode: SslMode,
    pub(crate) ssl_root_cert: Option<PathBuf>,
    pub(crate) synchronous_commit: SynchronousCommit,
    pub(crate) use_timescale: UseTimescale,
    pub(crate) pool_size: usize,
    pub(crate) pool_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) statement_timeout: Duration,
    pub(crate) lock_timeout: Duration,
    pub(crate) partitions_ahead: u32,
    pub(crate) create: bool,
}

const PARAMETERS: &str = "application_name channel_binding connect_timeout_ms create dbname host \
    hostaddr keepalives_idle keepalives_interval keepalives_retries load_balance_hosts \
    lock_timeout_ms partitions_ahead password pool_size pool_timeout_ms port schema sslmode \
    sslrootcert statement_timeout_ms synchronous_commit target_session_attrs tcp_user_timeout \
    timescaledb user";

/// Parameters that the driver knows, in its own notation.
const DRIVER_PARAMETERS: &[&str] = &[
    "application_name",
    "channel_binding",
    "dbname",
    "host",
    "hostaddr",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "load_balance_hosts",
    "password",
    "port",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

const TIMEOUT_MS_MAX: u64 = 86_400_000;
const SCHEMA_BYTES_MAX: usize = 63;

/// When a server that is waited for, and be it for hours (`check`, `VACUUM`), is asked whether it is
/// still there, how often again, and after how many times without an answer it counts as lost.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// How long what was sent may stay unconfirmed: as long as all of that together.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(90);

impl PostgresOptions {
    /// Parses `postgres://USER:PASSWORD@HOST:PORT/DATABASE?name=value&...`; `postgresql://` means
    /// the same. A host that starts with `/` (as `?host=/run/postgresql` gives it) is the
    /// directory of a local socket. `%` and two hexadecimal digits stand for a byte. Without a
    /// password the environment variable `PGPASSWORD` is used.
    ///
    /// Several hosts, `HOST:PORT,HOST:PORT`, are tried in their order, each for twice the timeout of
    /// connecting at most, whenever a connection is opened. Of several, one that takes writes is
    /// wanted, unless `target_session_attrs` says `any` or `read-only`; of one it is taken as it is,
    /// unless it says `read-write`.
    ///
    /// ```
    /// use storage_postgres::PostgresOptions;
    ///
    /// let options = PostgresOptions::from_url("postgres://me:secret@db-1,db-2:5433/app")?;
    /// assert!(format!("{options:?}").contains("ReadWrite"));
    /// # Ok::<(), storage_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Config` if the URL is none, names no host, or not as many ports or addresses as hosts, has a
    /// parameter that is unknown (it is named)
    /// or one with a value out of bounds. The URL itself is never shown.
    pub fn from_url(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
        let rest = rest.ok_or_else(|| config("a URL looks like postgres://user@host/database"))?;
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut ours = Vec::new();
        let mut drivers = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match DRIVER_PARAMETERS.contains(&name) {
                true => push_parameter(&mut drivers, name, value),
                false => ours.push((name, percent_decoded(value)?)),
            }
        }
        let server = parse_server(address, &drivers.join("&"))?;
        let options = ours.iter().try_fold(Self::new(server), |options, (name, value)| {
            options.with_parameter(name, value)
        });
        match options {
            // What looks like a parameter may be the rest of a password with a `?` in it.
            Err(_) if query.contains('@') => Err(unreadable()),
            options => options,
        }
    }

    fn new(server: Config) -> Self {
        Self {
            server,
            schema: "storage".to_owned(),
            ssl_mode: SslMode::default(),
            ssl_root_cert: None,
            synchronous_commit: SynchronousCommit::default(),
            use_timescale: UseTimescale::default(),
            pool_size: 4,
            pool_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(60),
            lock_timeout: Duration::from_secs(5),
            partitions_ahead: 3,
            create: true,
        }
    }

    /// The schema that holds the store, so that several can share a database. Default: `storage`.
    ///
    /// # Errors
    /// `Config` unless it is made of lower-case letters, digits and underscores, starts with
    /// no digit and not with `pg_`, and is 1 to 63 bytes long.
    pub fn schema(mut self, schema: &str) -> Result<Self> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let ok = (1..=SCHEMA_BYTES_MAX).contains(&schema.len())
            && schema.bytes().all(fits)
            && !schema.starts_with(|first: char| first.is_ascii_digit())
            && !schema.starts_with("pg_");
        if !ok {
            return Err(bad_value("schema", schema, "lower-case letters, digits and underscores"));
        }
        schema.clone_into(&mut self.schema);
        Ok(self)
    }

    /// Encryption and what is verified; see [`SslMode`]. Default: `Prefer`.
    #[must_use]
    pub fn ssl_mode(mut self, ssl_mode: SslMode) -> Self {
        self.ssl_mode = ssl_mode;
        self
    }

    /// A file of trusted root certificates (PEM). Default: those of the system.
    #[must_use]
    pub fn ssl_root_cert(mut self, path: impl AsRef<Path>) -> Self {
        self.ssl_root_cert = Some(path.as_ref().to_owned());
        self
    }

    /// How safe an acknowledged batch is; see [`SynchronousCommit`]. Default: `On`.
    #[must_use]
    pub fn synchronous_commit(mut self, mode: SynchronousCommit) -> Self {
        self.synchronous_commit = mode;
        self
    }

    /// Whether a new store uses TimescaleDB. Default: where it is installed.
    #[must_use]
    pub fn use_timescale(mut self, use_timescale: UseTimescale) -> Self {
        self.use_timescale = use_timescale;
        self
    }

    /// How many questions can be answered at once, 1 to 256. One more connection writes. Default:
    /// 4, about what a small server has processors.
    #[must_use]
    pub fn pool_size(mut self, connections: usize) -> Self {
        self.pool_size = connections.clamp(1, 256);
        self
    }

    /// How long a question waits for a connection, at most a day. Default: 5 s.
    #[must_use]
    pub fn pool_timeout(mut self, timeout: Duration) -> Self {
        self.pool_timeout = bounded(timeout);
        self
    }

    /// How long to wait for the server to take a connection, at most a day. Default: 5 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = bounded(timeout);
        self
    }

    /// How long a statement may take, at most a day; 0 means without limit. Default: 60 s, enough
    /// for batches of some million samples. A step of a prune may take ten times as long, `check`
    /// and the tidying of `compact` as long as they like.
    #[must_use]
    pub fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.statement_timeout = timeout.min(Duration::from_millis(TIMEOUT_MS_MAX));
        self
    }

    /// How long to wait for a lock that somebody else holds, at most a day. Default: 5 s.
    #[must_use]
    pub fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = bounded(timeout);
        self
    }

    /// How many days ahead partitions are made, at most 366. Default: 3.
    #[must_use]
    pub fn partitions_ahead(mut self, days: u32) -> Self {
        self.partitions_ahead = days.min(366);
        self
    }

    /// The name of the connections, as the server's views show it. Default: `storage`.
    #[must_use]
    pub fn application_name(mut self, name: &str) -> Self {
        self.server.application_name(name);
        self
    }

    /// Creates schema and tables if they do not exist. Default: on.
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// How long a step of a prune, or the removal of a job, may take; 0 means without limit. A step is
    /// small, but for the look-ups at the end, which grow with the number of series; a job goes with
    /// all its executions at once.
    pub(crate) fn upkeep_timeout(&self) -> Duration {
        10 * self.statement_timeout
    }

    fn with_parameter(self, name: &str, value: &str) -> Result<Self> {
        let ms = |most| Ok(Duration::from_millis(number(name, value, 1..=most)?));
        Ok(match name {
            "schema" => self.schema(value)?,
            "sslmode" => self.ssl_mode(match value {
                "disable" => SslMode::Disable,
                "prefer" => SslMode::Prefer,
                "require" => SslMode::Require,
                "verify-ca" => SslMode::VerifyCa,
                "verify-full" => SslMode::VerifyFull,
                _ => {
                    let modes = "disable, prefer, require, verify-ca or verify-full";
                    return Err(bad_value(name, value, modes));
                }
            }),
            "sslrootcert" => self.ssl_root_cert(value),
            "synchronous_commit" => self.synchronous_commit(match value {
                "on" => SynchronousCommit::On,
                "local" => SynchronousCommit::Local,
                "off" => SynchronousCommit::Off,
                _ => return Err(bad_value(name, value, "on, local or off")),
            }),
            "timescaledb" => self.use_timescale(match value {
                "auto" => UseTimescale::Auto,
                "off" => UseTimescale::Off,
                _ => return Err(bad_value(name, value, "auto or off")),
            }),
            "pool_size" => self.pool_size(number(name, value, 1..=256)? as usize),
            "pool_timeout_ms" => self.pool_timeout(ms(TIMEOUT_MS_MAX)?),
            "connect_timeout_ms" => self.connect_timeout(ms(TIMEOUT_MS_MAX)?),
            "lock_timeout_ms" => self.lock_timeout(ms(TIMEOUT_MS_MAX)?),
            "statement_timeout_ms" => self.statement_timeout(Duration::from_millis(number(
                name,
                value,
                0..=TIMEOUT_MS_MAX,
            )?)),
            "partitions_ahead" => self.partitions_ahead(number(name, value, 0..=366)? as u32),
            "create" => {
                self.create(value.parse().map_err(|_| bad_value(name, value, "true or false"))?)
            }
            unknown => {
                return Err(config("unknown URL parameter")
                    .with_context("parameter", unknown)
                    .with_context("known", PARAMETERS));
            }
        })
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The driver's configuration hides the password; only what places the server is shown.
        f.debug_struct("PostgresOptions")
            .field("hosts", &self.server.get_hosts())
            .field("ports", &self.server.get_ports())
            .field("target_session_attrs", &self.server.get_target_session_attrs())
            .field("user", &self.server.get_user())
            .field("dbname", &self.server.get_dbname())
            .field("schema", &self.schema)
            .field("ssl_mode", &self.ssl_mode)
            .field("pool_size", &self.pool_size)
            .finish_non_exhaustive()
    }
}

fn bounded(timeout: Duration) -> Duration {
    timeout.clamp(Duration::from_millis(1), Duration::from_millis(TIMEOUT_MS_MAX))
}

/// Adds a parameter for the driver, which takes each host by itself.
fn push_parameter(drivers: &mut Vec<String>, name: &str, value: &str) {
    match name {
        "host" => drivers.extend(value.split(',').map(|host| format!("host={host}"))),
        _ => drivers.push(format!("{name}={value}")),
    }
}

/// Lets the driver parse what is its own. Its errors are not passed on: they may quote the URL.
fn parse_server(address: &str, parameters: &str) -> Result<Config> {
    let server = Config::from_str(&format!("postgres://{address}?{parameters}"));
    let mut server = server.map_err(|_| unreadable())?;
    if server.get_hosts().is_empty() && server.get_hostaddrs().is_empty() {
        return Err(config("the URL names no host"));
    }
    let (names, addresses) = (server.get_hosts().len(), server.get_hostaddrs().len());
    let hosts = names.max(addresses);
    let ports = server.get_ports().len();
    if names.min(addresses) > 0 && names != addresses || ports > 1 && ports != hosts {
        return Err(config("the URL names not as many ports or addresses as hosts"));
    }
    if hosts > 1 && !parameters.contains("target_session_attrs") {
        server.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    if server.get_password().is_none()
        && let Ok(password) = std::env::var("PGPASSWORD")
    {
        server.password(password);
    }
    if server.get_application_name().is_none() {
        server.application_name("storage");
    }
    find_loss_soon(&mut server, parameters);
    Ok(server)
}

/// Sets what the URL leaves open of how the loss of the server is found.
fn find_loss_soon(server: &mut Config, parameters: &str) {
    let is_open = |name| !parameters.contains(name);
    if is_open("keepalives_idle") {
        server.keepalives_idle(KEEPALIVE_IDLE);
    }
    if is_open("keepalives_interval") {
        server.keepalives_interval(KEEPALIVE_INTERVAL);
    }
    if is_open("keepalives_retries") {
        server.keepalives_retries(KEEPALIVE_RETRIES);
    }
    if is_open("tcp_user_timeout") {
        server.tcp_user_timeout(UNCONFIRMED_MAX);
    }
}

fn unreadable() -> Error {
    config(
        "the URL cannot be read: in names and passwords, write : / ? # @ % as %3A %2F %3F %23 %40 %25",
    )
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
    String::from_utf8(bytes).map_err(|_| config("a URL parameter is not UTF-8"))
}

pub(crate) fn config(message: &'static str) -> Error {
    Error::new(ErrorKind::Config, message).with_backend("postgres").with_operation("connect")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<PostgresOptions> {
        PostgresOptions::from_url(url)
    }

    #[test]
    fn urls_name_server_and_options() {
        let options = parse(
            "postgresql://me:p%40ss@db:6000/app?sslmode=verify-full&sslrootcert=/a%20b.pem\
             &statement_timeout_ms=0&application_name=x",
        )
        .unwrap();
        assert_eq!(options.server.get_password(), Some(&b"p@ss"[..]));
        assert_eq!(options.server.get_ports(), [6000]);
        assert_eq!(options.server.get_application_name(), Some("x"));
        assert_eq!(options.ssl_mode, SslMode::VerifyFull);
        assert_eq!(options.ssl_root_cert.as_deref(), Some(Path::new("/a b.pem")));
        assert_eq!(options.statement_timeout, Duration::ZERO);
        let local = parse("postgres://me@/app?host=/run/postgresql").unwrap();
        assert!(matches!(&local.server.get_hosts()[0], tokio_postgres::config::Host::Unix(_)));
    }

    #[test]
    fn of_several_hosts_one_that_takes_writes_is_wanted() {
        use TargetSessionAttrs::{Any, ReadOnly, ReadWrite};
        for (url, ports, wanted) in [
            ("postgres://me:sesame@db-1,db-2:6000/app", &[5432, 6000][..], ReadWrite),
            ("postgres://me@/app?host=db-1,db-2&port=1,2", &[1, 2], ReadWrite),
            ("postgres://me@/app?host=db-1,db-2&port=1", &[1], ReadWrite),
            ("postgres://me@/app?hostaddr=10.0.0.1,10.0.0.2", &[], ReadWrite),
            ("postgres://me@db-1,db-2/app?target_session_attrs=any", &[5432, 5432], Any),
            ("postgres://me@db-1,db-2/app?target_session_attrs=read-only", &[5432, 5432], ReadOnly),
            ("postgres://me@db-1/app", &[5432], Any),
            ("postgres://me@db-1/app?target_session_attrs=read-write", &[5432], ReadWrite),
        ] {
            let options = parse(url).unwrap();
            let server = &options.server;
            assert_eq!(server.get_ports(), ports, "{url}");
            assert_eq!(server.get_target_session_attrs(), wanted, "{url}");
            let shown = format!("{options:?}");
            assert!(!shown.contains("sesame"), "{shown}");
            assert!(shown.contains("db-2") || !url.contains("db-2"), "{shown}");
        }
        for url in [
            "postgres://me@/app?host=db-1,db-2,db-3&port=1,2",
            "postgres://me@db-1,db-2/app?hostaddr=10.0.0.1",
            "postgres://me@db-1,db-2/app?target_session_attrs=primary",
        ] {
            assert_eq!(parse(url).unwrap_err().kind(), ErrorKind::Config, "{url}");
        }
    }

    #[test]
    fn a_server_that_is_gone_is_missed_soon() {
        let seconds = |server: &Config| {
            let others = [server.get_keepalives_interval(), server.get_tcp_user_timeout().copied()];
            let others = others.map(|time| time.map(|time| time.as_secs()));
            (server.get_keepalives_idle().as_secs(), server.get_keepalives_retries(), others)
        };
        let options = parse("postgres://me@db/app").unwrap();
        assert_eq!(seconds(&options.server), (60, Some(3), [Some(10), Some(90)]));
        let options = parse(
            "postgres://me@db/app?keepalives_idle=1&keepalives_interval=2&keepalives_retries=4\
             &tcp_user_timeout=5",
        )
        .unwrap();
        assert_eq!(seconds(&options.server), (1, Some(4), [Some(2), Some(5)]));
    }

    #[test]
    fn whatever_is_wrong_is_named() {
        for (parameters, named) in [
            ("shcema=a", "shcema"),
            ("schema=A", "schema"),
            ("schema=pg_temp", "schema"),
            ("schema=a%22b", "schema"),
            ("sslmode=on", "sslmode"),
            ("pool_size=0", "pool_size"),
            ("lock_timeout_ms=soon", "lock_timeout_ms"),
            ("synchronous_commit=maybe", "synchronous_commit"),
            ("timescaledb=on", "timescaledb"),
            ("create=1", "create"),
        ] {
            let error = parse(&format!("postgres://me@db/app?{parameters}")).unwrap_err();
            assert_eq!(
                (error.kind(), error.context("parameter")),
                (ErrorKind::Config, Some(named))
            );
        }
        for url in ["postgres://", "postgres:db", "mysql://db", "postgres://db?schema=%2"] {
            assert_eq!(parse(url).unwrap_err().kind(), ErrorKind::Config, "{url}");
        }
    }

    #[test]
    fn passwords_are_never_shown() {
        for url in [
            "postgres://me:sesame@db:port/app",
            "postgres://me:sesame@db/app?schema=A",
            "postgres://me:sesame@db/app?nothing=1",
            "postgres://me:sesame@db:99999/app",
            "postgres://me:5432?sesame@db/app",
            "postgres://me:5432?sesame=1@db/app",
        ] {
            let error = parse(url).unwrap_err();
            assert!(!format!("{error:#} {error:?}").contains("sesame"), "{url}");
        }
        let options = parse("postgres://me:sesame@db/app?password=sesame").unwrap();
        assert!(!format!("{options:?}").contains("sesame"));
    }
}
