//! Storing and removing, each with its bugs.

use std::sync::atomic::Ordering;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use storage_core::history::value::validate_values;
use storage_core::metrics::time::{END_MS, MIN_MS, floor_ms, from_ms};
use storage_core::{Error, MetricRecord, RecordHistory, Result, StorageBackend, StoredValue};

use super::{Broken, Bug};
use crate::mutant_runner::moment::{Unless, pause};

impl Broken {
    pub(super) async fn try_store(&self, values: &[StoredValue]) -> Result<()> {
        // A closed handle says so first, whatever the bug.
        self.inner.store_batch(&[]).await?;
        if self.is(Bug::StoresValidPart) {
            let valid: Vec<_> =
                values.iter().filter(|value| value.validate().is_ok()).cloned().collect();
            self.inner.store_batch(&valid).await?;
            return validate_values(values);
        }
        if self.is(Bug::NamesLastBadValue)
            && let Some(last) = values.iter().rposition(|value| value.validate().is_err())
        {
            return values[last].validate().map_err(|error| error.with_context("record", last));
        }
        if self.is(Bug::EmptyBatchFails) && values.is_empty() {
            return Err(Error::invalid("nothing to store"));
        }
        let mut values: Vec<StoredValue> =
            values.iter().map(|value| self.changed(value.clone())).collect();
        validate_values(&values)?;
        self.refuse_good_ones(&values)?;
        self.known().extend(values.iter().map(|value| value.record_name.clone()));
        self.change_batch(&mut values).await?;
        self.put(values).await
    }

    /// One value with the bug.
    fn changed(&self, mut value: StoredValue) -> StoredValue {
        let is_bad = value.validate().is_err();
        let micros = value.stored_at.timestamp_micros();
        match self.bug {
            Bug::RoundsTimes => value.stored_at += chrono::Duration::microseconds(500),
            Bug::TruncatesTimes => value.stored_at = from_ms(micros / 1000),
            Bug::ParsesTexts => {
                if let Some(text) = value.value.as_str()
                    && let Ok(parsed) = serde_json::from_str(text)
                {
                    value.value = parsed;
                }
            }
            Bug::MakesFractionsWhole if value.value == json!(1.0) => value.value = json!(1),
            Bug::TrimsNames if !value.record_name.trim().is_empty() => {
                value.record_name = value.record_name.trim().to_owned();
            }
            Bug::AcceptsBadNames if is_bad => value.record_name = "bad".to_owned(),
            Bug::AcceptsBadTimes if is_bad => value.stored_at = from_ms(0),
            Bug::AcceptsLargeValues | Bug::AcceptsDeepValues | Bug::AcceptsNul
                if is_bad && !value.record_name.is_empty() =>
            {
                value.value = Value::Null;
            }
            _ => {}
        }
        value
    }

    fn refuse_good_ones(&self, values: &[StoredValue]) -> Result<()> {
        let is_far = |value: &StoredValue| {
            let ms = floor_ms(value.stored_at);
            !(MIN_MS + 1000..=END_MS - 1000).contains(&ms)
        };
        let is_large = |value: &StoredValue| value.value.to_string().len() > 100_000;
        match self.bug {
            Bug::RefusesFarTimes if values.iter().any(is_far) => Err(Error::invalid("too far")),
            Bug::RefusesLargeValues if values.iter().any(is_large) => {
                Err(Error::invalid("too large"))
            }
            _ => Ok(()),
        }
    }

    /// What becomes of a batch with the bug.
    async fn change_batch(&self, values: &mut Vec<StoredValue>) -> Result<()> {
        match self.bug {
            Bug::LosesLastValue => drop(values.pop()),
            Bug::StoresUnderFirstName => {
                if let Some(first) = values.first().map(|value| value.record_name.clone()) {
                    values.iter_mut().for_each(|value| value.record_name.clone_from(&first));
                }
            }
            Bug::MergesEqualValues => values.dedup(),
            Bug::IgnoresRepeatedBatches => {
                let mut log = self.shared.log();
                if log.last_batch == *values {
                    values.clear();
                } else {
                    log.last_batch.clone_from(values);
                }
            }
            Bug::ReversesBatches => values.reverse(),
            Bug::DropsNull => values.retain(|value| !value.value.is_null()),
            Bug::CutsLargeBatches => values.truncate(10_000),
            Bug::VanishedStayAway => {
                let log = self.shared.log();
                values.retain(|value| !log.vanished.contains(&value.record_name));
            }
            Bug::CountsAsSamples => {
                let sample = MetricRecord::new("history", from_ms(0), "values", 1.0);
                self.metrics.inner.write_batch(&[sample]).await?;
            }
            // Every second call is held back until the next has come.
            Bug::SwapsCalls => {
                let mut log = self.shared.log();
                let before = std::mem::take(&mut log.held_back);
                match before.is_empty() {
                    true => log.held_back = std::mem::take(values),
                    false => values.extend(before),
                }
            }
            // What one call brings is stored by the next, if there is one.
            Bug::AcknowledgesAndLoses => {
                std::mem::swap(&mut self.shared.log().held_back, values);
            }
            _ => {}
        }
        Ok(())
    }

