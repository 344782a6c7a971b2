//! Asking, with its bugs.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use storage_core::metrics::time::floor_ms;
use storage_core::{
    Error, ErrorKind, HistoryQuery, Matcher, RecordHistory, RecordInfo, Result, StoredValue,
    TimeRange,
};

use super::{Broken, Bug};
use crate::mutant_runner::moment::{Unless, pause};

impl Broken {
    pub(super) async fn try_query(&self, query: &HistoryQuery) -> Result<Vec<StoredValue>> {
        if self.is(Bug::DroppedQuestionsBreak) {
            let unfinished = Unless::done_or(|| self.shared.broken.store(true, Ordering::SeqCst));
            pause().await;
            unfinished.done();
        }
        let changed = self.changed_query(query)?;
        let mut found = self.inner.query(&changed).await?;
        self.change_answer(query, &mut found).await?;
        Ok(found)
    }

    /// The question as the bug takes it.
    fn changed_query(&self, query: &HistoryQuery) -> Result<HistoryQuery> {
        let mut changed =
            HistoryQuery { records: self.changed_matcher(&query.records)?, ..query.clone() };
        let ms = chrono::Duration::milliseconds(1);
        let (start, end) = (query.range.start(), query.range.end());
        match self.bug {
            Bug::ZeroIsNoLimit if query.limit_per_record == Some(0) => {
                changed.limit_per_record = None;
            }
            Bug::FortyAreThirty if query.limit_per_record == Some(40) => {
                changed.limit_per_record = Some(30);
            }
            Bug::IncludesEnd if !query.range.is_empty() => {
                changed.range = TimeRange::new(start, end + ms)?;
            }
            Bug::ExcludesStart if !query.range.is_empty() => {
                changed.range = TimeRange::new(start + ms, end)?;
            }
            Bug::EmptyRangeIsAMoment if query.range.is_empty() => {
                changed.range = TimeRange::new(start, end + ms)?;
            }
            Bug::LimitsBeforeTheRange => changed.range = TimeRange::all(),
            Bug::LimitsAllTogether | Bug::CutsTiesAtTheWrongEnd => changed.limit_per_record = None,
            _ => {}
        }
        Ok(changed)
    }

    fn changed_matcher(&self, matcher: &Matcher) -> Result<Matcher> {
        let text = matcher.to_string();
        match self.bug {
            Bug::UnderscoreIsWild if matcher.names().is_none() => {
                Matcher::parse(&text.replace('_', "*"))
            }
            Bug::ExactNamesArePatterns if matcher.as_exact().is_some() => Matcher::parse(&text),
            Bug::NamesArePrefixes if matcher.as_exact().is_some() => Matcher::parse(&(text + "*")),
            Bug::TakesFirstNameAlone => match matcher.names() {
                Some([first, ..]) => Matcher::exact(first),
                _ => Ok(matcher.clone()),
            },
            Bug::IgnoresCase => Ok(Matcher::any()),
            _ => Ok(matcher.clone()),
        }
    }

    /// The answer as the bug leaves it.
    async fn change_answer(
        &self,
        query: &HistoryQuery,
        found: &mut Vec<StoredValue>,
    ) -> Result<()> {
        let pattern = query.records.to_string();
        let prefix = pattern.trim_end_matches('*');
        match self.bug {
            Bug::NothingIsAnError if found.is_empty() && query.records.names().is_none() => {
                return Err(Error::new(ErrorKind::NotFound, "no such record"));
            }
            Bug::UnknownIsAnError if found.is_empty() && query.records.as_exact().is_some() => {
                return Err(Error::new(ErrorKind::NotFound, "no such record"));
            }
            Bug::WantsAsManyAsAsked => {
                let asked = query.limit_per_record.unwrap_or(0);
                if asked > found.len() {
                    return Err(Error::new(ErrorKind::NotFound, "not so many"));
                }
            }
            Bug::SortsTies => found.sort_by_cached_key(|value| {
                (value.record_name.clone(), value.stored_at, value.value.to_string())
            }),
            Bug::ReadsNewestFirst => found.reverse(),
            Bug::SortsWithoutCase => {
                found.sort_by_cached_key(|value| value.record_name.to_lowercase());
            }
            Bug::StarNeedsCharacters if pattern.ends_with('*') && !prefix.contains('*') => {
                found.retain(|value| value.record_name != prefix);
            }
            Bug::IgnoresCase => {
                let lower = Matcher::parse(&pattern.to_lowercase())?;
                found.retain(|value| lower.matches(&value.record_name.to_lowercase()));
            }
            Bug::LimitsAllTogether => {
                let limit = query.limit_per_record.unwrap_or(usize::MAX).min(found.len());
                found.drain(..found.len() - limit);
            }
            Bug::CutsTiesAtTheWrongEnd => {
                let limit = query.limit_per_record.unwrap_or(usize::MAX);
                let records = found.chunk_by(|a, b| a.record_name == b.record_name);
                let cut = records.flat_map(|values| {
                    let mut newest = values.to_vec();
                    newest.sort_by_key(|value| std::cmp::Reverse(value.stored_at));
                    newest.truncate(limit);
                    newest.sort_by_key(|value| value.stored_at);
                    newest
                });
                *found = cut.collect();
            }
            Bug::AnswersTenThousand => found.truncate(10_000),
            Bug::LimitsBeforeTheRange => {
                found.retain(|value| query.range.contains(value.stored_at))
            }
            Bug::ForgetsBefore1970 => found.retain(|value| floor_ms(value.stored_at) >= 0),
            Bug::HidesLateValues => {
                let watermark = self.shared.log().watermark_ms;
                found.retain(|value| Some(floor_ms(value.stored_at)) >= watermark);
            }
            Bug::CleanupReorders if self.shared.log().reorders => {
                found.reverse();
                found.sort_by(|a, b| {
                    (&a.record_name, a.stored_at).cmp(&(&b.record_name, b.stored_at))
                });
            }
            Bug::ReadingRemoves => {
                if let Some(oldest) = found.iter().map(|value| value.stored_at).min() {
                    self.inner.cleanup(oldest + chrono::Duration::milliseconds(1)).await?;
                }
            }
            Bug::KnowsOwnRecordsAlone => {
                let known = self.known();
                found.retain(|value| known.contains(&value.record_name));
            }
            Bug::RemembersLongAnswers => {
                let mut all = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
                let before = all.entry(format!("{query:?}")).or_default();
                match before.len() > found.len() {
                    true => found.clone_from(before),
                    false => before.clone_from(found),
                }
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) async fn try_records(&self, records: &Matcher) -> Result<Vec<RecordInfo>> {
        let matcher = match self.bug {
            Bug::ListsEveryRecord => Matcher::any(),
            _ => self.changed_matcher(records)?,
        };
        let mut found = self.inner.records(&matcher).await?;
        match self.bug {
            Bug::SwapsExtent => {
                found.iter_mut().for_each(|info| std::mem::swap(&mut info.oldest, &mut info.newest))
            }
            Bug::ListsVanishedRecords => {
                let vanished = self.shared.log().vanished.clone();
                let epoch = chrono::DateTime::UNIX_EPOCH;
                found.extend(vanished.into_iter().map(|record_name| RecordInfo {
                    record_name,
                    count: 0,
                    oldest: epoch,
                    newest: epoch,
                }));
            }
            _ => {}
        }
        Ok(found)
    }
}
