//! Writing samples so that no rollup misses them.

use std::sync::Arc;

use tokio::time::Instant;

use super::Rolled;
use super::view::View;
use crate::error::{Error, Outcome, Result};
use crate::metrics::time::floor_ms;
use crate::metrics::{MetricRecord, StorageBackend};

impl Rolled {
    /// Stores a batch, and sees to it that no rollup misses it.
    pub(super) async fn write(
        &self,
        records: &[MetricRecord],
        widths_ms: (i64, i64),
    ) -> Result<()> {
        let Some(earliest_ms) = records.iter().map(|record| floor_ms(record.timestamp)).min()
        else {
            return self.stores.raw.write_batch(records).await;
        };
        let deadline = self.deadline();
        let mut outcome = Outcome::NotApplied;
        loop {
            let in_doubt = in_doubt(outcome);
            let (mut before, mut looked) = self.seen_lately().await.map_err(&in_doubt)?;
            if earliest_ms < before.announced_ms.max(before.cutoff_ms) {
                looked = Instant::now();
                before = self.look().await.map_err(&in_doubt)?;
            }
            while before.keeps_out(earliest_ms) {
                self.wait_past(&before, deadline).await.map_err(&in_doubt)?;
                looked = Instant::now();
                before = self.look().await.map_err(&in_doubt)?;
            }
            self.mark(&before, records, widths_ms).await.map_err(&in_doubt)?;
            self.stores.raw.write_batch(records).await.map_err(&in_doubt)?;
            let landed = looked.elapsed();
            outcome = Outcome::Unknown;
            let in_doubt = self::in_doubt(outcome);
            let after = self.look().await.map_err(&in_doubt)?;
            let was_overtaken = after.keeps_out(earliest_ms)
                || after.prunes != before.prunes && earliest_ms < after.frozen_ms;
            // Whoever prunes waits: what was so fast is in its rollups.
            if was_overtaken && !after.waited_for(landed) {
                let mut after = after;
                while after.keeps_out(earliest_ms) {
                    after = self.wait_past(&after, deadline).await.map_err(&in_doubt)?;
                }
                continue;
            }
            return self.mark_again(before, after, records, widths_ms).await.map_err(&in_doubt);
        }
    }

    /// Marks what was written in every epoch that began before it was, or during it.
    async fn mark_again(
        &self,
        mut before: Arc<View>,
        mut after: Arc<View>,
        records: &[MetricRecord],
        widths_ms: (i64, i64),
    ) -> Result<()> {
        while before.epoch != after.epoch {
            self.mark(&after, records, widths_ms).await?;
            (before, after) = (after, self.look().await?);
        }
        Ok(())
    }

    async fn mark(
        &self,
        view: &View,
        records: &[MetricRecord],
        widths_ms: (i64, i64),
    ) -> Result<()> {
        let control = self.stores.control.store();
        self.stores.marker.mark(control, view, records, widths_ms).await
    }
}

/// Says of an error what is known of the batch by then.
pub(super) fn in_doubt(outcome: Outcome) -> impl Fn(Error) -> Error {
    move |error| if outcome == Outcome::Unknown { error.with_outcome(outcome) } else { error }
}
