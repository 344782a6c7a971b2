//! Values from the file and from the environment put together, and unknown names found.
//!
//! What is known is given as an example of a whole configuration: its keys are the known ones, its
//! values say of which kind each is.

use serde_json::{Map, Value};
use storage_core::{Error, Result};

use super::{ENVIRONMENT_PREFIX, config_error};

/// How unlike a name may be to one that was probably meant: 1 is the same, 0 nothing alike.
const SIMILARITY_MIN: f64 = 0.6;

/// Refuses the first key of `value` that `known` does not have.
pub(super) fn refuse_unknown(value: &Value, known: &Value, path: &str) -> Result<()> {
    let (fields, known) = match (value, known) {
        (Value::Object(fields), Value::Object(known)) => (fields, known),
        // Serde would take a list for an object, its items for the values of the fields.
        (Value::Array(_), Value::Object(_)) => {
            return Err(config_error("a value of the configuration is of the wrong kind")
                .with_context("key", path)
                .with_context("expected", "an object"));
        }
        (Value::Array(items), Value::Array(known)) => {
            let Some(known) = known.first() else { return Ok(()) };
            let mut items = items.iter().enumerate();
            return items
                .try_for_each(|(no, item)| refuse_unknown(item, known, &format!("{path}[{no}]")));
        }
        _ => return Ok(()),
    };
    for (name, field) in fields {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match known.get(name) {
            Some(known) => refuse_unknown(field, known, &path)?,
            None => return Err(unknown(&path, name, known)),
        }
    }
    Ok(())
}

fn unknown(path: &str, name: &str, known: &Map<String, Value>) -> Error {
    let error = config_error("unknown key in the configuration").with_context("key", path);
    let likeness = |known: &&String| strsim::jaro_winkler(&name.to_lowercase(), known);
    let nearest = known.keys().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match nearest.filter(|nearest| likeness(nearest) >= SIMILARITY_MIN) {
        Some(nearest) => error.with_context("did_you_mean", nearest),
        None => {
            let all: Vec<_> = known.keys().map(String::as_str).collect();
            error.with_context("known", all.join(" "))
        }
    }
}

/// Puts the values of the environment over those of the file.
pub(super) fn apply_environment(
    value: &mut Value,
    known: &Value,
    variables: &[(impl AsRef<str>, impl AsRef<str>)],
) -> Result<()> {
    let ours: Vec<_> = variables
        .iter()
        .filter_map(|(variable, text)| {
            let path = variable.as_ref().strip_prefix(ENVIRONMENT_PREFIX)?.to_ascii_lowercase();
            Some((variable.as_ref(), path, text.as_ref()))
        })
        .collect();
    forget_same(value, |key| ours.iter().find(|(_, path, _)| path == key).map(|(.., text)| *text));
    for (variable, path, text) in ours {
        let path: Vec<_> = std::iter::once("storage").chain(path.split("__")).collect();
        apply(value, known, &path, text)
            .map_err(|error| error.with_context("variable", variable))?;
    }
    Ok(())
}

/// Takes out of the file what says the same as a variable in another way, and would go before it.
fn forget_same<'a>(file: &mut Value, variable: impl Fn(&str) -> Option<&'a str>) {
    let Some(storage) = file.get_mut("storage").and_then(Value::as_object_mut) else { return };
    let text = |name| storage.get(name).and_then(Value::as_str);
    let backend = variable("backend").or(text("backend")).unwrap_or("sqlite").to_owned();
    let is_other = |url: &str| variable("backend").is_some() && !url.starts_with(&backend);
    if variable("path").is_some() || text("url").is_some_and(is_other) {
        storage.remove("url");
    }
    let place = match &*backend {
        "sqlite" => variable("sqlite__path"),
        "parquet" => variable("parquet__base_path"),
        _ => None,
    };
    if place.is_some() {
        storage.remove("path");
    }
    let Some(ages) = storage.get_mut("retention").and_then(Value::as_object_mut) else { return };
    ages.retain(|age, _| {
        let other = age.strip_suffix("_days").map_or_else(|| format!("{age}_days"), str::to_owned);
        variable(&format!("retention__{other}")).is_none()
    });
}

fn apply(value: &mut Value, known: &Value, path: &[&str], text: &str) -> Result<()> {
    let Some((name, rest)) = path.split_first() else {
        *value = value_of(text, known);
        return Ok(());
    };
    let known_fields = match known {
        Value::Object(fields) => fields,
        _ => return Err(config_error("unknown key in the configuration").with_context("key", name)),
    };
    let known = known_fields.get(*name).ok_or_else(|| unknown(name, name, known_fields))?;
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    // It is an object by now.
    let Value::Object(fields) = value else { return Ok(()) };
    apply(fields.entry(*name).or_insert(Value::Null), known, rest, text)
}

/// A variable is text: it is a number or the like only where one is expected.
fn value_of(text: &str, example: &Value) -> Value {
    match example {
        Value::String(_) => Value::String(text.to_owned()),
        _ => serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())),
    }
}

/// Says of which kind the value at `path` is.
pub(super) fn expected_of(known: &Value, path: &str) -> String {
    let pointer = format!("/{}", path.replace('.', "/"));
    match known.pointer(&pointer) {
        Some(Value::String(example)) => format!("a text such as {example}"),
        Some(Value::Number(example)) => format!("a number such as {example}"),
        Some(Value::Bool(_)) => "true or false".to_owned(),
        Some(Value::Object(_)) => "an object".to_owned(),
        Some(example @ Value::Array(_)) => format!("a list such as {example}"),
        _ => "another value".to_owned(),
    }
}
