//! Appending, with its bugs.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use serde_json::json;
use storage_core::events::value::validate_events;
use storage_core::metrics::time::{END_MS, MIN_MS, floor_ms, from_ms};
use storage_core::{
    Error, ErrorKind, EventStore, EventStoreExt, Expectation, ExpectedVersion, NewEvent, Result,
    StoredEvent,
};

use super::{Broken, Bug, HIDDEN};
use crate::mutant_runner::moment::{Unless, pause};

impl Broken {
    pub(super) async fn try_append(
        &self,
        events: &[NewEvent],
        expected: &[Expectation],
    ) -> Result<Vec<StoredEvent>> {
        if events.is_empty() && self.is(Bug::EmptyBatchFails) {
            return Err(Error::invalid("nothing to append"));
        }
        if events.is_empty() && self.is(Bug::EmptyBatchExpects) {
            self.check_all(expected).await?;
        }
        if self.is(Bug::AppendsValidPart) && validate_events(events).is_err() {
            let valid: Vec<_> =
                events.iter().filter(|event| event.validate().is_ok()).cloned().collect();
            self.inner.append(&valid, expected).await?;
        }
        if self.is(Bug::NamesLastBadEvent)
            && let Some(last) = events.iter().rposition(|event| event.validate().is_err())
        {
            let refused = events[last].validate();
            return refused.map(|()| Vec::new()).map_err(|e| e.with_context("event", last));
        }
        let mut changed: Vec<_> = events.iter().cloned().map(|event| self.changed(event)).collect();
        self.change_batch(&mut changed).await?;
        let expected = self.expectations(&changed, expected).await?;
        self.known().extend(changed.iter().map(|event| event.stream.clone()));
        let stored = self.put(&changed, &expected).await;
        if let Err(error) = &stored {
            self.shared.log().conflict |= error.kind() == ErrorKind::Conflict;
            if self.is(Bug::RefusalsUseNumbers) {
                self.use_a_number().await?;
            }
        }
        let stored = stored.map_err(|error| self.without_reasons(error))?;
        let log: Vec<_> = changed.iter().filter_map(|event| event.event_id.clone()).collect();
        self.shared.log().ids.extend(log);
        Ok(self.answer(stored))
    }

    fn without_reasons(&self, error: Error) -> Error {
        match self.bug {
            Bug::ConflictsSayNothing => Error::new(error.kind(), error.message().to_owned()),
            _ => error,
        }
    }

    async fn use_a_number(&self) -> Result<()> {
        self.inner.append_all(&[NewEvent::new(HIDDEN, "Hidden", json!(null))]).await.map(drop)
    }

    /// One event with the bug.
    fn changed(&self, mut event: NewEvent) -> NewEvent {
        let is_bad = event.validate().is_err();
        match self.bug {
            Bug::MergesEqualEvents => {
                event.event_id.get_or_insert_with(|| format!("{}{}", event.stream, event.payload));
            }
            Bug::ParsesTexts => {
                if let Some(text) = event.payload.as_str()
                    && let Ok(parsed) = serde_json::from_str(text)
                {
                    event.payload = parsed;
                }
            }
            Bug::MakesFractionsWhole if event.payload == json!(1.0) => event.payload = json!(1),
            Bug::RoundsTimes => event.stored_at += chrono::Duration::microseconds(500),
            Bug::TrimsNames if !event.stream.trim().is_empty() => {
                event.stream = event.stream.trim().to_owned();
            }
            Bug::AcceptsBadNames if is_bad => {
                event.stream = "bad".to_owned();
                event.event_type = "bad".to_owned();
                event.event_id = None;
            }
            Bug::AcceptsBadTimes if is_bad => event.stored_at = from_ms(0),
            Bug::AcceptsLargePayloads | Bug::AcceptsDeepPayloads | Bug::AcceptsNul if is_bad => {
                event.payload = json!("bad");
            }
            Bug::ForgetsIds => event.event_id = None,
            Bug::IdsAreOfStreams => {
                event.event_id = event.event_id.map(|id| format!("{}/{id}", event.stream));
            }
            _ => {}
        }
        event
    }

