//! Pipelines: added, found, changed, removed.

use serde_json::{Value, json};
use storage_core::metrics::time::{END_MS, MIN_MS};
use storage_core::{JobStore, NewPipeline, Page, Pipeline, PipelinePatch, Result};

use super::{
    add_hourly, all_jobs, bad_json, bad_names, expect_conflict, expect_missing, odd_json, running,
};
use crate::data::{NOON, ODD_NAMES, at, at_us};
use crate::failure::{CaseResult, expect_refused};
use crate::harness::Ctx;

job_cases! { "pipelines":
    a_pipeline_comes_back_as_it_was_added,
    any_configuration_comes_back_equal,
    odd_names_are_names_like_any_other,
    the_largest_configuration_is_accepted,
    bad_fields_are_refused,
    bad_times_are_refused,
    a_name_that_is_taken_is_a_conflict,
    an_unknown_pipeline_is_not_found,
    an_update_changes_what_it_says_and_nothing_else,
    an_update_that_expects_another_version_changes_nothing,
    bad_patches_change_nothing,
    removing_a_pipeline_leaves_its_jobs,
    a_removed_name_can_be_added_again,
    names_of_jobs_pipelines_and_executions_are_apart,
}

async fn all_pipelines(jobs: &dyn JobStore) -> Result<Vec<Pipeline>> {
    Ok(jobs.pipelines(&Page::first(1000)).await?.items)
}

/// What was added is found, with what the store adds.
async fn a_pipeline_comes_back_as_it_was_added(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    let config = json!({"steps": [{"name": "fetch", "plugin": "Input.api", "config": {"n": 1.0}}]});
    let sync = NewPipeline::new("sync.yaml", config.clone()).description("Fetches\nand stores");
    let added = jobs.add_pipeline(&sync, at_us(NOON * 1000 + 1999)).await?;
    ensure_eq!(
        (&*added.name, &*added.description, &added.config, added.version),
        ("sync.yaml", "Fetches\nand stores", &config, 1)
    );
    ensure_eq!((added.created_at, added.updated_at), (at(NOON + 1), at(NOON + 1)));
    ensure_eq!(jobs.pipeline("sync.yaml").await?, added);
    ensure_eq!(all_pipelines(jobs).await?, [added]);
    Ok(())
}

/// Any JSON, `null` included; whole numbers and fractions stay apart.
async fn any_configuration_comes_back_equal(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    for (number, config) in odd_json().into_iter().chain([Value::Null]).enumerate() {
        let name = format!("p{number}");
        jobs.add_pipeline(&NewPipeline::new(&name, config.clone()), at(NOON)).await?;
        ensure_eq!(jobs.pipeline(&name).await?.config, config);
        let patch = PipelinePatch { config: Some(json!([config])), ..PipelinePatch::default() };
        jobs.update_pipeline(&name, &patch, at(NOON)).await?;
        ensure_eq!(jobs.pipeline(&name).await?.config, json!([config]), "updated");
    }
    Ok(())
}

/// Names are compared byte by byte; no character is special.
async fn odd_names_are_names_like_any_other(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    for name in ODD_NAMES {
        let pipeline = NewPipeline::new(*name, json!(name)).description(*name);
        jobs.add_pipeline(&pipeline, at(NOON)).await?;
    }
    for name in ODD_NAMES {
        let found = jobs.pipeline(name).await?;
        ensure_eq!((&*found.name, &*found.description, found.config), (*name, *name, json!(name)));
    }
    let mut sorted = ODD_NAMES.to_vec();
    sorted.sort_unstable();
    let found = all_pipelines(jobs).await?;
    ensure!(found.iter().map(|pipeline| &*pipeline.name).eq(sorted), "byte by byte");
    jobs.remove_pipeline("i").await?;
    ensure_eq!(all_pipelines(jobs).await?.len(), ODD_NAMES.len() - 1, "one alone is removed");
    Ok(())
}

