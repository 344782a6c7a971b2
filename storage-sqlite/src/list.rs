//! Lists as JSON: the one way to bind a list of any length, which `json_each` takes apart again.

use serde::Serialize;
use storage_core::{Error, ErrorKind, Result};

/// Returns a JSON array of values: names, numbers, or a few of both for each.
pub(crate) fn json_list<T: Serialize>(values: &[T]) -> Result<String> {
    serde_json::to_string(values)
        .map_err(|error| Error::new(ErrorKind::Internal, "cannot list values").with_source(error))
}