    async fn change_batch(&self, events: &mut Vec<NewEvent>) -> Result<()> {
        let far = |event: &NewEvent| [MIN_MS, END_MS - 1].contains(&floor_ms(event.stored_at));
        let large =
            |event: &NewEvent| event.payload.as_str().is_some_and(|text| text.len() > 1_000_000);
        match self.bug {
            Bug::ReversesBatches => events.reverse(),
            Bug::SortsByTime => events.sort_by_key(|event| event.stored_at),
            Bug::RefusesFarTimes if events.iter().any(far) => {
                return Err(Error::invalid("the time is too far away"));
            }
            Bug::RefusesLargePayloads if events.iter().any(large) => {
                return Err(Error::invalid("the payload is too large"));
            }
            Bug::CutsLargeBatches => events.truncate(20_000),
            Bug::SkipsNumbers => self.use_a_number().await?,
            Bug::AcceptsTwins => {
                let mut seen = BTreeSet::new();
                for event in events.iter_mut() {
                    if event.event_id.as_ref().is_some_and(|id| !seen.insert(id.clone())) {
                        event.event_id = None;
                    }
                }
            }
            Bug::IdsDieWithHandles => {
                let all = self.everything().await?;
                let old = all.iter().filter(|stored| stored.sequence <= self.opened_at);
                let old: BTreeSet<_> = old.filter_map(|stored| stored.event_id.clone()).collect();
                for event in events.iter_mut() {
                    event.event_id = event.event_id.take().filter(|id| !old.contains(id));
                }
            }
            Bug::AppendsTheRest => {
                let all = self.everything().await?;
                let old: BTreeSet<_> = all.into_iter().filter_map(|s| s.event_id).collect();
                let is_new = |e: &NewEvent| e.event_id.as_ref().is_none_or(|id| !old.contains(id));
                if events.iter().any(is_new) {
                    events.retain(is_new);
                }
            }
            Bug::IdsOutliveEvents => {
                let all = self.everything().await?;
                let there: BTreeSet<_> = all.into_iter().filter_map(|s| s.event_id).collect();
                let log = self.shared.log();
                let is_gone = |id: &String| log.ids.contains(id) && !there.contains(id);
                if events.iter().filter_map(|event| event.event_id.as_ref()).any(is_gone) {
                    return Err(Error::new(ErrorKind::Conflict, "the id was used before"));
                }
            }
            Bug::RepeatsCompareTimes => {
                let all = self.everything().await?;
                let differs = |event: &NewEvent| {
                    all.iter().any(|stored| {
                        event.event_id.is_some()
                            && stored.event_id == event.event_id
                            && floor_ms(stored.stored_at) != floor_ms(event.stored_at)
                    })
                };
                if events.iter().any(differs) {
                    return Err(Error::new(ErrorKind::Conflict, "another time"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Fails unless each expectation holds now.
    async fn check_all(&self, expected: &[Expectation]) -> Result<()> {
        for expected in expected {
            expected.check(self.inner.stream_version(&expected.stream).await?)?;
        }
        Ok(())
    }

    /// What is expected, with the bug.
    async fn expectations(
        &self,
        events: &[NewEvent],
        expected: &[Expectation],
    ) -> Result<Vec<Expectation>> {
        let mut kept = expected.to_vec();
        match self.bug {
            Bug::IgnoresExpectations => kept.clear(),
            Bug::ExpectsOneStreamAlone => kept.truncate(1),
            Bug::ExpectsTouchedStreams => {
                kept.retain(|of| events.iter().any(|event| event.stream == of.stream));
            }
            Bug::ExpectsBadStreams => {
                kept.retain(|of| (1..=512).contains(&of.stream.len()) && !of.stream.contains('\0'));
            }
            Bug::AnyIsNoStream => {
                for of in kept.iter_mut().filter(|of| of.version == ExpectedVersion::Any) {
                    of.version = ExpectedVersion::NoStream;
                }
            }
            Bug::ZeroIsAny => kept.retain(|of| of.version != ExpectedVersion::Exact(0)),
            Bug::ExactIsAtLeast => {
                for of in &mut kept {
                    let version = self.inner.stream_version(&of.stream).await?;
                    if matches!(of.version, ExpectedVersion::Exact(least) if version >= least) {
                        of.version = ExpectedVersion::Any;
                    }
                }
            }
            Bug::ExpectsAfterTheBatch => {
                for of in &mut kept {
                    let own = events.iter().filter(|event| event.stream == of.stream).count();
                    let version = self.inner.stream_version(&of.stream).await?;
                    of.check(version + own as u64)?;
                }
                kept.clear();
            }
            Bug::ExpectsBeforehand => {
                self.check_all(&kept).await?;
                pause().await;
                kept.clear();
            }
            Bug::RepeatsExpect if !events.is_empty() => self.check_all(&kept).await?,
            Bug::ConflictsSpread => {
                if self.shared.log().conflict {
                    return Err(Error::new(ErrorKind::Conflict, "that of another caller"));
                }
                pause().await;
            }
            Bug::VersionsDieWithEvents => {
                let all = self.everything().await?;
                kept.retain(|of| {
                    of.version != ExpectedVersion::NoStream
                        || all.iter().any(|event| event.stream == of.stream)
                });
            }
            _ => {}
        }
        Ok(kept)
    }

    /// The answer that nothing is behind.
    fn invented(events: &[NewEvent]) -> Vec<StoredEvent> {
        let invent = |(nth, event): (u64, &NewEvent)| event.clone().into_stored(nth, nth);
        (1..).zip(events).map(invent).collect()
    }

    async fn put(&self, events: &[NewEvent], expected: &[Expectation]) -> Result<Vec<StoredEvent>> {
        match self.bug {
            Bug::LosesLastEvent if !events.is_empty() => {
                validate_events(events)?;
                self.inner.append(&events[..events.len() - 1], expected).await?;
                Ok(Self::invented(events))
            }
            Bug::TearsBatches | Bug::DroppedAppendsTear => {
                let (first, second) = events.split_at(events.len() / 2);
                let mut stored = self.inner.append(first, expected).await?;
                pause().await;
                stored.extend(self.inner.append_all(second).await?);
                Ok(stored)
            }
            Bug::LosesUnderLoad => {
                let others = self.shared.calls.fetch_add(1, Ordering::SeqCst);
                pause().await;
                let stored = match others {
                    0..4 => self.inner.append(events, expected).await,
                    _ => Ok(Self::invented(events)),
                };
                self.shared.calls.fetch_sub(1, Ordering::SeqCst);
                stored
            }
            Bug::HoldsBack => {
                let held = std::mem::replace(&mut self.shared.log().held_back, events.to_vec());
                self.inner.append_all(&held).await?;
                Ok(Self::invented(events))
            }
            Bug::AnswersEarly => {
                validate_events(events)?;
                let (inner, events) = (self.inner.clone(), events.to_vec());
                let answer = Self::invented(&events);
                tokio::spawn(async move {
                    pause().await;
                    inner.append_all(&events).await
                });
                Ok(answer)
            }
            Bug::DroppedAppendsComeLate => {
                let keep = || self.shared.log().late.extend_from_slice(events);
                let unfinished = Unless::done_or(keep);
                pause().await;
                unfinished.done();
                let stored = self.inner.append(events, expected).await?;
                if events.iter().any(|event| event.stream == "later") {
                    let late = std::mem::take(&mut self.shared.log().late);
                    self.inner.append_all(&late).await?;
                }
                Ok(stored)
            }
            _ => self.inner.append(events, expected).await,
        }
    }

    /// What was stored, with the bug.
    fn answer(&self, mut stored: Vec<StoredEvent>) -> Vec<StoredEvent> {
        match self.bug {
            Bug::RepeatsSort => stored.sort_by_key(|event| event.sequence),
            Bug::NumbersStartAgain => {
                let before = self.shared.log().restarted_at;
                stored.iter_mut().for_each(|event| event.sequence -= before);
            }
            _ => stored.iter_mut().for_each(|event| self.change_stored(event)),
        }
        stored
    }

    /// An event as it is given back, with the bug.
    pub(super) fn change_stored(&self, event: &mut StoredEvent) {
        match self.bug {
            Bug::AnswersWithoutIds => event.event_id = None,
            Bug::VersionsAreNumbers => event.version = event.sequence,
            Bug::IdsAreOfStreams => {
                let own = |id: String| id.rsplit_once('/').map_or(id.clone(), |(_, id)| id.into());
                event.event_id = event.event_id.take().map(own);
            }
            _ => {}
        }
    }
}
