//! How mutants write, prune and tidy up.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use chrono::{DateTime, Utc};
use storage_core::metrics::record::validate_batch;
use storage_core::metrics::time::{END_MS, MIN_MS, floor_ms, from_ms};
use storage_core::{
    Error, ErrorKind, MetricRecord, Result, SeriesFilter, StorageBackend, TimeRange,
};

use super::broken::Broken;
use super::bugs::Bug;
use super::state::{Held, Unfinished, key_of, pause, place_of};

impl Broken {
    pub(super) async fn try_write(&self, records: &[MetricRecord]) -> Result<()> {
        self.enter()?;
        if records.is_empty() {
            return self.write_nothing().await;
        }
        let mut batch = records.to_vec();
        batch.iter_mut().for_each(|record| self.spoil_input(record));
        self.refuse(&batch)?;
        let _writing = self.begin_write().await?;
        batch.iter_mut().for_each(|record| self.spoil_valid(record));
        self.lose(&mut batch);
        self.known.lock().unwrap_or_else(PoisonError::into_inner).extend(batch.iter().map(key_of));
        self.store(batch).await
    }

    async fn write_nothing(&self) -> Result<()> {
        match self.bug {
            Bug::EmptyBatchFails => Err(Error::invalid("nothing to write")),
            Bug::CloseAllowsEmptyBatches => Ok(()),
            _ => self.inner.write_batch(&[]).await,
        }
    }

    /// Makes valid what is to be refused.
    fn spoil_input(&self, record: &mut MetricRecord) {
        match self.bug {
            Bug::AcceptsNan if record.value.is_nan() => record.value = 0.0,
            Bug::AcceptsInfinity => record.value = record.value.clamp(f64::MIN, f64::MAX),
            Bug::AcceptsLongNames => {
                for name in [&mut record.server_id, &mut record.metric_type] {
                    while name.len() > 512 {
                        name.pop();
                    }
                }
            }
            Bug::AcceptsEmptyNames => {
                for name in [&mut record.server_id, &mut record.metric_type] {
                    *name = name.replace('\0', "");
                    if name.is_empty() {
                        name.push('?');
                    }
                }
            }
            Bug::AcceptsAnyTime => {
                let ms = floor_ms(record.timestamp);
                if !(MIN_MS..END_MS).contains(&ms) {
                    record.timestamp = from_ms(ms.clamp(MIN_MS, END_MS - 1));
                }
            }
            Bug::AcceptsLargeMetadata | Bug::AcceptsDeepMetadata | Bug::AcceptsNulMetadata => {
                let problem = record.validate().err();
                let problem = problem.map(|error| error.message().to_owned()).unwrap_or_default();
                let accepted = match self.bug {
                    Bug::AcceptsLargeMetadata => "too large",
                    Bug::AcceptsDeepMetadata => "nested",
                    _ => "JSON holds a NUL",
                };
                if problem.contains(accepted) {
                    record.metadata = None;
                }
            }
            _ => {}
        }
    }

    fn refuse(&self, batch: &[MetricRecord]) -> Result<()> {
        let own = |record: &MetricRecord| match self.bug {
            Bug::RefusesNamesOver255 => {
                record.server_id.len() > 255 || record.metric_type.len() > 255
            }
            Bug::RefusesMetadataOver32Kib => {
                record.metadata.as_ref().is_some_and(|value| value.to_string().len() > 32_768)
            }
            Bug::RefusesDeepMetadata => record
                .metadata
                .as_ref()
                .is_some_and(|value| value.to_string().contains(&"[".repeat(33))),
            Bug::RefusesFarTimes => record.timestamp.timestamp_nanos_opt().is_none(),
            Bug::RefusesLateWrites => {
                self.shared.log().watermark.is_some_and(|mark| floor_ms(record.timestamp) < mark)
            }
            _ => false,
        };
        let result = match batch.iter().position(own) {
            Some(index) => Err(Error::invalid("not to be had").with_context("record", index)),
            None if self.is(Bug::RefusesLargeBatches) && batch.len() > 9_000 => {
                Err(Error::new(ErrorKind::Unavailable, "too many parameters"))
            }
            None => validate_batch(batch),
        };
        let Err(error) = result else { return Ok(()) };
        let mut log = self.shared.log();
        log.refused_count += batch.len() as u64;
        log.refused.extend(batch.iter().map(key_of));
        drop(log);
        if self.is(Bug::StoresValidPart) {
            let valid = batch.iter().filter(|record| record.validate().is_ok());
            let valid: Vec<_> = valid.cloned().collect();
            self.write_now(&valid);
        }
        Err(error)
    }

