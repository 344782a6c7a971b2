//! Stores that belong to another: where they are, and URLs that hold URLs.

use percent_encoding::percent_decode_str;
use storage_core::{Error, ErrorKind, Result};

/// Returns the URL of the store that is beside the one at `url`, `suffix` added to its name.
pub(crate) fn beside(url: &str, suffix: &str) -> Result<String> {
    let (scheme, rest) = url
        .split_once("://")
        .ok_or_else(|| config("what is to have a store beside it is no URL"))?;
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    match scheme {
        "memory" if place.is_empty() => Ok(url.to_owned()),
        "sqlite" | "memory" => Ok(format!("{scheme}://{place}.{suffix}")),
        "postgres" | "postgresql" => {
            let pairs = query.split('&').filter(|pair| !pair.is_empty());
            let (schemas, others): (Vec<_>, Vec<_>) =
                pairs.partition(|pair| pair.starts_with("schema="));
            let schema = schemas.last().and_then(|pair| pair.strip_prefix("schema="));
            let schema = format!("schema={}_{suffix}", schema.unwrap_or("storage"));
            let query = others.into_iter().chain([&*schema]).collect::<Vec<_>>().join("&");
            Ok(format!("{scheme}://{place}?{query}"))
        }
        "parquet" => Ok(format!("{scheme}://{}.{suffix}", place.trim_end_matches('/'))),
        "parquet+s3" | "parquet+gs" | "parquet+az" => {
            let place = format!("{scheme}://{}.{suffix}", place.trim_end_matches('/'));
            Ok(if query.is_empty() { place } else { format!("{place}?{query}") })
        }
        _ => Err(config("where a store would stand beside this one is not known")
            .with_context("scheme", scheme)),
    }
}

/// Returns the values of the parameters `names` of a query, percent-decoded.
///
/// # Errors
/// `Config` if another name is there, or one of them twice.
pub(crate) fn parameters<const N: usize>(
    query: &str,
    names: [&'static str; N],
) -> Result<[Option<String>; N]> {
    let mut values = [const { None }; N];
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(index) = names.iter().position(|known| *known == name) else {
            return Err(config("unknown parameter; write & within a URL as %26")
                .with_context("parameter", name)
                .with_context("known", names.join(" ")));
        };
        let value = percent_decode_str(value).decode_utf8().map_err(|error| {
            config("the URL is not UTF-8").with_context("parameter", name).with_source(error)
        })?;
        if values[index].replace(value.into_owned()).is_some() {
            return Err(config("given twice").with_context("parameter", name));
        }
    }
    Ok(values)
}

pub(crate) fn config(message: &'static str) -> Error {
    Error::new(ErrorKind::Config, message).with_operation("connect")
}
