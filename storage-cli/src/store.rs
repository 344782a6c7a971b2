//! The store that `--url` names, and how its URL may be shown.

use std::sync::Arc;

use anyhow::{Result, bail};
use storage::{ErrorKind, StorageBackend};

/// Opens the store at `url`, and creates it if it does not exist and `create` is set.
pub(crate) async fn open(url: &str, create: bool) -> Result<Arc<dyn StorageBackend>> {
    if create {
        return Ok(storage::connect(url).await?);
    }
    // Who only asks would get an empty answer for a typo in a path.
    match storage::connect_existing(url).await {
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "there is no store at {}; name another one with --url, \
             or create it with `storage collect` or `storage import`",
            error.context("path").unwrap_or(&shown(url))
        ),
        store => Ok(store?),
    }
}

/// Returns `url` as it may be shown: without its password, keys and tokens.
pub(crate) fn shown(url: &str) -> String {
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

/// Returns the password that `url` holds, if it holds one.
pub(crate) fn password_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let (user_info, _) = authority.rsplit_once('@')?;
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
        for plain in ["sqlite://a:b.db", "postgres://me@host/db", "memory://"] {
            assert_eq!(shown(plain), plain);
        }
    }
}
