//! Reading a series back: `query_range`.

use crate::data::{NOON, SERVER, range, rec};
use crate::failure::CaseResult;
use crate::harness::Ctx;

cases! { "query":
    layouts starts_included_ends_excluded,
}

/// A range holds its start and not its end.
async fn starts_included_ends_excluded(ctx: &Ctx) -> CaseResult {
    ctx.write(&[rec(NOON - 1, 1.0), rec(NOON, 2.0), rec(NOON + 99, 3.0), rec(NOON + 100, 4.0)]).await?;
    let found = ctx.store().query_range(SERVER, crate::data::METRIC, range(NOON, NOON + 100)).await?;
    ensure_eq!(crate::data::points(&found), [(NOON, 2.0), (NOON + 99, 3.0)]);
    Ok(())
}
