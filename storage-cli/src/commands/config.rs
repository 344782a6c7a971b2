//! `storage config`: what a configuration comes to.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::Value;
use storage::config::Config;

use crate::args::{ConfigArgs, ConfigCommand};
use crate::output::Output;
use crate::store::shown;

pub(super) fn run(args: &ConfigArgs, output: &mut Output) -> Result<ExitCode> {
    let ConfigCommand::Check(file) = &args.command;
    let config = Config::load(&file.config)?;
    let mut effective = config.to_json();
    mask(&mut effective);
    let mut text = serde_json::to_string_pretty(&effective)?;
    text.push('\n');
    output.raw(text.as_bytes())?;
    output.note(&format!("the store is {}", shown(&config.url()?)));
    Ok(ExitCode::SUCCESS)
}

/// Hides passwords and keys in everything that is a URL.
fn mask(value: &mut Value) {
    match value {
        Value::String(text) if text.contains("://") => *text = shown(text),
        Value::Array(items) => items.iter_mut().for_each(mask),
        Value::Object(fields) => fields.values_mut().for_each(mask),
        _ => {}
    }
}