    async fn put(&self, values: Vec<StoredValue>) -> Result<()> {
        match self.bug {
            Bug::TearsBatches | Bug::DroppedBatchesTear => {
                let (first, second) = values.split_at(values.len() / 2);
                self.inner.store_batch(first).await?;
                pause().await;
                self.inner.store_batch(second).await
            }
            Bug::LosesUnderLoad => {
                let others = self.shared.calls.fetch_add(1, Ordering::SeqCst);
                pause().await;
                let stored = match others {
                    0..8 => self.inner.store_batch(&values).await,
                    _ => Ok(()),
                };
                self.shared.calls.fetch_sub(1, Ordering::SeqCst);
                stored
            }
            Bug::DroppedBatchesComeLate => {
                let keep = || self.shared.log().late.clone_from(&values);
                let unfinished = Unless::done_or(keep);
                pause().await;
                unfinished.done();
                self.inner.store_batch(&values).await?;
                let late = match values.iter().any(|value| value.record_name == "later") {
                    true => std::mem::take(&mut self.shared.log().late),
                    false => Vec::new(),
                };
                self.inner.store_batch(&late).await
            }
            _ => self.inner.store_batch(&values).await,
        }
    }

    pub(super) async fn try_cleanup(&self, older_than: DateTime<Utc>) -> Result<u64> {
        let ms = |ms| chrono::Duration::milliseconds(ms);
        // A closed handle says so first, whatever the bug.
        self.inner.cleanup(DateTime::<Utc>::MIN_UTC).await?;
        let all = self.everything().await?;
        let cutoff_ms = floor_ms(older_than);
        let old: Vec<_> =
            all.iter().filter(|value| floor_ms(value.stored_at) < cutoff_ms).cloned().collect();
        match self.bug {
            Bug::RemovesAtTheCutoff => self.inner.cleanup(older_than + ms(1)).await,
            Bug::RemovesSomething if old.is_empty() => {
                let Some(first) = all.iter().map(|value| value.stored_at).min() else {
                    return Ok(0);
                };
                self.inner.cleanup(first + ms(1)).await
            }
            Bug::KeepsTheNewest => {
                let newest = all.last().cloned();
                let removed = self.inner.cleanup(older_than).await?;
                let kept: Vec<_> = newest
                    .filter(|value| floor_ms(value.stored_at) < cutoff_ms)
                    .into_iter()
                    .collect();
                self.inner.store_batch(&kept).await?;
                Ok(removed - kept.len() as u64)
            }
            Bug::CountsRecords => Ok(self.inner.cleanup(older_than).await?.min(1)),
            Bug::RoundsCutoffsUp => {
                self.inner.cleanup(older_than + chrono::Duration::microseconds(999)).await
            }
            Bug::TruncatesCutoffs => {
                self.inner.cleanup(from_ms(older_than.timestamp_micros() / 1000)).await
            }
            Bug::FarCutoffsFail if !(MIN_MS..END_MS).contains(&cutoff_ms) => {
                Err(Error::invalid("the cutoff is outside the calendar"))
            }
            Bug::CountsAgain => {
                let removed = self.inner.cleanup(older_than).await?;
                let mut log = self.shared.log();
                log.removed += removed;
                Ok(log.removed)
            }
            Bug::CleansFirstRecordAlone => {
                let first = all.first().map(|value| value.record_name.clone());
                self.restore_after(older_than, old, |value| {
                    Some(&value.record_name) != first.as_ref()
                })
                .await
            }
            Bug::CleansOneStep => {
                let mut left = 5000;
                let beyond = |_: &StoredValue| {
                    left -= 1;
                    left < 0
                };
                self.restore_after(older_than, old, beyond).await
            }
            Bug::CountsTiesOnce => {
                let mut times: Vec<_> = old.iter().map(|value| value.stored_at).collect();
                times.dedup();
                self.inner.cleanup(older_than).await?;
                Ok(times.len() as u64)
            }
            Bug::CountsBeforeRemoving => {
                self.shared.pair.meet().await;
                self.inner.cleanup(older_than).await?;
                Ok(old.len() as u64)
            }
            Bug::CleanupPrunes => {
                self.metrics.inner.prune_before(older_than).await?;
                self.inner.cleanup(older_than).await
            }
            Bug::DroppedCleanupBreaks => {
                let broken = || self.shared.broken.store(true, Ordering::SeqCst);
                let unfinished = Unless::done_or(broken);
                pause().await;
                unfinished.done();
                self.inner.cleanup(older_than).await
            }
            _ => {
                let removed = self.inner.cleanup(older_than).await?;
                let mut log = self.shared.log();
                log.vanished.extend(old.into_iter().map(|value| value.record_name));
                log.watermark_ms = log.watermark_ms.max(Some(cutoff_ms));
                log.reorders = true;
                Ok(removed)
            }
        }
    }

    /// Cleans up and puts back what the bug leaves; says how much is gone.
    async fn restore_after(
        &self,
        older_than: DateTime<Utc>,
        old: Vec<StoredValue>,
        stays: impl FnMut(&StoredValue) -> bool,
    ) -> Result<u64> {
        let mut stays = stays;
        let removed = self.inner.cleanup(older_than).await?;
        let kept: Vec<_> = old.into_iter().filter(|value| stays(value)).collect();
        self.inner.store_batch(&kept).await?;
        Ok(removed - kept.len() as u64)
    }
}