    /// Stores without a moment in between.
    fn write_now(&self, batch: &[MetricRecord]) {
        use futures_util::FutureExt;
        if let Some(Ok(())) = self.inner.write_batch(batch).now_or_never() {
            self.shared.log().note_write(batch);
        }
    }

    async fn begin_write(&self) -> Result<Held<'_>> {
        let writing = Held::new(&self.shared.writing);
        match self.bug {
            Bug::WritesExclude => {
                if self.shared.writing.load(Ordering::SeqCst) > 1 {
                    return Err(Error::new(ErrorKind::Busy, "somebody else writes"));
                }
                pause().await;
            }
            Bug::ScanBlocksWrites if self.shared.scans.load(Ordering::SeqCst) > 0 => {
                return Err(Error::new(ErrorKind::Busy, "a scan is under way"));
            }
            Bug::CheckRacesWrites => pause().await,
            Bug::DroppedWriteBreaks => {
                let unfinished = Unfinished::new(&self.shared.broken);
                pause().await;
                unfinished.done();
            }
            _ => {}
        }
        Ok(writing)
    }

    /// Stores a valid record as another one.
    fn spoil_valid(&self, record: &mut MetricRecord) {
        let us = record.timestamp.timestamp_micros();
        let at_ms = |ms: i64| from_ms(ms.clamp(MIN_MS, END_MS - 1));
        match self.bug {
            Bug::TruncatesTimes => record.timestamp = at_ms(us / 1000),
            Bug::RoundsTimes => record.timestamp = at_ms((us + 500).div_euclid(1000)),
            Bug::RoundsToSeconds => record.timestamp = at_ms(us.div_euclid(1_000_000) * 1000),
            Bug::RoundsToF32 => {
                record.value = f64::from(record.value as f32).clamp(f64::MIN, f64::MAX)
            }
            Bug::ForgetsMetadata => record.metadata = None,
            Bug::StoresNullMetadata if record.metadata.as_ref().is_some_and(|m| m.is_null()) => {
                record.metadata = Some(serde_json::json!("null"));
            }
            Bug::KeepsOldMetadata if record.metadata.is_none() => {
                let old = self.shared.log().stored.get(&place_of(record)).cloned();
                record.metadata = old.flatten();
            }
            _ => {}
        }
        if self.is(Bug::KeepsNumericallyEqualMetadata) {
            let numbers =
                |metadata: &Option<_>| serde_json::json!(metadata).to_string().replace(".0", "");
            let old = self.shared.log().stored.get(&place_of(record)).cloned().flatten();
            if numbers(&old) == numbers(&record.metadata) {
                record.metadata = old;
            }
        }
        (record.server_id, record.metric_type) =
            self.rename(&record.server_id, &record.metric_type);
    }

    /// What this mutant takes the names of a series for.
    pub(super) fn rename(&self, server: &str, metric: &str) -> (String, String) {
        let each = |change: &dyn Fn(&str) -> String| (change(server), change(metric));
        let or = |name: String| if name.is_empty() { "_".to_owned() } else { name };
        match self.bug {
            Bug::TrimsNames => each(&|name| or(name.trim().to_owned())),
            Bug::IgnoresCase => each(&|name| name.to_lowercase()),
            Bug::NormalisesUnicode => each(&|name| name.replace("e\u{301}", "\u{e9}")),
            Bug::CutsNamesTo255 => each(&|name| name.chars().take(255).collect()),
            Bug::JoinsNames => {
                ("all".to_owned(), format!("{server}{metric}").chars().take(255).collect())
            }
            _ => each(&|name| name.to_owned()),
        }
    }

    /// Drops records that ought to be stored.
    fn lose(&self, batch: &mut Vec<MetricRecord>) {
        let log = self.shared.log();
        let newest_of = |record: &MetricRecord| {
            let key = key_of(record);
            let range = (key.clone(), i64::MIN)..=(key, i64::MAX);
            log.stored.range(range).next_back().map(|((_, ms), _)| *ms)
        };
        match self.bug {
            Bug::FirstInBatchWins => {
                let mut seen = BTreeSet::new();
                batch.retain(|record| seen.insert(place_of(record)));
            }
            Bug::FirstAcrossBatchesWins => batch.retain(|r| !log.stored.contains_key(&place_of(r))),
            Bug::CompactedIsFinal => batch.retain(|r| !log.frozen.contains(&place_of(r))),
            Bug::LosesLastRecord => drop(batch.pop()),
            Bug::LosesOutOfOrder => {
                let mut newest = i64::MIN;
                batch.retain(|record| {
                    let ms = floor_ms(record.timestamp);
                    let in_order = ms >= newest;
                    newest = newest.max(ms);
                    in_order
                });
            }
            Bug::LosesBackfill => {
                batch.retain(|r| newest_of(r).is_none_or(|newest| floor_ms(r.timestamp) >= newest));
            }
            Bug::CutsLargeBatches => batch.truncate(32_766),
            Bug::LosesLateWrites => {
                batch.retain(|r| log.watermark.is_none_or(|mark| floor_ms(r.timestamp) >= mark));
            }
            Bug::PruneEndsSeries => batch.retain(|record| !log.ended.contains(&key_of(record))),
            _ => {}
        }
    }

    async fn store(&self, batch: Vec<MetricRecord>) -> Result<()> {
        let large = batch.len() >= 1000;
        match self.bug {
            Bug::BatchesAreTorn => return self.store_in_pieces(&batch, 2).await,
            Bug::LargeBatchesAreTorn if large => return self.store_in_pieces(&batch, 5).await,
            Bug::CloseLosesWhatIsUnderWay => {
                self.inner.stats().await?;
                pause().await;
                if self.is_closed() {
                    return Ok(());
                }
            }
            Bug::WritesRace => {
                let version = self.shared.log().version;
                pause().await;
                let mut log = self.shared.log();
                if log.version != version {
                    return Ok(());
                }
                log.version += 1;
            }
            Bug::WritesAreLate => {
                self.inner.stats().await?;
                let earlier = std::mem::replace(&mut self.shared.log().pending, batch);
                return self.inner.write_batch(&earlier).await;
            }
            Bug::ReplacingShowsAGap => {
                let _hidden = Held::new(&self.shared.hidden);
                pause().await;
                return self.inner.write_batch(&batch).await;
            }
            _ => {}
        }
        self.inner.write_batch(&batch).await?;
        self.shared.log().note_write(&batch);
        Ok(())
    }

    async fn store_in_pieces(&self, batch: &[MetricRecord], pieces: usize) -> Result<()> {
        for piece in batch.chunks(batch.len().div_ceil(pieces)) {
            self.inner.write_batch(piece).await?;
            self.shared.log().note_write(piece);
            pause().await;
        }
        Ok(())
    }

    pub(super) async fn try_prune(&self, cutoff: DateTime<Utc>) -> Result<u64> {
        self.enter()?;
        let before = self.inner.stats().await?;
        let ms = self.spoil_cutoff(cutoff);
        let (far, nothing) =
            (cutoff < from_ms(MIN_MS) || cutoff > from_ms(END_MS), before.total_metrics == 0);
        if self.is(Bug::PruneFailsFarAway) && far || self.is(Bug::PruneFailsOnNothing) && nothing {
            return Err(Error::invalid("no such cutoff"));
        }
        let removed = self.prune_at(ms, before.total_metrics).await?;
        let overwritten = std::mem::take(&mut self.shared.log().overwrites);
        let mut log = self.shared.log();
        log.note_prune(ms);
        log.metadata_lost |= self.is(Bug::PruneLosesMetadata);
        let again = log.last_prune.filter(|(last, _)| *last == ms).map(|(_, removed)| removed);
        log.last_prune.get_or_insert((ms, removed));
        Ok(match self.bug {
            Bug::PruneCountsOneMore if removed > 0 => removed + 1,
            Bug::PruneCountsOverwrites => removed + overwritten,
            Bug::PruneCountsAgain => again.unwrap_or(removed),
            Bug::PruneCountsTo1000 => removed.min(1000),
            _ => removed,
        })
    }

    fn spoil_cutoff(&self, cutoff: DateTime<Utc>) -> i64 {
        let (ms, us) = (floor_ms(cutoff), cutoff.timestamp_micros());
        match self.bug {
            Bug::PrunesCutoffToo => ms + 1,
            Bug::PruneRoundsUp => us.div_euclid(1000) + i64::from(us.rem_euclid(1000) > 0),
            Bug::PruneTruncates => us / 1000,
            Bug::PrunesWholeSeconds => ms.div_euclid(1000) * 1000,
            Bug::PrunesNothingBefore1970 if ms < 0 => MIN_MS,
            _ => ms,
        }
    }

    async fn prune_at(&self, ms: i64, before: u64) -> Result<u64> {
        let cutoff = DateTime::from_timestamp_millis(ms).unwrap_or(DateTime::<Utc>::MAX_UTC);
        match self.bug {
            Bug::PruneRacesPrune => {
                pause().await;
                self.inner.prune_before(cutoff).await?;
                return Ok(before - self.inner.stats().await?.total_metrics);
            }
            Bug::PrunesFirstSeriesOnly => return self.prune_and_put_back(cutoff, true).await,
            Bug::PruneRewrites => return self.prune_and_put_back(cutoff, false).await,
            Bug::PruneLeavesAMark => {
                if std::mem::replace(&mut self.shared.log().prune_mark, true) {
                    return Ok(0);
                }
                pause().await;
                let removed = self.inner.prune_before(cutoff).await;
                self.shared.log().prune_mark = false;
                return removed;
            }
            Bug::PruneMakesHoles => {
                let _pruning = Held::new(&self.shared.pruning);
                pause().await;
                return self.inner.prune_before(cutoff).await;
            }
            _ => {}
        }
        self.inner.prune_before(cutoff).await
    }

    /// Removes everything and writes again what is to stay.
    async fn prune_and_put_back(&self, cutoff: DateTime<Utc>, first_only: bool) -> Result<u64> {
        let mut kept = Vec::new();
        let all = self.inner.series(&SeriesFilter::any()).await?;
        for (no, info) in all.iter().enumerate() {
            let key = &info.series;
            let records =
                self.inner.query_range(&key.server_id, &key.metric_type, TimeRange::all()).await?;
            let stays =
                |record: &MetricRecord| record.timestamp >= cutoff || (first_only && no > 0);
            kept.extend(records.into_iter().filter(stays));
        }
        let removed = self.inner.prune_before(DateTime::<Utc>::MAX_UTC).await?;
        if !first_only {
            pause().await;
        }
        self.inner.write_batch(&kept).await?;
        Ok(removed - kept.len() as u64)
    }

    pub(super) async fn try_compact(&self) -> Result<()> {
        self.enter()?;
        let empty = self.inner.stats().await.is_ok_and(|stats| stats.total_metrics == 0);
        match self.bug {
            Bug::CloseWaitsInVain if self.is_closed() => {
                return Err(Error::new(ErrorKind::Internal, "nobody is there"));
            }
            Bug::UpkeepFailsOnNothing if empty => {
                return Err(Error::new(ErrorKind::Internal, "nothing there"));
            }
            Bug::CompactHangs => std::future::pending().await,
            Bug::CompactLoses => self.lose_oldest(),
            Bug::CompactingShowsAGap => {
                let _hidden = Held::new(&self.shared.hidden);
                pause().await;
            }
            Bug::DroppedUpkeepLoses => {
                let unfinished = LosesUnlessDone(self, false);
                pause().await;
                unfinished.done();
            }
            _ => {}
        }
        self.shared.compactions.fetch_add(1, Ordering::SeqCst);
        if matches!(self.bug, Bug::CompactedIsFinal | Bug::CompactedCountsTwice) {
            let mut log = self.shared.log();
            log.frozen = log.stored.keys().cloned().collect();
        }
        self.inner.compact().await
    }
}

/// Loses a sample if it is dropped before its time.
struct LosesUnlessDone<'a>(&'a Broken, bool);

impl LosesUnlessDone<'_> {
    fn done(mut self) {
        self.1 = true;
    }
}

impl Drop for LosesUnlessDone<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.lose_oldest();
        }
    }
}