/// 1 MiB of JSON, 64 levels deep, and 64 KiB of description.
async fn the_largest_configuration_is_accepted(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    let mut config = json!("x".repeat(1024 * 1024 - 130));
    for _ in 0..64 {
        config = json!([config]);
    }
    let name = "n".repeat(512);
    let pipeline = NewPipeline::new(&name, config.clone()).description("d".repeat(64 * 1024));
    jobs.add_pipeline(&pipeline, at(NOON)).await?;
    let found = jobs.pipeline(&name).await?;
    ensure!(found.config == config && found.description == pipeline.description, "as it was");
    Ok(())
}

/// Each by its name, and nothing is stored.
async fn bad_fields_are_refused(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    for bad in bad_names() {
        let refused = jobs.add_pipeline(&NewPipeline::new(&bad, json!(1)), at(NOON)).await;
        expect_refused(refused, Some("name"), format!("{bad:.20}"))?;
    }
    for bad in ["\0".to_owned(), "x".repeat(64 * 1024 + 1)] {
        let pipeline = NewPipeline::new("a", json!(1)).description(bad);
        let refused = jobs.add_pipeline(&pipeline, at(NOON)).await;
        expect_refused(refused, Some("description"), "a description")?;
    }
    for bad in bad_json() {
        let refused = jobs.add_pipeline(&NewPipeline::new("a", bad), at(NOON)).await;
        expect_refused(refused, Some("config"), "a configuration")?;
    }
    ensure_eq!(all_pipelines(jobs).await?, []);
    Ok(())
}

/// Times lie in the years 0001 to 9999.
async fn bad_times_are_refused(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    let before = jobs.add_pipeline(&NewPipeline::new("a", json!(1)), at(END_MS - 1)).await?;
    for time in [at_us(MIN_MS * 1000 - 1), at(END_MS)] {
        let refused = jobs.add_pipeline(&NewPipeline::new("b", json!(1)), time).await;
        expect_refused(refused, Some("at"), "an add")?;
        let refused = jobs.update_pipeline("a", &PipelinePatch::default(), time).await;
        expect_refused(refused, Some("at"), "an update")?;
    }
    ensure_eq!(all_pipelines(jobs).await?, [before]);
    Ok(())
}

/// A second add of a name is refused, and the first stays.
async fn a_name_that_is_taken_is_a_conflict(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    let first = jobs.add_pipeline(&NewPipeline::new("a", json!(1)), at(NOON)).await?;
    let second = jobs.add_pipeline(&NewPipeline::new("a", json!(2)), at(NOON + 1)).await;
    expect_conflict(second, ("pipeline", "a"))?;
    ensure_eq!(all_pipelines(jobs).await?, [first]);
    Ok(())
}

/// What is about a pipeline that is not there says so.
async fn an_unknown_pipeline_is_not_found(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    jobs.add_pipeline(&NewPipeline::new("a", json!(1)), at(NOON)).await?;
    let bad = bad_names();
    for name in ["A", "a "].into_iter().chain(bad.iter().map(String::as_str)) {
        expect_missing(jobs.pipeline(name).await, ("pipeline", name))?;
        let updated = jobs.update_pipeline(name, &PipelinePatch::default(), at(NOON)).await;
        expect_missing(updated, ("pipeline", name))?;
        expect_missing(jobs.remove_pipeline(name).await, ("pipeline", name))?;
    }
    ensure_eq!(all_pipelines(jobs).await?.len(), 1);
    Ok(())
}

/// A patch changes what it says, and each update counts.
async fn an_update_changes_what_it_says_and_nothing_else(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    let other = jobs.add_pipeline(&NewPipeline::new("b", json!(1)), at(NOON)).await?;
    let mut expected = jobs.add_pipeline(&NewPipeline::new("a", json!(1)), at(NOON)).await?;
    let description =
        PipelinePatch { description: Some("d".to_owned()), ..PipelinePatch::default() };
    let config = PipelinePatch { config: Some(json!(null)), ..PipelinePatch::default() };
    for (patch, later) in [description, config, PipelinePatch::default()].iter().zip(1..) {
        let updated = jobs.update_pipeline("a", patch, at(NOON + later)).await?;
        "d".clone_into(&mut expected.description);
        expected.config = if later == 1 { json!(1) } else { json!(null) };
        (expected.version, expected.updated_at) = (1 + later.unsigned_abs(), at(NOON + later));
        ensure_eq!(updated, expected);
        ensure_eq!(jobs.pipeline("a").await?, expected, "found");
    }
    ensure_eq!(jobs.pipeline("b").await?, other, "the other pipeline");
    Ok(())
}

