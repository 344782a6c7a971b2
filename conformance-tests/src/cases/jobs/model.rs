//! Random operations on jobs, compared with the in-memory ones at every step.

use crate::failure::CaseResult;
use crate::harness::Ctx;
use crate::model_check::{run_jobs, seed_from_env};

job_cases! { "job_model":
    random_operations_1,
    random_operations_2,
    random_operations_3,
    random_operations_4,
}

async fn random_operations_1(ctx: &Ctx) -> CaseResult {
    compare(ctx, 1).await
}

async fn random_operations_2(ctx: &Ctx) -> CaseResult {
    compare(ctx, 2).await
}

async fn random_operations_3(ctx: &Ctx) -> CaseResult {
    compare(ctx, 3).await
}

async fn random_operations_4(ctx: &Ctx) -> CaseResult {
    compare(ctx, 4).await
}

/// The same seed each time, so that a run repeats; other seeds are for long runs.
async fn compare(ctx: &Ctx, seed: u64) -> CaseResult {
    let seed = seed_from_env()?.unwrap_or(seed);
    run_jobs(&**ctx.fixture(), seed, 300).await
}
