//! Reading, waiting and pruning, each with its bugs.

use std::collections::BTreeSet;

use storage_core::{
    Error, ErrorKind, EventQuery, EventStore, LogExtent, Matcher, ProjectionStep, Result,
    StorageBackend, StoredEvent, StreamInfo,
};

use super::{Broken, Bug, HIDDEN};
use crate::mutant_runner::moment::{Unless, pause};

impl Broken {
    pub(super) async fn try_read(&self, query: &EventQuery) -> Result<Vec<StoredEvent>> {
        if self.is(Bug::DroppedQuestionsBreak) {
            let broken = || self.shared.broken.store(true, std::sync::atomic::Ordering::SeqCst);
            let unfinished = Unless::done_or(broken);
            pause().await;
            unfinished.done();
        }
        let log = self.inner.extent().await?;
        let mut asked = query.clone();
        match self.bug {
            Bug::ExcludesStart => asked.from += 1,
            Bug::ZeroIsNowhere if asked.from == 0 => return Ok(Vec::new()),
            Bug::HidesTheNewest if asked.from == log.last && log.last > 3 => return Ok(Vec::new()),
            Bug::BehindTheEndFails if asked.from > log.last => {
                return Err(Error::invalid("behind the end"));
            }
            Bug::LimitsToOneMore => asked.limit = asked.limit.saturating_add(1),
            Bug::ZeroIsNoLimit if asked.limit == 0 => asked.limit = usize::MAX,
            Bug::ReadsAllStreams => asked.stream = None,
            Bug::ReadsBadStreams if asked.validate().is_err() => return Ok(Vec::new()),
            Bug::EndsAtTenThousand => {
                if asked.from > 10_000 {
                    return Ok(Vec::new());
                }
                asked.limit = asked.limit.min(10_000);
            }
            Bug::LimitsBeforeTheStream => asked.stream = None,
            Bug::StreamsArePrefixes => {
                asked.stream = None;
                asked.limit = usize::MAX;
            }
            Bug::ReadsKnownStreams => {
                let unknown = |stream: &String| !self.known().contains(stream);
                if asked.stream.as_ref().is_some_and(unknown) {
                    return Ok(Vec::new());
                }
            }
            _ => {}
        }
        let mut found = self.inner.read(&asked).await?;
        self.change_page(query, &mut found).await?;
        found.retain(|event| event.stream != HIDDEN);
        found.iter_mut().for_each(|event| self.change_stored_in_log(event));
        Ok(found)
    }

    /// What a bug does to events in the log as well as in the answer to an append.
    fn change_stored_in_log(&self, event: &mut StoredEvent) {
        if !self.is(Bug::AnswersWithoutIds) {
            self.change_stored(event);
        }
    }