/// Optimistic: who has not seen the last version changes nothing.
async fn an_update_that_expects_another_version_changes_nothing(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    jobs.add_pipeline(&NewPipeline::new("a", json!(0)), at(NOON)).await?;
    let expecting = |version: u64| PipelinePatch {
        expected_version: Some(version),
        config: Some(json!(version)),
        ..PipelinePatch::default()
    };
    ensure_eq!(jobs.update_pipeline("a", &expecting(1), at(NOON)).await?.version, 2);
    for version in [0, 1, 3, u64::MAX] {
        let refused = jobs.update_pipeline("a", &expecting(version), at(NOON)).await;
        let error = expect_conflict(refused, ("version", "2"))?;
        ensure_eq!(error.context("expected_version"), Some(&*version.to_string()));
    }
    let found = jobs.pipeline("a").await?;
    ensure_eq!((found.config, found.version), (json!(1), 2));
    Ok(())
}

/// One bad field keeps the whole patch out.
async fn bad_patches_change_nothing(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    let before = jobs.add_pipeline(&NewPipeline::new("a", json!(0)), at(NOON)).await?;
    for bad in bad_json() {
        let description = Some("changed".to_owned());
        let patch = PipelinePatch { config: Some(bad), description, ..PipelinePatch::default() };
        let refused = jobs.update_pipeline("a", &patch, at(NOON)).await;
        expect_refused(refused, Some("config"), "a configuration")?;
    }
    let description = Some("\0".to_owned());
    let patch = PipelinePatch { config: Some(json!(1)), description, ..PipelinePatch::default() };
    let refused = jobs.update_pipeline("a", &patch, at(NOON)).await;
    expect_refused(refused, Some("description"), "a description")?;
    ensure_eq!(jobs.pipeline("a").await?, before);
    Ok(())
}

/// Jobs that run it stay as they are.
async fn removing_a_pipeline_leaves_its_jobs(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a", "b"]).await?;
    let before = all_jobs(jobs).await?;
    jobs.add_pipeline(&NewPipeline::new("sync.yaml", json!(1)), at(NOON)).await?;
    jobs.add_pipeline(&NewPipeline::new("other.yaml", json!(1)), at(NOON)).await?;
    jobs.remove_pipeline("sync.yaml").await?;
    expect_missing(jobs.pipeline("sync.yaml").await, ("pipeline", "sync.yaml"))?;
    ensure_eq!(all_jobs(jobs).await?, before);
    ensure_eq!(all_pipelines(jobs).await?.len(), 1);
    Ok(())
}

/// As if it had never been there.
async fn a_removed_name_can_be_added_again(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    for round in 0..3 {
        let pipeline = NewPipeline::new("a", json!(round));
        ensure_eq!(jobs.add_pipeline(&pipeline, at(NOON + round)).await?.version, 1);
        jobs.update_pipeline("a", &PipelinePatch::default(), at(NOON)).await?;
        jobs.remove_pipeline("a").await?;
    }
    Ok(())
}

/// One text may be all of them.
async fn names_of_jobs_pipelines_and_executions_are_apart(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a"]).await?;
    expect_missing(jobs.pipeline("a").await, ("pipeline", "a"))?;
    jobs.add_pipeline(&NewPipeline::new("a", json!(1)), at(NOON)).await?;
    expect_missing(jobs.execution("a").await, ("execution", "a"))?;
    jobs.add_execution(&running("a", "a", NOON)).await?;
    jobs.remove_pipeline("a").await?;
    ensure_eq!(jobs.execution("a").await?.job_id, "a");
    ensure_eq!(jobs.remove_job("a").await?, 1);
    Ok(())
}
