//! What the cold tier holds of each series, remembered for as long as nobody changes it.
//!
//! Moves and prunes alone change the cold tier, and each begins and ends with another view. What was
//! read while nobody did either is so until the view is another one. With it the newest samples
//! need no question to the cold tier, which may be far away, where the hot one has newer ones.

use std::sync::{Arc, Mutex, PoisonError};

use super::Reading;
use super::view::{Phase, View};
use crate::error::Result;
use crate::metrics::{SeriesFilter, SeriesInfo, SeriesSamples};

/// Of more series nothing is remembered: each takes about a hundred bytes and its names.
const SERIES_MAX: usize = 100_000;

/// The series of the cold tier as of one view, once they were read.
#[derive(Debug, Default)]
pub(super) struct ColdSeries(Mutex<Option<(u64, Arc<Vec<SeriesInfo>>)>>);

impl ColdSeries {
    fn of(&self, view: &View) -> Option<Arc<Vec<SeriesInfo>>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.as_ref().filter(|(generation, _)| *generation == view.generation);
        known.map(|(_, all)| Arc::clone(all))
    }

    fn remember(&self, view: &View, all: &Arc<Vec<SeriesInfo>>) {
        if all.len() <= SERIES_MAX {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *known = Some((view.generation, Arc::clone(all)));
        }
    }
}

impl Reading<'_> {
    /// Returns all series of the cold tier, in order; `None` if they are not known, or change just
    /// now. Who asks for all makes them known.
    pub(super) async fn cold_series(
        &mut self,
        filter: &SeriesFilter,
    ) -> Result<Option<Arc<Vec<SeriesInfo>>>> {
        while matches!(self.view.phase, Phase::Idle | Phase::Moving) {
            let known = self.store.cold_series.of(&self.view);
            if known.is_some() || *filter != SeriesFilter::any() {
                return Ok(known);
            }
            let all = Arc::new(self.store.tiers.cold.series(filter).await?);
            if self.is_settled().await? {
                self.store.cold_series.remember(&self.view, &all);
                return Ok(Some(all));
            }
        }
        Ok(None)
    }
}

/// Whether none of `cold`, of the series that `filter` chooses, can be among the newest `n` samples, of
/// which `hot` are those in the hot tier.
pub(super) fn is_older(
    cold: &[SeriesInfo],
    filter: &SeriesFilter,
    hot: &[SeriesSamples],
    n: usize,
) -> bool {
    let is_older = |info: &SeriesInfo| {
        let at = hot.binary_search_by(|one| one.series.cmp(&info.series)).ok();
        // The oldest of them.
        let last = at.and_then(|at| n.checked_sub(1).and_then(|last| hot[at].samples.get(last)));
        last.is_some_and(|last| last.timestamp >= info.newest)
    };
    cold.iter().filter(|info| filter.matches_key(&info.series)).all(is_older)
}
