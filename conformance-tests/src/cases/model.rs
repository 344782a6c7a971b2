//! Random operations, compared with the in-memory backend at every step.

use crate::failure::CaseResult;
use crate::harness::Ctx;
use crate::model_check::{Methods, run, seed_from_env};

cases! { "model":
    once random_operations_1 needs Series,
    once random_operations_2 needs Series,
    once random_operations_3 needs Series,
    once random_operations_4 needs Series,
    once random_operations_5 needs Series,
    once random_operations_6 needs Series,
    once required_methods_alone,
}

/// The seed decides everything, also how late samples come and how often upkeep runs.
async fn random_operations_1(ctx: &Ctx) -> CaseResult {
    compare(ctx, Methods::All, 1).await
}

async fn random_operations_2(ctx: &Ctx) -> CaseResult {
    compare(ctx, Methods::All, 2).await
}

async fn random_operations_3(ctx: &Ctx) -> CaseResult {
    compare(ctx, Methods::All, 3).await
}

async fn random_operations_4(ctx: &Ctx) -> CaseResult {
    compare(ctx, Methods::All, 4).await
}

async fn random_operations_5(ctx: &Ctx) -> CaseResult {
    compare(ctx, Methods::All, 5).await
}

async fn random_operations_6(ctx: &Ctx) -> CaseResult {
    compare(ctx, Methods::All, 6).await
}

/// The five methods that every backend has.
async fn required_methods_alone(ctx: &Ctx) -> CaseResult {
    compare(ctx, Methods::Required, 7).await
}

/// The same seed each time, so that a run repeats; other seeds are for long runs.
async fn compare(ctx: &Ctx, methods: Methods, seed: u64) -> CaseResult {
    let seed = seed_from_env()?.unwrap_or(seed);
    run(&**ctx.fixture(), methods, seed, 180).await
}
