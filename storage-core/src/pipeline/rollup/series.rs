//! The rows of one series over a long time, read in parts side by side.

use std::num::NonZero;
use std::sync::Arc;

use futures_util::TryStreamExt;
use tokio::task::JoinSet;

use super::Tier;
use super::ranges::align_up;
use super::roll::range;
use super::row::{Decoder, FIELDS, Row};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::{SeriesFilter, StorageBackend, TimeRange};

/// So many windows at least are worth a task.
const WINDOWS_MIN: i64 = 1000;

/// Returns the rows of the series that `filter` names, oldest first, in the parts that they were read in.
pub(super) async fn rows(
    tier: &Tier,
    filter: &SeriesFilter,
    part: TimeRange,
) -> Result<Vec<Vec<Row>>> {
    let parts = cut(part, tier.width_ms)?;
    if let [only] = parts[..] {
        let store = Arc::clone(&tier.store);
        return Ok(vec![decoded(store, filter.clone(), only, tier.width_ms).await?]);
    }
    // Whoever drops the set ends its tasks.
    let mut tasks = JoinSet::new();
    for (index, part) in parts.into_iter().enumerate() {
        let (store, filter, width_ms) = (Arc::clone(&tier.store), filter.clone(), tier.width_ms);
        tasks.spawn(async move { Ok((index, decoded(store, filter, part, width_ms).await?)) });
    }
    let mut found: Vec<(usize, Vec<Row>)> = Vec::with_capacity(tasks.len());
    while let Some(done) = tasks.join_next().await {
        let broke_off =
            |error| Error::new(ErrorKind::Internal, "reading rollups broke off").with_source(error);
        found.push(done.map_err(broke_off)??);
    }
    found.sort_unstable_by_key(|(index, _)| *index);
    Ok(found.into_iter().map(|(_, rows)| rows).collect())
}

/// Cuts a range into as many parts as there are processors, if it is long.
fn cut(part: TimeRange, width_ms: i64) -> Result<Vec<TimeRange>> {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get) as i64;
    let length_ms = part.end_ms() - part.start_ms();
    let count = (length_ms / width_ms / WINDOWS_MIN).clamp(1, processors);
    let step_ms = align_up(length_ms / count + 1, width_ms);
    let mut parts = Vec::new();
    let mut at_ms = part.start_ms();
    while at_ms < part.end_ms() || parts.is_empty() {
        // At the bounds of windows: the first part may begin before the first of all windows does.
        let end_ms = align_up(at_ms + step_ms, width_ms).min(part.end_ms());
        parts.push(range(at_ms, end_ms)?);
        at_ms = end_ms;
    }
    Ok(parts)
}

async fn decoded(
    store: Arc<dyn StorageBackend>,
    filter: SeriesFilter,
    part: TimeRange,
    width_ms: i64,
) -> Result<Vec<Row>> {
    let (mut rows, mut decoder) = (Vec::new(), Decoder::new(width_ms));
    let mut scan = store.scan(&filter, part);
    while let Some(batch) = scan.try_next().await? {
        rows.reserve(batch.samples.len() / FIELDS + 1);
        for sample in &batch.samples {
            rows.extend(decoder.push(sample)?);
        }
    }
    rows.extend(decoder.finish()?);
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::time::{END_MS, MIN_MS};

    #[test]
    fn parts_tile_the_range_at_the_bounds_of_windows() {
        for (start_ms, end_ms, width_ms) in [
            (0, 0, 1000),
            (0, 5000, 1000),
            (-7_000_000, 9_000_000, 1000),
            (MIN_MS, END_MS, 86_400_000),
            (MIN_MS, 86_400_000 * 9, 604_800_000),
        ] {
            let parts = cut(range(start_ms, end_ms).unwrap(), width_ms).unwrap();
            let mut at_ms = start_ms;
            for part in &parts {
                assert_eq!(part.start_ms(), at_ms);
                at_ms = part.end_ms();
                assert!(at_ms == end_ms || at_ms.rem_euclid(width_ms) == 0, "{parts:?}");
            }
            assert_eq!(at_ms, end_ms);
        }
    }
}
