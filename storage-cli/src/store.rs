//! The store that `--url` names, and how its URL may be shown.

use std::sync::Arc;

use anyhow::{Result, bail};
use storage::StorageBackend;

/// Opens the store at `url`, and creates it if it does not exist and `create` is set.
pub(crate) async fn open(url: &str, create: bool) -> Result<Arc<dyn StorageBackend>> {
    if let Some(path) = missing_file(url).filter(|_| !create) {
        bail!(
            "there is no store at {path}; name another one with --url, \
             or create it with `storage collect` or `storage import`"
        );
    }
    Ok(storage::connect(url).await?)
}

/// Returns `url` as it may be shown: without its password.
pub(crate) fn shown(url: &str) -> String {
    match password_of(url) {
        Some(password) => url.replacen(&format!(":{password}@"), ":***@", 1),
        None => url.to_owned(),
    }
}

/// Returns the password that `url` holds, if it holds one.
pub(crate) fn password_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let (user_info, _) = authority.rsplit_once('@')?;
    let (_, password) = user_info.split_once(':')?;
    Some(password).filter(|password| !password.is_empty())
}

/// Returns the path of a URL that stands for a file, if nothing is there.
///
/// Opening would create it; who only asks would get an empty answer for a typo in a path.
fn missing_file(url: &str) -> Option<&str> {
    let path = url.strip_prefix("sqlite://")?.split('?').next()?;
    // A path with escapes is left to the backend, which knows how to read them.
    let is_plain = !path.is_empty() && !path.contains(['%', ':']);
    (is_plain && !std::path::Path::new(path).exists()).then_some(path)
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
        for plain in ["sqlite://a:b.db", "postgres://me@host/db", "memory://"] {
            assert_eq!(shown(plain), plain);
        }
    }

    #[test]
    fn only_plain_paths_that_are_missing_are_refused() {
        assert_eq!(missing_file("sqlite://no/such.db?a=b"), Some("no/such.db"));
        assert_eq!(missing_file("sqlite://Cargo.toml"), None);
        assert_eq!(missing_file("memory://x"), None);
    }
}
