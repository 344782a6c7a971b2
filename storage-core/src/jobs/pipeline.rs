//! Pipelines: what jobs run, kept as JSON.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::refusal::{JSON_BYTES_MAX, check_text, check_time, check_version};
use crate::error::Result;
use crate::limits::{check_json, check_name};
use crate::metrics::time::{floor_ms, from_ms};

/// A pipeline that is to be added.
///
/// ```
/// use storage_core::NewPipeline;
///
/// let config = serde_json::json!({"steps": [{"plugin": "Input.api"}]});
/// assert!(NewPipeline::new("sync.yaml", config).validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPipeline {
    /// Which pipeline: 1 to 512 bytes, no NUL, compared byte by byte.
    pub name: String,
    /// What it is for: at most 64 KiB, no NUL; may be empty.
    #[serde(default)]
    pub description: String,
    /// What it does: any JSON of at most 1 MiB as compact text, nested at most 64 levels deep, no
    /// NUL in texts.
    pub config: Value,
}

impl NewPipeline {
    /// A pipeline without a description.
    pub fn new(name: impl Into<String>, config: Value) -> Self {
        Self { name: name.into(), description: String::new(), config }
    }

    /// Sets what it is for.
    #[must_use]
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.description = description.into();
        self
    }

    /// Checks the pipeline against the contract.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field` naming the first field that breaks a rule.
    pub fn validate(&self) -> Result<()> {
        check_name("name", &self.name)?;
        check_text("description", &self.description)?;
        check_json("config", &self.config, JSON_BYTES_MAX)
    }

    /// The pipeline as a store keeps it that adds it at `at`.
    ///
    /// # Errors
    /// As [`validate`](Self::validate), and with the field `at`.
    pub fn into_pipeline(self, at: DateTime<Utc>) -> Result<Pipeline> {
        self.validate()?;
        check_time("at", at)?;
        let Self { name, description, config } = self;
        let at = from_ms(floor_ms(at));
        Ok(Pipeline { name, description, config, version: 1, created_at: at, updated_at: at })
    }
}

/// A pipeline as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pipeline {
    /// Which pipeline.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// What it does.
    pub config: Value,
    /// How often it was added or updated: 1 at first.
    pub version: u64,
    /// When it was added.
    pub created_at: DateTime<Utc>,
    /// When it was added or updated last.
    pub updated_at: DateTime<Utc>,
}

impl Pipeline {
    /// Changes what `patch` says; the result is what a store keeps from then on.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field`; `Conflict` if the version is another.
    pub fn apply(&mut self, patch: &PipelinePatch, at: DateTime<Utc>) -> Result<()> {
        patch.validate()?;
        check_time("at", at)?;
        check_version(self.version, patch.expected_version)?;
        if let Some(description) = &patch.description {
            self.description.clone_from(description);
        }
        if let Some(config) = &patch.config {
            self.config.clone_from(config);
        }
        self.version += 1;
        self.updated_at = from_ms(floor_ms(at));
        Ok(())
    }
}

/// What is to change of a pipeline; what is `None` stays.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PipelinePatch {
    /// Change nothing unless the pipeline has this version.
    pub expected_version: Option<u64>,
    /// What it is for.
    pub description: Option<String>,
    /// What it does.
    pub config: Option<Value>,
}

impl PipelinePatch {
    /// Checks the patch against the contract.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field`.
    pub fn validate(&self) -> Result<()> {
        self.description.as_ref().map_or(Ok(()), |text| check_text("description", text))?;
        self.config.as_ref().map_or(Ok(()), |json| check_json("config", json, JSON_BYTES_MAX))
    }
}
