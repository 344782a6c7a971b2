//! The store that `--url` names, and how its URL may be shown.

use std::borrow::Cow;

use anyhow::{Result, bail};
use percent_encoding::percent_decode_str;
use storage::{ErrorKind, HealthStatus, StorageBackend, Store};

use crate::output::warn;

/// What a URL that holds other URLs starts with.
const OF_OTHERS: [&str; 3] = ["tiered://?", "mirrored://?", "rolled://?"];

/// The start and the query of a URL that holds other URLs.
fn of_others(url: &str) -> Option<(&'static str, &str)> {
    OF_OTHERS.iter().find_map(|start| Some((*start, url.strip_prefix(start)?)))
}

/// Opens the store at `url`, and creates it if it does not exist and `create` is set.
pub(crate) async fn open(url: &str, create: bool) -> Result<Store> {
    if create {
        return Ok(storage::open(url).await?);
    }
    // Who only asks would get an empty answer for a typo in a path.
    match storage::open_existing(url).await {
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "there is no store at {}; name another one with --url, \
             or create it with `storage collect` or `storage import`",
            error.context("path").unwrap_or(&shown(url))
        ),
        store => Ok(store?),
    }
}

/// Opens the store at `url`, one of several that the command line names.
pub(crate) async fn open_existing(url: &str) -> Result<Store> {
    match storage::open_existing(url).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("there is no store at {}", error.context("path").unwrap_or(&shown(url)))
        }
        store => Ok(store?),
    }
}

/// Whether a write may succeed at `url` that only one of two stores has.
pub(crate) fn is_mirrored(url: &str) -> bool {
    url.contains("mirrored://?")
}

/// Says what a store that was written to says of itself. A mirror counts what its second store missed, and
/// nobody counts any more when it is closed.
pub(crate) async fn warn_if_degraded(store: &dyn StorageBackend) {
    let health = store.health().await;
    if health.status != HealthStatus::Healthy {
        warn(&health.message);
    }
}

/// Returns `url` as it may be shown: without its password, keys and tokens.
pub(crate) fn shown(url: &str) -> String {
    if let Some((start, query)) = of_others(url) {
        let inner = query.split('&').map(|pair| match pair.split_once('=') {
            Some((name, inner)) => format!("{name}={}", encoded(&shown(&decoded(inner)))),
            None => pair.to_owned(),
        });
        return format!("{start}{}", inner.collect::<Vec<_>>().join("&"));
    }
    let url = match password_of(url) {
        Some(password) => url.replacen(&format!(":{password}@"), ":***@", 1),
        None => url.to_owned(),
    };
    let Some((start, query)) = url.split_once('?') else { return url };
    let hidden = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if is_secret(name) => format!("{name}=***"),
        _ => pair.to_owned(),
    });
    format!("{start}?{}", hidden.collect::<Vec<_>>().join("&"))
}

fn is_secret(parameter: &str) -> bool {
    ["key", "secret", "token", "password", "credential"].iter().any(|word| parameter.contains(word))
}

/// Returns every password that `url` holds, those of URLs within it included.
pub(crate) fn passwords_of(url: &str) -> Vec<String> {
    match of_others(url) {
        Some((_, query)) => {
            let inner = query.split('&').filter_map(|pair| pair.split_once('='));
            inner.flat_map(|(_, inner)| passwords_of(&decoded(inner))).collect()
        }
        None => password_of(url).map(str::to_owned).into_iter().collect(),
    }
}

/// A URL as it is, out of one that holds it.
fn decoded(inner: &str) -> Cow<'_, str> {
    percent_decode_str(inner).decode_utf8_lossy()
}

/// A URL as it stands within another.
fn encoded(inner: &str) -> String {
    inner.replace('%', "%25").replace('&', "%26")
}

fn password_of(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let (user_info, _) = match authority.rsplit_once('@') {
        None if scheme.starts_with("postgres") => rest.rsplit_once('@')?,
        // A password may hold what ends the authority.
        found => found?,
    };
    let (_, password) = user_info.split_once(':')?;
    Some(password).filter(|password| !password.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_found_and_hidden() {
        assert_eq!(
            shown("postgres://me:pw@host:5432/db?x=1"),
            "postgres://me:***@host:5432/db?x=1"
        );
        assert_eq!(shown("postgres://me:p@w@host/db"), "postgres://me:***@host/db");
        assert_eq!(
            shown("parquet+s3://b/p?aws_region=x&aws_secret_access_key=hush"),
            "parquet+s3://b/p?aws_region=x&aws_secret_access_key=***"
        );
        let tiered = "tiered://?hot=postgres://me:pw@h/db&cold=parquet+s3://b?aws_secret_key=x";
        assert_eq!(
            shown(tiered),
            "tiered://?hot=postgres://me:***@h/db&cold=parquet+s3://b?aws_secret_key=***"
        );
        assert_eq!(passwords_of(tiered), ["pw"]);
        let rolled = "rolled://?samples=postgres://me:pw@h/db";
        assert_eq!(shown(rolled), "rolled://?samples=postgres://me:***@h/db");
        assert_eq!(passwords_of(rolled), ["pw"]);
        let mirrored =
            "mirrored://?primary=sqlite://a.db&secondary=postgres://me:pw@h/db&policy=degrade";
        assert_eq!(shown(mirrored), mirrored.replace("pw", "***"));
        assert_eq!(passwords_of(mirrored), ["pw"]);
        let archived = "tiered://?hot=sqlite://a.db&cold=parquet+s3://b?aws_region=x%26aws_secret_access_key=hush";
        assert_eq!(shown(archived), archived.replace("hush", "***"));
        let nested = "rolled://?samples=mirrored://?primary=postgres://a:p1@h/d%26secondary=postgres://b:p2@h/d?x=1%2526password=p3";
        let hidden = nested.replace("p1", "***").replace("p2", "***").replace("p3", "***");
        assert_eq!(shown(nested), hidden);
        assert_eq!(passwords_of(nested), ["p1", "p2"]);
        for password in ["p/w", "p?w", "p/w@x"] {
            let url = format!("postgres://me:{password}@h/db");
            assert_eq!(shown(&url), "postgres://me:***@h/db");
            let nested = format!("tiered://?hot={}&cold=memory://", encoded(&url));
            assert_eq!(shown(&nested), "tiered://?hot=postgres://me:***@h/db&cold=memory://");
            assert_eq!(passwords_of(&nested), [password]);
        }
        let escaped = "tiered://?hot=postgres://me:p%2Fw@h/db&cold=memory://";
        assert_eq!(shown(escaped), escaped.replace("p%2Fw", "***"));
        for plain in ["sqlite://a:b.db", "postgres://me@host/db", "memory://"] {
            assert_eq!(shown(plain), plain);
        }
    }
}
