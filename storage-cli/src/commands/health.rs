//! `storage health`: does it work.

use std::process::ExitCode;

use anyhow::Result;
use storage::{HealthStatus, StorageBackend};

use crate::output::{Cell, Output};

pub(super) async fn run(store: &dyn StorageBackend, output: &mut Output) -> Result<ExitCode> {
    let health = store.health().await;
    let (word, code) = match health.status {
        HealthStatus::Healthy => ("healthy", ExitCode::SUCCESS),
        HealthStatus::Degraded => ("degraded", ExitCode::FAILURE),
        HealthStatus::Down => ("down", ExitCode::FAILURE),
    };
    output.record(vec![
        ("status", Cell::text(word)),
        ("backend", Cell::text(store.name())),
        ("message", Cell::Text(health.message)),
    ])?;
    Ok(code)
}
