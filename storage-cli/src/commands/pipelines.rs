//! `storage pipelines`: what jobs run.

use std::io::{self, Read};
use std::process::ExitCode;

use anyhow::{Context, Result};
use chrono::Utc;
use serde_json::Value;
use storage::{JobStore, NewPipeline, Pipeline, PipelinePatch, Store};

use super::jobs::Pages;
use crate::args::{Pipelines, Remove};
use crate::output::{Cell, Output, ask_to_remove};

const COLUMNS: [&str; 6] = ["name", "description", "config", "version", "created_at", "updated_at"];

/// The pipeline that `add` is to add, read and checked before the store is opened or made.
pub(super) fn prepare(verb: &Pipelines) -> Result<Option<NewPipeline>> {
    let Pipelines::Add { name, config, description } = verb else { return Ok(None) };
    let pipeline = NewPipeline::new(name, json_of(config)?).description(description);
    pipeline.validate()?;
    Ok(Some(pipeline))
}

/// Understands JSON that is given, or that standard input has.
fn json_of(text: &str) -> Result<Value> {
    let parsed = match text {
        "-" => {
            let mut input = String::new();
            io::stdin().lock().read_to_string(&mut input)?;
            serde_json::from_str(&input)
        }
        text => serde_json::from_str(text),
    };
    parsed.context("the configuration is no JSON")
}

pub(super) async fn run(
    store: &Store,
    verb: &Pipelines,
    prepared: Option<NewPipeline>,
    output: &mut Output,
    shown_url: &str,
) -> Result<ExitCode> {
    let jobs = &**store.jobs()?;
    let pipeline = match (verb, prepared) {
        (_, Some(pipeline)) => jobs.add_pipeline(&pipeline, Utc::now()).await?,
        (Pipelines::Show { name }, _) => jobs.pipeline(name).await?,
        (Pipelines::Update { name, config, description, expect_version }, _) => {
            let patch = PipelinePatch {
                expected_version: *expect_version,
                description: description.clone(),
                config: config.as_deref().map(json_of).transpose()?,
            };
            jobs.update_pipeline(name, &patch, Utc::now()).await?
        }
        (Pipelines::Remove(args), _) => return remove(jobs, args, output, shown_url).await,
        (Pipelines::List(part), _) => {
            let mut pages = Pages::of(part);
            let mut rows = output.rows(&COLUMNS)?;
            while let Some(page) = pages.next() {
                let listed = jobs.pipelines(&page).await?;
                pages.took(listed.items.len(), listed.next);
                for pipeline in listed.items {
                    rows.row(cells_of(pipeline))?;
                }
            }
            rows.finish()?;
            drop(rows);
            pages.note(output, "no pipelines");
            return Ok(ExitCode::SUCCESS);
        }
        // Prepared above.
        (Pipelines::Add { .. }, None) => return Ok(ExitCode::SUCCESS),
    };
    output.record(COLUMNS.into_iter().zip(cells_of(pipeline)).collect())?;
    Ok(ExitCode::SUCCESS)
}

fn cells_of(pipeline: Pipeline) -> Vec<Cell> {
    vec![
        Cell::Text(pipeline.name),
        Cell::Text(pipeline.description),
        Cell::Json(pipeline.config),
        Cell::Count(pipeline.version),
        Cell::Time(pipeline.created_at),
        Cell::Time(pipeline.updated_at),
    ]
}

async fn remove(
    jobs: &dyn JobStore,
    args: &Remove,
    output: &mut Output,
    shown_url: &str,
) -> Result<ExitCode> {
    jobs.pipeline(&args.id).await?;
    if !ask_to_remove(&format!("the pipeline {}", args.id), args.yes, shown_url)? {
        output.note("nothing was removed");
        return Ok(ExitCode::FAILURE);
    }
    jobs.remove_pipeline(&args.id).await?;
    output.record(vec![("removed", Cell::text(&args.id))])?;
    Ok(ExitCode::SUCCESS)
}