    async fn change_page(&self, query: &EventQuery, found: &mut Vec<StoredEvent>) -> Result<()> {
        let size = |event: &StoredEvent| event.payload.to_string().len();
        match self.bug {
            Bug::UnknownStreamFails if query.stream.is_some() && found.is_empty() => {
                return Err(Error::new(ErrorKind::NotFound, "there is no such stream"));
            }
            Bug::LimitsBeforeTheStream => {
                found.retain(|event| query.stream.as_ref().is_none_or(|of| event.stream == *of));
            }
            Bug::StreamsArePrefixes => {
                let of = query.stream.clone().unwrap_or_default();
                found.retain(|event| event.stream.starts_with(&of));
                found.truncate(query.limit);
            }
            Bug::LargePagesLoseTheirFirst if found.len() > 1000 && query.from > 1 => {
                found.remove(0);
            }
            Bug::SeesTheLogOfItsStart if query.from > 1000 => {
                found.retain(|event| event.sequence <= 17_000);
            }
            Bug::LargePagesAreEmpty if found.iter().map(size).sum::<usize>() > 4 << 20 => {
                found.clear();
            }
            Bug::EndsBehindLargeEvents if query.from > 1 => {
                let before = EventQuery::from(query.from - 1).limit(1);
                let before = self.inner.read(&before).await?;
                if before.iter().any(|event| size(event) > 1_000_000) {
                    found.clear();
                }
            }
            Bug::ShowsLate => {
                let mut log = self.shared.log();
                found.retain(|event| event.sequence % 5 != 0 || !log.shown.insert(event.sequence));
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) async fn try_extent(&self) -> Result<LogExtent> {
        let mut log = self.inner.extent().await?;
        if self.is(Bug::BeginsAtZero) && log.last == 0 {
            log.first = 0;
        }
        Ok(log)
    }

    pub(super) async fn try_streams(&self, streams: &Matcher) -> Result<Vec<StreamInfo>> {
        let every = Matcher::any();
        let streams = if self.is(Bug::ListsEveryStream) { &every } else { streams };
        let mut found = self.inner.streams(streams).await?;
        match self.bug {
            Bug::SortsWithoutCase => found.sort_by_key(|info| info.stream.to_lowercase()),
            Bug::StreamsDieWithEvents => {
                let all = self.everything().await?;
                let alive: BTreeSet<_> = all.into_iter().map(|event| event.stream).collect();
                found.retain(|info| alive.contains(&info.stream));
            }
            _ => {}
        }
        Ok(found)
    }

    pub(super) async fn try_wait_for(&self, sequence: u64) -> Result<()> {
        let last = self.inner.extent().await?.last;
        match self.bug {
            Bug::WaitingForThePastFails if sequence <= last => {
                Err(Error::invalid("it is there already"))
            }
            Bug::NeverWaits => Ok(()),
            Bug::WaitsForAnything => self.inner.wait_for(sequence.min(last + 1)).await,
            Bug::ClosedWaitsAreFine => {
                let waited = self.inner.wait_for(sequence).await;
                waited.or_else(|error| match error.kind() {
                    ErrorKind::Closed => Ok(()),
                    _ => Err(error),
                })
            }
            _ => self.inner.wait_for(sequence).await,
        }
    }

    pub(super) async fn try_prune(&self, sequence: u64) -> Result<u64> {
        let log = self.inner.extent().await?;
        let projections = self.inner.projections().await?;
        match self.bug {
            Bug::RemovesTheNumber => self.inner.prune_before(sequence.saturating_add(1)).await,
            Bug::RemovesSomething => self.inner.prune_before(sequence.max(2)).await,
            Bug::KeepsTheLast => self.inner.prune_before(sequence.min(log.last)).await,
            Bug::NumbersStartAgain => {
                let removed = self.inner.prune_before(sequence).await?;
                if sequence > log.last {
                    self.shared.log().restarted_at = log.last;
                }
                Ok(removed)
            }
            Bug::CountsAgain => {
                let removed = self.inner.prune_before(sequence).await?;
                let mut log = self.shared.log();
                log.removed += removed;
                Ok(log.removed)
            }
            Bug::PrunesPastProjections => {
                for of in &projections {
                    self.inner.forget_projection(&of.projection).await?;
                }
                let removed = self.inner.prune_before(sequence).await?;
                for of in projections {
                    let to = of.checkpoint.max(self.inner.extent().await?.first - 1);
                    self.inner.project(&ProjectionStep::new(of.projection, 0, to)).await?;
                }
                Ok(removed)
            }
            Bug::NamesTheFastest => self.inner.prune_before(sequence).await.map_err(|error| {
                let fastest = projections.iter().max_by_key(|of| of.checkpoint);
                fastest.map_or(error, |of| {
                    Error::new(ErrorKind::Conflict, "a projection has not seen these events yet")
                        .with_context("projection", &of.projection)
                        .with_context("checkpoint", of.checkpoint)
                })
            }),
            Bug::WantsTheNumberSeen
                if projections.iter().any(|of| of.checkpoint < sequence.saturating_sub(1)) =>
            {
                Err(Error::new(ErrorKind::Conflict, "a projection has not seen the number"))
            }
            Bug::ForgottenOnesHold if self.shared.log().forgotten => {
                Err(Error::new(ErrorKind::Conflict, "a forgotten projection has not seen them"))
            }
            Bug::PrunesRows => {
                let removed = self.inner.prune_before(sequence).await?;
                for of in projections {
                    self.inner.forget_projection(&of.projection).await?;
                }
                Ok(removed)
            }
            Bug::PrunesOneStep => self.inner.prune_before(sequence.min(log.first + 5000)).await,
            Bug::CountsBeforeRemoving => {
                let count = sequence.min(log.last + 1).saturating_sub(log.first);
                self.shared.pair.meet().await;
                self.inner.prune_before(sequence).await?;
                Ok(count)
            }
            Bug::PrunesMetrics => {
                self.metrics.inner.prune_before(chrono::DateTime::<chrono::Utc>::MAX_UTC).await?;
                self.inner.prune_before(sequence).await
            }
            Bug::DroppedPruneBreaks => {
                let broken = || self.shared.broken.store(true, std::sync::atomic::Ordering::SeqCst);
                let unfinished = Unless::done_or(broken);
                pause().await;
                unfinished.done();
                self.inner.prune_before(sequence).await
            }
            _ => self.inner.prune_before(sequence).await,
        }
    }
}
